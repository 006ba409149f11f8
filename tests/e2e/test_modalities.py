"""Gene sets and stains through a whole run: train, predict, and again from the run directory alone."""

import made_up
import numpy as np
import pandas as pd
import pytest

from medfuse.cli import main
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.training import load_fold
from medfuse.workflow import predict, train

PATHWAYS = "model.encoders={genes: {name: pathway, least_genes: 2, hidden: 4}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("modalities")


@pytest.fixture(scope="module")
def run(place):
    card = made_up.write(place / "data", n=120)
    return train(
        card,
        recipe="smoke",
        overrides=(*made_up.QUICK, PATHWAYS, "baselines=[]", "train.unimodal=true"),
        data_root=place / "data",
        store_root=place / "store",
        out=place / "run",
    )


def test_gene_sets_of_the_card_reach_the_encoder_and_what_was_left_out_is_listed(run):
    warnings = run.read("data")["modalities"]["genes"]["warnings"]
    assert any("1 gene sets of sets.gmt without a gene of the table were left out: ELSEWHERE" in w for w in warnings)
    assert "sets.gmt" in run.read("data")["modalities"]["genes"]["sources"]
    for split in run.read("splits")["splits"]:
        for member in load_fold(run.fold_folder(split["name"])).members:
            if member.expert not in ("", "genes"):
                continue
            model = member.build()
            encoder = model.encoders[model.modalities.index("genes")]
            assert encoder.pathway_names == ("ALPHA", "ZETA")
            shape = member.shapes["genes"]
            assert [shape.names[i] for i in encoder.index[1][encoder.real[1]]] == ["G0", "G1", "G2", "G3"]
    notes = run.read("metrics")["outcomes"]["survival"]["models"]["medfuse"]["notes"]
    assert any("genes: 1 pathways with fewer than 2 genes left out: CONSTANT" in note for note in notes)


def test_predictions_need_no_gmt_file_and_are_those_of_the_run(run, place, tmp_path):
    before = pd.read_csv(
        predict(
            run,
            place / "data" / "card.md",
            data_root=place / "data",
            store_root=place / "store",
            out=tmp_path / "1.csv",
        )
    )
    (place / "data" / "sets.gmt").rename(place / "data" / "elsewhere.gmt")
    try:
        after = pd.read_csv(
            predict(
                str(run.path),
                place / "data" / "card.md",
                data_root=place / "data",
                store_root=tmp_path / "empty",
                out=tmp_path / "2.csv",
            )
        )
    finally:
        (place / "data" / "elsewhere.gmt").rename(place / "data" / "sets.gmt")
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert before.risk_score.nunique() > 70


def test_genes_that_changed_their_columns_are_refused(run, place, tmp_path, capsys):
    folder = tmp_path / "other"
    card = made_up.write(folder)
    (folder / "genes.csv").write_text((folder / "genes.csv").read_text().replace("g_G3,", "g_TP53,", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
        words = ["predict", str(run.path), "--cohort", str(card), "--data-root", str(folder)]
        assert main([*words, "--out", str(tmp_path / "p.csv")]) == 2
    assert "modality genes: expected the run's 28 columns, found no 'G3'" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_a_gmt_file_that_changed_makes_another_run(run, place, tmp_path):
    """Same folder of data, other gene sets: the store keeps both, and the run would not resume."""
    cohort = read_cohort(read_card(place / "data" / "card.md"), data_root=place / "data")
    one = load_modalities(cohort, names=["genes"], store_root=tmp_path)["genes"]
    text = (place / "data" / "sets.gmt").read_text()
    try:
        (place / "data" / "sets.gmt").write_text(text.replace("G7", "G8"))
        two = load_modalities(cohort, names=["genes"], store_root=tmp_path)["genes"]
    finally:
        (place / "data" / "sets.gmt").write_text(text)
    assert one.key != two.key
    assert one.gene_sets["ALPHA"] == ("G4", "G5", "G6", "G7")
    assert two.gene_sets["ALPHA"] == ("G4", "G5", "G6", "G8")


def test_an_absent_stain_of_a_present_modality_is_an_absent_token(run, place):
    """A patient without CD8 has two tokens; the others' padding, and what stands in it, says nothing."""
    cohort = read_cohort(read_card(place / "data" / "card.md"), data_root=place / "data")
    data = load_modalities(cohort, names=["stains"], store_root=place / "store")["stains"]
    assert data.identities == made_up.STAINS
    stored = {i: tuple(int(k) for k in s.position[:, 0]) for i, s in data.samples.items()}
    assert stored["p001"] == (0,)
    assert stored["p002"] == (0, 1)
    assert stored["p004"] == (0, 1, 2)
    assert "p000" not in stored  # no stain at all: the modality is absent
    fold = load_fold(run.fold_folder(run.read("splits")["splits"][0]["name"]))
    from medfuse.training import predict_fold

    together = predict_fold(fold, {"stains": data}, ("p004", "p001", "p000"))["survival"]
    assert together.present[:, fold.modalities.index("stains")].tolist() == [True, True, False]
    for row, patient in enumerate(("p004", "p001", "p000")):
        alone = predict_fold(fold, {"stains": data}, (patient,))["survival"]
        np.testing.assert_allclose(alone.risk_score[0], together.risk_score[row], atol=1e-6)


def test_a_run_of_prime_reads_the_prime_modality_alone_where_it_is_there(tmp_path):
    """Through members, ensemble and recalibration: what else a patient has moves no number of the prediction."""
    here = made_up.write(tmp_path / "here")
    words = (*made_up.QUICK, "model.fusion={name: prime, prime: clinical, code: 4}", "baselines=[]")
    places = {"data_root": here.parent, "store_root": tmp_path / "store"}
    run = train(here, recipe="smoke", overrides=words, out=tmp_path / "run", **places)
    there = made_up.write(tmp_path / "there", n=30, seed=1, prefix="q")
    found = []
    for keep in (30, 1):  # one patient must have a modality, or the card is refused
        table = (there.parent / "genes.csv").read_text().splitlines()
        (there.parent / "genes.csv").write_text("\n".join(table[: 1 + keep]) + "\n")
        out = predict(run, there, data_root=there.parent, store_root=tmp_path / str(keep), out=tmp_path / f"{keep}.csv")
        found.append(pd.read_csv(out))
    assert (found[0].modalities != found[1].modalities).sum() > 20
    columns = [c for c in found[0] if c.startswith(("risk", "survival@"))]
    pd.testing.assert_frame_equal(found[0][columns], found[1][columns], check_exact=True)
    assert found[0].risk_score.nunique() > 20


def test_a_modality_of_one_patient_ends_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
    card = made_up.write(tmp_path, n=60, outcomes=("survival",))
    genes = tmp_path / "genes.csv"
    genes.write_text("\n".join(genes.read_text().splitlines()[:2]) + "\n")
    asked = ["train", "--cohort", str(card), "--recipe", "smoke", "--data-root", str(tmp_path)]
    assert main([*asked, "--out", str(tmp_path / "run")]) != 0
    said = capsys.readouterr().err
    assert "modality genes: expected" in said
    assert "leave it out of the recipe's modalities" in said
    assert "training patients" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
