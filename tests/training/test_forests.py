"""Forests as members: they say what the grown trees say, and everything that works with members works with them."""

import dataclasses

import numpy as np
import pytest
import simulated
import torch
from sksurv.ensemble import RandomSurvivalForest

from medfuse.errors import ConfigError
from medfuse.models import ModelSettings
from medfuse.sample import ModalityData
from medfuse.targets import Survival
from medfuse.training import FoldSettings, Outcomes, TrainSettings, fit_fold, load_fold, predict_fold, save_fold
from medfuse.training import forests as growing
from medfuse.training.fold import chunks, speak
from medfuse.training.forests import DEPTH

QUICK = TrainSettings(epochs=2, lr=3e-3, batch_size=64, device="cpu", patience=0)
SETTINGS = FoldSettings(model=ModelSettings(width=16), train=QUICK, seeds=(0, 1), forests=True)


TREES = 12


@pytest.fixture(scope="module", autouse=True)
def fewer_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfuse.training.forests.TREES", TREES)
        yield


@pytest.fixture(scope="module")
def fold(cohort):
    ids = cohort.ids[:110]
    return fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=SETTINGS)


def test_beside_each_network_of_one_modality_stands_a_forest(fold):
    networks = [(m.seed, m.inner, m.expert) for m in fold.members if m.expert and not m.forest]
    trees = [(m.seed, m.inner, m.expert) for m in fold.members if m.forest]
    assert sorted(networks) == sorted(trees)
    assert len(trees) == 2 * 2 * 3
    assert fold.experts == ("", "clinical", "expression", "stains")
    assert len({m.name for m in fold.members}) == len(fold.members)
    assert all(m.history == () for m in fold.members if m.forest)


@pytest.mark.parametrize("modality", ["clinical", "expression", "stains"])
def test_a_forest_says_what_scikit_survivals_trees_say(monkeypatch, cohort, fold, modality):
    """Softness to nothing: each tree sends a patient to one leaf, and that is the leaf of the library's tree."""
    kept = []
    grown = growing._grown
    monkeypatch.setattr(
        growing, "_grown", lambda x, target, seed: kept.append((x, target, seed)) or grown(x, target, seed=seed)
    )
    ids = tuple(i for i in cohort.ids[:110] if i in cohort.data[modality].samples)
    blank = next(m for m in fold.members if m.forest and m.expert == modality)
    blank = softened(dataclasses.replace(blank, state={}), 1e-6)
    targets = cohort.outcomes.take(ids)
    member = growing.grow(blank, chunks(blank, cohort.data, ids), targets, seed=3)
    (x, target, seed), *_ = [one for one in kept if isinstance(one[1], Survival)]
    outcome = np.array(
        list(zip(target.event, np.maximum(target.time, 0.5), strict=True)), dtype=[("e", "?"), ("t", "f8")]
    )
    theirs = RandomSurvivalForest(
        n_estimators=TREES,
        max_depth=DEPTH,
        min_samples_leaf=10,
        max_features="sqrt",
        random_state=seed,
        low_memory=True,
    ).fit(x, outcome)
    expected = np.zeros(len(x))
    for tree in (one.tree_ for one in theirs.estimators_):
        leaf, ends = tree.apply(x), tree.children_left < 0
        value, count = tree.value.ravel(), tree.weighted_n_node_samples * ends
        mean = (count * value).sum() / count.sum()
        spread = np.sqrt((count * (value - mean) ** 2).sum() / count.sum()) or 1.0
        expected += (value[leaf] - mean) / spread / TREES
    model = member.build()
    batch = make_one(member, cohort, ids)
    state = model.encode(batch)[0][0][:, 0, 0].numpy()
    np.testing.assert_allclose(state, expected, atol=2e-4)
    said = speak(member, chunks(member, cohort.data, ids))["os"].mean(axis=1)
    assert (np.diff(said[np.argsort(expected)]) > -1e-4).all()  # what the head makes of it keeps the order
    assert np.corrcoef(said, expected)[0, 1] > 0.99


def make_one(member, cohort, ids):
    (batch,) = chunks(member, cohort.data, ids)
    return batch


def test_softened_splits_change_little(cohort, fold):
    ids = cohort.ids[110:]
    member = next(m for m in fold.members if m.forest and m.expert == "clinical")
    soft = speak(member, chunks(member, cohort.data, ids))["os"].mean(axis=1)
    hard = speak(softened(member, 1e-6), chunks(member, cohort.data, ids))["os"].mean(axis=1)
    assert np.corrcoef(soft, hard)[0, 1] > 0.99
    assert (soft != hard).any()


def softened(member, softness):
    encoders = {m: {**options, "softness": softness} for m, options in member.settings.encoders.items()}
    return dataclasses.replace(member, settings=dataclasses.replace(member.settings, encoders=encoders))


def test_what_is_saved_says_the_same(fold, cohort, tmp_path):
    ids = cohort.ids[110:]
    save_fold(fold, tmp_path / "fold")
    one, two = (predict_fold(f, cohort.data, ids) for f in (fold, load_fold(tmp_path / "fold")))
    for outcome in one:
        assert np.array_equal(one[outcome].risk_score, two[outcome].risk_score)


