"""A finished run and other patients: their files read as the run's were, and all folds' members averaged.

Numbers mean what they meant in training only if columns, units, levels and token identities do: all of them are matched
by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.card import CohortCard, OutcomeCard
from medfuse.cohort import Cohort, read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.errors import CohortError
from medfuse.evaluation import survival_between
from medfuse.prediction import Prediction
from medfuse.run import Run, spec_columns
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.tables import same_code
from medfuse.training import FoldModel, cpu_threads, load_fold, predict_fold
from medfuse.types import PatientId


def align(
    modality: ModalityData, *, columns: Sequence[Column], identities: Sequence[str], features: int, meaning: str = ""
) -> ModalityData:
    """A modality of other patients in the coding of a run.

    Columns, levels and token identities are matched by their names. A level or identity that the run does not know is
    missing, and a patient who has nothing else does not have the modality.

    Args:
        modality: as loaded.
        columns: the run's columns (layout ``columns``).
        identities: the run's token identities (layout ``vectors``).
        features: the run's number of features per token.
        meaning: of these features, where the run knows it.

    Raises:
        CohortError: a column that is not there, one of another kind or unit, vectors of another length or meaning.
    """
    if modality.layout == "columns" and columns:
        return _align_columns(modality, columns)
    if columns or modality.features != features or bool(modality.identities) != bool(identities):
        ours, theirs = (", ".join(names) or "none" for names in (identities, modality.identities))
        msg = (
            f"modality {modality.name}: expected vectors of {features} features with token identities {ours}, as in "
            f"the run, found {modality.features} with {theirs}; use the extractor of the run"
        )
        raise CohortError(msg)
    if meaning and modality.meaning and modality.meaning != meaning:  # what a served table holds is not said
        msg = (
            f"modality {modality.name}: expected vectors of the same model, or raw items of the same channels, step "
            "and unit, as in the run, found others; use the extractor of the run"
        )
        raise CohortError(msg)
    return _align_identities(modality, identities)


def _place(modality: ModalityData, columns: Sequence[Column]) -> NDArray[np.intp]:
    """(C,) where each of the run's columns stands in the modality."""
    found = {column.name: i for i, column in enumerate(modality.columns)}
    missing = [column.name for column in columns if column.name not in found]
    if missing:
        msg = (
            f"modality {modality.name}: expected the run's {len(columns)} columns, found no {missing[0]!r} "
            f"({len(missing)} such); add it to the card, and leave its cells empty where it was not measured"
        )
        raise CohortError(msg)
    place = np.array([found[column.name] for column in columns], dtype=np.intp)
    for column, i in zip(columns, place, strict=True):
        other = modality.columns[i]
        if (other.kind, other.unit) != (column.kind, column.unit):
            msg = (
                f"modality {modality.name}, column {column.name!r}: expected {column.kind} in unit {column.unit}, "
                f"as in the run, found {other.kind} in unit {other.unit}; convert the values, then correct the card"
            )
            raise CohortError(msg)
    return place


def _align_columns(modality: ModalityData, columns: Sequence[Column]) -> ModalityData:
    place = _place(modality, columns)
    recode: dict[int, NDArray[np.float32]] = {}  # column -> its levels as indices of the run's levels, -1 for others
    for c, column in enumerate(columns):
        own = modality.columns[place[c]].levels
        if column.kind != "numeric" and own != column.levels:
            hits = [[k for k, level in enumerate(column.levels) if same_code(name, level)] for name in own]
            recode[c] = np.array([hit[0] if hit else -1 for hit in hits], dtype=np.float32)
    position = np.arange(len(columns), dtype=np.float32)[:, None]
    samples: dict[PatientId, ModalitySample] = {}
    for patient, sample in modality.samples.items():
        tokens = np.array(sample.tokens[place])
        for c, levels in recode.items():
            if tokens[c, 1] > 0:
                index = levels[int(tokens[c, 0])]
                tokens[c] = (index, 1.0) if index >= 0 else (0.0, 0.0)
        if tokens[:, 1].any():
            samples[patient] = ModalitySample(tokens=tokens, position=position)
    return dataclasses.replace(modality, columns=tuple(columns), samples=samples)


