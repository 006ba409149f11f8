"""Tables as they lie on disk, read as text, so that an id "001" stays "001" and a missing cell stays missing."""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import DataError, nearest
from medfuse.limits import inflate
from medfuse.types import PatientId

if TYPE_CHECKING:
    import pyarrow as pa

# What the common exporters write for an empty cell.
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "None", "null", "NULL", "<NA>", "."})
TEXT_TABLES = (".csv", ".tsv", ".txt", ".arff")
_ATTRIBUTE = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s+\S", flags=re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"^[+-]?\d+,\d+$")
_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", flags=re.IGNORECASE)
_WIDEST = 100_000  # columns of a table of cells of any kind
_FREE = 64 << 20  # bytes that any file may take in memory
_PARQUET_EXPANSION = 400  # numbers in memory over bytes of a Parquet file
MAX_EXPANSION = 200  # decompressed : compressed; more is a bomb, not a table


def _named(frame: pd.DataFrame, *, where: str) -> pd.DataFrame:
    """The frame, unless a column name stands twice."""
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        msg = f"{where}: expected distinct column names, found {str(doubled[0])!r} more than once; rename one"
        raise DataError(msg)
    return frame


def column_names(header: list[str]) -> list[str]:
    """Names of the columns; one without is ``Unnamed: POSITION``, or what follows where a column is called that."""
    names = [name.strip() for name in header]
    taken = set(names)
    for i, name in enumerate(names):
        if not name:
            made = f"Unnamed: {i}"
            while made in taken:
                made += "_"
            names[i] = made
            taken.add(made)
    return names


def text_frame(content: bytes, *, separator: str, where: str) -> pd.DataFrame:
    """A delimited text with a header row, every cell as text.

    The header is read as a row: pandas would rename a repeated column, and take a surplus cell for an index.

    Raises:
        DataError: damage, a row of another length, or a column name that stands twice.
    """
    wide = content[: content.find(b"\n") + 1 or len(content)].count(separator.encode()) + 1
    if wide > _WIDEST:
        msg = f"{where}: expected at most {_WIDEST:,} columns, found {wide:,}; give genes or sites as rows"
        raise DataError(msg)
    try:
        rows = pd.read_csv(
            io.BytesIO(content),
            sep=separator,
            dtype=str,
            header=None,
            keep_default_na=False,
            encoding="utf-8-sig",
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        found = str(error).strip().splitlines()[-1]
        msg = f"{where}: expected a table in UTF-8 with a header row, found damage ({found}); fetch the file again"
        raise DataError(msg) from error
    names = column_names([str(name) for name in rows.iloc[0]])
    frame = rows.iloc[1:].reset_index(drop=True).set_axis(pd.Index(names), axis=1)
    _whole_rows(content, separator=separator, cells=len(names), where=where)
    return _named(frame.mask(frame.isin(MISSING)), where=where)


def _whole_rows(content: bytes, *, separator: str, cells: int, where: str) -> None:
    """Refuse rows with fewer cells than the header: pandas would fill them with empty cells."""
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=""), delimiter=separator)
    try:
        short = [row for row, line in enumerate(lines) if line and len(line) < cells]
    except csv.Error as error:
        msg = f"{where}: expected a table of ordinary cells, found damage ({error}); fetch the file again"
        raise DataError(msg) from error
    if short:
        msg = (
            f"{where}, data row {short[0]}: expected {cells} cells as in the header, found fewer "
            f"({len(short)} such rows); the file is cut short or damaged, fetch it again"
        )
        raise DataError(msg)