def test_a_fit_goes_on_with_the_forests_there_are_and_draws_nothing_from_outside(fold, cohort, tmp_path):
    ids = cohort.ids[:110]
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for _ in range(2):
        again = fit_fold(
            cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=SETTINGS, folder=tmp_path
        )
        for one, other in zip(fold.members, again.members, strict=True):
            assert one.name == other.name
            assert all(torch.equal(one.state[k], other.state[k]) for k in one.state), one.name
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def interaction(n, kind):
    """Two coded columns that tell nothing alone: which of them agree decides."""
    rng = np.random.default_rng(7)
    x = rng.integers(0, 2, size=(n, 2))
    agree = x[:, 0] == x[:, 1]
    cohort = simulated.simulate(n)
    column = cohort.data["clinical"].columns[0]
    columns = tuple(dataclasses.replace(column, name=f"c{k}", kind="numeric", unit="", levels=()) for k in range(2))
    samples = {}
    for i, row in zip(cohort.ids, x, strict=True):
        old = next(iter(cohort.data["clinical"].samples.values()))
        tokens = np.stack([row.astype(np.float32), np.ones(2, np.float32)], axis=1)
        samples[i] = dataclasses.replace(old, tokens=tokens, position=np.arange(2, dtype=np.float32)[:, None])
    data: dict[str, ModalityData] = {
        "clinical": dataclasses.replace(cohort.data["clinical"], columns=columns, samples=samples),
        "expression": cohort.data["expression"],
    }
    target = cohort.outcomes.targets[kind]
    if kind == "os":
        time = rng.exponential(np.where(agree, 200.0, 1500.0)) + 1
        target = dataclasses.replace(target, time=time, event=np.ones(n, dtype=bool), observed=np.ones(n, dtype=bool))
    elif kind == "recurrence":
        target = dataclasses.replace(target, label=agree.astype(np.int64), observed=np.ones(n, dtype=bool))
    else:
        target = dataclasses.replace(
            target, value=40.0 + 10 * agree + rng.normal(size=n), observed=np.ones(n, dtype=bool)
        )
    return cohort, data, Outcomes(patient_ids=cohort.ids, targets={kind: target}), agree


@pytest.mark.parametrize("kind", ["os", "recurrence", "size"])
def test_trees_find_an_interaction_of_coded_columns(monkeypatch, kind):
    monkeypatch.setattr("medfuse.training.forests.TREES", 34)
    cohort, data, outcomes, agree = interaction(150, kind)
    ids = cohort.ids[:110]
    fold = fit_fold(
        data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=dataclasses.replace(SETTINGS, seeds=(0,))
    )
    held = cohort.ids[110:]
    ours = np.mean(
        [speak(m, chunks(m, data, held))[kind][:, -1] for m in fold.members if m.forest and m.expert == "clinical"],
        axis=0,
    )
    yes, no = ours[agree[110:]], ours[~agree[110:]]
    assert (yes[:, None] > no[None, :]).mean() > 0.95  # AUROC of what decides
    assert (predict_fold(fold, data, held)[kind].risk_score[agree[110:]].mean()) > predict_fold(fold, data, held)[
        kind
    ].risk_score[~agree[110:]].mean()


@pytest.mark.parametrize("outcome", ["os", "recurrence", "size"])
def test_of_many_patients_a_part_grows_a_forest_and_rare_events_stay(cohort, fold, monkeypatch, outcome):
    monkeypatch.setattr(growing, "MOST", 30)
    target = cohort.outcomes.targets[outcome]
    if outcome == "os":
        rare = np.zeros(150, dtype=bool)
        rare[np.flatnonzero(target.observed)[:12]] = True
        target = dataclasses.replace(target, event=rare)
    drawn = [growing._drawn(target, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert target.observed[drawn[0]].all()
    assert 25 <= len(drawn[0]) <= 50
    if outcome == "os":
        assert target.event[drawn[0]].sum() == 10  # 12 of 150 would be 2 of 30
    ids = tuple(i for i in cohort.ids[:110] if i in cohort.data["clinical"].samples)
    blank = dataclasses.replace(next(m for m in fold.members if m.forest and m.expert == "clinical"), state={})
    member = growing.grow(blank, chunks(blank, cohort.data, ids), cohort.outcomes.take(ids), seed=3)
    said = speak(member, chunks(member, cohort.data, ids))[outcome]
    assert np.isfinite(said).all()
    assert np.ptp(said[:, -1]) > 0


def test_forests_are_refused_where_they_cannot_stand(cohort):
    with pytest.raises(ConfigError, match=r"train\.forests: expected train\.unimodal"):
        FoldSettings(forests=True, unimodal=False)
    with pytest.raises(ConfigError, match='"forest" is no encoder of a network'):
        FoldSettings(model=ModelSettings(encoders={"clinical": {"name": "forest"}}))


def test_without_scikit_survival_networks_stand_alone_and_the_record_says_so(cohort, monkeypatch):
    monkeypatch.setattr("medfuse.training.forests.find_spec", lambda name: None)
    ids = cohort.ids[:110]
    chosen = dataclasses.replace(SETTINGS, seeds=(0,))
    fold = fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen)
    assert not any(m.forest for m in fold.members)
    assert any("forests: left out of the experts: scikit-survival" in line for line in fold.describe("os"))
