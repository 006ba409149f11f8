"""The question a fusion answers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from medfuse.batch import TargetTensors


@dataclass(frozen=True, kw_only=True)
class Fused:
    """States of B patients; a head's output is the weighted mean of its outputs for the S states.

    Attributes:
        states: (B, S, D) finite.
        weights: (B, S), >= 0, each row sums to 1, an exact 0 for a state of an absent modality.
        readouts: further states that the same heads decode while training, each with its own loss.
        parts: what the fusion's own ``penalties`` need again, by name.
    """

    states: Tensor
    weights: Tensor
    readouts: tuple["Readout", ...] = ()
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Readout:
    """One state per patient that must predict for itself: a stage of a cascade, or one modality alone.

    Attributes:
        states: (B, D) finite.
        included: (B,) bool; the loss is the mean over these patients alone.
        weight: of its loss beside that of the whole model.
    """

    states: Tensor
    included: Tensor
    weight: float


class Fusion(nn.Module):
    """Tokens of all modalities to states. A patient without any modality gets a learned state.

    Attributes:
        notes: what a reader of the run must know, such as labels that are read in training.
        reads_order: the order of a bag's tokens may matter.
        idle: names of parameters that receive no gradient by design, such as what is fitted before the first step.
    """

    reads_order: ClassVar[bool] = False
    idle: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """Fuse. No label is read here, in training or afterwards.

        Args:
            tokens: per modality (B, K_m, D), finite.
            masks: per modality (B, K_m) bool, all False where the modality is absent.
            present: (B, M) bool.
        """

    def told(
        self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor, targets: Mapping[str, TargetTensors]
    ) -> Fused:
        """What stands for ``forward`` in a training step; the default is ``forward``, which reads no label.

        A fusion that reads labels here says so in ``notes``: what it learned to be told, nobody tells it afterwards.
        """
        del targets
        fused: Fused = self(tokens, masks, present)
        return fused

    def uses(self, present: Tensor) -> Tensor:
        """(B, M) bool: the present modalities on which predictions in evaluation depend; by default all of them."""
        return present

    def begin(
        self,
        tokens: Sequence[Tensor],
        masks: Sequence[Tensor],
        present: Tensor,
        targets: Mapping[str, TargetTensors],
        everyone: Mapping[str, TargetTensors],
    ) -> None:
        """Fit what must stand before the first step (prototypes, bin edges) to training patients; the default nothing.

        What is fitted is stored in buffers or parameters. Called once, without gradients, under the seeded generator.

        Args:
            tokens: as for ``forward``, of training patients, or of some where not all fit into memory.
            masks: of the same patients.
            present: of the same patients.
            targets: of the same patients.
            everyone: targets of all training patients, for what needs no tokens: a rare class may not be among some.
        """
        del tokens, masks, present, targets, everyone

    def penalties(self, fused: Fused, targets: Mapping[str, TargetTensors]) -> dict[str, Tensor]:
        """Terms of the training loss besides those of the heads, weighted, means over patients; the default none."""
        del fused, targets
        return {}
