"""Calibration metrics on data from the true model: they accept it, and refuse a planted error."""

import numpy as np
import pytest
from scipy import stats

from medfuse.metrics.calibration import calibration_at, d_calibration
from medfuse.metrics.goodness_of_fit import a_calibration, smooth_calibration
from medfuse.targets import Survival

COHORTS = 200
HORIZON = 150.0


def hazard(x, time, slope=1.0):
    """Cumulative hazard of a Weibull model with log hazard ratio 1."""
    return np.exp(slope * x) * (time / 200) ** 1.5


def cohort(seed, n=1000, censoring=300.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    time, censored = 200 * (rng.exponential(size=n) * np.exp(-x)) ** (1 / 1.5), rng.exponential(censoring, n)
    return Survival(event=time <= censored, time=np.minimum(time, censored)), x


@pytest.fixture(scope="module")
def two_hundred():
    return [cohort(seed) for seed in range(COHORTS)]


def p_values(cohorts, test, slope=1.0):
    return np.array([test(survival, np.exp(-hazard(x, survival.time, slope))).p_value for survival, x in cohorts])


def test_a_calibration_of_the_truth_is_uniform_and_a_wrong_slope_is_refused(two_hundred):
    p = p_values(two_hundred, a_calibration)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert (p_values(two_hundred, a_calibration, slope=1.5) < 0.05).mean() >= 0.95  # all 200 here


def test_a_calibration_holds_where_most_are_censored():
    p = p_values([cohort(seed, n=400, censoring=60.0) for seed in range(COHORTS)], a_calibration)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_d_calibration_of_the_truth_is_refused_in_at_most_six_of_a_hundred(two_hundred):
    assert (p_values(two_hundred, d_calibration) < 0.05).mean() <= 0.06
    assert (p_values(two_hundred, d_calibration, slope=1.5) < 0.05).mean() >= 0.7  # weaker than A-calibration


def test_calibration_index_and_slope_of_the_truth(two_hundred):
    index, slope, wrong, flat = [], [], [], []
    for survival, x in two_hundred[:60]:
        index.append(smooth_calibration(survival, 1 - np.exp(-hazard(x, HORIZON)), HORIZON).index)
        slope.append(calibration_at(survival, 1 - np.exp(-hazard(x, HORIZON)), HORIZON).slope)
        steep = 1 - np.exp(-hazard(x, HORIZON, 1.5))
        wrong.append(smooth_calibration(survival, steep, HORIZON).index)
        flat.append(calibration_at(survival, steep, HORIZON).slope)
    assert np.mean(index) <= 0.02
    assert np.mean(wrong) > 2 * np.mean(index)
    assert np.mean(slope) == pytest.approx(1, abs=0.02)
    assert np.mean(flat) == pytest.approx(1 / 1.5, abs=0.02)


def test_a_calibration_counts_by_hand():
    """Cumulative hazards 1, 2, 3, 4 of which 2 and 4 are events: cells of five expected events each meet at 4/3."""
    survival = Survival(event=np.array([False, True, False, True]), time=np.arange(1.0, 5.0))
    found = a_calibration(survival, np.exp(-np.array([1.0, 2.0, 3.0, 4.0])))
    # sum of min(h, 4/3) = 1 + 3 * 4/3 = 5 = half of 10
    np.testing.assert_allclose(found.expected, [5, 5])
    np.testing.assert_array_equal(found.events, [0, 2])
    assert found.statistic == pytest.approx(25 / 5 + 9 / 5)
    assert found.p_value == pytest.approx(stats.chi2.sf(6.8, 2))


def test_undefined_is_labelled():
    nobody = Survival(event=np.zeros(0, dtype=bool), time=np.zeros(0))
    for survival in (nobody, Survival(event=np.array([True, False]), time=np.array([1.0, 2.0]))):
        p = np.full(len(survival), 0.5)
        assert np.isnan(a_calibration(survival, p).p_value)
        assert "fewer than 5" in a_calibration(survival, p).reason
        curve = smooth_calibration(survival, p, 10.0)
        assert np.isnan(curve.index)
        assert "ten events" in curve.reason
        assert curve.observed.shape == (len(survival),)


def test_unknown_outcomes_are_not_read():
    survival, x = cohort(1)
    known = np.arange(1000) % 4 > 0
    kept = np.flatnonzero(known)
    partly = Survival(event=survival.event, time=np.where(known, survival.time, np.nan), observed=known)
    own = np.exp(-hazard(x, survival.time))
    late = 1 - np.exp(-hazard(x, HORIZON))
    assert a_calibration(partly, own).p_value == a_calibration(survival.take(kept), own[kept]).p_value
    expected = smooth_calibration(survival.take(kept), late[kept], HORIZON).index
    assert smooth_calibration(partly, late, HORIZON).index == expected


def test_predictions_of_zero_and_one_stay_finite():
    survival, _ = cohort(2)
    for value in (0.0, 1.0):
        found = a_calibration(survival, np.where(np.arange(1000) < 10, value, 0.5))
        assert np.isfinite(found.statistic)
