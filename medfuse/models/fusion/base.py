"""The question a fusion answers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Fused:
    """States of B patients; a head's output is the weighted mean of its outputs for the S states.

    Attributes:
        states: (B, S, D) finite.
        weights: (B, S), >= 0, each row sums to 1, an exact 0 for a state of an absent modality.
    """

    states: Tensor
    weights: Tensor


class Fusion(nn.Module):
    """Tokens of all modalities to states. A patient without any modality gets a learned state."""

    @abstractmethod
    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """Fuse.

        Args:
            tokens: per modality (B, K_m, D), finite.
            masks: per modality (B, K_m) bool, all False where the modality is absent.
            present: (B, M) bool.
        """
