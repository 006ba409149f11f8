"""A lower bound on survival time that holds whatever the model: split conformal prediction under censoring."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError
from medfuse.metrics.nonparametric import censoring_survival
from medfuse.prediction import Prediction
from medfuse.targets import Survival

Array = NDArray[np.float64]
MINIMUM = 100  # calibration patients below which the bound abstains


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far the model's own quantiles had to be moved for some group of patients.

    Attributes:
        patients: calibration patients of the group.
        shift: days taken off the model's quantile; infinite when the group is too small to say anything.
    """

    patients: int
    shift: float


@dataclass(frozen=True, kw_only=True)
class ConformalBound:
    """Lower bounds on survival time, calibrated by availability pattern.

    Attributes:
        level: probability with which the bound holds, on average over patients of the pattern.
        cutoff: c0 in days, the 90th percentile of follow-up: no bound goes beyond it.
        modalities: names, in the order of a pattern.
        patterns: pattern (one flag per modality) -> calibration, of the patterns with at least 100 patients.
        minimum: patients below which a pattern abstains.
    """

    level: float
    cutoff: float
    modalities: tuple[str, ...]
    patterns: Mapping[tuple[bool, ...], Calibration]
    minimum: int = MINIMUM


def quantile_time(survival: Array, times: Array, level: float) -> Array:
    """(n,) days at which curves (n, t) fall to ``level``: linear between grid edges, the last edge when they do not."""
    grid = np.concatenate([[0.0], times])
    curves = np.concatenate([np.ones((len(survival), 1)), survival], axis=1)
    below = curves <= level
    right = np.where(below.any(axis=1), below.argmax(axis=1), len(grid) - 1)
    rows, left = np.arange(len(curves)), np.maximum(right - 1, 0)
    high, low = curves[rows, left], curves[rows, right]
    part = np.divide(high - level, high - low, out=np.ones(len(curves)), where=high > low)
    return np.asarray(grid[left] + np.clip(part, 0.0, 1.0) * (grid[right] - grid[left]))


def conformal_bound(
    out_of_fold: Prediction, target: Survival, *, level: float = 0.9, minimum: int = MINIMUM
) -> ConformalBound:
    """Calibrate a lower bound on survival time with predictions of patients that the models never saw.

    With m = min(time, c0), a patient is usable when the event was seen before c0 or follow-up reached it, scores
    q(x) - m, where q is the model's own (1 - level) quantile up to c0, and weighs 1 / G(m-), G being the distribution
    of censoring.

    Args:
        out_of_fold: n patients with curves, such as ``FoldModel.out_of_fold``.
        target: of the same patients.
        level: probability that the time lies above the bound.
        minimum: patients of an availability pattern below which it abstains.

    Raises:
        ConfigError: predictions without curves, or a level outside (0, 1).

    References:
        Candès, Lei, Ren (2023), Conformalized survival analysis, section 3; Gui et al. (2024), Conformalized survival
        analysis with adaptive cut-offs. NOTE[DIFF]: weights are of the marginal censoring distribution, and a patient
        counts when min(time, c0) is known, which also uses events before c0 under random drop-out.
    """
    if out_of_fold.survival is None or out_of_fold.times is None or not 0 < level < 1:
        msg = f"conformal bound: expected survival curves and a level within 0 and 1, found level {level}"
        raise ConfigError(msg)
    known = target.observed
    cutoff = float(np.quantile(target.time[known], 0.9))
    censoring = censoring_survival(target.time[known], target.event[known])
    reached = np.minimum(target.time, cutoff)
    usable = known & (target.event | (target.time >= cutoff))
    # Nothing beyond c0 can be checked, so the model's quantile stops there, too; else the bound would be too careful.
    score = np.minimum(quantile_time(out_of_fold.survival, out_of_fold.times, level), cutoff) - reached
    weight = 1 / np.maximum(censoring.left(reached), 1e-12)
    patterns = {}
    for pattern in np.unique(out_of_fold.present, axis=0):
        own = (out_of_fold.present == pattern).all(axis=1)
        if int((own & known).sum()) >= minimum:
            rows = own & usable
            shift = _upper_quantile(score[rows], weight[rows], level)
            patterns[tuple(bool(p) for p in pattern)] = Calibration(patients=int((own & known).sum()), shift=shift)
    return ConformalBound(
        level=level, cutoff=cutoff, modalities=out_of_fold.modalities, patterns=patterns, minimum=minimum
    )


def _upper_quantile(score: Array, weight: Array, level: float) -> float:
    """Weighted quantile with one more unit of mass at infinity, for the patient to come."""
    order = np.argsort(score, kind="stable")
    mass = np.cumsum(weight[order])
    enough = np.flatnonzero(mass >= level * (weight.sum() + 1.0))
    return float(score[order][enough[0]]) if len(enough) else float("inf")


def lower_bound(bound: ConformalBound, prediction: Prediction) -> Array:
    """(n,) days that a patient's time exceeds with the bound's probability; NaN where the bound abstains.

    Raises:
        ConfigError: predictions without curves, or of other modalities.
    """
    if prediction.survival is None or prediction.modalities != bound.modalities:
        msg = (
            f"conformal bound: expected survival curves from modalities {', '.join(bound.modalities)}, found "
            f"{', '.join(prediction.modalities)}"
        )
        raise ConfigError(msg)
    own = np.minimum(quantile_time(prediction.survival, cast(Array, prediction.times), bound.level), bound.cutoff)
    found = [bound.patterns.get(tuple(bool(p) for p in row)) for row in prediction.present]
    shift = np.array([np.nan if one is None else one.shift for one in found])
    return np.asarray(np.clip(own - shift, 0.0, bound.cutoff))
