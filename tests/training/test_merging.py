"""Merging of blocks trained apart: what must be exact, what must be symmetric, and what it is worth."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import simulated
import torch

from medfuse.cli import main
from medfuse.errors import CohortError, ConfigError, ModelError, StoreError
from medfuse.merging import merge_folders
from medfuse.merging import merge_members as merge_for_good
from medfuse.models import HeadSettings, ModelSettings, build_model
from medfuse.models.fusion.lego import merge_latents
from medfuse.training import (
    FoldSettings,
    Member,
    TrainSettings,
    fit_fold,
    load_fold,
    load_member,
    predict_fold,
    save_fold,
    save_member,
)
from medfuse.training.checkpoint import weights_sha256
from medfuse.training.fold import chunks, speak
from medfuse.training.merging import balanced_weights, merge_members, spherical_mean, tuning_weights
from medfuse.training.regridding import _part
from medfuse.training.score import harrell_c

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from model_cases import HEADS_OF, SHAPES, make_batch

QUICK = TrainSettings(epochs=4, lr=3e-3, batch_size=64, device="cpu", patience=0)
LEGO = {"name": "lego", "latents": 4}


def settings(**changes):
    model = ModelSettings(width=16, fusion={**LEGO, **changes.pop("fusion", {})})
    return FoldSettings(**{"model": model, "train": QUICK, "seeds": (0,), "merge": True, **changes})


@pytest.fixture(scope="module")
def fold(cohort):
    ids = cohort.ids[:110]
    return fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings())


def parts(fold, *, inner=0):
    return [m for m in fold.members if m.expert and m.inner == inner]


def links(member, cohort, ids):
    return speak(member, chunks(member, cohort.data, ids))


# --- spherical mean ---------------------------------------------------------------------------------------------


def test_two_tensors_give_the_spherical_interpolation_and_both_ends_exactly():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 5, generator=g), 2 * torch.randn(3, 5, generator=g)
    u, v = (t.double().flatten() / t.double().norm() for t in (a, b))
    angle = math.acos(float(u @ v))
    for t in (0.25, 0.5, 0.9):
        direction = (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)
        norm = (1 - t) * float(a.double().norm()) + t * float(b.double().norm())
        found = spherical_mean([a, b], [1 - t, t])
        assert torch.allclose(found.double().flatten(), direction * norm, atol=1e-5)
    assert torch.equal(spherical_mean([a, b], [1.0, 0.0]), a)
    assert torch.equal(spherical_mean([a, b], [0.0, 1.0]), b)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),  # the scales of fresh norms
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),  # their shifts
        ([0.0, 0.0], [2.0, 0.0], [1.0, 0.0]),
        ([1.0, 0.0], [3.0, 1e-6], [2.0, 5e-7]),
        ([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]),
    ],
)
def test_parallel_opposite_and_zero_tensors_are_averaged_on_the_line(one, other, expected):
    found = spherical_mean([torch.tensor(one), torch.tensor(other)], [0.5, 0.5])
    assert found.tolist() == pytest.approx(expected, abs=1e-7)


def test_any_number_of_tensors_in_any_order():
    g = torch.Generator().manual_seed(1)
    three = [torch.randn(8, generator=g) for _ in range(3)]
    one = spherical_mean(three, [0.2, 0.3, 0.5])
    assert torch.allclose(one, spherical_mean([three[2], three[0], three[1]], [0.5, 0.2, 0.3]), atol=1e-6)
    axes = list(torch.eye(3))
    assert torch.allclose(spherical_mean(axes, [1 / 3] * 3), torch.full((3,), 3**-0.5), atol=1e-6)


# --- latents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["none", "fft_feature", "fft_token"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_merger_of_equal_latents_is_that_latent(domain, share):
    latent = torch.randn(3, 1, 4, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 2, -1, -1)
    weight = torch.tensor([[share, 1 - share]]).expand(3, -1)
    assert torch.allclose(merge_latents(latent, weight, domain=domain), latent[:, 0], atol=1e-6)


def test_magnitudes_are_averaged_harmonically_and_phases_on_the_circle():
    wave = torch.tensor([1.0, 0.0, -1.0, 0.0])  # one frequency, phase 0
    both = torch.stack([wave, 3 * wave])[None, :, None]
    half = torch.tensor([[0.5, 0.5]])
    assert torch.allclose(merge_latents(both, half, domain="fft_feature")[0, 0], 1.5 * wave, atol=1e-6)
    angle = torch.tensor(math.pi - 0.1)
    time = torch.arange(8) * (2 * math.pi / 8)
    near = torch.stack([torch.cos(time + angle), torch.cos(time - angle)])[None, :, None]
    found = merge_latents(near, half, domain="fft_feature")[0, 0]
    assert torch.allclose(found, torch.cos(time + math.pi) * math.cos(0.1), atol=1e-5)  # not a wave of phase 0


# --- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["none", "fft_feature", "fft_token"])
def test_two_copies_of_a_block_predict_as_the_block(fold, cohort, domain):
    one = parts(fold)[1]
    one = dataclasses.replace(
        one, settings=dataclasses.replace(one.settings, fusion={**one.settings.fusion, "domain": domain})
    )
    name = one.expert
    copy = dataclasses.replace(
        one, shapes={"copy": one.shapes[name]}, preprocessing={"copy": one.preprocessing[name]}, expert="copy"
    )
    merged = merge_members([one, copy])
    data = {name: cohort.data[name], "copy": cohort.data[name]}
    ids = [i for i in cohort.ids if i in cohort.data[name].samples]
    found = speak(merged, chunks(merged, data, ids))
    expected = links(one, cohort, ids)
    for outcome in expected:
        assert np.abs(found[outcome] - expected[outcome]).max() <= 1e-6 * np.abs(expected[outcome]).max()


def test_the_merged_logit_is_the_weighted_mean_over_what_a_patient_has(fold, cohort):
    members = parts(fold)
    weights = [0.5, 0.2, 0.3]
    merged = merge_members(members, weights=weights)
    ids = cohort.ids[110:]
    batch = chunks(merged, cohort.data, ids)[0]
    with torch.inference_mode():
        found = merged.build()(batch)["os"]
        each = []
        for member in members:
            own = chunks(member, cohort.data, ids)[0]
            each.append(member.build()(own)["os"])
    weight = torch.tensor(weights) * batch.present
    weight = weight / weight.sum(1, keepdim=True)
    level = merged.build().head("os").level
    apart = [m.build().head("os").level for m in members]
    expected = level + sum(w[:, None] * (e - a) for w, e, a in zip(weight.T, each, apart, strict=True))
    rows = batch.present.any(1)
    assert float((found - expected)[rows].abs().max().detach()) < 1e-4
    assert not batch.present.all()


def apart(cohort, ids, name):
    """A member of one modality that saw only ``ids``: its own preprocessing, population and time grid."""
    data = {name: cohort.data[name]}
    chosen = dataclasses.replace(settings(merge=False), unimodal=False)
    return fit_fold(data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen).members[0]


def test_blocks_of_different_patients_are_merged_though_their_time_grids_differ(cohort):
    first, second = (tuple(i for i in cohort.ids[k:110:2] if i in cohort.data["clinical"].samples) for k in (0, 1))
    one, other = apart(cohort, first, "clinical"), apart(cohort, second, "expression")
    grids = [m.heads["os"].time_grid for m in (one, other)]
    assert not set(first) & set(second)
    assert grids[0] != grids[1]
    merged = merge_members([one, other], weights=[1, 3])
    edges = merged.heads["os"].time_grid
    assert edges[-1] == min(g[-1] for g in grids)  # no curve beyond what both have seen
    assert set(edges) == {e for g in grids for e in g if e <= edges[-1]}
    ids = [i for i in cohort.ids[110:] if all(i in cohort.data[m].samples for m in ("clinical", "expression"))]
    for alone in (one, other):  # a patient with one modality gets that block's curve, on the finer grid
        (name,) = alone.shapes
        mine = merge_members([alone, other if alone is one else one], weights=[1, 0])
        batch = chunks(mine, {name: cohort.data[name]}, ids)[0]
        own = chunks(alone, cohort.data, ids)[0]
        with torch.inference_mode():
            found = mine.build().predict(batch)["os"]["survival"].numpy()
            expected = alone.build().predict(own)["os"]["survival"].numpy()
        old = alone.heads["os"].time_grid
        shared = [e for e in old if e <= edges[-1]]
        gap = found[:, [edges.index(e) for e in shared]] - expected[:, [old.index(e) for e in shared]]
        assert np.abs(gap).max() < 0.01
        assert (np.diff(found, axis=1) <= 0).all()
    links_of_both = links(merged, cohort, ids)["os"]
    assert np.isfinite(links_of_both).all()
    assert links_of_both.std(axis=0).min() > 0


def test_parting_an_interval_keeps_the_curve_of_the_population():
    h = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for parts in ([0.25, 0.75], [0.1, 0.2, 0.7], [1.0]):
        free = torch.stack([torch.sigmoid(-_part(h.logit(), torch.tensor(p, dtype=torch.float64))) for p in parts])
        assert torch.allclose(free.prod(0), 1 - h, atol=1e-12)


def test_the_order_of_equally_weighted_members_does_not_matter(fold, cohort):
    members, ids = parts(fold), cohort.ids[110:]
    one = links(merge_members(members, weights=[1, 1, 1]), cohort, ids)
    other = links(merge_members(members[::-1], weights=[2, 2, 2]), cohort, ids)
    for outcome in one:
        assert np.allclose(one[outcome], other[outcome], atol=1e-5)


def scattered(names, *, seed, heads, **fusion):
    """A member whose weights are all random, so that nothing agrees by chance."""
    torch.manual_seed(seed)
    shapes = {name: SHAPES[name] for name in names}
    chosen = ModelSettings(width=16, fusion={**LEGO, **fusion})
    state = {
        key: tensor if key == "fusion.share" else tensor + 0.3 * torch.randn_like(tensor)
        for key, tensor in build_model(chosen, shapes=shapes, heads=heads).state_dict().items()
    }
    return Member(seed=0, inner=0, preprocessing={}, shapes=shapes, settings=chosen, heads=heads, state=state)


def logits(member, batch):
    names = tuple(member.shapes)
    own = dataclasses.replace(
        batch, modalities=names, present=batch.present[:, [batch.modalities.index(name) for name in names]]
    )
    with torch.inference_mode():
        return member.build()(own)


def reordered(member, outcomes):
    """The same network, its outcomes in another order."""
    old, state = list(member.heads), {}
    for key, tensor in member.state.items():
        part, number, *rest = key.split(".")
        moved = [part, str(outcomes.index(old[int(number)])), *rest] if part == "heads" else [part, number, *rest]
        state[".".join(moved)] = tensor
    return dataclasses.replace(member, heads={name: member.heads[name] for name in outcomes}, state=state)


def test_each_run_may_list_the_outcomes_in_an_order_of_its_own():
    survival = HEADS_OF["os"]
    heads = {"a": HEADS_OF["recurrence"], "b": HEADS_OF["recurrence"], "c": survival, "d": survival}
    later = dataclasses.replace(survival, time_grid=(4.0, 12.0, 18.0))  # both survivals get a common grid
    one, other = (
        scattered([name], seed=k, heads=heads if k == 0 else {**heads, "c": later, "d": later})
        for k, name in enumerate(("table", "bag"))
    )
    turned = reordered(other, ["d", "b", "c", "a"])
    batch = make_batch(names=("table", "bag"))
    for outcome, said in logits(other, batch).items():
        assert torch.equal(logits(turned, batch)[outcome], said)
    expected = merge_members([one, other], weights=[1, 2])
    found = merge_members([one, turned], weights=[1, 2])
    assert list(found.heads) == list("abcd")
    assert weights_sha256(found.state) == weights_sha256(expected.state)
    back = merge_members([turned, one], weights=[2, 1])
    assert list(back.heads) == list("dbca")
    for outcome, said in logits(expected, batch).items():
        assert torch.allclose(logits(back, batch)[outcome], said, atol=1e-4)


@pytest.mark.parametrize("domain", ["none", "fft_feature"])
def test_without_any_modality_the_logits_are_the_weighted_mean_of_the_members_own(domain):
    members = [
        scattered(names, seed=k, heads=HEADS_OF, domain=domain)
        for k, names in enumerate((("table", "wide"), ("bag", "stains")))
    ]
    batch = make_batch(2)
    batch = dataclasses.replace(batch, present=torch.zeros_like(batch.present))
    each = [logits(member, batch) for member in members]
    for outcome, said in logits(merge_members(members, weights=[1, 3]), batch).items():
        expected = 0.25 * each[0][outcome] + 0.75 * each[1][outcome]
        assert float((said - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max())), outcome
        assert float((each[0][outcome] - each[1][outcome]).abs().max()) > 0.01


def test_weights_come_from_tuning_scores(fold):
    members = parts(fold)
    chance = np.mean([0.0 if head.kind == "continuous" else 0.5 for head in members[0].heads.values()])
    scores = [m.history[m.best_epoch - 1]["tuning_score"] - chance for m in members]
    expected = np.maximum(scores, 1e-3) / np.maximum(scores, 1e-3).sum()
    assert tuning_weights(members) == pytest.approx(expected.tolist())
    assert merge_members(members).state["fusion.share"].tolist() == pytest.approx(expected.tolist())
    said = [{"os": np.array([[-s], [s]]), "size": np.array([[0.0], [8 * s]])} for s in (1.0, 2.0, 4.0)]
    spread = np.array([2.0, 4.0, 8.0])  # sqrt(1 x 4), ...
    assert balanced_weights(members, said) == pytest.approx((np.array(tuning_weights(members)) / spread).tolist())
    assert balanced_weights(members, [None, *said[1:]]) == tuning_weights(members)
    assert tuning_weights([dataclasses.replace(members[0], history=()), members[1]]) == [0.5, 0.5]
    values = {"size": HeadSettings(kind="continuous", name="gaussian")}
    alone = [
        dataclasses.replace(m, heads=values, history=({"tuning_score": share},), best_epoch=1)
        for m, share in zip(members, (0.1, 0.3), strict=False)
    ]
    assert tuning_weights(alone) == pytest.approx([0.25, 0.75])  # chance is no explained variance


def test_members_that_cannot_be_put_together_are_refused(fold):
    one, two, _ = parts(fold)
    wider = dataclasses.replace(two, settings=dataclasses.replace(two.settings, width=32))
    late = dataclasses.replace(two, settings=dataclasses.replace(two.settings, fusion={"name": "late"}))
    for members, weights, message in (
        ([one], None, "two or more members"),
        ([one, one], None, "different modalities"),
        ([one, wider], None, "the same width"),
        ([one, late], None, "fusion lego, found late"),
        ([one, dataclasses.replace(two, heads={"os": two.heads["os"]})], None, "the same outcomes"),
        ([one, two], [1.0], "2 weights"),
        ([one, two], [0.0, 0.0], "not all 0"),
        ([one, two], [1.0, float("nan")], "weights >= 0"),
    ):
        with pytest.raises(ModelError, match=message):
            merge_members(members, weights=weights)


# --- in a fold, and on disk -------------------------------------------------------------------------------------


def test_the_joint_network_of_a_fold_is_the_merger_of_its_unimodal_ones(fold, cohort):
    joint = [m for m in fold.members if not m.expert]
    assert [m.name for m in joint] == ["00-00", "00-01"]
    assert fold.experts == ("", "clinical", "expression", "stains")
    for member in joint:
        own = parts(fold, inner=member.inner)
        unseen = [[i for i in fold.train_ids[member.inner :: 2] if i in cohort.data[m.expert].samples] for m in own]
        said = [links(m, cohort, ids) for m, ids in zip(own, unseen, strict=True)]
        expected = merge_members(own, weights=balanced_weights(own, said))
        assert weights_sha256(member.state) == weights_sha256(expected.state)
        assert member.history == ()
        assert list(member.shapes) == list(fold.modalities)


def test_what_a_part_weighs_was_found_on_other_inner_folds(cohort, monkeypatch):
    """Or an inner score of the merged network would be of the patients who chose its weights."""
    ids, asked = cohort.ids[:110], []

    def watched(members, links, *, judges):
        asked.append(({m.inner for m in members}, {m.inner for one in judges for m in one}, {m.seed for m in members}))
        assert all([m.expert for m in one] == [m.expert for m in members] for one in judges)
        found = balanced_weights(members, links, judges=judges)
        if len(asked) == 1:  # the scores of its own tuning patients are not read
            spoiled = [dataclasses.replace(m, history=(), best_epoch=0) for m in members]
            assert found == balanced_weights(spoiled, links, judges=judges)
            assert found != balanced_weights(members, links, judges=[scored(judges[0], (0.9, 0.6, 0.7))])
        return found

    monkeypatch.setattr("medfuse.training.members.balanced_weights", watched)
    fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings(seeds=(0, 1)))
    assert sorted(map(str, asked)) == sorted(map(str, [({k}, {1 - k}, {s}) for k in (0, 1) for s in (0, 1)]))


def scored(members, scores):
    return [
        dataclasses.replace(m, history=({"tuning_score": s},), best_epoch=1)
        for m, s in zip(members, scores, strict=True)
    ]


def test_a_merged_fold_lies_on_disk_goes_on_and_predicts(cohort, tmp_path):
    ids = cohort.ids[:110]
    chosen = settings(tune_epochs=2, fusion={"combine": "weave"})

    def fit():
        return fit_fold(
            cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen, folder=tmp_path / "f"
        )

    fold = fit()
    joint = [m for m in fold.members if not m.expert]
    assert [len(m.history) for m in joint] == [2, 2]
    assert weights_sha256(joint[0].state) != weights_sha256(merge_members(parts(fold)).state)
    again = fit()
    assert [weights_sha256(m.state) for m in again.members] == [weights_sha256(m.state) for m in fold.members]
    save_fold(fold, tmp_path / "f")
    found = predict_fold(load_fold(tmp_path / "f"), cohort.data, cohort.ids[110:], variant="joint")
    assert np.isfinite(found["os"].survival).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unimodal": False}, "train.merge: expected model.fusion.name lego and train.unimodal, found lego, False"),
        ({"model": ModelSettings(width=16)}, "found transformer, True"),
        ({"merge": False, "tune_epochs": 3}, "train.tune_epochs"),
        ({"fusion": {"combine": "stack"}}, "set train.tune_epochs"),
    ],
)
def test_merging_without_what_it_needs_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_a_modality_without_a_network_of_its_own_cannot_be_merged(cohort):
    ids = cohort.ids[:110]
    event = dict(zip(cohort.ids, cohort.outcomes.targets["os"].event, strict=True))
    stains = cohort.data["stains"]
    few = dataclasses.replace(stains, samples={i: s for i, s in stains.samples.items() if not event[i]})
    with pytest.raises(CohortError, match="modality stains has no network of its own"):
        fit_fold(
            {**cohort.data, "stains": few},
            cohort.outcomes,
            train_ids=ids,
            inner=cohort.inner(ids),
            settings=settings(train=dataclasses.replace(QUICK, epochs=1)),
        )


def test_the_command_merges_folders(fold, tmp_path, capsys):
    folders = []
    for member in parts(fold):
        save_member(member, tmp_path / member.expert)
        folders.append(str(tmp_path / member.expert))
    weights = [part for w in ("1", "2", "1") for part in ("--weight", w)]
    assert main(["merge", *folders, "--out", str(tmp_path / "all"), *weights]) == 0
    assert "clinical 0.250, expression 0.500, stains 0.250" in capsys.readouterr().out
    merged = load_member(tmp_path / "all")
    expected = merge_members(parts(fold), weights=[1, 2, 1])
    assert weights_sha256(merged.state) == weights_sha256(expected.state)
    with pytest.raises(StoreError, match="expected a place where nothing stands"):
        merge_folders([tmp_path / "clinical"], out=tmp_path / "all")


def test_members_on_disk_may_list_the_outcomes_in_another_order(fold, tmp_path):
    one, two, _ = parts(fold)
    folders = [tmp_path / "one", tmp_path / "turned"]
    for member, folder in zip((one, reordered(two, list(two.heads)[::-1])), folders, strict=True):
        save_member(member, folder)
    merge_folders(folders, out=tmp_path / "all", weights=[1, 2])
    merged = load_member(tmp_path / "all")
    assert len(merged.heads) > 1
    assert list(merged.heads) == list(one.heads)
    assert weights_sha256(merged.state) == weights_sha256(merge_members([one, two], weights=[1, 2]).state)


@pytest.mark.parametrize("combine", ["stack", "weave"])
def test_blocks_that_have_to_be_trained_together_are_not_merged_on_disk(fold, combine, tmp_path, capsys):
    plain = parts(fold)
    assert weights_sha256(merge_for_good(plain).state) == weights_sha256(merge_members(plain).state)
    for member in plain:
        fusion = {**member.settings.fusion, "combine": combine}
        woven = dataclasses.replace(member, settings=dataclasses.replace(member.settings, fusion=fusion))
        save_member(woven, tmp_path / member.expert)
    folders = [tmp_path / member.expert for member in plain]
    with pytest.raises(ModelError, match=rf"combine merge, found {combine} \(clinical\).*train.tune_epochs"):
        merge_folders(folders, out=tmp_path / "all")
    assert main(["merge", *map(str, folders), "--out", str(tmp_path / "all")]) != 0
    assert f"found {combine}" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def compare(seed):
    """C on 600 unseen patients of single blocks, averaged standardised risks, and merged blocks; 400 in training."""
    cohort = simulated.only(simulated.simulate(1000, seed=seed, genes=20), "os")
    ids, unseen = cohort.ids[:400], cohort.ids[400:]
    chosen = settings(train=dataclasses.replace(QUICK, epochs=25, lr=1e-3, patience=6))
    fold = fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=chosen)
    target = cohort.outcomes.take(unseen)["os"]

    def risk(name):
        found = np.mean([links(m, cohort, unseen)["os"].mean(1) for m in fold.members if m.expert == name], axis=0)
        has = np.array([not name or i in cohort.data[name].samples for i in unseen])
        return np.where(has, (found - found[has].mean()) / found[has].std(), 0.0)

    apart = {name: risk(name) for name in fold.modalities}
    every = {**apart, "average": np.mean(list(apart.values()), axis=0), "merged": risk("")}
    return {name: harrell_c(target.event, target.time, found) for name, found in every.items()}


@pytest.mark.slow
def test_merged_blocks_are_at_least_as_good_as_the_best_of_them_and_close_to_averaged_risks():
    found = [compare(seed) for seed in range(3)]
    for one in found:
        assert one["merged"] >= max(one[name] for name in ("clinical", "expression", "stains")), one
    # Weights that do not know the tuning patients they are scored on cost .007: with their own it was -.015.
    assert np.mean([one["merged"] - one["average"] for one in found]) > -0.03, found
