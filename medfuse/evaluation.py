"""Evaluation of held-out predictions: per fold, pooled within folds, with intervals, beside the baselines.

Undefined is a result: the value is None in JSON and a reason stands beside it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort
from medfuse.metrics.calibration import binary_calibration, brier, calibration_at, d_calibration, integrated_brier
from medfuse.metrics.comparison import Interval, people, percentile, simultaneous
from medfuse.metrics.discrimination import NO_PAIRS, auprc, auroc, cumulative_dynamic_auc, harrell_c, uno_c
from medfuse.metrics.goodness_of_fit import a_calibration, smooth_calibration
from medfuse.metrics.pooled import Told, pooled_scores
from medfuse.metrics.utility import decision_curve
from medfuse.metrics.weighted import linear_slopes
from medfuse.prediction import Prediction
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.types import PatientId

FORMAT_VERSION = 1
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FoldPrediction:
    """Held-out predictions of one fold, and who was trained on (for the censoring model)."""

    fold: str
    prediction: Prediction
    train_ids: tuple[PatientId, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Horizons in days (None: quartiles of the train event times), resamples, smallest reported cell."""

    horizons: tuple[float, ...] | None = None
    bootstrap: int = 1000
    minimum_cell: int = 10
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of one outcome; every value is a JSON value, NaN is None with a reason.

    Attributes:
        outcome: name; ``kind`` of it; ``score`` is the headline metric (C, AUROC or R2).
        carrying: the model that carries the claim, chosen before held-out rows were read.
        horizons: days at which survival is reported.
        models: per model: ``folds`` (rows of metrics), ``mean`` and ``sd`` over folds, ``pooled`` interval.
        differences: carrying model minus each other, simultaneous intervals on the same resamples.
        groups: tables by subgroup, site and availability pattern; small cells are suppressed.
        curves: calibration and decision curves of the carrying model, pooled.
    """

    outcome: str
    kind: str
    score: str
    carrying: str
    horizons: tuple[float, ...]
    models: Mapping[str, Row]
    differences: Mapping[str, Row]
    groups: Mapping[str, Sequence[Row]]
    curves: Row = field(default_factory=dict)

    def to_json(self) -> Row:
        """The evaluation as JSON values."""
        return {"format_version": FORMAT_VERSION, **cast(Row, _clean(asdict(self)))}


def from_json(content: Mapping[str, Any]) -> Evaluation:
    """The inverse of :meth:`Evaluation.to_json`."""
    parts = {key: value for key, value in content.items() if key != "format_version"}
    return Evaluation(**{**parts, "horizons": tuple(parts["horizons"])})


def _clean(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, np.ndarray):
        return _clean(value.tolist())
    if isinstance(value, np.generic):
        return _clean(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def default_horizons(target: Survival) -> tuple[float, ...]:
    """Quartiles of the event times: horizons that the cohort itself can speak of."""
    times = target.time[target.event & target.observed]
    return tuple(float(t) for t in np.unique(np.round(np.quantile(times, [0.25, 0.5, 0.75])))) if len(times) else ()


def survival_between(prediction: Prediction, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, t) survival at any times: linear between grid edges, 1 at day 0, the last edge's value beyond."""
    grid = np.concatenate([[0.0], cast(NDArray[np.float64], prediction.times)])
    curves = np.concatenate([np.ones((len(prediction), 1)), cast(NDArray[np.float64], prediction.survival)], axis=1)
    return np.stack([np.interp(times, grid, curve) for curve in curves]) if len(curves) else np.zeros((0, len(times)))


