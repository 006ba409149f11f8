"""From clean events to one row per patient and variable, or to one token per event.

The engine filters events and hands them over patient by patient: as they stand in the files where these keep the events
of a patient together, else sorted. Whole patients are summarised batch by batch. Every sum runs in the order of time
and value, so that neither the order of the rows in the files nor the number of threads nor rows that were left out
change one bit of a mean or slope.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import DAY, stream

_STATIC = -9_000_000_000_000_000_000  # stands for the time of an event without one: before all others
_BITS = 62
Columns = dict[str, NDArray[Any]]


def _filled(column: Any) -> NDArray[Any]:  # noqa: ANN401  # an array, masked where SQL has NULL
    if isinstance(column, np.ma.MaskedArray):
        return column.filled(np.nan) if column.dtype.kind == "f" else np.asarray(column)
    return np.asarray(column)


def aggregate(con: duckdb.DuckDBPyConnection, options: Options) -> Columns:
    """Group events by subject and variable.

    Args:
        con: with the view ``summed``: sid, var, age, v, ``side`` where a variable has a reference range, and ``cn``
            where rows that agree in all of them are one event.
        options: windows of ``count``, and the statistics that are computed; others cost nothing.

    Returns:
        Columns ``sid``, ``var``, ``count`` and, where a variable has them, ``count_<days>d``, ``days_since`` (days
        from the last event to the index time), ``min``, ``max``, ``mean``, ``last`` (of several at the last time the
        largest), ``below`` and ``above`` (shares of values with a reference range), ``slope`` (least squares, per day;
        NaN where all times agree), NaN where there is no value.
    """
    found = {row[0] for row in con.execute("DESCRIBE summed").fetchall()}
    more = "".join(f", {name}" for name in ("side", "cn") if name in found)
    sql = f"SELECT sid, var, coalesce(-age, {_STATIC}) AS t, coalesce(v, 'NaN'::DOUBLE) AS v{more} FROM summed"
    parts = None
    if "cn" in found or options.duplicates != "drop":  # else the engine has looked for repeats, and no order is left
        threads = con.execute("SELECT current_setting('threads')").fetchall()[0][0]
        con.execute("SET threads = 1")  # two would mix the rows
        parts = _parts(con, sql, options)
        con.execute(f"SET threads = {threads}")
    parts = parts or _parts(con, f"{sql} ORDER BY sid, t", options)
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def _parts(con: duckdb.DuckDBPyConnection, sql: str, options: Options) -> list[Columns]:
    """Groups of whole subjects, in pieces; empty when the rows of a subject turn out not to stand together."""
    parts: list[Columns] = []
    seen: set[Any] = set()
    for events in _whole_subjects(_ahead(stream(con, sql))):
        part, subjects = _grouped(events, options)
        if len(set(subjects)) < len(subjects) or not seen.isdisjoint(subjects):
            return []
        seen.update(subjects)
        parts.append(part)
    return parts


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same; a thread fetches the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(next, batches, None)
        while (batch := later.result()) is not None:
            later = pool.submit(next, batches, None)
            yield batch


def _starts(sid: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether a row's subject is another than that of the row before; the first row's is."""
    column = sid.combine_chunks()
    other = pc.fill_null(pc.not_equal(column[1:], column[:-1]), True)  # noqa: FBT003  # of pyarrow
    return np.concatenate([np.ones(min(1, len(sid)), bool), other.to_numpy(zero_copy_only=False)])


