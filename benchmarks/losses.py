"""Cox and discrete-hazard losses beside torchsurv and the forms found in research code, in one process.

Forward and backward. Usage: python benchmarks/losses.py [--threads 1] [--repeats 9] [--out FILE.json]
Every candidate must give the same loss as ours before it is timed (torchsurv's sum is divided by the number of events).
Candidates take turns, so that noise hits all alike. One thread, because on a shared machine with few cores every
parallel torch operation waits for the slowest core (8 ms each, measured). Goals: P1, P2 of ../shared/performance.md.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchsurv.loss.cox import neg_partial_log_likelihood

from medfuse.losses import cox_loss, discrete_hazard_loss, risk_sets

Run = Callable[[], tuple[torch.Tensor, torch.Tensor]]
CALLS = {1_000: 50, 10_000: 10}  # per turn and number of patients; 1 above


def cohort(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log hazards, events, and times in whole days: exponential event and censoring times, 41 % events, many ties."""
    g = torch.Generator().manual_seed(seed)
    eta = torch.randn(n, generator=g)
    died = torch.empty(n).exponential_(generator=g) * 900 * torch.exp(-eta)
    left = torch.empty(n).exponential_(generator=g) * 600
    return eta, died <= left, torch.ceil(torch.minimum(died, left)).clamp(max=3650)


