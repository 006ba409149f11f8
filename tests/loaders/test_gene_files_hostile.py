"""Mutants, bombs and hostile content of files of genes: read or refused with a typed error, soon, in little memory."""

import gzip
import tracemalloc

import h5py
import numpy as np
import pandas as pd
import pytest
from clock import Watch

from medfuse.card import ModalityCard
from medfuse.errors import DataError, MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import module_of, read
from medfuse.loaders._write_variants import write_maf, write_vcf
from medfuse.loaders.expression import read_gmt, write_expression

TABLE = {"loader": "expression", "unit": "tpm", "log_base": 2}
BY_GENE = {**TABLE, "orientation": "genes_by_patients"}
ARM = {"loader": "copy_number", "unit": "log2_ratio", "build": "GRCh38"}
ARM |= {"options": {"table": "segments", "level": "arm"}}
VARIANTS = {"loader": "variants"}
CARDS = {
    "a.csv": {**TABLE, "id": "patient_id"},
    "a.csv.gz": {**TABLE, "id": "patient_id"},
    "a.tsv": {**BY_GENE, "id": "gene"},
    "a.gct": BY_GENE,
    "a.parquet": {**TABLE, "id": "patient_id"},
    "a.h5ad": TABLE,
    "s.h5ad": TABLE,
    "a.maf": {**VARIANTS, "sequenced": "with_variants"},
    "a.vcf": VARIANTS,
    "a.vcf.gz": VARIANTS,
    "a.seg": ARM,
    "g.txt": {"loader": "copy_number", "unit": "gistic", "options": {"table": "genes"}},
}


