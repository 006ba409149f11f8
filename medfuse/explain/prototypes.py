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
FUSIONS = ("prototype", "prototype_additive")
SHOWN = 8  # exemplars per prototype
LEADING: tuple[tuple[OutcomeKind, ...], ...] = (("survival",), ("binary", "multiclass"), ("continuous",))
_NO_EDGE = 1e38
_SCALES: dict[OutcomeKind, str] = {
    "survival": "log odds of the hazard",
    "binary": "log odds",
    "multiclass": "centred logit",
    "continuous": "the value",
}


@dataclass(frozen=True, kw_only=True)
class PrototypeRecord:
    """Prototypes of one outer fold; K joint networks, M modalities, N = R levels x ``each`` prototypes.

    Attributes:
        outcome, kind, fusion: names.
        modalities, patient_ids, train_ids: M, n held-out and n_train names.
        members: K names of joint networks (seed, inner fold) with this fusion; the first is the one shown.
        share: of the joint networks in the run's prediction; the rest is said by networks of single modalities.
        leading: outcome whose levels of risk the prototypes start from.
        levels: R texts, what the levels mean in the network shown; those of others differ by a few patients.
        used: (R,) bool, False where no training patient can have the level: nobody is assigned to its prototypes.
        each: prototypes per level; prototype p has level p // each.
        temperature: probabilities of assignment are softmax(similarity / temperature) over ``used``, 0: all on the
            nearest one; None: the fusion computes none.
        similarity: (K, n, M, N) float32 mean cosine of a patient's best instances, NaN where absent.
        train_similarity: (n_train, M, N) the same of training patients, by the network shown.
        unseen: (n_train,) bool, who was not fitted on by the network shown (its early stopping did read them).
        exemplar: (M, N, E) rows of ``train_ids``, nearest first, -1: no more.
        exemplar_token: (M, N, E) which of the patient's tokens.
        exemplar_similarity: (M, N, E) its cosine, NaN: no more.
        cosine: (K, M, N, N) of every two prototypes of a modality.
        collapsed: cosine from which two are one.
        scale: unit of ``logit``, in words.
        logit: (n, L) what the network shown says: one number, or one per class.
        constant: (L,) of a patient without any modality; None, as the next two, where the logit is no sum.
        terms: (n, M, N, L) what each prototype adds; ``constant`` + their sum is ``logit``.
        modality_terms: (K, n, M, L) float32 what each modality adds, by every network.
    """

    outcome: str
    kind: OutcomeKind
    fusion: str
    modalities: tuple[str, ...]
    patient_ids: tuple[PatientId, ...]
    train_ids: tuple[PatientId, ...]
    members: tuple[str, ...]
    share: float
    leading: str
    levels: tuple[str, ...]
    used: NDArray[np.bool_]
    each: int
    temperature: float | None
    similarity: NDArray[np.float32]
    train_similarity: NDArray[np.float32]
    unseen: NDArray[np.bool_]
    exemplar: NDArray[np.int64]
    exemplar_token: NDArray[np.int64]
    exemplar_similarity: NDArray[np.float32]
    cosine: NDArray[np.float32]
    collapsed: float
    scale: str
    logit: Array
    constant: Array | None
    terms: Array | None
    modality_terms: NDArray[np.float32] | None

    @property
    def names(self) -> tuple[str, ...]:
        """(N,) of the prototypes: the number of the level, and a letter where it has several."""
        return prototype_names(len(self.levels), self.each)

    def nearest(self, similarity: Array) -> NDArray[np.int64]:
        """(...,) the nearest prototype of similarities (..., N) among the levels in use, -1 where absent."""
        open_to = np.where(np.repeat(self.used, self.each), np.nan_to_num(similarity, nan=-np.inf), -np.inf)
        return np.where(np.isnan(similarity[..., 0]), -1, open_to.argmax(axis=-1))

    def probability(self, similarity: Array) -> Array | None:
        """(..., N) probabilities of assignment, NaN where absent; None where the fusion computes none."""
        if self.temperature is None:
            return None
        if self.temperature == 0:
            found = (self.nearest(similarity)[..., None] == np.arange(similarity.shape[-1])).astype(np.float64)
        else:
            scaled = np.where(np.repeat(self.used, self.each), similarity / self.temperature, -np.inf)
            raised = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
            found = raised / raised.sum(axis=-1, keepdims=True)
        return np.where(np.isnan(similarity), np.nan, found)

    def pairs(self, member: int = 0) -> dict[str, list[tuple[int, int, float]]]:
        """Per modality, pairs of a network's prototypes that are one: first, second, cosine; without any, left out."""
        near = np.triu(np.asarray(self.cosine[member], dtype=np.float64), k=1)
        found: dict[str, list[tuple[int, int, float]]] = {}
        for m, i, j in zip(*np.nonzero(near >= self.collapsed), strict=True):
            found.setdefault(self.modalities[m], []).append((int(i), int(j), float(near[m, i, j])))
        return found


def prototype_names(levels: int, each: int) -> tuple[str, ...]:
    """``1 2 3`` for one prototype per level, ``1a 1b 2a 2b`` for several."""
    letters = [""] if each == 1 else [chr(ord("a") + k) if each <= 26 else f".{k + 1}" for k in range(each)]
    return tuple(f"{level + 1}{letter}" for level in range(levels) for letter in letters)


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
    word = _days if kind == "survival" else _values
    return tuple(word(k, ends) if k <= len(ends) else "no training patient" for k in range(len(used)))


def _days(k: int, ends: Sequence[str]) -> str:
    if not ends:
        return "any time"
    if k == 0:
        return f"event by day {ends[0]}"
    return f"no event by day {ends[-1]}" if k == len(ends) else f"event from day {ends[k - 1]} to {ends[k]}"


def _values(k: int, ends: Sequence[str]) -> str:
    if not ends:
        return "any value"
    if k == 0:
        return f"value up to {ends[0]}"
    return f"value above {ends[-1]}" if k == len(ends) else f"value from {ends[k - 1]} to {ends[k]}"
