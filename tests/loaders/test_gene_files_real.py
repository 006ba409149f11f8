"""Every file of the shared omics folder: read as documented, or refused with a reason."""

import os
from pathlib import Path

import pytest

from medfuse.card import ModalityCard
from medfuse.errors import MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import expression, read

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "omics"
pytestmark = pytest.mark.realdata

LAML = "tcga_laml/"
TCGA = {"barcode": "tcga_patient"}
SEGMENTS = {"loader": "copy_number", "unit": "log2_ratio", "build": "GRCh37"}
SEGMENTS |= {"options": {"table": "segments", "level": "arm"}}
PEAKS = {"loader": "copy_number", "options": {"table": "lesions"}, **TCGA}
MUTATIONS = {"loader": "variants", "build": "GRCh37"}
# file -> card, and (patients, columns) then, or what the refusal says
VERDICTS = {
    "h5ad/pbmc68k_reduced_v0.5.0.h5ad": ({"loader": "expression", "unit": "zscore", "zscored_on": "all"}, (700, 765)),
    LAML + "LAML_CBS_segments.tsv.gz": (SEGMENTS | TCGA, (191, 48)),
    LAML + "TCGA.AB.3009.hg19.seg.txt": (SEGMENTS | TCGA, (1, 48)),
    LAML + "all_lesions.conf_99.txt": (PEAKS | {"unit": "gistic"}, (191, 16)),
    LAML + "amp_genes.conf_99.txt": (PEAKS | {"unit": "gistic"}, "found genes of peaks"),
    LAML + "del_genes.conf_99.txt": (PEAKS | {"unit": "gistic"}, "found genes of peaks"),
    LAML + "scores.gistic": (PEAKS | {"unit": "gistic"}, "found scores of the cohort"),
    LAML + "tcga_laml.maf.gz": (
        {**MUTATIONS, "sequenced": "tcga_laml/tcga_laml_annot.tsv#Tumor_Sample_Barcode", **TCGA},
        (200, 1241),
    ),
    LAML + "tcga_laml_annot.tsv": (
        {"loader": "tabular", "columns": {"FAB_classification": {"kind": "categorical"}}},
        (199, 1),  # one has no class
    ),
    "vcf/test-hemi.vcf": ({**MUTATIONS, "options": {"filter": "any"}}, (19, 1)),
    "vcf/test.snpeff.vcf": ({"loader": "variants", "options": {"filter": "pass_or_none"}}, (3, 1)),
    "vcf/test.vcf.gz": ({"loader": "variants"}, "found ANN and CSQ; state one as annotation"),
}


def verdict(name, card):
    try:
        settings = ModalityCard(file=name, id=card.pop("id", None), **card)
        data = read("m", settings, resolve=lambda s: DATA / s, patients=("Tumor_Sample_Barcode", ""))
    except MedfuseError as error:
        return str(error)
    return len(data.samples), len(data.columns)


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_every_real_file_is_read_or_refused_with_a_reason(name):
    card, expected = VERDICTS[name]
    found = verdict(name, dict(card))
    assert found == expected or (isinstance(expected, str) and expected in found and "; " in found), found


def test_nothing_of_the_folder_was_forgotten():
    files = {p.relative_to(DATA).as_posix() for p in DATA.rglob("*") if p.is_file()}
    assert files == {*VERDICTS, "gene_sets/h.all.v7.0.symbols.gmt"}
    found = inspect([DATA])
    assert len(found) == len(files)
    assert not any("medfuse failed on it" in one.refusal for one in found)
    assert len(expression.read_gmt(DATA / "gene_sets/h.all.v7.0.symbols.gmt")) == 50


def test_known_facts_of_the_laml_mutations():
    card = dict(VERDICTS[LAML + "tcga_laml.maf.gz"][0])
    data = read(
        "m", ModalityCard(file=LAML + "tcga_laml.maf.gz", **card), resolve=lambda s: DATA / s, patients=("", "")
    )
    names = [column.name for column in data.columns]
    counts = {
        gene: int(sum(float(sample.tokens[names.index(gene)][0]) for sample in data.samples.values()))
        for gene in ("FLT3", "DNMT3A", "NPM1", "IDH2", "TP53")
    }
    # Cancer Genome Atlas Research Network (2013), New England Journal of Medicine 368:2059-2074, table 1 and figure 1
    assert counts == {"FLT3": 52, "DNMT3A": 48, "NPM1": 33, "IDH2": 20, "TP53": 15}
