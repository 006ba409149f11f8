"""Wide tables (a row per patient and time, a column per code) and PhysioNet 2012 records (``Time,Parameter,Value``)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from medfuse.errors import DataError
from medfuse.limits import inflate
from medfuse.loaders._event_csv import contents, members, moment, stem, table
from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import Source, quoted_name

RECORD_HEAD = b"Time,Parameter,Value"
_MICROSECONDS = {"minutes": 6e7, "hours": 3.6e9, "days": 8.64e10, "years": 3.15576e13}
_LINE = re.compile(r"(\d{1,4}):([0-5]\d),([^,]*),([^,]*)")
_LARGEST_RECORD = 64 << 20
_CHUNK = 500_000  # events that are held before they go to the engine


def source_wide(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path], options: Options) -> Source:
    """Every column but those of patient and time is a code; missing cells are no events."""
    parts, where = [], next(iter(files.values())).name
    for path in files.values():
        found = table(path, lower=False)
        for needed in (options.id, options.at):
            if needed not in found.columns:
                msg = f"{path.name}: expected a column {needed!r}, found none; it has {', '.join(found.columns[:20])}"
                raise DataError(msg)
        codes = [c for c in found.columns if c not in {options.id, options.at}]
        wanted = {c for v in options.variables for c in v.codes} | set(options.hash) | set(options.index.event)
        if not any("*" in c for c in wanted):
            codes = [c for c in codes if c in wanted]
        if not codes:
            msg = f"{path.name}: expected columns that the card's variables name, found none of them"
            raise DataError(f"{msg}; it has {', '.join(found.columns[:20])}")
        columns = ", ".join(quoted_name(c) for c in codes)
        parts.append(
            f"SELECT sid, raw, code, cell FROM (UNPIVOT (SELECT {quoted_name(str(options.id))} AS sid, "
            f"{quoted_name(str(options.at))} AS raw, {columns} "
            f"FROM {found.sql()}) ON {columns} INTO NAME code VALUE cell)"
        )
    scale = _MICROSECONDS.get(options.at_unit or "")
    time = moment("raw", options)
    if scale:
        offset = f"TRY_CAST(round(TRY_CAST(raw AS DOUBLE) * {scale:.0f}) AS BIGINT)"
        time = f"TIMESTAMP '1970-01-01' + to_microseconds({offset})"
    con.execute(
        f"CREATE TABLE events AS SELECT trim(sid) AS sid, {time} AS time, raw IS NOT NULL AS dated, code, "
        "TRY_CAST(cell AS DOUBLE) AS value, CASE WHEN TRY_CAST(cell AS DOUBLE) IS NULL THEN cell END AS text, "
        f"NULL::VARCHAR AS unit FROM ({' UNION ALL '.join(parts)})"
    )
    no_id, no_time = con.execute(
        "SELECT count(*) FILTER (sid IS NULL OR sid = ''), count(*) FILTER (dated AND time IS NULL) FROM events"
    ).fetchall()[0]
    if no_id or no_time:
        wanted_time = f"numbers of {options.at_unit}" if scale else "ISO 8601 times (state at_unit for relative times)"
        msg = f"{where}: expected a patient and {wanted_time} in every row, found {no_id} cells without a patient and "
        raise DataError(f"{msg}{no_time} with another time; correct the table")
    return Source(
        sql="SELECT sid, time, code, value, text, unit FROM events", where=where, has_unit=False, relative=bool(scale)
    )


# --- PhysioNet 2012 -------------------------------------------------------------------------------------------------


def _records(files: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    for path in files.values():
        if path.is_dir():
            for file in sorted(path.rglob("*.txt")):
                if file.resolve().is_relative_to(path.resolve()):
                    yield file.name, inflate(file, most=_LARGEST_RECORD)
        elif path.suffix.lower() == ".zip":
            chosen = [m for m in members(path) if m.filename.lower().endswith(".txt") and "__MACOSX" not in m.filename]
            yield from contents(path, chosen)
        else:
            yield path.name, inflate(path, most=_LARGEST_RECORD)


def parse_record(name: str, content: bytes) -> tuple[str, list[tuple[int, str, float]]]:
    """One record: the patient and (minute, parameter, value) of its lines.

    Lines without a parameter are no events; ``RecordID`` is the patient, else the name of the file is.

    Raises:
        DataError: another header, or a line of another form.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        msg = f"{stem(name)}: expected a record of Time,Parameter,Value, found other bytes; fetch it again"
        raise DataError(msg) from error
    if not lines or lines[0].strip() != RECORD_HEAD.decode():
        msg = f"{stem(name)}: expected the header Time,Parameter,Value, found another first line; is it a record?"
        raise DataError(msg)
    patient, rows = stem(name), []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        try:
            if match is None:
                raise ValueError
            value = float(match[4])
        except ValueError:
            msg = f"{stem(name)}, line {number}: expected HH:MM,parameter,number, found another form; fetch it again"
            raise DataError(msg) from None
        if match[3] == "RecordID":
            patient = match[4].strip()
        elif match[3]:
            rows.append((60 * int(match[1]) + int(match[2]), match[3], value))
    return patient, rows


def source_records(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path], options: Options) -> Source:
    """Events of all records, minutes after their time zero; see :class:`medfuse.loaders._event_query.Source`."""
    import pyarrow as pa

    where = next(iter(files.values())).name
    con.execute("CREATE TABLE events (sid VARCHAR, minute BIGINT, code VARCHAR, value DOUBLE)")
    held: tuple[list[str], list[int], list[str], list[float]] = ([], [], [], [])

    def hand_over() -> None:
        chunk = pa.table(dict(zip(("sid", "minute", "code", "value"), map(pa.array, held), strict=True)))
        con.register("chunk", chunk)
        con.execute("INSERT INTO events SELECT * FROM chunk")
        con.unregister("chunk")
        for column in held:
            column.clear()

    count = 0
    for name, content in _records(files):
        patient, rows = parse_record(name, content)
        count += 1
        held[0].extend([patient] * len(rows))
        held[1].extend(minute for minute, _, _ in rows)
        held[2].extend(code for _, code, _ in rows)
        held[3].extend(value for _, _, value in rows)
        if len(held[0]) > _CHUNK:
            hand_over()
    if held[0]:
        hand_over()
    if not count:
        msg = f"{where}: expected records of Time,Parameter,Value named .txt, found none; check the path"
        raise DataError(msg)
    sql = "SELECT sid, TIMESTAMP '1970-01-01' + to_microseconds(minute * 60000000) AS time, code, value, "
    return Source(
        sql=sql + "NULL::VARCHAR AS text, NULL::VARCHAR AS unit FROM events",
        where=where,
        has_text=False,
        has_unit=False,
        relative=True,
    )


def source(con: duckdb.DuckDBPyConnection, files: Mapping[str, Path], options: Options, scratch: Path) -> Source:
    """See :class:`medfuse.loaders._event_query.Source`."""
    return source_records(con, files, options) if options.format == "records" else source_wide(con, files, options)


__all__ = ["RECORD_HEAD", "parse_record", "source", "source_records", "source_wide"]
