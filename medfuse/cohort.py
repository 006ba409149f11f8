"""A cohort: who is in it, what is known of their outcomes, and everyone who is not in it with the reason."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medfuse.config import CohortCard, OutcomeCard
from medfuse.errors import CohortError, ConfigError, DataError
from medfuse.files import sha256_file
from medfuse.tables import column, patient_ids, read_table, same_code, to_numeric
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.types import DAYS_PER_UNIT, PatientId


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
    """Patients and their outcomes, aligned: row i of every target is ``records[i]``."""

    card: CohortCard
    records: tuple[PatientRecord, ...]
    targets: Mapping[str, Target]
    attrition: Attrition
    problems: tuple[Problem, ...]
    data_root: Path | None

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
        )


def availability(cohort: Cohort, holders: Mapping[str, set[PatientId]]) -> pd.DataFrame:
    """Who has what: (patients, modalities) bool."""
    ids = list(cohort.patient_ids)
    return pd.DataFrame({name: [i in have for i in ids] for name, have in holders.items()}, index=pd.Index(ids))


def default_data_root() -> Path | None:
    """MEDFUSE_DATA, or the folder ``../shared/data`` where it is there."""
    named = os.environ.get("MEDFUSE_DATA")
    if named:
        return Path(named)
    beside = Path.cwd().parent / "shared" / "data"
    return beside if beside.is_dir() else None


def _jailed(source: str, base: Path) -> Path:
    """``base/source``, refused when it leaves ``base`` (also through a link)."""
    bad = "\0" in source or source.startswith(("\\\\", "//", "\\")) or (len(source) > 1 and source[1] == ":")
    if bad or Path(source).is_absolute():
        msg = f"{source!r}: expected a path below the data root, found an absolute, device or network path"
        raise ConfigError(msg)
    path = base / source
    if not path.resolve().is_relative_to(base.resolve()):
        msg = f"{source!r}: leaves the folder {base.name!r} below which the card's files must lie"
        raise ConfigError(msg)
    return path


def resolve_source(card: CohortCard, source: str, data_root: Path | None) -> Path:
    """Where a source of a card lies.

    Args:
        card: the card, whose ``root`` is a folder below the data root.
        source: a path below it, or ``package:NAME/path`` inside an installed package, found without importing it.
        data_root: folder laid out as the cards expect; None = the default.

    Raises:
        ConfigError: a path that leaves the data root, a package that is not installed, or no data root.
        DataError: no such file.
    """
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            msg = f"{card.name}: expected the package {package} to be installed, found none; pip install it"
            raise ConfigError(msg)
        path = _jailed(inside, Path(next(iter(spec.submodule_search_locations))))
    else:
        root = data_root or default_data_root()
        if root is None:
            msg = f"{card.name}: its files lie below a data root; pass --data-root or set MEDFUSE_DATA"
            raise ConfigError(msg)
        path = _jailed(source, _jailed(card.root, root) if card.root else root)
    if not path.is_file():
        msg = f"{card.name}: expected the file {source!r}, found none; check --data-root or MEDFUSE_DATA"
        raise DataError(msg)
    expected = card.governance.sha256.get(source)
    if expected is not None:
        found = sha256_file(path)
        if found != expected:
            msg = (
                f"{card.name}: {source!r} has changed: the card states SHA-256 {expected[:12]}..., the file has "
                f"{found[:12]}...; restore the file, or review the change and update the card"
            )
            raise DataError(msg)
    return path


def _one_row_each(frame: pd.DataFrame, columns: Sequence[str], *, file: str) -> pd.DataFrame:
    """Rows indexed by patient; repeated rows must agree in the columns that are used."""
    used = frame[[c for c in dict.fromkeys(columns)]]
    if frame.index.has_duplicates:
        filled = used.fillna("\0")
        varying = filled.groupby(level=0).nunique()
        clash = np.argwhere((varying > 1).to_numpy())
        if clash.size:
            row, col = clash[0]
            msg = (
                f"{file}: patient {varying.index[row]} has several rows that disagree in column {varying.columns[col]!r}; "
                "expected one value per patient; correct the table"
            )
            raise CohortError(msg)
    return used[~used.index.duplicated()]


def _coded(cell: str, groups: Mapping[bool, Sequence[str]]) -> bool | None:
    for value, codes in groups.items():
        if any(same_code(cell, code) for code in codes):
            return value
    return None


def _times(frame: pd.DataFrame, outcome: OutcomeCard, *, file: str) -> np.ndarray:
    name = outcome.time or ""
    if outcome.unit not in DAYS_PER_UNIT:
        msg = f"{file}: expected a time unit of {', '.join(DAYS_PER_UNIT)}, found {outcome.unit!r}; correct the card"
        raise ConfigError(msg)
    time = to_numeric(column(frame, name, file=file), file=file) * DAYS_PER_UNIT[str(outcome.unit)]
    negative = np.flatnonzero(time < 0)
    if negative.size and outcome.negative_time == "unknown":
        time[negative] = np.nan
    elif negative.size:
        msg = (
            f"{file}, column {name!r}: expected times >= 0, found {negative.size} negative, first of patient "
            f"{frame.index[negative[0]]}; correct the source, or state negative_time: unknown"
        )
        raise CohortError(msg)
    return time


def _survival(frame: pd.DataFrame, outcome: OutcomeCard, *, file: str) -> Survival:
    cells = column(frame, outcome.event or "", file=file)
    time = _times(frame, outcome, file=file)
    groups = {True: outcome.event_codes, False: outcome.censored_codes}
    codes = {cell: _coded(str(cell), groups) for cell in cells.dropna().unique()}
    unknown = [cell for cell, value in codes.items() if value is None]
    if unknown:
        rows = np.flatnonzero(cells.isin(unknown).to_numpy())
        msg = (
            f"{file}, column {outcome.event!r}: expected the codes {outcome.event_codes} (event) or "
            f"{outcome.censored_codes} (censored), found another code, first for patient {frame.index[rows[0]]} "
            f"({len(rows)} patients); add it to the card's event_codes or censored_codes"
        )
        raise CohortError(msg)
    half = np.flatnonzero(cells.notna().to_numpy() & frame[outcome.time or ""].isna().to_numpy())
    if half.size:
        msg = (
            f"{file}, column {outcome.time!r}: expected a time wherever {outcome.event!r} is known, found none for "
            f"patient {frame.index[half[0]]} ({half.size} patients); complete the source, or empty both cells"
        )
        raise CohortError(msg)
    observed = cells.notna().to_numpy() & ~np.isnan(time)
    event = np.array([bool(codes.get(cell)) for cell in cells], dtype=bool)
    return Survival(event=event & observed, time=np.where(observed, time, 0.0), observed=observed)


def _labels(frame: pd.DataFrame, outcome: OutcomeCard, *, file: str) -> Labels:
    cells = column(frame, outcome.column or "", file=file)
    label = np.full(len(frame), -1, dtype=np.int64)
    for i, cell in enumerate(cells):
        if isinstance(cell, str):
            hits = [k for k, code in enumerate(outcome.classes) if same_code(cell, code)]
            if not hits:
                msg = (
                    f"{file}, column {outcome.column!r}: expected one of the classes {outcome.classes}, found another "
                    f"code for patient {frame.index[i]}; add it to the card's classes"
                )
                raise CohortError(msg)
            label[i] = hits[0]
    observed = label >= 0
    if outcome.within_days is not None:
        time = _times(frame, outcome, file=file)
        event = (label == len(outcome.classes) - 1) & (time <= outcome.within_days)
        followed = time >= outcome.within_days
        observed &= event | followed
        label = np.where(event, len(outcome.classes) - 1, 0)
    return Labels(label=np.where(observed, label, 0), classes=tuple(outcome.classes), observed=observed)


def _target(frame: pd.DataFrame, outcome: OutcomeCard, *, file: str) -> Target:
    if outcome.kind == "survival":
        target: Target = _survival(frame, outcome, file=file)
    elif outcome.kind == "continuous":
        value = to_numeric(column(frame, outcome.column or "", file=file), file=file)
        observed = ~np.isnan(value)
        target = Values(value=np.where(observed, value, 0.0), unit=str(outcome.unit), observed=observed)
    else:
        target = _labels(frame, outcome, file=file)
    if outcome.exclude is not None:
        cells = column(frame, outcome.exclude.column, file=file)
        out = np.array([isinstance(c, str) and any(same_code(c, x) for x in outcome.exclude.codes) for c in cells])
        target.observed[out] = False
    return target


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


def _used_columns(outcome: OutcomeCard) -> list[str]:
    names = [outcome.time, outcome.event, outcome.column, outcome.exclude.column if outcome.exclude else None]
    return [name for name in names if name]


def _outcome_target(tables: _Tables, card: CohortCard, name: str, ids: list[PatientId]) -> Target:
    outcome = card.outcomes[name]
    source = outcome.file or card.patients.file
    frame = tables.get(source, outcome.id or card.patients.id)
    for used in _used_columns(outcome):
        column(frame, used, file=source)
    rows = _one_row_each(frame, _used_columns(outcome), file=source).reindex(ids)
    return _target(rows, outcome, file=source)


def _records(frame: pd.DataFrame, card: CohortCard) -> list[PatientRecord]:
    groups = card.groups
    wanted = [c for c in (groups.person, groups.site, groups.index_time, *card.subgroups) if c]
    for name in wanted:
        if name != card.patients.id:
            column(frame, name, file=card.patients.file)
    id_column = card.patients.id
    rows = _one_row_each(frame, [c for c in wanted if c in frame.columns], file=card.patients.file)

    def cell(patient: PatientId, name: str | None) -> str | None:
        if name is None or name not in rows.columns:
            return None
        value = rows.at[patient, name]
        return str(value) if isinstance(value, str) else None

    return [
        PatientRecord(
            patient_id=patient,
            person=(cell(patient, groups.person) if groups.person != id_column else None) or patient,
            site=cell(patient, groups.site),
            index_time=cell(patient, groups.index_time),
            subgroups={name: cell(patient, name) or "(missing)" for name in card.subgroups},
        )
        for patient in dict.fromkeys(PatientId(i) for i in frame.index)
    ]


def read_cohort(card: CohortCard, *, data_root: Path | None = None, need_outcomes: bool = True) -> Cohort:
    """Read the patients and outcomes that a card defines.

    Args:
        card: the definition.
        data_root: folder of the cohorts' files; default MEDFUSE_DATA, else ``../shared/data``.
        need_outcomes: False for new patients to predict: outcomes whose columns are not there are unknown.

    Returns:
        Everyone with at least one known outcome; the others are listed in the attrition with the reason.

    Raises:
        DataError, CohortError, ConfigError: what was expected, found, where and what to do.
    """
    tables = _Tables(card, data_root)
    frame = tables.get(card.patients.file, card.patients.id)
    records = _records(frame, card)
    ids = [record.patient_id for record in records]
    if not ids:
        msg = f"{card.name}: expected patients in {card.patients.file!r}, found none"
        raise CohortError(msg)
    targets: dict[str, Target] = {}
    for name in card.outcomes:
        try:
            targets[name] = _outcome_target(tables, card, name, ids)
        except DataError:
            if need_outcomes:
                raise
    reasons = _exclusions(card, targets, n=len(ids)) if need_outcomes else [""] * len(ids)
    keep = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.intp)
    if not keep.size:
        msg = f"{card.name}: expected patients with a known outcome, found none of {len(ids)}; check the outcome columns"
        raise CohortError(msg)
    excluded = tuple(Excluded(patient_id=ids[i], reason=reason) for i, reason in enumerate(reasons) if reason)
    problems = []
    for name, target in targets.items():
        unknown = [ids[i] for i in keep if not target.observed[i]]
        if unknown:
            who = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            message = f"outcome {name} is unknown for {len(unknown)} modelled patients: {who}"
            problems.append(Problem(file=card.outcomes[name].file or card.patients.file, message=message))
    return Cohort(
        card=card,
        records=tuple(records[i] for i in keep),
        targets={name: target.take(keep) for name, target in targets.items()},
        attrition=Attrition(total=len(ids), modelled=len(keep), excluded=excluded),
        problems=tuple(problems),
        data_root=data_root,
    )


def _exclusions(card: CohortCard, targets: Mapping[str, Target], *, n: int) -> list[str]:
    """Why each patient is not modelled; empty where they are."""
    known = np.zeros(n, dtype=bool)
    at_zero = np.zeros(n, dtype=bool)
    for target in targets.values():
        observed = target.observed.copy()
        if isinstance(target, Survival) and card.time_zero == "exclude":
            at_zero |= observed & (target.time == 0)
            target.observed[target.time == 0] = False
            observed = target.observed
        known |= observed
    return [
        "" if known[i] else ("followed for no time (time 0)" if at_zero[i] else "no known outcome") for i in range(n)
    ]
