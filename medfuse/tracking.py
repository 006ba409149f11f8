"""A run to MLflow. Trouble with tracking never stops training: ``curves.jsonl`` is the copy that counts.

With ``_pyfunc.py`` the only file that imports mlflow.
"""

import contextlib
import fcntl
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfuse.card import CohortCard
from medfuse.config import Recipe
from medfuse.errors import StoreError
from medfuse.run import Run

_LOG = logging.getLogger("medfuse.tracking")
_BATCH, _SECONDS = 100, 5.0
_METRIC_LIMIT = 1000  # MLflow's own limit per log_batch


class Tracker:
    """Tracks nothing; what :func:`track` gives when MLflow is off or out of order."""

    def epoch(self, fold: str, member: str, step: int, record: Mapping[str, Any]) -> None:
        """Take one epoch's record of a member."""

    def finish(self, run: Run) -> None:
        """Log the finished run."""


class _Buffer(threading.Thread):
    """Metrics wait in memory and go out in batches from a thread of their own."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401  # MlflowClient
        super().__init__(daemon=True, name="medfuse-tracking")
        self._client = client
        self._queue: queue.SimpleQueue[tuple[str, str, float, int, int] | None] = queue.SimpleQueue()
        self.failure: str = ""

    def put(self, run_id: str, key: str, value: float, step: int) -> None:
        self._queue.put((run_id, key, value, int(time.time() * 1000), step))

    def run(self) -> None:
        waiting: list[tuple[str, str, float, int, int]] = []
        last = time.monotonic()
        open_ = True
        while open_:
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=0.5)
                if item is None:
                    open_ = False
                else:
                    waiting.append(item)
            if waiting and (not open_ or len(waiting) >= _BATCH or time.monotonic() - last > _SECONDS):
                self._send(waiting)
                waiting, last = [], time.monotonic()

    def _send(self, waiting: Sequence[tuple[str, str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        by_run: dict[str, list[Any]] = {}
        for run_id, key, value, stamp, step in waiting:
            by_run.setdefault(run_id, []).append(Metric(key, value, stamp, step))
        for run_id, metrics in by_run.items():
            for start in range(0, len(metrics), _METRIC_LIMIT):
                try:
                    self._client.log_batch(run_id, metrics=metrics[start : start + _METRIC_LIMIT])
                except _trouble() as error:
                    self.failure = str(error)

    def close(self) -> None:
        self._queue.put(None)
        self.join(timeout=60)


def _trouble() -> tuple[type[Exception], ...]:
    """What a tracking store can raise."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


