"""Concordance, its bootstrap, Brier score and dynamic AUC beside their peers in one process (P3 to P5).

Usage: python benchmarks/metrics.py [--quick] [--out FILE.json]
Equal values first, then time. All run on one thread; where two threads are used, the row says so. The bootstrap of
ours is run in full (1,000 resamples); a loop over a peer takes one materialised resample per turn, a new one each
turn, and its median is multiplied by 1,000. Goals: P3 to P5 of ../shared/performance.md.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from _timing import extra_peak_mib, load, machine, ratios, round_robin
from lifelines.utils import concordance_index
from sksurv import metrics as sksurv
from sksurv.util import Surv
from torchsurv.metrics.brier_score import BrierScore
from torchsurv.stats.ipcw import get_ipcw

from medfuse.metrics import _concordance
from medfuse.metrics.calibration import integrated_brier
from medfuse.metrics.comparison import bootstrap_values, resample_weights
from medfuse.metrics.discrimination import cumulative_dynamic_auc, harrell_c, ranked, uno_c
from medfuse.targets import Survival

RESAMPLES = 1000


def simulated(n: int, digits: int | None = 3) -> tuple[Survival, np.ndarray]:
    """Times in whole days (ties), 60 % events; scores rounded to ``digits`` (ties) or all distinct (None)."""
    rng = np.random.default_rng(n)
    eta = rng.normal(size=n)
    time_, censored = rng.exponential(np.exp(-eta) * 1000), rng.exponential(1500, size=n)
    survival = Survival(event=time_ <= censored, time=np.ceil(np.minimum(time_, censored)))
    risk = eta + rng.normal(size=n)
    return survival, risk if digits is None else np.round(risk, digits)


def concordance(n: int, repeats: int) -> dict:
    """P3 and P4."""
    s, risk = simulated(n)
    y = Surv.from_arrays(s.event, s.time)
    harrell = {
        "medfuse": lambda: harrell_c(s, risk, with_error=False).value,
        "medfuse with standard error": lambda: harrell_c(s, risk).value,
        "lifelines": lambda: concordance_index(s.time, -risk, s.event),
        "scikit-survival": lambda: sksurv.concordance_index_censored(s.event, s.time, risk)[0],
        "limit: two numpy argsorts": lambda: (np.argsort(s.time), np.argsort(risk)),
    }
    uno = {
        "medfuse": lambda: uno_c(s, risk, train=s, convention="sksurv", with_error=False).value,
        "scikit-survival": lambda: sksurv.concordance_index_ipcw(y, y, risk)[0],
    }
    value = harrell["medfuse"]()
    differences = {name: abs(harrell[name]() - value) for name in ("lifelines", "scikit-survival")}
    differences["uno"] = abs(uno["scikit-survival"]() - uno["medfuse"]())
    assert max(differences.values()) < 1e-12, differences
    times, uno_times = round_robin(harrell, repeats=repeats, budget=15), round_robin(uno, repeats=repeats, budget=15)
    return {
        "harrell": times,
        "harrell_times_ours": ratios(times, "medfuse"),
        "uno": uno_times,
        "uno_times_ours": ratios(uno_times, "medfuse"),
        "value_differences": differences,
        "extra_peak_mib": {name: extra_peak_mib(harrell[name]) for name in ("medfuse", "lifelines")},
        "load": load(),
    }


def bootstrap(n: int, repeats: int, *, digits: int | None = 3, sksurv_too: bool = False) -> dict:
    """P5: 1,000 case resamples of Harrell's C."""
    s, risk = simulated(n, digits)
    weights = resample_weights(np.zeros(n), n_resamples=RESAMPLES, seed=0)
    values = bootstrap_values(s, risk, n_resamples=RESAMPLES, seed=0, threads=1)
    assert np.array_equal(values, bootstrap_values(s, risk, n_resamples=RESAMPLES, seed=0, threads=2))
    turn = itertools.cycle(range(RESAMPLES))
    worst = 0.0

    def lifelines_once() -> None:
        nonlocal worst
        k = next(turn)
        rows = np.repeat(np.arange(n), weights[k])
        worst = max(worst, abs(concordance_index(s.time[rows], -risk[rows], s.event[rows]) - values[k]))

    def sksurv_once() -> None:
        rows = np.repeat(np.arange(n), weights[next(turn)])
        sksurv.concordance_index_censored(s.event[rows], s.time[rows], risk[rows])

    runs = {
        "medfuse, 1,000 resamples, 1 thread": lambda: bootstrap_values(s, risk, n_resamples=RESAMPLES, threads=1),
        "medfuse, 1,000 resamples, 2 threads": lambda: bootstrap_values(s, risk, n_resamples=RESAMPLES, threads=2),
        "lifelines, one resample": lifelines_once,
    } | ({"scikit-survival, one resample": sksurv_once} if sksurv_too else {})
    times = round_robin(runs, repeats=repeats)
    assert worst < 1e-12, worst
    ours, peer = "medfuse, 1,000 resamples, 1 thread", "lifelines, one resample"
    wall = {name: t["median_ms"] for name, t in times.items()}
    found = {
        "times": times,
        "lifelines_loop_ms": RESAMPLES * wall[peer],
        "times_lifelines_loop_1_thread": RESAMPLES * wall[peer] / wall[ours],
        "times_lifelines_loop_1_thread_cpu": RESAMPLES * times[peer]["cpu_ms"] / times[ours]["cpu_ms"],
        "times_lifelines_loop_2_threads": RESAMPLES * wall[peer] / wall["medfuse, 1,000 resamples, 2 threads"],
        "largest_value_difference": worst,
        "extra_peak_mib_1_thread": extra_peak_mib(runs[ours]),
        "load": load(),
    }
    # Two processes of lifelines that scale perfectly take half the time of one.
    found["times_lifelines_loop_both_on_2"] = found["times_lifelines_loop_2_threads"] / 2
    if sksurv_too:
        sksurv_ms = RESAMPLES * times["scikit-survival, one resample"]["cpu_ms"]
        found["times_sksurv_loop_1_thread_cpu"] = sksurv_ms / times[ours]["cpu_ms"]
    return found | {"limits": limits(s, risk, repeats=repeats)}