def write_h5ad(path, values, *, sparse=False, shape=None):
    """The layout of anndata 0.8, dense or CSR; ``shape``: a matrix that only claims to be there."""
    rows, columns = shape or values.shape
    with h5py.File(path, "w") as file:
        for frame, start, count in (("obs", "p", rows), ("var", "G", columns)):
            group = file.create_group(frame)
            group.attrs["_index"] = "_index"
            group["_index"] = np.array([f"{start}{k}" for k in range(count)], dtype="S12")
        if shape:
            file.create_dataset("X", shape=shape, dtype="f4", chunks=(1000, 1000), compression="gzip")
        elif sparse:
            group = file.create_group("X")
            group.attrs["encoding-type"] = "csr_matrix"
            group["data"] = values[values != 0]
            group["indices"] = np.nonzero(values)[1]
            group["indptr"] = np.concatenate([[0], np.cumsum((values != 0).sum(axis=1))])
        else:
            file["X"] = values


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small sound file of each kind."""
    folder = tmp_path_factory.mktemp("genes")
    rng = np.random.default_rng(5)
    values = np.round(rng.random((6, 5)) * 9, 3)
    people, genes = [f"p{k}" for k in range(6)], ["TP53", "EGFR", "KRAS", "MYC", "BRAF"]
    for name in ("a.csv", "a.tsv", "a.gct", "a.parquet"):
        write_expression(folder / name, values, patients=people, genes=genes)
    (folder / "a.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))
    write_h5ad(folder / "a.h5ad", values)
    write_h5ad(folder / "s.h5ad", np.where(values > 4, values, 0), sparse=True)
    classes = ["Missense_Mutation", "Silent", "Nonsense_Mutation", "Splice_Site", "In_Frame_Del"]
    write_maf(folder / "a.maf", samples=people[:5], genes=genes, classes=classes, vaf=[0.1, 0.2, 0.3, 0.4, 0.5])
    doses = rng.integers(-1, 3, (5, 6))
    kinds = ["missense", "truncating", "other", "missense", "missense"]
    for name in ("a.vcf", "a.vcf.gz"):
        write_vcf(folder / name, doses, samples=people, genes=genes, kinds=kinds)
    module_of("copy_number", where="").write_example(folder)
    (folder / "segments.seg.txt").rename(folder / "a.seg")
    (folder / "g.txt").write_text("Gene Symbol\tLocus ID\tp1\tp2\nTP53\t7157\t-2\t0\nEGFR\t1956\t1\t2\n")
    return folder


def load(folder, name):
    card = ModalityCard(file=name, **CARDS[name])
    return read("m", card, resolve=lambda s: folder / s, patients=(None, ""))


def test_the_sound_files_are_read(sound):
    for name in CARDS:
        data = load(sound, name)
        assert data.samples, name
        assert data.columns, name


# --- mutants ----------------------------------------------------------------------------------------------------------


def mutate(content, rng):
    content = bytearray(content)
    at = int(rng.integers(len(content)))
    match int(rng.integers(4)):
        case 0:
            for k in rng.integers(0, len(content), int(rng.integers(1, 9))):
                content[k] = int(rng.integers(256))
        case 1:
            del content[at:]
        case 2:
            other = int(rng.integers(len(content)))
            content[at:at] = content[other : other + int(rng.integers(1, 200))]
        case _:
            content[at : at + 64] = bytes(min(64, len(content) - at))
    return bytes(content)


def run_mutants(sound, folder, *, each, seed, names=tuple(CARDS)):
    """Share of the mutants that were refused; whatever else than a typed error fails the test."""
    rng = np.random.default_rng(seed)
    reasons = []
    for name in names:
        load(sound, name)  # imports and compiling are not the file's
        content = (sound / name).read_bytes()
        path = folder / name
        for _ in range(each):
            path.write_bytes(mutate(content, rng))
            watch = Watch()
            try:
                load(folder, name)
            except MedfuseError as error:
                reasons.append(str(error))
            found = inspect([path])
            assert not any("medfuse failed on it" in one.refusal for one in found), found
            assert watch.spent() < 5
        path.unlink()
    assert all("; " in reason or "expected" in reason for reason in reasons)
    return len(reasons) / (each * len(names))


def test_mutants_are_read_or_refused_and_nothing_else(sound, tmp_path):
    assert run_mutants(sound, tmp_path, each=6, seed=7) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["expression", "copy_number", "variants"])
def test_a_thousand_mutants_per_loader(sound, tmp_path, loader, many):
    names = tuple(name for name, card in CARDS.items() if card["loader"] == loader)
    assert run_mutants(sound, tmp_path, each=many(1000, 10_000) // len(names) + 1, seed=11, names=names) > 0.3


# --- bombs ------------------------------------------------------------------------------------------------------------


def bombs(folder):
    """Small files that promise or unpack to far more than they are."""
    zeros = gzip.compress(b"0" * (200 << 20), 9)
    (folder / "a.csv.gz").write_bytes(zeros)
    yield "a.csv.gz"
    head = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (folder / "a.vcf.gz").write_bytes(gzip.compress(head + b"\n" * (300 << 20), 9))
    yield "a.vcf.gz"
    (folder / "a.vcf.gz").write_bytes(gzip.compress(head + b"\n" * (60 << 20), 9))
    yield "a.vcf.gz"
    (folder / "a.vcf").write_bytes(head + b"1\t1\t.\tC\t" + b"A," * (8 << 20) + b"T\t.\tPASS\t.\n")
    yield "a.vcf"
    maf = b"Hugo_Symbol\tVariant_Classification\tTumor_Sample_Barcode\n"
    (folder / "a.maf").write_bytes(gzip.compress(maf + b"\n" * (60 << 20), 9))
    yield "a.maf"
    (folder / "a.gct").write_bytes(b"#1.2\n2000000000\t2000000000\nName\tDescription\ta\nTP53\tx\t1\n")
    yield "a.gct"
    (folder / "a.gct").write_bytes(b"#1.3\n2\t1\t1\t4000000000\nName\tDescription\ta\nTP53\tx\t1\n")
    yield "a.gct"
    (folder / "a.csv").write_bytes(b"id" + b",G" * 400_000 + b"\n" * 400_000)
    yield "a.csv"
    (folder / "a.csv").write_bytes(b'"id' + b",G" * 400_000 + b"\n" * 400_000)
    yield "a.csv"
    write_h5ad(folder / "a.h5ad", None, shape=(20_000, 20_000))
    yield "a.h5ad"
    with h5py.File(folder / "a.h5ad", "w") as file:
        for frame in ("obs", "var"):
            group = file.create_group(frame)
            group.attrs["_index"] = "_index"
            group.create_dataset("_index", shape=(400_000_000,), dtype="S8", chunks=(1 << 20,), compression="gzip")
        file.create_dataset("X", shape=(2, 2), dtype="f4")
    yield "a.h5ad"
    with h5py.File(folder / "s.h5ad", "w") as file:
        for frame, count in (("obs", 20_000), ("var", 20_000)):
            group = file.create_group(frame)
            group.attrs["_index"] = "_index"
            group["_index"] = np.array([f"{frame}{k}" for k in range(count)], dtype="S12")
        group = file.create_group("X")
        group.attrs["encoding-type"] = "csr_matrix"
        group["data"], group["indices"] = np.ones(1), np.zeros(1, dtype=np.int32)
        group.create_dataset("indptr", data=np.r_[0, np.ones(20_000)].astype(int), compression="gzip")
    yield "s.h5ad"
    frame = pd.DataFrame({"patient_id": np.zeros(60_000_000, dtype=np.int8), "TP53": np.int8(0)})
    frame.to_parquet(folder / "a.parquet", index=False, compression="zstd")
    del frame
    yield "a.parquet"


def test_bombs_are_refused_in_two_seconds_and_300_mb(tmp_path):
    for number, name in enumerate(bombs(tmp_path)):
        where = f"{number} {name}"
        watch = Watch()
        with pytest.raises(MedfuseError):
            load(tmp_path, name)
        assert watch.spent() < 2, where
        inspect([tmp_path / name])
        tracemalloc.start()
        with pytest.raises(MedfuseError):
            load(tmp_path, name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300e6, where
        (tmp_path / name).unlink()


# --- named broken files -----------------------------------------------------------------------------------------------


def test_links_and_damaged_layouts_of_h5ad_are_refused(sound, tmp_path):
    def changed(change, said, name="a.h5ad"):
        (tmp_path / name).write_bytes((sound / name).read_bytes())
        with h5py.File(tmp_path / name, "r+") as file:
            change(file)
        with pytest.raises(DataError, match=said):
            load(tmp_path, name)

    def link(file):
        del file["X"]
        file["X"] = h5py.ExternalLink("/etc/passwd", "/X")

    def external(file):
        del file["X"]
        file.create_dataset("X", shape=(6, 5), dtype="f8", external=[("/etc/passwd", 0, 240)])

    def value(name, new):
        def change(file):
            file[name][...] = new

        return change

    def instead(name, new):
        def change(file):
            del file[name]
            if new is not None:
                file[name] = new

        return change

    changed(link, "found a link")
    changed(external, "found a link")
    changed(instead("X", None), r"the layer 'X'")
    changed(instead("obs", None), "expected an h5ad file")
    changed(instead("var/_index", None), "expected an h5ad file")
    changed(instead("X", np.zeros((5, 6))), r"numbers \(6, 5\)")
    changed(instead("X", np.zeros((6, 5), dtype="S3")), r"numbers \(6, 5\)")
    changed(value("X", np.inf), "infinity")
    changed(value("X", 99), "unit and log_base")
    changed(instead("var/_index", np.array([b"TP53"] * 5)), "distinct gene symbols")
    changed(instead("var/_index", np.array([b"2-Sep", b"B", b"C", b"D", b"E"])), "spreadsheet")
    changed(instead("obs/_index", np.array([b"\xff"] * 6)), "expected an h5ad file")
    changed(value("X/indices", 9), "indices that leave it", "s.h5ad")
    changed(value("X/indptr", 3), "expected a whole sparse matrix", "s.h5ad")
    changed(lambda file: file["X"].attrs.__setitem__("encoding-type", "coo_matrix"), "CSR or CSC", "s.h5ad")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("#1.2", "#2.0", "expected #1.2 or #1.3"),
        ("5\t6", "5\t7", "expected 7 columns of samples as line 2 says, found 6"),
        ("5\t6", "6\t6", "expected 6 rows of genes as line 2 says, found 5"),
        ("5\t6", "five\tsix", "line 2: expected the numbers of rows and columns"),
        ("5\t6", "-5\t6", "line 2"),
        ("5\t6", "5", "line 2"),
        ("\tp1\t", "\tp0\t", "columns of samples|distinct"),
        ("TP53\tTP53\t", "TP53\tTP53\tx", "expected a number, found text"),
        ("TP53\tTP53\t", "TP53\t", "found fewer"),
        ("\nTP53\t", "\nEGFR\t", "distinct gene symbols"),
        ("\nTP53\t", "\n2-Sep\t", "spreadsheet"),
        ("\nTP53\t", "\n\t", "expected a gene name, found an empty cell"),
        ("TP53\tTP53\t", "TP53\tTP53\t9999", "unit and log_base"),
    ],
)
def test_a_broken_gct_is_refused(sound, tmp_path, old, new, said):
    text = (sound / "a.gct").read_text()
    assert old in text
    (tmp_path / "a.gct").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=said):
        load(tmp_path, "a.gct")


def test_no_gene_set_file_takes_long(tmp_path):
    (tmp_path / "s.gmt").write_bytes(gzip.compress(b"A\tx\t" + b"G" * (200 << 20)))
    with pytest.raises(DataError, match="decompression bomb"):
        read_gmt(tmp_path / "s.gmt")
