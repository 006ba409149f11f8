"""A run from card to report, on the cohort that needs no download."""

import json
import multiprocessing
import os
import re
import signal
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from medfuse import folds, processes
from medfuse.applying import apply_run
from medfuse.cli import main
from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.errors import CohortError, ConfigError, LeakError, ModelError, StoreError
from medfuse.evaluation import from_json
from medfuse.folds import run_folds
from medfuse.jobs import prepare_job
from medfuse.run import modalities_from_frame, modality_specs, only_writer, open_run
from medfuse.training import load_fold
from medfuse.workflow import evaluate, predict, train

SMALL = ("train.epochs=3", "baselines=[kaplan_meier, clinical_cox, late_average]")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(place):
    return train("transbig", recipe="smoke", overrides=SMALL, store_root=place / "store", out=place / "run")


def no_words(*_):
    """Say nothing."""


def flat(cohort, data):
    """Patients as the served model receives them."""
    rows = []
    for patient in cohort.patient_ids:
        row = {"patient_id": patient}
        for name, modality in data.items():
            for column, (value, observed) in zip(modality.columns, modality.samples[patient].tokens, strict=True):
                if observed:
                    coded = column.kind != "numeric"
                    row[f"{name}.{column.name}"] = column.levels[int(value)] if coded else float(value)
        rows.append(row)
    return pd.DataFrame(rows)


def test_a_run_is_complete_verified_and_says_what_made_it(run):
    run.verify()
    facts = run.read("run")
    assert facts["status"] == "finished"
    assert facts["carrying"] == "medfuse"
    assert facts["versions"]["torch"]
    sources = run.read("data")["modalities"]["expression"]["sources"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in sources.values())
    attrition = run.read("attrition")
    assert attrition["total"] == attrition["modelled"] + len(attrition["excluded"]) == 198
    assert run.read("audit")["ok"]
    assert len(run.curves()) == 2 * 3 * 2 * 3  # folds x experts x members x epochs


def test_every_patient_is_held_out_once_and_predicted_by_every_model(run):
    frame = run.predictions()
    held = frame[frame.partition == "held_out"]
    for _, rows in held.groupby("model"):
        assert sorted(rows.patient_id) == sorted(read_cohort(read_card("transbig")).patient_ids)
    for curve in held.survival.head(20):
        assert (np.diff(curve) <= 1e-9).all()
        assert 0 <= curve.min() <= curve.max() <= 1


def test_results_have_intervals_beside_the_baselines(run):
    content = run.read("metrics")["outcomes"]["distant_metastasis"]
    tuning = content.pop("tuning")
    assert set(tuning) == set(content["models"])
    networks = {"medfuse", "medfuse:joint", "medfuse:unimodal"}
    assert set(tuning) == {*networks, "kaplan_meier", "clinical_cox", "late_average"}
    evaluation = from_json(content)
    assert from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation
    for name, model in evaluation.models.items():
        assert model["pooled"]["low"] <= model["pooled"]["estimate"] <= model["pooled"]["high"], name
    assert evaluation.models["kaplan_meier"]["mean"]["harrell_c"] == 0.5
    assert set(evaluation.differences) == set(evaluation.models) - {"medfuse"}
    assert evaluation.models["clinical_cox"]["mean"]["harrell_c"] > 0.55


def test_held_out_predictions_come_from_the_fold_that_never_saw_them(run, place):
    cohort = read_cohort(read_card("transbig"))
    data = load_modalities(cohort, store_root=place / "store")
    from medfuse.training import predict_fold

    for split in run.read("splits")["splits"]:
        fold = load_fold(run.fold_folder(split["name"]))
        assert not set(fold.train_ids) & set(split["held_out"])
        expected = predict_fold(fold, data, split["held_out"])["distant_metastasis"].risk_score
        frame = run.predictions()
        rows = frame[(frame.model == "medfuse") & (frame.partition == "held_out") & (frame.fold == split["name"])]
        np.testing.assert_allclose(rows.risk_score, expected, atol=1e-6)


def test_the_report_stands_alone(run):
    page = (run.path / "report.html").read_text()
    assert not re.search(r"<script|src=|@import|href=[\"']?http", page)
    for part in (
        "Patients",
        "Available modalities",
        "Results",
        "Survival by predicted risk",
        "patients at risk",
        "Leak audit",
    ):
        assert part in page
    assert page.count("<svg") >= 4


