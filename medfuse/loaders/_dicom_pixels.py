"""Pixels of DICOM planes as float32 in the unit that the header declares: stored bits, modality rescale, photometry.

Uncompressed grey pixels are read straight into place, plane by plane; the rest is decoded by pydicom and its plugins.
"""

import importlib.util
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._dicom_enhanced import typed
from medfuse.loaders._dicom_frame import Frame
from medfuse.loaders._dicom_grid import Stack
from medfuse.loaders._dicom_header import DEFLATED, EXPLICIT, NATIVE, Header, inflated, meta_of
from medfuse.loaders._dicom_series import STACKED, name_of
from medfuse.loaders._volume import checked_size

Array = NDArray[Any]

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "PALETTE COLOR")
_GPL = {  # transfer syntaxes that only the extra dicom-gpl decodes (or decodes at 12 bits)
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
}
_LARGEST_RATIO = 100  # of images, unpacked over packed; lossy JPEG 2000 has up to 50
_FLOATS = {0x7FE00008: ("f4", 4), 0x7FE00009: ("f8", 8)}


# --- what the header declares ----------------------------------------------------------------------------------------


def channels_of(header: Header) -> int:
    """1 for grey, 3 for colour.

    Raises:
        DataError: another photometric interpretation.
    """
    photometric = header.text("PhotometricInterpretation")
    samples = header.integer("SamplesPerPixel", 1)
    if (photometric in _GREY and samples == 1) or header.pixel_tag in _FLOATS:
        return 1
    if photometric in _COLOUR and samples == (1 if photometric == "PALETTE COLOR" else 3):
        return 3
    msg = (
        f"{header.name}: expected grey, RGB, YBR or palette pixels, found another photometric interpretation or "
        "number of samples; convert the file"
    )
    raise DataError(msg)


def stored_bytes(header: Header) -> int:
    """Bytes of one stored value.

    Raises:
        DataError: neither 8, 16, 32 nor 64 bits.
    """
    bits = header.integer("BitsAllocated")
    if bits not in (8, 16, 32) and header.pixel_tag not in _FLOATS:
        msg = f"{header.name}: expected 8, 16 or 32 bits allocated, found another number; convert the file"
        raise DataError(msg)
    return _FLOATS[header.pixel_tag][1] if header.pixel_tag in _FLOATS else bits // 8


def check_pixels(header: Header, *, frames: int, bits: int | None = None) -> None:
    """Compare what the header declares with the bytes that the file has, before anything is read or allocated.

    Raises:
        DataError: more declared than there is, a bomb, or an image without pixels.
    """
    rows, columns = header.integer("Rows"), header.integer("Columns")
    samples = header.integer("SamplesPerPixel", 1)
    if header.pixels is None:
        msg = f"{header.name}: expected pixels, found none; truncated? copy it again"
        raise DataError(msg)
    offset, length = header.pixels
    packed = header.syntax not in NATIVE or header.syntax == DEFLATED
    available = max(0, header.size - (0 if header.syntax == DEFLATED else offset))
    if length >= 0 and header.syntax != DEFLATED and length > available:
        msg = f"{header.name}: expected {length} bytes of pixels, found {available}; truncated? copy it again"
        raise DataError(msg)
    if bits == 1:
        wanted = (rows * columns * frames + 7) // 8
        checked_size((rows, columns, frames), stored=0, file_bytes=1, packed=True, where=header.name)
        checked_size((wanted,), stored=1, file_bytes=available, packed=packed, where=header.name)
        return
    if header.syntax == DEFLATED:
        checked_size((max(length, 1),), stored=1, file_bytes=available, packed=True, where=header.name)
    half = 2 if header.text("PhotometricInterpretation") == "YBR_FULL_422" else samples
    shape = (columns, rows, frames, half if not packed else samples)
    size = stored_bytes(header)
    checked_size(shape, stored=size, file_bytes=available, packed=packed, where=header.name, ratio=_LARGEST_RATIO)
    if not packed and length >= 0:
        checked_size(shape, stored=size, file_bytes=length, packed=False, where=header.name)


