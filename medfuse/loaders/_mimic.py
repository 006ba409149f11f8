"""MIMIC-III and MIMIC-IV CSV files: the hospital's and the intensive care unit's tables as events.

Codes: ``ADMISSION//type``, ``DISCHARGE//location``, ``ICU_IN//unit``, ``ICU_OUT//unit``, ``LAB//itemid``,
``CHART//itemid``, ``OUTPUT//itemid``, ``INPUT//itemid``, ``PROCEDURE_EVENT//itemid``, ``DRUG//name``,
``DIAGNOSIS//ICD9//code``, ``PROCEDURE//ICD9//code``, ``CPT//code``, ``DRG//code``, ``SERVICE//service``,
``TRANSFER//unit``, ``MICRO//specimen``, ``GENDER//F`` (static), ``MEDS_BIRTH``, ``MEDS_DEATH``.

What is known only later stands at its later time: diagnoses, procedures, CPT and DRG codes and the place of discharge
at the discharge of their admission, amounts of infusions at their end. A culture's organism has no time at which it
was known, so that only its specimen is an event. ``known: stored`` takes the time of storing where a table has one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from medfuse.loaders._event_csv import Part, Table, find, gather, moment
from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import Source

TABLES = frozenset(
    {
        "patients",
        "admissions",
        "icustays",
        "labevents",
        "chartevents",
        "outputevents",
        "inputevents",
        "inputevents_cv",
        "inputevents_mv",
        "procedureevents",
        "procedureevents_mv",
        "prescriptions",
        "diagnoses_icd",
        "procedures_icd",
        "microbiologyevents",
        "cptevents",
        "drgcodes",
        "services",
        "transfers",
    }
)


def _timed(table: Table, options: Options, name: str, *others: str) -> tuple[str, str]:
    """Text and moment of an event that is charted at ``name`` (or ``others``) and perhaps stored later."""
    raw = table.need(name, *others)
    if options.known == "stored" and "storetime" in table.columns:
        raw = f"coalesce({table.text('storetime')}, {raw})"
    return raw, moment(raw, options)


def _measured(prefix: str, name: str, table: Table, options: Options, *, at: str, keep: str = "true") -> Part:
    raw, time = _timed(table, options, at, "charttime", "starttime")
    value, text = table.text("valuenum", "amount", "value"), table.text("value")
    number = f"TRY_CAST({value} AS DOUBLE)"
    compared = f"regexp_matches({text}, '^\\s*(<|>|≤|≥)')"
    return Part(
        prefix=f"{prefix}//",
        table=name,
        sid=table.need("subject_id"),
        raw_time=raw,
        time=time,
        code=f"'{prefix}//' || trim({table.need('itemid')})",
        value=number,
        text=f"CASE WHEN {number} IS NULL OR {compared} THEN {text} END",
        unit=table.text("valueuom", "amountuom"),
        low=table.text("ref_range_lower") if "ref_range_lower" in table.columns else Part.low,
        high=table.text("ref_range_upper") if "ref_range_upper" in table.columns else Part.high,
        keep=keep,
    )


def _measurements(tables: Mapping[str, Table], options: Options) -> Iterator[Part]:
    for prefix, name, at in (
        ("LAB", "labevents", "charttime"),
        ("CHART", "chartevents", "charttime"),
        ("OUTPUT", "outputevents", "charttime"),
        ("INPUT", "inputevents", "endtime"),
        ("INPUT", "inputevents_cv", "charttime"),
        ("INPUT", "inputevents_mv", "endtime"),
        ("PROCEDURE_EVENT", "procedureevents", "endtime"),
        ("PROCEDURE_EVENT", "procedureevents_mv", "endtime"),
    ):
        if name in tables:
            table = tables[name]
            wrong = f"coalesce({table.text('error', 'iserror')}, '0') NOT IN ('1', '1.0')"
            status = f"lower(coalesce({table.text('statusdescription')}, '')) <> 'rewritten'"
            yield _measured(prefix, name, table, options, at=at, keep=f"{wrong} AND {status}")


def _coded(tables: Mapping[str, Table], options: Options) -> Iterator[Part]:
    """Codes that are given at discharge: their time is the end of their admission."""
    if "admissions" not in tables:
        return
    stays = tables["admissions"]
    ends = f"(SELECT {stays.text('hadm_id')} AS stay, {stays.text('dischtime')} AS ended FROM {stays.sql()}) a"
    for prefix, name in (
        ("DIAGNOSIS", "diagnoses_icd"),
        ("PROCEDURE", "procedures_icd"),
        ("CPT", "cptevents"),
        ("DRG", "drgcodes"),
    ):
        if name not in tables:
            continue
        table = tables[name]
        version = f"'ICD' || trim(coalesce({table.text('icd_version')}, '9')) || '//' || " if "icd" in name else ""
        yield Part(
            prefix=f"{prefix}//",
            table=name,
            sid="t.subject_id",
            raw_time="a.ended",
            time=moment("a.ended", options),
            code=f"'{prefix}//' || {version}trim({table.need('icd_code', 'icd9_code', 'cpt_cd', 'drg_code')})",
            scan=f"{table.sql()} t LEFT JOIN {ends} ON t.hadm_id = a.stay",
            keep="a.ended IS NOT NULL",
        )


def _simple(tables: Mapping[str, Table], options: Options) -> Iterator[Part]:
    for prefix, name, at, label in (
        ("ADMISSION", "admissions", "admittime", "admission_type"),
        ("DISCHARGE", "admissions", "dischtime", "discharge_location"),
        ("ICU_IN", "icustays", "intime", "first_careunit"),
        ("ICU_OUT", "icustays", "outtime", "last_careunit"),
        ("SERVICE", "services", "transfertime", "curr_service"),
        ("TRANSFER", "transfers", "intime", "curr_careunit"),
        ("MICRO", "microbiologyevents", "charttime", "spec_type_desc"),
    ):
        if name in tables:
            table = tables[name]
            raw = table.need(at)
            if name == "microbiologyevents":
                raw = f"coalesce({raw}, {table.text('chartdate')})"
            yield Part(
                prefix=f"{prefix}//",
                table=name,
                sid=table.need("subject_id"),
                raw_time=raw,
                time=moment(raw, options),
                code=f"'{prefix}//' || coalesce(trim({table.text(label)}), '')",
            )
    if "prescriptions" in tables:
        table = tables["prescriptions"]
        raw = table.need("starttime", "startdate")
        yield Part(
            prefix="DRUG//",
            table="prescriptions",
            sid=table.need("subject_id"),
            raw_time=raw,
            # Prescriptions are dated: 00:00:00 is no time of day.
            time=moment(raw, options, midnight=True),
            code=f"'DRUG//' || trim({table.need('drug')})",
        )


def _people(tables: Mapping[str, Table], options: Options) -> Iterator[Part]:
    if "patients" in tables:
        table = tables["patients"]
        sid = table.need("subject_id")
        gender = f"'GENDER//' || trim({table.text('gender')})"
        yield Part(prefix="GENDER//", table="patients", sid=sid, raw_time="", time="NULL::TIMESTAMP", code=gender)
        for code, raw in (("MEDS_BIRTH", table.text("dob")), ("MEDS_DEATH", table.text("dod"))):
            time = moment(raw, options, midnight=True)
            yield Part(prefix=code, table="patients", sid=sid, raw_time=raw, time=time, code=f"'{code}'")


def source(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path], options: Options, scratch: Path) -> Source:
    """See :class:`medfuse.loaders._event_query.Source`."""
    tables = find(files, TABLES, scratch)
    where = next(iter(files.values())).name
    parts = [*_people(tables, options), *_simple(tables, options), *_measurements(tables, options)]
    return gather(con, [*parts, *_coded(tables, options)], tables, options, where=where)
