"""Slope and level of a link, from predictions of patients that no member was fitted on."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.losses import discrete_hazard_prior
from medfuse.targets import Labels, Survival, Target

Array = NDArray[np.float64]
LARGEST_SLOPE = 5.0
_EDGE = 1e-6


def recalibrate(
    target: Target, deviation: Array, *, times: Array | None = None, towards_one: float = 0.0
) -> tuple[float, Array]:
    """Slope and level of a deviation (n, L) that no patient here was used to fit.

    Survival: the slope is that of a Cox model of the mean deviation, the level makes the mean curve equal the life
    table's at every time. Classes: slope and levels maximise the likelihood. Values: least squares. No slope is
    negative: a deviation that orders patients wrongly says nothing.

    Args:
        target: n patients.
        deviation: (n, L).
        times: (L,) days of a survival outcome.
        towards_one: precision of a normal prior of the slope, with mean 1; of classes and values only.

    References:
        Cox (1958), Two further applications of a model for binary regression; van Houwelingen (2000), Validation,
        calibration, revision and combination of prognostic survival models, section 3.
    """
    seen = np.flatnonzero(target.observed)
    known, x = target.take(seen), deviation[seen]
    if isinstance(known, Survival):
        slope = cox_slope(known, x.mean(axis=1))
        return slope, match_curve(slope * x, life_table(known, np.asarray(times)))
    if isinstance(known, Labels):
        counts = np.bincount(known.label, minlength=len(known.classes)) + 0.5
        frequency = np.asarray(counts / counts.sum(), dtype=np.float64)
        slope = _golden(lambda s: towards_one / 2 * (s - 1) ** 2 - _log_likelihood(known.label, s * x, frequency))
        return slope, match_classes(slope * x, frequency)
    value, column = known.value, x[:, 0]
    pull = towards_one * float(value.var()) / max(len(value), 1)
    variance = float(column.var()) + pull
    shared = float(((column - column.mean()) * (value - value.mean())).mean()) + pull
    slope = max(0.0, shared / variance) if variance else 0.0
    return slope, np.array([value.mean() - slope * column.mean()])


def cox_slope(survival: Survival, score: Array) -> float:
    """Coefficient of a score in a Cox model of its own, within [0, 5]: 0 when the score orders patients wrongly.

    Args:
        survival: n patients, all observed.
        score: (n,) higher = earlier.

    References:
        Cox (1972), Regression models and life-tables; Breslow's likelihood for ties, Newton's method.
    """
    order = np.argsort(-survival.time, kind="stable")
    time, event = survival.time[order], survival.event[order].astype(np.float64)
    x = score[order] - score.mean()
    last = np.searchsorted(-time, -time, side="right") - 1  # the risk set of a time holds everyone with that time
    slope = 0.0
    for _ in range(50):
        weight = np.exp(slope * x - (slope * x).max())
        total = np.cumsum(weight)[last]
        mean = np.cumsum(weight * x)[last] / total
        square = np.cumsum(weight * x * x)[last] / total
        information = float((event * (square - mean**2)).sum())
        if information <= 1e-12:
            break
        step = float((event * (x - mean)).sum()) / information
        slope = float(np.clip(slope + np.clip(step, -1, 1), 0, LARGEST_SLOPE))
        if abs(step) < 1e-10:
            break
    return slope


def life_table(survival: Survival, times: Array) -> Array:
    """(t,) survival at each of ``times``, of patients who are all observed."""
    event, time = torch.from_numpy(survival.event), torch.from_numpy(survival.time)
    prior = discrete_hazard_prior(event, time, torch.from_numpy(times)).numpy()
    return np.asarray(np.cumprod(1 / (1 + np.exp(prior))))


def match_curve(link: Array, survival: Array) -> Array:
    """(t,) levels at which the mean of exp(-exp(level + link)) is ``survival`` (t,) at each time."""
    wanted = np.clip(survival, _EDGE, 1 - _EDGE)
    low, high = np.full(len(wanted), -60.0), np.full(len(wanted), 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = np.exp(-np.exp(middle + link)).mean(axis=0) > wanted
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum.accumulate((low + high) / 2)


def softmax(link: Array) -> Array:
    """(n, K) probabilities of links (n, K)."""
    weight = np.exp(link - link.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def match_classes(link: Array, frequency: Array) -> Array:
    """(K,) levels at which the mean probabilities are the class frequencies."""
    level = np.log(frequency)
    for _ in range(100):
        step = np.log(frequency) - np.log(softmax(level + link).mean(axis=0))
        level = level + step
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(level)


def _log_likelihood(label: NDArray[np.int64], link: Array, frequency: Array) -> float:
    probability = softmax(match_classes(link, frequency) + link)
    return float(np.log(np.maximum(probability[np.arange(len(label)), label], 1e-300)).sum())


def _golden(loss: Callable[[float], float]) -> float:
    """Where a function with one minimum on [0, 5] is least, to 1e-4: golden section."""
    ratio = (np.sqrt(5) - 1) / 2
    low, high = 0.0, LARGEST_SLOPE
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    while high - low > 1e-4:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = loss(b)
    middle = (low + high) / 2
    return middle if loss(middle) < loss(0.0) else 0.0
