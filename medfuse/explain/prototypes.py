"""Prototypes of the joint networks of a fold: who is like which, the nearest training patients, and exact terms.

Every joint network has prototypes of its own: number 3 of one is another vector than number 3 of the next, and a mean
over networks would be of nothing. So one network, the first, is shown with all it has; of the others what can be
compared is kept beside it: the level of risk that each finds nearest, and what each modality adds to the logit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.batch import Batch
from medfuse.errors import ModelError
from medfuse.explain.prototype_record import FUSIONS, SHOWN, PrototypeRecord
from medfuse.models import HeadSettings, MultimodalModel
from medfuse.models.contributions import terms_of
from medfuse.models.exemplars import COLLAPSED, Likeness, cosines, likeness, nearest_rows
from medfuse.models.fusion.prototype import PrototypeFusion
from medfuse.models.fusion.prototype_additive import AdditivePrototypeFusion
from medfuse.sample import ModalityData
from medfuse.training.fold import CHOSEN, FoldModel, chunks
from medfuse.training.member import Member
from medfuse.types import OutcomeKind, PatientId

Array = NDArray[np.float64]
LEADING: tuple[tuple[OutcomeKind, ...], ...] = (("survival",), ("binary", "multiclass"), ("continuous",))
_NO_EDGE = 1e38
_WORDS: dict[OutcomeKind, tuple[str, str, str, str]] = {
    "survival": ("any time", "event by day {}", "event from day {} to {}", "no event by day {}"),
    "continuous": ("any value", "value up to {}", "value from {} to {}", "value above {}"),
}
_SCALES: dict[OutcomeKind, str] = {
    "survival": "log odds of the hazard",
    "binary": "log odds",
    "multiclass": "centred logit",
    "continuous": "the value",
}


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one network makes of some patients."""

    likeness: Likeness
    logit: Array
    terms: Array | None


def joint_members(fold: FoldModel) -> list[Member]:
    """The joint networks that share the first fusion with prototypes; [] where there is none."""
    joint = [m for m in fold.members if not m.expert and m.settings.fusion.get("name") in FUSIONS]
    return [m for m in joint if m.settings.fusion == joint[0].settings.fusion]


def prototype_record(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    outcome: str,
    classes: Sequence[str] = (),
    inner: Sequence[Sequence[PatientId]] = (),
) -> PrototypeRecord | None:
    """Look at the prototypes of a fold; None where its networks have none.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        ids: n held-out patients.
        outcome: whose logits are taken apart.
        classes: names of the classes of the leading outcome, where it has some.
        inner: per inner fold, the training patients that its networks never saw; for ``unseen``.
    """
    members = joint_members(fold)
    if not members:
        return None
    first, model, ids = members[0], members[0].build(), tuple(ids)
    held = [_seen(m, m.build(), chunks(m, data, ids), outcome) for m in members]
    train = _seen(first, model, chunks(first, data, fold.train_ids), outcome)
    ensemble = fold.ensembles[outcome][CHOSEN]
    unseen = set(inner[first.inner]) if inner else set()
    own = held[0]
    additive = own.terms is not None
    constant = _constant(model, first.heads[outcome], outcome) if additive else None
    return PrototypeRecord(
        outcome=outcome,
        kind=first.heads[outcome].kind,
        fusion=str(first.settings.fusion["name"]),
        modalities=model.modalities,
        patient_ids=ids,
        train_ids=fold.train_ids,
        members=tuple(m.name for m in members),
        share=float(ensemble.weight[fold.experts.index("")]) * len(members) / sum(not m.expert for m in fold.members),
        unseen=np.array([i in unseen for i in fold.train_ids], dtype=bool),
        similarity=np.stack([_float32(one.likeness.similarity) for one in held]),
        train_similarity=_float32(train.likeness.similarity),
        cosine=np.stack([_float32(cosines(m.build())) for m in members]),
        collapsed=COLLAPSED,
        scale=_SCALES[first.heads[outcome].kind] if first.heads[outcome].name != "cox" else "log hazard",
        logit=own.logit,
        constant=constant,
        terms=own.terms,
        modality_terms=_by_modality(held) if additive else None,
        **_levels(model, first, classes),
        **_exemplars(train.likeness),
    )


def _seen(member: Member, model: MultimodalModel, batches: Sequence[Batch], outcome: str) -> _Seen:
    head, found = member.heads[outcome], []
    with torch.no_grad():
        for batch in batches:
            fused = model.fuse(batch)
            like = likeness(model, fused.parts)
            logit = contrast(model.decode(fused)[outcome], head) + offset(head)
            terms = None
            if isinstance(model.fusion, AdditivePrototypeFusion):
                terms = contrast(terms_of(model, fused.parts["activation"], outcome=outcome).terms, head)
            found.append((like, logit, terms))
    likes, logits, each = zip(*found, strict=True)
    return _Seen(
        likeness=Likeness(*(torch.cat(part) for part in zip(*likes, strict=True))),
        logit=np.concatenate([one.numpy() for one in logits]),
        terms=None if each[0] is None else np.concatenate([cast(Tensor, one).numpy() for one in each]),
    )


