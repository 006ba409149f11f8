"""MLflow beside a run: all of it arrives, and no trouble of MLflow's reaches training."""

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

from medfuse import processes, tracking
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.documents import DOCUMENTS
from medfuse.processes import is_dead, process_tags
from medfuse.run import Run
from medfuse.tracking import close_dead_runs, replay, track

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
ROWS = [(fold, "00-00", epoch, epoch / 7 + int(fold)) for fold in ("0", "1") for epoch in range(1, 6)]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A database that MLflow has made, to copy: making one takes a second or two."""
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def place(tmp_path, fresh, monkeypatch):
    """A working folder with an empty MLflow database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(fresh, tmp_path / "mlflow.db")
    return tmp_path


def make_run(path, *, status="running", experiment="medfuse", overrides=()):
    """A run directory with what tracking reads of it."""
    run = Run(path=Path(path))
    recipe = read_recipe("smoke", ["tracking.mlflow=true", f"tracking.experiment={experiment}", *overrides])
    run.write("run", {"status": status, "facts": {"cohort": "transbig"}})
    run.write("data", {"modalities": {"clinical": {"key": "k" * 64}}})
    run.write("splits", {"splits": [{"name": "0"}, {"name": "1"}]})
    model = {"mean": {"harrell_c": 0.7, "uno_c@365": None}, "folds": [{"fold": "0", "harrell_c": 0.6}]}
    run.write("metrics", {"outcomes": {"death": {"carrying": "medfuse", "models": {"medfuse": model}}}})
    run.write_text("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json")))
    return run, recipe


def train_like(run, recipe, *, rows=ROWS, during=lambda k: None, say=lambda line: None):
    """What training does with a tracker; returns its "result", which no trouble may change."""
    total = 0.0
    with track(run, recipe, card=read_card("transbig"), folds=["0", "1"], say=say) as tracker:
        for k, (fold, member, epoch, value) in enumerate(rows):
            record = {"epoch": epoch, "train_loss": value, "tuning_score": None}
            run.append_curve({"fold": fold, "member": member, "step": epoch, **record})
            tracker.epoch(fold, member, epoch, record)
            total += value
            during(k)
    return total


RESULT = sum(row[3] for row in ROWS)


def stored(uri, *, experiment="medfuse"):
    """MLflow's parents and children of an experiment, and each child's curves, read by a process of its own mind."""
    client = MlflowClient(tracking_uri=uri)
    runs = list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    curves = {
        (r.data.tags["medfuse.run"], r.data.tags["fold"]): [
            (m.step, m.value) for m in client.get_metric_history(r.info.run_id, "00-00/train_loss")
        ]
        for r in runs
        if r not in parents
    }
    return runs, parents, curves


def expected(fold):
    return [(row[2], row[3]) for row in ROWS if row[0] == fold]


def outcome(run):
    return json.loads((run.path / "tracking.json").read_text())


def test_parent_children_curves_and_settings_arrive(place):
    run, recipe = make_run(place / "run", overrides=["outcomes=[death]"])
    said = []
    assert train_like(run, recipe, say=said.append) == RESULT
    runs, parents, curves = stored(f"sqlite:///{place}/mlflow.db")
    assert (len(runs), len(parents), said) == (3, 1, [])
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {r.data.tags["mlflow.parentRunId"] for r in runs if r not in parents} == {parents[0].info.run_id}
    assert parents[0].data.params["train.epochs"] == str(recipe.train.epochs)
    assert json.loads(parents[0].data.params["model.fusion"])["name"] == "transformer"
    assert parents[0].data.tags["data.clinical"] == "k" * 64
    assert curves == {(str(run.path), fold): expected(fold) for fold in ("0", "1")}
    record = outcome(run)
    assert (record["complete"], record["trouble"]) == (True, "")
    assert record["mlflow_run"] == parents[0].info.run_id


