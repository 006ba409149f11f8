"""fit_cox against R's coxph, efron and breslow, on seven data sets; one of them (start, stop].

Asked: 1e-10 relative, 1e-13 for log-likelihoods, 1e-12 absolute for curves. Largest found on one x86-64 machine: 1e-13
for coefficients, 4e-12 for standard errors (gbsg), 1e-15 for log-likelihoods, 3e-14 for hazards, 4e-15 for curves.
"""

from itertools import pairwise

import numpy as np
import pytest
from from_r import array, dataset, fixture

from medfuse.cox import baseline_cumulative_hazard, fit_cox
from medfuse.errors import CohortError, ModelError
from medfuse.targets import Survival

NAMES = ["lung", "lung7", "veteran", "rossi", "gbsg", "pbc", "heart"]
RTOL = 1e-10


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", NAMES)
def test_fit_agrees_with_coxph(name, ties):
    x, survival, entry = dataset(name)
    expected = fixture("cox")["fits"][name][ties]
    fit = fit_cox(x, survival, ties=ties, entry=entry)
    assert fit.converged
    np.testing.assert_allclose(fit.coefficients, expected["coefficients"], rtol=RTOL)
    np.testing.assert_allclose(fit.standard_errors, expected["standard_errors"], rtol=RTOL)
    found = [fit.log_likelihood_null, fit.log_likelihood]
    np.testing.assert_allclose(found, expected["log_likelihood"], rtol=1e-13)
    assert 2 * (found[1] - found[0]) == pytest.approx(expected["likelihood_ratio"], rel=RTOL)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", NAMES)
def test_baseline_and_curves_agree_with_basehaz_and_survfit(name, ties):
    x, survival, entry = dataset(name)
    expected = fixture("cox")["fits"][name][ties]
    fit = fit_cox(x, survival, ties=ties, entry=entry)
    np.testing.assert_array_equal(fit.baseline_times, expected["baseline"]["times"])
    at_zero = fit.baseline_hazard * np.exp(-fit.mean @ fit.coefficients)
    np.testing.assert_allclose(at_zero, expected["baseline"]["hazard"], rtol=RTOL)
    times, hazard = baseline_cumulative_hazard(survival, x @ fit.coefficients, ties=ties, entry=entry)
    np.testing.assert_array_equal(times, fit.baseline_times)
    np.testing.assert_allclose(hazard, expected["baseline"]["hazard"], rtol=RTOL)
    curves = fit.survival(array(expected["who"]), array(expected["times"]))
    np.testing.assert_allclose(curves, expected["curves"], atol=1e-12)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", ["veteran", "gbsg", "heart"])
def test_ridge_agrees_with_coxph(name, ties):
    x, survival, entry = dataset(name)
    expected = fixture("cox")["ridge"][name][ties]
    fit = fit_cox(x, survival, ties=ties, entry=entry, penalty=expected["theta"])
    np.testing.assert_allclose(fit.coefficients, expected["coefficients"], rtol=RTOL)
    np.testing.assert_allclose(fit.standard_errors, expected["standard_errors"], rtol=RTOL)
    assert fit.log_likelihood == pytest.approx(expected["log_likelihood"][1], rel=1e-13)


def test_values_of_the_first_fixture_remain():
    """R 4.2.2, survival 3.5-3, at R's default convergence (1e-9): typed in before there were scripts."""
    x, survival, _ = dataset("lung")
    fit = fit_cox(x, survival)
    np.testing.assert_allclose(fit.coefficients, (0.0170453318454113, -0.513218517108384), rtol=1e-8)
    curves = fit.survival(np.array([[50, 1.0], [70, 2.0]]), np.array([180.0, 365.0, 730.0]))
    expected = [
        [0.729762620399810, 0.417781082586838, 0.119648956440928],
        [0.767074757102640, 0.479674113531353, 0.167440538103619],
    ]
    np.testing.assert_allclose(curves, expected, atol=1e-8)


