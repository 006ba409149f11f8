"""What a modality is after loading: tokens with positions, per patient.

Two layouts cover every modality. ``columns``: a fixed set of columns (a table, an expression profile), stored as
(C, 2) tokens of value and observed flag. ``vectors``: (T, F) feature vectors whose positions are token identities
(stains) or coordinates (tiles). A patient without a modality has no sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.types import ColumnKind, Layout, PatientId


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


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the ``columns`` layout: its name, kind, unit and, unless numeric, its levels in order."""

    name: str
    kind: ColumnKind = "numeric"
    unit: str | None = None
    levels: tuple[str, ...] = ()


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
        warnings: what the loader saw and a person should know (mangled or duplicated names, for instance).
    """

    name: str
    layout: Layout
    features: int
    samples: Mapping[PatientId, ModalitySample]
    columns: tuple[Column, ...] = ()
    identities: tuple[str, ...] = ()
    key: str = ""
    gene_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=())
