"""DICOM SEG objects as masks on the grid of a series (PS3.3, A.51 and C.8.20)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._dicom_enhanced import dataset_of, enhanced_frames, typed
from medfuse.loaders._dicom_grid import Stack
from medfuse.loaders._dicom_header import Header
from medfuse.loaders._dicom_pixels import check_pixels
from medfuse.loaders._dicom_series import same_direction


def referenced_series(header: Header) -> set[str]:
    """Series that a segmentation refers to; empty where it does not say."""
    data = dataset_of(header, ["ReferencedSeriesSequence"])
    with typed(header, "referenced series"):
        return {str(item.get("SeriesInstanceUID", "")) for item in data.get("ReferencedSeriesSequence", ())} - {""}


def check_segmentation(header: Header) -> int:
    """Number of frames of a segmentation whose size was checked."""
    frames = header.integer("NumberOfFrames", 1) or 1
    check_pixels(header, frames=frames, bits=header.integer("BitsAllocated"))
    return frames


def mask_of(header: Header, stack: Stack, segments: Sequence[int]) -> NDArray[np.bool_]:
    """Voxels of a stack (columns, rows, slices) inside the segments (all where none are named).

    Raises:
        DataError: another grid than the stack's, or damage.
    """
    import pydicom
    from pydicom.pixels.utils import pixel_array

    count = check_segmentation(header)
    if not header.has("PerFrameFunctionalGroupsSequence"):
        msg = f"{header.name}: expected a position of each frame of the segmentation, found none; write it anew"
        raise DataError(msg)
    frames = enhanced_frames(header, count)
    wanted = _segments(header, count)
    with typed(header, "pixels of a segmentation"):
        planes = np.asarray(pixel_array(pydicom.dcmread(header.path, force=True)))
        planes = planes.reshape(count, header.integer("Rows"), header.integer("Columns"))
    if planes.shape[1:] != (stack.rows, stack.columns):
        msg = f"{header.name}: expected a segmentation on the grid of its series, found another size; resample it"
        raise DataError(msg)
    first = stack.frames[0][0]
    positions = np.asarray([frame.position for frame in stack.frames[0]], dtype=np.float64)
    tolerance = 0.1 * min(first.spacing or (1.0, 1.0))
    out = np.zeros((stack.columns, stack.rows, len(positions)), dtype=bool)
    for frame, plane, segment in zip(frames, planes, wanted, strict=True):
        fits = frame.position is not None and same_direction(frame.orientation, first.orientation)
        away = np.sqrt(((positions - np.asarray(frame.position)) ** 2).sum(axis=1)) if fits else np.ones(1) * np.inf
        if away.min() > tolerance:
            msg = f"{header.name}: expected frames at slices of the series, found one elsewhere; resample the mask"
            raise DataError(msg)
        out[:, :, int(away.argmin())] |= _inside(plane, segment, segments, header).T
    return out


def _inside(plane: NDArray[Any], segment: int | None, segments: Sequence[int], header: Header) -> NDArray[np.bool_]:
    if segment is None:  # a label map: values are numbers of segments
        return np.asarray(np.isin(plane, list(segments)) if segments else plane > 0)
    if segments and segment not in segments:
        return np.zeros(plane.shape, dtype=bool)
    full = 1 if header.integer("BitsAllocated") == 1 else 255
    return np.asarray(plane > full // 2)


def _segments(header: Header, count: int) -> list[int | None]:
    """Segment of each frame; None in a label map."""
    if header.text("SOPClassUID").endswith(".66.7"):
        return [None] * count
    data = dataset_of(header, ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"])
    with typed(header, "segments"):
        shared = data.get("SharedFunctionalGroupsSequence")
        found: list[int | None] = []
        for group in data.PerFrameFunctionalGroupsSequence:
            item = group.get("SegmentIdentificationSequence") or shared[0].get("SegmentIdentificationSequence")
            found.append(int(item[0].ReferencedSegmentNumber))
        return found
