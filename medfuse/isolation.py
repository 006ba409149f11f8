"""Fit isolation: whatever is done to held-out rows and outcomes, not one fitted number may change, bit for bit."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort
from medfuse.preprocessing import fit_preprocessing, to_arrays
from medfuse.sample import ModalityData, ModalitySample
from medfuse.splits import Split
from medfuse.targets import Labels, Survival, Target
from medfuse.types import PatientId

Fitted = Mapping[str, NDArray[Any]]
_ROUNDS = 2
_BAG = 64  # tokens that stand for a bag: held-out bags of tens of thousands need not all be in memory at once


def _replaced(
    modality: ModalityData, sample: ModalitySample, *, rng: np.random.Generator, coded: bool
) -> ModalitySample:
    """Other content of the same form: wild numbers, the last level or the first, other cells missing."""
    shape = (
        (min(len(sample.tokens), _BAG), sample.tokens.shape[1]) if modality.layout == "vectors" else sample.tokens.shape
    )
    # Of both signs and unlike sizes, so that extremes, variances, ranks and selections all move.
    wild = rng.normal(size=shape) * 10.0 ** rng.uniform(-1, 4, size=shape)
    if modality.layout == "vectors":
        return ModalitySample(tokens=wild.astype(np.float32), position=sample.position[: len(wild)])
    tokens = wild.astype(np.float32)
    tokens[:, 1] = rng.random(shape[0]) < 0.5
    tokens[0, 1] = 1.0
    for c, column in enumerate(modality.columns):
        if column.kind != "numeric":
            tokens[c] = np.array([len(column.levels) - 1 if coded else 0, 1.0])
    tokens[tokens[:, 1] == 0, 0] = 0.0
    return ModalitySample(tokens=tokens, position=sample.position)


def _perturbed(modality: ModalityData, train: set[PatientId], *, seed: int) -> ModalityData:
    """Every row outside ``train`` replaced; in the second round every other one is gone."""
    rng = np.random.default_rng(seed)
    samples: dict[PatientId, ModalitySample] = {}
    for n, (patient, sample) in enumerate(modality.samples.items()):
        if patient in train:
            samples[patient] = sample
        elif seed == 0 or n % 2:
            samples[patient] = _replaced(modality, sample, rng=rng, coded=seed == 0)
    return dataclasses.replace(modality, samples=samples)


def _with_unseen_level(modality: ModalityData) -> ModalityData:
    """One more level in every coded column, which nobody of the cohort has."""
    columns = tuple(
        c if c.kind == "numeric" else dataclasses.replace(c, levels=(*c.levels, "(outside train only)"))
        for c in modality.columns
    )
    return dataclasses.replace(modality, columns=columns)


def _differing(before: Fitted, after: Fitted) -> set[str]:
    def content(array: NDArray[Any]) -> object:
        a = np.asarray(array)
        return (a.shape, str(a.dtype), repr(a.tolist()) if a.dtype == object else a.tobytes())

    both = set(before) & set(after)
    return (set(before) ^ set(after)) | {name for name in both if content(before[name]) != content(after[name])}


def fit_isolation(
    fit: Callable[[Mapping[str, ModalityData], Sequence[PatientId]], Fitted],
    data: Mapping[str, ModalityData],
    split: Split,
) -> tuple[str, ...]:
    """Replace every row outside ``split.train`` and fit again: names of fitted arrays that changed by a bit.

    Args:
        fit: fits on the given ids and returns everything it fitted; the same numbers each time.
        data: modalities.
        split: whose train side is fitted on.
    """
    train = set(split.train)
    data = {name: _with_unseen_level(modality) for name, modality in data.items()}
    before = fit(data, split.train)
    changed: set[str] = set()
    for seed in range(_ROUNDS):
        other = {name: _perturbed(modality, train, seed=seed) for name, modality in data.items()}
        changed |= _differing(before, fit(other, split.train))
    return tuple(sorted(changed))


def _other_target(target: Target, outside: NDArray[np.bool_], *, seed: int) -> Target:
    rng = np.random.default_rng(seed)
    n = len(target)
    if isinstance(target, Survival):
        time = np.where(outside, rng.uniform(0, 1e5, size=n), target.time)
        event = np.where(outside, rng.random(n) < 0.5, target.event)
        return dataclasses.replace(target, time=time, event=event, observed=target.observed | outside)
    if isinstance(target, Labels):
        label = np.where(outside, rng.integers(len(target.classes), size=n), target.label)
        return dataclasses.replace(target, label=label, observed=target.observed | outside)
    value = np.where(outside, rng.normal(size=n) * 1e4, target.value)
    return dataclasses.replace(target, value=value, observed=target.observed | outside)


def outcome_isolation(
    fit: Callable[[Cohort, Sequence[PatientId]], Fitted], cohort: Cohort, split: Split
) -> tuple[str, ...]:
    """As :func:`fit_isolation`, for what is fitted on outcomes: time grids, thresholds, baseline hazards.

    Args:
        fit: fits on the outcomes of the given ids and returns everything it fitted.
        cohort: whose outcomes outside ``split.train`` are replaced.
        split: whose train side is fitted on.
    """
    train = set(split.train)
    outside = np.array([patient not in train for patient in cohort.patient_ids])
    before = fit(cohort, split.train)
    changed: set[str] = set()
    for seed in range(_ROUNDS):
        targets = {name: _other_target(target, outside, seed=seed) for name, target in cohort.targets.items()}
        changed |= _differing(before, fit(dataclasses.replace(cohort, targets=targets), split.train))
    return tuple(sorted(changed))


def fitted_preprocessing(data: Mapping[str, ModalityData], ids: Sequence[PatientId]) -> dict[str, NDArray[Any]]:
    """Everything that preprocessing fits, by name, for :func:`fit_isolation`."""
    return {
        f"{name}.{key}": array
        for name, modality in data.items()
        for key, array in to_arrays(fit_preprocessing(modality, ids))[0].items()
    }
