"""A small latent array reads every modality by cross-attention, again and again."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.fusion.blocks import Block, CrossBlock, late_maps, late_mean, late_residual
from medfuse.models.settings import check_count, check_rate


class LatentFusion(Fusion):
    """Latents S (L, D): in each of ``depth`` rounds S <- S + a_m (read_m(S, tokens_m) - S) for every modality in turn.

    read_m is cross-attention and a feed-forward layer, both residual; the state is LN(mean of S). Cost grows with
    L times the number of tokens.

    Args:
        modalities: names of the M modalities.
        width: D, divisible by ``heads``.
        latents: L.
        depth: rounds.
        heads: attention heads.
        dropout: on residual branches and in the feed-forward layers.
        token_dropout: on the tokens as they enter.
        tied: all rounds share their weights.
        residual: add to the state the mean over the present modalities of a linear map of each one's mean token.

    References:
        Hemker et al. (2024), HEALNet: multimodal fusion for heterogeneous biomedical data, NeurIPS.
        NOTE[DIFF]: gates per patient; a learned null token among the keys; self-attention of the latents ends every
        round, optional in the authors' code; no Fourier features, for bags have no order; the residual.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        latents: int = 8,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.2,
        token_dropout: float = 0.1,
        tied: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_count("latents", latents, least=2)
        check_rate("dropout", dropout)
        self.depth = check_count("depth", depth)
        rounds = 1 if tied else depth
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.token_dropout = nn.Dropout(check_rate("token_dropout", token_dropout))
        self.latents = nn.Parameter(torch.randn(latents, width) * width**-0.5)
        self.reads = nn.ModuleList(
            [CrossBlock(width, heads=heads, ratio=2, dropout=dropout) for _ in range(rounds) for _ in modalities]
        )
        self.mixes = nn.ModuleList([Block(width, heads=heads, ratio=2, dropout=dropout) for _ in range(rounds)])
        self.norm = nn.LayerNorm(width)
        self.own = late_maps(modalities if residual else (), width)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        m = len(tokens)
        normed = [self.token_dropout(norm(token)) for norm, token in zip(self.norms, tokens, strict=True)]
        latents = self.latents.expand(len(present), -1, -1)
        everywhere = present.new_ones(latents.shape[:2])
        for turn in range(self.depth):
            row = turn % len(self.mixes)
            for column in range(m):
                read = self.reads[row * m + column](latents, normed[column], masks[column])
                latents = torch.where(present[:, column, None, None], read, latents)
            latents = self.mixes[row](latents, everywhere)
        state = self.norm(latents.mean(1))
        if len(self.own):
            state = state + late_mean(late_residual(self.own, tokens, masks), present)
        return Fused(states=state[:, None], weights=torch.ones_like(state[:, :1]))