def unit_of(stack: Stack) -> tuple[str, list[str]]:
    """Unit of the values, and what a person should know.

    Raises:
        DataError: a CT without rescale, whose HU nobody knows.
    """
    head = stack.frames[0][0].header
    modality = head.text("Modality")
    frames = [f for volume in stack.frames for f in volume]
    scaled = sum(f.slope is not None and f.intercept is not None for f in frames)
    if 0 < scaled < len(frames):
        msg = f"{head.name}: expected a rescale slope and intercept in all slices or in none, found {scaled} of "
        raise DataError(msg + f"{len(frames)}; repair the headers")
    if any(f.slope == 0 for f in frames):
        msg = f"{head.name}: expected a rescale slope that is not 0, found 0; repair the header"
        raise DataError(msg)
    warnings: list[str] = []
    if modality == "CT":
        if not scaled and not head.has("ModalityLUTSequence"):
            msg = f"{head.name}: expected a rescale slope and intercept of a CT, found none: its HU are unknown"
            raise DataError(msg)
        kind = head.text("RescaleType")
        if kind in ("", "HU"):
            return "HU", warnings
        return kind, [f"values are declared as {kind}, not HU"]
    if modality == "PT":
        return head.text("Units") or "unknown", warnings
    if head.text("PhotometricInterpretation") == "MONOCHROME1" and modality not in STACKED:
        warnings.append("MONOCHROME1: values were turned over, so that higher is brighter")
    return head.text("RescaleType") or "arbitrary", warnings


# --- decoding --------------------------------------------------------------------------------------------------------


def _dtype(header: Header) -> np.dtype[Any]:
    if header.pixel_tag in _FLOATS:
        return np.dtype(header.order + _FLOATS[header.pixel_tag][0])
    sign = "i" if header.integer("PixelRepresentation", 0) == 1 else "u"
    return np.dtype(f"{header.order}{sign}{stored_bytes(header)}")


def _direct(header: Header) -> bool:
    return (
        header.syntax in NATIVE
        and header.pixels is not None
        and header.pixels[1] >= 0
        and channels_of(header) == 1
        and not header.has("ModalityLUTSequence")
    )


def _read_native(frame: Frame, buffer: Array, held: dict[Path, bytes]) -> None:
    """Stored values of a plane into ``buffer`` (rows * columns), without the bits that are not stored.

    ``held`` keeps the content of the deflated file that was read last, so that it is inflated once.
    """
    header = frame.header
    start = (header.pixels[0] if header.pixels else 0) + frame.number * buffer.nbytes
    if header.syntax == DEFLATED:
        if header.path not in held:
            held.clear()
            end = start + (header.integer("NumberOfFrames", 1) - frame.number) * buffer.nbytes
            held[header.path] = inflated(header.path, _data_offset(header), most=end)
        got = memoryview(held[header.path])[start : start + buffer.nbytes]
        if len(got) == buffer.nbytes:
            buffer[:] = np.frombuffer(got, dtype=buffer.dtype)
        count = len(got)
    else:
        with header.path.open("rb", buffering=0) as file:
            file.seek(start)
            count = file.readinto(buffer.data.cast("B")) or 0
    if count != buffer.nbytes:
        msg = f"{header.name}: expected {buffer.nbytes} bytes of a plane, found {count}; truncated? copy it again"
        raise DataError(msg)


def _data_offset(header: Header) -> int:
    with header.path.open("rb") as file:
        return meta_of(file.read(4096))[2]


def _only_stored(header: Header, buffer: Array) -> Array:
    """Values without overlay or padding bits above the high bit; the sign bit is the high bit (PS3.5, 8.1.1)."""
    if buffer.dtype.kind == "f":
        return buffer
    allocated = 8 * buffer.dtype.itemsize
    stored = header.integer("BitsStored", allocated)
    high = header.integer("HighBit", stored - 1)
    if not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        msg = f"{header.name}: expected bits stored within bits allocated, found a contradiction; repair the header"
        raise DataError(msg)
    if stored == allocated:
        return buffer
    native = buffer.astype(buffer.dtype.newbyteorder("="), copy=False)
    np.left_shift(native, allocated - 1 - high, out=native)
    np.right_shift(native, allocated - stored, out=native)
    return native


