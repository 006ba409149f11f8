"""Gene tables, gene sets and plain tables: orientation, units, names that spreadsheets mangle, and refusals."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from medfuse.card import ModalityCard
from medfuse.errors import ConfigError, DataError
from medfuse.loaders import read
from medfuse.loaders._genes import read_gene_sets
from medfuse.loaders.expression import mangled_names, read_gmt
from medfuse.preprocessing import fit_preprocessing

BY_PATIENT = "id,TP53_rnaseq,EGFR_rnaseq,BRCA1_cnv\n001,1.5,2,0\n002,0.5,,1\n010,,,\n"
BY_GENE = "gene,001,002,010\nTP53,1.5,0.5,\nEGFR,2,,\n"


def loaded(folder, text=None, *, name="t.csv", patients=("id", ""), **card):
    if text is not None:
        (folder / name).write_text(text, encoding="utf-8")
    settings = {"loader": "expression", "file": name, "unit": "tpm", **card}
    return read("m", ModalityCard(**settings), resolve=lambda s: folder / s, patients=patients)


def table(data):
    """Patient -> gene -> value, None where missing."""
    return {
        patient: {
            column.name: (float(value) if observed else None)
            for column, (value, observed) in zip(data.columns, sample.tokens, strict=True)
        }
        for patient, sample in data.samples.items()
    }


EXPECTED = {"001": {"TP53": 1.5, "EGFR": 2.0}, "002": {"TP53": 0.5, "EGFR": None}}


def test_both_orientations_read_the_same_values(tmp_path):
    one = loaded(tmp_path, BY_PATIENT, columns="*_rnaseq")
    two = loaded(tmp_path, BY_GENE, orientation="genes_by_patients", id="gene")
    three = loaded(tmp_path, BY_GENE.replace("gene,", ","), orientation="genes_by_patients")  # first column unnamed
    assert table(one) == table(two) == table(three) == EXPECTED
    for data in (one, two, three):
        assert data.layout == "columns"
        assert any("1 patients have an empty row and count as absent, first 010" in w for w in data.warnings)


def test_one_file_of_several_assays_is_read_by_pattern(tmp_path):
    assert [c.name for c in loaded(tmp_path, BY_PATIENT, columns="*_cnv").columns] == ["BRCA1"]
    assert [c.name for c in loaded(tmp_path, "id,XA,XB,Y\n1,1,2,3\n", columns="X*").columns] == ["A", "B"]
    assert [c.name for c in loaded(tmp_path, "id,aa,a-x-a\n1,1,2\n", columns="a*a").columns] == ["-x-"]
    with pytest.raises(DataError, match=r"t\.csv: expected columns that match '\*_mut', found none of 3; correct"):
        loaded(tmp_path, BY_PATIENT, columns="*_mut")
    for pattern in ("TP53", "*_*"):
        with pytest.raises(ConfigError, match="a pattern of columns with one"):
            loaded(tmp_path, BY_PATIENT, columns=pattern)
    patients = loaded(
        tmp_path, "gene,p1_tumour,p1_normal\nTP53,1,9\n", orientation="genes_by_patients", columns="*_tumour"
    )
    assert table(patients) == {"p1": {"TP53": 1.0}}


@pytest.mark.parametrize(
    ("card", "unit"),
    [
        ({"unit": "tpm"}, "tpm"),
        ({"unit": "tpm", "log_base": 2}, "log2 tpm"),
        ({"unit": "counts", "log_base": 10}, "log10 counts"),
        ({"unit": "fpkm", "log_base": math.e}, "log2.71828 fpkm"),
        ({"unit": "zscore", "zscored_on": "the source's whole cohort"}, "zscore"),
    ],
)
def test_the_unit_stands_beside_every_column(tmp_path, card, unit):
    data = loaded(tmp_path, BY_PATIENT, columns="*_rnaseq", **card)
    assert {column.unit for column in data.columns} == {unit}
    seen = [w for w in data.warnings if "standardised over: the source's whole cohort" in w]
    assert len(seen) == (card["unit"] == "zscore")


def test_a_gene_table_without_a_unit_or_a_zscore_without_its_rows_is_refused():
    with pytest.raises(ValidationError, match="needs a unit"):
        ModalityCard(loader="expression", file="t.csv")
    with pytest.raises(ValidationError, match="which rows have the published z-scores seen"):
        ModalityCard(loader="expression", file="t.csv", unit="zscore")


@pytest.mark.parametrize("name", ["2-Sep", "Sep-02", "1-Mar", "2001-09-02", "44805", "2.31E+19"])
def test_names_that_a_spreadsheet_mangled_are_refused_unless_accepted(tmp_path, name):
    by_patient, by_gene = f"id,{name},TP53\n1,1,2\n2,2,3\n", f"gene,1,2\n{name},1,2\nTP53,2,3\n"
    for text, card in ((by_patient, {}), (by_gene, {"orientation": "genes_by_patients"})):
        with pytest.raises(DataError, match=r"t\.csv: expected gene symbols, found 1 .*restore .*accept_mangled"):
            loaded(tmp_path, text, **card)
        data = loaded(tmp_path, text, accept_mangled=True, **card)
        assert [c.name for c in data.columns] == [name, "TP53"]
        assert "accepted" in data.warnings[0]


def test_gene_names_that_only_look_odd_are_taken():
    assert mangled_names(["SEPT2", "MARCH1", "DEC1", "HLA-A", "7SK", "NKX2-5", "MT-ND1", "TP53", "1007_s_at"]) == []


def test_duplicated_genes_are_refused_or_averaged_as_stated(tmp_path):
    text = "gene,1,2\nTP53,1,2\nEGFR,5,5\nTP53,3,\n"
    with pytest.raises(DataError, match=r"t\.csv: expected distinct gene symbols, found 1 .*TP53.*duplicates: mean"):
        loaded(tmp_path, text, orientation="genes_by_patients")
    data = loaded(tmp_path, text, orientation="genes_by_patients", duplicates="mean")
    assert table(data) == {"1": {"TP53": 2.0, "EGFR": 5.0}, "2": {"TP53": 2.0, "EGFR": 5.0}}
    assert data.warnings == ("1 duplicated gene symbols were averaged: TP53",)


def test_a_row_without_a_gene_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv, data row 2, column 'gene': expected a gene name, found an empty"):
        loaded(tmp_path, "gene,1\nTP53,1\n,2\n", orientation="genes_by_patients")


@pytest.mark.parametrize("loader", ["expression", "tabular"])
def test_duplicated_ids_agree_or_follow_the_stated_rule(tmp_path, loader):
    cards = {"expression": {}, "tabular": {"unit": None, "columns": {"a": {}, "b": {}}}}
    card = {"loader": loader, **cards[loader]}
    same = "id,a,b\n1,1,\n2,5,6\n1,1,\n"
    assert table(loaded(tmp_path, same, **card))["1"] == {"a": 1.0, "b": None}
    differ = "id,a,b\n1,1,2\n2,5,6\n1,3,\n"
    with pytest.raises(DataError, match=r"t\.csv, data row 3: patient 1 has several rows .*column 'a'.*repeated_rows"):
        loaded(tmp_path, differ, **card)
    assert table(loaded(tmp_path, differ, repeated_rows="mean", **card))["1"] == {"a": 2.0, "b": 2.0}
    assert table(loaded(tmp_path, differ, repeated_rows="first", **card))["1"] == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("loader", ["expression", "tabular"])
def test_a_value_measured_after_index_time_is_refused(tmp_path, loader):
    cards = {"expression": {}, "tabular": {"unit": None, "columns": {"a": {}}}}
    card = {"loader": loader, "days_from_index": "day", **cards[loader]}
    good = "id,day,a\n1,0,1\n2,-30,2\n3,,3\n"
    data = loaded(tmp_path, good, **card)
    assert [c.name for c in data.columns] == ["a"]  # the day itself is no feature
    assert len(data.samples) == 3
    with pytest.raises(DataError, match=r"t\.csv, data row 2, column 'day': patient 2 was measured after index time"):
        loaded(tmp_path, good.replace("-30", "30"), **card)
    with pytest.raises(DataError, match="column 'day': expected a number"):
        loaded(tmp_path, good.replace("-30", "soon"), **card)
    with pytest.raises(DataError, match="expected a column 'day', found none"):
        loaded(tmp_path, good.replace("day", "days"), **card)


def test_rules_about_rows_of_patients_are_refused_for_columns_of_patients():
    for rule in ({"days_from_index": "day"}, {"repeated_rows": "mean"}):
        with pytest.raises(ValidationError, match="rows of genes_by_patients are genes"):
            ModalityCard(loader="expression", file="t", unit="tpm", orientation="genes_by_patients", **rule)


@pytest.mark.parametrize("loader", ["expression", "tabular"])
def test_decimal_commas_are_named_by_place_and_remedy(tmp_path, loader):
    cards = {"expression": {}, "tabular": {"unit": None, "columns": {"a": {}}}}
    with pytest.raises(DataError, match=r"data row 2, column 'a': .*a decimal comma \(1 such cells\); export with"):
        loaded(tmp_path, 'id,a\n1,1.5\n2,"1,5"\n', loader=loader, **cards[loader])
    by_gene = {"orientation": "genes_by_patients", "name": "t.tsv"}
    with pytest.raises(DataError, match=r"t\.tsv, data row 1, column '2': .*a decimal comma"):
        loaded(tmp_path, "gene\t1\t2\nTP53\t1\t1,5\n", **by_gene)


def test_a_constant_gene_is_dropped_and_listed(tmp_path):
    fitted = fit_preprocessing(loaded(tmp_path, "id,A,B,C\n1,1,0.1,\n2,2,0.1,\n3,3,0.1,\n"), ("1", "2", "3"))
    assert fitted.feature_names == ("A",)
    assert fitted.dropped == (("B", "constant in train"), ("C", "never observed in train"))


def test_a_gene_table_in_parquet_and_every_cut_of_it(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).random(size=(30, 4)), columns=list("ABCD"))
    frame.assign(id=[f"p{i}" for i in range(30)]).to_parquet(tmp_path / "t.parquet")
    data = loaded(tmp_path, name="t.parquet")
    assert table(data)["p3"]["B"] == pytest.approx(frame["B"][3], rel=1e-6)
    content = (tmp_path / "t.parquet").read_bytes()
    for cut in range(0, len(content) - 1, 97):
        (tmp_path / "t.parquet").write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"t\.parquet: expected a whole Parquet file.*fetch"):
            loaded(tmp_path, name="t.parquet")


def test_a_table_without_rows_is_refused(tmp_path):
    for card in ({}, {"loader": "tabular", "unit": None, "columns": {"A": {}}}):
        with pytest.raises(DataError, match=r"modality m: expected patients with values in t\.csv, found none"):
            loaded(tmp_path, "id,A\n", **card)


# --- gene sets ------------------------------------------------------------------------------------------------------

GMT = "ZETA\thttp://x\tTP53\tEGFR\tTP53\n\nALPHA\t\tBRCA1\t\n"


def test_gmt_names_sets_of_genes_each_once(tmp_path):
    (tmp_path / "s.gmt").write_bytes(GMT.encode("utf-8-sig").replace(b"\n", b"\r\n"))
    assert read_gmt(tmp_path / "s.gmt") == {"ZETA": ("TP53", "EGFR"), "ALPHA": ("BRCA1",)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"s\.gmt: expected gene sets, found none; .*fetch it again"),
        (b"ZETA\n", r"s\.gmt, line 1: expected a new set name.*found 1 fields.*fetch it again"),
        (b"A\tx\tTP53\nB\tx\n", r"s\.gmt, line 2: .*found 2 fields.*cut short"),
        (b"A\tx\tTP53\nB\tx\t\n", r"s\.gmt, line 2: .*found 3 fields"),
        (b"\tx\tTP53\n", r"s\.gmt, line 1"),
        (b"A\tx\tTP53\nA\tx\tEGFR\n", r"s\.gmt, line 2: .*a set name that stands twice"),
        (b"A\tx\tTP53\t2-Sep\n", r"s\.gmt, line 1: .*a spreadsheet turned into dates .*2-Sep.*fetch"),
        (b"A\tx\t\xff\xfe\n", r"s\.gmt: expected a GMT file in UTF-8"),
        (b"A TP53 EGFR\n", r"separated by tabs"),
    ],
)
def test_a_damaged_gmt_is_refused_by_line(tmp_path, content, said):
    (tmp_path / "s.gmt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_gmt(tmp_path / "s.gmt")
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, "id,TP53\n1,1\n2,2\n", gmt="s.gmt")


def test_gene_sets_stand_in_the_columns_of_a_csv_too(tmp_path):
    (tmp_path / "s.csv").write_text("CYCLE,OTHER\nTP53,EGFR\nEGFR,\nTP53,\n,\n")
    assert loaded(tmp_path, "id,TP53,EGFR\n1,1,2\n2,2,2\n", gmt="s.csv").gene_sets == {
        "CYCLE": ("TP53", "EGFR"),
        "OTHER": ("EGFR",),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"line 1: expected a column per gene set"),
        (b"A,A\nTP53,EGFR\n", r"line 1: .*a name of its own"),
        (b"A,\nTP53,EGFR\n", r"line 1: .*a name of its own"),
        (b"A,B\nTP53,EGFR\nMYC\n", r"line 3: .*rows of 2 fields"),
        (b"A,B\nTP53,\n", r"found none in column 2"),
        (b"A,B\n", r"found none in column 1"),
        (b"A\n2-Sep\n", r"expected gene symbols.*2-Sep"),
        (b"A\n\xff\xfe\n", r"CSV in UTF-8"),
        (b'A\n"TP53\n', r"CSV in UTF-8"),
    ],
)
def test_damaged_gene_sets_in_csv_are_refused(tmp_path, content, said):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, "id,TP53\n1,1\n2,2\n", gmt="s.csv")


def test_gene_sets_are_cut_to_the_table_and_empty_ones_listed(tmp_path):
    (tmp_path / "s.gmt").write_text("B\tx\tTP53\tABSENT\nNONE\tx\tABSENT\n")
    data = loaded(tmp_path, "id,TP53,EGFR\n1,1,2\n2,2,2\n", gmt="s.gmt")
    assert data.gene_sets == {"B": ("TP53",)}
    assert data.warnings == ("1 gene sets of s.gmt without a gene of the table were left out: NONE",)
    with pytest.raises(DataError, match=r"s\.gmt: expected gene sets that share genes .*the same kind of gene names"):
        loaded(tmp_path, "id,ENSG1\n1,1\n2,2\n", gmt="s.gmt")


@pytest.mark.realdata
def test_the_hallmark_sets_are_read():
    root = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    found = read_gmt(next((root / "omics" / "gene_sets").glob("*.gmt")))
    assert len(found) == 50
    assert all(name.startswith("HALLMARK_") and 30 < len(genes) < 250 for name, genes in found.items())
    published = read_gene_sets(root / "tcga_survpath" / "pathways" / "combine_signatures.csv")
    assert len(published) == 331
    assert len({gene for genes in published.values() for gene in genes}) == 4999
