"""Does a model treat the absence of a modality itself as information?"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DELTA = 0.03  # in risk


def absence_used(risk: Array, draws: Array, *, delta: float = DELTA) -> NDArray[np.bool_]:
    """(...) where a model says something of a patient because a modality is absent.

    Were the absence no information, the prediction without the modality would be the mean over what it could have been.

    Args:
        risk: (...) predicted with the modality absent.
        draws: (..., K) predicted with the modality of each of K donors; NaN where there are fewer.
        delta: difference in risk that counts; it must also exceed two standard errors of the mean over the donors.
    """
    count = (~np.isnan(draws)).sum(axis=-1)
    safe = np.maximum(count, 1)
    value = np.nan_to_num(draws)
    mean = value.sum(axis=-1) / safe
    square = np.where(np.isnan(draws), 0.0, (value - mean[..., None]) ** 2).sum(axis=-1)
    error = np.sqrt(square / safe / safe)
    gap = np.abs(mean - risk)
    return cast(NDArray[np.bool_], (count > 1) & (gap > delta) & (gap > 2 * error))


def absence_shift(risk: Array, draws: Array, modality: NDArray[np.int64], count: int) -> Array:
    """(count, 2) per modality, mean of risk without it less the mean over donors, and the mean's standard error.

    A shift of one sign over patients is the absence speaking; differences of both signs are curvature and noise.

    Args:
        risk: (q,) predicted with the modality absent.
        draws: (q, K) predicted with each donor's; NaN where there are fewer.
        modality: (q,) which one.
        count: M.
    """
    has = ~np.isnan(draws).all(axis=1)
    out = np.full((count, 2), np.nan)
    for m in range(count):
        rows = np.flatnonzero(has & (modality == m))
        if len(rows) > 1:
            gap = risk[rows] - np.nanmean(draws[rows], axis=1)
            out[m] = gap.mean(), gap.std(ddof=1) / np.sqrt(len(rows))
    return out


def absence_flags(
    risk: Array, draws: Array, modality: NDArray[np.int64], count: int, *, delta: float = DELTA
) -> NDArray[np.bool_]:
    """(q,) where "the model treats the absence itself as information" is to be said.

    The patient's own difference must count (:func:`absence_used`), and the modality's over all patients must exceed
    ``delta`` by two standard errors with the same sign: one patient's difference alone is often the curve of the link.

    Args:
        risk: (q,) predicted with the modality absent.
        draws: (q, K) predicted with each donor's; NaN where there are fewer.
        modality: (q,) which one.
        count: M.
        delta: difference in risk that counts.
    """
    shift = absence_shift(risk, draws, modality, count)
    systematic = np.abs(shift[:, 0]) - 2 * shift[:, 1] > delta
    there = ~np.isnan(draws)
    mean = np.where(there, draws, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    same = np.sign(risk - mean) == np.sign(shift[modality, 0])
    return np.asarray(absence_used(risk, draws, delta=delta) & systematic[modality] & same)
