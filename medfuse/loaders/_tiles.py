"""Tiles of one level that are plain JPEG streams in a file: one ``pread`` and one libjpeg-turbo call each.

Used where it gives the bytes that OpenSlide gives (checked per slide on its heaviest tiles): both decode with the
accurate integer DCT and smooth chroma upsampling. Smaller tiles come straight out of the DCT coefficients.
"""

import math
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError

CACHE = 32 << 20  # bytes of decoded tiles that are kept while neighbouring tiles are cut out of them
SCALES = (8, 4, 2)  # sizes that libjpeg's scaled inverse DCT gives
DCT_MEAN, DCT_MAX = 1.0, 32  # how far, of 255, a scaled decode may be from the area mean on the tiles that are probed

_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # Adobe APP14 segment, transform 0: components are RGB
_YCC = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"  # transform 1: components are YCbCr


def jpeg_head(tables: bytes, *, rgb: bool | None) -> bytes:
    """What is put in place of a tile's first two bytes: SOI, the shared tables, and the colour space if it is known.

    Args:
        tables: TIFF tag 347, an abbreviated stream SOI tables EOI; may be empty.
        rgb: the components are RGB (True), YCbCr (False), or as the stream's own markers say (None).
    """
    body = tables[2:-2] if len(tables) >= 4 else b""
    return b"\xff\xd8" + ({True: _RGB, False: _YCC, None: b""}[rgb]) + body


@dataclass(frozen=True, kw_only=True)
class Grid(ABC):
    """Tiles of one level that are decoded one by one.

    Attributes:
        path: file that holds them, for messages.
        width, height: of the level, pixels.
        tile_width, tile_height: of a tile, pixels; tiles at the right and lower edge are whole in the file.
    """

    path: Path
    width: int
    height: int
    tile_width: int
    tile_height: int

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Tiles in a column."""
        return -(-self.height // self.tile_height)

    @abstractmethod
    def decode(self, handle: int, number: int, *, scale: int = 1, out: NDArray[np.uint8] | None = None) -> Any:  # noqa: ANN401
        """One tile, (tile_height / scale, tile_width / scale, 3) uint8.

        Raises:
            DataError: the tile is cut off, damaged or of another size than the level says.
        """


@dataclass(frozen=True, kw_only=True)
class JpegGrid(Grid):
    """Where the JPEG tiles of one level lie.

    Attributes:
        offsets, counts: (rows * columns,) int64 place and length of each tile in the file, row by row.
        head: what replaces a tile's first two bytes; see :func:`jpeg_head`.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    head: bytes = b"\xff\xd8"

    def heaviest(self, count: int, *, whole: bool) -> list[int]:
        """Numbers of the tiles with most bytes, in which a difference would show; only tiles wholly on the slide?"""
        able = np.ones((self.rows, self.columns), dtype=bool)
        if whole:
            able[self.height // self.tile_height :] = False
            able[:, self.width // self.tile_width :] = False
        numbers = np.flatnonzero(able.ravel())
        return [int(i) for i in numbers[np.argsort(-self.counts[numbers], kind="stable")][:count]]

    def decode(self, handle: int, number: int, *, scale: int = 1, out: NDArray[np.uint8] | None = None) -> Any:  # noqa: ANN401
        import simplejpeg  # type: ignore[import-untyped]

        shape = (self.tile_height // scale, self.tile_width // scale, 3)
        buffer = np.empty(shape, dtype=np.uint8) if out is None else out
        found = os.pread(handle, int(self.counts[number]), int(self.offsets[number]))
        if len(found) != self.counts[number] or found[:2] != b"\xff\xd8":
            raise _damaged(self.path, number, "no JPEG stream of the stated length")
        try:
            decoded = simplejpeg.decode_jpeg(
                self.head + found[2:], "RGB", min_height=shape[0], min_width=shape[1], min_factor=scale, buffer=buffer
            )
        except (ValueError, MemoryError) as error:
            raise _damaged(self.path, number, str(error)[:80]) from error
        if decoded.shape != shape:
            raise _damaged(self.path, number, f"{decoded.shape[1]} x {decoded.shape[0]} pixels")
        return buffer


def _damaged(path: Path, number: int, found: str) -> DataError:
    msg = f"{path.name}: expected a whole JPEG tile {number}, found {found}; the file is damaged, copy it again"
    return DataError(msg)


@dataclass
class TileCache:
    """Decoded tiles of one level, the least recently used leave first; holds at most ``limit`` bytes."""

    limit: int = CACHE
    held: OrderedDict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=OrderedDict)
    size: int = 0

    def tile(self, grid: Grid, handle: int, number: int, scale: int) -> NDArray[np.uint8]:
        """A decoded tile, from here or from the file."""
        key = (number, scale)
        found = self.held.get(key)
        if found is not None:
            self.held.move_to_end(key)
            return found
        shape = (grid.tile_height // scale, grid.tile_width // scale, 3)
        room = None  # a tile that leaves gives its memory to the one that comes: fresh pages cost as much as copying
        while self.size + math.prod(shape) > self.limit and self.held:
            room = self.held.popitem(last=False)[1]
            self.size -= room.nbytes
        decoded: NDArray[np.uint8] = grid.decode(
            handle, number, scale=scale, out=room if room is not None and room.shape == shape else None
        )
        self.held[key] = decoded
        self.size += decoded.nbytes
        return decoded


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor, closed after."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def cut(
    grid: Grid, handle: int, cache: TileCache, *, place: tuple[int, int], out: NDArray[np.uint8], scale: int = 1
) -> None:
    """Fill ``out`` (h, w, 3) with the pixels from ``place``, (x, y) in scaled pixels; white outside the level."""
    (x, y), (h, w) = place, out.shape[:2]
    th, tw = grid.tile_height // scale, grid.tile_width // scale
    right, low = min(x + w, grid.width // scale), min(y + h, grid.height // scale)
    if x < 0 or y < 0 or right < x + w or low < y + h:
        out[:] = 255
    elif w == tw and h == th and x % tw == 0 and y % th == 0 and out.flags.c_contiguous:
        grid.decode(handle, (y // th) * grid.columns + x // tw, scale=scale, out=out)
        return
    for row in range(max(y, 0) // th, -(-low // th)):
        top, end = max(y, row * th), min(low, (row + 1) * th)
        for column in range(max(x, 0) // tw, -(-right // tw)):
            left, stop = max(x, column * tw), min(right, (column + 1) * tw)
            tile = cache.tile(grid, handle, row * grid.columns + column, scale)
            out[top - y : end - y, left - x : stop - x] = tile[
                top - row * th : end - row * th, left - column * tw : stop - column * tw
            ]


def dct_error(grid: JpegGrid, scale: int, *, tiles: int = 3) -> tuple[float, int]:
    """Mean and largest difference, of 255, of a scaled decode from the area mean, over the heaviest tiles."""
    total, largest, count = 0.0, 0, 0
    with opened(grid.path) as handle:
        for number in grid.heaviest(tiles, whole=True):
            full = grid.decode(handle, number).astype(np.float32)
            h, w = full.shape[0] // scale, full.shape[1] // scale
            mean = full.reshape(h, scale, w, scale, 3).mean(axis=(1, 3))
            apart = np.abs(grid.decode(handle, number, scale=scale) - mean)
            total, largest, count = total + float(apart.mean()), max(largest, int(np.ceil(apart.max()))), count + 1
    return (total / count, largest) if count else (np.inf, 255)
