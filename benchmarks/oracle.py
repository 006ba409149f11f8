"""Fusions and explanations against a process whose truth is known: the synthetic cohort as tables, 4,000 to train on.

Discrimination: every fusion's joint network (one seed, three inner folds, one setting for all) on 20,000 patients,
beside the best C that any model can reach, and without the inert modality or the pair that matters only together.
Explanation: contributions of 2,000 held-out patients by the fusion with the best inner score (three seeds), against the
oracle's.

python benchmarks/oracle.py [--fusions concat transformer ...] [--keep-all .6] [--scores]
                            [--explain concat] [--out FILE]
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from medfuse.explain import coalition_values, contributions
from medfuse.metrics.discrimination import harrell_c
from medfuse.models import FUSIONS, ModelSettings
from medfuse.splits import Split
from medfuse.synthetic import GENE_SETS, INERT, MODALITIES, PAIR, REDUNDANT, best_score, simulate, truth
from medfuse.training import FoldSettings, Outcomes, TrainSettings, fit_fold, predict_fold

TRAIN, TEST, EXPLAINED, HORIZON = 4000, 20_000, 2000, 548.0
OPTIONS = {"transformer": {"residual": True, "packed": True, "depth": 2, "heads": 4, "dropout": 0.1}}
SETTINGS = TrainSettings(epochs=80, lr=2e-3, batch_size=256, patience=30, device="cpu", threads=1)


def cohort(seed: int):
    simulation = simulate(TRAIN + TEST, seed=seed)
    data = {
        name: replace(m, gene_sets=GENE_SETS if name == "expression" else {}) for name, m in simulation.data.items()
    }
    ids = simulation.patient_ids[:TRAIN]
    inner = []
    for k in range(3):
        tuning = tuple(i for n, i in enumerate(ids) if n % 3 == k)
        inner.append(
            Split(name=str(k), train=tuple(i for n, i in enumerate(ids) if n % 3 != k), tuning=tuning, held_out=())
        )
    return simulation, data, inner


def fit(simulation, data, inner, fusion: str, *, seeds=(0,), keep_all=SETTINGS.keep_all):
    encoders = {"expression": {"name": "pathway"}} if "expression" in data else {}
    settings = FoldSettings(
        model=ModelSettings(width=128, encoders=encoders, fusion={"name": fusion, **OPTIONS.get(fusion, {})}),
        seeds=seeds,
        unimodal=False,
        train=replace(SETTINGS, keep_all=keep_all),
    )
    outcomes = Outcomes(patient_ids=simulation.patient_ids, targets={"death": simulation.survival})
    return fit_fold(data, outcomes, train_ids=simulation.patient_ids[:TRAIN], inner=inner, settings=settings)


def score(simulation, fold, data, *, without=()) -> float:
    ids = simulation.patient_ids[TRAIN:]
    shown = {name: replace(m, samples={}) if name in without else m for name, m in data.items()}
    risk = predict_fold(fold, shown, ids)["death"].risk_score
    return harrell_c(simulation.survival.take(np.arange(TRAIN, TRAIN + TEST)), risk, with_error=False).value


def explanation(simulation, fold, data) -> dict:
    """Agreement with the oracle's contributions."""
    ids = simulation.patient_ids[TRAIN : TRAIN + EXPLAINED]
    rows = np.arange(TRAIN, TRAIN + EXPLAINED)
    real = truth(simulation.process, simulation.latents.take(rows), [HORIZON], present=simulation.present[rows])
    started = time.perf_counter()
    values = coalition_values(fold, data, ids)
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "patients": len(ids), "horizon_days": HORIZON, **agreement(values, real)}


