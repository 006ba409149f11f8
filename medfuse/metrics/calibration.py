"""Calibration: do predicted probabilities mean what they say?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from medfuse.cox import fit_cox
from medfuse.errors import ModelError
from medfuse.metrics.nonparametric import Convention, censoring_survival, kaplan_meier
from medfuse.targets import Survival

_EPS = 1e-7
_CONSTANT = 1e-9  # spread of logits below which a prediction is one number


def brier(
    survival: Survival,
    probability: NDArray[np.float64],
    times: NDArray[np.float64],
    *,
    train: Survival,
    convention: Convention = "sksurv",
) -> NDArray[np.float64]:
    """Brier score under censoring.

    Args:
        survival: n patients.
        probability: (n, t) predicted probability of being event-free at each time.
        times: (t,) days.
        train: patients on whom the censoring distribution G is fitted.
        convention: weights of events, ``sksurv`` 1 / G(t) as Graf writes it, ``r`` 1 / G(t-) as riskRegression and pec.
            They differ where events and censorings tie.

    Returns:
        (t,) scores, NaN where G reaches 0 before the time.

    References:
        Graf, Schmoor, Sauerbrei, Schumacher (1999), Assessment and comparison of prognostic classification schemes for
        survival data, section 3.
    """
    known = survival.observed
    time, event, s = survival.time[known], survival.event[known], probability[known]
    curve = censoring_survival(train.time[train.observed], train.event[train.observed])
    g_time, g_at = (curve.left(time) if convention == "r" else curve(time)), curve(times)
    out = np.full(len(times), np.nan)
    for k, t in enumerate(times):
        had = event & (time <= t)
        if g_at[k] <= 0 or (had & (g_time <= 0)).any() or not len(time):
            continue
        g = np.where(had, g_time, 1.0)
        free = (time > t) / g_at[k]
        out[k] = np.mean(np.where(had, s[:, k] ** 2 / g, 0.0) + (1 - s[:, k]) ** 2 * free)
    return out


def integrated_brier(
    survival: Survival,
    probability: NDArray[np.float64],
    times: NDArray[np.float64],
    *,
    train: Survival,
    convention: Convention = "sksurv",
) -> float:
    """Brier score averaged over ``times`` by the trapezoidal rule; NaN when undefined or with a single time."""
    scores = brier(survival, probability, times, train=train, convention=convention)
    if len(times) < 2 or np.isnan(scores).any():
        return float("nan")
    return float(np.trapezoid(scores, times) / (times[-1] - times[0]))


@dataclass(frozen=True, kw_only=True)
class DCalibration:
    """D-calibration: share of patients whose survival probability at their event time falls into each tenth."""

    statistic: float
    p_value: float
    share: NDArray[np.float64]
    reason: str = ""


def d_calibration(survival: Survival, at_time: NDArray[np.float64], *, bins: int = 10) -> DCalibration:
    """Test whether predicted survival at the event time is uniform.

    Args:
        survival: n patients.
        at_time: (n,) predicted survival probability of each patient at their own time.
        bins: number of equal bins.

    References:
        Haider, Hoehn, Davis, Greiner (2020), Effective ways to build and evaluate individual survival distributions,
        section 3.5: a censored patient spreads over the bins at and below their probability.
    """
    known = survival.observed
    event, p = survival.event[known], np.clip(at_time[known], 0.0, 1.0)
    nan = float("nan")
    if not len(p):
        return DCalibration(statistic=nan, p_value=nan, share=np.full(bins, nan), reason="no patient")
    edges = np.linspace(0, 1, bins + 1)
    cell = np.minimum((p * bins).astype(int), bins - 1)
    count = np.zeros(bins)
    np.add.at(count, cell[event], 1.0)
    for probability, k in zip(p[~event], cell[~event], strict=True):
        if probability <= _EPS:
            count[0] += 1
            continue
        count[k] += (probability - edges[k]) / probability
        count[:k] += 1 / (bins * probability)
    expected = len(p) / bins
    statistic = float(((count - expected) ** 2 / expected).sum())
    return DCalibration(statistic=statistic, p_value=float(stats.chi2.sf(statistic, bins - 1)), share=count / len(p))


@dataclass(frozen=True, kw_only=True)
class HorizonCalibration:
    """Calibration of the probability of an event by a horizon.

    Attributes:
        predicted: (g,) mean predicted probability per group of equal size.
        observed: (g,) Kaplan-Meier estimate of the same, with ``low`` and ``high`` 95 % limits.
        size: (g,) patients per group.
        ratio: observed over expected in the whole group (calibration in the large); 1 is perfect.
        slope: coefficient of the complementary log-log predicted probability in a Cox model; 1 is perfect.
        reason: why something is NaN, or empty.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    size: NDArray[np.int64]
    ratio: float
    slope: float
    reason: str = ""


