"""Genes by patients or patients by genes: expression, copy number or mutation per gene, unit and log base stated."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError
from medfuse.loaders.tabular import check_index_time, merge_rows, to_samples
from medfuse.sample import Column, ModalityData
from medfuse.tables import column, patient_ids, read_table, to_numeric
from medfuse.types import PatientId

# What spreadsheets make of SEPT1, MARCH2, DEC1 and their kin: 1-Sep, Mar-02, 2001-09-01, 44805.
_MANGLED = re.compile(
    r"^(\d{1,2}-(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
    r"|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*-\d{1,2}"
    r"|\d{4}-\d{2}-\d{2}( .*)?|[1-9]\d{4}|\d+(\.\d+)?e\+?\d+)$",
    flags=re.IGNORECASE,
)


def mangled_names(names: Sequence[str]) -> list[str]:
    """Gene names that a spreadsheet turned into a date or a number."""
    return [name for name in names if _MANGLED.match(name)]


def read_gmt(path: Path) -> dict[str, tuple[str, ...]]:
    """Gene sets of a GMT file: set name -> gene symbols, each once.

    Raises:
        DataError: no sets, other bytes than UTF-8, a line with fewer than three tab-separated fields, a set name that
            stands twice, or gene names that a spreadsheet mangled.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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


def _cut(
    sets: dict[str, tuple[str, ...]], genes: Sequence[str], *, file: str
) -> tuple[dict[str, tuple[str, ...]], str]:
    """Gene sets cut to the genes of the table, without the empty ones, and which were empty, for the warnings."""
    known = set(genes)
    cut = {name: tuple(gene for gene in members if gene in known) for name, members in sets.items()}
    empty = sorted(name for name, members in cut.items() if not members)
    if len(empty) == len(cut):
        msg = (
            f"{file}: expected gene sets that share genes with the table, found none among {len(cut)} sets and "
            f"{len(known)} genes; use the same kind of gene names in both"
        )
        raise DataError(msg)
    listed = ", ".join(empty[:20]) + (" ..." if len(empty) > 20 else "")
    warning = f"{len(empty)} gene sets of {file} without a gene of the table were left out: {listed}" if empty else ""
    return {name: members for name, members in cut.items() if members}, warning


def _select(names: Sequence[str], pattern: str | None, *, file: str) -> tuple[list[str], list[str]]:
    """Columns that match the pattern, and their gene names: what the pattern's ``*`` stands for."""
    if pattern is None:
        return list(names), list(names)
    if pattern.count("*") != 1:
        msg = (
            f"{file}: expected a pattern of columns with one *, such as '*_rnaseq', found {pattern!r}; correct the card"
        )
        raise ConfigError(msg)
    before, after = pattern.split("*")
    least = len(before) + len(after) + 1
    chosen = [name for name in names if len(name) >= least and name.startswith(before) and name.endswith(after)]
    if not chosen:
        msg = f"{file}: expected columns that match {pattern!r}, found none of {len(names)}; correct the card's columns"
        raise DataError(msg)
    return chosen, [name[len(before) : len(name) - len(after)] for name in chosen]


def _gene_cells(cells: "pd.Series[str]", *, file: str) -> list[str]:
    """Gene names of the rows.

    Raises:
        DataError: a row without one.
    """
    empty = np.flatnonzero(cells.isna().to_numpy())
    if empty.size:
        msg = (
            f"{file}, data row {empty[0] + 1}, column {cells.name!r}: expected a gene name, found an empty cell "
            f"({empty.size} such rows); complete or remove the rows"
        )
        raise DataError(msg)
    return [str(cell).strip() for cell in cells]


