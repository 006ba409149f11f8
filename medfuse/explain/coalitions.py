"""What a model would say of each patient had it been shown only some of the patient's modalities.

The game of every explanation here: players are the modalities that a patient has, and a coalition is worth the link of
the model's output (log cumulative hazard at each time, log odds, or the value) when only those modalities are shown and
the others are absent as in training. Encoders run once; only the fusion runs again for each coalition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.errors import ConfigError, ModelError, nearest
from medfuse.sample import ModalityData
from medfuse.training.ensemble import Ensemble
from medfuse.training.fold import CHOSEN, FoldModel, presence, reads
from medfuse.training.member import Member
from medfuse.training.patterns import MOST_MODALITIES
from medfuse.training.shown import distinct_patterns, member_links
from medfuse.types import OutcomeKind, PatientId

Array = NDArray[np.float64]
SCALES = ("link", "risk")
_EDGE = 1e-6
AS_SAID, RECALIBRATED = "as the model says", "recalibrated"  # the former where patterns are not, as in runs of before


@dataclass(frozen=True, kw_only=True)
class Coalitions:
    """Values of all coalitions of the modalities of n patients, for one outcome.

    A coalition with modalities that a patient lacks is worth what it is worth without them.

    Attributes:
        outcome: its name.
        kind: its kind.
        patient_ids: n ids.
        modalities: the M names; coalition c consists of those whose bit is set in c.
        present: (n, M) bool.
        values: (n, 2^M, L): log cumulative hazard per time, log odds of the event class (L = 1), centred log
            probabilities of K classes, or the value (L = 1).
        replicates: (R, n, 2^M, L) float32 the same by each replicate, one seed and inner fold of every expert; their
            mean is ``values`` (made non-decreasing in time).
        times: (L,) days of a survival outcome, else None.
        fold: n names of the outer folds whose models spoke.
        meaning: ``recalibrated`` where the model moves each pattern to what it means
            (:mod:`medfuse.training.patterns`), else ``as the model says``.
    """

    outcome: str
    kind: OutcomeKind
    patient_ids: tuple[PatientId, ...]
    modalities: tuple[str, ...]
    present: NDArray[np.bool_]
    values: Array
    replicates: NDArray[np.float32]
    times: Array | None = None
    fold: tuple[str, ...] = field(default=())
    meaning: str = AS_SAID

    def __post_init__(self) -> None:
        n, c = len(self.patient_ids), 1 << len(self.modalities)
        if self.values.shape[:2] != (n, c) or self.present.shape != (n, len(self.modalities)):
            msg = f"Coalitions: expected ({n}, {c}) values, found {self.values.shape[:2]}"
            raise ModelError(msg)

    def __len__(self) -> int:
        return len(self.patient_ids)

    def game(self, *, horizon: float | None = None, label: int | None = None, scale: str = "link") -> Array:
        """Values as a game (2^M, n) at a horizon, or (2^M, n, L) at all times; see :mod:`medfuse.games`.

        Args:
            horizon: days; between grid points survival is interpolated, as in every table of a run.
            label: index of one class of a multi-class outcome.
            scale: ``link``, or ``risk``: probability of the event until the time, or of each class. Differences on the
                scale of risk show interactions that the model does not have; they are for reading in percentage
                points.

        Raises:
            ConfigError: an unknown scale, a horizon beyond the grid or of an outcome without times.
        """
        return np.moveaxis(at_horizon(self.values, self, horizon=horizon, label=label, scale=scale), 1, 0)

    def replicate_games(self, *, horizon: float | None = None, label: int | None = None, scale: str = "link") -> Array:
        """The same of each replicate: (2^M, R, n[, L])."""
        found = at_horizon(self.replicates.astype(np.float64), self, horizon=horizon, label=label, scale=scale)
        return np.moveaxis(found, 2, 0)

    def clipped(self) -> NDArray[np.bool_]:
        """(n,) whether any value lies where the outcome's probability is within 1e-6 of 0 or 1: beyond resolution."""
        if self.kind == "continuous":
            return np.zeros(len(self), dtype=bool)
        risk = at_horizon(self.values, self, scale="risk")
        return np.asarray(((risk < _EDGE) | (risk > 1 - _EDGE)).any(axis=(1, 2)))

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> "Coalitions":
        """The same for some of the patients."""
        at = np.asarray(rows, dtype=np.intp)
        return replace(
            self,
            patient_ids=tuple(self.patient_ids[int(i)] for i in at),
            present=self.present[at],
            values=self.values[at],
            replicates=self.replicates[:, at],
            fold=tuple(self.fold[int(i)] for i in at) if self.fold else (),
        )


def at_horizon(
    values: Array, like: Coalitions, *, horizon: float | None = None, label: int | None = None, scale: str = "link"
) -> Array:
    """Values (..., L) of ``like`` on a scale, at one horizon or class or (None) at all of L; see `Coalitions.game`.

    Raises:
        ConfigError: an unknown scale, a horizon beyond the grid or of an outcome without times.
    """
    if scale not in SCALES:
        msg = f"explain: no scale {scale!r}; {nearest(scale, SCALES)}"
        raise ConfigError(msg)
    if label is not None and (like.kind != "multiclass" or not 0 <= label < values.shape[-1]):
        msg = f"explain: expected a class of a multi-class outcome, found {label} for outcome {like.outcome!r}"
        raise ConfigError(msg)
    link = values
    if horizon is not None:
        link = interpolate(values, like.times, horizon)
    if scale == "link" or like.kind == "continuous":
        return link if label is None else np.asarray(link[..., label])
    if like.kind == "survival":
        return np.asarray(-np.expm1(-np.exp(np.minimum(link, 50.0))))
    if like.kind == "binary":
        return np.asarray(1 / (1 + np.exp(-link)))
    shifted = np.exp(link - link.max(axis=-1, keepdims=True))
    found = shifted / shifted.sum(axis=-1, keepdims=True)
    return np.asarray(found if label is None else found[..., label])


