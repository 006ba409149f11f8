"""Unlike the training patients: damaged inputs are flagged, ordinary ones are not (V3, at the level of tokens)."""

import numpy as np
import pytest
import simulated

from medfuse.errors import DataError
from medfuse.explain.distribution import Distribution, distribution, fit_score
from medfuse.explain.familiarity import ALARM, NOTHING
from medfuse.explain.parts import read_part, write_part
from medfuse.metrics.discrimination import auroc
from medfuse.sample import ModalityData, ModalitySample
from medfuse.types import PatientId

N, TRAIN = 700, 400
IDS = tuple(PatientId(f"d{i}") for i in range(N))


def genes(rng):
    """Log expression: a mean and a spread per gene, twelve programmes that genes share, and noise."""
    mean, spread = rng.gamma(4, 2, size=300), rng.gamma(3, 0.3, size=300)
    programme = rng.normal(size=(12, 300)) * (rng.random((12, 300)) < 0.3)
    x = mean + spread * (rng.normal(size=(N, 12)) @ programme + rng.normal(size=(N, 300)))
    return simulated.columns("g", np.maximum(x, 0), IDS, has=np.ones(N, bool)), "columns"


def ecg(rng):
    """Beats as feature vectors: a mean beat, patients around it, beats around the patient."""
    mean = rng.normal(size=32)
    own = mean + 0.5 * rng.normal(size=(N, 8)) @ rng.normal(size=(8, 32))
    return bags(own, rng, noise=0.3, tokens=(8, 14)), "vectors"


def slide(rng):
    """Tiles as feature vectors of eight tissue kinds, whose mixture is the patient's."""
    kinds = 2 * rng.normal(size=(8, 64))
    samples = {}
    for i in IDS:
        mixture = rng.dirichlet(np.ones(8))
        tokens = kinds[rng.choice(8, size=rng.integers(40, 120), p=mixture)]
        tokens = tokens + rng.normal(size=tokens.shape) + 0.2 * rng.normal(size=64)
        samples[i] = sample(tokens)
    return ModalityData(name="slide", layout="vectors", features=64, samples=samples), "vectors"


def bags(own, rng, *, noise, tokens):
    samples = {}
    for row, i in enumerate(IDS):
        count = rng.integers(*tokens)
        samples[i] = sample(own[row] + noise * rng.normal(size=(count, own.shape[1])))
    return ModalityData(name="bag", layout="vectors", features=own.shape[1], samples=samples)


def sample(tokens):
    return ModalitySample(tokens=tokens.astype(np.float32), position=np.zeros((len(tokens), 2), dtype=np.float32))


def shuffled(tokens, rng):
    out = tokens.copy()
    out[:, 0] = rng.permutation(out[:, 0])
    return out


def wrong_scale(tokens, rng):
    out = tokens.copy()
    out[:, 0] = np.expm1(np.minimum(out[:, 0], 20))
    return out


