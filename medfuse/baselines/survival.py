"""Survival baselines of one fold: Kaplan-Meier to the weighted late average."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medfuse.baselines.base import BaselineResult, FoldData, Matrix, chosen_by_others
from medfuse.baselines.learners import Learner, random_survival_forest, ridge_cox, strong_learners
from medfuse.cox import baseline_cumulative_hazard, fit_cox, survival_at
from medfuse.errors import CohortError, DataError, ModelError
from medfuse.metrics.discrimination import harrell_c
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.prediction import Prediction
from medfuse.targets import Survival, event_time_grid, fittable
from medfuse.types import PatientId


def _outcome(fold: FoldData, ids: Sequence[PatientId]) -> Survival:
    return cast(Survival, fold.target(ids))


def _predicted(fold: FoldData, risk: Matrix, curves: Matrix) -> Prediction:
    ids = fold.split.held_out
    return Prediction(
        patient_ids=ids,
        present=fold.present(ids),
        modalities=tuple(fold.data),
        risk_score=risk,
        times=event_time_grid(_outcome(fold, fold.train_ids)),
        survival=np.minimum.accumulate(np.clip(curves, 0.0, 1.0), axis=1),
    )


def _curves(fold: FoldData, ids: Sequence[PatientId], score: Matrix, others: Matrix) -> Matrix:
    """Survival of ``others`` by a Cox model of one score, fitted on scores of train patients who were not fitted on."""
    survival = _outcome(fold, ids)
    times = event_time_grid(_outcome(fold, fold.train_ids))
    if np.ptp(score) > 0:
        fit = fit_cox(score[:, None], survival, penalty=1e-3)
        # A score that orders patients the wrong way out of fold is worth nothing: everyone gets the same curve.
        slope = max(0.0, float(fit.coefficients[0])) if fit.converged else 0.0
    else:
        slope = 0.0
    base_times, base = baseline_cumulative_hazard(survival, slope * score)
    return survival_at(slope * others, base_times, base, times=times)


@dataclass(frozen=True, kw_only=True)
class _Modality:
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


def _scored(fold: FoldData, modality: str, learners: Mapping[str, Learner]) -> _Modality | str:
    """Scores of one modality, computed once per fold and set of learners; or why there are none.

    As the networks do, a modality is left out where too few of its patients had an event.
    """
    key = ("scored", modality, *learners)
    if key not in fold.memo:
        try:
            fold.memo[key] = _score(fold, modality, learners)
        except (CohortError, DataError) as error:
            fold.memo[key] = f"{modality}: left out: {error}"
    return cast(_Modality | str, fold.memo[key])


def _all_scored(fold: FoldData, learners: Mapping[str, Learner]) -> tuple[dict[str, _Modality], tuple[str, ...]]:
    """Scores of every modality that has some, and a note on each other one."""
    found = {modality: _scored(fold, modality, learners) for modality in fold.data}
    parts = {modality: one for modality, one in found.items() if isinstance(one, _Modality)}
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
        fittable(_outcome(fold, fit_ids))
        x, other = fold.design([modality], fit_ids, tune_ids)
        rows = np.array([row[i] for i in tune_ids])
        outcome = _outcome(fold, tune_ids)
        for name, learner in new.items():
            fresh[name].rows.append(rows)
            for candidate, score in learner(x, _outcome(fold, fit_ids), other, fold.seed).items():
                fresh[name].oof.setdefault(candidate, np.full(len(ids), np.nan))[rows] = score
                fresh[name].c.setdefault(candidate, []).append(harrell_c(outcome, score, with_error=False).value)
    found |= fresh
    return [found[name] for name in learners]


def _score(fold: FoldData, modality: str, learners: Mapping[str, Learner]) -> _Modality:
    """Choose a candidate by its mean inner C, refit it on all of train, standardise by its out-of-fold mean and SD.

    Raises:
        CohortError, DataError: a training side with nothing to learn from, or no inner fold to choose by.
    """
    ids = fold.has(modality, fold.train_ids)
    fittable(_outcome(fold, ids))
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
    judged, merit = _cross_fitted({name: oof[name] for name in complete}, inner_c, said[0].rows)
    scores = np.full(len(fold.split.held_out), np.nan)
    place = {patient: k for k, patient in enumerate(fold.split.held_out)}
    scores[[place[i] for i in held]] = (final - mean) / spread
    return _Modality(
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
        found = owner(x, _outcome(fold, ids), other, fold.seed)
        if candidate in found:
            return candidate, found[candidate][: len(held)]
    msg = f"modality {modality}: expected a learner that can be fitted on all of train, found none"
    raise CohortError(msg)


def _cross_fitted(
    oof: Mapping[str, Matrix], c: Mapping[str, Sequence[float]], folds: Sequence[NDArray[np.intp]]
) -> tuple[Matrix, Matrix]:
    """Per patient, the standardised score of the candidate that the other inner folds choose, and its mean C there."""
    n = len(next(iter(oof.values())))
    judged, merit = np.zeros(n), np.full(n, 0.5)
    for rows, (best, mean) in zip(folds, chosen_by_others({name: c[name] for name in oof}), strict=True):
        judged[rows] = ((oof[best] - oof[best].mean()) / (oof[best].std() or 1.0))[rows]
        merit[rows] = mean
    return judged, np.nan_to_num(merit, nan=0.5)


def _result(
    fold: FoldData,
    name: str,
    *,
    ids: Sequence[PatientId],
    oof: Matrix,
    judged: Matrix,
    held_out: Matrix,
    notes: tuple[str, ...],
) -> BaselineResult:
    """``oof`` fits the curves, ``judged`` has the inner score: a score of what was chosen on flatters.

    Both are of ``ids``; of all other training patients, who lack a modality, nothing is known, and they count with 0.
    """
    place = {patient: k for k, patient in enumerate(ids)}
    everyone = np.array([judged[place[i]] if i in place else 0.0 for i in fold.train_ids])
    value = harrell_c(_outcome(fold, fold.train_ids), everyone, with_error=False).value
    curves = _curves(fold, ids, oof, held_out)
    return BaselineResult(name=name, prediction=_predicted(fold, held_out, curves), tuning_score=value, notes=notes)


def km_baseline(fold: FoldData) -> list[BaselineResult]:
    """Everyone gets the Kaplan-Meier curve of train."""
    survival = _outcome(fold, fold.train_ids)
    curve = kaplan_meier(survival.time, survival.event)(event_time_grid(survival))
    n = len(fold.split.held_out)
    return [BaselineResult(name="kaplan_meier", prediction=_predicted(fold, np.zeros(n), np.tile(curve, (n, 1))))]


def _nothing(fold: FoldData, name: str, *, notes: tuple[str, ...]) -> BaselineResult:
    """Of a baseline that could not be fitted here: everyone gets the curve of train, and no inner score chooses it.

    Models are compared on the same folds: a baseline has a row in each of them or in none.
    """
    said = "nothing could be fitted: everyone gets the Kaplan-Meier curve of train"
    return replace(km_baseline(fold)[0], name=name, notes=(*notes, said))


def clinical_cox(fold: FoldData) -> list[BaselineResult]:
    """Cox on the clinical variables, without a penalty where the columns allow it; none for cohorts without a table."""
    if fold.cohort.card.modalities[fold.clinical].loader != "tabular":
        return []  # thousands of genes without a penalty are no clinical model
    survival = _outcome(fold, fold.train_ids)
    x, held = fold.design([fold.clinical], fold.train_ids, fold.split.held_out)
    notes: tuple[str, ...] = (f"modality {fold.clinical}, {x.shape[1]} columns",)
    try:
        fit = fit_cox(x, survival)
        if not fit.converged:
            raise ModelError("separation")
    except ModelError:
        fit = fit_cox(x, survival, penalty=1.0)
        notes = (*notes, "collinear or separated columns: ridge penalty 1")
    notes = (
        *notes,
        "log hazard ratios per SD (SE): "
        + ", ".join(
            f"{b:.2f} ({se:.2f})" for b, se in zip(fit.coefficients[:12], fit.standard_errors[:12], strict=True)
        ),
    )
    curves = fit.survival(held, event_time_grid(survival))
    return [
        BaselineResult(
            name="clinical_cox",
            prediction=_predicted(fold, fit.log_hazard(held), curves),
            tuning_score=_clinical_tuning(fold),
            notes=notes,
        )
    ]


def _clinical_tuning(fold: FoldData) -> float:
    """C of the clinical Cox model's inner out-of-fold scores."""
    ids: list[PatientId] = []
    scores: list[Matrix] = []
    for fit_ids, tune_ids in fold.inner_ids:
        if tune_ids:
            x, other = fold.design([fold.clinical], fit_ids, tune_ids)
            ids += tune_ids
            scores.append(fit_cox(x, _outcome(fold, fit_ids), penalty=1e-2).log_hazard(other))
    return harrell_c(_outcome(fold, ids), np.concatenate(scores), with_error=False).value if ids else float("nan")


