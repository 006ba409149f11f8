"""Values of coalitions made to mean what they say: slope and level of each, from patients that no member saw.

A model that was shown half of a patient is another model. Its predictions from a coalition S are compared with the
outcomes of all training patients who have S, shown S alone, and moved on the link scale until they agree; without that,
the difference between two coalitions would hold the difference of two calibrations, too.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medfuse.explain.coalitions import RECALIBRATED, Coalitions
from medfuse.targets import Labels, Survival, Target
from medfuse.training.recalibration import recalibrate

Array = NDArray[np.float64]
LEAST_EVENTS = 20


@dataclass(frozen=True, kw_only=True)
class SubsetRecalibration:
    """Two parameters per coalition on the link scale: value -> level + slope * value.

    Attributes:
        slope: (2^M,) 0 where a coalition orders patients wrongly; 1 where it was not fitted.
        level: (2^M, L).
        fitted: (2^M,) bool, where enough events were seen.
    """

    slope: Array
    level: Array
    fitted: NDArray[np.bool_]


def unfitted(values: Coalitions) -> SubsetRecalibration:
    """One that moves nothing, for values whose training patients cannot be asked."""
    c, width = values.values.shape[1:]
    return SubsetRecalibration(slope=np.ones(c), level=np.zeros((c, width)), fitted=np.zeros(c, dtype=bool))


def moves(found: SubsetRecalibration, shown: NDArray[np.int64], owned: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which coalitions ``shown`` of patients who own ``owned`` are moved: those fitted, but for all that one owns."""
    return np.asarray(found.fitted[shown] & (shown != owned))


def subset_recalibration(unseen: Coalitions, target: Target) -> SubsetRecalibration:
    """Fit every coalition with at least 20 events among patients who have all of it.

    A binary outcome's log odds are fitted as the two centred log probabilities they stand for.

    Args:
        unseen: of :func:`medfuse.explain.gate.unseen_values`: training patients, by members that never saw them.
        target: of the same patients.
    """
    m = len(unseen.modalities)
    owned = unseen.present @ (1 << np.arange(m))
    c, width = unseen.values.shape[1:]
    slope, level, fitted = np.ones(c), np.zeros((c, width)), np.zeros(c, dtype=bool)
    for number in range(c):
        rows = np.flatnonzero((owned & number == number) & target.observed)
        known = target.take(rows)
        if not _enough(known):
            continue
        link = unseen.values[rows, number]
        if unseen.kind == "binary":
            both, found = recalibrate(known, np.concatenate([-link / 2, link / 2], axis=1))
            slope[number], level[number] = both, found[1:] - found[:1]
        else:
            slope[number], level[number] = recalibrate(known, link, times=unseen.times)
            if unseen.kind == "multiclass":
                level[number] -= level[number].mean()  # links of classes are centred
        fitted[number] = True
    return SubsetRecalibration(slope=slope, level=level, fitted=fitted)


def _enough(target: Target) -> bool:
    if isinstance(target, Survival):
        return target.n_events >= LEAST_EVENTS
    if isinstance(target, Labels):
        return len(target) > 0 and int(np.bincount(target.label, minlength=len(target.classes)).min()) >= LEAST_EVENTS
    return len(target) >= LEAST_EVENTS


def recalibrated(values: Coalitions, found: SubsetRecalibration) -> Coalitions:
    """The same patients with every coalition moved to what it means, except what they have in full.

    The value of all that a patient has stays the link of the model's own prediction, to the last bit.
    """
    m = len(values.modalities)
    owned = values.present @ (1 << np.arange(m))
    shown = np.arange(1 << m)[None, :] & owned[:, None]  # (n, 2^M) what remains of each coalition
    move = moves(found, shown, owned[:, None])

    def moved(link: Array) -> Array:
        there = found.level[shown] + found.slope[shown][..., None] * link
        there = np.maximum.accumulate(there, axis=-1) if values.kind == "survival" else there
        return np.where(move[..., None], there, link)

    replicates = moved(np.asarray(values.replicates, dtype=np.float64)).astype(np.float32)
    meaning = RECALIBRATED if found.fitted.any() else values.meaning
    return replace(values, values=moved(values.values), replicates=replicates, meaning=meaning)


def cross_fitted(unseen: Coalitions, target: Target, parts: Sequence[int]) -> Coalitions:
    """Values of training patients, recalibrated by the other inner folds: what a record of calibration may judge.

    Args:
        unseen: of :func:`medfuse.explain.gate.unseen_values`.
        target: of the same patients.
        parts: numbers of patients of each inner fold, in order.
    """
    edges = np.concatenate([[0], np.cumsum(parts)])
    values, replicates = np.array(unseen.values), np.array(unseen.replicates)
    for start, end in itertools.pairwise(edges):
        here, others = np.arange(start, end), np.delete(np.arange(edges[-1]), slice(start, end))
        if len(here) and len(others):
            fit = subset_recalibration(unseen.take(others), target.take(others))
            moved = recalibrated(unseen.take(here), fit)
            values[here], replicates[:, here] = moved.values, moved.replicates
    return replace(unseen, values=values, replicates=replicates, meaning=RECALIBRATED)
