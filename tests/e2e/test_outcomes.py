"""From files to a report and to predictions, for every kind of outcome, alone and together."""

import json
import re

import made_up
import numpy as np
import pandas as pd
import pytest

from medfuse.cli import main
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.errors import CohortError
from medfuse.run import open_run
from medfuse.workflow import evaluate, predict, read_evaluations

SCORES = {"survival": "harrell_c", "response": "auroc", "subtype": "auroc", "size": "r2"}


@pytest.mark.parametrize("outcome", ["response", "subtype", "size"])
def test_one_outcome_from_files_to_predictions(tmp_path, outcome):
    card = made_up.write(tmp_path / "a", n=140, outcomes=(outcome,))
    baselines = "baselines=[ridge]" if outcome == "size" else "baselines=[prevalence, logistic]"
    run = made_up.trained(card, *made_up.LEARN, "modalities=[clinical, genes]", baselines)
    run.verify()
    evaluation = read_evaluations(run)[outcome]
    assert evaluation.score == SCORES[outcome]
    assert len(evaluation.models) == (2 if outcome == "size" else 3)  # baselines beside the model
    floor = {"response": 0.65, "subtype": 0.65, "size": 0.1}[outcome]
    assert evaluation.models["medfuse"]["mean"][SCORES[outcome]] > floor  # the planted signal is found
    page = (run.path / "report.html").read_text()
    assert outcome in page
    assert not re.search(r"\bnan\b|Traceback", page, flags=re.IGNORECASE)
    held = run.predictions().query("partition == 'held_out' and model == 'medfuse'")
    assert sorted(held.patient_id) == sorted(read_cohort(read_card(card), data_root=tmp_path / "a").patient_ids)
    other = made_up.write(tmp_path / "b", seed=1, prefix="q", n=40, outcomes=(outcome,), name="other")
    table = pd.read_csv(
        predict(run, other, data_root=tmp_path / "b", store_root=tmp_path / "s", out=tmp_path / "p.csv")
    )
    assert len(table) == 40
    assert np.isfinite(table.risk_score).all()
    assert not table.seen_in_training.any()
    if outcome == "size":
        np.testing.assert_array_equal(table.value, table.risk_score)
    else:
        probability = table.filter(like="probability@")
        names = {"response": ["no", "yes"], "subtype": ["A", "B", "C"]}[outcome]
        assert list(probability.columns) == [f"probability@{name}" for name in names]
        np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-6)
    external, path = evaluate(
        run, other, data_root=tmp_path / "b", store_root=tmp_path / "s", out=tmp_path / "external.json"
    )
    assert path.is_file()
    assert external.models["medfuse"]["mean"][SCORES[outcome]] > floor
    # an outcome that only shares its name: another unit, classes in another order, another kind
    turned = {
        "response": ('classes: ["no", "yes"]', 'classes: ["yes", "no"]'),
        "subtype": ("classes: [A, B, C]", "classes: [C, B, A]"),
        "size": ("{kind: continuous, column: size, unit: mm}", "{kind: continuous, column: size, unit: cm}"),
    }
    text = other.read_text()
    assert turned[outcome][0] in text
    (tmp_path / "b" / "turned.md").write_text(text.replace(*turned[outcome]))
    with pytest.raises(CohortError, match=r"as in the run, found .*; define it as the run's card does"):
        evaluate(
            run,
            tmp_path / "b" / "turned.md",
            data_root=tmp_path / "b",
            store_root=tmp_path / "s",
            out=tmp_path / "turned.json",
        )
    assert not (tmp_path / "turned.json").exists()


