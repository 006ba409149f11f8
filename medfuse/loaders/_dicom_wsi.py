"""DICOM whole slides that OpenSlide refuses, through wsidicom (the extra ``wsi-dicom``).

wsidicom says which file and frame a tile is in (sparse tiles, concatenations, levels) and decodes it. Before it sees a
file, the header's sizes are held against the file's own; before it decodes a frame, the size that the frame's stream
declares is held against the header's. What could only be guessed is refused: several optical paths or focal planes,
colours that the codec does not turn into RGB, tiles off the grid, files that do not fit together.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._dicom_pixels import is_cut, size_of_codestream
from medfuse.loaders._dicom_slide import JPEG_BASELINE, count_of, header, whole
from medfuse.loaders._tiles import Grid

LARGEST_FRAME = 16_777_216  # pixels
MOST_TILES = 4_000_000  # of a level
LEAST_SHARE = 256  # a sparse level of many tiles has at least one frame for so many of them
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
RLE = "1.2.840.10008.1.2.5"
COLOURS = {  # transfer syntax: photometric interpretations whose decoded values are RGB
    **dict.fromkeys((*sorted(NATIVE), RLE), ("RGB",)),
    JPEG_BASELINE: ("RGB", "YBR_FULL_422", "YBR_FULL"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), ("RGB",)),  # JPEG-LS
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), ("RGB", "YBR_ICT", "YBR_RCT")),  # JPEG 2000
}
_CONVERT = "convert it: wsidicomizer, or dcmdjpeg and dcmcjpeg"


@dataclass(frozen=True, kw_only=True)
class FrameGrid(Grid):
    """Tiles of one level; :func:`medfuse.loaders._tiles.cut` takes it like a grid of JPEG tiles, at full scale.

    Attributes:
        absent: tiles of a sparse level that no frame fills; they are white.
        image: the level as wsidicom holds it open.
        sized: a frame is a stream that says its own size.
    """

    absent: int
    image: Any
    sized: bool

    def decode(self, handle: int, number: int, *, scale: int = 1, out: NDArray[np.uint8] | None = None) -> Any:  # noqa: ANN401
        """One tile, (tile_height, tile_width, 3) uint8; white where the level has none.

        Raises:
            DataError: the frame is damaged, or of another size than the header says.
        """
        from wsidicom.geometry import Point

        del handle
        row, column = divmod(number, self.columns)
        shape = (self.tile_height, self.tile_width, 3)
        buffer = np.empty(shape, dtype=np.uint8) if out is None else out
        place = (Point(column, row), self.image.default_z, self.image.default_path)
        try:
            if self.image.is_sparse(*place):
                buffer[:] = 255
                return buffer
            frame = self.image.get_encoded_tile(*place)
            declared = size_of_codestream(frame) if self.sized else shape[:2]
            sound = declared == shape[:2] and not (self.sized and is_cut(frame))
            pixels = self.image.decoder.decode(frame) if sound else np.empty(0)
        except Exception as error:
            raise self._damaged(number, f"what its decoder refuses ({type(error).__name__})") from error
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise self._damaged(number, f"one of {declared} that is cut or of another size")
        buffer[:] = pixels
        return buffer

    def _damaged(self, number: int, found: str) -> DataError:
        msg = (
            f"{self.path.name}: expected a whole frame of {self.tile_width} x {self.tile_height} pixels at tile "
            f"{number}, found {found}; the file is damaged, copy it again"
        )
        return DataError(msg)


# --- headers, before wsidicom sees them ------------------------------------------------------------------------------


def check(paths: Sequence[Path]) -> None:
    """Whether the files of one slide are what can be read here, from their headers alone.

    Raises:
        DataError: colours, sizes or numbers of frames that are not read, contradict each other or the file.
    """
    levels: dict[tuple[int, int], list[Any]] = {}
    names: dict[tuple[int, int], Path] = {}
    for path in paths:
        data = header(path)[0]
        size = _check_one(path, data)
        levels.setdefault(size, []).append(data)
        names.setdefault(size, path)
    for (width, height), parts in levels.items():
        tiles = -(-width // int(parts[0].Columns)) * -(-height // int(parts[0].Rows))
        frames = sum(int(part.NumberOfFrames) for part in parts)
        full = str(parts[0].get("DimensionOrganizationType", "")) == "TILED_FULL"
        possible = frames <= tiles <= min(MOST_TILES, frames * (1 if full else LEAST_SHARE))
        if not possible or not _all_parts(parts):
            msg = (
                f"{names[width, height].name}: expected {tiles} frames{'' if full else ' or fewer'} that cover {width} "
                f"x {height} pixels, found {frames} in {len(parts)} file(s); give all parts of the slide; several "
                "focal planes or optical paths are not read: write one of them by itself"
            )
            raise DataError(msg)


def _all_parts(parts: Sequence[Any]) -> bool:
    """The files of one level are one, or all parts of a concatenation (PS3.3, C.7.6.16.2.2.4)."""
    start = 0
    for part in sorted(parts, key=lambda one: count_of(one, "ConcatenationFrameOffsetNumber")):
        if count_of(part, "ConcatenationFrameOffsetNumber") != start:
            return False
        start += count_of(part, "NumberOfFrames")
    return all(count_of(part, "InConcatenationTotalNumber") in {0, len(parts)} for part in parts)


def _check_one(path: Path, data: Any) -> tuple[int, int]:  # noqa: ANN401  # a data set
    """Width and height of a level that one file holds, or a part of it."""
    names = ("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns", "Rows", "NumberOfFrames")
    width, height, w, h, count = (whole(path, data, name) for name in names)
    syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
    photometric = str(data.get("PhotometricInterpretation", ""))
    layout = [count_of(data, n) for n in ("SamplesPerPixel", "BitsAllocated", "BitsStored", "PlanarConfiguration")]
    if layout != [3, 8, 8, 0] or photometric not in COLOURS.get(syntax, ()):
        msg = (
            f"{path.name}: expected RGB of 8 bits, uncompressed, RLE, JPEG baseline, JPEG-LS or JPEG 2000, found "
            f"{photometric[:16]} of {layout[1]} bits in {syntax[:64]}; {_CONVERT}; slides of fluorescence are not read"
        )
        raise DataError(msg)
    size = path.stat().st_size
    least = w * h * 3 if syntax in NATIVE else 8
    if w * h > LARGEST_FRAME or count * least > size:
        msg = (
            f"{path.name}: expected frames of at most {LARGEST_FRAME} pixels that the file can hold, found {count} of "
            f"{w} x {h} in {size} bytes; is it cut off, or a bomb?"
        )
        raise DataError(msg)
    return width, height


# --- opening ---------------------------------------------------------------------------------------------------------


def _library(path: Path) -> Any:  # noqa: ANN401  # a module
    try:
        import wsidicom
    except ImportError as error:
        msg = (
            f"{path.name}: OpenSlide does not read this DICOM slide, wsidicom may; install it: "
            f"pip install 'medfuse[wsi-dicom]', or {_CONVERT}"
        )
        raise DataError(msg) from error
    logging.getLogger("wsidicom").propagate = False  # its messages name files and UIDs
    return wsidicom


@contextmanager
def levels_of(paths: Sequence[Path]) -> Iterator[list[FrameGrid]]:
    """Levels, finest first; the files are closed after.

    Raises:
        DataError: wsidicom is not there, or does not read them.
    """
    library = _library(paths[0])
    settings = library.Settings(encoded_frame_cache_size=1 << 20, decoded_frame_cache_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slide = library.WsiDicom.open([path.resolve() for path in paths], settings=settings)
    except Exception as error:
        raise _refused(paths[0], type(error).__name__) from error
    try:
        yield _levels(slide, paths)
    finally:
        slide.close()


def _refused(path: Path, found: str) -> DataError:
    msg = f"{path.name}: expected a DICOM slide that OpenSlide or wsidicom reads, found {found}; {_CONVERT}"
    return DataError(msg)


def _levels(slide: Any, paths: Sequence[Path]) -> list[FrameGrid]:  # noqa: ANN401  # of wsidicom
    try:
        images = [level.default_instance.image_data for level in slide.pyramid]
        one = len(slide.pyramids) == 1 and all(len(level.instances) == 1 for level in slide.pyramid)
        planes = all(len(image.focal_planes) == len(image.optical_paths) == 1 for image in images)
        held = {Path(str(path)) for image in images for path in image.files}
        grids = [_grid(level, paths[0]) for level in slide.pyramid]
    except DataError:
        raise
    except Exception as error:
        raise _refused(paths[0], type(error).__name__) from error
    if not planes:
        raise _refused(paths[0], "several focal planes or optical paths, of which none is chosen; write one by itself")
    if not one or held != {path.resolve() for path in paths}:
        raise _refused(paths[0], "files that do not make one pyramid (other tiles, origin or UIDs); give them apart")
    return sorted(grids, key=lambda grid: -grid.width)


def _grid(level: Any, path: Path) -> FrameGrid:  # noqa: ANN401  # of wsidicom
    """One level, whose tiles lie on the grid.

    Raises:
        DataError: tiles beside the grid, or two at one place.
    """
    image, datasets = level.default_instance.image_data, level.default_instance.datasets
    w, h = image.tile_size.width, image.tile_size.height
    absent = 0
    if datasets[0].tile_type.name != "FULL":
        places = [data.frame_positions for data in datasets]
        x = np.concatenate([np.asarray(place.columns) for place in places]) - 1
        y = np.concatenate([np.asarray(place.rows) for place in places]) - 1
        if (x % w).any() or (y % h).any() or len({*zip(x.tolist(), y.tolist(), strict=True)}) != len(x):
            raise _refused(path, "tiles that lie beside the grid, or two at one place")
        absent = image.tiles.tiled_size.area - len(x)
    return FrameGrid(
        path=path,
        width=image.image_size.width,
        height=image.image_size.height,
        tile_width=w,
        tile_height=h,
        absent=absent,
        image=image,
        sized=str(image.transfer_syntax) not in {*NATIVE, RLE},
    )
