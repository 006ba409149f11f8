"""Texts of HDF5 files for which the library would turn for ever or take all memory, found before it is asked.

HDF5 keeps texts of any length in global heap collections (file format specification 3.0, section III.E): objects that
follow each other, each of which says how long it is. The library (2.0.0) goes from one to the next inside one call,
which nothing can interrupt, and an object that takes no space is its own next one: a stretch of zeros in the free space
of a heap is enough. Where a text is used stand its length, the place of the collection and the number of the object
(16 bytes); the library takes memory of that length, up to 4 GiB, before it sees that there is no such text.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medfuse.errors import DataError

if TYPE_CHECKING:
    import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_COLLECTION = b"GCOL\x01"  # and its version, of which there is one
_SMALLEST = 16  # bytes of an object
_REFERENCE = 16  # bytes of length, place and number, where addresses have eight
_NEAR = 128  # bytes from the name of an attribute in which its value stands
_MOST = 100_000  # attributes of a name
_CARRY = 1 << 64
_PIECE = 1 << 20
_ANY_LENGTH = 9  # class of the type
_DEFLATE = 1  # number of the filter


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


def claimed(node: "h5py.Dataset") -> int:
    """Bytes that the texts of any length in a dataset claim to have together; no text is read.

    Other filters than gzip are not undone: the library is trusted with them.
    """
    total = 0
    with Path(node.file.filename).open("rb") as file:
        for raw in _references(node, file):
            whole = raw[: len(raw) // _REFERENCE * _REFERENCE]
            total += int(np.frombuffer(whole, "<u4")[:: _REFERENCE // 4].sum(dtype=np.uint64))
    return total


def _references(node: "h5py.Dataset", file: BinaryIO) -> Iterator[bytes]:
    """Of the texts of a dataset, in blocks."""
    end = file.seek(0, 2)
    if node.chunks is None:
        start = node.id.get_offset()
        if start is not None:
            file.seek(start)
            yield file.read(min(end, node.size * _REFERENCE))
        return
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    blocks: list[tuple[int, int, int]] = []
    node.id.chunk_iter(lambda info: blocks.append((info.byte_offset, info.size, info.filter_mask)))
    for start, packed, left_out in blocks:
        file.seek(start)
        raw = file.read(min(end, packed))
        applied = [number for k, number in enumerate(filters) if not left_out >> k & 1]  # never the shuffle of texts
        if applied == [_DEFLATE]:
            try:
                raw = zlib.decompressobj().decompress(raw, math.prod(node.chunks) * _REFERENCE)
            except zlib.error:
                return  # the library says so
        if applied in ([], [_DEFLATE]):
            yield raw


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
        if near[at] & 15 == _ANY_LENGTH and int.from_bytes(near[at + 4 : at + 8], "little") == _REFERENCE:
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
