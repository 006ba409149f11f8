"""What members say of patients who are shown to them with only some of their modalities.

Encoders run once per patient; only the fusion runs again for each pattern.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.batch import Batch
from medfuse.models import MultimodalModel
from medfuse.sample import ModalityData
from medfuse.training.device import enough_memory, full_precision
from medfuse.training.ensemble import link_of
from medfuse.training.fold import Links, chunks
from medfuse.training.member import Member
from medfuse.training.patterns import pattern_number
from medfuse.types import PatientId

_ROWS = 1024  # that pass through the fusion together


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Rows to compute: ``patient`` (r,) row of each, and ``keep`` (r, M) which modalities it shows of them."""

    patient: NDArray[np.intp]
    keep: NDArray[np.bool_]


def distinct_patterns(present: NDArray[np.bool_]) -> tuple[Shown, NDArray[np.intp]]:
    """The distinct subsets of each patient's own modalities, and (n, 2^M) the row that holds what each pattern shows.

    Args:
        present: (n, M) what each patient has.
    """
    n, m = present.shape
    asked = np.arange(1 << m)[None, :] & pattern_number(present)[:, None]  # (n, 2^M) what remains of each pattern
    flat, inverse = np.unique(np.arange(n)[:, None] << m | asked, return_inverse=True)
    patient, number = flat >> m, flat & ((1 << m) - 1)
    keep = (number[:, None] >> np.arange(m)) & 1 == 1
    return Shown(patient=patient.astype(np.intp), keep=keep), inverse.reshape(n, 1 << m).astype(np.intp)


def member_links(
    members: Mapping[int, Member],
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    modalities: Sequence[str],
    shown: Shown,
    outcomes: Sequence[str],
    device: torch.device | str = "cpu",
) -> dict[int, Links]:
    """Per member, by its number, and outcome: (r, L) links for the rows of ``shown``.

    Args:
        members: by number; those of one expert and inner fold share their preprocessing.
        data: modalities.
        ids: n patients.
        modalities: names of the columns of ``shown.keep``.
        shown: rows about them.
        outcomes: whose links.
        device: where the members compute.
    """
    links: dict[int, Links] = {}
    batches: Sequence[Batch] = []
    shared = None
    for k, member in sorted(members.items(), key=lambda item: (item[1].expert, item[1].inner)):
        if (member.expert, member.inner) != shared:
            batches = chunks(member, data, ids)
            shared = (member.expert, member.inner)
        own, back = _own_rows(shown, [modalities.index(name) for name in member.shapes])
        with enough_memory(f"member {member.name}"), full_precision():
            found = _links(member.build().to(device), batches, own, outcomes=outcomes)
        links[k] = {outcome: link[back] for outcome, link in found.items()}
    return links


def _own_rows(shown: Shown, columns: Sequence[int]) -> tuple[Shown, NDArray[np.intp]]:
    """The distinct rows for a member that reads some of the modalities, and which of them each row of ``shown`` is."""
    width = len(columns)
    number = pattern_number(shown.keep[:, columns])
    flat, back = np.unique(shown.patient << width | number, return_inverse=True)
    keep = ((flat & ((1 << width) - 1))[:, None] >> np.arange(width)) & 1 == 1
    return Shown(patient=(flat >> width).astype(np.intp), keep=keep), back.ravel().astype(np.intp)


@torch.no_grad()
def _links(model: MultimodalModel, batches: Sequence[Batch], shown: Shown, *, outcomes: Sequence[str]) -> Links:
    device = next(model.parameters()).device
    parts: dict[str, list[NDArray[np.float64]]] = {outcome: [] for outcome in outcomes}
    start = 0
    for batch in batches:
        inside = (shown.patient >= start) & (shown.patient < start + len(batch))
        patient = torch.from_numpy(shown.patient[inside] - start)
        keep = torch.from_numpy(shown.keep[inside])
        tokens, masks = model.encode(batch.to(device))
        for at in range(0, len(patient), _ROWS):
            rows = slice(at, at + _ROWS)
            logits = _fuse(model, tokens, masks, patient=patient[rows], keep=keep[rows])
            for outcome, found in parts.items():
                said = model.head(outcome).predict(logits[outcome])
                found.append(link_of({key: value.double().cpu().numpy() for key, value in said.items()}))
        start += len(batch)
    return {outcome: np.concatenate(found) for outcome, found in parts.items()}


def _fuse(
    model: MultimodalModel, tokens: Sequence[Tensor], masks: Sequence[Tensor], *, patient: Tensor, keep: Tensor
) -> dict[str, Tensor]:
    """Logits of rows: tokens of ``patient`` of which only the modalities in ``keep`` are shown."""
    device = tokens[0].device
    at, there = patient.to(device), keep.to(device)
    seen = [mask[at] & there[:, i, None] for i, mask in enumerate(masks)]
    found = [torch.where(there[:, i, None, None], token[at], 0.0) for i, token in enumerate(tokens)]
    return model.decode(model.fusion(found, seen, there))
