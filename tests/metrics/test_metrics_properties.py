"""Metrics against brute force, scikit-survival, and their own edge cases."""

import numpy as np
import pytest

from medfuse.metrics.calibration import brier, calibration_at, d_calibration, integrated_brier
from medfuse.metrics.comparison import bootstrap_c, paired_differences
from medfuse.metrics.discrimination import auprc, auroc, cumulative_dynamic_auc, harrell_c, stratified_c, uno_c
from medfuse.metrics.utility import decision_curve
from medfuse.targets import Survival


def simulated(seed, n=200, grid=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    time, censored = rng.exponential(200 * np.exp(-x)), rng.exponential(300, size=n)
    observed = np.minimum(time, censored)
    observed = np.ceil(observed / grid) if grid else observed
    return Survival(event=time <= censored, time=observed), np.round(x + rng.normal(size=n), 1), x


def brute(survival, risk):
    concordant = pairs = 0.0
    for i in range(len(risk)):
        for j in range(len(risk)):
            later = survival.time[j] > survival.time[i]
            tied = survival.time[j] == survival.time[i] and not survival.event[j] and i != j
            if survival.event[i] and (later or tied):
                pairs += 1
                concordant += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return concordant / pairs if pairs else float("nan")


def test_harrell_equals_brute_force_on_200_tied_data_sets():
    for seed in range(200):
        survival, risk, _ = simulated(seed, n=3 + seed % 15, grid=60)
        assert harrell_c(survival, risk).value == pytest.approx(brute(survival, risk), nan_ok=True, abs=1e-14)


def test_agreement_with_scikit_survival():
    metrics = pytest.importorskip("sksurv.metrics")
    from sksurv.util import Surv

    survival, risk, x = simulated(0, n=400)
    y = Surv.from_arrays(survival.event, survival.time)
    times = np.quantile(survival.time, [0.2, 0.4, 0.6])
    curves = np.exp(-np.outer(np.exp(x), times / 200))
    uno = uno_c(survival, risk, train=survival, convention="sksurv").value
    assert uno == pytest.approx(metrics.concordance_index_ipcw(y, y, risk)[0], abs=1e-12)
    auc = cumulative_dynamic_auc(survival, risk, train=survival, times=times)
    np.testing.assert_allclose(auc, metrics.cumulative_dynamic_auc(y, y, risk, times)[0], atol=1e-12)
    expected = metrics.brier_score(y, y, curves, times)[1]
    np.testing.assert_allclose(brier(survival, curves, times, train=survival), expected, atol=1e-12)
    ibs = integrated_brier(survival, curves, times, train=survival)
    assert ibs == pytest.approx(metrics.integrated_brier_score(y, y, curves, times), abs=1e-12)


def test_agreement_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    label, score = rng.random(300) < 0.3, np.round(rng.normal(size=300), 1)
    assert auroc(label, score) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
    assert auprc(label, score) == pytest.approx(sk.average_precision_score(label, score), abs=1e-12)


@pytest.mark.parametrize(
    ("event", "time"), [([False, False], [1.0, 2.0]), ([True], [3.0]), ([True, True], [5.0, 5.0]), ([], [])]
)
def test_undefined_is_labelled_and_never_a_half(event, time):
    survival = Survival(event=np.array(event, dtype=bool), time=np.array(time))
    c = harrell_c(survival, np.zeros(len(event)))
    assert np.isnan(c.value)
    assert "no comparable pair" in c.reason
    interval = bootstrap_c(survival, np.zeros(len(event)), n_resamples=20)
    assert np.isnan(interval.low)
    assert interval.reason


def test_patients_with_unknown_outcome_say_nothing():
    survival, risk, _ = simulated(3)
    known = np.ones(200, dtype=bool)
    known[:50] = False
    partly = Survival(event=survival.event, time=survival.time, observed=known)
    assert harrell_c(partly, risk).value == harrell_c(survival.take(np.arange(50, 200)), risk[50:]).value


def test_pooling_counts_pairs_within_a_fold_only():
    survival, risk, _ = simulated(4)
    fold = np.arange(200) % 4
    shifted = risk + 100 * fold  # another scale in every fold changes no pair within one
    assert stratified_c(survival, shifted, fold).value == pytest.approx(stratified_c(survival, risk, fold).value)
    assert harrell_c(survival, shifted).value != pytest.approx(harrell_c(survival, risk).value)


def test_paired_difference_of_a_model_with_itself_is_zero_and_a_better_one_shows():
    survival, _, x = simulated(6, n=400)
    found = paired_differences(survival, x, {"same": x, "noise": -x}, strata=np.zeros(400), n_resamples=200)
    assert found["same"].estimate == 0
    assert found["noise"].low > 0
    assert found["noise"].p_value < 0.05


def test_d_calibration_accepts_the_truth_and_refuses_a_distorted_model():
    survival, _, x = simulated(8, n=1500)
    truth = np.exp(-np.exp(x) * survival.time / 200)
    assert d_calibration(survival, truth).p_value > 0.01
    assert d_calibration(survival, truth**3).p_value < 1e-6


def test_calibration_slope_and_ratio_of_the_true_model_are_one():
    survival, _, x = simulated(9, n=3000)
    probability = 1 - np.exp(-np.exp(x) * 0.5)
    found = calibration_at(survival, probability, 100.0)
    assert found.slope == pytest.approx(1, abs=0.1)
    assert found.ratio == pytest.approx(1, abs=0.07)


def test_net_benefit_of_treating_everyone_is_the_prevalence_at_threshold_zero():
    survival, _, x = simulated(10, n=1000)
    probability = 1 - np.exp(-np.exp(x) * 0.5)
    curve = decision_curve(survival, probability, horizon=100.0, thresholds=np.array([0.01, 0.5]))
    assert curve.model[1] > curve.everyone[1]
    assert curve.model[0] == pytest.approx(curve.everyone[0], abs=0.01)
