"""Gate, neighbours, donors, distribution and checks are stored with a run and read without data or models."""

import shutil

import made_up
import numpy as np
import pytest

from medfuse.cli import main
from medfuse.errors import StoreError
from medfuse.explain.donors import added_value
from medfuse.explaining import check_run, explain_run
from medfuse.explaining_parts import fold_folder, patient_lines, read_checks, read_parts
from medfuse.run import open_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    card = made_up.write(folder, n=90, outcomes=("survival", "subtype", "response"))
    genes = (folder / "genes.csv").read_text().splitlines()
    (folder / "genes.csv").write_text("\n".join([genes[0], *(g for n, g in enumerate(genes[1:]) if n % 4)]) + "\n")
    more = ("outcomes=[survival, subtype, response]", "baselines=[kaplan_meier, prevalence]")
    made_up.trained(card, *made_up.LEARN, *more)
    return folder


@pytest.mark.parametrize("outcome", ["survival", "subtype", "response"])
def test_parts_are_stored_and_sealed(made, outcome, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    said = []
    values = explain_run(run, outcome=outcome, data_root=made, store_root=made / "store", say=said.append)
    run.verify()
    assert any("coalitions supported" in line for line in said)
    assert sum("prototypes: none, fusion" in line for line in said) == len(values)
    assert not list(run.path.rglob("prototypes"))
    shutil.rmtree(run.path / "folds")
    parts = read_parts(run, outcome)
    splits = run.read("splits")["splits"]
    for split, one, part in zip(splits, values, parts, strict=True):
        assert not any("not known" in reason for reason in part.gate.reason)
        assert part.gate.patients[0] == len(split["train"])
        assert set(part.neighbours.train_ids) == set(split["train"])
        assert part.distribution.patient_ids == one.patient_ids == part.neighbours.patient_ids
        assert len(part.donors) == (~one.present).sum() > 0
        assert (
            part.donors.draws.shape[2] == {"survival": len(part.donors.horizons), "subtype": 3, "response": 1}[outcome]
        )
        answers = added_value(part.donors, threshold=0.3)
        assert (answers.donors >= 10).all()
        assert np.isfinite(answers.expected_change).all()


def test_a_run_explained_before_is_completed(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    first = explain_run(run, data_root=made, store_root=made / "store")
    values = np.array(first[0].values)
    for split in run.read("splits")["splits"]:
        for name in ("gate", "donors", "neighbours"):
            shutil.rmtree(fold_folder(run, "survival", split["name"]) / name)
    run.seal()
    with pytest.raises(StoreError, match="expected a part of an explanation, found none"):
        read_parts(run, "survival")
    again = explain_run(run, data_root=made, store_root=made / "store")
    assert np.array_equal(again[0].values, values)
    assert len(read_parts(run, "survival")) == len(first)
    run.verify()


def test_checks_are_stored_and_printed(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    monkeypatch.setenv("MEDFUSE_STORE", str(made / "store"))
    assert read_checks(run, "survival") == []
    code = main(["explain", str(run.path), "--check", "--data-root", str(made)])
    said = capsys.readouterr().out
    checks = read_checks(run, "survival")
    assert len(checks) == 10
    assert code == (1 if any(c.passed is False for c in checks) else 0)
    assert all(c.line() in said for c in checks)
    assert next(c for c in checks if c.name == "completeness").passed
    assert next(c for c in checks if c.name == "label randomisation").passed is None
    run.verify()
    assert check_run(run, data_root=tmp_path / "nowhere") == checks, "read, not computed again"


def test_a_patient_in_words(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    monkeypatch.setenv("MEDFUSE_STORE", str(made / "store"))
    first = explain_run(run, data_root=made, store_root=made / "store")
    genes = first[0].modalities.index("genes")
    row = int(np.flatnonzero(~first[0].present[:, genes])[0])
    assert main(["explain", str(run.path), "--patient", first[0].patient_ids[row]]) == 0
    said = capsys.readouterr().out
    assert "  inputs " in said
    assert "genes: absent; it would change the risk at" in said
    assert "comparable patients" in said or "resembles" in said
    assert "not supported: " in said, "60 training patients cannot speak for every coalition"
    assert "nan" not in said
    assert patient_lines(read_parts(run, "survival"), "nobody") == []
    assert explain_run(run, outcome="response", data_root=made, store_root=made / "store")
    assert any("absent" in line for line in patient_lines(read_parts(run, "response"), first[0].patient_ids[row]))
