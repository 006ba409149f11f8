"""Kaplan-Meier and what follows from it against survfit, log-rank tests against survdiff.

Asked: 1e-10 absolute for probabilities, 1e-10 relative for the rest. Largest found on one x86-64 machine: 6e-16 and
4e-14.
"""

import numpy as np
import pytest
from from_r import array, dataset, fixture, outcomes

from medfuse.metrics.nonparametric import kaplan_meier, log_rank
from medfuse.targets import Survival

ATOL = 1e-10
CURVES = ["lung", "veteran", "rossi", "gbsg", "pbc"]
SMALL = sorted(fixture("survfit")["small"])
RULES = ["log-log", "log", "plain", "logit", "arcsin"]


def pair(name):
    """A curve and what R says of it."""
    if name in CURVES:
        _, survival, _ = dataset(name)
        return kaplan_meier(survival.time, survival.event), fixture("survfit")["curves"][name]
    case = fixture("survfit")["small"][name]
    survival = outcomes(case)
    return kaplan_meier(survival.time, survival.event), case["r"]


@pytest.mark.parametrize("name", CURVES + SMALL)
def test_curve_and_its_error(name):
    curve, expected = pair(name)
    np.testing.assert_array_equal(curve.times, array(expected["times"]))
    np.testing.assert_array_equal(curve.at_risk, array(expected["at_risk"]))
    np.testing.assert_array_equal(curve.events, array(expected["events"]))
    np.testing.assert_allclose(curve.survival, array(expected["survival"]), atol=ATOL)
    error = array(expected["standard_error"])
    np.testing.assert_allclose(curve.standard_error[: len(error)], error, atol=ATOL)
    assert len(error) == len(curve.times) or curve.survival[-1] == 0  # R drops the row where S is 0 now and then
    np.testing.assert_allclose(curve(curve.times), curve.survival, atol=0)
    assert curve.left(curve.times[0]) == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CURVES + SMALL)
def test_limits(name, rule):
    curve, expected = pair(name)
    low, high = curve.limits(rule=rule)
    for found, wanted in (
        (low, array(expected["limits"][rule]["low"])),
        (high, array(expected["limits"][rule]["high"])),
    ):
        before = curve.survival == 1  # R has 1 there for some rules and nothing for others; we have 1
        np.testing.assert_array_equal(found[before], 1.0)
        np.testing.assert_allclose(found[~before], wanted[~before], atol=ATOL)


@pytest.mark.parametrize("name", CURVES + SMALL)
def test_quantiles_and_their_limits(name):
    curve, expected = pair(name)
    for k, p in enumerate(fixture("survfit")["probability"]):
        wanted = array(expected["quantiles"])[k]
        assert curve.quantile(p) == (np.inf if np.isnan(wanted) else wanted)
        for rule in RULES:
            limits = expected["limits"][rule]
            wanted = [array(limits[f"quantile_{side}"])[k] for side in ("low", "high")]
            assert curve.quantile_limits(p, rule=rule) == tuple(np.nan_to_num(wanted, nan=np.inf)), (p, rule)
    assert curve.median() == curve.quantile(0.5)


@pytest.mark.parametrize("name", CURVES + SMALL)
def test_restricted_mean_and_nelson_aalen(name):
    curve, expected = pair(name)
    value, error = curve.restricted_mean(expected["tau"])
    assert value == pytest.approx(expected["restricted_mean"], rel=1e-12)
    assert error == pytest.approx(expected["restricted_mean_error"], rel=ATOL, abs=1e-14)
    hazard, error = curve.cumulative_hazard()
    np.testing.assert_allclose(hazard, array(expected["cumulative_hazard"]), atol=ATOL)
    np.testing.assert_allclose(error, array(expected["cumulative_hazard_error"]), atol=ATOL)


def check_log_rank(survival, case):
    for wanted in case["tests"]:
        found = log_rank(survival, np.array(case["group"]), rho=wanted["rho"])
        assert found.statistic == pytest.approx(wanted["statistic"], rel=1e-10, abs=1e-12)
        assert found.p_value == pytest.approx(wanted["p_value"], rel=1e-10)
        np.testing.assert_allclose(found.observed, wanted["observed"], atol=ATOL)
        np.testing.assert_allclose(found.expected, wanted["expected"], atol=ATOL)


@pytest.mark.parametrize("name", sorted(fixture("survdiff")["sets"]))
def test_log_rank_of_two_to_four_groups(name):
    _, survival, _ = dataset(name)
    check_log_rank(survival, fixture("survdiff")["sets"][name])


def test_log_rank_on_sixty_small_tied_data_sets():
    for case in fixture("survdiff")["random"]:
        check_log_rank(outcomes(case), case)


def test_a_group_that_was_never_at_risk_takes_no_degree_of_freedom():
    case = fixture("survdiff")["gone"]
    check_log_rank(outcomes(case), case)
    assert log_rank(outcomes(case), np.array(case["group"])).degrees == 1


def test_log_rank_does_not_read_unknown_outcomes():
    x, survival, _ = dataset("lung")
    known = np.arange(len(survival)) % 3 > 0
    partly = Survival(event=survival.event, time=np.where(known, survival.time, np.nan), observed=known)
    kept = np.flatnonzero(known)
    expected = log_rank(survival.take(kept), x[kept, 1])
    assert log_rank(partly, x[:, 1]).statistic == expected.statistic


def test_log_rank_of_one_group_says_nothing():
    _, survival, _ = dataset("lung")
    alone = log_rank(survival, np.zeros(len(survival)))
    assert alone.degrees == 0
    assert np.isnan(alone.p_value)
