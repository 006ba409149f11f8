"""Directories of a TIFF or BigTIFF file, read with caps before any library opens it; no pixel is decoded."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LARGEST_SIDE = 2_000_000  # pixels
LARGEST_TILE = 64 << 20  # bytes of one decoded tile
LARGEST_RATIO = 2_000  # decoded over stored bytes, above 64 MiB: white tissue-free JPEG tiles reach about 300
_DIRECTORIES, _ENTRIES, _VALUES = 1_000, 1_000, 64 << 20
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 12: "d", 13: "I", 16: "Q", 18: "Q"}
_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WANTED = {
    254: "subfile", 256: "width", 257: "height", 258: "bits", 259: "compression", 262: "photometric", 273: "strips",
    277: "samples", 278: "rows_per_strip", 279: "strip_counts", 284: "planar", 322: "tile_width", 323: "tile_height",
    324: "tiles", 325: "tile_counts", 347: "tables", 65420: "ndpi",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Page:
    """One directory.

    Attributes:
        width, height, tile_width, tile_height: pixels; tiles are 0 where the page holds strips.
        compression, photometric, samples, bits, planar, subfile: as the tags say.
        offsets, counts: of tiles or strips.
        rows_per_strip: of strips.
        tables: shared JPEG tables.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    photometric: int
    samples: int
    bits: int
    planar: int
    subfile: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    rows_per_strip: int
    tables: bytes


def _refused(path: Path, found: str, *, what: str = "copy the file again") -> DataError:
    return DataError(f"{path.name}: expected a sound TIFF file, found {found}; {what}")