def test_predict_flags_seen_ids_and_the_served_table_agrees(run, place):
    path = predict(run, "transbig", store_root=place / "store", out=place / "p.csv")
    table = pd.read_csv(path)
    assert table.seen_in_training.all()
    cohort = read_cohort(read_card("transbig"))
    data = load_modalities(cohort, store_root=place / "store")
    served = modalities_from_frame(flat(cohort, data), modality_specs(data))
    folds = [load_fold(run.fold_folder(s["name"])) for s in run.read("splits")["splits"]]
    risk = apply_run(folds, served, cohort.patient_ids)["distant_metastasis"].risk_score
    np.testing.assert_allclose(risk, table.risk_score, atol=1e-6)


def test_partial_and_empty_patients_are_predicted(run, place):
    cohort = read_cohort(read_card("transbig"))
    data = load_modalities(cohort, store_root=place / "store")
    frame = flat(cohort, data).head(3)
    frame.loc[1, [c for c in frame if c.startswith("expression.")]] = np.nan
    frame.loc[2, [c for c in frame if c != "patient_id"]] = np.nan
    served = modalities_from_frame(frame, run.read("modalities")["modalities"])
    folds = [load_fold(run.fold_folder(s["name"])) for s in run.read("splits")["splits"]]
    p = apply_run(folds, served, list(frame.patient_id))["distant_metastasis"]
    assert p.present.tolist() == [[True, True], [True, False], [False, False]]
    assert np.isfinite(p.risk_score).all()


def test_an_external_cohort_may_share_no_patient(run, place):
    with pytest.raises(CohortError, match="trained on"):
        evaluate(run, "transbig", store_root=place / "store", out=place / "e.json")
    assert not (place / "e.json").exists()


def test_an_external_cohort_is_evaluated(run, place):
    text = (
        read_card("transbig").path.read_text().replace("transbig-", "elsewhere-").replace("name: transbig", "name: ext")
    )
    (place / "ext.md").write_text(text)
    evaluation, path = evaluate(run, place / "ext.md", store_root=place / "store", out=place / "e.json")
    assert path.is_file()
    assert evaluation.models["medfuse"]["pooled"]["low"] > 0.4


def test_a_finished_or_foreign_folder_is_not_overwritten(run, place):
    with pytest.raises(StoreError, match="finished"):
        train("transbig", recipe="smoke", overrides=SMALL, store_root=place / "store", out=run.path)
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="other files"):
        train("transbig", recipe="smoke", overrides=SMALL, store_root=place / "store", out=place / "mine")
    with only_writer(place / "busy"), pytest.raises(StoreError, match="another process"):
        train("transbig", recipe="smoke", overrides=SMALL, store_root=place / "store", out=place / "busy")


def test_the_same_seed_gives_the_same_predictions_and_an_interrupted_run_goes_on(run, place, monkeypatch):
    real, calls = folds.run_fold, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(folds, "run_fold", dies)
    with pytest.raises(KeyboardInterrupt):
        train("transbig", recipe="smoke", overrides=SMALL, store_root=place / "store", out=place / "again")
    monkeypatch.setattr(folds, "run_fold", real)
    again = train("transbig", recipe="smoke", overrides=SMALL, store_root=place / "store", out=place / "again")
    a, b = (r.predictions().set_index(["model", "partition", "fold", "patient_id"]).risk_score for r in (run, again))
    pd.testing.assert_series_equal(a, b, check_exact=True)


def test_folds_side_by_side_are_the_folds_one_after_the_other(run, place):
    said, parts = [], []
    beside = train(
        "transbig",
        recipe="smoke",
        overrides=SMALL,
        store_root=place / "store",
        out=place / "beside",
        workers=2,
        say=said.append,
        watch=lambda part, what: parts.append(part),
    )
    beside.verify()
    assert any("training on 2 folds, 2 side by side" in line for line in said)
    index = ["model", "outcome", "partition", "fold", "patient_id"]
    one, other = (r.predictions().set_index(index) for r in (run, beside))
    assert list(one.index) == list(other.index)
    pd.testing.assert_series_equal(one.risk_score, other.risk_score, check_exact=True)
    assert all(np.array_equal(a, b) for a, b in zip(one.survival.dropna(), other.survival.dropna(), strict=True))
    assert run.read("metrics") == beside.read("metrics")
    rows, others = (sorted(json.dumps(row | {"seconds": 0}) for row in r.curves()) for r in (run, beside))
    assert rows == others
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


