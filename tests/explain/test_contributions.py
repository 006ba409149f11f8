"""Contributions are those of the model that predicts: E1, E4 and E5 of the acceptance points of the clinical review."""

import dataclasses

import numpy as np
import pytest
from patterned import with_patterns

from medfuse.errors import ConfigError, ModelError
from medfuse.explain import coalition_values, contributions, importance
from medfuse.explain.coalitions import interpolate
from medfuse.games import coalition
from medfuse.sample import ModalityData
from medfuse.training import predict_fold
from medfuse.training.ensemble import link_of

OUTCOMES = ("os", "recurrence", "size")


@pytest.fixture(scope="module")
def ids(cohort):
    return cohort.ids[100:]


@pytest.fixture(scope="module")
def found(fold, cohort, ids):
    return {outcome: coalition_values(fold, cohort.data, ids, outcome=outcome, name="0") for outcome in OUTCOMES}


def outputs(prediction):
    names = ("survival", "probability", "value")
    return {name: v for name in names if (v := getattr(prediction, name)) is not None}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_value_of_everything_is_the_prediction(fold, cohort, ids, found, outcome):
    c = found[outcome]
    predicted = predict_fold(fold, cohort.data, ids)[outcome]
    if outcome == "os":
        risk = c.game(scale="risk")[-1]
        np.testing.assert_allclose(1 - risk, predicted.survival, atol=1e-6)
    elif outcome == "recurrence":
        np.testing.assert_allclose(c.game(scale="risk")[-1][:, 0], predicted.risk_score, atol=1e-6)
    else:
        np.testing.assert_allclose(c.game()[-1][:, 0], predicted.value, rtol=1e-5)
    assert link_of(outputs(predicted)).shape[0] == len(c)


@pytest.mark.parametrize("kept", [(), ("clinical",), ("expression", "stains"), ("clinical", "stains")])
def test_a_coalition_is_worth_what_the_model_says_when_the_others_are_missing(fold, cohort, ids, found, kept):
    """E5, too: files of absent modalities are not looked at."""
    data = {name: dataclasses.replace(m, samples=m.samples if name in kept else {}) for name, m in cohort.data.items()}
    said = predict_fold(fold, data, ids)
    number = coalition([fold.modalities.index(name) for name in kept])
    np.testing.assert_allclose(1 - found["os"].game(scale="risk")[number], said["os"].survival, atol=1e-6)
    np.testing.assert_allclose(found["size"].game()[number][:, 0], said["size"].value, rtol=1e-5)


