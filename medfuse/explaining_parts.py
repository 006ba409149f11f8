"""What stands beside the contributions of a run: gate, embeddings, neighbours, donors, distribution, and the checks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from medfuse.cohort import Cohort
from medfuse.config import Recipe
from medfuse.errors import CohortError, StoreError
from medfuse.explain import Coalitions
from medfuse.explain.absence import absence_flags
from medfuse.explain.coalitions import RECALIBRATED
from medfuse.explain.distribution import Distribution, distribution
from medfuse.explain.donors import (
    Donors,
    added_value,
    check_hidden,
    donor_draws,
    hidden_pairs,
    hidden_questions,
    missing_questions,
)
from medfuse.explain.embedding import Embeddings, embed
from medfuse.explain.faithfulness import (
    NOT_RUN,
    Check,
    from_json,
    game_checks,
    hidden_checks,
    randomisation_check,
    to_json,
)
from medfuse.explain.familiarity import ALARM, FEWEST, WITHHELD
from medfuse.explain.gate import Gate, same_as_stored, subset_gate, unknown_gate, unseen_values
from medfuse.explain.neighbours import Neighbours, neighbours
from medfuse.explain.parts import has_part, read_part, write_part
from medfuse.explain.recalibration import cross_fitted
from medfuse.run import Run
from medfuse.sample import ModalityData
from medfuse.splits import inner_folds
from medfuse.targets import Target
from medfuse.training import CHOSEN, FoldModel, load_fold
from medfuse.types import PatientId

FOLDER = "explanations"
Say = Callable[[str], None]
_MOST_HIDDEN = 60  # patients per fold whose modalities are hidden for the check


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What was stored of one outer fold and outcome beside the values of its coalitions."""

    gate: Gate
    embeddings: Embeddings
    neighbours: Neighbours
    distribution: Distribution
    donors: Donors


NAMES = tuple(field.name for field in fields(Parts))


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a run is explained from: its cohort, data and recipe."""

    run: Run
    cohort: Cohort
    data: Mapping[str, ModalityData]
    recipe: Recipe
    outcomes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Values of all coalitions of a fold's training patients, by members that never saw them.

    Attributes:
        plain: before patterns are recalibrated, one inner fold after the other.
        target: of the same patients.
        parts: numbers of patients of the inner folds, in order.
    """

    plain: Coalitions
    target: Target
    parts: tuple[int, ...]


def fold_folder(run: Run, outcome: str, fold: str) -> Path:
    """Where the explanations of a fold stand."""
    return run.path / FOLDER / outcome / fold


def has_parts(run: Run, outcome: str, fold: str) -> bool:
    """Whether all parts of a fold are there."""
    return all(has_part(fold_folder(run, outcome, fold) / name) for name in NAMES)


def read_parts(run: Run, outcome: str) -> list[Parts]:
    """Stored parts of every outer fold, memory-mapped; neither data nor models are needed.

    Raises:
        StoreError: a part is missing, damaged or of a newer format.
    """
    found = []
    for split in run.read("splits")["splits"]:
        folder = fold_folder(run, outcome, str(split["name"]))
        found.append(
            Parts(
                gate=read_part(Gate, folder / "gate"),
                embeddings=read_part(Embeddings, folder / "embeddings"),
                neighbours=read_part(Neighbours, folder / "neighbours"),
                distribution=read_part(Distribution, folder / "distribution"),
                donors=read_part(Donors, folder / "donors"),
            )
        )
    return found


def horizons_of(run: Run, values: Coalitions) -> tuple[float, ...]:
    """The run's reporting horizons that the values reach, or their last time; () of outcomes without times."""
    if values.times is None:
        return ()
    end = float(values.times[-1])
    asked = [float(h) for h in run.read("metrics")["outcomes"][values.outcome].get("horizons") or ()]
    return tuple(h for h in asked if h <= end) or (end,)


def inner_unseen(source: Source, train_ids: Sequence[PatientId]) -> list[tuple[PatientId, ...]]:
    """Per inner fold of the run, the training patients that its members never saw.

    Raises:
        CohortError: the training patients cannot be divided as they were.
    """
    splits, seed = source.recipe.splits, source.recipe.seed
    inner = inner_folds(
        train_ids, cohort=source.cohort, outcome=source.outcomes[0], folds=splits.inner_folds, seed=seed
    )
    return [split.tuning for split in inner]


