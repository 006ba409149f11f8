"""A stored run under stress: the numbers of the run itself where nothing is changed, and honest ones where it is."""

import json

import made_up
import numpy as np
import pandas as pd
import pytest

from medfuse import stress as stress_module
from medfuse.cli import main
from medfuse.errors import CohortError, ConfigError, StoreError
from medfuse.run import open_run
from medfuse.scenarios import MECHANISMS
from medfuse.stressing import stress_run
from medfuse.training import predict_variants
from medfuse.workflow import read_evaluations, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stress")


@pytest.fixture(scope="module")
def run(place):
    card = made_up.write(place, n=120, outcomes=("survival", "response"))
    more = (*made_up.LEARN, "train.epochs=12", "train.unimodal=true", "outcomes=[survival, response]")
    baselines = "baselines=[kaplan_meier, clinical_cox, late_average, rank_average, logistic]"
    words = (*made_up.QUICK, *more, baselines, "evaluation.bootstrap=100")
    return train(card, recipe="smoke", overrides=words, data_root=place, store_root=place / "s", out=place / "run")


def stressed(run, place, mechanism, **more):
    return stress_run(run, mechanism, data_root=place, store_root=place / "s", **more)


def rows_of(result, outcome="survival"):
    return pd.DataFrame(result.content["outcomes"][outcome]["rows"])


