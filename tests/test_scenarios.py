"""Scenarios change what patients show, never who they are, and the same seed gives the same scenario."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from medfuse.errors import ConfigError
from medfuse.sample import ModalityData, ModalitySample
from medfuse.scenarios import MECHANISMS, Held, plan, show, side
from medfuse.targets import Labels, Survival, Values

sys.path.insert(0, str(Path(__file__).parent / "training"))
from simulated import simulate

NAMES = ("clinical", "expression", "stains")


@pytest.fixture(scope="module")
def cohort():
    return simulate(400, genes=5)


@pytest.fixture(scope="module")
def held(cohort):
    target = cohort.outcomes.targets["os"].take(np.arange(200))
    return Held(
        ids=cohort.ids[:200],
        data=cohort.data,
        train=cohort.ids[200:],
        target=target,
        middle=float(np.median(target.time)),
        anchor="clinical",
        number=0,
        seed=1,
    )


def one(mechanism, rate, *names, draw=0):
    from medfuse.scenarios import Scenario

    return Scenario(mechanism=mechanism, rate=rate, modalities=names or NAMES, draw=draw)


def counted(samples):
    return {name: len(own) for name, own in samples.items()}


def test_all_subsets_are_planned_and_shown(held):
    scenarios = plan("subsets", NAMES)
    assert len({s.modalities for s in scenarios}) == 7
    assert scenarios[0].modalities == NAMES
    for scenario in scenarios:
        samples, touched = show(scenario, held)
        assert {name for name, own in samples.items() if own} == set(scenario.modalities)
        assert touched[:, 0].any() == ("clinical" not in scenario.modalities)


def test_random_removal_has_its_rate_and_is_nested(held):
    before = set(held.data["expression"].samples) & set(held.ids)
    last = before
    for rate in (0.0, 0.1, 0.5, 0.9):
        now = set(show(one("mcar", rate), held)[0]["expression"])
        assert now <= last
        assert abs(1 - len(now) / len(before) - rate) < 0.1
        last = now
    other = set(show(one("mcar", 0.5, draw=1), held)[0]["expression"])
    assert other != set(show(one("mcar", 0.5), held)[0]["expression"])


def test_removal_at_random_depends_on_what_stays_and_not_on_the_rest(held):
    samples, touched = show(one("mar", 0.5, "stains"), held)
    assert counted(samples)["clinical"] == 200
    from medfuse.scenarios import _reading

    reading, had = _reading(held), np.array([i in held.data["stains"].samples for i in held.ids])
    hidden = touched[:, 2]
    assert reading[hidden].mean() - reading[had & ~hidden].mean() > 0.8
    assert abs(hidden.sum() / had.sum() - 0.5) < 0.1
    with pytest.raises(ConfigError, match="besides clinical"):
        plan("mar", NAMES, chosen=["clinical"], anchor="clinical")


def test_removal_not_at_random_follows_the_outcome_and_flips(held):
    sides = side(held.target, held.middle)
    for mechanism, wanted in (("mnar", 1), ("mnar-flip", -1)):
        _, touched = show(one(mechanism, 0.8, "clinical"), held)
        assert not touched[sides != wanted].any()
        assert abs(touched[sides == wanted, 0].mean() - 0.8) < 0.1
        assert not touched[:, 1:].any()


def test_sides_of_every_kind_of_outcome():
    observed = np.array([True, True, True, False])
    survival = Survival(event=np.array([True, False, False, True]), time=np.array([1.0, 9, 1, 1]), observed=observed)
    assert side(survival, 5.0).tolist() == [1, -1, 0, 0]  # censored early: neither
    labels = Labels(label=np.array([0, 1, 2, 1]), classes=("a", "b", "c"), observed=observed)
    assert side(labels, 0.0).tolist() == [-1, 1, 1, 0]
    values = Values(value=np.array([1.0, 3, 2, 9]), observed=observed)
    assert side(values, 2.0).tolist() == [-1, 1, -1, 0]


def test_noise_on_bags_in_half_precision_stays_finite(held):
    """As the store keeps them: the square of a deviation of 300 is beyond what half precision holds."""
    wide = {
        i: ModalitySample.trusted(tokens=(300 * s.tokens).astype(np.float16), position=s.position)
        for i, s in held.data["stains"].samples.items()
    }
    stains = dataclasses.replace(held.data["stains"], samples=wide)
    noisy = show(one("noise", 1.0, "stains"), dataclasses.replace(held, data={**held.data, "stains": stains}))[0]
    moved = [s.tokens - wide[i].tokens for i, s in noisy["stains"].items()]
    assert 200 < np.concatenate(moved).std() < 400


def test_noise_has_its_size_and_leaves_missing_cells_missing(held):
    for name, rate in (("expression", 0.5), ("clinical", 2.0)):
        samples, _ = show(one("noise", rate, name), held)
        own = held.data[name].samples
        delta = np.stack([samples[name][i].tokens - own[i].tokens for i in samples[name]])
        assert not delta[..., 1].any()
        numeric = delta[:, 0, 0][np.stack([own[i].tokens[0, 1] > 0 for i in samples[name]])]
        assert np.std(numeric) == pytest.approx(rate, rel=0.2)
    levels = {float(samples["clinical"][i].tokens[3, 0]) for i in samples["clinical"]}
    assert levels <= {0.0, 1.0, 2.0}  # a coded cell stays a level
    assert delta[:, 3, 0].any()


def test_dilution_adds_and_never_takes_away(held):
    samples, touched = show(one("dilution", 1.0, "stains", "clinical"), held)
    for patient, sample in samples["stains"].items():
        own = held.data["stains"].samples[patient]
        assert len(sample.tokens) == 2 * len(own.tokens)
        np.testing.assert_array_equal(sample.tokens[: len(own.tokens)], own.tokens)
    for patient, sample in samples["clinical"].items():
        own = held.data["clinical"].samples[patient].tokens
        seen = own[:, 1] > 0
        np.testing.assert_array_equal(sample.tokens[seen], own[seen])
        assert sample.tokens[:, 1].all()  # at rate 1 every empty cell is filled
    assert 0 < touched[:, 0].sum() < 200


def test_swapped_samples_come_from_another_patient(held):
    samples, touched = show(one("swap", 0.5, "stains"), held)
    own = held.data["stains"].samples
    moved = [i for i in samples["stains"] if samples["stains"][i] is not own[i]]
    assert len(moved) == touched[:, 2].sum() > 50
    assert {id(samples["stains"][i]) for i in moved} == {id(own[i]) for i in moved}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_scenario_keeps_every_patient_and_the_data_and_is_reproducible(held, cohort, mechanism):
    scenario = [s for s in plan(mechanism, NAMES, anchor="clinical") if s.rate != 0][-1]
    frozen = {n: {i: s.tokens.copy() for i, s in m.samples.items()} for n, m in cohort.data.items()}
    first, second = show(scenario, held), show(scenario, held)
    for name in NAMES:
        assert set(first[0][name]) <= set(held.ids)
        assert list(first[0][name]) == list(second[0][name])
        for i, sample in first[0][name].items():
            np.testing.assert_array_equal(sample.tokens, second[0][name][i].tokens)
        for i, tokens in frozen[name].items():
            np.testing.assert_array_equal(cohort.data[name].samples[i].tokens, tokens)
    other = show(scenario, dataclasses.replace(held, seed=2))[1]
    assert mechanism == "subsets" or (other != first[1]).any() or mechanism in ("noise", "dilution", "swap")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"mechanism": "mcarr"}, 'did you mean "mcar"'),
        ({"mechanism": "mcar", "chosen": ["stain"]}, 'did you mean "stains"'),
        ({"mechanism": "mcar", "rates": [50.0]}, r"rates in \[0, 1\], found 50; 50 % is 0.5"),
        ({"mechanism": "subsets", "rates": [0.5]}, "no --rate"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, said):
    mechanism = words.pop("mechanism")
    with pytest.raises(ConfigError, match=said):
        plan(mechanism, NAMES, **words)


def test_noise_is_as_large_as_the_spread_of_each_identity():
    draw = np.random.default_rng(0)
    ids = tuple(f"p{k}" for k in range(200))
    position = np.arange(2, dtype=np.float32)[:, None]
    apart = np.array([[0.0], [10.0]])  # the two stains are ten of their standard deviations apart
    samples = {
        i: ModalitySample(tokens=(draw.normal(size=(2, 6)) + apart).astype(np.float32), position=position) for i in ids
    }
    stains = ModalityData(name="stains", layout="vectors", features=6, identities=("he", "ki67"), samples=samples)
    held = Held(
        ids=ids[100:],
        data={"stains": stains},
        train=ids[:100],
        target=Labels(label=np.zeros(100, dtype=int), classes=("a", "b")),
        middle=0,
        anchor="stains",
        number=0,
        seed=0,
    )
    noisy = show(one("noise", 1.0, "stains"), held)[0]["stains"]
    moved = np.stack([noisy[i].tokens - samples[i].tokens for i in held.ids])
    np.testing.assert_allclose(moved.std(axis=(0, 2)), 1.0, atol=0.15)
