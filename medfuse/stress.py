"""How held-out predictions hold up when modalities go missing, lie or are swapped: the models as stored, no refit.

Every scenario is predicted by the networks of the fold that never saw the patient, and by the baselines of that fold,
fitted once on its training side (they are not stored). Patients are never dropped: one who is left without any modality
gets the population estimate and is counted. Intervals come from one case bootstrap within folds, on the same resamples
for every scenario and model; what is random about a scenario is averaged over repetitions within each resample.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from medfuse.baselines import BASELINES, FoldData, fit_baselines
from medfuse.cohort import Cohort
from medfuse.evaluation import default_horizons, survival_between
from medfuse.metrics.comparison import resample_weights
from medfuse.metrics.pooled import Told, pooled_scores
from medfuse.metrics.weighted import (
    brier_parts,
    cox_slopes,
    event_by,
    linear_slopes,
    logistic_slopes,
    mean_of,
)
from medfuse.prediction import Prediction
from medfuse.sample import ModalityData
from medfuse.scenarios import Held, Samples, Scenario, show
from medfuse.splits import Split
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.training import CHOSEN, FoldModel, cpu_threads, predict_variants
from medfuse.types import PatientId

Array = NDArray[np.float64]
Row = dict[str, Any]
MODEL = "medfuse"
LATE = ("late_average", f"{MODEL}:unimodal")  # the late average of what is present: of baselines, or of networks
UNFIT = ("kaplan_meier", "prevalence", "rank_average")  # read no modality, or the other held-out patients
_CELLS = 2**25  # numbers in one design matrix of scenarios: 256 MB
METRICS = ("score", "calibration_ratio", "calibration_slope", "error")


@dataclass(frozen=True, kw_only=True)
class StressFold:
    """One outer fold: its split, its inner folds (for the baselines) and its stored networks."""

    split: Split
    inner: Sequence[Split]
    model: FoldModel


@dataclass(frozen=True, kw_only=True)
class StressSettings:
    """What is measured.

    Attributes:
        outcome: name.
        baselines: names of the kind of outcome; None = all; those that read no modality, or the other
            held-out patients, are left out.
        horizon: days (survival) at which calibration is measured, and which part early events from survivors; the value
            that parts continuous outcomes. None = the middle of those of the first fold's train patients.
        resamples: of the case bootstrap for discrimination; calibration takes the first 200 of them.
        seed: of scenarios and resamples.
        clinical: modality of the clinical baseline.
    """

    outcome: str
    clinical: str
    baselines: Sequence[str] | None = None
    horizon: float | None = None
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What one model says of the patients of one fold in one scenario."""

    risk: Array
    share: Array  # (n, K) probability of an event by the horizon (K = 1) or of each class; (n, 1) value


class _Counts(NamedTuple):
    """What a scenario changed in a fold: slots of modalities hidden and had, patients left with none, and touched."""

    hidden: int
    had: int
    empty: int
    touched: int


@dataclass(kw_only=True)
class _Measured:
    """Everything predicted, by model and scenario, fold after fold; and what scenarios changed."""

    told: dict[str, list[list[_Told]]] = field(default_factory=dict)  # model -> scenario -> folds
    counts: list[list[_Counts]] = field(default_factory=list)  # scenario -> folds