@pytest.mark.slow  # processes import torch
def test_a_process_that_dies_beside_another_stops_the_run_which_then_goes_on(run, place):
    arguments = {"recipe": "smoke", "overrides": SMALL, "store_root": place / "store", "out": place / "killed"}

    def kill(part, what):
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ModelError, match=r"ended \(exit status -9\).*fewer --workers"):
        train("transbig", **arguments, workers=2, watch=kill)
    assert not multiprocessing.active_children()
    assert open_run(place / "killed").read("run")["status"] == "failed"
    again = train("transbig", **arguments)
    a, b = (r.predictions().set_index(["model", "partition", "fold", "patient_id"]).risk_score for r in (run, again))
    pd.testing.assert_series_equal(a, b, check_exact=True)


@pytest.mark.slow  # processes import torch
def test_a_process_that_finds_other_data_refuses_them(place):
    def job(*overrides):
        return partial(
            prepare_job,
            read_card("transbig"),
            read_recipe("smoke", [*SMALL, *overrides]),
            data_root=None,
            store_root=place / "store",
            say=no_words,
        )

    changed = job("modalities=[expression]")
    with pytest.raises(StoreError, match="data that training began with"):
        list(run_folds(job()(), place / "other", workers=2, reopen=changed, watch=no_words))
    with pytest.raises(StoreError, match="patients, outcomes or folds that training began with"):
        list(run_folds(job()(), place / "other", workers=2, reopen=job("splits.seed=5"), watch=no_words))
    assert not multiprocessing.active_children()


def test_ctrl_c_is_the_parents_alone_from_the_first_moment_of_a_process(place, monkeypatch):
    """What a spawned process imports before it can say so itself takes seconds; it inherits what is ignored."""
    heard = []

    class Child:
        def start(self):
            heard.append(signal.getsignal(signal.SIGINT))
            raise ModelError("enough")

    spawn = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: Child())
    monkeypatch.setattr(folds.multiprocessing, "get_context", lambda _: spawn)
    monkeypatch.setattr(folds, "keys_of", lambda _: {})
    job, before = SimpleNamespace(splits=[SimpleNamespace(name="0")]), signal.getsignal(signal.SIGINT)

    def start():
        with pytest.raises(ModelError, match="enough"):
            list(run_folds(job, place, workers=2, reopen=lambda: job, watch=no_words))

    start()
    assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(target=start)  # which must not touch signals
    thread.start()
    thread.join()
    assert heard == [signal.SIG_IGN, before]


