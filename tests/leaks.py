"""Made-up cohorts for the leak audit: a plausible world, and the ways in which a leak may be planted in it.

A world is a cohort in memory with a laboratory table, an expression profile, a bag of tiles and a set of stains.
Patients ``A`` and ``B`` of a world stand on two sides of its first split.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from medfuse.cohort import Attrition, Cohort, PatientRecord
from medfuse.config import CohortCard
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.splits import Split, generated_splits
from medfuse.targets import Labels, Survival, Target, Values

GENES = 150
GOVERNANCE = dict.fromkeys(("licence", "source", "citation", "consent", "deidentification"), "made up")
OUTCOMES = {
    "death": {
        "kind": "survival",
        "time": "os_days",
        "unit": "days",
        "event": "vital_status",
        "event_codes": ["1"],
        "censored_codes": ["0"],
    },
    "receptor": {"kind": "binary", "column": "receptor", "classes": ["neg", "pos"]},
    "marker": {"kind": "continuous", "column": "marker_later", "unit": "mg/L"},
}


@dataclass(frozen=True, kw_only=True)
class World:
    """What :func:`medfuse.audit.audit` reads."""

    cohort: Cohort
    data: dict[str, ModalityData]
    splits: list[Split]
    outcome: str = "death"
    group_by_site: bool = False
    rng: np.random.Generator = field(repr=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """Patients in the order of the cohort."""
        return self.cohort.patient_ids

    @property
    def pair(self) -> tuple[str, str]:
        """A patient of train and a held-out one, who have everything."""
        split = self.splits[0]
        full = [i for i in self.ids if all(i in m.samples for m in self.data.values())]
        return next(i for i in split.train if i in full), next(i for i in split.held_out if i in full)


def table(name: str, ids, values, *, columns=None, unit: str | None = None) -> ModalityData:
    """Layout ``columns`` from (n, C) values, NaN where missing; a patient without any value is absent."""
    values = np.asarray(values, dtype=np.float64)
    columns = columns or tuple(Column(name=f"{name}_{c}", unit=unit) for c in range(values.shape[1]))
    known = ~np.isnan(values)
    tokens = np.stack([np.where(known, values, 0.0), known], axis=-1).astype(np.float32)
    position = np.arange(values.shape[1], dtype=np.float32)[:, None]
    samples = {
        i: ModalitySample(tokens=t, position=position) for i, t in zip(ids, tokens, strict=True) if t[:, 1].any()
    }
    return ModalityData(name=name, layout="columns", features=2, columns=tuple(columns), samples=samples)


def bags(name: str, ids, parts, *, identities=()) -> ModalityData:
    """Layout ``vectors`` from one (T, F) array per patient."""
    samples = {}
    for i, part in zip(ids, parts, strict=True):
        part = np.asarray(part, dtype=np.float32)
        position = np.arange(len(part), dtype=np.float32)[:, None]
        samples[i] = ModalitySample(tokens=part, position=position)
    width = next(iter(samples.values())).tokens.shape[1]
    return ModalityData(name=name, layout="vectors", features=width, identities=tuple(identities), samples=samples)


def survival(rng, risk, *, events: float = 0.5) -> Survival:
    """Exponential times with log hazard ``risk``, uniform censoring tuned to a share of events."""
    time = rng.exponential(900 * np.exp(-risk))
    low, high = 1.0, 1e6
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if (time < np.linspace(0, middle, len(time))).mean() < events else (low, middle)
    limit = rng.permutation(np.linspace(0, high, len(time))) + 1
    return Survival(event=time <= limit, time=np.round(np.minimum(time, limit), 1))


def cohort_of(ids, targets: dict[str, Target], names, *, sites=None, index_times=None) -> Cohort:
    """A cohort whose card names the modalities ``names``."""
    modalities = {
        name: {"loader": "vectors", "file": f"{name}.npz"}
        if name in {"tiles", "stains"}
        else {"loader": "tabular", "file": f"{name}.csv", "columns": {"x": {}}}
        for name in names
    }
    card = CohortCard(
        name="made-up",
        title="Made up",
        governance=GOVERNANCE,
        patients={"file": "patients.csv", "id": "id"},
        groups={"person": "person", "site": "site", "index_time": "diagnosed"},
        outcomes={name: OUTCOMES[name] for name in targets},
        modalities=modalities,
    )
    records = tuple(
        PatientRecord(
            patient_id=i,
            person=i,
            site=sites[k] if sites is not None else None,
            index_time=str(index_times[k]) if index_times is not None else None,
            subgroups={},
        )
        for k, i in enumerate(ids)
    )
    attrition = Attrition(total=len(ids), modelled=len(ids))
    return Cohort(card=card, records=records, targets=targets, attrition=attrition, problems=(), data_root=None)


LABS = ("age", "hb", "leukocytes", "platelets", "creatinine", "crp", "ldh", "albumin", "bmi", "sodium", "ca125", "alt")


def labs(rng, n: int, severity) -> np.ndarray:
    """(n, 12) a laboratory table with its usual correlations and rounding."""
    z = rng.normal(size=(n, 12)) @ (np.eye(12) + 0.25 * rng.normal(size=(12, 12))) + 0.4 * severity[:, None]
    centre = np.array([62, 13, 7, 250, 0.9, 2, 220, 40, 26, 140, 3, 25])
    spread = np.array([11, 1.6, 2.2, 80, 0.25, 1, 60, 4, 4, 3, 1, 10])
    x = centre + spread * z
    x[:, 5], x[:, 10] = np.exp(0.8 * z[:, 5]), np.exp(z[:, 10] + 3)
    decimals = (0, 1, 2, 0, 2, 1, 0, 1, 1, 0, 1, 0)
    return np.stack([np.round(x[:, c], d) for c, d in enumerate(decimals)], axis=1)


def expression(rng, n: int, severity, genes: int = GENES) -> np.ndarray:
    """(n, genes) log2 TPM: gene means, a dozen factors, noise."""
    loading = rng.normal(size=(12, genes))
    factors = np.concatenate([severity[:, None], rng.normal(size=(n, 11))], axis=1)
    return rng.gamma(4, 1.5, size=genes) + 0.5 * factors @ loading + 0.6 * rng.normal(size=(n, genes))


def tiles(rng, n: int, severity, width: int = 24) -> list[np.ndarray]:
    """One bag of 20 to 60 tiles per patient."""
    base = 0.7 * rng.normal(size=(n, width)) + 0.2 * severity[:, None]
    return [base[i] + rng.normal(size=(rng.integers(20, 60), width)) for i in range(n)]


def world(seed: int, *, n: int = 120, only: tuple[str, ...] | None = None, events: float = 0.5, ids=None) -> World:
    """A clean cohort of plausible look."""
    rng = np.random.default_rng(seed)
    ids = tuple(ids or (f"P{i:03d}" for i in range(1, n + 1)))
    severity = rng.normal(size=n)
    absent = rng.random((n, 12)) < 0.06
    stage = np.clip(np.round(2 + severity + 0.5 * rng.normal(size=n)), 0, 3)
    lab = np.where(absent, np.nan, labs(rng, n, severity))
    columns = (*(Column(name=c) for c in LABS), Column(name="stage", kind="ordinal", levels=("I", "II", "III", "IV")))
    columns += (Column(name="sex", kind="categorical", levels=("f", "m")),)
    clinical = np.column_stack([lab, stage, rng.integers(2, size=n)])
    data = {
        "clinical": table("clinical", ids, clinical, columns=columns),
        "genes": table("genes", ids, expression(rng, n, severity), unit="log2 tpm"),
        "tiles": bags("tiles", ids, tiles(rng, n, severity)),
        "stains": bags("stains", ids, rng.normal(size=(n, 4, 24)), identities=("HE", "CD3", "CD8", "CD68")),
    }
    data = {name: modality for name, modality in data.items() if only is None or name in only}
    time = survival(rng, 0.9 * severity + 0.3 * rng.normal(size=n), events=events)
    days = np.datetime64("2008-01-01") + rng.integers(0, 3000, size=n)
    targets: dict[str, Target] = {
        "death": time,
        "receptor": Labels(label=(severity + rng.normal(size=n) > 0).astype(np.int64), classes=("neg", "pos")),
        "marker": Values(value=50 + 10 * severity + 8 * rng.normal(size=n), unit="mg/L"),
    }
    sites = [f"Site {k}" for k in rng.integers(8, size=n)]
    cohort = cohort_of(ids, targets, list(data) or ["none"], sites=sites, index_times=days)
    splits = generated_splits(cohort, outcome="death", folds=4, seed=seed)
    return World(cohort=cohort, data=data, splits=splits, rng=rng)


# --- planting ---------------------------------------------------------------------------------------------------------


def with_records(w: World, **changes) -> World:
    """The world with other records: ``person={"P001": "x"}`` and so on."""
    records = tuple(
        dataclasses.replace(r, **{key: new[r.patient_id] for key, new in changes.items() if r.patient_id in new})
        for r in w.cohort.records
    )
    return dataclasses.replace(w, cohort=dataclasses.replace(w.cohort, records=records))


def with_content(w: World, name: str, change: Callable[[np.ndarray], np.ndarray], pairs=None) -> World:
    """The second of each pair of patients gets the changed tokens of the first."""
    modality = w.data[name]
    samples = dict(modality.samples)
    for a, b in pairs or [w.pair]:
        tokens = np.asarray(change(np.array(modality.samples[a].tokens)), dtype=np.float32)
        keep = samples[b].position if len(tokens) == len(samples[b].position) else None
        position = np.arange(len(tokens), dtype=np.float32)[:, None] if keep is None else keep
        samples[b] = ModalitySample(tokens=tokens, position=position)
    return dataclasses.replace(w, data={**w.data, name: dataclasses.replace(modality, samples=samples)})


def on_values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of the values of a row of layout ``columns``; flags stay."""

    def changed(tokens: np.ndarray) -> np.ndarray:
        tokens[:, 0] = change(tokens[:, 0].astype(np.float64)) * tokens[:, 1]
        return tokens

    return changed