def test_several_outcomes_of_which_patients_miss_some(tmp_path):
    names = ("survival", "size", "response", "subtype")  # not in alphabetical order
    card = made_up.write(tmp_path, n=140, missing=0.3, outcomes=names)
    chosen = f"outcomes=[{', '.join(names)}]"
    said = []
    run = made_up.trained(card, *made_up.LEARN, chosen, "baselines=[kaplan_meier]", say=said.append)
    cohort = read_cohort(read_card(card), data_root=tmp_path)
    unknown = {name: int((~target.observed).sum()) for name, target in cohort.targets.items()}
    assert all(10 < count < 70 for count in unknown.values()), unknown
    evaluations = read_evaluations(run)
    assert tuple(evaluations) == tuple(sorted(names))  # JSON keeps no order
    for name, evaluation in evaluations.items():
        assert evaluation.score == SCORES[name]
        rows = evaluation.models["medfuse"]["folds"]
        assert sum(row["patients"] for row in rows) == len(cohort.records) - unknown[name]
        assert evaluation.models["medfuse"]["mean"][SCORES[name]] > (0 if name == "size" else 0.6), name
        assert set(evaluation.models) == ({"medfuse", "kaplan_meier"} if name == "survival" else {"medfuse"})
    assert len([line for line in said if "left out kaplan_meier, baselines of other kinds" in line]) == 3
    # what the run says of its own patients after a reload has the kind, the range and the signal of each outcome
    table = pd.read_csv(predict(run, card, data_root=tmp_path, store_root=tmp_path / "store", out=tmp_path / "p.csv"))
    assert table.groupby("outcome").size().to_dict() == dict.fromkeys(names, 140)
    assert table.seen_in_training.any()
    size = table[table.outcome == "size"].set_index("patient_id")
    truth = pd.read_csv(tmp_path / "patients.csv").set_index("id")["size"].dropna()
    assert np.corrcoef(size.risk_score.reindex(truth.index), truth)[0, 1] > 0.5
    assert 10 < size.risk_score.mean() < 50  # mm
    # another cohort has two of the outcomes: its first, or the one that is asked for
    other = made_up.write(tmp_path / "o", seed=3, prefix="q", n=60, outcomes=("response", "size"), name="other")
    places = {"data_root": tmp_path / "o", "store_root": tmp_path / "s", "out": tmp_path / "external.json"}
    assert evaluate(run, other, **places)[0].outcome == "size"
    places["out"] = tmp_path / "external_response.json"
    found, _ = evaluate(run, other, outcome="response", **places)
    assert (found.outcome, found.score) == ("response", "auroc")
    assert found.models["medfuse"]["mean"]["auroc"] > 0.6
    with pytest.raises(CohortError, match="expected the run's outcome 'survival', found none in the card or the run"):
        evaluate(run, other, outcome="survival", **{**places, "out": tmp_path / "other.json"})


def test_external_validation_from_the_command_line(tmp_path, monkeypatch, capsys):
    card = made_up.write(tmp_path / "here", modalities=("clinical", "genes"))
    run = made_up.trained(card, *made_up.LEARN, "baselines=[kaplan_meier]")
    # elsewhere: another site, no genes at all, and a table in another folder
    there = made_up.write(tmp_path / "there", seed=5, prefix="x", name="there", modalities=("clinical",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
    words = ["evaluate", str(run.path), "--cohort", str(there), "--data-root", str(tmp_path / "there")]
    assert main(words) == 0
    assert "harrell_c" in capsys.readouterr().out
    found = json.loads((tmp_path / "external_there.json").read_text())
    row = found["models"]["medfuse"]["folds"][0]
    assert row["patients"] == 80
    assert 0 < row["harrell_c"] < 1
    assert any(key.startswith("calibration_slope@") for key in row)
    assert found["models"]["medfuse"]["pooled"]["low"] is not None
    # what does not fit is refused, and nothing is written
    wrong = made_up.write(tmp_path / "wrong", prefix="y", name="wrong", outcomes=("size",), modalities=("clinical",))
    assert main(["evaluate", str(run.path), "--cohort", str(wrong), "--data-root", str(tmp_path / "wrong")]) == 2
    assert "expected the run's outcome 'survival'" in capsys.readouterr().err
    assert not (tmp_path / "external_wrong.json").exists()
    text = (tmp_path / "there" / "card.md").read_text()
    (tmp_path / "there" / "less.md").write_text(
        text.replace("sex: {kind: categorical, levels: [f, m]}", "").replace("name: there", "name: less")
    )
    assert main(["predict", str(run.path), "--cohort", str(tmp_path / "there" / "less.md"), *words[4:]]) == 2
    assert "expected the run's 3 columns, found no 'sex'" in capsys.readouterr().err
    assert not (tmp_path / "predictions_less.csv").exists()
    assert open_run(run.path).read("run")["status"] == "finished"
