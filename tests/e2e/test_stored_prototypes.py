"""Prototypes are stored with a run: assignments, nearest training patients, exact terms; a run without says so."""

import json
import shutil
from dataclasses import replace

import made_up
import numpy as np
import pytest
import torch

import medfuse
from medfuse.cli import main
from medfuse.documents import read_facts
from medfuse.documents.model_card import ATTRIBUTES, MINIMUM, model_entries
from medfuse.errors import ConfigError, ModelError
from medfuse.explain.prototype_record import prototype_names
from medfuse.explain.prototypes import joint_members, level_words, prototype_record
from medfuse.explaining import explain_run, read_coalitions, read_source
from medfuse.explaining_parts import fold_folder, inner_unseen
from medfuse.explaining_prototypes import effective_numbers, read_prototype_records
from medfuse.prototypes import prototype_lines
from medfuse.report_sections import contribution_section
from medfuse.run import open_run
from medfuse.training import load_fold
from medfuse.training.member import make_batch, transform_patients
from medfuse.workflow import read_evaluations, train

SMALL = ("splits.folds=2", "splits.inner_folds=2", "train.modality_dropout=false", "baselines=[kaplan_meier]")
KINDS = ("survival", "subtype", "response", "size")


def fitted(folder, recipe, *, outcomes=("survival",)):
    card = made_up.write(folder, n=64, outcomes=outcomes)
    where = {"data_root": folder, "store_root": folder / "store"}
    more = (*made_up.QUICK, *SMALL, f"outcomes=[{', '.join(outcomes)}]")
    train(card, recipe=recipe, overrides=more, out=folder / "run", **where)
    return open_run(folder / "run"), where


@pytest.fixture(scope="module")
def additive(tmp_path_factory):
    run, where = fitted(tmp_path_factory.mktemp("additive"), "prototype_additive", outcomes=KINDS)
    said = []
    explain_run(run, say=said.append, **where)
    return run, where, said


@pytest.fixture(scope="module")
def bottleneck(tmp_path_factory):
    run, where = fitted(tmp_path_factory.mktemp("bottleneck"), "prototype")
    held = run.read("splits")["splits"][0]["held_out"]
    return (
        run,
        where,
        prototype_record(load_fold(run.fold_folder("0")), read_source(run, **where).data, held, outcome="survival"),
    )


def model_and_batch(run, where, ids, *, number=0):
    """A joint network of the first fold, built again, and patients as it reads them."""
    member = joint_members(load_fold(run.fold_folder("0")))[number]
    samples = transform_patients(dict(read_source(run, **where).data), member.preprocessing, ids)
    return member.build(), make_batch(samples, ids, shapes=member.shapes)


