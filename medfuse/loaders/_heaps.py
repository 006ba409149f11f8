"""Texts of HDF5 files for which the library would turn for ever or take all memory, found before it is asked.

HDF5 keeps texts of any length in global heap collections (file format specification 3.0, section III.E): objects that
follow each other, each of which says how long it is. The library (2.0.0) goes from one to the next inside one call,
which nothing can interrupt, and an object that takes no space is its own next one: a stretch of zeros in the free space
of a heap is enough. Where a text is used stand its length, the place of the collection and the number of the object
(16 bytes); the library takes memory of that length, up to 4 GiB, before it sees that there is no such text.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medfuse.errors import DataError
from medfuse.loaders._chunks import REFERENCE, references

if TYPE_CHECKING:
    import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_COLLECTION = b"GCOL\x01"  # and its version, of which there is one
_SMALLEST = 16  # bytes of an object
_NEAR = 128  # bytes from the name of an attribute in which its value stands
_MOST = 100_000  # attributes of a name
_CARRY = 1 << 64
_PIECE = 1 << 20
_ANY_LENGTH = 9  # class of the type
_WIDE = 8  # bytes of a length and of a place, as all known programs write them
_MOST_PIECES = 10_000  # of a header
_CONTINUED = 16  # message that names another piece
_FILL = (4, 5)  # messages that hold a fill value, in the old and the new form


def check_heaps(path: Path, *, attributes: Iterable[str] = ()) -> None:
    """Go through the heaps of an HDF5 file, which is read in pieces; other damage is left to the library.

    Args:
        path: the file.
        attributes: whose values are texts, and will be read.

    Raises:
        DataError: a heap with an object that takes no space, heaps that lie in each other, or an attribute whose text
            is said to be longer than the file.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        base, wide = _superblock(file, end)
        if wide not in (0, _WIDE):
            msg = f"{path.name}: expected lengths of 8 bytes, found {wide}; write the file again with h5py or anndata"
            raise DataError(msg)
        left, places = end // _SMALLEST, set[int]()
        for start in _found(file, _COLLECTION) if wide else ():
            places.add(start - base)
            for space in _objects(file, start, end=end, wide=wide):
                left -= 1
                if not space or left < 0:
                    raise _damaged(path, f"a damaged heap of them at byte {start:,}")
        for name in attributes if places else ():
            for count, start in enumerate(_found(file, name.encode() + b"\0")):
                if count == _MOST or _too_long(file, start, places=places, end=end):
                    raise _damaged(path, f"a damaged attribute {name} at byte {start:,}")


def check_header(group: "h5py.Group", name: str) -> None:
    """Look at the fill value of a dataset of texts, which the library reads when it opens the dataset.

    Raises:
        DataError: it is said to be longer than the file.
    """
    import h5py

    if group.get(name, getlink=True) is None:
        return  # the library says so
    info = h5py.h5o.get_info(group.id, name.encode())
    if info.type != h5py.h5o.TYPE_DATASET or not _any_length(h5py.h5d.open(group.id, name.encode()).get_type()):
        return
    path = Path(group.file.filename)
    with path.open("rb") as file:
        end = file.seek(0, 2)
        base, _ = _superblock(file, end)
        for kind, content in _messages(file, base + int(info.addr), base=base, end=end):
            if kind in _FILL:
                start = 4 if kind == min(_FILL) else 6 if content[:1] == b"\3" else 8
                value = content[start : start + int.from_bytes(content[start - 4 : start], "little")]
                # A text comes first; in a table it may stand anywhere.
                places = range(0, len(value) - REFERENCE + 1)
                if any(int.from_bytes(value[k : k + 4], "little") > end for k in places):
                    raise _damaged(path, f"a damaged fill value at byte {base + int(info.addr):,}")


def _any_length(kind: "h5py.h5t.TypeID") -> bool:
    import h5py

    return bool(kind.detect_class(h5py.h5t.VLEN)) or (
        isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())
    )


