"""Headers of DICOM files: a few elements, where the pixels lie, and nothing that is not needed.

Elements of the two usual encodings (little endian, explicit and implicit VR, also around compressed pixels) are walked
here (PS3.5, 7.1 and 7.5); whatever is unusual goes through pydicom. Deflated files are inflated to a cap only.
"""

import contextlib
import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfuse.errors import DataError

PREAMBLE = 132
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT, EXPLICIT, BIG, DEFLATED)
PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_LONG = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"))
_BRIEF = frozenset((b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH"))
_BRIEF |= {b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}  # VRs with 16 bits of length (PS3.5, 7.1.2)
_SHORT, _LENGTH = struct.Struct("<HH2sH").unpack_from, struct.Struct("<I").unpack_from
_ITEM = struct.Struct("<HHI").unpack_from  # items and delimiters have no VR
_DEPTH = 32
_FIRST, _MOST_HEADER = 16 << 10, 64 << 20
_MOST_ITEMS = 1_000_000  # elements and items that are walked through
_TOO_MANY = f"expected at most {_MOST_ITEMS} elements in the header, found more"
_UNDEFINED = 0xFFFFFFFF

# keyword -> tag of what is kept
TAGS: dict[str, int] = {
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "AcquisitionTime": 0x00080032,
    "ContentTime": 0x00080033,
    "Modality": 0x00080060,
    "PresentationIntentType": 0x00080068,
    "SliceThickness": 0x00180050,
    "EchoTime": 0x00180081,
    "SpacingBetweenSlices": 0x00180088,
    "TriggerTime": 0x00181060,
    "GantryDetectorTilt": 0x00181120,
    "ImagerPixelSpacing": 0x00181164,
    "NominalScannedPixelSpacing": 0x00182010,
    "SequenceOfUltrasoundRegions": 0x00186011,
    "DiffusionBValue": 0x00189087,
    "SiemensMosaic": 0x0019100A,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "PlanarConfiguration": 0x00280006,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "BurnedInAnnotation": 0x00280301,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
    "ModalityLUTSequence": 0x00283000,
    "Units": 0x00541001,
    "SegmentationType": 0x00620001,
    "MaximumFractionalValue": 0x0062000E,
    "SharedFunctionalGroupsSequence": 0x52009229,
    "PerFrameFunctionalGroupsSequence": 0x52009230,
}
_KEYWORDS = {tag: keyword for keyword, tag in TAGS.items()}
_BINARY = frozenset(
    ("SamplesPerPixel", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit")
) | {"PixelRepresentation", "SiemensMosaic", "MaximumFractionalValue"}


class Unusual(Exception):  # not an error: pydicom takes over
    """The walker does not know this encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known of a DICOM file without its pixels.

    Attributes:
        path, size: of the file.
        syntax: transfer syntax UID; empty where the file does not say.
        values: raw bytes by keyword; of sequences only that they are there.
        order: ``<`` or ``>``, of binary values.
        pixels: offset of the pixel bytes (in the inflated content of a deflated file) and their declared length
            (-1: encapsulated), or None.
        pixel_tag: tag of the pixel element, or 0.
    """

    path: Path
    size: int
    syntax: str
    values: Mapping[str, bytes]
    order: str = "<"
    pixels: tuple[int, int] | None = None
    pixel_tag: int = 0

    @property
    def name(self) -> str:
        """Of the file, for messages."""
        return self.path.name

    def has(self, keyword: str) -> bool:
        """Present and not empty."""
        return bool(self.values.get(keyword, b"").strip(b" \0"))

    def text(self, keyword: str) -> str:
        """Text, or empty."""
        return self.values.get(keyword, b"").decode("ascii", "replace").strip(" \0\r\n\t")

    def integer(self, keyword: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            DataError: absent without a default, or not a number.
        """
        if not self.has(keyword) and not (keyword in _BINARY and self.values.get(keyword)):
            if default is not None:
                return default
            msg = f"{self.name}: expected the element {keyword}, found none; is the header damaged?"
            raise DataError(msg)
        value = self.values[keyword]
        if keyword in _BINARY:
            return int.from_bytes(value[:2], "little" if self.order == "<" else "big")
        try:
            return int(self.text(keyword).split("\\")[0])
        except ValueError as error:
            msg = f"{self.name}: expected a whole number as {keyword}, found something else; repair the header"
            raise DataError(msg) from error

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """``count`` finite numbers, or None where the element is absent or empty.

        Raises:
            DataError: another count, or not numbers.
        """
        if not self.has(keyword):
            return None
        parts = self.text(keyword).split("\\")
        try:
            found = tuple(float(p) for p in parts)
        except ValueError:
            found = ()
        if len(found) != count or not all(map(math.isfinite, found)):
            msg = f"{self.name}: expected {count} finite numbers as {keyword}, found something else; repair the header"
            raise DataError(msg)
        return found

    def number(self, keyword: str) -> float | None:
        """A finite number, or None where the element is absent or empty."""
        found = self.numbers(keyword, 1)
        return found[0] if found else None


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
    """A panic of a decoder written in Rust (pylibjpeg-rle) is an error like others, which it is not to Python.

    Raises:
        ValueError: instead of a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        msg = "a decoder panicked"
        raise ValueError(msg) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Pydicom's warnings and log lines repeat values of elements; here they go nowhere."""
    import pydicom

    log = logging.getLogger("pydicom")
    before, mode = log.disabled, pydicom.config.settings.reading_validation_mode
    log.disabled, pydicom.config.settings.reading_validation_mode = True, pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled, pydicom.config.settings.reading_validation_mode = before, mode


# --- the walker ------------------------------------------------------------------------------------------------------


def _element(buffer: bytes, at: int, *, implicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, VR, length and where the value starts."""
    group, element, vr, length = _SHORT(buffer, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, b"", _LENGTH(buffer, at + 4)[0], at + 8
    if vr in _BRIEF:
        return tag, vr, length, at + 8
    if vr in _LONG:
        return tag, vr, _LENGTH(buffer, at + 8)[0], at + 12
    if not (vr.isalpha() and vr.isupper()):
        raise Unusual
    return tag, vr, length, at + 8


def _past_sequence(buffer: bytes, at: int, *, implicit: bool, depth: int, count: Iterator[int]) -> int:
    """Where a sequence of undefined length ends; ``count`` ends where there are too many elements."""
    if depth > _DEPTH:
        msg = f"expected sequences nested at most {_DEPTH} deep, found more"
        raise DataError(msg)
    for _ in count:
        group, number, length = _ITEM(buffer, at)
        at += 8
        if group != 0xFFFE or number not in (0xE000, 0xE0DD):
            raise Unusual
        if number == 0xE0DD:
            return at
        if length != _UNDEFINED:
            at += length
            continue
        while True:
            _counted(count)
            tag, vr, length, at = _element(buffer, at, implicit=implicit)
            if tag == 0xFFFEE00D:
                break
            if length == _UNDEFINED:
                at = _past_sequence(buffer, at, implicit=implicit or vr == b"UN", depth=depth + 1, count=count)
            else:
                at += length
    raise DataError(_TOO_MANY)


def _counted(count: Iterator[int]) -> None:
    if next(count, None) is None:
        raise DataError(_TOO_MANY)


def _walk(buffer: bytes, at: int, *, implicit: bool) -> tuple[dict[str, bytes], int, int, int]:
    """Values by keyword, and tag, offset and length of the pixels (tag 0: none).

    Raises:
        struct.error: the buffer ends within an element.
    """
    values: dict[str, bytes] = {}
    last, end = 0, len(buffer)
    count = iter(range(_MOST_ITEMS))
    while at < end:
        _counted(count)
        tag, vr, length, start = _element(buffer, at, implicit=implicit)
        if tag <= last or tag >= 0xFFFE0000:
            raise Unusual
        last = tag
        if tag in PIXELS:
            return values, tag, start, length
        if length == _UNDEFINED:
            at = _past_sequence(buffer, start, implicit=implicit or vr == b"UN", depth=0, count=count)
            if tag in _KEYWORDS:
                values[_KEYWORDS[tag]] = b"sequence"
            continue
        at = start + length
        keyword = _KEYWORDS.get(tag)
        if keyword is not None:
            if at > end:
                raise struct.error
            values[keyword] = b"sequence" if length > 65534 else buffer[start:at]
    if at > end:
        raise struct.error
    return values, 0, 0, 0


# --- files -----------------------------------------------------------------------------------------------------------


def meta_of(start: bytes) -> tuple[str, str, int]:
    """Transfer syntax, SOP class and the offset of the data set, from the beginning of a Part-10 file (PS3.10, 7.1)."""
    at, syntax, sop = PREAMBLE, "", ""
    while at + 8 <= len(start) and start[at : at + 2] == b"\x02\x00":
        tag, _, length, value = _element(start, at, implicit=False)
        if tag == 0x00020010:
            syntax = start[value : value + length].decode("ascii", "replace").strip("\0 ")
        elif tag == 0x00020002:
            sop = start[value : value + length].decode("ascii", "replace").strip("\0 ")
        at = value + length
    return syntax, sop, at


def inflated(path: Path, at: int, *, most: int) -> bytes:
    """At most ``most`` bytes of the deflated data set of a file (PS3.5, A.5).

    Raises:
        DataError: damaged.
    """
    try:
        engine, pieces, given = zlib.decompressobj(-15), [], 0
        with path.open("rb") as file:
            file.seek(at)
            while given < most and not engine.eof:
                data = engine.unconsumed_tail or file.read(_FIRST)
                if not data:
                    break
                pieces.append(engine.decompress(data, most - given))
                given += len(pieces[-1])
        return b"".join(pieces)
    except zlib.error as error:
        msg = f"{path.name}: expected deflated content, found damage; copy the file again"
        raise DataError(msg) from error


def series_within(path: Path) -> str:
    """Series UID near the beginning of a damaged file, found by its tag; empty where it is not whole."""
    try:
        with path.open("rb") as file:
            start = file.read(_FIRST)
    except OSError:
        return ""
    for mark, code in ((b"\x20\0\x0e\0UI", "<H"), (b"\x20\0\x0e\0", "<I"), (b"\0\x20\0\x0eUI", ">H")):
        at = start.find(mark) + len(mark)
        if at < len(mark) or at + 4 > len(start):
            continue
        at, length = at + struct.calcsize(code), struct.unpack_from(code, start, at)[0]
        found = start[at : at + length]
        if 0 < length <= 64 and len(found) == length and not found.strip(b"0123456789.\0 "):
            return found.strip(b"\0 ").decode()
    return ""


def read_header(path: Path) -> Header:
    """The header of a DICOM file.

    Raises:
        DataError: not DICOM, truncated within the header, or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_FIRST)
            try:
                return _usual(path, size, start)
            except (Unusual, struct.error):
                pass
            if size > len(start):
                file.seek(0)
                start = file.read(_MOST_HEADER)
            return _usual(path, size, start)
    except Unusual:
        if DEFLATED.encode() in start[:4096]:  # pydicom would inflate it without a limit
            msg = f"{path.name}: expected elements in order in deflated content, found damage; inflate it first"
            raise DataError(msg) from None
        return _through_pydicom(path)
    except struct.error as error:
        msg = f"{path.name}: expected whole elements up to the pixels, found the end of the file; copy it again"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"{path.name}: expected a readable file, found {type(error).__name__}; check the path and permissions"
        raise DataError(msg) from error
    except DataError as error:
        if str(error).startswith(path.name):
            raise
        msg = f"{path.name}: {error}; is it damaged?"
        raise DataError(msg) from error


def _usual(path: Path, size: int, start: bytes) -> Header:
    if start[:2] == b"\x1f\x8b":
        msg = f"{path.name}: expected DICOM, found gzip around it; unpack it first"
        raise DataError(msg)
    if start[128:PREAMBLE] != b"DICM":
        raise Unusual
    syntax, sop, at = meta_of(start)
    if not syntax or syntax == BIG:
        raise Unusual
    buffer = start
    if syntax == DEFLATED:
        buffer, at = inflated(path, at, most=4 << 20), 0
    values, tag, offset, length = _walk(buffer, at, implicit=syntax == IMPLICIT)
    values.setdefault("SOPClassUID", sop.encode())
    pixels = (offset, -1 if length == _UNDEFINED else length) if tag else None
    return Header(path=path, size=size, syntax=syntax, values=values, pixels=pixels, pixel_tag=tag)


def _through_pydicom(path: Path) -> Header:
    """Headers that the walker leaves: big endian, no preamble, odd VRs, elements out of order."""
    import pydicom

    try:
        with quiet(), path.open("rb") as file:
            marked = file.read(PREAMBLE)[128:] == b"DICM"
            file.seek(0)
            data = pydicom.dcmread(file, stop_before_pixels=True, force=not marked, specific_tags=list(TAGS.values()))
            at = file.tell()
            values = {k: _raw(data.get_item(tag)) for k, tag in TAGS.items() if tag in data}
            big = data.original_encoding[1] is False
            implicit = bool(data.original_encoding[0])
            if marked and "SOPClassUID" not in values:
                values["SOPClassUID"] = str(data.file_meta.get("MediaStorageSOPClassUID", "")).encode()
            if not any(values.get(k) for k in ("SOPClassUID", "Modality", "Rows")):
                msg = f"{path.name}: expected DICOM, found no element that says what it is; is it the right file?"
                raise DataError(msg)
            syntax = str(data.file_meta.get("TransferSyntaxUID", "")) if hasattr(data, "file_meta") else ""
            syntax = syntax or (IMPLICIT if implicit else BIG if big else EXPLICIT)
            pixels, tag = _pixel_element(file, at, order=">" if big else "<", implicit=implicit)
    except DataError:
        raise
    except Exception as error:
        msg = f"{path.name}: expected a DICOM header, found damage ({type(error).__name__}); copy the file again"
        raise DataError(msg) from error
    size = path.stat().st_size
    return Header(
        path=path, size=size, syntax=syntax, values=values, order=">" if big else "<", pixels=pixels, pixel_tag=tag
    )


def _raw(element: Any) -> bytes:  # noqa: ANN401  # of pydicom
    value = element.value
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if element.VR == "SQ":
        return b"sequence" if len(value) else b""
    return "\\".join(map(str, value if isinstance(value, list) else [value])).encode()


def _pixel_element(
    file: io.BufferedIOBase, at: int, *, order: str, implicit: bool
) -> tuple[tuple[int, int] | None, int]:
    file.seek(at)
    start = file.read(12)
    if len(start) < 12:
        return None, 0
    group, element = struct.unpack(order + "HH", start[:4])
    tag = group << 16 | element
    if tag not in PIXELS:
        return None, 0
    if implicit or not (start[4:6].isalpha() and start[4:6].isupper()):
        length, value = struct.unpack(order + "I", start[4:8])[0], at + 8
    else:
        length, value = struct.unpack(order + "I", start[8:12])[0], at + 12
    return (value, -1 if length == _UNDEFINED else length), tag
