"""Survival baselines of one fold: Kaplan-Meier to the weighted late average."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
from scipy import stats

from medfuse.baselines.base import BaselineResult, FoldData, Matrix
from medfuse.baselines.learners import random_survival_forest, ridge_cox, strong_learners
from medfuse.baselines.modality import Scored, all_scored, outcome_of, scored
from medfuse.cox import baseline_cumulative_hazard, fit_cox, survival_at
from medfuse.errors import ModelError
from medfuse.metrics.discrimination import harrell_c
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.prediction import Prediction
from medfuse.targets import event_time_grid
from medfuse.types import PatientId


def _predicted(fold: FoldData, risk: Matrix, curves: Matrix) -> Prediction:
    ids = fold.split.held_out
    return Prediction(
        patient_ids=ids,
        present=fold.present(ids),
        modalities=tuple(fold.data),
        risk_score=risk,
        times=event_time_grid(outcome_of(fold, fold.train_ids)),
        survival=np.minimum.accumulate(np.clip(curves, 0.0, 1.0), axis=1),
    )


def _curves(fold: FoldData, ids: Sequence[PatientId], score: Matrix, others: Matrix) -> Matrix:
    """Survival of ``others`` by a Cox model of one score, fitted on scores of train patients who were not fitted on."""
    survival = outcome_of(fold, ids)
    times = event_time_grid(outcome_of(fold, fold.train_ids))
    if np.ptp(score) > 0:
        fit = fit_cox(score[:, None], survival, penalty=1e-3)
        # A score that orders patients the wrong way out of fold is worth nothing: everyone gets the same curve.
        slope = max(0.0, float(fit.coefficients[0])) if fit.converged else 0.0
    else:
        slope = 0.0
    base_times, base = baseline_cumulative_hazard(survival, slope * score)
    return survival_at(slope * others, base_times, base, times=times)


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
    value = harrell_c(outcome_of(fold, fold.train_ids), everyone, with_error=False).value
    curves = _curves(fold, ids, oof, held_out)
    return BaselineResult(name=name, prediction=_predicted(fold, held_out, curves), tuning_score=value, notes=notes)


def km_baseline(fold: FoldData) -> list[BaselineResult]:
    """Everyone gets the Kaplan-Meier curve of train."""
    survival = outcome_of(fold, fold.train_ids)
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
    survival = outcome_of(fold, fold.train_ids)
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
            scores.append(fit_cox(x, outcome_of(fold, fit_ids), penalty=1e-2).log_hazard(other))
    return harrell_c(outcome_of(fold, ids), np.concatenate(scores), with_error=False).value if ids else float("nan")


def ridge_per_modality(fold: FoldData) -> list[BaselineResult]:
    """One ridge Cox per modality; patients without it get the mean score."""
    results = []
    for modality in fold.data:
        name, m = f"ridge_cox:{modality}", scored(fold, modality, {"ridge_cox": ridge_cox})
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
    survival = outcome_of(fold, fold.train_ids)
    ids: list[PatientId] = []
    oof: list[Matrix] = []
    for fit_ids, tune_ids in fold.inner_ids:
        if tune_ids:
            a, b = fold.design(names, fit_ids, tune_ids)
            oof.append(next(iter(random_survival_forest(a, outcome_of(fold, fit_ids), b, fold.seed).values())))
            ids += tune_ids
    risk = next(iter(random_survival_forest(x, survival, held, fold.seed).values()))
    name = "random_survival_forest"
    said, notes = np.concatenate(oof), (f"{x.shape[1]} columns",)
    return [_result(fold, name, ids=ids, oof=said, judged=said, held_out=risk, notes=notes)]


def _late(
    fold: FoldData,
    name: str,
    parts: Mapping[str, Scored],
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
    parts, left_out = all_scored(fold, {"ridge_cox": ridge_cox})
    return [_late(fold, "late_average", parts, weigh=np.ones_like, left_out=left_out)]


def late_average_weighted(fold: FoldData) -> list[BaselineResult]:
    """The strong bar: per modality the best learner by inner C, weighted by inner C minus 1/2 (at least 0.001)."""
    parts, left_out = all_scored(fold, strong_learners())
    return [_late(fold, "late_average_weighted", parts, weigh=lambda c: np.maximum(c - 0.5, 1e-3), left_out=left_out)]


def rank_average(fold: FoldData) -> list[BaselineResult]:
    """Mean over present modalities of ranks within the held-out patients, as papers report it.

    A patient's rank depends on the other held-out patients, so this cannot predict one patient: for comparison only.
    """
    parts, left_out = all_scored(fold, {"ridge_cox": ridge_cox})
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
