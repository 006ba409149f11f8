"""DICOM whole slides: which files make one, and JPEG frames where OpenSlide refuses them."""

import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._tiles import JpegGrid

SOP_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_NOT_TISSUE = {"LABEL", "OVERVIEW", "THUMBNAIL"}


@dataclass(frozen=True, kw_only=True)
class Frames:
    """JPEG frames of one file as a grid of tiles; ``mpp`` as the file says it, (x, y) or Nones."""

    grid: JpegGrid
    mpp: tuple[object, object]
    properties: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def is_slide(start: bytes) -> bool:
    """A DICOM file whose class, in the first bytes, is that of whole slides."""
    place = start.find(SOP_CLASS)
    return start[128:132] == b"DICM" and place > 0 and start[place + len(SOP_CLASS) :][:1] not in b".0123456789"


def header(path: Path) -> tuple[Any, int]:
    """A data set without pixels, and where its pixel data begin.

    Raises:
        DataError: damage, or a deflated file, which is inflated as a whole by whoever reads it.
    """
    import pydicom

    with path.open("rb") as file:
        if b"1.2.840.10008.1.2.1.99" in file.read(4096):
            msg = f"{path.name}: expected a DICOM slide that is not deflated, found one; write it again, not deflated"
            raise DataError(msg)
        file.seek(0)
        try:
            with warnings.catch_warnings(), pydicom.config.disable_value_validation():
                warnings.simplefilter("ignore")
                data = pydicom.dcmread(file, stop_before_pixels=True)
                for _ in data:  # values are parsed when asked for: ask now, so that damage shows here
                    pass
            return data, file.tell()
        except Exception as error:
            msg = f"{path.name}: expected a sound DICOM header, found damage ({type(error).__name__}); copy it again"
            raise DataError(msg) from error


def image_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Those files that hold tissue, the largest first: never labels, overviews or thumbnails.

    Raises:
        DataError: none does.
    """
    kept = []
    for path in paths:
        data, _ = header(path)
        kind = {str(word).upper() for word in np.atleast_1d(data.get("ImageType", []))}
        if not kind & _NOT_TISSUE:
            kept.append((-count_of(data, "TotalPixelMatrixColumns"), path.name, path))
    if not kept:
        msg = (
            f"{paths[0].name}: expected the image of a slide, found only its label, overview or thumbnail; give it too"
        )
        raise DataError(msg)
    return tuple(path for _, _, path in sorted(kept))


def count_of(data: Any, name: str) -> int:  # noqa: ANN401  # a data set
    """A whole number of the header; -1 where it is none, 0 where it is absent."""
    try:
        return int(data.get(name) or 0)
    except (TypeError, ValueError):
        return -1


def series_of(path: Path) -> str:
    """Series instance UID, read from the header alone; empty where there is none."""
    return str(header(path)[0].get("SeriesInstanceUID", "") or "")


def is_plain(paths: Sequence[Path]) -> bool:
    """One file of JPEG baseline frames, one for each place of the grid."""
    data, _ = header(paths[0])
    try:
        columns = -(-int(data.TotalPixelMatrixColumns) // int(data.Columns))
        rows = -(-int(data.TotalPixelMatrixRows) // int(data.Rows))
        covered = columns * rows == int(data.NumberOfFrames)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        covered = True  # reading says what is wrong
    return len(paths) == 1 and covered and str(data.file_meta.get("TransferSyntaxUID", "")) == JPEG_BASELINE


def frames_of(path: Path, *, order: str | None) -> Frames:
    """JPEG frames as a grid.

    Args:
        path: one file that holds all frames.
        order: ``rows`` or ``columns`` where the file does not say where its frames lie.

    Raises:
        DataError: another codec, sizes that contradict each other, frames whose places are not known, or damage.
    """
    data, start = header(path)
    width, height, w, h, count = (
        whole(path, data, name)
        for name in ("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns", "Rows", "NumberOfFrames")
    )
    syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
    if syntax != JPEG_BASELINE or count_of(data, "BitsAllocated") != 8:
        msg = (
            f"{path.name}: expected JPEG baseline frames of 8 bits where OpenSlide refuses a slide, found transfer "
            f"syntax {syntax}; convert it: wsidicomizer, or dcmcjpeg"
        )
        raise DataError(msg)
    columns, rows = -(-width // w), -(-height // h)
    if columns * rows != count:
        msg = (
            f"{path.name}: expected {columns * rows} frames that cover {width} x {height} pixels, found {count}; "
            "sparse slides are not read: convert it to TILED_FULL"
        )
        raise DataError(msg)
    offsets, counts = _frames(path, start, count)
    places, said = _places(path, data, columns=columns, rows=rows, order=order)
    grid = JpegGrid(
        path=path,
        width=width,
        height=height,
        tile_width=w,
        tile_height=h,
        offsets=offsets[places],
        counts=counts[places],
    )
    return Frames(grid=grid, mpp=spacing(data, width, height), properties=properties_of(data), warnings=said)


def properties_of(data: Any) -> dict[str, str]:  # noqa: ANN401  # a data set
    """Elements of a header by keyword, without sequences and bytes; values may identify a person."""
    return {e.keyword: str(e.value)[:200] for e in data if e.keyword and e.VR not in {"SQ", "OB", "OW", "UN"}}


def whole(path: Path, data: Any, name: str) -> int:  # noqa: ANN401  # a data set
    """A count or size of the header.

    Raises:
        DataError: none, or one that no slide has.
    """
    try:
        found = int(data.get(name) or 0)
    except (TypeError, ValueError):
        found = 0
    if not 0 < found <= 2_000_000:
        msg = f"{path.name}: expected {name} between 1 and 2,000,000, found another value; is it a whole slide?"
        raise DataError(msg)
    return found


def _frames(path: Path, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places and lengths of the frames, one fragment each (PS3.5 A.4)."""
    size = path.stat().st_size
    found: list[tuple[int, int]] = []
    with path.open("rb") as file:
        file.seek(start)
        element = file.read(12)
        place, first = start + 12, True
        sound = element[:4] == b"\xe0\x7f\x10\x00" and element[8:12] == b"\xff\xff\xff\xff"
        while sound and len(found) <= count:
            file.seek(place)
            head = file.read(8)
            if len(head) < 8 or head[:4] != b"\xfe\xff\x00\xe0":
                break
            length = struct.unpack("<I", head[4:])[0]
            if place + 8 + length > size:
                break
            if not first:
                found.append((place + 8, length))
            first, place = False, place + 8 + length
    if len(found) != count:
        msg = (
            f"{path.name}: expected {count} encapsulated frames of one fragment each, found {len(found)}; "
            "is the file cut off?"
        )
        raise DataError(msg)
    table = np.array(found, dtype=np.int64)
    return table[:, 0], table[:, 1]


