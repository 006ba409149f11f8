"""Value of a missing modality: donors are training patients; hidden modalities move predictions as foretold (V2)."""

import dataclasses

import numpy as np
import pytest
import simulated

from medfuse.errors import ConfigError
from medfuse.explain import coalition_values
from medfuse.explain.absence import absence_shift
from medfuse.explain.donors import (
    Donors,
    added_value,
    check_hidden,
    donor_draws,
    hidden_pairs,
    hidden_questions,
    missing_questions,
)
from medfuse.explain.embedding import distances, embed
from medfuse.models import ModelSettings
from medfuse.sample import ModalityData
from medfuse.targets import Survival
from medfuse.training import FoldSettings, TrainSettings, fit_fold, predict_fold
from medfuse.training.outcomes import Outcomes
from medfuse.types import PatientId

IDS = slice(110, 150)


@pytest.fixture(scope="module", params=["os", "recurrence", "size"])
def asked(request, fold, cohort):
    ids = cohort.ids[IDS]
    values = coalition_values(fold, cohort.data, ids, outcome=request.param)
    embeddings = embed(fold, cohort.data, ids)
    horizons = [300.0, 900.0] if request.param == "os" else []
    found = donor_draws(
        fold, cohort.data, values, embeddings, missing_questions(values.present), horizons=horizons, donors=15
    )
    return values, embeddings, found


def test_questions():
    present = np.array([[True, True, False], [False, True, False], [False, False, False]])
    patient, modality, available = missing_questions(present)
    assert list(patient) == [0, 1, 1, 2, 2, 2]
    assert list(modality) == [2, 0, 2, 0, 1, 2]
    assert np.array_equal(available, present[patient])
    patient, modality, available = hidden_questions(present)
    assert list(zip(patient, modality, strict=True)) == [(0, 0), (0, 1)]
    assert available.tolist() == [[False, True, False], [True, False, False]]


def test_donors_are_the_nearest_training_patients_who_can_give(asked, cohort):
    values, embeddings, found = asked
    assert len(found) > 5
    assert set(found.train_ids) == set(cohort.ids[:110])
    for q in range(len(found)):
        patient, m = found.patient[q], found.modality[q]
        assert not values.present[patient, m]
        rows = found.donor[q]
        able = embeddings.train_present[:, found.available[q]].all(axis=1) & embeddings.train_present[:, m]
        assert able[rows].all()
        d = distances(embeddings.held_out[[patient]], embeddings.train, found.available[q])[0]
        assert np.sort(d[able])[14] == pytest.approx(found.distance[q, 14], abs=1e-5)
        assert len(set(rows.tolist())) == 15


