"""What each modality contributed to each patient's prediction, with the spread between replicates.

Exact Shapley values of the game of :mod:`medfuse.explain.coalitions`. An absent modality is no player: it has no
contribution (NaN), and what it could add is another question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ModelError
from medfuse.games import dividends, inter_shap, interaction_share, interactions, shapley

if TYPE_CHECKING:  # what reads stored values does not load a network library
    from medfuse.explain.coalitions import Coalitions

Array = NDArray[np.float64]
_SUM = 1e-6


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Contributions of M modalities to the predictions of n patients, at one horizon or (trailing L) at all times.

    Attributes:
        modalities: the M names.
        scale: ``link`` or ``risk``.
        horizon: days, or None.
        label: index of the class, or None.
        contribution: (n, M[, L]) Shapley values, NaN where absent.
        low, high: (n, M[, L]) 5th and 95th percentile over the replicates.
        nobody, everybody: (n[, L]) values of no modality and of all that the patient has; the contributions sum to
            their difference.
        dividend: (n, 2^M[, L]) Harsanyi dividends, NaN for coalitions with absent modalities and for entry 0.
        interaction: (n, M, M[, L]) Shapley interaction matrix, NaN where absent.
        interaction_share: (n[, L]) part of the absolute dividends that needs two modalities or more.
        inter_shap: (n[, L]) the same of the interaction matrix, as the literature prints it.

    Raises:
        ModelError: the contributions of a patient do not sum to what they must.
    """

    modalities: tuple[str, ...]
    scale: str
    horizon: float | None
    label: int | None
    contribution: Array
    low: Array
    high: Array
    nobody: Array
    everybody: Array
    dividend: Array
    interaction: Array
    interaction_share: Array
    inter_shap: Array

    def __post_init__(self) -> None:
        gap = np.abs(np.nansum(self.contribution, axis=1) - (self.everybody - self.nobody))
        if gap.size and not gap.max() <= _SUM:
            msg = f"contributions: expected sums equal to the difference they explain, found a gap of {gap.max():.2g}"
            raise ModelError(msg)


def contributions(
    coalitions: "Coalitions", *, horizon: float | None = None, label: int | None = None, scale: str = "link"
) -> Contributions:
    """Shapley values, dividends and interactions of every patient.

    Args:
        coalitions: of :func:`medfuse.explain.coalition_values`, or read from a run.
        horizon: days; None: at all times, or of an outcome that has none.
        label: index of one class of a multi-class outcome.
        scale: ``link`` (log cumulative hazard, log odds, value), on which an additive model is additive, or ``risk``.

    Raises:
        ConfigError: an unknown scale or a horizon that the outcome does not have.
    """
    game = _single(coalitions.game(horizon=horizon, label=label, scale=scale), coalitions)  # (2^M, n[, L])
    each = _single(coalitions.replicate_games(horizon=horizon, label=label, scale=scale), coalitions)
    spread = shapley(each)  # (M, R, n[, L])
    absent = ~coalitions.present  # (n, M)
    k = len(coalitions.modalities)
    lost = np.array([[absent[:, i] | absent[:, j] for j in range(k)] for i in range(k)])
    needs = (np.arange(1 << k)[:, None] >> np.arange(k)) & 1  # (2^M, M)
    without = (absent @ needs.T.astype(np.int64)) > 0  # (n, 2^M) some member is absent
    without[:, 0] = True
    found = dividends(game)
    return Contributions(
        modalities=coalitions.modalities,
        scale=scale,
        horizon=horizon,
        label=label,
        contribution=_blank(np.moveaxis(shapley(game), 0, 1), absent),
        low=_blank(np.moveaxis(np.quantile(spread, 0.05, axis=1), 0, 1), absent),
        high=_blank(np.moveaxis(np.quantile(spread, 0.95, axis=1), 0, 1), absent),
        nobody=game[0],
        everybody=game[-1],
        dividend=_blank(np.moveaxis(found, 0, 1), without),
        interaction=_blank(np.moveaxis(interactions(game), 2, 0), np.moveaxis(lost, 2, 0)),
        interaction_share=interaction_share(game),
        inter_shap=inter_shap(game),
    )


def _single(game: Array, coalitions: "Coalitions") -> Array:
    """Without the axis of times where there is only one number per patient: log odds or a value."""
    return game[..., 0] if coalitions.kind in ("binary", "continuous") else game


def _blank(values: Array, where: NDArray[np.bool_]) -> Array:
    shape = where.shape + (1,) * (values.ndim - where.ndim)
    return np.where(where.reshape(shape), np.nan, values)


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Contributions of one modality over patients, with 95 % bootstrap intervals over the patients who have it.

    Attributes:
        modality: its name.
        patients: how many have it.
        mean_absolute: (value, low, high) mean of absolute contributions.
        share: (value, low, high) part of the absolute contributions of all modalities, over all patients.
        mean: (value, low, high) mean of signed contributions.
    """

    modality: str
    patients: int
    mean_absolute: tuple[float, float, float]
    share: tuple[float, float, float]
    mean: tuple[float, float, float]


def importance(found: Contributions, *, resamples: int = 1000, seed: int = 0) -> list[Importance]:
    """Mean absolute contribution, share and mean of every modality; see :func:`importance_of`.

    Raises:
        ModelError: contributions at several times.
    """
    return importance_of(found.contribution, found.modalities, resamples=resamples, seed=seed)


def importance_of(
    contribution: Array, modalities: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> list[Importance]:
    """Mean absolute contribution, share and mean of every modality; NaN where nobody has it.

    Absolute values are taken per patient, before the mean: signs must not cancel between patients.

    Args:
        contribution: (n, M) at one horizon, NaN where absent.
        modalities: the M names.
        resamples: of the case bootstrap.
        seed: of the bootstrap.

    Raises:
        ModelError: contributions at several times.
    """
    if contribution.ndim != 2:
        msg = "importance: expected contributions at one horizon, found several times; pass horizon="
        raise ModelError(msg)
    n, has = len(contribution), ~np.isnan(contribution)
    value, size = np.where(has, contribution, 0.0), np.where(has, np.abs(contribution), 0.0)
    weight = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) if n else np.zeros((0, 0))
    weight = np.concatenate([np.ones((1, n)), weight])  # row 0: the patients themselves
    with np.errstate(divide="ignore", invalid="ignore"):
        count, total = weight @ has, weight @ size
        figures = {
            "mean_absolute": total / count,
            "share": total / total.sum(axis=1, keepdims=True),
            "mean": weight @ value / count,
        }
    return [
        Importance(
            modality=name,
            patients=int(has[:, i].sum()),
            **{key: _interval(draws[:, i]) for key, draws in figures.items()},
        )
        for i, name in enumerate(modalities)
    ]


def _interval(draws: Array) -> tuple[float, float, float]:
    known = draws[1:][np.isfinite(draws[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return float(draws[0]), float(low), float(high)
