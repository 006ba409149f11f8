"""Members of a fold that read one modality, with everything but that modality encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.batch import Batch
from medfuse.models import MultimodalModel
from medfuse.models.encoders.base import Encoder, Path
from medfuse.preprocessing import Preprocessing
from medfuse.sample import ModalityData
from medfuse.training.fold import FoldModel
from medfuse.training.member import make_batch, transform_patients
from medfuse.types import PatientId


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows S of the other modalities of n patients: r rows that show S and the modality explained.

    Attributes:
        patient: (r,) row of the patient.
        keep: (r, M) what is shown.
        share: (r,) Shapley weight of S.
    """

    patient: NDArray[np.int64]
    keep: NDArray[np.bool_]
    share: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One member on a few patients.

    Attributes:
        number: of the member in its fold.
        model: in evaluation, without gradients of its weights.
        column: of the modality among the member's.
        preprocessing: of the modality.
        inputs: its tokens, mask and positions.
        tokens, masks: of all its modalities, encoded.
        patient: (q,) row of the patient, of the member's own distinct rows.
        keep: (q, M') what they show.
        back: (r,) own row of each row of the coalitions.
        outcome: its name.
    """

    number: int
    model: MultimodalModel
    column: int
    preprocessing: Preprocessing
    inputs: tuple[Tensor, Tensor, Tensor]
    tokens: Sequence[Tensor]
    masks: Sequence[Tensor]
    patient: Tensor
    keep: Tensor
    back: Tensor
    outcome: str

    @property
    def encoder(self) -> Encoder:
        """Of the modality."""
        found: Encoder = self.model.encoders[self.column]  # type: ignore[assignment]
        return found

    def path(self) -> Path:
        """The line from nothing to the patients' own tokens."""
        with torch.no_grad():
            return self.encoder.path(*self.inputs)

    def links(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(q, L) links of its own rows when the modality's encoded tokens and mask (B, K, D), (B, K) are these."""
        every, masks = list(self.tokens), list(self.masks)
        every[self.column], masks[self.column] = tokens, mask
        at, there = self.patient, self.keep
        found = [torch.where(there[:, i, None, None], t[at], 0.0) for i, t in enumerate(every)]
        seen = [m[at] & there[:, i, None] for i, m in enumerate(masks)]
        logits = self.model.decode(self.model.fusion(found, seen, there))[self.outcome]
        return self.model.head(self.outcome).link(logits).double()


def coalitions_with(present: NDArray[np.bool_], column: int) -> Rows:
    """All coalitions of the other modalities of each of n patients, who all have the modality of ``column``."""
    from medfuse.explain.readout import share_of

    patient, keep, share = [], [], []
    for row, has in enumerate(present):
        others = [i for i in np.flatnonzero(has).tolist() if i != column]
        for number in range(1 << len(others)):
            shown = np.zeros(len(has), dtype=bool)
            shown[[i for bit, i in enumerate(others) if number >> bit & 1]] = True
            shown[column] = True
            patient.append(row)
            keep.append(shown)
            share.append(float(share_of([number.bit_count()], len(others) + 1)[0]))
    return Rows(patient=np.array(patient), keep=np.array(keep), share=np.array(share))


@torch.no_grad()
def readers_of(
    fold: FoldModel,
    data: dict[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    modality: str,
    rows: Rows,
    outcome: str,
) -> list[Reader]:
    """The members that read a modality, ready to answer for ``rows`` of the patients ``ids``."""
    found, shared, batch = [], None, None
    for number in sorted(range(len(fold.members)), key=lambda k: (fold.members[k].expert, fold.members[k].inner)):
        member = fold.members[number]
        if modality not in member.shapes:
            continue
        if batch is None or (member.expert, member.inner) != shared:
            batch = make_batch(transform_patients(data, member.preprocessing, ids), ids, shapes=member.shapes)
            shared = (member.expert, member.inner)
        model = member.build().requires_grad_(requires_grad=False)
        column = list(member.shapes).index(modality)
        tokens, masks = model.encode(batch)
        keep = rows.keep[:, [fold.modalities.index(name) for name in member.shapes]]
        own, back = np.unique(np.column_stack([rows.patient, keep]), axis=0, return_inverse=True)
        found.append(
            Reader(
                number=number,
                model=model,
                column=column,
                preprocessing=member.preprocessing[modality],
                inputs=door(batch, modality),
                tokens=tokens,
                masks=masks,
                patient=torch.from_numpy(own[:, 0].astype(np.int64)),
                keep=torch.from_numpy(own[:, 1:].astype(bool)),
                back=torch.from_numpy(back.reshape(-1).astype(np.int64)),
                outcome=outcome,
            )
        )
    return found


def door(batch: Batch, modality: str) -> tuple[Tensor, Tensor, Tensor]:
    """What the model lets in of a modality; everybody here has it."""
    mask, real = batch.token_mask[modality], batch.token_mask[modality][..., None]
    return torch.where(real, batch.tokens[modality], 0.0), mask, torch.where(real, batch.position[modality], 0.0)
