"""Decision curves: is acting on the prediction better than treating everyone or no one?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.targets import Survival


@dataclass(frozen=True, kw_only=True)
class DecisionCurve:
    """Net benefit per patient at each threshold probability, of the model and of treating everyone."""

    thresholds: NDArray[np.float64]
    model: NDArray[np.float64]
    everyone: NDArray[np.float64]


def decision_curve(
    survival: Survival, probability: NDArray[np.float64], *, horizon: float, thresholds: NDArray[np.float64]
) -> DecisionCurve:
    """Net benefit of treating those whose predicted probability of an event by ``horizon`` reaches a threshold.

    Args:
        survival: n patients.
        probability: (n,) predicted probability of the event by the horizon.
        horizon: days.
        thresholds: (k,) threshold probabilities in (0, 1).

    Returns:
        Net benefit; NaN where nobody was followed to the horizon.

    References:
        Vickers, Cronin, Elkin, Gonen (2008), Extensions to decision curve analysis, section on censored data: the event
        probability among those treated is their Kaplan-Meier estimate.
    """
    index = np.flatnonzero(survival.observed)
    survival, p = survival.take(index), probability[index]

    def benefit(treated: NDArray[np.bool_], odds: float) -> float:
        if not treated.any():
            return 0.0
        rows = np.flatnonzero(treated)
        if survival.time[rows].max() < horizon and not survival.event[rows][survival.time[rows].argmax()]:
            return float("nan")
        risk = float(1 - kaplan_meier(survival.time[rows], survival.event[rows])(horizon))
        return float((risk - (1 - risk) * odds) * treated.mean())

    odds = thresholds / (1 - thresholds)
    return DecisionCurve(
        thresholds=thresholds,
        model=np.array([benefit(p >= t, o) for t, o in zip(thresholds, odds, strict=True)]),
        everyone=np.array([benefit(np.ones(len(p), dtype=bool), o) for o in odds]),
    )
