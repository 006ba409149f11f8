"""The oracle: what a perfect model and a perfect explanation would say of the synthetic cohort.

The game is the one that explanations play: players are the modalities that a patient has, and a coalition S is worth

    v_t(S) = log(-log E[S(t | latents) | what the modalities in S show]).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError
from medfuse.games import dividends, shapley
from medfuse.metrics.discrimination import Concordance, harrell_c
from medfuse.synthetic.curves import median_survival, positive, values
from medfuse.synthetic.outcomes import draw_survival
from medfuse.synthetic.process import (
    MODALITIES,
    Array,
    Knowledge,
    Latents,
    Process,
    checked_modalities,
    draw_latents,
    knowledge,
    log_hazard,
)


def members(coalition: int, players: Sequence[str] = MODALITIES) -> tuple[str, ...]:
    """Names of the players of a coalition's number."""
    return tuple(name for bit, name in enumerate(players) if coalition >> bit & 1)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True contributions: what a perfect model and a perfect explanation would say.

    Attributes:
        modalities: the M names, in the order of the axes.
        times: (t,) days.
        present: (n, M) bool, the players of each patient.
        nobody, everybody: (n, t) v_t of no modality and of all that the patient has.
        contributions: (n, M, t) Shapley values; NaN where absent: an absent modality is no player.
        dividends: (n, 2^M, t) Harsanyi dividends, coalitions numbered by the bits of ``modalities``; NaN where a member
            is absent; entry 0 is ``nobody``.
    """

    modalities: tuple[str, ...]
    times: Array
    present: NDArray[np.bool_]
    nobody: Array
    everybody: Array
    contributions: Array
    dividends: Array

    def dividend(self, *names: str) -> Array:
        """(n, t) the dividend of one coalition.

        Raises:
            ConfigError: a name that is no modality.
        """
        have = checked_modalities(names)
        return np.asarray(self.dividends[:, sum(1 << self.modalities.index(name) for name in have)])


def truth(
    process: Process,
    latents: Latents,
    times: Sequence[float] | Array,
    *,
    present: NDArray[np.bool_] | None = None,
) -> Truth:
    """Exact Shapley values and dividends of every patient.

    Args:
        process: of the cohort.
        latents: of its n patients.
        times: (t,) days.
        present: (n, M) which modalities each patient has, in the order of ``MODALITIES``; default: all. That a
            modality is absent says nothing in this game, also where it would (missing not at random).

    Raises:
        ConfigError: as :func:`values`, or ``present`` of another shape.
    """
    at, n, m = positive(times), len(latents), len(MODALITIES)
    has = np.ones((n, m), dtype=bool) if present is None else _checked_present(present, n)
    known: dict[Knowledge, Array] = {}
    for coalition in range(1 << m):
        what = knowledge(members(coalition))
        if what not in known:
            known[what] = values(process, latents, at, known=members(coalition))
    phi, harsanyi = np.full((n, m, len(at)), np.nan), np.full((n, 1 << m, len(at)), np.nan)
    everybody = np.empty((n, len(at)))
    patterns, which = np.unique(has, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, players = np.flatnonzero(which.ravel() == number), np.flatnonzero(pattern)
        coalitions = [_of(c, players) for c in range(1 << len(players))]
        game = np.stack([known[knowledge(members(c))][rows] for c in coalitions])
        phi[np.ix_(rows, players)] = shapley(game).transpose(1, 0, 2)
        harsanyi[np.ix_(rows, np.asarray(coalitions))] = dividends(game).transpose(1, 0, 2)
        everybody[rows] = game[-1]
    nobody = known[knowledge(())]
    return Truth(
        modalities=MODALITIES,
        times=at,
        present=has,
        nobody=nobody,
        everybody=everybody,
        contributions=phi,
        dividends=harsanyi,
    )


def _checked_present(present: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    has = np.asarray(present)
    if has.shape != (n, len(MODALITIES)) or has.dtype != bool:
        msg = f"oracle: expected present as bool ({n}, {len(MODALITIES)}), found {has.dtype} {has.shape}"
        raise ConfigError(msg)
    return has


def _of(coalition: int, players: NDArray[np.intp]) -> int:
    """The number of a coalition among some players, counted among all modalities."""
    return sum(1 << int(player) for bit, player in enumerate(players) if coalition >> bit & 1)


# --- the best C-index -----------------------------------------------------------------------------------------------


def best_c(
    process: Process,
    *,
    known: Collection[str] = MODALITIES,
    n: int = 20_000,
    seed: int = 0,
    censored: float = 0.4,
    follow_up: float = 1826.0,
) -> Concordance:
    """The highest Harrell C that any score made of the modalities ``known`` can have in expectation, by simulation.

    Where everybody shows the same modalities, the unknown part of the log hazard has one distribution for all, and
    ranking by the known part orders every pair as likely as can be (Neyman-Pearson on pairs).

    Args:
        process: of the cohort.
        known: the modalities that everybody has.
        n: number of simulated patients; the standard error is in the result.
        seed: of the simulation.
        censored: as in :func:`medfuse.synthetic.simulate`; Harrell's C depends on the censoring.
        follow_up: likewise.

    Raises:
        ConfigError: a name that is no modality, or a share of censored patients that the process cannot give.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    latents = draw_latents(process, n, rng)
    outcome = draw_survival(process, latents, rng, censored=censored, follow_up=follow_up)
    return harrell_c(outcome, log_hazard(process, latents, known=known))


def best_score(process: Process, latents: Latents, present: NDArray[np.bool_], *, at: float | None = None) -> Array:
    """(n,) risk scores for patients who have different modalities: v_t of what each shows, at one time.

    Within one pattern of modalities this is the best order there is. Between patterns the better order of two patients
    can depend on the time, so that the score is the best one for risk at ``at`` and nearly so for Harrell's C. Where
    absence itself tells something (missing not at random), a model that uses it may do better.

    Args:
        process: of the cohort.
        latents: of its n patients.
        present: (n, M) bool, in the order of ``MODALITIES``.
        at: days; default: the median survival of the population.

    Raises:
        ConfigError: ``present`` of another shape, or a time that is not positive.
    """
    when = np.array([median_survival(process) if at is None else at])
    has = _checked_present(present, len(latents))
    score = np.empty(len(latents))
    patterns, which = np.unique(has, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which.ravel() == number)
        known = [name for name, there in zip(MODALITIES, pattern, strict=True) if there]
        score[rows] = values(process, latents.take(rows), when, known=known)[:, 0]
    return score
