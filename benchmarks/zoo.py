"""Every fusion on every cohort under one budget: ``medfuse benchmark`` per cohort, and the table over the cohorts.

The fusion that carries the claim is chosen in each fold by inner scores, as the benchmark does; over the five TCGA
cohorts its mean C is compared with every baseline's on the same resamples (case bootstrap within folds, max-t over the
baselines). Only aggregates are written. A cohort that was run before is taken up again.

python benchmarks/zoo.py --runs FOLDER [--cohorts tcga_blca ...] [--set key=value ...] [--out FILE]
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tcga import RESAMPLES, TCGA, differences

from medfuse.benchmark_table import FUSION
from medfuse.benchmarking import benchmark
from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.metrics.comparison import bootstrap_values
from medfuse.metrics.discrimination import harrell_c
from medfuse.splits import make_splits

OTHERS = ["hancock", "mcat_blca", "mcat_luad", "survpath_blca"]
OUTCOME = {"survpath_blca": "disease_specific_survival", "transbig": "distant_metastasis"}
KEPT = ("model", "kind", "tuning", "mean", "sd", "pooled", "low", "high", "difference", "difference_low")
KEPT += ("difference_high", "uno_c", "integrated_brier", "calibration_slope", "calibration_ratio", "parameters")
KEPT += ("members", "seconds", "peak_memory_mb", "per_fold")


def resampled(name: str, folder: Path, content: dict) -> tuple[dict, dict]:
    """Mean over folds of C per model, and the same of each resample; the chosen fusion stands among the models."""
    outcome = OUTCOME.get(name, "overall_survival")
    cohort = read_cohort(read_card(name))
    chosen = content["outcomes"][outcome]["chosen"][FUSION]
    held_out = {s.name: s.held_out for s in make_splits(cohort, read_recipe("default").splits, outcome)}
    point: dict[str, list] = {}
    draws: dict[str, list] = {}
    for number, fold in enumerate(content["folds"]):
        risks = {}
        for file in sorted(folder.glob(f"cells/*/{fold}.json")):
            risks |= {
                m: np.array(said[outcome]["risk_score"])
                for m, said in json.loads(file.read_text())["results"].items()
                if outcome in said
            }
        risks[FUSION] = risks[chosen[number]]
        held = cohort.target(outcome, held_out[fold])
        values = bootstrap_values(held, np.stack(list(risks.values())), n_resamples=RESAMPLES, seed=number)
        for (model, risk), drawn in zip(risks.items(), values.reshape(len(risks), -1), strict=True):
            point.setdefault(model, []).append(harrell_c(held, risk).value)
            draws.setdefault(model, []).append(drawn)
    return {m: float(np.mean(c)) for m, c in point.items()}, {m: np.nanmean(d, axis=0) for m, d in draws.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--cohorts", nargs="+", default=[*TCGA, *OTHERS])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--set", action="append", default=["train.seeds=1"])
    parser.add_argument("--finished", action="store_true", help="only what was run before")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cohorts, point, draws = {}, {}, {}
    for name in arguments.cohorts:
        folder = arguments.runs / name
        if arguments.finished:
            if not (folder / "benchmark.json").is_file():
                print(f"{name}: not finished")
                continue
            content = json.loads((folder / "benchmark.json").read_text())
        else:
            content = benchmark(
                name,
                models=arguments.models,
                overrides=arguments.set,
                out=folder,
                say=lambda line: print(line, flush=True),
            ).content
        one = content["outcomes"][OUTCOME.get(name, "overall_survival")]
        rows = [{key: row[key] for key in KEPT} for row in one["rows"]]
        cohorts[name] = {"folds": content["folds"], "budget": content["budget"], "rows": rows}
        cohorts[name] |= {key: one[key] for key in ("chosen", "resolvable", "verdict")}
        if name in TCGA:
            point[name], draws[name] = resampled(name, folder, content)
        print(name, one["verdict"], flush=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy", "scikit-survival")},
        "cohorts": cohorts,
    }
    if point:
        models = [m for m in next(iter(point.values())) if all(m in p for p in point.values())]
        mean = {m: float(np.mean([p[m] for p in point.values()])) for m in models}
        drawn = {m: np.mean([d[m] for d in draws.values()], axis=0) for m in models}
        baselines = [
            m for m in models if any(r["model"] == m and r["kind"] == "baseline" for r in rows_of(cohorts, point))
        ]
        against = differences({m: drawn[m] for m in (FUSION, *baselines)}, mean, model=FUSION)
        result["tcga"] = {"cohorts": list(point), "mean_c": mean, "chosen_fusion_minus": against}
        for model, value in sorted(mean.items(), key=lambda item: -item[1]):
            gap = against.get(model)
            text = f"{gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else ""
            print(f"{model:<26} {value:.4f}  {text}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def rows_of(cohorts: dict, names) -> list[dict]:
    """Rows of all the cohorts in ``names``."""
    return [row for name in names for row in cohorts[name]["rows"]]


if __name__ == "__main__":
    main()