def limits(s: Survival, risk: np.ndarray, *, repeats: int) -> dict:
    """Processor time of a resample (ms, one thread) beside the parts that no implementation of this kind avoids.

    Drawing n rows with numpy's generator; and adding 1 to as many rows of the tree as the walks touch, one after the
    other in a block of memory of the tree's size: no walk, no branch, no jump.
    """
    n, lanes = len(s), _concordance.LANES
    r = ranked(s, risk)
    steps = int(sum(_adds(rank, r.ranks) + s.event[row] * rank.bit_count() for row, rank in enumerate(r.rank.tolist())))
    tree = np.zeros((r.ranks, lanes), np.uint32)
    rng = np.random.default_rng(0)
    portion = min(lanes, max(1, 2**16 // n))
    counts, spare = np.zeros((2, n, lanes), np.uint8)
    draws, rows = rng.integers(0, n, size=(portion, n), dtype=np.uint32), np.arange(n)
    work = np.empty((2 * r.ranks + 1, lanes), np.uint32)
    _concordance.scatter_draws(draws, rows, counts, 0)
    runs = {
        "draw": lambda: rng.integers(0, n, size=(portion, n), dtype=np.uint32),
        "ours": lambda: bootstrap_values(s, risk, n_resamples=4 * lanes, threads=1),
        "scatter": lambda: _concordance.scatter_draws(draws, rows, spare, 0),
        "walks": lambda: _concordance.count_resamples(r.order, r.group, s.event, r.rank, counts, np.ones(n), work),
        "add": lambda: np.add(tree, 1, out=tree),
    }
    times = {name: t["cpu_ms"] for name, t in round_robin(runs, repeats=repeats, calls=1 + 100_000 // n).items()}
    parts = {
        "draw_ms": times["draw"] / portion,
        "count_draws_ms": times["scatter"] / portion,
        "walks_ms": times["walks"] / lanes,
        "limit_walks_ms": times["add"] / r.ranks * steps / lanes,
    }
    limit = parts["draw_ms"] + parts["limit_walks_ms"]
    shape = {"ranks": r.ranks, "tree_rows_touched_per_walk": steps, "tree_kib": tree.nbytes / 1024}
    ours = times["ours"] / (4 * lanes)  # with the sort, which 1,000 resamples share
    return parts | shape | {"limit_ms": limit, "ours_ms": ours, "ours_in_limits": ours / limit, "load": load()}


def _adds(rank: int, ranks: int) -> int:
    """Nodes of a Fenwick tree that an addition at ``rank`` touches."""
    i, count = rank + 1, 0
    while i <= ranks:
        i, count = i + (i & -i), count + 1
    return count


def curves(n: int, repeats: int) -> dict:
    """Integrated Brier score and dynamic AUC at 100 times."""
    s, risk = simulated(n)
    y = Surv.from_arrays(s.event, s.time)
    grid = np.unique(np.quantile(s.time[s.event], np.linspace(0.05, 0.9, 100)))
    alive = np.exp(-np.outer(np.exp(risk), grid / 900.0))
    event, time, at = torch.from_numpy(s.event), torch.from_numpy(s.time), torch.from_numpy(grid)

    def torchsurv_brier() -> float:
        score = BrierScore()
        weight = {"weight": get_ipcw(event, time), "weight_new_time": get_ipcw(event, time, at)}
        score(torch.from_numpy(alive), event, time, at, **weight)
        return float(score.integral())

    brier = {
        "medfuse": lambda: integrated_brier(s, alive, grid, train=s),
        "scikit-survival": lambda: sksurv.integrated_brier_score(y, y, alive, grid),
        "torchsurv": torchsurv_brier,
    }
    auc = {
        "medfuse": lambda: cumulative_dynamic_auc(s, risk, train=s, times=grid),
        "scikit-survival": lambda: sksurv.cumulative_dynamic_auc(y, y, risk, grid)[0],
    }
    differences = {
        "brier": abs(brier["medfuse"]() - brier["scikit-survival"]()),
        "auc": float(np.abs(auc["medfuse"]() - auc["scikit-survival"]()).max()),
    }
    assert max(differences.values()) < 1e-12, differences
    brier_times, auc_times = round_robin(brier, repeats=repeats), round_robin(auc, repeats=repeats)
    return {
        "times": len(grid),
        "integrated_brier": brier_times,
        "integrated_brier_times_ours": ratios(brier_times, "medfuse"),
        "dynamic_auc": auc_times,
        "dynamic_auc_times_ours": ratios(auc_times, "medfuse"),
        "value_differences": differences,
        "load": load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer turns, nothing at 100,000 patients")
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns, large = (3, False) if options.quick else (7, True)
    few, some, sizes = (1_000, 10_000, (1_000, 10_000, 100_000) if large else (1_000, 10_000))
    if options.small:
        turns, large, few, some, sizes = 1, False, 200, 300, (200, 300)
    results = {
        "format_version": 2,
        "machine": machine("numpy", "numba", "lifelines", "scikit-survival", "torchsurv", "torch"),
        "load_before": load(),
        "bootstrap": {
            f"n={few}": bootstrap(few, turns, sksurv_too=True),
            f"n={some}": bootstrap(some, turns, sksurv_too=True),
            f"n={some}, distinct scores": bootstrap(some, turns, digits=None),
        }
        | ({"n=100000": bootstrap(100_000, 3)} if large else {}),
        "concordance": {str(n): concordance(n, turns) for n in sizes},
        "curves": {str(n): curves(n, 3) for n in sizes[:2]},
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for name, found in results["bootstrap"].items():
        print(name, {key: value for key, value in found.items() if key not in ("times", "limits")})
        print("   limits", found["limits"])
    for name, found in results["concordance"].items():
        print(name, found["harrell_times_ours"], found["uno_times_ours"], "load", found["load"])
    for name, found in results["curves"].items():
        print(name, found["integrated_brier_times_ours"], found["dynamic_auc_times_ours"], "load", found["load"])


if __name__ == "__main__":
    main()
