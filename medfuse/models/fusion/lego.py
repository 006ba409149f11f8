"""Blocks that turn any modality into a latent of one shape: trained apart, merged without training, tuned briefly."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medfuse.models.attention import MultiHeadAttention
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.settings import check_choice, check_count, check_rate

DOMAINS = ("none", "fft_feature", "fft_token")
_FLOOR = 1e-8


class LegoLayer(nn.Module):
    """Pre-norm: the latent attends to itself and the tokens, then a feed-forward layer.

    Without itself among the keys, attention to a single token would be constant, and to none undefined.

    Args:
        width: D.
        heads: attention heads.
        dropout: on both residual branches.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_latent, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads=heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, latent: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Latent (B, l, D) after reading tokens (B, T, D) with mask (B, T)."""
        query = self.norm_latent(latent)
        keys = torch.cat([query, self.norm_tokens(tokens)], dim=1)
        read = self.attention(query, keys, torch.cat([mask.new_ones(query.shape[:2]), mask], dim=1))
        latent = latent + self.dropout(read)
        fed: Tensor = latent + self.dropout(self.feed(self.norm_feed(latent)))
        return fed


class LegoBlock(nn.Module):
    """One modality's latent, the layers that fill it, and a linear map into the frame that the heads read.

    Args:
        width: D.
        latents: l rows of the latent.
        depth: layers.
        heads: attention heads.
        dropout: in the layers.
    """

    def __init__(self, width: int, *, latents: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(latents, width) * width**-0.5)
        self.layers = nn.ModuleList([LegoLayer(width, heads=heads, dropout=dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.turn = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.turn.weight)

    def forward(self, latent: Tensor) -> Tensor:
        """A filled latent (B, l, D) in the common frame."""
        turned: Tensor = self.turn(self.norm(latent))
        return turned


class LegoFusion(Fusion):
    """A latent per modality, filled by cross-attention and merged element by element over the modalities present.

    With weights w_m of the present modalities, which sum to 1, the merged latent is sum_m w_m L_m (``domain: none``),
    or, after a Fourier transform of the latents along their features or rows, has the weighted harmonic mean
    1 / sum_m (w_m / |X_m|) as magnitude and the circular mean of the phases. The state is its mean row. A block reads
    its own modality alone, so that blocks of networks trained apart can be put together: :mod:`medfuse.merging`.

    Args:
        modalities: names of the M modalities.
        width: D, divisible by ``heads``.
        latents: l rows of a latent.
        depth: layers of a block.
        heads: attention heads.
        dropout: in the layers.
        domain: ``none``, ``fft_feature`` or ``fft_token``.
        combine: ``merge`` side by side; ``stack``: one latent goes through all layers of the first block, then of the
            second, and so on; ``weave``: through the first layers of all blocks, then the second ones. The last two
            need epochs of training together after a merge.

    References:
        Hemker et al. (2025), Multimodal Lego: model merging and fine-tuning across topologies and modalities in
        biomedicine, sections 3.1 to 3.3; docs/fusion/lego.md lists the departures.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        latents: int = 8,
        depth: int = 1,
        heads: int = 4,
        dropout: float = 0.2,
        domain: str = "none",
        combine: str = "merge",
    ) -> None:
        super().__init__()
        check_rate("dropout", dropout)
        self.domain = check_choice("domain", domain, DOMAINS)
        self.combine = check_choice("combine", combine, ("merge", "stack", "weave"))
        check_count("latents", latents)
        self.depth = check_count("depth", depth)
        self.blocks = nn.ModuleList(
            [LegoBlock(width, latents=latents, depth=depth, heads=heads, dropout=dropout) for _ in modalities]
        )
        self.share: Tensor
        self.register_buffer("share", torch.full((len(modalities),), 1 / len(modalities)))
        self.nobody = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        blocks = cast(list[LegoBlock], list(self.blocks))
        filled = self._filled(blocks, tokens, masks, present)
        latents = torch.stack([block(latent) for block, latent in zip(blocks, filled, strict=True)], dim=1)
        weight = self.share * present
        weight = weight / weight.sum(1, keepdim=True).clamp(min=_FLOOR)
        merged = merge_latents(latents, weight, domain=self.domain).mean(1)
        state = torch.where(present.any(1, keepdim=True), merged, self.nobody)[:, None]
        return Fused(states=state, weights=torch.ones_like(state[..., 0]))

    def _filled(
        self, blocks: list[LegoBlock], tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor
    ) -> list[Tensor]:
        """A latent (B, l, D) per block; when stacked or woven, the same one for all."""
        n, count = len(present), len(blocks)
        if self.combine == "merge":
            found = [block.latent.expand(n, -1, -1) for block in blocks]
            for m, block in enumerate(blocks):
                for layer in block.layers:
                    found[m] = layer(found[m], tokens[m], masks[m])
            return found
        order = [(m, d) for m in range(count) for d in range(self.depth)]
        if self.combine == "weave":
            order.sort(key=lambda pair: pair[1])
        latent = torch.stack([block.latent for block in blocks]).mean(0).expand(n, -1, -1)
        for m, d in order:
            layer = blocks[m].layers[d]
            latent = torch.where(present[:, m, None, None], layer(latent, tokens[m], masks[m]), latent)
        return [latent] * count


def merge_latents(latents: Tensor, weight: Tensor, *, domain: str) -> Tensor:
    """Merge latents element by element.

    Args:
        latents: (B, M, l, D).
        weight: (B, M), 0 where absent, rows sum to 1, or to 0 where everything is absent.
        domain: of :data:`DOMAINS`.

    Returns:
        (B, l, D); zeros or numbers without meaning where everything is absent, finite in any case.

    NOTE[DIFF]: the published expression 2a(1-a) m1 m2 / (a m2 + (1-a) m1) is no mean (of 2 and 2 it makes 1 at a = .5);
    phases are averaged as unit phasors, because those of pi and -pi would average to 0, and the length of that average
    stays: dividing by it would turn rounding errors of opposite phases into full waves.
    """
    w = weight[..., None, None]
    if domain == "none":
        return (w * latents).sum(1)
    axis = -1 if domain == "fft_feature" else -2
    with torch.autocast(latents.device.type, enabled=False):
        waves = torch.fft.fft(latents.float(), dim=axis)
        # The square root of a floored square has a gradient at 0, which the magnitude itself has not.
        size = (waves.real.square() + waves.imag.square()).clamp(min=_FLOOR**2).sqrt()
        harmonic = 1.0 / (w / size).sum(1).clamp(min=_FLOOR)
        phasor = (w * (waves / size)).sum(1)
        # Phases that agree make a phasor of length 1; where they cancel, no phase is left to give the magnitude to.
        merged: Tensor = torch.fft.ifft(harmonic * phasor, dim=axis).real
        return merged