def _messages(file: BinaryIO, at: int, *, base: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Kind and content of the messages of an object header (section IV.A.1), which may stand in several pieces."""
    file.seek(at)
    head = file.read(32)
    if head.startswith(b"OHDR"):
        flags = head[5]
        start, wide = 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16), 1 << (flags & 3)
        pieces = [(at + start + wide, int.from_bytes(head[start : start + wide], "little"))]
        front, signature = 4 + 2 * bool(flags & 4), 4
    else:
        pieces, front, signature = [(at + 16, int.from_bytes(head[8:12], "little"))], 8, 0
    for start, size in pieces:  # which grow meanwhile
        file.seek(start)
        raw, here = file.read(min(size, end)), 0
        while here + front <= len(raw):
            kind, length = struct.unpack_from("<BH" if signature else "<HH", raw, here)
            content = raw[here + front : here + front + length]
            yield kind, content
            if kind == _CONTINUED and len(content) >= 16 and len(pieces) < _MOST_PIECES:
                place, more = struct.unpack_from("<QQ", content)
                pieces.append((min(base + place + signature, end), more))
            here += front + length


def claimed(node: "h5py.Dataset") -> int:
    """Bytes that the texts of any length in a dataset claim to have together, however stored; no text is read.

    Raises:
        DataError: texts that are stored in the header of the dataset.
        OSError, ValueError, RuntimeError: a block that cannot be unpacked.
    """
    total = node.size * len(node.fillvalue or b"")  # of those that were never written
    with Path(node.file.filename).open("rb") as file:
        for raw in references(node, file):
            whole = raw[: len(raw) // REFERENCE * REFERENCE]
            total += int(np.frombuffer(whole, "<u4")[:: REFERENCE // 4].sum(dtype=np.uint64))
    return int(total)


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        f"{path.name}: expected texts that follow each other, found {found}; fetch the file again, or write it again"
    )


def _superblock(file: BinaryIO, end: int) -> tuple[int, int]:
    """Where it stands, and the bytes of each number that is a length (section II.A); 0 where there is none."""
    start = 0
    while start < end:
        file.seek(start)
        head = file.read(16)
        if head.startswith(_SIGNATURE) and len(head) == 16:
            return start, head[14] if head[8] < 2 else head[10]
        start = max(512, 2 * start)
    return 0, 0


def _found(file: BinaryIO, what: bytes) -> Iterator[int]:
    """Where some bytes stand."""
    start, before = 0, b""
    while True:
        file.seek(start + len(before))
        piece = file.read(_PIECE)
        if not piece:
            return
        content = before + piece
        at = content.find(what)
        while at >= 0:
            yield start + at
            at = content.find(what, at + 1)
        before = content[1 - len(what) :]
        start += len(content) - len(before)


def _too_long(file: BinaryIO, start: int, *, places: set[int], end: int) -> bool:
    """Whether the text of an attribute, whose name begins at ``start``, is said to be longer than the file.

    After the name stand its type (section IV.A.2.d: class 9, texts and lists of any length, of 16 bytes each) and its
    shape, and then its value, the first to name one of the collections at ``places``. What is no attribute, such as a
    dataset or a link of this name, has no such type.
    """
    file.seek(start)
    near = file.read(_NEAR)
    name = near.find(b"\0")
    for at in range(name + 1, min(name + 9, len(near) - 8)):  # names are padded in some versions
        if near[at] & 15 == _ANY_LENGTH and int.from_bytes(near[at + 4 : at + 8], "little") == REFERENCE:
            break
    else:
        return False
    for place in range(at + 12, len(near) - 7):
        if int.from_bytes(near[place : place + 8], "little") in places:
            return int.from_bytes(near[place - 4 : place], "little") > end
    return False


def _objects(file: BinaryIO, start: int, *, end: int, wide: int) -> Iterator[int]:
    """Bytes that each object of a collection takes, as the library counts them: in 64 bits, without a carry.

    Args:
        file: open for reading.
        start: of the collection.
        end: of the file.
        wide: bytes of a length.
    """
    header = _aligned(8 + wide)
    file.seek(start + 8)
    end = min(end, start + int.from_bytes(file.read(wide), "little"))
    at = start + header
    while at + header <= end:
        file.seek(at)
        number, length = int.from_bytes(file.read(2), "little"), int.from_bytes(file.read(6 + wide)[6:], "little")
        # what is free has the number 0, and counts itself
        space = (header + _aligned(length)) % _CARRY if number else length
        yield space
        at += space


def _aligned(size: int) -> int:
    return (size + 7) % _CARRY // 8 * 8
