"""A cohort: who is in it, what is known of their outcomes, and everyone who is not in it with the reason."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.card import COMPARISON, CohortCard, OutcomeCard, default_data_root, resolve_source
from medfuse.errors import CohortError, DataError
from medfuse.pseudonyms import Pseudonyms, pseudonyms_from_environment
from medfuse.tables import column, patient_ids, read_table, same_code, to_numeric
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.types import DAYS_PER_UNIT, PatientId

__all__ = [
    "Attrition",
    "Cohort",
    "Excluded",
    "PatientRecord",
    "Problem",
    "availability",
    "default_data_root",
    "read_cohort",
    "resolve_source",
]


@dataclass(frozen=True, kw_only=True)
class PatientRecord:
    """One patient: a record only."""

    patient_id: PatientId
    person: str
    site: str | None = None
    index_time: str | None = None
    subgroups: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A patient of the patients table who is not modelled, and why."""

    patient_id: PatientId
    reason: str


@dataclass(frozen=True, kw_only=True)
class Attrition:
    """Patients in = patients modelled + patients listed with a reason."""

    total: int
    modelled: int
    excluded: tuple[Excluded, ...] = ()

    def __post_init__(self) -> None:
        if self.total != self.modelled + len(self.excluded):
            msg = f"Attrition: {self.total} patients in, but {self.modelled} modelled + {len(self.excluded)} listed"
            raise CohortError(msg)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that a person should know of a source; ``row`` counts data rows from 1."""

    file: str
    message: str
    row: int | None = None
    column: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients and their outcomes, aligned: row i of every target is ``records[i]``.

    Attributes:
        pseudonyms: where ids are pseudonyms, what makes them; ``person`` of a record is never one, and never written.
        source_ids: pseudonym -> id in the files; empty where ids are as in the files.
    """

    card: CohortCard
    records: tuple[PatientRecord, ...]
    targets: Mapping[str, Target]
    attrition: Attrition
    problems: tuple[Problem, ...]
    data_root: Path | None
    pseudonyms: Pseudonyms | None = None
    source_ids: Mapping[PatientId, PatientId] = field(default_factory=dict, repr=False)

    def public(self, source_id: str) -> PatientId:
        """The id that medfuse writes for an id in the files."""
        return PatientId(source_id) if self.pseudonyms is None else self.pseudonyms(source_id)

    def source_id(self, patient: PatientId) -> PatientId:
        """The id in the files of a patient of the cohort."""
        return self.source_ids.get(patient, patient)

    def public_text(self, text: str) -> str:
        """A text for what medfuse writes: it names patients as the cohort does."""
        return text if self.pseudonyms is None else self.pseudonyms.text(text, self.source_ids.values())

    @contextmanager
    def names_in_errors(self) -> Iterator[None]:
        """Errors of medfuse inside the block name patients as the cohort does."""
        if self.pseudonyms is None:
            yield
            return
        with self.pseudonyms.in_errors(self.source_ids.values()):
            yield

    @property
    def patient_ids(self) -> tuple[PatientId, ...]:
        """Ids in the order of the records."""
        return tuple(record.patient_id for record in self.records)

    def index(self, ids: Sequence[PatientId]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Row of each id.

        Raises:
            CohortError: an id that is not in the cohort.
        """
        rows = {record.patient_id: i for i, record in enumerate(self.records)}
        unknown = [i for i in ids if i not in rows]
        if unknown:
            msg = f"cohort {self.card.name}: patient {unknown[0]} is not in it ({len(unknown)} such ids)"
            raise CohortError(msg)
        return np.array([rows[i] for i in ids], dtype=np.intp)

    def target(self, outcome: str, ids: Sequence[PatientId]) -> Target:
        """One outcome of some patients, in their order."""
        return self.targets[outcome].take(self.index(ids))

    def subset(self, ids: Sequence[PatientId]) -> "Cohort":
        """The cohort of some patients, in their order; everyone else is listed as not selected."""
        index = self.index(ids)
        kept = set(ids)
        left = [Excluded(patient_id=i, reason="not selected") for i in self.patient_ids if i not in kept]
        attrition = Attrition(
            total=self.attrition.total, modelled=len(index), excluded=(*self.attrition.excluded, *left)
        )
        return Cohort(
            card=self.card,
            records=tuple(self.records[i] for i in index),
            targets={name: target.take(index) for name, target in self.targets.items()},
            attrition=attrition,
            problems=self.problems,
            data_root=self.data_root,
            pseudonyms=self.pseudonyms,
            source_ids=self.source_ids,
        )


def availability(cohort: Cohort, holders: Mapping[str, set[PatientId]]) -> pd.DataFrame:
    """Who has what: (patients, modalities) bool."""
    ids = list(cohort.patient_ids)
    return pd.DataFrame({name: [i in have for i in ids] for name, have in holders.items()}, index=pd.Index(ids))


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of a table that belong to some patients: ``frame.iloc[i]`` is of ``ids[i]``.

    Attributes:
        number: (n,) data row in the file, counted from 1; 0 for a patient who is not in it.
    """

    file: str
    frame: pd.DataFrame
    ids: Sequence[PatientId]
    number: NDArray[np.int64]

    def where(self, i: int) -> str:
        """Row and patient, for a message."""
        return f"data row {self.number[i]}, patient {self.ids[i]}"

    def cells(self, name: str | None) -> "pd.Series[str]":
        """A column that must be there."""
        return column(self.frame, name or "", file=self.file)

    def numbers(self, name: str | None) -> NDArray[np.float64]:
        """A numeric column; NaN where a cell is missing."""
        return to_numeric(self.cells(name), file=self.file, where=self.where)


def _one_row_each(frame: pd.DataFrame, columns: Sequence[str], ids: Sequence[PatientId], *, file: str) -> _Rows:
    """One row per patient; repeated rows must agree in the columns that are used."""
    used = frame[list(dict.fromkeys(columns))]
    first = ~frame.index.duplicated()
    if not first.all():
        start = pd.Series(np.flatnonzero(first), index=frame.index[first]).reindex(frame.index).to_numpy()
        filled = used.fillna("\0").to_numpy()
        clash = np.argwhere(filled != filled[start])
        if clash.size:
            row, col = clash[0]
            msg = (
                f"{file}, data rows {start[row] + 1} and {row + 1}: patient {frame.index[row]} has several rows that "
                f"disagree in column {used.columns[col]!r}; expected one value per patient; correct the table"
            )
            raise CohortError(msg)
    number = pd.Series(np.flatnonzero(first) + 1, index=frame.index[first])
    index = pd.Index(list(ids), dtype=object)
    rows = number.reindex(index).fillna(0).to_numpy(dtype=np.int64)
    return _Rows(file=file, frame=used[first].reindex(index), ids=ids, number=rows)


def _coded(cell: str, groups: Mapping[bool, Sequence[str]]) -> bool | None:
    for value, codes in groups.items():
        if any(same_code(cell, code) for code in codes):
            return value
    return None


def _times(rows: _Rows, outcome: OutcomeCard) -> NDArray[np.float64]:
    """(n,) days; NaN where missing, and where negative times count as unknown."""
    time = rows.numbers(outcome.time) * DAYS_PER_UNIT[str(outcome.unit)]
    negative = np.flatnonzero(time < 0)
    if negative.size and outcome.negative_time == "unknown":
        time[negative] = np.nan
    elif negative.size:
        msg = (
            f"{rows.file}, {rows.where(negative[0])}, column {outcome.time!r}: expected a time >= 0, found a negative "
            f"one ({negative.size} such patients); correct the source, or state negative_time: unknown in the card"
        )
        raise CohortError(msg)
    return time


def _survival(rows: _Rows, outcome: OutcomeCard) -> Survival:
    cells = rows.cells(outcome.event)
    time = _times(rows, outcome)
    groups = {True: outcome.event_codes, False: outcome.censored_codes}
    codes = {cell: _coded(str(cell), groups) for cell in cells.dropna().unique()}
    unknown = np.flatnonzero(cells.isin([cell for cell, value in codes.items() if value is None]).to_numpy())
    if unknown.size:
        msg = (
            f"{rows.file}, {rows.where(unknown[0])}, column {outcome.event!r}: expected the codes "
            f"{outcome.event_codes} (event) or {outcome.censored_codes} (censored), found another code "
            f"({unknown.size} such patients); add it to the card's event_codes or censored_codes"
        )
        raise CohortError(msg)
    half = np.flatnonzero(cells.notna().to_numpy() & rows.cells(outcome.time).isna().to_numpy())
    if half.size:
        msg = (
            f"{rows.file}, {rows.where(half[0])}, column {outcome.time!r}: expected a time wherever {outcome.event!r} "
            f"is known, found none ({half.size} such patients); complete the source, or empty both cells"
        )
        raise CohortError(msg)
    observed = cells.notna().to_numpy() & ~np.isnan(time)
    event = np.array([bool(codes.get(cell)) for cell in cells], dtype=bool)
    return Survival(event=event & observed, time=np.where(observed, time, 0.0), observed=observed)


def _labels(rows: _Rows, outcome: OutcomeCard) -> Labels:
    label = np.full(len(rows.ids), -1, dtype=np.int64)
    for i, cell in enumerate(rows.cells(outcome.column)):
        if isinstance(cell, str):
            hits = [k for k, code in enumerate(outcome.classes) if same_code(cell, code)]
            if not hits:
                msg = (
                    f"{rows.file}, {rows.where(i)}, column {outcome.column!r}: expected one of the classes "
                    f"{outcome.classes}, found another code; add it to the card's classes"
                )
                raise CohortError(msg)
            label[i] = hits[0]
    observed = label >= 0
    if outcome.within_days is not None:
        time = _times(rows, outcome)
        event = (label == 1) & (time <= outcome.within_days)
        observed &= event | (time >= outcome.within_days)
        label = event.astype(np.int64)
    return Labels(label=np.where(observed, label, 0), classes=tuple(outcome.classes), observed=observed)


_COMPARE = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}


