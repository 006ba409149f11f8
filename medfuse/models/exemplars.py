"""What a person may look at in a model of prototypes: the nearest training instances, and whether prototypes collapsed.

Similarities show what a prototype stands for. They are no contributions: those are Shapley values, or the exact terms
of ``prototype_additive``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

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


class Likeness(NamedTuple):
    """How like the prototypes B patients are, NaN where a patient lacks the modality.

    Attributes:
        similarity: (B, M, N) of the patient: mean cosine of the best instances, which the model goes on with.
        best: (B, M, N) cosine of the single nearest instance.
        token: (B, M, N) which of the encoded tokens that is; -1 where absent.
    """

    similarity: Tensor
    best: Tensor
    token: Tensor


def _prototypes(model: MultimodalModel) -> list[Tensor]:
    fusion = model.fusion
    if not isinstance(fusion, PrototypeFusion | AdditivePrototypeFusion):
        msg = f"expected a model whose fusion has prototypes, found {type(fusion).__name__}; train prototype"
        raise ModelError(msg)
    return [cast(Tensor, block.mean).detach() for block in fusion.blocks]


def likeness(model: MultimodalModel, parts: Mapping[str, Tensor]) -> Likeness:
    """Similarities of patients with every prototype.

    Args:
        model: with fusion ``prototype`` or ``prototype_additive``.
        parts: of ``model.fuse(batch)``.

    Raises:
        ModelError: for another fusion.
    """
    _prototypes(model)  # says that there are none
    additive = "activation" in parts
    found = []
    for m in range(len(model.modalities)):
        real = parts[f"real.{m}"]
        there = real.any(1)[:, None]
        best, token = parts[f"similarity.{m}"].masked_fill(~real[..., None], -torch.inf).max(1)  # (B, N)
        whole = parts["activation"][:, m] if additive else parts[f"level.{m}"]
        found.append(
            Likeness(
                similarity=whole.masked_fill(~there, torch.nan),
                best=best.masked_fill(~there, torch.nan),
                token=token.masked_fill(~there, -1),
            )
        )
    return Likeness(*(torch.stack(each, 1) for each in zip(*found, strict=True)))


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
    _prototypes(model)  # says that there are none
    seen = likeness(model, model.eval().fuse(batch).parts)
    return [
        Exemplar(
            modality=name,
            prototype=number,
            patient_id=batch.patient_ids[row],
            token=int(seen.token[row, m, number]),
            similarity=float(seen.best[row, m, number]),
        )
        for m, name in enumerate(model.modalities)
        for number in range(seen.best.shape[2])
        for row in nearest_rows(seen.best[:, m, number], count=count)
    ]


def nearest_rows(best: Tensor, *, count: int) -> list[int]:
    """Rows of the highest of (n,) similarities, highest first and at most ``count``; those who lack it are left out."""
    order = best.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:count]
    return [row for row in order.tolist() if not bool(best[row].isnan())]


def cosines(model: MultimodalModel) -> Tensor:
    """(M, N, N) cosine of every two prototypes of a modality.

    Raises:
        ModelError: for a fusion without prototypes.
    """
    unit = functional.normalize(torch.stack(_prototypes(model)), dim=2)
    return unit @ unit.mT


def collapse(model: MultimodalModel, *, least: float = COLLAPSED) -> dict[str, list[tuple[int, int, float]]]:
    """Pairs of prototypes of one modality whose cosine is at least ``least``; a modality without any is left out.

    A pair that stands here is one prototype: fewer levels, or a smaller weight of the bottleneck, would say as much.

    Raises:
        ModelError: for a fusion without prototypes.
    """
    found = {}
    for name, near in zip(model.modalities, cosines(model).triu(diagonal=1), strict=True):
        pairs = [(int(i), int(j), float(near[i, j])) for i, j in (near >= least).nonzero().tolist()]
        if pairs:
            found[name] = pairs
    return found
