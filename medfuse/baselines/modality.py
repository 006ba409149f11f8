"""Survival scores of one modality: of each learner on the inner folds, and of the one they choose on all patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from medfuse.baselines.base import FoldData, Matrix, chosen_by_others
from medfuse.baselines.learners import Learner
from medfuse.errors import CohortError, DataError
from medfuse.metrics.discrimination import harrell_c
from medfuse.targets import Survival, fittable
from medfuse.types import PatientId


def outcome_of(fold: FoldData, ids: Sequence[PatientId]) -> Survival:
    """The survival outcome of some patients."""
    return cast(Survival, fold.target(ids))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one modality by one learner.

    Attributes:
        chosen: the candidate.
        inner_c: mean over inner folds of its C.
        ids: train patients who have the modality, with standardised out-of-fold ``oof`` scores.
        judged: the same of the candidate that the other inner folds choose, which inner scores are of, and
        merit: its mean C on those other folds.
        held_out: (n,) standardised scores of held-out patients, NaN where the modality is absent.
        left_out: learners that could not be fitted on every inner fold.
    """

    chosen: str
    inner_c: float
    ids: tuple[PatientId, ...]
    oof: Matrix
    judged: Matrix
    merit: Matrix
    held_out: Matrix
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What was chosen, and what was not to be had."""
        missing = f", not fitted everywhere: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.chosen}, inner C {self.inner_c:.3f}{missing}"


def scored(fold: FoldData, modality: str, learners: Mapping[str, Learner]) -> Scored | str:
    """Scores of one modality, computed once per fold and set of learners; or why there are none.

    As the networks do, a modality is left out where too few of its patients had an event.
    """
    key = ("scored", modality, *learners)
    if key not in fold.memo:
        try:
            fold.memo[key] = _score(fold, modality, learners)
        except (CohortError, DataError) as error:
            fold.memo[key] = f"{modality}: left out: {error}"
    return cast(Scored | str, fold.memo[key])


def all_scored(fold: FoldData, learners: Mapping[str, Learner]) -> tuple[dict[str, Scored], tuple[str, ...]]:
    """Scores of every modality that has some, and a note on each other one."""
    found = {modality: scored(fold, modality, learners) for modality in fold.data}
    parts = {modality: one for modality, one in found.items() if isinstance(one, Scored)}
    return parts, tuple(one for one in found.values() if isinstance(one, str))


@dataclass(frozen=True, kw_only=True)
class _Inner:
    """What one learner said on the inner folds of one modality, per candidate.

    Attributes:
        oof: out-of-fold scores of the train patients who have the modality, NaN where there is none.
        c: C of each inner fold.
        rows: of ``oof``, of each inner fold.
    """

    oof: dict[str, Matrix] = field(default_factory=dict)
    c: dict[str, list[float]] = field(default_factory=dict)
    rows: list[NDArray[np.intp]] = field(default_factory=list)


def _inner(fold: FoldData, modality: str, learners: Mapping[str, Learner]) -> list[_Inner]:
    """What each learner says on the inner folds; one that another baseline has asked is not asked again."""
    found = cast(dict[str, _Inner], fold.memo.setdefault(("inner", modality), {}))
    new = {name: learner for name, learner in learners.items() if name not in found}
    fresh = {name: _Inner() for name in new}  # asked again where a fold refuses
    ids = fold.has(modality, fold.train_ids)
    row = {patient: k for k, patient in enumerate(ids)}
    for fit_ids, tune_ids in fold.inner_ids if new else ():
        fit_ids, tune_ids = fold.has(modality, fit_ids), fold.has(modality, tune_ids)
        if not tune_ids:
            continue
        fittable(outcome_of(fold, fit_ids))
        x, other = fold.design([modality], fit_ids, tune_ids)
        rows = np.array([row[i] for i in tune_ids])
        outcome = outcome_of(fold, tune_ids)
        for name, learner in new.items():
            fresh[name].rows.append(rows)
            for candidate, score in learner(x, outcome_of(fold, fit_ids), other, fold.seed).items():
                fresh[name].oof.setdefault(candidate, np.full(len(ids), np.nan))[rows] = score
                fresh[name].c.setdefault(candidate, []).append(harrell_c(outcome, score, with_error=False).value)
    found |= fresh
    return [found[name] for name in learners]


def _score(fold: FoldData, modality: str, learners: Mapping[str, Learner]) -> Scored:
    """Choose a candidate by its mean inner C, refit it on all of train, standardise by its out-of-fold mean and SD.

    Raises:
        CohortError, DataError: a training side with nothing to learn from, or no inner fold to choose by.
    """
    ids = fold.has(modality, fold.train_ids)
    fittable(outcome_of(fold, ids))
    said = _inner(fold, modality, learners)
    oof = {name: scores for one in said for name, scores in one.oof.items()}
    inner_c = {name: c for one in said for name, c in one.c.items()}
    complete = {
        name: float(np.nanmean(c))
        for name, c in inner_c.items()
        if not np.isnan(oof[name]).any() and not np.isnan(c).all()
    }
    if not complete:
        msg = (
            f"modality {modality}: expected an inner fold with tuning patients who can be compared, found none; use "
            "larger folds, or leave it out of the recipe's modalities"
        )
        raise CohortError(msg)
    left_out = tuple(name for name in learners if not any(c.startswith(name) for c in complete))
    held = fold.has(modality, fold.split.held_out)
    chosen, final = _refitted(fold, modality, learners, complete, ids=ids, held=held)
    mean, spread = float(oof[chosen].mean()), float(oof[chosen].std()) or 1.0
    judged, merit = cross_fitted({name: oof[name] for name in complete}, inner_c, said[0].rows)
    scores = np.full(len(fold.split.held_out), np.nan)
    place = {patient: k for k, patient in enumerate(fold.split.held_out)}
    scores[[place[i] for i in held]] = (final - mean) / spread
    return Scored(
        chosen=chosen,
        inner_c=complete[chosen],
        ids=ids,
        oof=(oof[chosen] - mean) / spread,
        judged=judged,
        merit=merit,
        held_out=scores,
        left_out=left_out,
    )


def _refitted(
    fold: FoldData,
    modality: str,
    learners: Mapping[str, Learner],
    inner_c: Mapping[str, float],
    *,
    ids: Sequence[PatientId],
    held: Sequence[PatientId],
) -> tuple[str, Matrix]:
    """The best candidate that can be fitted on all of train, too, and its scores of ``held``."""
    x, other = fold.design([modality], ids, held or ids[:1])  # a library wants somebody to predict
    for candidate in sorted(inner_c, key=lambda name: inner_c[name], reverse=True):
        owner = next(learner for name, learner in learners.items() if candidate.startswith(name))
        found = owner(x, outcome_of(fold, ids), other, fold.seed)
        if candidate in found:
            return candidate, found[candidate][: len(held)]
    msg = f"modality {modality}: expected a learner that can be fitted on all of train, found none"
    raise CohortError(msg)


def cross_fitted(
    oof: Mapping[str, Matrix], c: Mapping[str, Sequence[float]], folds: Sequence[NDArray[np.intp]]
) -> tuple[Matrix, Matrix]:
    """Per patient, the standardised score of the candidate that the other inner folds choose, and its mean C there."""
    n = len(next(iter(oof.values())))
    judged, merit = np.zeros(n), np.full(n, 0.5)
    for rows, (best, mean) in zip(folds, chosen_by_others({name: c[name] for name in oof}), strict=True):
        judged[rows] = ((oof[best] - oof[best].mean()) / (oof[best].std() or 1.0))[rows]
        merit[rows] = mean
    return judged, np.nan_to_num(merit, nan=0.5)
