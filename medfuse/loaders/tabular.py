"""Tables of numeric, categorical and ordinal columns; a missing cell is a state of its own."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.config import ColumnCard, ModalityCard
from medfuse.errors import DataError
from medfuse.limits import read_head
from medfuse.loaders._look import is_parquet, look, parquet_names, shown
from medfuse.loaders._matrix import names_and_rows
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.tables import column, patient_ids, read_table, same_code, to_numeric
from medfuse.types import PatientId

_AT_ONCE = 1 << 15  # cells
_HINTS = {
    "id": re.compile(r"(^|_)(mrn|ssn|nhs|(subject|patient|hadm|case|person)_?id)($|_)|^id$", re.IGNORECASE),
    "name": re.compile(r"(^|_)(first|last|family|given|patient|sur)_?name($|_)", re.IGNORECASE),
    "date": re.compile(r"(^|_)(dob|dod|birth_?date|date_of_birth|date_of_death)($|_)|date$", re.IGNORECASE),
    "address": re.compile(r"(^|_)(address|street|zip|zip_?code|post_?code|phone|e?mail)($|_)", re.IGNORECASE),
}


def merge_rows(
    values: NDArray[np.float64], ids: list[PatientId], *, rule: str, file: str, names: list[str]
) -> tuple[NDArray[np.float64], list[PatientId]]:
    """One row per patient out of possibly several.

    Args:
        values: (rows, C), NaN where missing.
        ids: id of each row.
        rule: ``agree`` refuses rows that differ, ``first`` takes the first, ``mean`` averages the observed cells.
        file: for messages.
        names: C column names, for messages.

    Raises:
        DataError: rule ``agree`` and a patient whose rows differ.
    """
    first = dict[PatientId, int]()
    order = [first.setdefault(patient, len(first)) for patient in ids]
    if len(first) == len(ids):
        return values, ids
    unique = list(first)
    if rule == "mean":
        grouped = pd.DataFrame(values).groupby(np.asarray(order)).mean()
        return grouped.to_numpy(dtype=np.float64), unique
    starts = np.full(len(unique), -1, dtype=np.int64)
    for row, position in enumerate(order):
        if starts[position] < 0:
            starts[position] = row
    chosen = values[starts]
    if rule == "agree":
        other = chosen[np.asarray(order)]
        clash = np.argwhere(~((values == other) | (np.isnan(values) & np.isnan(other))))
        if clash.size:
            row, c = clash[0]
            msg = (
                f"{file}, data row {row + 1}: patient {ids[row]} has several rows that disagree in column "
                f"{names[c]!r}; "
                "state repeated_rows: mean or first in the card, or correct the table"
            )
            raise DataError(msg)
    return chosen, unique


def _coded(cells: "pd.Series[str]", card: ColumnCard, *, file: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    levels = list(card.levels) or sorted(cells.dropna().unique())
    codes: dict[str, float] = {}
    for cell in cells.dropna().unique():
        hits = [k for k, level in enumerate(levels) if same_code(str(cell), level)]
        if not hits:
            row = int(np.flatnonzero((cells == cell).to_numpy())[0])
            msg = (
                f"{file}, data row {row + 1}, column {cells.name!r}: expected one of the card's {len(levels)} levels, "
                "found another; add it to levels or to missing"
            )
            raise DataError(msg)
        codes[cell] = float(hits[0])
    return np.asarray(cells.map(codes), dtype=np.float64), tuple(levels)


def to_samples(values: NDArray[np.float64], ids: list[PatientId]) -> dict[PatientId, ModalitySample]:
    """(n, C) values, NaN where missing, as samples; a patient without any value has no sample.

    Raises:
        DataError: a value that float32 cannot hold.
    """
    tokens = np.zeros((*values.shape, 2), dtype=np.float32)
    seen = np.zeros(len(values), dtype=bool)
    rows = max(1, _AT_ONCE // max(1, values.shape[1]))
    for start in range(0, len(values), rows):  # a few rows at a time, which stay in the cache
        part, out = values[start : start + rows], tokens[start : start + rows]
        observed = ~np.isnan(part)
        with np.errstate(over="ignore"):
            np.copyto(out[..., 0], part, where=observed, casting="same_kind")
        out[..., 1] = observed
        seen[start : start + rows] = observed.any(axis=1)
        if not np.isfinite(out).all():
            raise _too_large(values)
    position = np.arange(values.shape[1], dtype=np.float32)[:, None]
    return {
        patient: ModalitySample.trusted(tokens=own, position=position)
        for patient, own, some in zip(ids, tokens, seen, strict=True)
        if some
    }


def _too_large(values: NDArray[np.float64]) -> DataError:
    with np.errstate(over="ignore"):
        large = np.argwhere(np.isinf(values.astype(np.float32)))
    msg = (
        f"expected values up to 3.4e38, found {len(large)} larger ones, the first in column {large[0, 1] + 1} of "
        f"{values.shape[1]} that are read; is the file damaged? correct the cell, or leave the column out"
    )
    return DataError(msg)


def check_index_time(frame: pd.DataFrame, name: str | None, ids: list[PatientId], *, file: str) -> None:
    """Refuse rows that were measured after index time.

    Raises:
        DataError: a row whose ``days_from_index`` is above 0.
    """
    if name is None:
        return
    late = np.flatnonzero(to_numeric(column(frame, name, file=file), file=file) > 0)
    if late.size:
        msg = (
            f"{file}, data row {late[0] + 1}, column {name!r}: patient {ids[late[0]]} was measured after index time "
            f"({late.size} such rows); remove the rows, or move the index time"
        )
        raise DataError(msg)


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read a table; see :func:`medfuse.loaders.read`.

    Returns:
        Layout ``columns``: (C, 2) tokens of value (level index for coded columns) and observed flag.
    """
    path = resolve(card.file or "")
    frame = read_table(path)
    ids = patient_ids(frame, card.id or patients[0], prefix=patients[1], file=path.name)
    check_index_time(frame, card.days_from_index, ids, file=path.name)
    specs = card.columns if isinstance(card.columns, dict) else {}
    columns, values = [], []
    for label, spec in specs.items():
        cells = column(frame, label, file=path.name)
        if spec.missing:
            missing = {c for c in cells.dropna().unique() if any(same_code(str(c), code) for code in spec.missing)}
            cells = cells.mask(cells.isin(missing))
        if spec.kind == "numeric":
            values.append(to_numeric(cells, file=path.name))
            columns.append(Column(name=label, kind="numeric", unit=spec.unit))
        else:
            coded, levels = _coded(cells, spec, file=path.name)
            values.append(coded)
            columns.append(Column(name=label, kind=spec.kind, unit=spec.unit, levels=levels))
    merged, unique = merge_rows(
        np.stack(values, axis=1), ids, rule=card.repeated_rows, file=path.name, names=[c.name for c in columns]
    )
    samples = to_samples(merged, unique)
    empty = [i for i in unique if i not in samples]
    warnings = (f"{len(empty)} patients have an empty row and count as absent, first {empty[0]}",) if empty else ()
    return ModalityData(
        name=name, layout="columns", features=2, columns=tuple(columns), samples=samples, warnings=warnings
    )


