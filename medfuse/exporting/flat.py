"""A record as a flat CSV table and back: ``part, path, type, value``, safe to open in a spreadsheet."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from medfuse.errors import DataError

HEADER = ("part", "path", "type", "value")
_DANGEROUS = ("=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠")


def guarded(text: str) -> str:
    """Text that no spreadsheet runs as a formula: an apostrophe stands before what could start one."""
    start = text.lstrip()[:1]
    risky = start in _DANGEROUS if start else False
    return f"'{text}" if risky or text[:1] in ("'", "\t", "\r", "\n") else text


def unguarded(text: str) -> str:
    """The text that :func:`guarded` was given."""
    return text[1:] if text.startswith("'") else text


def as_csv(record: Mapping[str, Any]) -> bytes:
    """A record as CSV, one row per value; numbers keep all their digits."""
    stream = io.StringIO(newline="")
    out = csv.writer(stream, lineterminator="\r\n")
    out.writerow(HEADER)
    for part, content in record.items():
        for path, kind, text in _rows(content, ""):
            out.writerow((guarded(part), guarded(path), kind, text if kind == "number" else guarded(text)))
    return stream.getvalue().encode()


def _rows(value: Any, path: str) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401  # a JSON value
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _rows(inner, f"{path}/{_escaped(str(key))}")
    elif isinstance(value, list | tuple) and len(value):
        for number, inner in enumerate(value):
            yield from _rows(inner, f"{path}/[{number}]")
    elif isinstance(value, Mapping | list | tuple):
        yield path, "mapping" if isinstance(value, Mapping) else "list", ""
    elif value is None:
        yield path, "empty", ""
    elif isinstance(value, bool):
        yield path, "truth", "true" if value else "false"
    elif isinstance(value, int | float):
        yield path, "number", json.dumps(value, allow_nan=False)
    else:
        yield path, "text", str(value)


def _escaped(key: str) -> str:
    """A key in which neither a separator nor a number of a list can stand."""
    return key.replace("~", "~0").replace("/", "~1").replace("[", "~2")


def _plain(key: str) -> str:
    return key.replace("~2", "[").replace("~1", "/").replace("~0", "~")


def from_csv(content: bytes) -> dict[str, Any]:
    """The record of :func:`as_csv`.

    Raises:
        DataError: another table; no cell is repeated in the message.
    """
    try:
        rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
        if not rows or tuple(rows[0]) != HEADER:
            raise ValueError
        found: dict[str, Any] = {}
        for part, path, kind, text in rows[1:]:
            keys = [unguarded(part), *unguarded(path).split("/")[1:]]
            _put(found, keys, _value(kind, text if kind == "number" else unguarded(text)))
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        msg = "expected the CSV of an export, found another table or a damaged one; export the patient again"
        raise DataError(msg) from error
    return {key: _listed(value) for key, value in found.items()}


def _value(kind: str, text: str) -> Any:  # noqa: ANN401  # a JSON value
    if kind == "number":
        return json.loads(text)
    return {"text": text, "empty": None, "truth": text == "true", "list": [], "mapping": {}}[kind]


def _put(into: dict[str, Any], keys: list[str], value: Any) -> None:  # noqa: ANN401  # a JSON value
    for key in keys[:-1]:
        into = into.setdefault(key, {})
    into[keys[-1]] = value


def _listed(value: Any) -> Any:  # noqa: ANN401  # a JSON value
    """Mappings whose keys are numbers of a list become that list."""
    if not isinstance(value, dict):
        return value
    if value and all(key.startswith("[") for key in value):
        return [_listed(inner) for inner in value.values()]
    return {_plain(key): _listed(inner) for key, inner in value.items()}