def _survival_row(fold: FoldPrediction, cohort: Cohort, outcome: str, horizons: NDArray[np.float64]) -> Row:
    held = cast(Survival, cohort.target(outcome, fold.prediction.patient_ids))
    train = cast(Survival, cohort.target(outcome, fold.train_ids))
    p = fold.prediction
    harrell = harrell_c(held, p.risk_score)
    times = train.time[train.event & train.observed]
    tau = float(times.max()) if len(times) else float("nan")  # which no event comes before: Uno's C is undefined, too
    uno = uno_c(held, p.risk_score, train=train, tau=tau)
    row: Row = {
        "fold": fold.fold,
        "patients": int(held.observed.sum()),
        "events": held.n_events,
        "harrell_c": harrell.value,
        "uno_c": uno.value,
        "uno_tau": tau,
        "reason": harrell.reason,
    }
    auc = cumulative_dynamic_auc(held, p.risk_score, train=train, times=horizons)
    row |= {f"auc@{t:g}": a for t, a in zip(horizons, auc, strict=True)}
    if p.survival is not None and p.times is not None and len(p):
        curves = survival_between(p, horizons)
        row |= {f"brier@{t:g}": b for t, b in zip(horizons, brier(held, curves, horizons, train=train), strict=True)}
        grid = p.times[p.times < held.time.max()]
        row["integrated_brier"] = integrated_brier(held, survival_between(p, grid), grid, train=train)
        own = at_own_time(p, held.time)
        row["d_calibration_p"] = d_calibration(held, own).p_value
        row["a_calibration_p"] = a_calibration(held, own).p_value
        for k, t in enumerate(horizons):
            calibration = calibration_at(held, 1 - curves[:, k], float(t))
            row |= {f"calibration_ratio@{t:g}": calibration.ratio, f"calibration_slope@{t:g}": calibration.slope}
            row[f"ici@{t:g}"] = smooth_calibration(held, 1 - curves[:, k], float(t)).index
    return row


