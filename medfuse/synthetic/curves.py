"""True survival curves of the synthetic cohort, given everything or what some modalities show.

The process makes E[S(t | latents) | what is shown] a sum over two signs of a one-dimensional Gaussian integral, which
Gauss-Hermite quadrature solves; its error is given by :func:`quadrature_error`, and :func:`monte_carlo` repeats it by
simulation.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from medfuse.errors import ConfigError
from medfuse.synthetic.process import (
    LATENTS,
    MODALITIES,
    SHOWS,
    Array,
    Knowledge,
    Latents,
    Process,
    checked_modalities,
    draw_latents,
    knowledge,
    log_hazard,
)

NODES = 64


def _unknown_part(process: Process, has: Knowledge, nodes: int) -> tuple[Array, Array]:
    """Values and probabilities of the part of the log hazard that stays unknown, as a finite sum."""
    missing = ((has.size, process.size), (has.st, process.st), (has.slope, process.slope))
    spread = float(np.sqrt(sum(strength**2 for known, strength in missing if not known)))
    point, weight = np.zeros(1), np.ones(1)
    if spread > 0:
        point, weight = np.polynomial.hermite_e.hermegauss(nodes)
        point, weight = spread * point, weight / weight.sum()
    if not has.pair and process.together:
        point = np.concatenate([point - process.together, point + process.together])
        weight = np.concatenate([weight, weight]) / 2
    return point, weight


def _log_cumulative(process: Process, has: Knowledge, known_part: Array, times: Array, *, nodes: int = NODES) -> Array:
    """(n, t) log(-log E[S]); without cancellation at early times (E[1 - S] is summed) and at late ones (E[S] is)."""
    point, weight = _unknown_part(process, has, nodes)
    out = np.empty((len(known_part), len(times)))
    hazard = process.cumulative_hazard(times)
    for rows in np.array_split(np.arange(len(known_part)), max(1, len(known_part) * len(times) // 50_000)):
        scaled = np.exp(known_part[rows])[:, None] * hazard
        died, alive = np.zeros_like(scaled), np.zeros_like(scaled)
        for p, w in zip(np.exp(point), weight, strict=True):
            died -= w * np.expm1(-scaled * p)
            alive += w * np.exp(-scaled * p)
        with np.errstate(divide="ignore"):  # the log of the part that is not used may be of 0
            minus_log = np.where(died < 0.5, -np.log1p(-np.minimum(died, 0.5)), -np.log(alive))
        out[rows] = np.log(minus_log)
    return out


def positive(times: Sequence[float] | Array) -> Array:
    """Times (t,) as float64.

    Raises:
        ConfigError: none, or one that is not finite and above 0.
    """
    at = np.asarray(times, dtype=np.float64)
    if at.ndim != 1 or not len(at) or not (np.isfinite(at) & (at > 0)).all():
        msg = "oracle: expected times (t,) in days, finite and > 0, found others"
        raise ConfigError(msg)
    return at


def values(
    process: Process, latents: Latents, times: Sequence[float] | Array, *, known: Collection[str] = MODALITIES
) -> Array:
    """(n, t) v_t(S), the log cumulative hazard of the expected survival when the modalities ``known`` are seen.

    Raises:
        ConfigError: times that are not positive, or a name that is no modality.
    """
    return _log_cumulative(process, knowledge(known), log_hazard(process, latents, known=known), positive(times))


def survival(
    process: Process, latents: Latents, times: Sequence[float] | Array, *, known: Collection[str] = MODALITIES
) -> Array:
    """(n, t) E[S(t) | what ``known`` shows]; with all modalities the patient's true curve.

    Raises:
        ConfigError: as :func:`values`.
    """
    return np.exp(-np.exp(values(process, latents, times, known=known)))


def population_curve(process: Process, times: Sequence[float] | Array) -> Array:
    """(t,) survival of the whole population, over its sites too."""
    nobody = np.zeros(process.sites)
    sites = Latents(**dict.fromkeys(LATENTS, nobody), site=np.arange(process.sites))
    return np.asarray(process.site_shares() @ survival(process, sites, times, known=()))


def median_survival(process: Process) -> float:
    """Days by which half of the whole population have had the event."""
    return float(
        brentq(lambda t: float(population_curve(process, [t])[0]) - 0.5, 1e-9 * process.scale, 1e9 * process.scale)
    )


def quadrature_error(process: Process, times: Sequence[float] | Array) -> float:
    """Largest change of v_t over all subsets and -4..4 of the known log hazard when the nodes are doubled."""
    at, grid = positive(times), np.linspace(-4, 4, 33)
    worst = 0.0
    for bits in range(16):
        has = Knowledge(size=bool(bits & 1), st=bool(bits & 2), slope=bool(bits & 4), pair=bool(bits & 8))
        once = _log_cumulative(process, has, grid, at)
        worst = max(worst, float(np.abs(once - _log_cumulative(process, has, grid, at, nodes=2 * NODES)).max()))
    return worst


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A Monte Carlo estimate and its standard error, both (n, t)."""

    value: Array
    standard_error: Array


def monte_carlo(
    process: Process,
    latents: Latents,
    times: Sequence[float] | Array,
    *,
    known: Collection[str],
    draws: int = 20_000,
    seed: int = 0,
) -> Estimate:
    """E[S(t) | what ``known`` shows] by drawing whole patients anew and keeping what is known: the check of the sums.

    Nothing of the closed form is used: the unknown latents come from :func:`draw_latents`, the known ones from the
    patient. Meant for few patients.

    Raises:
        ConfigError: as :func:`values`.
    """
    at, shown = positive(times), {SHOWS[name] for name in checked_modalities(known)} | {"site"}
    fresh = draw_latents(process, draws, np.random.default_rng(seed))
    hazard = process.cumulative_hazard(at)
    mean, error = np.empty((len(latents), len(at))), np.empty((len(latents), len(at)))
    for i in range(len(latents)):
        parts = {
            name: np.full(draws, getattr(latents, name)[i]) if name in shown else getattr(fresh, name)
            for name in (*LATENTS, "site")
        }
        curves = np.exp(-np.exp(log_hazard(process, Latents(**parts)))[:, None] * hazard)
        mean[i], error[i] = curves.mean(axis=0), curves.std(axis=0, ddof=1) / np.sqrt(draws)
    return Estimate(value=mean, standard_error=error)
