"""Names of genes: what spreadsheets did to them, versions of Ensembl ids, names that HGNC replaced, and gene sets."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.limits import inflate

# What spreadsheets make of SEPT1, MARCH2, DEC1 and their kin: 1-Sep, Mar-02, 2001-09-01, 44805.
_MANGLED = re.compile(
    r"^(\d{1,2}-(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
    r"|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*-\d{1,2}"
    r"|\d{4}-\d{2}-\d{2}( .*)?|[1-9]\d{4}|\d+(\.\d+)?e\+?\d+)$",
    flags=re.IGNORECASE,
)
_DAY = re.compile(r"^(?:(\d{1,2})-(sep|mar|dec)[a-z]*|(sep|mar|dec)[a-z]*-(\d{1,2}))$", flags=re.IGNORECASE)
_ONCE = {"sep": ("SEPTIN{}",), "mar": ("MARCHF{}", "MTARC{}"), "dec": ("DELEC{}",)}
_OLD = re.compile(r"^(SEPT|MARCH|MARC|DEC)(\d{1,2})$")
_NOW = {"SEPT": ("SEPTIN", 14), "MARCH": ("MARCHF", 11), "MARC": ("MTARC", 2), "DEC": ("DELEC", 1)}
_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{11})\.\d+(_PAR_Y)?$")
# Rows of counting programs (HTSeq, STAR) that are no genes.
_NO_GENE = re.compile(r"^(__\w+|N_(unmapped|multimapping|noFeature|ambiguous))$")


def mangled_names(names: Sequence[str]) -> list[str]:
    """Gene names that a spreadsheet turned into a date or a number."""
    return [name for name in names if _MANGLED.match(name)]


def once(name: str) -> tuple[str, ...]:
    """What a mangled name can have been, under the names that HGNC gave in 2020; several where it cannot be told."""
    match = _DAY.match(name)
    if match is None:
        return ()
    number = int(match[1] or match[4])
    return tuple(form.format(number) for form in _ONCE[(match[2] or match[3]).lower()])


def current_name(name: str) -> str:
    """The name that replaced one which spreadsheets mangle (SEPT2 is SEPTIN2, MARCH1 is MARCHF1); else the name.

    References:
        Bruford et al. (2020), Guidelines for human gene nomenclature, Nature Genetics 52:754-758.
    """
    match = _OLD.match(name)
    if match is None or not 1 <= int(match[2]) <= _NOW[match[1]][1]:
        return name
    return f"{_NOW[match[1]][0]}{int(match[2])}"


def without_version(name: str) -> str:
    """An Ensembl gene id without its version; the copy on chromosome Y stays apart. Other names as they are."""
    match = _ENSEMBL.match(name)
    return name if match is None else match[1] + (match[2] or "")


def no_genes(names: Sequence[str]) -> list[str]:
    """Rows of HTSeq and STAR that count reads without a gene."""
    return [name for name in names if _NO_GENE.match(name)]


def checked_names(genes: list[str], *, accept_mangled: bool, file: str) -> tuple[list[str], list[str]]:
    """Gene names without versions, and what a person should know of them.

    Raises:
        DataError: mangled names that the card does not accept.
    """
    warnings: list[str] = []
    mangled = mangled_names(genes)
    shown = ", ".join(f"{n} (once {' or '.join(once(n))})" if once(n) else n for n in mangled[:5])
    if mangled and not accept_mangled:
        msg = (
            f"{file}: expected gene symbols, found {len(mangled)} that a spreadsheet turned into dates or numbers "
            f"({shown}); restore them from the source, or state accept_mangled: true"
        )
        raise DataError(msg)
    if mangled:
        warnings.append(f"{len(mangled)} gene names look mangled by a spreadsheet and were accepted: {shown}")
    plain = [without_version(gene) for gene in genes]
    cut = sum(a != b for a, b in zip(genes, plain, strict=True))
    if cut:
        warnings.append(f"{cut} Ensembl gene ids were read without their version")
    old = [gene for gene in plain if current_name(gene) != gene]
    if old:
        shown = ", ".join(f"{gene} (now {current_name(gene)})" for gene in old[:5])
        warnings.append(f"{len(old)} gene symbols have been replaced by HGNC and were kept as they are: {shown}")
    return plain, warnings


def merge_genes(
    values: NDArray[np.float64], genes: list[str], *, duplicates: str, file: str
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """One column per gene out of possibly several.

    Args:
        values: (n, C), NaN where missing.
        genes: C names.
        duplicates: ``refuse``, or ``mean`` of what is observed.
        file: for messages.

    Raises:
        DataError: rule ``refuse`` and a name that stands twice.
    """
    doubled = [gene for gene, count in Counter(genes).items() if count > 1]
    if not doubled:
        return values, genes, []
    if duplicates == "refuse":
        msg = (
            f"{file}: expected distinct gene symbols, found {len(doubled)} that stand twice "
            f"({', '.join(doubled[:5])}); state duplicates: mean to average them"
        )
        raise DataError(msg)
    averaged = pd.DataFrame(values.T).groupby(np.asarray(genes), sort=False).mean()
    warning = f"{len(doubled)} duplicated gene symbols were averaged: {', '.join(doubled[:5])}"
    return averaged.to_numpy(dtype=np.float64).T, list(averaged.index), [warning]


def read_gene_sets(path: Path) -> dict[str, tuple[str, ...]]:
    """Gene sets of a GMT file, or of a CSV file with a column per set (its name above its genes, then blanks).

    Raises:
        DataError: as for :func:`read_gmt`.
    """
    return _read_columns(path) if path.suffix.lower() == ".csv" else read_gmt(path)


def _read_columns(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        rows = list(csv.reader(inflate(path).decode("utf-8-sig").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path.name}: expected gene sets in CSV in UTF-8, found damage ({type(error).__name__}); fetch it again"
        raise DataError(msg) from error
    names = [name.strip() for name in rows[0]] if rows else []
    uneven = next((number for number, row in enumerate(rows, 1) if len(row) != len(names)), None)
    if not names or not all(names) or len(set(names)) < len(names) or uneven is not None:
        where = f"line {uneven}" if uneven is not None else "line 1"
        msg = (
            f"{path.name}, {where}: expected a column per gene set, each with a name of its own, and rows of "
            f"{len(names)} fields, found others; the file is cut short or damaged, fetch it again"
        )
        raise DataError(msg)
    cells = zip(*rows[1:], strict=True) if len(rows) > 1 else [()] * len(names)
    sets = {
        n: tuple(dict.fromkeys(g.strip() for g in column if g.strip())) for n, column in zip(names, cells, strict=True)
    }
    empty = next((name for name, genes in sets.items() if not genes), None)
    mangled = mangled_names([gene for genes in sets.values() for gene in genes])
    if empty is not None or mangled:
        found = f"none in column {names.index(empty) + 1}" if empty is not None else ", ".join(mangled[:5])
        msg = f"{path.name}: expected gene symbols in every column, found {found}; fetch the file again"
        raise DataError(msg)
    return sets


def read_gmt(path: Path) -> dict[str, tuple[str, ...]]:
    """Gene sets of a GMT file: set name -> gene symbols, each once.

    Raises:
        DataError: no sets, other bytes than UTF-8, a line with fewer than three tab-separated fields, a set name that
            stands twice, or gene names that a spreadsheet mangled.
    """
    try:
        lines = inflate(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path.name}: expected a GMT file in UTF-8, found damage ({type(error).__name__}); fetch it again"
        raise DataError(msg) from error
    sets: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
        if not name or not genes or name in sets:
            found = "a set name that stands twice" if name in sets else f"{len(rest) + 1} fields"
            msg = (
                f"{path.name}, line {number}: expected a new set name, a description and genes, separated by tabs, "
                f"found {found}; the file is cut short or damaged, fetch it again"
            )
            raise DataError(msg)
        mangled = mangled_names(genes)
        if mangled:
            msg = (
                f"{path.name}, line {number}: expected gene symbols, found {len(mangled)} that a spreadsheet turned "
                f"into dates or numbers ({', '.join(mangled[:5])}); fetch the file again"
            )
            raise DataError(msg)
        sets[name] = genes
    if not sets:
        msg = f"{path.name}: expected gene sets, found none; the file is empty or cut short, fetch it again"
        raise DataError(msg)
    return sets


def cut_sets(
    sets: dict[str, tuple[str, ...]], genes: Sequence[str], *, file: str
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Gene sets cut to the genes of the table, without the empty ones, and warnings: which were empty or misnamed.

    Raises:
        DataError: no set shares a gene with the table.
    """
    known = set(genes)
    cut = {name: tuple(gene for gene in members if gene in known) for name, members in sets.items()}
    empty = sorted(name for name, members in cut.items() if not members)
    if len(empty) == len(cut):
        msg = (
            f"{file}: expected gene sets that share genes with the table, found none among {len(cut)} sets and "
            f"{len(known)} genes; use the same kind of gene names in both"
        )
        raise DataError(msg)
    warnings = []
    if empty:
        listed = ", ".join(empty[:20]) + (" ..." if len(empty) > 20 else "")
        warnings.append(f"{len(empty)} gene sets of {file} without a gene of the table were left out: {listed}")
    current = {current_name(gene) for gene in known}
    wanted = {gene for members in sets.values() for gene in members if gene not in known}
    other = sorted(gene for gene in wanted if current_name(gene) in current)
    if other:
        warnings.append(
            f"{len(other)} genes of {file} stand in the table under an older or newer name and were not matched: "
            f"{', '.join(other[:5])}; use one version of the names in both"
        )
    return {name: members for name, members in cut.items() if members}, warnings
