"""The question an encoder answers."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from medfuse.errors import ConfigError
from medfuse.models.settings import check_choice
from medfuse.types import Layout

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh}


def activation(name: str) -> nn.Module:
    """A nonlinearity by name.

    Raises:
        ConfigError: for an unknown name.
    """
    return ACTIVATIONS[check_choice("activation", name, tuple(ACTIVATIONS))]()


@dataclass(frozen=True, kw_only=True)
class Path:
    """A line from a modality that says nothing to what B patients have, along which gradients are integrated.

    Attributes:
        empty, full: (B, U, ...) the two ends of the line.
        encode: inputs on it to tokens (B, K, D) and masks (B, K) of the model.
        unit: what U counts. ``edge``: inputs are (B, N, L), the L features of each of N pathways.
        start: what stands at the empty end, in words.
        index: (N, L) features of the edges.
        names: of the N pathways.
        count: (B,) instances, where the line changes most within its first part in so many.
    """

    empty: Tensor
    full: Tensor
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    unit: Literal["feature", "column", "token", "edge"]
    start: str
    index: Tensor | None = None
    names: tuple[str, ...] = ()
    count: Tensor | None = None

    def at(self, t: float) -> tuple[Tensor, Tensor]:
        """How far along the line each patient is at t in [0, 1], and the speed: both (B, 1, ...).

        Slow near the empty end, where normalisation makes networks change fastest.
        """
        shape = (-1,) + (1,) * (self.full.ndim - 1)
        if self.count is None:
            one = torch.ones(len(self.full), device=self.full.device)
            return (t * t * one).view(shape), (2 * t * one).view(shape)
        rate = torch.log1p(self.count)
        return (torch.expm1(t * rate) / self.count).view(shape), (rate * torch.exp(t * rate) / self.count).view(shape)


class Encoder(nn.Module):
    """Tokens of one modality to K tokens of width D, which are not normalised: the fusion does that.

    Tokens come with zeros wherever ``token_mask`` is False, and the mask is all False for a patient without the
    modality; what is returned for such a patient is finite and masked. Nothing depends on other patients.
    """

    layouts: ClassVar[tuple[Layout, ...]]
    idle: tuple[str, ...] = ()  # names of parameters that receive no gradient by design
    notes: tuple[str, ...] = ()  # what a reader of the run should know, such as pathways that were left out

    @abstractmethod
    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            tokens: (B, T, F).
            token_mask: (B, T) bool.
            position: (B, T, P).

        Returns:
            Tokens (B, K, D) and their mask (B, K).
        """

    def begin(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> None:
        """Fit what must stand before the first step (prototypes) to training patients; the default nothing.

        What is fitted is stored in buffers or parameters. Called once, without gradients, under the seeded generator.
        """
        del tokens, token_mask, position

    def path(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> Path:
        """The line from nothing to these tokens; arguments as for :meth:`forward`.

        Layout ``columns``: all cells from missing to what they are, through flags between 0 and 1. Layout ``vectors``:
        all features of all instances from their average in train, which is 0.
        """
        if "columns" in self.layouts:
            value = tokens[..., 0]
            return Path(
                empty=torch.zeros_like(value),
                full=tokens[..., 1],
                encode=lambda flag: self(torch.stack([value, flag], dim=-1), token_mask, position),
                unit="feature",
                start="all cells missing",
            )
        return Path(
            empty=torch.zeros_like(tokens),
            full=tokens,
            encode=lambda found: self(found, token_mask, position),
            unit="token",
            start="instances as the average of train",
        )


def require_layout(encoder: str, found: Layout, expected: tuple[Layout, ...]) -> None:
    """Refuse a modality of another layout.

    Raises:
        ConfigError: when ``found`` is not one of ``expected``.
    """
    if found not in expected:
        msg = f'encoder "{encoder}": expected a modality of layout {" or ".join(expected)}, found {found}'
        raise ConfigError(msg)
