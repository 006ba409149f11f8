"""Harrell's and Uno's C with variance against survival::concordance, and against a double loop; Brier score and AUC
against riskRegression and the formula written out in R.

Asked: 1e-12 absolute, 1e-10 relative for variances. Largest found on one x86-64 machine: 5e-16 and 3e-15.
"""

import numpy as np
import pytest
from from_r import array, dataset, fixture, outcomes

from medfuse.metrics.calibration import brier
from medfuse.metrics.discrimination import cumulative_dynamic_auc, harrell_c, uno_c
from medfuse.targets import Survival

ATOL = 1e-12
BRIER = sorted(fixture("brier"))


def check(found, wanted, *, counts):
    if wanted["value"] is None:
        assert np.isnan(found.value)
        return
    assert found.value == pytest.approx(wanted["value"], abs=ATOL)
    assert found.standard_error**2 == pytest.approx(wanted["variance"], rel=1e-10, abs=1e-14)
    if counts:
        assert [found.concordant, found.discordant, found.tied_risk] == [
            wanted["concordant"],
            wanted["discordant"],
            wanted["tied"],
        ]


def check_all(survival, case):
    score = array(case["score"])
    check(harrell_c(survival, score), case["harrell"], counts=True)
    check(uno_c(survival, score, train=survival), case["uno"], counts=False)
    # R counts events up to and including ymax, we those before tau.
    tau = np.nextafter(case["ymax"], np.inf)
    check(uno_c(survival, score, train=survival, tau=tau), case["uno_cut"], counts=False)


@pytest.mark.parametrize("name", sorted(fixture("concordance")["sets"]))
def test_public_data(name):
    _, survival, _ = dataset(name)
    check_all(survival, fixture("concordance")["sets"][name])


def test_two_hundred_small_data_sets_with_ties_in_time_and_score():
    cases = fixture("concordance")["random"]
    assert len(cases) == 200
    assert sum(case["harrell"]["tied"] > 0 for case in cases) > 50
    for case in cases:
        check_all(outcomes(case), case)


def test_lung_with_the_fitted_coefficients():
    """Typed in from R 4.2.2, survival 3.5-3, before there were scripts."""
    x, survival, _ = dataset("lung")
    score = x @ np.array((0.0170453318454113, -0.513218517108384))
    c = harrell_c(survival, score)
    assert c.value == pytest.approx(0.602853002897971, abs=1e-12)
    assert c.standard_error**2 == pytest.approx(6.5018256800e-4, rel=1e-9)
    assert (c.concordant, c.discordant, c.tied_risk) == (11910, 7793, 311)
    assert uno_c(survival, score, train=survival).value == pytest.approx(0.59604549480696, abs=1e-12)
    cut = uno_c(survival, score, train=survival, tau=365.0 + 1e-9).value
    assert cut == pytest.approx(0.599319246180739, abs=1e-12)


def weight_of(time, train, convention):
    """1 / G^2 by the definition: product over censoring times of the share that stays."""
    g = 1.0
    for u in np.unique(train.time[~train.event]):
        if u < time or (u == time and convention == "sksurv"):
            left = (train.time > u).sum() + ((train.time == u) & ~train.event).sum()
            g *= 1 - ((train.time == u) & ~train.event).sum() / left
    return 1 / g**2 if g > 0 else 0.0


def pairs_of(survival, score, train, tau, convention):
    concordant = total = 0.0
    for i in np.flatnonzero(survival.event & (survival.time < tau)):
        weight = weight_of(survival.time[i], train, convention)
        for j in range(len(score)):
            tied = survival.time[j] == survival.time[i] and not survival.event[j]
            if survival.time[j] > survival.time[i] or tied:
                total += weight
                concordant += weight * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return concordant / total if total else float("nan")


@pytest.mark.parametrize("convention", ["r", "sksurv"])
def test_uno_equals_a_double_loop_with_weights_of_other_patients(convention):
    rng = np.random.default_rng(5)

    def draw(n):
        return Survival(event=rng.random(n) < 0.6, time=rng.integers(1, 9, n).astype(float))

    for _ in range(200):
        survival, train = draw(int(rng.integers(3, 15))), draw(12)
        score, tau = rng.integers(0, 4, len(survival)).astype(float), float(rng.integers(3, 10))
        found = uno_c(survival, score, train=train, tau=tau, convention=convention).value
        assert found == pytest.approx(pairs_of(survival, score, train, tau, convention), abs=1e-13, nan_ok=True)


@pytest.mark.parametrize("name", BRIER)
def test_brier_equals_riskregression_and_the_formula(name):
    case = fixture("brier")[name]
    everyone, test = outcomes(case), np.array(case["test"])
    survival, train = everyone.take(np.flatnonzero(test)), everyone.take(np.flatnonzero(~test))
    free, times = array(case["free"]), array(case["times"])
    r = brier(survival, free, times, train=survival, convention="r")
    np.testing.assert_allclose(r, case["score_brier"], atol=ATOL)
    np.testing.assert_allclose(r, case["own"]["before"], atol=ATOL)
    np.testing.assert_allclose(brier(survival, free, times, train=survival), case["own"]["at"], atol=ATOL)
    found = brier(survival, free, times, train=train, convention="r")
    np.testing.assert_allclose(found, case["train"]["before"], atol=ATOL)
    np.testing.assert_allclose(brier(survival, free, times, train=train), case["train"]["at"], atol=ATOL)


@pytest.mark.parametrize("name", BRIER)
def test_auc_equals_riskregression(name):
    case = fixture("brier")[name]
    survival = outcomes(case).take(np.flatnonzero(case["test"]))
    risk, times = 1 - array(case["free"]), array(case["times"])
    auc = cumulative_dynamic_auc(survival, risk, train=survival, times=times, convention="r")
    np.testing.assert_allclose(auc, case["score_auc"], atol=ATOL)
