"""Genes by patients or patients by genes: expression, copy number or mutation per gene, unit and log base stated.

CSV, TSV, GCT, Parquet and h5ad. Values are never converted: their unit and log base are the card's, and are compared
with what the numbers can be.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.limits import read_head
from medfuse.loaders._barcodes import look_like_barcodes, patients_of
from medfuse.loaders._genes import (
    checked_names,
    cut_sets,
    mangled_names,
    merge_genes,
    no_genes,
    read_gene_sets,
    read_gmt,
)
from medfuse.loaders._h5ad import INDEX, is_h5ad, read_h5ad, shape_of
from medfuse.loaders._look import is_gene_table, is_hdf5, is_parquet, like_genes, look, parquet_names
from medfuse.loaders._matrix import Matrix, Plan, read_matrix
from medfuse.loaders._units import check_unit
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.loaders.tabular import check_index_time, merge_rows, to_samples
from medfuse.sample import Column, ModalityData
from medfuse.tables import patient_ids
from medfuse.types import PatientId

__all__ = ["mangled_names", "read", "read_gmt", "write_example", "write_expression"]

OPTIONS = ("layer",)
_FOR_MESSAGES = 2000


def select(names: Sequence[str], pattern: str | None, *, file: str) -> tuple[list[str], list[str]]:
    """Columns that match the pattern, and what the pattern's ``*`` stands for in each.

    Raises:
        ConfigError: a pattern without exactly one ``*``.
        DataError: nothing matches.
    """
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


def _wanted(names: Sequence[str], wanted: Sequence[str | None], *, file: str) -> list[str]:
    """Those that must be there.

    Raises:
        DataError: one is not.
    """
    chosen = list(dict.fromkeys(name for name in wanted if name is not None))
    missing = next((name for name in chosen if name not in set(names)), None)
    if missing is not None:
        hint = nearest(missing, list(names)[:_FOR_MESSAGES])
        msg = (
            f"{file}: expected a column {missing!r}, found none; {hint if len(names) <= 30 else hint.split('Known')[0]}"
        )
        raise DataError(msg)
    return chosen


def _read_file(path: Path, card: ModalityCard, plan: Plan) -> Matrix:
    unknown = next((key for key in card.options if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"loader expression: no option {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)
    h5ad = path.suffix.lower() == ".h5ad"
    rows = "patients_by_genes" if h5ad else "genes_by_patients" if ".gct" in path.name.lower() else card.orientation
    if rows != card.orientation:
        msg = f"{path.name}: expected orientation: {rows}, as the format has it, found {card.orientation} in the card"
        raise ConfigError(msg)
    if not h5ad:
        if card.options:
            msg = f"{path.name}: the option layer is of h5ad files; leave it out"
            raise ConfigError(msg)
        return read_matrix(path, plan)
    return read_h5ad(path, plan, layer=str(card.options.get("layer", "X")))


Table = tuple[NDArray[np.float64], list[PatientId], list[str]]  # values (patients, genes), ids, genes


def _patients_by_genes(path: Path, card: ModalityCard, patients: tuple[str | None, str]) -> Table:
    id_column = card.id or (INDEX if path.suffix.lower() == ".h5ad" else patients[0])
    pattern = card.columns if isinstance(card.columns, str) else None
    genes: list[str] = []
    labels: list[str] = []

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        texts = _wanted(names, [id_column, card.days_from_index], file=path.name)
        labels[:], genes[:] = select([n for n in names if n not in texts], pattern, file=path.name)
        return texts, labels

    matrix = _read_file(path, card, plan)
    ids = patient_ids(matrix.texts if id_column else _rows(matrix), id_column, prefix=patients[1], file=path.name)
    check_index_time(matrix.texts, card.days_from_index, ids, file=path.name)
    values = matrix.values
    if matrix.names != labels:  # an h5ad file has columns of obs, too, and its variables all come
        place = {name: k for k, name in enumerate(matrix.names)}
        _, genes[:] = select(matrix.names, pattern, file=path.name)
        chosen, _ = select(matrix.names, pattern, file=path.name)
        values = values if len(chosen) == len(matrix.names) else values[:, [place[name] for name in chosen]]
        labels[:] = chosen
    people = patients_of(ids, card.barcode, file=path.name)
    merged, unique = merge_rows(values, people, rule=card.repeated_rows, file=path.name, names=labels)
    return merged, unique, genes


def _rows(matrix: Matrix) -> pd.DataFrame:
    return pd.DataFrame(index=range(len(matrix.values)))


def _genes_by_patients(path: Path, card: ModalityCard) -> Table:
    pattern = card.columns if isinstance(card.columns, str) else None
    samples: list[str] = []

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        label = _wanted(names, [card.id or names[0]], file=path.name)
        rest = [n for n in names if n not in label]
        if ".gct" in path.name.lower():
            rest = [n for n in rest if n not in (names[0], "Description")]
        labels, samples[:] = select(rest, pattern, file=path.name)
        return label, labels

    matrix = _read_file(path, card, plan)
    cells = matrix.texts.iloc[:, 0]
    empty = np.flatnonzero(cells.isna().to_numpy())
    if empty.size:
        msg = (
            f"{path.name}, data row {empty[0] + 1}, column {cells.name!r}: expected a gene name, found an empty cell "
            f"({empty.size} such rows); complete or remove the rows"
        )
        raise DataError(msg)
    people = patients_of(samples, card.barcode, file=path.name)
    genes = [str(cell).strip() for cell in cells]
    values, unique = merge_rows(matrix.values.T, people, rule=card.repeated_rows, file=path.name, names=genes)
    return np.ascontiguousarray(values), unique, genes


def _checked(table: Table, card: ModalityCard, *, file: str) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Values and genes as they are used, and warnings."""
    values, _, genes = table
    if look_like_barcodes(genes):
        msg = f"{file}: expected genes, found TCGA barcodes in their place; correct the card's orientation"
        raise DataError(msg)
    warnings: list[str] = []
    summaries = set(no_genes(genes))
    if summaries:
        keep = [k for k, gene in enumerate(genes) if gene not in summaries]
        values, genes = values[:, keep], [genes[k] for k in keep]
        warnings.append(f"{len(summaries)} rows of the counting program are no genes and were left out")
    genes, said = checked_names(genes, accept_mangled=card.accept_mangled, file=file)
    warnings += said
    warnings += check_unit(values, unit=str(card.unit), log_base=card.log_base, file=file)
    values, genes, said = merge_genes(values, genes, duplicates=card.duplicates, file=file)
    return values, genes, warnings + said


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read a gene table; see :func:`medfuse.loaders.read`.

    Returns:
        Layout ``columns``, one numeric column per gene; its unit is the card's, with the log base.

    Raises:
        ConfigError: an orientation or option that the format does not have.
        DataError: mangled or duplicated gene names, cells that are no numbers, values that the unit cannot have,
            patients whose rows disagree.
    """
    path = resolve(card.file or "")
    if card.orientation == "patients_by_genes":
        table = _patients_by_genes(path, card, patients)
    else:
        table = _genes_by_patients(path, card)
    values, genes, warnings = _checked(table, card, file=path.name)
    unit = str(card.unit) if card.log_base is None else f"log{card.log_base:g} {card.unit}"
    return gene_data(
        name, values, table[1], columns={gene: unit for gene in genes}, card=card, resolve=resolve, warnings=warnings
    )


def gene_data(
    name: str,
    values: NDArray[np.float64],
    ids: list[PatientId],
    *,
    columns: Mapping[str, str],
    card: ModalityCard,
    resolve: Callable[[str], Path],
    warnings: Sequence[str],
) -> ModalityData:
    """A table of genes as a modality: samples, gene sets cut to its columns, and warnings.

    Args:
        name: of the modality.
        values: (n, C), NaN where missing.
        ids: n patients.
        columns: C genes and their units.
        card: names the GMT file, if any.
        resolve: a source of the card to its path.
        warnings: so far.
    """
    said = list(warnings)
    samples = to_samples(values, ids)
    empty = [i for i in ids if i not in samples]
    if card.zscored_on is not None:
        said.append(f"published z-scores, standardised over: {card.zscored_on}")
    gene_sets: dict[str, tuple[str, ...]] = {}
    if card.gmt is not None:
        gmt = resolve(card.gmt)
        gene_sets, more = cut_sets(read_gene_sets(gmt), list(columns), file=gmt.name)
        said += more
    if empty:
        said.append(f"{len(empty)} patients have an empty row and count as absent, first {empty[0]}")
    return ModalityData(
        name=name,
        layout="columns",
        features=2,
        columns=tuple(Column(name=gene, unit=unit) for gene, unit in columns.items()),
        samples=samples,
        gene_sets=gene_sets,
        warnings=tuple(said),
    )


# --- inspection ------------------------------------------------------------------------------------------------------


def recognise(head: Head) -> bool:
    """GCT, GMT, an HDF5 file with obs and var, or a table whose columns or rows are genes."""
    suffixes = [suffix.lower() for suffix in head.path.suffixes]
    if head.start.startswith((b"#1.2", b"#1.3")) and ".gct" in suffixes:
        return True
    if ".gmt" in suffixes:
        return b"\t" in head.start
    if is_hdf5(head):
        return is_h5ad(head.path)
    if is_parquet(head):
        return is_gene_table(parquet_names(head.path)[0], ())
    table = look(head)
    return table is not None and is_gene_table(table.names, [row[0] for row in table.rows if row])


def describe(files: Sequence[Path]) -> Description:
    """Numbers of patients and genes as far as the file says which is which, and what its values look like.

    Raises:
        DataError: damaged.
    """
    path = files[0]
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if ".gmt" in suffixes:
        sets = read_gmt(path)
        holds: dict[str, Any] = {"sets": len(sets), "genes": len({g for members in sets.values() for g in members})}
        return Description(kind="gene sets (GMT)", holds=holds)
    if suffixes[-1:] == [".h5ad"] or read_head(path).startswith(b"\x89HDF"):
        rows, columns, stored, layers = shape_of(path)
        holds = {"observations": rows, "genes": columns, "stored": stored, "layers": layers}
        return Description(kind="expression (h5ad)", holds=holds, warnings=(_UNIT,))
    if suffixes[-1:] == [".parquet"]:
        names, rows = parquet_names(path)
        return Description(kind="gene table", holds={"rows": rows, "columns": len(names)}, warnings=(_UNIT,))
    return _describe_text(path, gct=".gct" in suffixes)


_UNIT = "the file does not state its unit and log base; the card must"


def _describe_text(path: Path, *, gct: bool) -> Description:
    label: list[str] = []
    assays: Counter[str] = Counter()

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        label[:] = names
        assays.update(name.rpartition("_")[2] for name in names if name.endswith(("_rnaseq", "_cnv", "_mut")))
        return [names[0]], []

    matrix = read_matrix(path, plan)
    first = [str(cell) for cell in matrix.texts.iloc[:, 0]]
    if assays:
        holds: dict[str, Any] = {"rows": len(first), **{f"genes_{assay}": count for assay, count in assays.items()}}
        return Description(kind="gene table of several assays", holds=holds, warnings=(_UNIT,))
    across = gct or not like_genes(label[1:])
    genes = first if across else label[1:]
    holds = {
        "genes": len(genes),
        "samples": len(label) - (2 if gct else 1) if across else len(first),
        "orientation": "genes_by_patients" if across else "patients_by_genes",
        "ids": "Ensembl" if sum(g.startswith("ENS") for g in genes) > len(genes) / 2 else "symbols",
    }
    _, warnings = checked_names(genes, accept_mangled=True, file=path.name)
    return Description(kind="gene table (GCT)" if gct else "gene table", holds=holds, warnings=(*warnings, _UNIT))


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Names of samples; gene sets have none."""
    path = files[0]
    if ".gmt" in [suffix.lower() for suffix in path.suffixes]:
        return []
    return [Identifying(where=f"{path.name}: sample names", kind="id")]


