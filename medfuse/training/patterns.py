"""What a prediction from some of the modalities means: slope and level of each availability pattern.

A model that was shown half of a patient is another model, and where hardly any training patient lacked what is hidden,
nothing has told it how much less it knows. Its predictions from a pattern S, of all training patients who have S, shown
S alone, by members that never saw them, are moved on the link scale until outcomes follow them with slope 1 and their
mean is what the same patients are told from all that they have. No level is fitted to outcomes: where S was measured in
those who fare better, that would make the absence of S a risk factor. The more patients have exactly S, the more the
level is one that keeps their own mean: the model was fitted on them, and what it made of the absence of the rest stays.

A survival outcome's slope changes in time: where a strong modality is hidden, those who have it worst leave first, and
what the others say is worth less from year to year, also when the hazards of the whole model are proportional.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.targets import Labels, Survival, Target
from medfuse.training.recalibration import LARGEST_SLOPE, match_classes, match_curve, recalibrate, softmax

Array = NDArray[np.float64]
MOST_MODALITIES = 8  # of which every subset is asked
LEAST_EVENTS = 20
_TOWARDS_ONE = 16.0  # precision of slopes and of their change in time: a standard deviation of 1/4
_LEAST_UNCENSORED = 0.05  # below it, weights by inverse censoring grow no further
_EDGE = 1e-6
_SAME = 1e-6  # difference of links that is rounding


def pattern_number(shown: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(...,) number of each availability pattern (..., M): modality i is shown where bit i is set."""
    return np.asarray(shown @ (1 << np.arange(shown.shape[-1])), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """Of each of the 2^M availability patterns, on the link scale: link -> level + slope * link.

    Attributes:
        slope: (2^M, L) 1 where a pattern was not fitted; over time, a straight line in the part of patients who have
            had the event.
        level: (2^M, L).
        fitted: (2^M,) bool, where enough events were seen.
    """

    slope: Array
    level: Array
    fitted: NDArray[np.bool_]

    def moved(self, link: Array, number: NDArray[np.int64]) -> Array:
        """Links (..., L) of patterns ``number`` (...) as they are meant; those of patterns not fitted stay."""
        return np.asarray(self.level[number] + self.slope[number] * link, dtype=np.float64)


def fit_patterns(
    link: Array, present: NDArray[np.bool_], target: Target, *, times: Array | None = None, balanced: bool = False
) -> Patterns:
    """Fit every pattern with at least 20 events among patients who have all of it, and always that of no modality.

    Slopes are drawn towards 1, as by a normal prior with a standard deviation of 1/4, or, with k events among patients
    who have exactly the pattern, 1/4 / sqrt(1 + k / 20). The level is by m / (m + 20) the one that keeps the mean
    prediction of these patients, for the rest the one that gives all who have the pattern the mean of what they are
    told from everything; m is k, or, where that is more, the events that as many of all who have the pattern have: few
    events where many were to be expected tell a level as well. With ``balanced``, where who has what is not to be
    believed, m is k. A pattern whose predictions are those of a smaller one, as where a model does not read what was
    added, is moved as that one is; one that nobody has is not moved.

    Args:
        link: (n, 2^M, L) from each pattern alone, of patients that the members never saw; what a patient lacks is
            absent from all of them.
        present: (n, M) what each has.
        target: n patients.
        times: (L,) days of a survival outcome.
        balanced: whether training hid presence that goes with outcomes (``train.presence: balanced``).

    References:
        Scheike, Zhang, Gerds (2008), Predicting cumulative incidence probability by direct binomial regression, eq. 3:
        event by each time, weighted by inverse censoring; here with the link log(-log S). Struthers and Kalbfleisch
        (1986), Misspecified proportional hazard models: why the slope falls. NOTE[DIFF]: levels are matched to what is
        said of the same patients, and the slope and its change have normal priors.
    """
    owned = pattern_number(present)
    whole = link[np.arange(len(link)), owned]
    c, width = link.shape[1:]
    slope, level, fitted = np.ones((c, width)), np.zeros((c, width)), np.zeros(c, dtype=bool)
    for number in range(c):
        having = np.flatnonzero(owned & number == number)
        known = target.observed[having]
        told = link[having, number]
        smaller = [number ^ 1 << bit for bit in range(present.shape[1]) if number >> bit & 1]
        alike = next((s for s in smaller if len(having) and np.abs(told - link[having, s]).max() <= _SAME), None)
        events = count_events(target.take(having[known]))
        if alike is not None:
            slope[number], level[number], fitted[number] = slope[alike], level[alike], fitted[alike]
        elif events >= LEAST_EVENTS or (number == 0 and len(having)):
            centre, same = told.mean(axis=0), owned[having] == number
            own = count_events(target.take(having[known & same]))
            slope[number] = _slope(
                target.take(having[known]),
                (told - centre)[known],
                times=times,
                towards_one=_TOWARDS_ONE * (1 + own / LEAST_EVENTS),
            )
            deviation = slope[number] * (told - centre)
            level[number] = _level(deviation, whole[having], target)
            if same.any():
                told_by = own if balanced else max(own, events * float(np.mean(same)))
                part = told_by / (told_by + LEAST_EVENTS)
                level[number] += part * (_level(deviation[same], told[same], target) - level[number])
            level[number] -= slope[number] * centre
            fitted[number] = True
    return Patterns(slope=slope, level=level, fitted=fitted)


def _slope(target: Target, deviation: Array, *, times: Array | None, towards_one: float) -> Array:
    """(L,) slopes of a deviation (n, L); 0 where it is the same of everybody, as of no modality."""
    if np.ptp(deviation, axis=0).max() <= 1e-9:
        return np.zeros(deviation.shape[1])
    if isinstance(target, Survival) and times is not None:
        first, change, place = _slope_line(target, deviation, times, towards_one=towards_one)
        return np.clip(first + change * place, 0.0, LARGEST_SLOPE)
    return np.full(deviation.shape[1], recalibrate(target, deviation, towards_one=towards_one)[0])


def _level(deviation: Array, whole: Array, target: Target) -> Array:
    """(L,) levels of a deviation (n, L) at which the mean prediction is that of links ``whole`` (n, L)."""
    if isinstance(target, Survival):
        return match_curve(deviation, np.exp(-np.exp(np.minimum(whole, 50.0))).mean(axis=0))
    if isinstance(target, Labels):
        return match_classes(deviation, softmax(whole).mean(axis=0))
    return np.asarray((whole - deviation).mean(axis=0))


def _slope_line(
    survival: Survival, deviation: Array, times: Array, *, towards_one: float
) -> tuple[float, float, Array]:
    """Slope in the middle, its change, and (L,) place of each time from -1/2 to 1/2: Fisher scoring, levels free."""
    known = np.clip(_kaplan_meier(survival.time, survival.event, times), _EDGE, 1 - _EDGE)
    place = (1 - known) / (1 - known[-1]) - 0.5
    time = survival.time[:, None]
    had = survival.event[:, None] & (time <= times)
    before = np.nextafter(np.minimum(time, times), 0.0)
    uncensored = np.maximum(_kaplan_meier(survival.time, ~survival.event, before), _LEAST_UNCENSORED)
    weight = np.where(had | (time > times), 1 / uncensored, 0.0) / len(times)
    prior, line, level = np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.log(-np.log(known))

    def hazards(line: Array, level: Array) -> tuple[Array, Array]:
        found = np.exp(np.clip(level + (line[0] + line[1] * place) * deviation, -30.0, 3.0))
        return found, np.maximum(-np.expm1(-found), 1e-13)

    def likelihood(line: Array, level: Array) -> float:
        hazard, risk = hazards(line, level)
        said = (weight * np.where(had, np.log(risk), -hazard)).sum()
        return float(said - towards_one / 2 * ((line - prior) ** 2).sum())

    best = likelihood(line, level)
    for _ in range(50):
        hazard, risk = hazards(line, level)
        score = weight * (had - risk) * hazard / risk
        size = weight * hazard**2 * np.exp(-hazard) / risk
        own, cross = size.sum(axis=0) + 1e-9, (size * deviation).sum(axis=0)
        left = (size * deviation**2).sum(axis=0) - cross**2 / own
        pull = (score * deviation).sum(axis=0) - cross * score.sum(axis=0) / own
        power = np.stack([np.ones_like(place), place])
        information = (power * left) @ power.T + towards_one * np.eye(2)
        step = np.clip(np.linalg.solve(information, power @ pull - towards_one * (line - prior)), -1.0, 1.0)
        rise = np.clip((score.sum(axis=0) - cross * (step @ power)) / own, -1.0, 1.0)
        while (found := likelihood(line + step, level + rise)) < best and np.abs(step).max() > 1e-8:
            step, rise = step / 2, rise / 2
        if found < best or np.abs(step).max() < 1e-8:
            break
        line, level, best = line + step, level + rise, found
    return float(line[0]), float(line[1]), place


def _kaplan_meier(time: Array, event: NDArray[np.bool_], at: Array) -> Array:
    """S(at); a sibling of ``medfuse.metrics``, which training does without."""
    distinct, place = np.unique(time, return_inverse=True)
    at_risk = np.bincount(place)[::-1].cumsum()[::-1]
    survival = np.cumprod(1 - np.bincount(place, weights=event) / at_risk)
    return np.concatenate([[1.0], survival])[np.searchsorted(distinct, at, side="right")]


def count_events(target: Target) -> int:
    """Events of survival outcomes, patients of the rarest class, or all patients; all of them are observed."""
    if isinstance(target, Survival):
        return target.n_events
    if isinstance(target, Labels):
        return int(np.bincount(target.label, minlength=len(target.classes)).min()) if len(target) else 0
    return len(target)
