"""The questions a head answers."""

from abc import abstractmethod
from typing import ClassVar, cast

from torch import Tensor, nn

from medfuse.batch import TargetTensors
from medfuse.errors import ConfigError, ModelError
from medfuse.models.settings import HeadSettings
from medfuse.types import OutcomeKind


class Head(nn.Module):
    """States to logits, their loss, and what they mean.

    ``forward`` is linear in the state, so that the weighted mean over states is a mean of predictions.
    """

    kinds: ClassVar[tuple[OutcomeKind, ...]]

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., number of logits)."""

    @abstractmethod
    def loss(self, logits: Tensor, target: TargetTensors) -> Tensor:
        """Mean over the observed patients; an exact zero tied to the graph when there is none.

        Args:
            logits: (B, number of logits).
            target: of the same B patients.
        """

    @abstractmethod
    def predict(self, logits: Tensor) -> dict[str, Tensor]:
        """``risk_score`` (B,), higher = worse, and ``survival``, ``probability`` or ``value``; float64 on the CPU."""

    @abstractmethod
    def link(self, logits: Tensor) -> Tensor:
        """(B, L) what ``predict`` says on the link scale of ``medfuse.training.ensemble.link_of``, with gradients."""


def small_linear(width: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map whose first outputs are small, so that training starts from the population."""
    layer = nn.Linear(width, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=0.1 * width**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def require_kind(name: str, settings: HeadSettings, kinds: tuple[OutcomeKind, ...]) -> None:
    """Refuse an outcome of another kind.

    Raises:
        ConfigError: when the head does not serve the kind of the outcome.
    """
    if settings.kind not in kinds:
        msg = f'head "{name}": expected an outcome that is {" or ".join(kinds)}, found {settings.kind}'
        raise ConfigError(msg)


def field_of(target: TargetTensors, name: str) -> Tensor:
    """One field, of all patients: losses are told who is observed, for a selection would make a GPU wait.

    Raises:
        ModelError: when the target is of another kind.
    """
    values = getattr(target, name)
    if values is None:
        msg = f"head: expected a target with {name}, found one of kind {target.kind}"
        raise ModelError(msg)
    return cast(Tensor, values)


def detached(logits: Tensor) -> Tensor:
    """Logits as float64 on the CPU, where predictions are made."""
    return logits.detach().cpu().double()
