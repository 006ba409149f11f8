"""Mutations from MAF and VCF: what counts as mutated, who counts as sequenced, and what is refused by line."""

import gzip

import numpy as np
import pytest

from medfuse.card import ModalityCard
from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import read, read_files, variants
from medfuse.loaders._write_variants import write_maf, write_vcf

ALL = {"sequenced": "with_variants"}


def loaded(folder, name, *, options=None, **card):
    settings = {"loader": "variants", "file": name, "options": options or {}, **card}
    return read("m", ModalityCard(**settings), resolve=lambda s: folder / s, patients=("id", ""))


def table(data):
    """Patient -> column -> value, None where unknown."""
    return {
        patient: {
            column.name: (round(float(value), 6) if observed else None)
            for column, (value, observed) in zip(data.columns, sample.tokens, strict=True)
        }
        for patient, sample in data.samples.items()
    }


MAF = "Hugo_Symbol\tNCBI_Build\tChromosome\tStart_Position\tVariant_Classification\tReference_Allele\t"
MAF += "Tumor_Seq_Allele2\tTumor_Sample_Barcode\tFILTER\tt_alt_count\tt_ref_count\n"


def maf(folder, *rows, head=MAF, name="v.maf"):
    (folder / name).write_text(head + "".join("\t".join(row) + "\n" for row in rows))
    return name


def row(gene="TP53", *, sample="p1", kind="Missense_Mutation", at="100", alt="T", said="PASS", reads=("40", "60")):
    return (gene, "GRCh38", "1", at, kind, "C", alt, sample, said, *reads)


# --- MAF --------------------------------------------------------------------------------------------------------------


def test_each_value_of_a_maf_is_what_was_asked_for(tmp_path):
    name = maf(
        tmp_path,
        row(),
        row(kind="Frame_Shift_Del", at="200", reads=("90", "10")),
        row(kind="Silent", at="300"),  # changes no protein
        row("EGFR", sample="p2", said="panel_of_normals"),  # did not pass
        row("KRAS", sample="p2", kind="In_Frame_Del", reads=(".", ".")),
        row("KRAS", sample="p2", kind="In_Frame_Del", reads=(".", ".")),  # the same once more
    )
    kinds = ["mutated", "count", "truncating", "missense", "other", "vaf"]
    data = loaded(tmp_path, name, options={"values": kinds}, **ALL)
    none = {"KRAS": 0, "KRAS:count": 0, "KRAS:truncating": 0, "KRAS:missense": 0, "KRAS:other": 0, "KRAS:vaf": None}
    hit = {"TP53": 1, "TP53:count": 2, "TP53:truncating": 1, "TP53:missense": 1, "TP53:other": 0, "TP53:vaf": 0.9}
    assert table(data)["p1"] == none | hit
    assert table(data)["p2"]["KRAS:other"] == table(data)["p2"]["KRAS:count"] == 1
    assert table(data)["p2"]["KRAS:vaf"] is None
    said = " ".join(data.warnings)
    assert "1 variants were left out: their FILTER is not PASS" in said
    assert "1 variants were left out: silent or not coding" in said
    assert "1 rows were left out: the same variant of the same sample again" in said
    loose = loaded(tmp_path, name, options={"filter": "any", "silent": "keep"}, **ALL)
    assert table(loose)["p2"] == {"EGFR": 1, "KRAS": 1, "TP53": 0}


def test_absence_is_zero_only_where_it_was_looked_for(tmp_path):
    name = maf(tmp_path, row(), row("EGFR", sample="p3"))
    with pytest.raises(ConfigError, match="state sequenced: FILE#COLUMN of all who were sequenced"):
        loaded(tmp_path, name)
    (tmp_path / "who.csv").write_text("id\np1\np2\np3\n")
    listed = loaded(tmp_path, name, sequenced="who.csv#id")
    assert table(listed)["p2"] == {"EGFR": 0, "TP53": 0}
    assert set(loaded(tmp_path, name, **ALL).samples) == {"p1", "p3"}
    (tmp_path / "who.csv").write_text("id\np1\np2\n")
    with pytest.raises(DataError, match=r"who\.csv: expected everyone with variants .*found 1 patients of v\.maf"):
        loaded(tmp_path, name, sequenced="who.csv#id")
    with pytest.raises(ConfigError, match="FILE#COLUMN or with_variants"):
        loaded(tmp_path, name, sequenced="who.csv")


