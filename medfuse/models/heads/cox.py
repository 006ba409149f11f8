"""Survival by Cox's partial likelihood."""

from typing import ClassVar

from torch import Tensor

from medfuse.batch import TargetTensors
from medfuse.losses import Ties, cox_loss
from medfuse.models.heads.base import Head, detached, field_of, require_kind, small_linear
from medfuse.models.settings import HeadSettings, check_choice
from medfuse.types import OutcomeKind


class CoxHead(Head):
    """Log hazard = w . state, without a constant, which the partial likelihood cannot see.

    It has no curves: their baseline hazard is fitted on inner out-of-fold predictions (``medfuse.training``). Risk sets
    are the patients of a batch, so batches should be large.

    Args:
        width: D.
        settings: of a survival outcome.
        ties: ``efron`` or ``breslow``.
    """

    kinds: ClassVar[tuple[OutcomeKind, ...]] = ("survival",)

    def __init__(self, *, width: int, settings: HeadSettings, ties: Ties = "efron") -> None:
        super().__init__()
        require_kind("cox", settings, self.kinds)
        check_choice("ties", ties, ("efron", "breslow"))
        self.ties: Ties = ties
        self.risk = small_linear(width, 1, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., 1) log hazard."""
        logits: Tensor = self.risk(states)
        return logits

    def loss(self, logits: Tensor, target: TargetTensors) -> Tensor:
        """Negative log partial likelihood per event of the observed patients."""
        event, time = field_of(target, "event"), field_of(target, "time")
        return cox_loss(logits[:, 0].float(), event, time, ties=self.ties, observed=target.observed)

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """``risk_score`` (B,) = log hazard."""
        return {"risk_score": detached(logits)[:, 0]}

    def link(self, logits: Tensor) -> Tensor:
        """(B, 1) log hazard."""
        return logits