def at_own_time(prediction: Prediction, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) predicted survival of each patient at their own time; see :func:`survival_between`."""
    grid = np.concatenate([[0.0], cast(NDArray[np.float64], prediction.times)])
    curves = cast(NDArray[np.float64], prediction.survival)
    return np.array([np.interp(t, grid, [1.0, *curve]) for t, curve in zip(time, curves, strict=True)])


def _labels_row(fold: FoldPrediction, cohort: Cohort, outcome: str, _: NDArray[np.float64]) -> Row:
    held = cast(Labels, cohort.target(outcome, fold.prediction.patient_ids))
    known = held.observed
    probability = cast(NDArray[np.float64], fold.prediction.probability)[known]
    label = held.label[known]
    areas = [auroc(label == k, probability[:, k]) for k in range(len(held.classes))]
    area = areas[1] if len(held.classes) == 2 else (float(np.mean(areas)) if areas else float("nan"))
    truth = np.eye(len(held.classes))[label]
    row: Row = {
        "fold": fold.fold,
        "patients": int(known.sum()),
        "events": int((label == len(held.classes) - 1).sum()),
        "auroc": area,
        "auprc": auprc(label == len(held.classes) - 1, probability[:, -1]),
        "brier": float(((probability - truth) ** 2).sum(axis=1).mean() / 2) if len(label) else float("nan"),
        "reason": "a class has no patient in this fold" if np.isnan(area) else "",
    }
    if len(held.classes) == 2:
        calibration = binary_calibration(label == 1, probability[:, 1])
        row |= {"calibration_intercept": calibration.intercept, "calibration_slope": calibration.slope}
    return row


def _values_row(fold: FoldPrediction, cohort: Cohort, outcome: str, _: NDArray[np.float64]) -> Row:
    from scipy import stats

    held = cast(Values, cohort.target(outcome, fold.prediction.patient_ids))
    y = held.value[held.observed]
    found = cast(NDArray[np.float64], fold.prediction.value)[held.observed]
    spread = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    defined = len(y) > 2 and spread > 0
    return {
        "fold": fold.fold,
        "patients": len(y),
        "events": 0,
        "r2": 1 - float(((y - found) ** 2).sum()) / spread if defined else float("nan"),
        "mae": float(np.abs(y - found).mean()) if len(y) else float("nan"),
        "rmse": float(np.sqrt(((y - found) ** 2).mean())) if len(y) else float("nan"),
        "calibration_slope": float(linear_slopes(y, found, np.ones((1, len(y))))[0]) if defined else float("nan"),
        "spearman": float(stats.spearmanr(y, found).statistic) if defined and np.ptp(found) > 0 else float("nan"),
        "reason": "" if defined else "fewer than three patients, or a constant outcome",
    }


_ROWS: dict[type, tuple[str, Callable[..., Row]]] = {
    Survival: ("harrell_c", _survival_row),
    Labels: ("auroc", _labels_row),
    Values: ("r2", _values_row),
}


_UNDEFINED: dict[type, str] = {
    Survival: NO_PAIRS,
    Labels: "a class has nobody to compare within a fold",
    Values: "the outcome is constant within folds",
}


@dataclass(frozen=True, kw_only=True)
class _Pooled:
    """Held-out patients of all folds, one after the other; a patient of two folds stands twice."""

    ids: tuple[PatientId, ...]
    strata: NDArray[np.int64]
    target: Target


def _pool(folds: Sequence[FoldPrediction], cohort: Cohort, outcome: str) -> _Pooled:
    ids = tuple(i for f in folds for i in f.prediction.patient_ids)
    strata = np.repeat(np.arange(len(folds)), [len(f.prediction) for f in folds])
    return _Pooled(ids=ids, strata=strata, target=cohort.target(outcome, ids))


def _risks(folds: Sequence[FoldPrediction]) -> NDArray[np.float64]:
    return np.concatenate([f.prediction.risk_score for f in folds])


def told(folds: Sequence[FoldPrediction]) -> Told:
    """What a model says of the held-out patients of all folds, one after the other."""

    def joined(name: str) -> NDArray[np.float64] | None:
        parts = [getattr(f.prediction, name) for f in folds]
        return None if any(part is None for part in parts) else np.concatenate(parts)

    return Told(risk=_risks(folds), probability=joined("probability"), value=joined("value"))


def _pooled_interval(pooled: _Pooled, said: Told, rows: NDArray[np.intp], settings: EvaluationSettings) -> Interval:
    score, drawn = pooled_scores(
        pooled.target.take(rows),
        [said.take(rows)],
        strata=pooled.strata[rows],
        n_resamples=settings.bootstrap,
        seed=settings.seed,
    )
    return percentile(float(score[0]), drawn[0], reason=_UNDEFINED[type(pooled.target)] if np.isnan(score[0]) else "")


def _summary(rows: Sequence[Row]) -> tuple[Row, Row]:
    """Mean and SD over the folds where a metric is defined."""
    mean, sd = {}, {}
    for key in dict.fromkeys(k for row in rows for k in row):
        values = [row[key] for row in rows if isinstance(row.get(key), float) and math.isfinite(row[key])]
        if values:
            mean[key] = float(np.mean(values))
            sd[key] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return mean, sd


def headline_score(fold: FoldPrediction, cohort: Cohort, outcome: str) -> float:
    """C, AUROC or R2 of one fold; NaN when undefined."""
    score, make_row = _ROWS[type(cohort.targets[outcome])]
    return float(make_row(fold, cohort, outcome, np.zeros(0))[score])


def evaluate_outcome(
    models: Mapping[str, Sequence[FoldPrediction]],
    cohort: Cohort,
    outcome: str,
    *,
    carrying: str,
    settings: EvaluationSettings,
    notes: Mapping[str, Sequence[str]] | None = None,
    overlapping: bool = False,
) -> Evaluation:
    """Evaluate models on the same held-out patients.

    Args:
        models: per model, one entry per fold, the same folds and patients for all.
        cohort: for outcomes, subgroups and sites.
        outcome: name of the outcome.
        carrying: the model that carries the claim.
        settings: horizons, resamples, smallest cell.
        notes: what a reader should know of each model.
        overlapping: the folds share held-out patients (two official test sets), so they are never pooled.
    """
    target = cohort.targets[outcome]
    score, make_row = _ROWS[type(target)]
    folds = models[carrying]
    horizons: tuple[float, ...] = ()
    if isinstance(target, Survival):
        # one set of horizons for all folds, from the first fold's train patients only
        first = cast(Survival, cohort.target(outcome, folds[0].train_ids))
        horizons = settings.horizons if settings.horizons is not None else default_horizons(first)
    pooled = _pool(folds, cohort, outcome)
    results: dict[str, Row] = {}
    for name, predicted in models.items():
        rows = [make_row(fold, cohort, outcome, np.array(horizons)) for fold in predicted]
        mean, sd = _summary(rows)
        intervals = _intervals(predicted, pooled, settings, overlapping=overlapping)
        results[name] = {"folds": rows, "mean": mean, "sd": sd, **intervals, "notes": list((notes or {}).get(name, ()))}
    evaluation = Evaluation(
        outcome=outcome,
        kind=cohort.card.outcomes[outcome].kind,
        score=score,
        carrying=carrying,
        horizons=horizons,
        models=results,
        differences=_differences(models, carrying, pooled, settings),
        groups=_groups(pooled, told(folds), folds, cohort, settings),
        curves=_curves(folds, pooled, horizons),
    )
    return from_json(evaluation.to_json())


def _intervals(
    predicted: Sequence[FoldPrediction], pooled: _Pooled, settings: EvaluationSettings, *, overlapping: bool
) -> Row:
    """The pooled interval of a model, or where folds overlap one of each fold."""
    said, everyone = told(predicted), np.arange(len(pooled.ids))
    if not overlapping:
        return {"pooled": asdict(_pooled_interval(pooled, said, everyone, settings)), "fold_intervals": []}
    of_folds = [everyone[pooled.strata == k] for k in range(len(predicted))]
    found = [asdict(_pooled_interval(pooled, said, rows, settings)) for rows in of_folds]
    return {"pooled": None, "fold_intervals": found}


def _differences(
    models: Mapping[str, Sequence[FoldPrediction]], carrying: str, pooled: _Pooled, settings: EvaluationSettings
) -> dict[str, Row]:
    """The carrying model minus each other."""
    others = [name for name in models if name != carrying]
    if not others or not len(pooled.ids):
        return {}
    score, drawn = pooled_scores(
        pooled.target,
        [told(models[name]) for name in (carrying, *others)],
        strata=pooled.strata,
        n_resamples=settings.bootstrap,
        seed=settings.seed,
        person=people(pooled.ids),
    )
    found = simultaneous(score[0] - score[1:], drawn[0] - drawn[1:])
    return {name: asdict(interval) for name, interval in zip(others, found, strict=True)}


def _groups(
    pooled: _Pooled,
    said: Told,
    folds: Sequence[FoldPrediction],
    cohort: Cohort,
    settings: EvaluationSettings,
) -> dict[str, list[Row]]:
    records = {record.patient_id: record for record in cohort.records}
    labels: dict[str, list[str]] = {
        name: [records[i].subgroups[name] for i in pooled.ids]
        for name in (cohort.records[0].subgroups if cohort.records else ())
    }
    if any(records[i].site for i in pooled.ids):
        labels["site"] = [records[i].site or "(missing)" for i in pooled.ids]
    names = folds[0].prediction.modalities
    present = np.concatenate([f.prediction.present for f in folds])
    patterns = [" + ".join(n for n, p in zip(names, row, strict=True) if p) or "none" for row in present]
    labels["available modalities"] = patterns
    few = EvaluationSettings(
        horizons=settings.horizons,
        bootstrap=min(settings.bootstrap, 200),
        minimum_cell=settings.minimum_cell,
        seed=settings.seed,
    )
    tables: dict[str, list[Row]] = {}
    for name, column in labels.items():
        array = np.array(column)
        rows: list[Row] = []
        suppressed = 0
        for level in sorted(set(column)):
            index = np.flatnonzero(array == level)
            if len(index) < settings.minimum_cell:
                suppressed += 1
                continue
            part = pooled.target.take(index)
            events = part.n_events if isinstance(part, Survival) else None
            interval = asdict(_pooled_interval(pooled, said, index, few))
            rows.append({"level": level, "patients": len(index), "events": events, **interval})
        if suppressed:
            rows.append(
                {
                    "level": f"{suppressed} groups of fewer than {settings.minimum_cell} patients",
                    "patients": None,
                    "events": None,
                    "estimate": None,
                    "low": None,
                    "high": None,
                    "reason": "suppressed",
                }
            )
        tables[name] = rows
    return tables


def _curves(folds: Sequence[FoldPrediction], pooled: _Pooled, horizons: Sequence[float]) -> Row:
    if not isinstance(pooled.target, Survival) or any(f.prediction.survival is None for f in folds):
        return {}
    curves = np.concatenate([survival_between(f.prediction, np.array(horizons)) for f in folds if len(f.prediction)])
    thresholds = np.linspace(0.05, 0.95, 19)
    out: Row = {"calibration": {}, "decision": {}, "smooth": {}}
    for k, t in enumerate(horizons):
        probability = 1 - curves[:, k]
        out["calibration"][f"{t:g}"] = asdict(calibration_at(pooled.target, probability, float(t)))
        out["decision"][f"{t:g}"] = asdict(
            decision_curve(pooled.target, probability, horizon=float(t), thresholds=thresholds)
        )
        out["smooth"][f"{t:g}"] = _smooth(pooled.target, probability, float(t))
    own = np.concatenate(
        [
            at_own_time(f.prediction, pooled.target.time[pooled.strata == k])
            for k, f in enumerate(folds)
            if len(f.prediction)
        ]
    )
    out["a_calibration"] = asdict(a_calibration(pooled.target, own))
    return out


_POINTS = 50  # of a stored calibration curve, at quantiles of the predictions


def _smooth(target: Survival, probability: NDArray[np.float64], horizon: float) -> Row:
    """Smooth calibration curve and the mean, median and 90th percentile of its distance to the diagonal."""
    found = smooth_calibration(target, probability, horizon)
    predicted = probability[target.observed]
    gap = np.abs(found.observed - predicted)
    out: Row = {"index": found.index, "e50": float("nan"), "e90": float("nan"), "reason": found.reason}
    if found.reason:
        return {**out, "predicted": [], "observed": []}
    order = np.argsort(predicted, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, _POINTS).astype(int))]
    ends = {"e50": float(np.quantile(gap, 0.5)), "e90": float(np.quantile(gap, 0.9))}
    return {**out, **ends, "predicted": predicted[shown], "observed": found.observed[shown]}


def summary_table(evaluation: Evaluation) -> list[Row]:
    """One row per model: mean per-fold score, pooled score with interval, difference of the carrying model to it."""
    rows = []
    for name, result in evaluation.models.items():
        pooled = result["pooled"] or {}
        difference = evaluation.differences.get(name, {})
        rows.append(
            {
                "model": name,
                "carrying": name == evaluation.carrying,
                "mean": result["mean"].get(evaluation.score),
                "sd": result["sd"].get(evaluation.score),
                "pooled": pooled.get("estimate"),
                "low": pooled.get("low"),
                "high": pooled.get("high"),
                "difference": difference.get("estimate"),
                "difference_low": difference.get("low"),
                "difference_high": difference.get("high"),
            }
        )
    return sorted(rows, key=lambda row: (not row["carrying"], -(row["mean"] if row["mean"] is not None else -1)))


_SCALES = {
    "harrell_c": "Harrell's C, the share of pairs put in the right order: 0.5 is chance, 1 is perfect",
    "auroc": "AUROC, the share of pairs put in the right order: 0.5 is chance, 1 is perfect",
    "r2": "R2, the share of the variance explained: 0 is what the mean explains, 1 is perfect",
}


def in_words(evaluation: Evaluation) -> tuple[str, ...]:
    """The result in a few sentences: the score of the carrying model, and what it can be told apart from.

    Its own parts (``NAME:PART``) are no rivals. Told apart: the simultaneous interval of the difference is without 0.
    """
    own, *others = summary_table(evaluation)
    rivals = [row for row in others if not row["model"].startswith(f"{evaluation.carrying}:")]
    value = own["mean"] if own["pooled"] is None else own["pooled"]
    if value is None:
        return (f"{evaluation.carrying}: no score of {evaluation.outcome} is defined here.",)
    interval = "" if own["low"] is None else f", 95 % interval [{own['low']:.3f}, {own['high']:.3f}],"
    said = [f"{evaluation.carrying}: {value:.3f}{interval} on held-out patients ({_SCALES[evaluation.score]})."]
    known = [row for row in rivals if row["difference_low"] is not None and row["difference_high"] is not None]
    groups = {
        "Better than": [row["model"] for row in known if row["difference_low"] > 0],
        "Worse than": [row["model"] for row in known if row["difference_high"] < 0],
        "Not distinguishable from": [
            row["model"] for row in known if row["difference_low"] <= 0 <= row["difference_high"]
        ],
    }
    return (*said, *(f"{what}: {', '.join(names)}." for what, names in groups.items() if names))
