"""Kaplan-Meier, the censoring distribution and the log-rank test."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medfuse.targets import Survival


@dataclass(frozen=True, kw_only=True)
class SurvivalCurve:
    """A right-continuous step function that is 1 before the first time.

    Attributes:
        times: (k,) distinct times, days.
        survival: (k,) value from each time on.
        at_risk: (k,) patients at risk just before.
        events: (k,) events at the time.
        standard_error: (k,) Greenwood standard error of ``survival``.
    """

    times: NDArray[np.float64]
    survival: NDArray[np.float64]
    at_risk: NDArray[np.float64]
    events: NDArray[np.float64]
    standard_error: NDArray[np.float64]

    def __call__(self, at: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """S(at)."""
        return self._value(np.searchsorted(self.times, at, side="right"))

    def left(self, at: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """S(at-), the limit from the left."""
        return self._value(np.searchsorted(self.times, at, side="left"))

    def _value(self, index: NDArray[np.intp] | np.intp) -> NDArray[np.float64]:
        return np.concatenate([[1.0], self.survival])[index]

    def limits(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pointwise log-log confidence limits at ``times``: (k,) low, (k,) high."""
        z = stats.norm.ppf(0.5 + level / 2)
        inside = (self.survival > 0) & (self.survival < 1)
        s = np.where(inside, self.survival, 0.5)
        spread = z * self.standard_error / (s * np.abs(np.log(s)))
        low, high = s ** np.exp(spread), s ** np.exp(-spread)
        return np.where(inside, low, self.survival), np.where(inside, high, self.survival)

    def median(self) -> float:
        """First time at which S <= 1/2; infinity when that is never seen."""
        below = np.flatnonzero(self.survival <= 0.5)
        return float(self.times[below[0]]) if below.size else float("inf")


def _table(
    time: NDArray[np.float64], counted: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    times, inverse = np.unique(time, return_inverse=True)
    leaving = np.bincount(inverse, weights=weights, minlength=len(times)).astype(np.float64)
    events = np.bincount(inverse, weights=weights * counted, minlength=len(times)).astype(np.float64)
    at_risk = leaving[::-1].cumsum()[::-1]
    return times, events, at_risk


def kaplan_meier(
    time: NDArray[np.float64], event: NDArray[np.bool_], *, weights: NDArray[np.float64] | None = None
) -> SurvivalCurve:
    """Product-limit estimate.

    Args:
        time: (n,) days.
        event: (n,) True when the event happened.
        weights: (n,) case weights; default 1.

    References:
        Kaplan, Meier (1958), Nonparametric estimation from incomplete observations, equation 2b; Greenwood (1926).
    """
    w = np.ones(len(time)) if weights is None else np.asarray(weights, dtype=np.float64)
    times, events, at_risk = _table(np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool), w)
    survival = np.cumprod(1 - events / at_risk, dtype=np.float64)
    left = at_risk - events
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(np.where(left > 0, events / (at_risk * left), np.inf * (events > 0)))
        error = np.where(survival > 0, survival * np.sqrt(variance), 0.0)
    return SurvivalCurve(times=times, survival=survival, at_risk=at_risk, events=events, standard_error=error)


def censoring_survival(time: NDArray[np.float64], event: NDArray[np.bool_]) -> SurvivalCurve:
    """Kaplan-Meier of being uncensored; events of a time leave the risk set before its censorings."""
    times, inverse = np.unique(time, return_inverse=True)
    events = np.bincount(inverse, weights=event, minlength=len(times)).astype(np.float64)
    censored = np.bincount(inverse, weights=~event, minlength=len(times)).astype(np.float64)
    at_risk = (events + censored)[::-1].cumsum()[::-1] - events
    with np.errstate(divide="ignore", invalid="ignore"):
        survival = np.cumprod(np.where(at_risk > 0, 1 - censored / at_risk, 1.0), dtype=np.float64)
    return SurvivalCurve(
        times=times, survival=survival, at_risk=at_risk, events=censored, standard_error=np.full(len(times), np.nan)
    )


@dataclass(frozen=True, kw_only=True)
class LogRank:
    """Log-rank test: chi-square statistic, degrees of freedom, p-value, observed and expected events per group."""

    statistic: float
    degrees: int
    p_value: float
    observed: NDArray[np.float64]
    expected: NDArray[np.float64]


def log_rank(survival: Survival, group: NDArray[np.int64], *, rho: float = 0.0) -> LogRank:
    """G-rho test of equal survival in groups; rho 0 is the log-rank test, rho 1 Peto and Peto's.

    Args:
        survival: outcomes of n patients.
        group: (n,) labels.
        rho: power of the pooled Kaplan-Meier estimate (left limit) that weighs each time.

    References:
        Harrington, Fleming (1982), A class of rank test procedures for censored survival data, section 2.
    """
    labels, which = np.unique(group, return_inverse=True)
    times, events, at_risk = _table(survival.time, survival.event, np.ones(len(survival)))
    pooled = kaplan_meier(survival.time, survival.event)
    weight = pooled.left(times) ** rho
    per = [_table_at(survival, which == g, times) for g in range(len(labels))]
    risk = np.stack([r for _, r in per], axis=1)
    happened = np.stack([e for e, _ in per], axis=1)
    expected = risk * (events / at_risk)[:, None]
    gap = (weight[:, None] * (happened - expected)).sum(axis=0)
    share = risk / at_risk[:, None]
    factor = weight**2 * events * np.where(at_risk > 1, (at_risk - events) / np.maximum(at_risk - 1, 1), 0.0)
    variance = np.diag((factor[:, None] * share).sum(axis=0)) - np.einsum("t,tg,th->gh", factor, share, share)
    degrees = len(labels) - 1
    statistic = float(gap[:-1] @ np.linalg.pinv(variance[:-1, :-1]) @ gap[:-1]) if degrees else 0.0
    return LogRank(
        statistic=statistic,
        degrees=degrees,
        p_value=float(stats.chi2.sf(statistic, degrees)) if degrees else float("nan"),
        observed=(weight[:, None] * happened).sum(axis=0),
        expected=(weight[:, None] * expected).sum(axis=0),
    )


def _table_at(
    survival: Survival, chosen: NDArray[np.bool_], times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Events at, and number at risk just before, each of ``times`` among the chosen."""
    place = np.searchsorted(times, survival.time[chosen])
    leaving = np.bincount(place, minlength=len(times)).astype(np.float64)
    events = np.bincount(place, weights=survival.event[chosen], minlength=len(times)).astype(np.float64)
    return events, leaving[::-1].cumsum()[::-1]