def _align_identities(modality: ModalityData, identities: Sequence[str]) -> ModalityData:
    if modality.identities == tuple(identities):
        return modality
    index = np.array([identities.index(name) if name in identities else -1 for name in modality.identities])
    samples: dict[PatientId, ModalitySample] = {}
    for patient, sample in modality.samples.items():
        which = index[sample.position[:, 0].astype(np.int64)]
        known = which >= 0
        if known.any():
            position = which[known, None].astype(np.float32)
            samples[patient] = ModalitySample(tokens=sample.tokens[known], position=position)
    return dataclasses.replace(modality, identities=tuple(identities), samples=samples)


def outcome_cards(run: Run) -> dict[str, OutcomeCard]:
    """Outcomes as the run's own card defines them."""
    path = run.path / "card.md"
    return dict(read_card(path).outcomes) if path.is_file() else {}


def classes_of(run: Run) -> dict[str, list[str]]:
    """Names of the classes of the run's outcomes that have some."""
    return {name: outcome.classes for name, outcome in outcome_cards(run).items() if outcome.classes}


def require_same_outcome(run: Run, card: CohortCard, outcome: str) -> None:
    """Refuse an outcome that only shares its name with the run's.

    Raises:
        CohortError: another kind, other classes or the same in another order, or another unit of a continuous outcome.
    """
    ours, theirs = outcome_cards(run).get(outcome), card.outcomes[outcome]
    if ours is None:
        return
    unit = (ours.unit, theirs.unit) if ours.kind == "continuous" else (None, None)
    binary = ours.kind == theirs.kind == "binary" and set(ours.classes) != set(
        theirs.classes
    )  # other codes, event last
    if ours.kind != theirs.kind or unit[0] != unit[1] or (ours.classes != theirs.classes and not binary):
        msg = (
            f"card {card.name}, outcome {outcome!r}: expected {ours.kind} {ours.classes or unit[0] or ''}, as in the "
            f"run, found {theirs.kind} {theirs.classes or unit[1] or ''}; define it as the run's card does"
        )
        raise CohortError(msg)


def read_for_run(
    run: Run, card: CohortCard, *, data_root: Path | None, store_root: Path | None, need_outcomes: bool
) -> tuple[Cohort, dict[str, ModalityData], list[FoldModel]]:
    """The patients of a card, their modalities in the run's coding, and the run's models.

    Raises:
        CohortError: as :func:`read_coded`.
        MedfuseError: what the card's files or the run's folder refuse.
    """
    specs = run.read("modalities")["modalities"]
    cohort, data = read_coded(specs, card, data_root=data_root, store_root=store_root, need_outcomes=need_outcomes)
    return cohort, data, [load_fold(run.fold_folder(s["name"])) for s in run.read("splits")["splits"]]


def read_coded(
    specs: Mapping[str, Any],
    card: CohortCard,
    *,
    data_root: Path | None,
    store_root: Path | None,
    need_outcomes: bool,
) -> tuple[Cohort, dict[str, ModalityData]]:
    """The patients of a card, and their modalities in the coding of a run.

    Args:
        specs: the run's modalities, of :func:`medfuse.run.modality_specs`.
        card: of the patients.
        data_root: folder of the cohorts' files.
        store_root: folder of the feature store.
        need_outcomes: refuse a card whose outcomes cannot be read.

    Raises:
        CohortError: the card has none of the run's modalities, or one of other columns, units or features.
        MedfuseError: what the card's files refuse.
    """
    own = {name: modality.model_copy(update={"gmt": None}) for name, modality in card.modalities.items()}
    card = card.model_copy(update={"modalities": own})  # the members hold their gene sets: no GMT file is needed
    cohort = read_cohort(card, data_root=data_root, need_outcomes=need_outcomes)
    shared = [name for name in specs if name in card.modalities]
    if not shared:
        msg = (
            f"card {card.name}: expected one of the run's modalities ({', '.join(specs)}), found none of them; name "
            "one alike in the card"
        )
        raise CohortError(msg)
    loaded = load_modalities(cohort, names=shared, store_root=store_root)
    data = {
        name: align(
            modality,
            columns=spec_columns(specs[name]),
            identities=specs[name]["identities"],
            features=int(specs[name]["features"]),
            meaning=str(specs[name].get("meaning", "")),
        )
        for name, modality in loaded.items()
    }
    return cohort, data


