"""Cox regression by Newton's method, with standard errors: the statistician's baseline."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.cox_likelihood import Likelihood, RiskSets, Ties, denominators, evaluate, risk_sets
from medfuse.errors import CohortError, ModelError
from medfuse.targets import Survival, fittable

_STEP = 1e-10
_FARTHEST = 200.0  # log hazards beyond this overflow sums, and mean nothing
_LEAST_INFORMATION = 1e-12  # per event, of the least informed direction, in squared standard deviations of covariates


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
        converged: False when the steps did not shrink, or no information was left where they ended: the likelihood is
            monotone (separation), and no coefficient of the fit should be read.
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


def baseline_cumulative_hazard(
    survival: Survival,
    log_hazard: NDArray[np.float64],
    *,
    ties: Ties = "efron",
    entry: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative baseline hazard of given log hazards.

    Args:
        survival: n patients; unobserved ones are left out.
        log_hazard: (n,) log hazards, as a model gives them.
        ties: Efron's form goes with an Efron fit, Breslow's with a Breslow fit.
        entry: (n,) days from which each row is at risk, as in ``fit_cox``.

    Returns:
        (k,) event times, increasing, and (k,) cumulative hazards; k = 0 without an event.

    Raises:
        CohortError: an entry that is not finite and before the time.

    References:
        Breslow (1974); Efron (1977), equation 4.3 for ties.
    """
    known = np.flatnonzero(survival.observed)
    sets = risk_sets(survival.take(known), _at_risk_from(survival, entry), ties=ties)
    hazard = np.exp(np.clip(np.asarray(log_hazard, dtype=np.float64)[known], -_FARTHEST, _FARTHEST))
    jump = np.bincount(sets.group, weights=1 / denominators(sets, hazard), minlength=len(sets.times))
    return sets.times, np.cumsum(jump)


def fit_cox(
    x: NDArray[np.float64],
    survival: Survival,
    *,
    ties: Ties = "efron",
    penalty: float | NDArray[np.float64] = 0.0,
    entry: NDArray[np.float64] | None = None,
    iterations: int = 50,
) -> CoxFit:
    """Maximise the partial log-likelihood minus ``penalty / 2 * sum(beta ** 2)``.

    Args:
        x: (n, p) covariates, finite.
        survival: outcomes; unobserved patients are left out.
        ties: ``efron`` (as R's default) or ``breslow``.
        penalty: ridge penalty, one number or (p,), on the scale of the summed log-likelihood.
        entry: (n,) days from which each row is at risk (late entry, or covariates that change: one row per patient and
            stretch of time). A row is at risk at t when entry < t <= time. Default: everybody from the start.
        iterations: most Newton steps.

    Raises:
        CohortError: no event, or an entry that is not finite and before the time.
        ModelError: unknown ties, covariates of another shape or not finite, or (without a penalty) constant or
            collinear ones.

    References:
        Cox (1972); Efron (1977), The efficiency of Cox's likelihood function for censored data; Andersen, Gill (1982),
        Cox's regression model for counting processes.
    """
    fittable(survival)
    if ties not in ("efron", "breslow"):
        msg = f'fit_cox: expected ties "efron" or "breslow", found "{ties}"'
        raise ModelError(msg)
    x, known = _finite(x, survival)
    survival, entry = survival.take(known), _at_risk_from(survival, entry)
    sets = risk_sets(survival, entry, ties=ties)
    mean = x.mean(axis=0)
    ridge = np.broadcast_to(np.asarray(penalty, dtype=np.float64), (x.shape[1],))
    start = evaluate(x - mean, sets, np.zeros(x.shape[1]))
    _refuse_collinear(x - mean, ridge, sets=sets, information=start.information)
    end, steps, converged = _newton(x - mean, sets, start=start, ridge=ridge, iterations=iterations)
    times, hazard = baseline_cumulative_hazard(survival, (x - mean) @ end.beta, ties=ties, entry=entry)
    return CoxFit(
        coefficients=end.beta,
        standard_errors=_standard_errors(end.information, ridge),
        log_likelihood_null=start.value,
        log_likelihood=end.value,
        mean=mean,
        baseline_times=times,
        baseline_hazard=hazard,
        ties=ties,
        iterations=steps,
        converged=converged and not _blind(x - mean, ridge, sets=sets, information=end.information),
    )


def _finite(x: NDArray[np.float64], survival: Survival) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Covariates of the observed rows, and which rows those are."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(survival):
        msg = f"fit_cox: expected covariates ({len(survival)}, p), one row per outcome, found {x.shape}"
        raise ModelError(msg)
    known = np.flatnonzero(survival.observed)
    if not np.isfinite(x[known]).all():
        msg = "fit_cox: expected finite covariates, found NaN or infinity; impute or flag missing cells first"
        raise ModelError(msg)
    return x[known], known