def split_rows(x, survival, rng):
    """Each patient's time cut in up to three stretches: the same risk sets, so the same fit."""
    rows, start, stop, event = [], [], [], []
    for i, time in enumerate(survival.time):
        cuts = np.unique(np.concatenate([[0.0], rng.uniform(0, time, rng.integers(3)).round(), [time]]))
        for a, b in pairwise(cuts):
            rows, start, stop, event = [*rows, i], [*start, a], [*stop, b], [*event, survival.event[i] and b == time]
    return x[rows], Survival(event=np.array(event), time=np.array(stop)), np.array(start)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", ["veteran", "rossi"])
def test_cutting_time_into_stretches_changes_nothing(name, ties):
    x, survival, _ = dataset(name)
    whole = fit_cox(x, survival, ties=ties)
    parts_x, parts, entry = split_rows(x, survival, np.random.default_rng(1))
    assert len(parts) > 1.5 * len(survival)
    cut = fit_cox(parts_x, parts, ties=ties, entry=entry)
    np.testing.assert_allclose(cut.coefficients, whole.coefficients, rtol=1e-9)
    np.testing.assert_allclose(cut.standard_errors, whole.standard_errors, rtol=1e-9)
    assert cut.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)


def log_likelihood(x, survival, entry, beta, ties):
    """The definition, one risk set after another."""
    total, eta = 0.0, x @ beta
    for t in np.unique(survival.time[survival.event]):
        at_risk = (entry < t) & (t <= survival.time)
        dying = survival.event & (survival.time == t)
        for rank in range(dying.sum()):
            share = rank / dying.sum() if ties == "efron" else 0.0
            total -= np.log(np.exp(eta[at_risk]).sum() - share * np.exp(eta[dying]).sum())
        total += eta[dying].sum()
    return total


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_late_entry_maximises_the_definition_on_small_tied_data(ties):
    rng = np.random.default_rng(2)
    fitted = 0
    for _ in range(60):
        n = int(rng.integers(12, 25))
        entry = rng.integers(0, 6, n).astype(float)
        survival = Survival(event=rng.random(n) < 0.7, time=entry + rng.integers(1, 8, n))
        x = rng.normal(size=(n, 2))
        try:
            fit = fit_cox(x, survival, ties=ties, entry=entry)
        except (ModelError, CohortError):
            continue
        if not fit.converged:
            continue
        fitted += 1
        best = log_likelihood(x, survival, entry, fit.coefficients, ties)
        assert fit.log_likelihood == pytest.approx(best, abs=1e-10)
        for step in (1e-3 * np.eye(2)).tolist() + (-1e-3 * np.eye(2)).tolist():
            assert log_likelihood(x, survival, entry, fit.coefficients + step, ties) < best
    assert fitted >= 40


def test_entry_at_the_event_time_is_not_at_risk_then():
    """Three rows; the one who enters at 5 is not at risk at 5: the likelihood is that of two rows, then of one."""
    survival = Survival(event=np.array([True, False, True]), time=np.array([5.0, 6.0, 9.0]))
    x = np.array([[1.0], [0.0], [3.0]])
    fit = fit_cox(x, survival, entry=np.array([0.0, 0.0, 5.0]), penalty=1.0)
    assert fit.log_likelihood_null == pytest.approx(-np.log(2.0))
    later = fit_cox(x, survival, entry=np.array([0.0, 0.0, 4.9]), penalty=1.0)
    assert later.log_likelihood_null == pytest.approx(-np.log(3.0))


@pytest.mark.parametrize("bad", [5.0, 7.0, np.nan, -np.inf])
def test_rows_without_time_at_risk_are_refused(bad):
    survival = Survival(event=np.array([True, True, False]), time=np.array([3.0, 5.0, 9.0]))
    entry = np.array([0.0, bad, 1.0])
    with pytest.raises(CohortError, match=r"before the time of their row, found 1 others \(first at row 1\)"):
        fit_cox(np.arange(3.0)[:, None], survival, entry=entry)
    with pytest.raises(CohortError, match=r"expected entry \(3,\)"):
        fit_cox(np.arange(3.0)[:, None], survival, entry=entry[:2])


