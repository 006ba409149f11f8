"""What an attribution within a modality is, and the units it speaks of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import CohortError, ConfigError, nearest
from medfuse.explain.waves import is_ecg, waves
from medfuse.models.encoders.base import Path
from medfuse.preprocessing import Preprocessing
from medfuse.sample import ModalityData
from medfuse.types import Layout, PatientId

Array = NDArray[np.float64]
SUMS, RANKING = "sums to the contribution", "ranking only"
UNITS: dict[Layout, tuple[str, ...]] = {
    "columns": ("column", "gene_set", "group"),
    "vectors": ("instance", "identity", "region", "wave"),
}
NO_SET = "(in no gene set)"
_GAP, _FLOOR = 0.05, 1e-4  # of the contribution; what single precision cannot tell from 0


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Contributions of the units of one modality to the predictions of n patients who have it.

    For each patient, ``presence``, ``recalibration`` and the ``values`` sum to ``contribution``, but for ``gap``.

    Attributes:
        outcome: its name.
        modality: its name.
        units: ``column``, ``gene_set``, ``group``, ``instance``, ``identity``, ``region`` or ``wave``.
        method: ``path`` (integrated gradients) or ``removal``.
        cells: of the grid of regions, along its longest side.
        start: what the path leads from, in words; the step from the absent modality to it is ``presence``.
        horizon: days, or None.
        class_index: of a multi-class outcome, or None.
        patient_ids: n ids.
        contribution: (n,) Shapley value of the modality on the link scale.
        presence: (n,) its part that no unit has: the modality is there, but says nothing in particular.
        recalibration: (n,) its part that comes from reading coalitions with and without the modality by different
            slopes and levels; 0 where they are read as the model says them.
        gap: (n,) contribution - presence - recalibration - sum of the values.
        stability: (n,) mean Spearman correlation of the values between pairs of replicates; NaN for one unit.
        names: of units that have some, else empty.
        patient: (N,) row of each value's patient.
        unit: (N,) index into ``names``, number of the instance in the stored sample, or cell of the grid.
        positions: (N, P) of instances; mean of the instances of a region; index of a column or identity.
        values: (N,) signed, in the unit of the contribution.
        low, high: (N,) 5th and 95th percentile over the replicates.
    """

    outcome: str
    modality: str
    units: str
    method: str
    cells: int
    start: str
    horizon: float | None
    class_index: int | None
    patient_ids: tuple[PatientId, ...]
    contribution: Array
    presence: Array
    recalibration: Array
    gap: Array
    stability: Array
    names: tuple[str, ...]
    patient: NDArray[np.int64]
    unit: NDArray[np.int64]
    positions: NDArray[np.float32]
    values: Array
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.patient_ids)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(n,) whether the gap is at most 5 % of the contribution, or below what single precision can tell from 0."""
        return np.abs(self.gap) <= np.maximum(_GAP * np.abs(self.contribution), _FLOOR)

    @property
    def label(self) -> tuple[str, ...]:
        """What to print beside each patient's values: they sum to the contribution, or only their order counts."""
        return tuple(SUMS if ok else RANKING for ok in self.complete)

    def rows(self, patient_id: str) -> NDArray[np.intp]:
        """Places of a patient's values, the largest in absolute value first.

        Raises:
            CohortError: the patient is not among those explained.
        """
        if patient_id not in self.patient_ids:
            msg = f"explain: expected a held-out patient who has {self.modality}, found none with id {patient_id}"
            raise CohortError(msg)
        own = np.flatnonzero(self.patient == self.patient_ids.index(PatientId(patient_id)))
        return own[np.argsort(-np.abs(self.values[own]), kind="stable")]

    def name(self, row: int) -> str:
        """What to call the unit of a value."""
        unit = int(self.unit[row])
        return self.names[unit] if self.names else f"{self.units} {unit}"


def unit_kind(data: ModalityData, units: str | None) -> str:
    """The units of a modality; default columns, identities (stains) where there are some, else instances.

    Raises:
        ConfigError: units that this modality does not have.
    """
    known = [u for u in UNITS[data.layout] if u != "identity" or data.identities]
    known = [u for u in known if u != "gene_set" or data.gene_sets]
    known = [u for u in known if u != "group" or len(group_names(data)) < len(data.columns)]
    known = [u for u in known if u != "wave" or is_ecg(data.feature_names)]
    if units is None:
        return "identity" if "identity" in known else known[0]
    if units not in known:
        msg = f"explain: modality {data.name!r} has no units {units!r}; {nearest(units, known)}"
        raise ConfigError(msg)
    return units


