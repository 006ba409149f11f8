"""Writing slides (pyramids of JPEG tiles that OpenSlide and our fast path read) and feature files of other tools."""

import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfuse.errors import DataError
from medfuse.sample import ModalitySample

Pixels = NDArray[np.uint8]
_BIG = 1 << 29  # pixels above which a file may pass 4 GiB

TileFunction = Callable[[int, int, int, int], Pixels]  # x, y, width, height in level-0 pixels -> (height, width, 3)


def write_slide(
    path: Path,
    pixels: Pixels | TileFunction,
    *,
    mpp: float,
    size: tuple[int, int] | None = None,
    levels: int = 3,
    tile: int = 256,
    quality: int = 85,
) -> None:
    """A pyramidal TIFF of JPEG tiles (4:2:0), each level half of the one before; the same input gives the same bytes.

    Args:
        path: to write, ``.tif``.
        pixels: (H, W, 3) uint8, or a function that gives any box of it; then no more than a row of tiles and a file
            of a third of the slide is held.
        mpp: µm per pixel of level 0.
        size: (W, H); only with a function.
        levels: of the pyramid.
        tile: width and height of tiles, a multiple of 16.
        quality: of the JPEG encoder, 1 to 100.

    Raises:
        DataError: sizes that do not fit each other.
    """
    source, (width, height) = _source(pixels, size)
    if tile % 16 or tile <= 0 or levels < 1 or min(width, height) >> (levels - 1) < 1:
        msg = f"{path.name}: expected tiles of a multiple of 16 and at least one pixel a level, found {tile}, {levels}"
        raise DataError(msg)
    with tempfile.TemporaryFile() as scratch, path.open("wb") as file:
        tiff = _Tiff(file, big=width * height > _BIG)
        for level in range(levels):
            w, h = width >> level, height >> level
            below = None
            if level + 1 < levels:
                below = np.memmap(scratch, np.uint8, "w+", offset=scratch.seek(0, 2), shape=(h // 2, w // 2, 3))
            tiff.level(
                _encoded(source, (w, h), tile=tile, quality=quality, below=below),
                size=(w, h),
                tile=tile,
                mpp=mpp * 2**level,
                reduced=level > 0,
            )
            if below is not None:
                source = _array(below)


class _Tiff:
    """A TIFF or BigTIFF file that grows by one level after the other (TIFF 6.0, sections 2, 15; JPEG: TechNote 2)."""

    def __init__(self, file: BinaryIO, *, big: bool) -> None:
        self.file, self.big = file, big
        file.write(b"II+\0\x08\0\0\0" if big else b"II*\0")
        self.link = file.tell()  # where the place of the next directory goes
        self._write("Q" if big else "I", 0)

    def _write(self, kind: str, *values: int) -> None:
        self.file.write(struct.pack(f"<{len(values)}{kind}", *values))

    def level(self, tiles: Iterator[bytes], *, size: tuple[int, int], tile: int, mpp: float, reduced: bool) -> None:
        """Tiles, and the directory that names them."""
        offsets, counts, shared = [], [], b""
        for stream in tiles:
            tables, rest = _apart(stream)
            shared = shared or tables
            offsets.append(self.file.tell())
            counts.append(self.file.write(rest if tables == shared else stream))
        place = "Q" if self.big else "I"
        per_cm = (round(1e7 / mpp), 1000)
        tags: list[tuple[int, str, Sequence[int]]] = [
            (254, "I", [int(reduced)]), (256, "I", [size[0]]), (257, "I", [size[1]]), (258, "H", [8, 8, 8]),
            (259, "H", [7]), (262, "H", [6]), (277, "H", [3]), (282, "R", per_cm), (283, "R", per_cm), (284, "H", [1]),
            (296, "H", [3]), (322, "I", [tile]), (323, "I", [tile]), (324, place, offsets), (325, "I", counts),
            (347, "B", list(shared)), (530, "H", [2, 2]),
        ]  # fmt: skip
        self._directory(tags)

    def _directory(self, tags: Sequence[tuple[int, str, Sequence[int]]]) -> None:
        place, room = ("Q", 8) if self.big else ("I", 4)
        entries = b""
        for number, kind, values in tags:
            code = {"B": 7, "H": 3, "I": 4, "Q": 16, "R": 5}[kind]
            content = struct.pack(f"<{len(values)}{'I' if kind == 'R' else kind}", *values)
            entries += struct.pack(f"<HH{place}", number, code, len(values) // (2 if kind == "R" else 1))
            if len(content) > room:
                self.file.write(b"\0" * (self.file.tell() % 2))
                entries += struct.pack(f"<{place}", self.file.tell())
                self.file.write(content)
            else:
                entries += content.ljust(room, b"\0")
        self.file.write(b"\0" * (self.file.tell() % 2))
        here = self.file.tell()
        self._write("Q" if self.big else "H", len(tags))
        self.file.write(entries)
        after = self.file.tell()
        self._write(place, 0)
        self.file.seek(self.link)
        self._write(place, here)
        self.file.seek(0, 2)
        self.link = after


def _apart(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG stream as its tables (SOI, DQT, DHT, EOI) and the rest without them and without JFIF."""
    tables, rest, place = b"\xff\xd8", b"\xff\xd8", 2
    while stream[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
        if stream[place + 1] in {0xDB, 0xC4}:
            tables += stream[place:end]
        elif stream[place + 1] != 0xE0:
            rest += stream[place:end]
        place = end
    return tables + b"\xff\xd9", rest + stream[place:]


def _source(pixels: Pixels | TileFunction, size: tuple[int, int] | None) -> tuple[TileFunction, tuple[int, int]]:
    if callable(pixels):
        if size is None:
            msg = "write_slide: expected the size (W, H) of a slide that a function draws, found none"
            raise DataError(msg)
        return pixels, size
    array = np.asarray(pixels)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        msg = f"write_slide: expected (H, W, 3) uint8, found {array.dtype} {array.shape}"
        raise DataError(msg)
    return _array(array), (array.shape[1], array.shape[0])


def _array(array: Pixels) -> TileFunction:
    return lambda x, y, w, h: array[y : y + h, x : x + w]


def _encoded(
    source: TileFunction, size: tuple[int, int], *, tile: int, quality: int, below: Pixels | None
) -> Iterator[bytes]:
    """JPEG tiles row by row; the half-sized level is filled on the way."""
    import simplejpeg  # type: ignore[import-untyped]

    width, height = size
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            w, h = min(tile, width - x), min(tile, height - y)
            part = np.asarray(source(x, y, w, h))
            if part.shape != (h, w, 3) or part.dtype != np.uint8:
                msg = f"write_slide: expected ({h}, {w}, 3) uint8 from the function, found {part.dtype} {part.shape}"
                raise DataError(msg)
            if below is not None:
                even = part[: h // 2 * 2, : w // 2 * 2].astype(np.uint16)
                mean = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) >> 2
                below[y // 2 : y // 2 + mean.shape[0], x // 2 : x // 2 + mean.shape[1]] = mean[
                    : below.shape[0] - y // 2, : below.shape[1] - x // 2
                ]
            whole = np.pad(part, ((0, tile - h), (0, tile - w), (0, 0)), mode="edge")
            yield simplejpeg.encode_jpeg(
                np.ascontiguousarray(whole), quality=quality, colorspace="RGB", colorsubsampling="420"
            )


def tissue_like(width: int, height: int, *, seed: int, nuclei: float = 0.002, margin: float = 0.12) -> Pixels:
    """A disc of eosin-coloured texture with dark nuclei on pale glass, (height, width, 3).

    Args:
        width: pixels, at about 0.5 µm.
        height: pixels.
        seed: of the texture.
        nuclei: per pixel.
        margin: glass around the disc, as a fraction of its half axes.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inside = np.hypot(x, y) < 1 - margin
    texture = sum(ndimage.gaussian_filter(rng.normal(size=(height, width)), s) * s for s in (2.0, 8.0, 24.0))
    nuclear = np.zeros((height, width))
    count = rng.poisson(nuclei * width * height)
    nuclear[rng.integers(0, height, count), rng.integers(0, width, count)] = 1
    nuclear = np.clip(ndimage.gaussian_filter(nuclear, 3.5) * 110, 0, 1)
    od_e = np.array([0.06, 0.42, 0.16]) * (1 + 0.25 * np.clip(texture, -2, 2))[..., None]
    od_h = np.array([0.70, 0.78, 0.34]) * nuclear[..., None]
    light = 243 * np.exp(-(od_e + od_h) * inside[..., None])
    return np.asarray(np.clip(light + rng.normal(0, 2, size=light.shape), 0, 255).astype(np.uint8))


def write_features(
    path: Path, sample: ModalitySample, *, facts: Mapping[str, Any], layout: Literal["clam", "trident"] = "trident"
) -> None:
    """Features of tiles as CLAM and TRIDENT keep them: HDF5 with ``features`` (T, F) and ``coords`` (T, 2), level 0.

    Args:
        path: to write, ``.h5``; named as the slide.
        sample: tokens and positions of tiles, in level-0 pixels.
        facts: of the :class:`~medfuse.sample.RawSample`; TRIDENT's attributes of ``coords`` are made of them.
        layout: TRIDENT's attributes are written, or (``clam``) CLAM's names of them.

    Raises:
        DataError: positions that are not (T, 2), or facts without the size of a tile.
    """
    import h5py

    if sample.position.shape[1] != 2 or "tile_level0" not in facts:
        msg = f"{path.name}: expected tiles of a slide with positions x, y and facts of the loader slide, found others"
        raise DataError(msg)
    side, mpp, base = float(facts["tile_level0"]), float(facts["mpp"]), float(facts["slide_mpp"])
    size = round(side * base / mpp)
    if layout == "trident":
        attributes = {
            "patch_size": size,
            "patch_size_level0": round(side),
            "level0_magnification": round(10 / base),
            "target_magnification": round(10 / mpp),
            "level0_width": int(facts["slide_size"][0]),
            "level0_height": int(facts["slide_size"][1]),
            "overlap": 0,
            "name": path.stem,
        }
    else:
        attributes = {
            "patch_size": size,
            "patch_level": int(facts["level"]),
            "level_dim": list(facts["slide_size"]),
            "name": path.stem,
        }
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.asarray(sample.tokens, dtype=np.float32))
        coords = file.create_dataset("coords", data=np.rint(sample.position).astype(np.int64))
        coords.attrs.update(attributes)