def test_a_panel_keeps_its_genes_and_gene_sets_count_their_mutated_ones(tmp_path):
    (tmp_path / "s.gmt").write_text("CYCLE\tx\tTP53\tEGFR\nNONE\tx\tABSENT\n")
    name = maf(tmp_path, row(), row("EGFR", at="7"), row("ZNF1"))
    data = loaded(tmp_path, name, gmt="s.gmt", options={"genes": ["TP53", "EGFR", "KRAS"]}, **ALL)
    assert table(data)["p1"] == {"TP53": 1, "EGFR": 1, "KRAS": 0, "burden:CYCLE": 2}
    assert any("1 genes with variants are not in the card's list" in w for w in data.warnings)
    assert data.gene_sets == {"CYCLE": ("TP53", "EGFR")}


def test_samples_of_one_patient_are_joined_by_the_stated_rule(tmp_path):
    one, two = "TCGA-AB-2803-01A-01W", "TCGA-AB-2803-02A"
    name = maf(tmp_path, row(sample=one), row(sample=two), row("EGFR", sample=two))
    data = loaded(tmp_path, name, barcode="tcga_patient", options={"values": ["count"]}, **ALL)
    assert table(data) == {"TCGA-AB-2803": {"EGFR:count": 1, "TP53:count": 1}}  # one variant in two samples is one
    for sample, said in (("TCGA-AB-2803-11A", r"normal tissue \(sample type 11\)"), ("p1", "a TCGA barcode")):
        name = maf(tmp_path, row(sample=sample))
        with pytest.raises(DataError, match=said):
            loaded(tmp_path, name, barcode="tcga_patient", **ALL)


def edited(old, new, *, count=1):
    return lambda text: text.replace(old, new, count)


@pytest.mark.parametrize(
    ("edit", "card", "said"),
    [
        (lambda text: "", {}, "expected a MAF with hugo_symbol"),
        (edited("Hugo_Symbol", "Gene"), {}, "found no column hugo_symbol"),
        (edited("NCBI_Build", "FILTER"), {}, "a column that stands twice"),
        (lambda text: text[:-9], {}, r"v\.maf, line 3: expected 11 cells as in the header, found 9.*cut short"),
        (edited("PASS", "PASS\tx"), {}, "line 2: expected 11 cells as in the header, found 12"),
        (edited("Missense_Mutation", "Missense"), {}, "line 2: expected a Variant_Classification"),
        (edited("p1", ""), {}, "line 2: expected a Tumor_Sample_Barcode, found an empty cell"),
        (edited("GRCh38", "GRCh37"), {}, "expected one genome build, found GRCh37, GRCh38"),
        (edited("GRCh38", "hg19", count=-1), {"build": "GRCh38"}, "expected genome build GRCh38 .*found GRCh37"),
        (edited("100", "249000000"), {"build": "GRCh38"}, "beyond the end of chromosome 1 .*would fit GRCh37"),
        (edited("TP53", "2-Sep"), {}, r"a spreadsheet turned into dates .*once SEPTIN2.*accept_mangled"),
        (edited("\t40\t", "\tmany\t"), {}, "line 2: expected numbers of reads"),
        (edited("\t40\t", "\t-40\t"), {}, "line 2: expected an allele fraction from 0 to 1"),
        (edited("TP53", "TP\udcff3"), {}, "expected a MAF in UTF-8"),
        (edited("", ""), {"options": {"vaf": {"column": "share", "unit": "percent"}}}, "a column 'share'"),
    ],
)
def test_a_broken_maf_is_refused_by_line(tmp_path, edit, card, said):
    name = maf(tmp_path, row(), row("EGFR", sample="p2"))
    assert set(loaded(tmp_path, name, **ALL).samples) == {"p1", "p2"}
    text = edit((tmp_path / name).read_text())
    (tmp_path / name).write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, name, **ALL, **card)


@pytest.mark.parametrize(
    "options",
    [{"value": ["mutated"]}, {"values": ["vafs"]}, {"values": []}, {"filter": "soft"}, {"vaf": "x"}, {"burden": True}],
)
def test_options_that_are_not_known_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match="modality m, options"):
        loaded(tmp_path, maf(tmp_path, row()), options=options, **ALL)


# --- VCF --------------------------------------------------------------------------------------------------------------

HEAD = """##fileformat=VCFv4.2
##reference=GRCh38
##contig=<ID=chr1,length=248956422>
##INFO=<ID=ANN,Number=.,Type=String,Description="x">
##FORMAT=<ID=GT,Number=1,Type=String,Description="x">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ta\tb\tc
"""


