"""Copy number: segments averaged over arms and genes, GISTIC's tables, and what is refused."""

import numpy as np
import pytest

from medfuse.card import ModalityCard
from medfuse.errors import ConfigError, DataError
from medfuse.loaders import copy_number, read, read_files
from medfuse.loaders._genome import LENGTHS, SHORT_ARMS, arms, chromosome

SEG = "Sample\tChromosome\tStart\tEnd\tNum_Probes\tSegment_Mean\n"
ARM = {"unit": "log2_ratio", "build": "GRCh38", "options": {"table": "segments", "level": "arm"}}


def loaded(folder, text=None, *, name="s.seg", **card):
    if text is not None:
        (folder / name).write_bytes(text.encode("utf-8", errors="surrogateescape"))
    settings = {"loader": "copy_number", "file": name, **card}
    return read("m", ModalityCard(**settings), resolve=lambda s: folder / s, patients=("id", ""))


def table(data):
    """Patient -> feature -> value, only what is observed."""
    return {
        patient: {
            column.name: round(float(value), 6)
            for column, (value, observed) in zip(data.columns, sample.tokens, strict=True)
            if observed
        }
        for patient, sample in data.samples.items()
    }


def segment(sample, contig, start, end, value):
    return f"{sample}\t{contig}\t{start}\t{end}\t9\t{value}\n"


# --- segments ---------------------------------------------------------------------------------------------------------


