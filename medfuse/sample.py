"""What a modality is: raw items as files hold them, and tokens with positions, per patient.

Two layouts cover every modality. ``columns``: a fixed set of columns (a table, an expression profile), stored as
(C, 2) tokens of value and observed flag. ``vectors``: (T, F) feature vectors whose positions are token identities
(stains) or coordinates (tiles). A patient without a modality has no sample.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.types import ColumnKind, Layout, PatientId

ItemKind = Literal["tile", "patch", "window", "vector", "sentence"]
_KINDS: tuple[str, ...] = get_args(ColumnKind)


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One patient in one modality as the files hold it: equally shaped items, read when they are asked for.

    Attributes:
        item: ``tile`` (H, W, 3) uint8, ``patch`` (I, J, K, C) float32, ``window`` (leads, samples) float32 in mV,
            ``vector`` (F,) float32, ``sentence`` () text.
        shape: of one item.
        position: (T, P) float32, T >= 1 items.
        unit: of the position: ``level-0 pixels``, ``mm`` (RAS+), ``s``, ``days`` before index time, ``index``.
        fetch: numbers of items -> (k, *shape); opens on access and closes after.
        facts: what an extractor needs and the manifest keeps (mpp, spacing, leads, sampling_frequency, units ...), as
            JSON values; nothing that identifies a person.
        warnings: what the loader saw and a person should know.

    Raises:
        DataError: no item, or positions that are not finite.
    """

    item: ItemKind
    shape: tuple[int, ...]
    position: NDArray[np.float32]
    unit: str
    fetch: Callable[[Sequence[int]], NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.position.ndim != 2 or not len(self.position) or not np.isfinite(self.position).all():
            msg = f"RawSample: expected finite positions (T >= 1, P), found {self.position.shape}"
            raise DataError(msg)

    def __len__(self) -> int:
        return len(self.position)

    def batches(self, size: int = 256) -> Iterator[NDArray[Any]]:
        """All items in order, ``size`` at a time, so that memory does not grow with their number."""
        for start in range(0, len(self), size):
            yield self.fetch(range(start, min(start + size, len(self))))


@dataclass(frozen=True, kw_only=True)
class ModalitySample:
    """One patient in one modality.

    Attributes:
        tokens: (T, F) float32, finite, T >= 1.
        position: (T, P) float32 in the unit of the modality.

    Raises:
        DataError: on another shape, or a value that is not finite.
    """

    tokens: NDArray[np.float32]
    position: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or len(self.tokens) < 1 or len(self.position) != len(self.tokens):
            msg = (
                f"ModalitySample: expected tokens (T>=1, F) and position (T, P), found {self.tokens.shape}, "
                f"{self.position.shape}"
            )
            raise DataError(msg)
        if not np.isfinite(self.tokens).all():
            msg = "ModalitySample: expected finite tokens, found NaN or infinity; a missing cell is a flag, not a value"
            raise DataError(msg)

    @classmethod
    def trusted(cls, *, tokens: NDArray[Any], position: NDArray[np.float32]) -> "ModalitySample":
        """A sample whose content was checked when it was stored: memory-mapped tokens are not read."""
        sample = object.__new__(cls)
        object.__setattr__(sample, "tokens", tokens)
        object.__setattr__(sample, "position", position)
        return sample

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> "ModalitySample":
        """Some of the tokens, in the type that they are stored in; of mapped ones only these are read from disk."""
        return ModalitySample.trusted(tokens=self.tokens[rows], position=self.position[rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of the ``columns`` layout: its name, kind, unit and, unless numeric, its levels in order.

    Raises:
        DataError: no name, another kind, levels of a numeric column, or a level twice.
    """

    name: str
    kind: ColumnKind = "numeric"
    unit: str | None = None
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            msg = f"Column: expected a name, found {type(self.name).__name__} {self.name!r}"
            raise DataError(msg)
        if self.kind not in _KINDS:
            msg = f"column {self.name}: expected a kind of {', '.join(_KINDS)}, found {self.kind!r}"
            raise DataError(msg)
        if self.levels and (self.kind == "numeric" or len(set(self.levels)) < len(self.levels)):
            found = "levels of a numeric column" if self.kind == "numeric" else "a level twice"
            msg = f"column {self.name}: expected distinct levels, and none of a numeric column, found {found}"
            raise DataError(msg)

    @classmethod
    def alike(
        cls, names: Sequence[str], *, kind: ColumnKind = "numeric", unit: str | None = None, levels: Sequence[str] = ()
    ) -> "list[Column]":
        """Columns that differ in nothing but their names, in half the time: a gene table has 20,000.

        What they share is checked once, of the first; the names are checked together.

        Raises:
            DataError: as of a single column.
        """
        if set(map(type, names)) != {str} or not all(names):
            return [cls(name=name, kind=kind, unit=unit, levels=tuple(levels)) for name in names]
        cls(name=names[0], kind=kind, unit=unit, levels=tuple(levels))
        columns = list(map(object.__new__, repeat(cls, len(names))))
        contents: dict[str, Iterable[object]] = {
            "name": names,
            "kind": repeat(kind),
            "unit": repeat(unit),
            "levels": repeat(tuple(levels)),
        }
        for slot, values in contents.items():
            deque(map(getattr(cls, slot).__set__, columns, values), maxlen=0)
        return columns


@dataclass(frozen=True, kw_only=True)
class ModalityData:
    """One modality over a cohort.

    Attributes:
        name: name of the modality in the card.
        layout: ``columns`` or ``vectors``.
        columns: the C columns (layout ``columns`` only).
        features: F of the stored tokens (2 in layout ``columns``).
        identities: names of the token identities; empty for a free bag (layout ``vectors`` only).
        samples: one entry per patient who has the modality.
        key: content address in the feature store, empty before it was stored.
        gene_sets: set name -> column names, where the card names a GMT file; cut to the columns, none empty.
        item: shape of one raw item, channels first, whose flattened numbers are the features (windows, patches); empty
            where features are features.
        meaning: what the numbers of a token are where their count does not say it (channels, step and unit of raw
            items, the SHA-256 of a pretrained model), as JSON; a run refuses data of another meaning.
        warnings: what the loader saw and a person should know (mangled or duplicated names, for instance).
        feature_names: of the F features of raw items (layout ``vectors`` only), as their extractor calls them.
    """

    name: str
    layout: Layout
    features: int
    samples: Mapping[PatientId, ModalitySample]
    columns: tuple[Column, ...] = ()
    identities: tuple[str, ...] = ()
    key: str = ""
    gene_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    item: tuple[int, ...] = ()
    meaning: str = ""
    warnings: tuple[str, ...] = field(default=())
    feature_names: tuple[str, ...] = field(default=())
