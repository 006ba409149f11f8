"""A run is explained once; what was stored is sealed with it and read again without a model."""

import json
import shutil

import numpy as np
import pytest

from medfuse.cli import main
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.errors import CohortError, ConfigError, StoreError
from medfuse.explain import contributions
from medfuse.explain.gate import Gate
from medfuse.explain.parts import read_part
from medfuse.explaining import (
    FOLDER,
    contribution_table,
    default_horizon,
    explain_run,
    lines,
    pooled_importance,
    read_coalitions,
)
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.run import Run, open_run
from medfuse.training import load_fold


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


def explained(made, run, outcome=None):
    return explain_run(run, outcome=outcome, data_root=made, store_root=made / "store")


def test_numbers_are_those_of_the_run(made, run):
    """D2 for the numbers: what is explained is what was predicted, to the displayed precision and beyond."""
    found = explained(made, run)
    run.verify()
    held = run.predictions().query("partition == 'held_out' and model == 'medfuse' and outcome == 'survival'")
    assert sorted(i for c in found for i in c.patient_ids) == sorted(held.patient_id)
    for c in found:
        rows = held[held.fold == c.fold[0]].set_index("patient_id")
        for row, patient in enumerate(c.patient_ids):
            survival = 1 - c.game(scale="risk")[-1][row]
            np.testing.assert_allclose(survival, rows.survival[patient], atol=1e-6)
            assert (
                ",".join(m for m, has in zip(c.modalities, c.present[row], strict=True) if has) == rows.present[patient]
            )
    horizon = default_horizon(run, found)
    table = contribution_table(found, horizon=horizon)
    assert set(table.columns) >= {"contribution", "low", "high", "ratio", "points", "risk"}
    for (fold, patient), rows in table.groupby(["fold", "patient_id"]):
        one = next(c for c in found if c.fold[0] == fold)
        row = one.patient_ids.index(patient)
        nobody = one.game(horizon=horizon, scale="risk")[0][row]
        assert rows.points.sum() == pytest.approx(rows.risk.iloc[0] - nobody, abs=1e-9)


def test_values_are_of_recalibrated_patterns(made, run):
    """E1, E5 and E3."""
    explained(made, run)
    shown = read_coalitions(run)
    assert {c.meaning for c in shown} == {"recalibrated"}
    for one in shown:
        for scale in ("link", "risk"):
            c = contributions(one, scale=scale)
            gap = np.nansum(c.contribution, axis=1) - (c.everybody - c.nobody)
            assert np.abs(gap).max() <= 1e-9
            assert np.isnan(c.contribution[~one.present]).all()  # E5: an absent modality has no bar
    at = shown[0].game(scale="risk")[0][0]  # nobody: the life table of the fold's training patients
    ids = next(s for s in run.read("splits")["splits"] if str(s["name"]) == shown[0].fold[0])["train"]
    known = read_cohort(read_card(run.path / "card.md"), data_root=made).target("survival", ids)
    curve = kaplan_meier(known.time, known.event)
    supported = shown[0].times <= curve.times[np.flatnonzero(curve.at_risk >= 10)[-1]]
    assert supported.sum() > 10
    assert np.abs(at - (1 - curve(shown[0].times)))[supported].max() <= 0.03  # E3
    for fold in ("0", "1"):
        patterns = load_fold(run.fold_folder(fold)).ensembles["survival"]["chosen"].patterns
        gate = read_part(Gate, run.path / FOLDER / "survival" / fold / "gate")
        assert patterns.fitted.any()
        for fitted, reason in zip(patterns.fitted, gate.reason, strict=True):
            assert fitted or reason.endswith("not recalibrated")
    assert "(recalibrated)" in "\n".join(lines(shown, horizon=default_horizon(run, shown)))


def test_explanations_of_before_are_read_as_the_model_says(made, run):
    first = explained(made, run)
    for fold in ("0", "1"):
        index = run.path / FOLDER / "survival" / fold / "index.json"
        content = json.loads(index.read_text())
        del content["meaning"]
        index.write_text(json.dumps(content))
    assert {c.meaning for c in read_coalitions(run)} == {"as the model says"}
    again = explain_run(Run(path=run.path), data_root=made / "nowhere")
    assert np.array_equal(again[0].values, first[0].values)


def test_it_is_computed_once_and_read_without_data_or_models(made, run, monkeypatch):
    first = explained(made, run)
    monkeypatch.setattr("medfuse.explaining.coalition_values", None)
    again = explain_run(Run(path=run.path), data_root=made / "nowhere")
    shutil.rmtree(run.path / "folds")
    read = read_coalitions(run.path)
    for a, b, c in zip(first, again, read, strict=True):
        assert np.array_equal(a.values, b.values)
        assert np.array_equal(a.values, c.values)
        assert np.array_equal(a.replicates, c.replicates)


def test_every_kind_of_outcome_prints(made, run):
    for outcome in ("survival", "subtype", "response"):
        found = explained(made, run, outcome)
        horizon = default_horizon(run, found)
        assert (horizon is None) == (outcome != "survival")
        text = "\n".join(lines(found, horizon=horizon))
        assert text.count("mean absolute contribution") == (3 if outcome == "subtype" else 1)
        some = found[0].patient_ids[int(np.argmax(found[0].present.any(axis=1)))]
        mine = "\n".join(lines(found, horizon=horizon, patient=some))
        assert "points" in mine
        assert "nan" not in text + mine
    assert {one.modality for one in pooled_importance(found)} == {"stains", "genes", "clinical"}
    run.verify()


def test_the_command(made, run, monkeypatch, capsys):
    monkeypatch.setenv("MEDFUSE_STORE", str(made / "store"))
    assert main(["explain", str(run.path), "--data-root", str(made)]) == 0
    said = capsys.readouterr().out
    assert "genes" in said
    assert main(["explain", str(run.path), "--patient", "p010", "--horizon", "300"]) == 0
    assert "patient p010" in capsys.readouterr().out
    assert main(["explain", str(run.path), "--patient", "p999"]) == 2
    assert "found none with id p999" in capsys.readouterr().err


def test_refusals(made, run, tmp_path):
    with pytest.raises(StoreError, match="has not been explained; run medfuse explain"):
        read_coalitions(run)
    with pytest.raises(ConfigError, match=r"no outcome 'survivl'.*survival"):
        explained(made, run, "survivl")
    changed = tmp_path / "changed"
    shutil.copytree(made, changed, ignore=shutil.ignore_patterns("run", "store"))
    text = (changed / "patients.csv").read_text().splitlines()
    cells = text[1].split(",")
    cells[1] = "71.5"
    (changed / "patients.csv").write_text("\n".join([text[0], ",".join(cells), *text[2:]]) + "\n")
    with pytest.raises(CohortError, match="modality 'clinical' changed since"):
        explain_run(run, data_root=changed, store_root=changed / "store")
    assert not (run.path / FOLDER).exists()
    found = explained(made, run, "subtype")
    with pytest.raises(ConfigError, match="choose a horizon or a class"):
        contribution_table(found)
    with pytest.raises(ConfigError, match="expected a class of a multi-class outcome"):
        contribution_table(found, label=3)
    (run.path / FOLDER / "subtype" / "0" / "values.npy").write_bytes(b"not an array")
    with pytest.raises(StoreError, match="expected an array"):
        read_coalitions(run, "subtype")