def agreement(values, real) -> dict:
    mine = contributions(values, horizon=HORIZON)
    order = [values.modalities.index(m) for m in MODALITIES]
    phi, true = np.nan_to_num(mine.contribution[:, order]), np.nan_to_num(real.contributions[..., 0])
    sides = real.dividend(*PAIR)[:, 0] > 0  # the pair says one of two things
    top = np.sort(np.abs(true), axis=1)
    leads = top[:, -1] - top[:, -2] >= 0.2
    same = np.abs(phi).argmax(axis=1) == np.abs(true).argmax(axis=1)
    total = np.abs(phi).sum()
    out = {
        "patients where the first modality leads": int(leads.sum()),
        "same first modality": round(float(same[leads].mean()), 4),
        "spearman": {
            m: round(float(spearmanr(true[:, k], phi[:, k])[0]), 4)
            for k, m in enumerate(MODALITIES)
            if true[:, k].std() > 0.1
        },
        "pair, of its two sides": {
            "oracle's SD within a side": [
                round(float(true[s, MODALITIES.index(PAIR[0])].std()), 3) for s in (sides, ~sides)
            ],
            "pearson": {
                m: round(float(np.corrcoef(true[:, k], phi[:, k])[0, 1]), 4)
                for k, m in enumerate(MODALITIES)
                if m in PAIR
            },
            "side told right": round(float(np.mean((mine.dividend[:, _bits(values, PAIR)] > 0) == sides)), 4),
        },
        "root mean square error": {
            m: round(float(np.sqrt(((phi[:, k] - true[:, k]) ** 2).mean())), 3) for k, m in enumerate(MODALITIES)
        },
        "inert share": round(float(np.abs(phi[:, MODALITIES.index(INERT)]).sum() / total), 4),
        "survival of nobody": [float(np.exp(-np.exp(v[0]))) for v in (mine.nobody, real.nobody[:, 0])],
    }
    for name, pair in (("pair", PAIR), ("redundant", REDUNDANT)):
        bits = _bits(values, pair)
        x, y = mine.dividend[:, bits], real.dividend(*pair)[:, 0]
        out[name] = {
            "dividend over its truth": round(float((x * y).sum() / (y * y).sum()), 4),
            "correlation": round(float(np.corrcoef(x, y)[0, 1]), 4),
        }
        if name == "redundant":  # against what each says alone, in its direction
            alone = [contributions_alone(values, m) for m in pair]
            out[name]["mean, in the direction of what one alone says"] = round(
                float((x * np.sign(sum(alone))).mean()), 4
            )
    return out


def _bits(values, names) -> int:
    return sum(1 << values.modalities.index(m) for m in names)


def contributions_alone(values, modality: str):
    game = values.game(horizon=HORIZON)
    return game[1 << values.modalities.index(modality)] - game[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fusions", nargs="+", default=list(FUSIONS))
    parser.add_argument("--explain", help="only explain this fusion, whose scores stand in the file")
    parser.add_argument("--scores", action="store_true", help="only the scores of the fusions; the explanation stays")
    parser.add_argument("--keep-all", type=float, help="another train.keep_all: scores in rows of their own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "oracle.json")
    args = parser.parse_args()
    if args.explain and args.keep_all is not None:
        parser.error("--keep-all is of scores; expected it without --explain")
    if args.small:
        few = {"TRAIN": 90, "TEST": 60, "EXPLAINED": 20, "SETTINGS": replace(SETTINGS, epochs=1)}
        globals().update(few)
    simulation, data, inner = cohort(args.seed)
    held = np.arange(TRAIN, TRAIN + TEST)
    best = harrell_c(
        simulation.survival.take(held),
        best_score(simulation.process, simulation.latents.take(held), simulation.present[held]),
        with_error=False,
    ).value
    content = json.loads(args.out.read_text()) if args.out.is_file() else {}
    content |= {
        "train": TRAIN,
        "test": TEST,
        "seed": args.seed,
        "oracle_c": best,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("medfuse", "torch", "numpy")},
    }
    rows, folds = content.setdefault("fusions", {}), set()
    print(f"oracle {best:.4f}", flush=True)
    for fusion in () if args.explain else args.fusions:
        started = time.perf_counter()
        other = {} if args.keep_all is None else {"keep_all": args.keep_all}
        row = fusion + "".join(f", {key} {value:g}" for key, value in other.items())
        fold = fit(simulation, data, inner, fusion, **other)
        rows[row] = {
            "inner_c": fold.ensembles["death"]["chosen"].tuning_score,
            "c": score(simulation, fold, data),
            "c_without_inert": score(simulation, fold, data, without=(INERT,)),
            "c_without_pair": score(simulation, fold, data, without=PAIR),
            "seconds": round(time.perf_counter() - started, 1),
        }
        folds.add(fusion)
        print(row, {k: round(v, 4) for k, v in rows[row].items()}, flush=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    if args.scores or args.keep_all is not None:
        return
    chosen = args.explain or max(folds, key=lambda name: rows[name]["inner_c"])
    fold = fit(simulation, data, inner, chosen, seeds=(0, 1, 2))
    c = score(simulation, fold, data)
    content["explanation"] = {"fusion": chosen, "seeds": 3, "c": c, **explanation(simulation, fold, data)}
    print(json.dumps(content["explanation"], indent=1))
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
