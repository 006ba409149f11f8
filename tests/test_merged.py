"""Members of two runs that never met, put together on disk and applied to patients."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medfuse.cli import main
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.errors import CohortError, StoreError
from medfuse.merging import merge_folders, predict_merged
from medfuse.training import load_member
from medfuse.training.fold import chunks, speak
from medfuse.workflow import predict, train

LEGO = ("train.epochs=2", "model.fusion={name: lego, latents: 2}", "baselines=[kaplan_meier]", "splits.folds=2")
OUTCOME = "distant_metastasis"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("merged")


@pytest.fixture(scope="module")
def members(place):
    """The first member of a run of each modality."""
    for name in ("clinical", "expression"):
        settings = (*LEGO, f"modalities=[{name}]")
        train("transbig", recipe="smoke", overrides=settings, store_root=place / "store", out=place / name)
    return [next((place / name / "folds" / "0" / "members").iterdir()) for name in ("clinical", "expression")]


@pytest.fixture(scope="module")
def merged(place, members):
    assert main(["merge", *map(str, members), "--out", str(place / "all")]) == 0
    return place / "all"


def test_predict_takes_a_merged_member_and_says_what_the_member_says(place, merged, monkeypatch):
    monkeypatch.setenv("MEDFUSE_STORE", str(place / "store"))
    out = place / "said.csv"
    assert main(["predict", str(merged), "--cohort", "transbig", "--out", str(out)]) == 0
    table = pd.read_csv(out)
    cohort = read_cohort(read_card("transbig"))
    data = load_modalities(cohort, store_root=place / "store")
    member = load_member(merged)
    link = speak(member, chunks(member, data, cohort.patient_ids))[OUTCOME]
    curves = table.filter(like="survival@")
    assert list(table.patient_id.astype(str)) == list(cohort.patient_ids)
    assert list(curves.columns) == [f"survival@{t:g}" for t in member.heads[OUTCOME].time_grid]
    np.testing.assert_allclose(curves, np.exp(-np.exp(link)), atol=1e-6)
    assert (np.diff(curves, axis=1) <= 1e-12).all()
    assert set(table.modalities) == {"clinical+expression"}
    assert set(table.seen_in_training) == {"unknown: a merged member keeps no ids"}


def test_both_runs_speak_and_one_without_the_other(place, merged):
    """What a patient lacks is absent: the merged prediction of one modality is that modality's alone."""
    card = read_card("transbig")
    both = predict_merged(merged, card, store_root=place / "store").risk_score
    without = {}
    for name in ("clinical", "expression"):
        left = {name: card.modalities[name]}
        one = predict_merged(merged, card.model_copy(update={"modalities": left}), store_root=place / "store")
        assert set(one.modalities) == {name}
        without[name] = one.risk_score
    assert both.corr(without["clinical"]) > 0.2
    assert both.corr(without["expression"]) > 0.2
    assert without["clinical"].corr(without["expression"]) < 0.99


def test_a_card_of_other_columns_is_refused(place, merged):
    card = read_card("transbig")
    clinical = card.modalities["clinical"]
    fewer = clinical.model_copy(update={"columns": {k: v for k, v in clinical.columns.items() if k != "age"}})
    other = card.model_copy(update={"modalities": {**card.modalities, "clinical": fewer}})
    with pytest.raises(CohortError, match="found no 'age'"):
        predict_merged(merged, other, store_root=place / "store")


def test_members_copied_out_of_their_runs_can_be_merged_and_are_no_reader(place, members):
    copies = [shutil.copytree(member, place / "copies" / str(k)) for k, member in enumerate(members)]
    merge_folders(copies, out=place / "deaf")
    with pytest.raises(StoreError, match=r"does not know the columns of clinical, expression"):
        predict(place / "deaf", "transbig", store_root=place / "store", out=place / "no.csv")
    assert not (place / "no.csv").exists()
    with pytest.raises(StoreError, match="does not know"):  # of a run, but alone: the run itself is what predicts
        predict(members[0], "transbig", store_root=place / "store", out=place / "no.csv")


def test_runs_whose_cards_mean_different_outcomes_are_not_merged(place, members):
    other = shutil.copytree(place / "expression", place / "other")
    card = other / "card.md"
    start, rest = card.read_text().split("    kind: survival\n")
    card.write_text(start + "    kind: binary\n    column: e.tdm\n    classes: ['0', '1']\n" + rest)
    moved = next((other / "folds" / "0" / "members").iterdir())
    with pytest.raises(CohortError, match=rf"outcome '{OUTCOME}': expected survival"):
        merge_folders([members[0], moved], out=place / "mixed")
    assert not (place / "mixed").exists()


def test_runs_that_list_the_outcomes_in_another_order_keep_them_apart(place):
    """What is said of patients with one modality is what that block says, of every outcome, under its classes."""
    text = (Path(__file__).parents[1] / "data_cards" / "transbig.md").read_text()
    text = text.replace("      er: {kind: categorical, levels: [negative, positive]}\n", "").replace("[er, ", "[")
    start, rest = text.split("outcomes:\n")
    survival, rest = rest.split("modalities:\n", maxsplit=1)
    binary = "  receptor: {kind: binary, column: er, classes: [negative, positive], description: x}\n"
    cards = []
    for name, outcomes in (("clinical", survival + binary), ("expression", binary + survival)):
        card = place / f"{name}.md"
        card.write_text(f"{start}outcomes:\n{outcomes}modalities:\n{rest}".replace("name: transbig", f"name: {name}"))
        listed = f"outcomes=[{', '.join(read_card(card).outcomes)}]"
        settings = (*LEGO, listed, f"modalities=[{name}]")
        train(card, recipe="smoke", overrides=settings, store_root=place / "store", out=place / f"two-{name}")
        cards.append(read_card(card))
    folders = [next((place / f"two-{c.name}" / "folds" / "0" / "members").iterdir()) for c in cards]
    assert [next(iter(load_member(folder).heads)) for folder in folders] == [OUTCOME, "receptor"]
    merge_folders(folders, out=place / "two", weights=[1, 1])
    for card, folder in zip(cards, folders, strict=True):
        left = card.model_copy(update={"modalities": {card.name: card.modalities[card.name]}})
        table = predict_merged(place / "two", left, store_root=place / "store")
        member, cohort = load_member(folder), read_cohort(left)
        own = speak(member, chunks(member, load_modalities(cohort, store_root=place / "store"), cohort.patient_ids))
        for outcome, column, link in (
            (OUTCOME, "risk_score", own[OUTCOME].mean(axis=1)),
            ("receptor", "probability@positive", np.diff(own["receptor"], axis=1).ravel()),
        ):
            said = table.loc[table.outcome == outcome, column]
            assert said.corr(pd.Series(link, index=said.index), method="spearman") > 0.999, (card.name, outcome)
