"""Bags that stay on disk: the same model as in memory, only what is asked for is read, and fits go on exactly."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simulated
import torch

from medfuse.models import ModelSettings, build_model
from medfuse.sample import ModalityData, ModalitySample
from medfuse.store import FeatureStore
from medfuse.targets import Labels
from medfuse.training import FoldSettings, TrainSettings, fit_fold, fit_member, load_fold, predict_fold, save_fold
from medfuse.training import patients as module
from medfuse.training.checkpoint import weights_sha256
from medfuse.training.member import fit_preprocessings, shapes_of, transform_patients
from medfuse.training.outcomes import head_settings
from medfuse.training.patients import Chunks, Patients, batches_of, data_sha256, gather

TRAIN = TrainSettings(epochs=3, batch_size=16, lr=1e-3, device="cpu", patience=0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """90 patients; a table, and bags of 1 to 40 tokens in the store, which every sixth patient lacks."""
    cohort = simulated.simulate(90)
    draw = np.random.default_rng(5)
    samples = {}
    for row, patient in enumerate(cohort.ids):
        n = int(draw.integers(1, 41))
        tokens = draw.normal(3, 2, size=(n, 12)) + cohort.log_hazard[row]
        if row % 6:
            samples[patient] = ModalitySample(
                tokens=tokens.astype(np.float32), position=draw.random((n, 2)).astype(np.float32)
            )
    bags = ModalityData(name="slides", layout="vectors", features=12, samples=samples)
    stored = FeatureStore(tmp_path_factory.mktemp("store")).put(bags, key="k" * 64, sources={})
    return dataclasses.replace(cohort, data={"clinical": cohort.data["clinical"], "slides": stored})


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    monkeypatch.setattr(module, "READ", 10_000)


def both(cohort, monkeypatch, ids=None):
    """The same patients in memory, and on disk."""
    ids = cohort.ids[:60] if ids is None else ids
    p = fit_preprocessings(cohort.data, cohort.ids[:60])
    targets = {"os": cohort.outcomes.take(ids)["os"]}
    held = gather(cohort.data, p, ids, targets=targets)
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    monkeypatch.setattr(module, "READ", 10_000)
    return held, gather(cohort.data, p, ids, targets=targets), p


def alike(one, other):
    assert one.patient_ids == other.patient_ids
    assert torch.equal(one.present, other.present)
    for name in one.modalities:
        length = min(one.tokens[name].shape[1], other.tokens[name].shape[1])
        for part in ("tokens", "token_mask", "position"):
            a, b = getattr(one, part)[name], getattr(other, part)[name]
            assert torch.equal(a[:, :length], b[:, :length])
            assert not a[:, length:].any()
            assert not b[:, length:].any()
    for name, target in one.targets.items():
        for key, tensor in target.tensors().items():
            assert torch.equal(tensor, other.targets[name].tensors()[key])


def test_a_batch_from_disk_is_the_batch_from_memory(cohort, monkeypatch):
    held, disk, _ = both(cohort, monkeypatch)
    assert isinstance(disk, Patients)
    assert (len(disk), disk.modalities, disk.patient_ids) == (len(held), held.modalities, held.patient_ids)
    for rows in ([0, 6, 12], [59, 3, 3], list(range(60))):
        alike(held.select(rows), disk.select(rows))
    chunks = disk.batches()
    assert isinstance(chunks, Chunks)
    assert len(chunks) > 5
    assert sum((one.patient_ids for one in chunks), ()) == disk.patient_ids
    assert all(4 * one.tokens["slides"].numel() <= 10_000 or len(one) == 1 for one in chunks)
    begun = disk.beginning(seed=1)
    assert sorted(begun.patient_ids) == sorted(disk.patient_ids)


@pytest.mark.parametrize("fusion", ["prototype", "prototype_additive"])
def test_levels_come_from_all_patients_though_tokens_come_from_some(monkeypatch, fusion):
    """A class that 12 of 4,000 have is hardly among the 256 whose bags are read before the first step."""
    n = 4000
    draw = np.random.default_rng(0)
    ids = tuple(f"p{row:04d}" for row in range(n))
    samples = {
        i: ModalitySample(tokens=draw.normal(size=(1, 3)).astype(np.float32), position=np.zeros((1, 2), np.float32))
        for i in ids
    }
    data = {"slides": ModalityData(name="slides", layout="vectors", features=3, samples=samples)}
    label = np.zeros(n, dtype=np.int64)
    label[:1200], label[:12] = 1, 2
    target = Labels(label=label, classes=("a", "b", "c"), observed=np.ones(n, dtype=bool))
    p = fit_preprocessings(data, ids)
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    train = gather(data, p, ids, targets={"grade": target})
    assert isinstance(train, Patients)
    heads = head_settings({"grade": target}, heads={}, time_grid={})
    settings = dataclasses.replace(TRAIN, epochs=1, batch_size=n, most_tokens=1)

    def build():
        model = build_model(ModelSettings(width=8, fusion={"name": fusion}), shapes=shapes_of(p, data), heads=heads)
        built.append(model)
        return model

    class Enough(Exception):
        pass

    def begun(*parts, **options):
        raise Enough

    monkeypatch.setattr(torch.optim, "AdamW", begun)
    for seed in range(8):
        built = []
        with pytest.raises(Enough):
            fit_member(train, None, build=build, settings=settings, seed=seed)
        assert built[0].fusion.risk.mass.tolist() == pytest.approx([0.7, 0.297, 0.003, 0.0])


def test_no_more_tokens_are_read_than_asked_for(cohort, monkeypatch):
    _, disk, p = both(cohort, monkeypatch)
    whole, some = disk.select(range(20)), disk.select(range(20), most_tokens=5, seed=4)
    assert whole.tokens["slides"].shape[1] > 20
    assert some.tokens["slides"].shape[1] == 5
    assert torch.equal(some.tokens["clinical"], whole.tokens["clinical"])  # a table is no bag
    for row in range(20):
        kept, every = some.tokens["slides"][row, some.token_mask["slides"][row]], whole.tokens["slides"][row]
        at = [int((every == token).all(1).nonzero()[0]) for token in kept]
        assert at == sorted(set(at))  # without replacement, in their order
        assert len(at) == min(5, int(whole.token_mask["slides"][row].sum()))
    assert torch.equal(disk.select(range(20), most_tokens=5, seed=4).tokens["slides"], some.tokens["slides"])
    assert not torch.equal(disk.select(range(20), most_tokens=5, seed=5).tokens["slides"], some.tokens["slides"])
    read = []
    monkeypatch.setattr(ModalitySample, "take", lambda self, rows: read.append(len(rows)) or original(self, rows))
    disk.select(range(20), most_tokens=5)
    assert set(read) == {5}
    assert p["slides"].layout == "vectors"


original = ModalitySample.take


def fitted(cohort, patients, p, **changes):
    shapes = shapes_of(p, cohort.data)
    target = cohort.outcomes.take(patients.patient_ids)["os"]
    heads = head_settings({"os": target}, heads={}, time_grid={"os": np.linspace(100, 3000, 8)})
    settings = ModelSettings(width=16, fusion={"name": "concat"})
    more = {key: changes.pop(key) for key in ("workdir", "watch") if key in changes}
    return fit_member(
        patients,
        patients,
        build=lambda: build_model(settings, shapes=shapes, heads=heads),
        settings=dataclasses.replace(TRAIN, **changes),
        seed=2,
        **more,
    )


def test_a_fit_from_disk_is_the_fit_from_memory(cohort, monkeypatch):
    held, disk, p = both(cohort, monkeypatch)
    # Dropout draws as many numbers as a batch has padding: without it, nothing but rounding differs.
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    one, other = fitted(cohort, held, p), fitted(cohort, disk, p)
    assert [r["tuning_loss"] for r in one.history] == pytest.approx([r["tuning_loss"] for r in other.history], rel=1e-4)
    for name, weight in one.state.items():
        torch.testing.assert_close(weight, other.state[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_fit_on_drawn_tokens_goes_on_exactly_where_it_was_killed(cohort, monkeypatch, tmp_path, place):
    held, disk, p = both(cohort, monkeypatch)
    patients = held if place == "memory" else disk
    expected = fitted(cohort, patients, p, most_tokens=4)
    assert weights_sha256(expected.state) != weights_sha256(fitted(cohort, patients, p).state)

    class Killed(Exception):
        pass

    def watch(progress):
        if progress.step == 6:
            raise Killed

    changes = {"most_tokens": 4, "checkpoint_seconds": 1e-9, "workdir": tmp_path}
    with pytest.raises(Killed):
        fitted(cohort, patients, p, watch=watch, **changes)
    again = fitted(cohort, patients, p, **changes)
    assert weights_sha256(again.state) == weights_sha256(expected.state)


def test_other_patients_tokens_or_targets_are_other_data(cohort, monkeypatch):
    _, disk, p = both(cohort, monkeypatch)
    assert data_sha256(disk) == data_sha256(both(cohort, monkeypatch)[1])
    other = [both(cohort, monkeypatch, ids=cohort.ids[1:61])[1]]
    key = dataclasses.replace(cohort.data["slides"], key="other")
    other.append(dataclasses.replace(disk, data={**disk.data, "slides": key}))
    other.append(dataclasses.replace(disk, targets={}))
    other.append(
        dataclasses.replace(
            disk, preprocessing={**p, "slides": dataclasses.replace(p["slides"], mean=p["slides"].mean + 1)}
        )
    )
    plain = dataclasses.replace(cohort.data["slides"], key="")
    changed = dict(plain.samples)
    first = next(i for i in cohort.ids if i in changed)
    changed[first] = ModalitySample(tokens=changed[first].tokens + 1, position=changed[first].position)
    other += [
        dataclasses.replace(disk, data={**disk.data, "slides": dataclasses.replace(plain, samples=samples)})
        for samples in (plain.samples, changed)
    ]
    found = [data_sha256(patients) for patients in (disk, *other, None)]
    assert len(set(found)) == len(found)


def test_a_fold_from_disk_predicts_and_is_stored(cohort, on_disk, tmp_path, monkeypatch):
    ids, others = cohort.ids[:60], cohort.ids[60:]
    settings = FoldSettings(model=ModelSettings(width=16), train=TRAIN, seeds=(0,))
    outcomes = dataclasses.replace(cohort.outcomes, targets={"os": cohort.outcomes.targets["os"]})
    fold = fit_fold(cohort.data, outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings)
    said = predict_fold(fold, cohort.data, others)["os"]
    save_fold(fold, tmp_path / "fold")
    again = predict_fold(load_fold(tmp_path / "fold"), cohort.data, others)["os"]
    np.testing.assert_array_equal(said.survival, again.survival)
    monkeypatch.setattr(module, "IN_MEMORY", 1 << 30)
    np.testing.assert_allclose(predict_fold(fold, cohort.data, others)["os"].survival, said.survival, atol=1e-6)


def test_moments_do_not_depend_on_how_bags_are_cut(cohort):
    """Mean and spread over all tokens of the training patients, as NumPy says in one go."""
    p = fit_preprocessings(cohort.data, cohort.ids[:60])["slides"]
    every = np.concatenate([s.tokens for i, s in cohort.data["slides"].samples.items() if i in cohort.ids[:60]])
    np.testing.assert_allclose(p.mean[0], every.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(p.scale[0], every.std(0, dtype=np.float64), rtol=1e-12)
    again = fit_preprocessings(cohort.data, cohort.ids[30:])["slides"]  # moments of bags that were read before
    late = np.concatenate([s.tokens for i, s in cohort.data["slides"].samples.items() if i in cohort.ids[30:]])
    np.testing.assert_allclose(again.scale[0], late.std(0, dtype=np.float64), rtol=1e-12)
    shown = transform_patients(cohort.data, {"slides": p}, cohort.ids[:60])["slides"]
    assert abs(np.concatenate([s.tokens for s in shown.values()]).mean()) < 1e-5


def test_small_cohorts_are_kept_in_memory(cohort):
    p = fit_preprocessings(cohort.data, cohort.ids)
    found = batches_of(cohort.data, p, cohort.ids, shapes=shapes_of(p, cohort.data))
    assert isinstance(found, list)
    assert [len(one) for one in found] == [90]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_cohort(tmp_path):
    """320 bags are 1.3 GB padded; what is held at once is a few batches."""
    script, root = Path(__file__).parent / "large_bags.py", Path(__file__).parents[2]
    command = [sys.executable, str(script), str(tmp_path / "bags"), "320"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=True)
    assert int(done.stdout.split()[-1]) < 450