def _merge_genes(
    values: NDArray[np.float64], genes: list[str], card: ModalityCard, *, file: str
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    warnings: list[str] = []
    mangled = mangled_names(genes)
    if mangled and not card.accept_mangled:
        msg = (
            f"{file}: expected gene symbols, found {len(mangled)} that a spreadsheet turned into dates or numbers "
            f"({', '.join(mangled[:5])}); restore them from the source, or state accept_mangled: true"
        )
        raise DataError(msg)
    if mangled:
        warnings.append(
            f"{len(mangled)} gene names look mangled by a spreadsheet and were accepted: {', '.join(mangled[:5])}"
        )
    doubled = [gene for gene, count in Counter(genes).items() if count > 1]
    if doubled and card.duplicates == "refuse":
        msg = (
            f"{file}: expected distinct gene symbols, found {len(doubled)} that stand twice "
            f"({', '.join(doubled[:5])}); state duplicates: mean to average them"
        )
        raise DataError(msg)
    if doubled:
        averaged = pd.DataFrame(values.T).groupby(np.asarray(genes), sort=False).mean()
        warnings.append(f"{len(doubled)} duplicated gene symbols were averaged: {', '.join(doubled[:5])}")
        return averaged.to_numpy(dtype=np.float64).T, list(averaged.index), warnings
    return values, genes, warnings


def _frame_values(frame: pd.DataFrame, labels: Sequence[str], *, file: str) -> NDArray[np.float64]:
    return np.stack([to_numeric(frame[label], file=file) for label in labels], axis=1)


def _patients_by_genes(
    frame: pd.DataFrame, card: ModalityCard, patients: tuple[str | None, str], *, file: str
) -> tuple[NDArray[np.float64], list[PatientId], list[str]]:
    id_column = card.id or patients[0]
    ids = patient_ids(frame, id_column, prefix=patients[1], file=file)
    check_index_time(frame, card.days_from_index, ids, file=file)
    pattern = card.columns if isinstance(card.columns, str) else None
    skip = {id_column, card.days_from_index}
    labels, genes = _select([str(c) for c in frame.columns if c not in skip], pattern, file=file)
    values = _frame_values(frame, labels, file=file)
    merged, unique = merge_rows(values, ids, rule=card.repeated_rows, file=file, names=labels)
    return merged, unique, genes


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read a gene table; see :func:`medfuse.loaders.read`.

    Returns:
        Layout ``columns``, one numeric column per gene; its unit is the card's, with the log base.

    Raises:
        DataError: mangled or duplicated gene names, cells that are no numbers, patients whose rows disagree.
    """
    path = resolve(card.file or "")
    frame = read_table(path)
    if card.orientation == "patients_by_genes":
        values, ids, genes = _patients_by_genes(frame, card, patients, file=path.name)
    else:
        label = card.id or str(frame.columns[0])
        genes = _gene_cells(column(frame, label, file=path.name), file=path.name)
        pattern = card.columns if isinstance(card.columns, str) else None
        labels, names = _select([str(c) for c in frame.columns if c != label], pattern, file=path.name)
        values, ids = _frame_values(frame, labels, file=path.name).T, [PatientId(n) for n in names]
    values, genes, warnings = _merge_genes(values, genes, card, file=path.name)
    unit = card.unit if card.log_base is None else f"log{card.log_base:g} {card.unit}"
    samples = to_samples(values, ids)
    empty = [i for i in ids if i not in samples]
    if card.zscored_on is not None:
        warnings.append(f"published z-scores, standardised over: {card.zscored_on}")
    gene_sets: dict[str, tuple[str, ...]] = {}
    if card.gmt is not None:
        gmt = resolve(card.gmt)
        gene_sets, warning = _cut(read_gmt(gmt), genes, file=gmt.name)
        warnings += [warning] if warning else []
    if empty:
        warnings.append(f"{len(empty)} patients have an empty row and count as absent, first {empty[0]}")
    return ModalityData(
        name=name,
        layout="columns",
        features=2,
        columns=tuple(Column(name=gene, unit=unit) for gene in genes),
        samples=samples,
        gene_sets=gene_sets,
        warnings=tuple(warnings),
    )


def write_example(folder: Path) -> ModalityCard:
    """Write a small valid gene table into ``folder`` and return the card that reads it."""
    (folder / "genes.tsv").write_text(
        "gene\t001\t002\t010\nTP53\t1.5\t-0.5\t0\nEGFR\t2\t\t0.25\nBRCA1\t0\t1\t2\n", encoding="utf-8"
    )
    return ModalityCard(
        loader="expression", file="genes.tsv", id="gene", orientation="genes_by_patients", unit="tpm", log_base=2
    )