# --- inspection ------------------------------------------------------------------------------------------------------


def recognise(head: Head) -> bool:
    """A delimited text with a header, ARFF, or Parquet: whatever no other loader knows better."""
    if is_parquet(head):
        return True
    if head.path.suffix.lower() == ".arff":
        return b"@relation" in head.start.lower() or b"@attribute" in head.start.lower()
    return look(head) is not None


def describe(files: Sequence[Path]) -> Description:
    """Number of rows, and names of the columns; no cell.

    Raises:
        DataError: damaged.
    """
    path = files[0]
    if is_parquet(Head(path=path, size=path.stat().st_size, start=read_head(path))):
        names, rows = parquet_names(path)
        kind = "table (Parquet)"
    else:
        names, rows = names_and_rows(path)
        kind = "table (ARFF)" if path.suffix.lower() == ".arff" else "table"
    return Description(kind=kind, holds={"rows": rows, "columns": len(names), "names": shown(names)})


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Columns whose names are those of ids, names, dates of birth, addresses and the like: hints, not an answer."""
    path = files[0]
    names = describe(files).holds["names"]
    hits = [(name, kind) for name in names for kind, pattern in _HINTS.items() if pattern.search(name)]
    return [Identifying(where=f"{path.name}: column {name!r}", kind=kind) for name, kind in hits]


def write_example(folder: Path) -> ModalityCard:
    """Write a small valid table into ``folder`` and return the card that reads it."""
    (folder / "table.csv").write_text("id,age,sex,stage\n001,61,f,II\n002,,m,I\n010,48,f,\n", encoding="utf-8")
    return ModalityCard(
        loader="tabular",
        file="table.csv",
        id="id",
        columns={
            "age": ColumnCard(unit="years"),
            "sex": ColumnCard(kind="categorical"),
            "stage": ColumnCard(kind="ordinal", levels=["I", "II", "III"]),
        },
    )