def test_tracking_leaves_the_users_mlflow_as_it_was(place, fresh, monkeypatch):
    (place / "theirs").mkdir()
    shutil.copy(fresh, place / "theirs" / "mlflow.db")
    other = f"sqlite:///{place}/theirs/mlflow.db"
    run, recipe = make_run(place / "run", status="finished")
    monkeypatch.setattr(tracking, "tracking_uri", lambda: f"sqlite:///{place}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    mlflow.set_tracking_uri(other)
    mlflow.set_experiment("mine")
    run.seal()
    try:
        with mlflow.start_run() as mine:
            with track(run, recipe, card=read_card("transbig"), folds=["0", "1"], say=pytest.fail) as tracker:
                tracker.finish(run)
            assert mlflow.active_run().info.run_id == mine.info.run_id
            assert (mlflow.get_tracking_uri(), os.environ["MLFLOW_TRACKING_URI"]) == (other, other)
            mlflow.log_metric("x", 1.0)
        assert MlflowClient(tracking_uri=other).get_run(mine.info.run_id).data.metrics == {"x": 1.0}
    finally:
        mlflow.set_tracking_uri(None)
        monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    assert outcome(run)["complete"]
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    runs, parents, _ = stored(f"sqlite:///{place}/mlflow.db")
    assert parents[0].data.metrics == {"death/harrell_c": 0.7}
    child = next(r for r in runs if r.data.tags.get("fold") == "0")
    assert child.data.metrics == {"death/harrell_c": 0.6}


def test_the_default_database_is_that_of_each_working_folder(place, fresh, monkeypatch):
    for name in ("one", "two"):  # mlflow writes its URI to the environment, where the second run would find the first's
        (place / name).mkdir()
        shutil.copy(fresh, place / name / "mlflow.db")
        monkeypatch.chdir(place / name)
        run, recipe = make_run(place / name / "run", status="finished")
        run.seal()
        with track(run, recipe, card=read_card("transbig"), folds=["0", "1"], say=pytest.fail) as tracker:
            tracker.finish(run)
        assert "MLFLOW_TRACKING_URI" not in os.environ
    for name in ("one", "two"):
        _, parents, _ = stored(f"sqlite:///{place / name}/mlflow.db")
        assert [r.data.tags["medfuse.run"] for r in parents] == [str(place / name / "run")]


def test_odd_numbers_odd_names_and_long_values_are_taken(place, monkeypatch):
    long = "x" * 20_000
    run, recipe = make_run(place / "a run #1, 50%25 é")
    params = tracking._params
    monkeypatch.setattr(tracking, "_params", lambda *a: {**params(*a), "train.long": long, "odd @ näme(+)": "1"})
    odd = {"nan": float("nan"), "inf": float("inf"), "less": float("-inf"), "c@365 (ü+)": np.float64(0.5), "no": None}
    with track(run, recipe, card=read_card("transbig"), folds=["0", "1"], say=pytest.fail) as tracker:
        tracker.epoch("0", "00-00", 1, {"epoch": 1, **odd})
        tracker.epoch("no such fold", "00-00", 1, {"epoch": 1, **odd})
    assert outcome(run)["complete"]
    runs, parents, _ = stored(f"sqlite:///{place}/mlflow.db")
    assert long.startswith(parents[0].data.params["train.long"].removesuffix(" ..."))
    assert len(parents[0].data.params["train.long"]) == 6000
    assert parents[0].data.params["train.long"].endswith("x ...")
    metrics = next(r for r in runs if r.data.tags.get("fold") == "0").data.metrics
    assert np.isnan(metrics["00-00/nan"])
    assert metrics["00-00/inf"] > 1e308
    assert metrics["00-00/less"] < -1e308
    assert metrics["00-00/c_at_365 _ü__"] == 0.5
    assert len(metrics) == 4


def test_what_was_logged_before_an_exception_is_there(place):
    run, recipe = make_run(place / "run")

    def dies(k):
        if k == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_like(run, recipe, during=dies)
    runs, _, curves = stored(f"sqlite:///{place}/mlflow.db")
    assert {r.info.status for r in runs} == {"FAILED"}
    assert curves[str(run.path), "0"] == expected("0")[:4]


def test_a_run_that_goes_on_has_its_whole_curves_once(place):
    run, recipe = make_run(place / "run")
    for fold, member, epoch, value in ROWS[:4]:  # an earlier process died after these, in the middle of a line
        run.append_curve({"fold": fold, "member": member, "step": epoch, "epoch": epoch, "train_loss": value})
    with (run.path / "curves.jsonl").open("a") as stream:
        stream.write('{"fold": "0", "mem')
    train_like(run, recipe, rows=ROWS[2:])  # from its checkpoint
    _, _, curves = stored(f"sqlite:///{place}/mlflow.db")
    assert curves == {(str(run.path), fold): expected(fold) for fold in ("0", "1")}
    assert len(run.curves()) == 4 + len(ROWS) - 2


def test_two_experiments_side_by_side_stay_apart(place):
    pairs = [make_run(place / name, experiment=name) for name in ("one", "two")]
    with contextlib.ExitStack() as stack:
        trackers = [
            stack.enter_context(track(run, recipe, card=read_card("transbig"), folds=["0", "1"], say=pytest.fail))
            for run, recipe in pairs
        ]
        for fold, member, epoch, value in ROWS:
            for k, tracker in enumerate(trackers):
                tracker.epoch(fold, member, epoch, {"epoch": epoch, "train_loss": value + k})
    for k, (run, _) in enumerate(pairs):
        _, parents, curves = stored(f"sqlite:///{place}/mlflow.db", experiment=run.path.name)
        assert len(parents) == 1
        assert curves[str(run.path), "1"] == [(step, value + k) for step, value in expected("1")]


# --- trouble ------------------------------------------------------------------------------------------------------


def failed_quietly(run, recipe, caplog, *, reason, seconds, during=lambda k: None):
    """Train through trouble: the result, one line said, one line logged, and the record."""
    said = []
    start = time.perf_counter()
    with caplog.at_level(logging.INFO):
        assert train_like(run, recipe, say=said.append, during=during) == RESULT
    assert time.perf_counter() - start < seconds
    assert len(said) == 1
    assert "MLflow is out of order" in said[0]
    logged = [r for r in caplog.records if r.name.startswith("medfuse")]
    assert [r.levelname for r in logged] == ["WARNING"], [r.getMessage() for r in logged]
    assert reason in logged[0].getMessage()
    record = outcome(run)
    assert not record["complete"]
    assert reason in record["trouble"]
    assert len(run.curves()) == len(ROWS)
    return record


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:////nowhere/at/all.db", "No such file"),
        ("sqlite:///{place}/folder", "unable to open database file"),
        ("sqlite:///{place}/letter.txt", "file is not a database"),
        ("sqlite:///file:{place}/mlflow.db?mode=ro&uri=true", "readonly database"),
        ("http://tom:secret@127.0.0.1:9", "refused"),
        ("gopher://127.0.0.1", "gopher"),
    ],
    ids=["no folder", "a folder", "no database", "read-only", "unreachable", "unknown"],
)
def test_a_store_out_of_order_never_stops_training(place, caplog, monkeypatch, uri, reason):
    (place / "folder").mkdir()
    (place / "letter.txt").write_text("Dear doctor, " * 500)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(place=place))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, recipe = make_run(place / "run")
    failed_quietly(run, recipe, caplog, reason=reason, seconds=10)
    assert "secret" not in caplog.text + json.dumps(outcome(run))


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("boom"), MemoryError("boom")], ids=type)
def test_a_store_that_raises_anything_never_stops_training(place, caplog, monkeypatch, error):
    def raises(*args, **kwargs):
        raise error

    monkeypatch.setattr(tracking, "_replay_apart", lambda plan: False)
    monkeypatch.setattr(tracking, "_BATCH", 2)
    run, recipe = make_run(place / "run")
    during = lambda k: k == 0 and monkeypatch.setattr(MlflowClient, "log_batch", raises)  # noqa: E731
    failed_quietly(run, recipe, caplog, reason="boom", seconds=10, during=during)


