"""Cox and discrete-hazard losses beside torchsurv and the forms found in research code, in one process.

Forward and backward. Usage: python benchmarks/losses.py [--threads 1] [--repeats 9] [--out FILE.json]
Every candidate must give the same loss as ours before it is timed (torchsurv's sum is divided by the number of events).
Candidates take turns, so that noise hits all alike, and ratios are of processor time. One thread, because on a shared
machine with few cores every parallel torch operation waits for the slowest core (8 ms each, measured).
Goals: P1, P2 of ../shared/performance.md.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _timing import load, machine, ratios, round_robin
from torch.nn import functional
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


def definition(e: torch.Tensor, d: torch.Tensor, t: torch.Tensor, *, ties: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient as the textbook sums them, one death after another, in extended precision."""
    eta, event, time = e.double().numpy().astype(np.longdouble), d.numpy(), t.numpy()
    total, gradient = np.longdouble(0), np.zeros(len(eta), np.longdouble)
    for now in np.unique(time[event]):
        at_risk, dying = time >= now, event & (time == now)
        top = eta[at_risk].max()
        risk, own = np.exp(eta - top) * at_risk, np.exp(eta - top) * dying
        for k in range(dying.sum()):
            share = np.longdouble(k) / dying.sum() if ties == "efron" else 0
            left = risk - share * own
            total += np.log(left.sum()) + top
            gradient += left / left.sum()
        total -= eta[dying].sum()
        gradient -= dying
    deaths = event.sum()
    return torch.tensor(float(total / deaths), dtype=torch.float64), torch.from_numpy((gradient / deaths).astype(float))


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
    found = {name: ratios(times, twin)[name] for name, twin in ours.items()}
    return {"times": times, "times_ours": found, "agreement": agreement}