@pytest.mark.parametrize("outcome", ["os", "recurrence", "size"])
def test_a_draw_is_the_prediction_with_the_donors_modality(fold, cohort, outcome, monkeypatch):
    """Against the ordinary way, when all replicates speak: the fold's prediction of a patient with a donor's sample."""
    monkeypatch.setattr("medfuse.explain.donors.REPLICATES", 99)
    ids = cohort.ids[IDS]
    values = coalition_values(fold, cohort.data, ids, outcome=outcome)
    embeddings = embed(fold, cohort.data, ids)
    found = donor_draws(
        fold, cohort.data, values, embeddings, missing_questions(values.present), horizons=[400.0], donors=4
    )
    for q in range(0, len(found), 1 + len(found) // 3):
        patient, donor = found.patient_ids[found.patient[q]], found.train_ids[found.donor[q, 3]]
        m = found.modalities[found.modality[q]]
        data = dict(cohort.data)
        data[m] = dataclasses.replace(data[m], samples={**data[m].samples, patient: data[m].samples[donor]})
        for shown, drawn in ((data, found.draws[q, 3]), (cohort.data, found.risk[q])):
            said = predict_fold(fold, shown, [patient])[outcome]
            if outcome == "os":
                grid, curve = np.concatenate([[0.0], said.times]), np.concatenate([[1.0], said.survival[0]])
                expected = 1 - np.interp(400.0, grid, curve)
            else:
                expected = said.value[0] if outcome == "size" else said.probability[0, 1]
            assert drawn[0] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def answers(risk, draws, kind="binary"):
    q, k = draws.shape
    zero = np.zeros(q, dtype=np.int64)
    return Donors(
        outcome="y",
        kind=kind,
        modalities=("a", "b"),
        patient_ids=("p",),
        train_ids=tuple(f"t{i}" for i in range(k)),
        horizons=np.zeros(0),
        patient=zero,
        modality=zero,
        available=np.tile([False, True], (q, 1)),
        risk=risk[:, None],
        draws=draws[..., None].astype(np.float32),
        donor=np.tile(np.arange(k), (q, 1)),
        distance=np.zeros((q, k), dtype=np.float32),
    )


def test_arithmetic():
    draws = np.tile([0.1, 0.4], (2, 6)).astype(float)
    draws[1, 4:] = np.nan
    found = added_value(answers(np.array([0.15, 0.15]), draws), threshold=0.2)
    assert found.expected_change[0] == pytest.approx((0.05 + 0.25) / 2)
    assert found.crossing[0] == pytest.approx(0.5)
    assert (found.low[0], found.high[0]) == pytest.approx((0.1, 0.4))
    # U(.4) = .4 - .6 / 4 = .25, U(.1) < 0, U(mean .25) = .25 - .75 / 4 = .0625
    assert found.evsi[0] == pytest.approx(0.125 - 0.0625)
    assert np.isnan(found.crossing[1])
    assert list(found.donors) == [12, 4]
    with pytest.raises(ConfigError, match="threshold within 0 and 1"):
        added_value(answers(np.array([0.1]), draws[:1]), threshold=1.0)
    values = added_value(answers(np.array([3.0]), draws[:1], kind="continuous"), threshold=2.0)
    assert np.isnan(values.evsi[0])
    assert values.expected_change[0] == pytest.approx(2.75)


def test_absence_shift_has_a_sign():
    rng = np.random.default_rng(0)
    draws = rng.uniform(0.3, 0.5, size=(200, 50))
    draws[5] = np.nan
    risk = np.where(np.arange(200) < 100, 0.5, rng.uniform(0.3, 0.5, size=200))
    shift = absence_shift(risk, draws, (np.arange(200) >= 100).astype(int), 3)
    assert shift[0] == pytest.approx([0.1, 0.001], abs=0.005)
    assert abs(shift[1, 0]) < 3 * shift[1, 1]
    assert np.isnan(shift[2]).all()


def test_refusals(fold, cohort):
    ids = cohort.ids[IDS]
    values = coalition_values(fold, cohort.data, ids, outcome="os")
    embeddings = embed(fold, cohort.data, ids)
    with pytest.raises(ConfigError, match="expected a horizon within"):
        donor_draws(fold, cohort.data, values, embeddings, missing_questions(values.present), horizons=[1e9])
    with pytest.raises(ConfigError, match="same patients and fold"):
        donor_draws(fold, cohort.data, values.take([0, 1]), embeddings, missing_questions(values.present[:2]))


def unequal(n, seed):
    """Four tables of unequal effect on survival, the last of none; each lacks some patients."""
    rng = np.random.default_rng(seed)
    ids = tuple(PatientId(f"u{i}") for i in range(n))
    x = rng.normal(size=(n, 4, 2))
    log_hazard = x.sum(axis=2) @ np.array([1.1, 0.6, 0.25, 0.0])
    time, cut = rng.exponential(1000, size=n) / np.exp(log_hazard), rng.exponential(2500, size=n)
    data: dict[str, ModalityData] = {
        name: simulated.columns(name, x[:, k], ids, has=rng.random(n) < 0.85) for k, name in enumerate("abcd")
    }
    target = Survival(event=time < cut, time=np.minimum(time, cut))
    return data, Outcomes(patient_ids=ids, targets={"os": target}), ids


def test_hidden_modalities_move_predictions_as_foretold():
    """V2: Spearman >= 0.4 between expected and realised change; crossing probability better than the base rate."""
    data, outcomes, ids = unequal(700, 0)
    train, held = ids[:500], ids[500:]
    inner = [simulated.Inner(tuple(i for n, i in enumerate(train) if n % 2 != k), train[k::2]) for k in range(2)]
    settings = FoldSettings(
        model=ModelSettings(width=16),
        train=TrainSettings(epochs=15, lr=1e-2, batch_size=64, device="cpu", patience=0),
        seeds=(0,),
        unimodal=True,
    )
    fold = fit_fold(data, outcomes, train_ids=train, inner=inner, settings=settings)
    values = coalition_values(fold, data, held)
    found = donor_draws(fold, data, values, embed(fold, data, held), hidden_questions(values.present), horizons=[400.0])
    threshold = float(values.game(horizon=400.0, scale="risk")[0, 0])
    check = check_hidden(hidden_pairs(found, values, threshold=threshold))
    assert check.questions > 400
    assert check.spearman >= 0.4
    assert check.brier < 0.9 * check.brier_base
    said = added_value(found, threshold=threshold)
    change = [said.expected_change[found.modality == m].mean() for m in range(4)]
    assert min(change[:2]) > 2 * max(change[2:])
    assert (said.evsi >= -1e-6).all()
