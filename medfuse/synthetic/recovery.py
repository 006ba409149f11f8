"""How much of each planted latent stands in what was extracted: ridge regression on held-out patients.

This asks of files, loaders and extractors whether the signal came through; it is no model of survival.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medfuse.errors import DataError
from medfuse.sample import ModalityData
from medfuse.synthetic.process import SHOWS, Array
from medfuse.types import PatientId

PENALTIES = 10.0 ** np.arange(-1.0, 5.5, 0.5)


def pooled(data: ModalityData, ids: Sequence[PatientId]) -> Array:
    """(n, p) of n patients who have the modality: columns as they are; of vectors mean, SD, largest and least."""
    rows = []
    for patient in ids:
        tokens = np.asarray(data.samples[patient].tokens, dtype=np.float64)
        if data.layout == "columns":
            rows.append(tokens[:, 0])
        else:
            rows.append(np.concatenate([tokens.mean(0), tokens.std(0), tokens.max(0), tokens.min(0)]))
    return np.stack(rows)


def ridge_predict(x: Array, y: Array, others: Array) -> Array:
    """(m,) predictions for ``others`` (m, p) of a ridge regression fitted on (n, p) and (n,).

    Features are standardised on the n; the penalty has the least leave-one-out error, in closed form.

    References:
        Hastie, Tibshirani, Friedman (2009), The Elements of Statistical Learning, eq. 3.47 and 7.52.
    """
    spread = x.std(axis=0)
    kept = spread > 1e-9 * np.maximum(1.0, np.abs(x.mean(axis=0)))
    if not kept.any():
        return np.full(len(others), y.mean())
    centre, scale = x[:, kept].mean(axis=0), spread[kept]
    u, s, vt = np.linalg.svd((x[:, kept] - centre) / scale, full_matrices=False)
    apart = u.T @ (y - y.mean())
    best, least = np.zeros(len(s)), np.inf
    for penalty in PENALTIES:
        shrunk = s**2 / (s**2 + penalty)
        leverage = 1 / len(y) + (u**2) @ shrunk
        error = float((((y - y.mean() - u @ (shrunk * apart)) / np.maximum(1 - leverage, 1e-6)) ** 2).mean())
        if error < least:
            best, least = s / (s**2 + penalty) * apart, error
    return np.asarray(y.mean() + (others[:, kept] - centre) / scale @ (vt.T @ best))


def held_out_r2(x: Array, y: Array, *, folds: int = 5) -> float:
    """R2 of predictions that were each made without the patient's own fold (every ``folds``-th row).

    Raises:
        DataError: fewer than four patients per fold.
    """
    if len(y) < 4 * folds:
        msg = f"recovery: expected at least {4 * folds} patients, found {len(y)}; make a larger cohort"
        raise DataError(msg)
    fold, found = np.arange(len(y)) % folds, np.empty(len(y))
    for k in range(folds):
        found[fold == k] = ridge_predict(x[fold != k], y[fold != k], x[fold == k])
    return float(1 - ((y - found) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def recovered(data: Mapping[str, ModalityData], latents: Mapping[PatientId, Mapping[str, float]]) -> dict[str, float]:
    """Held-out R2 of the latent that each modality shows, among the patients who have it.

    Args:
        data: modalities as :func:`medfuse.dataset.load_modalities` gives them.
        latents: of each patient by name, as in ``truth/latents.csv``.

    Raises:
        DataError: fewer than 20 patients with a modality.
    """
    out = {}
    for name, modality in data.items():
        ids = sorted(modality.samples)
        out[name] = held_out_r2(pooled(modality, ids), np.array([latents[i][SHOWS[name]] for i in ids]))
    return out
