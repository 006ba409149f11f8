"""Events of OMOP, MIMIC, PhysioNet records and wide tables, and what an inspection says of them."""

import json
import zipfile

import pandas as pd
import pytest
from event_cases import (
    MIMIC,
    MIMIC_OPTIONS,
    OMOP_OPTIONS,
    RECORD,
    RECORD_OPTIONS,
    ROWS,
    cells,
    frame,
    load_path,
    mimic,
    omop,
)

from medfuse.errors import MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import events


def test_omop_written_and_read(tmp_path):
    omop(tmp_path)
    data = load_path(tmp_path, **OMOP_OPTIONS)
    assert set(data.samples) == {"1", "2"}, "3 has no visit and so no index time"
    found = cells(data, "1")
    assert found["creatinine.last"] == pytest.approx(2 * 88.403, rel=1e-4)
    assert found["creatinine.count_5d"] == 2
    assert found["hypertension.count_1d"] == 1
    assert found["sex"] == 0
    assert found["age.days_since"] / 365.25 == pytest.approx(69.67, abs=0.02)
    assert found["own.count_1d"] == 1
    assert found["death.count_5d"] == 0
    assert cells(data, "2")["death.count_5d"] == 0, "dies after the index time"


def test_omop_comparators_and_dates_without_a_time(tmp_path):
    omop(tmp_path)
    path = tmp_path / "MEASUREMENT.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, "operator_concept_id"] = "4171756"
    table.loc[1, "measurement_datetime"] = None
    table.to_csv(path, index=False)
    with pytest.raises(MedfuseError, match="comparator"):
        load_path(tmp_path, **OMOP_OPTIONS)
    found = cells(load_path(tmp_path, **OMOP_OPTIONS, comparators="missing"), "1")
    assert found["creatinine.last"] is None, (
        "a date without a time is the end of its day, which is after the index time"
    )
    assert found["creatinine.count_5d"] == 1
    early = cells(load_path(tmp_path, **OMOP_OPTIONS, comparators="missing", date_only="start"), "1")
    assert early["creatinine.count_5d"] == 2


@pytest.mark.parametrize("packed", [False, True])
def test_mimic_with_what_is_known_only_later_at_its_later_time(tmp_path, packed):
    mimic(tmp_path, packed=packed)
    data = load_path(tmp_path, **MIMIC_OPTIONS)
    found = cells(data, "1")
    assert (found["creatinine.last"], found["creatinine.max"]) == (0.5, 1.0)
    assert (found["hr.mean"], found["hr.count_1d"]) == (85, 2), "a value marked as an error is none"
    assert found["hypertension.count_5d"] == 0, "coded at discharge"
    assert found["home.count_5d"] == 0
    other = cells(data, "2")
    assert other["creatinine.last"] is None
    assert other["creatinine.count_1d"] == 1
    later = load_path(tmp_path, **{**MIMIC_OPTIONS, "index": {"event": "DISCHARGE//*"}, "lookback_days": 30})
    assert cells(later, "1")["hypertension.count_5d"] == 1
    stored = load_path(tmp_path, **{**MIMIC_OPTIONS, "known": "stored"})
    assert cells(stored, "1")["hr.mean"] == 90


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2150-01-01 12:00:00", "01/01/2150 12:00", "ISO 8601"),
        ("2150-01-01 12:00:00", "2150-01-01 12:00:00+02:00", "ISO 8601"),
        ("\n1,10,50912", "\nx,10,50912", "whole numbers as ids"),
        ("7.0,7.0,mg/dL,", "7.0,7.0", "whole files"),
    ],
)
def test_damaged_tables_are_refused_without_their_cells(tmp_path, old, new, message):
    mimic(tmp_path, LABEVENTS=MIMIC["LABEVENTS"].replace(old, new, 1))
    with pytest.raises(MedfuseError, match=message) as caught:
        load_path(tmp_path, **MIMIC_OPTIONS)
    assert "2150" not in str(caught.value).replace("2018-01-31", "")


def test_records_of_a_folder_and_of_a_zip(tmp_path):
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for patient, hr in ((132539, 70), (132540, 80)):
            text = RECORD.format(id=patient, hr=hr)
            (tmp_path / "set" / f"{patient}.txt").write_text(text)
            archive.writestr(f"set/{patient}.txt", text)
    for name in ("set", "set.zip"):
        data = load_path(tmp_path / name, **RECORD_OPTIONS)
        assert cells(data, "132540")["HR.mean"] == 85
        assert cells(data, "132539")["HR.max"] == 90
        assert cells(data, "132539")["Age.last"] == 54
    (tmp_path / "set" / "1.txt").write_text("Time,Parameter,Value\n00:00,HR,high\n")
    with pytest.raises(MedfuseError, match="line 2"):
        load_path(tmp_path / "set", **RECORD_OPTIONS)


def test_wide_tables_with_relative_times(tmp_path):
    path = tmp_path / "visits.csv"
    path.write_text("id,year,bili,ascites\n1,0,14.5,Yes\n1,0.5,21.3,NA\n1,2,9,No\n2,0,,No\n")
    spec = {"bili": {"unit": "mg/dL"}, "ascites": {"levels": ["No", "Yes"]}}
    options = {
        "format": "wide",
        "id": "id",
        "at": "year",
        "at_unit": "years",
        "variables": spec,
        "hash": [],
        "buckets": 0,
    }
    options |= {"index": {"start": True, "after_hours": 24 * 365}, "lookback_days": 4000}
    data = load_path(path, **options)
    assert cells(data, "1")["bili.mean"] == pytest.approx(17.9)
    assert cells(data, "1")["ascites"] == 1
    assert cells(data, "2")["bili.last"] is None
    assert cells(data, "2")["ascites"] == 0
    path.write_text(path.read_text() + "1,soon,1,No\n")
    with pytest.raises(MedfuseError, match="numbers of years"):
        load_path(path, **options)


# --- inspect --------------------------------------------------------------------------------------------------------


def only(found):
    (one,) = [i for i in found if i.loader == "events"]
    assert not one.refusal
    return one


def test_inspect_says_what_there_is_and_no_value(tmp_path):
    table = frame([*ROWS, (5, 3, "NOTE", None, None, "the patient feels well"), (5, 90, "MEDS_BIRTH")])
    events.write_meds(tmp_path / "meds", table, shards=2)
    one = only(inspect([tmp_path / "meds"]))
    assert (one.kind, one.files) == ("MEDS dataset", 5)
    assert (one.holds["subjects"], one.holds["events"], one.holds["static"]) == (5, 13, 2)
    assert one.holds["units"] == {"/min": 5, "bpm": 1, "mEq/L": 1, "mmol/L": 1}
    assert set(one.identifying) == {"MEDS_BIRTH: date of birth", "text_value: free text"}
    omop(tmp_path / "omop")
    one = only(inspect([tmp_path / "omop"]))
    assert one.kind == "OMOP CDM tables"
    assert one.holds["subjects"] == 3
    assert "person.birth_datetime: date of birth" in one.identifying
    assert "death.death_date: date of death" in one.identifying
    assert "observation.value_as_string: free text" in one.identifying
    one = only(inspect([mimic(tmp_path / "mimic")]))
    assert one.kind == "MIMIC tables"
    assert {"patients.dob: date of birth", "admissions.diagnosis: free text"} <= set(one.identifying)
    for found in inspect([tmp_path]):
        said = json.dumps(found.to_dict())
        assert not any(word in said for word in ("2150", "2020", "1950", "feels", "remark", "CHEST"))