def line(alt="T", info="ANN=T|missense_variant|M|TP53|E", gt=("0/1", "0/0", "0/0"), *, at=100, said="PASS", keys="GT"):
    return "\t".join(["chr1", str(at), ".", "C", alt, "50", said, info, keys, *gt]) + "\n"


def vcf(folder, *lines, head=HEAD, name="v.vcf"):
    (folder / name).write_text(head + "".join(lines))
    return name


def test_a_vcf_says_who_carries_what(tmp_path):
    name = vcf(
        tmp_path,
        line(gt=("0/1:30,70", "0|0:1,0", "./.:."), keys="GT:AD"),
        line("T,G", "ANN=T|synonymous_variant||EGFR|E,G|stop_gained||EGFR|E", ("1/1", "0/2", "0/0"), at=200),
        line("*", "ANN=*|stop_gained||KRAS|E", ("1/1", "1/1", "1/1"), at=300),  # a deletion above it, no allele
        line(info="ANN=T|missense_variant||MYC|E", gt=("1/1", "0/0", "0/0"), at=400, said="q10"),
        line(info="ANN=T|intergenic_region||A-B|E", gt=("1/1", "0/0", "0/0"), at=500),
    )
    data = loaded(tmp_path, name, options={"values": ["mutated", "vaf", "truncating"]})
    found = table(data)
    assert [c.name for c in data.columns if ":" not in c.name] == ["EGFR", "TP53"]
    assert found["a"] == {"TP53": 1, "TP53:vaf": 0.7, "TP53:truncating": 0} | dict.fromkeys(
        ("EGFR", "EGFR:truncating"), 0
    ) | {"EGFR:vaf": None}
    assert found["b"]["EGFR"] == found["b"]["EGFR:truncating"] == 1
    assert found["c"]["TP53"] is None  # not called is not the reference
    assert found["c"]["EGFR"] == 0
    as_reference = loaded(tmp_path, name, options={"uncalled": "reference"})
    assert table(as_reference)["c"] == {"EGFR": 0, "TP53": 0}
    assert set(loaded(tmp_path, name, columns="*").samples) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("head", "info", "kind"),
    [
        ("ANN", "ANN=T|missense_variant&splice_region_variant|M|TP53|E", "missense"),
        ("ANN", "ANN=T|intron_variant||TP53|E,T|frameshift_variant||TP53|E", "truncating"),
        ("EFF", "EFF=NON_SYNONYMOUS_CODING(MODERATE||||9|TP53|p|C|E|1)", "missense"),
        ("EFF", "EFF=INTRON(M|||||TP53|x),STOP_GAINED(HIGH|||||TP53|p)", "truncating"),
        ('CSQ,Number=.,Description="Format: Allele|Consequence|SYMBOL">', "CSQ=T|inframe_deletion|TP53", "other"),
    ],
)
def test_every_annotation_says_gene_and_kind(tmp_path, head, info, kind):
    declared = HEAD.replace('ID=ANN,Number=.,Type=String,Description="x">', f"ID={head}" + "," * (len(head) == 3))
    name = vcf(tmp_path, line(info=info), head=declared)
    data = loaded(tmp_path, name, options={"values": ["truncating", "missense", "other"]})
    kinds = {f"TP53:{k}": float(k == kind) for k in ("truncating", "missense", "other")}
    assert table(data)["a"] == kinds
    assert set(table(data)["b"].values()) == {0}


def test_regions_name_genes_where_nothing_is_annotated(tmp_path):
    (tmp_path / "genes.csv").write_text("gene,chromosome,start,end\nTP53,1,50,150\nEGFR,1,190,300\n")
    name = vcf(tmp_path, line(info="."), line(info=".", gt=("0/0", "0/1", "0/0"), at=190), line(info=".", at=900))
    data = loaded(tmp_path, name, regions="genes.csv", build="GRCh38")
    assert table(data) == {
        "a": {"TP53": 1, "EGFR": 0},
        "b": {"TP53": 0, "EGFR": 1},
        "c": {"TP53": 0, "EGFR": 0},
    }
    with pytest.raises(ConfigError, match="need the card's build"):
        loaded(tmp_path, name, regions="genes.csv")
    with pytest.raises(ConfigError, match="one annotation of genes, found none; annotate the file with snpEff or VEP"):
        loaded(tmp_path, vcf(tmp_path, line(info="."), head=HEAD.replace("ID=ANN", "ID=AAA")))
    with pytest.raises(ConfigError, match="regions say no class of a variant"):
        loaded(tmp_path, name, regions="genes.csv", build="GRCh38", options={"values": ["missense"]})
    (tmp_path / "genes.csv").write_text("gene,chromosome,start,end\nTP53,1,150,50\n")
    with pytest.raises(DataError, match=r"genes\.csv, data row 1: expected a chromosome"):
        loaded(tmp_path, name, regions="genes.csv", build="GRCh38")


