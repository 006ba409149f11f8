"""A run to MLflow. Trouble with tracking never stops training: ``curves.jsonl`` is the copy that counts.

All of MLflow is used on a thread of its own, from making the database to logging the model: the training thread only
puts numbers into a queue, waits a bounded time at the start and at the end, and never sees an error of MLflow. What a
store refuses is kept and tried again; what it refuses to the end is read from the run directory by :func:`replay`.
How tracking went stands in the run as ``tracking.json``, which is no part of its seal.

With ``_pyfunc.py`` the only file that imports mlflow.
"""

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfuse.card import CohortCard
from medfuse.config import Recipe, read_recipe
from medfuse.documents import DOCUMENTS
from medfuse.errors import MedfuseError, StoreError
from medfuse.processes import is_dead, process_tags
from medfuse.run import Run, open_run

_LOG = logging.getLogger("medfuse.tracking")
_BATCH, _SECONDS = 500, 5.0  # metrics wait for this many, or this long
_METRIC_LIMIT, _PARAM_LIMIT = 1000, 100  # MLflow's own limits per log_batch
_PAGE = 200  # runs per search
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000  # MLflow's own limits of a value
_LOCK_SECONDS = 60.0
_START_SECONDS, _END_SECONDS = 30.0, 300.0  # longest that training waits for MLflow
_SAY = "tracking: MLflow is out of order ({}); the run directory holds everything (curves.jsonl, metrics.json)"
_PARTS = (
    *("run.json", "card.md", "recipe.yaml", "splits.json", "manifest.json", "metrics.json", "report.html"),
    *(f"{name}.{ending}" for name in DOCUMENTS for ending in ("html", "md", "json")),
)
_globals = threading.Lock()  # of the process: mlflow's tracking URI


class Tracker:
    """Tracks nothing; what :func:`track` gives when MLflow is off."""

    def epoch(self, fold: str, member: str, step: int, record: Mapping[str, Any]) -> None:
        """Take one epoch's record of a member."""

    def finish(self, run: Run) -> None:
        """Log the finished run."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is tracked, and where."""

    run: Run
    uri: str
    experiment: str
    cohort: str
    folds: tuple[str, ...]
    params: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Target:
    """The MLflow runs of a plan: a parent, and a child per fold."""

    client: Any
    experiment: str
    parent: str
    children: Mapping[str, str]


@dataclass(frozen=True)
class _Metric:
    fold: str | None  # None: of the parent
    key: str
    value: float
    step: int
    stamp: int  # milliseconds since 1970


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def close_dead_runs(client: Any, experiment_id: str) -> int:  # noqa: ANN401  # MlflowClient
    """Mark runs of this host whose process is known to be gone as KILLED; returns how many."""
    query = f"attributes.status = 'RUNNING' and tags.`medfuse.host` = '{socket.gethostname()}'"
    page = client.search_runs([experiment_id], filter_string=query, max_results=_PAGE)
    found = list(page)
    while page.token:
        page = client.search_runs([experiment_id], filter_string=query, max_results=_PAGE, page_token=page.token)
        found += page
    closed = 0
    for run in found:
        # Read again after the death: the process may have ended well since the search.
        if is_dead(run.data.tags) and client.get_run(run.info.run_id).info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status="KILLED")
            closed += 1
    return closed


# --- the store ----------------------------------------------------------------------------------------------------


def _sqlite_path(uri: str) -> Path | None:
    name = uri.removeprefix("sqlite:///").partition("?")[0] if uri.startswith("sqlite:///") else ""
    return Path(name) if name and name != ":memory:" and not name.startswith("file:") else None


@contextlib.contextmanager
def _start_lock(uri: str) -> Iterator[None]:
    """One process at a time makes or migrates the database: unlocked, most of several fresh starters die.

    Raises:
        OSError: another process holds the lock for too long, or the folder cannot be written.
        sqlite3.Error: the file is no database or cannot be written; MLflow itself would try for minutes.
    """
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    with Path(f"{path}.lock").open("w") as lock:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
            database.execute("BEGIN IMMEDIATE")
        yield


def _experiment(client: Any, name: str) -> str:  # noqa: ANN401  # MlflowClient
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        msg = f"MLflow experiment {name!r} was deleted; restore it, or name another in tracking.experiment"
        raise StoreError(msg)
    return str(found.experiment_id)


