"""The synthetic cohort at table level: what each modality measures, as a table of a few columns per modality.

Each table gives its latent without error (to float32), among columns that say nothing: what a site or a scanner adds,
and ordinary noise. A raw measurement that is derived here (a contrast of gene means, a slope of readings) has the noise
taken out of exactly that contrast, so that the oracle, which knows the latents, is the best that any model can reach.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.synthetic.outcomes import Missing, draw_present, draw_survival
from medfuse.synthetic.process import (
    MODALITIES,
    RISK_PATHWAY,
    Array,
    Latents,
    Process,
    checked_modalities,
    draw_latents,
)
from medfuse.targets import Survival
from medfuse.types import PatientId

PATHWAYS, GENES_PER_PATHWAY, BACKGROUND = 10, 20, 100
PATHWAY_NAMES = tuple(f"PATHWAY_{k:02d}" for k in range(PATHWAYS))
GENES = tuple(
    [f"P{k:02d}G{g:02d}" for k in range(PATHWAYS) for g in range(GENES_PER_PATHWAY)]
    + [f"BG{g:03d}" for g in range(BACKGROUND)]
)
GENE_SETS: Mapping[str, tuple[str, ...]] = {
    name: GENES[k * GENES_PER_PATHWAY : (k + 1) * GENES_PER_PATHWAY] for k, name in enumerate(PATHWAY_NAMES)
}
MUTATED = tuple(f"MUT{g:02d}" for g in range(40))
ST_SPREAD = 0.03  # mV, of the leads that show no shift


@dataclass(frozen=True, kw_only=True)
class Table:
    """Measurements of one modality for all n patients, whether or not they have it: ``values`` is (n, C)."""

    columns: tuple[Column, ...]
    values: Array


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A synthetic cohort with its truth.

    Attributes:
        process: what generated it.
        seed: with which it was drawn.
        patient_ids: n ids.
        latents: what decides the hazard.
        age, sex: (n,) years and True for female; neither has to do with anything.
        survival: outcomes.
        missing: how modalities came to be absent.
        present: (n, M) bool in the order of ``MODALITIES``.
        follow_up: days after which the study ended for everybody.
        data: the modalities, as the loaders would give them.
    """

    process: Process
    seed: int
    patient_ids: tuple[PatientId, ...]
    latents: Latents
    age: Array
    sex: NDArray[np.bool_]
    survival: Survival
    missing: Missing
    present: NDArray[np.bool_]
    follow_up: float
    data: Mapping[str, ModalityData]

    def __len__(self) -> int:
        return len(self.patient_ids)

    @property
    def site(self) -> tuple[str, ...]:
        """Name of each patient's site."""
        return tuple(f"site-{k + 1}" for k in self.latents.site)


def _table(columns: Collection[tuple[str, str, Array]]) -> Table:
    return Table(
        columns=tuple(Column(name=name, unit=unit) for name, unit, _ in columns),
        values=np.stack([values for _, _, values in columns], axis=1),
    )


def _shifts(process: Process, latents: Latents, rng: np.random.Generator, k: int) -> Array:
    """(n, k) what a patient's site adds to k nuisance columns, in standard deviations of them."""
    return np.asarray(process.batch * rng.standard_normal((process.sites, k))[latents.site])