def test_a_store_that_comes_back_has_all_of_it(place, monkeypatch):
    real, calls = MlflowClient.log_batch, []

    def sometimes(self, run_id, metrics=(), **kwargs):
        calls.append(len(metrics))
        if metrics and len([n for n in calls if n]) <= 3:
            raise ConnectionError("away")
        return real(self, run_id, metrics=metrics, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    monkeypatch.setattr(tracking, "_SECONDS", 0.1)
    said = []
    run, recipe = make_run(place / "run")
    train_like(run, recipe, say=said.append, during=lambda k: time.sleep(0.15))
    _, _, curves = stored(f"sqlite:///{place}/mlflow.db")
    assert curves == {(str(run.path), fold): expected(fold) for fold in ("0", "1")}
    assert ["out of order" in said[0], "is back" in said[1]] == [True, True]
    assert outcome(run) | {"mlflow_run": None, "uri": None} == {
        "complete": True,
        "experiment": "medfuse",
        "format_version": 1,
        "mlflow_run": None,
        "replayed": False,
        "trouble": "ConnectionError: away",
        "uri": None,
    }


def test_a_silent_server_delays_training_by_a_bounded_time(place, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "_START_SECONDS", 0.5)
    with socket.socket() as server:  # takes the connection and says nothing
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        run, recipe = make_run(place / "run")
        failed_quietly(run, recipe, caplog, reason="no answer in time", seconds=5)


def test_a_held_lock_delays_training_by_a_bounded_time(place, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "_LOCK_SECONDS", 0.3)
    run, recipe = make_run(place / "run")
    with tracking._start_lock(f"sqlite:///{place}/mlflow.db"):
        failed_quietly(run, recipe, caplog, reason="BlockingIOError", seconds=5)


def test_a_run_that_no_fold_can_be_made_of_is_ended(place, monkeypatch):
    real = MlflowClient.create_run

    def no_child(self, *args, **kwargs):
        if "fold" in kwargs["tags"]:
            raise RuntimeError("no")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", no_child)
    run, recipe = make_run(place / "run")
    assert train_like(run, recipe) == RESULT
    runs, _, _ = stored(f"sqlite:///{place}/mlflow.db")
    assert [r.info.status for r in runs] == ["FAILED"]


def test_a_deleted_experiment_is_said(place, caplog):
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    client.delete_experiment(client.create_experiment("medfuse"))
    run, recipe = make_run(place / "run")
    failed_quietly(run, recipe, caplog, reason="was deleted", seconds=10)


# --- the dead and the living --------------------------------------------------------------------------------------


def test_this_process_lives_and_a_gone_one_does_not():
    ours = process_tags()
    assert not is_dead(ours)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert is_dead({**ours, "medfuse.pid": str(gone.pid)})


def test_doubt_counts_as_alive():
    ours = process_tags()
    machine, boot, namespace, start = ours["medfuse.process"].split("/")
    tag = functools.partial("/".join)
    assert is_dead({**ours, "medfuse.process": tag((machine, boot, namespace, start + "1"))})  # its number went on
    assert not is_dead({**ours, "medfuse.host": "elsewhere", "medfuse.pid": "1"})
    assert not is_dead({**ours, "medfuse.process": tag((machine, boot, "pid:[7]", start + "1"))})  # another container
    assert not is_dead({**ours, "medfuse.process": tag(("other machine", "other boot", namespace, start))})
    assert not is_dead({"medfuse.host": ours["medfuse.host"]})
    assert not is_dead({**ours, "medfuse.pid": "none"})


def test_a_process_of_an_earlier_boot_is_dead_unless_in_a_container(monkeypatch):
    texts = {"/etc/machine-id": "m", "/proc/sys/kernel/random/boot_id": "first"}
    real = processes._text
    monkeypatch.setattr(processes, "_text", lambda path: texts.get(path) or real(path))
    for namespace, dead in ((processes._FIRST_PID_NAMESPACE, True), ("pid:[7]", False)):
        monkeypatch.setattr(processes, "_namespace", lambda n=namespace: n)
        texts["/proc/sys/kernel/random/boot_id"] = "first"
        before = process_tags()
        texts["/proc/sys/kernel/random/boot_id"] = "second"
        assert is_dead(before) is dead


def test_the_remains_of_a_process_are_dead():
    child = subprocess.Popen(["sleep", "60"])
    tags = {**process_tags(), "medfuse.pid": str(child.pid)}
    here = tags["medfuse.process"].rpartition("/")[0]
    tags["medfuse.process"] = f"{here}/{processes._started(child.pid)}"
    assert not is_dead(tags)
    child.kill()
    until = time.monotonic() + 10
    while not is_dead(tags) and time.monotonic() < until:  # nobody has waited for it: it is a zombie
        time.sleep(0.01)
    assert is_dead(tags)
    child.wait()


def test_more_than_a_page_of_dead_runs_is_closed_and_no_living_one(place, monkeypatch):
    monkeypatch.setattr(tracking, "_PAGE", 2)
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    experiment = client.create_experiment("medfuse")
    ours = process_tags()
    living = client.create_run(experiment, tags=ours).info.run_id
    for _ in range(5):
        client.create_run(experiment, tags={**ours, "medfuse.process": ours["medfuse.process"] + "1"})
    assert close_dead_runs(client, experiment) == 5
    assert close_dead_runs(client, experiment) == 0
    assert client.get_run(living).info.status == "RUNNING"


# A process that has imported MLflow forks N trackers, each on a run of its own, so that they start within milliseconds.
FORKS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mlflow, mlflow.pyfunc, mlflow.store.tracking.sqlalchemy_store
from test_tracking import make_run, train_like
place, n, what = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.chdir(place)
def hang(k):
    if what == "hang" and k == 5:
        (place / f"hanging-{os.getpid()}").touch()
        time.sleep(600)
def one(k):
    run, recipe = make_run(place / f"run-{k}")
    said = []
    train_like(run, recipe, during=hang, say=said.append)
    return bool(said)
children = []
for k in range(n):
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = one(k)
        finally:
            os._exit(code)
    children.append(pid)
print(*children, flush=True)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if what != "hang" else 0 for pid in children))
"""


def forks(place, n, what):
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(Path(__file__).parent), str(place), str(n), what]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def starters(place, n):
    """K5: processes that start at once on a database that does not exist: all succeed, all metrics are there."""
    place.mkdir()
    process = forks(place, n, "run")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    runs, parents, curves = stored(f"sqlite:///{place}/mlflow.db")
    assert len(parents) == n
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert curves == {(str(place / f"run-{k}"), fold): expected(fold) for k in range(n) for fold in ("0", "1")}
    assert all(outcome(Run(path=place / f"run-{k}"))["complete"] for k in range(n))


def killed(place, n, *, kill):
    """K6: of ``n`` tracking processes, ``kill`` are killed; the next start marks exactly theirs."""
    process = forks(place, n, "hang")
    pids = [int(pid) for pid in process.stdout.readline().split()]
    try:
        until = time.monotonic() + 120
        while len(list(place.glob("hanging-*"))) < n and time.monotonic() < until:
            time.sleep(0.05)
        assert len(list(place.glob("hanging-*"))) == n
        for pid in pids[:kill]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        run, recipe = make_run(place / "next")
        train_like(run, recipe, say=pytest.fail)
        runs, _, _ = stored(f"sqlite:///{place}/mlflow.db")
        status = {int(r.data.tags["medfuse.pid"]): set() for r in runs}
        for r in runs:
            status[int(r.data.tags["medfuse.pid"])].add(r.info.status)
        assert [status[pid] for pid in pids[:kill]] == [{"KILLED"}] * kill
        assert [status[pid] for pid in pids[kill:]] == [{"RUNNING"}] * (n - kill)
        assert status[os.getpid()] == {"FINISHED"}
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)


def test_three_processes_start_at_once_on_a_fresh_database(place):
    starters(place / "0", 3)


@pytest.mark.slow
def test_eight_processes_start_at_once_on_fresh_databases(place, many):
    for turn in range(many(5, 20)):
        starters(place / str(turn), 8)


@pytest.mark.slow
def test_twenty_killed_runs_are_marked_and_three_living_ones_are_not(place):
    killed(place, 23, kill=20)


def test_a_killed_run_is_marked_and_a_living_one_is_not(place):
    killed(place, 2, kill=1)


# --- the whole way ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_database_removed_on_the_way_is_given_the_run_again(place, status, caplog):
    run, recipe = make_run(place / "run", status=status)
    run.seal()
    said = []

    def removes(k):
        if k == 6:
            time.sleep(1)
            (place / "mlflow.db").unlink()

    assert train_like(run, recipe, during=removes, say=said.append) == RESULT
    assert ["out of order" in said[0], "is back" in said[1]] == [True, True]
    assert outcome(run)["replayed"]
    other = f"sqlite:///{place}/../{place.name}/mlflow.db"  # spelt otherwise: mlflow keeps connections by their name
    runs, parents, curves = stored(other)
    assert curves == {(str(run.path), fold): expected(fold) for fold in ("0", "1")}
    assert [r.info.run_id for r in parents] == [outcome(run)["mlflow_run"]]
    assert {r.info.status for r in runs} == {"FINISHED" if status == "finished" else "FAILED"}


@pytest.mark.slow
def test_a_run_can_be_replayed_later(place, monkeypatch):
    run, recipe = make_run(place / "run", status="finished")
    written = {"report.html", *(f"{name}.{ending}" for name in DOCUMENTS for ending in ("html", "md", "json"))}
    for name in written:
        run.write_text(name, f"{{}} of {name}")
    run.seal()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    train_like(run, recipe)
    assert not replay(run.path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert replay(run.path)
    _, parents, curves = stored(f"sqlite:///{place}/mlflow.db")
    assert curves == {(str(run.path), fold): expected(fold) for fold in ("0", "1")}
    assert parents[0].data.metrics == {"death/harrell_c": 0.7}
    files = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db").list_artifacts(parents[0].info.run_id, "run")
    assert written <= {Path(file.path).name for file in files}


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_tracking as t
place = Path(sys.argv[2])
run, recipe = t.make_run(place / "run")
def fill(k):
    if k == 0:
        size = (place / "mlflow.db").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
many = [(f, m, e, e / 7) for f in ("0", "1") for m in ("00-00",) for e in range(1, 4000)]
said = []
total = t.train_like(run, recipe, rows=many, during=fill, say=said.append)
assert total == sum(row[3] for row in many), total
assert len(run.curves()) == len(many)
assert len(said) == 1 and "out of order" in said[0], said
record = t.outcome(run)
assert not record["complete"] and "disk" in record["trouble"], record
"""