def _places(
    path: Path,
    data: Any,  # noqa: ANN401  # a data set
    *,
    columns: int,
    rows: int,
    order: str | None,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number of the frame at each place of the grid, row by row."""
    count = columns * rows
    by_rows = np.arange(count, dtype=np.int64)
    if str(data.get("DimensionOrganizationType", "")) == "TILED_FULL":
        return by_rows, ()
    given = data.get("PerFrameFunctionalGroupsSequence")
    if given is not None and len(given) == count:
        try:
            at = [frame.PlanePositionSlideSequence[0] for frame in given]
            x = np.array([int(p.ColumnPositionInTotalImagePixelMatrix) for p in at])
            y = np.array([int(p.RowPositionInTotalImagePixelMatrix) for p in at])
        except (AttributeError, IndexError, TypeError, ValueError):
            x = y = np.zeros(0, dtype=int)
        number = (y - 1) // int(data.Rows) * columns + (x - 1) // int(data.Columns)
        whole = len(x) > 0 and not ((x - 1) % int(data.Columns)).any() and not ((y - 1) % int(data.Rows)).any()
        if whole and sorted(number) == list(range(count)):
            return np.argsort(number).astype(np.int64), ()
    if order is None:
        msg = (
            f"{path.name}: expected TILED_FULL or a position of every frame, found neither; the option frames "
            "(rows or columns) says in which order they lie: look at medfuse.loaders.slide.picture with both"
        )
        raise DataError(msg)
    said = (f"the file does not say where its frames lie; option frames: {order} was believed",)
    return (by_rows if order == "rows" else by_rows.reshape(columns, rows).T.ravel()), said


def spacing(data: Any, width: int, height: int) -> tuple[object, object]:  # noqa: ANN401  # a data set
    """µm per pixel across and down: pixel spacing, or the extent of the imaged volume over its pixels."""
    try:
        shared = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        return float(shared[1]) * 1000, float(shared[0]) * 1000
    except (AttributeError, IndexError, TypeError, ValueError):
        pass
    try:
        return float(data.ImagedVolumeWidth) / width * 1000, float(data.ImagedVolumeHeight) / height * 1000
    except (AttributeError, TypeError, ValueError):
        return None, None