def interpolate(values: Array, times: Array | None, horizon: float) -> Array:
    """Log cumulative hazards (..., L) at one time (...): survival is linear between grid points, 1 at day 0.

    Raises:
        ConfigError: there are no times, or the horizon is not within (0, last time].
    """
    if times is None:
        msg = "explain: a horizon was given for an outcome that has no times; leave it out"
        raise ConfigError(msg)
    if not 0 < horizon <= times[-1] * (1 + 1e-9):
        msg = f"explain: expected a horizon within 0 and {times[-1]:g} days, found {horizon:g}"
        raise ConfigError(msg)
    right = min(int(np.searchsorted(times, horizon)), len(times) - 1)
    risk = -np.expm1(-np.exp(np.minimum(values[..., max(right - 1, 0) : right + 1], 50.0)))
    start, before = (times[right - 1], risk[..., 0]) if right else (0.0, np.zeros(values.shape[:-1]))
    part = min((horizon - start) / (times[right] - start), 1.0)
    at = before * (1 - part) + risk[..., -1] * part
    return np.asarray(np.log(-np.log1p(-np.minimum(at, 1 - 1e-16))))


def coalition_values(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    outcome: str | None = None,
    variant: str = CHOSEN,
    name: str = "",
    device: torch.device | str = "cpu",
) -> Coalitions:
    """Values of all coalitions of the modalities of patients, by the model of one outer fold.

    The value of all modalities is the link of what :func:`medfuse.training.predict_fold` says of the patient.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        ids: n patients.
        outcome: default the fold's first.
        variant: as in :func:`medfuse.training.predict_fold`.
        name: of the fold, for the record.
        device: where the members compute.

    Raises:
        ConfigError: more than 8 modalities, or no such outcome or variant.
        ModelError: when there are no patients.
    """
    ids = tuple(ids)
    if not ids:
        msg = "explain: expected patients, found none; check the cohort"
        raise ModelError(msg)
    m = len(fold.modalities)
    if m > MOST_MODALITIES:
        msg = f"explain: expected at most {MOST_MODALITIES} modalities, found {m}; group them"
        raise ConfigError(msg)
    outcome = next(iter(fold.ensembles)) if outcome is None else outcome
    if outcome not in fold.ensembles or variant not in fold.ensembles[outcome]:
        msg = f"explain: no outcome {outcome!r} with variant {variant!r}; {nearest(outcome, fold.ensembles)}"
        raise ConfigError(msg)
    present = presence(data, fold.modalities, ids)
    shown, row_of = distinct_patterns(present)
    links = member_links(
        dict(enumerate(fold.members)),
        data,
        ids,
        modalities=fold.modalities,
        shown=shown,
        outcomes=(outcome,),
        device=device,
    )
    ensemble = fold.ensembles[outcome][variant]
    has = reads(fold.experts, fold.modalities, shown.keep)
    rows = np.arange(len(shown.patient), dtype=np.intp)
    replicates = []
    for keys in replicates_of(fold.members):
        said = ensemble.combine([(k, rows, links[k][outcome]) for k in keys], has, shown=shown.keep)
        replicates.append(contrast(said, fold.members[0].heads[outcome].kind))
    each = np.stack(replicates)[:, row_of]  # (R, n, 2^M, L)
    values = each.mean(axis=0)
    kind = fold.members[0].heads[outcome].kind
    return Coalitions(
        outcome=outcome,
        kind=kind,
        patient_ids=ids,
        modalities=fold.modalities,
        present=present,
        # A cumulative hazard never falls; predictions are made the same way.
        values=np.maximum.accumulate(values, axis=-1) if kind == "survival" else values,
        replicates=each.astype(np.float32),
        times=ensemble.times,
        fold=(name,) * len(ids),
        meaning=meaning_of(ensemble),
    )


def meaning_of(ensemble: Ensemble) -> str:
    """Whether a model's patterns were recalibrated."""
    return RECALIBRATED if ensemble.patterns is not None and ensemble.patterns.fitted.any() else AS_SAID


def contrast(link: Array, kind: OutcomeKind) -> Array:
    """Log odds of the event class of a binary outcome, links of classes centred; other links as they are."""
    if kind == "binary":
        return link[..., 1:] - link[..., :1]
    return link - link.mean(axis=-1, keepdims=True) if kind == "multiclass" else link


def replicates_of(members: Sequence[Member]) -> list[list[int]]:
    """Numbers of the members that share a seed and an inner fold, one of each expert."""
    groups: dict[tuple[int, int], list[int]] = {}
    for k, member in enumerate(members):
        groups.setdefault((member.seed, member.inner), []).append(k)
    return list(groups.values())
