"""Where patients lie: one embedding per patient and modality, and distances between patients in what both have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.errors import ModelError
from medfuse.explain.coalitions import replicates_of
from medfuse.sample import ModalityData
from medfuse.training.fold import FoldModel, chunks, presence
from medfuse.training.member import Member
from medfuse.types import PatientId

Array = NDArray[np.float64]
_TINY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeddings of the training and the held-out patients of one outer fold.

    Attributes:
        modalities: the M names.
        train_ids: n_train ids.
        patient_ids: n ids of held-out patients.
        train: (n_train, M, D) float32, standardised on the training patients; NaN where absent.
        held_out: (n, M, D) float32 on the same scale.
        unseen: (n_train,) bool, training patients whom none of the networks that made the embeddings were fitted on.
    """

    modalities: tuple[str, ...]
    train_ids: tuple[PatientId, ...]
    patient_ids: tuple[PatientId, ...]
    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    unseen: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(self.train) != len(self.train_ids) or len(self.held_out) != len(self.patient_ids):
            msg = (
                f"embeddings: expected {len(self.train_ids)} and {len(self.patient_ids)} patients, found "
                f"{len(self.train)} and {len(self.held_out)}; explain the run again"
            )
            raise ModelError(msg)

    @property
    def train_present(self) -> NDArray[np.bool_]:
        """(n_train, M) who has what."""
        return np.asarray(~np.isnan(self.train[:, :, 0]))

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n, M) who of the held-out patients has what."""
        return np.asarray(~np.isnan(self.held_out[:, :, 0]))


def embed(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    inner: Sequence[Sequence[PatientId]] = (),
    device: torch.device | str = "cpu",
) -> Embeddings:
    """Embed the training patients of a fold and the patients ``ids`` by its first replicate.

    The embedding of a modality is the fused state of the network that reads only that modality, or, where there is
    none, of the joint network when it is shown only that modality.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        ids: n patients, held out.
        inner: per inner fold, the training patients that its members never saw; for ``unseen``.
        device: where the networks compute.
    """
    ids = tuple(ids)
    everyone = (*fold.train_ids, *ids)
    first = [fold.members[k] for k in replicates_of(fold.members)[0]]
    joint = next(member for member in first if not member.expert)
    parts = []
    for name in fold.modalities:
        member = next((m for m in first if m.expert == name and not m.forest), joint)
        has = presence(data, [name], everyone)[:, 0]
        found = np.full((len(everyone), member.settings.width), np.nan)
        if has.any():
            own = tuple(i for i, h in zip(everyone, has, strict=True) if h)
            found[has] = _states(member, {name: data[name]}, own, device=device)
        parts.append(_standardised(found, len(fold.train_ids)))
    table = np.stack(parts, axis=1).astype(np.float32)
    unseen = set(inner[joint.inner]) if inner else set()
    return Embeddings(
        modalities=fold.modalities,
        train_ids=fold.train_ids,
        patient_ids=ids,
        train=table[: len(fold.train_ids)],
        held_out=table[len(fold.train_ids) :],
        unseen=np.array([i in unseen for i in fold.train_ids], dtype=bool),
    )


@torch.no_grad()
def _states(
    member: Member, data: Mapping[str, ModalityData], ids: tuple[PatientId, ...], *, device: torch.device | str
) -> Array:
    """(n, D) states of patients of whom only ``data`` is shown."""
    model = member.build().to(device)
    parts = []
    for batch in chunks(member, data, ids):
        fused = model.fuse(batch.to(device))
        state = (fused.weights[..., None] * fused.states).sum(dim=1)
        parts.append(state.double().cpu().numpy())
    return np.concatenate(parts)


def _standardised(table: Array, n_train: int) -> Array:
    """Each column less its mean and over its standard deviation among the training rows that are there."""
    rows = table[:n_train][~np.isnan(table[:n_train, 0])]
    if not len(rows):
        return table
    spread = rows.std(axis=0)
    scale = np.where(spread > _TINY * max(float(spread.max()), _TINY), spread, np.inf)
    return np.asarray((table - rows.mean(axis=0)) / scale)


def distances(query: NDArray[np.float32], train: NDArray[np.float32], available: NDArray[np.bool_]) -> Array:
    """Cosine distances (q, t) in [0, 2] in the embeddings of some modalities side by side, each of equal weight.

    Args:
        query: (q, M, D) patients who have ``available``.
        train: (t, M, D) patients, of whom those without one of ``available`` are infinitely far.
        available: (M,) modalities to compare in; none: all are equally near, at 0.
    """
    columns = np.flatnonzero(available)
    if not len(columns):
        return np.zeros((len(query), len(train)))
    a = np.asarray(query)[:, columns].reshape(len(query), -1).astype(np.float64)
    b = np.asarray(train)[:, columns].reshape(len(train), -1).astype(np.float64)
    lost = np.asarray(np.isnan(b).any(axis=1))
    b = np.where(lost[:, None], 0.0, b)
    size = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosine = np.divide(a @ b.T, size, out=np.zeros((len(a), len(b))), where=size > 0)
    found = 1 - np.clip(cosine, -1.0, 1.0)
    found[:, lost] = np.inf
    return np.asarray(found)


def by_pattern(present: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """Availability patterns (M,) and the rows that have exactly each."""
    patterns, which = np.unique(np.asarray(present), axis=0, return_inverse=True)
    return [(pattern, np.flatnonzero(which.ravel() == k)) for k, pattern in enumerate(patterns)]
