"""Discrimination: does a higher risk score go with an earlier event?

Undefined is a result: the value is NaN and ``reason`` says why; never 0.5, never an exception.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medfuse.metrics import _concordance
from medfuse.metrics.nonparametric import Convention, censoring_survival
from medfuse.targets import Survival

NO_PAIRS = "no comparable pair: nobody with an event was outlived by another patient"


@dataclass(frozen=True, kw_only=True)
class Concordance:
    """Concordance of risk scores with times.

    Attributes:
        value: C in [0, 1]; NaN when undefined.
        concordant, discordant, tied_risk: (weighted) numbers of comparable pairs.
        standard_error: infinitesimal jackknife; NaN when undefined.
        reason: why the value is undefined, or empty.
    """

    value: float
    concordant: float
    discordant: float
    tied_risk: float
    standard_error: float
    reason: str = ""

    @property
    def comparable(self) -> float:
        """(Weighted) number of comparable pairs."""
        return self.concordant + self.discordant + self.tied_risk


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Patients sorted once, ready for any number of case weights."""

    order: NDArray[np.int64]
    group: NDArray[np.int64]
    event: NDArray[np.bool_]
    rank: NDArray[np.int64]
    ranks: int


def ranked(survival: Survival, risk_score: NDArray[np.float64]) -> Ranked:
    """Sort patients by time (latest first, censored before events) and rank their scores."""
    event = survival.event
    order = np.lexsort((event, -survival.time)).astype(np.int64)
    sorted_time = survival.time[order]
    group = np.concatenate([[0], np.cumsum(np.diff(sorted_time) != 0)]).astype(np.int64)[: len(order)]
    distinct, rank = np.unique(risk_score, return_inverse=True)
    return Ranked(order=order, group=group, event=event, rank=rank.astype(np.int64), ranks=len(distinct))


def _concordance_of(r: Ranked, pair_weight: NDArray[np.float64], *, with_error: bool = True) -> Concordance:
    n = len(r.order)
    concordant, discordant, tied = (
        _concordance.count_pairs(r.order, r.group, r.event, r.rank, pair_weight, r.ranks) if n else (0.0,) * 3
    )
    pairs = concordant + discordant + tied
    if pairs <= 0:
        nan = float("nan")
        return Concordance(
            value=nan, concordant=0.0, discordant=0.0, tied_risk=0.0, standard_error=nan, reason=NO_PAIRS
        )
    value = (concordant + tied / 2) / pairs
    error = float("nan")
    if with_error:
        score, total = _concordance.involvement(r.order, r.group, r.event, r.rank, pair_weight, r.ranks)
        error = float(np.sqrt((((score - value * total) / pairs) ** 2).sum()))
    return Concordance(
        value=float(value),
        concordant=float(concordant),
        discordant=float(discordant),
        tied_risk=float(tied),
        standard_error=error,
    )


def _known(survival: Survival, risk_score: NDArray[np.float64]) -> tuple[Survival, NDArray[np.float64]]:
    risk = np.asarray(risk_score, dtype=np.float64)
    if survival.observed.all():
        return survival, risk
    index = np.flatnonzero(survival.observed)
    return survival.take(index), risk[index]


def harrell_c(survival: Survival, risk_score: NDArray[np.float64], *, with_error: bool = True) -> Concordance:
    """Harrell's C.

    A pair is comparable when the earlier time is an event, or the times tie and only one of the two is an event; tied
    risks count 1/2. Scores tie only when they are equal as floats.

    Args:
        survival: n patients; unobserved ones are left out.
        risk_score: (n,) higher = earlier event.
        with_error: also compute the standard error, at twice the time.

    References:
        Harrell, Lee, Mark (1996), section 5.5; standard error as in R's ``survival::concordance``.
    """
    survival, risk = _known(survival, risk_score)
    return _concordance_of(ranked(survival, risk), np.ones(len(survival)), with_error=with_error)