class _Walk:
    """Reads the directories of one file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size
        start = file.read(16)
        if start[:4] not in MARKS or len(start) < 8:
            raise _refused(path, "another beginning", what="is it the right file?")
        self.order: Literal["<", ">"] = "<" if start[:1] == b"I" else ">"
        self.big = start[2:4] in {b"+\0", b"\0+"}
        self.first = self.number(start[8:16] if self.big else start[4:8], "Q" if self.big else "I")

    def number(self, content: bytes, kind: str) -> int:
        try:
            return int(struct.unpack(self.order + kind, content)[0])
        except struct.error as error:
            raise _refused(self.path, "an end of the file within a directory") from error

    def at(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise _refused(self.path, "a directory or value beyond the end of the file")
        self.file.seek(offset)
        return self.file.read(length)

    def values(self, kind: int, count: int, field: bytes) -> NDArray[np.int64] | bytes:
        if kind not in _TYPES:
            return np.zeros(0, dtype=np.int64)
        length = _SIZE[kind] * count
        if length > min(_VALUES, self.size):
            raise _refused(self.path, "a tag longer than the file")
        content = (
            field[:length] if length <= len(field) else self.at(self.number(field, "Q" if self.big else "I"), length)
        )
        if kind == 7:
            return content
        found = np.frombuffer(content, dtype=np.dtype(_TYPES[kind]).newbyteorder(self.order))
        return np.asarray(found.astype(np.int64))  # above 2**63 it is negative, and refused as an offset

    def directory(self, offset: int) -> tuple[dict[str, NDArray[np.int64] | bytes], int]:
        head, width, place = (8, 20, "Q") if self.big else (2, 12, "I")
        entries = self.number(self.at(offset, head), "Q" if self.big else "H")
        if not 0 < entries <= _ENTRIES:
            raise _refused(self.path, f"a directory of {entries} tags")
        content = self.at(offset + head, entries * width)
        found: dict[str, NDArray[np.int64] | bytes] = {}
        for k in range(entries):
            entry = content[k * width : (k + 1) * width]
            name = _WANTED.get(self.number(entry[:2], "H"))
            if name:
                count = self.number(entry[4:12] if self.big else entry[4:8], place)
                found[name] = self.values(self.number(entry[2:4], "H"), count, entry[12:] if self.big else entry[8:])
        after = offset + head + entries * width
        step = self.at(after, 8 if self.big else 4) if "ndpi" not in found else b"\0" * (8 if self.big else 4)
        return found, self.number(step, place)


def read_pages(path: Path) -> list[Page]:
    """All directories of the main chain (of Hamamatsu NDPI, whose offsets differ, the first), sizes checked.

    Raises:
        DataError: a cycle, a value beyond the end of the file, a truncated file, or sizes no slide has.
    """
    pages: list[Page] = []
    seen: set[int] = set()
    with path.open("rb") as file:
        walk = _Walk(path, file)
        offset = walk.first
        while offset:
            if offset in seen or len(seen) >= _DIRECTORIES:
                raise _refused(path, "directories that lead back to one another")
            seen.add(offset)
            tags, offset = walk.directory(offset)
            pages.append(_page(path, tags, walk.size))
    if not pages:
        raise _refused(path, "no image")
    return pages


def _first(tags: dict[str, NDArray[np.int64] | bytes], name: str, default: int = 0) -> int:
    found = tags.get(name, b"")
    return int(found[0]) if len(found) else default


def _numbers(tags: dict[str, NDArray[np.int64] | bytes], names: Sequence[str]) -> NDArray[np.int64]:
    for name in names:
        if name in tags:
            return np.asarray(np.frombuffer(v, np.uint8) if isinstance(v := tags[name], bytes) else v, dtype=np.int64)
    return np.zeros(0, dtype=np.int64)


def _page(path: Path, tags: dict[str, NDArray[np.int64] | bytes], size: int) -> Page:
    tables = tags.get("tables", b"")
    page = Page(
        **{name: _first(tags, name) for name in ("width", "height", "tile_width", "tile_height", "subfile")},
        **{name: _first(tags, name, 1) for name in ("compression", "samples", "bits", "planar")},
        photometric=_first(tags, "photometric", -1),
        offsets=_numbers(tags, ("tiles", "strips")),
        counts=_numbers(tags, ("tile_counts", "strip_counts")),
        rows_per_strip=_first(tags, "rows_per_strip", 1 << 30),
        tables=tables if isinstance(tables, bytes) else tables.astype(np.uint8).tobytes(),
    )
    if not (0 < page.width <= LARGEST_SIDE and 0 < page.height <= LARGEST_SIDE and 0 < page.samples <= 64):
        raise _refused(path, f"an image of {page.width} x {page.height} x {page.samples}")
    if "ndpi" not in tags:
        _check_extent(path, page, size)
    return page


def _check_extent(path: Path, page: Page, size: int) -> None:
    """Tiles or strips are as many as the image needs, of a size that memory holds, and inside the file."""
    bytes_of = page.samples * max(1, -(-page.bits // 8))
    if page.tile_width or page.tile_height:
        needed = -(-page.width // max(page.tile_width, 1)) * -(-page.height // max(page.tile_height, 1))
        if page.tile_width * page.tile_height * bytes_of > LARGEST_TILE or not page.tile_width or not page.tile_height:
            raise _refused(path, f"tiles of {page.tile_width} x {page.tile_height}", what="is it the right file?")
    else:
        needed = -(-page.height // max(page.rows_per_strip, 1))
    planes = page.samples if page.planar == 2 else 1
    if len(page.offsets) != len(page.counts) or len(page.offsets) < needed * planes:
        raise _refused(path, f"{len(page.offsets)} places and {len(page.counts)} lengths of {needed} tiles or strips")
    if (page.offsets < 0).any() or (page.counts < 0).any() or (page.counts > size).any():
        raise _refused(path, "tiles longer than the file", what="it is cut off; copy it again")
    if (page.offsets + page.counts > size).any():
        raise _refused(path, "tiles beyond the end of the file", what="it is cut off; copy it again")
    decoded = page.width * page.height * bytes_of
    if decoded > max(64 << 20, size * LARGEST_RATIO):
        raise _refused(
            path,
            f"{decoded >> 20} MiB of pixels in {size >> 10} KiB",
            what="a bomb? write the image again if it is real",
        )