def test_unknown_outcomes_are_not_read():
    x, survival, entry = dataset("heart")
    known = np.arange(len(survival)) % 5 > 0
    time = np.where(known, survival.time, np.nan)
    partly = Survival(event=survival.event, time=time, observed=known)
    kept = np.flatnonzero(known)
    fit = fit_cox(np.where(known[:, None], x, np.nan), partly, entry=np.where(known, entry, np.nan))
    expected = fit_cox(x[kept], survival.take(kept), entry=entry[kept])
    np.testing.assert_array_equal(fit.coefficients, expected.coefficients)
    found = baseline_cumulative_hazard(partly, x[:, 0], entry=entry)
    np.testing.assert_array_equal(found, baseline_cumulative_hazard(survival.take(kept), x[kept, 0], entry=entry[kept]))


A = np.random.default_rng(3).normal(size=40)
TIMES = Survival(event=np.arange(40) % 2 == 0, time=np.arange(40.0) + 1)
EARLY = (np.arange(41) == 40).astype(float)


@pytest.mark.parametrize(
    ("x", "survival", "entry", "message"),
    [
        (np.c_[A, np.full(40, 0.1)], TIMES, None, "covariate 1 is constant"),
        (np.c_[A, 3 - 2 * A], TIMES, None, "2 unpenalised covariates are collinear"),
        # Differs only for one who is censored before the first event.
        (
            np.c_[np.append(A, 0), EARLY],
            Survival(event=np.append(TIMES.event, False), time=np.append(TIMES.time, 0.5)),
            None,
            "covariate 1 is constant among those at risk",
        ),
        # The only event is the last time: nobody to compare with. (Was an untyped LinAlgError.)
        (A[:, None], Survival(event=np.arange(40) == 39, time=TIMES.time), None, "covariate 0 is constant"),
        # Constant within each of two risk sets, different between them.
        (
            np.array([[1.0], [1.0], [2.0], [2.0]]),
            Survival(event=np.array([True, False] * 2), time=np.array([3.0, 4.0, 8.0, 9.0])),
            np.array([0.0, 0.0, 5.0, 5.0]),
            "collinear",
        ),
        (A, TIMES, None, r"expected covariates \(40, p\), one row per outcome, found \(40,\)"),
        (A[:39, None], TIMES, None, r"found \(39, 1\)"),
        (np.where(A > 1, np.inf, A)[:, None], TIMES, None, "expected finite covariates"),
    ],
)
def test_covariates_that_the_likelihood_does_not_see_are_refused(x, survival, entry, message):
    with pytest.raises(ModelError, match=message):
        fit_cox(x, survival, entry=entry)


def test_unknown_ties_are_refused():
    with pytest.raises(ModelError, match='expected ties "efron" or "breslow", found "exact"'):
        fit_cox(A[:, None], TIMES, ties="exact")


@pytest.mark.parametrize("late", [False, True])
def test_separation_is_told_and_a_penalty_mends_it(late):
    x = TIMES.event.astype(float)[:, None]
    entry = TIMES.time / 2 if late else None
    assert not fit_cox(x, TIMES, entry=entry).converged
    fit = fit_cox(x, TIMES, entry=entry, penalty=1.0)
    assert fit.converged
    assert 0 < fit.coefficients[0] < 10


@pytest.mark.parametrize("late", [False, True])
def test_separation_is_never_called_converged(late):
    """Of 300 such data sets, Newton's method alone once called 195 converged: its steps drown in rounding."""
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(150):
        n = int(rng.integers(8, 60))
        survival = Survival(event=rng.random(n) < 0.5, time=np.ceil(rng.exponential(10, n)))
        entry = survival.time - rng.integers(1, 8, n) - 0.5 if late else None
        if survival.n_events < 2:
            continue
        try:
            fit = fit_cox(np.c_[survival.event.astype(float), rng.normal(size=n)], survival, entry=entry)
        except ModelError:
            continue
        told += not fit.converged
        assert not fit.converged
    assert told > 130


def test_no_covariates_and_no_events():
    fit = fit_cox(np.zeros((40, 0)), TIMES)
    assert fit.converged
    assert fit.log_likelihood == fit.log_likelihood_null
    nobody = Survival(event=np.zeros(40, dtype=bool), time=TIMES.time)
    times, hazard = baseline_cumulative_hazard(nobody, A)
    assert len(times) == len(hazard) == 0
    with pytest.raises(CohortError, match="at least one event"):
        fit_cox(A[:, None], nobody)