@contextlib.contextmanager
def _start_lock(uri: str) -> Iterator[None]:
    """One process at a time makes or migrates the database: unlocked, most of several fresh starters die."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///") + ".lock")
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def close_dead_runs(client: Any, experiment_id: str) -> int:  # noqa: ANN401  # MlflowClient
    """Mark runs whose process on this host is gone as KILLED; returns how many."""
    closed = 0
    query = f"attributes.status = 'RUNNING' and tags.`medfuse.host` = '{socket.gethostname()}'"
    for run in client.search_runs([experiment_id], filter_string=query, max_results=200):
        if not _alive(run.data.tags.get("medfuse.pid", "")):
            client.set_terminated(run.info.run_id, status="KILLED")
            closed += 1
    return closed


class _MlflowTracker(Tracker):
    def __init__(self, client: Any, parent: str, children: Mapping[str, str]) -> None:  # noqa: ANN401
        self._client, self._parent, self._children = client, parent, children
        self._buffer = _Buffer(client)
        self._buffer.start()

    def epoch(self, fold: str, member: str, step: int, record: Mapping[str, Any]) -> None:
        epoch = int(record.get("epoch", step))
        for key, value in record.items():
            if key != "epoch" and isinstance(value, float):
                self._buffer.put(self._children[fold], f"{member}/{key}", value, epoch)

    def finish(self, run: Run) -> None:
        import mlflow

        for outcome, content in run.read("metrics")["outcomes"].items():
            model = content["models"][content["carrying"]]
            for key, value in model["mean"].items():
                self._buffer.put(self._parent, f"{outcome}/{_metric_name(key)}", value, 0)
            for row in model["folds"]:
                for key, value in row.items():
                    if isinstance(value, float):
                        self._buffer.put(self._children[str(row["fold"])], f"{outcome}/{_metric_name(key)}", value, 0)
        for name in (
            "run.json",
            "card.md",
            "recipe.yaml",
            "splits.json",
            "manifest.json",
            "metrics.json",
            "report.html",
        ):
            self._client.log_artifact(self._parent, str(run.path / name), artifact_path="run")
        with mlflow.start_run(run_id=self._parent):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("_pyfunc.py")),
                artifacts={"run": str(run.path)},
                pip_requirements=["medfuse"],
            )

    def close(self, status: str) -> None:
        self._buffer.close()
        for run_id in (*self._children.values(), self._parent):
            self._client.set_terminated(run_id, status=status)


def _metric_name(key: str) -> str:
    return key.replace("@", "_at_")


def _begin(run: Run, recipe: Recipe, card: CohortCard, folds: Sequence[str]) -> _MlflowTracker:
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    with _start_lock(uri):
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(recipe.tracking.experiment)
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(recipe.tracking.experiment).experiment_id
        close_dead_runs(client, experiment)
    tags = {"medfuse.pid": str(os.getpid()), "medfuse.host": socket.gethostname(), "medfuse.run": str(run.path)}
    parent = client.create_run(experiment, run_name=run.path.name, tags={**tags, "cohort": card.name}).info.run_id
    params = {
        "cohort": card.name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        **_flat(recipe.train.model_dump(), "train"),
    }
    for key, value in params.items():
        client.log_param(parent, key, value)
    for name, modality in run.read("data")["modalities"].items():
        client.set_tag(parent, f"data.{name}", modality["key"])
    children = {
        fold: client.create_run(
            experiment,
            run_name=f"{run.path.name} fold {fold}",
            tags={**tags, "mlflow.parentRunId": parent, "fold": fold},
        ).info.run_id
        for fold in folds
    }
    return _MlflowTracker(client, parent, children)


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in section.items()}


class _Guarded(Tracker):
    """Passes everything on until the first trouble, then says so once and goes on without."""

    def __init__(self, inner: _MlflowTracker, say: Callable[[str], None]) -> None:
        self._inner, self._say, self.failed = inner, say, False

    def epoch(self, fold: str, member: str, step: int, record: Mapping[str, Any]) -> None:
        if not self.failed:
            self._inner.epoch(fold, member, step, record)

    def finish(self, run: Run) -> None:
        self.guard(lambda: self._inner.finish(run))

    def guard(self, work: Callable[[], None]) -> None:
        """Do tracking work; trouble is reported and remembered, and never raised."""
        trouble: tuple[type[Exception], ...] = (*_trouble(), StoreError)
        try:
            work()
        except trouble as error:
            self.failed = True
            _LOG.warning("tracking failed: %s", error)
            self._say(
                "tracking: MLflow is out of order; the run directory holds everything (curves.jsonl, metrics.json)"
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
    if not recipe.tracking.mlflow:
        yield Tracker()
        return
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # MLflow's advice (no signature: which columns a patient has is open; version notes) is not the user's to act on.
    for name in ("mlflow", "mlflow.pyfunc", "mlflow.models", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        inner = _begin(run, recipe, card, folds)
    except _trouble() as error:
        _LOG.warning("tracking failed: %s", error)
        say("tracking: MLflow is out of order; the run directory holds everything (curves.jsonl, metrics.json)")
        yield Tracker()
        return
    guarded = _Guarded(inner, say)
    status = "FAILED"
    try:
        yield guarded
        status = "FINISHED"
    finally:
        guarded.guard(lambda: inner.close(status))
