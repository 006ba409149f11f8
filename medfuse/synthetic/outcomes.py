"""Times and censoring of the synthetic cohort, and who lacks which modality."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from medfuse.errors import ConfigError
from medfuse.synthetic.curves import population_curve
from medfuse.synthetic.process import MODALITIES, SHOWS, Array, Latents, Process, checked_modalities, log_hazard
from medfuse.targets import Survival

Mechanism = Literal["none", "mcar", "mar", "mnar"]
MAR_DRIVER = "ehr"  # the modality that everybody has under MAR, and whose content decides who lacks the others


# --- times ----------------------------------------------------------------------------------------------------------


def censored_share(process: Process, *, drop_out: float, follow_up: float) -> float:
    """Share of patients without an event, at a drop-out rate per day and an end of the study after ``follow_up`` days.

    P(event) = 1 - S(c) exp(-r c) - integral over 0..c of r exp(-r t) S(t) dt, by the trapezoid rule.
    """
    return _censored(*_population(process, follow_up), drop_out=drop_out)


def _population(process: Process, follow_up: float) -> tuple[Array, Array]:
    """(4001,) days from 0 to the end of the study, and the survival of the population at them."""
    grid = np.linspace(0, follow_up, 4001)[1:]
    return np.concatenate([[0.0], grid]), np.concatenate([[1.0], population_curve(process, grid)])


def _censored(at: Array, curve: Array, *, drop_out: float) -> float:
    integral = float(np.trapezoid(drop_out * np.exp(-drop_out * at) * curve, at))
    return float(curve[-1] * np.exp(-drop_out * at[-1])) + integral


def drop_out_rate(process: Process, *, censored: float, follow_up: float) -> float:
    """The drop-out rate per day that leaves a share ``censored`` of the patients without an event.

    Raises:
        ConfigError: the end of the study alone censors more, or the share is not below 0.99.
    """
    at, curve = _population(process, follow_up)
    least = _censored(at, curve, drop_out=0.0)
    if not least <= censored <= 0.99:
        msg = (
            f"simulate: expected a share of censored patients between {least:.3f} (what follow_up={follow_up:g} days "
            f"censor by themselves) and 0.99, found {censored:g}; follow patients longer, or ask for more"
        )
        raise ConfigError(msg)

    def excess(rate: float) -> float:
        return _censored(at, curve, drop_out=rate) - censored

    highest = 1 / follow_up
    while excess(highest) < 0:
        highest *= 2
    return float(brentq(excess, 0.0, highest, xtol=1e-12))


def draw_survival(
    process: Process, latents: Latents, rng: np.random.Generator, *, censored: float, follow_up: float
) -> Survival:
    """Weibull times, exponential drop-out and the end of the study; drop-out is independent of everything.

    Raises:
        ConfigError: as :func:`drop_out_rate`.
    """
    rate = drop_out_rate(process, censored=censored, follow_up=follow_up)
    n = len(latents)
    time = process.scale * (rng.exponential(size=n) / np.exp(log_hazard(process, latents))) ** (1 / process.shape)
    left = np.minimum(rng.exponential(size=n) / rate if rate > 0 else np.inf, follow_up)
    return Survival(event=np.asarray(time <= left), time=np.minimum(time, left))


# --- who lacks what -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Missing:
    """How whole modalities come to be absent.

    Attributes:
        mechanism: ``none``; ``mcar``: by chance; ``mar``: by the creatinine slope, which everybody then has; ``mnar``:
            by the very thing the modality would have shown.
        rate: share of patients without each modality, or one share per modality (others: 0). Under MAR the EHR is
            never absent, and a single number leaves it out.
        strength: log odds of absence per standard deviation of what decides (MAR, MNAR); negative: the other way.

    Raises:
        ConfigError: an unknown mechanism or modality, a rate outside 0..0.95, or an absent EHR under MAR.
    """

    mechanism: Mechanism = "none"
    rate: float | Mapping[str, float] = 0.3
    strength: float = 1.5
    rates: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        if self.mechanism not in ("none", "mcar", "mar", "mnar"):
            msg = f"Missing: expected the mechanism none, mcar, mar or mnar, found {self.mechanism!r}"
            raise ConfigError(msg)
        rates = dict(self.rate) if isinstance(self.rate, Mapping) else dict.fromkeys(MODALITIES, float(self.rate))
        checked_modalities(rates)
        if self.mechanism == "mar":
            if isinstance(self.rate, Mapping) and rates.get(MAR_DRIVER, 0) > 0:
                msg = f"Missing: under mar everybody has {MAR_DRIVER}, whose content decides; found a rate for it"
                raise ConfigError(msg)
            rates[MAR_DRIVER] = 0.0
        if self.mechanism == "none":
            rates = {}
        if not all(0 <= rate <= 0.95 for rate in rates.values()) or not np.isfinite(self.strength):
            msg = "Missing: expected rates within 0..0.95 and a finite strength, found others"
            raise ConfigError(msg)
        object.__setattr__(self, "rates", {name: rates.get(name, 0.0) for name in MODALITIES})


def _probabilities(drive: Array, rate: float, strength: float) -> Array:
    """expit(a + strength * drive) with the a that makes its mean the rate."""

    def excess(intercept: float) -> float:
        return float(expit(intercept + strength * drive).mean()) - rate

    reach = 50 + abs(strength) * float(np.abs(drive).max(initial=0))
    return np.asarray(expit(brentq(excess, -reach, reach) + strength * drive))


def draw_present(missing: Missing, latents: Latents, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n, M) True where a patient has the modality, in the order of ``MODALITIES``."""
    n = len(latents)
    present = np.ones((n, len(MODALITIES)), dtype=bool)
    for m, name in enumerate(MODALITIES):
        chance, rate = rng.random(n), missing.rates[name]  # drawn in any case, so that a rate of 0 moves no other draw
        if rate > 0 and n:
            drive = getattr(latents, SHOWS[MAR_DRIVER] if missing.mechanism == "mar" else SHOWS[name])
            mcar = missing.mechanism == "mcar"
            present[:, m] = chance >= (rate if mcar else _probabilities(drive, rate, missing.strength))
    return present