def ridge_per_modality(fold: FoldData) -> list[BaselineResult]:
    """One ridge Cox per modality; patients without it get the mean score."""
    results = []
    for modality in fold.data:
        name, m = f"ridge_cox:{modality}", _scored(fold, modality, {"ridge_cox": ridge_cox})
        if isinstance(m, str):
            results.append(_nothing(fold, name, notes=(m,)))
            continue
        held = np.where(np.isnan(m.held_out), 0.0, m.held_out)
        results.append(_result(fold, name, ids=m.ids, oof=m.oof, judged=m.judged, held_out=held, notes=(m.note,)))
    return results


def forest(fold: FoldData) -> list[BaselineResult]:
    """Random survival forest on everything side by side."""
    if find_spec("sksurv") is None:
        return []
    names = list(fold.data)
    x, held = fold.design(names, fold.train_ids, fold.split.held_out)
    survival = _outcome(fold, fold.train_ids)
    ids: list[PatientId] = []
    oof: list[Matrix] = []
    for fit_ids, tune_ids in fold.inner_ids:
        if tune_ids:
            a, b = fold.design(names, fit_ids, tune_ids)
            oof.append(next(iter(random_survival_forest(a, _outcome(fold, fit_ids), b, fold.seed).values())))
            ids += tune_ids
    risk = next(iter(random_survival_forest(x, survival, held, fold.seed).values()))
    name = "random_survival_forest"
    said, notes = np.concatenate(oof), (f"{x.shape[1]} columns",)
    return [_result(fold, name, ids=ids, oof=said, judged=said, held_out=risk, notes=notes)]