def _excluded(rows: _Rows, outcome: OutcomeCard) -> NDArray[np.bool_]:
    """(n,) True where a rule of the card makes the outcome unknown."""
    out = np.zeros(len(rows.ids), dtype=bool)
    for rule in outcome.exclude:
        hit = np.ones(len(rows.ids), dtype=bool)
        for name, wanted in rule.items():
            match = COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
            if match is not None:
                hit &= _COMPARE[match[1]](rows.numbers(name), float(match[2]))  # False for a missing cell
            else:
                cells = rows.cells(name)
                hit &= np.array([isinstance(c, str) and any(same_code(c, code) for code in wanted) for c in cells])
        out |= hit
    return out


def _target(rows: _Rows, outcome: OutcomeCard) -> Target:
    if outcome.kind == "survival":
        target: Target = _survival(rows, outcome)
    elif outcome.kind == "continuous":
        value = rows.numbers(outcome.column)
        observed = ~np.isnan(value)
        target = Values(value=np.where(observed, value, 0.0), unit=str(outcome.unit), observed=observed)
    else:
        target = _labels(rows, outcome)
    return dataclasses.replace(target, observed=target.observed & ~_excluded(rows, outcome))


class _Tables:
    """The card's tables, each read once, indexed by patient."""

    def __init__(self, card: CohortCard, data_root: Path | None) -> None:
        self._card, self._root = card, data_root
        self._frames: dict[tuple[str, str | None], pd.DataFrame] = {}

    def get(self, source: str, id_column: str | None) -> pd.DataFrame:
        key = (source, id_column)
        if key not in self._frames:
            path = resolve_source(self._card, source, self._root)
            frame = read_table(path)
            ids = patient_ids(frame, id_column, prefix=self._card.patients.row_prefix, file=path.name)
            self._frames[key] = frame.set_axis(pd.Index(ids, dtype=object), axis=0)
        return self._frames[key]


