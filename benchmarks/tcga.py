"""Five TCGA cohorts, published folds, one recipe: per-fold Harrell C of the model. No row or per-patient output is
written.

python benchmarks/tcga.py [--recipe default] [--cohorts tcga_blca ...] [--set key=value ...] [--out FILE]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from medfuse.baselines import FoldData, fit_baselines
from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.metrics.discrimination import harrell_c
from medfuse.splits import inner_folds, make_splits
from medfuse.training import fit_fold, predict_fold
from medfuse.training.members import Outcomes
from medfuse.workflow import fold_settings

COHORTS = ["tcga_blca", "tcga_brca", "tcga_gbmlgg", "tcga_kirc", "tcga_luad"]


def run(name: str, recipe, outcome: str = "overall_survival") -> dict:
    cohort = read_cohort(read_card(name))
    data = load_modalities(cohort, names=recipe.modalities)
    outcomes = Outcomes(patient_ids=cohort.patient_ids, targets={outcome: cohort.targets[outcome]})
    values, tuning, epochs, start = [], [], [], time.perf_counter()
    for split in make_splits(cohort, recipe.splits, outcome):
        inner = inner_folds(
            split.train, cohort=cohort, outcome=outcome, folds=recipe.splits.inner_folds, seed=recipe.seed
        )
        fold = fit_fold(data, outcomes, train_ids=split.train, inner=inner, settings=fold_settings(recipe))
        prediction = predict_fold(fold, data, split.held_out)[outcome]
        values.append(harrell_c(cohort.target(outcome, split.held_out), prediction.risk_score).value)
        oof = fold.out_of_fold[outcome]["chosen"]
        tuning.append(harrell_c(cohort.target(outcome, oof.patient_ids), oof.risk_score).value)
        epochs += [m.best_epoch for m in fold.members]
    return {
        "c_per_fold": values,
        "mean_c": float(np.mean(values)),
        "tuning_c": float(np.mean(tuning)),
        "mean_best_epoch": float(np.mean(epochs)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def run_baselines(name: str, recipe, names: list[str], outcome: str = "overall_survival") -> dict:
    cohort = read_cohort(read_card(name))
    data = load_modalities(cohort, names=recipe.modalities)
    values: dict[str, list[float]] = {}
    for split in make_splits(cohort, recipe.splits, outcome):
        inner = inner_folds(
            split.train, cohort=cohort, outcome=outcome, folds=recipe.splits.inner_folds, seed=recipe.seed
        )
        fold = FoldData(cohort=cohort, outcome=outcome, data=data, split=split, inner=inner, clinical="clinical")
        for result in fit_baselines(fold, kind="survival", names=names):
            c = harrell_c(cohort.target(outcome, split.held_out), result.prediction.risk_score).value
            values.setdefault(result.name, []).append(c)
    return {model: {"c_per_fold": v, "mean_c": float(np.mean(v))} for model, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--cohorts", nargs="+", default=COHORTS)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--baselines", nargs="+", help="fit these instead of the model")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, arguments.set)
    if arguments.baselines:
        found = {name: run_baselines(name, recipe, arguments.baselines) for name in arguments.cohorts}
        for name, models in found.items():
            print(name, {model: round(row["mean_c"], 4) for model, row in models.items()})
        if arguments.out:
            arguments.out.write_text(json.dumps({"cohorts": found}, indent=1) + "\n")
        return
    rows = {name: run(name, recipe) for name in arguments.cohorts}
    result = {"recipe": recipe.model_dump(mode="json"), "cohorts": rows}
    result["mean_c"] = float(np.mean([row["mean_c"] for row in rows.values()]))
    result["mean_tuning_c"] = float(np.mean([row["tuning_c"] for row in rows.values()]))
    print(
        arguments.set,
        round(result["mean_c"], 4),
        round(result["mean_tuning_c"], 4),
        {
            n: (round(r["mean_c"], 4), round(r["tuning_c"], 4), round(r["mean_best_epoch"]), r["seconds"])
            for n, r in rows.items()
        },
        flush=True,
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