# --- writing ---------------------------------------------------------------------------------------------------------


def write_expression(
    path: Path, values: ArrayLike, *, patients: Sequence[str], genes: Sequence[str], decimals: int = 4
) -> None:
    """Write (patients, genes) values, NaN as an empty cell, in the format and orientation that the suffix asks for.

    Args:
        path: ``.csv`` patients in rows with the column ``patient_id``; ``.tsv`` genes in rows with the column ``gene``;
            ``.gct`` (1.2) genes in rows; ``.parquet`` as CSV.
        values: (n, G).
        patients: n ids.
        genes: G names.
        decimals: of the numbers in text.

    Raises:
        DataError: another shape or suffix.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (len(patients), len(genes)):
        msg = f"{path.name}: expected values ({len(patients)}, {len(genes)}), found {array.shape}; transpose them?"
        raise DataError(msg)
    frame = pd.DataFrame(np.round(array, decimals), columns=list(genes))
    by_gene = frame.T.set_axis(list(patients), axis=1)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        frame.insert(0, "patient_id", list(patients))
        frame.to_csv(path, index=False)
    elif suffix == ".parquet":
        frame.insert(0, "patient_id", list(patients))
        frame.to_parquet(path, index=False)
    elif suffix == ".tsv":
        by_gene.to_csv(path, sep="\t", index_label="gene")
    elif suffix == ".gct":
        by_gene.insert(0, "Description", list(genes))
        text = by_gene.to_csv(sep="\t", index_label="Name", lineterminator="\n")
        path.write_text(f"#1.2\n{len(genes)}\t{len(patients)}\n{text}", encoding="utf-8")
    else:
        msg = f"{path.name}: expected .csv, .tsv, .gct or .parquet, found {suffix or 'no suffix'}; choose one"
        raise DataError(msg)


def write_example(folder: Path) -> ModalityCard:
    """Write a small valid gene table into ``folder`` and return the card that reads it."""
    values = [[1.5, 2.0, 0.0, 7.25], [-0.5, np.nan, 1.0, 6.5], [0.0, 0.25, 2.0, 7.0]]
    genes = ["TP53", "EGFR", "BRCA1", "KRAS"]
    write_expression(folder / "genes.tsv", values, patients=["001", "002", "010"], genes=genes)
    return ModalityCard(
        loader="expression", file="genes.tsv", id="gene", orientation="genes_by_patients", unit="tpm", log_base=2
    )
