"""A table as the feature store keeps it: every row of values and every distinct row of flags once, columns in runs."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import StoreError
from medfuse.sample import Column, ModalityData, ModalitySample


def is_table(data: ModalityData) -> bool:
    """Whether all patients have the same columns: rows of value and observed flag, at the same positions."""
    samples = list(data.samples.values())
    return data.layout == "columns" and all(
        s.tokens.shape == (len(samples[0].tokens), 2) and np.array_equal(s.position, samples[0].position)
        for s in samples
    )


def save_table(folder: Path, samples: Sequence[ModalitySample]) -> list[int]:
    """Save each row of values and each distinct row of flags once: ``cells.npy``, and one ``position.npy`` for all.

    Without missing cells that is a third of values, flags and positions; what is not stored need not be verified.

    Returns:
        For each patient the row of ``cells.npy`` that holds the flags; its own number is the row of the values.
    """
    rows: dict[bytes, int] = {}
    flags = [rows.setdefault(s.tokens[:, 1].tobytes(), len(samples) + len(rows)) for s in samples]
    cells = np.empty((len(samples) + len(rows), len(samples[0].tokens) if samples else 0), dtype=np.float32)
    for k, sample in enumerate(samples):
        cells[k], cells[flags[k]] = sample.tokens[:, 0], sample.tokens[:, 1]
    np.save(folder / "cells.npy", cells, allow_pickle=False)
    position = samples[0].position if samples else np.zeros((0, 1), dtype=np.float32)
    np.save(folder / "position.npy", position, allow_pickle=False)
    return flags


def packed_columns(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as JSON values: neighbours that differ in nothing but their names stand together."""
    runs = groupby(columns, key=lambda c: (c.kind, c.unit, c.levels))
    return [
        {"kind": kind, "unit": unit, "levels": list(levels), "names": [c.name for c in run]}
        for (kind, unit, levels), run in runs
    ]


def stored_columns(index: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of an entry: as :func:`packed_columns` made them or, in older entries, one list for each."""
    columns: list[Column] = []
    for run in index["columns"]:
        one = run if isinstance(run, dict) else {"names": run[:1], "kind": run[1], "unit": run[2], "levels": run[3]}
        columns += Column.alike(one["names"], kind=one["kind"], unit=one["unit"], levels=one["levels"])
    return tuple(columns)


def stored_tokens(folder: Path, index: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    """The tokens (T, F) of each patient of an entry, memory-mapped, in the order of its index.

    Raises:
        StoreError: rows that the file does not have.
    """
    if "flags" not in index:
        tokens = _mapped(folder / "tokens.npy")
        ends = np.cumsum(index["lengths"]).tolist()
        return [tokens[end - n : end] for n, end in zip(index["lengths"], ends, strict=True)]
    cells, flags = _mapped(folder / "cells.npy"), index["flags"]
    whole = cells.ndim == 2 and cells.dtype == np.float32 and cells.flags.c_contiguous and cells.shape[1] > 0
    if not flags:
        return []
    if not (whole and min(flags) >= len(flags) and max(flags) < len(cells)):
        msg = f"{folder / 'cells.npy'}: expected rows of values and of flags, found another shape; write it again"
        raise StoreError(msg)
    step, shape = cells.strides[0], (cells.shape[1], 2)
    return [  # value and flag of a column stand (flag row - value row) rows apart
        np.ndarray(shape, np.float32, cells, offset=k * step, strides=(cells.itemsize, (flag - k) * step))
        for k, flag in enumerate(flags)
    ]


def stored_positions(folder: Path, index: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    """The positions (T, P) of each patient; all patients of a table have the same."""
    position = _mapped(folder / "position.npy")
    if "flags" in index:
        return [position] * len(index["lengths"])
    ends = np.cumsum(index["lengths"]).tolist()
    return [position[end - n : end] for n, end in zip(index["lengths"], ends, strict=True)]


def _mapped(path: Path) -> NDArray[np.float32]:
    """A plain array over the mapped file: views of numpy's own class for this take ten times as long to make."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