def test_one_file_per_patient(tmp_path):
    files = {}
    for patient, dose in (("p1", 1), ("p2", 0)):
        path = tmp_path / f"{patient}.vcf.gz"
        write_vcf(path, [[dose], [2]], samples=["TUMOUR"], genes=["TP53", "KRAS"], kinds=["missense", "truncating"])
        files[patient] = (path,)
    card = ModalityCard(loader="variants", path="{patient_id}.vcf.gz")
    data = read_files("m", card, resolve=lambda s: tmp_path / s, files=files)
    assert table(data) == {"p1": {"KRAS": 1, "TP53": 1}, "p2": {"KRAS": 1, "TP53": 0}}
    with pytest.raises(DataError, match="patient p1: expected one file, found 2; narrow the card's path"):
        read_files("m", card, resolve=lambda s: tmp_path / s, files={"p1": files["p1"] * 2})
    both = tmp_path / "both.vcf"
    write_vcf(both, [[1, 0]], samples=["TUMOUR", "NORMAL"], genes=["TP53"], kinds=["missense"])
    with pytest.raises(DataError, match="expected one sample, found 2; name the patient's tumour as the option sample"):
        read_files("m", card, resolve=lambda s: tmp_path / s, files={"p1": (both,)})
    chosen = card.model_copy(update={"options": {"sample": "TUMOUR"}})
    data = read_files("m", chosen, resolve=lambda s: tmp_path / s, files={"p1": (both,)})
    assert table(data) == {"p1": {"TP53": 1}}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text[20:], "expected a MAF"),
        (edited("#CHROM\tPOS", "#CHROM\tPLACE"), "expected the line #CHROM POS ID"),
        (edited("\tb\tc", "\ta\tc"), "expected distinct sample names"),
        (edited("\t0/0\n", "\n"), "line 7: expected 12 cells as in the header, found 11"),
        (edited("0/1", "0/1\t0/1"), "line 7: expected 12 cells as in the header, found 13"),
        (lambda text: text[:-4], "expected an end of line behind the last record"),
        (edited("chr1\t100", "chr1\tx"), "line 7: expected a position and alleles"),
        (edited("\tC\tT\t", "\t\tT\t"), "line 7: expected a position and alleles"),
        (edited("\tC\tT\t", "\tC\tT,\t"), "line 7: expected a position and alleles"),
        (edited("0/1", "0/7"), "line 7: expected genotypes of the record's alleles"),
        (edited("0/1", "het"), "line 7: expected genotypes of the record's alleles"),
        (edited("\tGT\t", "\tDP\t"), "genotypes .GT first in FORMAT., found none; state genotype: all_records"),
        (edited("PASS", "."), "filters were applied .*found 1 with '.'; state filter: pass_or_none"),
        (edited("ANN=T|missense_variant|M|TP53", "ANN=T|missense_variant|M|1-Mar"), "spreadsheet turned into dates"),
        (edited("GRCh38\n##contig=<ID=chr1,length=248956422>", "GRCh37"), "build GRCh38 .*found GRCh37"),
        (edited("chr1\t100", "chr1\t249000000"), "beyond the end of chromosome 1"),
        (edited("TP53", "TP\udcff3"), "expected a VCF in UTF-8"),
    ],
)
def test_a_broken_vcf_is_refused_by_line(tmp_path, edit, said):
    name = vcf(tmp_path, line())
    assert table(loaded(tmp_path, name, build="GRCh38"))["a"] == {"TP53": 1}
    text = edit((tmp_path / name).read_text())
    (tmp_path / name).write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(MedfuseError, match=said):
        loaded(tmp_path, name, build="GRCh38", sequenced="with_variants")


def test_several_alleles_need_annotations_that_name_theirs(tmp_path):
    name = vcf(tmp_path, line("T,G", "ANN=|missense_variant||TP53|E"))
    with pytest.raises(DataError, match=r"line 7: expected annotations that name their allele.*bcftools norm"):
        loaded(tmp_path, name)


