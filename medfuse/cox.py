"""Cox regression by Newton's method, with standard errors: the statistician's baseline."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ModelError
from medfuse.targets import Survival, fittable

Ties = Literal["efron", "breslow"]
_STEP = 1e-10
_FARTHEST = 200.0  # log hazards beyond this overflow sums, and mean nothing


@dataclass(frozen=True, kw_only=True)
class CoxFit:
    """A fitted Cox model.

    Attributes:
        coefficients: (p,) log hazard ratios per unit.
        standard_errors: (p,) from the (penalised) information.
        log_likelihood_null, log_likelihood: partial log-likelihood at 0 and at the fit, without the penalty.
        mean: (p,) column means; ``log_hazard`` is centred on them.
        baseline_times, baseline_hazard: (k,) event times and cumulative baseline hazard at the means.
        ties: how tied events were handled.
        iterations: Newton steps taken.
        converged: False when the steps did not shrink: the likelihood is monotone (separation), and no coefficient of
            the fit should be read.
    """

    coefficients: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    log_likelihood_null: float
    log_likelihood: float
    mean: NDArray[np.float64]
    baseline_times: NDArray[np.float64]
    baseline_hazard: NDArray[np.float64]
    ties: Ties
    iterations: int
    converged: bool

    def log_hazard(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) centred log hazards of (n, p) covariates."""
        return np.asarray((x - self.mean) @ self.coefficients, dtype=np.float64)

    def survival(self, x: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, t) survival of (n, p) covariates at (t,) days."""
        return survival_at(self.log_hazard(x), self.baseline_times, self.baseline_hazard, times=times)


def survival_at(
    log_hazard: NDArray[np.float64],
    baseline_times: NDArray[np.float64],
    baseline_hazard: NDArray[np.float64],
    *,
    times: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(n, t) survival from log hazards and a cumulative baseline hazard (a step function)."""
    at = np.concatenate([[0.0], baseline_hazard])[np.searchsorted(baseline_times, times, side="right")]
    return np.asarray(np.exp(-np.exp(np.clip(log_hazard, -50, 50))[:, None] * at[None, :]), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Sorted:
    """Rows by decreasing time, with what every likelihood evaluation needs of the ties."""

    x: NDArray[np.float64]
    event: NDArray[np.bool_]
    last: NDArray[np.intp]  # per distinct event time: last row at risk
    tied: list[NDArray[np.intp]]  # per distinct event time: rows of the events
    time: NDArray[np.float64]  # per distinct event time


def _sort(x: NDArray[np.float64], survival: Survival) -> _Sorted:
    order = np.argsort(-survival.time, kind="stable")
    time, event = survival.time[order], survival.event[order]
    distinct = np.unique(time[event])[::-1]
    last = np.searchsorted(-time, -distinct, side="right") - 1
    first = np.searchsorted(-time, -distinct, side="left")
    tied = [np.arange(a, b + 1)[event[a : b + 1]] for a, b in zip(first, last, strict=True)]
    return _Sorted(x=x[order], event=event, last=last, tied=tied, time=distinct)


def _terms(s: _Sorted, *, ties: Ties) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """One row per event: its time group, and the share of the tied events that has left the risk set."""
    count = np.array([len(rows) for rows in s.tied])
    group = np.repeat(np.arange(len(count)), count)
    position = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
    share = position / count[group] if ties == "efron" else np.zeros(len(group))
    return group, np.concatenate(s.tied), share


def _evaluate(
    s: _Sorted, beta: NDArray[np.float64], *, ties: Ties
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Partial log-likelihood, gradient and information at ``beta``."""
    eta = s.x @ beta
    shift = eta.max(initial=0.0)
    r = np.exp(eta - shift)
    rx = r[:, None] * s.x
    group, rows, share = _terms(s, ties=ties)
    zero_risk, one_risk = np.cumsum(r)[s.last], np.cumsum(rx, axis=0)[s.last]
    zero_tied = np.bincount(group, weights=r[rows], minlength=len(s.last))
    one_tied = np.stack(
        [np.bincount(group, weights=rx[rows, j], minlength=len(s.last)) for j in range(s.x.shape[1])], axis=1
    )
    denominator = zero_risk[group] - share * zero_tied[group]
    mean = (one_risk[group] - share[:, None] * one_tied[group]) / denominator[:, None]
    value = float(eta[rows].sum() - (np.log(denominator) + shift).sum())
    gradient = s.x[rows].sum(axis=0) - mean.sum(axis=0)
    # Second moments: each row's weight is the sum of 1/denominator over the risk sets it stands in.
    inverse = np.bincount(group, weights=1 / denominator, minlength=len(s.last))
    start = np.zeros(len(r))
    np.add.at(start, s.last, inverse)
    weight = start[::-1].cumsum()[::-1]
    own = np.bincount(group, weights=share / denominator, minlength=len(s.last))
    weight[rows] -= own[group]
    information = (s.x * (weight * r)[:, None]).T @ s.x - mean.T @ mean
    return value, gradient, information


def baseline_cumulative_hazard(
    survival: Survival, log_hazard: NDArray[np.float64], *, ties: Ties = "efron"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative baseline hazard of given log hazards.

    Args:
        survival: n patients.
        log_hazard: (n,) log hazards, as a model gives them.
        ties: Efron's form goes with an Efron fit, Breslow's with a Breslow fit.

    Returns:
        (k,) event times, increasing, and (k,) cumulative hazards.

    References:
        Breslow (1974); Efron (1977), equation 4.3 for ties.
    """
    s = _sort(np.asarray(log_hazard, dtype=np.float64)[:, None], survival)
    r = np.exp(np.clip(s.x[:, 0], -_FARTHEST, _FARTHEST))
    group, rows, share = _terms(s, ties=ties)
    tied = np.bincount(group, weights=r[rows], minlength=len(s.last))
    denominator = np.cumsum(r)[s.last][group] - share * tied[group]
    jump = np.bincount(group, weights=1 / denominator, minlength=len(s.last))
    return s.time[::-1].copy(), np.cumsum(jump[::-1])


def fit_cox(
    x: NDArray[np.float64],
    survival: Survival,
    *,
    ties: Ties = "efron",
    penalty: float | NDArray[np.float64] = 0.0,
    iterations: int = 50,
) -> CoxFit:
    """Maximise the partial log-likelihood minus ``penalty / 2 * sum(beta ** 2)``.

    Args:
        x: (n, p) covariates, finite.
        survival: outcomes; unobserved patients are left out.
        ties: ``efron`` (as R's default) or ``breslow``.
        penalty: ridge penalty, one number or (p,), on the scale of the summed log-likelihood.
        iterations: most Newton steps.

    Raises:
        CohortError: no event.
        ModelError: covariates that are not finite, or (without a penalty) constant or collinear.

    References:
        Cox (1972); Efron (1977), The efficiency of Cox's likelihood function for censored data.
    """
    fittable(survival)
    known = np.flatnonzero(survival.observed)
    x = np.asarray(x, dtype=np.float64)[known]
    if not np.isfinite(x).all():
        msg = "fit_cox: expected finite covariates, found NaN or infinity; impute or flag missing cells first"
        raise ModelError(msg)
    mean = x.mean(axis=0)
    s = _sort(x - mean, survival.take(known))
    p = x.shape[1]
    ridge = np.broadcast_to(np.asarray(penalty, dtype=np.float64), (p,))
    _refuse_collinear(s.x, ridge)
    beta = np.zeros(p)
    value, gradient, information = _evaluate(s, beta, ties=ties)
    null = value
    converged, step_count = p == 0, 0
    objective = value
    for step_count in range(1, iterations + 1):  # noqa: B007  # reported
        step = np.linalg.solve(information + np.diag(ridge), gradient - ridge * beta)
        scale = 1.0
        for _ in range(30):
            candidate = beta + scale * step
            if np.abs(s.x @ candidate).max(initial=0.0) > _FARTHEST:
                scale /= 2
                continue
            new_value, new_gradient, new_information = _evaluate(s, candidate, ties=ties)
            new_objective = new_value - 0.5 * float(ridge @ candidate**2)
            if np.isfinite(new_objective) and new_objective >= objective - 1e-9 * abs(objective):
                break
            scale /= 2
        beta, value, gradient, information = candidate, new_value, new_gradient, new_information
        objective = new_objective
        if np.abs(scale * step).max(initial=0.0) < _STEP * max(1.0, np.abs(beta).max(initial=0.0)):
            converged = True
            break
        if np.abs(s.x @ beta).max(initial=0.0) > _FARTHEST / 4:
            break  # nobody's hazard differs that much: the likelihood is monotone
    covariance = np.linalg.pinv(information + np.diag(ridge))
    errors = np.sqrt(
        np.clip(np.diag(covariance @ information @ covariance) if ridge.any() else np.diag(covariance), 0, None)
    )
    times, hazard = baseline_cumulative_hazard(survival.take(known), (x - mean) @ beta, ties=ties)
    return CoxFit(
        coefficients=beta,
        standard_errors=errors,
        log_likelihood_null=null,
        log_likelihood=value,
        mean=mean,
        baseline_times=times,
        baseline_hazard=hazard,
        ties=ties,
        iterations=step_count,
        converged=converged,
    )


def _refuse_collinear(x: NDArray[np.float64], ridge: NDArray[np.float64]) -> None:
    free = np.flatnonzero(ridge == 0)
    if not free.size:
        return
    spread = x[:, free].std(axis=0)
    constant = free[spread == 0]
    if constant.size:
        msg = f"fit_cox: covariate {constant[0]} is constant; drop it, or give it a penalty"
        raise ModelError(msg)
    scaled = x[:, free] / spread
    if np.linalg.matrix_rank(scaled) < len(free):
        msg = f"fit_cox: the {len(free)} unpenalised covariates are collinear; drop some, or give a penalty"
        raise ModelError(msg)