def test_arms_are_means_weighted_by_bases(tmp_path):
    border, last = SHORT_ARMS["GRCh38"]["9"], LENGTHS["GRCh38"]["9"]
    text = SEG + segment("p1", "chr9", 1, border // 2, 1.0) + segment("p1", "09", border // 2 + 1, border, -1)
    text += segment("p1", "9", border + 1, last, 0.25) + segment("p2", "23", 1, LENGTHS["GRCh38"]["X"], -2)
    text += segment("p2", "9", 1, border // 4, 1) + segment("p2", "chrUn_1", 1, 100, 1)
    data = loaded(tmp_path, text, **ARM)
    assert table(data) == {"p1": {"9p": 0.0, "9q": 0.25}, "p2": {"Xp": -2, "Xq": -2}}  # a quarter of 9p says nothing
    assert {column.unit for column in data.columns} == {"log2_ratio"}
    assert any("1 segments were left out: their contig is no chromosome" in w for w in data.warnings)
    quarter = {**ARM, "options": {**ARM["options"], "coverage": 0.2}}
    assert table(loaded(tmp_path, text, **quarter))["p2"]["9p"] == 1
    whole = {**ARM, "options": {"table": "segments", "level": "chromosome"}}
    mean = (0.25 * (last - border)) / last
    assert table(loaded(tmp_path, text, **whole))["p1"]["chr9"] == pytest.approx(mean, abs=1e-6)


def test_averages_are_those_of_single_bases():
    rng = np.random.default_rng(3)
    ends = np.sort(rng.choice(np.arange(1, 400), 12, replace=False))
    starts = np.concatenate([[1], ends[:-1] + 1])
    keep = np.arange(12) != 5  # a stretch that no segment covers
    values = rng.normal(size=12)
    segments = copy_number.Segments(
        sample=["p"] * 11,
        chromosome=["1"] * 11,
        start=starts[keep].astype(float),
        end=ends[keep].astype(float),
        value=values[keep],
        warnings=(),
    )
    bases = np.full(401, np.nan)
    for start, end, value, used in zip(starts, ends, values, keep, strict=True):
        bases[start : end + 1] = value if used else np.nan
    regions = [copy_number.Region(name=f"r{k}", chromosome="1", start=k + 1, end=k + 60) for k in range(0, 340, 17)]
    found = copy_number.average(segments, ["p"], regions, coverage=0.5)[0]
    for region, value in zip(regions, found, strict=True):
        inside = bases[region.start : region.end + 1]
        enough = np.mean(~np.isnan(inside)) >= 0.5
        assert np.isnan(value) != enough
        assert not enough or value == pytest.approx(np.nanmean(inside))


def test_genes_come_from_regions_and_their_sets_from_a_gmt(tmp_path):
    (tmp_path / "genes.csv").write_text(
        "gene,chromosome,start,end\nTP53,17,7668421,7687490\nEGFR,7,55019017,55211628\n"
    )
    (tmp_path / "s.gmt").write_text("CYCLE\tx\tTP53\tEGFR\n")
    text = SEG + segment("p1", 17, 1, 10_000_000, -0.9) + segment("p1", 7, 50_000_000, 55_100_000, 0.5)
    card = {**ARM, "options": {"table": "segments", "level": "gene"}, "regions": "genes.csv", "gmt": "s.gmt"}
    data = loaded(tmp_path, text, **card)
    assert table(data) == {"p1": {"TP53": -0.9}}  # less than half of EGFR is covered
    assert data.gene_sets == {"CYCLE": ("TP53", "EGFR")}


def test_arms_cover_every_chromosome_once():
    for build, lengths in LENGTHS.items():
        covered = {}
        for arm in arms(build):
            covered[arm.chromosome] = covered.get(arm.chromosome, 0) + arm.end - arm.start + 1
        assert covered == lengths
    assert [chromosome(n) for n in ("chr1", "01", "23", "chrY", "MT", "HLA", "")] == ["1", "1", "X", "Y", "", "", ""]


def test_one_file_of_segments_per_patient(tmp_path):
    for patient, value in (("p1", 1), ("p2", -1)):
        (tmp_path / f"{patient}.seg").write_text(SEG + segment("tumour", 3, 1, 190_000_000, value))
    card = ModalityCard(loader="copy_number", path="{patient_id}.seg", **ARM)
    files = {p: (tmp_path / f"{p}.seg",) for p in ("p1", "p2")}
    data = read_files("m", card, resolve=lambda s: tmp_path / s, files=files)
    assert table(data) == {"p1": {"3p": 1, "3q": 1}, "p2": {"3p": -1, "3q": -1}}
    (tmp_path / "p1.seg").write_text(SEG + segment("a", 3, 1, 9, 1) + segment("b", 3, 1, 9, 1))
    with pytest.raises(DataError, match=r"p1\.seg: expected one sample, found 2"):
        read_files("m", card, resolve=lambda s: tmp_path / s, files=files)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Segment_Mean", "Score", "found no value; rename the columns"),
        ("Chromosome", "Contig", "found no chromosome"),
        ("Start", "Begin", "found no start"),
        ("p1\t1\t", "\t1\t", "data row 1: expected a sample, 0 <= start <= end and a value"),
        ("\t100\t200\t", "\t200\t100\t", "data row 1: expected a sample, 0 <= start <= end"),
        ("\t100\t200\t", "\t-100\t200\t", "data row 1: expected a sample, 0 <= start"),
        ("\t100\t200\t", "\t100\t249000000\t", "beyond the end of chromosome 1 .*would fit GRCh37"),
        ("\t300\t400\t", "\t150\t400\t", "data row 2: expected segments of a sample that do not overlap"),
        ("\t0.5\n", "\t\n", "data row 1: expected a sample, 0 <= start <= end and a value"),
        ("\t0.5\n", "\t0,5\n", "a decimal comma"),
        ("\t0.5\n", "\tgain\n", "data row 1, column 'Segment_Mean': expected a number"),
        ("\t0.5\n", "\tinf\n", "infinity"),
        ("\t0.5\n", "\t200\n", "expected values of unit log2_ratio .*found 1 others"),
        ("\t0.5\n", "\n", "expected 6 cells as in the header, found fewer"),
        ("p1\t1", "p1\udcff\t1", "UTF-8"),
        ("Start", "End", r"expected distinct column names"),
    ],
)
def test_a_broken_segment_file_is_refused_by_row(tmp_path, old, new, said):
    text = SEG + segment("p1", 1, 100, 200, 0.5) + segment("p1", 1, 300, 400, 1)
    loose = {**ARM, "options": {**ARM["options"], "coverage": 1e-9}}
    assert table(loaded(tmp_path, text, **loose))["p1"]["1p"] == pytest.approx(0.75, abs=1e-6)
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, text.replace(old, new, 1), **loose)


