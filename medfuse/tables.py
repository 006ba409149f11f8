"""Tables as they lie on disk, read as text, so that an id "001" stays "001" and a missing cell stays missing."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import DataError, nearest
from medfuse.types import PatientId

# What the common exporters write for an empty cell.
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "None", "null", "NULL", "<NA>", "."})
_DECIMAL_COMMA = re.compile(r"^[+-]?\d+,\d+$")
MAX_EXPANSION = 200  # decompressed : compressed; more is a bomb, not a table


def _text_frame(stream: io.BufferedIOBase | io.BytesIO, *, separator: str, where: str) -> pd.DataFrame:
    try:
        frame = pd.read_csv(
            stream, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", low_memory=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{where}: expected a table in UTF-8 with a header row, found damage ({error}); fetch the file again"
        raise DataError(msg) from error
    return frame.mask(frame.isin(MISSING))


def _zip_frame(path: Path) -> pd.DataFrame:
    # The one member is read by content and never extracted by its name, which may point anywhere ("../x.csv").
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if len(members) != 1:
                msg = f"{path.name}: expected a zip of one table, found {len(members)} members; unpack it first"
                raise DataError(msg)
            member = members[0]
            if member.file_size > MAX_EXPANSION * max(member.compress_size, 1):
                msg = f"{path.name}: expected an ordinary zip, found a {member.file_size} byte member of {member.compress_size} bytes; refused"
                raise DataError(msg)
            with archive.open(member) as stream:
                return _text_frame(
                    io.BytesIO(stream.read()),
                    separator="\t" if member.filename.endswith((".tsv", ".txt")) else ",",
                    where=path.name,
                )
    except zipfile.BadZipFile as error:
        msg = f"{path.name}: expected a zip file, found damage ({error}); fetch the file again"
        raise DataError(msg) from error


def _arff_frame(path: Path) -> pd.DataFrame:
    names: list[str] = []
    rows: list[list[str]] = []
    in_data = False
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("%"):
            continue
        if in_data:
            cells = [cell.strip().strip("'\"") for cell in line.split(",")]
            if len(cells) != len(names):
                msg = f"{path.name}, line {number}: expected {len(names)} cells, found {len(cells)}; fetch the file again"
                raise DataError(msg)
            rows.append(cells)
        elif line.lower().startswith("@attribute"):
            match = re.match(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s+", line, flags=re.IGNORECASE)
            if match is None:
                msg = f"{path.name}, line {number}: expected '@attribute NAME TYPE'; fetch the file again"
                raise DataError(msg)
            names.append(match.group(1).strip("'\""))
        elif line.lower().startswith("@data"):
            in_data = True
    if not in_data:
        msg = f"{path.name}: expected an ARFF file with a @data section, found none; is the file cut short?"
        raise DataError(msg)
    frame = pd.DataFrame(rows, columns=pd.Index(names), dtype=str)
    return frame.mask(frame.isin(MISSING | {"?"}))


def read_table(path: Path) -> pd.DataFrame:
    """Read CSV, TSV, ARFF, Parquet, or a zip of one CSV or TSV.

    Args:
        path: the file; its suffix says the format.

    Returns:
        A frame of str cells, missing ones NaN; row order as in the file.

    Raises:
        DataError: no such file, an unknown suffix, damage, or a column name that stands twice.
    """
    suffixes = [s.lower() for s in path.suffixes]
    suffix = suffixes[-1] if suffixes else ""
    if not path.is_file():
        msg = f"{path}: expected a file, found none; check the card's paths and --data-root"
        raise DataError(msg)
    if suffix == ".zip":
        frame = _zip_frame(path)
    elif suffix in {".csv", ".tsv", ".txt"}:
        with path.open("rb") as stream:
            frame = _text_frame(stream, separator="," if suffix == ".csv" else "\t", where=path.name)
    elif suffix == ".arff":
        frame = _arff_frame(path)
    elif suffix == ".parquet":
        frame = _parquet_frame(path)
    else:
        msg = f"{path.name}: expected .csv, .tsv, .txt, .zip, .arff or .parquet, found {suffix or 'no suffix'}"
        raise DataError(msg)
    doubled = frame.columns[frame.columns.duplicated()]
    # pandas renames a repeated header "x" to "x.1"; the original header decides.
    if len(doubled):
        msg = f"{path.name}: expected distinct column names, found {doubled[0]!r} more than once; rename one"
        raise DataError(msg)
    return frame


def _parquet_frame(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pq.read_table(path).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        msg = f"{path.name}: expected a Parquet file, found damage ({error}); fetch the file again"
        raise DataError(msg) from error
    text = frame.astype(object).where(frame.notna(), None)
    return pd.DataFrame({name: text[name].map(lambda v: None if v is None else str(v)) for name in frame.columns})


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


def to_numeric(series: "pd.Series[str]", *, file: str) -> NDArray[np.float64]:
    """Text cells as numbers; missing cells are NaN.

    Raises:
        DataError: a cell that is no number or has a decimal comma; says which row and column, never the value.
    """
    values = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(np.isnan(values) & series.notna().to_numpy())
    infinite = np.flatnonzero(np.isinf(values))
    if bad.size or infinite.size:
        row = int(bad[0]) if bad.size else int(infinite[0])
        comma = bool(bad.size) and _DECIMAL_COMMA.match(str(series.iloc[row]).strip()) is not None
        found = "a decimal comma" if comma else ("text" if bad.size else "infinity")
        todo = "export with decimal points" if comma else "correct the cell, or list the code as missing in the card"
        msg = (
            f"{file}, data row {row + 1}, column {series.name!r}: expected a number, found {found} "
            f"({bad.size + infinite.size} such cells); {todo}"
        )
        raise DataError(msg)
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
