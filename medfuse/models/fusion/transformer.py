"""Tokens of all present modalities attend to each other; a patient token that is always there collects the state."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.models.attention import MultiHeadAttention, masked_mean
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.settings import check_count, check_rate


class Block(nn.Module):
    """Pre-norm transformer layer.

    Args:
        width: D.
        heads: attention heads.
        ratio: width of the feed-forward layer in units of D.
        dropout: on both residual branches.
    """

    def __init__(self, width: int, *, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads=heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, width * ratio), nn.GELU(), nn.Dropout(dropout), nn.Linear(width * ratio, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor, *, queries: int | None = None) -> Tensor:
        """Tokens (B, T, D) to (B, T, D), or to the first ``queries`` of them only."""
        normed = self.norm_attention(tokens)
        kept = tokens[:, :queries]
        kept = kept + self.dropout(self.attention(normed[:, :queries], normed, mask))
        out: Tensor = kept + self.dropout(self.feed(self.norm_feed(kept)))
        return out


class TransformerFusion(Fusion):
    """Pre-norm transformer over the normalised tokens of all modalities plus an embedding of the modality.

    The patient token keeps attention from being masked everywhere, and is the state of a patient without any modality.
    The last layer computes the patient token alone.

    Args:
        modalities: names of the M modalities.
        width: D, divisible by ``heads``.
        depth: layers.
        heads: attention heads.
        ratio: width of the feed-forward layers in units of D.
        dropout: on residual branches and in the feed-forward layers.
        token_dropout: on the tokens as they enter.
        residual: add to the patient token the mean over the present modalities of a linear map of each one's mean
            token: a late fusion beside the attention, which small cohorts fit first.

    References:
        Vaswani et al. (2017), Attention is all you need; Xiong et al. (2020), On layer normalization in the
        transformer architecture, section 3 (pre-norm).
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        depth: int = 2,
        heads: int = 4,
        ratio: int = 2,
        dropout: float = 0.2,
        token_dropout: float = 0.1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        check_count("ratio", ratio)
        check_rate("dropout", dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.modality = nn.Parameter(torch.randn(len(modalities), width) * width**-0.5)
        self.patient = nn.Parameter(torch.randn(width) * width**-0.5)
        self.token_dropout = nn.Dropout(check_rate("token_dropout", token_dropout))
        self.blocks = nn.ModuleList([Block(width, heads=heads, ratio=ratio, dropout=dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.own = nn.ModuleList([nn.Linear(width, width) for _ in (modalities if residual else ())])

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        n = len(present)
        normed = [
            self.token_dropout(norm(t)) + own for norm, t, own in zip(self.norms, tokens, self.modality, strict=True)
        ]
        x = torch.cat([self.patient.expand(n, 1, -1), *normed], dim=1)
        mask = torch.cat([present.new_ones(n, 1), *masks], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        state = self.norm(self.blocks[-1](x, mask, queries=1))
        if len(self.own):
            state = state + self._late(tokens, masks, present)[:, None]
        return Fused(states=state, weights=torch.ones_like(state[..., 0]))

    def _late(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Tensor:
        """Mean over the present modalities of a linear map of each one's mean token: (B, D), zeros without any."""
        each = torch.stack(
            [own(masked_mean(token, mask)) for own, token, mask in zip(self.own, tokens, masks, strict=True)], dim=1
        )
        total = torch.where(present[..., None], each, 0.0).sum(1)
        return total / present.sum(1, keepdim=True).clamp(min=1)