def test_a_cut_bgzip_is_refused_and_a_whole_one_read(tmp_path):
    content = (tmp_path / vcf(tmp_path, line())).read_bytes()
    packed = gzip.compress(content)
    # a block of BGZF is a gzip member with an extra field; the end mark is an empty one
    import zlib

    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = raw.compress(content) + raw.flush()
    size = len(body) + 25
    block = bytes.fromhex("1f8b08040000000000ff0600424302") + b"\0" + size.to_bytes(2, "little") + body
    block += zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    end = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
    for good in (packed, block + end):
        (tmp_path / "w.vcf.gz").write_bytes(good)
        assert table(loaded(tmp_path, "w.vcf.gz"))["a"] == {"TP53": 1}
    for bad in (packed[:-4], packed[: len(packed) // 2], block, block[:-3]):
        (tmp_path / "w.vcf.gz").write_bytes(bad)
        with pytest.raises(DataError, match=r"end mark of a bgzip|whole gzip"):
            loaded(tmp_path, "w.vcf.gz")


# --- writing and inspecting -------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    write_maf(tmp_path / "a.maf.gz", samples=["p1"], genes=["TP53"], classes=["Silent"], vaf=[0.25])
    options = {"values": ["mutated", "vaf"], "silent": "keep"}
    assert table(loaded(tmp_path, "a.maf.gz", options=options, **ALL)) == {"p1": {"TP53": 1, "TP53:vaf": 0.25}}
    doses = np.array([[0, 1, 2], [-1, 0, 1]])
    write_vcf(tmp_path / "b.vcf", doses, samples=["x", "y", "z"], genes=["A1", "B1"], kinds=["missense", "other"])
    assert table(loaded(tmp_path, "b.vcf", build="GRCh38")) == {
        "x": {"A1": 0, "B1": None},
        "y": {"A1": 1, "B1": 0},
        "z": {"A1": 1, "B1": 1},
    }
    with pytest.raises(DataError, match="expected classes of the MAF format"):
        write_maf(tmp_path / "c.maf", samples=["p"], genes=["A"], classes=["bad"])
    with pytest.raises(DataError, match="expected genotypes"):
        write_vcf(tmp_path / "c.vcf", [[3]], samples=["x"], genes=["A1"], kinds=["missense"])


def test_inspect_says_what_is_there_and_no_name_of_a_sample(tmp_path):
    vcf(tmp_path, line(), head=HEAD.replace("\ta\tb\tc", "\tDOE^JOHN\tb\tc"))
    maf(tmp_path, row(sample="DOE^JOHN"), row("EGFR", sample="p2"))
    found = inspect([tmp_path])
    assert [one.loader for one in found] == ["variants", "variants"]
    assert [one.kind for one in found] == ["variants (MAF)", "variants (VCF)"]
    assert found[0].holds["samples"] == 2
    assert found[1].holds["build"] == "GRCh38"
    assert "DOE" not in str([one.to_dict() for one in found])
    assert "sample names in the header" in found[1].identifying[0]
    assert variants.identifying([tmp_path / "v.maf"])[0].kind == "id"


def test_a_file_of_two_patients_is_refused(tmp_path):
    from medfuse.card import CohortCard
    from medfuse.cohort import read_cohort
    from medfuse.extraction import patient_files

    content = {
        "name": "example",
        "title": "Example",
        "governance": dict.fromkeys(("licence", "source", "citation", "consent", "deidentification"), "none"),
        "patients": {"file": "patients.csv", "id": "id"},
        "outcomes": {
            "os": {
                "kind": "survival",
                "time": "days",
                "unit": "days",
                "event": "died",
                "event_codes": ["1"],
                "censored_codes": ["0"],
            }
        },
        "modalities": {"m": {"loader": "variants", "path": "{patient_id}*.vcf"}},
    }
    (tmp_path / "patients.csv").write_text("id,days,died\np1,100,1\np10,250,0\np2,30,1\n")
    for name in ("p1.vcf", "p2.vcf"):
        vcf(tmp_path, line(), name=name)
    cohort = read_cohort(CohortCard.model_validate(content), data_root=tmp_path)
    assert {p: [f.name for f in files] for p, files in patient_files(cohort, "m").items()} == {
        "p1": ["p1.vcf"],
        "p2": ["p2.vcf"],
    }
    vcf(tmp_path, line(), name="p10.vcf")
    with pytest.raises(ConfigError, match=r"expected files of one patient each, found p10\.vcf"):
        patient_files(cohort, "m")