def test_the_part_is_sealed_and_read_without_models(additive, tmp_path):
    run, _, said = additive
    shutil.copytree(run.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    run.verify()
    shutil.rmtree(run.path / "folds")
    found = read_prototype_records(run, "survival")
    assert list(found) == ["0", "1"]
    assert any("prototypes: 8 per modality" in line for line in said)
    for one, values, split in zip(found.values(), read_coalitions(run), run.read("splits")["splits"], strict=True):
        assert one.patient_ids == values.patient_ids
        assert set(one.train_ids) == set(split["train"])
        assert one.members == ("00-00", "00-01")
        assert one.share == 1.0  # no networks of single modalities
        assert np.array_equal(np.isnan(one.similarity[0, :, :, 0]), ~values.present)
        assert one.leading == "survival"
        assert one.levels[0].startswith("event by day")


def test_what_is_stored_is_what_each_network_says(additive):
    run, where, _ = additive
    one = read_prototype_records(run, "survival")["0"]
    for number in range(2):
        model, batch = model_and_batch(run, where, one.patient_ids, number=number)
        with torch.no_grad():
            activation = model.fuse(batch).parts["activation"].numpy()
        assert np.abs(np.nan_to_num(one.similarity[number]) - activation).max() <= 1e-6


def test_exemplars_are_the_nearest_patients_of_the_training_side(additive):
    run, where, _ = additive
    one = read_prototype_records(run, "survival")["0"]
    model, batch = model_and_batch(run, where, one.train_ids)
    with torch.no_grad():
        parts = model.fuse(batch).parts
    for m in range(3):
        best = parts[f"similarity.{m}"].masked_fill(~parts[f"real.{m}"][..., None], -9.0).amax(1).numpy()
        for p in range(8):
            rows = one.exemplar[m, p]
            assert len(set(rows)) == len(rows) == 8
            assert np.allclose(best[rows, p], np.sort(best[:, p])[::-1][:8], atol=1e-6)
            assert np.allclose(one.exemplar_similarity[m, p], best[rows, p], atol=1e-6)
    source = read_source(run, **where)
    inner = inner_unseen(source, one.train_ids)
    assert {i for i, new in zip(one.train_ids, one.unseen, strict=True) if new} == set(inner[0])
    assert 0 < one.unseen.sum() < len(one.train_ids)


@pytest.mark.parametrize("outcome", KINDS)
def test_terms_sum_to_the_logit_of_the_network(additive, outcome):
    run, where, _ = additive
    source = read_source(run, **where)
    fold = load_fold(run.fold_folder("0"))
    ids = read_prototype_records(run, "survival")["0"].patient_ids
    one = prototype_record(fold, source.data, ids, outcome=outcome)
    total = one.constant + one.terms.sum(axis=(1, 2))
    assert np.abs(total - one.logit).max() <= 1e-5 * max(1.0, float(np.abs(one.logit).max()))
    assert (one.terms[np.isnan(one.similarity[0, :, :, 0])] == 0).all()
    assert np.abs(one.modality_terms[0] - one.terms.sum(axis=2)).max() <= 1e-5 * float(np.abs(one.terms).max() + 1)
    model, batch = model_and_batch(run, where, ids)
    with torch.no_grad():
        logits, said = model(batch)[outcome].double(), model.predict(batch)[outcome]
    read = {
        "survival": lambda: logits.mean(1, keepdim=True),
        "subtype": lambda: logits - logits.mean(1, keepdim=True),
        "response": lambda: torch.logit(said["probability"][:, 1:]),
        "size": lambda: said["value"][:, None],
    }[outcome]()
    assert np.allclose(one.logit, read.numpy(), atol=1e-4)
    assert one.logit.shape[1] == {"subtype": 3}.get(outcome, 1)
    assert float(np.abs(one.terms).max()) > 0


@pytest.mark.slow
def test_probabilities_are_those_that_the_model_mixes_its_prototypes_by(bottleneck):
    run, where, one = bottleneck
    assert (one.terms, one.constant, one.modality_terms) == (None, None, None)
    model, batch = model_and_batch(run, where, one.patient_ids)
    with torch.no_grad():
        said = model.fusion.opinions(*model.encode(batch))
    probability = one.probability(np.array(one.similarity[0], dtype=np.float64))
    for m, block in enumerate(model.fusion.blocks):
        there = ~np.isnan(probability[:, m, 0])
        assert there.any()
        mixed = probability[there, m] @ block.mean.detach().double().numpy()
        assert np.abs(mixed - said[m].mean.double().numpy()[there]).max() <= 1e-5
    assert np.allclose(np.nansum(probability, axis=2), ~np.isnan(one.similarity[0, :, :, 0]))
    hard = replace(one, temperature=0.0)
    similarity = np.array(one.similarity[0], dtype=np.float64)
    assert np.array_equal(np.nan_to_num(hard.probability(similarity)).sum(-1), ~np.isnan(similarity[..., 0]))


def test_levels_that_nobody_has_take_no_patient(additive):
    one = read_prototype_records(additive[0], "survival")["0"]
    similarity = np.array(one.similarity[0], dtype=np.float64)
    before = one.nearest(similarity)
    gone = replace(one, used=np.array([False, True, True, True]))
    assert (before[before >= 0] < 2).any()
    after = gone.nearest(similarity)
    assert (after[after >= 0] >= 2).all()
    assert np.array_equal(before == -1, np.isnan(similarity[..., 0]))
    assert np.array_equal(before == -1, after == -1)


def test_prototypes_that_are_one_are_told(additive):
    one = read_prototype_records(additive[0], "survival")["0"]
    planted = np.zeros_like(one.cosine)
    planted[0, 1, 2, 5] = planted[0, 1, 5, 2] = 0.97
    planted[0, 2, 0, 1] = 0.94
    assert replace(one, cosine=planted).pairs() == {one.modalities[1]: [(2, 5, pytest.approx(0.97))]}
    assert replace(one, cosine=planted).pairs(1) == {}


def test_a_run_explained_before_gets_its_prototypes_and_keeps_its_values(additive, tmp_path):
    run, where, _ = additive
    shutil.copytree(run.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    before = [np.array(one.values) for one in read_coalitions(run)]
    for fold in ("0", "1"):
        shutil.rmtree(fold_folder(run, "survival", fold) / "prototypes")
    run.seal()
    assert read_prototype_records(run, "survival") == {}
    assert prototype_lines(run, "survival") == ["prototypes: not stored; run medfuse explain on the run"]
    after = explain_run(run, **where)
    assert all(np.array_equal(a, b.values) for a, b in zip(before, after, strict=True))
    assert len(read_prototype_records(run, "survival")) == 2
    run.verify()
    explain_run(run, data_root=tmp_path / "nowhere")  # read, not computed again


def test_tables_and_lines(additive, monkeypatch, capsys):
    run, where, _ = additive
    found = medfuse.read_prototypes(run, fold="1", count=3)
    assert set(found.exemplars.groupby(["modality", "prototype"]).size()) == {3}
    held = set(run.read("splits")["splits"][1]["held_out"])
    assert set(found.assignments.patient_id) <= held
    assert not set(found.exemplars.patient_id) & held
    assert (found.assignments.groupby(["patient_id", "modality"]).nearest.sum() == 1).all()
    total = found.terms.groupby("patient_id").term.sum() + found.constant[0]
    assert np.allclose(total, found.logit[0].loc[total.index], atol=1e-5)
    monkeypatch.setenv("MEDFUSE_STORE", str(where["store_root"]))
    who = found.assignments.patient_id.iloc[0]
    assert main(["explain", str(run.path), "--patient", who, "--data-root", str(where["data_root"])]) == 0
    said = capsys.readouterr().out
    assert "prototypes of network 00-00, fold 1 (1 of 2, each has its own)" in said
    assert "of 2 networks say the same level" in said
    assert "= constant" in said
    assert main(["explain", str(run.path), "--data-root", str(where["data_root"])]) == 0
    assert "prototypes of fold 0: 8 per modality, network 00-00 of 2; collapsed pairs:" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no fold '7'"):
        medfuse.read_prototypes(run, fold="7")
    with pytest.raises(ConfigError, match="expected a count of 1 to 8 exemplars, found 9"):
        medfuse.read_prototypes(run, count=9)


def test_the_report_names_networks_and_collapsed_pairs(additive, tmp_path):
    run = additive[0]
    said = contribution_section(run, read_evaluations(run)["survival"])
    assert "<h3>Prototypes</h3>" in said
    assert said.count("00-00, the first of 2") == 2
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("folds", "prototypes"))
    without = open_run(tmp_path / "run")
    assert "<h3>Prototypes</h3>" not in contribution_section(without, read_evaluations(without)["survival"])


def test_the_model_card_says_how_many_are_of_effect_and_whom_they_were_fitted_on(additive, tmp_path):
    run = additive[0]
    facts = read_facts(run)
    (entry,) = [e for e in model_entries(facts) if e.key == "prototypes"]
    for name, one in read_prototype_records(run, "survival").items():
        split = next(s for s in run.read("splits")["splits"] if s["name"] == name)
        fitted = len(split["train"]) - int(one.unseen.sum())
        assert f"Fold {name}: 8 per modality (4 levels x 2), network 00-00 of 2, together 100%" in entry.filled
        assert f"fitted on {fitted} patients of the training side alone, its early stopping on" in entry.filled
        for modality, number in effective_numbers(one).items():
            assert 1 <= number <= len(set(one.train_nearest[:, one.modalities.index(modality)]) - {-1})
            assert f"{modality} {number}" in entry.filled
    written = json.loads((run.path / "model_card.json").read_text())["entries"]
    assert [e["filled"] for e in written if e["key"] == "prototypes"] == [entry.filled]
    assert not any(i in entry.filled for i in one.train_ids)
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("folds", "prototypes"))
    (entry,) = [e for e in model_entries(read_facts(open_run(tmp_path / "run"))) if e.key == "prototypes"]
    assert entry.filled.startswith("The fusion has prototypes; none are stored that can be read")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("prototype_additive", "concat"))
    assert {e.key for e in model_entries(read_facts(open_run(tmp_path / "run")))} == {*MINIMUM, *ATTRIBUTES}


