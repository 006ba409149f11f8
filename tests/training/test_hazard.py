import numpy as np
import pytest

from medfuse.targets import Survival
from medfuse.training.hazard import cox_slope, fit_baseline


def cohort(n=60, seed=0, *, slope=0.8, grain=0.25):
    draw = np.random.default_rng(seed)
    score = draw.normal(size=n)
    time = np.ceil(draw.exponential(size=n) / np.exp(slope * score) / grain) * grain  # with ties
    censoring = np.ceil(draw.exponential(2.0, size=n) / grain) * grain
    return Survival(event=time <= censoring, time=np.minimum(time, censoring)), score


def log_likelihood(survival, score, slope):
    total = 0.0
    for i in np.flatnonzero(survival.event & survival.observed):
        at_risk = survival.observed & (survival.time >= survival.time[i])
        total += slope * score[i] - np.log(np.exp(slope * score[at_risk]).sum())
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_maximises_the_partial_likelihood(seed):
    survival, score = cohort(seed=seed)
    slope = cox_slope(survival, score)
    best = log_likelihood(survival, score, slope)
    assert 0.2 < slope < 2
    assert best >= max(log_likelihood(survival, score, slope + d) for d in (-1e-3, 1e-3))


def test_a_score_that_orders_wrongly_gets_slope_zero_and_a_constant_one_too():
    survival, score = cohort()
    assert cox_slope(survival, -score) == 0
    assert cox_slope(survival, np.ones_like(score)) == 0


def test_perfect_order_stays_bounded():
    survival = Survival(event=np.ones(20, bool), time=np.arange(20.0) + 1)
    assert cox_slope(survival, -np.arange(20.0)) == 5


def test_baseline_against_a_double_loop_and_unknown_outcomes_are_not_read():
    survival, score = cohort()
    observed = np.ones(60, bool)
    observed[::7] = False
    time = np.where(observed, survival.time, np.nan)
    survival = Survival(event=survival.event, time=time, observed=observed)
    times = np.array([0.25, 0.6, 1.0, 3.0])
    baseline = fit_baseline(survival, score, times=times)
    for t, found in zip(times, baseline.cumulative, strict=True):
        wanted = sum(
            1 / np.exp(baseline.slope * score[observed & (time >= time[i])]).sum()
            for i in np.flatnonzero(observed & survival.event)
            if time[i] <= t
        )
        assert found == pytest.approx(wanted, rel=1e-12)


def test_a_known_hazard_is_recovered():
    survival, score = cohort(n=20_000, grain=1e-4)
    times = np.array([0.1, 0.5, 1.0, 1.5])
    baseline = fit_baseline(survival, score, times=times)
    assert baseline.slope == pytest.approx(0.8, abs=0.03)
    assert np.abs(baseline.cumulative - times).max() < 0.05
    curves = baseline.survival(score[:50])
    assert ((curves >= 0) & (curves <= 1)).all()
    assert (np.diff(curves, axis=1) <= 0).all()
    assert (np.argsort(curves[:, 2], kind="stable") == np.argsort(-score[:50], kind="stable")).all()