def _outcome_target(tables: _Tables, card: CohortCard, name: str, ids: list[PatientId]) -> Target:
    outcome = card.outcomes[name]
    source = outcome.file or card.patients.file
    frame = tables.get(source, outcome.id or card.patients.id)
    for used in outcome.used_columns():
        column(frame, used, file=source)
    return _target(_one_row_each(frame, outcome.used_columns(), ids, file=source), outcome)


def _texts(tables: _Tables, card: CohortCard, source: str, name: str, ids: Sequence[PatientId]) -> list[str | None]:
    """One column as text, for the patients in their order."""
    frame = tables.get(source, card.patients.id)
    column(frame, name, file=source)
    cells = _one_row_each(frame, [name], ids, file=source).frame[name]
    return [cell.strip() if isinstance(cell, str) else None for cell in cells]


def _records(tables: _Tables, card: CohortCard) -> list[PatientRecord]:
    source = card.patients.file
    ids = [PatientId(i) for i in dict.fromkeys(tables.get(source, card.patients.id).index)]
    nothing: list[str | None] = [None] * len(ids)
    groups = card.groups
    person, site, index_time = (
        _texts(tables, card, source, name, ids) if name else nothing
        for name in (groups.person, groups.site, groups.index_time)
    )
    subgroups = {name: _texts(tables, card, file, name, ids) for file, name in card.subgroup_columns()}
    return [
        PatientRecord(
            patient_id=patient,
            person=person[i] or patient,
            site=site[i],
            index_time=index_time[i],
            subgroups={name: cells[i] or "(missing)" for name, cells in subgroups.items()},
        )
        for i, patient in enumerate(ids)
    ]


