"""Patients as tensors: a batch, how it is made, and which modalities it shows.

Which modalities a patient has is data (``present``): modality dropout, a missing scan and "what if we had no genomics"
are one operation, a new ``present``. What stands in an absent slot is never read.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.errors import ModelError, nearest
from medfuse.sample import ModalitySample
from medfuse.targets import Labels, Survival, Target
from medfuse.types import Layout, OutcomeKind, PatientId


def sent(small: Tensor, device: torch.device) -> Tensor:
    """A small tensor on ``device``; from the CPU to a GPU without waiting until that has done what it was asked before.

    Only from memory that the system may not move (pinned; torch keeps it for the next time) can a copy wait in line.
    """
    if device.type == "cuda" and small.device.type == "cpu":
        return small.pin_memory().to(device, non_blocking=True)
    return small.to(device)


@dataclass(frozen=True, kw_only=True)
class ModalityShape:
    """What a model has to know of a modality after preprocessing.

    Attributes:
        layout: ``columns`` (tokens are value and observed flag per feature) or ``vectors``.
        features: p features of layout ``columns``, F of a token of layout ``vectors``.
        columns: number of columns kept (layout ``columns`` only).
        column_of_feature: p column indices, nondecreasing or not; one-hot features of a column share one.
        missing_features: indices of the features that are ever missing in train (None = any may be).
        names: names of the features, needed by encoders that look them up (``pathway``).
        pathways: names of features per gene set, of the sets that the card names.
        identities: names of the token identities; empty for a free bag.
        coordinates: P, numbers per token position.
        item: shape of one raw item, channels first, whose flattened numbers are the features; () where there is none.
    """

    layout: Layout
    features: int
    columns: int = 0
    column_of_feature: tuple[int, ...] = ()
    missing_features: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    pathways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    coordinates: int = 1
    item: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.features < 1:
            msg = f"ModalityShape: expected at least one feature, found {self.features}; was every column dropped?"
            raise ModelError(msg)
        if self.item and (self.layout != "vectors" or math.prod(self.item) != self.features):
            msg = f"ModalityShape: expected items {self.item} of layout vectors, found {self.layout}, {self.features}"
            raise ModelError(msg)
        if self.layout == "columns" and not self.column_of_feature:
            object.__setattr__(self, "column_of_feature", tuple(range(self.features)))
        if self.layout == "columns" and not self.columns:
            object.__setattr__(self, "columns", max(self.column_of_feature) + 1)
        object.__setattr__(self, "pathways", {name: tuple(members) for name, members in self.pathways.items()})
        known = self.column_of_feature
        if self.layout == "columns" and (
            len(known) != self.features or not 0 <= min(known) <= max(known) < self.columns
        ):
            msg = (
                f"ModalityShape: expected {self.features} column indices below {self.columns}, "
                f"found {len(known)} from {min(known)} to {max(known)}"
            )
            raise ModelError(msg)

    def token_shape(self) -> tuple[int, int]:
        """(T, F) of the tokens; T is 1 for ``vectors``, where it varies."""
        return (self.features, 2) if self.layout == "columns" else (1, self.features)


@dataclass(frozen=True, kw_only=True)
class TargetTensors:
    """One outcome of B patients; ``observed`` is (B,) bool, and unobserved rows are never read.

    Attributes:
        kind: kind of the outcome, which says which of the other fields are filled.
        observed: (B,) bool.
        event: (B,) bool, survival.
        time: (B,) float32 days, survival.
        label: (B,) int64 class index, binary and multiclass.
        value: (B,) float32, continuous.
    """

    kind: OutcomeKind
    observed: Tensor
    event: Tensor | None = None
    time: Tensor | None = None
    label: Tensor | None = None
    value: Tensor | None = None

    def __len__(self) -> int:
        return len(self.observed)

    def apply(self, function: Callable[[Tensor], Tensor]) -> "TargetTensors":
        """The same outcome with ``function`` applied to each tensor."""
        return TargetTensors(kind=self.kind, **{name: function(t) for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are filled, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: t for name, t in found.items() if isinstance(t, Tensor)}


def target_tensors(target: Target) -> TargetTensors:
    """An outcome as tensors; unobserved rows hold zeros."""
    observed = torch.from_numpy(np.ascontiguousarray(target.observed))

    def masked(values: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.where(target.observed, values, 0)).to(dtype)

    if isinstance(target, Survival):
        time = masked(target.time, torch.float32)
        return TargetTensors(kind="survival", observed=observed, event=masked(target.event, torch.bool), time=time)
    if isinstance(target, Labels):
        kind: OutcomeKind = "binary" if len(target.classes) == 2 else "multiclass"
        return TargetTensors(kind=kind, observed=observed, label=masked(target.label, torch.int64))
    return TargetTensors(kind="continuous", observed=observed, value=masked(target.value, torch.float32))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B patients in M modalities.

    Attributes:
        tokens: per modality (B, T, F) float32.
        token_mask: per modality (B, T) bool, True where a token is real.
        position: per modality (B, T, P) float32: identity index or coordinates.
        present: (B, M) bool, True where the modality may be used.
        modalities: the M names, in the order of ``present``.
        targets: outcomes by name, with their own masks.
        patient_ids: B ids.

    Raises:
        ModelError: when shapes disagree.
    """

    tokens: Mapping[str, Tensor]
    token_mask: Mapping[str, Tensor]
    position: Mapping[str, Tensor]
    present: Tensor
    modalities: tuple[str, ...]
    targets: Mapping[str, TargetTensors] = field(default_factory=dict)
    patient_ids: tuple[PatientId, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.patient_ids)
        if self.present.shape != (n, len(self.modalities)) or self.present.dtype != torch.bool:
            msg = (
                f"Batch: expected boolean present ({n}, {len(self.modalities)}), "
                f"found {self.present.dtype} {tuple(self.present.shape)}"
            )
            raise ModelError(msg)
        for name in self.modalities:
            if name not in self.tokens:
                msg = f'Batch: modality "{name}" has no tokens. {nearest(name, self.tokens)}'
                raise ModelError(msg)
            tokens, mask, position = self.tokens[name], self.token_mask[name], self.position[name]
            if (
                tokens.ndim != 3
                or len(tokens) != n
                or mask.shape != tokens.shape[:2]
                or position.shape[:2] != mask.shape
            ):
                msg = (
                    f'Batch: modality "{name}": expected tokens ({n}, T, F), mask ({n}, T), position ({n}, T, P), '
                    f"found {tuple(tokens.shape)}, {tuple(mask.shape)}, {tuple(position.shape)}"
                )
                raise ModelError(msg)
        for name, target in self.targets.items():
            if len(target) != n:
                msg = f'Batch: outcome "{name}": expected {n} patients, found {len(target)}'
                raise ModelError(msg)

    def __len__(self) -> int:
        return len(self.patient_ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{m} {tuple(self.tokens[m].shape)}" for m in self.modalities)
        return f"Batch({len(self)} patients; {shapes}; outcomes {', '.join(self.targets) or 'none'})"

    def _tensors(self) -> Iterator[Tensor]:
        for name in self.modalities:
            yield from (self.tokens[name], self.token_mask[name], self.position[name])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.present.device

    @property
    def nbytes(self) -> int:
        """Bytes held by tokens, masks and positions."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def _apply(self, function: Callable[[Tensor], Tensor], patient_ids: tuple[PatientId, ...]) -> "Batch":
        return Batch(
            tokens={m: function(t) for m, t in self.tokens.items()},
            token_mask={m: function(t) for m, t in self.token_mask.items()},
            position={m: function(t) for m, t in self.position.items()},
            present=function(self.present),
            modalities=self.modalities,
            targets={o: t.apply(function) for o, t in self.targets.items()},
            patient_ids=patient_ids,
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return self._apply(lambda t: t.to(device, non_blocking=non_blocking), self.patient_ids)

    def select(self, index: Tensor | Sequence[int]) -> "Batch":
        """Patients ``index`` (B',) int64, in that order."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        ids = tuple(self.patient_ids[i] for i in rows.tolist())
        there = sent(rows, self.device)
        return self._apply(lambda t: t.index_select(0, there), ids)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One patient on the way into a batch.

    Attributes:
        patient_id: id.
        samples: preprocessed samples by modality; a modality the patient lacks is not in it.
        targets: one-row outcomes by name; an outcome the patient lacks may be left out.
    """

    patient_id: PatientId
    samples: Mapping[str, ModalitySample]
    targets: Mapping[str, Target] = field(default_factory=dict)


def collate(items: Sequence[Item], *, shapes: Mapping[str, ModalityShape] | None = None) -> Batch:
    """Pad items to one batch.

    Args:
        items: B >= 1 patients.
        shapes: shape per modality, which fixes the modalities and their order and makes room for a modality that
            nobody here has. Without it, the modalities seen are taken in sorted order.

    Raises:
        ModelError: no items, a modality outside ``shapes``, or tokens of another width than the others or the shape.
    """
    if not items:
        msg = "collate: expected at least one patient, found none"
        raise ModelError(msg)
    seen = sorted({m for item in items for m in item.samples})
    names = tuple(shapes) if shapes is not None else tuple(seen)
    for name in seen:
        if name not in names:
            msg = f'collate: modality "{name}" is not one of the model. {nearest(name, names)}'
            raise ModelError(msg)
    tokens, masks, positions = {}, {}, {}
    for name in names:
        tokens[name], masks[name], positions[name] = _pad(name, items, shapes[name] if shapes else None)
    outcomes = sorted({o for item in items for o in item.targets})
    return Batch(
        tokens=tokens,
        token_mask=masks,
        position=positions,
        present=torch.tensor([[m in item.samples for m in names] for item in items], dtype=torch.bool).view(
            -1, len(names)
        ),
        modalities=names,
        targets={o: _stack_targets(o, items) for o in outcomes},
        patient_ids=tuple(item.patient_id for item in items),
    )


def _pad(name: str, items: Sequence[Item], shape: ModalityShape | None) -> tuple[Tensor, Tensor, Tensor]:
    samples = [item.samples.get(name) for item in items]
    first = next((s for s in samples if s is not None), None)
    if shape is not None:
        least, width = shape.token_shape()
        coordinates = shape.coordinates
    elif first is not None:
        least, width, coordinates = 1, first.tokens.shape[1], first.position.shape[1]
    length = max([least, *(len(s.tokens) for s in samples if s is not None)])
    tokens = np.zeros((len(items), length, width), dtype=np.float32)
    mask = np.zeros((len(items), length), dtype=bool)
    position = np.zeros((len(items), length, coordinates), dtype=np.float32)
    for row, sample in enumerate(samples):
        if sample is None:
            continue
        if sample.tokens.shape[1] != width or sample.position.shape[1] != coordinates:
            msg = (
                f'collate: modality "{name}", patient {items[row].patient_id}: expected tokens (T, {width}) and '
                f"position (T, {coordinates}), found {sample.tokens.shape}, {sample.position.shape}; preprocess alike"
            )
            raise ModelError(msg)
        t = len(sample.tokens)
        mask[row, :t], position[row, :t] = True, sample.position
        if sample.tokens.dtype == np.float16 and sample.tokens.flags.writeable:  # torch widens faster than numpy
            torch.from_numpy(tokens[row, :t]).copy_(torch.from_numpy(sample.tokens))
        else:
            tokens[row, :t] = sample.tokens
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(position)


def _stack_targets(outcome: str, items: Sequence[Item]) -> TargetTensors:
    rows = [target_tensors(item.targets[outcome]) if outcome in item.targets else None for item in items]
    like = next(row for row in rows if row is not None)
    blank = like.apply(torch.zeros_like)
    filled = [blank if row is None else row for row in rows]
    for item, row in zip(items, filled, strict=True):
        if row.kind != like.kind or len(row) != 1:
            msg = (
                f'collate: outcome "{outcome}", patient {item.patient_id}: expected one {like.kind} row, '
                f"found {len(row)} of {row.kind}"
            )
            raise ModelError(msg)
    columns = [row.tensors() for row in filled]
    return TargetTensors(kind=like.kind, **{name: torch.cat([c[name] for c in columns]) for name in like.tensors()})


def without_modality(batch: Batch, name: str) -> Batch:
    """The same patients as if none of them had modality ``name``."""
    if name not in batch.modalities:
        msg = f'without_modality: unknown modality "{name}": {nearest(name, batch.modalities)}'
        raise ModelError(msg)
    present = batch.present.clone()
    present[:, batch.modalities.index(name)] = False
    return replace(batch, present=present)


def drop_modalities(batch: Batch, *, generator: torch.Generator, keep_all: float = 0.3) -> Batch:
    """Hide modalities of patients at random, for training.

    With probability ``keep_all`` a patient keeps everything. Otherwise the number kept of the k present ones is drawn
    uniformly from 0..k-1, and then which. Every subset happens, the empty one included, and the whole patient often.

    Args:
        batch: B patients.
        generator: source of the draws, on any device; no other random state is touched.
        keep_all: probability in [0, 1].

    Returns:
        A batch with a new ``present``; everything else is shared.

    References:
        Own rule; Neverova et al. (2016), ModDrop, and Liu et al. (2025), MuteBench, are the reasons for dropping whole
        modalities and for covering every rate.
    """
    present = batch.present
    n, m = present.shape
    draws = sent(torch.rand((n, m + 2), generator=generator, device=generator.device), present.device)
    count = present.sum(1)  # (B,)
    kept = torch.minimum((draws[:, 0] * count).long(), (count - 1).clamp(min=0))
    order = torch.where(present, draws[:, 2:], 2.0).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)  # (B, M), absent modalities last
    keep = (rank < kept[:, None]) | (draws[:, 1:2] < keep_all)
    return replace(batch, present=present & keep)


def cap_tokens(batch: Batch, name: str, *, limit: int, generator: torch.Generator) -> Batch:
    """Keep at most ``limit`` tokens of modality ``name`` per patient, drawn without replacement, in their order.

    For bags in training only: evaluation reads every token.

    Raises:
        ModelError: for an unknown modality or a limit below one.
    """
    if name not in batch.modalities or limit < 1:
        known = nearest(name, batch.modalities)
        msg = f'cap_tokens: expected a known modality and limit >= 1, found "{name}", {limit}. {known}'
        raise ModelError(msg)
    mask = batch.token_mask[name]
    if mask.shape[1] <= limit:
        return batch
    draws = sent(torch.rand(mask.shape, generator=generator, device=generator.device), mask.device)
    chosen = torch.where(mask, draws, 2.0).topk(limit, dim=1, largest=False).indices.sort(dim=1).values

    def gathered(t: Tensor) -> Tensor:
        return t.gather(1, chosen[..., None].expand(-1, -1, t.shape[2]))

    return replace(
        batch,
        tokens={**batch.tokens, name: gathered(batch.tokens[name])},
        position={**batch.position, name: gathered(batch.position[name])},
        token_mask={**batch.token_mask, name: mask.gather(1, chosen)},
    )