def _member(path: Path) -> tuple[str, bytes]:
    """Name and content of the one member of a zip; never extracted by its name, which may point anywhere."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        if len(members) != 1:
            msg = f"{path.name}: expected a zip of one table, found {len(members)} members; unpack it first"
            raise DataError(msg)
        member = members[0]
        if member.file_size > MAX_EXPANSION * max(member.compress_size, 1):
            msg = (
                f"{path.name}: expected an ordinary zip, found a member of {member.file_size} bytes in "
                f"{member.compress_size}; refused, unpack it yourself if it is what you want"
            )
            raise DataError(msg)
        return member.filename, archive.read(member)


def _gunzipped(path: Path) -> bytes:
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            msg = "no gzip file"
            raise OSError(msg)
    content = inflate(path, ratio=MAX_EXPANSION)
    if len(content) > MAX_EXPANSION * max(path.stat().st_size, 1):
        msg = f"{path.name}: expected an ordinary gzip file, found one that grows {MAX_EXPANSION}-fold; refused"
        raise DataError(msg)
    return content


def unpacked(path: Path) -> tuple[str, bytes]:
    """Name that tells the format, and content, of a text table that may be packed."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            return _member(path)
        if suffix == ".gz":
            return path.stem, _gunzipped(path)
        return path.name, path.read_bytes()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        msg = f"{path.name}: expected a whole {suffix} file without a password, found damage ({error}); fetch it again"
        raise DataError(msg) from error


def _arff_cells(line: str) -> list[str]:
    quote = '"' if '"' in line else "'"
    row = next(csv.reader([line], quotechar=quote, escapechar="\\", skipinitialspace=True))
    return [cell.strip() for cell in row]


def _arff_frame(content: bytes, *, where: str) -> pd.DataFrame:
    """Dense ARFF with numeric, nominal, text and ``?`` cells."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        msg = f"{where}: expected an ARFF file in UTF-8, found other bytes; fetch the file again"
        raise DataError(msg) from error
    names: list[str] = []
    rows: list[list[str]] = []
    in_data = False
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith("%"):
            continue
        if in_data:
            cells = _arff_cells(line)
            if len(cells) != len(names) or line.startswith("{"):
                msg = f"{where}, line {number}: expected {len(names)} cells, found {len(cells)}; fetch the file again"
                raise DataError(msg)
            rows.append(cells)
        elif line.lower().startswith("@attribute"):
            match = _ATTRIBUTE.match(line)
            if match is None:
                msg = (
                    f"{where}, line {number}: expected '@attribute NAME TYPE', found another form; fetch the file again"
                )
                raise DataError(msg)
            names.append(match.group(1).strip("'\""))
        elif line.lower().startswith("@data"):
            in_data = True
    if not in_data or not names:
        msg = f"{where}: expected an ARFF file with attributes and a @data section, found none; is the file cut short?"
        raise DataError(msg)
    frame = pd.DataFrame(rows, columns=pd.Index(names), dtype=object)
    return _named(frame.mask(frame.isin(MISSING | {"?"})), where=where)


def parquet_table(path: Path) -> "pa.Table":
    """Content of a Parquet file.

    Raises:
        DataError: damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        cells = file.metadata.num_rows * file.metadata.num_columns
        if cells * 8 > max(_FREE, _PARQUET_EXPANSION * path.stat().st_size):
            msg = (
                f"{path.name}: expected a table that fits its file, found {cells:,} cells in {path.stat().st_size:,} "
                "bytes; a decompression bomb? write it as CSV if it is real"
            )
            raise DataError(msg)
        table = file.read()
        table.validate(full=True)  # text that is no UTF-8 would be found by whoever reads the cells
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        msg = f"{path.name}: expected a whole Parquet file, found damage ({error}); fetch the file again"
        raise DataError(msg) from error


