"""The subset gate: its predictions are out of fold, and it says so when a coalition cannot be trusted."""

import dataclasses

import numpy as np
import pytest

from medfuse.errors import CohortError, ConfigError
from medfuse.explain.absence import absence_used
from medfuse.explain.coalitions import Coalitions
from medfuse.explain.gate import same_as_stored, subset_gate, unknown_gate, unseen_values
from medfuse.explain.parts import read_part, write_part
from medfuse.explain.recalibration import recalibrated
from medfuse.metrics.discrimination import harrell_c
from medfuse.targets import Labels, Survival, Values
from medfuse.training.ensemble import link_of


@pytest.fixture(scope="module")
def inner(cohort):
    ids = cohort.ids[:110]
    return [split.tuning for split in cohort.inner(ids)]


@pytest.mark.parametrize("outcome", ["os", "recurrence", "size"])
def test_everything_shown_is_the_stored_out_of_fold_prediction(fold, cohort, inner, outcome):
    plain = unseen_values(fold, cohort.data, inner, outcome=outcome)
    found = recalibrated(plain, fold.ensembles[outcome]["chosen"].patterns)
    assert np.abs(found.values - plain.values).max() > 1e-3
    stored = fold.out_of_fold[outcome]["chosen"]
    order = [found.patient_ids.index(i) for i in stored.patient_ids]
    full = found.take(order).values[:, -1]
    if outcome == "os":
        np.testing.assert_allclose(full, link_of({"survival": stored.survival}), atol=2e-5)
    elif outcome == "size":
        np.testing.assert_allclose(full[:, 0], stored.value, rtol=1e-5)
    else:
        np.testing.assert_allclose(1 / (1 + np.exp(-full[:, 0])), stored.probability[:, 1], atol=1e-6)


@pytest.mark.parametrize("outcome", ["os", "recurrence", "size"])
def test_a_record_per_coalition(fold, cohort, inner, outcome, tmp_path):
    found = unseen_values(fold, cohort.data, inner, outcome=outcome)
    target = fold_target(cohort, outcome, found.patient_ids)
    horizons = [300.0, 900.0, 1e9] if outcome == "os" else []
    gate = subset_gate(found, target, horizons=horizons)
    assert list(gate.horizons) == ([300.0, 900.0] if outcome == "os" else [])
    has = found.present & target.observed[:, None]
    assert gate.patients[0] == target.observed.sum()
    assert gate.patients[0b110] == (has[:, 1] & has[:, 2]).sum()
    stored = fold.out_of_fold[outcome]["chosen"]
    complete = found.present.all(axis=1)
    if outcome == "os":  # the record of all modalities is that of the patients who have them all
        rows = [i for i, p in enumerate(stored.patient_ids) if complete[found.patient_ids.index(p)]]
        own = fold_target(cohort, outcome, [stored.patient_ids[i] for i in rows])
        expected = harrell_c(own, stored.risk_score[rows], with_error=False).value
        assert gate.concordance[-1] == pytest.approx(expected, abs=1e-3)
    assert gate.concordance[0] == pytest.approx(0.5)
    assert np.isfinite(gate.index[0]).all()
    write_part(gate, tmp_path / "gate")
    again = read_part(type(gate), tmp_path / "gate")
    assert again.reason == gate.reason
    assert np.array_equal(again.index, gate.index, equal_nan=True)


def test_other_inner_folds_are_noticed(fold, cohort, inner):
    for outcome in ("os", "recurrence", "size"):
        assert same_as_stored(unseen_values(fold, cohort.data, inner, outcome=outcome), fold)
        other = unseen_values(fold, cohort.data, inner[::-1], outcome=outcome)
        assert not same_as_stored(other, fold)
        assert not same_as_stored(other.take([0, 1]), fold)
    gate = unknown_gate(other, "the inner folds are not known")
    assert not gate.supported.any()
    assert gate.unsupported(other.present[:1])[0]


def fold_target(cohort, outcome, ids):
    row = {i: k for k, i in enumerate(cohort.ids)}
    return cohort.outcomes.targets[outcome].take(np.array([row[i] for i in ids]))


def values_of(kind, link, present, times=None):
    """Two modalities; the coalition's value is ``link`` (n, L) where it is not empty, its mean where it is."""
    n = len(link)
    values = np.stack([np.broadcast_to(link.mean(0), link.shape), link, link, link], axis=1)
    return Coalitions(
        outcome="y",
        kind=kind,
        patient_ids=tuple(f"p{i}" for i in range(n)),
        modalities=("a", "b"),
        present=present,
        values=values,
        replicates=values[None].astype(np.float32),
        times=times,
    )