def write_parts(
    source: Source,
    fold: FoldModel,
    values: Coalitions,
    folder: Path,
    *,
    unseen: Unseen | None,
    say: Say,
) -> None:
    """Compute and store the parts of one fold that are not there yet.

    Args:
        source: cohort, data and recipe of the run.
        fold: its model.
        values: coalition values of its held-out patients.
        folder: of :func:`fold_folder`.
        unseen: of :func:`unseen_of`.
        say: called with each line of progress.

    Raises:
        CohortError, StoreError: as the functions that compute and write them.
    """
    horizons = horizons_of(source.run, values)
    if not has_part(folder / "gate"):
        gate = _gate(source, fold, values, unseen, horizons)
        say(f"  gate: {int(gate.supported.sum())} of {len(gate.reason)} coalitions supported")
        write_part(gate, folder / "gate")
    if not has_part(folder / "embeddings"):
        inner = inner_unseen(source, fold.train_ids)
        write_part(embed(fold, source.data, values.patient_ids, inner=inner), folder / "embeddings")
    embeddings = read_part(Embeddings, folder / "embeddings")
    if not has_part(folder / "neighbours"):
        near = neighbours(embeddings)
        say(f"  similar patients: {int(near.comparable.sum())} of {len(values)} have some")
        write_part(near, folder / "neighbours")
    if not has_part(folder / "distribution"):
        found = distribution(source.data, fold.train_ids, values.patient_ids, modalities=fold.modalities)
        values_unlike = int((found.percentile > ALARM).any(axis=1).sum())
        rare = int((found.pattern_count < FEWEST).sum())
        say(
            f"  unlike training: {values_unlike} of {len(values)} in the content of a modality, {rare} in which "
            f"modalities they have; {found.state.count(WITHHELD)} withheld"
        )
        write_part(found, folder / "distribution")
    if not has_part(folder / "donors"):
        questions = missing_questions(values.present)
        drawn = donor_draws(fold, source.data, values, embeddings, questions, horizons=horizons)
        say(f"  missing modalities: {len(drawn)} questions put to donors")
        write_part(drawn, folder / "donors")


def patient_lines(
    parts: Sequence[Parts], patient: str, *, horizon: float | None = None, threshold: float | None = None
) -> list[str]:
    """What a reader of one patient's contributions must know, as lines of text.

    Args:
        parts: of :func:`read_parts`.
        patient: a held-out patient; one who is in no fold has no lines.
        horizon: days; the nearest of those stored is taken and named.
        threshold: risk above which one would act; default the mean risk over all stored questions.
    """
    out = []
    for one in parts:
        if patient not in one.distribution.patient_ids:
            continue
        row = one.distribution.patient_ids.index(PatientId(patient))
        state = one.distribution.state[row]
        out.append("; ".join([f"  inputs {state}", *one.distribution.reasons(row)]))
        bad = one.gate.unsupported(one.distribution.present[[row]])[0]
        out += [f"  not supported: {one.gate.names(c)}: {one.gate.reason[c]}" for c in bad]
        near = int(one.neighbours.close[row])
        out.append(
            f"  resembles {near} training patients" if one.neighbours.comparable[row] else "  no comparable patients"
        )
        out += _donor_lines(one.donors, row, horizon=horizon, threshold=threshold)
    return out


def _donor_lines(found: Donors, row: int, *, horizon: float | None, threshold: float | None) -> list[str]:
    if not (np.asarray(found.patient) == row).any() or found.kind == "multiclass":
        return []
    column = 0 if horizon is None or not len(found.horizons) else int(np.abs(found.horizons - horizon).argmin())
    where = f"risk at {found.horizons[column]:g} days" if len(found.horizons) else "risk"
    at = float(np.mean(found.risk[:, column])) if threshold is None else threshold
    said = added_value(found, threshold=at, column=column)
    draws = np.asarray(found.draws[..., column], dtype=np.float64)
    modality = np.asarray(found.modality)
    flag = absence_flags(said.risk, draws, modality, len(found.modalities))
    unit, times = ("", 1.0) if found.kind == "continuous" else (" points", 100.0)
    out = []
    for q in np.flatnonzero(np.asarray(found.patient) == row):
        name = found.modalities[int(modality[q])]
        if np.isnan(said.expected_change[q]):
            out.append(f"  {name}: absent; {said.donors[q]} donors, too few to say what it would change")
            continue
        change = times * said.expected_change[q]
        cross = "" if found.kind == "continuous" else f", {said.crossing[q]:.0%} chance of crossing {at:.0%}"
        what = "value" if found.kind == "continuous" else where
        out.append(f"  {name}: absent; it would change the {what} by about {change:.1f}{unit}{cross}")
        if flag[q]:
            out.append(f"  {name}: the model treats the absence itself as information")
    return out