def _observed_by(survival: Survival, horizon: float) -> tuple[float, float, float]:
    curve = kaplan_meier(survival.time, survival.event)
    low, high = curve.limits()
    k = int(np.searchsorted(curve.times, horizon, side="right")) - 1
    if k < 0:
        return 0.0, 0.0, 0.0
    if horizon > curve.times[-1] and not survival.event[survival.time == curve.times[-1]].all():
        return float("nan"), float("nan"), float("nan")  # nobody was followed that far
    return float(1 - curve.survival[k]), float(1 - high[k]), float(1 - low[k])


def calibration_at(
    survival: Survival, probability: NDArray[np.float64], horizon: float, *, groups: int = 5
) -> HorizonCalibration:
    """Observed against predicted probability of an event by ``horizon`` days.

    Args:
        survival: n patients.
        probability: (n,) predicted probability of the event by the horizon.
        horizon: days.
        groups: wanted number of groups of equal size, at least ten patients each.
    """
    index = np.flatnonzero(survival.observed)
    survival, p = survival.take(index), probability[index]
    n = len(p)
    parts = np.array_split(np.argsort(p, kind="stable"), max(1, min(groups, n // 10))) if n else []
    rows = [(p[rows].mean(), *_observed_by(survival.take(rows), horizon), len(rows)) for rows in parts]
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    overall = _observed_by(survival, horizon)[0] if n else float("nan")
    mean = float(p.mean()) if n else float("nan")
    slope, reason = _slope(survival, p, horizon)
    return HorizonCalibration(
        predicted=table[:, 0],
        observed=table[:, 1],
        low=table[:, 2],
        high=table[:, 3],
        size=table[:, 4].astype(np.int64),
        ratio=overall / mean if mean > 0 else float("nan"),
        slope=slope,
        reason=reason,
    )


def _slope(survival: Survival, probability: NDArray[np.float64], horizon: float) -> tuple[float, str]:
    event = survival.event & (survival.time <= horizon)
    p = np.clip(probability, _EPS, 1 - _EPS)
    x = np.log(-np.log1p(-p))
    if event.sum() < 2 or np.ptp(x) < 1e-9:
        return float("nan"), "slope needs two events by the horizon and predictions that differ"
    try:
        fit = fit_cox(x[:, None], Survival(event=event, time=np.minimum(survival.time, horizon)))
    except ModelError:
        return float("nan"), "slope: predictions do not differ among those at risk at an event"
    return (float(fit.coefficients[0]), "") if fit.converged else (float("nan"), "slope: the likelihood is monotone")


@dataclass(frozen=True, kw_only=True)
class BinaryCalibration:
    """Intercept (given slope 1) and slope of a logistic recalibration, and the Brier score."""

    intercept: float
    slope: float
    brier: float
    reason: str = ""


def binary_calibration(label: NDArray[np.bool_], probability: NDArray[np.float64]) -> BinaryCalibration:
    """Logistic recalibration of a binary outcome's probabilities.

    References:
        Cox (1958), Two further applications of a model for binary regression.
    """
    score = float(np.mean((probability - label) ** 2)) if len(label) else float("nan")
    if label.all() or not label.any():
        nan = float("nan")
        return BinaryCalibration(intercept=nan, slope=nan, brier=score, reason="only one class")
    p = np.clip(probability, _EPS, 1 - _EPS)
    logit = np.log(p / (1 - p))
    y = label.astype(np.float64)

    def loss(parameters: NDArray[np.float64]) -> float:
        z = parameters[0] + parameters[1] * logit
        return float(np.mean(np.logaddexp(0, z) - y * z))

    one = optimize.minimize_scalar(lambda a: loss(np.array([a, 1.0])))
    if np.ptp(logit) < _CONSTANT:  # any slope fits as well as any other
        said = "the probability is the same for everybody"
        return BinaryCalibration(intercept=float(one.x), slope=float("nan"), brier=score, reason=said)
    if logit[label].min() >= logit[~label].max() or logit[label].max() <= logit[~label].min():  # the larger, the better
        said = "slope: the likelihood is monotone, for the classes do not overlap"
        return BinaryCalibration(intercept=float(one.x), slope=float("nan"), brier=score, reason=said)
    both = optimize.minimize(loss, np.array([0.0, 1.0]), method="BFGS")
    return BinaryCalibration(intercept=float(one.x), slope=float(both.x[1]), brier=score)
