"""A state is updated by one modality after another, and every outcome is decoded after every step."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medfuse.batch import TargetTensors
from medfuse.models.attention import masked_mean
from medfuse.models.encoders.linear import perceptron
from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.fusion.orders import SHUFFLED, Order, balanced_orders, draw_order, fixed_order
from medfuse.models.settings import check_count, check_rate, check_weight


class Step(nn.Module):
    """The change of the state that one modality's summary brings: perceptron of [LN(mean token), LN(state)].

    Args:
        width: D.
        hidden: width of the hidden layer.
        dropout: on both inputs and after the hidden layer.
    """

    def __init__(self, width: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_summary = nn.LayerNorm(width)
        self.norm_state = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.body = perceptron(2 * width, width, hidden=hidden, layers=1, dropout=dropout, nonlinearity="gelu")

    def forward(self, state: Tensor, summary: Tensor) -> Tensor:
        """(B, D) and (B, D) to (B, D)."""
        both = torch.cat([self.norm_summary(summary), self.norm_state(state)], dim=1)
        change: Tensor = self.body(self.dropout(both))
        return change


class SequentialFusion(Fusion):
    """State s_0 learned; s_k = s_(k-1) + a_m step_m(mean token of m, s_(k-1)) for the k-th modality m, present or not.

    The heads decode LN(s_k) after every step. In training one order is drawn per batch. Evaluation averages the
    predictions over :func:`balanced_orders`; ``parts["path"]`` (B, O, M + 1, D) then holds what was decoded on the
    way, of which :func:`medfuse.models.increments` makes contributions.

    Args:
        modalities: names of the M modalities.
        width: D.
        hidden: width of the hidden layer of each step (default D).
        dropout: in the steps.
        order: ``shuffled``, or the names of all modalities in the order of reading, in training and evaluation.
        auxiliary: weight of the mean loss of the states before the last, beside that of the last.
        state_change: weight of the mean squared change of the state at a step.

    References:
        Swamy et al. (2023), MultiModN: multimodal, multi-task, interpretable modular networks, NeurIPS.
        NOTE[DIFF]: gates per patient instead of per batch, steps that are residual and normalised instead of ReLU
        states, readouts averaged over the patients who have the modality, orders averaged in evaluation.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        hidden: int | None = None,
        dropout: float = 0.2,
        order: str | Sequence[str] = SHUFFLED,
        auxiliary: float = 1.0,
        state_change: float = 0.01,
    ) -> None:
        super().__init__()
        check_rate("dropout", dropout)
        fixed = fixed_order(order, modalities)
        self.shuffled = fixed is None
        self.orders: tuple[Order, ...] = balanced_orders(len(modalities)) if fixed is None else (fixed,)
        self.auxiliary = check_weight("auxiliary", auxiliary)
        self.state_change = check_weight("state_change", state_change)
        inner = check_count("hidden", width if hidden is None else hidden)
        self.start = nn.Parameter(torch.randn(width))
        self.steps = nn.ModuleList([Step(width, hidden=inner, dropout=dropout) for _ in modalities])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per order; in training one order, with a readout of every state before the last."""
        orders = (draw_order(len(tokens)),) if self.training and self.shuffled else self.orders
        summaries = [masked_mean(token, mask) for token, mask in zip(tokens, masks, strict=True)]
        found: dict[Order, Tensor] = {(): self.start.expand(len(present), -1)}
        for order in orders:  # orders that begin alike share their first steps
            for k in range(1, len(order) + 1):
                before, last = order[: k - 1], order[k - 1]
                if order[:k] not in found:
                    change = self.steps[last](found[before], summaries[last])
                    found[order[:k]] = found[before] + torch.where(present[:, last, None], change, 0.0)
        path = torch.stack(
            [torch.stack([found[order[:k]] for k in range(len(order) + 1)], dim=1) for order in orders], dim=1
        )  # (B, O, M + 1, D)
        decoded = self.norm(path)
        states = decoded[:, :, -1]
        weights = states.new_full(states.shape[:2], 1.0 / len(orders))
        if not self.training:
            return Fused(states=states, weights=weights, parts={"path": decoded})
        (order,) = orders
        change = (path[:, 0, 1:] - path[:, 0, :-1]).square().mean(-1)  # (B, M), 0 where absent
        return Fused(
            states=states,
            weights=weights,
            readouts=self._readouts(decoded[:, 0], torch.stack([present[:, m] for m in order], dim=1)),
            parts={"change": change, "present": present},
        )

    def _readouts(self, path: Tensor, here: Tensor) -> tuple[Readout, ...]:
        """The states of one order (B, M + 1, D) but the last; ``here`` (B, M) says who has the modality of a step."""
        if not self.auxiliary:
            return ()
        steps = here.shape[1]
        everyone = torch.ones_like(here[:, :1])
        included = torch.cat([everyone, here], dim=1)
        return tuple(
            Readout(states=path[:, k], included=included[:, k], weight=self.auxiliary / steps) for k in range(steps)
        )

    def penalties(self, fused: Fused, targets: Mapping[str, TargetTensors]) -> dict[str, Tensor]:
        """``state_change``: mean over the steps of present modalities of the mean squared change of the state."""
        del targets
        if not self.state_change:
            return {}
        change, present = fused.parts["change"], fused.parts["present"]
        return {"state_change": self.state_change * change.sum() / present.sum().clamp(min=1)}