@pytest.mark.parametrize(
    "card",
    [
        {"unit": "log2_ratio", "options": {"table": "segments", "level": "arm"}},
        {"unit": "log2_ratio", "build": "GRCh38", "options": {"table": "segments"}},
        {"unit": "ratio", "build": "GRCh38", "options": {"table": "segments", "level": "arm"}},
        {"unit": "log2_ratio", "build": "GRCh38", "options": {"level": "arm"}},
        {"unit": "log2_ratio", "build": "GRCh38", "options": {"table": "segments", "level": "gene"}},
        {"unit": "log2_ratio", "build": "GRCh38", "options": {"table": "segments", "level": "arm", "coverage": 0}},
        {"unit": "log2_ratio", "build": "GRCh38", "options": {"table": "segments", "levels": "arm"}},
    ],
)
def test_what_the_card_must_say_is_asked_for(tmp_path, card):
    with pytest.raises(ConfigError, match="modality m, options"):
        loaded(tmp_path, SEG + segment("p1", 1, 1, 2, 1), **card)


# --- GISTIC -----------------------------------------------------------------------------------------------------------

GENES = "Gene Symbol\tLocus ID\tCytoband\tp1\tp2\nTP53\t7157\t17p13.1\t-2\t0\nEGFR\t1956\t7p11.2\t1\t2\n"
HEAD = "Unique Name\tDescriptor\tWide Peak Limits\tAmplitude Threshold\tp1\tp2\t\n"
LESIONS = (
    HEAD + "Amplification Peak 1\t1p33 \tchr1:1-2\tt\t0\t2\t\nDeletion Peak  1\t5q \tchr5:1-2\tt\t1\t0\t\n"
    "Amplification Peak 1 - CN values\t1p33 \tchr1:1-2\tx\t0.01\t1.5\t\n"
    "Deletion Peak  1 - CN values\t5q \tchr5:1-2\tx\t-0.4\t0\t\n"
)
GISTIC = {"unit": "gistic", "options": {"table": "genes"}}


def test_gistic_tables_of_genes_and_peaks(tmp_path):
    data = loaded(tmp_path, GENES, name="all_thresholded.by_genes.txt", **GISTIC)
    assert table(data) == {"p1": {"TP53": -2, "EGFR": 1}, "p2": {"TP53": 0, "EGFR": 2}}
    peaks = {"unit": "gistic", "options": {"table": "lesions"}}
    data = loaded(tmp_path, LESIONS, name="all_lesions.txt", **peaks)
    assert table(data)["p2"] == {"Amplification 1 1p33": 2, "Deletion 1 5q": 0}
    actual = {**peaks, "unit": "log2_ratio"}
    assert table(loaded(tmp_path, LESIONS, name="all_lesions.txt", **actual))["p1"] == {
        "Amplification 1 1p33": 0.01,
        "Deletion 1 5q": -0.4,
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Gene Symbol", "Gene", "expected a column of gene symbols"),
        ("-2", "-3", "unit gistic .*found 1 others"),
        ("-2", "0.5", "unit gistic .*found 1 others"),
        ("-2", "loss", "data row 1, column 'p1': expected a number"),
        ("TP53", "", "data row 1: expected a gene, found an empty cell"),
        ("EGFR", "TP53", "expected distinct gene symbols"),
        ("TP53", "2-Sep", "a spreadsheet turned into dates"),
        ("p2", "p1", "distinct"),
        ("\t2\n", "\n", "found fewer"),
        ("\t2\n", "\t2\t9\n", "damage|cells"),
        ("TP53", "TP\udcff3", "UTF-8"),
        ("Gene Symbol", "cytoband\tx", "found genes of peaks"),
        ("Gene Symbol", "Type\tChromosome\tStart", "found scores of the cohort"),
    ],
)
def test_a_broken_gistic_table_is_refused(tmp_path, old, new, said):
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, GENES.replace(old, new, 1), name="g.txt", **GISTIC)


def test_a_broken_table_of_peaks_is_refused(tmp_path):
    peaks = {"unit": "gistic", "options": {"table": "lesions"}}
    for old, new, said in (
        ("Amplitude Threshold", "Threshold", "expected GISTIC's all_lesions"),
        ("Deletion Peak  1\t", "Peak\t", "data row 2: expected the name of a peak"),
        ("\t0\t2\t", "\t0\t9\t", "unit gistic"),
    ):
        with pytest.raises(DataError, match=said):
            loaded(tmp_path, LESIONS.replace(old, new, 1), name="l.txt", **peaks)