def test_a_run_whose_recipe_has_no_prototypes_says_so(additive, tmp_path):
    shutil.copytree(additive[0].path, tmp_path / "run", ignore=shutil.ignore_patterns("folds"))
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("prototype_additive", "concat"))
    run = open_run(tmp_path / "run")
    assert prototype_lines(run, "survival") == ["prototypes: none, the fusion of this run has no prototypes"]
    assert prototype_lines(run, "survival", patient="p000") == []
    with pytest.raises(ModelError, match="expected a run whose fusion has prototypes, found one without"):
        medfuse.read_prototypes(run)


def test_levels_in_words():
    most = float(np.finfo(np.float32).max)
    all_used = np.ones(3, dtype=bool)
    days = level_words("survival", np.array([210.4, 480.0]), all_used)
    assert days == ("event by day 210", "event from day 210 to 480", "no event by day 480")
    fewer = level_words("survival", np.array([210.4, most]), np.array([True, True, False]))
    assert fewer == ("event by day 210", "no event by day 210", "no training patient")
    values = level_words("continuous", np.array([1.23456, 7.0]), all_used)
    assert values == ("value up to 1.235", "value from 1.235 to 7", "value above 7")
    labels = level_words("multiclass", np.zeros(2), np.array([True, True, False]), classes=("A", "B"))
    assert labels == ("A", "B", "no training patient")
    assert prototype_names(2, 2) == ("1a", "1b", "2a", "2b")
    assert prototype_names(3, 1) == ("1", "2", "3")