DAMAGE = {
    "shuffled genes": (genes, shuffled),
    "counts for logarithms": (genes, wrong_scale),
    "inverted ecg": (ecg, lambda tokens, rng: -tokens),
    "noise on ecg": (ecg, lambda tokens, rng: tokens + 1.5 * rng.normal(size=tokens.shape)),
    "noise on tiles": (slide, lambda tokens, rng: tokens + 1.5 * rng.normal(size=tokens.shape)),
    "another scanner": (slide, lambda tokens, rng: tokens + np.linspace(-1.2, 1.2, tokens.shape[1])),
    "a little noise on tiles": (slide, lambda tokens, rng: tokens + 0.5 * rng.normal(size=tokens.shape)),
    "blank slide": (slide, lambda tokens, rng: np.zeros_like(tokens) + 0.01 * rng.normal(size=tokens.shape)),
    "blank profile": (genes, lambda tokens, rng: np.stack([np.zeros(len(tokens)), np.ones(len(tokens))], axis=1)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(name):
    """V3."""
    make, damage = DAMAGE[name]
    rng = np.random.default_rng(list(DAMAGE).index(name))
    data, _ = make(rng)
    fitted = fit_score(data, IDS[:TRAIN])
    held = IDS[TRAIN:]
    worse = {
        i: ModalitySample(
            tokens=damage(data.samples[i].tokens, rng).astype(np.float32), position=data.samples[i].position
        )
        for i in held[:100]
    }
    ordinary = fitted.score(data, held)
    broken = ModalityData(**{**vars(data), "samples": worse})
    damaged = fitted.score(broken, held[:100])
    label = np.arange(len(ordinary) + len(damaged)) >= len(ordinary)
    area = auroc(label, np.concatenate([ordinary, damaged]))
    caught = (fitted.percentile(damaged) > ALARM).mean()
    assert area >= 0.95
    assert caught >= 0.8


@pytest.mark.parametrize("make", [genes, ecg, slide])
def test_ordinary_patients_are_left_in_peace(make):
    """V3: at most 1 % false alarms, over four cohorts of 300 held-out patients each."""
    alarms = []
    for seed in range(4):
        data, _ = make(np.random.default_rng(100 + seed))
        fitted = fit_score(data, IDS[:TRAIN])
        alarms.append((fitted.percentile(fitted.score(data, IDS[TRAIN:])) > ALARM).mean())
    assert np.mean(alarms) <= 0.01


def test_a_small_cohort_still_sees_a_blank_slide():
    rng = np.random.default_rng(9)
    data, _ = slide(rng)
    fitted = fit_score(data, IDS[:40])
    ordinary = fitted.percentile(fitted.score(data, IDS[40:]))
    blank = {i: sample(np.zeros((50, 64))) for i in IDS[:3]}
    found = fitted.score(ModalityData(**{**vars(data), "samples": blank}), IDS[:3])
    assert (fitted.percentile(found) > ALARM).all()
    assert (ordinary > ALARM).mean() < 0.05


def test_percentiles_are_those_of_the_training_patients():
    rng = np.random.default_rng(10)
    data, _ = ecg(rng)
    fitted = fit_score(data, IDS[:TRAIN])
    found = fitted.percentile(fitted.train)
    assert (np.diff(found) >= 0).all()
    assert found[TRAIN // 2] == pytest.approx(50, abs=0.5)
    assert found[int(0.95 * TRAIN)] == pytest.approx(95, abs=2)
    held = fitted.percentile(fitted.score(data, IDS[TRAIN:]))
    assert 40 < np.median(held) < 60


def test_states():
    """``withheld`` is a state: two reasons, or nothing to go by."""
    present = np.array([[True, True], [True, True], [True, True], [True, False], [False, False]])
    percentile = np.array([[50, 99], [99.7, 10], [99.7, 99.9], [99.9, np.nan], [np.nan, np.nan]])
    found = Distribution(
        modalities=("a", "b"),
        patient_ids=tuple(f"p{i}" for i in range(5)),
        present=present,
        percentile=percentile,
        pattern_count=np.array([90, 90, 90, 3, 50]),
        unscored=("", ""),
    )
    assert found.state == ("familiar", "unusual", "withheld", "withheld", "withheld")
    assert found.reasons(0) == []
    assert found.reasons(3) == [
        "a: unlike the training patients (percentile 99.90)",
        "modalities: 3 of the training patients had exactly these",
    ]
    assert found.reasons(4) == [NOTHING]  # in the words of the review


def test_a_cohort(cohort, tmp_path):
    train, held = cohort.ids[:110], cohort.ids[110:]
    found = distribution(cohort.data, train, held)
    assert found.modalities == ("clinical", "expression", "stains")
    assert np.array_equal(np.isnan(found.percentile), ~found.present)
    own = [frozenset(m for m in cohort.data if i in cohort.data[m].samples) for i in cohort.ids]
    assert found.pattern_count[3] == own[:110].count(own[113])
    assert found.state.count("withheld") < 8
    write_part(found, tmp_path / "part")
    again = read_part(Distribution, tmp_path / "part")
    assert again.state == found.state
    few = distribution(cohort.data, train[:15], held)
    assert all("found 1" in text for text in few.unscored)
    assert np.isnan(few.percentile).all()
    with pytest.raises(DataError, match="expected 20 training patients"):
        fit_score(cohort.data["clinical"], train[:5])


def test_many_more_columns_than_patients_raise_no_false_alarms():
    """Where distances hardly vary, a fit on its own patients would call every new one unusual."""
    rng = np.random.default_rng(11)
    data = simulated.columns("g", rng.normal(size=(N, 3000)), IDS, has=np.ones(N, bool))
    fitted = fit_score(data, IDS[:200])
    assert (fitted.percentile(fitted.score(data, IDS[200:])) > ALARM).mean() <= 0.01