def middle_of(target: Target) -> float:
    """Middle of the horizons of a survival outcome, median of values; 0 for classes."""
    if isinstance(target, Survival):
        horizons = default_horizons(target)
        return horizons[len(horizons) // 2] if horizons else float(np.median(target.time[target.observed]))
    return float(np.median(target.value[target.observed])) if isinstance(target, Values) else 0.0


def stress(
    folds: Sequence[StressFold],
    scenarios: Sequence[Scenario],
    *,
    cohort: Cohort,
    data: Mapping[str, ModalityData],
    settings: StressSettings,
    watch: Callable[[float], None] = lambda part: None,
) -> list[Row]:
    """Measure every model in every scenario.

    Args:
        folds: of one run.
        scenarios: of :func:`medfuse.scenarios.plan`; the first changes nothing.
        cohort: outcomes.
        data: modalities of everyone, in the run's coding and order.
        settings: see :class:`StressSettings`.
        watch: called with the part that is done.

    Returns:
        One row per model and group of scenarios that differ in their draw alone: ``mechanism``, ``rate``, ``pattern``,
        ``folds``, ``model``, ``patients``, ``events``, shares ``hidden`` (of the modalities that patients have) and
        ``touched`` and ``empty`` (of patients), then each of ``METRICS`` with ``_low`` and ``_high``, ``difference`` to
        the late average of what is present (``reference``) with its interval, and ``shift`` and ``worst_shift``: mean
        over patients of the mean and of the largest absolute change of risk over the draws, in SD of unchanged risks.
    """
    first = cohort.target(settings.outcome, folds[0].split.train)
    middle = settings.horizon if settings.horizon is not None else middle_of(first)
    measured = _Measured(counts=[[] for _ in scenarios])
    for number, fold in enumerate(folds):
        held = Held(
            ids=fold.split.held_out,
            data=data,
            train=fold.split.train,
            target=cohort.target(settings.outcome, fold.split.held_out),
            middle=middle,
            anchor=settings.clinical,
            number=number,
            seed=settings.seed,
        )
        _predict_fold(fold, held, scenarios, cohort=cohort, settings=settings, into=measured)
        watch((number + 1) / len(folds))
    seen = [i for fold in folds for i in fold.split.held_out]
    whole = [list(range(len(folds)))] if len(set(seen)) == len(seen) else [[k] for k in range(len(folds))]
    rows: list[Row] = []
    for group in whole:
        rows += _measure(folds, scenarios, measured, group=group, cohort=cohort, settings=settings, middle=middle)
    return rows


# --- predicting -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Shown:
    """Patients as scenarios show them, each once: hiding shows the same few subsets of a patient again and again."""

    samples: Samples
    aliases: list[PatientId] = field(default_factory=list)  # a patient with other modalities is another patient
    rows: dict[tuple[object, ...], int] = field(default_factory=dict)  # place in ``aliases`` of patient and samples
    orders: dict[int, list[int]] = field(default_factory=dict)  # scenario -> place of each of its patients

    def add(self, number: int, ids: Sequence[PatientId], samples: Samples) -> None:
        """The patients of a scenario."""
        order = []
        for i in ids:
            own = {name: found[i] for name, found in samples.items() if i in found}
            key = (i, *((name, id(sample)) for name, sample in own.items()))  # what is kept here keeps its id
            order.append(self.rows.setdefault(key, len(self.rows)))
            if len(self.rows) > len(self.aliases):
                self.aliases.append(PatientId(f"{order[-1]}\x1f{i}"))
                for name, sample in own.items():
                    self.samples[name][self.aliases[-1]] = sample
        self.orders[number] = order


def _predict_fold(
    fold: StressFold,
    held: Held,
    scenarios: Sequence[Scenario],
    *,
    cohort: Cohort,
    settings: StressSettings,
    into: _Measured,
) -> None:
    """All scenarios of one fold, as many at a time as memory takes."""
    width = sum(len(m.columns) or m.features * max(1, len(m.identities)) for m in held.data.values())
    shown = _Shown(samples={name: {} for name in held.data})
    for k, scenario in enumerate(scenarios):
        samples, touched = show(scenario, held)
        has = np.array([[i in own for own in samples.values()] for i in held.ids]).reshape(len(held.ids), -1)
        had = sum(i in m.samples for m in held.data.values() for i in held.ids)
        empty, reached = int((~has.any(axis=1)).sum()), int(touched.any(axis=1).sum())
        into.counts[k].append(_Counts(hidden=had - int(has.sum()), had=had, empty=empty, touched=reached))
        shown.add(k, held.ids, samples)
        if (len(shown.aliases) + len(held.ids)) * max(width, 1) > _CELLS or k + 1 == len(scenarios):
            models = _models(fold, held, shown.samples, tuple(shown.aliases), cohort=cohort, settings=settings)
            for model, prediction in models.items():
                told, rows = _told(prediction, held.middle), into.told.setdefault(model, [[] for _ in scenarios])
                for number, order in shown.orders.items():
                    rows[number].append(_Told(risk=told.risk[order], share=told.share[order]))
            shown = _Shown(samples={name: {} for name in held.data})


def _models(
    fold: StressFold,
    held: Held,
    shown: Samples,
    aliases: tuple[PatientId, ...],
    *,
    cohort: Cohort,
    settings: StressSettings,
) -> dict[str, Prediction]:
    """Predictions of the shown patients by the stored networks and by the fold's baselines."""
    alone = {name: _with(m, shown[name]) for name, m in held.data.items()}
    with cpu_threads(1):  # the fastest for small models
        predicted = predict_variants(fold.model, alone, aliases)
    found = {
        MODEL if variant == CHOSEN else f"{MODEL}:{variant}": one[settings.outcome]
        for variant, one in predicted.items()
    }
    train = set(fold.split.train)
    both = {
        name: _with(m, {i: s for i, s in m.samples.items() if i in train} | shown[name])
        for name, m in held.data.items()
    }
    context = FoldData(
        cohort=cohort,
        outcome=settings.outcome,
        data=both,
        split=Split(name=fold.split.name, train=fold.split.train, held_out=aliases),
        inner=fold.inner,
        clinical=settings.clinical,
        seed=settings.seed,
    )
    kind = cohort.card.outcomes[settings.outcome].kind
    wanted = BASELINES[kind] if settings.baselines is None else settings.baselines
    for result in fit_baselines(context, kind=kind, names=[name for name in wanted if name not in UNFIT]):
        found[result.name] = result.prediction
    return found


def _with(modality: ModalityData, samples: Mapping[PatientId, Any]) -> ModalityData:
    return dataclasses.replace(modality, samples=samples)


def _told(prediction: Prediction, middle: float) -> _Told:
    if prediction.survival is not None:
        share = 1.0 - survival_between(prediction, np.array([middle]))
    elif prediction.probability is not None:
        share = prediction.probability
    else:
        share = cast(Array, prediction.value)[:, None]
    return _Told(risk=prediction.risk_score, share=share)


# --- measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The patients of a group of folds and what of the measuring does not depend on a model."""

    target: Target
    strata: NDArray[np.int64]
    middle: float
    resamples: int
    seed: int
    weights: Array  # a row of ones, then resamples for calibration
    observed: Array  # (R,) probability of an event by the horizon
    factors: tuple[Array, Array]  # of the Brier score


def _sample(
    folds: Sequence[StressFold], group: Sequence[int], *, cohort: Cohort, settings: StressSettings, middle: float
) -> _Sample:
    ids = tuple(i for k in group for i in folds[k].split.held_out)
    target = cohort.target(settings.outcome, ids)
    strata = np.repeat(np.arange(len(group)), [len(folds[k].split.held_out) for k in group])
    drawn = resample_weights(strata, n_resamples=min(200, settings.resamples), seed=settings.seed)
    weights = np.concatenate([np.ones((1, len(ids))), drawn]) * target.observed
    observed, factors = np.zeros(0), (np.zeros(0), np.zeros(0))
    if isinstance(target, Survival):
        observed = event_by(target, middle, weights)
        parts = []
        for place, k in enumerate(group):
            train = cast(Survival, cohort.target(settings.outcome, folds[k].split.train))
            parts.append(brier_parts(target.take(np.flatnonzero(strata == place)), middle, train=train))
        factors = (np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts]))
    return _Sample(
        target=target,
        strata=strata,
        middle=middle,
        resamples=settings.resamples,
        seed=settings.seed,
        weights=weights,
        observed=observed,
        factors=factors,
    )