def _late(
    fold: FoldData,
    name: str,
    parts: Mapping[str, _Modality],
    *,
    weigh: Callable[[Matrix], Matrix],
    left_out: tuple[str, ...],
) -> BaselineResult:
    """Mean over each patient's present modalities, weighted by what ``weigh`` makes of inner C."""
    if not parts:
        return _nothing(fold, name, notes=left_out)
    ids = fold.train_ids
    row = {patient: k for k, patient in enumerate(ids)}
    train, judged, merit = (np.full((len(parts), len(ids)), empty) for empty in (np.nan, np.nan, 0.5))
    for k, m in enumerate(parts.values()):
        own = [row[i] for i in m.ids]
        train[k, own], judged[k, own], merit[k, own] = m.oof, m.judged, m.merit
    held = np.stack([m.held_out for m in parts.values()])
    weights = weigh(np.array([[m.inner_c] for m in parts.values()]))

    def mean(scores: Matrix, weights: Matrix) -> Matrix:
        weight = weights * ~np.isnan(scores)
        total = weight.sum(axis=0)
        return np.where(total > 0, (weight * np.nan_to_num(scores)).sum(axis=0) / np.where(total > 0, total, 1), 0.0)

    notes = tuple(f"{m}: weight {w:.3f}, {parts[m].note}" for m, w in zip(parts, weights[:, 0], strict=True))
    return _result(
        fold,
        name,
        ids=ids,
        oof=mean(train, weights),
        judged=mean(judged, weigh(merit)),
        held_out=mean(held, weights),
        notes=(*notes, *left_out),
    )


def late_average(fold: FoldData) -> list[BaselineResult]:
    """Equal-weight mean over the present modalities of standardised ridge Cox log hazards."""
    parts, left_out = _all_scored(fold, {"ridge_cox": ridge_cox})
    return [_late(fold, "late_average", parts, weigh=np.ones_like, left_out=left_out)]


def late_average_weighted(fold: FoldData) -> list[BaselineResult]:
    """The strong bar: per modality the best learner by inner C, weighted by inner C minus 1/2 (at least 0.001)."""
    parts, left_out = _all_scored(fold, strong_learners())
    return [_late(fold, "late_average_weighted", parts, weigh=lambda c: np.maximum(c - 0.5, 1e-3), left_out=left_out)]


def rank_average(fold: FoldData) -> list[BaselineResult]:
    """Mean over present modalities of ranks within the held-out patients, as papers report it.

    A patient's rank depends on the other held-out patients, so this cannot predict one patient: for comparison only.
    """
    parts, left_out = _all_scored(fold, {"ridge_cox": ridge_cox})
    if not parts:
        return [_nothing(fold, "rank_average", notes=left_out)]
    ids = fold.train_ids
    row = {patient: k for k, patient in enumerate(ids)}
    train = np.full((len(parts), len(ids)), np.nan)
    for k, m in enumerate(parts.values()):
        train[k, [row[i] for i in m.ids]] = m.oof
    note = "ranks use the other held-out patients: for comparison with papers only"
    held = _mean_rank(np.stack([m.held_out for m in parts.values()]))
    oof, notes = _mean_rank(train), (note, *left_out)
    return [_result(fold, "rank_average", ids=ids, oof=oof, judged=oof, held_out=held, notes=notes)]


def _mean_rank(scores: Matrix) -> Matrix:
    """(n,) mean over rows of ranks in (0, 1) among the patients who have a score; 1/2 for one without any."""
    ranks = np.full(scores.shape, np.nan)
    for k, line in enumerate(scores):
        known = ~np.isnan(line)
        ranks[k, known] = (stats.rankdata(line[known]) - 0.5) / max(known.sum(), 1)
    count = (~np.isnan(ranks)).sum(axis=0)
    return np.where(count > 0, np.nansum(ranks, axis=0) / np.maximum(count, 1), 0.5)


SURVIVAL_BASELINES: dict[str, Callable[[FoldData], list[BaselineResult]]] = {
    "kaplan_meier": km_baseline,
    "clinical_cox": clinical_cox,
    "ridge_cox": ridge_per_modality,
    "random_survival_forest": forest,
    "late_average": late_average,
    "late_average_weighted": late_average_weighted,
    "rank_average": rank_average,
}