def errors(runs: dict[str, Run], exact: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Relative error of the loss and, in parts of its largest entry, of the gradient against float64."""
    found = {}
    for name, run in runs.items():
        (value, gradient), (right, reference) = run(), exact[name]()
        found[name] = {
            "loss": float((value.double() - right).abs() / right.abs()),
            "gradient": float((gradient.double() - reference).abs().max() / reference.abs().max()),
        }
    return found


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
    right = both_ways(cox_loss, data[0].double(), *data[1:])
    if n == 1_000:  # where it is quick: float64 is right to 1e-13
        gaps = errors({"float64": right}, {"float64": lambda: definition(*data, ties="efron")})["float64"]
        assert max(gaps.values()) < 1e-13, gaps
    efron = {name: runs[name] for name in ("medfuse efron", "medfuse efron, order known", "torchsurv efron")}
    found["error_against_float64"] = errors(efron, dict.fromkeys(efron, right))
    sort = round_robin({"argsort": lambda: torch.argsort(data[2], descending=True)}, repeats=repeats, calls=5)
    found["times"]["limit: one torch.argsort"] = sort["argsort"]
    median = {name: t["cpu_ms"] for name, t in found["times"].items()}
    found["times_ours_order_known"] = {
        "torchsurv efron": median["torchsurv efron"] / median["medfuse efron, order known"]
    }
    found["in_argsorts"] = median["medfuse efron"] / sort["argsort"]["cpu_ms"]
    return found | {"events": int(data[1].sum()), "unique_times": len(data[2].unique()), "load": load()}


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


def stress() -> dict[str, dict[str, str]]:
    """What each loss makes in float32 of shifts, scales and small batches: right, wrong, not finite, or an exception.

    Right: loss and gradient within 1e-5 of the definition in extended precision, and a zero tied to the graph without
    events.
    """
    eta, event, t = cohort(2_000)
    first = eta.clone()
    first[t.argmin()] = 60.0
    cases = {f"shift {s:+d}": (eta + s, event, t) for s in (50, 100, -110, 300, -300, 10_000)}
    cases |= {f"scale {s}": (eta * s, event, t) for s in (30, 70)}
    cases |= {
        "outlier +60 at the earliest time": (first, event, t),
        "no event": (eta, torch.zeros_like(event), t),
        "one patient": (eta[:1], torch.ones(1, dtype=torch.bool), t[:1]),
        "one event of two": (eta[:2], torch.tensor([True, False]), torch.tensor([1.0, 2.0])),
        "one tie group of 2,000, all events": (eta, torch.ones_like(event), torch.ones_like(t)),
    }
    losses = {"medfuse efron": cox_loss, "torchsurv efron": torchsurv("efron"), "n x n exp": naive_exp}
    return {
        name: {case: _verdict(f, *data, breslow=f is naive_exp) for case, data in cases.items()}
        for name, f in losses.items()
    }


def _verdict(
    f: Callable[..., torch.Tensor], eta: torch.Tensor, event: torch.Tensor, t: torch.Tensor, *, breslow: bool
) -> str:
    try:
        value, gradient = both_ways(f, eta, event, t)()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
        return type(error).__name__
    if gradient is None or not torch.isfinite(value) or not torch.isfinite(gradient).all():
        return "no gradient" if gradient is None else "not finite"
    if not event.any():
        return "right" if value == 0 and not gradient.any() else "wrong"
    right, reference = definition(eta, event, t, ties="breslow" if breslow else "efron")
    close = (value - right).abs() <= 1e-5 * right.abs().clamp(min=0.1)
    same = (gradient - reference).abs().max() <= 1e-5 * reference.abs().max().clamp(min=0.1)
    return "right" if close and same else "wrong"


def discrete_stress() -> dict[str, dict[str, float]]:
    """Large logits: relative error of the loss against float64, and gradients that are 0 though the true one is not."""
    g = torch.Generator().manual_seed(4)
    interval, event = torch.randint(0, 4, (64,), generator=g), torch.rand(64, generator=g) < 0.5
    edges = torch.arange(1.0, 5) * 100
    spread = torch.randn(64, 4, generator=g)
    cases = {"N(0, 1)": spread, "N(0, 20)": spread * 20, "N(0, 200)": spread * 200}
    cases |= {f"all {level:+d}": torch.full((64, 4), float(level)) for level in (100, -100, 200, -200)}
    forms = {
        "medfuse": lambda z: both_ways(discrete_hazard_loss, z, event, edges[interval], edges),
        "sigmoid, cumprod, clamp, log": lambda z: both_ways(clamped_hazard, z, event, interval),
    }
    rows = torch.arange(64)
    passed = torch.arange(4) < interval[:, None]
    died = torch.zeros(64, 4, dtype=torch.float64)
    died[rows, interval] = event.double()
    counted = passed | (torch.arange(4) == interval[:, None])

    def exact(z: torch.Tensor) -> torch.Tensor:
        terms = torch.where(died > 0, functional.softplus(-z, threshold=800), functional.softplus(z, threshold=800))
        return (terms * counted).sum() / 64

    found: dict[str, dict[str, float]] = {}
    for case, z in cases.items():
        right, reference = both_ways(exact, z.double())()
        found[case] = {}
        for name, form in forms.items():
            value, gradient = form(z)()
            lost = (gradient == 0) & (reference.abs() > 1e-3 / 64)
            found[case][f"{name}: loss error"] = float((value - right).abs() / right.abs().clamp(min=1e-30))
            found[case][f"{name}: gradients lost"] = int(lost.sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "losses.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="losses|__main__")  # torchsurv warns of ties and of batches without events
    sizes = (1_000,) if options.small else (1_000, 10_000, 100_000, 1_000_000)
    results = {
        "format_version": 2,
        "load_before": load(),
        "cox": {str(n): cox(n, options.repeats) for n in sizes},
        "cox_tie_group": ties(options.repeats),
        "discrete_hazard": {f"n={n}, K={k}": discrete(n, k, options.repeats) for n in sizes[:2] for k in (4, 20)},
        "float32_stress": stress(),
        "discrete_stress": discrete_stress(),
        "machine": machine("torch", "torchsurv", "numpy") | {"threads": options.threads},
        "load_after": load(),
    }
    assert set(results["float32_stress"]["medfuse efron"].values()) == {"right"}
    for found in results["discrete_stress"].values():
        assert found["medfuse: loss error"] < 1e-6
        assert found["medfuse: gradients lost"] == 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for n, found in results["cox"].items():
        print(
            n,
            {name: round(t["median_ms"], 3) for name, t in found["times"].items()},
            found["times_ours"],
            found["times_ours_order_known"],
            f"{found['in_argsorts']:.2f} argsorts, load {found['load']}",
        )
    print("ties", results["cox_tie_group"])
    print("discrete", {name: found["times_ours"] for name, found in results["discrete_hazard"].items()})
    print("float32", results["float32_stress"])
    print("discrete, large logits", results["discrete_stress"])


if __name__ == "__main__":
    main()
