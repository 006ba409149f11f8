"""Planes of multi-frame DICOM objects, from their functional groups (PS3.3, C.7.6.16)."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from medfuse.errors import DataError
from medfuse.loaders._dicom_frame import Frame
from medfuse.loaders._dicom_header import DEFLATED, Header, no_panic, quiet

_GROUP_BYTES = 64 << 10  # of functional groups of a frame; real ones have 1 to 10 KiB


@contextlib.contextmanager
def typed(header: Header, what: str) -> Iterator[None]:
    """Whatever pydicom raises becomes a DataError, and what it warns stays silent.

    Raises:
        DataError: instead of any other error.
    """
    try:
        with quiet(), no_panic():
            yield
    except DataError:
        raise
    except (MemoryError, Exception) as error:
        problem = f"found damage or an encoding that the decoder does not know ({type(error).__name__})"
        msg = f"{header.name}: expected {what}, {problem}; copy the file again, or convert it"
        raise DataError(msg) from error


def check_length(header: Header) -> None:
    """A header that pydicom may parse: not much longer than its frames need, for that is slow.

    Raises:
        DataError: longer than 1 MiB and 64 KiB for each frame.
    """
    most = (header.integer("NumberOfFrames", 1) + 16) * _GROUP_BYTES
    if (header.pixels[0] if header.pixels else header.size) > most:
        msg = (
            f"{header.name}: expected at most {most >> 20} MiB of header for its frames, found more; repair the header"
        )
        raise DataError(msg)


def dataset_of(header: Header, keywords: Sequence[str]) -> Any:  # noqa: ANN401  # a pydicom data set
    """Some elements of a file through pydicom, without its pixels.

    Raises:
        DataError: damaged, or deflated (which pydicom would inflate without a limit).
    """
    import pydicom

    if header.syntax == DEFLATED:
        msg = f"{header.name}: expected sequences outside a deflated data set, found them inside; inflate it first"
        raise DataError(msg)
    check_length(header)
    with typed(header, "a header"):
        return pydicom.dcmread(header.path, stop_before_pixels=True, force=True, specific_tags=list(keywords))


def _of(group: Any, shared: Any, sequence: str, keyword: str) -> Any:  # noqa: ANN401  # of pydicom
    for source in (group, shared):
        items = source.get(sequence) if source is not None else None
        if items:
            value = items[0].get(keyword)
            if value is not None and value != "":
                return value
    return None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:  # noqa: ANN401
    if value is None:
        return None
    found = tuple(float(v) for v in (value if hasattr(value, "__len__") else [value]))
    if len(found) != count or not all(map(math.isfinite, found)):
        msg = "numbers of another count, or not finite"
        raise ValueError(msg)
    return found


_KEYS = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
)


def enhanced_frames(header: Header, count: int) -> list[Frame]:
    """Planes of an object with functional groups.

    Raises:
        DataError: another number of groups than frames, or damage.
    """
    data = dataset_of(header, ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
    with typed(header, "functional groups"):
        groups = data.get("PerFrameFunctionalGroupsSequence") or []
        common = data.get("SharedFunctionalGroupsSequence")
        shared = common[0] if common else None
        if len(groups) != count:
            msg = f"{header.name}: expected functional groups of {count} frames, found {len(groups)}; repair the header"
            raise DataError(msg)
        return [_frame(header, k, group, shared) for k, group in enumerate(groups)]


def _frame(header: Header, number: int, group: Any, shared: Any) -> Frame:  # noqa: ANN401  # of pydicom
    keys: dict[str, float] = {}
    for sequence, keyword in _KEYS:
        value = _numbers(_of(group, shared, sequence, keyword), 1) if keyword else None
        if value is not None:
            keys[keyword] = value[0]
    index = _of(group, shared, "FrameContentSequence", "DimensionIndexValues")
    if index is not None:
        values = [float(v) for v in (index if hasattr(index, "__len__") else [index])]
        keys |= {f"DimensionIndexValues {k + 1}": v for k, v in enumerate(values)}
    thickness = _numbers(_of(group, shared, "PixelMeasuresSequence", "SliceThickness"), 1)
    if thickness is not None:
        keys["SliceThickness"] = thickness[0]
    slope = _numbers(_of(group, shared, "PixelValueTransformationSequence", "RescaleSlope"), 1)
    intercept = _numbers(_of(group, shared, "PixelValueTransformationSequence", "RescaleIntercept"), 1)
    return Frame(
        header=header,
        number=number,
        position=_numbers(_of(group, shared, "PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=_numbers(_of(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing=_numbers(_of(group, shared, "PixelMeasuresSequence", "PixelSpacing"), 2),
        slope=slope[0] if slope else header.number("RescaleSlope"),
        intercept=intercept[0] if intercept else header.number("RescaleIntercept"),
        keys=keys,
    )
