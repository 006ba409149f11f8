"""Cox's partial likelihood over risk sets: entry < t <= time. Sums and their gradients in n log n."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.targets import Survival

Ties = Literal["efron", "breslow"]


@dataclass(frozen=True, kw_only=True)
class _Beyond:
    """Sums over the rows whose place is above 0, 1, ..., k - 1: rows in order of place, and the first of each sum."""

    order: NDArray[np.intp]
    first: NDArray[np.intp]

    def __call__(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        nobody = np.zeros((1, *value.shape[1:]))
        falling = np.concatenate([nobody, value[self.order[::-1]]]).cumsum(axis=0)
        return np.asarray(falling[len(value) - self.first], dtype=np.float64)


def _beyond(place: NDArray[np.intp], *, count: int) -> _Beyond:
    order = np.argsort(place, kind="stable")
    return _Beyond(order=order, first=np.searchsorted(place[order], np.arange(count), side="right"))


@dataclass(frozen=True, kw_only=True)
class RiskSets:
    """Who is at risk at which of the k distinct event times: row i at ``times[start[i] : stop[i]]``.

    Attributes:
        times: (k,) distinct event times, increasing.
        start, stop: (n,) event times at or before the entry and the time of each row.
        staying: sums over the rows that have not left at each event time.
        coming: sums over the rows that have not entered yet; None when all enter before the first event.
        rows: (d,) rows of the events, by time.
        group: (d,) place of each event in ``times``.
        share: (d,) part of the tied events that Efron takes out of the risk set; zero for Breslow.
    """

    times: NDArray[np.float64]
    start: NDArray[np.intp]
    stop: NDArray[np.intp]
    staying: _Beyond
    coming: _Beyond | None
    rows: NDArray[np.intp]
    group: NDArray[np.intp]
    share: NDArray[np.float64]

    def sums(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """(k, ...) sum of ``value`` (n, ...) over the rows at risk at each event time."""
        return self.staying(value) if self.coming is None else self.staying(value) - self.coming(value)

    def tied_sums(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """(k, ...) sum of ``value`` (n, ...) over the rows with an event at each event time."""
        first = np.flatnonzero(np.diff(self.group, prepend=-1))
        return np.add.reduceat(value[self.rows], first, axis=0)

    def weights(self, inverse: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) sum over the risk sets that a row stands in of ``inverse`` (d,), one over each event's denominator."""
        jump = np.bincount(self.group, weights=inverse, minlength=len(self.times))
        cumulative = np.concatenate([[0.0], np.cumsum(jump)])
        weight = cumulative[self.stop] - cumulative[self.start]
        own = np.bincount(self.group, weights=self.share * inverse, minlength=len(self.times))
        weight[self.rows] -= own[self.group]
        return np.asarray(weight, dtype=np.float64)


def risk_sets(survival: Survival, entry: NDArray[np.float64] | None, *, ties: Ties) -> RiskSets:
    """Find out once, for any number of evaluations, which rows are at risk at which event time.

    Args:
        survival: n rows, all observed.
        entry: (n,) days from which each row is at risk; None: everybody from the start.
        ties: ``efron`` or ``breslow``.
    """
    times, group = np.unique(survival.time[survival.event], return_inverse=True)
    stop = np.searchsorted(times, survival.time, side="right")
    start = np.zeros_like(stop) if entry is None else np.searchsorted(times, entry, side="right")
    order = np.argsort(group, kind="stable")
    group = group[order]
    count = np.bincount(group, minlength=len(times))
    position = np.arange(len(group)) - (np.cumsum(count) - count)[group]
    return RiskSets(
        times=times,
        start=start,
        stop=stop,
        staying=_beyond(stop, count=len(times)),
        coming=_beyond(start, count=len(times)) if start.any() else None,
        rows=np.flatnonzero(survival.event)[order],
        group=group,
        share=position / count[group] if ties == "efron" else np.zeros(len(group)),
    )


def denominators(sets: RiskSets, hazard: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) summed hazard of those at risk with each event, less Efron's share of the tied ones."""
    tied = sets.tied_sums(hazard)
    at_risk = sets.sums(hazard)
    if sets.coming is not None:  # a difference: rounding must not take those who die then out of their risk set
        at_risk = np.maximum(at_risk, tied)
    return np.asarray(at_risk[sets.group] - sets.share * tied[sets.group], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Partial log-likelihood at ``beta`` (p,), its gradient (p,) and information (p, p)."""

    beta: NDArray[np.float64]
    value: float
    gradient: NDArray[np.float64]
    information: NDArray[np.float64]


def evaluate(x: NDArray[np.float64], sets: RiskSets, beta: NDArray[np.float64]) -> Likelihood:
    """Cox's partial likelihood of (n, p) covariates at (p,) log hazard ratios.

    References:
        Breslow (1974); Efron (1977), The efficiency of Cox's likelihood function for censored data, section 4; risk
        sets of late entries as in Andersen, Gill (1982), Cox's regression model for counting processes.
    """
    eta = x @ beta
    shift = eta.max(initial=0.0)
    hazard = np.exp(eta - shift)
    denominator = denominators(sets, hazard)
    weighted = hazard[:, None] * x
    tied = sets.tied_sums(weighted)[sets.group]
    mean = (sets.sums(weighted)[sets.group] - sets.share[:, None] * tied) / denominator[:, None]
    weight = sets.weights(1 / denominator) * hazard
    return Likelihood(
        beta=beta,
        value=float(eta[sets.rows].sum() - (np.log(denominator) + shift).sum()),
        gradient=x[sets.rows].sum(axis=0) - mean.sum(axis=0),
        information=(x * weight[:, None]).T @ x - mean.T @ mean,
    )
