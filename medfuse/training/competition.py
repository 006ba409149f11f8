"""Competition strength: how far the joint network has moved from what each modality alone would say.

A ridge map from the joint network's state of a patient to the output of the network that reads one modality alone; the
share of that output's variance that the map leaves unexplained is the competition strength of the modality: 0 when the
joint state still holds all that the modality says by itself, 1 when nothing is left of it.

References:
    Li et al. (2023), Boosting multi-modal model performance with adaptive gradient modulation,
    competition strength of section 3 (penalty 120).
    NOTE[DIFF]: measured on training patients whom neither network was fitted on, by leave-one-out residuals; on its own
    training patients a map of D numbers always finds something.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.sample import ModalityData
from medfuse.training.fold import FoldModel, chunks, speak
from medfuse.training.member import Member
from medfuse.types import PatientId

Array = NDArray[np.float64]
PENALTY = 120.0
_LEAST = 10  # patients


def unexplained(features: Array, output: Array, *, penalty: float = PENALTY) -> float:
    """Share of the variance of an output that ridge regression on features leaves, leave-one-out; NaN if constant.

    Args:
        features: (n, D), standardised here.
        output: (n,).
        penalty: on the sum of squared coefficients of standardised features.
    """
    y = output - output.mean()
    if len(y) < 3 or float((y**2).sum()) < 1e-12:
        return float("nan")
    spread = features.std(axis=0)
    x = (features - features.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T) + 1 / len(y)
    left = (y - hat @ y) / (1 - np.diag(hat))
    alone = y * len(y) / (len(y) - 1)  # leave-one-out residuals of the mean
    return float((left**2).sum() / (alone**2).sum())


class _Inner(Protocol):
    @property
    def train(self) -> tuple[PatientId, ...]:
        """Patients that were fitted on."""


def competition(
    fold: FoldModel, data: Mapping[str, ModalityData], inner: Sequence[_Inner]
) -> dict[str, dict[str, float | None]]:
    """Per outcome and modality the competition strength in a fold, the mean over its joint networks.

    A modality without a network of its own has none; None where that network says the same of everybody.

    Args:
        fold: with its members.
        data: modalities of its training patients.
        inner: the inner folds, in the order in which they were fitted.
    """
    own = {(m.seed, m.inner, m.expert): m for m in fold.members if not m.forest}
    found: dict[str, dict[str, list[float]]] = {}
    for (seed, number, expert), joint in own.items():
        fitted = set(inner[number].train)
        for name in () if expert else fold.modalities:
            alone = own.get((seed, number, name))
            ids = [i for i in fold.train_ids if i not in fitted and i in data[name].samples]
            if alone is None or len(ids) < _LEAST:
                continue
            states = _states(joint, data, ids)
            batches = chunks(alone, {name: data[name]}, ids)
            for outcome, link in speak(alone, batches).items():
                found.setdefault(outcome, {}).setdefault(name, []).append(unexplained(states, link.mean(axis=1)))
    return {
        o: {m: float(np.mean(v)) if np.isfinite(v).all() else None for m, v in by.items()} for o, by in found.items()
    }


@torch.no_grad()
def _states(member: Member, data: Mapping[str, ModalityData], ids: Sequence[PatientId]) -> Array:
    """(n, D) mean state of each patient in the joint network."""
    model = member.build()
    parts = []
    for batch in chunks(member, data, ids):
        fused = model.fuse(batch)
        parts.append((fused.weights[..., None] * fused.states).sum(1).double().numpy())
    return np.concatenate(parts)
