"""Cohorts: everyone accounted for, each kind of outcome read as declared, and bad rows named by row and patient."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfuse.card import CohortCard
from medfuse.cohort import Attrition, Excluded, availability, read_cohort
from medfuse.errors import CohortError, ConfigError, DataError, MedfuseError
from medfuse.targets import Labels, Survival, Values

SURVIVAL = {
    "kind": "survival",
    "time": "t",
    "unit": "days",
    "event": "e",
    "event_codes": ["1"],
    "censored_codes": ["0"],
}
ROWS = "id,t,e,c,v,site,who\n001,10,1,no,1.5,A,x\n1,20,0,yes,,B,y\n010,0,0,,2.5,A,x\n"


def card(outcomes=None, **changes) -> CohortCard:
    return CohortCard.model_validate(
        {
            "name": "toy",
            "title": "A toy",
            "governance": {"licence": "CC0", "source": "s", "citation": "c", "consent": "n", "deidentification": "d"},
            "patients": {"file": "a.csv", "id": "id"},
            "outcomes": outcomes or {"os": SURVIVAL},
            "modalities": {"clinical": {"loader": "tabular", "file": "a.csv", "columns": {"v": {}}}},
            **changes,
        }
    )


def cohort(folder, rows=ROWS, outcomes=None, need_outcomes=True, **changes):
    (folder / "a.csv").write_text(rows)
    return read_cohort(card(outcomes, **changes), data_root=folder, need_outcomes=need_outcomes)


def test_records_carry_person_site_and_subgroups_and_ids_stay_text(tmp_path):
    (tmp_path / "b.csv").write_text("id,grade\n010,high\n001,low\n")
    made = cohort(tmp_path, groups={"person": "who", "site": "site"}, subgroups=["site", "b.csv#grade"])
    assert made.patient_ids == ("001", "1", "010")
    assert [r.person for r in made.records] == ["x", "y", "x"]
    assert [r.site for r in made.records] == ["A", "B", "A"]
    assert [dict(r.subgroups) for r in made.records] == [
        {"site": "A", "grade": "low"},
        {"site": "B", "grade": "(missing)"},
        {"site": "A", "grade": "high"},
    ]


def test_without_a_person_column_each_id_is_a_person(tmp_path):
    assert [r.person for r in cohort(tmp_path).records] == ["001", "1", "010"]


@pytest.mark.parametrize(("unit", "days"), [("days", 1.0), ("weeks", 7.0), ("months", 30.4375), ("years", 365.25)])
def test_times_become_days(tmp_path, unit, days):
    target = cohort(tmp_path, outcomes={"os": {**SURVIVAL, "unit": unit}}).targets["os"]
    np.testing.assert_array_equal(target.time, np.array([10.0, 20.0, 0.0]) * days)
    assert target.event.tolist() == [True, False, False]


def test_the_card_says_which_code_means_event(tmp_path):
    turned = {**SURVIVAL, "event_codes": ["0"], "censored_codes": ["1"]}
    assert cohort(tmp_path, outcomes={"os": turned}).targets["os"].event.tolist() == [False, True, True]
    words = {**SURVIVAL, "event_codes": ["dead", "lost"], "censored_codes": ["alive"]}
    rows = "id,t,e\n1,1,dead\n2,2,alive\n3,3,lost\n"
    assert cohort(tmp_path, rows, {"os": words}).targets["os"].event.tolist() == [True, False, True]


def test_four_kinds_of_outcome_and_patients_who_miss_some(tmp_path):
    outcomes = {
        "os": SURVIVAL,
        "bin": {"kind": "binary", "column": "c", "classes": ["no", "yes"]},
        "multi": {"kind": "multiclass", "column": "site", "classes": ["A", "B", "C"]},
        "cont": {"kind": "continuous", "column": "v", "unit": "mm"},
    }
    made = cohort(tmp_path, outcomes=outcomes)
    assert isinstance(made.targets["os"], Survival)
    binary, multi, continuous = (made.targets[name] for name in ("bin", "multi", "cont"))
    assert isinstance(binary, Labels)
    assert isinstance(continuous, Values)
    assert binary.label[:2].tolist() == [0, 1]
    assert binary.observed.tolist() == [True, True, False]
    assert multi.label.tolist() == [0, 1, 0]
    assert continuous.unit == "mm"
    assert continuous.observed.tolist() == [True, False, True]
    assert [(p.file, p.column, p.message) for p in made.problems] == [
        ("a.csv", "c", "outcome bin is unknown for 1 modelled patients: 010"),
        ("a.csv", "v", "outcome cont is unknown for 1 modelled patients: 1"),
    ]


def test_outcomes_of_another_table_are_matched_by_id(tmp_path):
    (tmp_path / "o.csv").write_text("who,t,e\n010,7,1\n001,5,0\nstranger,1,1\n")
    made = cohort(tmp_path, outcomes={"os": {**SURVIVAL, "file": "o.csv", "id": "who"}})
    assert made.patient_ids == ("001", "010")
    assert made.targets["os"].time.tolist() == [5.0, 7.0]
    assert made.attrition.excluded == (Excluded(patient_id="1", reason="no known outcome"),)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ROWS.replace("20,0", "-3,0"),
            r"a\.csv, data row 2, patient 1, column 't': expected a time >= 0, found a negative",
        ),
        (ROWS.replace("20,0", ",0"), r"data row 2, patient 1, column 't': expected a time wherever 'e' is known"),
        (ROWS.replace("20,0", "nan,0"), r"data row 2, patient 1, column 't': expected a time wherever"),
        (
            ROWS.replace("20,0", '"2,5",0'),
            r"data row 2, patient 1, column 't': expected a number, found a decimal comma",
        ),
        (ROWS.replace("20,0", "x20,0"), r"data row 2, patient 1, column 't': expected a number, found text"),
        (ROWS.replace("20,0", "inf,0"), r"data row 2, patient 1, column 't': expected a number, found infinity"),
        (ROWS.replace("20,0", "20,9"), r"data row 2, patient 1, column 'e': expected the codes \['1'\] \(event\)"),
        (
            ROWS + "001,11,1,no,1.5,A,x\n",
            r"data rows 1 and 4: patient 001 has several rows that disagree in column 't'",
        ),
        (ROWS + ",11,1,no,1.5,A,x\n", r"data row 4, column 'id': expected a patient id"),
        (ROWS.replace("id,t,", "id,tt,"), r"a\.csv: expected a column 't', found none; did you mean \"tt\""),
        ("id,t,e\n", r"expected patients in 'a\.csv', found none"),
        (ROWS.replace(",e,", ",t,"), r"distinct column names, found 't'"),
    ],
)
def test_bad_rows_are_named_by_row_patient_and_column(tmp_path, rows, said):
    with pytest.raises(MedfuseError, match=said):
        cohort(tmp_path, rows)


def test_rows_are_counted_in_the_file_even_when_patients_repeat(tmp_path):
    rows = "id,t,e\n1,1,1\n1,1,1\n2,2,0\n2,2,0\n3,-9,1\n"
    with pytest.raises(CohortError, match="data row 5, patient 3"):
        cohort(tmp_path, rows)


def test_repeated_rows_that_agree_are_one_patient(tmp_path):
    rows = "id,slide,t,e\n2,a,5,1\n1,b,3,0\n2,c,5,1\n"
    made = cohort(tmp_path, rows)
    assert made.patient_ids == ("2", "1")
    assert made.targets["os"].time.tolist() == [5.0, 3.0]
    assert made.attrition == Attrition(total=2, modelled=2)


def test_a_message_never_holds_a_value(tmp_path):
    with pytest.raises(CohortError) as raised:
        cohort(tmp_path, ROWS.replace("20,0", "-4321,0"))
    assert "4321" not in str(raised.value)
    with pytest.raises(CohortError) as raised:
        cohort(tmp_path, ROWS.replace("20,0", "20,8765"))
    assert "8765" not in str(raised.value)


def test_negative_times_may_be_declared_unknown(tmp_path):
    made = cohort(tmp_path, ROWS.replace("20,0", "-3,0"), {"os": {**SURVIVAL, "negative_time": "unknown"}})
    assert made.patient_ids == ("001", "010")
    assert made.attrition.excluded == (Excluded(patient_id="1", reason="no known outcome"),)


def test_time_zero_is_kept_or_excluded_as_the_card_says(tmp_path):
    assert cohort(tmp_path).attrition.modelled == 3
    made = cohort(tmp_path, time_zero="exclude")
    assert made.patient_ids == ("001", "1")
    assert made.attrition.excluded == (Excluded(patient_id="010", reason="followed for no time (time 0)"),)
    both = cohort(
        tmp_path,
        outcomes={"os": SURVIVAL, "v": {"kind": "continuous", "column": "v", "unit": "mm"}},
        time_zero="exclude",
    )
    assert both.targets["os"].observed.tolist() == [True, True, False]
    assert both.targets["v"].observed.tolist() == [True, False, True]


def test_event_within_a_horizon_needs_enough_follow_up(tmp_path):
    outcome = {"kind": "binary", "column": "e", "classes": ["0", "1"], "time": "t", "unit": "days", "within_days": 15.0}
    rows = "id,t,e\na,10,1\nb,20,1\nc,20,0\nd,10,0\ne,15,1\nf,15,0\n"
    made = cohort(tmp_path, rows, {"soon": outcome, "os": SURVIVAL})
    target = made.targets["soon"]
    assert target.observed.tolist() == [True, True, True, False, True, True]
    assert target.label[target.observed].tolist() == [1, 0, 0, 1, 0]


def test_rules_make_an_outcome_unknown(tmp_path):
    rows = "id,t,e,c,cause\n1,10,1,yes,tumour\n2,20,1,yes,other\n3,5,0,no,\n4,50,0,no,\n5,,,yes,\n"
    outcome = {
        "kind": "binary",
        "column": "c",
        "classes": ["no", "yes"],
        "exclude": [{"cause": ["other"]}, {"c": ["no"], "t": "<= 5"}],
    }
    target = cohort(tmp_path, rows, {"bin": outcome}).targets["bin"]
    assert target.observed.tolist() == [True, True, True]
    made = cohort(tmp_path, rows, {"bin": outcome, "os": SURVIVAL})
    assert made.patient_ids == ("1", "2", "3", "4", "5")
    assert made.targets["bin"].observed.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("rule", "kept"), [("> 2", [1, 2]), (">= 2", [1]), ("< 2", [2, 3]), ("<=2", [3]), ("> -1.5", [])]
)
def test_rules_compare_numbers(tmp_path, rule, kept):
    rows = "id,t,e\n1,1,1\n2,2,1\n3,3,1\n"
    outcomes = {"os": {**SURVIVAL, "exclude": [{"t": rule}]}, "all": SURVIVAL}
    observed = cohort(tmp_path, rows, outcomes).targets["os"].observed
    assert (np.flatnonzero(observed) + 1).tolist() == kept


def test_a_class_that_is_not_declared_is_refused(tmp_path):
    outcome = {"kind": "binary", "column": "c", "classes": ["no", "maybe"]}
    with pytest.raises(CohortError, match=r"data row 2, patient 1, column 'c': expected one of the classes"):
        cohort(tmp_path, outcomes={"bin": outcome})


def test_a_cohort_without_a_known_outcome_is_refused(tmp_path):
    with pytest.raises(CohortError, match="patients with a known outcome, found none of 2"):
        cohort(tmp_path, "id,t,e\n1,,\n2,,\n")


def test_new_patients_need_no_outcomes(tmp_path):
    made = cohort(tmp_path, "id,age\n1,50\n2,60\n", need_outcomes=False)
    assert made.patient_ids == ("1", "2")
    assert made.targets == {}
    kept = cohort(tmp_path, "id,t,e\n1,5,1\n2,,\n", need_outcomes=False)
    assert kept.attrition == Attrition(total=2, modelled=2)
    assert kept.targets["os"].observed.tolist() == [True, False]


def test_subset_takes_rows_in_the_asked_order_and_lists_the_others(tmp_path):
    made = cohort(tmp_path).subset(["010", "001"])
    assert made.patient_ids == ("010", "001")
    assert made.targets["os"].time.tolist() == [0.0, 10.0]
    assert made.attrition == Attrition(total=3, modelled=2, excluded=(Excluded(patient_id="1", reason="not selected"),))
    assert made.target("os", ["001"]).time.tolist() == [10.0]
    with pytest.raises(CohortError, match="patient nobody is not in it"):
        made.subset(["nobody"])


def test_availability_is_patients_by_modalities(tmp_path):
    table = availability(cohort(tmp_path), {"a": {"001", "010"}, "b": set()})
    assert table.index.tolist() == ["001", "1", "010"]
    assert table.to_numpy().tolist() == [[True, False], [False, False], [True, False]]


def test_attrition_must_add_up():
    with pytest.raises(CohortError, match="3 patients in, but 1 modelled"):
        Attrition(total=3, modelled=1, excluded=(Excluded(patient_id="1", reason="x"),))


def test_files_outside_and_absent_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected the file"):
        read_cohort(card(), data_root=tmp_path)
    with pytest.raises(ConfigError, match="expected a path below"):
        read_cohort(card(patients={"file": "../a.csv", "id": "id"}), data_root=tmp_path)


@given(
    st.lists(st.tuples(st.sampled_from(["1", "0", ""]), st.sampled_from(["0", "3.5", "12"])), min_size=1, max_size=20)
)
def test_everyone_is_modelled_or_listed(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("c")
    text = "id,t,e\n" + "".join(f"{i},{time if event else ''},{event}\n" for i, (event, time) in enumerate(rows))
    for policy in ("keep", "exclude"):
        known = [bool(event) and (policy == "keep" or time != "0") for event, time in rows]
        if not any(known):
            with pytest.raises(CohortError, match="found none of"):
                cohort(folder, text, time_zero=policy)
            continue
        made = cohort(folder, text, time_zero=policy)
        assert made.attrition.total == len(rows)
        assert len(made.patient_ids) == made.attrition.modelled == sum(known)
        assert {e.patient_id for e in made.attrition.excluded} == {str(i) for i, k in enumerate(known) if not k}
        assert all(len(target) == len(made.records) for target in made.targets.values())


def test_a_cohort_is_frozen(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        cohort(tmp_path).card = None
