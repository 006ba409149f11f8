"""A few latent queries read one modality after another; a patient without one passes its stage unchanged."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.models.attention import MultiHeadAttention
from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.fusion.blocks import CrossBlock, late_maps, late_mean, late_residual
from medfuse.models.fusion.orders import SHUFFLED, Order, balanced_orders, draw_order, fixed_order
from medfuse.models.settings import check_count, check_rate, check_weight


class Stage(nn.Module):
    """One modality's stage: the queries look at each other, then at the modality's tokens, then a feed-forward layer.

    Args:
        width: D.
        heads: attention heads.
        dropout: on the residual branches.
        alone: there is one query only, of which self-attention would be a linear map.
    """

    def __init__(self, width: int, *, heads: int, dropout: float, alone: bool) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_self = None if alone else nn.LayerNorm(width)
        self.attention = None if alone else MultiHeadAttention(width, heads=heads)
        self.dropout = nn.Dropout(dropout)
        self.read = CrossBlock(width, heads=heads, ratio=2, dropout=dropout)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, D) to (B, Q, D)."""
        if self.norm_self is not None and self.attention is not None:
            normed = self.norm_self(queries)
            everywhere = torch.ones(normed.shape[:2], dtype=torch.bool, device=normed.device)
            queries = queries + self.dropout(self.attention(normed, normed, everywhere))
        out: Tensor = self.read(queries, self.norm_tokens(tokens), mask)
        return out


class CascadeFusion(Fusion):
    """Queries q pass one stage per modality m, gated by presence a_m: q <- a_m stage_m(q, tokens_m) + (1 - a_m) q.

    The state after a set of stages is LN(mean of q). In training one order is drawn per batch, and every stage but the
    last is read out with a loss of its own over the patients who have its modality. Evaluation averages the
    predictions over :func:`balanced_orders`.

    Args:
        modalities: names of the M modalities.
        width: D, divisible by ``heads``.
        latents: Q.
        heads: attention heads.
        dropout: on residual branches and in the feed-forward layers.
        token_dropout: on the tokens as they enter.
        order: ``shuffled``, or the names of all modalities in the order of reading, in training and evaluation.
        auxiliary: weight of the loss of each stage's readout.
        residual: add to each state the mean over the modalities read so far of a linear map of each one's mean token.

    References:
        Liu et al. (2023), Cascaded multi-modal mixing transformers for Alzheimer's disease classification with
        incomplete data, NeuroImage 277:120267. The full text and the authors' code could not be had; the stage is a
        reconstruction from the abstract and descriptions by others.
        NOTE[DIFF]: a learned null token among the keys; orders shuffled and averaged; heads shared by all stages;
        no self-attention with one query; the residual.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        latents: int = 4,
        heads: int = 4,
        dropout: float = 0.2,
        token_dropout: float = 0.1,
        order: str | Sequence[str] = SHUFFLED,
        auxiliary: float = 0.3,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_count("latents", latents)
        check_rate("dropout", dropout)
        fixed = fixed_order(order, modalities)
        self.shuffled = fixed is None
        self.orders: tuple[Order, ...] = balanced_orders(len(modalities)) if fixed is None else (fixed,)
        self.auxiliary = check_weight("auxiliary", auxiliary)
        self.token_dropout = nn.Dropout(check_rate("token_dropout", token_dropout))
        self.latents = nn.Parameter(torch.randn(latents, width) * width**-0.5)
        self.stages = nn.ModuleList(
            [Stage(width, heads=heads, dropout=dropout, alone=latents == 1) for _ in modalities]
        )
        self.norm = nn.LayerNorm(width)
        self.own = late_maps(modalities if residual else (), width)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per order; in training one order, with a readout per stage."""
        orders = (draw_order(len(tokens)),) if self.training and self.shuffled else self.orders
        dropped = [self.token_dropout(token) for token in tokens]
        found: dict[Order, Tensor] = {(): self.latents.expand(len(present), -1, -1)}
        for order in orders:  # orders that begin alike share their first stages
            for k in range(1, len(order) + 1):
                before, last = order[: k - 1], order[k - 1]
                if order[:k] not in found:
                    after = self.stages[last](found[before], dropped[last], masks[last])
                    found[order[:k]] = torch.where(present[:, last, None, None], after, found[before])
        each = late_residual(self.own, tokens, masks) if len(self.own) else None

        def state(read: Order) -> Tensor:
            normed: Tensor = self.norm(found[read].mean(1))
            if each is None:
                return normed
            seen = torch.stack([there & (m in read) for m, there in enumerate(present.unbind(1))], dim=1)
            return normed + late_mean(each, seen)

        states = torch.stack([state(order) for order in orders], dim=1)
        readouts = [
            Readout(states=state(order[:k]), included=present[:, order[k - 1]], weight=self.auxiliary)
            for order in orders
            for k in range(1, len(order))
            if self.training and self.auxiliary
        ]
        weights = states.new_full(states.shape[:2], 1.0 / len(orders))
        return Fused(states=states, weights=weights, readouts=tuple(readouts))
