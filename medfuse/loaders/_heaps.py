"""Heaps of HDF5 files in which the library would turn for ever, found before it is asked.

HDF5 keeps texts of any length in global heap collections (file format specification 3.0, section III.E): objects that
follow each other, each of which says how long it is. The library (2.0.0) goes from one to the next inside one call,
which nothing can interrupt, and an object that takes no space is its own next one: a stretch of zeros in the free space
of a heap is enough.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medfuse.errors import DataError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_COLLECTION = b"GCOL\x01"  # and its version, of which there is one
_SMALLEST = 16  # bytes of an object
_CARRY = 1 << 64
_PIECE = 1 << 20


def check_heaps(path: Path) -> None:
    """Go through the heaps of an HDF5 file, which is read once in pieces; other damage is left to the library.

    Raises:
        DataError: a heap with an object that takes no space, or heaps that lie in each other.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        wide, left = _bytes_of_lengths(file, end), end // _SMALLEST
        for start in _collections(file) if wide else ():
            for space in _objects(file, start, end=end, wide=wide):
                left -= 1
                if not space or left < 0:
                    msg = (
                        f"{path.name}: expected texts that follow each other, found a damaged heap of them at byte "
                        f"{start:,}; fetch the file again, or write it again"
                    )
                    raise DataError(msg)


def _bytes_of_lengths(file: BinaryIO, end: int) -> int:
    """Of each number that is a length (superblock, section II.A); 0 where there is no superblock."""
    start = 0
    while start < end:
        file.seek(start)
        head = file.read(16)
        if head.startswith(_SIGNATURE) and len(head) == 16:
            return head[14] if head[8] < 2 else head[10]
        start = max(512, 2 * start)
    return 0


def _collections(file: BinaryIO) -> Iterator[int]:
    """Where the collections begin."""
    start, before = 0, b""
    while True:
        file.seek(start + len(before))
        piece = file.read(_PIECE)
        if not piece:
            return
        content = before + piece
        at = content.find(_COLLECTION)
        while at >= 0:
            yield start + at
            at = content.find(_COLLECTION, at + 1)
        before = content[1 - len(_COLLECTION) :]
        start += len(content) - len(before)


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
