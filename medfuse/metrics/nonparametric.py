"""Kaplan-Meier with limits, quantiles and restricted mean; the censoring distribution; the log-rank test."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from medfuse.targets import Survival

Rule = Literal["log-log", "log", "plain", "logit", "arcsin"]
Convention = Literal["r", "sksurv"]
_SAME = 1e-8  # survival probabilities this close are the same number after rounding


@dataclass(frozen=True, kw_only=True)
class SurvivalCurve:
    """A right-continuous step function that is 1 before the first time.

    Attributes:
        times: (k,) distinct times, days.
        survival: (k,) value from each time on.
        at_risk: (k,) patients at risk just before.
        events: (k,) events at the time.
        standard_error: (k,) Greenwood standard error of ``survival``; NaN once that is 0.
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

    def limits(self, level: float = 0.95, *, rule: Rule = "log-log") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pointwise confidence limits at ``times``: (k,) low, (k,) high.

        Both are 1 before the first event, and NaN once nobody is left (S = 0): there is no variance to speak of.

        Args:
            level: of confidence.
            rule: scale on which the limits are symmetric: log(-log S), log S, S, the logit of S, or asin(sqrt S).

        References:
            Borgan, Liestoel (1990), A note on confidence intervals and bands for the survival function based on
            transformations, section 2; Kalbfleisch, Prentice (1980), section 1.3, for the log-log scale.
        """
        z = stats.norm.ppf(0.5 + level / 2)
        inside = (self.survival > 0) & (self.survival < 1)
        s, spread = np.where(inside, self.survival, 0.5), z * np.where(inside, self.standard_error, 0.0)
        if rule == "log-log":
            power = spread / (s * np.log(s))
            low, high = s ** np.exp(-power), s ** np.exp(power)
        elif rule == "log":
            low, high = s * np.exp(-spread / s), np.minimum(s * np.exp(spread / s), 1.0)
        elif rule == "plain":
            low, high = np.maximum(s - spread, 0.0), np.minimum(s + spread, 1.0)
        elif rule == "logit":
            middle, width = special.logit(s), spread / (s * (1 - s))
            low, high = special.expit(middle - width), special.expit(middle + width)
        else:
            middle, width = np.arcsin(np.sqrt(s)), spread / (2 * np.sqrt(s * (1 - s)))
            low = np.sin(np.maximum(middle - width, 0.0)) ** 2
            high = np.sin(np.minimum(middle + width, np.pi / 2)) ** 2
        edge = np.where(self.survival >= 1, 1.0, np.nan)
        return np.where(inside, low, edge), np.where(inside, high, edge)

    def quantile(self, probability: float) -> float:
        """Day by which the event has happened to a share ``probability``; infinity when that is never seen.

        Where S is flat at exactly ``1 - probability``, the middle of the flat part, as for the median of an even number
        of uncensored times.
        """
        return _crossing(self.times, self.survival, 1 - probability)

    def median(self) -> float:
        """Day by which half have had the event; infinity when that is never seen."""
        return self.quantile(0.5)

    def quantile_limits(
        self, probability: float, *, level: float = 0.95, rule: Rule = "log-log"
    ) -> tuple[float, float]:
        """Confidence limits of a quantile, where the limits of the curve cross; infinity where they never do.

        References:
            Brookmeyer, Crowley (1982), A confidence interval for the median survival time.
        """
        low, high = self.limits(level, rule=rule)
        return _crossing(self.times, low, 1 - probability), _crossing(self.times, high, 1 - probability)

    def restricted_mean(self, horizon: float) -> tuple[float, float]:
        """Mean days without the event up to ``horizon``, and its standard error.

        The last value of S is carried to the horizon; beyond the last time that is an extrapolation.

        References:
            Klein, Moeschberger (2003), Survival analysis, equations 4.5.1 and 4.5.2.
        """
        inside = self.times < horizon
        edges = np.concatenate([[0.0], self.times[inside], [horizon]])
        area = np.diff(edges) * np.concatenate([[1.0], self.survival[inside]])
        beyond = area[::-1].cumsum()[::-1][1:]  # area to the right of each time
        events, at_risk = self.events[inside], self.at_risk[inside]
        left = at_risk - events
        share = np.where(left > 0, events / (at_risk * np.where(left > 0, left, 1.0)), 0.0)
        return float(area.sum()), float(np.sqrt((beyond**2 * share).sum()))

    def cumulative_hazard(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Nelson-Aalen estimate at ``times`` and its standard error: (k,), (k,).

        References:
            Nelson (1969); Aalen (1978), Nonparametric inference for a family of counting processes, section 6.
        """
        return np.cumsum(self.events / self.at_risk), np.sqrt(np.cumsum(self.events / self.at_risk**2))


def _crossing(times: NDArray[np.float64], curve: NDArray[np.float64], height: float) -> float:
    """Where a falling step function reaches ``height``: the middle of a part that is flat there."""
    reached = np.flatnonzero(curve <= height + _SAME)
    if not reached.size:
        return float("inf")
    below = np.flatnonzero(curve < height - _SAME)
    flat = abs(curve[reached[0]] - height) <= _SAME
    end = times[below[0]] if below.size else times[-1]
    return float((times[reached[0]] + end) / 2 if flat else times[reached[0]])


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
        error = np.where(survival > 0, survival * np.sqrt(variance), np.nan)
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
    """Log-rank test: chi-square statistic, degrees of freedom, p-value, observed and expected events per group.

    A group that nobody was at risk in at any event counts for no degree of freedom. With rho other than 0, observed and
    expected are weighted.
    """

    statistic: float
    degrees: int
    p_value: float
    observed: NDArray[np.float64]
    expected: NDArray[np.float64]


def log_rank(survival: Survival, group: NDArray[np.int64], *, rho: float = 0.0) -> LogRank:
    """G-rho test of equal survival in groups; rho 0 is the log-rank test, rho 1 Peto and Peto's.

    Args:
        survival: outcomes of n patients; unobserved ones are left out.
        group: (n,) labels.
        rho: power of the pooled Kaplan-Meier estimate (left limit) that weighs each time.

    References:
        Harrington, Fleming (1982), A class of rank test procedures for censored survival data, section 2.
    """
    known = np.flatnonzero(survival.observed)
    survival = survival.take(known)
    labels, which = np.unique(np.asarray(group)[known], return_inverse=True)
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
    degrees = max(int((expected.sum(axis=0) > 0).sum()) - 1, 0)
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
