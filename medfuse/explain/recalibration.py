"""Values of training patients recalibrated: as predictions are, by all of them, or by those of other inner folds."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medfuse.explain.coalitions import RECALIBRATED, Coalitions, contrast
from medfuse.targets import Target
from medfuse.training.patterns import Patterns, fit_patterns, pattern_number
from medfuse.types import OutcomeKind


def recalibrated(plain: Coalitions, patterns: Patterns) -> Coalitions:
    """Every coalition moved to what it means.

    Args:
        plain: values before that.
        patterns: of the model that spoke.
    """
    shown = pattern_number(plain.present)[:, None] & np.arange(plain.values.shape[1])  # what remains of each coalition

    def moved(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found = contrast(patterns.moved(_link(values, plain.kind), shown), plain.kind)
        return np.maximum.accumulate(found, axis=-1) if plain.kind == "survival" else found

    replicates = moved(np.asarray(plain.replicates, dtype=np.float64)).astype(np.float32)
    meaning = RECALIBRATED if patterns.fitted.any() else plain.meaning
    return replace(plain, values=moved(np.asarray(plain.values)), replicates=replicates, meaning=meaning)


def cross_fitted(plain: Coalitions, target: Target, parts: Sequence[int], *, balanced: bool = False) -> Coalitions:
    """Values of training patients, recalibrated by the other inner folds: what a record of calibration may judge.

    Args:
        plain: of :func:`medfuse.explain.gate.unseen_values`.
        target: of the same patients.
        parts: numbers of patients of each inner fold, in order.
        balanced: as of :func:`medfuse.training.patterns.fit_patterns`.
    """
    edges = np.concatenate([[0], np.cumsum(parts)])
    values, replicates = np.array(plain.values), np.array(plain.replicates)
    link = _link(np.array(plain.values), plain.kind)
    for start, end in itertools.pairwise(edges):
        here, others = np.arange(start, end), np.delete(np.arange(edges[-1]), slice(start, end))
        if len(here) and len(others):
            known = target.take(others)
            found = fit_patterns(link[others], plain.present[others], known, times=plain.times, balanced=balanced)
            moved = recalibrated(plain.take(here), found)
            values[here], replicates[:, here] = moved.values, moved.replicates
    return replace(plain, values=values, replicates=replicates, meaning=RECALIBRATED)


def _link(values: NDArray[np.float64], kind: OutcomeKind) -> NDArray[np.float64]:
    """Values as links of the model: log odds are the centred log probabilities of two classes."""
    return np.concatenate([-values / 2, values / 2], axis=-1) if kind == "binary" else values
