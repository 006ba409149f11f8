"""Writers of MEDS and OMOP CDM folders, for examples, tests and synthetic cohorts."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medfuse.errors import DataError

_COLUMNS = ("subject_id", "time", "code", "numeric_value")


def _events(frame: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in _COLUMNS[:3] if name not in frame.columns]
    if missing:
        msg = f"write_meds: expected columns {', '.join(_COLUMNS)}, found no {missing[0]}; name them so"
        raise DataError(msg)
    out = frame.assign(
        subject_id=frame["subject_id"].astype("int64"), time=pd.to_datetime(frame["time"]).dt.floor("us")
    )
    if "numeric_value" not in out:
        out["numeric_value"] = float("nan")
    out["numeric_value"] = out["numeric_value"].astype("float64")
    return out.sort_values(["subject_id", "time"], kind="stable", na_position="first").reset_index(drop=True)


def write_meds(
    folder: Path,
    events: pd.DataFrame,
    *,
    splits: Mapping[int, str] | None = None,
    shards: int = 1,
    descriptions: Mapping[str, str] | None = None,
    name: str = "medfuse-example",
) -> list[Path]:
    """Write a MEDS 0.3 dataset: ``data/SPLIT/N.parquet`` and ``metadata/``.

    Args:
        folder: of the dataset, made if need be.
        events: columns ``subject_id`` (whole numbers), ``time`` (NaT: static), ``code``, ``numeric_value``, and
            optionally ``text_value`` and ``unit``.
        splits: subject -> ``train``, ``tuning`` or ``held_out``; default: all in ``train``.
        shards: files per split; a subject is in one.
        descriptions: code -> what it means.
        name: of the dataset.

    Returns:
        The event files.

    Raises:
        DataError: a column that is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = _events(events)
    subjects = pd.Series(frame["subject_id"].unique())
    split = subjects.map(dict(splits)) if splits else pd.Series(["train"] * len(subjects))
    fields = [("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string())]
    fields += [("numeric_value", pa.float32())]
    fields += [(c, pa.string()) for c in ("text_value", "unit") if c in frame.columns]
    written = []
    for part in sorted(split.dropna().unique()):
        chosen = subjects[(split == part).to_numpy()].reset_index(drop=True)
        for shard in range(shards):
            rows = frame[frame["subject_id"].isin(chosen.iloc[shard::shards])]
            path = folder / "data" / str(part) / f"{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pandas(rows[[f for f, _ in fields]], schema=pa.schema(fields), preserve_index=False)
            pq.write_table(table, path, compression="zstd")
            written.append(path)
    meta = folder / "metadata"
    meta.mkdir(parents=True, exist_ok=True)
    (meta / "dataset.json").write_text(json.dumps({"dataset_name": name, "meds_version": "0.3.3"}) + "\n")
    codes = sorted(frame["code"].unique())
    described = [(descriptions or {}).get(code) for code in codes]
    listed = {"code": codes, "description": described, "parent_codes": [None] * len(codes)}
    kinds = [("code", pa.string()), ("description", pa.string()), ("parent_codes", pa.list_(pa.string()))]
    pq.write_table(pa.table(listed, schema=pa.schema(kinds)), meta / "codes.parquet")
    pq.write_table(
        pa.table({"subject_id": subjects.to_list(), "split": split.to_list()}), meta / "subject_splits.parquet"
    )
    return written


_OMOP_HEADS = {
    "PERSON": (
        "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime,race_concept_id,"
        "ethnicity_concept_id,location_id,provider_id,care_site_id,person_source_value,gender_source_value,"
        "gender_source_concept_id,race_source_value,race_source_concept_id,ethnicity_source_value,"
        "ethnicity_source_concept_id"
    ),
    "OBSERVATION_PERIOD": (
        "observation_period_id,person_id,observation_period_start_date,observation_period_end_date,"
        "period_type_concept_id"
    ),
    "VISIT_OCCURRENCE": (
        "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,"
        "visit_end_datetime,visit_type_concept_id,provider_id,care_site_id,visit_source_value,visit_source_concept_id,"
        "admitted_from_concept_id,admitted_from_source_value,discharged_to_concept_id,discharged_to_source_value,"
        "preceding_visit_occurrence_id"
    ),
    "CONDITION_OCCURRENCE": (
        "condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime,"
        "condition_end_date,condition_end_datetime,condition_type_concept_id,condition_status_concept_id,stop_reason,"
        "provider_id,visit_occurrence_id,visit_detail_id,condition_source_value,condition_source_concept_id,"
        "condition_status_source_value"
    ),
    "DRUG_EXPOSURE": (
        "drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_start_datetime,"
        "drug_exposure_end_date,drug_exposure_end_datetime,verbatim_end_date,drug_type_concept_id,stop_reason,refills,"
        "quantity,days_supply,sig,route_concept_id,lot_number,provider_id,visit_occurrence_id,visit_detail_id,"
        "drug_source_value,drug_source_concept_id,route_source_value,dose_unit_source_value"
    ),
    "PROCEDURE_OCCURRENCE": (
        "procedure_occurrence_id,person_id,procedure_concept_id,procedure_date,procedure_datetime,procedure_end_date,"
        "procedure_end_datetime,procedure_type_concept_id,modifier_concept_id,quantity,provider_id,"
        "visit_occurrence_id,visit_detail_id,procedure_source_value,procedure_source_concept_id,modifier_source_value"
    ),
    "MEASUREMENT": (
        "measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,measurement_time,"
        "measurement_type_concept_id,operator_concept_id,value_as_number,value_as_concept_id,unit_concept_id,range_low,"
        "range_high,provider_id,visit_occurrence_id,visit_detail_id,measurement_source_value,"
        "measurement_source_concept_id,unit_source_value,unit_source_concept_id,value_source_value,"
        "measurement_event_id,meas_event_field_concept_id"
    ),
    "OBSERVATION": (
        "observation_id,person_id,observation_concept_id,observation_date,observation_datetime,"
        "observation_type_concept_id,value_as_number,value_as_string,value_as_concept_id,qualifier_concept_id,"
        "unit_concept_id,provider_id,visit_occurrence_id,visit_detail_id,observation_source_value,"
        "observation_source_concept_id,unit_source_value,qualifier_source_value,value_source_value,"
        "observation_event_id,obs_event_field_concept_id"
    ),
    "DEATH": (
        "person_id,death_date,death_datetime,death_type_concept_id,cause_concept_id,cause_source_value,"
        "cause_source_concept_id"
    ),
    "CONCEPT": (
        "concept_id,concept_name,domain_id,vocabulary_id,concept_class_id,standard_concept,concept_code,"
        "valid_start_date,valid_end_date,invalid_reason"
    ),
}
# table -> (row id, beginning of its concept columns, beginning of its date columns)
_OMOP_DATED = {
    "VISIT_OCCURRENCE": ("visit_occurrence_id", "visit", "visit_start"),
    "CONDITION_OCCURRENCE": ("condition_occurrence_id", "condition", "condition_start"),
    "DRUG_EXPOSURE": ("drug_exposure_id", "drug", "drug_exposure_start"),
    "PROCEDURE_OCCURRENCE": ("procedure_occurrence_id", "procedure", "procedure"),
    "MEASUREMENT": ("measurement_id", "measurement", "measurement"),
    "OBSERVATION": ("observation_id", "observation", "observation"),
}
_GENDERS = {"F": 8532, "M": 8507}
_EHR = 32817  # type concept: EHR


def write_omop(
    folder: Path,
    events: pd.DataFrame,
    people: pd.DataFrame,
    *,
    concepts: Mapping[str, tuple[str, int, str]],
) -> list[Path]:
    """Write an OMOP CDM 5.4 folder of CSV files.

    Args:
        folder: made if need be.
        events: columns ``subject_id`` (whole numbers), ``time``, ``code``, and optionally ``numeric_value``,
            ``text_value``, ``unit`` (UCUM) and ``end_time`` (of visits).
        people: columns ``subject_id``, ``sex`` (F, M) and ``birth`` (times), and optionally ``death`` (times or NaT).
        concepts: code -> (table such as ``MEASUREMENT``, concept id, name); concept id 0 keeps the code as the source
            value only.

    Returns:
        The files.

    Raises:
        DataError: a code without a concept, a table that is not written, or a column that is missing.
    """
    missing = [c for c in ("subject_id", "sex", "birth") if c not in people.columns]
    if missing:
        msg = f"write_omop: expected people with subject_id, sex and birth, found no {missing[0]}; name them so"
        raise DataError(msg)
    frame = _events(events).dropna(subset=["time"])
    unknown = sorted(set(frame["code"]) - set(concepts))
    tables = {concepts[code][0] for code in frame["code"].unique() if code in concepts}
    if unknown or tables - set(_OMOP_DATED):
        what = f"no concept for {unknown[0]!r}" if unknown else f"the table {min(tables - set(_OMOP_DATED))!r}"
        msg = f"write_omop: expected every code in concepts, with one of {', '.join(_OMOP_DATED)}, found {what}"
        raise DataError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    written = [_omop_people(folder, people), _omop_periods(folder, frame)]
    if "death" in people:
        written.append(_omop_deaths(folder, people))
    for table in _OMOP_DATED:
        written.append(_omop_events(folder, frame[[concepts[c][0] == table for c in frame["code"]]], table, concepts))
    rows = [
        {"concept_id": number, "concept_name": name, "domain_id": table.split("_")[0].title(), "concept_code": code}
        | {"vocabulary_id": "medfuse", "concept_class_id": "Example", "standard_concept": "S"}
        for code, (table, number, name) in sorted(concepts.items())
        if number
    ]
    return [*written, _omop_table(folder, "CONCEPT", pd.DataFrame(rows))]


def _omop_table(folder: Path, name: str, rows: pd.DataFrame) -> Path:
    path = folder / f"{name}.csv"
    rows.reindex(columns=_OMOP_HEADS[name].split(",")).to_csv(path, index=False)
    return path


def _omop_people(folder: Path, people: pd.DataFrame) -> Path:
    birth = pd.to_datetime(people["birth"])
    rows = {
        "person_id": people["subject_id"].astype("int64"),
        "gender_concept_id": people["sex"].map(_GENDERS).fillna(0).astype("int64"),
        "year_of_birth": birth.dt.year,
        "month_of_birth": birth.dt.month,
        "day_of_birth": birth.dt.day,
        "birth_datetime": birth.dt.strftime("%Y-%m-%d %H:%M:%S"),
        "race_concept_id": 0,
        "ethnicity_concept_id": 0,
        "gender_source_value": people["sex"],
    }
    return _omop_table(folder, "PERSON", pd.DataFrame(rows))


def _omop_deaths(folder: Path, people: pd.DataFrame) -> Path:
    dead = people.dropna(subset=["death"])
    time = pd.to_datetime(dead["death"])
    rows = {
        "person_id": dead["subject_id"].astype("int64"),
        "death_date": time.dt.strftime("%Y-%m-%d"),
        "death_datetime": time.dt.strftime("%Y-%m-%d %H:%M:%S"),
        "death_type_concept_id": _EHR,
    }
    return _omop_table(folder, "DEATH", pd.DataFrame(rows))


def _omop_periods(folder: Path, frame: pd.DataFrame) -> Path:
    spans = frame.groupby("subject_id")["time"].agg(["min", "max"]).reset_index()
    rows = {
        "observation_period_id": range(1, len(spans) + 1),
        "person_id": spans["subject_id"],
        "observation_period_start_date": spans["min"].dt.strftime("%Y-%m-%d"),
        "observation_period_end_date": spans["max"].dt.strftime("%Y-%m-%d"),
        "period_type_concept_id": _EHR,
    }
    return _omop_table(folder, "OBSERVATION_PERIOD", pd.DataFrame(rows))


def _omop_events(folder: Path, frame: pd.DataFrame, table: str, concepts: Mapping[str, tuple[str, int, str]]) -> Path:
    key, stem, start = _OMOP_DATED[table]
    rows = pd.DataFrame(
        {
            key: range(1, len(frame) + 1),
            "person_id": frame["subject_id"].to_numpy(),
            f"{stem}_concept_id": [concepts[c][1] for c in frame["code"]],
            f"{stem}_source_value": frame["code"].to_numpy(),
            f"{start}_date": frame["time"].dt.strftime("%Y-%m-%d").to_numpy(),
            f"{start}_datetime": frame["time"].dt.strftime("%Y-%m-%d %H:%M:%S").to_numpy(),
            f"{stem}_type_concept_id": _EHR,
        }
    )
    if "end_time" in frame and table == "VISIT_OCCURRENCE":
        end = pd.to_datetime(frame["end_time"])
        rows["visit_end_date"] = end.dt.strftime("%Y-%m-%d").to_numpy()
        rows["visit_end_datetime"] = end.dt.strftime("%Y-%m-%d %H:%M:%S").to_numpy()
    if table in {"MEASUREMENT", "OBSERVATION"}:
        rows["value_as_number"] = frame["numeric_value"].to_numpy()
        if "unit" in frame:
            rows["unit_source_value"] = frame["unit"].to_numpy()
        if "text_value" in frame:
            rows["value_source_value"] = frame["text_value"].to_numpy()
            if table == "OBSERVATION":
                rows["value_as_string"] = frame["text_value"].to_numpy()
    return _omop_table(folder, table, rows)
