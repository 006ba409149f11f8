"""Patients whose bags stay on disk: read, standardised and padded when a batch of them is asked for."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medfuse.batch import Batch, Item, ModalityShape, TargetTensors, collate, target_tensors
from medfuse.preprocessing import Preprocessing, transform
from medfuse.sample import ModalityData, ModalitySample
from medfuse.targets import Target
from medfuse.training.checkpoint import batch_sha256
from medfuse.training.member import Samples, make_batch, shapes_of, transform_patients
from medfuse.types import PatientId

IN_MEMORY = 64 << 20  # bytes of padded bags up to which all patients of a set are kept as one batch
READ = 32 << 20  # bytes of padded bags of a batch that is only predicted
CHUNK = 256  # patients of such a batch
_BEGIN = 256  # patients from whom prototypes start where not all fit into memory


@dataclass(frozen=True, kw_only=True)
class Patients:
    """What :class:`medfuse.batch.Batch` is in memory, for a cohort with larger bags: batches of it are made on demand.

    Attributes:
        data: modalities as stored.
        preprocessing: per modality.
        shapes: per modality, in the order of ``present``.
        patient_ids: n ids.
        present: (n, M) bool.
        targets: n outcomes each, by name.
        tables: preprocessed samples of layout ``columns``, which are small.
        device: where batches go.
    """

    data: Mapping[str, ModalityData]
    preprocessing: Mapping[str, Preprocessing]
    shapes: Mapping[str, ModalityShape]
    patient_ids: tuple[PatientId, ...]
    present: Tensor
    targets: Mapping[str, TargetTensors] = field(default_factory=dict)
    tables: Samples = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.patient_ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the order of ``present``."""
        return tuple(self.shapes)

    def to(self, device: torch.device | str) -> "Patients":
        """The same patients, whose batches go to ``device``."""
        there = torch.device(device)
        targets = {name: target.apply(lambda t: t.to(there)) for name, target in self.targets.items()}
        return dataclasses.replace(self, device=there, targets=targets)

    def select(self, index: Tensor | Sequence[int], *, most_tokens: int = 0, seed: int = 0) -> Batch:
        """Patients ``index`` as a batch; what is not selected is not read.

        Args:
            index: (B',) rows.
            most_tokens: of a bag, so many are drawn without replacement and stay in their order; 0 = all.
            seed: of these draws.
        """
        rows = torch.as_tensor(index, dtype=torch.int64)
        draws = np.random.default_rng(seed)
        items = [Item(patient_id=i, samples=self._read(i, most_tokens, draws)) for i in self._ids(rows)]
        batch = collate(items, shapes=self.shapes).to(self.device)
        there = rows.to(self.device)
        targets = {name: target.apply(lambda t: t.index_select(0, there)) for name, target in self.targets.items()}
        return dataclasses.replace(batch, targets=targets)

    def batches(self) -> "Chunks":
        """All patients in their order, in batches that fit into memory."""
        return Chunks(patients=self, groups=tuple(_groups(self.data, self.preprocessing, self.patient_ids)))

    def beginning(self, *, seed: int) -> Batch:
        """Some patients with some tokens of each, for what is fitted before the first step."""
        rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:_BEGIN]
        widths = [len(p.feature_names) for p in self.preprocessing.values() if p.layout == "vectors"]
        tokens = IN_MEMORY // (4 * len(rows) * max(1, sum(widths)))
        return self.select(rows, most_tokens=min(max(tokens, 16), 1024), seed=seed)

    def sha256(self) -> str:
        """Over everything a batch of these patients can hold, by the content address of stored modalities."""
        digest = hashlib.sha256("\0".join(self.patient_ids).encode())
        digest.update(self.present.numpy().tobytes())
        for name, target in self.targets.items():
            for key, tensor in target.tensors().items():
                digest.update(f"{name} {key}".encode() + tensor.cpu().numpy().tobytes())
        for name, data in self.data.items():
            p = self.preprocessing[name]
            digest.update(f"{name} {data.key}".encode() + p.mean.tobytes() + p.scale.tobytes() + p.source.tobytes())
            for patient in self.patient_ids if not data.key else ():
                sample = data.samples.get(patient)
                if sample is not None:
                    digest.update(np.ascontiguousarray(sample.tokens).tobytes() + sample.position.tobytes())
        return digest.hexdigest()

    def _ids(self, rows: Tensor) -> tuple[PatientId, ...]:
        return tuple(self.patient_ids[row] for row in rows.tolist())

    def _read(self, patient: PatientId, most: int, draws: np.random.Generator) -> dict[str, ModalitySample]:
        found: dict[str, ModalitySample] = {}
        for name, data in self.data.items():
            if name in self.tables:
                if patient in self.tables[name]:
                    found[name] = self.tables[name][patient]
            elif patient in data.samples:
                sample = data.samples[patient]
                if 0 < most < len(sample.tokens):
                    sample = sample.take(np.sort(draws.choice(len(sample.tokens), most, replace=False)))
                found[name] = transform(self.preprocessing[name], sample)
        return found


