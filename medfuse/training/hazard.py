"""From out-of-fold log hazards to survival curves: a slope, and Breslow's baseline, in numpy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.targets import Survival

_LARGEST_SLOPE = 5.0
_ITERATIONS = 30


def _risk_sets(
    survival: Survival, log_hazard: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Known patients by descending time: their log hazards, events, and the end of the risk set of each."""
    seen = np.flatnonzero(survival.observed)
    order = seen[np.argsort(-survival.time[seen], kind="stable")]
    time = survival.time[order]
    # The risk set of a time holds everyone up to the last row with that same time.
    last = np.searchsorted(-time, -time, side="right") - 1
    return log_hazard[order], survival.event[order].astype(np.float64), last


def cox_slope(survival: Survival, score: NDArray[np.float64]) -> float:
    """Coefficient of a score in a Cox model of its own, within [0, 5]: 0 when the score orders patients wrongly.

    Args:
        survival: n patients.
        score: (n,) higher = earlier.

    References:
        Cox (1972), Regression models and life-tables; Breslow's likelihood for ties, Newton's method.
    """
    x, event, last = _risk_sets(survival, score)
    x = x - x.mean()
    slope = 0.0
    for _ in range(_ITERATIONS):
        weight = np.exp(slope * x - (slope * x).max())
        total = np.cumsum(weight)[last]
        mean = np.cumsum(weight * x)[last] / total
        square = np.cumsum(weight * x * x)[last] / total
        information = float((event * (square - mean**2)).sum())
        if information <= 1e-12:
            break
        step = float((event * (x - mean)).sum()) / information
        slope = float(np.clip(slope + np.clip(step, -1, 1), 0, _LARGEST_SLOPE))
        if abs(step) < 1e-10:
            break
    return slope


@dataclass(frozen=True, kw_only=True)
class BaselineHazard:
    """Cumulative baseline hazard of patients whose log hazard is ``slope`` times their score.

    Attributes:
        times: (t,) days.
        cumulative: (t,) non-decreasing, for a score of 0.
        slope: coefficient of the score.
    """

    times: NDArray[np.float64]
    cumulative: NDArray[np.float64]
    slope: float

    def survival(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, t) survival of patients with ``score`` (n,)."""
        return np.asarray(np.exp(-np.exp(self.slope * score)[:, None] * self.cumulative[None, :]))


def fit_baseline(survival: Survival, score: NDArray[np.float64], *, times: NDArray[np.float64]) -> BaselineHazard:
    """Slope and Breslow baseline of a score that no patient here was used to fit.

    Args:
        survival: n patients.
        score: (n,) out-of-fold scores, higher = earlier.
        times: (t,) days at which the curve is wanted.

    References:
        Breslow (1972), discussion of Cox (1972): jumps of events over the summed hazard of those at risk.
    """
    slope = cox_slope(survival, score)
    x, event, last = _risk_sets(survival, slope * score)
    seen = np.flatnonzero(survival.observed)
    time = -np.sort(-survival.time[seen], kind="stable")
    jumps = event / np.cumsum(np.exp(x))[last]
    cumulative = np.array([jumps[time <= t].sum() for t in times])
    return BaselineHazard(times=times, cumulative=cumulative, slope=slope)
