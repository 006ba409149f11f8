"""From a relation of events to what may be seen at the index time, and to one row per patient and variable.

Nothing but :func:`visible_sql` looks at events: whatever is computed afterwards reads its view, so that an event after
the index time cannot reach an output. Sums are exact integers (a value is 2^-10 * a + 2^-60 * b), so that neither the
order of rows nor the number of threads nor rows that were left out change one bit of a mean or slope.
"""

import contextlib
import fnmatch
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._event_options import Index, Options, Variable
from medfuse.loaders._event_units import canonical, conversion

MEMORY = "4GB"  # beyond it DuckDB spills to a temporary folder
LARGEST = 1e15  # a larger number (and NaN) is no measurement: an event without a value; sums stay exact below it
_DAY = 86_400_000_000  # microseconds
_FAR = 9_000_000_000_000_000_000
_COMPARATOR = r"\s*(<=|>=|<|>|≤|≥)\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Events as an adapter offers them.

    Attributes:
        sql: a query with columns ``sid``, ``time`` (TIMESTAMP), ``code``, ``value`` (DOUBLE), ``text``, ``unit``.
        where: of the messages.
        has_text, has_unit: whether ``text`` and ``unit`` can be anything but NULL.
        relative: times are offsets from 1970-01-01, the time zero of each patient.
        warnings: what the adapter saw.
    """

    sql: str
    where: str
    has_text: bool = True
    has_unit: bool = True
    relative: bool = False
    warnings: tuple[str, ...] = ()


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


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
            yield con, Path(folder)
        except duckdb.OutOfMemoryException as error:
            msg = f"{where}: expected events that fit {MEMORY} with spilling, found more; is a file damaged?"
            raise DataError(msg) from error
        except duckdb.Error as error:
            kind = type(error).__name__.removesuffix("Exception")
            msg = f"{where}: expected whole files of the stated format, found damage or other columns"
            todo = "fetch them again, or look at them with medfuse inspect"
            raise DataError(f"{msg} ({kind}{_hint(error)}); {todo}") from None
        finally:
            con.close()


def _hint(error: duckdb.Error) -> str:
    """What an engine's message says of columns; its other words may hold cells."""
    found = re.search(r'[Cc]olumn "(\w+)"|Referenced column "(\w+)"|column named "?(\w+)', str(error))
    return f": column {next(g for g in found.groups() if g)}" if found else ""


# --- which codes are wanted ---------------------------------------------------------------------------------------


def _matches(codes: Iterable[str], patterns: Sequence[str]) -> list[str]:
    exact = {p for p in patterns if "*" not in p}
    wild = [re.compile(fnmatch.translate(p.replace("[", "[[]").replace("?", "[?]"))) for p in patterns if "*" in p]
    return [code for code in codes if code in exact or any(w.fullmatch(code) for w in wild)]


def _all_codes(con: duckdb.DuckDBPyConnection, source: Source) -> list[str]:
    rows = con.execute(f"SELECT DISTINCT code FROM ({source.sql}) WHERE code IS NOT NULL ORDER BY 1").fetchall()
    return [row[0] for row in rows]


def bucket(code: str, buckets: int) -> int:
    """The bucket of a code: CRC-32 of its UTF-8, modulo the number of buckets."""
    return zlib.crc32(code.encode()) % buckets


