import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medfuse.batch import without_modality
from medfuse.errors import ModelError, StoreError
from medfuse.models import ModelSettings, build_model
from medfuse.training.checkpoint import weights_sha256
from medfuse.training.fit import fit_member
from medfuse.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import model_cases

SETTINGS = TrainSettings(epochs=20, lr=1e-2, device="cpu")


class StopHere(Exception):
    pass


def test_a_planted_signal_is_found_and_the_history_says_so(batches, tiny):
    fitted = fit_member(*batches, build=tiny, settings=SETTINGS, seed=3)
    assert fitted.tuning_score > 0.75  # the oracle reaches .80 on these patients
    assert [row["epoch"] for row in fitted.history] == list(range(1, len(fitted.history) + 1))
    best = min(fitted.history, key=lambda row: row["tuning_loss"])
    assert (fitted.best_epoch, fitted.tuning_loss) == (best["epoch"], best["tuning_loss"])
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_the_kept_weights_are_those_of_the_best_epoch(batches, tiny):
    train, tuning = batches
    fitted = fit_member(train, tuning, build=tiny, settings=SETTINGS, seed=3)
    model = tiny()
    model.load_state_dict(fitted.state)
    model.eval()
    with torch.no_grad():
        assert float(model.loss(tuning)) == pytest.approx(fitted.tuning_loss, abs=1e-6)


def test_same_seed_same_weights_other_seed_others(batches, tiny):
    def sha(seed):
        return weights_sha256(fit_member(*batches, build=tiny, settings=SETTINGS, seed=seed).state)

    assert sha(3) == sha(3)
    assert sha(3) != sha(4)


