"""A continuous value."""

from typing import ClassVar

from torch import Tensor

from medfuse.batch import TargetTensors
from medfuse.losses import regression_loss
from medfuse.models.heads.base import Head, detached, field_of, require_kind, small_linear
from medfuse.models.settings import HeadSettings
from medfuse.types import OutcomeKind


class RegressionHead(Head):
    """Least squares on values standardised by train mean and standard deviation; predictions are in the unit given.

    Args:
        width: D.
        settings: with ``mean`` and ``scale``.
    """

    kinds: ClassVar[tuple[OutcomeKind, ...]] = ("continuous",)

    def __init__(self, *, width: int, settings: HeadSettings) -> None:
        super().__init__()
        require_kind("regression", settings, self.kinds)
        self.mean, self.scale = settings.mean, settings.scale
        self.standardised = small_linear(width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., 1) standardised value."""
        logits: Tensor = self.standardised(states)
        return logits

    def loss(self, logits: Tensor, target: TargetTensors) -> Tensor:
        """Mean squared error of the observed patients, in units of the train variance."""
        value = (field_of(target, "value") - self.mean) / self.scale
        return regression_loss(logits[:, 0], value, observed=target.observed)

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """``value`` (B,) in the unit of the outcome, which is also the ``risk_score``."""
        value = detached(logits)[:, 0] * self.scale + self.mean
        return {"risk_score": value, "value": value}

    def link(self, logits: Tensor) -> Tensor:
        """(B, 1) value."""
        return logits.double() * self.scale + self.mean