def _parquet_frame(path: Path) -> pd.DataFrame:
    table = parquet_table(path)
    # Whole numbers stay whole beside missing cells, and what pandas kept as an index comes as a column.
    _named(pd.DataFrame(columns=pd.Index(table.column_names)), where=path.name)
    cells = {
        name: [None if value is None or value != value else str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }
    return pd.DataFrame(cells, dtype=object)


def text_suffix(name: str) -> str:
    """Suffix of a text table: ".csv" for "../folder/x.csv.zip", the name that pandas gives a packed member."""
    parts = re.split(r"[/\\\\]", name.lower())[-1].split(".")[1:]
    known = [f".{part}" for part in parts if part not in {"zip", "gz"}]
    return known[-1] if known and known[-1] in TEXT_TABLES else ""


def read_table(path: Path) -> pd.DataFrame:
    """Read CSV, TSV or ARFF, plain or in a zip or gzip of one file, or Parquet.

    Args:
        path: the file; its suffix says the format.

    Returns:
        A frame of str cells, missing ones NaN or None; row order as in the file.

    Raises:
        DataError: no such file, an unknown suffix, damage, a row of another length, or a column name that stands twice.
    """
    if not path.is_file():
        msg = f"{path}: expected a file, found none; check the card's paths and --data-root"
        raise DataError(msg)
    if path.suffix.lower() == ".parquet":
        return _parquet_frame(path)
    if path.suffix.lower() in {*TEXT_TABLES, ".zip", ".gz"}:
        name, content = unpacked(path)
        suffix = text_suffix(name) or text_suffix(path.name)
        if suffix == ".arff":
            return _arff_frame(content, where=path.name)
        if suffix in TEXT_TABLES:
            return text_frame(content, separator="," if suffix == ".csv" else "\t", where=path.name)
    msg = (
        f"{path.name}: expected {', '.join(TEXT_TABLES)} (also in .zip or .gz) or .parquet, found "
        f"{path.suffix or 'no suffix'}; convert the table"
    )
    raise DataError(msg)


def column(frame: pd.DataFrame, name: str, *, file: str) -> "pd.Series[str]":
    """A column that must be there.

    Raises:
        DataError: it is not; names the file and the nearest column.
    """
    if name not in frame.columns:
        known = [str(c) for c in frame.columns][:2000]
        hint = nearest(name, known).split(" Known:")[0] if len(known) > 30 else nearest(name, known)
        msg = f"{file}: expected a column {name!r}, found none; {hint}"
        raise DataError(msg)
    return frame[name]


def not_a_number(cell: str, where: str, *, count: int) -> DataError:
    """The refusal of a cell: what kind of text it is, never the text."""
    comma = _DECIMAL_COMMA.match(cell.strip()) is not None
    infinite = cell.strip().lower().lstrip("+-") in {"inf", "infinity"} or _NUMBER.match(cell.strip()) is not None
    found = "a decimal comma" if comma else "infinity" if infinite else "text"
    todo = "export with decimal points" if comma else "correct the cell, or list the code as missing in the card"
    return DataError(f"{where}: expected a number, found {found} ({count} such cells); {todo}")


def _with_zero_bytes(series: "pd.Series[str]") -> NDArray[np.bool_]:
    return np.array([isinstance(cell, str) and "\0" in cell for cell in series], dtype=bool)


def to_numeric(
    series: "pd.Series[str]", *, file: str, where: Callable[[int], str] | None = None
) -> NDArray[np.float64]:
    """Text cells as numbers, to the last bit of what the text says; missing cells are NaN.

    Args:
        series: (n,) cells.
        file: for messages.
        where: names row i in messages; default: data row i + 1.

    Raises:
        DataError: a cell that is no finite number or has a decimal comma; says row and column, never the value.
    """
    given = series.notna().to_numpy()
    parsed = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
    finite = np.isfinite(parsed) & ~_with_zero_bytes(series)  # pandas stops at a byte of zero
    bad = np.flatnonzero(given & ~finite)
    if bad.size:
        row = int(bad[0])
        place = where(row) if where else f"data row {row + 1}"
        raise not_a_number(str(series.iloc[row]), f"{file}, {place}, column {str(series.name)!r}", count=bad.size)
    values = np.full(len(series), np.nan)
    values[finite] = series.to_numpy(dtype=object)[finite].astype(np.float64)  # pandas' own parser rounds the last bits
    return values


def patient_ids(frame: pd.DataFrame, id_column: str | None, *, prefix: str, file: str) -> list[PatientId]:
    """Ids of a table's rows as text; without an id column they are row numbers.

    Raises:
        DataError: a row without an id.
    """
    if id_column is None:
        return [PatientId(f"{prefix}{row + 1:03d}") for row in range(len(frame))]
    cells = column(frame, id_column, file=file)
    empty = np.flatnonzero(cells.isna().to_numpy())
    if empty.size:
        msg = f"{file}, data row {empty[0] + 1}, column {id_column!r}: expected a patient id, found an empty cell"
        raise DataError(msg)
    return [PatientId(str(cell).strip()) for cell in cells]


def same_code(cell: str, code: str) -> bool:
    """Whether a cell holds a declared code; codes that are numbers compare as numbers, so "0.0" is "0"."""
    if cell == code:
        return True
    try:
        return float(cell) == float(code)
    except ValueError:
        return False
