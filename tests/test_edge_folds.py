"""Folds that a statistician dreads: evaluated without a crash, undefined results labelled."""

import dataclasses
import json

import numpy as np
import pytest

from medfuse.baselines import BASELINES, FoldData, fit_baselines
from medfuse.baselines.learners import ridge_cox
from medfuse.baselines.modality import scored
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.evaluation import EvaluationSettings, FoldPrediction, evaluate_outcome, in_words, summary_table
from medfuse.metrics.discrimination import harrell_c
from medfuse.prediction import Prediction
from medfuse.splits import generated_splits, inner_folds

OUTCOME = "distant_metastasis"


@pytest.fixture(scope="module")
def cohort():
    return read_cohort(read_card("transbig"))


def predicted(ids):
    rng = np.random.default_rng(0)
    hazard = np.exp(rng.normal(size=len(ids)))
    times = np.array([500.0, 1500.0, 3000.0])
    return Prediction(
        patient_ids=tuple(ids),
        present=np.ones((len(ids), 1), dtype=bool),
        modalities=("clinical",),
        risk_score=hazard,
        times=times,
        survival=np.exp(-np.outer(hazard, times / 5000)),
    )


@pytest.mark.parametrize("case", ["all censored", "one patient", "one event"])
def test_an_undefined_fold_is_labelled(cohort, case):
    event = cohort.targets[OUTCOME].event
    censored = [i for i, e in zip(cohort.patient_ids, event, strict=True) if not e]
    happened = [i for i, e in zip(cohort.patient_ids, event, strict=True) if e]
    held = {"all censored": censored[:20], "one patient": censored[:1], "one event": [*censored[:19], happened[0]]}[
        case
    ]
    train = [i for i in cohort.patient_ids if i not in held]
    fold = FoldPrediction(fold="0", prediction=predicted(held), train_ids=tuple(train))
    settings = EvaluationSettings(bootstrap=50)
    found = evaluate_outcome({"m": [fold], "same": [fold]}, cohort, OUTCOME, carrying="m", settings=settings)
    row = found.models["m"]["folds"][0]
    if case == "one event":
        assert row["harrell_c"] is not None
    else:
        assert row["harrell_c"] is None
        assert "no comparable pair" in row["reason"]
        assert found.models["m"]["pooled"]["reason"]
    assert row["patients"] == len(held)
    json.dumps(found.to_json(), allow_nan=False)
    assert summary_table(found)[0]["carrying"]


def test_a_cohort_without_any_event_is_undefined_in_every_part(cohort):
    """As an external cohort may be, whose own patients say how they are censored."""
    event = cohort.targets[OUTCOME].event
    censored = tuple(i for i, e in zip(cohort.patient_ids, event, strict=True) if not e)
    fold = FoldPrediction(fold="ext", prediction=predicted(censored), train_ids=censored)
    found = evaluate_outcome(
        {"m": [fold]}, cohort.subset(censored), OUTCOME, carrying="m", settings=EvaluationSettings(bootstrap=20)
    )
    row = found.models["m"]["folds"][0]
    assert (row["harrell_c"], row["uno_c"], row["uno_tau"]) == (None, None, None)
    assert "no comparable pair" in row["reason"]
    assert "no comparable pair" in found.models["m"]["pooled"]["reason"]
    assert in_words(found) == (f"m: no score of {OUTCOME} is defined here.",)
    json.dumps(found.to_json(), allow_nan=False)


def test_small_cells_are_suppressed(cohort):
    split = generated_splits(cohort, outcome=OUTCOME, folds=2, seed=0)[0]
    fold = FoldPrediction(fold="0", prediction=predicted(split.held_out), train_ids=split.train)
    settings = EvaluationSettings(bootstrap=20, minimum_cell=50)
    found = evaluate_outcome({"m": [fold]}, cohort, OUTCOME, carrying="m", settings=settings)
    grades = found.groups["grade"]
    assert all(row["patients"] is None or row["patients"] >= 50 for row in grades)
    assert any("fewer than 50" in row["level"] for row in grades)


@pytest.mark.parametrize("name", sorted(BASELINES["survival"]))
def test_every_baseline_is_valid_and_blind_to_held_out_rows(cohort, name, tmp_path):
    data = load_modalities(cohort, names=["clinical"], store_root=tmp_path)
    split = generated_splits(cohort, outcome=OUTCOME, folds=3, seed=0)[0]
    inner = inner_folds(split.train, cohort=cohort, outcome=OUTCOME, folds=2, seed=0)
    fold = FoldData(cohort=cohort, outcome=OUTCOME, data=data, split=split, inner=inner, clinical="clinical")
    for result in fit_baselines(fold, kind="survival", names=[name]):
        p = result.prediction
        assert p.patient_ids == split.held_out
        c = harrell_c(cohort.target(OUTCOME, split.held_out), p.risk_score).value
        assert c == 0.5 if name == "kaplan_meier" else c > 0.5
        # the curves order patients as the scores do
        order = np.argsort(p.risk_score, kind="stable")
        assert (np.diff(p.survival[order, -1]) <= 1e-9).all()
        # dropping half of the held-out patients changes nothing for the others

        fewer = dataclasses.replace(split, held_out=split.held_out[::2])
        again = fit_baselines(dataclasses.replace(fold, split=fewer), kind="survival", names=[name])
        match = next(r for r in again if r.name == result.name)
        same = np.allclose(match.prediction.risk_score, p.risk_score[::2], atol=1e-9)
        # ranks are the exception, say so, and are there for comparison only
        assert same != (name == "rank_average" and any("other held-out patients" in note for note in result.notes))


