"""The bound holds at its level under censoring, with a model that is wrong on purpose (V1)."""

import numpy as np
import pytest

from medfuse.errors import ConfigError
from medfuse.explain.conformal import conformal_bound, lower_bound, quantile_time
from medfuse.prediction import Prediction
from medfuse.targets import Survival

TIMES = np.linspace(0.05, 4.0, 80)


def cohort(rng, n, *, patterns=1):
    """Weibull times with two risk factors, random drop-out and an end of study: about 45 % censored."""
    x = rng.normal(size=(n, 2))
    time = rng.weibull(1.5, size=n) * np.exp(-0.6 * x[:, 0] + 0.4 * x[:, 1])
    censoring = np.minimum(rng.exponential(2.2, size=n), 2.5)
    # the model knows one factor of two, believes that it is twice as strong, and is too hopeful
    scale = np.exp(-1.2 * x[:, 0]) * 1.5
    present = np.ones((n, 2), dtype=bool)
    if patterns > 1:
        present[:, 1] = rng.random(n) < 0.5
        time = time * np.where(present[:, 1], 1.0, 0.5)  # who lacks the second modality fares worse
    prediction = Prediction(
        patient_ids=tuple(f"p{i}" for i in range(n)),
        present=present,
        modalities=("a", "b"),
        risk_score=-scale,
        times=TIMES,
        survival=np.exp(-((TIMES / scale[:, None]) ** 1.5)),
    )
    return prediction, Survival(time=np.minimum(time, censoring) * 365, event=time <= censoring), time * 365


def in_days(prediction):
    return Prediction(**{**vars(prediction), "times": prediction.times * 365})


def coverages(seeds, *, patterns=1, n=500):
    before, after = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        prediction, target, _ = cohort(rng, n, patterns=patterns)
        bound = conformal_bound(in_days(prediction), target)
        fresh, _, time = cohort(rng, 2000, patterns=patterns)
        low = lower_bound(bound, in_days(fresh))
        assert np.isfinite(low).all()
        holds = time >= low
        plain = time >= np.minimum(quantile_time(fresh.survival, TIMES * 365, 0.9), bound.cutoff)
        groups = [fresh.present[:, 1], ~fresh.present[:, 1]] if patterns > 1 else [np.ones(2000, dtype=bool)]
        before.append([plain[g].mean() for g in groups])
        after.append([holds[g].mean() for g in groups])
    return np.array(before), np.array(after)


def test_v1_nominal_coverage_over_200_cohorts():
    before, after = coverages(200)
    assert before.mean() < 0.85  # without calibration this model's bound is wrong
    assert 0.89 <= after.mean() <= 0.91
    assert ((after >= 0.87) & (after <= 0.93)).mean() >= 0.9


def test_coverage_holds_within_each_availability_pattern():
    _, after = coverages(60, patterns=2)
    assert np.abs(after.mean(axis=0) - 0.9).max() <= 0.015


def test_it_abstains_where_calibration_patients_are_few():
    prediction, target, _ = cohort(np.random.default_rng(0), 150, patterns=2)
    bound = conformal_bound(in_days(prediction), target, minimum=100)
    low = lower_bound(bound, in_days(prediction))
    few = {p for p in ((True, True), (True, False)) if (prediction.present == p).all(1).sum() < 100}
    assert few
    for pattern in few:
        assert np.isnan(low[(prediction.present == pattern).all(1)]).all()
    nobody, _, _ = cohort(np.random.default_rng(1), 5)
    absent = Prediction(**{**vars(in_days(nobody)), "present": np.zeros((5, 2), dtype=bool)})
    assert np.isnan(lower_bound(bound, absent)).all()


def test_quantile_time():
    curves = np.array([[0.9, 0.5, 0.1], [0.99, 0.98, 0.97], [0.4, 0.4, 0.4]])
    times = np.array([100.0, 200.0, 300.0])
    assert quantile_time(curves, times, 0.7) == pytest.approx([150.0, 300.0, 50.0])
    assert quantile_time(curves, times, 0.4)[2] == pytest.approx(100.0)


def test_refusals():
    prediction, target, _ = cohort(np.random.default_rng(0), 120)
    with pytest.raises(ConfigError, match="level 1"):
        conformal_bound(prediction, target, level=1.0)
    bare = Prediction(**{**vars(prediction), "times": None, "survival": None})
    with pytest.raises(ConfigError, match="expected survival curves"):
        conformal_bound(bare, target)
    bound = conformal_bound(prediction, target)
    other = Prediction(**{**vars(prediction), "modalities": ("a", "c")})
    with pytest.raises(ConfigError, match="modalities a, b, found a, c"):
        lower_bound(bound, other)