def uno_c(
    survival: Survival,
    risk_score: NDArray[np.float64],
    *,
    train: Survival,
    tau: float | None = None,
    convention: Convention = "r",
    with_error: bool = True,
) -> Concordance:
    """Uno's C: Harrell's with pairs weighted by the inverse squared probability of being uncensored.

    Args:
        survival: n patients.
        risk_score: (n,) higher = earlier event.
        train: patients on whom the censoring distribution is fitted.
        tau: events at or after ``tau`` days do not count; default: none are cut.
        convention: ``r`` takes G(t-), ``sksurv`` G(t).
        with_error: also compute the standard error, at twice the time.

    References:
        Uno, Cai, Pencina, D'Agostino, Wei (2011), On the C-statistics for evaluating overall adequacy of risk
        prediction procedures with censored survival data, equation 6.
    """
    survival, risk = _known(survival, risk_score)
    weight = uno_weight(survival, train=train, tau=tau, convention=convention)
    return _concordance_of(ranked(survival, risk), weight, with_error=with_error)


def uno_weight(
    survival: Survival, *, train: Survival, tau: float | None = None, convention: Convention = "r"
) -> NDArray[np.float64]:
    """(n,) weight of the pairs whose earlier member is the patient, as in :func:`uno_c`; 0 where none counts."""
    curve = censoring_survival(train.time[train.observed], train.event[train.observed])
    probability = curve.left(survival.time) if convention == "r" else curve(survival.time)
    counted = survival.event & survival.observed & (probability > 0)
    if tau is not None:
        counted &= survival.time < tau
    return np.where(counted, 1.0 / np.where(probability > 0, probability, 1.0) ** 2, 0.0)


def stratified_c(survival: Survival, risk_score: NDArray[np.float64], strata: NDArray[np.generic]) -> Concordance:
    """Harrell's C over pairs within the same stratum only: how folds are pooled, whose scores share no scale."""
    parts = [harrell_c(survival.take(np.flatnonzero(strata == s)), risk_score[strata == s]) for s in np.unique(strata)]
    parts = [part for part in parts if part.comparable > 0]
    pairs = sum(part.comparable for part in parts)
    if not parts:
        return harrell_c(survival.take(np.arange(0)), risk_score[:0])
    value = sum(part.value * part.comparable for part in parts) / pairs
    error = np.sqrt(sum((part.standard_error * part.comparable) ** 2 for part in parts)) / pairs
    return Concordance(
        value=float(value),
        concordant=sum(part.concordant for part in parts),
        discordant=sum(part.discordant for part in parts),
        tied_risk=sum(part.tied_risk for part in parts),
        standard_error=float(error),
    )


def cumulative_dynamic_auc(
    survival: Survival,
    risk_score: NDArray[np.float64],
    *,
    train: Survival,
    times: NDArray[np.float64],
    convention: Convention = "sksurv",
) -> NDArray[np.float64]:
    """AUC of telling who has had the event by ``t`` from who is event-free after ``t``.

    Args:
        survival: n patients.
        risk_score: (n,), or (n, t) with one score per time.
        train: patients on whom the censoring distribution is fitted.
        times: (t,) days.
        convention: weights of cases, ``sksurv`` 1 / G(t), ``r`` 1 / G(t-) as riskRegression.

    Returns:
        (t,) AUC, NaN where there is no case or no control.

    References:
        Uno, Cai, Tian, Wei (2007); Hung, Chiang (2010).
    """
    survival, risk = _known(survival, risk_score)
    curve = censoring_survival(train.time[train.observed], train.event[train.observed])
    probability = curve.left(survival.time) if convention == "r" else curve(survival.time)
    weight = np.where(survival.event & (probability > 0), 1.0 / np.where(probability > 0, probability, 1.0), 0.0)
    out = np.full(len(times), np.nan)
    for k, t in enumerate(times):
        score = risk if risk.ndim == 1 else risk[:, k]
        case, control = survival.event & (survival.time <= t), survival.time > t
        total = weight[case].sum() * control.sum()
        if total > 0:
            below = np.sort(score[control])
            low = np.searchsorted(below, score[case], side="left")
            high = np.searchsorted(below, score[case], side="right")
            out[k] = (weight[case] * (low + high) / 2).sum() / total
    return out


def auroc(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve of a binary outcome; NaN with one class only. Ties count 1/2."""
    positive = int(label.sum())
    negative = len(label) - positive
    if not positive or not negative:
        return float("nan")
    ranks = stats.rankdata(score)
    return float((ranks[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


def auprc(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Average precision of a binary outcome, tied scores taken together; NaN without an event."""
    if not label.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    hits = np.cumsum(label[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    recall = hits / hits[-1]
    return float((np.diff(np.concatenate([[0.0], recall])) * precision).sum())
