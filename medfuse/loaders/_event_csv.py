"""Tables of events as CSV, plain, in gzip or in one zip: found by their names, read as text, never loaded whole."""

import csv
import functools
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import duckdb

from medfuse.errors import DataError
from medfuse.limits import check_text, read_head
from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import Source, hint, quoted, quoted_name
from medfuse.tables import MISSING

_RATIO = 400  # unpacked over packed; real tables stay below 100
_FREE = 64 << 20
_MOST_MEMBERS = 200_000


@functools.lru_cache(maxsize=256)
def _check(path: Path, changed: int) -> None:  # ``changed``: look at a changed file again
    check_text(path)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One CSV file and its header."""

    path: Path
    columns: tuple[str, ...]

    def text(self, name: str, *others: str) -> str:
        """The first of some columns that is there, as SQL; NULL where none is."""
        found = next((n for n in (name, *others) if n in self.columns), None)
        return quoted_name(found) if found else "NULL::VARCHAR"

    def need(self, name: str, *others: str) -> str:
        """The first of some columns that is there, as SQL; a query of one that is not fails by its name."""
        return quoted_name(next((n for n in (name, *others) if n in self.columns), name))

    def sql(self) -> str:
        """A scan of all rows as text; a row of another length is an error.

        Raises:
            DataError: damage, zeros or a decompression bomb.
        """
        _check(self.path, self.path.stat().st_mtime_ns)
        columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in self.columns)
        nulls = ", ".join(quoted(cell) for cell in sorted(MISSING))
        return (
            f"read_csv({quoted(str(self.path))}, auto_detect = false, header = true, delim = ',', quote = '\"', "
            f"escape = '\"', strict_mode = true, null_padding = false, columns = {{{columns}}}, nullstr = [{nulls}])"
        )


def stem(name: str) -> str:
    """Lower-case name of a table: ``CHARTEVENTS.csv.gz`` is ``chartevents``."""
    return PurePosixPath(name.replace("\\", "/")).name.lower().split(".")[0]


def is_csv(name: str) -> bool:
    """Named ``.csv`` or ``.csv.gz``, and no shadow file of a packer."""
    last = PurePosixPath(name.replace("\\", "/")).name.lower()
    return last.endswith((".csv", ".csv.gz")) and not last.startswith("._")


def header(start: bytes, *, lower: bool = True) -> tuple[str, ...]:
    """Column names of the first line, in lower case if wanted; empty where it is no text."""
    try:
        text = start.decode("utf-8-sig", errors="ignore").splitlines()[0]
        names = [cell.strip() for cell in next(csv.reader([text]))]
    except (IndexError, StopIteration, csv.Error):
        return ()
    return tuple(name.lower() if lower else name for name in names)


def table(path: Path, *, lower: bool = True) -> Table:
    """A table by its header, with names in lower case if wanted.

    Raises:
        DataError: no header, or a column that stands twice.
    """
    columns = header(read_head(path, size=1 << 20), lower=lower)
    if not columns or len({c.lower() for c in columns}) != len(columns) or not all(columns):
        msg = f"{path.name}: expected a header row of distinct column names, found another beginning; fetch it again"
        raise DataError(msg)
    return Table(path=path, columns=columns)


def members(path: Path) -> list[zipfile.ZipInfo]:
    """Files of a zip, refused where their declared sizes are a bomb's.

    Raises:
        DataError: damage, a password, too many members or too large ones.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [m for m in archive.infolist() if not m.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        msg = f"{path.name}: expected a whole zip file, found damage ({type(error).__name__}); fetch it again"
        raise DataError(msg) from error
    large = sum(m.file_size for m in found) > max(_FREE, _RATIO * path.stat().st_size)
    if large or len(found) > _MOST_MEMBERS or any(m.flag_bits & 1 for m in found):
        msg = (
            f"{path.name}: expected an ordinary zip, found one with a password, {len(found)} members or a bomb's sizes"
        )
        raise DataError(f"{msg}; unpack it yourself if it is what you want")
    return found


def contents(path: Path, chosen: Sequence[zipfile.ZipInfo]) -> Iterator[tuple[str, bytes]]:
    """Name and content of small members, one after the other.

    Raises:
        DataError: damage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in chosen:
                with archive.open(member) as file:
                    content = file.read(member.file_size + 1)
                if len(content) > member.file_size:
                    raise zipfile.BadZipFile
                yield member.filename, content
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        zlib.error,
    ) as e:
        msg = f"{path.name}: expected a whole zip file, found damage ({type(e).__name__}); fetch it again"
        raise DataError(msg) from e


def _unpacked(path: Path, wanted: Collection[str], scratch: Path) -> dict[str, Path]:
    out: dict[str, Path] = {}
    chosen = {stem(m.filename): m for m in members(path) if is_csv(m.filename) and stem(m.filename) in wanted}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, member in chosen.items():
                out[name] = scratch / (name + (".csv.gz" if member.filename.lower().endswith(".gz") else ".csv"))
                with archive.open(member) as packed, out[name].open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        zlib.error,
    ) as e:
        msg = f"{path.name}: expected a whole zip file, found damage ({type(e).__name__}); fetch it again"
        raise DataError(msg) from e
    return out


def find(files: Mapping[str, Path], wanted: Collection[str], scratch: Path) -> dict[str, Table]:
    """Tables of some names among files, folders and zips.

    Raises:
        DataError: none of them, one that stands twice, or damage.
    """
    found: dict[str, Path] = {}
    for path in files.values():
        if path.is_dir():
            inside = path.resolve()
            here = {stem(p.name): p for p in sorted(path.rglob("*")) if is_csv(p.name) and stem(p.name) in wanted}
            here = {name: p for name, p in here.items() if p.resolve().is_relative_to(inside) and p.is_file()}
        elif path.suffix.lower() == ".zip":
            here = _unpacked(path, wanted, scratch)
        else:
            here = {stem(path.name): path} if stem(path.name) in wanted else {}
        twice = sorted(set(here) & set(found))
        if twice:
            msg = f"{path.name}: expected the table {twice[0]} once, found it twice; name one of them"
            raise DataError(msg)
        found |= here
    if not found:
        names = ", ".join(p.name for p in files.values())
        msg = f"{names}: expected tables such as {', '.join(sorted(wanted)[:4])} (.csv or .csv.gz), found none of them"
        raise DataError(f"{msg}; check the format and the path")
    return {name: table(path) for name, path in found.items() if path.stat().st_size}


def needed(prefix: str, options: Options) -> bool:
    """Whether a card can mean codes that begin with ``prefix``."""
    patterns = [c for v in options.variables for c in v.codes] + [*options.hash, *options.index.event]
    starts = [p.partition("*")[0] for p in patterns]
    return any(
        s.startswith(prefix) or ("*" in p and prefix.startswith(s)) for s, p in zip(starts, patterns, strict=True)
    )


def moment(raw: str, options: Options, *, midnight: bool = False) -> str:
    """SQL of an ISO 8601 time; a date alone stands at the end of its day (or the start, as the card says).

    Args:
        raw: SQL of the text.
        options: ``date_only``.
        midnight: 00:00:00 also means that only the date is known.
    """
    end = " + INTERVAL 1 DAY - to_microseconds(1)" if options.date_only == "end" else ""
    form = "^\\d{4}-\\d{2}-\\d{2}([ T]\\d{2}:\\d{2}(:\\d{2}(\\.\\d+)?)?)?Z?$"
    iso = f"CASE WHEN regexp_matches(trim({raw}), '{form}') THEN TRY_CAST(trim({raw}) AS TIMESTAMP) END"
    short = f"length(trim({raw})) <= 10"
    if midnight:
        short += f" OR date_trunc('day', {iso}) = {iso}"
    return f"CASE WHEN {short} THEN {iso}{end} ELSE {iso} END"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Events of one table: SQL of each column over the table's scan, and rows that are left out.

    Attributes:
        prefix: how its codes begin.
        raw_time: text of the time, to tell a bad one from none; empty for static facts.
    """

    prefix: str
    table: str
    sid: str
    raw_time: str
    time: str
    code: str
    value: str = "NULL::DOUBLE"
    text: str = "NULL::VARCHAR"
    unit: str = "NULL::VARCHAR"
    low: str = "NULL::DOUBLE"
    high: str = "NULL::DOUBLE"
    keep: str = "true"
    scan: str = ""


def _run(con: duckdb.DuckDBPyConnection, sql: str, *, name: str) -> None:
    try:
        con.execute(sql)
    except duckdb.BinderException as error:
        msg = f"{name}: expected the table's columns, found others{hint(error)}; export it again with its header row"
        raise DataError(msg) from None


def gather(
    con: duckdb.DuckDBPyConnection, parts: Sequence[Part], tables: Mapping[str, Table], options: Options, *, where: str
) -> Source:
    """Read the parts that the card needs into the table ``events``, which spills where it must.

    Raises:
        DataError: subjects that are no whole numbers, or times that are no ISO 8601 times.
    """
    con.execute(
        "CREATE TABLE events (sid BIGINT, time TIMESTAMP, code VARCHAR, value DOUBLE, text VARCHAR, unit VARCHAR, "
        "low DOUBLE, high DOUBLE)"
    )
    for part in parts:
        if part.table not in tables or not needed(part.prefix, options):
            continue
        name = tables[part.table].path.name
        scan = part.scan or tables[part.table].sql()
        raw = part.raw_time or "NULL::VARCHAR"
        _run(
            con,
            f"CREATE OR REPLACE TEMP TABLE part AS SELECT TRY_CAST({part.sid} AS BIGINT) AS sid, {part.time} AS time, "
            f"{part.code} AS code, {part.value} AS value, {part.text} AS text, {part.unit} AS unit, "
            f"TRY_CAST({part.low} AS DOUBLE) AS low, TRY_CAST({part.high} AS DOUBLE) AS high, "
            f"{raw} IS NOT NULL AS dated FROM {scan} WHERE {part.keep}",
            name=name,
        )
        no_id, no_time, total = con.execute(
            "SELECT count(*) FILTER (sid IS NULL), count(*) FILTER (dated AND time IS NULL), count(*) FROM part"
        ).fetchall()[0]
        if no_id:
            msg = f"{name}: expected whole numbers as ids of subjects, found {no_id} of {total} rows without"
            raise DataError(f"{msg}; correct them")
        if no_time:
            msg = f"{name}: expected ISO 8601 times without a zone such as 2018-01-31 08:00:00, found others"
            raise DataError(f"{msg} in {no_time} of {total} rows; export the table with ISO times")
        static = "" if part.raw_time else " OR true"
        con.execute(
            "INSERT INTO events SELECT sid, time, code, value, text, unit, low, high FROM part "
            f"WHERE code IS NOT NULL AND (time IS NOT NULL{static})"
        )
    con.execute("DROP TABLE IF EXISTS part")
    return Source(sql="SELECT * FROM events", where=where, has_range=any(p.low != Part.low for p in parts))