def names_of(cohort: Cohort) -> str | None:
    """What tells whether ids of two cohorts can be compared: the fingerprint of their pseudonyms' key, or None."""
    return None if cohort.pseudonyms is None else cohort.pseudonyms.fingerprint


def same_names(run: Run, cohort: Cohort) -> bool:
    """Whether the ids of a run and of a cohort can be compared, so that who was trained on can be told."""
    named: str | None = run.read("data").get("pseudonyms")
    return named == names_of(cohort)


def _mean(parts: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64]:
    return np.asarray(np.mean([part for part in parts if part is not None], axis=0), dtype=np.float64)


def average_predictions(parts: Sequence[Prediction]) -> Prediction:
    """Mean over the folds' models; curves are averaged on the first fold's time grid, risk scores within SD units."""
    first = parts[0]
    risk = np.mean([p.risk_score for p in parts], axis=0)
    survival = None
    if first.survival is not None and first.times is not None:
        end = min(float(p.times[-1]) for p in parts if p.times is not None)
        times = first.times[first.times <= end]
        survival = np.mean([survival_between(p, times) for p in parts], axis=0)
        first = Prediction(
            patient_ids=first.patient_ids,
            present=first.present,
            modalities=first.modalities,
            risk_score=risk,
            times=times,
            survival=np.minimum.accumulate(survival, axis=1),
        )
        return first
    return Prediction(
        patient_ids=first.patient_ids,
        present=first.present,
        modalities=first.modalities,
        risk_score=risk,
        probability=None if first.probability is None else _mean([p.probability for p in parts]),
        value=None if first.value is None else _mean([p.value for p in parts]),
    )


def apply_run(
    folds: Sequence[FoldModel], data: Mapping[str, ModalityData], ids: Sequence[PatientId]
) -> dict[str, Prediction]:
    """Predictions of patients by all of a run's folds, averaged."""
    with cpu_threads(1):  # the fastest for small models
        each = [predict_fold(fold, data, ids) for fold in folds]
    return {outcome: average_predictions([one[outcome] for one in each]) for outcome in each[0]}


def prediction_table(
    predictions: Mapping[str, Prediction],
    *,
    folds: Sequence[FoldModel] = (),
    unknown: str = "",
    classes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """One row per patient and outcome, and a flag for ids seen in training.

    Columns ``survival@DAY``, ``probability@CLASS`` or ``value``, by the kind of the outcome.

    Args:
        predictions: by outcome.
        folds: of the run, whose training patients are flagged.
        unknown: why nobody can tell whom training has seen; stands in place of the flag.
        classes: names of the classes by outcome, of :func:`classes_of`; without them classes are numbered.
    """
    seen = {i for fold in folds for i in fold.train_ids}
    tables = []
    for outcome, p in predictions.items():
        table = pd.DataFrame({"patient_id": list(p.patient_ids), "outcome": outcome, "risk_score": p.risk_score})
        table["modalities"] = [
            "+".join(m for m, has in zip(p.modalities, row, strict=True) if has) or "none: population estimate"
            for row in p.present
        ]
        table["seen_in_training"] = f"unknown: {unknown}" if unknown else [i in seen for i in p.patient_ids]
        if p.survival is not None and p.times is not None:
            curves = pd.DataFrame(p.survival, columns=[f"survival@{t:g}" for t in p.times])
            table = pd.concat([table, curves], axis=1)
        if p.probability is not None:
            names = list((classes or {}).get(outcome, range(p.probability.shape[1])))
            columns = pd.Index([f"probability@{name}" for name in names])
            table = pd.concat([table, pd.DataFrame(p.probability, columns=columns)], axis=1)
        if p.value is not None:
            table["value"] = p.value
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
