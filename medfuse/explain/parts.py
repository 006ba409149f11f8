"""Parts of an explanation on disk: a frozen dataclass as arrays and one JSON file, at once or not at all."""

import io
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import StoreError
from medfuse.files import new_folder, read_json, write_bytes, write_json

FORMAT_VERSION = 1
INDEX = "index.json"
T = TypeVar("T")


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def write_part(part: object, folder: Path) -> None:
    """Write a dataclass whose fields are arrays, or text, numbers, None and sequences of them.

    Raises:
        StoreError: a field that neither an array nor JSON can hold, or a folder that cannot be written.
    """
    rest: dict[str, Any] = {}
    arrays: list[str] = []
    with new_folder(folder) as temporary:
        for field in fields(part):  # type: ignore[arg-type]  # any dataclass
            value = getattr(part, field.name)
            if isinstance(value, np.ndarray):
                arrays.append(field.name)
                write_bytes(temporary / f"{field.name}.npy", npy_bytes(value))
            else:
                rest[field.name] = value
        kind = type(part).__name__
        index = {"format_version": FORMAT_VERSION, "kind": kind, "arrays": arrays, "rest": rest}
        write_json(temporary / INDEX, index)


def has_part(folder: Path) -> bool:
    """Whether a part stands there, complete."""
    return (folder / INDEX).is_file()


def read_part(kind: type[T], folder: Path) -> T:
    """The inverse of :func:`write_part`; arrays are memory-mapped, and sequences come back as tuples.

    Raises:
        StoreError: nothing there, damaged, of another kind or of a newer format.
    """
    if not has_part(folder):
        msg = f"{folder}: expected a part of an explanation, found none; run medfuse explain on the run"
        raise StoreError(msg)
    index = read_json(folder / INDEX)
    try:
        if index["format_version"] > FORMAT_VERSION or index["kind"] != kind.__name__:
            msg = (
                f"{folder / INDEX}: expected {kind.__name__} of format {FORMAT_VERSION}, found {index['kind']} of "
                f"format {index['format_version']}; update medfuse, or explain the run again"
            )
            raise StoreError(msg)
        found = {name: _tuples(value) for name, value in index["rest"].items()}
        for name in index["arrays"]:
            found[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return kind(**found)
    except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        msg = f"{folder}: expected the parts of {kind.__name__}, found others; explain the run again"
        raise StoreError(msg) from error


def _tuples(value: Any) -> Any:  # noqa: ANN401  # JSON values
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
