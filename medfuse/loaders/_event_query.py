"""From a relation of events to what may be seen at the index time.

Nothing but :func:`visible_sql` looks at events: whatever is computed afterwards reads its view, so that an event after
the index time cannot reach an output.
"""

import contextlib
import fnmatch
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from medfuse.errors import DataError
from medfuse.loaders._event_options import Index, Options

MEMORY = "4GB"  # beyond it DuckDB spills to a temporary folder
LARGEST = 1e15  # a larger number (and NaN) is no measurement: an event without a value; sums stay exact below it
BATCH = 1 << 18  # rows
DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True, kw_only=True)
class Source:
    """Events as an adapter offers them.

    Attributes:
        sql: a query with columns ``sid``, ``time`` (TIMESTAMP), ``code``, ``value`` (DOUBLE), ``text``, ``unit``,
            and with ``has_range`` also ``low`` and ``high`` (the reference range in the value's own unit).
        where: of the messages.
        has_text, has_unit, has_range: whether ``text``, ``unit`` and the range can be anything but NULL.
        relative: times are offsets from 1970-01-01, the time zero of each patient.
        warnings: what the adapter saw.
    """

    sql: str
    where: str
    has_text: bool = True
    has_unit: bool = True
    has_range: bool = False
    relative: bool = False
    warnings: tuple[str, ...] = ()


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def quoted_name(name: str) -> str:
    """A column name in SQL."""
    return '"' + name.replace('"', '""') + '"'


