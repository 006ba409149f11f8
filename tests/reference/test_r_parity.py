"""Numbers of R 4.2.2, survival 3.5-3 (lung, 228 patients), printed with 15 digits."""

import numpy as np
import pytest

from medfuse.cox import baseline_cumulative_hazard, fit_cox
from medfuse.metrics.discrimination import harrell_c, uno_c
from medfuse.metrics.nonparametric import kaplan_meier, log_rank
from medfuse.targets import Survival

COX = {
    "efron": ((0.0170453318454113, -0.513218517108384), -749.909801390395, -742.84824578377),
    "breslow": ((0.0170128891984432, -0.512564791518719), -750.122018895319, -743.079654197999),
}


@pytest.fixture(scope="module")
def lung():
    datasets = pytest.importorskip("lifelines.datasets")
    frame = datasets.load_lung()
    survival = Survival(event=(frame.status == frame.status.max()).to_numpy(), time=frame.time.to_numpy(float))
    return frame[["age", "sex"]].to_numpy(float), survival


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_agrees_with_coxph(lung, ties):
    x, survival = lung
    fit = fit_cox(x, survival, ties=ties)
    beta, null, value = COX[ties]
    np.testing.assert_allclose(fit.coefficients, beta, rtol=1e-8)
    np.testing.assert_allclose([fit.log_likelihood_null, fit.log_likelihood], [null, value], rtol=1e-11)


def test_cox_standard_errors(lung):
    np.testing.assert_allclose(fit_cox(*lung).standard_errors, [0.00922327347696912, 0.167457962355768], rtol=1e-8)


def test_harrell_c_and_its_variance(lung):
    x, survival = lung
    c = harrell_c(survival, x @ COX["efron"][0])
    assert c.value == pytest.approx(0.602853002897971, abs=1e-12)
    assert c.standard_error**2 == pytest.approx(6.5018256800e-4, rel=1e-9)
    assert (c.concordant, c.discordant, c.tied_risk) == (11910, 7793, 311)


def test_uno_c(lung):
    x, survival = lung
    assert uno_c(survival, x @ COX["efron"][0], train=survival).value == pytest.approx(0.59604549480696, abs=1e-10)


def test_baseline_hazard_and_curves(lung):
    x, survival = lung
    times, hazard = baseline_cumulative_hazard(survival, x @ np.array(COX["efron"][0]))
    assert hazard[np.searchsorted(times, 306)] == pytest.approx(0.47117029107576, abs=1e-9)
    assert hazard[-1] == pytest.approx(2.01305845681596, abs=1e-8)
    curves = fit_cox(x, survival).survival(np.array([[50, 1.0], [70, 2.0]]), np.array([180.0, 365.0, 730.0]))
    expected = [
        [0.729762620399810, 0.417781082586838, 0.119648956440928],
        [0.767074757102640, 0.479674113531353, 0.167440538103619],
    ]
    np.testing.assert_allclose(curves, expected, atol=1e-8)


def test_kaplan_meier_with_limits(lung):
    _, survival = lung
    curve = kaplan_meier(survival.time, survival.event)
    at = np.array([180.0, 365.0, 730.0])
    np.testing.assert_allclose(curve(at), [0.721670653409762, 0.409241624460064, 0.115693098344539], atol=1e-12)
    rows = np.searchsorted(curve.times, at, side="right") - 1
    errors = [0.0298124194686, 0.0358236381720, 0.0282981973177]
    np.testing.assert_allclose(curve.standard_error[rows], errors, atol=1e-12)
    low, high = curve.limits()
    assert low[rows[1]] == pytest.approx(0.338714269088323, abs=1e-10)
    assert high[rows[1]] == pytest.approx(0.478380767646914, abs=1e-10)
    assert curve.median() == 310


@pytest.mark.parametrize(("rho", "statistic"), [(0, 10.3267419548856), (1, 12.7141514011575)])
def test_log_rank(lung, rho, statistic):
    x, survival = lung
    assert log_rank(survival, x[:, 1].astype(int), rho=rho).statistic == pytest.approx(statistic, rel=1e-10)
