"""Cohorts in which one unit of one modality carries the whole signal of each patient."""

import dataclasses

import numpy as np

from medfuse.models import ModelSettings
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.targets import Survival
from medfuse.training import FoldSettings, TrainSettings, fit_fold
from medfuse.training.outcomes import Outcomes
from medfuse.types import PatientId

GENES, SETS, TILES, FEATURES = 60, 6, 24, 8
CARRIER = {"clinical": 2, "expression": 3, "tiles": 0, "stains": 1}  # column, gene set, feature of the tile, stain


@dataclasses.dataclass(frozen=True)
class Planted:
    data: dict
    outcomes: Outcomes
    ids: tuple
    carrier: dict  # patient -> the unit that carries


def columns(name, values, ids, *, gene_sets=None):
    spec = tuple(Column(name=f"{name}{j}") for j in range(values.shape[1]))
    position = np.arange(values.shape[1], dtype=np.float32)[:, None]
    samples = {
        i: ModalitySample(tokens=np.stack([v, np.ones_like(v)], 1).astype(np.float32), position=position)
        for i, v in zip(ids, values, strict=True)
    }
    return ModalityData(
        name=name, layout="columns", features=2, columns=spec, samples=samples, gene_sets=gene_sets or {}
    )


def planted(kind, n=360, seed=0):
    """Modality ``kind`` carries the signal; a second modality is noise. Signals are bounded away from 0."""
    draw = np.random.default_rng(seed)
    ids = tuple(PatientId(f"t{i:04d}") for i in range(n))
    signal = draw.choice([-1.0, 1.0], size=n) * draw.uniform(1.0, 2.0, size=n)
    noise = columns("noise", draw.normal(size=(n, 3)), ids)
    carrier = dict.fromkeys(ids, CARRIER[kind])
    if kind == "clinical":
        table = draw.normal(size=(n, 6))
        table[:, 2] = signal
        own = columns(kind, table, ids)
    elif kind == "expression":
        genes = draw.normal(size=(n, GENES))
        genes[:, 30:40] = signal[:, None] + 0.5 * draw.normal(size=(n, 10))
        sets = {f"S{k}": tuple(f"{kind}{j}" for j in range(10 * k, 10 * k + 10)) for k in range(SETS)}
        own = columns(kind, genes, ids, gene_sets=sets)
    else:
        samples = {}
        for row, i in enumerate(ids):
            stains = kind == "stains"
            count = 3 if stains else int(draw.integers(TILES // 2, TILES))
            tokens = 0.3 * draw.normal(size=(count, FEATURES)).astype(np.float32)
            where = CARRIER[kind] if stains else int(draw.integers(count))
            tokens[where, 0] = signal[row] * (1 if stains else 6)
            position = np.arange(count)[:, None] if stains else draw.uniform(0, 4000, size=(count, 2))
            samples[i] = ModalitySample(tokens=tokens, position=position.astype(np.float32))
            carrier[i] = where
        names = ("he", "cd8", "ki67") if kind == "stains" else ()
        own = ModalityData(name=kind, layout="vectors", features=FEATURES, identities=names, samples=samples)
    time = 1000 * draw.exponential(size=n) * np.exp(-1.5 * signal)
    end = draw.exponential(4000, size=n)
    target = Survival(event=time < end, time=np.minimum(time, end))
    outcomes = Outcomes(patient_ids=ids, targets={"os": target})
    return Planted(data={kind: own, "noise": noise}, outcomes=outcomes, ids=ids, carrier=carrier)


@dataclasses.dataclass(frozen=True)
class Inner:
    train: tuple
    tuning: tuple


def fit(cohort, *, train=240, epochs=40, encoders=None, fusion="transformer", outcomes=None, unimodal=False):
    ids = cohort.ids[:train]
    inner = [Inner(tuple(i for n, i in enumerate(ids) if n % 2 != k), tuple(ids[k::2])) for k in range(2)]
    settings = FoldSettings(
        model=ModelSettings(width=16, fusion={"name": fusion}, encoders=encoders or {}),
        train=TrainSettings(epochs=epochs, lr=1e-2, batch_size=64, device="cpu", patience=0),
        seeds=(0, 1),
        unimodal=unimodal,
    )
    return fit_fold(cohort.data, outcomes or cohort.outcomes, train_ids=ids, inner=inner, settings=settings)


def first_is_right(found, cohort):
    """Share of patients whose unit of the largest absolute value is the one that carries."""
    right = [
        int(found.unit[found.rows(i)[0]]) == cohort.carrier[i]
        if found.units != "gene_set"
        else found.name(found.rows(i)[0]) == f"S{CARRIER['expression']}"
        for i in found.patient_ids
    ]
    return float(np.mean(right))


def permuted(cohort, seed=9):
    """The same outcomes, of other patients."""
    order = np.random.default_rng(seed).permutation(len(cohort.ids))
    target = cohort.outcomes.targets["os"].take(order)
    return Outcomes(patient_ids=cohort.ids, targets={"os": target})
