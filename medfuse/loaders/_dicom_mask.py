"""DICOM SEG objects as masks on the grid of a series (PS3.3, A.51 and C.8.20)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._dicom_enhanced import dataset_of, enhanced_frames, typed
from medfuse.loaders._dicom_frame import Frame
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

    A voxel of a fractional segmentation is inside above half of its largest value (probability or occupancy).

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
    slices = [0] * count if _of_flat(stack) else _slices(frames, stack, header)
    out = np.zeros((stack.columns, stack.rows, len(stack.frames[0])), dtype=bool)
    for k, plane, segment in zip(slices, planes, wanted, strict=True):
        out[:, :, k] |= _inside(plane, segment, segments, header).T
    return out


def _of_flat(stack: Stack) -> bool:
    """One image without a place in the patient: its segmentation has none either."""
    return len(stack.frames) == 1 and len(stack.frames[0]) == 1 and stack.frames[0][0].position is None


def _slices(frames: Sequence[Frame], stack: Stack, header: Header) -> list[int]:
    """Slice of the stack at which each frame lies.

    Raises:
        DataError: a frame in another orientation, or further than a tenth of a pixel from every slice.
    """
    first = stack.frames[0][0]
    if first.position is None:
        msg = f"{header.name}: expected a segmentation of a volume or of one image, found one of a cine; leave it out"
        raise DataError(msg)
    positions = np.asarray([frame.position for frame in stack.frames[0]], dtype=np.float64)
    tolerance = 0.1 * min(first.spacing or (1.0, 1.0))
    found = []
    for frame in frames:
        fits = frame.position is not None and same_direction(frame.orientation, first.orientation)
        away = np.sqrt(((positions - np.asarray(frame.position)) ** 2).sum(axis=1)) if fits else np.ones(1) * np.inf
        if away.min() > tolerance:
            msg = f"{header.name}: expected frames at slices of the series, found one elsewhere; resample the mask"
            raise DataError(msg)
        found.append(int(away.argmin()))
    return found


def _inside(plane: NDArray[Any], segment: int | None, segments: Sequence[int], header: Header) -> NDArray[np.bool_]:
    if segment is None:  # a label map: values are numbers of segments
        return np.asarray(np.isin(plane, list(segments)) if segments else plane > 0)
    if segments and segment not in segments:
        return np.zeros(plane.shape, dtype=bool)
    if header.text("SegmentationType") != "FRACTIONAL":
        return np.asarray(plane > 0)
    return np.asarray(2 * plane.astype(np.int64) > header.integer("MaximumFractionalValue", 255))


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