LATE = ("ridge_cox", "late_average", "late_average_weighted", "rank_average")


def shown_to(modality, ids):
    """A modality that nobody else has."""
    return dataclasses.replace(modality, samples={i: s for i, s in modality.samples.items() if i in set(ids)})


def test_a_modality_with_nothing_to_learn_from_is_left_out_of_a_folds_late_averages(cohort, tmp_path):
    data = load_modalities(cohort, names=["clinical", "expression"], store_root=tmp_path)
    data["expression"] = dataclasses.replace(
        data["expression"],
        columns=data["expression"].columns[:5],
        samples={i: dataclasses.replace(s, tokens=s.tokens[:5], position=s.position[:5])
                 for i, s in data["expression"].samples.items()},
    )  # fmt: skip
    split = generated_splits(cohort, outcome=OUTCOME, folds=3, seed=0)[0]
    inner = inner_folds(split.train, cohort=cohort, outcome=OUTCOME, folds=2, seed=0)
    event = dict(zip(cohort.patient_ids, cohort.targets[OUTCOME].event, strict=True))
    both, rare = [[i for i in side.train if event[i]][:3] for side in inner], [i for i in split.train if not event[i]]
    cases = {
        "at least one event, found": [*rare[:20], *both[0], *split.held_out],  # of one inner fold
        "with a known outcome, found none": split.held_out,
        "expected a column that varies in train": [both[0][0], both[1][0], *split.held_out],
    }

    def fitted(data):
        fold = FoldData(cohort=cohort, outcome=OUTCOME, data=data, split=split, inner=inner, clinical="clinical")
        return {result.name: result for result in fit_baselines(fold, kind="survival", names=list(LATE))}

    alone = fitted({"clinical": data["clinical"]})
    for reason, ids in cases.items():
        found = fitted(data | {"expression": shown_to(data["expression"], ids)})
        assert set(found) == {"ridge_cox:clinical", "ridge_cox:expression", *LATE[1:]}
        for name, result in found.items():
            noted = [note for note in result.notes if note.startswith("expression: left out: ") and reason in note]
            assert len(noted) == (name != "ridge_cox:clinical"), (name, reason, result.notes)
            if name != "ridge_cox:expression":
                np.testing.assert_array_equal(result.prediction.risk_score, alone[name].prediction.risk_score)
                assert result.tuning_score == alone[name].tuning_score
        nothing = found["ridge_cox:expression"]  # a row in every fold, which says what is known of everyone
        assert np.isnan(nothing.tuning_score)
        assert np.ptp(nothing.prediction.risk_score) == np.ptp(nothing.prediction.survival, axis=0).max() == 0
        only = fitted({"expression": shown_to(data["expression"], ids), "clinical": shown_to(data["clinical"], [])})
        assert all(np.isnan(result.tuning_score) for result in only.values())


def test_without_a_table_there_is_no_clinical_model(cohort, tmp_path):
    data = load_modalities(cohort, names=["expression"], store_root=tmp_path)
    split = generated_splits(cohort, outcome=OUTCOME, folds=3, seed=0)[0]
    inner = inner_folds(split.train, cohort=cohort, outcome=OUTCOME, folds=2, seed=0)
    fold = FoldData(cohort=cohort, outcome=OUTCOME, data=data, split=split, inner=inner, clinical="expression")
    found = fit_baselines(fold, kind="survival", names=["kaplan_meier", "clinical_cox"])
    assert [result.name for result in found] == ["kaplan_meier"]


@pytest.mark.parametrize("held", [0, 1])
def test_few_or_no_held_out_patients_have_a_modality(cohort, tmp_path, held):
    data = load_modalities(cohort, names=["clinical", "expression"], store_root=tmp_path)
    split = generated_splits(cohort, outcome=OUTCOME, folds=3, seed=0)[0]
    inner = inner_folds(split.train, cohort=cohort, outcome=OUTCOME, folds=2, seed=0)
    data["expression"] = shown_to(data["expression"], [*split.train, *split.held_out[:held]])
    fold = FoldData(cohort=cohort, outcome=OUTCOME, data=data, split=split, inner=inner, clinical="clinical")
    found = fit_baselines(fold, kind="survival", names=list(LATE))
    assert all(len(result.prediction) == len(split.held_out) for result in found)


def test_a_modality_of_few_is_judged_on_everybody(cohort, tmp_path):
    """As it is on held-out patients: on those who have it alone, it would be chosen for what it cannot do."""
    data = load_modalities(cohort, names=["clinical", "expression"], store_root=tmp_path)
    split = generated_splits(cohort, outcome=OUTCOME, folds=3, seed=0)[0]
    inner = inner_folds(split.train, cohort=cohort, outcome=OUTCOME, folds=2, seed=0)
    target = cohort.target(OUTCOME, split.train)
    rows = np.flatnonzero(target.observed)
    half = [split.train[k] for k in rows[::2]]
    data["expression"] = shown_to(data["expression"], [*half, *split.held_out])
    fold = FoldData(cohort=cohort, outcome=OUTCOME, data=data, split=split, inner=inner, clinical="clinical")
    found = {r.name: r for r in fit_baselines(fold, kind="survival", names=["ridge_cox"])}["ridge_cox:expression"]
    one = scored(fold, "expression", {"ridge_cox": ridge_cox})
    said = dict(zip(one.ids, one.judged, strict=True))
    assert 0 < len(said) < len(fold.train_ids)
    risk = np.array([said.get(i, 0.0) for i in fold.train_ids])
    assert found.tuning_score == harrell_c(cohort.target(OUTCOME, fold.train_ids), risk).value
