"""Large tables of numbers with a few columns of text: CSV, TSV, GCT, Parquet and what ``read_table`` reads."""

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.tables import (
    MISSING,
    column_names,
    not_a_number,
    parquet_table,
    read_table,
    text_frame,
    text_suffix,
    to_numeric,
    unpacked,
)

Plan = Callable[[list[str]], tuple[list[str], list[str]]]  # column names -> those read as text, and as numbers

_HARD_CELLS = 500_000
LARGEST_MATRIX = 1 << 29  # cells: 4 GiB of float64


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Numbers with names.

    Attributes:
        texts: (n, t) text columns, missing cells None.
        names: of the C columns of numbers.
        values: (n, C) float64, NaN where missing.
    """

    texts: pd.DataFrame
    names: list[str]
    values: NDArray[np.float64]


def _zipped(suffixes: list[str]) -> bool:
    return suffixes[-1:] == [".zip"] or suffixes[-1:] == [".gz"]


def within_limits(rows: int, columns: int, *, where: str) -> None:
    """Refuse a matrix that would fill the memory, before it is allocated.

    Raises:
        DataError: more than 2^29 cells.
    """
    if rows * columns > LARGEST_MATRIX:
        msg = (
            f"{where}: expected at most {LARGEST_MATRIX:,} numbers, found {rows:,} x {columns:,}; "
            "split the table, or select its columns"
        )
        raise DataError(msg)


def read_matrix(path: Path, plan: Plan) -> Matrix:
    """Read a table of numbers.

    Args:
        path: CSV, TSV, TXT, GCT, ARFF (also in a zip or gzip of one file) or Parquet.
        plan: chooses columns by their names; raises DataError when one is not there.

    Raises:
        DataError: what :func:`medfuse.tables.read_table` and :func:`medfuse.tables.to_numeric` refuse.
    """
    if path.is_file() and path.suffix.lower() == ".parquet":
        return _from_parquet(path, plan)
    suffixes = [part.lower() for part in path.suffixes]
    tabbed = ".gct" in suffixes or ".seg" in suffixes
    if path.is_file() and (tabbed or text_suffix(path.name) in {".csv", ".tsv", ".txt"} or _zipped(suffixes)):
        name, content = unpacked(path)
        found = _from_gct(content, plan, where=path.name) if content.startswith(b"#1.") else None
        if found is None and ".gct" in suffixes:
            msg = f"{path.name}: expected #1.2 or #1.3 in the first line of a GCT file, found none; fetch it again"
            raise DataError(msg)
        kind = ".tsv" if tabbed else text_suffix(name) or text_suffix(path.name)
        if found is None and kind in {".csv", ".tsv", ".txt"}:
            found = _from_text(content, plan, separator="," if kind == ".csv" else "\t", where=path.name)
        if found is not None:
            return found
        if tabbed:
            return _from_frame(text_frame(content, separator="\t", where=path.name), plan, file=path.name)
        del content
    return _from_frame(read_table(path), plan, file=path.name)


def names_and_rows(path: Path) -> tuple[list[str], int]:
    """Columns of a table and the number of its rows; no cell is kept.

    Raises:
        DataError: as :func:`read_matrix`.
    """
    seen: list[str] = []

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        seen[:] = names
        return [], []

    rows = len(read_matrix(path, plan).values)
    return seen, rows


def _from_frame(frame: pd.DataFrame, plan: Plan, *, file: str) -> Matrix:
    texts, numbers = plan([str(c) for c in frame.columns])
    columns = [to_numeric(frame[name], file=file) for name in numbers]
    values = np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0))
    return Matrix(texts=frame[texts], names=numbers, values=values)


def _from_parquet(path: Path, plan: Plan) -> Matrix:
    import pyarrow as pa

    table = parquet_table(path)
    names = [str(name) for name in table.column_names]
    if len(set(names)) < len(names):
        return _from_frame(read_table(path), plan, file=path.name)  # refuses it
    texts, numbers = plan(names)
    within_limits(table.num_rows, len(numbers), where=path.name)
    values = np.empty((table.num_rows, len(numbers)))
    for k, name in enumerate(numbers):
        column = table.column(name)
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
            values[:, k] = column.cast(pa.float64()).to_numpy()
            if np.isinf(values[:, k]).any():
                row, count = int(np.flatnonzero(np.isinf(values[:, k]))[0]), int(np.isinf(values[:, k]).sum())
                raise not_a_number("inf", f"{path.name}, data row {row + 1}, column {name!r}", count=count)
        else:
            values[:, k] = to_numeric(pd.Series(_as_text(column), name=name, dtype=object), file=path.name)
    frame = pd.DataFrame({name: _as_text(table.column(name)) for name in texts}, dtype=object)
    return Matrix(texts=frame, names=numbers, values=values)


def _as_text(column: object) -> list[str | None]:
    cells = column.to_pylist()  # type: ignore[attr-defined]
    return [None if value is None or value != value else str(value) for value in cells]


def _header(content: bytes, *, separator: str, start: int, where: str) -> tuple[list[str], int] | None:
    """Names of the columns and where the rows begin; None where only a full parser can tell.

    Raises:
        DataError: a column name that stands twice.
    """
    end = content.find(b"\n", start)
    line = content[start : end if end >= 0 else len(content)].rstrip(b"\r")
    if not line or line.count(b'"') % 2 or b"\r" in line:
        return None
    try:
        cells = next(csv.reader([line.decode("utf-8-sig")], delimiter=separator))
    except (UnicodeDecodeError, csv.Error):
        return None
    names = column_names(cells)
    doubled = next((name for name, count in Counter(names).items() if count > 1), None)
    if doubled is not None:
        msg = f"{where}: expected distinct column names, found {doubled!r} more than once; rename one"
        raise DataError(msg)
    return names, end + 1 if end >= 0 else len(content)


def _from_text(content: bytes, plan: Plan, *, separator: str, where: str, start: int = 0) -> Matrix | None:
    """The table, or None where the fast pass cannot vouch for what it reads."""
    from medfuse.loaders import _numbers

    head = _header(content, separator=separator, start=start, where=where)
    if head is None:
        return None
    names, start = head
    texts, numbers = plan(names)
    action = np.full(len(names), -1, dtype=np.int64)
    place = {name: k for k, name in enumerate(names)}
    action[[place[name] for name in numbers]] = np.arange(len(numbers))
    action[[place[name] for name in texts]] = -2 - np.arange(len(texts))
    # a whole row has a separator or an end of line for each of its cells, so that memory follows the size of the file
    rows = min(content.count(b"\n", start) + 1, (len(content) - start) // max(len(names), 1) + 1)
    within_limits(rows, len(numbers), where=where)
    values = np.empty((rows, len(numbers)))
    spans = np.zeros((rows, len(texts), 2), dtype=np.int64)
    odd = np.zeros((min(_HARD_CELLS, rows * len(numbers)), 5), dtype=np.int64)
    text = np.frombuffer(content, dtype=np.uint8)[start:]
    n, n_odd, short, first_short, stopped = _numbers.scan(
        text, ord(separator), action, values, spans, _numbers.pack(MISSING), odd
    )
    if stopped or not _is_utf8(content):
        return None
    spans += start
    odd[:, 2:4] += start
    if short:
        msg = (
            f"{where}, data row {first_short + 1}: expected {len(names)} cells as in the header, found fewer "
            f"({short} such rows); the file is cut short or damaged, fetch it again"
        )
        raise DataError(msg)
    _look_again(content, odd[:n_odd], values, numbers, where=where)
    cells = {name: [_cell(content, *spans[row, k]) for row in range(n)] for k, name in enumerate(texts)}
    return Matrix(texts=pd.DataFrame(cells, dtype=object), names=numbers, values=values[:n])


def _look_again(
    content: bytes, odd: NDArray[np.int64], values: NDArray[np.float64], names: list[str], *, where: str
) -> None:
    """Numbers that need Python's float, into ``values``; what is no number is refused."""
    from medfuse.loaders import _numbers

    bad = []
    for row, column, begin, end, status in odd:
        number = np.nan
        if status == _numbers.HARD:
            number = float(content[begin:end])
        if np.isfinite(number):
            values[row, column] = number
        else:
            bad.append((column, row, begin, end))
    if bad:
        column, row, begin, end = min(bad)
        cell = content[begin:end].decode("utf-8", errors="replace")
        count = sum(1 for entry in bad if entry[0] == column)
        raise not_a_number(cell, f"{where}, data row {row + 1}, column {names[column]!r}", count=count)