def _imaging(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    noise = rng.standard_normal((len(latents), 3)) + _shifts(process, latents, rng, 3)
    return _table(
        [
            ("lesion_diameter", "mm", latents.measured("size")),
            ("body_attenuation", "HU", 40 + 8 * noise[:, 0]),
            ("image_noise", "HU", 12 + 1.5 * noise[:, 1]),
            ("body_width", "mm", 340 + 25 * noise[:, 2]),
        ]
    )


def _pathology(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    noise = rng.standard_normal((len(latents), 3)) + _shifts(process, latents, rng, 3)
    return _table(
        [
            ("nuclear_density", "1/mm2", latents.measured("density")),
            ("haematoxylin", "optical density", 0.6 + 0.08 * noise[:, 0]),
            ("eosin", "optical density", 0.4 + 0.06 * noise[:, 1]),
            ("tissue_area", "mm2", 150 + 20 * noise[:, 2]),
        ]
    )


def _ecg(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    noise = rng.standard_normal((len(latents), 5))
    noise[:, :3] += _shifts(process, latents, rng, 3)
    return _table(
        [
            ("st_level_V3_V5", "mV", latents.measured("st")),
            ("heart_rate", "1/min", 72 + 9 * noise[:, 0]),
            ("qrs_duration", "ms", 95 + 8 * noise[:, 1]),
            ("noise", "mV", 0.02 + 0.002 * noise[:, 2]),
            ("st_level_I", "mV", ST_SPREAD * noise[:, 3]),
            ("st_level_aVF", "mV", ST_SPREAD * noise[:, 4]),
        ]
    )


def _groups() -> list[NDArray[np.intp]]:
    """The two gene groups whose means make the risk pathway's contrast: its own genes, and those of no pathway."""
    own = GENE_SETS[RISK_PATHWAY]
    named = {gene for genes in GENE_SETS.values() for gene in genes}
    return [
        np.array([g for g, gene in enumerate(GENES) if gene in own]),
        np.array([g for g, gene in enumerate(GENES) if gene not in named]),
    ]


def _expression(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    """log2 TPM: gene means, activities of the pathways, noise, and a level and a pattern of each site."""
    n, genes = len(latents), len(GENES)
    level = rng.uniform(3.0, 8.0, size=genes)
    own = 0.5 * rng.standard_normal((n, genes))
    pattern = 0.3 * process.batch * rng.standard_normal((process.sites, genes))
    site_level = 0.5 * process.batch * rng.standard_normal(process.sites)
    for group in _groups():
        own[:, group] -= own[:, group].mean(axis=1, keepdims=True)
        pattern[:, group] -= pattern[:, group].mean(axis=1, keepdims=True)
    activity = 0.7 * rng.standard_normal((n, PATHWAYS))
    activity[:, PATHWAY_NAMES.index(RISK_PATHWAY)] = latents.measured("pathway")
    values = level + own + pattern[latents.site] + site_level[latents.site][:, None]
    values[:, : PATHWAYS * GENES_PER_PATHWAY] += np.repeat(activity, GENES_PER_PATHWAY, axis=1)
    return Table(columns=tuple(Column(name=gene, unit="log2 tpm") for gene in GENES), values=values)


def pathway_score(values: Array, genes: tuple[str, ...] = GENES) -> Array:
    """(n,) mean of the risk pathway's genes minus mean of the genes of no pathway: the latent plus a constant."""
    where = {gene: g for g, gene in enumerate(genes)}
    own, background = ([where[GENES[g]] for g in group] for group in _groups())
    return np.asarray(values[:, own].mean(axis=1) - values[:, background].mean(axis=1))


def _mutations(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    """0/1 per gene; more of them where the burden is high, which has to do with nothing."""
    frequency = rng.uniform(-3.0, -1.0, size=len(MUTATED))
    chance = 1 / (1 + np.exp(-(frequency + latents.burden[:, None])))
    values = (rng.random(chance.shape) < chance).astype(np.float64)
    return Table(columns=tuple(Column(name=gene, unit="0/1") for gene in MUTATED), values=values)


def _ehr(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    noise = rng.standard_normal((len(latents), 3))
    noise += 0.3 * _shifts(process, latents, rng, 3)
    return _table(
        [
            ("creatinine_slope", "mg/dL per year", latents.measured("slope")),
            ("creatinine_mean", "mg/dL", 1.6 + 0.15 * noise[:, 0]),
            ("haemoglobin", "g/dL", 13.5 + 1.2 * noise[:, 1]),
            ("sodium", "mmol/L", 140 + 2.5 * noise[:, 2]),
        ]
    )


def _reports(process: Process, latents: Latents, rng: np.random.Generator) -> Table:
    noise = rng.standard_normal((len(latents), 2)) + _shifts(process, latents, rng, 2)
    return _table(
        [
            ("stated_diameter", "mm", latents.measured("size")),
            ("sentences", "count", np.maximum(np.round(7 + 1.5 * noise[:, 0]), 2)),
            ("days_to_signature", "days", np.maximum(2 + 0.7 * noise[:, 1], 0)),
        ]
    )


_MEASURE = {
    "imaging": _imaging,
    "pathology": _pathology,
    "ecg": _ecg,
    "expression": _expression,
    "mutations": _mutations,
    "ehr": _ehr,
    "reports": _reports,
}


def _modality(name: str, table: Table, ids: tuple[PatientId, ...], has: NDArray[np.bool_]) -> ModalityData:
    position = np.arange(len(table.columns), dtype=np.float32)[:, None]
    tokens = np.ones((len(ids), len(table.columns), 2), dtype=np.float32)
    tokens[:, :, 0] = table.values
    return ModalityData(
        name=name,
        layout="columns",
        features=2,
        columns=table.columns,
        samples={ids[i]: ModalitySample(tokens=tokens[i], position=position) for i in np.flatnonzero(has)},
    )


def simulate(
    n: int,
    *,
    seed: int = 0,
    process: Process | None = None,
    missing: Missing | None = None,
    censored: float = 0.4,
    follow_up: float = 1826.0,
    modalities: Collection[str] = MODALITIES,
) -> Simulation:
    """A synthetic cohort of n patients at table level.

    Args:
        n: number of patients.
        seed: equal seeds give equal cohorts. Every part draws from a stream of its own: another missingness changes
            no latent, no outcome and no measurement, another choice of modalities no other modality.
        process: strengths (default: those of :class:`Process`).
        missing: how whole modalities are absent (default: nothing is).
        censored: share of patients without an event, in expectation.
        follow_up: days after which the study ends for everybody.
        modalities: those whose tables are made; who would have the others is drawn all the same.

    Raises:
        ConfigError: no patient, an unknown modality, or a share of censored patients that cannot be reached.
    """
    if n < 1:
        msg = f"simulate: expected n >= 1 patients, found {n}"
        raise ConfigError(msg)
    process, missing = process or Process(), missing or Missing()
    who, times, absent, *tables = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3 + len(MODALITIES))
    )
    latents = draw_latents(process, n, who)
    age, sex = np.clip(who.normal(63, 11, size=n), 20, 95), who.random(n) < 0.5
    ids = tuple(PatientId(f"SYN-{i:0{max(4, len(str(n)))}d}") for i in range(1, n + 1))
    present = draw_present(missing, latents, absent)
    chosen = checked_modalities(modalities)
    data = {
        name: _modality(name, _MEASURE[name](process, latents, rng), ids, present[:, m])
        for m, (name, rng) in enumerate(zip(MODALITIES, tables, strict=True))
        if name in chosen
    }
    return Simulation(
        process=process,
        seed=seed,
        patient_ids=ids,
        latents=latents,
        age=age,
        sex=sex,
        survival=draw_survival(process, latents, times, censored=censored, follow_up=follow_up),
        missing=missing,
        present=present,
        follow_up=follow_up,
        data=data,
    )
