"""Events for the tests: tables made by hand, and how they are read."""

import gzip

import numpy as np
import pandas as pd

from medfuse import loaders
from medfuse.config import ModalityCard
from medfuse.loaders import events

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


RECORD = "Time,Parameter,Value\n00:00,RecordID,{id}\n00:00,Age,54\n00:07,HR,{hr}\n47:30,HR,90\n49:00,HR,400\n"
RECORD_OPTIONS = {
    "format": "records",
    "index": {"start": True, "after_hours": 48},
    "variables": {"HR": {"unit": "/min"}, "Age": {"stats": ["last"], "unit": "a"}},
    "hash": [],
    "buckets": 0,
}


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