def _quiet() -> None:
    """Silence MLflow, once it is imported (the import sets levels of its own); trouble is ours to tell, once.

    Its advice (no signature: which columns a patient has is open; version notes) is not the user's to act on.
    """
    for name in ("mlflow", "mlflow.pyfunc", "mlflow.models", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for every refusal


def _begin(plan: _Plan) -> _Target:
    """Make the MLflow runs of a plan."""
    from mlflow.entities import Param, RunTag
    from mlflow.tracking import MlflowClient

    _quiet()
    with _start_lock(plan.uri):
        client = MlflowClient(tracking_uri=plan.uri)
        experiment = _experiment(client, plan.experiment)
        close_dead_runs(client, experiment)
    tags = {**process_tags(), "medfuse.run": str(plan.run.path)[:_TAG_LENGTH]}
    name = plan.run.path.name
    parent = client.create_run(experiment, run_name=name, tags={**tags, "cohort": plan.cohort}).info.run_id
    children: dict[str, str] = {}
    target = _Target(client=client, experiment=experiment, parent=parent, children=children)
    try:
        keys = {f"data.{k}": m["key"] for k, m in plan.run.read("data")["modalities"].items()}
        client.log_batch(parent, tags=[RunTag(_clean(k), str(v)) for k, v in keys.items()])
        params = [Param(_clean(k), _cut(v)) for k, v in plan.params.items()]
        for start in range(0, len(params), _PARAM_LIMIT):
            client.log_batch(parent, params=params[start : start + _PARAM_LIMIT])
        for fold in plan.folds:
            more = {"mlflow.parentRunId": parent, "fold": fold}
            run = client.create_run(experiment, run_name=f"{name} fold {fold}", tags={**tags, **more})
            children[fold] = run.info.run_id
    except Exception:
        with contextlib.suppress(Exception):
            _terminate(target, "FAILED")
        raise
    return target


def _send(target: _Target, waiting: Sequence[_Metric]) -> tuple[list[_Metric], Exception | None]:
    """Send metrics; returns those that the store refused, and why. Sending one again is harmless."""
    from mlflow.entities import Metric

    by_run: dict[str, list[_Metric]] = {}
    for metric in waiting:
        run = target.parent if metric.fold is None else target.children[metric.fold]
        by_run.setdefault(run, []).append(metric)
    refused: list[_Metric] = []
    trouble: Exception | None = None
    for run, metrics in by_run.items():
        for start in range(0, len(metrics), _METRIC_LIMIT):
            part = metrics[start : start + _METRIC_LIMIT]
            try:
                target.client.log_batch(run, metrics=[Metric(m.key, m.value, m.stamp, m.step) for m in part])
            except Exception as error:  # noqa: BLE001  # a store raises what it likes; nothing of it may end the thread
                refused += part
                trouble = error
    return refused, trouble


def _log_artifacts(target: _Target, plan: _Plan) -> None:
    """Log the run's parts, and the run as a served model."""
    for name in _PARTS:
        if (plan.run.path / name).is_file():
            target.client.log_artifact(target.parent, str(plan.run.path / name), artifact_path="run")
    import mlflow
    from mlflow.models import Model

    model = target.client.create_logged_model(target.experiment, name="model", source_run_id=target.parent)
    with _globals, _mlflow_uri(plan.uri):
        # Not mlflow.pyfunc.log_model, which needs an active run and trips over one of the user's.
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=target.parent,
            model_id=model.model_id,
            python_model=str(Path(__file__).with_name("_pyfunc.py")),
            artifacts={"run": str(plan.run.path)},
            pip_requirements=["medfuse"],
        )