def unseen_of(source: Source, fold: FoldModel, outcome: str) -> Unseen | None:
    """What a fold's members said of patients they never saw; None when the inner folds cannot be made again."""
    inner = inner_unseen(source, fold.train_ids)
    plain = unseen_values(fold, source.data, inner, outcome=outcome)
    if not same_as_stored(plain, fold):
        return None
    target = source.cohort.target(outcome, plain.patient_ids)
    return Unseen(plain=plain, target=target, parts=tuple(len(part) for part in inner))


def _gate(
    source: Source, fold: FoldModel, values: Coalitions, unseen: Unseen | None, horizons: Sequence[float]
) -> Gate:
    if unseen is None:
        return unknown_gate(values, "not known: the inner folds of the run could not be made again from its cohort")
    every = source.recipe.train.modality_dropout
    patterns = fold.ensembles[values.outcome][CHOSEN].patterns
    if values.meaning != RECALIBRATED or patterns is None:
        return subset_gate(unseen.plain, unseen.target, horizons=horizons, every_subset=every)
    balanced = source.recipe.train.presence == "balanced"
    judged = cross_fitted(unseen.plain, unseen.target, unseen.parts, balanced=balanced)
    gate = subset_gate(judged, unseen.target, horizons=horizons, every_subset=every)
    said = [
        reason if ok else f"{reason or 'too few outcomes'}; not recalibrated"
        for reason, ok in zip(gate.reason, patterns.fitted, strict=True)
    ]
    return replace(gate, reason=tuple(said))


def read_checks(run: Run, outcome: str) -> list[Check]:
    """Stored checks of the explanations of an outcome; empty when they were not run."""
    part = f"{FOLDER}/{outcome}/checks"
    if not (run.path / f"{part}.json").is_file():
        return []
    try:
        return from_json(run.read(part)["checks"])
    except (KeyError, TypeError) as error:
        msg = f"{run.path / part}.json: expected checks, found others; run medfuse explain --check again"
        raise StoreError(msg) from error


def write_checks(source: Source, values: Sequence[Coalitions], *, horizon: float | None, say: Say) -> list[Check]:
    """Run the checks of an outcome's explanations and store them.

    Deletion, insertion, signs, stability and completeness are of the held-out patients of all folds; weights are drawn
    again for the first fold alone; modalities are hidden in at most 60 patients of each.

    Args:
        source: cohort, data and recipe of the run.
        values: coalition values, per outer fold.
        horizon: days, of a survival outcome.
        say: called with each line of progress.
    """
    outcome = values[0].outcome
    checks = game_checks(values, horizon=horizon)
    pairs = []
    for number, one in enumerate(values):
        name = one.fold[0] if one.fold else ""
        say(f"checks of {outcome}, fold {name}")
        fold = load_fold(source.run.fold_folder(name))
        if number == 0:
            checks.append(randomisation_check(fold, source.data, one, horizon=horizon))
        pairs.append(_hidden(source, fold, one, horizon=horizon))
    checks += [*hidden_checks(check_hidden(np.concatenate(pairs))), *NOT_RUN]
    content = {"outcome": outcome, "horizon": horizon, "checks": to_json(checks)}
    source.run.write(f"{FOLDER}/{outcome}/checks", content)
    return checks


def _hidden(source: Source, fold: FoldModel, values: Coalitions, *, horizon: float | None) -> np.ndarray:
    if not values.fold:
        msg = "checks: expected values that name their fold, found none; explain the run again"
        raise CohortError(msg)
    folder = fold_folder(source.run, values.outcome, values.fold[0])
    embeddings = read_part(Embeddings, folder / "embeddings")
    patient, modality, available = hidden_questions(values.present)
    chosen = np.flatnonzero(patient < _MOST_HIDDEN)
    questions = (patient[chosen], modality[chosen], available[chosen])
    at = [] if horizon is None else [horizon]
    drawn = donor_draws(fold, source.data, values, embeddings, questions, horizons=at)
    nobody = float(np.ravel(values.game(horizon=horizon, scale="risk")[0])[0])
    return hidden_pairs(drawn, values, threshold=nobody)
