"""Which coalitions of modalities a model may be asked about: a record of each on patients it never saw.

A contribution is made of predictions from some of a patient's modalities. Where those predictions are not calibrated,
or nobody can tell, the contribution is shown as unsupported, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize

from medfuse.errors import CohortError, ConfigError, nearest
from medfuse.explain.coalitions import Coalitions, contrast
from medfuse.explain.recalibration import recalibrated
from medfuse.games import players
from medfuse.metrics.goodness_of_fit import smooth_calibration
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.sample import ModalityData
from medfuse.targets import Labels, Survival, Target
from medfuse.training.combining import unseen_links
from medfuse.training.fold import CHOSEN, FoldModel, presence, reads
from medfuse.training.patterns import LEAST_EVENTS, count_events
from medfuse.training.score import concordance
from medfuse.training.shown import distinct_patterns
from medfuse.types import OutcomeKind, PatientId

Array = NDArray[np.float64]
LIMIT = 0.10  # of the calibration index, in probability (values: in standard deviations of the outcome)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The record of each coalition, among training patients who have all of it, by members that never saw them.

    Attributes:
        outcome: its name.
        kind: its kind.
        modalities: the M names; coalition c consists of those whose bit is set in c.
        horizons: (H,) days; (0,) of outcomes without times.
        patients: (2^M,) patients with a known outcome.
        events: (2^M,) their events; patients of the rarest class, or all of them where there are no classes.
        concordance: (2^M,) of the predictions from these modalities alone; NaN when undefined.
        index: (2^M, max(H, 1)) integrated calibration index per horizon; NaN when undefined.
        reason: 2^M texts why a coalition is not supported; empty when it is.
    """

    outcome: str
    kind: OutcomeKind
    modalities: tuple[str, ...]
    horizons: Array
    patients: NDArray[np.int64]
    events: NDArray[np.int64]
    concordance: Array
    index: Array
    reason: tuple[str, ...]

    @property
    def supported(self) -> NDArray[np.bool_]:
        """(2^M,) where the record speaks for a coalition."""
        return np.array([not reason for reason in self.reason])

    def names(self, number: int) -> str:
        """The modalities of a coalition as text."""
        found = [self.modalities[i] for i in players(number, len(self.modalities))]
        return " + ".join(found) or "no modality"

    def unsupported(self, present: NDArray[np.bool_]) -> list[list[int]]:
        """Coalitions that the contributions of each patient need and that are not supported; empty lists are good.

        Args:
            present: (n, M) modalities of the patients.
        """
        owned = np.asarray(present) @ (1 << np.arange(len(self.modalities)))
        bad = np.flatnonzero(~self.supported)
        return [[int(c) for c in bad if c & own == c] for own in owned]


def unseen_values(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    unseen: Sequence[Sequence[PatientId]],
    *,
    outcome: str | None = None,
    variant: str = CHOSEN,
    device: torch.device | str = "cpu",
) -> Coalitions:
    """Values of all coalitions of training patients, each by the members of the inner fold that never saw the patient.

    They are those before patterns are recalibrated: these very patients did that, and what is judged by them must be
    recalibrated by others (:mod:`medfuse.explain.recalibration`). There is one replicate, the mean.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        unseen: per inner fold, the training patients that its members never saw; disjoint.
        outcome: default the fold's first.
        variant: as in :func:`medfuse.training.predict_fold`.
        device: where the members compute.

    Raises:
        CohortError: no patients, or one in two inner folds.
        ConfigError: no such outcome or variant.
    """
    outcome = next(iter(fold.ensembles)) if outcome is None else outcome
    if outcome not in fold.ensembles or variant not in fold.ensembles[outcome]:
        msg = f"gate: no outcome {outcome!r} with variant {variant!r}; {nearest(outcome, fold.ensembles)}"
        raise ConfigError(msg)
    ids = tuple(i for part in unseen for i in part)
    if not ids or len(set(ids)) < len(ids):
        msg = f"gate: expected every patient in one inner fold, found {len(ids)} rows of {len(set(ids))} patients"
        raise CohortError(msg)
    present = presence(data, fold.modalities, ids)
    shown, row_of = distinct_patterns(present)
    said = unseen_links(fold, data, unseen, ids=ids, shown=shown, outcomes=(outcome,), device=device)
    links = [(k, rows, one[outcome]) for k, rows, one in said]
    ensemble = replace(fold.ensembles[outcome][variant], patterns=None)
    kind = fold.members[0].heads[outcome].kind
    has = reads(fold.experts, fold.modalities, shown.keep)
    link = contrast(ensemble.combine(links, has, shown=shown.keep), kind)[row_of]
    return Coalitions(
        outcome=outcome,
        kind=kind,
        patient_ids=ids,
        modalities=fold.modalities,
        present=present,
        values=np.maximum.accumulate(link, axis=-1) if kind == "survival" else link,
        replicates=link[None].astype(np.float32),
        times=ensemble.times,
    )