def _at_risk_from(survival: Survival, entry: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Entry times of the observed rows."""
    if entry is None:
        return None
    entry = np.asarray(entry, dtype=np.float64)
    if entry.shape != survival.time.shape:
        msg = f"cox: expected entry {survival.time.shape}, one per row, found {entry.shape}"
        raise CohortError(msg)
    bad = np.flatnonzero(survival.observed & ~(np.isfinite(entry) & (entry < survival.time)))
    if bad.size:
        msg = (
            f"cox: expected finite entry times before the time of their row, found {bad.size} others (first at row "
            f"{bad[0]}); drop rows without time at risk, or correct the source"
        )
        raise CohortError(msg)
    return entry[survival.observed]


def _newton(
    x: NDArray[np.float64], sets: RiskSets, *, start: Likelihood, ridge: NDArray[np.float64], iterations: int
) -> tuple[Likelihood, int, bool]:
    """The maximum, the steps taken, and whether they shrank: a monotone likelihood stops early, not converged."""
    here, count = start, 0
    for count in range(1, iterations + 1):
        try:
            step = np.linalg.solve(here.information + np.diag(ridge), here.gradient - ridge * here.beta)
        except np.linalg.LinAlgError:
            break  # monotone to the last bit
        there = _search(x, sets, here=here, step=np.asarray(step, dtype=np.float64), ridge=ridge)
        if there is None:
            break
        last, here = here, there
        moved = np.abs(here.beta - last.beta).max(initial=0.0)
        if moved < _STEP * max(1.0, np.abs(here.beta).max(initial=0.0)):
            return here, count, True
        if np.abs(x @ here.beta).max(initial=0.0) > _FARTHEST / 4:
            break  # nobody's hazard differs that much: the likelihood is monotone
    return here, count, False


def _search(
    x: NDArray[np.float64], sets: RiskSets, *, here: Likelihood, step: NDArray[np.float64], ridge: NDArray[np.float64]
) -> Likelihood | None:
    """Halve the step until the penalised likelihood does not fall; None when no part of it will do."""
    objective = here.value - 0.5 * float(ridge @ here.beta**2)
    for halvings in range(30):
        beta = here.beta + step / 2**halvings
        if np.abs(x @ beta).max(initial=0.0) > _FARTHEST:
            continue
        there = evaluate(x, sets, beta)
        found = there.value - 0.5 * float(ridge @ beta**2)
        if np.isfinite(found) and found >= objective - 1e-9 * abs(objective):
            return there
    return None


def _standard_errors(information: NDArray[np.float64], ridge: NDArray[np.float64]) -> NDArray[np.float64]:
    covariance = np.linalg.pinv(information + np.diag(ridge))
    if ridge.any():
        covariance = covariance @ information @ covariance
    return np.asarray(np.sqrt(np.clip(np.diag(covariance), 0, None)), dtype=np.float64)


def _refuse_collinear(
    x: NDArray[np.float64], ridge: NDArray[np.float64], *, sets: RiskSets, information: NDArray[np.float64]
) -> None:
    """Refuse unpenalised covariates that the likelihood does not see: only rows at risk at some event count."""
    free = np.flatnonzero(ridge == 0)
    seen = x[sets.stop > sets.start][:, free]
    constant = free[np.ptp(seen, axis=0) == 0]
    if constant.size:
        msg = (
            f"fit_cox: covariate {constant[0]} is constant among those at risk at an event; drop it, or give it a "
            "penalty"
        )
        raise ModelError(msg)
    rank = np.linalg.matrix_rank((seen - seen.mean(axis=0)) / seen.std(axis=0)) if free.size else 0
    if rank < len(free) or _blind(x, ridge, sets=sets, information=information):
        msg = f"fit_cox: the {len(free)} unpenalised covariates are collinear; drop some, or give a penalty"
        raise ModelError(msg)


def _blind(
    x: NDArray[np.float64], ridge: NDArray[np.float64], *, sets: RiskSets, information: NDArray[np.float64]
) -> bool:
    """Whether some unpenalised direction has no information: collinear at zero, separated at the maximum."""
    free = np.flatnonzero(ridge == 0)
    if not free.size:
        return False
    spread = x[sets.stop > sets.start][:, free].std(axis=0)
    average = information[np.ix_(free, free)] / np.outer(spread, spread) / len(sets.rows)
    return bool(not np.linalg.eigvalsh(average)[0] > _LEAST_INFORMATION)
