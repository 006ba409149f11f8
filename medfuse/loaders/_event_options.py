"""What a card says about events: index time, lookback, variables; checked key by key."""

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from medfuse.errors import ConfigError, nearest
from medfuse.loaders._event_units import ANALYTES

FORMATS = ("meds", "omop", "mimic", "wide", "records")
STATS = ("last", "days_since", "min", "max", "mean", "slope", "count")
SIDES = ("below", "above")  # of a reference range; only where a variable has one
_ID = re.compile(r"[^{}]*\{(:0?\d+d)?\}[^{}]*")


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of the output, made of one or several codes.

    Attributes:
        name: of the column or token identity.
        codes: exact codes; ``*`` stands for any text. Default: the name itself.
        unit: of the output; values in other units are converted by the table of units or refused.
        analyte: allows conversion between mass and amount of substance.
        static: events without a time are kept.
        ever: the lookback does not apply (a date of birth, a chronic diagnosis).
        levels: level -> cell, for a categorical variable; ``level_codes``: level -> code that says it.
        missing: values that mean "not known", such as -1.
        range: (least, largest) plausible value in ``unit``; others count as events without a value.
        reference: (low, high) in ``unit``, or ``source``: the range that stands beside each value. It adds the shares
            of values ``below`` and ``above`` it, and to tokens the side (-1, 0, 1).
        stats: of layout ``columns``; default: the options' ``stats``.
    """

    name: str
    codes: tuple[str, ...] = ()
    unit: str | None = None
    analyte: str | None = None
    static: bool = False
    ever: bool = False
    levels: Mapping[str, str] | None = None
    level_codes: Mapping[str, str] | None = None
    missing: tuple[float, ...] = ()
    range: tuple[float, float] | None = None
    reference: tuple[float, float] | str | None = None
    stats: tuple[str, ...] = ()

    @property
    def level_names(self) -> tuple[str, ...]:
        """Levels in the card's order; empty for a numeric variable."""
        return tuple(self.levels or self.level_codes or ())