def tie_group(unique: int = 12_000, group: int = 3_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P2: ``unique`` distinct times and one at which ``group`` patients die."""
    g = torch.Generator().manual_seed(1)
    times = torch.cat([torch.randperm(unique, generator=g).float(), torch.full((group,), unique / 2 + 0.5)])
    event = torch.cat([torch.rand(unique, generator=g) < 0.4, torch.ones(group, dtype=torch.bool)])
    return torch.randn(unique + group, generator=g), event, times


def torchsurv(ties: str) -> Callable[..., torch.Tensor]:
    return lambda e, d, t: neg_partial_log_likelihood(e, d, t, ties_method=ties, reduction="sum") / d.sum()


def naive_exp(e: torch.Tensor, d: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The n x n risk matrix as MCAT-style code writes it (Breslow)."""
    at_risk = (t[None, :] >= t[:, None]).to(e.dtype)
    return -((e - torch.log((torch.exp(e) * at_risk).sum(1))) * d).sum() / d.sum()


def naive_logsumexp(e: torch.Tensor, d: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The n x n risk matrix in log space (Breslow)."""
    at_risk = t[None, :] >= t[:, None]
    return -(e - torch.logsumexp(torch.where(at_risk, e[None, :], -torch.inf), 1))[d].mean()


def clamped_hazard(z: torch.Tensor, event: torch.Tensor, interval: torch.Tensor) -> torch.Tensor:
    """The discrete-time likelihood as MCAT-style code writes it: sigmoid, cumprod, clamp, log."""
    hazard = torch.sigmoid(z)
    alive = torch.cat([torch.ones_like(z[:, :1]), torch.cumprod(1 - hazard, 1)], 1)
    k, c = interval[:, None], (~event)[:, None].to(z.dtype)
    died = torch.log(alive.gather(1, k).clamp(min=1e-7)) + torch.log(hazard.gather(1, k).clamp(min=1e-7))
    return -((1 - c) * died + c * torch.log(alive.gather(1, k + 1).clamp(min=1e-7))).mean()


def both_ways(loss: Callable[..., torch.Tensor], z: torch.Tensor, *rest: torch.Tensor) -> Run:
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        x = z.detach().clone().requires_grad_()
        value = loss(x, *rest)
        value.backward()
        return value.detach(), x.grad

    return run


def round_robin(runs: dict[str, Callable[[], object]], *, repeats: int, calls: int) -> dict[str, dict[str, float]]:
    """Seconds per call: median, least and largest of ``repeats`` rounds of ``calls`` calls."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, run in runs.items():
            gc.collect()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            if turn:
                seconds[name].append((time.perf_counter() - start) / calls)
    return {
        name: {"median_ms": statistics.median(s) * 1e3, "min_ms": min(s) * 1e3, "max_ms": max(s) * 1e3}
        for name, s in seconds.items()
    }


def compare(runs: dict[str, Run], *, ours: dict[str, str], repeats: int, calls: int) -> dict:
    """Assert that each candidate gives the loss of ours, then time all. ``ours``: which of ours each must equal."""
    agreement = {}
    for name, twin in ours.items():
        (value, gradient), (expected, reference) = runs[name](), runs[twin]()
        error = float((value - expected).abs() / expected.abs())
        gap = float((gradient - reference).abs().max() / reference.abs().max())
        assert error < 2e-5, f"{name}: loss {float(value)} differs from {float(expected)}"
        assert gap < 1e-3, f"{name}: gradient differs by {gap}"
        agreement[name] = {"relative_loss_difference": error, "relative_gradient_difference": gap}
    times = round_robin(dict(runs), repeats=repeats, calls=calls)
    ratios = {name: times[name]["median_ms"] / times[twin]["median_ms"] for name, twin in ours.items()}
    return {"times": times, "times_ours": ratios, "agreement": agreement}


def cox(n: int, repeats: int) -> dict:
    data = cohort(n)
    known = risk_sets(data[1], data[2])
    runs = {
        "medfuse efron": both_ways(cox_loss, *data),
        "medfuse breslow": both_ways(lambda e, d, t: cox_loss(e, d, t, ties="breslow"), *data),
        "medfuse efron, order known": both_ways(lambda e, d, t: cox_loss(e, d, t, sets=known), *data),
        "torchsurv efron": both_ways(torchsurv("efron"), *data),
        "torchsurv breslow": both_ways(torchsurv("breslow"), *data),
    }
    ours = {"torchsurv efron": "medfuse efron", "torchsurv breslow": "medfuse breslow"}
    if n <= 5_000:
        runs["n x n exp, breslow"] = both_ways(naive_exp, *data)
        runs["n x n logsumexp, breslow"] = both_ways(naive_logsumexp, *data)
        ours |= {"n x n exp, breslow": "medfuse breslow", "n x n logsumexp, breslow": "medfuse breslow"}
    found = compare(runs, ours=ours, repeats=repeats, calls=CALLS.get(n, 1))
    sort = round_robin({"argsort": lambda: torch.argsort(data[2], descending=True)}, repeats=repeats, calls=5)
    found["times"]["limit: one torch.argsort"] = sort["argsort"]
    median = {name: t["median_ms"] for name, t in found["times"].items()}
    found["times_ours_order_known"] = {
        "torchsurv efron": median["torchsurv efron"] / median["medfuse efron, order known"]
    }
    found["in_argsorts"] = median["medfuse efron"] / sort["argsort"]["median_ms"]
    return found | {"events": int(data[1].sum()), "unique_times": len(data[2].unique())}


def peak_mebibytes(run: Run) -> float:
    """Most memory held by tensors at once during one call beyond what was held before, from torch's own record."""
    run()
    with torch.profiler.profile(profile_memory=True) as record:
        run()
    moves = [(e.start_ns(), e.nbytes()) for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(moves, key=lambda move: move[0]):
        held += size
        peak = max(peak, held)
    return peak / 2**20


def ties(repeats: int) -> dict:
    data = tie_group()
    runs = {"medfuse efron": both_ways(cox_loss, *data), "torchsurv efron": both_ways(torchsurv("efron"), *data)}
    found = compare(runs, ours={"torchsurv efron": "medfuse efron"}, repeats=min(repeats, 5), calls=1)
    memory = {name: peak_mebibytes(run) for name, run in runs.items()}
    return found | {"extra_peak_mib": memory}


def discrete(n: int, intervals: int, repeats: int) -> dict:
    g = torch.Generator().manual_seed(2)
    z = torch.randn(n, intervals, generator=g) * 0.5 - 2.5  # hazards at which the clamp never acts
    edges = torch.arange(1.0, intervals + 1) * 100
    interval = torch.randint(0, intervals, (n,), generator=g)
    event = torch.rand(n, generator=g) < 0.4
    runs = {
        "medfuse": both_ways(discrete_hazard_loss, z, event, edges[interval], edges),
        "sigmoid, cumprod, clamp, log": both_ways(clamped_hazard, z, event, interval),
    }
    twins = {"sigmoid, cumprod, clamp, log": "medfuse"}
    return compare(runs, ours=twins, repeats=repeats, calls=CALLS.get(n, 1))


def stress() -> dict[str, dict[str, bool]]:
    """Whether loss and gradient are finite in float32 at shifts and scales of the log hazard."""
    eta, event, t = cohort(2_000)
    cases = {f"shift {s:+d}": eta + s for s in (50, 100, -110, 300)} | {f"scale {s}": eta * s for s in (30, 70)}
    found: dict[str, dict[str, bool]] = {}
    for name, f in {"medfuse efron": cox_loss, "torchsurv efron": torchsurv("efron"), "n x n exp": naive_exp}.items():
        found[name] = {}
        for case, e in cases.items():
            finite = False
            with contextlib.suppress(ValueError, RuntimeError):
                value, gradient = both_ways(f, e, event, t)()
                finite = bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
            found[name][case] = finite
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "losses.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "format_version": 1,
        "cox": {str(n): cox(n, options.repeats) for n in (1_000, 10_000, 100_000)},
        "cox_tie_group": ties(options.repeats),
        "discrete_hazard": {f"n={n}, K={k}": discrete(n, k, options.repeats) for n in (1_000, 10_000) for k in (4, 20)},
        "finite_in_float32": stress(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchsurv", "numpy")},
            "peak_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    }
    assert all(results["finite_in_float32"]["medfuse efron"].values())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for n, found in results["cox"].items():
        print(
            n,
            {name: round(t["median_ms"], 3) for name, t in found["times"].items()},
            found["times_ours"],
            found["times_ours_order_known"],
        )
    print("ties", results["cox_tie_group"])
    print("discrete", {name: found["times_ours"] for name, found in results["discrete_hazard"].items()})
    print("finite", results["finite_in_float32"])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
