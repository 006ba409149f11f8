"""The generating process of the synthetic cohort: who carries which part of the hazard, stated once.

Five latents per patient, all independent of each other, of the site and of age and sex:

- ``size`` (lesion diameter), ``st`` (ST level of the ECG) and ``slope`` (creatinine over the last year) are standard
  normal, and each adds its strength times itself to the log hazard;
- ``density`` (nuclei per mm2) and ``pathway`` (expression of one pathway) lie in two clusters of equal size, around -1
  and +1. Only whether they lie on the same side matters: +``together`` to the log hazard if so, -``together`` if not.
  Either alone says nothing (an exclusive or);
- ``burden`` (number of passenger mutations) is inert.

Imaging and reports both show the lesion's diameter: knowing both is knowing one. Survival is Weibull with proportional
hazards, S(t | latents) = exp(-(t / scale) ** shape * exp(log hazard)).
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, nearest

Array = NDArray[np.float64]

MODALITIES = ("imaging", "pathology", "ecg", "expression", "mutations", "ehr", "reports")
LATENTS = ("size", "st", "slope", "density", "pathway", "burden")
# The latent that each modality shows; data of a modality give its latent without error.
SHOWS = {
    "imaging": "size",
    "pathology": "density",
    "ecg": "st",
    "expression": "pathway",
    "mutations": "burden",
    "ehr": "slope",
    "reports": "size",
}
REDUNDANT = ("imaging", "reports")
PAIR = ("pathology", "expression")
INERT = "mutations"
# What is measured where a latent is 0, what one unit of it adds, and in which unit.
SCALE = {
    "size": (30.0, 6.0, "mm"),
    "density": (2500.0, 900.0, "nuclei per mm2"),
    "st": (0.02, 0.08, "mV"),
    "pathway": (0.0, 1.0, "log2 TPM"),
    "slope": (0.0, 0.25, "mg/dL per year"),
}
RISK_PATHWAY = "PATHWAY_03"
ST_LEADS = ("V3", "V4", "V5")


@dataclass(frozen=True, kw_only=True)
class Process:
    """Strengths of the process, on the log hazard.

    Attributes:
        size, st, slope: per standard deviation of the latent.
        together: added when density and pathway lie on the same side, subtracted when not.
        shape, scale: of the Weibull baseline; ``scale`` in days.
        sites: number of sites; site k treats a share of patients proportional to 1 / (k + 1).
        site_risk: standard deviation over patients of the site's own part of the log hazard; 0: sites differ in their
            data (see ``batch``) and in nothing else. The oracle always knows the site: it is no player of the game.
        batch: size of the sites' differences in what carries no signal, in standard deviations; 0: none.

    Raises:
        ConfigError: a number that is not finite, a shape or scale that is not positive, or no site.
    """

    size: float = 0.7
    st: float = 0.5
    slope: float = 0.5
    together: float = 0.8
    shape: float = 1.3
    scale: float = 1500.0
    sites: int = 4
    site_risk: float = 0.0
    batch: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.size, self.st, self.slope, self.together, self.shape, self.scale, self.site_risk, self.batch)
        if not np.isfinite(numbers).all() or min(self.shape, self.scale) <= 0 or min(self.site_risk, self.batch) < 0:
            msg = "Process: expected finite strengths, shape and scale > 0, site_risk and batch >= 0, found another"
            raise ConfigError(msg)
        if self.sites < 1 or (self.sites == 1 and self.site_risk > 0):
            msg = f"Process: expected sites >= 1, and >= 2 with a site_risk, found {self.sites}"
            raise ConfigError(msg)

    def cumulative_hazard(self, times: Array) -> Array:
        """Baseline cumulative hazard at (t,) days."""
        return np.asarray((np.asarray(times, dtype=np.float64) / self.scale) ** self.shape)

    def site_shares(self) -> Array:
        """(sites,) shares of the patients."""
        weights = 1.0 / np.arange(1.0, self.sites + 1)
        return np.asarray(weights / weights.sum())

    def site_offsets(self) -> Array:
        """(sites,) the sites' own log hazards: mean 0 and standard deviation ``site_risk`` over patients."""
        share = self.site_shares()
        ramp = np.where(np.arange(self.sites) % 2 == 0, 1.0, -1.0) * np.arange(1.0, self.sites + 1)
        ramp = ramp - share @ ramp
        spread = float(np.sqrt(share @ ramp**2))
        return np.asarray(self.site_risk * ramp / spread if self.site_risk else np.zeros(self.sites))


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What decides a patient's hazard: (n,) each.

    Attributes:
        size, st, slope, burden: standard normal.
        density, pathway: around -1 or +1, never 0.
        site: number of the site.
    """

    size: Array
    st: Array
    slope: Array
    density: Array
    pathway: Array
    burden: Array
    site: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.size)

    def take(self, index: NDArray[np.intp]) -> "Latents":
        """Patients ``index`` in that order."""
        return Latents(**{name: getattr(self, name)[index] for name in (*LATENTS, "site")})

    def same_side(self) -> Array:
        """+1 where density and pathway lie on the same side, -1 where not."""
        return np.asarray(np.sign(self.density) * np.sign(self.pathway))

    def measured(self, latent: str) -> Array:
        """A latent in the unit in which its modality shows it (see ``SCALE``)."""
        origin, step, _ = SCALE[latent]
        return np.asarray(origin + step * getattr(self, latent))


def draw_latents(process: Process, n: int, rng: np.random.Generator) -> Latents:
    """Patients of the process: n of them, independent of each other."""

    def clusters() -> Array:
        side = np.where(rng.random(n) < 0.5, -1.0, 1.0)
        return np.asarray(side * np.clip(1.0 + 0.25 * rng.standard_normal(n), 0.3, 1.7))

    return Latents(
        size=rng.standard_normal(n),
        st=rng.standard_normal(n),
        slope=rng.standard_normal(n),
        density=clusters(),
        pathway=clusters(),
        burden=rng.standard_normal(n),
        site=rng.choice(process.sites, size=n, p=process.site_shares()),
    )


def checked_modalities(names: Collection[str]) -> tuple[str, ...]:
    """Names in the order of ``MODALITIES``.

    Raises:
        ConfigError: a name that is none.
    """
    unknown = next((name for name in names if name not in MODALITIES), None)
    if unknown is not None:
        msg = f"synthetic cohort: no modality {unknown!r}; {nearest(unknown, MODALITIES)}"
        raise ConfigError(msg)
    return tuple(name for name in MODALITIES if name in names)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Which parts of the log hazard a set of modalities reveals."""

    size: bool
    st: bool
    slope: bool
    pair: bool


def knowledge(known: Collection[str]) -> Knowledge:
    """What the modalities ``known`` reveal; the pair only together, the redundant two each.

    Raises:
        ConfigError: a name that is no modality.
    """
    have = set(checked_modalities(known))
    return Knowledge(size=bool(have & set(REDUNDANT)), st="ecg" in have, slope="ehr" in have, pair=have >= set(PAIR))


def log_hazard(process: Process, latents: Latents, *, known: Collection[str] = MODALITIES) -> Array:
    """(n,) the part of the log hazard that ``known`` (and the site) reveal; with all modalities, all of it."""
    has = knowledge(known)
    eta = process.site_offsets()[latents.site]
    eta = eta + has.size * process.size * latents.size + has.st * process.st * latents.st
    return np.asarray(
        eta + has.slope * process.slope * latents.slope + has.pair * process.together * latents.same_side()
    )
