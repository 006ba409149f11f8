"""Outcomes of a fold's patients, and what heads take from those of the training side."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.errors import CohortError
from medfuse.losses import discrete_hazard_prior
from medfuse.models import HeadSettings, default_head
from medfuse.models.settings import Options
from medfuse.targets import Labels, Survival, Target, fittable
from medfuse.types import PatientId


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Outcomes of patients, by name, aligned with their ids.

    Raises:
        CohortError: when lengths differ or an id appears twice.
    """

    patient_ids: tuple[PatientId, ...]
    targets: Mapping[str, Target]

    def __post_init__(self) -> None:
        if len(set(self.patient_ids)) != len(self.patient_ids):
            msg = "outcomes: expected every patient once, found an id twice; check the cohort"
            raise CohortError(msg)
        for name, target in self.targets.items():
            if len(target) != len(self.patient_ids):
                msg = f'outcome "{name}": expected {len(self.patient_ids)} patients, found {len(target)}'
                raise CohortError(msg)

    def take(self, ids: Sequence[PatientId]) -> dict[str, Target]:
        """Outcomes of patients ``ids``, in that order.

        Raises:
            CohortError: naming the first unknown id.
        """
        row = {patient: i for i, patient in enumerate(self.patient_ids)}
        unknown = next((patient for patient in ids if patient not in row), None)
        if unknown is not None:
            msg = f"outcomes: expected patients of the cohort, found {unknown}; check the split"
            raise CohortError(msg)
        index = np.array([row[patient] for patient in ids], dtype=np.intp)
        return {name: target.take(index) for name, target in self.targets.items()}


def require_fittable(targets: Mapping[str, Target], *, where: str) -> None:
    """Raise :class:`CohortError` where an outcome has nothing to learn from, with its name and ``where`` in a note."""
    for outcome, target in targets.items():
        try:
            fittable(target)
        except CohortError as error:
            error.add_note(f'outcome "{outcome}", {where}, {len(target)} patients')
            raise


def head_settings(
    targets: Mapping[str, Target], *, heads: Mapping[str, Options], time_grid: Mapping[str, NDArray[np.float64]]
) -> dict[str, HeadSettings]:
    """Heads with what they learn from the training targets: population hazards, class frequencies, mean and SD."""
    found = {}
    for outcome, target in targets.items():
        seen = np.flatnonzero(target.observed)
        chosen = dict(heads.get(outcome, {}))
        if isinstance(target, Survival):
            edges = time_grid[outcome]
            event, time = torch.from_numpy(target.event[seen]), torch.from_numpy(target.time[seen])
            prior = discrete_hazard_prior(event, time, torch.from_numpy(edges))
            settings = HeadSettings(
                kind="survival", name="", time_grid=tuple(edges.tolist()), prior=tuple(prior.tolist())
            )
        elif isinstance(target, Labels):
            counts = np.bincount(target.label[seen], minlength=len(target.classes)) + 0.5
            settings = HeadSettings(
                kind="binary" if len(target.classes) == 2 else "multiclass",
                name="",
                n_classes=len(target.classes),
                prior=tuple(np.log(counts / counts.sum()).tolist()),
            )
        else:
            value = target.value[seen]
            settings = HeadSettings(kind="continuous", name="", mean=float(value.mean()), scale=float(value.std()))
        name = str(chosen.pop("name", default_head(settings.kind)))
        found[outcome] = dataclasses.replace(settings, name=name, options=chosen)
    return found