@pytest.mark.slow
def test_a_full_disk_under_the_database_never_stops_training(place):
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(Path(__file__).parent), str(place)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


SMALL = ("train.epochs=3", "baselines=[kaplan_meier]")


@pytest.mark.slow
def test_training_gives_the_same_with_tracking_without_it_and_through_its_trouble(place, monkeypatch):
    from medfuse.workflow import train

    def trained(name, *overrides):
        run = train(
            "transbig", recipe="smoke", overrides=(*SMALL, *overrides), store_root=place / "store", out=place / name
        )
        run.verify()
        frame = run.predictions().set_index(["model", "partition", "fold", "patient_id"])
        return run, frame.risk_score

    plain, result = trained("plain")
    assert not (plain.path / "tracking.json").exists()
    tracked, same = trained("tracked", "tracking.mlflow=true")
    assert outcome(tracked)["complete"]
    pd.testing.assert_series_equal(result, same, check_exact=True)

    def raises(self, run_id, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr(MlflowClient, "set_terminated", raises)
    real = MlflowClient.log_batch
    breaks = lambda self, run_id, metrics=(), **k: raises(self, run_id) if metrics else real(self, run_id, **k)  # noqa: E731
    monkeypatch.setattr(MlflowClient, "log_batch", breaks)
    monkeypatch.setattr(tracking, "_replay_apart", lambda plan: False)
    troubled, third = trained("troubled", "tracking.mlflow=true")
    assert "boom" in outcome(troubled)["trouble"]
    pd.testing.assert_series_equal(result, third, check_exact=True)
    assert len(troubled.curves()) == len(plain.curves())
    assert threading.active_count() < 10


CARD = """---
name: {name}
title: "Partial patients"
governance: {{licence: as transbig, source: a test, citation: a test, consent: none, deidentification: none}}
patients: {{file: patients.csv, id: id}}
time_zero: keep
outcomes:
  metastasis: {{kind: survival, time: time, unit: days, event: event, event_codes: ["1"], censored_codes: ["0"]}}
modalities:
  clinical:
    loader: tabular
    file: clinical.csv
    id: id
    columns:
      age: {{kind: numeric, unit: years}}
      size: {{kind: numeric, unit: cm}}
      er: {{kind: categorical, levels: ["0", "1"]}}
      grade: {{kind: ordinal, levels: ["1", "2", "3"]}}
  expression: {{loader: expression, file: expression.csv, id: id, columns: "X*", unit: intensity, log_base: 2}}
---

A card of a test.
"""


def write_cohort(folder, name, *, prefix):
    """Transbig as CSV files with codes for levels, in which patients miss cells, a modality, or everything."""
    from medfuse.cohort import read_cohort

    cohort = read_cohort(read_card("transbig"))
    data = load_modalities(cohort, store_root=folder.parent / "store")
    ids = [f"{prefix}{k}" for k in range(len(cohort.patient_ids))]
    target = cohort.targets["distant_metastasis"]
    folder.mkdir()
    table = pd.DataFrame({"id": ids, "time": target.time, "event": target.event.astype(int)})
    table.to_csv(folder / "patients.csv", index=False)
    frames = {}
    for modality, start in (("clinical", ""), ("expression", "X")):
        tokens = np.stack([data[modality].samples[i].tokens for i in cohort.patient_ids]).astype(float)
        values = np.where(tokens[..., 1] > 0, tokens[..., 0], np.nan)
        frames[modality] = pd.DataFrame(values, columns=[start + c.name for c in data[modality].columns])
    frames["clinical"]["grade"] += 1
    frames["clinical"].loc[3::9, ["age", "er"]] = np.nan
    frames["clinical"].loc[4::9, :] = np.nan
    frames["expression"].loc[5::9, "X" + data["expression"].columns[0].name] = np.nan
    frames["expression"].loc[6::9, :] = np.nan
    for frame in frames.values():
        frame.loc[7::9, :] = np.nan
        frame.insert(0, "id", ids)
    for modality, frame in frames.items():
        frame.dropna(how="all", subset=frame.columns[1:]).to_csv(folder / f"{modality}.csv", index=False)
    (folder / f"{name}.md").write_text(CARD.format(name=name))
    return ids, folder / f"{name}.md"


SERVE = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
for source, target in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
    model.predict(pd.read_csv(source)).to_csv(target, index=False)
"""


@pytest.mark.slow
def test_the_model_served_by_a_fresh_process_is_medfuse_predict_for_partial_and_empty_patients(place):
    from medfuse.workflow import predict, train

    _, card = write_cohort(place / "old", "old", prefix="old-")
    ids, new = write_cohort(place / "new", "new", prefix="new-")
    overrides = (*SMALL, "tracking.mlflow=true")
    run = train(
        card,
        recipe="smoke",
        overrides=overrides,
        data_root=place / "old",
        store_root=place / "store",
        out=place / "run",
    )
    assert outcome(run)["complete"]
    path = predict(run, new, data_root=place / "new", store_root=place / "store", out=place / "p.csv")
    ours = pd.read_csv(path).set_index("patient_id").loc[ids]
    # The table as a user makes it: the CSV files side by side, as pandas reads them.
    table = pd.DataFrame({"patient_id": ids})
    for name, start in (("clinical", ""), ("expression", "X")):
        frame = pd.read_csv(place / "new" / f"{name}.csv").rename(
            columns=lambda c, n=name, s=start: f"{n}.{c.removeprefix(s)}"
        )
        table = table.merge(frame, left_on="patient_id", right_on=f"{name}.id", how="left").drop(columns=f"{name}.id")
    assert table.filter(like=".").iloc[7].isna().all()
    table.to_csv(place / "all.csv", index=False)
    table[[c for c in table if not c.startswith("expression.")]].to_csv(place / "clinical.csv", index=False)
    table[["patient_id"]].to_csv(place / "none.csv", index=False)
    shutil.move(place / "run", place / "moved")  # MLflow has all that it needs
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    files = [str(place / f"{name}{end}") for name in ("all", "clinical", "none") for end in (".csv", "-served.csv")]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SERVE,
        f"sqlite:///{place}/mlflow.db",
        outcome(Run(path=place / "moved"))["mlflow_run"],
    ]
    subprocess.run([*command, *files], env=ENVIRONMENT, cwd=elsewhere, check=True, capture_output=True, timeout=300)
    served = pd.read_csv(place / "all-served.csv").set_index("patient_id").loc[ids]
    assert list(served.columns) == list(ours.columns)
    numbers = ours.select_dtypes("number").columns
    np.testing.assert_allclose(served[numbers], ours[numbers], atol=1e-6, rtol=0)
    assert served.modalities.tolist() == ours.modalities.tolist()
    assert served.modalities.iloc[[0, 4, 6, 7]].tolist() == [
        "clinical+expression",
        "expression",
        "clinical",
        "none: population estimate",
    ]
    clinical, none = (
        pd.read_csv(place / f"{n}-served.csv").set_index("patient_id").loc[ids] for n in ("clinical", "none")
    )
    only = (ours.modalities == "clinical").to_numpy()
    np.testing.assert_allclose(clinical[numbers][only], ours[numbers][only], atol=1e-6, rtol=0)
    assert set(none.modalities) == {"none: population estimate"}
    assert np.ptp(none.risk_score) < 1e-6
    np.testing.assert_allclose(none[numbers].iloc[0], ours[numbers].iloc[7], atol=1e-6, rtol=0)
    part = next((place / "mlruns").rglob("artifacts/run/attrition.json"))
    part.write_text(part.read_text().replace("198", "197"))
    damaged = subprocess.run([*command, *files], env=ENVIRONMENT, cwd=elsewhere, check=False, capture_output=True)
    assert damaged.returncode != 0
    assert b"attrition.json: content differs" in damaged.stderr