def _score(sample: _Sample, risk: Array, share: Array) -> Array:
    """(1 + R,) discrimination: of the sample, then of each resample."""
    told = Told(risk=risk, probability=share, value=share[:, 0])
    score, drawn = pooled_scores(
        sample.target, [told], strata=sample.strata, n_resamples=sample.resamples, seed=sample.seed
    )
    return np.concatenate([score, drawn[0]])


def _calibration(sample: _Sample, share: Array) -> tuple[Array, Array, Array]:
    """(1 + R,) observed over expected, calibration slope, and error: Brier score, or root mean square of values."""
    target, w = sample.target, sample.weights
    if isinstance(target, Survival):
        p = np.clip(share[:, 0], 1e-7, 1 - 1e-7)
        until = Survival(
            event=target.event & (target.time <= sample.middle),
            time=np.minimum(target.time, sample.middle),
            observed=target.observed,
        )
        had, free = sample.factors
        slope = cox_slopes(until, np.log(-np.log1p(-p)), w)
        return sample.observed / mean_of(p, w), slope, mean_of(had * (1 - p) ** 2 + free * p**2, w)
    if isinstance(target, Labels):
        event, p = target.label > 0, share[:, 1:].sum(axis=1)
        truth = np.eye(len(target.classes))[target.label]
        error = mean_of(((share - truth) ** 2).sum(axis=1) / 2, w)
        return mean_of(event.astype(np.float64), w) / mean_of(p, w), logistic_slopes(event, p, w), error
    value = np.where(target.observed, target.value, 0.0)
    error = np.sqrt(mean_of((value - share[:, 0]) ** 2, w))
    return mean_of(value, w) / mean_of(share[:, 0], w), linear_slopes(value, share[:, 0], w), error


