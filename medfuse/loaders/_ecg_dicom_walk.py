"""How many elements a DICOM file has and how deep they lie, before anything is built from them.

A file of a few MiB can hold millions of elements, each of which a reader turns into objects; lengths may point beyond
the end. References: DICOM PS3.5, 7.1 (elements), 7.5 (sequences).
"""

import struct
from pathlib import Path

from medfuse.loaders._ecg_common import refuse

MOST_ELEMENTS, DEEPEST = 100_000, 30
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


def check_elements(path: Path, content: bytes, start: int, *, explicit: bool, big: bool) -> None:
    """Walk over all elements from ``start``.

    Raises:
        DataError: too many, too deep, cut, or with a length beyond what holds it.
    """
    order = ">" if big else "<"
    tag_of, short, long = struct.Struct(f"{order}HH"), struct.Struct(f"{order}H"), struct.Struct(f"{order}I")
    at, count = start, 0
    open_: list[tuple[int | None, bool]] = [(len(content), explicit)]  # where each container ends, and its encoding
    while open_:
        end, here = open_[-1]
        if (at >= len(content) and end is None) or (end is not None and at > end):
            raise refuse(path, "elements that end with what holds them", "a cut or damaged file", "copy the file again")
        if at == end:
            open_.pop()
            continue
        count += 1
        if count > MOST_ELEMENTS or len(open_) > DEEPEST:
            found = f"more than {MOST_ELEMENTS} elements or {DEEPEST} levels"
            raise refuse(path, "a DICOM waveform", found, "is it the right file?")
        head = content[at : at + 12].ljust(12, b"\0")
        group, element = tag_of.unpack_from(head)
        if group == 0xFFFE and element != 0xE000:  # the end of an item or of a sequence
            if end is not None and len(open_) > 1:
                raise refuse(path, "delimiters where a length is undefined", "others", "copy the file again")
            open_.pop()
            at += 8
            continue
        kind, length, at = _length(content, at, head, group, element, here, short, long)
        if group == 0xFFFE or kind == b"SQ" or length == _UNDEFINED:
            if kind not in {b"SQ", b"UN", b""}:
                raise refuse(path, "samples as they are", "encapsulated data", "decompress the file, as with dcmdjpeg")
            inside = here and kind != b"UN"  # an unknown sequence is written with implicit types
            open_.append((None if length == _UNDEFINED else at + length, inside))
            if length != _UNDEFINED and end is not None and at + length > end:
                raise refuse(path, "sequences inside what holds them", "a longer one", "copy the file again")
        else:
            at += length


def _length(
    content: bytes,
    at: int,
    head: bytes,
    group: int,
    element: int,
    explicit: bool,  # noqa: FBT001  # one of the walker's variables
    short: struct.Struct,
    long: struct.Struct,
) -> tuple[bytes, int, int]:
    """Type, length and first byte of a value."""
    if group == 0xFFFE:
        return b"", long.unpack_from(head, 4)[0], at + 8
    if not explicit:
        from pydicom.datadict import dictionary_VR

        length = long.unpack_from(head, 4)[0]
        try:
            kind = dictionary_VR((group << 16) | element)[:2].encode()
        except KeyError:
            kind = b"UN"
        return kind, length, at + 8
    kind = head[4:6]
    if kind in _LONG:
        return kind, long.unpack_from(head, 8)[0], at + 12
    return kind, short.unpack_from(head, 6)[0], at + 8
