"""Calibration beyond groups: A-calibration over all times, and a smooth calibration curve at one horizon."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medfuse.cox import CoxFit, fit_cox
from medfuse.errors import ModelError
from medfuse.targets import Survival

_EPS = 1e-7
_FEWEST = 5.0  # expected events per cell below which a chi-square is no longer one


@dataclass(frozen=True, kw_only=True)
class ACalibration:
    """A-calibration: events counted and expected in cells of predicted survival.

    Attributes:
        statistic, p_value: chi-square with one degree of freedom per cell; NaN when undefined.
        events, expected: (k,) per cell, from the earliest part of the predicted curves to the latest.
        reason: why the test is undefined, or empty.
    """

    statistic: float
    p_value: float
    events: NDArray[np.float64]
    expected: NDArray[np.float64]
    reason: str = ""


def a_calibration(survival: Survival, at_time: NDArray[np.float64], *, cells: int = 10) -> ACalibration:
    """Test whether events come at the predicted rate, early and late on the predicted curves.

    On the scale of the predicted cumulative hazard, events of a true model come at rate 1 while a patient is at risk:
    a cell expects the time that patients spent in it. Cells are cut to expect the same number of events each, at least
    five. Censoring needs no model and costs no power, unlike in D-calibration, which spreads the censored evenly.

    Args:
        survival: n patients; unobserved ones are left out.
        at_time: (n,) predicted survival probability of each patient at their own time.
        cells: most cells.

    References:
        Akritas (1988), Pearson-type goodness-of-fit tests: the univariate case, section 3; Simonsen, Waagepetersen
        (2025), A-calibration: assessment of prediction models for survival data under censoring.
        NOTE[DIFF]: cells of equal expectation instead of equal width.
    """
    known = survival.observed
    event, hazard = survival.event[known], -np.log(np.clip(at_time[known], _EPS, 1.0))
    count = min(cells, int(hazard.sum() / _FEWEST))
    if count < 1:
        none, nan = np.zeros(0), float("nan")
        return ACalibration(
            statistic=nan, p_value=nan, events=none, expected=none, reason="fewer than 5 events expected"
        )
    # Expected events below a cumulative hazard h: the sum of min(hazard, h), piecewise linear in h.
    steps = np.concatenate([[0.0], np.sort(hazard)])
    at_risk = np.arange(len(hazard), 0, -1)
    below = np.concatenate([[0.0], np.cumsum(np.diff(steps) * at_risk)])
    edges = np.interp(np.linspace(0, below[-1], count + 1), below, steps)
    cell = np.clip(np.searchsorted(edges, hazard[event], side="left") - 1, 0, count - 1)
    events = np.bincount(cell, minlength=count).astype(np.float64)
    expected = np.full(count, below[-1] / count)
    statistic = float(((events - expected) ** 2 / expected).sum())
    return ACalibration(
        statistic=statistic, p_value=float(stats.chi2.sf(statistic, count)), events=events, expected=expected
    )


@dataclass(frozen=True, kw_only=True)
class SmoothCalibration:
    """Observed against predicted probability of an event by a horizon, as a curve.

    Attributes:
        observed: (n,) smoothed observed probability at each observed patient's predicted one.
        index: integrated calibration index, the mean of |observed - predicted|; NaN when undefined.
        reason: why it is undefined, or empty.
    """

    observed: NDArray[np.float64]
    index: float
    reason: str = ""


def smooth_calibration(survival: Survival, probability: NDArray[np.float64], horizon: float) -> SmoothCalibration:
    """Calibration curve by a Cox model of a spline of the complementary log-log predicted probability.

    Args:
        survival: n patients; unobserved ones are left out.
        probability: (n,) predicted probability of the event by the horizon.
        horizon: days.

    References:
        Austin, Harrell, van Klaveren (2020), Graphical calibration curves and the integrated calibration index (ICI)
        for survival models, sections 2.2 and 2.3, with three knots.
    """
    index = np.flatnonzero(survival.observed)
    survival, p = survival.take(index), np.clip(probability[index], _EPS, 1 - _EPS)
    x = np.log(-np.log1p(-p))
    outcome = Survival(event=survival.event & (survival.time <= horizon), time=np.minimum(survival.time, horizon))
    knots = np.quantile(x, [0.1, 0.5, 0.9]) if len(x) else x
    fit = _fitted(_spline(x, knots), outcome) if len(np.unique(knots)) == 3 and outcome.n_events >= 10 else None
    if fit is None:
        reason = "needs ten events by the horizon, predictions that differ, and a likelihood that has a maximum"
        return SmoothCalibration(observed=np.full(len(p), np.nan), index=float("nan"), reason=reason)
    observed = 1 - fit.survival(_spline(x, knots), np.array([horizon]))[:, 0]
    return SmoothCalibration(observed=observed, index=float(np.abs(observed - p).mean()))


def _fitted(x: NDArray[np.float64], outcome: Survival) -> CoxFit | None:
    try:
        fit = fit_cox(x, outcome)
    except ModelError:
        return None
    return fit if fit.converged else None


def _spline(x: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) restricted cubic spline with three knots: x, and a cubic that is linear beyond the outer knots."""
    a, b, c = knots

    def cube(knot: float) -> NDArray[np.float64]:
        return np.maximum(x - knot, 0.0) ** 3

    curved = cube(a) - cube(b) * (c - a) / (c - b) + cube(c) * (b - a) / (c - b)
    return np.stack([x, curved / (c - a) ** 2], axis=1)
