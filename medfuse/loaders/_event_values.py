"""Values of visible events: text, comparators, units, codes for "not known", plausible and reference ranges."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from medfuse.errors import DataError
from medfuse.loaders._event_options import Options, Variable
from medfuse.loaders._event_query import LARGEST, Source, fill, quoted
from medfuse.loaders._event_units import canonical, conversion

_COMPARATOR = r"\s*(<=|>=|<|>|≤|≥)\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*"


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

    View ``summed``: the same; where a value is all there is of an event, with repeated rows and ``cn`` (number of the
    code), so that who sorts anyway drops them.

    Returns:
        Warnings.

    Raises:
        DataError: units that the table does not reconcile, comparators or levels that the card does not name.
    """
    kinds = [bool(v.level_names) for v in options.variables]
    con.execute("CREATE TABLE kind (var INTEGER, coded BOOLEAN, low DOUBLE, high DOUBLE, least DOUBLE, most DOUBLE)")
    rows: list[tuple[object, ...]] = []
    for k, v in enumerate(options.variables):
        least, most = v.reference if isinstance(v.reference, tuple) else (None, None)
        rows.append((k, kinds[k], *(v.range or (-LARGEST, LARGEST)), least, most))
    fill(con, "kind", rows)
    con.execute("CREATE TABLE cells (var INTEGER, cell VARCHAR, number DOUBLE, level INTEGER)")
    fill(con, "cells", _cells(options.variables))
    drop = options.duplicates == "drop"
    rules = bool(_cells(options.variables)) or any(kinds) or any(v.range or v.reference for v in options.variables)
    if not (source.has_text or source.has_unit or rules):
        con.execute("CREATE VIEW clean AS SELECT sid, var, age, value AS v FROM visible")
        con.execute(f"CREATE VIEW summed AS SELECT sid, var, age, value AS v{', cn' if drop else ''} FROM seen")
        return []
    _parsed(con, source, options)
    warnings = _converted(con, source, options)
    con.execute("CREATE VIEW summed AS SELECT * FROM clean")
    return warnings


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
        f"k.least, k.most, {_source_side(number, options)} AS beside, "
        f"CASE WHEN abs({number}) <= {LARGEST:.0f} THEN {number} END AS number, nullif(trim({unit}), '') AS unit, "
        f"coalesce({by_code}, t.level, n.level) AS level, {compared} AS compared, "
        f"(coalesce({text}, '') <> '' OR e.value IS NOT NULL) AS filled "
        f"FROM visible e LEFT JOIN kind k ON e.var = k.var "
        f"LEFT JOIN cells t ON e.var = t.var AND t.cell = {text} "
        f"LEFT JOIN cells n ON e.var = n.var AND n.number = e.value AND t.level IS NULL"
    )


def _source_side(number: str, options: Options) -> str:
    """SQL of the side (-1, 0, 1; NULL without a range) of the range beside the value, in the value's own unit."""
    with_range = [str(k) for k, v in enumerate(options.variables) if v.reference == "source"]
    if not with_range:
        return "NULL::INTEGER"
    return (
        f"CASE WHEN e.var IN ({', '.join(with_range)}) THEN CASE WHEN ({number}) < e.low THEN -1 "
        f"WHEN ({number}) > e.high THEN 1 WHEN ({number}) IS NOT NULL AND coalesce(e.low, e.high) IS NOT NULL THEN 0 "
        "END END"
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
        if values and var < len(options.variables) and not options.counted(options.variables[var]):
            by_variable.setdefault(var, {})[unit] = values
    for var, units in by_variable.items():
        for unit, (factor, shift) in _ways(options.variables[var], units, source, options, warnings).items():
            con.execute("INSERT INTO ways VALUES (?, ?, ?, ?)", [var, unit, factor, shift])
    side = ""
    if any(v.reference for v in options.variables):
        side = ", CASE WHEN number < least THEN -1 WHEN number > most THEN 1 WHEN number >= least THEN 0 "
        side += "WHEN number IS NOT NULL THEN beside END AS side"
    con.execute(
        f"CREATE VIEW clean AS SELECT sid, var, age, number AS v{side} FROM (SELECT * REPLACE ("
        "CASE WHEN number BETWEEN low AND high OR low IS NULL OR coded THEN number END AS number) "
        "FROM (SELECT p.sid, p.var, p.age, p.low, p.high, p.least, p.most, p.beside, p.coded, "
        "CASE WHEN p.coded THEN CASE WHEN p.level >= 0 THEN p.level::DOUBLE END WHEN p.level IS NULL THEN "
        "CASE WHEN w.factor IS NULL OR (w.factor = 1 AND w.shift = 0) THEN p.number "
        "ELSE p.number * w.factor + w.shift END END AS number "
        "FROM parsed p LEFT JOIN ways w ON p.var = w.var AND p.unit IS NOT DISTINCT FROM w.unit))"
    )
    return warnings


def _text_warnings(found: Sequence[tuple[Any, ...]], source: Source, options: Options) -> list[str]:
    names = [v.name for v in options.variables]
    totals: dict[str, list[int]] = {}
    for var, _, _, compared, unread, unknown in found:
        if var < len(names) and not options.counted(options.variables[var]):
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