def _decoded(header: Header, numbers: Sequence[int]) -> list[Array]:
    """Planes (rows, columns[, 3]) through pydicom, colours as RGB, modality LUT applied."""
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import iter_pixels
    from pydicom.uid import UID

    with typed(header, f"pixels ({name_of(header.syntax)})"):
        _codec_is_there(header.syntax, header.name, get_decoder, UID)
        data = pydicom.dcmread(_bounded(header), force=True)
        if not getattr(data, "file_meta", None) or "TransferSyntaxUID" not in data.file_meta:
            data.file_meta = pydicom.dataset.FileMetaDataset()
            data.file_meta.TransferSyntaxUID = UID(EXPLICIT if header.syntax == DEFLATED else header.syntax)
        if header.syntax not in NATIVE:
            _check_codestreams(header, data.PixelData, numbers)
        planes = list(iter_pixels(data, indices=list(numbers)))
        if header.text("PhotometricInterpretation") == "PALETTE COLOR":
            planes = [_eight_bits(apply_color_lut(p, data)) for p in planes]
        if header.has("ModalityLUTSequence"):
            planes = [apply_modality_lut(p, data) for p in planes]
    shape = (header.integer("Rows"), header.integer("Columns"))
    if len(planes) != len(numbers) or any(p.shape[:2] != shape for p in planes):
        msg = f"{header.name}: expected planes of {shape} as the header says, found another size; is it damaged?"
        raise DataError(msg)
    return planes


def _check_codestreams(header: Header, content: bytes, numbers: Sequence[int]) -> None:
    """Sizes that JPEG, JPEG-LS and JPEG 2000 streams declare, before a decoder allocates for them.

    Raises:
        DataError: another size than the header's.
    """
    from pydicom.encaps import get_frame

    count = header.integer("NumberOfFrames", 1) or 1
    wanted = (header.integer("Rows"), header.integer("Columns"))
    for number in numbers:
        stream = get_frame(content, number, number_of_frames=count)
        found = size_of_codestream(stream)
        if found is not None and found != wanted:
            msg = f"{header.name}: expected planes of {wanted} as the header says, found {found} in the stream; a bomb?"
            raise DataError(msg)
        if is_cut(stream):
            msg = f"{header.name}: expected a whole JPEG-LS stream, found one without its end; truncated? copy it again"
            raise DataError(msg)


def is_cut(stream: bytes) -> bool:
    """A JPEG-LS stream without its end (ISO 14495-1, C.1.1): CharLS looks for it for about 5 s a frame."""
    lossless = stream[:2] == b"\xff\xd8" and stream.find(b"\xff\xf7", 0, 4096) > 0
    return lossless and not stream[-16:].rstrip(b"\0").endswith(b"\xff\xd9")