def subset_gate(
    values: Coalitions,
    target: Target,
    *,
    horizons: Sequence[float] = (),
    every_subset: bool = True,
    limit: float = LIMIT,
) -> Gate:
    """The record of every coalition.

    A coalition is supported when at least 20 events were seen among patients who have all of it and its calibration
    index is at most ``limit`` at every horizon where it is defined, and defined somewhere. The index is Austin's ICI
    for survival, and the mean distance from a logistic (classes, each against the rest) or linear recalibration
    (values, in standard deviations of the outcome) for others.

    Args:
        values: of :func:`unseen_values`.
        target: of the same patients.
        horizons: days; those beyond the model's grid are left out.
        every_subset: training hid modalities at random; without it, only coalitions that are some training patient's
            own pattern were ever shown to the model.
        limit: of the calibration index.

    References:
        Austin, Harrell, van Klaveren (2020), Graphical calibration curves and the integrated calibration index (ICI).
        NOTE[DIFF]: where all predictions are equal, as of no modality, the index is |Kaplan-Meier - predicted|.
    """
    m = len(values.modalities)
    end = 0.0 if values.times is None else float(values.times[-1])
    at = np.array([h for h in horizons if 0 < h <= end], dtype=np.float64)
    owned = values.present @ (1 << np.arange(m))
    c = 1 << m
    patients, events = np.zeros(c, dtype=np.int64), np.zeros(c, dtype=np.int64)
    agreement, index, reason = np.full(c, np.nan), np.full((c, max(len(at), 1)), np.nan), []
    for number in range(c):
        rows = np.flatnonzero((owned & number == number) & target.observed)
        known = target.take(rows)
        patients[number], events[number] = len(rows), count_events(known)
        if len(rows):
            part = values.take(rows)
            link = values.values[rows, number]
            both = np.concatenate([-link, link], axis=1) if values.kind == "binary" else link
            agreement[number] = concordance(known, both)
            index[number] = _index(part, known, number, at)
        shown = every_subset or number == 0 or bool((owned == number).any())
        reason.append(_reason(int(events[number]), index[number], shown=shown, limit=limit))
    return Gate(
        outcome=values.outcome,
        kind=values.kind,
        modalities=values.modalities,
        horizons=at,
        patients=patients,
        events=events,
        concordance=agreement,
        index=index,
        reason=tuple(reason),
    )


def unknown_gate(values: Coalitions, reason: str) -> Gate:
    """A gate that supports nothing, for a reason that holds for every coalition of ``values``."""
    c = 1 << len(values.modalities)
    return Gate(
        outcome=values.outcome,
        kind=values.kind,
        modalities=values.modalities,
        horizons=np.zeros(0),
        patients=np.zeros(c, dtype=np.int64),
        events=np.zeros(c, dtype=np.int64),
        concordance=np.full(c, np.nan),
        index=np.full((c, 1), np.nan),
        reason=(reason,) * c,
    )