@dataclass(frozen=True, kw_only=True)
class Index:
    """When the prediction is made: exactly one of ``time``, ``event``, ``column`` and ``start``, plus hours after it.

    Attributes:
        time: an ISO time, the same for everybody.
        event: codes (``*`` stands for any text) whose first event counts; never the last, which would look ahead.
        table: name under ``files`` of a table with one row per patient; ``id`` and ``column`` are its columns.
        start: True: time zero of sources whose times are relative.
        after_hours: added to it.
    """

    time: str | None = None
    event: tuple[str, ...] = ()
    table: str | None = None
    column: str | None = None
    id: str | None = None
    start: bool = False
    after_hours: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the loader ``events``.

    Attributes:
        format: ``meds``, ``omop``, ``mimic``, ``wide`` or ``records``.
        output: ``summary`` (layout ``columns``) or ``tokens`` (layout ``vectors``).
        index: when the prediction is made; nothing later is read.
        lookback_days: nothing earlier is read.
        variables: in the order of the output.
        windows: days before the index time in which ``count`` counts.
        stats: of numeric variables in ``summary``.
        hash: codes (patterns) without a variable of their own, and ``buckets``: they are counted by the CRC-32 of
            their code, so that the vocabulary needs no patient.
        comparators: ``refuse``, ``bound`` (``<5`` is 5) or ``missing`` (an event without a value).
        no_unit: values without a unit beside values with one: ``refuse`` or ``card`` (they are in the card's unit).
        duplicates: rows that repeat subject, time, code, value, text and unit: ``drop``, ``keep`` or ``refuse``.
        date_only: an event with a date and no time of day happens at the ``end`` or ``start`` of the day.
        known: a value is known when it was ``charted`` or ``stored`` (sources that have both).
        patient_id: how a subject is called in the cohort, such as ``P{:03d}``.
        unit_in_code: the last part of ``LAB//50912//mg/dL`` is the unit.
        id, at, at_unit: of ``wide``: columns of patient and time, and the unit of times that are numbers.
    """

    format: str = "meds"
    output: str = "summary"
    index: Index
    lookback_days: float
    variables: tuple[Variable, ...]
    windows: tuple[float, ...] = ()
    stats: tuple[str, ...] = STATS
    hash: tuple[str, ...] = ()
    buckets: int = 0
    comparators: str = "refuse"
    no_unit: str = "refuse"
    duplicates: str = "drop"
    date_only: str = "end"
    known: str = "charted"
    patient_id: str = "{}"
    unit_in_code: bool = False
    id: str | None = None
    at: str | None = None
    at_unit: str | None = None

    def stats_of(self, variable: Variable) -> tuple[str, ...]:
        """What ``summary`` holds of a variable."""
        if not variable.level_names:
            return variable.stats or self.stats + (SIDES if variable.reference else ())
        return tuple(s for s in variable.stats if s in {"last", "days_since", "count"}) or ("last",)

    def counted(self, variable: Variable) -> bool:
        """Whether only events of a variable matter, and no value: then units need not agree."""
        return self.output == "summary" and not set(self.stats_of(variable)) - {"days_since", "count"}


_CHOICES = {
    "format": FORMATS,
    "output": ("summary", "tokens"),
    "comparators": ("refuse", "bound", "missing"),
    "no_unit": ("refuse", "card"),
    "duplicates": ("drop", "keep", "refuse"),
    "date_only": ("end", "start"),
    "known": ("charted", "stored"),
    "at_unit": ("minutes", "hours", "days", "years"),
}


def _fail(where: str, expected: str) -> ConfigError:
    return ConfigError(f"options of the loader events, {where}: expected {expected}, found another; correct the card")


def _known_keys(given: Any, kind: type, *, where: str) -> dict[str, Any]:  # noqa: ANN401  # YAML
    if not isinstance(given, Mapping):
        raise _fail(where, "a mapping")
    known = [f.name for f in fields(kind) if f.name != "name"]
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        msg = f"options of the loader events, {where}: unknown {str(unknown)!r}; {nearest(str(unknown), known)}"
        raise ConfigError(msg)
    return dict(given)


def _texts(given: Any, *, where: str) -> tuple[str, ...]:  # noqa: ANN401  # YAML
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, Sequence) or not all(isinstance(i, str) and i for i in items):
        raise _fail(where, "a text or a list of texts")
    return tuple(items)


def _number(given: Any, *, where: str, least: float = float("-inf")) -> float:  # noqa: ANN401  # YAML
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given < float("inf"):
        raise _fail(where, f"a number >= {least:g}" if least > float("-inf") else "a number")
    return float(given)


def _numbers(given: Any, *, where: str, least: float = float("-inf")) -> tuple[float, ...]:  # noqa: ANN401  # YAML
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return tuple(_number(i, where=where, least=least) for i in items)


def _stats(given: Any, *, where: str) -> tuple[str, ...]:  # noqa: ANN401  # YAML
    found = _texts(given, where=where)
    known = (*STATS, *(SIDES if where.startswith("variable") else ()))
    wrong = next((s for s in found if s not in known), None)
    if wrong is not None:
        msg = f"options of the loader events, {where}: unknown {wrong!r}; {nearest(wrong, known)}"
        raise ConfigError(msg)
    return tuple(s for s in known if s in found)


def _yes_no(given: Any, *, where: str) -> bool:  # noqa: ANN401  # YAML
    if not isinstance(given, bool):
        raise _fail(where, "true or false")
    return given


def _range(given: Any, *, where: str) -> tuple[float, float]:  # noqa: ANN401  # YAML
    found = _numbers(given, where=where)
    if len(found) != 2 or found[0] > found[1]:
        raise _fail(where, "the least and the largest value")
    return found[0], found[1]


def _reference(given: Any, *, where: str) -> tuple[float, float] | str:  # noqa: ANN401  # YAML
    return "source" if given == "source" else _range(given, where=where)


def _analyte(given: Any, *, where: str) -> str:  # noqa: ANN401  # YAML
    if given not in ANALYTES:
        raise ConfigError(f"options of the loader events, {where}: unknown {given!r}; {nearest(str(given), ANALYTES)}")
    return str(given)


def _levels(given: Any, *, where: str) -> dict[str, str]:  # noqa: ANN401  # YAML
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = {str(level): str(level) for level in given}
    if not isinstance(given, Mapping) or len(given) < 2 or len(set(map(str, given.values()))) != len(given):
        raise _fail(where, "two or more levels with distinct cells")
    return {str(level): str(cell) for level, cell in given.items()}


def _variable(name: str, given: Any) -> Variable:  # noqa: ANN401  # YAML
    where = f"variable {name}"
    cells = _known_keys(given if given is not None else {}, Variable, where=where)
    if isinstance(cells.get("level_codes"), Mapping):
        cells.setdefault("codes", list(map(str, cells["level_codes"].values())))
    cells.setdefault("codes", name)
    readers: dict[str, Callable[..., Any]] = {
        "codes": _texts,
        "levels": _levels,
        "level_codes": _levels,
        "missing": _numbers,
        "range": _range,
        "reference": _reference,
        "stats": _stats,
        "analyte": _analyte,
        "static": _yes_no,
        "ever": _yes_no,
    }
    cells = {key: readers[key](v, where=f"{where}, {key}") if key in readers else v for key, v in cells.items()}
    if not isinstance(cells.get("unit", ""), str):
        raise _fail(f"{where}, unit", "a text")
    categorical = ("levels" in cells) + ("level_codes" in cells)
    if categorical == 2 or (categorical and {"unit", "analyte", "range", "reference"} & set(cells)):
        raise _fail(where, "one of levels, level_codes and unit (a level has no unit, analyte, range or reference)")
    if set(SIDES) & set(cells.get("stats", ())) and "reference" not in cells:
        raise _fail(where, "reference: [low, high] or source, with the statistics below and above")
    return Variable(name=name, **cells)


def _index(given: Any) -> Index:  # noqa: ANN401  # YAML
    cells = _known_keys(given, Index, where="index")
    if "event" in cells:
        cells["event"] = _texts(cells["event"], where="index.event")
    if cells.get("time") is not None:
        try:
            cells["time"] = dt.datetime.fromisoformat(str(cells["time"])).isoformat(sep=" ")
        except ValueError:
            raise _fail("index.time", "an ISO 8601 time such as 2018-01-01 00:00") from None
    if cells.get("after_hours") is not None:
        cells["after_hours"] = _number(cells["after_hours"], where="index.after_hours")
    index = Index(**cells)
    if sum(map(bool, (index.time, index.event, index.column, index.start))) != 1:
        raise _fail("index", "one of time, event, column (with table) and start")
    if bool(index.table) != bool(index.column):
        raise _fail("index", "table and column together")
    return index


def parse(given: Mapping[str, Any]) -> Options:
    """Options of a card.

    Raises:
        ConfigError: an unknown key, a value of another kind, or no index time, lookback or variables.
    """
    cells = _known_keys(given, Options, where="options")
    for needed in ("index", "lookback_days"):
        if needed not in cells:
            raise _fail(needed, "to be stated")
    readers: dict[str, Callable[..., Any]] = {
        "lookback_days": _positive,
        "variables": _variables,
        "windows": _windows,
        "stats": _stats,
        "hash": _texts,
        "buckets": _whole,
        "unit_in_code": _yes_no,
    }
    cells = {key: readers[key](v, where=key) if key in readers else v for key, v in cells.items()}
    cells["index"] = _index(cells["index"])
    for key, choices in _CHOICES.items():
        if cells.get(key) is not None and cells[key] not in choices:
            msg = f"options of the loader events: {key} {str(cells[key])!r}; {nearest(str(cells[key]), choices)}"
            raise ConfigError(msg)
    options = Options(**{"variables": (), **cells})
    _together(options)
    return options


def _positive(given: Any, *, where: str) -> float:  # noqa: ANN401  # YAML
    return _number(given, where=where, least=0)


def _whole(given: Any, *, where: str) -> int:  # noqa: ANN401  # YAML
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= 65_536:
        raise _fail(where, "a whole number up to 65536")
    return given


def _windows(given: Any, *, where: str) -> tuple[float, ...]:  # noqa: ANN401  # YAML
    return _numbers(given, where=where, least=0)


def _variables(given: Any, *, where: str) -> tuple[Variable, ...]:  # noqa: ANN401  # YAML
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = {str(name): None for name in given}
    if not isinstance(given, Mapping):
        raise _fail(where, "a list of codes, or a mapping of name to codes, unit ...")
    return tuple(_variable(str(name), spec) for name, spec in given.items())


def _together(options: Options) -> None:
    """What single keys cannot tell."""
    if max(options.windows, default=0) > options.lookback_days:
        raise _fail("windows", "windows within lookback_days")
    if bool(options.hash) != bool(options.buckets) or not (options.variables or options.hash):
        raise _fail("variables", "variables, or hash with buckets, or both")
    if not _ID.fullmatch(str(options.patient_id)):
        raise _fail("patient_id", "a text with one {} or {:03d}")
    if options.format == "wide" and not (options.id and options.at):
        raise _fail("format wide", "id and at, the columns of patient and time")