def _is_utf8(content: bytes) -> bool:
    if content.isascii():
        return True
    try:
        for _ in io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig"):
            pass
    except UnicodeDecodeError:
        return False
    return True


def _cell(content: bytes, begin: int, end: int) -> str | None:
    text = content[begin:end].decode("utf-8")
    if text.startswith('"'):
        text = text[1:-1].replace('""', '"')
    return None if text in MISSING else text


def _from_gct(content: bytes, plan: Plan, *, where: str) -> Matrix:
    """GCT 1.2 and 1.3: genes in rows; the counts in its second line must agree with what is there.

    Raises:
        DataError: they do not, or the counts are no numbers.
    """
    first = content.find(b"\n")
    second = content.find(b"\n", first + 1)
    counts = [
        part for part in content[first + 1 : second].decode("ascii", errors="replace").split("\t") if part.strip()
    ]
    if first < 0 or second < 0 or len(counts) not in (2, 4) or not all(c.strip().isdigit() for c in counts):
        msg = f"{where}, line 2: expected the numbers of rows and columns of a GCT file, found others; fetch it again"
        raise DataError(msg)
    rows, columns, row_facts, column_facts = (int(c) for c in [*counts, "1", "0"][:4])
    start = second + 1
    head = _header(content, separator="\t", start=start, where=where)
    if head is None or len(head[0]) != 1 + row_facts + columns:
        found = "none that can be read" if head is None else f"{len(head[0]) - 1 - row_facts}"
        msg = f"{where}: expected {columns} columns of samples as line 2 says, found {found}; fetch the file again"
        raise DataError(msg)
    names = head[0]
    if column_facts > content.count(b"\n"):
        msg = f"{where}: expected {column_facts:,} rows of facts as line 2 says, found fewer; fetch the file again"
        raise DataError(msg)
    if column_facts:  # rows of facts about samples stand between the header and the genes
        end = head[1]
        for _ in range(column_facts):
            end = content.find(b"\n", end) + 1 or len(content)
        content, start = content[start : head[1]] + content[end:], 0
    facts = set(names[1 : 1 + row_facts])

    def without_facts(known: list[str]) -> tuple[list[str], list[str]]:
        texts, numbers = plan(known)
        return texts, [name for name in numbers if name not in facts and name != known[0]]

    matrix = _from_text(content, without_facts, separator="\t", where=where, start=start)
    if matrix is None or len(matrix.values) != rows:
        seen = "a damaged table" if matrix is None else f"{len(matrix.values)}"
        msg = f"{where}: expected {rows} rows of genes as line 2 says, found {seen}; fetch the file again"
        raise DataError(msg)
    return matrix
