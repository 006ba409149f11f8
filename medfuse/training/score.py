"""One number per epoch that says how well the tuning patients are ordered.

A sibling of ``medfuse.metrics`` for the loop alone, because training runs where only torch and numpy are installed.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medfuse.batch import TargetTensors
from medfuse.targets import Labels, Survival, Target

_BLOCK = 512


def harrell_c(event: NDArray[np.bool_], time: NDArray[np.float64], risk_score: NDArray[np.float64]) -> float:
    """Harrell's C: of the pairs that can be ordered, the part where the earlier event had the higher risk.

    A pair counts when the earlier time is an event, or times tie and one of the two is an event; tied risks count half.

    Args:
        event: (n,) True when it happened.
        time: (n,) days.
        risk_score: (n,) higher = earlier.

    Returns:
        C, or NaN when no pair can be ordered.

    References:
        Harrell, Lee, Mark (1996), Multivariable prognostic models, section 5.5.
    """
    won, tied, pairs = 0, 0, 0
    rows = np.flatnonzero(event)
    for start in range(0, len(rows), _BLOCK):
        i = rows[start : start + _BLOCK, None]
        later = (time[None, :] > time[i]) | ((time[None, :] == time[i]) & ~event[None, :])
        won += int((later & (risk_score[i] > risk_score[None, :])).sum())
        tied += int((later & (risk_score[i] == risk_score[None, :])).sum())
        pairs += int(later.sum())
    return (won + tied / 2) / pairs if pairs else float("nan")


def _classes(label: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """AUROC of each class against the rest, averaged over the classes where it is defined."""
    areas = []
    for k in range(probability.shape[1]):
        is_k = label == k
        # With every "event" at time 0 and every other patient at time 1, concordant pairs are the AUROC's pairs.
        areas.append(harrell_c(is_k, np.where(is_k, 0.0, 1.0), probability[:, k]))
    known = [area for area in areas if area == area]
    return float(np.mean(known)) if known else float("nan")


def _explained(value: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    spread = float(((value - value.mean()) ** 2).sum())
    return 1 - float(((value - predicted) ** 2).sum()) / spread if spread > 0 else float("nan")


def tuning_score(
    predicted: Mapping[str, Mapping[str, NDArray[np.float64]]], targets: Mapping[str, TargetTensors]
) -> float:
    """Mean over outcomes of C, macro AUROC or explained variance among the patients whose outcome is known.

    Args:
        predicted: per outcome, what the head predicts: risk_score (n,), probability (n, K), value (n,).
        targets: per outcome, the truth.

    Returns:
        Higher is better; NaN when it is undefined for every outcome.
    """
    scores = []
    for name, target in targets.items():
        seen = target.observed.cpu().numpy()
        outputs = {key: array[seen] for key, array in predicted[name].items()}
        if target.event is not None and target.time is not None:
            event, time = target.event.cpu().numpy()[seen], target.time.cpu().numpy()[seen]
            scores.append(harrell_c(event, time, outputs["risk_score"]))
        elif target.label is not None:
            scores.append(_classes(target.label.cpu().numpy()[seen], outputs["probability"]))
        elif target.value is not None:
            scores.append(_explained(target.value.cpu().numpy()[seen], outputs["value"]))
    known = [score for score in scores if score == score]
    return float(np.mean(known)) if known else float("nan")


def concordance(target: Target, link: NDArray[np.float64]) -> float:
    """How well links (n, L) order patients whose outcome is known, on one scale for all outcomes: 0.5 is chance.

    C of the mean link for survival, macro AUROC for classes, C of the value itself for continuous outcomes; NaN when
    undefined.
    """
    seen = np.flatnonzero(target.observed)
    known, x = target.take(seen), link[seen]
    if isinstance(known, Survival):
        return harrell_c(known.event, known.time, x.mean(axis=1))
    if isinstance(known, Labels):
        return _classes(known.label, x)
    return harrell_c(np.ones(len(x), dtype=bool), -known.value, x[:, 0])
