"""What a baseline is given, and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort
from medfuse.prediction import Prediction
from medfuse.preprocessing import dense_matrix, fit_preprocessing
from medfuse.sample import ModalityData
from medfuse.splits import Split
from medfuse.targets import Target
from medfuse.types import PatientId

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FoldData:
    """One outer fold as baselines see it.

    Attributes:
        cohort: for the outcomes.
        outcome: name of the outcome.
        data: modalities; rows of held-out patients are only ever transformed.
        split: the outer split.
        inner: folds inside ``split.train``.
        clinical: name of the modality that clinical baselines use: the first tabular one.
        seed: of forests and boosting.
    """

    cohort: Cohort
    outcome: str
    data: Mapping[str, ModalityData]
    split: Split
    inner: Sequence[Split]
    clinical: str
    seed: int = 0

    @cached_property
    def train_ids(self) -> tuple[PatientId, ...]:
        """Training patients whose outcome is known."""
        return self._known(self.split.train)

    @cached_property
    def inner_ids(self) -> list[tuple[tuple[PatientId, ...], tuple[PatientId, ...]]]:
        """Train and tuning side of each inner fold, patients with a known outcome."""
        return [(self._known(split.train), self._known(split.tuning)) for split in self.inner]

    @cached_property
    def memo(self) -> dict[object, object]:
        """What several baselines of this fold share, such as out-of-fold scores of one modality."""
        return {}

    def _known(self, ids: Sequence[PatientId]) -> tuple[PatientId, ...]:
        observed = self.cohort.target(self.outcome, ids).observed
        return tuple(i for i, known in zip(ids, observed, strict=True) if known)

    def target(self, ids: Sequence[PatientId]) -> Target:
        """The outcome of some patients."""
        return self.cohort.target(self.outcome, ids)

    def has(self, modality: str, ids: Sequence[PatientId]) -> tuple[PatientId, ...]:
        """Those of ``ids`` who have a modality."""
        return tuple(i for i in ids if i in self.data[modality].samples)

    def design(
        self, modalities: Sequence[str], fit_ids: Sequence[PatientId], *others: Sequence[PatientId]
    ) -> list[Matrix]:
        """Design matrices of ``fit_ids`` and of the others, standardised on ``fit_ids``; modalities side by side.

        With several modalities each also has an indicator of being absent, where someone in ``fit_ids`` lacks it.
        """
        parts: list[list[Matrix]] = [[] for _ in range(1 + len(others))]
        for name in modalities:
            fitted = fit_preprocessing(self.data[name], fit_ids)
            absent_in_train = False
            for k, ids in enumerate((fit_ids, *others)):
                x, present = dense_matrix(fitted, self.data[name], ids)
                absent_in_train = absent_in_train or (k == 0 and not present.all())
                flag = (~present)[:, None].astype(np.float64)
                parts[k].append(np.concatenate([x, flag], axis=1) if absent_in_train and len(modalities) > 1 else x)
        return [np.concatenate(blocks, axis=1) for blocks in parts]

    def present(self, ids: Sequence[PatientId]) -> NDArray[np.bool_]:
        """(n, M) which modalities each patient has."""
        columns = [[i in modality.samples for i in ids] for modality in self.data.values()]
        return np.array(columns, dtype=bool).T.reshape(len(ids), len(self.data))


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """What a baseline says of one fold.

    Attributes:
        name: such as ``ridge_cox:expression``.
        prediction: of the held-out patients.
        tuning_score: inner out-of-fold C, AUROC or R2; NaN where the baseline has none.
        notes: choices made on inner folds, and everything a reader should know.
    """

    name: str
    prediction: Prediction
    tuning_score: float = float("nan")
    notes: tuple[str, ...] = field(default=())


def chosen_by_others(scores: Mapping[str, Sequence[float]]) -> list[tuple[str, float]]:
    """Per inner fold, the candidate with the best mean score on the other inner folds, and that mean.

    The score of the best of several candidates flatters it: on each fold it is judged by what was chosen elsewhere. A
    single fold chooses by itself; where no score is defined, the first candidate is taken, with a mean of NaN.

    Args:
        scores: of each candidate, one per inner fold; NaN where undefined.
    """
    table = np.array(list(scores.values()), dtype=np.float64)  # (candidates, folds)
    names, found = list(scores), []
    for k in range(table.shape[1]):
        others = np.delete(table, k, axis=1) if table.shape[1] > 1 else table
        known = (~np.isnan(others)).sum(axis=1)
        means = np.where(known > 0, np.nansum(others, axis=1) / np.maximum(known, 1), np.nan)
        best = 0 if np.isnan(means).all() else int(np.nanargmax(means))
        found.append((names[best], float(means[best])))
    return found
