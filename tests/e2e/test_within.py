"""Explanations within a modality are stored with the run, sealed, and read again without data or models."""

import shutil

import numpy as np
import pytest

from medfuse.cli import main
from medfuse.errors import CohortError, ConfigError, StoreError
from medfuse.explaining import contribution_table
from medfuse.run import open_run
from medfuse.within import Ask, explain_within, read_within, within_lines, within_table


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


def explained(made, run, modality, **ask):
    return explain_within(run, modality, ask=Ask(**ask), data_root=made, store_root=made / "store")


@pytest.mark.parametrize(
    ("modality", "units"), [("clinical", "column"), ("stains", "identity"), ("genes", "gene_set"), ("genes", None)]
)
def test_values_sum_to_the_contribution_of_the_run(made, run, modality, units):
    from medfuse.explaining import read_coalitions

    found = explained(made, run, modality, units=units)
    run.verify()
    horizon = found[0].attribution.horizon
    table = contribution_table(read_coalitions(run), horizon=horizon).query("modality == @modality")
    ours = within_table(found)
    assert set(ours.patient_id) == set(table.patient_id)
    sums = ours.groupby(["fold", "patient_id"]).contribution.sum()
    for (fold, patient), value in sums.items():
        own = table[(table.fold == fold) & (table.patient_id == patient)].contribution.iloc[0]
        assert value == pytest.approx(own, abs=max(1e-3, 0.05 * abs(own)))
    assert set(ours.label) == {"sums to the contribution"}
    moved = ours[ours.part == "recalibration"]  # with and without it are two patterns
    says = {
        one.fold for one in found if np.ptp(one.attribution.contribution) > 0
    }  # one fold's model says the same of all
    assert set(moved.fold) == says
    assert set(moved.patient_id) == set(table[table.fold.isin(says)].patient_id)
    assert np.abs(moved.contribution).max() > 1e-4
    assert np.abs(ours.contribution).max() > 0.01


def test_it_is_read_without_data_or_models(made, run, monkeypatch, capsys):
    first = explained(made, run, "clinical", check=True)
    assert first[0].badge.startswith("passed ")
    assert {c.name for c in first[0].checked.checks} >= {"deletion", "insertion", "signs", "weights", "stability"}
    monkeypatch.setattr("medfuse.within.attribute", None)
    again = explain_within(run, "clinical", data_root=made / "nowhere")
    shutil.rmtree(run.path / "folds")
    read = read_within(run.path, "clinical", outcome="survival")
    for a, b, c in zip(first, again, read, strict=True):
        assert np.array_equal(a.attribution.values, b.attribution.values)
        assert np.array_equal(a.attribution.values, c.attribution.values)
        assert a.badge == b.badge == c.badge
        assert len(a.checked.checks) == len(c.checked.checks)
    text = "\n".join(within_lines(read))
    assert "age" in text
    assert "presence" in text


def test_some_patients_then_others(made, run):
    (one,) = explained(made, run, "genes", units="column", patients=("p010",))
    assert one.attribution.patient_ids == ("p010",)
    both = explained(made, run, "genes", units="column", patients=("p010", "p011"))
    assert sum(len(w.attribution) for w in both) >= 2
    with pytest.raises(CohortError, match="found no such id"):
        explained(made, run, "genes", patients=("p010", "p000"))  # who has no genes


def test_the_command(made, run, monkeypatch, capsys):
    monkeypatch.setenv("MEDFUSE_STORE", str(made / "store"))
    words = ["explain", str(run.path), "--data-root", str(made), "--within"]
    assert main([*words, "clinical"]) == 0
    assert "stage" in capsys.readouterr().out
    assert main([*words, "clinical", "--patient", "p010"]) == 0
    said = capsys.readouterr().out
    assert "patient p010" in said
    assert "sums to the contribution" in said
    assert main([*words, "clinical", "--patient", "p999"]) == 2
    assert "found no such id" in capsys.readouterr().err


def test_refusals(made, run):
    with pytest.raises(ConfigError, match="no modality 'clincal'"):
        explained(made, run, "clincal")
    with pytest.raises(ConfigError, match="has no units 'region'"):
        explained(made, run, "clinical", units="region")
    with pytest.raises(StoreError, match="has not been explained"):
        read_within(run, "clinical", outcome="survival")
    found = explained(made, run, "clinical")
    folder = run.path / "explanations" / "survival" / found[0].fold / "within" / "clinical" / "default"
    (folder / "values.npy").write_bytes(b"no array")
    with pytest.raises(StoreError, match="found a damaged one"):
        read_within(run, "clinical", outcome="survival")
