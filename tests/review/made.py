"""A finished, explained run of any size, written without training: what the pages read, and nothing else."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medfuse.files import seal, write_json
from medfuse.review.settings import ReviewSettings

MODALITIES = ("clinical", "slide", "genes")
TIMES = np.array([100.0, 300.0, 500.0, 800.0, 1200.0])
HORIZONS = (300.0, 500.0, 800.0)
CARD = {
    "name": "made",
    "title": "A made cohort",
    "governance": {
        "licence": "CC0-1.0",
        "source": "tests",
        "citation": "none",
        "consent": "none",
        "deidentification": "none",
    },
    "patients": {"file": "patients.csv", "id": "patient_id"},
    "outcomes": {
        "death": {
            "kind": "survival",
            "time": "days",
            "unit": "days",
            "event": "death",
            "event_codes": ["1"],
            "censored_codes": ["0"],
            "description": "Death",
        }
    },
    "modalities": {"clinical": {"loader": "tabular", "file": "patients.csv", "columns": {"age": {"kind": "numeric"}}}},
}


def key(k: int) -> str:
    return f"P{k:06d}"


def make_run(
    path: Path,
    *,
    patients: int = 40,
    events: bool = True,
    explained: bool = True,
    parts: bool = False,
    folds: int = 2,
    seed: int = 0,
    kind: str = "survival",
    names: dict[int, str] | None = None,
) -> Path:
    """Write a run; patient 1 has one modality alone, patient 2 has none, all others a random part of three."""
    rng = np.random.default_rng(seed)
    ids = [(names or {}).get(k, key(k)) for k in range(patients)]
    present = rng.random((patients, 3)) < 0.8
    present[0::5] = True
    if patients > 1:
        present[1] = [True, False, False]
    if patients > 2:
        present[2] = False
    time = np.round(rng.exponential(700, patients) + 1, 1)
    event = (rng.random(patients) < 0.6) & events
    length = {"survival": len(TIMES), "binary": 1, "continuous": 1, "multiclass": 3}[kind]
    effect = rng.normal(0, 0.5, (patients, 3))
    pair = rng.normal(0, 0.2, patients)
    values, each = _values(present, effect, pair, rng=rng, length=length, kind=kind)
    fold = np.arange(patients) % folds
    path.mkdir(parents=True)
    splits = []
    for f in range(folds):
        held = [ids[k] for k in np.flatnonzero(fold == f)]
        train = [ids[k] for k in np.flatnonzero(fold != f)] or held
        splits.append({"name": str(f), "train": train, "tuning": [], "held_out": held, "external": [], "unmatched": []})
        if explained:
            _explanation(
                path / "explanations" / "death" / str(f), np.flatnonzero(fold == f), ids, present, values, each, kind
            )
            if parts:
                _parts(path / "explanations" / "death" / str(f), np.flatnonzero(fold == f), ids, present, train, values)
    _predictions(path, ids, present, values, fold, kind)
    frame = {"outcome": "death", "patient_id": ids, "observed": True}
    frame |= {"event": event, "time": time} if kind == "survival" else {"label": event.astype(int)}
    pd.DataFrame(frame).to_parquet(path / "outcomes.parquet", index=False)
    _json(path, kind, splits)
    seal(path, {"format_version": 1, "kind": "run"})
    return path


def _values(
    present: np.ndarray, effect: np.ndarray, pair: np.ndarray, *, rng: np.random.Generator, length: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    n = len(present)
    base = np.log(-np.log1p(-np.linspace(0.1, 0.7, length))) if kind == "survival" else np.linspace(-0.2, 0.2, length)
    each = np.zeros((4, n, 8, length))
    for r in range(4):
        noisy = effect + rng.normal(0, 0.1, effect.shape)
        for c in range(8):
            bits = np.array([c >> i & 1 for i in range(3)], dtype=bool) & present
            both = bits[:, 0] & bits[:, 1]
            shift = (noisy * bits).sum(axis=1) + pair * both
            sign = np.linspace(1, -1, length) if kind == "multiclass" else np.ones(length)
            each[r, :, c] = base + shift[:, None] * sign
    if kind == "multiclass":
        each -= each.mean(axis=-1, keepdims=True)
    return each.mean(axis=0), each.astype(np.float32)


def _save(path: Path, array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    path.write_bytes(stream.getvalue())


def _explanation(
    folder: Path, rows: np.ndarray, ids: list[str], present: np.ndarray, values: np.ndarray, each: np.ndarray, kind: str
) -> None:
    folder.mkdir(parents=True)
    _save(folder / "values.npy", values[rows])
    _save(folder / "replicates.npy", each[:, rows])
    _save(folder / "present.npy", present[rows])
    if kind == "survival":
        _save(folder / "times.npy", TIMES)
    content = {"format_version": 1, "outcome": "death", "kind": kind, "modalities": list(MODALITIES)}
    write_json(
        folder / "index.json", {**content, "patient_ids": [ids[k] for k in rows], "fold": [folder.name] * len(rows)}
    )


def write_part(folder: Path, name: str, rest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    (folder / name).mkdir(parents=True)
    for array, value in arrays.items():
        _save(folder / name / f"{array}.npy", value)
    write_json(folder / name / "index.json", {"format_version": 1, "kind": name, "arrays": list(arrays), "rest": rest})


def _parts(
    folder: Path, rows: np.ndarray, ids: list[str], present: np.ndarray, train: list[str], values: np.ndarray
) -> None:
    """As medfuse.explain stores them: row 4 of the cohort is withheld, row 6 unusual, row 8 has nobody like it."""
    n, rng = len(rows), np.random.default_rng(1)
    own = [ids[k] for k in rows]
    percentile = np.where(present[rows], 50.0, np.nan)
    for i, k in enumerate(rows):
        if k == 5:
            percentile[i] = [99.9, 99.8, 20.0]
        if k == 10:
            percentile[i, 0] = 99.7
    texts = {"modalities": list(MODALITIES), "patient_ids": own}
    write_part(
        folder,
        "distribution",
        {**texts, "unscored": ["", "", ""]},
        {"present": present[rows], "percentile": percentile, "pattern_count": np.full(n, 30, dtype=np.int64)},
    )
    reason = ["", "", "", "9 events among training patients who have these, fewer than 20", "", "", "", ""]
    write_part(
        folder,
        "gate",
        {"outcome": "death", "kind": "survival", "modalities": list(MODALITIES), "reason": reason},
        {"patients": np.full(8, 50), "events": np.full(8, 30)},
    )
    patient, modality = np.nonzero(~present[rows])
    draws = rng.uniform(0.2, 0.8, (len(patient), 12, len(HORIZONS))).astype(np.float32)
    write_part(
        folder,
        "donors",
        {"outcome": "death", "kind": "survival", **texts, "train_ids": train},
        {
            "horizons": np.array(HORIZONS),
            "patient": patient,
            "modality": modality,
            "draws": draws,
            "risk": np.full((len(patient), len(HORIZONS)), 0.4),
            "distance": np.full((len(patient), 12), 0.3, np.float32),
        },
    )
    k = min(6, len(train))
    near = np.tile(np.arange(k), (n, 1))
    close = np.array([3 if row == 15 else 6 for row in rows])
    write_part(
        folder,
        "neighbours",
        {**texts, "train_ids": train},
        {
            "present": present[rows],
            "row": near,
            "distance": np.tile(np.linspace(0.1, 0.6, k), (n, 1)),
            "percentile": np.tile(np.linspace(1, 40, k), (n, 1)),
            "limit": np.full(n, 0.55),
            "close": close,
        },
    )


def _predictions(
    path: Path, ids: list[str], present: np.ndarray, values: np.ndarray, fold: np.ndarray, kind: str
) -> None:
    link = values[:, -1]
    text = [",".join(m for m, has in zip(MODALITIES, row, strict=True) if has) for row in present]
    frames = []
    for f in range(int(fold.max(initial=0)) + 1):
        for partition, rows in (("held_out", np.flatnonzero(fold == f)), ("inner", np.flatnonzero(fold != f))):
            frame = pd.DataFrame(
                {
                    "model": "medfuse",
                    "outcome": "death",
                    "partition": partition,
                    "fold": str(f),
                    "patient_id": [ids[k] for k in rows],
                    "risk_score": link[rows].mean(axis=1),
                    "present": [text[k] for k in rows],
                }
            )
            if kind == "survival":
                frame["times"] = [TIMES] * len(rows)
                frame["survival"] = list(np.exp(-np.exp(link[rows])))
            frames.append(frame)
    pd.concat(frames, ignore_index=True).to_parquet(path / "predictions.parquet", index=False)


def _json(path: Path, kind: str, splits: list[dict[str, Any]]) -> None:
    facts = {
        "cohort": "made",
        "outcomes": ["death"],
        "recipe": "ab" * 32,
        "seed": 0,
        "data": {name: f"{k}" * 64 for k, name in enumerate(MODALITIES)},
    }
    write_json(
        path / "run.json",
        {
            "format_version": 1,
            "facts": facts,
            "status": "finished",
            "carrying": "medfuse",
            "finished": "2026-11-21T10:00:00+00:00",
            "versions": {"medfuse": "0.1.0"},
        },
    )
    write_json(path / "splits.json", {"format_version": 1, "splits": splits})
    write_json(path / "data.json", {"format_version": 1, "modalities": {}, "pseudonyms": None, "sources": {}})
    one = {"estimate": 0.7, "low": 0.6, "high": 0.8, "p_value": None, "reason": ""}
    models = {
        name: {
            "folds": [{"fold": "0", "patients": 20, "events": 9, "harrell_c": 0.7, "reason": ""}],
            "mean": {},
            "sd": {},
            "pooled": one,
            "notes": [],
        }
        for name in ("medfuse", "kaplan_meier")
    }
    group = [{"level": "a", "patients": 20, "events": 12, **one}, {"level": "b", "patients": 12, "events": 4, **one}]
    points = {
        "predicted": [0.2, 0.6],
        "observed": [0.25, 0.5],
        "low": [0.1, 0.3],
        "high": [0.4, 0.7],
        "size": [20, 20],
        "ratio": 1.1,
        "slope": 0.8,
        "reason": "",
    }
    thresholds = {"thresholds": [0.1, 0.5], "model": [0.2, 0.1], "everyone": [0.2, -0.1]}
    curves = {"calibration": {"500": points}, "decision": {"500": thresholds}} if kind == "survival" else {}
    outcome = {
        "outcome": "death",
        "kind": kind,
        "score": "harrell_c",
        "carrying": "medfuse",
        "horizons": list(HORIZONS) if kind == "survival" else [],
        "models": models,
        "differences": {"kaplan_meier": one},
        "groups": {"site": group},
        "curves": curves,
    }
    write_json(path / "metrics.json", {"format_version": 1, "outcomes": {"death": outcome}})
    (path / "card.md").write_text(f"---\n{yaml.safe_dump(CARD)}---\n")


def settings(run: Path, **more: Any) -> ReviewSettings:
    return ReviewSettings(run=str(run), folder=str(run.with_name(f"{run.name}-review")), **more)


def spec_of(chart: Any) -> dict[str, Any]:
    """The Plotly figure of an AppTest element as a dict."""
    return dict(json.loads(chart.proto.spec))


def write_units(
    run: Path,
    modality: str,
    *,
    kind: str,
    each: int = 0,
    names: list[str] | None = None,
    gap: float = 0.0,
    recalibration: float | None = None,
    folder_name: str = "default",
) -> None:
    """Contributions of parts of a modality, as medfuse.within stores them; they sum to those of the stored values."""
    from medfuse.games import shapley

    for folder in (run / "explanations" / "death").iterdir():
        index = json.loads((folder / "index.json").read_text())
        column = index["modalities"].index(modality)
        present = np.load(folder / "present.npy")[:, column]
        values = np.load(folder / "values.npy")[..., 2]  # at the 500 days of the default horizon
        ids = [p for p, has in zip(index["patient_ids"], present, strict=True) if has]
        if not ids:
            continue
        phi = shapley(values.T)[column][present]
        count = each or len(names or [])
        rng = np.random.default_rng(1)
        part = rng.normal(0, 0.1, (len(ids), count))
        presence = np.full(len(ids), 0.02)
        part += ((phi - presence - gap - (recalibration or 0.0) - part.sum(axis=1)) / count)[:, None]
        arrays = {
            "contribution": phi,
            "presence": presence,
            "gap": np.full(len(ids), gap),
            "stability": np.full(len(ids), 0.7),
            "patient": np.repeat(np.arange(len(ids)), count),
            "unit": np.tile(np.arange(count), len(ids)),
            "positions": np.zeros((len(ids) * count, 2), np.float32),
            "values": part.ravel(),
            "low": (part - 0.05).ravel().astype(np.float32),
            "high": (part + 0.05).ravel().astype(np.float32),
        }
        if recalibration is not None:
            arrays["recalibration"] = np.full(len(ids), recalibration)
        out = folder / "within" / modality / folder_name
        out.mkdir(parents=True)
        for name, array in arrays.items():
            _save(out / f"{name}.npy", array)
        told = {"modality": modality, "units": kind, "method": "path", "cells": 8, "start": "nothing in it"}
        told |= {"horizon": 500.0, "class_index": None, "patient_ids": ids, "names": names or [], "outcome": "death"}
        checked = {"badge": "passed 6 of 6", "modality": modality, "units": kind, "patients": 3, "checks": []}
        write_json(out / "index.json", {"format_version": 1, "fold": folder.name, **told, "checked": checked})
