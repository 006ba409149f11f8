"""Similar patients: training patients near in the embeddings of what the patient has, or the word that there are none.

Neighbours are retrieval, not proof: they show what became of patients that the networks see as alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ModelError
from medfuse.explain.embedding import Array, Embeddings, by_pattern, distances
from medfuse.metrics.nonparametric import SurvivalCurve, kaplan_meier
from medfuse.targets import Survival
from medfuse.types import PatientId

SHOWN = 20
FEWEST = 5
_REFERENCE = 95.0
_MOST_PAIRS = 1000  # reference patients of whom distances are taken


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest training patients of n held-out patients.

    Attributes:
        modalities: the M names.
        patient_ids: n ids.
        train_ids: training ids that ``row`` points to.
        present: (n, M) modalities in which distances were taken; neighbours have at least these.
        row: (n, k) rows of ``train_ids``, nearest first; -1 where fewer patients have what the patient has.
        distance: (n, k) cosine distance; infinite where there is none.
        percentile: (n, k) part, in per cent, of all pairs of training patients with these modalities that are nearer.
        limit: (n,) 95th percentile of the distance of training patients to their own 5th neighbour.
        close: (n,) training patients within the limit: how many the patient resembles.
    """

    modalities: tuple[str, ...]
    patient_ids: tuple[PatientId, ...]
    train_ids: tuple[PatientId, ...]
    present: NDArray[np.bool_]
    row: NDArray[np.int64]
    distance: Array
    percentile: Array
    limit: Array
    close: NDArray[np.int64]

    @property
    def comparable(self) -> NDArray[np.bool_]:
        """(n,) False where fewer than 5 neighbours are close: nobody is comparable, and none may be shown."""
        return np.asarray(self.close) >= FEWEST

    def of(self, patient: PatientId) -> list[tuple[PatientId, float, float]]:
        """Id, distance and percentile of each neighbour, nearest first; empty when nobody is comparable.

        Raises:
            ModelError: no such patient.
        """
        i = self._index(patient)
        if not self.comparable[i]:
            return []
        there = np.flatnonzero(self.row[i] >= 0)
        return [
            (self.train_ids[int(self.row[i, j])], float(self.distance[i, j]), float(self.percentile[i, j]))
            for j in there
        ]

    def curve(self, patient: PatientId, target: Survival) -> SurvivalCurve | None:
        """Kaplan-Meier curve of a patient's neighbours; None when nobody is comparable.

        Args:
            patient: held-out patient.
            target: of the training patients, in the order of ``train_ids``.

        Raises:
            ModelError: no such patient, or a target of others.
        """
        if len(target) != len(self.train_ids):
            msg = f"neighbours: expected outcomes of {len(self.train_ids)} training patients, found {len(target)}"
            raise ModelError(msg)
        i = self._index(patient)
        rows = np.asarray(self.row[i])[self.row[i] >= 0]
        rows = rows[target.observed[rows]]
        if not self.comparable[i] or not len(rows):
            return None
        return kaplan_meier(target.time[rows], target.event[rows])

    def _index(self, patient: PatientId) -> int:
        if patient not in self.patient_ids:
            msg = f"neighbours: expected a held-out patient of this fold, found {patient}; check the id"
            raise ModelError(msg)
        return self.patient_ids.index(patient)


def neighbours(found: Embeddings, *, k: int = SHOWN, seed: int = 0) -> Neighbours:
    """Nearest training patients, of the same or wider availability, of every held-out patient.

    The limit is taken from training patients that the networks never saw, where there are at least 20 of them with the
    modalities: those it was fitted on lie further out than new patients.

    Args:
        found: embeddings of training and held-out patients.
        k: neighbours to keep.
        seed: of the sample of training patients that the limit and percentiles are taken from.
    """
    n = len(found.patient_ids)
    row = np.full((n, k), -1, dtype=np.int64)
    distance, percentile = np.full((n, k), np.inf), np.full((n, k), np.nan)
    limit, close = np.full(n, np.nan), np.zeros(n, dtype=np.int64)
    for pattern, rows in by_pattern(found.present):
        wide = np.flatnonzero(found.train_present[:, pattern].all(axis=1))
        if not pattern.any() or not len(wide):
            continue
        pairs = _reference(found, pattern, wide, seed=seed)
        own = np.sort(pairs, axis=1)
        bound = float(np.percentile(own[:, FEWEST - 1], _REFERENCE)) if own.shape[1] > FEWEST else float("nan")
        every = np.sort(own[np.isfinite(own)])
        d = distances(found.held_out[rows], found.train[wide], pattern)
        best = np.argsort(d, axis=1, kind="stable")[:, :k]
        width = best.shape[1]
        near = np.take_along_axis(d, best, axis=1)
        row[rows, :width], distance[rows, :width] = wide[best], near
        if len(every):
            percentile[rows, :width] = 100 * np.searchsorted(every, near) / len(every)
        limit[rows], close[rows] = bound, (d <= bound).sum(axis=1)
    return Neighbours(
        modalities=found.modalities,
        patient_ids=found.patient_ids,
        train_ids=found.train_ids,
        present=found.present,
        row=row,
        distance=distance,
        percentile=percentile,
        limit=limit,
        close=close,
    )


def _reference(found: Embeddings, pattern: NDArray[np.bool_], wide: NDArray[np.intp], *, seed: int) -> Array:
    """Distances (r, t) of training patients to all others who have the modalities; to oneself, infinite."""
    unseen = wide[found.unseen[wide]]
    chosen = unseen if len(unseen) >= 20 else wide
    if len(chosen) > _MOST_PAIRS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, _MOST_PAIRS, replace=False))
    d = distances(found.train[chosen], found.train[wide], pattern)
    d[chosen[:, None] == wide[None, :]] = np.inf
    return d
