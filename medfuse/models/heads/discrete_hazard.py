"""Survival by hazards on a grid of time intervals."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.batch import TargetTensors
from medfuse.errors import ModelError
from medfuse.losses import discrete_hazard_loss
from medfuse.models.heads.base import Head, detached, field_of, require_kind, small_linear
from medfuse.models.settings import HeadSettings
from medfuse.running_sum import running_sum
from medfuse.types import OutcomeKind


class DiscreteHazardHead(Head):
    """Logit of the hazard in interval k = a_k + w_k . state, or a_k + w . state when ``proportional``.

    a starts at the hazards of the population. Curves are given at the right edges of the grid, and not beyond.

    Args:
        width: D.
        settings: with ``time_grid`` (K,) and ``prior`` (K,).
        proportional: one risk for all intervals: K + D numbers instead of K + K D, curves never cross, and the order
            of risks is the same at all times. The sane choice for hundreds of patients.

    References:
        Tutz, Schmid (2016), Modeling discrete time-to-event data, eq. 3.4 (proportional continuation ratio).
    """

    kinds: ClassVar[tuple[OutcomeKind, ...]] = ("survival",)

    def __init__(self, *, width: int, settings: HeadSettings, proportional: bool = True) -> None:
        super().__init__()
        require_kind("discrete_hazard", settings, self.kinds)
        intervals = len(settings.time_grid)
        if not intervals or len(settings.prior) not in (0, intervals):
            msg = (
                f"discrete_hazard: expected a time_grid and a prior for it, found {intervals} and {len(settings.prior)}"
            )
            raise ModelError(msg)
        self.edges: Tensor
        self.register_buffer("edges", torch.tensor(settings.time_grid, dtype=torch.float32), persistent=False)
        self.level = nn.Parameter(torch.tensor(settings.prior or (0.0,) * intervals, dtype=torch.float32))
        self.risk = small_linear(width, 1 if proportional else intervals, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., K) logits."""
        logits: Tensor = self.level + self.risk(states)
        return logits

    def loss(self, logits: Tensor, target: TargetTensors) -> Tensor:
        """Discrete-time likelihood of the observed patients."""
        event, time = field_of(target, "event"), field_of(target, "time")
        return discrete_hazard_loss(logits, event, time, self.edges, observed=target.observed)

    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """``survival`` (B, K) at the edges; ``risk_score`` = mean over the edges of the cumulative hazard -log S."""
        cumulative = running_sum(-functional.logsigmoid(-detached(logits)), 1)
        return {"risk_score": cumulative.mean(1), "survival": torch.exp(-cumulative)}

    def link(self, logits: Tensor) -> Tensor:
        """(B, K) log cumulative hazard at the edges."""
        return running_sum(-functional.logsigmoid(-logits.double()), 1).clamp(1.0000005e-6, 27.631021115928547).log()
