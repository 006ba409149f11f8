"""The table of a benchmark, and what it allows to be said."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort
from medfuse.evaluation import Evaluation, EvaluationSettings, FoldPrediction, evaluate_outcome, told
from medfuse.metrics.comparison import Interval, people, simultaneous
from medfuse.metrics.pooled import pooled_scores

Row = dict[str, Any]
FUSION, BASELINE = "chosen fusion", "chosen baseline"
_COST = ("parameters", "flops", "members", "seconds", "interrupted", "peak_memory_mb")
_POWER = 0.841621  # normal quantile of 80 %


def benchmark_table(
    predictions: Mapping[str, Sequence[FoldPrediction]],
    tuning: Mapping[str, Sequence[float]],
    *,
    cohort: Cohort,
    outcome: str,
    fusions: Sequence[str],
    settings: EvaluationSettings,
    cost: Mapping[str, Mapping[str, Any]],
    overlapping: bool = False,
) -> dict[str, Any]:
    """Score, paired difference, calibration and cost of every model, and the verdict.

    Args:
        predictions: per model, held-out predictions of every fold.
        tuning: per model and fold, inner score; NaN where a model has none and so is never chosen.
        cohort: outcomes.
        outcome: name.
        fusions: which of the models are fusions; the others are baselines.
        settings: resamples and horizons.
        cost: per model ``seconds`` (``interrupted``: at least so many), ``parameters``, ``flops``, ``members``,
            ``peak_memory_mb``.
        overlapping: the folds share held-out patients, and are not pooled.

    Returns:
        ``score`` (its name), ``rows``, ``chosen`` (names per fold), ``resolvable`` (the smallest difference between the
        chosen fusion and the chosen baseline that this cohort would show with a power of 80 %) and ``verdict``.
    """
    models = {name: list(folds) for name, folds in predictions.items()}
    baselines = [name for name in models if name not in fusions]
    chosen = {FUSION: choose(tuning, fusions), BASELINE: choose(tuning, baselines)}
    for name, picked in chosen.items():
        if picked:
            models[name] = [models[model][k] for k, model in enumerate(picked)]
    carrying = FUSION if chosen[FUSION] else next(iter(models))
    evaluation = evaluate_outcome(
        models, cohort, outcome, carrying=carrying, settings=settings, overlapping=overlapping
    )
    compared = [name for name in (*fusions, FUSION) if name in models]
    gaps, resolvable = _differences(models, compared, cohort=cohort, outcome=outcome, settings=settings)
    rows = [
        {
            "model": name,
            "kind": "choice" if name in chosen else "fusion" if name in fusions else "baseline",
            "tuning": _inner_mean(tuning, chosen.get(name) or [name] * len(tuning.get(name, ()))),
            **_scores(result, gaps.get(name), evaluation=evaluation),
            **{key: cost.get(name, {}).get(key) for key in _COST},
            "per_fold": [row.get(evaluation.score) for row in result["folds"]],
        }
        for name, result in evaluation.models.items()
    ]
    rows.sort(key=lambda r: (r["kind"] != "choice", -(r["mean"] if r["mean"] is not None else -np.inf)))
    return {
        "score": evaluation.score,
        "rows": rows,
        "chosen": chosen,
        "resolvable": resolvable,
        "verdict": verdict(rows, chosen, cohort=cohort.card.name, resolvable=resolvable),
    }


def choose(tuning: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[str]:
    """Per fold the model with the best inner score of that fold; empty when no model has one in every fold."""
    known = [name for name in names if name in tuning and np.isfinite(tuning[name]).all()]
    if not known:
        return []
    folds = len(tuning[known[0]])
    return [max(known, key=lambda name: tuning[name][k]) for k in range(folds)]


def _inner_mean(tuning: Mapping[str, Sequence[float]], models: Sequence[str]) -> float | None:
    """Mean inner score of the model that stands for each fold."""
    known = [score for k, model in enumerate(models) if np.isfinite(score := tuning[model][k])]
    return float(np.mean(known)) if known else None


def _scores(result: Row, gap: Interval | None, *, evaluation: Evaluation) -> Row:
    """Held-out scores of a model, and the model minus the chosen baseline."""
    pooled, mean = result["pooled"] or {}, result["mean"]
    return {
        "mean": mean.get(evaluation.score),
        "sd": result["sd"].get(evaluation.score),
        "pooled": pooled.get("estimate"),
        "low": pooled.get("low"),
        "high": pooled.get("high"),
        "reason": pooled.get("reason") or ("" if gap is None else gap.reason),
        "difference": None if gap is None or np.isnan(gap.estimate) else -gap.estimate,
        "difference_low": None if gap is None or np.isnan(gap.high) else -gap.high,
        "difference_high": None if gap is None or np.isnan(gap.low) else -gap.low,
        **_calibration(mean, evaluation.horizons),
    }


def _differences(
    models: Mapping[str, Sequence[FoldPrediction]],
    compared: Sequence[str],
    *,
    cohort: Cohort,
    outcome: str,
    settings: EvaluationSettings,
) -> tuple[dict[str, Interval], float | None]:
    """Chosen baseline minus each fusion, simultaneous intervals; and what this cohort can resolve."""
    if BASELINE not in models or not compared or settings.bootstrap < 2:
        return {}, None
    ids = [i for fold in models[BASELINE] for i in fold.prediction.patient_ids]
    strata = np.repeat(np.arange(len(models[BASELINE])), [len(fold.prediction) for fold in models[BASELINE]])
    score, drawn = pooled_scores(
        cohort.target(outcome, ids),
        [told(models[name]) for name in (BASELINE, *compared)],
        strata=strata,
        n_resamples=settings.bootstrap,
        seed=settings.seed,
        person=people(ids),
    )
    gaps = dict(zip(compared, simultaneous(score[0] - score[1:], drawn[0] - drawn[1:]), strict=True))
    if FUSION not in models or np.isnan(gaps[FUSION].high):
        return gaps, None
    return gaps, smallest_resolved(gaps[FUSION], drawn[1 + compared.index(FUSION)] - drawn[0])


def smallest_resolved(gap: Interval, draws: NDArray[np.float64]) -> float:
    """The true difference whose interval leaves 0 out with a power of 80 %.

    Args:
        gap: the interval, as wide as the comparisons that share its level make it.
        draws: the difference in resamples (R,); undefined ones are NaN.
    """
    return gap.high - gap.estimate + _POWER * float(draws[np.isfinite(draws)].std(ddof=1))


def _calibration(mean: Mapping[str, float], horizons: Sequence[float]) -> Row:
    """Means over folds; of survival at the middle horizon."""
    at = f"@{horizons[len(horizons) // 2]:g}" if len(horizons) else ""
    return {
        "uno_c": mean.get("uno_c"),
        "integrated_brier": mean.get("integrated_brier", mean.get("brier")),
        "calibration_slope": mean.get(f"calibration_slope{at}"),
        "calibration_ratio": mean.get(f"calibration_ratio{at}"),
    }


# --- words ------------------------------------------------------------------------------------------------------


def _named(picked: Sequence[str]) -> str:
    """The model that was chosen, or how often which."""
    counts = Counter(name.replace("clinical_cox", "clinical Cox").replace("_", " ") for name in picked)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count} of {len(picked)} folds)" for name, count in counts.most_common())


def verdict(rows: Sequence[Row], chosen: Mapping[str, Sequence[str]], *, cohort: str, resolvable: float | None) -> str:
    """What may be said, in words: of the models that inner scores chose, never of the best row."""
    if not chosen.get(FUSION) or not chosen.get(BASELINE):
        missing = "fusion" if not chosen.get(FUSION) else "baseline"
        return f"no verdict on {cohort}: no {missing} has an inner score in every fold"
    row = next(r for r in rows if r["model"] == FUSION)
    fusion, base = _named(chosen[FUSION]), _named(chosen[BASELINE])
    low, high = row["difference_low"], row["difference_high"]
    if low is None or high is None:
        why = f"; {row['reason']}" if row.get("reason") else ""
        return f"no verdict on {cohort}: the difference between {fusion} and {base} has no interval{why}"
    size = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    small = "" if resolvable is None else f"; the smallest difference this cohort can resolve is {resolvable:.2f}"
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
        return (
            f"the fusion model that the inner folds chose, {fusion}, is {word} than the baseline that they chose, "
            f"{base}, on {cohort}: {size} (simultaneous 95 % interval){small}"
        )
    known = [r for r in rows if r["kind"] == "fusion" and r["difference_low"] is not None]
    above = [r["model"] for r in known if r["difference_low"] > 0]
    below = [r["model"] for r in known if r["difference_high"] < 0]
    if above:
        return (
            f"the fusion model that the inner folds chose, {fusion}, is not distinguishable from {base} on {cohort} "
            f"({size}){small}; {', '.join(above)} stood above it on held-out patients, but was not chosen before these "
            "were read, so that is no result"
        )
    if below:
        return (
            f"no fusion model is better than {base} on {cohort} (chosen: {fusion}, {size}), and worse are "
            f"{', '.join(below)}{small}"
        )
    return f"no fusion model is distinguishable from {base} on {cohort} (chosen: {fusion}, {size}){small}"


def table_text(rows: Sequence[Row]) -> list[str]:
    """The table in Markdown."""
    header = (
        "model", "kind", "inner", "mean (SD)", "pooled [95 %]", "minus chosen baseline [simultaneous]", "Uno C",
        "Brier", "slope", "O/E", "parameters", "MFLOPs", "members", "seconds", "MB",
    )  # fmt: skip
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for r in rows:
        pooled = "" if r["pooled"] is None else f"{r['pooled']:.3f} {_span(r['low'], r['high'])}"
        gap = (
            ""
            if r["difference"] is None
            else f"{r['difference']:+.3f} {_span(r['difference_low'], r['difference_high'])}"
        )
        cells = (
            r["model"], r["kind"], _number(r["tuning"]), f"{_number(r['mean'])} ({_number(r['sd'])})", pooled, gap,
            _number(r["uno_c"]), _number(r["integrated_brier"]), _number(r["calibration_slope"]),
            _number(r["calibration_ratio"]), _whole(r["parameters"]), _millions(r["flops"]), _whole(r["members"]),
            (">" if r["interrupted"] else "") + _seconds(r["seconds"]), _whole(r["peak_memory_mb"]),
        )  # fmt: skip
        lines.append(" | ".join(cells))
    return [f"| {line} |" for line in lines]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _millions(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.3g}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