@pytest.mark.parametrize("scale", ["link", "risk"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_contributions_sum_to_the_difference_they_explain(found, outcome, scale):
    """E1: to 1e-9 for every patient and pattern."""
    c = contributions(found[outcome], scale=scale)
    gap = np.nansum(c.contribution, axis=1) - (c.everybody - c.nobody)
    assert np.abs(gap).max() <= 1e-9
    total = np.nansum(c.dividend, axis=1) - (c.everybody - c.nobody)
    assert np.abs(total).max() <= 1e-9
    rows = np.nansum(c.interaction, axis=2)
    assert np.nanmax(np.abs(rows - np.nan_to_num(c.contribution))) <= 1e-9


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_is_absent_has_no_contribution(found, outcome):
    c, absent = contributions(found[outcome]), ~found[outcome].present
    assert absent.any()
    assert (~absent).any(axis=0).all()
    one = c.contribution if c.contribution.ndim == 2 else c.contribution[..., 0]
    assert np.array_equal(np.isnan(one), absent)
    stains = [n for n in range(8) if n & 4]
    without = c.dividend[absent[:, 2]][:, stains]
    assert np.isnan(without).all()
    assert np.isfinite(np.nan_to_num(c.interaction)).all()


def test_replicates_average_to_the_values_and_spread_around_them(found):
    for c in found.values():
        assert c.replicates.shape[0] == 4  # two seeds on two inner folds
        np.testing.assert_allclose(c.replicates.mean(axis=0), c.values, atol=1e-3, rtol=1e-4)
    c = contributions(found["size"])
    has = ~np.isnan(c.contribution)
    assert (c.low[has] <= c.high[has]).all()
    assert (c.high[has] > c.low[has]).any()


def test_a_proportional_hazards_model_contributes_the_same_at_all_times(fold, cohort, ids):
    """E4 for the head: differences of log cumulative hazards do not depend on time.

    Before patterns are recalibrated: half of a proportional hazards model is not one.
    """
    if fold.members[0].heads["os"].name != "cox":
        pytest.skip("not a proportional hazards model")
    plain = coalition_values(with_patterns(fold), cohort.data, ids, outcome="os")
    phi = contributions(plain).contribution[plain.present]
    assert np.ptp(phi, axis=1).max() <= 1e-6
    assert np.abs(phi).max() > 0.01


def test_a_sum_of_experts_does_not_interact(fold, cohort, ids):
    """E4 for the fusion: unimodal networks are summed, and an absent one adds 0, before patterns are recalibrated."""
    if len(fold.experts) == 1:
        pytest.skip("no unimodal networks here")
    c = contributions(coalition_values(with_patterns(fold), cohort.data, ids, outcome="size", variant="unimodal"))
    sizes = np.array([n.bit_count() for n in range(8)])
    scale = np.nanmax(np.abs(c.contribution))
    assert np.nanmax(np.abs(c.dividend[:, sizes >= 2])) <= 1e-9 * max(scale, 1)
    assert np.nanmax(c.interaction_share) <= 1e-9


def test_horizons(found):
    c = found["os"]
    at = contributions(c, horizon=float(c.times[2]))
    everywhere = contributions(c)
    np.testing.assert_allclose(at.contribution, everywhere.contribution[..., 2], atol=1e-9)
    between = contributions(c, horizon=float(c.times[1] + c.times[2]) / 2, scale="risk").everybody
    risk = contributions(c, scale="risk").everybody
    np.testing.assert_allclose(between, (risk[:, 1] + risk[:, 2]) / 2, atol=1e-9)
    first = contributions(c, horizon=float(c.times[0]) / 2, scale="risk").everybody
    np.testing.assert_allclose(first, risk[:, 0] / 2, atol=1e-9)
    with pytest.raises(ConfigError, match="expected a horizon within 0 and"):
        contributions(c, horizon=1e9)
    with pytest.raises(ConfigError, match="has no times"):
        contributions(found["size"], horizon=365.0)
    with pytest.raises(ConfigError, match="no scale 'rusk'"):
        contributions(c, scale="rusk")
    assert interpolate(np.array([[0.0]]), np.array([10.0]), 10.0) == pytest.approx(0.0, abs=1e-12)


def test_refusals(fold, cohort):
    with pytest.raises(ModelError, match="found none"):
        coalition_values(fold, cohort.data, [])
    with pytest.raises(ConfigError, match="no outcome 'oss'"):
        coalition_values(fold, cohort.data, cohort.ids[:2], outcome="oss")
    with pytest.raises(ConfigError, match="no outcome 'os' with variant 'best'"):
        coalition_values(fold, cohort.data, cohort.ids[:2], outcome="os", variant="best")


def test_importance_takes_absolute_values_before_the_mean(found):
    c = contributions(found["size"])
    rows = {one.modality: one for one in importance(c, resamples=200)}
    phi = c.contribution
    for i, name in enumerate(c.modalities):
        one = rows[name]
        own = phi[~np.isnan(phi[:, i]), i]
        assert one.patients == len(own)
        assert one.mean_absolute[0] == pytest.approx(np.abs(own).mean())
        assert one.mean[0] == pytest.approx(own.mean())
        assert one.mean_absolute[1] <= one.mean_absolute[0] <= one.mean_absolute[2]
    assert sum(one.share[0] for one in rows.values()) == pytest.approx(1)
    with pytest.raises(ModelError, match="several times"):
        importance(contributions(found["os"]))


def test_take(found):
    c = found["os"]
    part = c.take([3, 1])
    assert part.patient_ids == (c.patient_ids[3], c.patient_ids[1])
    assert np.array_equal(part.values[0], c.values[3])
    assert np.array_equal(part.replicates[:, 1], c.replicates[:, 1])
    assert not c.clipped().any()


def test_nobody_has_a_modality(fold, cohort, ids):
    empty = {name: ModalityData(**{**_fields(m), "samples": {}}) for name, m in cohort.data.items()}
    c = coalition_values(fold, empty, ids[:3], outcome="size")
    assert np.ptp(c.values) == 0
    assert np.isnan(contributions(c).contribution).all()
    assert np.isnan(importance(contributions(c))[0].mean_absolute[0])


def _fields(modality):
    return {f.name: getattr(modality, f.name) for f in dataclasses.fields(modality)}


def test_these_models_have_learned_something(fold):
    """Where the slope is 0 all contributions are, and the tests above would say nothing."""
    assert all(fold.ensembles[outcome]["chosen"].slope > 0.1 for outcome in OUTCOMES)
