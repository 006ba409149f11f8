"""Events of health records: nothing after the index time, nothing guessed about units, missing cells stay missing."""

import numpy as np
import pandas as pd
import pytest

from medfuse import loaders
from medfuse.config import ModalityCard
from medfuse.errors import MedfuseError
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
