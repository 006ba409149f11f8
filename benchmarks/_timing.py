"""What the benchmarks share: candidates that take turns in one process, peak memory, and the machine."""

import gc
import importlib.metadata
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np


def round_robin(
    runs: dict[str, Callable[[], object]],
    *,
    repeats: int,
    calls: int = 1,
    budget: float = 40.0,
    before: Callable[[], object] | None = None,
) -> dict[str, dict[str, float]]:
    """Milliseconds per call: median, least and largest of ``repeats`` turns of ``calls`` calls; first a warm-up.

    Candidates take turns, so that noise of a shared machine hits all alike. Who has used ``budget`` seconds sits out.
    ``cpu_ms`` is the median processor time of the whole process, which waiting for a core does not enter;
    ``cpu_min_ms`` and ``cpu_max_ms`` are the least and largest. ``before`` runs before each clock starts.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if sum(wall[name]) * calls > budget:
                continue
            gc.collect()
            if before is not None:
                before()
            start, processor = time.perf_counter(), time.process_time()
            for _ in range(calls):
                run()
            if turn or time.perf_counter() - start > budget / 2:  # a very slow one is not warmed up
                wall[name].append((time.perf_counter() - start) / calls)
                cpu[name].append((time.process_time() - processor) / calls)
    return {
        name: {
            "median_ms": round(statistics.median(s) * 1e3, 5),
            "min_ms": round(min(s) * 1e3, 5),
            "max_ms": round(max(s) * 1e3, 5),
            "cpu_ms": round(statistics.median(cpu[name]) * 1e3, 5),
            "cpu_min_ms": round(min(cpu[name]) * 1e3, 5),
            "cpu_max_ms": round(max(cpu[name]) * 1e3, 5),
            "turns": len(s),
        }
        for name, s in wall.items()
    }


def ratios(times: dict[str, dict[str, float]], ours: str) -> dict[str, float]:
    """How many times as long as ours each other candidate takes (medians).

    By processor time (all are on one thread): on a busy machine a long call waits for a core more often than a short
    one, and the clock on the wall would flatter the short one.
    """
    mine = times[ours]["cpu_ms"]
    return {name: round(t["cpu_ms"] / mine, 3) for name, t in times.items() if name != ours}


def extra_peak_mib(run: Callable[[], object]) -> float:
    """Most memory that numpy and Python held during one call beyond what they held before, MiB."""
    gc.collect()
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 2)


def load() -> list[float]:
    """Load average over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def machine(*packages: str) -> dict[str, object]:
    """Processor, cores, Python and package versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def touch_memory() -> None:
    """Use 1 GiB and give it back: for what takes much fresh memory, before every turn of every candidate.

    A virtual machine with free page reporting hands freed memory back to its host after about two seconds, and the
    next use of it waits for the host: on ours 300 MiB cost 16 to 461 ms of processor time, by chance and by order.
    """
    np.empty(1 << 30, np.uint8)[:: 1 << 12] = 1
