"""When a patient is unlike the training patients: the bounds, the words and what follows, for all who say it.

Scores come from :mod:`medfuse.explain.distribution`; who only reads stored ones (the review) needs no model for this.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

ALARM = 99.5  # percentile among training patients above which the content of a modality is unlike theirs
FEWEST = 20  # training patients with exactly the same modalities, below which the pattern is rare
FAMILIAR, UNUSUAL, WITHHELD = "familiar", "unusual", "withheld"
STATES = (FAMILIAR, UNUSUAL, WITHHELD)
NOT_CHECKED = "not checked"
NOTHING = (
    "no modality is available, so that the model knows nothing of this patient: what it would show is the population "
    "level, the average of the training patients"
)


def reasons(modalities: Sequence[str], percentile: ArrayLike, *, pattern_count: int, present: ArrayLike) -> list[str]:
    """Why a patient is unlike the training patients, as sentences without any value of the patient.

    Args:
        modalities: M names.
        percentile: (M,) of the score among training patients; NaN where there is none.
        pattern_count: training patients with exactly the same modalities.
        present: (M,).
    """
    if not np.asarray(present).any():
        return [NOTHING]
    found = [
        f"{name}: unlike the training patients (percentile {value:.2f})"
        for name, value in zip(modalities, np.asarray(percentile), strict=True)
        if value > ALARM
    ]
    if pattern_count < FEWEST:
        found.append(f"modalities: {pattern_count or 'none'} of the training patients had exactly these")
    return found


def states(percentile: ArrayLike, *, pattern_count: ArrayLike, present: ArrayLike) -> tuple[str, ...]:
    """N words: ``familiar``; ``unusual`` with one reason; ``withheld`` with two or more, or without any modality.

    A withheld prediction is not shown until a reader asks for it, and that is recorded.

    Args:
        percentile: (n, M); NaN where there is none.
        pattern_count: (n,) training patients with exactly the same modalities.
        present: (n, M).
    """
    count = (np.asarray(percentile) > ALARM).sum(axis=1) + (np.asarray(pattern_count) < FEWEST)
    some = np.asarray(present, dtype=bool).any(axis=1)
    words = np.where((count >= 2) | ~some, WITHHELD, np.where(count == 1, UNUSUAL, FAMILIAR))
    return tuple(str(word) for word in words)
