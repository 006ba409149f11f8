"""Presence that says nothing: modalities hidden further in training until who has them no longer goes with the outcome.

Where tests are ordered because of what is suspected, a model learns the order instead of the test, and fails where the
habit is another. Hiding at random does not help: P(outcome | present) keeps its likelihood ratio at any rate.

References:
    Swamy et al. (2023), MultiModN, section 5 (the failure). The remedy is ours: ``presence: balanced``.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.batch import Batch, TargetTensors, sent

Strata = NDArray[np.int64]
_LEAST = 10  # patients in a stratum below which it is joined to its neighbour
_ROUNDS = 50


def outcome_strata(target: TargetTensors) -> Strata:
    """(n,) strata of an outcome, -1 where unknown.

    Classes are their own strata; values are cut into quarters; survival into events and censored patients of each third
    of the event times, for only if presence is the same in all of them does it leave every risk set as it is.
    """
    observed = target.observed.cpu().numpy()
    if target.label is not None:
        found = target.label.cpu().numpy()
    elif target.event is not None and target.time is not None:
        event, time = target.event.cpu().numpy(), target.time.double().cpu().numpy()
        known = time[observed & event]
        cuts = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else known
        found = 2 * np.searchsorted(cuts, time) + event
    else:
        value = target.value.double().cpu().numpy() if target.value is not None else np.zeros(len(target))
        found = np.searchsorted(np.quantile(value[observed], [0.25, 0.5, 0.75]) if observed.any() else [], value)
    kinds = 1 if target.event is None else 2
    return _joined(np.where(observed, found, -1).astype(np.int64), kinds=kinds)


def _joined(strata: Strata, *, kinds: int) -> Strata:
    """Strata of fewer than ten patients, the smallest first, become part of the nearest of their kind, else of any.

    Levels that are equal modulo ``kinds`` are of one kind: two tell events from censored patients.
    """
    out = strata.copy()
    while True:
        levels, counts = np.unique(out[out >= 0], return_counts=True)
        if len(levels) < 2 or counts.min() >= _LEAST:
            return out
        level = levels[counts.argmin()]
        others = levels[levels != level]
        alike = others[(others - level) % kinds == 0]
        near = alike if len(alike) else others
        out[out == level] = near[np.abs(near - level).argmin()]


def _rates(weight: NDArray[np.float64], strata: Strata) -> tuple[Strata, NDArray[np.float64]]:
    """Strata, and the mean of a weight (n,) in each."""
    levels = np.unique(strata[strata >= 0])
    return levels, np.array([weight[strata == level].mean() for level in levels])


def predicts(present: NDArray[np.bool_], strata: Strata) -> bool:
    """Whether presence (n,) differs between strata: chi-squared test of independence at 5 %.

    The quantile is Wilson and Hilferty's (1931) cube-root approximation.
    """
    known = strata >= 0
    levels, rate = _rates(present.astype(np.float64), strata)
    share = float(present[known].mean()) if known.any() else 0.0
    if len(levels) < 2 or not 0 < share < 1:
        return False
    size = np.array([(strata == level).sum() for level in levels])
    statistic = float((size * (rate - share) ** 2).sum()) / (share * (1 - share))
    df = len(levels) - 1
    return bool(statistic > df * (1 - 2 / (9 * df) + 1.6449 * (2 / (9 * df)) ** 0.5) ** 3)


def balance(present: Tensor, targets: Mapping[str, TargetTensors]) -> Tensor:
    """(n, M) probability of keeping each present modality so that its presence goes with no outcome.

    In every stratum a modality that predicts an outcome is kept so often that its rate equals the lowest of any
    stratum. With several outcomes the same is repeated until all of them are balanced together. Modalities whose
    presence predicts nothing, and patients with an unknown outcome, keep everything. Each modality is balanced by
    itself: a pattern of several that alone predicts is not seen.

    Args:
        present: (n, M) bool of all training patients.
        targets: their outcomes.
    """
    has = present.cpu().numpy()
    keep = np.ones(has.shape)
    strata = [outcome_strata(target) for target in targets.values()]
    for m in range(has.shape[1]):
        told = [s for s in strata if predicts(has[:, m], s)]
        for _ in range(_ROUNDS if len(told) > 1 else 1):
            for s in told:
                for level, rate in zip(*(found := _rates(has[:, m] * keep[:, m], s)), strict=True):
                    if rate > 0:
                        keep[s == level, m] *= found[1].min() / rate
    return torch.from_numpy(keep)


def hide(batch: Batch, keep: Tensor, *, generator: torch.Generator) -> Batch:
    """Hide modalities of a batch's patients at random, each kept with its probability.

    Args:
        batch: B patients.
        keep: (B, M), of :func:`balance`.
        generator: on the CPU; no other random state is touched.
    """
    kept = torch.rand(keep.shape, generator=generator, dtype=torch.float64) < keep
    return replace(batch, present=batch.present & sent(kept, batch.present.device))
