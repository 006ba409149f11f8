"""Weighted calibration: a row of whole weights equals the same patients written out, by the slow functions."""

import numpy as np
import pytest

from medfuse.metrics.calibration import binary_calibration, brier, calibration_at
from medfuse.metrics.weighted import (
    brier_parts,
    cox_slopes,
    event_by,
    linear_slopes,
    logistic_slopes,
    mean_of,
)
from medfuse.targets import Survival


def cohort(seed, n=150):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=n)
    time, censoring = draw.exponential(size=n) / np.exp(x), draw.exponential(2.0, size=n)
    survival = Survival(event=time < censoring, time=np.ceil(20 * np.minimum(time, censoring)))  # ties
    probability = 1 - np.exp(-np.exp(0.6 * x + draw.normal(0, 0.3, size=n)) * 0.7)
    return survival, probability, draw


@pytest.mark.parametrize("seed", [0, 1])
def test_survival_calibration_agrees_with_patients_written_out(seed):
    survival, p, draw = cohort(seed)
    weights = np.stack([np.ones(150), draw.integers(0, 4, size=150)]).astype(float)
    horizon = 15.0
    until = Survival(event=survival.event & (survival.time <= horizon), time=np.minimum(survival.time, horizon))
    slopes = cox_slopes(until, np.log(-np.log1p(-p)), weights)
    observed = event_by(survival, horizon, weights)
    had, free = brier_parts(survival, horizon, train=survival)
    errors = mean_of(had * (1 - p) ** 2 + free * p**2, weights)
    for k, w in enumerate(weights):
        rows = np.repeat(np.arange(150), w.astype(int))
        found = calibration_at(survival.take(rows), p[rows], horizon)
        assert observed[k] / mean_of(p, weights)[k] == pytest.approx(found.ratio, abs=1e-9)
        # Efron's ties there and Breslow's here: the same on average, not to the last digit
        assert slopes[k] == pytest.approx(found.slope, rel=0.1)
        slow = brier(survival.take(rows), 1 - p[rows, None], np.array([horizon]), train=survival)[0]
        assert errors[k] == pytest.approx(slow, abs=1e-9)


def test_slopes_are_those_of_the_planted_model():
    draw = np.random.default_rng(3)
    z = draw.normal(size=4000)
    label = draw.random(4000) < 1 / (1 + np.exp(-2 * z))
    p = 1 / (1 + np.exp(-z))  # half as sure as it should be
    weights = np.ones((1, 4000))
    assert logistic_slopes(label, p, weights)[0] == pytest.approx(binary_calibration(label, p).slope, abs=1e-3)
    assert logistic_slopes(label, p, weights)[0] == pytest.approx(2, abs=0.2)
    value = 3 * z + draw.normal(size=4000)
    assert linear_slopes(value, z, weights)[0] == pytest.approx(3, abs=0.05)
    time = draw.exponential(size=4000) / np.exp(1.5 * z)
    assert cox_slopes(Survival(event=np.ones(4000, bool), time=time), z, weights)[0] == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    ("probability", "reason"),
    [
        (np.full(6, 0.3), "same for everybody"),
        (np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "do not overlap"),
        (np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), "do not overlap"),
    ],
)
def test_a_slope_that_no_data_decide_is_undefined_and_never_looks_perfect(probability, reason):
    label = np.array([False, False, False, False, True, True])
    found = binary_calibration(label, probability)
    assert np.isnan(found.slope)
    assert reason in found.reason
    assert np.isfinite([found.intercept, found.brier]).all()
    assert np.isfinite(binary_calibration(label, np.array([0.1, 0.2, 0.6, 0.4, 0.5, 0.3])).slope)


def test_what_is_undefined_is_nan():
    survival, p, _ = cohort(0)
    none = np.zeros((1, 150))
    assert np.isnan(cox_slopes(survival, p, none))[0]
    assert np.isnan(cox_slopes(survival, np.ones(150), none + 1))[0]
    assert np.isnan(event_by(survival, survival.time.max() + 1, none + 1))[0]
    assert np.isnan(logistic_slopes(np.ones(150, bool), p, none + 1))[0]
    assert np.isnan(mean_of(p, none))[0]
