"""Presence that goes with the outcome is hidden until it does not, and nothing else is hidden."""

import numpy as np
import pytest
import torch

from medfuse.batch import target_tensors
from medfuse.targets import Labels, Survival, Values
from medfuse.training.presence import balance, hide, outcome_strata, predicts

N = 4000


def rates(present, keep, strata):
    weight = present.numpy() * keep.numpy()
    return np.array([weight[strata == level].mean(axis=0) for level in np.unique(strata[strata >= 0])])


@pytest.fixture
def outcomes():
    draw = np.random.default_rng(0)
    risk = draw.normal(size=N)
    time, censoring = draw.exponential(size=N) / np.exp(risk), draw.exponential(2, size=N)
    known = draw.random(N) < 0.9
    return draw, {
        "labels": Labels(label=(risk > 0.5).astype(int), classes=("no", "yes"), observed=known),
        "os": Survival(event=time < censoring, time=np.minimum(time, censoring)),
        "size": Values(value=risk, observed=known),
    }


@pytest.mark.parametrize("name", ["labels", "os", "size"])
def test_presence_becomes_independent_of_the_outcome(outcomes, name):
    draw, targets = outcomes
    target = target_tensors(targets[name])
    strata = outcome_strata(target)
    high = strata == strata.max()
    told = draw.random(N) < np.where(high, 0.2, 0.9)
    present = torch.from_numpy(np.stack([told, draw.random(N) < 0.5], axis=1))
    keep = balance(present, {name: target})
    after = rates(present, keep, strata)
    assert np.ptp(after[:, 0]) < 1e-9
    assert after[0, 0] == pytest.approx(0.2, abs=0.05)
    assert (keep[:, 1] == 1).all()  # presence that predicts nothing
    assert (keep[torch.from_numpy(strata < 0)] == 1).all()  # unknown outcome
    assert 0 <= float(keep.min()) <= float(keep.max()) == 1


def test_several_outcomes_are_balanced_together(outcomes):
    draw, targets = outcomes
    tensors = {name: target_tensors(targets[name]) for name in ("labels", "os")}
    told = draw.random(N) < np.where(targets["labels"].label == 1, 0.3, 0.8)
    present = torch.from_numpy(told[:, None])
    keep = balance(present, tensors)
    for target in tensors.values():
        assert np.ptp(rates(present, keep, outcome_strata(target))) < 0.02


def test_small_strata_join_the_nearest_of_their_kind():
    time = np.concatenate([np.linspace(1, 10, 60), [1.0, 2.0, 9.5]])
    event = np.concatenate([np.ones(60, bool), np.zeros(3, bool)])
    strata = outcome_strata(target_tensors(Survival(event=event, time=time)))
    assert np.unique(strata, return_counts=True)[1].min() >= 10


@pytest.mark.parametrize("events", [12, 20, 27, 29, 60])
def test_few_events_are_balanced_with_each_other(events):
    """Thirds of them are small: joined to censored patients, they would hide what is to be found."""
    draw = np.random.default_rng(0)
    event = np.arange(300) < events
    strata = outcome_strata(target_tensors(Survival(event=event, time=draw.exponential(1000, size=300))))
    assert all(len(set(event[strata == level])) == 1 for level in np.unique(strata))
    assert predicts(np.arange(300) >= 0.8 * events, strata)


def test_small_classes_and_quarters_join_the_nearest():
    label = np.repeat([0, 1, 2], [100, 50, 4])
    found = outcome_strata(target_tensors(Labels(label=label, classes=("a", "b", "c"))))
    np.testing.assert_array_equal(found, np.repeat([0, 1, 1], [100, 50, 4]))
    values = outcome_strata(target_tensors(Values(value=np.arange(24.0))))
    assert (np.diff(values) >= 0).all()
    assert np.unique(values, return_counts=True)[1].min() >= 10


def test_a_test_of_presence_has_its_level(outcomes):
    draw, targets = outcomes
    strata = outcome_strata(target_tensors(targets["os"]))
    found = np.mean([predicts(draw.random(N) < 0.6, strata) for _ in range(400)])
    assert 0.02 < found < 0.09


def test_hiding_follows_the_probabilities_and_leaves_global_state_alone(batch_of):
    batch = batch_of(2000, 0)
    state = torch.get_rng_state()
    keep = torch.full((2000, 1), 0.3, dtype=torch.float64)
    shown = hide(batch, keep, generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    assert float(shown.present.double().mean()) == pytest.approx(0.3, abs=0.04)
    again = hide(batch, keep, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shown.present, again.present)
    assert shown.tokens is batch.tokens