def contrast(logits: Tensor, head: HeadSettings) -> Tensor:
    """Logits or terms (..., n) as numbers (..., L) that can be read: a linear map, so that sums stay sums.

    Log odds of the event class of two, the mean over the intervals of a hazard (equal in all of them unless the head
    is not proportional), logits of classes less their mean, or a part of the value.
    """
    wide = logits.double()
    if head.kind == "binary":
        return wide[..., 1:] - wide[..., :1]
    if head.kind == "multiclass":
        return wide - wide.mean(-1, keepdim=True)
    return wide.mean(-1, keepdim=True) if head.kind == "survival" else wide * head.scale


def offset(head: HeadSettings) -> float:
    """What a logit of 0 stands for: the mean of a value, which is fitted standardised."""
    return head.mean if head.kind == "continuous" else 0.0


@torch.no_grad()
def _constant(model: MultimodalModel, head: HeadSettings, outcome: str) -> Array:
    width = cast(AdditivePrototypeFusion, model.fusion).values().shape[-1]
    said = contrast(model.head(outcome)(torch.zeros(width)), head) + offset(head)
    return np.asarray(said.numpy(), dtype=np.float64)


def _by_modality(held: Sequence[_Seen]) -> NDArray[np.float32]:
    return np.stack([cast(Array, one.terms).sum(axis=2) for one in held]).astype(np.float32)


def _float32(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().numpy(), dtype=np.float32)


def _exemplars(train: Likeness) -> dict[str, Any]:
    """The nearest training patients of every prototype, each at most once."""
    best = train.best
    row = np.full((*best.shape[1:], SHOWN), -1, dtype=np.int64)
    token, similarity = row.copy(), np.full(row.shape, np.nan, dtype=np.float32)
    for m, p in np.ndindex(*best.shape[1:]):
        rows = nearest_rows(best[:, m, p], count=SHOWN)
        row[m, p, : len(rows)] = rows
        token[m, p, : len(rows)] = train.token[rows, m, p].numpy()
        similarity[m, p, : len(rows)] = best[rows, m, p].numpy()
    return {"exemplar": row, "exemplar_token": token, "exemplar_similarity": similarity}


def _levels(model: MultimodalModel, member: Member, classes: Sequence[str]) -> dict[str, Any]:
    """What the levels of risk mean, and how patients are assigned to prototypes."""
    fusion = model.fusion
    if not isinstance(fusion, PrototypeFusion | AdditivePrototypeFusion):
        msg = f"prototypes: expected a fusion with prototypes, found {type(fusion).__name__}"
        raise ModelError(msg)
    leading, head = leading_head(member.heads)
    used = fusion.risk.used.numpy().copy()
    additive = isinstance(fusion, AdditivePrototypeFusion)
    return {
        "leading": leading,
        "levels": level_words(head.kind, fusion.risk.edges.double().numpy(), used, classes=classes),
        "used": used,
        "each": fusion.each if isinstance(fusion, AdditivePrototypeFusion) else 1,
        "temperature": None if additive else float(cast(PrototypeFusion, fusion).temperature),
    }


def leading_head(heads: Mapping[str, HeadSettings]) -> tuple[str, HeadSettings]:
    """The outcome that levels of risk come from; see :func:`medfuse.models.prototypes.leading_outcome`."""
    return next((name, head) for kinds in LEADING for name, head in heads.items() if head.kind in kinds)


def level_words(
    kind: OutcomeKind, edges: Array, used: NDArray[np.bool_], *, classes: Sequence[str] = ()
) -> tuple[str, ...]:
    """What each of R levels means.

    Args:
        kind: of the leading outcome.
        edges: (R - 1,) right edges of the levels, the largest number of single precision for those that do not exist.
        used: (R,) bool.
        classes: names of the classes.
    """
    if kind in ("binary", "multiclass"):
        names = [*classes, *(f"class {k + 1}" for k in range(len(classes), len(used)))]
        return tuple(names[k] if used[k] else "no training patient" for k in range(len(used)))
    ends = [f"{edge:.4g}" if kind == "continuous" else f"{edge:.0f}" for edge in edges if edge < _NO_EDGE]
    return tuple(_between(k, ends, _WORDS[kind]) if k <= len(ends) else "no training patient" for k in range(len(used)))


def _between(k: int, ends: Sequence[str], words: tuple[str, str, str, str]) -> str:
    """What lies left of, between and right of some edges, as words for: no edges, the first, one between, the last."""
    whole, first, middle, last = words
    if not ends:
        return whole
    if k == 0:
        return first.format(ends[0])
    return last.format(ends[-1]) if k == len(ends) else middle.format(ends[k - 1], ends[k])
