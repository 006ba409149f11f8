"""Events of an electronic health record (MEDS, OMOP CDM, MIMIC, wide tables, PhysioNet records) before an index time.

Every source becomes one relation in the words of MEDS: subject, time, code, numeric value, text, unit. The card states
when the prediction is made and how far back is read (:mod:`medfuse.loaders._event_options`); the filter stands in one
place (:mod:`medfuse.loaders._event_query`). The vocabulary is the card's own list of variables, or buckets of hashed
codes: no patient, train or held out, decides which columns there are, and columns that train never fills are dropped
where everything else is fitted (:mod:`medfuse.preprocessing`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.loaders import _meds, _mimic, _omop, _wide
from medfuse.loaders._event_groups import aggregate, tokens
from medfuse.loaders._event_look import describe, group, identifying, recognise
from medfuse.loaders._event_options import Options, Variable, parse
from medfuse.loaders._event_query import Source, connection, prepare, quoted
from medfuse.loaders._event_values import values_sql
from medfuse.loaders._event_writers import write_meds, write_omop
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.tables import column, patient_ids, read_table
from medfuse.types import PatientId

__all__ = [
    "describe",
    "event_name",
    "events_of",
    "group",
    "group_table",
    "identifying",
    "prepared",
    "read",
    "recognise",
    "seen_events",
    "subject_of",
    "summary",
    "write_example",
    "write_meds",
    "write_omop",
]

OTHER = "other codes"  # what events of a bucket are called
_MINUTES = {"minutes": 1.0, "hours": 60.0, "days": 1440.0, "years": 525_960.0}


def _adapter(options: Options) -> Any:  # noqa: ANN401  # a module
    return {"meds": _meds, "omop": _omop, "mimic": _mimic, "wide": _wide, "records": _wide}[options.format]


# --- index times from a table ---------------------------------------------------------------------------------------


def subject_of(patient: str, form: str) -> str | None:
    """The subject in the source that the cohort calls ``patient``; None where the form does not fit."""
    before, _, after = form.partition("{")
    spec, _, after = after.partition("}")
    inner = patient.removeprefix(before).removesuffix(after) if after else patient.removeprefix(before)
    if not (patient.startswith(before) and patient.endswith(after)):
        return None
    if not spec:
        return inner
    return str(int(inner)) if inner.isdigit() and f"{int(inner):{spec[1:]}}" == inner else None


def _index_table(
    con: duckdb.DuckDBPyConnection, source: Source, options: Options, path: Path, *, id_column: str | None
) -> None:
    """Table ``idx`` from a table of one row per patient; patients without a time have no index time.

    Raises:
        DataError: times that are no ISO 8601 times (numbers where the source's times are relative), or that disagree.
    """
    index, file = options.index, path.name
    frame = read_table(path)
    ids = patient_ids(frame, index.id or id_column, prefix="row-", file=file)
    cells = column(frame, str(index.column), file=file)
    if source.relative:
        number = pd.to_numeric(cells, errors="coerce") * _MINUTES[options.at_unit or "minutes"]
        times = pd.Timestamp(0) + pd.to_timedelta(number, unit="m")
    else:
        times = pd.to_datetime(cells, format="ISO8601", errors="coerce")
    bad = np.flatnonzero(np.asarray(times.isna()) & np.asarray(cells.notna()))
    if bad.size:
        wanted = (
            f"a number of {options.at_unit or 'minutes'}"
            if source.relative
            else "an ISO 8601 time such as 2018-01-31 08:00"
        )
        msg = f"{file}, data row {bad[0] + 1}, column {index.column!r}: expected {wanted}, found other text"
        raise DataError(f"{msg} ({bad.size} such rows); correct the table")
    shifted = times + pd.to_timedelta(index.after_hours, unit="h")
    known = pd.DataFrame({"sid": [subject_of(i, options.patient_id) for i in ids], "at": shifted}).dropna()
    known = known.drop_duplicates()
    if known["sid"].duplicated().any():
        msg = f"{file}, column {index.column!r}: expected one index time per patient, found several that disagree"
        raise DataError(f"{msg}; leave one row per patient")
    rows = {"sid": known["sid"].tolist(), "at": [at.to_pydatetime() for at in known["at"]]}
    kind = con.execute(f"SELECT typeof(sid) FROM ({source.sql}) LIMIT 1").fetchall()
    con.execute(
        f"CREATE TABLE idx AS SELECT TRY_CAST(s AS {kind[0][0] if kind else 'VARCHAR'}) AS sid, a AS at "
        "FROM (SELECT unnest(?::VARCHAR[]) AS s, unnest(?::TIMESTAMP[]) AS a) WHERE sid IS NOT NULL",
        [rows["sid"], rows["at"]],
    )


# --- outputs --------------------------------------------------------------------------------------------------------


def _counts(options: Options) -> list[str]:
    return [f"count_{w:g}d" for w in options.windows] or ["count"]


def _layout(options: Options) -> list[tuple[int, str, Column]]:
    """(variable, column of the group table, column of the output) in the order of the output; from the card alone."""
    out: list[tuple[int, str, Column]] = []
    for k, variable in enumerate(options.variables):
        for stat in options.stats_of(variable):
            if stat == "count":
                out += [(k, c, Column(name=f"{variable.name}.{c}", unit="events")) for c in _counts(options)]
            elif stat == "last" and variable.level_names:
                out.append((k, stat, Column(name=variable.name, kind="categorical", levels=variable.level_names)))
            else:
                units = {"days_since": "d", "slope": f"{variable.unit or '1'}/d", "below": "1", "above": "1"}
                unit = units.get(stat, variable.unit)
                out.append((k, stat, Column(name=f"{variable.name}.{stat}", unit=unit)))
    first = len(options.variables)
    for b in range(options.buckets):
        out += [(first + b, c, Column(name=f"hash_{b:04d}.{c}", unit="events")) for c in _counts(options)]
    return out


def _patients(sid: NDArray[Any], options: Options) -> tuple[NDArray[np.int64], list[PatientId]]:
    """Row of each entry, and the patients in the order of their subjects."""
    rows, subjects = pd.factorize(sid, sort=True)
    form = options.patient_id
    if np.any(rows < 0):
        msg = "events: expected a subject with every event, found events without; correct the source"
        raise DataError(msg)
    try:
        names = [PatientId(form.format(int(s) if ":" in form else s)) for s in subjects]
    except ValueError:
        msg = f"events: expected whole numbers as subjects for patient_id {form}, found text; state patient_id: '{{}}'"
        raise DataError(msg) from None
    return rows.astype(np.int64), names


def summary(
    found: Mapping[str, NDArray[Any]], options: Options
) -> tuple[dict[PatientId, ModalitySample], list[Column]]:
    """Groups of :func:`group_table` as one sample per patient, and their columns."""
    layout = _layout(options)
    rows, patients = _patients(found["sid"], options)
    out = np.zeros((len(patients), len(layout), 2), dtype=np.float32)
    var = found["var"]
    order = np.argsort(var, kind="stable")
    starts = np.searchsorted(var[order], np.arange(len(options.variables) + options.buckets + 1))
    for c, (k, name, _) in enumerate(layout):
        here = order[starts[k] : starts[k + 1]]
        value = found[name][here].astype(np.float64)
        known = ~np.isnan(value)
        if name.startswith("count"):
            out[:, c, 1] = 1.0  # nobody saw the event is a count of zero, known for everyone who has events
        out[rows[here][known], c, 0] = value[known]
        out[rows[here][known], c, 1] = 1.0
    position = np.arange(len(layout), dtype=np.float32)[:, None]
    samples = {p: ModalitySample(tokens=out[i], position=position) for i, p in enumerate(patients)}
    return samples, [c for _, _, c in layout]


def _tokens(found: Mapping[str, NDArray[Any]], options: Options) -> tuple[dict[PatientId, ModalitySample], list[str]]:
    """One token per event, oldest first: value (0 without one), has-value flag, days before the index time.

    Where a variable has a reference range, also the side of it (-1, 1; 0: inside, or not known).
    """
    rows, patients = _patients(found["sid"], options)
    value, days = found["v"].astype(np.float64), found["days"].astype(np.float64)
    value[found["var"] >= len(options.variables)] = np.nan  # a bucket mixes codes and units: its events are counted
    known = ~np.isnan(value)
    when = np.where(np.isnan(days), options.lookback_days, days)  # what has no time is as old as can be
    parts = [np.where(known, value, 0.0), known, when]
    if "side" in found:
        parts.append(np.nan_to_num(found["side"].astype(np.float64)))
    features = np.stack(parts, axis=1).astype(np.float32)
    position = np.stack([found["var"], when], axis=1).astype(np.float32)
    ends = np.cumsum(np.bincount(rows, minlength=len(patients)))
    samples = {
        p: ModalitySample(tokens=features[start:end], position=position[start:end])
        for p, start, end in zip(patients, [0, *ends[:-1]], ends, strict=True)
    }
    return samples, [v.name for v in options.variables] + [f"hash_{b:04d}" for b in range(options.buckets)]


def prepared(
    con: duckdb.DuckDBPyConnection,
    scratch: Path,
    *,
    options: Options,
    files: Mapping[str, Path],
    id_column: str | None = None,
    only: Sequence[str] | None = None,
) -> list[str]:
    """Views of the events that may be seen, of everybody or of some subjects; what the loader warns of."""
    sources = {label: path for label, path in files.items() if label != options.index.table}
    source: Source = _adapter(options).source(con, sources, options, scratch)
    if only is not None:
        mine = f"CAST(sid AS VARCHAR) IN ({', '.join(map(quoted, only))})"
        source = replace(source, sql=f"SELECT * FROM ({source.sql}) WHERE {mine}")
    if options.index.start and not source.relative:
        msg = (
            f"{source.where}: index.start is for sources with relative times, and these are dates; state another index"
        )
        raise ConfigError(msg)
    if options.index.table:
        if options.index.table not in files:
            msg = f"index.table {options.index.table!r} is not under files; {nearest(options.index.table, files)}"
            raise ConfigError(msg)
        _index_table(con, source, options, files[options.index.table], id_column=id_column)
    prepare(con, source, options)
    return [*source.warnings, *values_sql(con, source, options)]


def group_table(files: Mapping[str, Path], options: Options) -> dict[str, NDArray[Any]]:
    """One row per subject and variable with something to say, unordered: see ``_event_groups.aggregate``.

    Args:
        files: label -> file or folder, as under ``files`` of a card.
        options: see :class:`medfuse.loaders._event_options.Options`.

    Raises:
        DataError: damage, units that cannot be reconciled.
    """
    with connection(", ".join(p.name for p in list(files.values())[:3])) as (con, scratch):
        prepared(con, scratch, options=options, files=files)
        return aggregate(con, options)


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read events; see :func:`medfuse.loaders.read`.

    Patients without an index time, or without an event of the card's codes before it, are absent.

    Returns:
        ``summary``: layout ``columns`` with units; ``tokens``: layout ``vectors``, features value, has-value flag,
        days before the index time and, where a variable has a reference range, its side; position (identity, days
        before the index time).

    Raises:
        ConfigError: options that cannot be used.
        DataError: damage, units that cannot be reconciled, comparators that the card does not allow.
    """
    options = parse(card.options)
    files = {label: resolve(source) for label, source in (card.files or {"events": card.file or ""}).items()}
    with connection(f"modality {name}") as (con, scratch):
        warnings = prepared(con, scratch, options=options, files=files, id_column=patients[0])
        if options.output == "tokens":
            samples, identities = _tokens(tokens(con, options), options)
            return ModalityData(
                name=name,
                layout="vectors",
                features=3 + any(v.reference for v in options.variables),
                identities=tuple(identities),
                samples=samples,
                warnings=tuple(warnings),
            )
        samples, columns = summary(aggregate(con, options), options)
    return ModalityData(
        name=name,
        layout="columns",
        features=2,
        columns=tuple(columns),
        samples=samples,
        warnings=tuple(warnings),
    )


def events_of(
    card: ModalityCard, patient: str, *, resolve: Callable[[str], Path], id_column: str | None
) -> tuple[pd.DataFrame, tuple[Variable, ...]]:
    """The events of one patient that the model may see, oldest first, and what the card says of their variables.

    They go through the same conversion of units and the same filter as :func:`read`: nothing after the index time.

    Returns:
        Columns ``variable``, ``days`` before the index time (NaN: without a time), ``value`` in the variable's unit
        (NaN: none, or the model counts events alone, so that their units need not agree) and ``side`` of the reference
        range (-1, 0, 1; NaN: no range).

    Raises:
        ConfigError, DataError: as :func:`read`.
    """
    found = seen_events(card, [patient], resolve=resolve, id_column=id_column)
    options = parse(card.options)
    names = np.array([v.name for v in options.variables] + [OTHER] * options.buckets, dtype=object)
    own = found.get(patient) or {n: np.zeros(0) for n in ("var", "days", "v", "side")}
    value = own["v"].astype(np.float64)
    counted = [options.counted(v) for v in options.variables] + [True] * options.buckets  # of several codes and units
    value[np.array(counted, dtype=bool)[own["var"].astype(np.int64)]] = np.nan
    side = own.get("side", np.full(len(value), np.nan))
    table = {"variable": names[own["var"].astype(np.int64)], "days": own["days"], "value": value, "side": side}
    return pd.DataFrame(table), options.variables


def event_name(variable: str, days: float) -> str:
    """``creatinine, 12.3 days before``: what to call an event without telling its value."""
    return f"{variable}, without a time" if np.isnan(days) else f"{variable}, {days:.1f} days before"


def seen_events(
    card: ModalityCard, patients: Sequence[str], *, resolve: Callable[[str], Path], id_column: str | None
) -> dict[str, dict[str, NDArray[Any]]]:
    """Events of some patients that the model may see, oldest first; nobody without any.

    Returns:
        Of each patient ``var`` (number of the variable, then of the bucket), ``days`` before the index time, ``age``
        (the same in microseconds), ``v`` and perhaps ``side``, as :func:`medfuse.loaders._event_groups.tokens`.

    Raises:
        ConfigError, DataError: as :func:`read`.
    """
    options = parse(card.options)
    subjects = {patient: subject_of(patient, options.patient_id) for patient in patients}
    known = [subject for subject in subjects.values() if subject is not None]
    if not known:
        return {}
    files = {label: resolve(source) for label, source in (card.files or {"events": card.file or ""}).items()}
    with connection("events of some patients") as (con, scratch):
        prepared(con, scratch, options=options, files=files, id_column=id_column, only=known)
        found = tokens(con, options)
    rows, names = _patients(found.pop("sid"), options)
    own = {str(name): np.flatnonzero(rows == row) for row, name in enumerate(names)}
    return {p: {name: part[own[p]] for name, part in found.items()} for p in patients if p in own}


def write_example(folder: Path) -> ModalityCard:
    """Three subjects as a MEDS folder, and the card that reads them at 24 h after their first admission."""
    time = pd.Timestamp("2020-03-01 08:00")
    rows: list[tuple[int, pd.Timestamp | None, str, float | None, str | None]] = []
    for subject, base in ((1, 90.0), (2, 70.0), (10, 110.0)):
        rows.append((subject, None, "SEX//F" if subject == 2 else "SEX//M", None, None))
        rows.append((subject, time, "ADMISSION//EMERGENCY", None, None))
        rows += [(subject, time + pd.Timedelta(hours=h), "HR", base + h, "/min") for h in (1, 5, 30)]
        rows.append((subject, time + pd.Timedelta(hours=2), "LAB//glucose", base, "mg/dL"))
    frame = pd.DataFrame(rows, columns=["subject_id", "time", "code", "numeric_value", "unit"])
    write_meds(folder / "meds", frame)
    return ModalityCard(
        loader="events",
        file="meds",
        options={
            "index": {"event": "ADMISSION//*", "after_hours": 24},
            "lookback_days": 2,
            "patient_id": "{:03d}",
            "windows": [1, 2],
            "variables": {
                "heart_rate": {"codes": "HR", "unit": "/min"},
                "glucose": {"codes": "LAB//glucose", "unit": "mmol/L", "analyte": "glucose"},
                "sex": {"level_codes": {"f": "SEX//F", "m": "SEX//M"}, "static": True},
            },
        },
    )
