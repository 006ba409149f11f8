"""Values of coalitions made to mean what they say: slope and level of each, from patients that no member saw.

A model that was shown half of a patient is another model. Its predictions from a coalition S are compared with the
outcomes of all training patients who have S, shown S alone, and moved on the link scale until they agree; without that,
the difference between two coalitions would hold the difference of two calibrations, too.

A survival outcome's slope changes in time: where a strong modality is hidden, those who have it worst leave first, and
what the others say is worth less from year to year, also when the hazards of the whole model are proportional.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medfuse.explain.coalitions import RECALIBRATED, Coalitions
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.targets import Labels, Survival, Target
from medfuse.training.recalibration import LARGEST_SLOPE, match_curve, recalibrate

Array = NDArray[np.float64]
LEAST_EVENTS = 20
_TOWARDS_PROPORTIONAL = 4.0  # weight of the square of the slope's change in time: a standard deviation of 1/2
_LEAST_UNCENSORED = 0.05  # below it, weights by inverse censoring grow no further
_EDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class SubsetRecalibration:
    """Of each coalition, on the link scale: value -> level + slope * value.

    Attributes:
        slope: (2^M, L) 0 where a coalition orders patients wrongly; 1 where it was not fitted; over time, a straight
            line in the part of patients who have had the event.
        level: (2^M, L).
        fitted: (2^M,) bool, where enough events were seen.
    """

    slope: Array
    level: Array
    fitted: NDArray[np.bool_]


def unfitted(values: Coalitions) -> SubsetRecalibration:
    """One that moves nothing, for values whose training patients cannot be asked."""
    c, width = values.values.shape[1:]
    return SubsetRecalibration(slope=np.ones((c, width)), level=np.zeros((c, width)), fitted=np.zeros(c, dtype=bool))


def moves(found: SubsetRecalibration, shown: NDArray[np.int64], owned: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which coalitions ``shown`` of patients who own ``owned`` are moved: those fitted, but for all that one owns."""
    return np.asarray(found.fitted[shown] & (shown != owned))


def subset_recalibration(unseen: Coalitions, target: Target) -> SubsetRecalibration:
    """Fit every coalition with at least 20 events among patients who have all of it.

    A binary outcome's log odds are fitted as the two centred log probabilities they stand for.

    Args:
        unseen: of :func:`medfuse.explain.gate.unseen_values`: training patients, by members that never saw them.
        target: of the same patients.
    """
    m = len(unseen.modalities)
    owned = unseen.present @ (1 << np.arange(m))
    c, width = unseen.values.shape[1:]
    slope, level, fitted = np.ones((c, width)), np.zeros((c, width)), np.zeros(c, dtype=bool)
    for number in range(c):
        rows = np.flatnonzero((owned & number == number) & target.observed)
        known = target.take(rows)
        if not _enough(known):
            continue
        link = unseen.values[rows, number]
        if unseen.kind == "binary":
            both, found = recalibrate(known, np.concatenate([-link / 2, link / 2], axis=1))
            slope[number], level[number] = both, found[1:] - found[:1]
        elif isinstance(known, Survival) and unseen.times is not None:
            slope[number], level[number] = _over_time(known, link, np.asarray(unseen.times))
        else:
            slope[number], level[number] = recalibrate(known, link)
            if unseen.kind == "multiclass":
                level[number] -= level[number].mean()  # links of classes are centred
        fitted[number] = True
    return SubsetRecalibration(slope=slope, level=level, fitted=fitted)


def _over_time(survival: Survival, link: Array, times: Array) -> tuple[Array, Array]:
    """(L,) slopes and levels of log cumulative hazards (n, L), with which the mean curve is the life table's.

    References:
        Scheike, Zhang, Gerds (2008), Predicting cumulative incidence probability by direct binomial regression, eq. 3:
        event by each time, weighted by inverse censoring; here with the link log(-log S). Struthers and Kalbfleisch
        (1986), Misspecified proportional hazard models: why the slope falls. NOTE[DIFF]: levels are those of the life
        table, as elsewhere.
    """
    centre = link.mean(axis=0)
    deviation = link - centre
    slope = np.zeros(len(times))
    if np.ptp(deviation, axis=0).max() > 1e-9:  # else the same of everybody, as of no modality
        first, change, place = _slope_line(survival, deviation, times)
        slope = np.clip(first + change * place, 0.0, LARGEST_SLOPE)
    return slope, match_curve(slope * deviation, survival, times=times) - slope * centre


