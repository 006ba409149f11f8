"""A model that learns from a test's absence who is ill: the MultiModN flip test, and what training can do about it.

One modality predicts a binary outcome, the other is noise, but in training it is missing for 80 % of the ill. Tested
clean (nothing missing), with the same habit, and with the habit flipped (missing for 80 % of the healthy). A model
that read the absence falls below chance when it is flipped.

python benchmarks/mnar_flip.py [--seeds 5] [--patients 1000] [--out FILE]
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medfuse.config import read_recipe
from medfuse.jobs import fold_settings
from medfuse.metrics.discrimination import auroc
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.splits import Split
from medfuse.targets import Labels
from medfuse.training import Outcomes, fit_fold, predict_fold
from medfuse.types import PatientId

COLUMNS = 5
RATE = 0.8
FEW = ("train.seeds=1", "splits.inner_folds=2")
# name -> (overrides of the default recipe, variant of the ensemble, holes filled with zeros)
WAYS = {
    "presence: balanced": (("train.presence=balanced",), "chosen", False),
    "default recipe": ((), "chosen", False),
    "dropout alone": (("train.unimodal=false",), "chosen", False),
    "gate alone": (("train.unimodal=false", "train.modality_dropout=false"), "chosen", False),
    "zero-fill": (
        ("train.unimodal=false", "train.modality_dropout=false", "model.fusion={name: concat}"),
        "chosen",
        True,
    ),
}


def people(n: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(n,) labels and per modality (n, C) values: ``signal`` has AUROC 0.8, ``noise`` says nothing."""
    draw = np.random.default_rng(seed)
    label = draw.random(n) < 0.5
    signal = draw.normal(size=(n, COLUMNS))
    signal[:, 0] += 1.19 * label  # two normals 1.19 SD apart: AUROC 0.8
    return label, {"signal": signal, "noise": draw.normal(size=(n, COLUMNS))}


def habit(label: np.ndarray, wanted: bool, *, seed: int) -> np.ndarray:
    """(n,) who has the modality: missing for 80 % of one class."""
    return (label != wanted) | (np.random.default_rng([seed, 7]).random(len(label)) >= RATE)


def modalities(
    values: dict[str, np.ndarray], has: np.ndarray, ids: list[PatientId], *, zeros: bool
) -> dict[str, ModalityData]:
    """Both modalities; who lacks the second has no sample, or one of zeros."""
    columns = tuple(Column(name=f"c{c}") for c in range(COLUMNS))
    position = np.arange(COLUMNS, dtype=np.float32)[:, None]
    found = {}
    for name, value in values.items():
        there = np.ones(len(ids), dtype=bool) if name == "signal" else has
        shown = np.where(there[:, None], value, 0.0)
        tokens = np.stack([shown, np.ones_like(shown)], axis=2).astype(np.float32)
        samples = {
            patient: ModalitySample(tokens=tokens[i], position=position)
            for i, patient in enumerate(ids)
            if there[i] or zeros
        }
        found[name] = ModalityData(name=name, layout="columns", features=2, columns=columns, samples=samples)
    return found


def fitted(way: str, *, seed: int, patients: int, more: tuple[str, ...] = FEW) -> dict[str, float]:
    """AUROC of one way of training on the three tests."""
    overrides, variant, zeros = WAYS[way]
    recipe = read_recipe("default", [*more, *overrides, f"seed={seed}"])
    label, values = people(patients, seed)
    ids = [PatientId(f"t{i}") for i in range(patients)]
    data = modalities(values, habit(label, True, seed=seed), ids, zeros=zeros)
    outcomes = Outcomes(
        patient_ids=tuple(ids), targets={"ill": Labels(label=label.astype(int), classes=("healthy", "ill"))}
    )
    folds = recipe.splits.inner_folds
    inner = [
        Split(name=str(k), train=tuple(i for n, i in enumerate(ids) if n % folds != k), tuning=tuple(ids[k::folds]))
        for k in range(folds)
    ]
    fold = fit_fold(data, outcomes, train_ids=ids, inner=inner, settings=fold_settings(recipe))
    label, values = people(2000, 1000 + seed)
    others = [PatientId(f"h{i}") for i in range(2000)]
    tests = {
        "clean": np.ones(2000, dtype=bool),
        "same habit": habit(label, True, seed=1000 + seed),
        "flipped": habit(label, False, seed=1000 + seed),
    }
    return {
        name: float(
            auroc(
                label,
                predict_fold(fold, modalities(values, has, others, zeros=zeros), others, variant=variant)[
                    "ill"
                ].risk_score,
            )
        )
        for name, has in tests.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    started = time.perf_counter()
    for way in WAYS:
        runs = [fitted(way, seed=seed, patients=arguments.patients) for seed in range(arguments.seeds)]
        mean = {test: float(np.mean([r[test] for r in runs])) for test in runs[0]}
        gap = [r["clean"] - r["flipped"] for r in runs]
        results[way] = {"mean": mean, "clean_minus_flipped": {"mean": float(np.mean(gap)), "each": gap}, "seeds": runs}
        print(f"{way:<20}", {k: round(v, 3) for k, v in mean.items()}, f"gap {np.mean(gap):+.3f}", flush=True)
    content = {
        "what": "AUROC; an uninformative modality missing for 80 % of the ill in training",
        "patients": arguments.patients,
        "test_patients": 2000,
        "overrides_of_the_default_recipe": list(FEW),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy")},
        "ways": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
