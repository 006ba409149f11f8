"""What a table of text is, from its first rows: genes, feature vectors, or columns of any kind."""

import csv
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medfuse.errors import DataError
from medfuse.limits import read_head
from medfuse.loaders.base import Head
from medfuse.tables import text_suffix

_LOOK = 1 << 16
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{11}(\.\d+)?$")
_SYMBOL = re.compile(r"^(?:[A-Z][A-Z0-9]{1,9}(?:-[A-Z0-9]{1,5})?|C(?:\d{1,2}|X)orf\d+|[A-Z0-9]+\.\d)$")
_ASSAY = re.compile(r"^(.+)_(?:rnaseq|cnv|mut)$")
_GENE_COLUMN = {"gene", "genes", "geneid", "genename", "genesymbol", "hugosymbol", "symbol", "ensembl", "ensemblid"}
_GENE_COLUMN |= {"ensemblgeneid", "hgncsymbol", "ensg"}
_MANY = 100


@dataclass(frozen=True, kw_only=True)
class Look:
    """The first rows of a table.

    Attributes:
        names: of the columns; the last may be cut off.
        rows: cells of whole rows below, as far as they were read.
        separator: between cells.
    """

    names: list[str]
    rows: list[list[str]]
    separator: str


def _start(path: Path) -> tuple[str, bytes]:
    """Name that tells the format, and the beginning of the content, of a file that may be packed."""
    if path.suffix.lower() != ".zip":
        return path.name, read_head(path, size=_LOOK)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if len(members) != 1:
                return "", b""
            with archive.open(members[0]) as file:
                return members[0].filename, file.read(_LOOK)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError):
        return "", b""


def look(head: Head) -> Look | None:
    """The first rows of a delimited text; None where the file is none."""
    suffix = text_suffix(head.path.name)
    if head.path.suffix.lower() not in {".csv", ".tsv", ".txt", ".zip", ".gz"}:
        return None
    name, start = _start(head.path)
    suffix = text_suffix(name) or suffix
    if suffix not in {".csv", ".tsv", ".txt"} or not start or b"\0" in start:
        return None
    separator = "," if suffix == ".csv" else "\t"
    text = start.decode("utf-8-sig", errors="replace")
    whole = text if len(start) < _LOOK else text.rpartition("\n")[0] or text
    try:
        lines = [row for row in csv.reader(whole.splitlines(), delimiter=separator) if row]
    except csv.Error:
        return None
    if not lines or len(lines[0]) < 2 or (suffix == ".txt" and any(len(r) != len(lines[0]) for r in lines[1:6])):
        return None  # a text with a tab is no table
    return Look(names=[cell.strip() for cell in lines[0]], rows=lines[1:], separator=separator)


def like_genes(names: Sequence[str]) -> bool:
    """Whether nearly all names look like Ensembl ids or symbols of genes."""
    named = [name for name in names if name]
    if not named:
        return False
    hits = sum(1 for name in named if _ENSEMBL.match(name) or _SYMBOL.match(name))
    return hits >= 0.9 * len(named)


def is_gene_table(names: Sequence[str], first_column: Sequence[str]) -> bool:
    """Whether columns (a hundred or more) or the first cells of rows are genes."""
    assays = sum(1 for name in names if _ASSAY.match(name))
    if assays >= _MANY or (len(names) > _MANY and like_genes(names[1:-1])):
        return True
    label = re.sub(r"[^a-z]", "", names[0].lower())
    several = len(set(first_column)) == len(first_column) > 0
    return len(names) > 2 and label in _GENE_COLUMN and several and like_genes(first_column)


def is_vectors(names: Sequence[str]) -> bool:
    """Whether the columns behind the first are numbered features (0, 1, 2 ..., f0, feature_0 ...)."""
    tails = [re.sub(r"^(?:f|x|dim|feat|feature|embedding)_?", "", name.lower()) for name in names[1:-1]]
    if len(tails) < 8 or not all(t.isdigit() and len(t) < 8 for t in tails):
        return False
    return int(tails[-1]) - int(tails[0]) == len(tails) - 1


def parquet_names(path: Path) -> tuple[list[str], int]:
    """Columns and number of rows of a Parquet file, from its footer.

    Raises:
        DataError: damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.ParquetFile(path)
        return [str(name) for name in meta.schema_arrow.names], int(meta.metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        msg = f"{path.name}: expected a whole Parquet file, found damage ({type(error).__name__}); fetch the file again"
        raise DataError(msg) from error


def is_parquet(head: Head) -> bool:
    """By its mark."""
    return head.start.startswith(b"PAR1")


def is_hdf5(head: Head) -> bool:
    """By its mark."""
    return head.start.startswith(b"\x89HDF\r\n\x1a\n")


def shown(names: Sequence[str], *, most: int = 20) -> list[str]:
    """Names of columns for people: the first, and how many more."""
    return [*names[:most], *([f"... {len(names) - most} more"] if len(names) > most else [])]
