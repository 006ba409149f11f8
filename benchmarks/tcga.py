"""TCGA cohorts and HANCOCK on their published splits, one recipe for all: model and baselines on the same patients.

The figure is the mean over cohorts of the mean over folds of Harrell's C; differences to the model have simultaneous
95 % intervals (max-t over the baselines) from a case bootstrap within every fold. Only aggregates are written: no row
and no per-patient output.

python benchmarks/tcga.py [--cohorts tcga_blca ...] [--recipe default] [--set key=value ...] [--out FILE]
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medfuse.baselines import FoldData, fit_baselines
from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.jobs import fold_settings
from medfuse.metrics.comparison import bootstrap_values
from medfuse.metrics.discrimination import harrell_c
from medfuse.splits import inner_folds, make_splits
from medfuse.training import Outcomes, fit_fold, predict_fold

TCGA = ["tcga_blca", "tcga_brca", "tcga_gbmlgg", "tcga_kirc", "tcga_luad"]
RESAMPLES = 2000


def run(name: str, recipe, *, outcome: str) -> dict:
    """Per-fold C, tuning C, and bootstrap values (folds, resamples) per model of one cohort."""
    cohort = read_cohort(read_card(name))
    data = load_modalities(cohort, names=recipe.modalities)
    outcomes = Outcomes(patient_ids=cohort.patient_ids, targets={outcome: cohort.targets[outcome]})
    c, tuning, draws, seconds = {}, {}, {}, {}
    splits = make_splits(cohort, recipe.splits, outcome)
    for number, split in enumerate(splits):
        inner = inner_folds(
            split.train, cohort=cohort, outcome=outcome, folds=recipe.splits.inner_folds, seed=recipe.seed
        )
        started = time.perf_counter()
        settings = fold_settings(recipe, {outcome: cohort.card.outcomes[outcome]})
        fold = fit_fold(data, outcomes, train_ids=split.train, inner=inner, settings=settings)
        risks = {}
        for variant, ensemble in fold.ensembles[outcome].items():
            model = "medfuse" if variant == "chosen" else f"medfuse:{variant}"
            risks[model] = predict_fold(fold, data, split.held_out, variant=variant)[outcome].risk_score
            tuning.setdefault(model, []).append(ensemble.tuning_score)
        seconds.setdefault("medfuse", []).append(time.perf_counter() - started)
        started = time.perf_counter()
        context = FoldData(cohort=cohort, outcome=outcome, data=data, split=split, inner=inner, clinical="clinical")
        for result in fit_baselines(context, kind="survival", names=recipe.baselines):
            risks[result.name] = result.prediction.risk_score
            tuning.setdefault(result.name, []).append(result.tuning_score)
        seconds.setdefault("baselines", []).append(time.perf_counter() - started)
        held = cohort.target(outcome, split.held_out)
        values = bootstrap_values(held, np.stack(list(risks.values())), n_resamples=RESAMPLES, seed=number)
        for (model, risk), drawn in zip(risks.items(), values.reshape(len(risks), -1), strict=True):
            c.setdefault(model, []).append(harrell_c(held, risk).value)
            draws.setdefault(model, []).append(drawn)
    return {"folds": [s.name for s in splits], "c": c, "tuning": tuning, "draws": draws, "seconds": seconds}


def differences(draws: dict[str, np.ndarray], point: dict[str, float], *, model: str = "medfuse") -> dict:
    """Model minus each other: estimate, standard error, simultaneous 95 % interval; draws[m] is (resamples,)."""
    others = [m for m in draws if m != model and not m.startswith("medfuse:")]
    gap = np.stack([draws[model] - draws[m] for m in others])
    centre = np.array([point[model] - point[m] for m in others])
    error = np.nanstd(gap, axis=1, ddof=1)
    worst = np.nanmax(np.abs(gap - np.nanmean(gap, axis=1, keepdims=True)) / error[:, None], axis=0)
    width = float(np.nanquantile(worst, 0.95))
    return {
        m: {"difference": d, "standard_error": s, "low": d - width * s, "high": d + width * s}
        for m, d, s in zip(others, centre.tolist(), error.tolist(), strict=True)
    }


def summary(rows: dict[str, dict]) -> dict:
    """Means over cohorts of the means over folds, and paired differences."""
    shared = set.intersection(*(set(r["c"]) for r in rows.values()))
    models = [m for m in next(iter(rows.values()))["c"] if m in shared]
    point = {m: float(np.mean([np.mean(r["c"][m]) for r in rows.values()])) for m in models}
    draws = {m: np.mean([np.nanmean(r["draws"][m], axis=0) for r in rows.values()], axis=0) for m in models}
    return {
        "mean_c": point,
        "standard_error": {m: float(np.nanstd(draws[m], ddof=1)) for m in models},
        "differences": differences(draws, point),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--cohorts", nargs="+", default=TCGA)
    parser.add_argument("--outcome", default="overall_survival")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, arguments.set)
    rows = {}
    for name in arguments.cohorts:
        rows[name] = run(name, recipe, outcome=arguments.outcome)
        means = {m: round(float(np.mean(v)), 3) for m, v in rows[name]["c"].items()}
        print(name, means, {k: round(sum(v)) for k, v in rows[name]["seconds"].items()}, flush=True)
    result = {
        "recipe": recipe.model_dump(mode="json"),
        "outcome": arguments.outcome,
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy", "scikit-survival")},
        "cohorts": {
            name: {
                "folds": r["folds"],
                "c_per_fold": r["c"],
                "mean_c": {m: float(np.mean(v)) for m, v in r["c"].items()},
                "tuning_c": {m: float(np.mean(v)) for m, v in r["tuning"].items()},
                "seconds": {k: round(sum(v), 1) for k, v in r["seconds"].items()},
                "per_fold_differences": [
                    differences({m: d[k] for m, d in r["draws"].items()}, {m: c[k] for m, c in r["c"].items()})
                    for k in range(len(r["folds"]))
                ],
            }
            for name, r in rows.items()
        },
        "all": summary(rows),
    }
    for model, mean in result["all"]["mean_c"].items():
        gap = result["all"]["differences"].get(model)
        text = f"{gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else ""
        print(f"{model:<26} {mean:.4f} (SE {result['all']['standard_error'][model]:.4f})  {text}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
