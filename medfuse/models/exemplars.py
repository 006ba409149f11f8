"""What a person may look at in a model of prototypes: the nearest training instances, and whether prototypes collapsed.

Similarities show what a prototype stands for. They are no contributions: those are Shapley values, or the exact terms
of ``prototype_additive``.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from medfuse.batch import Batch
from medfuse.errors import ModelError
from medfuse.models.fusion.prototype import PrototypeFusion
from medfuse.models.fusion.prototype_additive import AdditivePrototypeFusion
from medfuse.models.model import MultimodalModel
from medfuse.types import PatientId

COLLAPSED = 0.95


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """A training instance close to a prototype.

    Attributes:
        modality: name.
        prototype: number, in the order of the levels of risk.
        patient_id: whose instance.
        token: which of his encoded tokens.
        similarity: cosine in [-1, 1].
    """

    modality: str
    prototype: int
    patient_id: PatientId
    token: int
    similarity: float


def _prototypes(model: MultimodalModel) -> list[Tensor]:
    fusion = model.fusion
    if not isinstance(fusion, PrototypeFusion | AdditivePrototypeFusion):
        msg = f"expected a model whose fusion has prototypes, found {type(fusion).__name__}; train prototype"
        raise ModelError(msg)
    return [cast(Tensor, block.mean).detach() for block in fusion.blocks]


@torch.no_grad()
def exemplars(model: MultimodalModel, batch: Batch, *, count: int = 5) -> list[Exemplar]:
    """The instances of ``batch`` nearest to each prototype, at most one per patient, nearest first.

    Args:
        model: with fusion ``prototype`` or ``prototype_additive``, in evaluation; give it training patients.
        batch: patients.
        count: wanted per prototype.

    Raises:
        ModelError: for another fusion.
    """
    prototypes = _prototypes(model)
    parts = model.eval().fuse(batch).parts
    found = []
    for m, name in enumerate(model.modalities):
        similarity = parts[f"similarity.{m}"]
        real = parts[f"real.{m}"]
        best, token = similarity.masked_fill(~real[..., None], -torch.inf).max(1)  # (B, R)
        for number in range(len(prototypes[m])):
            order = best[:, number].argsort(descending=True, stable=True)[:count]
            found += [
                Exemplar(
                    modality=name,
                    prototype=number,
                    patient_id=batch.patient_ids[row],
                    token=int(token[row, number]),
                    similarity=float(best[row, number]),
                )
                for row in order.tolist()
                if bool(real[row].any())
            ]
    return found


def collapse(model: MultimodalModel, *, least: float = COLLAPSED) -> dict[str, list[tuple[int, int, float]]]:
    """Pairs of prototypes of one modality whose cosine is at least ``least``; a modality without any is left out.

    A pair that stands here is one prototype: fewer levels, or a smaller weight of the bottleneck, would say as much.

    Raises:
        ModelError: for a fusion without prototypes.
    """
    found = {}
    for name, prototypes in zip(model.modalities, _prototypes(model), strict=True):
        unit = functional.normalize(prototypes, dim=1)
        near = (unit @ unit.T).triu(diagonal=1)
        pairs = [(int(i), int(j), float(near[i, j])) for i, j in (near >= least).nonzero().tolist()]
        if pairs:
            found[name] = pairs
    return found
