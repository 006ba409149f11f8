"""MEDS: Parquet files of subject_id, time, code and numeric_value; text, unit and reference range where there."""

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from medfuse.errors import DataError
from medfuse.limits import LARGEST_RATIO
from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import Source, quoted

NEEDED = ("subject_id", "time", "code")
_ROW_BYTES = 24  # of one event in memory: subject, time, code
_FREE = 64 << 20
_TEXT = ("text_value",)
_RANGES = (("range_low", "range_high"), ("ref_range_lower", "ref_range_upper"))
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
        found = pq.read_schema(path)
        found.names  # noqa: B018  # decoded here, where damage is refused
        return found
    except (pa.ArrowException, OSError, ValueError) as error:
        msg = f"{path.name}: expected a whole Parquet file, found damage ({type(error).__name__}); fetch it again"
        raise DataError(msg) from error


def _counted(path: Path) -> None:
    """Refuse sizes that the file cannot hold, and events of nobody, by what the end of the file declares.

    Raises:
        DataError: more than 400 times as much data as bytes, or a subject or code that is null.
    """
    try:
        end = pq.read_metadata(path)
        declared = [end.row_group(i).total_byte_size for i in range(end.num_row_groups)]
        large = max(_ROW_BYTES * end.num_rows, sum(declared))
        nulls = {"subject_id": 0, "code": 0}
        for group, column in ((i, j) for i in range(end.num_row_groups) for j in range(end.num_columns)):
            found = end.row_group(group).column(column)
            if found.path_in_schema in nulls and found.is_stats_set and found.statistics.has_null_count:
                nulls[found.path_in_schema] += found.statistics.null_count
    except (pa.ArrowException, OSError, ValueError) as error:
        msg = f"{path.name}: expected a whole Parquet file, found damage ({type(error).__name__}); fetch it again"
        raise DataError(msg) from error
    size = path.stat().st_size
    if min(declared, default=0) < 0 or large > max(_FREE, LARGEST_RATIO * size):
        msg = f"{path.name}: expected at most {LARGEST_RATIO} times its {size >> 10} KiB, found {large >> 20} MiB"
        raise DataError(f"{msg} declared; a decompression bomb? write it again if it is real")
    for name, count in nulls.items():
        if count:
            msg = f"{path.name}: expected a {name} in every event, found {count} without; correct the dataset"
            raise DataError(msg)


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
        _counted(file)
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
        code = "regexp_replace(code, '^(.*)//.*$', '\\1')"
        unit_sql = "nullif(regexp_extract(code, '^.*//(.*)$', 1), '')"
    ends = next((pair for pair in _RANGES if set(pair) <= set(names.names)), None)
    ranges = f", {ends[0]}::DOUBLE AS low, {ends[1]}::DOUBLE AS high" if ends else ""
    listed = ", ".join(quoted(str(p)) for p in paths)
    sql = (
        f"SELECT subject_id AS sid, {time} AS time, {code}::VARCHAR AS code, {value} AS value, "
        f"{f'left({text}::VARCHAR, 1000)' if text else 'NULL::VARCHAR'} AS text, {unit_sql} AS unit{ranges} "
        f"FROM read_parquet([{listed}], union_by_name = true)"
    )
    return Source(
        sql=sql,
        where=where,
        has_text=text is not None,
        has_unit=unit is not None or options.unit_in_code,
        has_range=ends is not None,
    )