def test_the_global_state_of_the_caller_is_untouched(batches, tiny):
    torch.manual_seed(0)
    np.random.seed(0)  # the global generator is what is tested
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_num_threads()
    fit_member(*batches, build=tiny, settings=dataclasses.replace(SETTINGS, epochs=2, threads=1), seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == before[3]


def test_early_stopping_keeps_its_patience(batches, tiny):
    settings = dataclasses.replace(SETTINGS, epochs=200, lr=5e-2, patience=4, schedule="constant")
    fitted = fit_member(*batches, build=tiny, settings=settings, seed=3)
    assert len(fitted.history) == fitted.best_epoch + 4 < 200


@pytest.mark.parametrize("settings", [{"select_by": "last"}, {"select_by": "score"}, {"ema": 0.9}, {"accumulate": 3}])
def test_other_ways_of_fitting(batches, tiny, settings):
    fitted = fit_member(*batches, build=tiny, settings=dataclasses.replace(SETTINGS, **settings), seed=3)
    assert fitted.tuning_score > 0.7
    if settings.get("select_by") == "last":
        assert fitted.best_epoch == len(fitted.history) == SETTINGS.epochs
    if settings.get("select_by") == "score":
        assert fitted.tuning_score == max(row["tuning_score"] for row in fitted.history)


def test_no_tuning_or_an_uninformative_one_keeps_the_last_epoch(batches, tiny, batch_of):
    without = fit_member(batches[0], None, build=tiny, settings=SETTINGS, seed=3)
    censored = fit_member(batches[0], batch_of(30, 5, event=False), build=tiny, settings=SETTINGS, seed=3)
    assert without.best_epoch == SETTINGS.epochs
    assert without.tuning_loss is None
    assert weights_sha256(without.state) == weights_sha256(censored.state)


def test_hidden_modalities_do_not_change_the_order_of_patients(batches, tiny):
    """With its only modality absent, dropout of modalities has nothing to hide: the weights must agree."""
    train = without_modality(batches[0], "a")
    one, two = (
        fit_member(
            train, None, build=tiny, settings=dataclasses.replace(SETTINGS, epochs=3, modality_dropout=on), seed=3
        )
        for on in (True, False)
    )
    assert weights_sha256(one.state) == weights_sha256(two.state)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_the_first_bad_batch_is_named(batches, tiny, kind):
    train, tuning = batches
    train.tokens["a"][17, 3] = torch.nan if kind == "loss" else 0

    class Broken(tiny):
        def loss(self, batch):
            loss = super().loss(batch)
            if kind == "gradient" and train.patient_ids[17] in batch.patient_ids:
                weight = self.net[0].weight
                loss = loss + torch.sqrt(weight * 0).sum()  # finite, with a derivative that is not
            return loss

    seen = []
    settings = dataclasses.replace(SETTINGS, batch_size=20, modality_dropout=False)
    with pytest.raises(ModelError, match=rf"finite {kind}.*epoch 1, batch") as info:
        fit_member(train, tuning, build=Broken, settings=settings, seed=3, watch=seen.append)
    assert f"{train.patient_ids[17]}" in re.split("[ ,;]+", str(info.value))
    assert str(info.value).count("p1-") == 20
    assert len(seen) == 10


def test_no_patients(batch_of, tiny):
    with pytest.raises(ModelError, match="found none"):
        fit_member(batch_of(0, 1), None, build=tiny, settings=SETTINGS, seed=1)


def test_out_of_memory_halves_the_micro_batch(batches, tiny):
    """Memory for 25 patients: the same steps in micro-batches, with the same result for a loss that is a mean."""

    class Additive(tiny):
        limit = 10_000

        def loss(self, batch, *, of=None):
            if len(batch) > self.limit:
                raise torch.OutOfMemoryError
            return ((self(batch)["os"] - batch.targets["os"].time) ** 2).sum() / len(of or batch)

    class Small(Additive):
        limit = 25

    class TooSmall(Additive):
        limit = 0

    def no_dropout(kind):
        model = kind()
        model.net[2].p = 0.0
        return model

    settings = dataclasses.replace(SETTINGS, epochs=4, select_by="last", modality_dropout=False)
    big, small = (
        fit_member(batches[0], None, build=lambda kind=kind: no_dropout(kind), settings=settings, seed=3).state
        for kind in (Additive, Small)
    )
    for name in big:
        torch.testing.assert_close(big[name], small[name], atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match=r"training: the memory of the GPU does not suffice; lower train\.most_tokens"):
        fit_member(batches[0], None, build=TooSmall, settings=settings, seed=3)


def test_micro_batches_have_the_gradient_of_the_batch_where_outcomes_are_missing():
    """One optimiser step on all patients, at once and in four parts of which some know more outcomes than others."""
    heads = {name: head for name, head in model_cases.HEADS_OF.items() if head.name != "cox"}
    batch = model_cases.make_batch(24)
    batch.targets["os"].observed[6:11] = False
    batch.targets["score"].observed[18:] = False

    def build():
        model = build_model(ModelSettings(width=16, fusion={"name": "late"}), shapes=model_cases.SHAPES, heads=heads)
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if hasattr(part, "column_dropout"):
                part.column_dropout = 0.0
        return model

    whole, parts = (
        fit_member(
            batch,
            None,
            build=build,
            settings=TrainSettings(epochs=1, batch_size=24, accumulate=n, modality_dropout=False, device="cpu"),
            seed=3,
        ).history[0]
        for n in (1, 4)
    )
    assert parts["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    assert parts["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)


def test_parts_of_a_cox_likelihood_weigh_by_their_deaths():
    batch = model_cases.make_batch(24)
    model = build_model(
        ModelSettings(width=16, fusion={"name": "late"}),
        shapes=model_cases.SHAPES,
        heads={"dfs": model_cases.HEADS_OF["dfs"]},
    ).eval()
    target = batch.targets["dfs"]
    died = (target.observed & target.event).sum()
    for part in (batch.select(range(8)), batch.select(range(8, 24))):
        own = part.targets["dfs"]
        expected = model.loss(part) * (own.observed & own.event).sum() / died
        assert torch.allclose(model.loss(part, of=batch), expected)


def test_what_a_fit_goes_on_from_is_a_candidate_too(batches, tiny, tmp_path):
    """Merged networks that training together makes worse stay as they were."""
    train, tuning = batches
    good = fit_member(train, tuning, build=tiny, settings=SETTINGS, seed=3)

    def begun():
        model = tiny()
        model.load_state_dict(good.state)
        model.begun = True
        return model

    harmful = dataclasses.replace(SETTINGS, epochs=3, lr=1.0, clip=0.0, checkpoint_every=1)
    for choice in ({}, {"select_by": "score"}, {"ema": 0.5}):
        settings = dataclasses.replace(harmful, **choice)
        kept = fit_member(train, tuning, build=begun, settings=settings, seed=4)
        assert kept.best_epoch == 0
        assert (kept.tuning_loss, kept.tuning_score) == (good.tuning_loss, good.tuning_score)
        assert weights_sha256(kept.state) == weights_sha256(good.state)
        assert len(kept.history) == 3

    def watch(progress):
        if progress.step == 5:
            raise StopHere

    more = {"settings": harmful, "seed": 4, "workdir": tmp_path}
    with pytest.raises(StopHere):
        fit_member(train, tuning, build=begun, watch=watch, **more)
    again = fit_member(train, tuning, build=begun, **more)
    assert (again.best_epoch, again.tuning_loss) == (0, good.tuning_loss)
    assert weights_sha256(again.state) == weights_sha256(good.state)
    last = dataclasses.replace(harmful, select_by="last")
    assert fit_member(train, tuning, build=begun, settings=last, seed=4).best_epoch == 3
    assert fit_member(train, None, build=begun, settings=harmful, seed=4).best_epoch == 3

    def poor():
        model = tiny()
        model.begun = True
        return model

    assert fit_member(train, tuning, build=poor, settings=SETTINGS, seed=3).best_epoch > 0


def test_resume_after_an_interruption_at_any_step_is_bit_identical(batches, tiny, tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=6, batch_size=50, ema=0.9, checkpoint_seconds=1e-9)
    expected = fit_member(*batches, build=tiny, settings=settings, seed=3)
    draw = random.Random(5)
    interruptions = 0
    while interruptions < 40:
        left = draw.randint(1, 7)

        def watch(progress):
            nonlocal left
            left -= 1
            if left == 0:
                raise StopHere

        try:
            found = fit_member(*batches, build=tiny, settings=settings, seed=3, workdir=tmp_path, watch=watch)
        except StopHere:
            interruptions += 1
            continue
        break
    assert interruptions >= 5
    assert weights_sha256(found.state) == weights_sha256(expected.state)
    for one, two in zip(found.history, expected.history, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_checkpoint_of_other_settings_or_data_is_refused(batches, tiny, batch_of, tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=2, checkpoint_every=1)
    fit_member(*batches, build=tiny, settings=settings, seed=3, workdir=tmp_path)
    with pytest.raises(StoreError, match="another folder"):
        fit_member(*batches, build=tiny, settings=dataclasses.replace(settings, lr=2e-2), seed=3, workdir=tmp_path)
    with pytest.raises(StoreError, match="another folder"):
        fit_member(*batches, build=tiny, settings=settings, seed=4, workdir=tmp_path)
    with pytest.raises(StoreError, match="another folder"):
        fit_member(batch_of(200, 9), batches[1], build=tiny, settings=settings, seed=3, workdir=tmp_path)
    again = dataclasses.replace(settings, checkpoint_every=2, threads=1)  # these do not change the result
    assert fit_member(*batches, build=tiny, settings=again, seed=3, workdir=tmp_path).history


def test_a_damaged_newest_checkpoint_is_passed_over(batches, tiny, tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=4, checkpoint_every=1)
    expected = fit_member(*batches, build=tiny, settings=settings, seed=3, workdir=tmp_path)
    newest = sorted(tmp_path.iterdir())[-1] / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    epochs = []
    found = fit_member(
        *batches,
        build=tiny,
        settings=settings,
        seed=3,
        workdir=tmp_path,
        watch=lambda p: epochs.append(p.record["epoch"]) if p.record else None,
    )
    assert epochs == [4]  # from the one before
    assert weights_sha256(found.state) == weights_sha256(expected.state)


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_then_run_again(kills, tmp_path):
    """K1: the finished weights are bit-identical to those of a run that was never killed."""
    root = Path(__file__).parents[2]
    script = Path(__file__).with_name("kill_me.py")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path), str(kills), str(kills)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["kills"] == kills
    assert found["resumed"] >= kills // 3
    assert set(found["finished"]) == {found["expected"]}