def _problems(card: CohortCard, targets: Mapping[str, Target], ids: Sequence[PatientId]) -> tuple[Problem, ...]:
    problems = []
    for name, target in targets.items():
        unknown = [patient for patient, known in zip(ids, target.observed, strict=True) if not known]
        if unknown:
            who = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            outcome = card.outcomes[name]
            message = f"outcome {name} is unknown for {len(unknown)} modelled patients: {who}"
            source = outcome.file or card.patients.file
            problems.append(Problem(file=source, column=outcome.column or outcome.event, message=message))
    return tuple(problems)


def _exclusions(card: CohortCard, targets: Mapping[str, Target], *, n: int) -> tuple[list[str], dict[str, Target]]:
    """Why each patient is not modelled (empty where they are), and the outcomes without excluded times of 0."""
    known = np.zeros(n, dtype=bool)
    at_zero = np.zeros(n, dtype=bool)
    kept: dict[str, Target] = {}
    for name, target in targets.items():
        observed = target.observed
        if isinstance(target, Survival) and card.time_zero == "exclude":
            at_zero |= observed & (target.time == 0)
            observed = observed & (target.time > 0)
        kept[name] = dataclasses.replace(target, observed=observed)
        known |= observed
    reasons = [
        "" if known[i] else "followed for no time (time 0)" if at_zero[i] else "no known outcome" for i in range(n)
    ]
    return reasons, kept


def read_cohort(card: CohortCard, *, data_root: Path | None = None, need_outcomes: bool = True) -> Cohort:
    """Read the patients and outcomes that a card defines.

    Args:
        card: the definition.
        data_root: folder of the cohorts' files; default MEDFUSE_DATA, else ``../shared/data``.
        need_outcomes: False for new patients to predict: outcomes whose columns are not there are unknown, and nobody
            is left out.

    Returns:
        Everyone with at least one known outcome; the others are listed in the attrition with the reason.

    Raises:
        DataError, CohortError, ConfigError: what was expected, found, where and what to do.
    """
    tables = _Tables(card, data_root)
    if not card.patients.pseudonyms:
        return _cohort(tables, card, _records(tables, card), data_root=data_root, need_outcomes=need_outcomes)
    rename = pseudonyms_from_environment()
    source = tables.get(card.patients.file, card.patients.id)
    with rename.in_errors(map(str, source.index)):
        records = _records(tables, card)
        cohort = _cohort(tables, card, records, data_root=data_root, need_outcomes=need_outcomes)
    return _renamed(cohort, rename, [record.patient_id for record in records])


def _renamed(cohort: Cohort, rename: Pseudonyms, ids: Sequence[PatientId]) -> Cohort:
    """The cohort under pseudonyms; persons keep their names, so that the audit still knows them apart."""
    a = cohort.attrition
    return dataclasses.replace(
        cohort,
        records=tuple(dataclasses.replace(r, patient_id=rename(r.patient_id)) for r in cohort.records),
        attrition=dataclasses.replace(
            a, excluded=tuple(dataclasses.replace(e, patient_id=rename(e.patient_id)) for e in a.excluded)
        ),
        problems=tuple(dataclasses.replace(p, message=rename.text(p.message, ids)) for p in cohort.problems),
        pseudonyms=rename,
        source_ids={rename(i): i for i in ids},
    )


def _cohort(
    tables: _Tables,
    card: CohortCard,
    records: Sequence[PatientRecord],
    *,
    data_root: Path | None,
    need_outcomes: bool,
) -> Cohort:
    ids = [record.patient_id for record in records]
    if not ids:
        msg = f"{card.name}: expected patients in {card.patients.file!r}, found none; is the file cut short?"
        raise CohortError(msg)
    targets: dict[str, Target] = {}
    for name in card.outcomes:
        try:
            targets[name] = _outcome_target(tables, card, name, ids)
        except DataError:
            if need_outcomes:
                raise
    reasons = [""] * len(ids)
    if need_outcomes:
        reasons, targets = _exclusions(card, targets, n=len(ids))
    keep = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.intp)
    if not keep.size:
        msg = (
            f"{card.name}: expected patients with a known outcome, found none of {len(ids)}; check the outcome columns"
        )
        raise CohortError(msg)
    targets = {name: target.take(keep) for name, target in targets.items()}
    return Cohort(
        card=card,
        records=tuple(records[i] for i in keep),
        targets=targets,
        attrition=Attrition(
            total=len(ids),
            modelled=len(keep),
            excluded=tuple(Excluded(patient_id=ids[i], reason=reason) for i, reason in enumerate(reasons) if reason),
        ),
        problems=_problems(card, targets, [ids[i] for i in keep]),
        data_root=data_root,
    )
