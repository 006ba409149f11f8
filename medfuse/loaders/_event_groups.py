"""From clean events to one row per patient and variable, or to one token per event.

Sums are exact integers (a value is 2^-10 * a + 2^-60 * b), so that neither the order of rows nor the number of threads
nor rows that were left out change one bit of a mean or slope.
"""

from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from medfuse.loaders._event_options import Options
from medfuse.loaders._event_query import DAY, quoted_name

_FAR = 9_000_000_000_000_000_000


def _filled(column: Any) -> NDArray[Any]:  # noqa: ANN401  # an array, masked where SQL has NULL
    if isinstance(column, np.ma.MaskedArray):
        return column.filled(np.nan) if column.dtype.kind == "f" else np.asarray(column)
    return np.asarray(column)


def aggregate(con: duckdb.DuckDBPyConnection, options: Options) -> dict[str, NDArray[Any]]:
    """Group ``clean`` by subject and variable.

    Args:
        con: with the view ``clean``.
        options: windows of ``count``, and the statistics that are computed; others cost nothing.

    Returns:
        Columns ``sid``, ``var``, ``count`` and, where a variable has them, ``count_<days>d``, ``days_since`` (days
        from the last event to the index time), ``min``, ``max``, ``mean``, ``last`` (of several at the last time the
        largest), ``below`` and ``above`` (shares of values with a reference range), ``slope`` (least squares, per day;
        NaN where all times agree), NaN where there is no value.
    """
    wanted = {s for v in options.variables for s in options.stats_of(v)} | ({"count"} if options.buckets else set())
    plain = {
        "days_since": f"min(age) / {DAY}.0::DOUBLE",
        "min": "min(v)",
        "max": "max(v)",
        "last": f"max({{'a': coalesce(-age, -{_FAR}), 'v': v}}) FILTER (v IS NOT NULL).v",
        "below": "count(*) FILTER (side = -1) / nullif(count(side), 0)",
        "above": "count(*) FILTER (side = 1) / nullif(count(side), 0)",
    }
    picks = ["sid", "var", "count(*) AS count"]
    if "count" in wanted:
        within = {f"count_{w:g}d": f"(age IS NULL OR age <= {round(w * DAY)})" for w in options.windows}
        picks += [f"count(*) FILTER {test} AS {quoted_name(name)}" for name, test in within.items()]
    picks += [f"{sql} AS {name}" for name, sql in plain.items() if name in wanted]
    inner, outer, helpers = "SELECT * FROM clean", ["*"], []
    if wanted & {"mean", "slope"}:
        inner = (
            "SELECT *, TRY_CAST(round((v * 1024 - round(v * 1024)) * 1125899906842624) AS BIGINT) AS b, "
            "TRY_CAST(round(v * 1024) AS BIGINT) AS a FROM clean"
        )
        picks += ["count(v) AS nv", "sum(a) AS sa", "sum(b) AS sb"]
        helpers += ["nv", "sa", "sb"]
        outer.append("(sa::DOUBLE + sb::DOUBLE / 1125899906842624) / 1024 / nv AS mean")
    if "slope" in wanted:
        sums, slope = _slope()
        picks += [f"{sql} AS {name}" for name, sql in sums.items()]
        helpers += list(sums)
        outer.append(slope)
    if helpers:
        outer[0] = f"* EXCLUDE ({', '.join(helpers)})"
    grouped = f"SELECT {', '.join(picks)} FROM ({inner}) GROUP BY sid, var"
    found = con.execute(f"SELECT {', '.join(outer)} FROM ({grouped})").fetchnumpy()
    return {name: _filled(column) for name, column in found.items()}


def _slope() -> tuple[dict[str, str], str]:
    """Sums of least squares (time in seconds before the index time), and the slope per day made of them."""
    seconds = "(-round(age / 1000000.0)::BIGINT)::HUGEINT"
    has = "FILTER (v IS NOT NULL AND age IS NOT NULL)"
    terms = {"st": seconds, "stt": f"{seconds} * {seconds}", "ta": "a", "tb": "b"}
    terms |= {"sta": f"{seconds} * a", "stb": f"{seconds} * b"}
    sums = {"n": f"count(*) {has}", **{name: f"sum({sql}) {has}" for name, sql in terms.items()}}
    total = "(n::DOUBLE * (sta::DOUBLE + stb::DOUBLE / 1125899906842624)"
    total += " - st::DOUBLE * (ta::DOUBLE + tb::DOUBLE / 1125899906842624)) / 1024"
    return (
        sums,
        f"CASE WHEN n > 1 AND n * stt > st * st THEN {total} / (n * stt - st * st)::DOUBLE * 86400 END AS slope",
    )


def tokens(con: duckdb.DuckDBPyConnection, options: Options) -> dict[str, NDArray[Any]]:
    """Events of ``clean`` in the order of time.

    Returns:
        Columns ``sid``, ``var``, ``days`` before the index time (NaN: static), ``v`` (NaN: none) and, where a variable
        has a reference range, ``side`` of it (-1, 0, 1; NaN: no range or no value).
    """
    side = any(v.reference for v in options.variables)
    found = con.execute(
        f"SELECT sid, var, age / {DAY}.0::DOUBLE AS days, v{', side::DOUBLE AS side' if side else ''} FROM clean "
        f"ORDER BY sid, age DESC NULLS FIRST, var, v{', side' if side else ''}"
    ).fetchnumpy()
    return {name: _filled(column) for name, column in found.items()}