def with_columns(w: World, values, columns, *, name: str = "clinical") -> World:
    """More columns in a table: (n, m) ``values`` in the order of the cohort, NaN where missing."""
    modality = w.data[name]
    values = np.asarray(values, dtype=np.float64).reshape(len(w.ids), -1)
    row = {patient: values[k] for k, patient in enumerate(w.ids)}
    samples = {}
    for patient, sample in modality.samples.items():
        known = ~np.isnan(row[patient])
        added = np.stack([np.where(known, row[patient], 0.0), known], axis=-1).astype(np.float32)
        tokens = np.concatenate([sample.tokens, added])
        samples[patient] = ModalitySample(tokens=tokens, position=np.arange(len(tokens), dtype=np.float32)[:, None])
    columns = tuple(Column(name=c) if isinstance(c, str) else c for c in columns)
    changed = dataclasses.replace(modality, samples=samples, columns=(*modality.columns, *columns))
    return dataclasses.replace(w, data={**w.data, name: changed})


def truth(w: World) -> tuple[np.ndarray, np.ndarray]:
    """Event and time of everyone."""
    target = w.cohort.targets["death"]
    return target.event.astype(np.float64), target.time


def flipped(w: World, flag: np.ndarray, share: float) -> np.ndarray:
    """A flag with a share of its entries wrong."""
    wrong = np.zeros(len(flag), dtype=bool)
    wrong[w.rng.permutation(len(flag))[: round(share * len(flag))]] = True
    return np.where(wrong, 1 - flag, flag)
