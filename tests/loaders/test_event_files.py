"""Every file of ../shared/data/ehr: loads as documented, checked against pandas, or is refused with a reason."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from event_cases import cells, load_path

from medfuse.errors import MedfuseError
from medfuse.inspection import inspect

EHR = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ehr"
pytestmark = pytest.mark.realdata
NONE = {"hash": [], "buckets": 0}

# first file -> (loader, kind, what is said of it or the reason)
VERDICTS = {
    "deepsurv/gbsg_cancer_train_test.h5": ("vectors", "", "export its"),
    "deepsurv/metabric_IHC4_clinical_train_test.h5": ("vectors", "", "export its"),
    "meds_sample/held_out/0.parquet": ("events", "MEDS dataset", {"files": 4, "subjects": 100, "events": 77542}),
    "mimic3_demo/ADMISSIONS.csv.gz": ("events", "MIMIC tables", {"files": 25, "subjects": 100}),
    "mimic3_demo/LICENSE_ODbL.md": ("", "", "no loader knows"),
    "omop_synthea27nj/Synthea27Nj_5.4.zip": ("events", "OMOP CDM tables", {"subjects": 28}),
    "physionet2012/Outcomes-a.txt": ("events", "", "name it in a card"),
    "physionet2012/set-a.zip": ("events", "PhysioNet records (Time,Parameter,Value)", {"subjects": 4000, "codes": 41}),
    "survival_tables/GBSG2.arff": ("tabular", "table (ARFF)", {"rows": 686, "columns": 10}),
    "survival_tables/pbc2.csv": ("tabular", "table", {"rows": 1945, "columns": 21}),
    "survival_tables/veteran.arff": ("tabular", "table (ARFF)", {"rows": 137, "columns": 8}),
    "uci_heart/processed.cleveland.data": ("", "", "loader tabular"),
}


def test_inspect_says_of_every_file_who_reads_it_or_why_not():
    found = {str(Path(i.path).relative_to(EHR)): i for i in inspect([EHR])}
    assert set(found) == set(VERDICTS)
    for name, (loader, kind, said) in VERDICTS.items():
        one = found[name]
        assert (one.loader, one.kind) == (loader, kind), name
        if isinstance(said, str):
            assert said in one.refusal, name
        else:
            assert not one.refusal
            assert said.items() <= one.holds.items(), name
    assert sum(i.files for i in found.values()) == sum(p.is_file() for p in EHR.rglob("*"))


def refusal(path, options):
    try:
        load_path(path, **options)
    except MedfuseError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("form", ["meds", "omop", "mimic", "records", "wide"])
def test_any_file_in_any_format_is_read_or_refused_by_us(form):
    options = {"index": {"time": "2012-01-01"}, "hash": ["*"], "buckets": 2, "variables": [], "format": form}
    options |= {"comparators": "missing"} | ({"id": "id", "at": "year"} if form == "wide" else {})
    options |= {"index": {"start": True}} if form == "records" else {}
    for path in sorted(p for p in EHR.rglob("*") if p.is_file()):
        if form == "records" and path.name == "set-a.zip":
            continue  # read below
        reason = refusal(path, options)
        assert not reason or ("expected" in reason and "internal" not in reason)


def test_meds_sample_agrees_with_pandas():
    spec = {"hr": {"codes": "HR"}, "sex": {"level_codes": {"f": "SEX//female", "m": "SEX//male"}, "static": True}}
    index = {"event": "ADMISSION//*", "after_hours": 24}
    data = load_path(EHR / "meds_sample", index=index, variables=spec, duplicates="keep", **NONE)
    frame = pd.concat([pd.read_parquet(p) for p in sorted((EHR / "meds_sample").rglob("*.parquet"))])
    first = frame[frame.code.str.startswith("ADMISSION//")].groupby("subject_id").time.min() + pd.Timedelta(hours=24)
    frame["at"] = frame.subject_id.map(first)
    seen = frame[
        (frame.code == "HR") & (frame.time <= frame["at"]) & (frame.time >= frame["at"] - pd.Timedelta(days=5))
    ]
    groups = seen.groupby("subject_id").numeric_value
    assert len(data.samples) == len(first)
    for patient in data.samples:
        found = cells(data, patient)
        assert found["hr.count_5d"] == len(seen[seen.subject_id == int(patient)])
        if found["hr.mean"] is not None:
            values = groups.get_group(int(patient))
            assert found["hr.mean"] == pytest.approx(values.mean(), abs=1e-6)
            assert (found["hr.min"], found["hr.max"]) == (np.float32(values.min()), np.float32(values.max()))
        assert found["sex"] in {0.0, 1.0}


def test_mimic_demo_agrees_with_pandas_and_codes_of_discharge_are_not_seen():
    spec = {
        "creatinine": {"codes": "LAB//50912", "unit": "umol/L", "analyte": "creatinine", "reference": [45, 110]},
        "sex": {"level_codes": {"f": "GENDER//F", "m": "GENDER//M"}, "static": True},
        "coded": {"codes": "DIAGNOSIS//*", "stats": ["count"]},
        "heart_rate": {"codes": ["CHART//211", "CHART//220045"], "unit": "/min", "range": [1, 400]},
    }
    index = {"event": "ADMISSION//*", "after_hours": 24}
    data = load_path(EHR / "mimic3_demo", format="mimic", index=index, variables=spec, duplicates="keep", **NONE)
    labs = pd.read_csv(EHR / "mimic3_demo" / "LABEVENTS.csv.gz", parse_dates=["charttime"])
    stays = pd.read_csv(EHR / "mimic3_demo" / "ADMISSIONS.csv.gz", parse_dates=["admittime", "dischtime"])
    at = stays.groupby("subject_id").admittime.min() + pd.Timedelta(hours=24)
    labs["at"] = labs.subject_id.map(at)
    seen = labs[(labs.itemid == 50912) & labs.valuenum.notna() & (labs.charttime <= labs["at"])]
    seen = seen[seen.charttime >= seen["at"] - pd.Timedelta(days=5)]
    expected = seen.groupby("subject_id").valuenum.mean()
    ended = set(stays[stays.dischtime <= stays.subject_id.map(at)].subject_id)
    assert len(data.samples) == 100
    with_creatinine = 0
    for patient in data.samples:
        found = cells(data, patient)
        assert (found["coded.count_5d"] > 0) == (int(patient) in ended), "coded at discharge, not before"
        assert found["sex"] is not None
        if int(patient) in expected.index:
            with_creatinine += 1
            assert found["creatinine.mean"] == pytest.approx(expected[int(patient)] * 88.403, rel=1e-4)
        else:
            assert found["creatinine.mean"] is None
    assert with_creatinine > 80


def test_omop_sample_agrees_with_pandas(tmp_path):
    spec = {"sbp": {"codes": "MEASUREMENT//3004249", "unit": "kPa"}, "sex": {"codes": "GENDER//*", "static": True}}
    spec["sex"]["stats"] = ["count"]
    path, index = EHR / "omop_synthea27nj" / "Synthea27Nj_5.4.zip", {"time": "2018-01-01"}
    data = load_path(path, format="omop", index=index, lookback_days=3650, variables=spec, duplicates="keep", **NONE)
    with zipfile.ZipFile(path) as archive, archive.open("MEASUREMENT.csv") as file:
        frame = pd.read_csv(file)
    when = pd.to_datetime(frame.measurement_date)
    frame = frame[(frame.measurement_concept_id == 3004249) & (when < "2018-01-01") & (when >= "2008-01-04")]
    expected = frame.groupby("person_id").value_as_number.mean() * 101.325 / 760
    assert len(expected) > 15
    for person, mean in expected.items():
        assert cells(data, str(person))["sbp.mean"] == pytest.approx(mean, rel=1e-5)


def test_physionet_records_agree_with_their_lines():
    spec = {"HR": {"unit": "/min"}, "Age": {"stats": ["last"]}, "Weight": {"missing": -1, "unit": "kg"}}
    options = {"format": "records", "index": {"start": True, "after_hours": 24}, "duplicates": "keep"}
    path = EHR / "physionet2012" / "set-a.zip"
    data = load_path(path, variables=spec, **options, **NONE)
    assert len(data.samples) == 4000
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith(".txt")][::400]
        for name in names:
            with archive.open(name) as file:
                frame = pd.read_csv(file)
            early = frame[pd.to_timedelta(frame.Time + ":00") <= pd.Timedelta(hours=24)]
            found = cells(data, str(int(frame[frame.Parameter == "RecordID"].Value.iloc[0])))
            rates = early[early.Parameter == "HR"].Value
            assert found["HR.count_5d"] == len(rates)
            if len(rates):
                assert found["HR.mean"] == pytest.approx(rates.mean(), rel=1e-6)
            assert found["Weight.min"] is None or found["Weight.min"] > 0


def test_pbc2_as_a_wide_table():
    spec = {"serBilir": {"unit": "mg/dL", "reference": [0.1, 1.2]}, "ascites": {"levels": ["No", "Yes"]}}
    options = {"format": "wide", "id": "id", "at": "year", "at_unit": "years", "lookback_days": 20_000}
    index = {"start": True, "after_hours": 24 * 365.25 * 2}
    data = load_path(EHR / "survival_tables" / "pbc2.csv", index=index, variables=spec, **options, **NONE)
    frame = pd.read_csv(EHR / "survival_tables" / "pbc2.csv")
    expected = frame[frame.year <= 2].groupby("id").serBilir.mean()
    assert len(data.samples) == 312
    for patient in data.samples:
        assert cells(data, patient)["serBilir.mean"] == pytest.approx(expected[int(patient)], rel=1e-5)
