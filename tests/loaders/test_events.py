"""Events of health records: nothing after the index time, nothing guessed about units, missing cells stay missing."""

import numpy as np
import pandas as pd
import pytest
from event_cases import INDEX, ROWS, cells, frame, load, load_path

from medfuse.errors import MedfuseError
from medfuse.loaders._event_units import SPELLINGS, conversion


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


def test_reference_ranges_of_the_card_and_of_the_source(tmp_path):
    rows = [(1, 9, "LAB//K", 3.0, "mmol/L"), (1, 5, "LAB//K", 4.0, "mEq/L"), (1, 2, "LAB//K", 6.0, "mmol/L")]
    spec = {"codes": "LAB//K", "unit": "mmol/L", "reference": [3.5, 5.0], "analyte": "potassium"}
    table = frame([*rows, (1, 1, "LAB//K", None, "mmol/L"), (2, 3, "HR", 70.0, "/min")])
    variables = {"k": spec, "hr": {"codes": "HR", "unit": "/min"}}
    data = load(tmp_path / "a", table, variables=variables, hash=[], buckets=0)
    found = cells(data, "1")
    assert (found["k.below"], found["k.above"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert cells(data, "2")["k.below"] is None, "no value is not a normal one"
    assert not any(c.name == "hr.below" for c in data.columns)
    tokens = load(tmp_path / "a", table, variables=variables, hash=[], buckets=0, output="tokens")
    assert tokens.features == 4
    assert tokens.samples["1"].tokens[:, 3].tolist() == [-1, 0, 1, 0]
    own = {**variables, "k": {**spec, "reference": "source", "stats": ["below", "above"]}}
    with pytest.raises(MedfuseError, match="reference ranges beside the values"):
        load_path(tmp_path / "a", variables=own, hash=[], buckets=0)
    path = next((tmp_path / "a").rglob("data/*/*.parquet"))
    shard = pd.read_parquet(path)
    shard["range_low"], shard["range_high"] = [3.5, 4.5, np.nan, 3.5, np.nan], [5.0, 5.0, 5.5, 5.0, np.nan]
    shard.to_parquet(path)
    found = cells(load_path(tmp_path / "a", variables=own, hash=[], buckets=0), "1")
    assert (found["k.below"], found["k.above"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3)), "in the row's own unit"


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


# --- index time -----------------------------------------------------------------------------------------------------


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
        ({"variables": {"x": {"stats": ["below"]}}}, "reference"),
        ({"variables": {"x": {"reference": [5, 3]}}}, "least and the largest"),
        ({"stats": ["median"]}, "unknown 'median'"),
        ({"format": "fhir"}, "Known"),
        ({"buckets": 0}, "hash with buckets"),
        ({"patient_id": "{0.__class__}"}, "one {}"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, change, message):
    with pytest.raises(MedfuseError, match=message):
        load(tmp_path, frame(ROWS), **change)


def test_unit_in_the_code(tmp_path):
    rows = [(1, 4, "LAB//K//mEq/L", 4.0), (1, 2, "LAB//K//mmol/L", 5.0)]
    spec = {"k": {"codes": "LAB//K", "unit": "mmol/L", "analyte": "potassium"}}
    assert cells(load(tmp_path, frame(rows), variables=spec, unit_in_code=True), "1")["k.mean"] == 4.5
