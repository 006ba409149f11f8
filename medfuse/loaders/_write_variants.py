"""MAF and VCF from arrays: for synthetic cohorts and tests."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from medfuse.errors import DataError
from medfuse.loaders._consequences import MAF
from medfuse.loaders._genome import CHROMOSOMES, LENGTHS

_TERM = {"truncating": "stop_gained", "missense": "missense_variant", "other": "inframe_deletion"}
_DEPTH = 100
_VCF_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
_MAF_COLUMNS = (
    *("Hugo_Symbol", "NCBI_Build", "Chromosome", "Start_Position", "End_Position", "Variant_Classification"),
    *("Reference_Allele", "Tumor_Seq_Allele1", "Tumor_Seq_Allele2", "Tumor_Sample_Barcode", "FILTER"),
)


def _write(path: Path, text: str) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text, encoding="utf-8", newline="\n")


def _same_lengths(path: Path, **columns: Sequence[object]) -> None:
    if len({len(c) for c in columns.values()}) > 1:
        msg = f"{path.name}: expected {', '.join(columns)} of one length, found {[len(c) for c in columns.values()]}"
        raise DataError(msg)


def write_maf(
    path: Path,
    *,
    samples: Sequence[str],
    genes: Sequence[str],
    classes: Sequence[str],
    vaf: Sequence[float] | None = None,
    positions: Sequence[int] | None = None,
    build: str = "GRCh38",
) -> None:
    """Write variants, one row each, as a MAF (gzip where the name ends in .gz).

    Args:
        path: the file.
        samples: n barcodes.
        genes: n symbols.
        classes: n values of Variant_Classification.
        vaf: n allele fractions; written as counts of 100 reads.
        positions: n positions on chromosome 1; default: 1,000 apart.
        build: of the column NCBI_Build.

    Raises:
        DataError: other lengths, or a class that is not of the format.
    """
    places = list(positions) if positions is not None else [1000 * (k + 1) for k in range(len(samples))]
    shares = list(vaf) if vaf is not None else []
    _same_lengths(path, samples=samples, genes=genes, classes=classes, positions=places)
    if shares and len(shares) != len(samples):
        msg = f"{path.name}: expected {len(samples)} allele fractions, found {len(shares)}"
        raise DataError(msg)
    wrong = next((c for c in classes if c not in MAF), None)
    if wrong is not None:
        msg = f"{path.name}: expected classes of the MAF format, found {wrong!r}"
        raise DataError(msg)
    lines = ["#version 2.4", "\t".join([*_MAF_COLUMNS, *(["t_alt_count", "t_ref_count"] if shares else [])])]
    for k, sample in enumerate(samples):
        cells = [genes[k], build, "1", str(places[k]), str(places[k]), classes[k], "C", "C", "T", sample, "PASS"]
        if shares:
            reads = round(_DEPTH * shares[k])
            cells += [str(reads), str(_DEPTH - reads)]
        lines.append("\t".join(cells))
    _write(path, "\n".join(lines) + "\n")


def write_vcf(
    path: Path,
    genotypes: ArrayLike,
    *,
    samples: Sequence[str],
    genes: Sequence[str],
    kinds: Sequence[str],
    positions: Sequence[int] | None = None,
    build: str = "GRCh38",
) -> None:
    """Write variants with snpEff's ANN as a VCF (gzip where the name ends in .gz).

    Args:
        path: the file.
        genotypes: (v, n) number of alternative alleles, 0 to 2; -1 not called.
        samples: n names.
        genes: v symbols, one per variant.
        kinds: v of truncating, missense, other.
        positions: v positions on chromosome 1, rising; default: 1,000 apart.
        build: whose chromosome lengths the header has.

    Raises:
        DataError: other shapes or values.
    """
    array = np.asarray(genotypes)
    places = list(positions) if positions is not None else [1000 * (k + 1) for k in range(len(genes))]
    _same_lengths(path, genes=genes, kinds=kinds, positions=places)
    if array.shape != (len(genes), len(samples)) or not set(np.unique(array).tolist()) <= {-1, 0, 1, 2}:
        msg = (
            f"{path.name}: expected genotypes ({len(genes)}, {len(samples)}) of -1 to 2, found others or {array.shape}"
        )
        raise DataError(msg)
    wrong = next((kind for kind in kinds if kind not in _TERM), None)
    if wrong is not None:
        msg = f"{path.name}: expected kinds truncating, missense or other, found {wrong!r}"
        raise DataError(msg)
    lines = ["##fileformat=VCFv4.3", f"##reference={build}"]
    lines += [f"##contig=<ID=chr{c},length={LENGTHS[build][c]},assembly={build}>" for c in CHROMOSOMES]
    lines += [
        "##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: 'Allele | Annotation | "
        "Annotation_Impact | Gene_Name | Gene_ID'\">",
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "\t".join([*_VCF_COLUMNS, *samples]),
    ]
    text = {-1: "./.", 0: "0/0", 1: "0/1", 2: "1/1"}
    for k, gene in enumerate(genes):
        note = f"ANN=T|{_TERM[kinds[k]]}|MODERATE|{gene}|{gene}"
        cells = ["chr1", str(places[k]), ".", "C", "T", "50", "PASS", note, "GT", *(text[int(g)] for g in array[k])]
        lines.append("\t".join(cells))
    _write(path, "\n".join(lines) + "\n")