def cells(position: NDArray[np.float32], *, per_side: int) -> NDArray[np.int64]:
    """(T,) cell of a regular grid over the box of positions (T, P), of which three count: cubes of equal side."""
    if not len(position):
        return np.zeros(0, dtype=np.int64)
    low = position.min(axis=0)
    side = float((position.max(axis=0) - low).max()) / per_side or 1.0
    at = np.minimum(((position - low) / side).astype(np.int64), per_side - 1)
    return np.asarray(at[:, :3] @ per_side ** np.arange(min(at.shape[1], 3)))


def groups(data: ModalityData, patient_id: PatientId, *, units: str, per_side: int) -> NDArray[np.int64]:
    """(T,) unit of every token of a patient's stored sample, for layout ``vectors``; (C,) columns otherwise."""
    sample = data.samples[patient_id]
    if units == "identity":
        return sample.position[:, 0].astype(np.int64)
    if units == "region":
        return cells(sample.position, per_side=per_side)
    if units == "group":
        names = group_names(data)
        return np.array([names.index(_group(column.name)) for column in data.columns], dtype=np.int64)
    return np.arange(len(sample.tokens), dtype=np.int64)


def _group(column: str) -> str:
    """Columns that a loader made of one variable share what stands before their last dot: ``creatinine.slope``."""
    return column.rpartition(".")[0] or column


def group_names(data: ModalityData) -> tuple[str, ...]:
    """Variables of an EHR, each with its last value, slope, counts and whatever else was made of it."""
    return tuple(dict.fromkeys(_group(column.name) for column in data.columns))


def set_names(data: ModalityData, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the gene sets, and of what is in none."""
    return (*sorted({*data.gene_sets, *more}), NO_SET)


def set_shares(data: ModalityData, names: Sequence[str]) -> Array:
    """(C, sets) share of each column in each set: a column of several sets is divided equally, so that sums hold."""
    row = {column.name: c for c, column in enumerate(data.columns)}
    member = np.zeros((len(data.columns), len(names)))
    for s, name in enumerate(names):
        member[[row[gene] for gene in data.gene_sets.get(name, ()) if gene in row], s] = 1.0
    member[:, -1] = member[:, :-1].sum(axis=1) == 0
    return np.asarray(member / member.sum(axis=1, keepdims=True))


def positions_of(
    data: ModalityData, patient_id: PatientId, group: NDArray[np.int64], found: NDArray[np.int64], *, units: str
) -> NDArray[np.float32]:
    """(U, P) mean position of the tokens of each unit in ``found``."""
    if data.layout == "columns" or units == "wave":
        return found[:, None].astype(np.float32)
    position = data.samples[patient_id].position
    return np.stack([position[group == unit].mean(axis=0) for unit in found]).astype(np.float32)


def without_units(
    data: ModalityData, patient_id: PatientId, units: NDArray[np.int64], group: NDArray[np.int64]
) -> Mapping[str, NDArray[np.float32]] | None:
    """A sample without some units: cells go missing, instances leave; None when none is left."""
    sample, gone = data.samples[patient_id], np.isin(group, units)
    if data.layout == "columns":
        tokens = np.array(sample.tokens, dtype=np.float32)
        tokens[gone] = 0.0
        return {"tokens": tokens, "position": sample.position}
    if gone.all():
        return None
    return {"tokens": np.asarray(sample.tokens[~gone], dtype=np.float32), "position": sample.position[~gone]}


def unit_sums(
    found: Array,
    *,
    path: Path,
    preprocessing: Preprocessing,
    data: ModalityData,
    units: str,
    names: Sequence[str],
    groups: Sequence[NDArray[np.int64]],
) -> Array:
    """What the inputs of an encoder's path count for, (B, U) or (B, N, L), as sums over units (B, units)."""
    n = len(found)
    if units == "wave":
        out = np.zeros((n, len(names)))
        np.add.at(out.T, waves(data.feature_names)[1][preprocessing.source], found.sum(axis=1).T)
        return out
    if data.layout == "vectors":
        out = np.zeros((n, 1 + max(int(group.max()) for group in groups)))
        for row, group in enumerate(groups):
            np.add.at(out[row], group, found[row, : len(group)])
        return out
    if path.unit == "edge" and units == "gene_set":
        out = np.zeros((n, len(names)))
        out[:, [names.index(name) for name in path.names]] = found.sum(axis=2)
        return out
    source = preprocessing.source
    if path.unit == "column":
        source = source[np.unique(preprocessing.column_of_feature, return_index=True)[1]]
    out = np.zeros((n, len(data.columns)))
    if path.index is not None:
        index = source[path.index.numpy()].ravel()
        np.add.at(out.T, index, found.reshape(n, -1).T)  # padded edges hold zeros
    else:
        np.add.at(out.T, source, found.T)
    if units == "group":
        return np.asarray(out @ (groups[0][:, None] == np.arange(len(names))))
    return out if units == "column" else out @ set_shares(data, names)