def survival_case(n, rng, *, wrong=0.0):
    """True exponential hazards, so that the right cumulative hazard at each time is known; ``wrong`` is added to it."""
    x = rng.normal(size=n) * 0.8
    time = rng.exponential(size=n) / np.exp(x) * 1000
    cut = rng.uniform(200, 3000, size=n)
    times = np.array([250.0, 500.0, 1000.0, 2000.0])
    link = x[:, None] + np.log(times / 1000) + wrong
    return link, Survival(event=time <= cut, time=np.minimum(time, cut)), times


def test_a_calibrated_model_is_supported_and_a_wrong_one_is_not():
    rng = np.random.default_rng(0)
    present = np.ones((800, 2), dtype=bool)
    link, target, times = survival_case(800, rng)
    # The population's risk is the mean of the risks, not the risk at the mean link.
    good = values_of("survival", link, present, times)
    mean = np.log(-np.log(np.exp(-np.exp(link)).mean(0)))
    values = good.values.copy()
    values[:, 0] = mean
    gate = subset_gate(dataclasses.replace(good, values=values), target, horizons=[500.0, 1000.0])
    assert gate.supported.all(), gate.reason
    assert gate.unsupported(present[:2]) == [[], []]
    bad = subset_gate(values_of("survival", link + 1.2, present, times), target, horizons=[500.0, 1000.0])
    assert not bad.supported.any()
    assert all("not calibrated" in reason for reason in bad.reason)


def test_labels_and_values():
    rng = np.random.default_rng(1)
    present = np.ones((600, 2), dtype=bool)
    x = rng.normal(size=600)
    label = (rng.random(600) < 1 / (1 + np.exp(-x))).astype(int)
    good = subset_gate(values_of("binary", x[:, None], present), Labels(label=label, classes=("no", "yes")))
    assert good.supported.all()
    assert good.concordance[3] == pytest.approx(0.74, abs=0.05)
    bad = subset_gate(values_of("binary", 4 * x[:, None] + 2, present), Labels(label=label, classes=("no", "yes")))
    assert not bad.supported[1:].any()
    y = x + rng.normal(size=600)
    assert subset_gate(values_of("continuous", x[:, None], present), Values(value=y)).supported.all()
    assert not subset_gate(values_of("continuous", x[:, None] + 1, present), Values(value=y)).supported.any()
    three = rng.integers(0, 3, size=600)
    flat = np.zeros((600, 3))
    gate = subset_gate(values_of("multiclass", flat, present), Labels(label=three, classes=("a", "b", "c")))
    assert gate.supported.all()
    assert gate.index[3, 0] < 0.05


def test_few_events_and_coalitions_nobody_was_shown():
    rng = np.random.default_rng(2)
    link, target, times = survival_case(300, rng)
    present = np.ones((300, 2), dtype=bool)
    present[:, 1] = np.arange(300) < 12
    gate = subset_gate(values_of("survival", link, present, times), target, horizons=[500.0])
    assert "fewer than 20" in gate.reason[2]
    assert gate.names(2) == "b"
    assert gate.names(0) == "no modality"
    assert gate.unsupported(np.array([[True, True], [False, True]]))[1] == [2]
    assert 2 not in gate.unsupported(np.array([[True, False]]))[0]
    unshown = subset_gate(values_of("survival", link, present, times), target, horizons=[500.0], every_subset=False)
    assert "never shown in training" in unshown.reason[2]
    assert "never shown" not in unshown.reason[1]
    assert "cannot be told" in subset_gate(values_of("survival", link, present, times), target, horizons=[]).reason[0]


def test_absence_that_is_information():
    rng = np.random.default_rng(3)
    draws = np.clip(rng.normal(0.4, 0.05, size=(3, 50)), 0, 1)
    draws[2] = np.nan
    assert list(absence_used(np.array([0.4, 0.5, 0.5]), draws)) == [False, True, False]
    wide = rng.normal(0.4, 0.5, size=50)
    assert not absence_used(np.array(wide.mean() + 0.04), wide)


def test_refusals(fold, cohort, inner):
    with pytest.raises(CohortError, match="every patient in one inner fold"):
        unseen_values(fold, cohort.data, [inner[0], inner[0]])
    with pytest.raises(ConfigError, match="no outcome 'oss'"):
        unseen_values(fold, cohort.data, inner, outcome="oss")