def _map_codes(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> None:
    """Table ``map``: code, var, level, static, ever. Depends on the card alone: a pattern names one variable."""
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
    con.execute("CREATE TABLE map (code VARCHAR, var INTEGER, level INTEGER, static BOOLEAN, ever BOOLEAN)")
    if rows:
        columns = list(zip(*rows, strict=True))
        con.execute(
            "INSERT INTO map SELECT unnest(?), unnest(?), unnest(?), unnest(?), unnest(?)", [*map(list, columns)]
        )


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
    back = f"e.time >= {when} - to_microseconds({round(options.lookback_days * _DAY)})"
    if any(v.ever for v in options.variables):
        back = f"({back} OR m.ever)"
    keep = f"(e.time <= {when} AND {back} AND isfinite(e.time))"
    if any(v.static for v in options.variables):
        keep = f"({keep} OR (e.time IS NULL AND m.static))"
    extra = (", e.text" if source.has_text else "") + (", e.unit" if source.has_unit else "")
    level = ", m.level" if any(v.level_codes for v in options.variables) else ""
    con.execute(
        f"CREATE VIEW seen AS SELECT e.sid, m.var, epoch_us({when}) - epoch_us(e.time) AS age, "
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


# --- values: text, comparators, units, missing codes, plausible range ----------------------------------------------


def _cells(variables: Sequence[Variable]) -> list[tuple[int, str | None, float | None, int]]:
    """Cells with a meaning: (variable, text, number, level or -1 for "not known")."""
    rows: list[tuple[int, str | None, float | None, int]] = []
    for k, variable in enumerate(variables):
        rows += [(k, f"{number:g}", number, -1) for number in variable.missing]
        for n, cell in enumerate((variable.levels or {}).values()):
            try:
                number = float(cell)
            except ValueError:
                number = math.nan
            rows.append((k, cell, number if math.isfinite(number) else None, n))
    return rows


def values_sql(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> list[str]:
    """View ``clean``: sid, var, age (microseconds before the index time), v (value in the card's unit, level, or NULL).

    Returns:
        Warnings.

    Raises:
        DataError: units that the table does not reconcile, comparators or levels that the card does not name.
    """
    kinds = [bool(v.level_names) for v in options.variables]
    con.execute("CREATE TABLE kind (var INTEGER, coded BOOLEAN, low DOUBLE, high DOUBLE)")
    limits = [v.range or (-LARGEST, LARGEST) for v in options.variables]
    for k, (coded, (low, high)) in enumerate(zip(kinds, limits, strict=True)):
        con.execute("INSERT INTO kind VALUES (?, ?, ?, ?)", [k, coded, low, high])
    con.execute("CREATE TABLE cells (var INTEGER, cell VARCHAR, number DOUBLE, level INTEGER)")
    for row in _cells(options.variables):
        con.execute("INSERT INTO cells VALUES (?, ?, ?, ?)", list(row))
    rules = bool(_cells(options.variables)) or any(kinds) or any(v.range for v in options.variables)
    if not (source.has_text or source.has_unit or rules):
        con.execute("CREATE VIEW clean AS SELECT sid, var, age, value AS v FROM visible")
        return []
    _parsed(con, source, options)
    return _converted(con, source, options)


def _parsed(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> None:
    """View ``parsed``: sid, var, age, number, level, compared, unread, unit."""
    text, number, compared = "NULL::VARCHAR", "e.value", "false"
    if source.has_text:
        text = "trim(e.text)"
        compared = f"coalesce(regexp_full_match(e.text, {quoted(_COMPARATOR)}), false)"
        bare = "TRY_CAST(regexp_replace(e.text, '[<>=≤≥\\s]', '', 'g') AS DOUBLE)"
        bound = bare if options.comparators == "bound" else "NULL"
        number = f"CASE WHEN {compared} THEN {bound} ELSE coalesce(e.value, TRY_CAST({text} AS DOUBLE)) END"
    unit = "e.unit" if source.has_unit else "NULL::VARCHAR"
    by_code = "e.level" if any(v.level_codes for v in options.variables) else "NULL::INTEGER"
    con.execute(
        f"CREATE VIEW parsed AS SELECT e.sid, e.var, e.age, coalesce(k.coded, false) AS coded, k.low, k.high, "
        f"CASE WHEN abs({number}) <= {LARGEST:.0f} THEN {number} END AS number, nullif(trim({unit}), '') AS unit, "
        f"coalesce({by_code}, t.level, n.level) AS level, {compared} AS compared, "
        f"(coalesce({text}, '') <> '' OR e.value IS NOT NULL) AS filled "
        f"FROM visible e LEFT JOIN kind k ON e.var = k.var "
        f"LEFT JOIN cells t ON e.var = t.var AND t.cell = {text} "
        f"LEFT JOIN cells n ON e.var = n.var AND n.number = e.value AND t.level IS NULL"
    )


def _converted(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> list[str]:
    found = con.execute(
        "SELECT var, unit, count(*) FILTER (NOT coded AND level IS NULL AND number IS NOT NULL), "
        "count(*) FILTER (NOT coded AND compared), "
        "count(*) FILTER (NOT coded AND filled AND NOT compared AND number IS NULL AND level IS NULL), "
        "count(*) FILTER (coded AND filled AND level IS NULL) FROM parsed GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    warnings = _text_warnings(found, source, options)
    con.execute("CREATE TABLE ways (var INTEGER, unit VARCHAR, factor DOUBLE, shift DOUBLE)")
    by_variable: dict[int, dict[str | None, int]] = {}
    for var, unit, values, *_ in found:
        if values and var < len(options.variables):
            by_variable.setdefault(var, {})[unit] = values
    for var, units in by_variable.items():
        for unit, (factor, shift) in _ways(options.variables[var], units, source, options, warnings).items():
            con.execute("INSERT INTO ways VALUES (?, ?, ?, ?)", [var, unit, factor, shift])
    con.execute(
        "CREATE VIEW clean AS SELECT sid, var, age, CASE WHEN number BETWEEN low AND high OR low IS NULL OR coded "
        "THEN number END AS v FROM (SELECT p.sid, p.var, p.age, p.low, p.high, p.coded, "
        "CASE WHEN p.coded THEN CASE WHEN p.level >= 0 THEN p.level::DOUBLE END WHEN p.level IS NULL THEN "
        "CASE WHEN w.factor IS NULL OR (w.factor = 1 AND w.shift = 0) THEN p.number "
        "ELSE p.number * w.factor + w.shift END END AS number "
        "FROM parsed p LEFT JOIN ways w ON p.var = w.var AND p.unit IS NOT DISTINCT FROM w.unit)"
    )
    return warnings


def _text_warnings(found: Sequence[tuple[Any, ...]], source: Source, options: Options) -> list[str]:
    names = [v.name for v in options.variables]
    totals: dict[str, list[int]] = {}
    for var, _, _, compared, unread, unknown in found:
        if var < len(names):
            row = totals.setdefault(names[var], [0, 0, 0])
            row[0], row[1], row[2] = row[0] + compared, row[1] + unread, row[2] + unknown
    warnings = []
    for name, (compared, unread, unknown) in totals.items():
        if unknown:
            msg = (
                f"{source.where}, variable {name}: expected the card's levels, found {unknown} events with another "
                "cell; add it to levels or to missing"
            )
            raise DataError(msg)
        if compared and options.comparators == "refuse":
            msg = (
                f"{source.where}, variable {name}: expected numbers, found {compared} with a comparator such as <5; "
                "state comparators: bound (5) or missing (an event without a value)"
            )
            raise DataError(msg)
        if compared:
            warnings.append(
                f"variable {name}: {compared} values have a comparator and were taken as {options.comparators}"
            )
        if unread:
            warnings.append(
                f"variable {name}: {unread} events hold text that is no number and count as without a value"
            )
    return warnings


def _ways(
    variable: Variable, units: Mapping[str | None, int], source: Source, options: Options, warnings: list[str]
) -> dict[str | None, tuple[float, float]]:
    """Unit found -> factor and shift into the variable's unit."""
    stated = [u for u in units if u is not None]
    listed = ", ".join(f"{u or 'no unit'} ({n})" for u, n in units.items())
    where = f"{source.where}, variable {variable.name}"
    if variable.unit is None:
        kinds = {canonical(u) for u in stated}
        if len(kinds) > 1:
            msg = f"{where}: expected one unit, found {listed}; state unit (and analyte) in the card"
            raise DataError(msg)
        if kinds:
            warnings.append(f"variable {variable.name}: the card states no unit, the source says {min(kinds)}")
    ways: dict[str | None, tuple[float, float]] = {}
    for unit in stated if variable.unit is not None else ():
        way = conversion(unit, variable.unit or "", variable.analyte)
        if way is None:
            msg = (
                f"{where}: expected {variable.unit} or a unit that the table converts into it, found {listed}; state "
                "analyte for mass to amount, correct unit, or split the codes into variables"
            )
            raise DataError(msg)
        ways[unit] = way
    if None in units and stated and options.no_unit == "refuse":
        msg = (
            f"{where}: expected a unit with every value, found {listed}; state no_unit: card if they are in "
            f"{variable.unit or 'the same unit'}"
        )
        raise DataError(msg)
    return ways


# --- one row per patient and variable -------------------------------------------------------------------------------


def aggregate(con: duckdb.DuckDBPyConnection, options: Options, stats: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Group ``clean`` by subject and variable.

    Args:
        con: with the view ``clean``.
        options: windows of ``count``.
        stats: which are computed; others cost nothing.

    Returns:
        Columns ``sid``, ``var``, ``count`` and, as asked, ``count_<days>d``, ``days_since`` (days from the last event
        to the index time), ``min``, ``max``, ``mean``, ``last`` (of several at the last time the largest), ``slope``
        (least squares, per day; NaN where all times agree), NaN where there is no value.
    """
    wanted = set(stats)
    picks = ["sid", "var", "count(*) AS count"]
    picks += [
        f"count(*) FILTER (age IS NULL OR age <= {round(w * _DAY)}) AS {quoted_name(f'count_{w:g}d')}"
        for w in options.windows
        if "count" in wanted
    ]
    if "days_since" in wanted:
        picks.append(f"min(age) / {_DAY}.0::DOUBLE AS days_since")
    if "min" in wanted:
        picks.append("min(v) AS min")
    if "max" in wanted:
        picks.append("max(v) AS max")
    if "last" in wanted:
        picks.append(f"max({{'a': coalesce(-age, -{_FAR}), 'v': v}}) FILTER (v IS NOT NULL).v AS last")
    if wanted & {"mean", "slope"}:
        picks += ["count(v) AS nv", "sum(a) AS sa", "sum(b) AS sb"]
    if "slope" in wanted:
        seconds = "(-round(age / 1000000.0)::BIGINT)::HUGEINT"
        has = "FILTER (v IS NOT NULL AND age IS NOT NULL)"
        picks += [f"count(*) {has} AS n", f"sum({seconds}) {has} AS st", f"sum({seconds} * {seconds}) {has} AS stt"]
        picks += [f"sum(a) {has} AS ta", f"sum(b) {has} AS tb", f"sum({seconds} * a) {has} AS sta"]
        picks.append(f"sum({seconds} * b) {has} AS stb")
    inner = "SELECT * FROM clean"
    if wanted & {"mean", "slope"}:
        inner = (
            "SELECT *, TRY_CAST(round((v * 1024 - round(v * 1024)) * 1125899906842624) AS BIGINT) AS b, "
            "TRY_CAST(round(v * 1024) AS BIGINT) AS a FROM clean"
        )
    grouped = f"SELECT {', '.join(picks)} FROM ({inner}) GROUP BY sid, var"
    outer = ["* EXCLUDE (nv, sa, sb)" if "mean" in wanted and "slope" not in wanted else "*"]
    if "mean" in wanted:
        outer.append("(sa::DOUBLE + sb::DOUBLE / 1125899906842624) / 1024 / nv AS mean")
    if "slope" in wanted:
        total = "(n::DOUBLE * (sta::DOUBLE + stb::DOUBLE / 1125899906842624)"
        total += " - st::DOUBLE * (ta::DOUBLE + tb::DOUBLE / 1125899906842624)) / 1024"
        outer.append(
            f"CASE WHEN n > 1 AND n * stt > st * st THEN {total} / (n * stt - st * st)::DOUBLE * 86400 END AS slope"
        )
        outer[0] = "* EXCLUDE (n, st, stt, ta, tb, sta, stb, nv, sa, sb)"
    found = con.execute(f"SELECT {', '.join(outer)} FROM ({grouped})").fetchnumpy()
    return {name: _filled(column) for name, column in found.items()}


def quoted_name(name: str) -> str:
    """A column name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _filled(column: Any) -> NDArray[Any]:  # noqa: ANN401  # an array, masked where SQL has NULL
    if isinstance(column, np.ma.MaskedArray):
        return column.filled(np.nan) if column.dtype.kind == "f" else np.asarray(column)
    return np.asarray(column)


def tokens(con: duckdb.DuckDBPyConnection) -> dict[str, NDArray[Any]]:
    """Events of ``clean`` in the order of time: sid, var, days before the index time (NaN: static), v (NaN: none)."""
    found = con.execute(
        f"SELECT sid, var, age / {_DAY}.0::DOUBLE AS days, v FROM clean ORDER BY sid, age DESC NULLS FIRST, var, v"
    ).fetchnumpy()
    return {name: _filled(column) for name, column in found.items()}


def prepare(con: duckdb.DuckDBPyConnection, source: Source, options: Options) -> list[str]:
    """Everything up to the view ``clean``; the table ``idx`` is there unless the index time is one for all.

    Returns:
        Warnings.
    """
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
    return [*source.warnings, *values_sql(con, source, options)]