def _interval(name: str, draws: Array) -> Row:
    known = draws[1:][np.isfinite(draws[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) > 1 and np.isfinite(draws[0]) else (None, None)
    value = float(draws[0]) if np.isfinite(draws[0]) else None
    ends = (None, None) if low is None else (float(low), float(cast(float, high)))
    return {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _measure(
    folds: Sequence[StressFold],
    scenarios: Sequence[Scenario],
    measured: _Measured,
    *,
    group: Sequence[int],
    cohort: Cohort,
    settings: StressSettings,
    middle: float,
) -> list[Row]:
    sample = _sample(folds, group, cohort=cohort, settings=settings, middle=middle)
    n, target = len(sample.strata), sample.target
    reference = next((name for name in LATE if name in measured.told), None)
    rows: list[Row] = []
    for members in _draws_of(scenarios):
        one, repeats = scenarios[members[0]], len(members)
        scores = {m: _averaged(sample, told, members, group) for m, told in measured.told.items()}
        counts = _Counts(*map(sum, zip(*(measured.counts[k][f] for k in members for f in group), strict=True)))
        for model, found in scores.items():
            row: Row = {
                "mechanism": one.mechanism,
                "rate": None if np.isnan(one.rate) else one.rate,
                "pattern": one.label,
                "folds": " ".join(folds[k].split.name for k in group),
                "model": model,
                "patients": n,
                "events": _events(target),
                "draws": repeats,
                "hidden": counts.hidden / counts.had if counts.had else 0.0,
                "touched": counts.touched / (repeats * n),
                "empty": counts.empty / (repeats * n),
            }
            for name in METRICS:
                row |= _interval(name, found[name])
            row["reference"] = reference
            if reference is not None and model != reference:
                row |= _interval("difference", found["score"] - scores[reference]["score"])
            row |= _shifts(measured.told[model], members, group)
            rows.append(row)
    return rows


def _events(target: Target) -> int | None:
    if isinstance(target, Survival):
        return target.n_events
    return int(((target.label > 0) & target.observed).sum()) if isinstance(target, Labels) else None


def _draws_of(scenarios: Sequence[Scenario]) -> list[list[int]]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for k, s in enumerate(scenarios):
        groups.setdefault((s.mechanism, str(s.rate), s.modalities), []).append(k)
    return list(groups.values())


def _averaged(
    sample: _Sample, told: Sequence[Sequence[_Told]], members: Sequence[int], group: Sequence[int]
) -> dict[str, Array]:
    """Metrics of a model, the mean over the draws of a scenario within each resample."""
    draws: dict[str, list[Array]] = {name: [] for name in METRICS}
    for k in members:
        risk = np.concatenate([told[k][f].risk for f in group])
        share = np.concatenate([told[k][f].share for f in group])
        for name, values in zip(METRICS, (_score(sample, risk, share), *_calibration(sample, share)), strict=True):
            draws[name].append(values)
    return {name: np.mean(values, axis=0) for name, values in draws.items()}


def _shifts(told: Sequence[Sequence[_Told]], members: Sequence[int], group: Sequence[int]) -> Row:
    """Mean over patients of the mean and of the largest change of risk over the draws, in SD of each fold's risks."""
    mean, worst = [], []
    for f in group:
        plain = told[0][f].risk
        spread = float(plain.std())
        moved = np.stack([np.abs(told[k][f].risk - plain) for k in members]) / (spread if spread > 0 else 1.0)
        mean.append(moved.mean(axis=0))
        worst.append(moved.max(axis=0))
    return {"shift": float(np.concatenate(mean).mean()), "worst_shift": float(np.concatenate(worst).mean())}
