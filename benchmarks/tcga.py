"""TCGA cohorts and HANCOCK on their published splits, one recipe for all: model and baselines on the same patients.

Every cohort is a run of ``medfuse train`` (finished ones in --runs are taken up again) with its figures: per fold,
pooled within folds, Uno's C, Brier score, calibration, inner scores. The figure over several cohorts is the mean of
their means over folds; differences to the model have simultaneous 95 % intervals (max-t over the baselines) from a case
bootstrap within every fold. Only aggregates are written: no row and no per-patient output.

python benchmarks/tcga.py [--cohorts tcga_blca ...] [--recipe default] [--set key=value ...] [--runs DIR] [--out FILE]
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.metrics.pooled import Told, pooled_scores
from medfuse.run import Run, open_run
from medfuse.workflow import read_evaluations, train

TCGA = ["tcga_blca", "tcga_brca", "tcga_gbmlgg", "tcga_kirc", "tcga_luad"]
RESAMPLES = 50_000  # an end of an interval is then sure to a few 0.0001
SHOWN = ("uno_c", "integrated_brier", "brier")


def finished(name: str, folder: Path, *, recipe: str, words: list[str]) -> Run:
    """The finished run of a cohort, trained where there is none."""
    path = folder / name
    if (path / "run.json").is_file() and open_run(path).finished:
        return open_run(path)
    return train(name, recipe=recipe, overrides=words, out=path, workers=None, say=print)


def resampled(run: Run, outcome: str) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Per model: the score of each fold, and (folds, resamples) the same of resamples, which all models share."""
    cohort = read_cohort(read_card(run.path / "card.md"))
    rows = run.predictions()
    rows = rows[(rows.outcome == outcome) & (rows.partition == "held_out")]
    point: dict[str, list[float]] = {}
    draws: dict[str, list[np.ndarray]] = {}
    for number, split in enumerate(run.read("splits")["splits"]):
        ids = split["held_out"]
        own = rows[rows.fold == split["name"]]
        models = list(dict.fromkeys(own.model))
        risks = [own[own.model == m].set_index("patient_id").risk_score[ids].to_numpy() for m in models]
        score, drawn = pooled_scores(
            cohort.target(outcome, ids),
            [Told(risk=risk) for risk in risks],
            strata=np.zeros(len(ids)),
            n_resamples=RESAMPLES,
            seed=number,
        )
        for k, model in enumerate(models):
            point.setdefault(model, []).append(float(score[k]))
            draws.setdefault(model, []).append(drawn[k])
    return point, {model: np.stack(values) for model, values in draws.items()}


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


def of_cohort(run: Run, outcome: str, point: dict, draws: dict) -> dict:
    """What a run says of one outcome."""
    evaluation = read_evaluations(run)[outcome]
    tuning = run.read("metrics")["outcomes"][outcome]["tuning"]
    at = f"@{evaluation.horizons[len(evaluation.horizons) // 2]:g}" if evaluation.horizons else ""
    models = {}
    for model, result in evaluation.models.items():
        inner = [value for value in tuning[model] if value is not None]
        models[model] = {
            "per_fold": point[model],
            "mean": float(np.mean(point[model])),
            "inner": float(np.mean(inner)) if inner else None,
            "pooled": result["pooled"],
            "fold_intervals": result["fold_intervals"],
            **{name: result["mean"][name] for name in SHOWN if name in result["mean"]},
            **{name: result["mean"].get(f"{name}{at}") for name in ("calibration_slope", "calibration_ratio")},
        }
    return {
        "score": evaluation.score,
        "horizons": list(evaluation.horizons),
        "folds": [fold["fold"] for fold in evaluation.models["medfuse"]["folds"]],
        "models": models,
        "differences": {name: dict(one) for name, one in evaluation.differences.items()},
        "per_fold_differences": [
            differences({m: d[k] for m, d in draws.items()}, {m: c[k] for m, c in point.items()})
            for k in range(len(next(iter(point.values()))))
        ],
    }


def summary(found: dict[str, tuple[dict, dict]]) -> dict:
    """Means over cohorts of the means over folds, and paired differences."""
    shared = set.intersection(*(set(point) for point, _ in found.values()))
    models = [m for m in next(iter(found.values()))[0] if m in shared]
    point = {m: float(np.mean([np.mean(c[m]) for c, _ in found.values()])) for m in models}
    draws = {m: np.mean([np.nanmean(d[m], axis=0) for _, d in found.values()], axis=0) for m in models}
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
    parser.add_argument("--runs", type=Path, default=Path("runs/tcga"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    words = [f"outcomes=[{arguments.outcome}]", "tracking.mlflow=false", *arguments.set]
    found, cohorts = {}, {}
    for name in arguments.cohorts:
        run = finished(name, arguments.runs, recipe=arguments.recipe, words=words)
        found[name] = resampled(run, arguments.outcome)
        cohorts[name] = of_cohort(run, arguments.outcome, *found[name])
        print(name, {m: round(one["mean"], 4) for m, one in cohorts[name]["models"].items()}, flush=True)
    result = {
        "recipe": read_recipe(arguments.recipe, words).model_dump(mode="json"),
        "outcome": arguments.outcome,
        "resamples": RESAMPLES,
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy", "scikit-survival")},
        "cohorts": cohorts,
        "all": summary(found),
    }
    for model, mean in result["all"]["mean_c"].items():
        gap = result["all"]["differences"].get(model)
        text = f"{gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else ""
        print(f"{model:<26} {mean:.4f} (SE {result['all']['standard_error'][model]:.4f})  {text}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