@contextlib.contextmanager
def _mlflow_uri(uri: str) -> Iterator[None]:
    """Set mlflow's tracking URI, which it also writes to the environment, and leave both as they were."""
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    before, was_set = os.environ.get(name), mlflow.is_tracking_uri_set()
    old = mlflow.get_tracking_uri() if was_set else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(old)
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _clean(key: str) -> str:
    """A key that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))[:250]


def _cut(value: str) -> str:
    return value if len(value) <= _PARAM_LENGTH else value[: _PARAM_LENGTH - 4] + " ..."


def _reason(error: BaseException) -> str:
    """The root of an error in one line, without the name and password that a URI may hold."""
    root, seen = error, {id(error)}
    while (deeper := root.__cause__ or root.__context__) is not None and id(deeper) not in seen:
        root = deeper
        seen.add(id(root))
    line = (str(root).strip().splitlines() or [""])[0]
    return f"{type(root).__name__}: {_redact(line)}"[:300]


def _redact(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", text)


# --- the thread ---------------------------------------------------------------------------------------------------


class _Writer(threading.Thread):
    """Does all that is asked of MLflow, in order, and keeps the first trouble."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__(daemon=True, name="medfuse-tracking")
        self.ready = threading.Event()
        self.target: _Target | None = None
        self.trouble = ""
        self.failed = False  # something is missing in MLflow, metrics apart
        self.unended = False  # the store no longer takes the end of its runs
        self.waiting: list[_Metric] = []
        self._plan = plan
        self._last = time.monotonic()
        self._queue: queue.SimpleQueue[list[_Metric] | Callable[[_Target], None] | None] = queue.SimpleQueue()

    def put(self, item: list[_Metric] | Callable[[_Target], None] | None) -> None:
        """Ask for metrics (an epoch's at once: each put wakes this thread) or other work; None is the end."""
        self._queue.put(item)

    def note(self, error: BaseException) -> None:
        """Log the first trouble, and keep it."""
        if not self.trouble:
            self.trouble = _reason(error)
            _LOG.warning("tracking failed: %s", self.trouble)

    def run(self) -> None:
        """Work until the end is asked for."""
        try:
            self.target = _begin(self._plan)
        except Exception as error:  # noqa: BLE001  # as in _send
            self.note(error)
            self.failed = True
            return
        finally:
            self.ready.set()
        more = True
        while more:
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=0.5)
                more = item is not None
                if isinstance(item, list):
                    self.waiting += item
                elif item is not None:
                    self._do(item, self.target)
            late = time.monotonic() - self._last > _SECONDS
            if not more or late or (len(self.waiting) >= _BATCH and not self.trouble):
                self._flush(self.target)

    def end(self, target: _Target, status: str) -> None:
        """End the MLflow runs."""
        self.unended = True
        _terminate(target, status)
        self.unended = False

    def _flush(self, target: _Target) -> None:
        if self.waiting:
            self.waiting, error = _send(target, self.waiting)
            if error is not None:
                self.note(error)
        self._last = time.monotonic()

    def _do(self, work: Callable[[_Target], None], target: _Target) -> None:
        self._flush(target)
        try:
            work(target)
        except Exception as error:  # noqa: BLE001  # as in _send
            self.note(error)
            self.failed = True


class _Mlflow(Tracker):
    """The training thread's side: nothing here calls MLflow or raises."""

    def __init__(self, plan: _Plan, say: Callable[[str], None]) -> None:
        self._plan, self._say, self._told = plan, say, False
        self._seen: set[tuple[str, str, int]] = set()
        self._writer = _Writer(plan)
        self._writer.start()
        self._writer.ready.wait(_START_SECONDS)
        for row in plan.run.curves():  # of an earlier process, when a run goes on
            self.epoch(str(row["fold"]), str(row["member"]), int(row["step"]), row)

    def _tell(self) -> None:
        if self._writer.trouble and not self._told:
            self._told = True
            self._say(_SAY.format(self._writer.trouble))

    def epoch(self, fold: str, member: str, step: int, record: Mapping[str, Any]) -> None:
        self._tell()
        epoch = int(record.get("epoch", step))
        if fold not in self._plan.folds or (fold, member, epoch) in self._seen:
            return  # an epoch that a resumed run repeats is the same epoch
        self._seen.add((fold, member, epoch))
        stamp = int(time.time() * 1000)
        told = ((key, value) for key, value in record.items() if key != "epoch" and isinstance(value, float))
        self._writer.put([_Metric(fold, _clean(f"{member}/{key}"), float(value), epoch, stamp) for key, value in told])

    def finish(self, run: Run) -> None:
        try:
            self._put_results(run)
        except (MedfuseError, KeyError, TypeError) as error:
            self._writer.note(error)
        self._writer.put(lambda target: _log_artifacts(target, self._plan))

    def _put_results(self, run: Run) -> None:
        stamp = int(time.time() * 1000)
        for outcome, content in run.read("metrics")["outcomes"].items():
            model = content["models"][content["carrying"]]
            for row in (model["mean"], *model["folds"]):
                fold = str(row["fold"]) if "fold" in row else None
                for key, value in row.items():
                    if isinstance(value, float) and (fold is None or fold in self._plan.folds):
                        self._writer.put([_Metric(fold, _clean(f"{outcome}/{key}"), value, 0, stamp)])

    def close(self, status: str, *, again: bool) -> bool:
        """End the MLflow runs; returns whether all is in MLflow.

        Args:
            status: FINISHED or FAILED.
            again: whether a store that lost metrics is given the whole run once more.
        """
        writer = self._writer
        writer.put(lambda target: writer.end(target, status))
        writer.put(None)
        writer.join(_END_SECONDS if writer.ready.is_set() else _START_SECONDS)
        if writer.is_alive():
            writer.note(TimeoutError("no answer in time; what was under way is given up"))
        complete = not (writer.is_alive() or writer.failed or writer.waiting)
        self._tell()
        record = {
            "uri": _redact(self._plan.uri),
            "experiment": self._plan.experiment,
            "mlflow_run": writer.target.parent if writer.target else None,
            "complete": complete,
            "trouble": writer.trouble,
            "replayed": False,
        }
        if again and (writer.waiting or writer.unended) and not writer.is_alive() and _replay_apart(self._plan):
            record |= {"mlflow_run": self._plan.run.read("tracking")["mlflow_run"], "complete": True, "replayed": True}
        if writer.trouble and record["complete"]:
            self._say("tracking: MLflow is back; all of the run is there")
        try:
            self._plan.run.write("tracking", record)
        except StoreError as error:
            _LOG.warning("tracking: %s", error)
        return bool(record["complete"])