def test_as_many_folds_side_by_side_as_cores_and_memory_carry(place, monkeypatch):
    job = prepare_job(
        read_card("transbig"),
        read_recipe("default", ["train.device=cpu"]),
        data_root=None,
        store_root=place / "store",
        say=no_words,
    )

    def found(cores, memory, *, wanted=None, held=2**30, **train):
        monkeypatch.setattr(folds, "usable_cores", lambda: cores)
        monkeypatch.setattr(folds, "free_memory", lambda: memory)
        monkeypatch.setattr(folds, "held_memory", lambda: held)
        recipe = job.recipe.model_copy(update={"train": job.recipe.train.model_copy(update=train)})
        return folds.workers_of(replace(job, recipe=recipe), wanted)

    assert len(job.splits) == 5
    assert found(16, 64 * 2**30) == 5
    assert found(2, 64 * 2**30) == 2
    assert found(16, 7 * 2**30) == 3
    assert found(16, 2**30) == 1
    assert found(16, 64 * 2**30, held=20 * 2**30) == 3  # another process reads as much again
    assert found(16, None) == 5
    assert found(4, None, threads=2) == 2
    assert found(16, None, threads=0) == 1  # every fit takes all cores already
    assert found(1, 2**30, wanted=3) == 3
    assert found(1, 2**30, wanted=9) == 5
    with pytest.raises(ConfigError, match="workers: expected a number >= 1, found 0"):
        found(1, None, wanted=0)
    assert found(16, None, epochs=1) == 1  # over before a process has started
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert found(16, None, device="auto") == 5  # auto does not mean that
    assert found(16, None, device="mps") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpus, folds_at_once in ((1, 1), (3, 3), (8, 5)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert found(1, None, device="auto") == folds_at_once
    assert found(16, None, device="cpu") == 5


def test_processes_take_turns_on_the_gpus(monkeypatch):
    def seen(number):
        with folds._own_gpu(number):
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen(1) is None  # there is none here
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [seen(k) for k in range(3)] == ["0", "1", "0"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")  # a cluster's scheduler gave these
    assert [seen(k) for k in range(3)] == ["4", "6", "4"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4, 6"


def test_free_memory_is_what_a_container_leaves(monkeypatch):
    texts = {"/proc/meminfo": "MemTotal: 32000 kB\nMemFree: 100 kB\nMemAvailable:   16000 kB\n"}
    monkeypatch.setattr(processes, "_text", lambda path: texts.get(path, ""))
    assert processes.free_memory() == 16_000 * 1024
    texts |= {"/sys/fs/cgroup/memory.max": "max", "/sys/fs/cgroup/memory.current": "5"}
    assert processes.free_memory() == 16_000 * 1024
    texts["/sys/fs/cgroup/memory.max"] = "4005"
    assert processes.free_memory() == 4000
    texts.clear()
    assert processes.free_memory() is None


def test_cores_are_what_a_container_leaves(monkeypatch):
    texts = {}
    monkeypatch.setattr(processes, "_text", lambda path: texts.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert processes.usable_cores() == 8
    texts["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert processes.usable_cores() == 8
    for quota, cores in ((150_000, 2), (50_000, 1), (2_000_000, 8)):
        texts["/sys/fs/cgroup/cpu.max"] = f"{quota} 100000"
        assert processes.usable_cores() == cores
    texts.clear()
    version_1 = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"
    for quota, cores in (("-1", 8), ("300000", 3)):
        texts |= dict(zip(version_1, (quota, "100000"), strict=True))
        assert processes.usable_cores() == cores


def test_memory_held_is_that_of_this_process_alone():
    before = processes.held_memory()
    held = np.ones(2**23)
    assert processes.held_memory() - before > 0.9 * held.nbytes


def test_a_leak_stops_the_run_unless_it_is_allowed_and_recorded(place):
    text = read_card("transbig").path.read_text().replace("name: transbig", "name: leaky")
    (place / "leaky.md").write_text(
        text.replace("      age: {", "      t.tdm: {kind: numeric, unit: days}\n      age: {")
    )
    with pytest.raises(LeakError, match=r"t\.tdm"):
        train(place / "leaky.md", recipe="smoke", overrides=SMALL, store_root=place / "store", out=place / "leaky")
    assert not (place / "leaky").exists()
    allowed = (*SMALL, "allow_leaks=true")
    found = train(
        place / "leaky.md", recipe="smoke", overrides=allowed, store_root=place / "store", out=place / "leaky"
    )
    assert found.read("audit")["allowed"]
    assert not found.read("audit")["ok"]


def test_the_command_line_explains_and_exits_with_two(capsys, place, monkeypatch):
    monkeypatch.chdir(place)
    assert main(["train", "--cohort", "transbigg"]) == 2
    assert 'did you mean "transbig"' in capsys.readouterr().err
    assert main(["train", "--cohort", "transbig", "--set", "train.epoch=3"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
    assert main(["check", "transbig"]) == 0
    assert "198" in capsys.readouterr().out


def test_a_damaged_run_is_found(run, place):
    import shutil

    shutil.copytree(run.path, place / "damaged")
    path = next((place / "damaged" / "folds").rglob("weights.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"weights\.safetensors"):
        predict(open_run(place / "damaged"), "transbig", store_root=place / "store", out=place / "x.csv")
    assert not (place / "x.csv").exists()


@pytest.mark.slow
def test_mlflow_holds_the_run_and_its_model_predicts_the_same(place, monkeypatch):
    import mlflow
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked = (*SMALL, "tracking.mlflow=true")
    run = train("transbig", recipe="smoke", overrides=tracked, store_root=place / "store", out=place / "tracked")
    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medfuse").experiment_id
    runs = client.search_runs([experiment])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert (len(runs), len(parents)) == (3, 1)
    assert {r.info.status for r in runs} == {"FINISHED"}
    child = next(r for r in runs if r.data.tags.get("fold") == "0")
    curve = client.get_metric_history(child.info.run_id, "00-00/train_loss")
    assert [m.step for m in curve] == [
        row["epoch"] for row in run.curves() if row["fold"] == "0" and row["member"] == "00-00"
    ]
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(f"runs:/{parents[0].info.run_id}/model")
    cohort = read_cohort(read_card("transbig"))
    served = model.predict(flat(cohort, load_modalities(cohort, store_root=place / "store")))
    table = pd.read_csv(predict(run, "transbig", store_root=place / "store", out=place / "t.csv"))
    np.testing.assert_allclose(served.risk_score, table.risk_score, atol=1e-6)


@pytest.mark.slow
def test_tracking_trouble_never_stops_training(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    said = []
    tracked = (*SMALL, "tracking.mlflow=true")
    out = place / "untracked"
    run = train("transbig", recipe="smoke", overrides=tracked, store_root=place / "store", out=out, say=said.append)
    assert run.read("run")["status"] == "finished"
    assert any("MLflow is out of order" in line for line in said)