def size_of_codestream(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG or JPEG-LS (ISO 10918-1, B.2.2) or JPEG 2000 stream (15444-1, A.5.1), else None."""
    at = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at >= 0 and (at == 0 or stream[4:8] == b"jP  "):
        right, bottom, left, top = struct.unpack_from(">4I", stream, at + 8)
        return bottom - top, right - left
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        kind = stream[at + 1]
        if (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)) or kind == 0xF7:
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return (rows, columns) if rows else None  # 0: said after the first scan
        at += 1 if kind == 0xFF else 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _bounded(header: Header) -> Path | io.BytesIO:
    """What pydicom may read of a file: of deflated content no more than the header and the declared pixels."""
    if header.syntax != DEFLATED:
        return header.path
    offset, length = header.pixels or (0, 0)
    return io.BytesIO(inflated(header.path, _data_offset(header), most=offset + max(length, 0)))


def _eight_bits(plane: Array) -> Array:
    return plane // 257 if plane.dtype == np.uint16 and plane.max(initial=0) > 255 else plane


def _codec_is_there(syntax: str, name: str, get_decoder: Any, uid: Any) -> None:  # noqa: ANN401  # of pydicom
    if syntax in _GPL and importlib.util.find_spec("libjpeg") is None:
        msg = (
            f"{name}: no decoder here for {name_of(syntax)}; it is in an extra under the GPL: "
            'pip install "medfuse[dicom-gpl]"'
        )
        raise DataError(msg)
    try:
        decoder = get_decoder(uid(syntax))
    except NotImplementedError as error:
        msg = f"{name}: expected a transfer syntax of images, found {name_of(syntax)}; convert it (gdcmconv, dcmdjpeg)"
        raise DataError(msg) from error
    if not decoder.is_available:
        needed = "; ".join(decoder.missing_dependencies)
        msg = f"{name}: no decoder here for {name_of(syntax)} ({needed}); install one, or convert the file"
        raise DataError(msg)


# --- values ----------------------------------------------------------------------------------------------------------


def _scale(frame: Frame, raw: Array, out: NDArray[np.float32]) -> None:
    """Rescale (PS3.3, C.11.1) and photometry of one plane into ``out``."""
    header = frame.header
    slope, intercept = frame.slope, frame.intercept
    if header.has("ModalityLUTSequence"):
        slope = intercept = None
    if slope is None or intercept is None:
        out[...] = raw
    elif slope == 1 and abs(intercept) < 1 << 22 and intercept == int(intercept) and raw.dtype.itemsize < 4:
        np.add(raw, np.float32(intercept), out=out, casting="unsafe")
    else:
        out[...] = raw * np.float64(slope) + intercept
    if header.text("PhotometricInterpretation") == "MONOCHROME1" and header.text("Modality") not in STACKED:
        bits = header.integer("BitsStored")
        low = -(1 << (bits - 1)) if header.integer("PixelRepresentation", 0) == 1 else 0
        ends = float(2 * low + (1 << bits) - 1)
        np.subtract(ends * (slope or 1.0) + 2 * (intercept or 0.0), out, out=out)


def _may_overflow(frames: Sequence[Frame]) -> bool:
    """Whole numbers with a modest rescale are finite; floats, tables and large factors are to be looked at."""
    for frame in frames:
        header = frame.header
        if header.pixel_tag in _FLOATS or header.has("ModalityLUTSequence") or header.integer("BitsAllocated") > 16:
            return True
        if abs(frame.slope or 0.0) > 1e9 or abs(frame.intercept or 0.0) > 1e30:
            return True
    return False


def load(stack: Stack, number: int) -> NDArray[np.float32]:
    """One volume of a stack: (columns, rows, slices, channels), a view of planes that follow each other in memory.

    Raises:
        DataError: pixels that are truncated, damaged, or without a decoder.
    """
    frames = stack.frames[number]
    channels = channels_of(frames[0].header)
    out = np.empty((len(frames), stack.rows, stack.columns, channels), dtype=np.float32)
    buffer: Array | None = None
    held: dict[Path, bytes] = {}
    waiting: dict[str, list[int]] = {}
    with np.errstate(all="ignore"):
        for k, frame in enumerate(frames):
            if not _direct(frame.header):
                waiting.setdefault(str(frame.header.path), []).append(k)
                continue
            kind = _dtype(frame.header)
            if buffer is None or buffer.dtype != kind:
                buffer = np.empty(stack.rows * stack.columns, dtype=kind)
            _read_native(frame, buffer, held)
            plane = _only_stored(frame.header, buffer).reshape(stack.rows, stack.columns)
            _scale(frame, plane, out[k, :, :, 0])
        for places in waiting.values():
            for first in range(0, len(places), 8):
                some = places[first : first + 8]
                planes = _decoded(frames[some[0]].header, [frames[k].number for k in some])
                for k, plane in zip(some, planes, strict=True):
                    if plane.ndim != (3 if channels == 3 else 2):
                        msg = f"{frames[k].header.name}: expected {channels} channel(s), found another number"
                        raise DataError(msg + "; is it damaged?")
                    _scale(frames[k], plane, out[k] if channels == 3 else out[k, :, :, 0])
    if _may_overflow(frames) and not np.isfinite(out).all():
        msg = f"{frames[0].header.name}: expected finite values, found NaN or infinity; repair the series"
        raise DataError(msg)
    return out.transpose(2, 1, 0, 3)
