"""One plane of a DICOM image."""

from collections.abc import Mapping
from dataclasses import dataclass

from medfuse.loaders._dicom_header import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One plane of pixels.

    Attributes:
        header: of its file.
        number: of the frame in the file.
        position: mm (LPS) of the centre of the first pixel, or None.
        orientation: direction cosines of a row and of a column, or None.
        spacing: mm between rows and between columns, or None.
        slope, intercept: of the modality rescale, or None.
        keys: what may order planes at one position, by name.
    """

    header: Header
    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    keys: Mapping[str, float]
