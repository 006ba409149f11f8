"""MEDS: Parquet files of subject_id, time, code and numeric_value, with text_value and unit where they are there."""

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from medfuse.errors import DataError
from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import Source, quoted

NEEDED = ("subject_id", "time", "code")
_TEXT = ("text_value",)
_UNIT = ("unit", "units", "value_unit")


def data_files(path: Path) -> list[Path]:
    """The event files of a MEDS folder (``data/**/*.parquet``, or all but ``metadata``), or the file itself.

    Links out of the folder are not followed.
    """
    if path.is_file():
        return [path]
    base = path / "data" if (path / "data").is_dir() else path
    inside = path.resolve()
    found = sorted(p for p in base.rglob("*.parquet") if "metadata" not in p.relative_to(path).parts[:-1])
    return [p for p in found if p.resolve().is_relative_to(inside)]


def schema(path: Path) -> pa.Schema:
    """Columns of a Parquet file, from its end.

    Raises:
        DataError: not a whole Parquet file.
    """
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        msg = f"{path.name}: expected a whole Parquet file, found damage ({type(error).__name__}); fetch it again"
        raise DataError(msg) from error


def _checked(files: list[Path]) -> pa.Schema:
    first: pa.Schema | None = None
    for file in files:
        found = schema(file)
        missing = [name for name in NEEDED if name not in found.names]
        if missing:
            hint = " (the nested layout of MEDS 0.1: flatten it)" if "events" in found.names else ""
            msg = f"{file.name}: expected MEDS columns {', '.join(NEEDED)}, found no {missing[0]}{hint}"
            raise DataError(f"{msg}; is it an event file of a MEDS dataset?")
        if first is not None and set(found.names) != set(first.names):
            msg = f"{file.name}: expected the columns of {files[0].name}, found others; write the shards alike"
            raise DataError(msg)
        first = found if first is None else first
    assert first is not None
    return first


def source(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path], options: Options, scratch: Path) -> Source:
    """See :class:`medfuse.loaders._event_query.Source`."""
    paths = [file for path in files.values() for file in data_files(path)]
    where = next(iter(files.values())).name
    if not paths:
        msg = f"{where}: expected Parquet files of events in a MEDS folder, found none; check the path"
        raise DataError(msg)
    names = _checked(paths)
    kind = names.field("time").type
    time = "time::TIMESTAMP"
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        time = "timezone('UTC', time)"
    elif pa.types.is_date(kind):
        end = " + INTERVAL 1 DAY - to_microseconds(1)" if options.date_only == "end" else ""
        time = f"(time::TIMESTAMP{end})"
    elif not pa.types.is_timestamp(kind):
        msg = f"{where}: expected a column time of timestamps, found {kind}; write the dataset as MEDS 0.3 or later"
        raise DataError(msg)
    value = "numeric_value::DOUBLE" if "numeric_value" in names.names else "NULL::DOUBLE"
    text = next((name for name in _TEXT if name in names.names), None)
    unit = next((name for name in _UNIT if name in names.names), None)
    code, unit_sql = "code", f"{unit}::VARCHAR" if unit else "NULL::VARCHAR"
    if options.unit_in_code:
        code, unit_sql = "regexp_replace(code, '//[^/]*$', '')", "nullif(regexp_extract(code, '//([^/]*)$', 1), '')"
    listed = ", ".join(quoted(str(p)) for p in paths)
    sql = (
        f"SELECT subject_id AS sid, {time} AS time, {code}::VARCHAR AS code, {value} AS value, "
        f"{f'{text}::VARCHAR' if text else 'NULL::VARCHAR'} AS text, {unit_sql} AS unit "
        f"FROM read_parquet([{listed}], union_by_name = true)"
    )
    return Source(sql=sql, where=where, has_text=text is not None, has_unit=unit is not None or options.unit_in_code)
