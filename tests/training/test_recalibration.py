import numpy as np
import pytest

from medfuse.targets import Labels, Survival, Values
from medfuse.training.recalibration import cox_slope, recalibrate, softmax


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
    slope, level = recalibrate(survival, -score[:, None], times=np.array([0.5, 1.0]))
    assert slope == 0
    assert (np.diff(level) >= 0).all()


def test_perfect_order_stays_bounded():
    survival = Survival(event=np.ones(20, bool), time=np.arange(20.0) + 1)
    assert cox_slope(survival, -np.arange(20.0)) == 5


def test_a_known_hazard_is_recovered_and_unknown_outcomes_are_not_read():
    survival, score = cohort(n=20_000, grain=1e-4)
    observed = np.ones(20_000, bool)
    observed[::7] = False
    survival = Survival(event=survival.event, time=np.where(observed, survival.time, np.nan), observed=observed)
    times = np.array([0.1, 0.5, 1.0, 1.5])
    slope, level = recalibrate(survival, score[:, None], times=times)
    assert slope == pytest.approx(0.8, abs=0.03)
    # hazard 1 for a score of 0, so the cumulative hazard is the time; the life table is coarse on four intervals
    assert np.abs(np.exp(level) - times).max() < 0.06


def test_the_mean_curve_is_the_kaplan_meier_curve():
    from lifelines import KaplanMeierFitter

    survival, score = cohort(n=500, grain=1e-3)
    times = np.quantile(survival.time[survival.event], np.linspace(0.02, 0.98, 60))
    slope, level = recalibrate(survival, score[:, None], times=times)
    mean = np.exp(-np.exp(level + slope * score[:, None])).mean(0)
    wanted = KaplanMeierFitter().fit(survival.time, survival.event).predict(times).to_numpy()
    assert np.abs(mean - wanted).max() < 0.02


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_slope_is_the_maximum_likelihood_and_levels_match_the_frequencies(classes):
    draw = np.random.default_rng(1)
    x = draw.normal(size=(3000, classes))
    truth = softmax(1.7 * x + np.arange(classes) * 0.5)
    label = np.array([draw.choice(classes, p=p) for p in truth])
    target = Labels(label=label, classes=tuple("abcd"[:classes]))
    slope, level = recalibrate(target, x)
    assert slope == pytest.approx(1.7, abs=0.12)
    found = softmax(level + slope * x)
    np.testing.assert_allclose(found.mean(0), np.bincount(label) / 3000, atol=1e-3)
    best = np.log(found[np.arange(3000), label]).sum()
    for other in (slope - 0.05, slope + 0.05):
        moved = softmax(level + other * x)
        assert np.log(moved[np.arange(3000), label]).sum() < best
    assert recalibrate(target, -x)[0] == 0


def test_values_are_least_squares_without_negative_slopes():
    draw = np.random.default_rng(2)
    x = draw.normal(size=(200, 1))
    value = 30 + 4 * x[:, 0] + draw.normal(size=200)
    slope, level = recalibrate(Values(value=value), x)
    wanted = np.polyfit(x[:, 0], value, 1)
    np.testing.assert_allclose([slope, level[0]], wanted, rtol=1e-10)
    assert recalibrate(Values(value=value), -x)[0] == 0
    assert recalibrate(Values(value=value), np.ones((200, 1)))[0] == 0