def _whole_subjects(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows, in pieces that end where a subject ends."""
    held = [next(batches)]
    for batch in batches:
        joint = pa.Table.from_batches([held[-1].slice(len(held[-1]) - 1), batch])
        begin = np.flatnonzero(_starts(joint["sid"])[1:])
        if len(begin):  # the last of them begins a subject that may go on in the next batch
            yield pa.Table.from_batches([*held, batch.slice(0, begin[-1])])
            held, batch = [], batch.slice(begin[-1])
        held.append(batch)
    yield pa.Table.from_batches(held)


def _grouped(events: pa.Table, options: Options) -> tuple[Columns, list[Any]]:
    """The columns of :func:`aggregate` for whole subjects, and the subjects as they come."""
    new, width = _starts(events["sid"]), len(options.variables) + options.buckets
    column = {name: events[name].to_numpy() for name in events.column_names if name != "sid"}
    column["v"] = column["v"] + 0.0  # no negative zero: it equals zero, so that its place would be chance
    column["key"] = (np.cumsum(new) - 1) * width + column.pop("var")
    order = _stable_order(column["key"])
    column = _in_time({name: part[order] for name, part in column.items()})
    starts = np.flatnonzero(np.diff(column["key"], prepend=-1))
    which, var = np.divmod(column["key"][starts], width)
    subjects = events["sid"].combine_chunks().filter(pa.array(new))
    out = {"sid": subjects.take(pa.array(which)).to_numpy(zero_copy_only=False), "var": var}
    return out | _statistics(column, starts, options), subjects.to_pylist()


def _in_time(column: Columns) -> Columns:
    """Groups that are put in the order of time, value and code; without repeated rows where there is a code."""
    key, t, v = column["key"], column["t"], column["v"]
    wrong = (key[1:] == key[:-1]) & ((t[1:] < t[:-1]) | ((t[1:] == t[:-1]) & ~(v[1:] > v[:-1])))
    if not wrong.any():
        return column
    rows = np.flatnonzero(np.isin(key, key[1:][wrong]))
    chosen = {name: part[rows] for name, part in column.items()}
    order = np.lexsort([chosen[name] for name in ("cn", "v", "t", "key") if name in chosen])
    for name, part in chosen.items():
        column[name][rows] = part[order]
    if "cn" not in column:
        return column
    again = np.ones(max(0, len(rows) - 1), bool)
    for part in chosen.values():
        one, next_one = part[order][:-1], part[order][1:]
        again &= (one == next_one) | ((one != one) & (next_one != next_one))  # NaN is NaN
    return {name: np.delete(part, rows[1:][again]) for name, part in column.items()}


def _stable_order(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows in the order of their keys (>= 0), equal keys as they come: key and row as one number, which sorts fast."""
    bits = len(key).bit_length()
    if int(key.max(initial=0)) >> (_BITS - bits):
        return np.argsort(key, kind="stable")
    return np.sort(key << bits | np.arange(len(key))) & ((1 << bits) - 1)


def _statistics(column: Columns, starts: NDArray[np.int64], options: Options) -> Columns:
    """Statistics of groups that begin at ``starts``, in the order of time and value."""
    wanted = {s for v in options.variables for s in options.stats_of(v)} | ({"count"} if options.buckets else set())
    t, v = column["t"], column["v"]
    out: Columns = {"count": np.diff(starts, append=len(t))}
    for days in options.windows if "count" in wanted else ():
        within = (t == _STATIC) | (t >= -round(days * DAY))
        out[f"count_{days:g}d"] = np.add.reduceat(within, starts, dtype=int)
    if "days_since" in wanted:
        newest = t[starts + out["count"] - 1]
        out["days_since"] = np.where(newest == _STATIC, np.nan, -newest / DAY)
    if "min" in wanted:
        out["min"] = np.fmin.reduceat(v, starts)
    if "max" in wanted:
        out["max"] = np.fmax.reduceat(v, starts)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: nothing known
        if "last" in wanted:
            at = np.maximum.reduceat(np.where(np.isnan(v), -1, np.arange(len(v))), starts)
            out["last"] = np.where(at < 0, np.nan, v[at])
        if "mean" in wanted:
            out["mean"] = _mean(v, starts)
        if "slope" in wanted:
            out["slope"] = _slopes(t, v, starts, out["count"])
        for name in wanted & {"below", "above"}:
            side = column["side"]
            at_side = np.where(np.isnan(side), np.nan, side == (-1 if name == "below" else 1))
            out[name] = _mean(at_side, starts)
    return out


def _mean(v: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of what is known in each group; NaN where nothing is."""
    unknown = np.isnan(v)
    return np.add.reduceat(np.where(unknown, 0.0, v), starts) / np.add.reduceat(~unknown, starts, dtype=int)


def _slopes(
    t: NDArray[np.int64], v: NDArray[np.float64], starts: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Least squares per day; times to the second, from the newest event of the group, and centred before squares."""
    use = ~np.isnan(v) & (t != _STATIC)
    seconds = np.where(use, np.rint((t - np.repeat(t[starts + count - 1], count)) / 1e6), 0.0)
    values = np.where(use, v, 0.0)
    n = np.add.reduceat(use, starts, dtype=int)
    centred = [
        np.where(use, part - np.repeat(np.add.reduceat(part, starts) / n, count), 0.0) for part in (seconds, values)
    ]
    square = np.add.reduceat(centred[0] * centred[0], starts)
    slope = np.add.reduceat(centred[0] * centred[1], starts) / square * 86_400
    return np.where((n > 1) & (square > 0), slope, np.nan)


def tokens(con: duckdb.DuckDBPyConnection, options: Options) -> dict[str, NDArray[Any]]:
    """Events of ``clean`` in the order of time.

    Returns:
        Columns ``sid``, ``var``, ``days`` before the index time (NaN: static), ``age`` (the same in microseconds; as
        large as can be: static), ``v`` (NaN: none) and, where a variable has a reference range, ``side`` of it (-1, 0,
        1; NaN: no range or no value).
    """
    side = any(v.reference for v in options.variables)
    found = con.execute(
        f"SELECT sid, var, c.age / {DAY}.0::DOUBLE AS days, coalesce(c.age, {-_STATIC}) AS age, v"
        f"{', side::DOUBLE AS side' if side else ''} FROM clean c "
        f"ORDER BY sid, c.age DESC NULLS FIRST, var, v{', side' if side else ''}"
    ).fetchnumpy()
    return {name: _filled(column) for name, column in found.items()}
