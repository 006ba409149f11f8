"""Events of health records: nothing after the index time, nothing guessed about units, missing cells stay missing."""

import gzip
import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from medfuse import loaders
from medfuse.config import ModalityCard
from medfuse.errors import MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import events
from medfuse.loaders._event_units import SPELLINGS, conversion

INDEX = pd.Timestamp("2020-01-10 12:00")
BASE = {
    "index": {"time": str(INDEX)},
    "lookback_days": 5,
    "windows": [1, 5],
    "variables": {
        "hr": {"codes": ["HR", "PULSE"], "unit": "/min"},
        "k": {"codes": "LAB//K", "unit": "mmol/L", "analyte": "potassium"},
        "any_lab": {"codes": "LAB//*", "stats": ["count"]},
        "sex": {"level_codes": {"f": "SEX//F", "m": "SEX//M"}, "static": True},
    },
    "hash": ["DX//*"],
    "buckets": 4,
}


def frame(rows):
    """Events from (subject, hours before the index time or None, code, value, unit, text)."""
    full = [(*row, *[None] * (6 - len(row))) for row in rows]
    out = pd.DataFrame(full, columns=["subject_id", "hours", "code", "numeric_value", "unit", "text_value"])
    out["time"] = [pd.NaT if h is None or h != h else INDEX - pd.Timedelta(hours=h) for h in out.pop("hours")]
    return out


def load(folder, table, **options):
    events.write_meds(folder, table)
    return load_path(folder, **options)


def load_path(path, *, files=None, patients=("id", "row-"), **options):
    card = ModalityCard(loader="events", options={**BASE, **options}, **({"files": files} if files else {"file": "x"}))
    return loaders.read("ehr", card, resolve=lambda source: path / source if files else path, patients=patients)


def cells(data, patient):
    """Column name -> value, None where missing."""
    tokens = data.samples[patient].tokens
    return {c.name: float(v) if known else None for c, (v, known) in zip(data.columns, tokens, strict=True)}


ROWS = [
    (1, None, "SEX//F"),
    (1, 100, "HR", 60, "/min"),
    (1, 20, "PULSE", 80, "bpm"),
    (1, 2, "HR", 70, "/min"),
    (1, 2, "HR", 90, "/min"),
    (1, 30, "LAB//K", 4.0, "mEq/L"),
    (1, 0, "DX//I10"),
    (1, -1, "HR", 999, "/min"),
    (2, 200, "HR", 55, "/min"),
    (3, -5, "LAB//K", 9.0, "mmol/L"),
    (4, None, "SEX//M"),
]


def test_a_summary_by_hand(tmp_path):
    data = load(tmp_path, frame(ROWS))
    assert set(data.samples) == {"1", "4"}, "2 is before the lookback, 3 after the index time: absent, not zero"
    found = cells(data, "1")
    hours, value = np.array([-100.0, -20, -2, -2]), np.array([60.0, 80, 70, 90])
    assert found["hr.last"] == 90  # of two at the same time the larger
    assert found["hr.days_since"] == pytest.approx(2 / 24)
    assert (found["hr.min"], found["hr.max"], found["hr.mean"]) == (60, 90, 75)
    assert found["hr.slope"] == pytest.approx(np.polyfit(hours / 24, value, 1)[0], rel=1e-6)
    assert (found["hr.count_1d"], found["hr.count_5d"]) == (3, 4)
    assert found["k.last"] == 4.0
    assert found["k.slope"] is None
    assert (found["any_lab.count_1d"], found["any_lab.count_5d"]) == (0, 1)
    assert found["sex"] == 0.0
    assert sum(found[f"hash_{b:04d}.count_5d"] for b in range(4)) == 1
    other = cells(data, "4")
    assert other["sex"] == 1.0
    assert other["hr.last"] is None
    assert other["hr.count_5d"] == 0.0
    units = {c.name: c.unit for c in data.columns}
    assert units["k.mean"] == "mmol/L"
    assert units["hr.slope"] == "/min/d"
    assert units["hr.days_since"] == "d"


def content(data):
    return {p: (s.tokens.tobytes(), s.position.tobytes()) for p, s in data.samples.items()}


