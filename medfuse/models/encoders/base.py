"""The question an encoder answers."""

from abc import abstractmethod
from typing import ClassVar

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


def require_layout(encoder: str, found: Layout, expected: tuple[Layout, ...]) -> None:
    """Refuse a modality of another layout.

    Raises:
        ConfigError: when ``found`` is not one of ``expected``.
    """
    if found not in expected:
        msg = f'encoder "{encoder}": expected a modality of layout {" or ".join(expected)}, found {found}'
        raise ConfigError(msg)