def _terminate(target: _Target, status: str) -> None:
    trouble = None
    for run in (*target.children.values(), target.parent):
        try:
            target.client.set_terminated(run, status=status)
        except Exception as error:  # noqa: BLE001  # as in _send; the others are ended nevertheless
            trouble = error
    if trouble is not None:
        raise trouble


def _replay_apart(plan: _Plan) -> bool:
    """Replay in a process of its own: mlflow keeps its connection to a database that was removed."""
    code = "import sys; from medfuse.tracking import replay; sys.exit(not replay(sys.argv[1]))"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": plan.uri, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, str(plan.run.path.resolve())]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_END_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


# --- what others call ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Settings of MLflow that the user has not set, for as long as a run is tracked."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 take four minutes; we try again ourselves
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }
    ours = {name: value for name, value in quiet.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _params(recipe: Recipe, cohort: str) -> dict[str, str]:
    params = {"cohort": cohort, "recipe": recipe.name, "seed": str(recipe.seed)}
    for section in ("train", "model", "splits", "evaluation"):
        for key, value in getattr(recipe, section).model_dump(mode="json").items():
            params[f"{section}.{key}"] = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return params


def _plan(run: Run, recipe: Recipe, *, cohort: str, folds: Sequence[str]) -> _Plan:
    return _Plan(
        run=run,
        uri=tracking_uri(),
        experiment=recipe.tracking.experiment,
        cohort=cohort,
        folds=tuple(folds),
        params=_params(recipe, cohort),
    )


@contextlib.contextmanager
def track(
    run: Run, recipe: Recipe, *, card: CohortCard, folds: Sequence[str], say: Callable[[str], None]
) -> Iterator[Tracker]:
    """Track a run: a parent run, a child per fold, curves, artifacts and the served model.

    Args:
        run: its directory.
        recipe: ``tracking.mlflow`` switches it off.
        card: of the cohort.
        folds: names of the outer folds.
        say: hears once when tracking fails.
    """
    (run.path / "tracking.json").unlink(missing_ok=True)  # of an earlier process
    if not recipe.tracking.mlflow:
        yield Tracker()
        return
    with _environment():
        tracker = _Mlflow(_plan(run, recipe, cohort=card.name, folds=folds), say)
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        finally:
            tracker.close(status, again=True)


def replay(path: str | Path) -> bool:
    """Give MLflow a whole run from its directory, as new runs there, whatever became of it when it was trained.

    Args:
        path: run directory.

    Returns:
        Whether all of it arrived.

    Raises:
        MedfuseError: the directory holds no run that can be read.
    """
    run = open_run(path)
    facts = run.read("run")
    recipe = read_recipe(run.path / "recipe.yaml")
    folds = [split["name"] for split in run.read("splits")["splits"]]
    finished = facts.get("status") == "finished"
    with _environment():
        tracker = _Mlflow(_plan(run, recipe, cohort=facts["facts"]["cohort"], folds=folds), lambda _: None)
        if finished:
            tracker.finish(run)
        return tracker.close("FINISHED" if finished else "FAILED", again=False)