@pytest.mark.parametrize("output", ["summary", "tokens"])
@pytest.mark.parametrize("seed", range(4))
def test_the_future_changes_not_one_bit(tmp_path, seed, output):
    rng = np.random.default_rng(seed)
    n = 3000
    hours = np.concatenate([rng.uniform(0, 200, n // 2), -rng.exponential(50, n // 2) - 1e-6])
    codes = rng.choice(["HR", "PULSE", "LAB//K", "LAB//Na", "DX//A", "DX//B", "OTHER"], n)
    table = frame(zip(rng.integers(1, 40, n), hours, codes, rng.lognormal(3, 1, n), strict=True))
    seen = content(load(tmp_path / "a", table, output=output))
    assert seen
    late = table["time"] > INDEX
    changed = table.copy()
    changed.loc[late, "numeric_value"] = rng.choice([np.inf, -1e30, 5.0, np.nan], late.sum())
    changed.loc[late, "code"] = rng.choice(["HR", "LAB//new", "DX//C"], late.sum())
    more = frame(zip(rng.integers(1, 90, 500), -rng.exponential(9, 500) - 1e-6, ["HR"] * 500, range(500), strict=True))
    variants = [table[~late], changed, pd.concat([more, changed]), table.sample(frac=1, random_state=seed)]
    for number, variant in enumerate(variants):
        assert content(load(tmp_path / f"b{number}", variant, output=output)) == seen


def test_half_of_the_events_in_another_unit_are_converted_or_refused_with_the_list(tmp_path):
    rows = [(1, 5, "LAB//glucose", 90.0, "mg/dL"), (1, 3, "LAB//glucose", 5.0, "mmol/L")]
    spec = {"glucose": {"codes": "LAB//glucose", "unit": "mmol/L", "analyte": "glucose"}}
    found = cells(load(tmp_path / "a", frame(rows), variables=spec), "1")
    assert found["glucose.max"] == 5.0
    assert found["glucose.min"] == pytest.approx(90 / 18.0156, rel=1e-5)
    with pytest.raises(MedfuseError, match=r"mg/dL \(1\), mmol/L \(1\)"):
        load(tmp_path / "b", frame(rows), variables={"glucose": {"codes": "LAB//glucose", "unit": "mmol/L"}})
    with pytest.raises(MedfuseError, match="expected one unit"):
        load(tmp_path / "c", frame(rows), variables={"glucose": {"codes": "LAB//glucose"}})


def test_a_unit_that_the_table_does_not_know_is_refused_and_never_folded_by_case(tmp_path):
    rows = [(1, 5, "LAB//WBC", 7.0, "G/L"), (1, 4, "LAB//ALB", 40.0, "g/L")]
    spec = {"wbc": {"codes": "LAB//WBC", "unit": "10*3/uL"}, "alb": {"codes": "LAB//ALB", "unit": "g/dL"}}
    found = cells(load(tmp_path / "a", frame(rows), variables=spec), "1")
    assert found["wbc.last"] == 7.0
    assert found["alb.last"] == pytest.approx(4.0)
    with pytest.raises(MedfuseError, match=r"parsecs \(1\)"):
        load(tmp_path / "b", frame([(1, 5, "LAB//WBC", 7.0, "parsecs")]), variables=spec)
    mixed = frame([(1, 5, "LAB//WBC", 7.0, None), (1, 4, "LAB//WBC", 8.0, "K/uL")])
    with pytest.raises(MedfuseError, match="no_unit: card"):
        load(tmp_path / "c", mixed, variables=spec)
    assert cells(load(tmp_path / "d", mixed, variables=spec, no_unit="card"), "1")["wbc.mean"] == 7.5


@pytest.mark.parametrize(
    ("found", "wanted", "analyte", "value", "expected"),
    [
        ("mg/dL", "mmol/L", "glucose", 180.156, 10.0),
        ("mg/dl", "µmol/L", "creatinine", 1.0, 88.4),  # laboratory tables: 88.4
        ("mg/dL", "umol/L", "bilirubin", 1.0, 17.1),
        ("mg/dL", "mmol/L", "urea nitrogen", 10.0, 3.57),
        ("mg/dL", "mmol/L", "cholesterol", 100.0, 2.586),
        ("mg/dL", "mmol/L", "triglycerides", 100.0, 1.129),
        ("mEq/L", "mmol/L", "calcium", 5.0, 2.5),
        ("mEq/L", "mmol/L", "potassium", 4.0, 4.0),
        ("g/dL", "mmol/L", "haemoglobin", 10.0, 6.206),
        ("Deg. F", "Cel", None, 98.6, 37.0),
        ("kPa", "mmHg", None, 1.0, 7.5006),
        ("lbs", "kg", None, 100.0, 45.359),
        ("inches", "cm", None, 70.0, 177.8),
        ("fraction", "%", None, 0.4, 40.0),
        ("ng/mL", "mg/L", None, 500.0, 0.5),
    ],
)
def test_conversions_against_laboratory_tables(found, wanted, analyte, value, expected):
    factor, shift = conversion(found, wanted, analyte)
    assert factor * value + shift == pytest.approx(expected, rel=1e-3)
    back, unshift = conversion(wanted, found, analyte)
    assert back * (factor * value + shift) + unshift == pytest.approx(value, rel=1e-12)


def test_conversions_that_need_what_the_card_does_not_say_are_none():
    assert conversion("mg/dL", "mmol/L") is None
    assert conversion("mEq/L", "mmol/L", "glucose") is None
    assert conversion("mmHg", "kg") is None
    spellings = [s for unit, others in SPELLINGS.items() for s in (unit, *others)]
    assert len(spellings) == len(set(spellings)), "a spelling means one unit"


def test_comparators_and_text_are_refused_or_taken_as_the_card_says(tmp_path):
    rows = [(1, 5, "CRP", None, "mg/L", "<5"), (1, 4, "CRP", 7.0, "mg/L"), (1, 3, "CRP", None, None, "haemolysed")]
    spec = {"crp": {"codes": "CRP", "unit": "mg/L"}}
    with pytest.raises(MedfuseError, match="1 with a comparator"):
        load(tmp_path / "a", frame(rows), variables=spec)
    data = load(tmp_path / "a", frame(rows), variables=spec, comparators="bound")
    found = cells(data, "1")
    assert (found["crp.min"], found["crp.max"], found["crp.count_5d"]) == (5, 7, 3)
    assert any("comparator" in w for w in data.warnings)
    assert any("no number" in w for w in data.warnings)
    assert not any("haemolysed" in w for w in data.warnings)
    assert cells(load(tmp_path / "a", frame(rows), variables=spec, comparators="missing"), "1")["crp.min"] == 7


def test_levels_missing_codes_and_plausible_ranges(tmp_path):
    rows = [
        (1, 9, "RHYTHM", None, None, "SR"),
        (1, 5, "RHYTHM", None, None, " AF "),
        (1, 5, "GCS", -1.0),
        (1, 4, "GCS", 14.0),
        (1, 3, "TEMP", 370.0),
        (2, 3, "UNIT", 2.0),
    ]
    spec = {
        "rhythm": {"codes": "RHYTHM", "levels": ["SR", "AF"], "stats": ["last", "count"]},
        "gcs": {"codes": "GCS", "missing": -1},
        "temp": {"codes": "TEMP", "range": [25, 45], "unit": "Cel"},
        "unit": {"codes": "UNIT", "levels": {"cardiac": "1", "surgical": "2"}},
    }
    data = load(tmp_path / "a", frame(rows), variables=spec)
    found = cells(data, "1")
    assert found["rhythm"] == 1.0
    assert found["rhythm.count_5d"] == 2
    assert (found["gcs.min"], found["gcs.count_5d"]) == (14, 2)
    assert found["temp.last"] is None
    assert found["temp.count_5d"] == 1
    assert cells(data, "2")["unit"] == 1.0
    kinds = {c.name: (c.kind, c.levels) for c in data.columns}
    assert kinds["unit"] == ("categorical", ("cardiac", "surgical"))
    with pytest.raises(MedfuseError, match="expected the card's levels"):
        load(tmp_path / "b", frame([*rows, (1, 2, "RHYTHM", None, None, "VT")]), variables=spec)


def test_repeated_rows_count_once_unless_the_card_says_otherwise(tmp_path):
    rows = [(1, 5, "HR", 60.0, "/min"), (1, 5, "HR", 60.0, "/min"), (1, 3, "HR", 90.0, "/min")]
    assert cells(load(tmp_path, frame(rows)), "1")["hr.mean"] == 75
    assert cells(load(tmp_path, frame(rows), duplicates="keep"), "1")["hr.mean"] == 70
    with pytest.raises(MedfuseError, match="1 repeated rows"):
        load(tmp_path, frame(rows), duplicates="refuse")


def test_means_and_slopes_are_exact_whatever_the_order(tmp_path):
    rng = np.random.default_rng(7)
    hours, value = np.sort(rng.uniform(1, 119, 500)), (rng.lognormal(0, 3, 500)).astype(np.float32)
    table = frame(zip([1] * 500, hours, ["HR"] * 500, value, strict=True))
    found = cells(load(tmp_path, table), "1")
    days = -(hours * 3600).round() / 86400
    assert found["hr.mean"] == np.float32(np.mean(value.astype(np.float64)))
    assert found["hr.slope"] == pytest.approx(np.polyfit(days, value.astype(np.float64), 1)[0], rel=1e-5)


def test_tokens_are_one_per_event_with_flag_and_time(tmp_path):
    rows = [*ROWS, (1, 1, "HR", None)]
    data = load(tmp_path, frame(rows), output="tokens")
    assert data.identities == ("hr", "k", "any_lab", "sex", *(f"hash_{b:04d}" for b in range(4)))
    sample = data.samples["1"]
    of_hr = sample.tokens[sample.position[:, 0] == 0]
    assert of_hr[:, 0].tolist() == [60, 80, 70, 90, 0]
    assert of_hr[:, 1].tolist() == [1, 1, 1, 1, 0]
    np.testing.assert_allclose(of_hr[:, 2] * 24, [100, 20, 2, 2, 1], rtol=1e-6)
    assert np.all(np.diff(sample.position[1:, 1]) <= 0), "oldest first"
    assert sample.position[0].tolist() == [3, 5], "without a time: as old as the lookback"


# --- index time ---------------------------------------------------------------------------------------------------------


def test_index_by_first_event_by_table_and_by_hours(tmp_path):
    rows = [(s, h, "ADMISSION//X") for s, h in ((1, 90), (1, 20), (2, 50))]
    rows += [(s, h, "HR", 100.0 + h, "/min") for s in (1, 2, 3) for h in (80, 40, 10, -10)]
    spec = {"hr": {"codes": "HR", "unit": "/min"}}
    found = load(tmp_path / "d", frame(rows), variables=spec, index={"event": "ADMISSION//*", "after_hours": 24})
    assert {p: cells(found, p)["hr.last"] for p in found.samples} == {"1": 180.0, "2": 140.0}
    table = "id,at\nP001,2020-01-09 12:00\nP003,2020-01-10 22:00\nP002,\nP009,2020-01-01\n"
    (tmp_path / "index.csv").write_text(table)
    files = {"events": "d", "when": "index.csv"}
    index = {"table": "when", "column": "at"}
    found = load_path(tmp_path, files=files, variables=spec, index=index, patient_id="P{:03d}")
    assert {p: cells(found, p)["hr.last"] for p in found.samples} == {"P001": 140.0, "P003": 90.0}
    (tmp_path / "index.csv").write_text("id,at\nP001,09/01/2020\n")
    with pytest.raises(MedfuseError, match="ISO 8601"):
        load_path(tmp_path, files=files, variables=spec, index=index, patient_id="P{:03d}")
    (tmp_path / "index.csv").write_text("id,at\nP001,2020-01-09\nP001,2020-01-10\n")
    with pytest.raises(MedfuseError, match="several that disagree"):
        load_path(tmp_path, files=files, variables=spec, index=index, patient_id="P{:03d}")


def test_another_patient_changes_nothing_of_the_others(tmp_path):
    alone = load(tmp_path / "a", frame([r for r in ROWS if r[0] == 1]))
    other = load(tmp_path / "b", frame([*ROWS, (8, 3, "LAB//unheard of", 1.0), (9, 2, "DX//new")]))
    assert [c.name for c in alone.columns] == [c.name for c in other.columns]
    np.testing.assert_array_equal(alone.samples["1"].tokens, other.samples["1"].tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lookbak_days": 3}, "did you mean"),
        ({"index": {}}, "one of time, event"),
        ({"index": {"time": "soon"}}, "ISO 8601"),
        ({"index": {"column": "at"}}, "table and column together"),
        ({"index": {"start": True}}, "relative times"),
        ({"lookback_days": -1}, "number >= 0"),
        ({"windows": [90]}, "windows within lookback_days"),
        ({"variables": {"x": {"unitt": "mg"}}}, "did you mean"),
        ({"variables": {"x": {"analyte": "glukose"}}}, "did you mean"),
        ({"variables": {"x": {"levels": ["a", "b"], "unit": "mg"}}}, "one of levels"),
        ({"stats": ["median"]}, "unknown 'median'"),
        ({"format": "fhir"}, "Known"),
        ({"buckets": 0}, "hash with buckets"),
        ({"patient_id": "{0.__class__}"}, "one {}"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, change, message):
    with pytest.raises(MedfuseError, match=message):
        load(tmp_path, frame(ROWS), **change)


# --- other formats ------------------------------------------------------------------------------------------------------

OMOP = {
    "VISIT": ("VISIT_OCCURRENCE", 9201, "Inpatient visit"),
    "2160-0": ("MEASUREMENT", 3016723, "Creatinine"),
    "I10": ("CONDITION_OCCURRENCE", 320128, "Hypertension"),
    "local": ("OBSERVATION", 0, "Own observation"),
}


def omop(folder):
    rows = [
        (1, 90, "VISIT"),
        (1, 89, "2160-0", 1.0, "mg/dL"),
        (1, 70, "2160-0", 2.0, "mg/dL"),
        (1, 60, "2160-0", 9.0, "mg/dL"),
        (1, 88, "I10"),
        (1, 87, "local", None, None, "a remark of several words"),
        (2, 50, "VISIT"),
        (3, 50, "2160-0", 1.5, "mg/dL"),
    ]
    people = pd.DataFrame({"subject_id": [1, 2, 3], "sex": ["F", "M", "F"], "birth": ["1950-05-04"] * 3})
    people["death"] = [pd.NaT, pd.Timestamp("2020-02-01"), pd.NaT]
    return events.write_omop(folder, frame(rows), people, concepts=OMOP)


OMOP_OPTIONS = {
    "format": "omop",
    "index": {"event": "VISIT//9201", "after_hours": 24},
    "variables": {
        "creatinine": {"codes": "MEASUREMENT//3016723", "unit": "umol/L", "analyte": "creatinine"},
        "hypertension": {"codes": "CONDITION//320128", "ever": True, "stats": ["count"]},
        "sex": {"level_codes": {"f": "GENDER//8532", "m": "GENDER//8507"}, "static": True},
        "age": {"codes": "MEDS_BIRTH", "ever": True, "stats": ["days_since"]},
        "own": {"codes": "OBSERVATION//source//local", "stats": ["count"]},
        "death": {"codes": "MEDS_DEATH", "stats": ["count"]},
    },
    "hash": [],
    "buckets": 0,
}


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


MIMIC = {
    "PATIENTS": "subject_id,gender,dob,dod\n1,F,1960-01-01,\n2,M,1970-01-01,2150-01-09\n",
    "ADMISSIONS": (
        "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location,diagnosis\n"
        "1,10,2150-01-01 10:00:00,2150-01-06 12:00:00,,EMERGENCY,HOME,CHEST PAIN OF A SORT\n"
        "2,20,2150-01-02 10:00:00,2150-01-09 12:00:00,2150-01-09 12:00:00,ELECTIVE,DEAD,\n"
    ),
    "LABEVENTS": (
        "subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom,flag\n"
        "1,10,50912,2150-01-01 12:00:00,1.0,1.0,mg/dL,\n"
        "1,10,50912,2150-01-02 09:00:00,<0.5,,mg/dL,\n"
        "1,10,50912,2150-01-03 09:00:00,7.0,7.0,mg/dL,\n"
        "2,20,50912,2150-01-02 12:00:00,ERROR,,,\n"
    ),
    "CHARTEVENTS": (
        "subject_id,hadm_id,itemid,charttime,storetime,value,valuenum,valueuom,error\n"
        "1,10,220045,2150-01-01 11:00:00,2150-01-02 11:00:00,80,80,bpm,0\n"
        "1,10,220045,2150-01-01 11:30:00,2150-01-01 11:31:00,180,180,bpm,1\n"
        "1,10,220045,2150-01-01 11:45:00,2150-01-01 11:50:00,90,90,bpm,\n"
    ),
    "DIAGNOSES_ICD": "subject_id,hadm_id,seq_num,icd9_code\n1,10,1,4019\n",
}
MIMIC_OPTIONS = {
    "format": "mimic",
    "index": {"event": "ADMISSION//*", "after_hours": 24},
    "comparators": "bound",
    "variables": {
        "creatinine": {"codes": "LAB//50912", "unit": "mg/dL"},
        "hr": {"codes": "CHART//220045", "unit": "/min"},
        "hypertension": {"codes": "DIAGNOSIS//ICD9//4019", "stats": ["count"]},
        "sex": {"level_codes": {"f": "GENDER//F", "m": "GENDER//M"}, "static": True},
        "home": {"codes": "DISCHARGE//*", "stats": ["count"]},
    },
    "hash": [],
    "buckets": 0,
}


def mimic(folder, *, packed=False, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**MIMIC, **changes}.items():
        if packed:
            (folder / f"{name.lower()}.csv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{name}.csv").write_text(text)
    return folder


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


RECORD = "Time,Parameter,Value\n00:00,RecordID,{id}\n00:00,Age,54\n00:07,HR,{hr}\n47:30,HR,90\n49:00,HR,400\n"
RECORD_OPTIONS = {
    "format": "records",
    "index": {"start": True, "after_hours": 48},
    "variables": {"HR": {"unit": "/min"}, "Age": {"stats": ["last"], "unit": "a"}},
    "hash": [],
    "buckets": 0,
}


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


def test_unit_in_the_code(tmp_path):
    rows = [(1, 4, "LAB//K//mEq/L", 4.0), (1, 2, "LAB//K//mmol/L", 5.0)]
    spec = {"k": {"codes": "LAB//K", "unit": "mmol/L", "analyte": "potassium"}}
    assert cells(load(tmp_path, frame(rows), variables=spec, unit_in_code=True), "1")["k.mean"] == 4.5


# --- inspect ------------------------------------------------------------------------------------------------------------


def only(found):
    (one,) = [i for i in found if i.loader == "events"]
    assert not one.refusal
    return one


def test_inspect_says_what_there_is_and_no_value(tmp_path):
    table = frame([*ROWS, (5, 3, "NOTE", None, None, "the patient feels well"), (5, 90, "MEDS_BIRTH")])
    events.write_meds(tmp_path / "meds", table, shards=2)
    one = only(inspect([tmp_path / "meds"]))
    assert (one.kind, one.files) == ("MEDS dataset", 4)
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


# --- damage -------------------------------------------------------------------------------------------------------------


def mutants(content, count, seed):
    """Random flips, cuts, zeros and splices."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(content)
        here, there = sorted(rng.integers(0, len(data), 2).tolist())
        if number % 4 == 0:
            for place in rng.integers(0, len(data), rng.integers(1, 9)):
                data[place] ^= 1 << int(rng.integers(8))
        elif number % 4 == 1:
            data = data[:here]
        elif number % 4 == 2:
            data[here : here + 16] = bytes(len(data[here : here + 16]))
        else:
            data[here:here] = data[there : there + 32]
        yield bytes(data)


def attack(tmp_path, count):
    """Mutants of every format, inspected and read; anything but a result or a MedfuseError fails."""
    events.write_meds(tmp_path / "meds", frame([*ROWS, (1, 4, "CRP", 3.0, "mg/L", "3")] * 9))
    omop(tmp_path / "omop")
    mimic(tmp_path / "mimic", packed=False)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "7.txt").write_text(RECORD.format(id=7, hr=70))
    cases = [
        (tmp_path / "meds", tmp_path / "meds" / "data" / "train" / "0.parquet", {}),
        (tmp_path / "omop", tmp_path / "omop" / "MEASUREMENT.csv", OMOP_OPTIONS),
        (tmp_path / "mimic", tmp_path / "mimic" / "LABEVENTS.csv", MIMIC_OPTIONS),
        (tmp_path / "records", tmp_path / "records" / "7.txt", RECORD_OPTIONS),
    ]
    refused = 0
    for number, (folder, file, options) in enumerate(cases):
        whole = file.read_bytes()
        for mutant in mutants(whole, count // len(cases), number):
            file.write_bytes(mutant)
            try:
                load_path(folder, **options)
            except MedfuseError:
                refused += 1
            assert not any("medfuse failed" in i.refusal for i in inspect([file]))
        file.write_bytes(whole)
    return refused


def test_mutants_are_read_or_refused(tmp_path):
    assert attack(tmp_path, 60) > 15


@pytest.mark.slow
def test_a_thousand_mutants_are_read_or_refused(tmp_path):
    assert attack(tmp_path, 1000) > 250


def test_a_bomb_is_refused_before_it_fills_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/1.txt", "Time,Parameter,Value\n" + "0" * (80 << 20))
    with pytest.raises(MedfuseError, match="bomb"):
        load_path(tmp_path / "bomb.zip", **RECORD_OPTIONS)
