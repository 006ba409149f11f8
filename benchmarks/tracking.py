"""MLflow on SQLite: medfuse's buffered tracking beside plain calls per step, in one process and one database (P17).

Usage: python benchmarks/tracking.py [--steps 200] [--repeats 7] [--out FILE.json]
Five metrics a step. Candidates take turns, so that noise hits all alike; each turn is a run of its own. Every turn's
metrics are read back and counted before its time is taken. Two figures per candidate: what a step costs the training
thread, and the wall time per step until all of it is in the database. "beside work" adds 2 ms of training-like work to
each step and gives what tracking adds to the loop, the writer thread's share of the interpreter included.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}

import mlflow
import torch
from mlflow.tracking import MlflowClient

from medfuse.config import read_card, read_recipe
from medfuse.run import Run
from medfuse.tracking import track

GOAL_MS, GOAL_RATIO = 0.1, 6.0
NAMES = ("train_loss", "tuning_loss", "tuning_score", "gradient_norm", "seconds")
Work = Callable[[], object]


def metrics(step: int) -> dict[str, float]:
    return {name: (step + 1) / (k + 2) for k, name in enumerate(NAMES)}


def work(seconds: float = 0.002) -> None:
    """Small matrix products, as of a model of width 64, until ``seconds`` of this thread's own CPU time are spent."""
    x = torch.ones(64, 64)
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        x = torch.tanh(x @ x) * 0.5


def stored(client: MlflowClient, run_id: str, names: tuple[str, ...]) -> int:
    return sum(len(client.get_metric_history(run_id, name)) for name in names)


def buffered(folder: Path, steps: int, *, between: Work) -> tuple[float, float, float]:
    """Seconds in the calls, in the loop, and from the first step until everything is stored."""
    run = Run(path=folder / f"run-{time.time_ns()}")
    run.write("data", {"modalities": {}})
    recipe = read_recipe("smoke", ["tracking.mlflow=true"])
    said: list[str] = []
    calls = 0.0
    with track(run, recipe, card=read_card("transbig"), folds=["0"], say=said.append) as tracker:
        start = time.perf_counter()
        for step in range(steps):
            between()
            before = time.perf_counter()
            tracker.epoch("0", "00-00", step, {"epoch": step, **metrics(step)})
            calls += time.perf_counter() - before
        loop = time.perf_counter() - start
    total = time.perf_counter() - start
    client = MlflowClient()
    experiment = client.get_experiment_by_name("medfuse").experiment_id
    query = f"tags.fold = '0' and tags.`medfuse.run` = '{run.path}'"
    child = client.search_runs([experiment], filter_string=query)[0].info.run_id
    count = stored(client, child, tuple(f"00-00/{name}" for name in NAMES))
    assert (said, count) == ([], steps * len(NAMES)), f"{count} metrics stored, said {said}"
    return calls, loop, total


def plain(log: Callable[[int], None], steps: int, *, between: Work) -> tuple[float, float, float]:
    mlflow.set_experiment("plain")
    start, calls = time.perf_counter(), 0.0
    with mlflow.start_run() as run:
        start = time.perf_counter()
        for step in range(steps):
            between()
            before = time.perf_counter()
            log(step)
            calls += time.perf_counter() - before
        loop = time.perf_counter() - start
    total = time.perf_counter() - start
    assert stored(MlflowClient(), run.info.run_id, NAMES) == steps * len(NAMES)
    return calls, loop, total


def one_by_one(step: int) -> None:
    for name, value in metrics(step).items():
        mlflow.log_metric(name, value, step=step)


def together(step: int) -> None:
    mlflow.log_metrics(metrics(step), step=step)


def summary(seconds: list[float], steps: int) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(seconds) / steps * 1e3, 4),
        "min_ms": round(min(seconds) / steps * 1e3, 4),
        "max_ms": round(max(seconds) / steps * 1e3, 4),
    }


def measure(folder: Path, steps: int, repeats: int, *, between: Work) -> dict[str, dict]:
    """Per candidate and step: cost on the training thread, loop, and wall time until stored."""
    candidates = {
        "medfuse": lambda: buffered(folder, steps, between=between),
        "mlflow.log_metric x 5": lambda: plain(one_by_one, steps, between=between),
        "mlflow.log_metrics": lambda: plain(together, steps, between=between),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
    bare = []
    for turn in range(repeats + 1):  # the first turn makes the tables and warms up
        for name, run in candidates.items():
            seconds = run()
            if turn:
                found[name].append(seconds)
        start = time.perf_counter()
        for _ in range(steps):
            between()
        bare.append(time.perf_counter() - start)
    rows = {}
    for name, turns in found.items():
        calls, loops, totals = ([turn[k] for turn in turns] for k in range(3))
        rows[name] = {
            "training_thread": summary(calls, steps),
            "until_stored": summary(totals, steps),
            "added_to_loop": summary([a - b for a, b in zip(loops, bare[1:], strict=True)], steps),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tracking.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.small:
        options.steps, options.repeats = 5, 1
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # artifact folders go to the working folder
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        alone = measure(Path(name), options.steps, options.repeats, between=lambda: None)
        beside = measure(Path(name), options.steps, options.repeats, between=work)
        os.chdir("/")
    ours = alone["medfuse"]
    peers = [name for name in alone if name != "medfuse"]
    result = {
        "format_version": 1,
        "date": datetime.date.today().isoformat(),
        "goal": {"training_thread_ms": GOAL_MS, "times_log_metrics": GOAL_RATIO},
        "steps": options.steps,
        "repeats": options.repeats,
        "metrics_per_step": len(NAMES),
        "calls_only": alone,
        "beside_2_ms_of_work": beside,
        "times_ours": {
            part: {name: round(alone[name][part]["median_ms"] / ours[part]["median_ms"], 1) for name in peers}
            for part in ("training_thread", "until_stored")
        },
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_before": load,
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("mlflow", "sqlalchemy", "torch")},
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("calls_only", "beside_2_ms_of_work", "times_ours")}, indent=1))
    if options.small:
        return
    assert ours["training_thread"]["median_ms"] <= GOAL_MS, "goal P17: cost on the training thread"
    assert result["times_ours"]["until_stored"]["mlflow.log_metrics"] >= GOAL_RATIO, "goal P17: ratio to log_metrics"


if __name__ == "__main__":
    main()
