"""Intervals and paired comparisons by case bootstrap within strata (folds)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.metrics import _concordance
from medfuse.metrics.discrimination import NO_PAIRS, ranked, stratified_c
from medfuse.targets import Survival


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a percentile interval; ``p_value`` (two-sided, of no difference) for differences only."""

    estimate: float
    low: float
    high: float
    p_value: float = float("nan")
    reason: str = ""


def resample_weights(strata: NDArray[np.generic], *, n_resamples: int, seed: int) -> NDArray[np.float64]:
    """(n_resamples, n) how often each case is drawn; every stratum keeps its size."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, len(strata)))
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        for row in weights:
            row[rows] = np.bincount(rng.integers(0, len(rows), size=len(rows)), minlength=len(rows))
    return weights


def bootstrap_values(
    survival: Survival,
    risk_score: NDArray[np.float64],
    *,
    strata: NDArray[np.generic] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(n_resamples,) Harrell's C over pairs within strata; the order is sorted once, and weights change.

    NaN where a resample holds no comparable pair.
    """
    strata = np.zeros(len(survival)) if strata is None else np.asarray(strata)
    weights = resample_weights(strata, n_resamples=n_resamples, seed=seed) * survival.observed
    counts = np.zeros((n_resamples, 3))
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        r = ranked(survival.take(rows), risk_score[rows])
        counts += _concordance.count_many(
            r.order, r.group, r.event, r.rank, np.ascontiguousarray(weights[:, rows]), np.ones(len(rows)), r.ranks
        )
    pairs = counts.sum(axis=1)
    return np.where(pairs > 0, (counts[:, 0] + counts[:, 2] / 2) / np.maximum(pairs, 1e-300), np.nan)


def _interval(estimate: float, values: NDArray[np.float64], *, level: float, reason: str) -> Interval:
    values = values[~np.isnan(values)]
    if np.isnan(estimate) or len(values) < 2:
        nan = float("nan")
        return Interval(estimate=estimate, low=nan, high=nan, reason=reason or "no resample is defined")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high))


def bootstrap_c(
    survival: Survival,
    risk_score: NDArray[np.float64],
    *,
    strata: NDArray[np.generic] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Harrell's C (pairs within strata) with a case-bootstrap percentile interval."""
    strata = np.zeros(len(survival)) if strata is None else np.asarray(strata)
    point = stratified_c(survival, risk_score, strata)
    values = bootstrap_values(survival, risk_score, strata=strata, n_resamples=n_resamples, seed=seed)
    return _interval(point.value, values, level=level, reason=NO_PAIRS if np.isnan(point.value) else "")


def paired_differences(
    survival: Survival,
    risk_score: NDArray[np.float64],
    others: Mapping[str, NDArray[np.float64]],
    *,
    strata: NDArray[np.generic],
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """C of one model minus C of each other, on the same resamples, with simultaneous intervals.

    The half-width of each interval is its bootstrap standard error times one quantile of the largest absolute
    standardised deviation over all comparisons (max-t), so that all hold together at ``level``.

    References:
        Westfall, Young (1993), Resampling-based multiple testing, section 2.
    """
    if not others:
        return {}
    first = bootstrap_values(survival, risk_score, strata=strata, n_resamples=n_resamples, seed=seed)
    point = stratified_c(survival, risk_score, strata).value
    names = list(others)
    estimates = np.array([point - stratified_c(survival, others[name], strata).value for name in names])
    draws = np.stack(
        [
            first - bootstrap_values(survival, others[name], strata=strata, n_resamples=n_resamples, seed=seed)
            for name in names
        ]
    )
    draws = draws[:, ~np.isnan(draws).any(axis=0)]
    if draws.shape[1] < 2 or np.isnan(estimates).any():
        nan = float("nan")
        return {
            name: Interval(estimate=float(e), low=nan, high=nan, reason="no resample is defined")
            for name, e in zip(names, estimates, strict=True)
        }
    error = draws.std(axis=1, ddof=1)
    centred = np.abs(draws - draws.mean(axis=1, keepdims=True)) / np.maximum(error, 1e-12)[:, None]
    width = np.quantile(centred.max(axis=0), level)
    tails = np.minimum((draws <= 0).mean(axis=1), (draws >= 0).mean(axis=1))
    return {
        name: Interval(
            estimate=float(estimates[k]),
            low=float(estimates[k] - width * error[k]),
            high=float(estimates[k] + width * error[k]),
            p_value=float(min(1.0, 2 * max(tails[k], 1 / draws.shape[1]))),
        )
        for k, name in enumerate(names)
    }


def bootstrap_metric(
    metric: Callable[[NDArray[np.intp]], float],
    strata: NDArray[np.generic],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Case-bootstrap interval of any metric of row indices."""
    everyone = np.arange(len(strata))
    weights = resample_weights(strata, n_resamples=n_resamples, seed=seed).astype(np.int64)
    values = np.array([metric(np.repeat(everyone, row)) for row in weights])
    return _interval(metric(everyone), values, level=level, reason="")
