"""Calibration with case weights, all resamples at once: what a case bootstrap of calibration needs.

Weights are (R, n), the number of times that each of n patients counts in each of R resamples; a row of ones is the
sample itself. Every result is (R,), NaN where it is undefined.
"""

import numpy as np
from numpy.typing import NDArray

from medfuse.metrics.nonparametric import censoring_survival
from medfuse.targets import Survival

Array = NDArray[np.float64]
_EPS = 1e-7
_STEPS = 25


def mean_of(value: Array, weights: Array) -> Array:
    """(R,) weighted means of (n,) values."""
    total = weights.sum(axis=1)
    return np.where(total > 0, weights @ value / np.where(total > 0, total, 1.0), np.nan)


def event_by(survival: Survival, horizon: float, weights: Array) -> Array:
    """(R,) Kaplan-Meier probability of an event by a horizon; NaN where nobody at risk was followed that far."""
    w = np.where(survival.observed, weights, 0.0)
    order = np.argsort(survival.time, kind="stable")
    time, event, w = survival.time[order], survival.event[order], w[:, order]
    times, start = np.unique(time, return_index=True)
    at_risk = np.cumsum(w[:, ::-1], axis=1)[:, ::-1][:, start]
    died = np.add.reduceat(w * event, start, axis=1)
    free = 1.0 - died / np.where(at_risk > 0, at_risk, 1.0)
    reached = free[:, times <= horizon].prod(axis=1)
    followed = (np.where(time >= horizon, w, 0.0).sum(axis=1) > 0) | (reached == 0)
    return np.where(followed, 1.0 - reached, np.nan)


def brier_parts(survival: Survival, horizon: float, *, train: Survival) -> tuple[Array, Array]:
    """(n,) factors of S(t)^2 and of (1 - S(t))^2 in each patient's Brier score at a horizon.

    NaN throughout where the censoring distribution of train reaches 0 before the horizon.

    References:
        Graf, Schmoor, Sauerbrei, Schumacher (1999), section 3, as in :func:`medfuse.metrics.calibration.brier`.
    """
    curve = censoring_survival(train.time[train.observed], train.event[train.observed])
    time = np.where(survival.observed, survival.time, 0.0)
    g_time, g_at = curve(time), float(curve(np.array([horizon]))[0])
    had = survival.event & (time <= horizon) & survival.observed
    if g_at <= 0 or (g_time[had] <= 0).any():
        nothing = np.full(len(survival), np.nan)
        return nothing, nothing
    return np.where(had, 1.0 / np.where(had, g_time, 1.0), 0.0), np.where(time > horizon, 1.0 / g_at, 0.0)


def cox_slopes(survival: Survival, x: Array, weights: Array) -> Array:
    """(R,) coefficients of one covariate in Cox models with case weights (Breslow ties, Newton's method from 1).

    NaN where fewer than two events count, the covariate is constant, or the steps do not come to rest.

    References:
        Cox (1972), Regression models and life-tables.
    """
    known = np.flatnonzero(survival.observed)
    order = known[np.argsort(-survival.time[known], kind="stable")]
    time, event = survival.time[order], survival.event[order].astype(np.float64)
    w, value = weights[:, order].astype(np.float64), x[order]
    if not len(order) or np.ptp(value) < 1e-9:
        return np.full(len(weights), np.nan)
    value = (value - value.mean()) / (scale := float(value.std()))
    last = np.searchsorted(-time, -time, side="right") - 1
    slope, moved = np.full(len(w), scale), np.full(len(w), np.inf)
    for _ in range(_STEPS):
        z = slope[:, None] * value
        risk = w * np.exp(z - z.max(axis=1, keepdims=True))
        total = np.maximum(np.cumsum(risk, axis=1)[:, last], 1e-300)
        mean = np.cumsum(risk * value, axis=1)[:, last] / total
        square = np.cumsum(risk * value**2, axis=1)[:, last] / total
        information = (w * event * (square - mean**2)).sum(axis=1)
        gradient = (w * event * (value - mean)).sum(axis=1)
        moved = np.where(information > 1e-9, gradient / np.maximum(information, 1e-9), np.inf)
        slope = slope + np.where(np.isfinite(moved), np.clip(moved, -2.0, 2.0), 0.0)
        if (np.abs(moved[np.isfinite(moved)]) < 1e-8).all():
            break
    settled = (np.abs(moved) < 1e-4) & ((w * event).sum(axis=1) >= 2)
    return np.where(settled, slope / scale, np.nan)


def logistic_slopes(label: NDArray[np.bool_], probability: Array, weights: Array) -> Array:
    """(R,) slopes of logistic recalibrations with case weights; NaN with one class or a constant probability."""
    p = np.clip(probability, _EPS, 1 - _EPS)
    x, y = np.log(p / (1 - p)), label.astype(np.float64)
    w = weights.astype(np.float64)
    if len(x) == 0 or np.ptp(x) < 1e-9:
        return np.full(len(w), np.nan)
    beta, step = np.tile([0.0, 1.0], (len(w), 1)), np.full((len(w), 2), np.inf)
    for _ in range(_STEPS):
        mu = 1 / (1 + np.exp(-np.clip(beta[:, :1] + beta[:, 1:] * x, -30, 30)))
        v, r = w * mu * (1 - mu), w * (y - mu)
        a, b, c = v.sum(axis=1), v @ x, v @ x**2
        g0, g1 = r.sum(axis=1), r @ x
        det = np.maximum(a * c - b * b, 1e-300)
        step = np.stack([(c * g0 - b * g1) / det, (a * g1 - b * g0) / det], axis=1)
        beta = beta + np.clip(step, -3.0, 3.0)
        if np.abs(step).max() < 1e-8:
            break
    both = ((w @ y) > 0) & ((w @ (1 - y)) > 0) & (np.abs(step).max(axis=1) < 1e-4)
    return np.where(both, beta[:, 1], np.nan)


def linear_slopes(value: Array, predicted: Array, weights: Array) -> Array:
    """(R,) slopes of the weighted regression of values on predictions; NaN for a constant prediction."""
    x, y = predicted[None] - mean_of(predicted, weights)[:, None], value[None] - mean_of(value, weights)[:, None]
    spread = (weights * x * x).sum(axis=1)
    return np.where(spread > 1e-12, (weights * x * y).sum(axis=1) / np.where(spread > 1e-12, spread, 1.0), np.nan)