def same_as_stored(plain: Coalitions, fold: FoldModel, *, tolerance: float = 1e-3) -> bool:
    """Whether values of :func:`unseen_values`, recalibrated as predictions are, are the stored out-of-fold predictions.

    They are not when the inner folds are others than those the fold was trained with.
    """
    stored = fold.out_of_fold[plain.outcome][CHOSEN]
    patterns = fold.ensembles[plain.outcome][CHOSEN].patterns
    values = plain if patterns is None else recalibrated(plain, patterns)
    row = {patient: i for i, patient in enumerate(values.patient_ids)}
    if any(patient not in row for patient in stored.patient_ids):
        return False
    risk = values.take([row[i] for i in stored.patient_ids]).game(scale="risk")[-1]
    if stored.survival is not None:
        return bool(np.abs(risk - (1 - stored.survival)).max() <= tolerance)
    if stored.probability is not None:
        probability = stored.probability if values.kind == "multiclass" else stored.probability[:, 1:]
        return bool(np.abs(risk - probability).max() <= tolerance)
    said = cast(Array, stored.value)
    return bool(np.abs(risk[:, 0] - said).max() <= tolerance * max(float(said.std()), 1e-9))


def _reason(events: int, index: Array, *, shown: bool, limit: float) -> str:
    if not shown:
        return "never shown in training, where no modality was hidden and nobody has exactly these"
    if events < LEAST_EVENTS:
        return f"{events} events among training patients who have these, fewer than {LEAST_EVENTS}"
    if np.isnan(index).all():
        return "calibration cannot be told: too few events by every horizon"
    worst = float(np.nanmax(index))
    return f"not calibrated: index {worst:.2f}, more than {limit:g}" if worst > limit else ""


def _index(values: Coalitions, target: Target, number: int, horizons: Array) -> Array:
    """(max(H, 1),) calibration index of one coalition."""
    if isinstance(target, Survival):
        at = [values.game(horizon=float(h), scale="risk")[number] for h in horizons]
        return np.array([_survival_index(target, p, float(h)) for p, h in zip(at, horizons, strict=True)] or [np.nan])
    said = values.game(scale="risk")[number]  # (n, L)
    if isinstance(target, Labels):
        if values.kind == "binary":
            return np.array([_logistic_index(target.label == 1, said[:, 0])])
        return np.array([np.mean([_logistic_index(target.label == k, said[:, k]) for k in range(said.shape[1])])])
    x, y = said[:, 0], target.value
    spread = float(y.std())
    if len(x) < 3 or spread == 0:
        return np.array([np.nan])
    slope = float(np.cov(x, y, bias=True)[0, 1] / x.var()) if x.std() > 1e-9 * spread else 0.0
    fitted = y.mean() + slope * (x - x.mean())
    return np.array([float(np.abs(fitted - x).mean() / spread)])


def _survival_index(target: Survival, probability: Array, horizon: float) -> float:
    if np.ptp(probability) > 1e-9:
        return smooth_calibration(target, probability, horizon).index
    by = target.event & (target.time <= horizon)
    if by.sum() < 10 or target.time.max() < horizon:
        return float("nan")
    curve = kaplan_meier(target.time, target.event)
    observed = 1 - float(curve(np.array([horizon]))[0])
    return float(abs(observed - probability.mean()))


def _logistic_index(label: NDArray[np.bool_], probability: Array) -> float:
    """Mean distance of probabilities from their logistic recalibration; NaN when a class has fewer than 5 patients."""
    if min(label.sum(), (~label).sum()) < 5:
        return float("nan")
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    x = np.log(p / (1 - p))
    if np.ptp(x) < 1e-9:
        return float(abs(label.mean() - p.mean()))
    y, sign = label.astype(np.float64), np.where(label, 1.0, -1.0)

    def loss(parameters: Array) -> tuple[float, Array]:
        z = parameters[0] + parameters[1] * x
        gap = 1 / (1 + np.exp(-z)) - y
        return float(np.logaddexp(0, -sign * z).mean()), np.array([gap.mean(), (gap * x).mean()])

    found = optimize.minimize(loss, np.array([0.0, 1.0]), jac=True, method="BFGS")
    fitted = 1 / (1 + np.exp(-(found.x[0] + found.x[1] * x)))
    return float(np.abs(fitted - p).mean())