@contextlib.contextmanager
def connection(where: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """An in-memory database that spills beyond ``MEMORY``, and a folder that vanishes after it.

    Its errors on files become DataErrors without its words, which may hold cells.

    Raises:
        DataError: whatever the engine refuses.
    """
    with tempfile.TemporaryDirectory(prefix="medfuse-events-") as folder:
        con = duckdb.connect(
            config={
                "memory_limit": MEMORY,
                "temp_directory": folder,
                "threads": os.cpu_count() or 1,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                "preserve_insertion_order": False,
            }
        )
        try:
            con.execute("SET enable_progress_bar = false")
            yield con, Path(folder)
        except duckdb.OutOfMemoryException as error:
            msg = f"{where}: expected events that fit {MEMORY} with spilling, found more; is a file damaged?"
            raise DataError(msg) from error
        except duckdb.Error as error:
            kind = type(error).__name__.removesuffix("Exception")
            msg = f"{where}: expected whole files of the stated format, found damage or other columns"
            todo = "fetch them again, or look at them with medfuse inspect"
            raise DataError(f"{msg} ({kind}){hint(error)}; {todo}") from None
        finally:
            con.close()


def stream(con: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.RecordBatch]:
    """The rows of a query in batches that are not empty, or one that is.

    Raises:
        duckdb.Error: whatever the engine refuses on the way (Arrow would give it another type).
    """
    try:
        reader = con.sql(sql).to_arrow_reader(BATCH)
        found = False
        for batch in reader:
            if len(batch):
                found = True
                yield batch
        if not found:
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
    except (pa.ArrowException, OSError) as error:
        kind = duckdb.OutOfMemoryException if "Out of Memory" in str(error) else duckdb.InvalidInputException
        raise kind(str(error)) from error


def fill(con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows into a table at once."""
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        con.execute(f"INSERT INTO {table} SELECT {', '.join(['unnest(?)'] * len(columns))}", columns)


def hint(error: duckdb.Error) -> str:
    """What an engine's message says of columns; its other words may hold cells."""
    found = re.search(r'[Cc]olumn "(\w+)"|Referenced column "(\w+)"|column named "?(\w+)', str(error))
    return f" (no column {next(g for g in found.groups() if g)})" if found else ""


# --- which codes are wanted ---------------------------------------------------------------------------------------


def _matches(codes: Iterable[str], patterns: Sequence[str]) -> list[str]:
    exact = {p for p in patterns if "*" not in p}
    wild = [re.compile(fnmatch.translate(p.replace("[", "[[]").replace("?", "[?]"))) for p in patterns if "*" in p]
    if not wild:
        return sorted(exact.intersection(codes))
    return [code for code in codes if code in exact or any(w.fullmatch(code) for w in wild)]


def _all_codes(con: duckdb.DuckDBPyConnection, source: Source) -> list[str]:
    rows = con.execute(f"SELECT DISTINCT code FROM ({source.sql}) WHERE code IS NOT NULL ORDER BY 1").fetchall()
    if any(row[0] is None for row in rows):  # the file's statistics say that there is none, so the engine let it pass
        msg = "events: expected a code in every event, as the file's statistics say, found events without"
        raise DataError(f"{msg}; the file is damaged, fetch it again")
    return [row[0] for row in rows]


def bucket(code: str, buckets: int) -> int:
    """The bucket of a code: CRC-32 of its UTF-8, modulo the number of buckets."""
    return zlib.crc32(code.encode()) % buckets


def _map_codes(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> None:
    """Table ``map``: code, its number, var, level, static, ever; from the card alone."""
    patterns = [c for v in options.variables for c in v.codes] + list(options.hash)
    codes = _all_codes(con, source) if any("*" in p for p in patterns) else sorted(set(patterns))
    rows: list[tuple[str, int, int | None, bool, bool]] = []
    for k, variable in enumerate(options.variables):
        levels = {code: n for n, code in enumerate((variable.level_codes or {}).values())}
        rows += [(c, k, levels.get(c), variable.static, variable.ever) for c in _matches(codes, variable.codes)]
    named = {row[0] for row in rows}
    first = len(options.variables)
    for code in _matches(codes, options.hash):
        if code not in named:
            rows.append((code, first + bucket(code, options.buckets), None, False, False))
    con.execute(
        "CREATE TABLE map (code VARCHAR, var INTEGER, level INTEGER, static BOOLEAN, ever BOOLEAN, number INTEGER)"
    )
    fill(con, "map", [(*row, number) for number, row in enumerate(rows)])


# --- index time and the one filter ----------------------------------------------------------------------------------


def index_from_events(con: duckdb.DuckDBPyConnection, source: Source, index: Index) -> None:
    """Table ``idx`` from the first event of each subject among some codes."""
    wild = any("*" in code for code in index.event)
    codes = _matches(_all_codes(con, source), index.event) if wild else list(index.event)
    con.execute("CREATE TABLE idx_codes AS SELECT unnest(?::VARCHAR[]) AS code", [codes])
    shift = round(index.after_hours * 3.6e9)
    con.execute(
        f"CREATE TABLE idx AS SELECT sid, min(time) + to_microseconds({shift}) AS at FROM ({source.sql}) "
        "SEMI JOIN idx_codes USING (code) WHERE time IS NOT NULL AND isfinite(time) GROUP BY sid"
    )


def uses_ranges(options: Options) -> bool:
    """Whether the reference range beside each value is used."""
    return any(v.reference == "source" for v in options.variables)


def visible_sql(con: duckdb.DuckDBPyConnection, source: Source, options: Options, *, at: str | None) -> None:
    """Views ``seen`` and ``visible``: events of the card's codes at or before the index time, within the lookback.

    Args:
        con: with tables ``map`` and, unless ``at`` is given, ``idx``.
        source: all events.
        options: lookback and what becomes of duplicates.
        at: an SQL timestamp when the index time is the same for everybody.
    """
    when = at or "i.at"
    join = "" if at else "JOIN idx i ON e.sid = i.sid"
    back = f"e.time >= {when} - to_microseconds({round(options.lookback_days * DAY)})"
    if any(v.ever for v in options.variables):
        back = f"({back} OR m.ever)"
    keep = f"(e.time <= {when} AND {back} AND isfinite(e.time))"
    if any(v.static for v in options.variables):
        keep = f"({keep} OR (e.time IS NULL AND m.static))"
    extra = (", e.text" if source.has_text else "") + (", e.unit" if source.has_unit else "")
    extra += ", e.low, e.high" if uses_ranges(options) else ""
    level = ", m.level" if any(v.level_codes for v in options.variables) else ""
    con.execute(
        f"CREATE VIEW seen AS SELECT e.sid, m.var, m.number AS cn, epoch_us({when}) - epoch_us(e.time) AS age, "
        f"CASE WHEN abs(e.value) <= {LARGEST:.0f} THEN e.value::DOUBLE END AS value{extra}{level} "
        f"FROM ({source.sql}) e JOIN map m ON e.code = m.code {join} WHERE {keep}"
    )
    if options.duplicates == "refuse":
        many, distinct = con.execute(
            "SELECT (SELECT count(*) FROM seen), (SELECT count(*) FROM (SELECT DISTINCT * FROM seen))"
        ).fetchall()[0]
        if many != distinct:
            msg = f"{source.where}: expected events once, found {many - distinct} repeated rows; state duplicates: drop"
            raise DataError(msg)
    once = "DISTINCT" if options.duplicates == "drop" else ""
    con.execute(f"CREATE VIEW visible AS SELECT {once} * FROM seen")


def prepare(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> None:
    """Everything up to the view ``visible``; the table ``idx`` is there unless the index time is one for all."""
    if uses_ranges(options) and not source.has_range:
        msg = f"{source.where}: expected reference ranges beside the values, found no such columns"
        raise DataError(f"{msg}; state reference: [low, high] in the card")
    _map_codes(con, source, options)
    at = None
    if options.index.time or options.index.start:
        shift = round(options.index.after_hours * 3.6e9)
        base = options.index.time or "1970-01-01 00:00:00"
        at = str(con.execute(f"SELECT TIMESTAMP {quoted(base)} + to_microseconds({shift})").fetchall()[0][0])
        at = f"TIMESTAMP {quoted(at)}"
    elif options.index.event:
        index_from_events(con, source, options.index)
    visible_sql(con, source, options, at=at)
