"""What a model would say of a patient who had this modality of one patient and that modality of another."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.models import MultimodalModel
from medfuse.sample import ModalityData
from medfuse.training.ensemble import link_of
from medfuse.training.fold import FoldModel, chunks
from medfuse.training.member import Member
from medfuse.types import PatientId

Array = NDArray[np.float64]
_ROWS = 1024
_TOKENS = 1 << 18  # that pass through a fusion together: bags may be long


def mixed_links(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    source: NDArray[np.int64],
    numbers: Sequence[int],
    outcome: str,
    device: torch.device | str = "cpu",
) -> dict[int, Array]:
    """(r, L) links of members for made-up patients; encoders run once per real patient.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        ids: patients whose modalities are taken.
        source: (r, M) index into ``ids`` of the patient who lends each modality, -1 where it is absent.
        numbers: of the members to ask.
        outcome: one of the fold's.
        device: where the members compute.
    """
    links = {}
    for k in numbers:
        member = fold.members[k]
        own = source[:, [fold.modalities.index(name) for name in member.shapes]]
        rows, back = np.unique(own, axis=0, return_inverse=True)
        links[k] = _links(member, data, ids, rows, outcome=outcome, device=device)[back.ravel()]
    return links


@torch.no_grad()
def _links(
    member: Member,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    rows: NDArray[np.int64],
    *,
    outcome: str,
    device: torch.device | str,
) -> Array:
    needed = np.unique(rows[rows >= 0])
    lenders = tuple(ids[int(i)] for i in needed) or tuple(ids[:1])
    at = torch.from_numpy(np.maximum(np.searchsorted(needed, rows), 0)).clamp(max=len(lenders) - 1)
    there = torch.from_numpy(rows >= 0)
    model = member.build().to(device)
    tokens, masks = _encoded(model, member, data, lenders, device=device)
    step = max(1, min(_ROWS, _TOKENS // max(1, sum(t.shape[1] for t in tokens))))
    parts = []
    for start in range(0, len(rows), step):
        index, keep = at[start : start + step].to(device), there[start : start + step].to(device)
        found = [torch.where(keep[:, i, None, None], t[index[:, i]], 0.0) for i, t in enumerate(tokens)]
        seen = [mask[index[:, i]] & keep[:, i, None] for i, mask in enumerate(masks)]
        logits = model.decode(model.fusion(found, seen, keep))[outcome]
        said = model.head(outcome).predict(logits)
        parts.append(link_of({key: value.double().cpu().numpy() for key, value in said.items()}))
    return np.concatenate(parts)


def _encoded(
    model: MultimodalModel,
    member: Member,
    data: Mapping[str, ModalityData],
    ids: tuple[PatientId, ...],
    *,
    device: torch.device | str,
) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens (n, T, D) and masks (n, T) of every modality, padded to one length."""
    tokens: list[list[Tensor]] = [[] for _ in model.modalities]
    masks: list[list[Tensor]] = [[] for _ in model.modalities]
    for batch in chunks(member, data, ids):
        for i, (t, mask) in enumerate(zip(*model.encode(batch.to(device)), strict=True)):
            tokens[i].append(t)
            masks[i].append(mask)
    return [_padded(part) for part in tokens], [_padded(part) for part in masks]


def _padded(parts: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    out = [part.new_zeros((len(part), longest, *part.shape[2:])) for part in parts]
    for to, part in zip(out, parts, strict=True):
        to[:, : part.shape[1]] = part
    return torch.cat(out)
