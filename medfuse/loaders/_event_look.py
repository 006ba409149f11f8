"""What ``medfuse inspect`` says of events: which of the formats, how much there is, and what identifies a person."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from medfuse.errors import DataError, MedfuseError
from medfuse.limits import read_head
from medfuse.loaders import _meds, _mimic, _omop, _wide
from medfuse.loaders._event_csv import Table, contents, find, header, is_csv, members, stem
from medfuse.loaders._event_options import Options, parse
from medfuse.loaders._event_query import Source, connection, quoted
from medfuse.loaders.base import Description, Head, Identifying

_LARGEST = 512 << 20  # bytes of CSV that an inspection reads; above, names and sizes only
_OMOP = _omop.TABLES | frozenset(
    re.findall(
        r"\w+",
        "care_site cdm_source cohort cohort_definition concept_ancestor concept_class concept_relationship "
        "concept_synonym condition_era cost domain dose_era drug_era drug_strength episode episode_event "
        "fact_relationship location metadata note note_nlp observation_period payer_plan_period provider "
        "relationship source_to_concept_map visit_detail vocabulary",
    )
)
_MIMIC = _mimic.TABLES | frozenset(
    re.findall(
        r"\w+",
        "callout caregivers cptevents d_cpt d_hcpcs d_icd_diagnoses d_icd_procedures d_items d_labitems "
        "datetimeevents drgcodes emar emar_detail hcpcsevents ingredientevents noteevents omr pharmacy poe "
        "poe_detail provider services transfers caregiver discharge radiology",
    )
)
_OUTCOMES = b"RecordID,SAPS-I,SOFA,"
_KINDS = {
    "meds": "MEDS dataset",
    "omop": "OMOP CDM tables",
    "mimic": "MIMIC tables",
    "records": "PhysioNet records (Time,Parameter,Value)",
}
# tables of events (or free text) without a place among the events
_UNREAD = frozenset({"callout", "datetimeevents", "emar", "omr", "poe", "hcpcsevents", "noteevents", "note", "episode"})
# table -> column -> what it tells of a person
_IDENTIFYING: dict[str, dict[str, dict[str, str]]] = {
    "omop": {
        "person": {
            "birth_datetime": "date of birth",
            "year_of_birth": "date of birth",
            "month_of_birth": "date of birth",
            "day_of_birth": "date of birth",
            "person_source_value": "id",
        },
        "death": {"death_date": "date of death", "death_datetime": "date of death"},
        "location": dict.fromkeys(
            ("address_1", "address_2", "city", "county", "zip", "location_source_value", "latitude", "longitude"),
            "address",
        ),
        "provider": {"provider_name": "name", "npi": "id", "dea": "id", "provider_source_value": "id"},
        "care_site": {"care_site_name": "name"},
        "note": {"note_text": "free text", "note_title": "free text", "note_source_value": "free text"},
        "note_nlp": {"snippet": "free text", "lexical_variant": "free text"},
        "observation": {"value_as_string": "free text"},
        "measurement": {"value_source_value": "free text"},
        "drug_exposure": {"sig": "free text", "lot_number": "id"},
        "device_exposure": {"unique_device_id": "id", "production_id": "id"},
    },
    "mimic": {
        "patients": dict.fromkeys(("dob",), "date of birth")
        | dict.fromkeys(("dod", "dod_hosp", "dod_ssn"), "date of death"),
        "admissions": {
            "deathtime": "date of death",
            "diagnosis": "free text",
            "religion": "demographic",
            "ethnicity": "demographic",
            "race": "demographic",
            "language": "demographic",
            "marital_status": "demographic",
        },
        "noteevents": {"text": "free text"},
        "discharge": {"text": "free text"},
        "radiology": {"text": "free text"},
        "labevents": {"comments": "free text"},
        "chartevents": {"value": "free text"},
        "inputevents_mv": {"comments_editedby": "free text", "comments_canceledby": "free text"},
        "microbiologyevents": {"comments": "free text"},
    },
}
_NAMED = ("name", "address", "zip", "postcode", "phone", "mail", "ssn", "mrn", "note", "comment")


def _zip_kind(path: Path) -> str:
    try:
        found = members(path)
    except MedfuseError:
        return ""
    names = {stem(m.filename) for m in found if is_csv(m.filename)}
    if {"person"} & names and names & (_omop.TABLES - {"person"}):
        return "omop"
    if {"patients", "admissions"} <= names:
        return "mimic"
    texts = [m for m in found if m.filename.lower().endswith(".txt")][:1]
    try:
        if texts and texts[0].file_size < 1 << 20 and next(contents(path, texts))[1].startswith(_wide.RECORD_HEAD):
            return "records"
    except MedfuseError:
        pass
    return ""


def _parquet_kind(path: Path) -> str:
    try:
        names = set(_meds.schema(path).names)
    except MedfuseError:
        return "meds" if path.suffix.lower() == ".parquet" else ""
    event = set(_meds.NEEDED) <= names or {"subject_id", "events"} <= names
    meta = path.parent.name == "metadata" and (names >= {"subject_id", "split"} or names >= {"code", "description"})
    return "meds" if event or meta else ""


def kind_of(head: Head) -> str:
    """The format of a file by its beginning; empty when it is none of them."""
    if head.start.startswith(b"PAR1"):
        return _parquet_kind(head.path)
    if head.start.startswith(b"PK\x03\x04"):
        return _zip_kind(head.path) if zipfile.is_zipfile(head.path) else ""
    if head.start.removeprefix(b"\xef\xbb\xbf").startswith(_wide.RECORD_HEAD):
        return "records"
    if head.start.startswith(_OUTCOMES):
        return "outcomes"
    if head.path.parts[-2:] == ("metadata", "dataset.json") and b'"meds_version"' in head.start:
        return "meds"
    if is_csv(head.path.name):
        columns, name = set(header(head.start)), stem(head.path.name)
        if name in _MIMIC and columns & {"subject_id", "itemid", "cgid", "caregiver_id", "icd9_code", "icd_code"}:
            return "mimic"
        if name in _MIMIC and name.startswith("d_") and columns & {"row_id", "code"}:
            return "mimic"
        if name in _OMOP and any(c.endswith(("_id", "_id_1", "_name", "_code")) for c in columns):
            return "omop"
    return ""


def _kind(path: Path) -> str:
    return kind_of(Head(path=path, size=path.stat().st_size, start=read_head(path)))


def _root(path: Path) -> Path:
    for parent in path.parents:
        if parent.name in {"data", "metadata"}:
            return parent.parent
    return path.parent.parent if path.parent.name.lower() in {"hosp", "icu", "ed", "note"} else path.parent


def group(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Files of one dataset together: a MEDS folder, an OMOP or MIMIC folder, a folder of records; a zip alone."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        kind = _kind(path)
        alone = path.suffix.lower() == ".zip"
        root = path if alone else path.parent if kind == "records" else _root(path)
        groups.setdefault((kind, str(root)), []).append(path)
    return [tuple(sorted(paths)) for paths in groups.values()]


def _everything(kind: str) -> Options:
    index = {"start": True} if kind == "records" else {"time": "1970-01-01"}
    return parse({"format": kind, "index": index, "lookback_days": 0, "hash": ["*"], "buckets": 1})


def _named(kind: str, files: Sequence[Path]) -> dict[str, Path]:
    chosen = [p for p in files if p.parent.name != "metadata"] if kind == "meds" else list(files)
    return {str(number): path for number, path in enumerate(chosen)}


def describe(files: Sequence[Path]) -> Description:
    """Subjects, events, codes, span in days and units; no date and no value.

    Raises:
        DataError: damage.
    """
    kind = _kind(files[0])
    if kind == "outcomes":
        msg = f"{files[0].name}: expected events, found the outcomes of PhysioNet 2012 records (one row per patient)"
        raise DataError(f"{msg}; name it in a card as the patients table and under outcomes, and inspect set-a.zip")
    size = sum(p.stat().st_size for p in files)
    unread: tuple[str, ...] = ()
    holds: dict[str, Any] = {"format": kind, "files": len(files)}
    if kind in {"omop", "mimic"}:
        holds["tables"] = sorted({stem(p.name) for p in files if p.suffix.lower() != ".zip"})
        left = sorted(set(holds["tables"]) & _UNREAD)
        unread = (f"events of {', '.join(left)} are not read",) if left else ()
        if not set(holds["tables"]) & (_omop.TABLES | _mimic.TABLES) and holds["tables"]:
            return Description(kind=_KINDS[kind], holds=holds, warnings=("no table of events among them",))
    chosen = _named(kind, files)
    if not chosen:
        return Description(kind=_KINDS[kind], holds=holds, warnings=("metadata only, no events",))
    if kind in {"omop", "mimic"} and size > _LARGEST:
        return Description(
            kind=_KINDS[kind], holds={**holds, "bytes": size}, warnings=("too large to be counted here",)
        )
    adapter = {"meds": _meds, "omop": _omop, "mimic": _mimic, "records": _wide}[kind]
    with connection(files[0].name) as (con, scratch):
        source: Source = adapter.source(con, chosen, _everything(kind), scratch)
        return Description(
            kind=_KINDS[kind], holds={**holds, **_counted(con, source)}, warnings=(*source.warnings, *unread)
        )


def _counted(con: duckdb.DuckDBPyConnection, source: Source) -> dict[str, Any]:
    born = "code NOT IN ('MEDS_BIRTH', 'MEDS_DEATH')"
    row = con.execute(
        "SELECT count(*), count(DISTINCT sid), count(DISTINCT code), count(value), "
        "count(*) FILTER (time IS NULL), (epoch_us(max(time) FILTER ("
        f"{born})) - epoch_us(min(time) FILTER ({born}))) / 86400e6 FROM ({source.sql}) "
        "WHERE isfinite(time) OR time IS NULL"
    ).fetchall()[0]
    keys = ("events", "subjects", "codes", "with_a_value", "static", "span_days")
    holds: dict[str, Any] = dict(zip(keys, row, strict=True))
    holds["span_days"] = None if row[5] is None else round(float(row[5]), 1)
    if source.has_unit:
        units = con.execute(
            f"SELECT unit, count(*) FROM ({source.sql}) WHERE unit IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 40"
        ).fetchall()
        holds["units"] = {unit: count for unit, count in units}
    return holds


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Columns that are filled and tell who a person is; their cells are never repeated."""
    kind = _kind(files[0])
    with connection(files[0].name) as (con, scratch):
        if kind == "meds":
            return _in_meds(con, _named(kind, files))
        if kind not in _IDENTIFYING:
            return []
        tables = find(_named(kind, files), set(_IDENTIFYING[kind]) | {"patients", "person"}, scratch)
        return _in_tables(con, tables, _IDENTIFYING[kind])


