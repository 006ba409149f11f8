"""OMOP Common Data Model 5.x as CSV files: every clinical table as events.

Codes are ``DOMAIN//concept_id`` (``MEASUREMENT//3016723``), or ``DOMAIN//source//value`` where a source value has no
standard concept (concept 0). ``VISIT//`` and ``VISIT_END//`` mark the ends of a visit, ``GENDER//``, ``RACE//`` and
``ETHNICITY//`` are static, ``MEDS_BIRTH`` and ``MEDS_DEATH`` are what MEDS calls them. A concept as value is the text
of an event (``levels`` of a card name concept ids), and ``operator_concept_id`` makes a comparator of the value.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from medfuse.loaders._event_csv import Part, Table, find, gather, moment
from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import Source, quoted

# domain of the codes, table, and the beginning of its date columns
_CLINICAL = (
    ("CONDITION", "condition_occurrence", "condition", "condition_start"),
    ("DRUG", "drug_exposure", "drug", "drug_exposure_start"),
    ("PROCEDURE", "procedure_occurrence", "procedure", "procedure"),
    ("DEVICE", "device_exposure", "device", "device_exposure_start"),
    ("MEASUREMENT", "measurement", "measurement", "measurement"),
    ("OBSERVATION", "observation", "observation", "observation"),
    ("SPECIMEN", "specimen", "specimen", "specimen"),
    ("VISIT", "visit_occurrence", "visit", "visit_start"),
    ("VISIT_DETAIL", "visit_detail", "visit_detail", "visit_detail_start"),
    ("VISIT_END", "visit_occurrence", "visit", "visit_end"),
)
TABLES = frozenset({"person", "death", "concept", *(table for _, table, _, _ in _CLINICAL)})

# unit_concept_id -> UCUM, for sources without a CONCEPT table
UNITS = {
    8554: "%",
    8582: "cm",
    8840: "mg/dL",
    8753: "mmol/L",
    8749: "umol/L",
    8713: "g/dL",
    8636: "g/L",
    8751: "mg/L",
    8842: "ng/mL",
    8845: "pg/mL",
    8837: "ug/dL",
    8645: "U/L",
    8923: "[iU]/L",
    8876: "mm[Hg]",
    8541: "/min",
    8483: "{counts}/min",
    8848: "10*3/uL",
    9444: "10*9/L",
    8815: "10*6/uL",
    9557: "meq/L",
    9529: "kg",
    8739: "[lb_av]",
    9330: "[in_i]",
    9531: "kg/m2",
    586323: "Cel",
    9289: "[degF]",
    8587: "mL",
    8519: "L",
    9448: "a",
    8512: "d",
    8505: "h",
}
_OPERATORS = {4171756: "<", 4171754: "<=", 4172704: ">", 4171755: ">="}


def _when(table: Table, start: str, options: Options) -> tuple[str, str]:
    """Text and moment: the time of day where there is one (00:00:00 is none), else the date."""
    raw = f"coalesce({table.text(f'{start}_datetime')}, {table.need(f'{start}_date')})"
    return raw, moment(raw, options, midnight=True)


def _whole(raw: str) -> str:
    return f"TRY_CAST({raw} AS BIGINT)"


def _values(table: Table) -> tuple[str, str]:
    """SQL of value and text."""
    raw, operator = table.text("value_as_number"), _whole(table.text("operator_concept_id"))
    cases = " ".join(f"WHEN {number} THEN {quoted(sign)} || {raw}" for number, sign in _OPERATORS.items())
    concept = table.text("value_as_concept_id")
    text = f"coalesce(CASE {operator} {cases} END, CASE WHEN TRY_CAST({raw} AS DOUBLE) IS NULL THEN coalesce({raw}, "
    text += f"{table.text('value_as_string')}, CASE WHEN {_whole(concept)} <> 0 THEN trim({concept}) END) END)"
    return f"TRY_CAST({raw} AS DOUBLE)", text


def _unit(con: duckdb.DuckDBPyConnection, table: Table, tables: Mapping[str, Table]) -> str:
    if "unit_concept_id" not in table.columns:
        return table.text("unit_source_value")
    if "concept" in tables and {"concept_id", "concept_code", "vocabulary_id"} <= set(tables["concept"].columns):
        con.execute(
            "CREATE TABLE IF NOT EXISTS omop_units AS SELECT TRY_CAST(concept_id AS BIGINT) AS id, "
            f"any_value(concept_code) AS unit FROM {tables['concept'].sql()} WHERE vocabulary_id = 'UCUM' GROUP BY 1"
        )
    else:
        con.execute("CREATE TABLE IF NOT EXISTS omop_units (id BIGINT, unit VARCHAR)")
    listed = " ".join(f"WHEN {number} THEN {quoted(unit)}" for number, unit in UNITS.items())
    concept = _whole(table.text("unit_concept_id"))
    named = f"(SELECT u.unit FROM omop_units u WHERE u.id = {concept})"
    unknown = f"CASE WHEN {concept} <> 0 THEN 'concept ' || {concept} END"
    return f"coalesce({named}, CASE {concept} {listed} END, {table.text('unit_source_value')}, {unknown})"


def _parts(con: duckdb.DuckDBPyConnection, tables: Mapping[str, Table], options: Options) -> Iterator[Part]:
    for domain, name, stem, start in _CLINICAL:
        if name not in tables:
            continue
        table = tables[name]
        raw, time = _when(table, start, options)
        concept, source = table.need(f"{stem}_concept_id"), table.text(f"{stem}_source_value")
        code = f"CASE WHEN {_whole(concept)} <> 0 THEN '{domain}//' || {_whole(concept)} "
        code += f"WHEN {source} IS NOT NULL THEN '{domain}//source//' || {source} ELSE '{domain}//0' END"
        value, text = _values(table) if domain in {"MEASUREMENT", "OBSERVATION"} else ("NULL::DOUBLE", "NULL::VARCHAR")
        unit = _unit(con, table, tables) if domain in {"MEASUREMENT", "OBSERVATION"} else "NULL::VARCHAR"
        yield Part(
            prefix=f"{domain}//",
            table=name,
            sid=table.need("person_id"),
            raw_time=raw,
            time=time,
            code=code,
            value=value,
            text=text,
            unit=unit,
            low=table.text("range_low") if "range_low" in table.columns else Part.low,
            high=table.text("range_high") if "range_high" in table.columns else Part.high,
        )
    if "person" in tables:
        yield from _person(tables["person"], options)
    if "death" in tables:
        raw, time = _when(tables["death"], "death", options)
        sid = tables["death"].need("person_id")
        yield Part(prefix="MEDS_DEATH", table="death", sid=sid, raw_time=raw, time=time, code="'MEDS_DEATH'")


def _person(table: Table, options: Options) -> Iterator[Part]:
    sid = table.need("person_id")
    for domain, column in (("GENDER", "gender"), ("RACE", "race"), ("ETHNICITY", "ethnicity")):
        concept, source = _whole(table.text(f"{column}_concept_id")), table.text(f"{column}_source_value")
        code = f"CASE WHEN {concept} <> 0 THEN '{domain}//' || {concept} "
        code += f"WHEN {source} IS NOT NULL THEN '{domain}//source//' || {source} END"
        yield Part(prefix=f"{domain}//", table="person", sid=sid, raw_time="", time="NULL::TIMESTAMP", code=code)
    month, day = table.text("month_of_birth"), table.text("day_of_birth")
    made = f"{table.text('year_of_birth')} || '-' || lpad(coalesce({month}, '1'), 2, '0') || '-' || "
    made += f"lpad(coalesce({day}, '1'), 2, '0')"
    raw = f"coalesce({table.text('birth_datetime')}, {made})"
    time = moment(raw, options)
    yield Part(prefix="MEDS_BIRTH", table="person", sid=sid, raw_time=raw, time=time, code="'MEDS_BIRTH'")


def source(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path], options: Options, scratch: Path) -> Source:
    """See :class:`medfuse.loaders._event_query.Source`."""
    tables = find(files, TABLES, scratch)
    where = next(iter(files.values())).name
    return gather(con, list(_parts(con, tables, options)), tables, options, where=where)
