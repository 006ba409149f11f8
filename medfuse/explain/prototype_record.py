"""Prototypes of one outer fold as they are stored and read again, without any model."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medfuse.config import Recipe
from medfuse.types import OutcomeKind, PatientId

Array = NDArray[np.float64]
FUSIONS = ("prototype", "prototype_additive")
SHOWN = 8  # exemplars per prototype


def recipe_has_prototypes(recipe: Recipe) -> bool:
    """Whether some joint network of a recipe has prototypes."""
    fusions = (recipe.model.fusion, *recipe.model.committee)[: recipe.train.seeds]  # they take turns
    return any(fusion.get("name") in FUSIONS for fusion in fusions)


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

    @cached_property
    def train_nearest(self) -> NDArray[np.int64]:
        """(n_train, M) the nearest prototype of each training patient, -1 where absent."""
        return self.nearest(np.array(self.train_similarity, dtype=np.float64))

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