def test_subsets_in_the_run_and_in_its_report(run, place):
    result = stressed(run, place, "subsets")
    run.verify()  # sealed again
    assert "Stress tests" in (run.path / "report.html").read_text()
    for path in result.paths:
        assert path.parent == run.path / "stress"
        assert path.stat().st_size > 500
    rows = rows_of(result)
    assert rows.pattern.nunique() == 7
    assert set(rows.model) == {"medfuse", "medfuse:joint", "medfuse:unimodal", "clinical_cox", "late_average"}
    whole = rows[rows.pattern == "stains + genes + clinical"].set_index("model")
    evaluations = read_evaluations(run)
    for model, row in whole.iterrows():  # nothing is changed: the numbers of the run, on the same resamples
        pooled = evaluations["survival"].models[model]["pooled"]
        assert row["score"] == pytest.approx(pooled["estimate"], abs=1e-6)
        assert row["score_low"] == pytest.approx(pooled["low"], abs=1e-6)
        assert row["shift"] == 0
    ratio = evaluations["survival"].curves["calibration"]
    middle = list(ratio.values())[len(ratio) // 2]
    assert whole.loc["medfuse", "calibration_ratio"] == pytest.approx(middle["ratio"], abs=1e-6)
    assert whole.loc["medfuse", "calibration_slope"] == pytest.approx(middle["slope"], rel=0.05)
    assert (rows.patients == 120).all()  # nobody is dropped
    alone = rows[rows.pattern == "stains"].set_index("model")
    assert alone.loc["medfuse", "empty"] == pytest.approx(24 / 120)  # every fifth patient has no stain
    assert alone.loc["clinical_cox", "score"] == 0.5  # the baseline that reads a hidden table says nothing
    assert alone.loc["medfuse", "shift"] > 0.1
    labels = rows_of(result, "response")
    assert labels[labels.model == "logistic"].score.notna().all()
    assert (labels.reference == "medfuse:unimodal").all()


def test_random_removal_with_intervals_and_the_same_twice(run, place):
    out = place / "out"
    one = stressed(run, place, "mcar", rates=[0.5, 0.9], out=out)
    rows = rows_of(one)
    assert sorted(rows.rate.unique()) == [0, 0.5, 0.9]
    ours = rows[rows.model == "medfuse"].set_index("rate")
    assert (ours.hidden - ours.index).abs().max() < 0.1
    for name in ("score", "calibration_slope", "calibration_ratio", "error", "difference"):
        known = ours[ours[name].notna()]
        assert len(known) >= 2, name
        assert (known[f"{name}_low"] < known[f"{name}_high"]).all(), name
    assert ours.score[0.9] < ours.score[0.0]
    assert ours["empty"][0.9] > 0.4
    again = stressed(run, place, "mcar", rates=[0.5, 0.9], out=place / "again")
    assert (out / "mcar.json").read_bytes() == (place / "again" / "mcar.json").read_bytes()
    assert again.paths[1].read_text() == one.paths[1].read_text()
    assert not (run.path / "stress" / "mcar.json").exists()


def test_a_subset_of_a_patient_is_predicted_once_and_memory_changes_nothing(run, place, monkeypatch):
    asked = []

    def counted(model, data, ids):
        asked.append(len(ids))
        return predict_variants(model, data, ids)

    monkeypatch.setattr(stress_module, "predict_variants", counted)
    whole = rows_of(stressed(run, place, "mcar", rates=[0.2, 0.5, 0.8], draws=3, out=place / "whole"))
    fits = len(asked)  # two folds for each of two outcomes
    assert fits == 4
    assert max(asked) <= 60 * 2**3  # subsets of three modalities, for 10 scenarios with 60 patients each
    asked.clear()
    monkeypatch.setattr(stress_module, "_CELLS", 1)
    parts = rows_of(stressed(run, place, "mcar", rates=[0.2, 0.5, 0.8], draws=3, out=place / "parts"))
    assert len(asked) == 10 * fits
    assert set(asked) == {60}
    numbers = list(whole.select_dtypes("number"))
    assert whole.drop(columns=numbers).equals(parts.drop(columns=numbers))
    np.testing.assert_allclose(whole[numbers], parts[numbers], rtol=1e-4, atol=1e-5)


def test_every_other_mechanism_runs_on_one_modality(run, place):
    found = {}
    for mechanism in ("mar", "mnar", "mnar-flip", "noise", "dilution", "swap"):
        result = stressed(run, place, mechanism, rates=[0.8], modalities=["genes"], draws=2, out=place / "m")
        rows = rows_of(result)
        found[mechanism] = rows[(rows.model == "medfuse") & (rows.rate == 0.8)].iloc[0]
        assert (found[mechanism]["shift"] > 0) == (mechanism != "dilution")  # full tables cannot be diluted
        assert found[mechanism]["worst_shift"] >= found[mechanism]["shift"]
        assert (place / "m" / f"{mechanism}-genes.json").is_file()
    assert found["swap"]["hidden"] == 0 < found["swap"]["touched"]


@pytest.mark.slow
def test_every_mechanism_with_classes_and_values(tmp_path):
    card = made_up.write(tmp_path, n=90, outcomes=("subtype", "size"), missing=0.1)
    more = ("train.epochs=6", "outcomes=[subtype, size]", "baselines=[logistic, ridge]")
    words = (*made_up.QUICK, *made_up.LEARN, *more)
    places = {"data_root": tmp_path, "store_root": tmp_path / "s"}
    run = train(card, recipe="smoke", overrides=words, out=tmp_path / "run", **places)
    evaluations = read_evaluations(run)
    for mechanism in MECHANISMS:
        rates = None if mechanism == "subsets" else [1.0]
        result = stress_run(run, mechanism, rates=rates, draws=2, out=tmp_path / "o", **places)
        for outcome, score in (("subtype", "auroc"), ("size", "r2")):
            assert result.content["outcomes"][outcome]["score"] == score
            rows = rows_of(result, outcome)
            plain = rows[rows.hidden + rows.touched == 0].groupby("model").first()
            pooled = {m: r["pooled"] for m, r in evaluations[outcome].models.items()}
            assert set(plain.index) == set(pooled)
            for model, row in plain.iterrows():  # nothing is changed: the numbers of the run
                assert row["score"] == pytest.approx(pooled[model]["estimate"], abs=1e-6)
                assert row["score_low"] == pytest.approx(pooled[model]["low"], abs=1e-6)
            other = rows[(rows.hidden + rows.touched > 0) & (rows.model == "medfuse")]
            assert len(other) or mechanism == "dilution"
            for name in ("score", "calibration_ratio", "calibration_slope", "error"):
                known = rows[rows[name].notna() & rows[f"{name}_low"].notna()]
                assert (known[f"{name}_low"] <= known[f"{name}_high"]).all(), (mechanism, outcome, name)
            assert other.score.notna().all(), (mechanism, outcome)


OTHERS = {"status": {"0": "1", "1": "0"}, "response": {"no": "yes", "yes": "no"}}


def test_other_outcomes_are_refused(tmp_path):
    """Of one patient, and nothing else has changed: features stand in other files."""
    outcomes, baselines = ("survival", "response"), "baselines=[kaplan_meier, prevalence]"
    card = made_up.write(tmp_path, n=60, outcomes=outcomes, modalities=("stains", "genes"), missing=0.1)
    run = made_up.trained(card, f"outcomes=[{', '.join(outcomes)}]", baselines)
    places = {"data_root": tmp_path, "store_root": tmp_path / "store"}
    table = pd.read_csv(tmp_path / "patients.csv", dtype=str)
    for column, outcome in (("status", "survival"), ("days", "survival"), ("response", "response")):
        other = table.copy()
        row = other[column].first_valid_index()
        value = other.loc[row, column]
        other.loc[row, column] = OTHERS.get(column, {}).get(value, f"{value}1")
        other.to_csv(tmp_path / "patients.csv", index=False)
        with pytest.raises(CohortError, match=f"found others for outcome '{outcome}'"):
            stress_run(run, "mcar", **places, out=tmp_path / "out")
    table[::-1].to_csv(tmp_path / "patients.csv", index=False)  # the same patients, in another order
    stress_run(run, "mcar", rates=[0.5], draws=1, **places, out=tmp_path / "out")


def test_the_command_line(run, place, capsys, monkeypatch):
    monkeypatch.setenv("MEDFUSE_STORE", str(place / "s"))
    words = ["stress", str(run.path), "--mechanism", "swap", "--rate", "1", "--modality", "genes"]
    assert main([*words, "--out", str(place / "cli"), "--data-root", str(place)]) == 0
    said = capsys.readouterr().out
    assert "written" in said
    assert "minus late average" in said
    content = json.loads((place / "cli" / "swap-genes.json").read_text())
    assert content["rates"] == [0, 1]
    line = next(line for line in said.splitlines() if line.startswith("  1 genes") and " medfuse " in line)
    share = next(r["touched"] for r in content["outcomes"]["survival"]["rows"] if r["rate"] == 1)
    assert f"{share:.0%} medfuse" in line  # a swap hides nothing: what it changed is shown
    assert share > 0.9
    assert main([*words[:3], "mncar", "--data-root", str(place)]) == 2
    assert "no mechanism" in capsys.readouterr().err


def test_other_files_or_an_unfinished_run_are_refused(run, place, tmp_path):
    other = made_up.write(tmp_path / "other", n=120, seed=9, outcomes=("survival", "response")).parent
    with pytest.raises(CohortError, match="changed since"):
        stress_run(run, "mcar", data_root=other, store_root=place / "s", out=tmp_path)
    with pytest.raises(ConfigError, match="no modality"):
        stressed(run, place, "mcar", modalities=["gene"], out=tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"format_version": 1, "status": "running"}')
    with pytest.raises(StoreError, match="finished run"):
        stress_run(open_run(tmp_path / "run"), "mcar")
    assert np.isfinite(rows_of(stressed(run, place, "noise", rates=[0.1], draws=1, out=tmp_path)).score).all()


def test_the_report_shows_the_competition_of_modalities_and_what_was_hidden(tmp_path):
    card = made_up.write(tmp_path)
    words = (*made_up.QUICK, "baselines=[kaplan_meier]", "train.balance=agm", "train.presence=balanced")
    words = (*words, "train.unimodal=true")
    run = train(
        card, recipe="smoke", overrides=words, data_root=tmp_path, store_root=tmp_path / "s", out=tmp_path / "run"
    )
    page = (run.path / "report.html").read_text()
    assert "Competition of the modalities" in page
    assert "Presence made independent" in page
    assert "Competition strength: survival" in page
    strengths = run.read("competition")["folds"]
    assert len(strengths) == 2
    assert all(set(by["survival"]) == {"stains", "genes", "clinical"} for by in strengths.values())
    row = run.curves()[0]
    expected = {f"{what}.{m}" for what in ("strength", "factor", "kept") for m in ("stains", "genes", "clinical")}
    assert expected <= set(row)
