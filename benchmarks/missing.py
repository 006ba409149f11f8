"""Half of the modalities removed at random: the default recipe beside the late average of what is present.

Trains the default recipe (or takes finished runs) and hides each modality of each held-out patient with probability
1/2, twenty times, with the stored networks. Reported: C of the recipe minus C of the late average of the present
modalities (ridge Cox per modality; and the run's own unimodal networks), mean over the draws, with a 95 % interval from
a case bootstrap within folds. Only aggregates are written.

python benchmarks/missing.py [--cohorts tcga_blca ...] [--runs FOLDER] [--set key=value ...] [--rate 0.5] [--out FILE]
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tcga import finished

from medfuse.stressing import stress_run

COHORTS = ["tcga_blca", "tcga_brca", "tcga_gbmlgg", "tcga_kirc", "tcga_luad", "hancock"]
WORDS = ["tracking.mlflow=false", "outcomes=[overall_survival]", "baselines=[clinical_cox, late_average]"]
SHOWN = ("score", "difference", "calibration_slope", "calibration_ratio", "error")
TARGET = -0.005


def summary(rows: list[dict]) -> list[dict]:
    """One entry per group of folds and model."""
    keep = ("folds", "rate", "model", "patients", "events", "hidden", "empty", "draws", "shift", "reference")
    ends = [f"{name}{end}" for name in SHOWN for end in ("", "_low", "_high")]
    return [{key: row.get(key) for key in (*keep, *ends)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", nargs="+", default=COHORTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/missing"))
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cohorts = {}
    for name in arguments.cohorts:
        started = time.perf_counter()
        run = finished(name, arguments.runs, recipe="default", words=[*WORDS, *arguments.set])
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-stress-", dir=arguments.runs))
        content = stress_run(run, "mcar", rates=[arguments.rate], draws=arguments.draws, out=folder).content
        cohorts[name] = {outcome: summary(one["rows"]) for outcome, one in content["outcomes"].items()}
        for rows in cohorts[name].values():
            for row in rows:
                if row["model"] == "medfuse" and row["rate"] == arguments.rate:
                    gap = f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
                    met = "reached" if row["difference"] >= TARGET else "not reached"
                    print(f"{name} folds {row['folds']}: C {row['score']:.4f}, minus {row['reference']} {gap}: {met}")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    result = {
        "what": f"each modality hidden with probability {arguments.rate:g}; target: {TARGET} against late_average",
        "overrides_of_the_default_recipe": [*WORDS, *arguments.set],
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy", "scikit-survival")},
        "cohorts": cohorts,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