@dataclass(frozen=True, kw_only=True)
class Chunks(Sequence[Batch]):
    """Batches of consecutive patients, read anew at every pass.

    Attributes:
        patients: all of them.
        groups: rows of each batch.
    """

    patients: Patients
    groups: tuple[range, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]  # nobody slices them
        return self.patients.select(list(self.groups[number]))


def gather(
    data: Mapping[str, ModalityData],
    preprocessing: Mapping[str, Preprocessing],
    ids: Sequence[PatientId],
    *,
    targets: Mapping[str, Target] | None = None,
    shapes: Mapping[str, ModalityShape] | None = None,
) -> Batch | Patients:
    """Patients ``ids`` as one batch where their bags fit into memory, else to be read when they are asked for.

    Args:
        data: modalities.
        preprocessing: of those that are wanted.
        ids: patients.
        targets: aligned with them.
        shapes: of the modalities; default: as ``data`` and ``preprocessing`` say.
    """
    known = shapes_of(preprocessing, data) if shapes is None else shapes
    if _fit(data, preprocessing, ids):
        return make_batch(transform_patients(data, preprocessing, ids), ids, shapes=known, targets=targets)
    return _on_disk(data, preprocessing, ids, shapes=known, targets=targets or {})


def _fit(
    data: Mapping[str, ModalityData], preprocessing: Mapping[str, Preprocessing], ids: Sequence[PatientId]
) -> bool:
    return sum(padded_bytes(data, preprocessing, ids)) <= IN_MEMORY


def _on_disk(
    data: Mapping[str, ModalityData],
    preprocessing: Mapping[str, Preprocessing],
    ids: Sequence[PatientId],
    *,
    shapes: Mapping[str, ModalityShape],
    targets: Mapping[str, Target],
) -> Patients:
    tables = {name: p for name, p in preprocessing.items() if p.layout == "columns"}
    has = [[name in data and i in data[name].samples for name in shapes] for i in ids]
    return Patients(
        data={name: data[name] for name in shapes if name in data},
        preprocessing=preprocessing,
        shapes=shapes,
        patient_ids=tuple(ids),
        present=torch.tensor(has, dtype=torch.bool).view(-1, len(shapes)),
        targets={name: target_tensors(target) for name, target in targets.items()},
        tables=transform_patients(data, tables, ids),
    )


def data_sha256(patients: Batch | Patients | None) -> str:
    """What tells these patients from others, so that no fit is continued on other data."""
    return patients.sha256() if isinstance(patients, Patients) else batch_sha256(patients)


def batches_of(
    data: Mapping[str, ModalityData],
    preprocessing: Mapping[str, Preprocessing],
    ids: Sequence[PatientId],
    *,
    shapes: Mapping[str, ModalityShape],
) -> Sequence[Batch]:
    """Batches of at most 256 patients, in the order of ``ids``; what does not fit into memory is read at each pass."""
    if not _fit(data, preprocessing, ids):
        return _on_disk(data, preprocessing, ids, shapes=shapes, targets={}).batches()
    samples = transform_patients(data, preprocessing, ids)
    return [make_batch(samples, ids[at : at + CHUNK], shapes=shapes) for at in range(0, len(ids), CHUNK)]


def padded_bytes(
    data: Mapping[str, ModalityData], preprocessing: Mapping[str, Preprocessing], ids: Sequence[PatientId]
) -> list[int]:
    """Bytes of each bag's tokens in one batch of ``ids``; tables are in memory anyway."""
    found = []
    for name, p in preprocessing.items():
        if p.layout == "vectors" and name in data:
            samples = data[name].samples
            longest = max((len(samples[i].tokens) for i in ids if i in samples), default=0)
            found.append(4 * len(ids) * longest * len(p.feature_names))
    return found


def _groups(
    data: Mapping[str, ModalityData], preprocessing: Mapping[str, Preprocessing], ids: Sequence[PatientId]
) -> Iterator[range]:
    """Consecutive rows, at most :data:`CHUNK` and, unless it is one patient, :data:`READ` bytes together."""
    bags = [name for name, p in preprocessing.items() if p.layout == "vectors" and name in data]
    start, longest = 0, dict.fromkeys(bags, 0)
    for row, patient in enumerate(ids):
        here = {m: len(data[m].samples[patient].tokens) if patient in data[m].samples else 0 for m in bags}
        longer = {m: max(longest[m], here[m]) for m in bags}
        size = sum(4 * (row - start + 1) * longer[m] * len(preprocessing[m].feature_names) for m in bags)
        if row > start and (size > READ or row - start >= CHUNK):
            yield range(start, row)
            start, longer = row, here
        longest = longer
    yield range(start, len(ids))
