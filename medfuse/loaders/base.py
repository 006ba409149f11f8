"""What every loader module provides.

A module of ``LOADERS`` has

- ``recognise(head) -> bool``: by content first, by name only where the format has no mark of its own;
- ``describe(files) -> Description``: what they hold, from as few bytes as possible; raises DataError as a refusal;
- ``write_example(folder) -> ModalityCard``: small valid files, and the card that reads them;
- ``group(files) -> list of tuples`` where several files make one item (a DICOM series, a WFDB record); else one each;
- ``identifying(files) -> list of Identifying`` where the format can carry what identifies a person.

Modules that read a table of all patients have ``read(name, card, resolve=, patients=) -> ModalityData``; those that
read files of one patient (``RAW``) have ``ITEM``, the kind of their items, and ``read(files, options) -> RawSample``,
and, where a table may hold all patients, ``read_table_of(path, card, patients=) -> patient -> RawSample``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Head:
    """The beginning of a file.

    Attributes:
        path: of the file.
        size: bytes on disk.
        start: its first 4,096 bytes, inflated where it is gzip.
    """

    path: Path
    size: int
    start: bytes

    @property
    def suffixes(self) -> str:
        """Lower-case suffixes together, such as ``.nii.gz``."""
        return "".join(self.path.suffixes[-2:]).lower()


@dataclass(frozen=True, kw_only=True)
class Description:
    """What files hold.

    Attributes:
        kind: in the field's words, such as ``CT series``.
        holds: shape, units, geometry, leads, codes, number of patients ..., as JSON values; no value of a patient.
        warnings: what a person should know before using them.
    """

    kind: str
    holds: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Identifying:
    """Something that identifies a person; its value is never repeated.

    Attributes:
        where: element, field or place, such as ``(0010,0010) PatientName``.
        kind: ``name``, ``id``, ``date``, ``free text``, ``pixels``, ``image`` ...
    """

    where: str
    kind: str