def _slope_line(survival: Survival, deviation: Array, times: Array) -> tuple[float, float, Array]:
    """Slope in the middle, its change, and (L,) place of each time from -1/2 to 1/2: Fisher scoring, levels free."""
    known = np.clip(kaplan_meier(survival.time, survival.event)(times), _EDGE, 1 - _EDGE)
    place = (1 - known) / (1 - known[-1]) - 0.5
    time = survival.time[:, None]
    had = survival.event[:, None] & (time <= times)
    free = kaplan_meier(survival.time, ~survival.event)
    before = np.nextafter(np.minimum(time, times), 0.0)
    uncensored = np.maximum(free(before.ravel()).reshape(before.shape), _LEAST_UNCENSORED)
    weight = np.where(had | (time > times), 1 / uncensored, 0.0) / len(times)
    line, level = np.array([1.0, 0.0]), np.log(-np.log(known))
    for _ in range(50):
        link = np.clip(level + (line[0] + line[1] * place) * deviation, -30.0, 3.0)
        hazard = np.exp(link)
        risk = np.maximum(-np.expm1(-hazard), 1e-12)
        score = weight * (had - risk) * hazard / risk
        size = weight * hazard**2 * np.exp(-hazard) / risk
        own, cross = size.sum(axis=0) + 1e-9, (size * deviation).sum(axis=0)
        left = (size * deviation**2).sum(axis=0) - cross**2 / own
        pull = (score * deviation).sum(axis=0) - cross * score.sum(axis=0) / own
        power = np.stack([np.ones_like(place), place])
        information = (power * left) @ power.T + np.diag([1e-6, _TOWARDS_PROPORTIONAL])
        gradient = power @ pull - np.array([0.0, _TOWARDS_PROPORTIONAL * line[1]])
        step = np.clip(np.linalg.solve(information, gradient), -1.0, 1.0)
        line = line + step
        level = level + np.clip((score.sum(axis=0) - cross * (step @ power)) / own, -1.0, 1.0)
        if np.abs(step).max() < 1e-8:
            break
    return float(line[0]), float(line[1]), place


def _enough(target: Target) -> bool:
    if isinstance(target, Survival):
        return target.n_events >= LEAST_EVENTS
    if isinstance(target, Labels):
        return len(target) > 0 and int(np.bincount(target.label, minlength=len(target.classes)).min()) >= LEAST_EVENTS
    return len(target) >= LEAST_EVENTS


def recalibrated(values: Coalitions, found: SubsetRecalibration) -> Coalitions:
    """The same patients with every coalition moved to what it means, except what they have in full.

    The value of all that a patient has stays the link of the model's own prediction, to the last bit.
    """
    m = len(values.modalities)
    owned = values.present @ (1 << np.arange(m))
    shown = np.arange(1 << m)[None, :] & owned[:, None]  # (n, 2^M) what remains of each coalition
    move = moves(found, shown, owned[:, None])

    def moved(link: Array) -> Array:
        there = found.level[shown] + found.slope[shown] * link
        there = np.maximum.accumulate(there, axis=-1) if values.kind == "survival" else there
        return np.where(move[..., None], there, link)

    replicates = moved(np.asarray(values.replicates, dtype=np.float64)).astype(np.float32)
    meaning = RECALIBRATED if found.fitted.any() else values.meaning
    return replace(values, values=moved(values.values), replicates=replicates, meaning=meaning)


def cross_fitted(unseen: Coalitions, target: Target, parts: Sequence[int]) -> Coalitions:
    """Values of training patients, recalibrated by the other inner folds: what a record of calibration may judge.

    Args:
        unseen: of :func:`medfuse.explain.gate.unseen_values`.
        target: of the same patients.
        parts: numbers of patients of each inner fold, in order.
    """
    edges = np.concatenate([[0], np.cumsum(parts)])
    values, replicates = np.array(unseen.values), np.array(unseen.replicates)
    for start, end in itertools.pairwise(edges):
        here, others = np.arange(start, end), np.delete(np.arange(edges[-1]), slice(start, end))
        if len(here) and len(others):
            fit = subset_recalibration(unseen.take(others), target.take(others))
            moved = recalibrated(unseen.take(here), fit)
            values[here], replicates[:, here] = moved.values, moved.replicates
    return replace(unseen, values=values, replicates=replicates, meaning=RECALIBRATED)
