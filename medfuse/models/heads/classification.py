"""Two or more classes."""

from typing import ClassVar

import torch
from torch import Tensor

from medfuse.batch import TargetTensors
from medfuse.errors import ModelError
from medfuse.losses import classification_loss
from medfuse.models.heads.base import Head, detached, field_of, require_kind, small_linear
from medfuse.models.settings import HeadSettings
from medfuse.types import OutcomeKind


class ClassificationHead(Head):
    """Softmax over C classes whose constants start at the log frequencies of train.

    Args:
        width: D.
        settings: with ``n_classes`` and ``prior`` (C,).
    """

    kinds: ClassVar[tuple[OutcomeKind, ...]] = ("binary", "multiclass")

    def __init__(self, *, width: int, settings: HeadSettings) -> None:
        super().__init__()
        require_kind("classification", settings, self.kinds)
        classes = settings.n_classes
        if classes < 2 or len(settings.prior) not in (0, classes):
            msg = (
                f"classification: expected >= 2 classes and a prior for them, found {classes} and {len(settings.prior)}"
            )
            raise ModelError(msg)
        self.scores = small_linear(width, classes)
        if settings.prior:
            with torch.no_grad():
                self.scores.bias.copy_(torch.tensor(settings.prior))

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., C) logits."""
        logits: Tensor = self.scores(states)
        return logits

    def loss(self, logits: Tensor, target: TargetTensors) -> Tensor:
        """Cross entropy of the observed patients."""
        return classification_loss(logits, field_of(target, "label"), observed=target.observed)

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """``probability`` (B, C); ``risk_score`` = probability of not being in class 0, of the event when binary."""
        probability = detached(logits).softmax(1)
        return {"risk_score": probability[:, 1:].sum(1), "probability": probability}

    def link(self, logits: Tensor) -> Tensor:
        """(B, C) log probability less its mean."""
        log = logits.double().log_softmax(1).clamp(min=-27.631021115928547)
        return log - log.mean(1, keepdim=True)
