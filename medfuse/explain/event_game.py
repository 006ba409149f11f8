"""The contribution of a record as a function of which of its events there are, for one patient."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.errors import ConfigError, nearest
from medfuse.explain.reader import Reader, Rows, coalitions_with, door, readers_of
from medfuse.explain.readout import Readout, make_readout, readout_links
from medfuse.explain.tokens import Options
from medfuse.sample import ModalityData, ModalitySample
from medfuse.training.fold import FoldModel, presence
from medfuse.training.member import make_batch, transform_patients
from medfuse.training.patterns import MOST_MODALITIES
from medfuse.types import PatientId

Array = NDArray[np.float64]
Kept = NDArray[np.bool_]
_NUMBERS = 4_000_000  # encoded numbers that are looked at together


@dataclass(frozen=True, kw_only=True)
class EventGame:
    """One patient's record within all coalitions of the other modalities.

    Attributes:
        outcome: its name.
        contribution: of the modality, at the horizon.
        recalibration: its part that no event has.
        own: the modality; ``again`` makes samples of it of some of the events.
        fold: the model.
        rows: coalitions of the other modalities.
        readers: members that read the modality; ``fixed`` (r, L) links of the others.
        readout: of the rows; ``slope`` (r, L) its derivative at all events.
        absent: (1 + R,) value, and that of each replicate to first order, when the modality is absent.
    """

    outcome: str
    contribution: float
    recalibration: float
    own: ModalityData
    again: Callable[[Kept], Sequence[ModalitySample | None]]
    fold: FoldModel
    rows: Rows
    readers: Sequence[Reader]
    fixed: Mapping[int, Tensor]
    readout: Readout
    slope: Tensor
    absent: Array

    def values(self, kept: Kept) -> Array:
        """(1 + R, k) the Shapley-weighted value with the modality as some events (k, n) make it, and by replicate.

        What does not depend on events is left in: only differences mean something.
        """
        out = np.repeat(self.absent[:, None], len(kept), axis=1)
        samples = self.again(kept)
        there = [k for k, sample in enumerate(samples) if sample is not None]
        most = max(1, _NUMBERS // max(1, len(self.rows.share) * _width(self.readers)))
        for at in range(0, len(there), most):
            copies = there[at : at + most]
            out[:, copies] = self._several([sample for k in copies if (sample := samples[k]) is not None])
        return out

    @torch.no_grad()
    def _several(self, samples: Sequence[ModalitySample]) -> Array:
        copies = len(samples)
        links = self._links(samples)
        r = len(self.rows.share)
        readout = self.readout.select(torch.arange(r).repeat(copies))
        fixed = {k: link.repeat(copies, 1) for k, link in self.fixed.items()}
        value = readout.value(readout.combined({**fixed, **links})).numpy()
        slope = self.slope.repeat(copies, 1)
        each = [linear(readout, links, slope, group) for group in readout.replicates]
        return np.stack([one.reshape(copies, r) @ self.rows.share for one in (value, *each)])

    def _links(self, samples: Sequence[ModalitySample]) -> dict[int, Tensor]:
        """(copies * r, L) of every reader."""
        ids = [PatientId(str(k)) for k in range(len(samples))]
        name = self.own.name
        data = {name: dataclasses.replace(self.own, samples=dict(zip(ids, samples, strict=True)))}
        copies, found = len(samples), {}
        shared, inputs = None, self.readers[0].inputs
        for reader in self.readers:
            member = self.fold.members[reader.number]
            if (member.expert, member.inner) != shared:
                shared = (member.expert, member.inner)
                ready = transform_patients(data, {name: reader.preprocessing}, ids)
                inputs = door(make_batch(ready, ids, shapes={name: member.shapes[name]}), name)
            one = _repeated(reader, copies)
            found[reader.number] = one.links(*reader.encoder(*inputs))[one.back]
        return found


def _width(readers: Sequence[Reader]) -> int:
    """Encoded numbers of one patient: the widest of the members."""
    return max((sum(t.shape[1] * t.shape[2] for t in reader.tokens) for reader in readers), default=1)


def _repeated(reader: Reader, copies: int) -> Reader:
    """A reader of one patient as that of so many copies of it, copy by copy."""
    q = len(reader.patient)
    start = torch.arange(copies).repeat_interleave(len(reader.back)) * q
    return dataclasses.replace(
        reader,
        tokens=[t.expand(copies, -1, -1) for t in reader.tokens],
        masks=[m.expand(copies, -1) for m in reader.masks],
        patient=torch.arange(copies).repeat_interleave(q),
        keep=reader.keep.repeat(copies, 1),
        back=start + reader.back.repeat(copies),
    )


def linear(readout: Readout, links: Mapping[int, Tensor], slope: Tensor, group: Sequence[int]) -> Array:
    """(r,) what the members of a replicate say, as if they were all, to first order."""
    total = (slope * readout.base).sum(1)
    for k in group:
        if k in links:
            total = total + len(readout.replicates) * readout.coefficient[k] * (slope * links[k]).sum(1)
    return np.asarray(total.numpy(), dtype=np.float64)


def event_game(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    patient: PatientId,
    *,
    again: Callable[[Kept], Sequence[ModalitySample | None]],
    modality: str,
    horizon: float | None,
    options: Options,
) -> EventGame:
    """The game of one patient's events.

    Raises:
        ConfigError: no such modality, outcome, horizon or class, or more than 8 modalities.
    """
    if modality not in fold.modalities or len(fold.modalities) > MOST_MODALITIES:
        msg = f"explain: expected {MOST_MODALITIES} modalities at most and no {modality!r} outside of them; "
        raise ConfigError(msg + nearest(modality, fold.modalities))
    column = fold.modalities.index(modality)
    has = presence(data, fold.modalities, [patient])
    rows = coalitions_with(has, column)
    without = rows.keep.copy()
    without[:, column] = False
    full, none = (
        make_readout(
            fold,
            keep,
            outcome=options.outcome,
            horizon=horizon,
            label=options.class_index,
        )
        for keep in (rows.keep, without)
    )
    links, before = (
        readout_links(fold, data, [patient], patient=np.zeros_like(rows.patient), keep=keep, outcome=full.outcome)
        for keep in (rows.keep, without)
    )
    readers = readers_of(fold, dict(data), [patient], modality=modality, rows=rows, outcome=full.outcome)
    numbers = {reader.number for reader in readers}
    whole, nothing = full.combined(links), none.combined(before)
    slope = full.slope(whole)
    absent = full.value(nothing).numpy()  # read as events are: within one recalibration
    fixed = {k: link for k, link in before.items() if k in numbers}
    each = [linear(none, fixed, slope, group) for group in full.replicates]
    base = none.value(nothing).numpy()
    return EventGame(
        outcome=full.outcome,
        contribution=float(rows.share @ (full.value(whole).numpy() - base)),
        recalibration=float(rows.share @ (absent - base)),
        own=data[modality],
        again=again,
        fold=fold,
        rows=rows,
        readers=readers,
        fixed={k: link for k, link in links.items() if k not in numbers},
        readout=full,
        slope=slope,
        absent=np.stack([absent, *each]) @ rows.share,
    )
