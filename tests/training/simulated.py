"""A small cohort in three modalities with a planted signal, whose oracle is known."""

from dataclasses import dataclass

import numpy as np

from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.targets import Labels, Survival, Values
from medfuse.training.outcomes import Outcomes
from medfuse.types import PatientId


@dataclass(frozen=True)
class Inner:
    train: tuple
    tuning: tuple


@dataclass(frozen=True)
class Simulated:
    data: dict
    outcomes: Outcomes
    ids: tuple
    log_hazard: np.ndarray

    def inner(self, ids, folds=2):
        return [
            Inner(tuple(i for n, i in enumerate(ids) if n % folds != k), tuple(ids[k::folds])) for k in range(folds)
        ]


def columns(name, values, ids, *, has, missing=0.0, draw=None, kinds=None):
    """Layout ``columns``; patients without ``has`` have no sample, cells are missing at random."""
    c = values.shape[1]
    kinds = kinds or {}
    specification = tuple(
        Column(name=f"{name}{j}", kind=kinds.get(j, "numeric"), levels=("a", "b", "c") if j in kinds else ())
        for j in range(c)
    )
    position = np.arange(c, dtype=np.float32)[:, None]
    samples = {}
    for row, patient in enumerate(ids):
        if not has[row]:
            continue
        observed = np.ones(c) if draw is None else (draw.random(c) >= missing)
        tokens = np.stack([np.where(observed, values[row], 0), observed], axis=1).astype(np.float32)
        samples[patient] = ModalitySample(tokens=tokens, position=position)
    return ModalityData(name=name, layout="columns", features=2, columns=specification, samples=samples)


def vectors(name, values, ids, *, has, draw):
    """Layout ``vectors`` with two token identities, one of which may be absent."""
    samples = {}
    for row, patient in enumerate(ids):
        if has[row]:
            kept = np.arange(2) if draw.random() < 0.8 else np.array([1])
            samples[patient] = ModalitySample(
                tokens=values[row][kept].astype(np.float32), position=kept[:, None].astype(np.float32)
            )
    return ModalityData(
        name=name, layout="vectors", features=values.shape[2], identities=("he", "ki67"), samples=samples
    )


def simulate(n=300, seed=0, *, genes=70, censored=False, complete=False):
    draw = np.random.default_rng(seed)
    ids = tuple(PatientId(f"s{seed}-{i:04d}") for i in range(n))
    table = draw.normal(size=(n, 4))
    table[:, 3] = draw.integers(0, 3, size=n)
    expression = draw.normal(size=(n, genes))
    stains = draw.normal(size=(n, 2, 6))
    log_hazard = table[:, 0] + 0.7 * (table[:, 3] == 2) + 0.6 * expression[:, :4].sum(1) + stains[:, 1, 0]
    time = 1000 * draw.exponential(size=n) / np.exp(log_hazard)
    censoring = draw.exponential(2500, size=n)
    event = (time < censoring) & (not censored)
    data = {
        "clinical": columns(
            "clinical", table, ids, has=np.ones(n, bool), missing=0.05, draw=draw, kinds={3: "categorical"}
        ),
        "expression": columns("expression", expression, ids, has=complete | (draw.random(n) < 0.9)),
        "stains": vectors("stains", stains, ids, has=complete | (draw.random(n) < 0.8), draw=draw),
    }
    targets = {
        "os": Survival(event=event, time=np.minimum(time, censoring)),
        "recurrence": Labels(
            label=(log_hazard + draw.normal(size=n) > 0).astype(int),
            classes=("no", "yes"),
            observed=draw.random(n) < 0.7,
        ),
        "size": Values(value=40 + 10 * log_hazard + draw.normal(size=n), unit="mm"),
    }
    return Simulated(data=data, outcomes=Outcomes(patient_ids=ids, targets=targets), ids=ids, log_hazard=log_hazard)


def only(simulated, *names):
    """The same cohort with some outcomes."""
    outcomes = Outcomes(patient_ids=simulated.ids, targets={name: simulated.outcomes.targets[name] for name in names})
    return Simulated(data=simulated.data, outcomes=outcomes, ids=simulated.ids, log_hazard=simulated.log_hazard)