def _filled(con: duckdb.DuckDBPyConnection, scan: str, test: str) -> bool:
    return bool(con.execute(f"SELECT 1 FROM {scan} WHERE {test} LIMIT 1").fetchall())


def _in_tables(
    con: duckdb.DuckDBPyConnection, tables: Mapping[str, Table], known: Mapping[str, Mapping[str, str]]
) -> list[Identifying]:
    found = []
    for name, table in sorted(tables.items()):
        for column, what in known.get(name, {}).items():
            test = f"{table.text(column)} IS NOT NULL"
            if what == "free text":  # numbers and codes in a column for text are none
                test += f" AND regexp_matches({table.text(column)}, '[A-Za-z]{{3,}}.*\\s.*[A-Za-z]{{3,}}')"
            if column in table.columns and _filled(con, table.sql(), test):
                found.append(Identifying(where=f"{name}.{column}", kind=what))
    return found


def _in_meds(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path]) -> list[Identifying]:
    found: dict[tuple[str, str], Identifying] = {}
    for path in files.values():
        names = _meds.schema(path).names
        scan = f"read_parquet({quoted(str(path))})"
        checks = [
            ("MEDS_BIRTH", "date of birth", "code = 'MEDS_BIRTH'"),
            ("MEDS_DEATH", "date of death", "code = 'MEDS_DEATH'"),
        ]
        if "text_value" in names:
            words = "regexp_matches(left(text_value, 1000), '[A-Za-z]{3,}.*\\s.*[A-Za-z]{3,}')"
            checks.append(("text_value", "free text", words))
        checks += [
            (n, "named like an identifier", f'"{n}" IS NOT NULL') for n in names if any(w in n.lower() for w in _NAMED)
        ]
        for where, what, test in checks:
            if (where, what) not in found and _filled(con, scan, test):
                found[(where, what)] = Identifying(where=where, kind=what)
    return list(found.values())


def recognise(head: Head) -> bool:
    """MEDS Parquet, OMOP or MIMIC tables by name and header, PhysioNet records, and zips of them."""
    return bool(kind_of(head))


__all__ = ["describe", "group", "identifying", "kind_of", "recognise"]
