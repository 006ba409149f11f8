"""Opening slides: sizes are checked before a library opens them; pixels of a level as plain arrays.

OpenSlide reads its formats; JPEG tiles of TIFF and DICOM are read directly where that gives the same bytes; a plain
TIFF without tiles is held whole. Label, macro and thumbnail images are named, never decoded.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.limits import read_head
from medfuse.loaders import _dicom_slide as dicom_slide
from medfuse.loaders import _dicom_wsi as dicom_wsi
from medfuse.loaders._tiff import MARKS, Page, read_pages
from medfuse.loaders._tiles import JpegGrid, TileCache, cut, jpeg_head, opened

LARGEST_PLAIN = 64_000_000  # pixels of an image without tiles, which is held whole
SANE_MPP = (0.05, 20.0)  # µm per pixel; outside it a "resolution" is that of a printer or a screen
WSIDICOM = "wsidicom"  # vendor of what only wsidicom reads
_JPEG_VENDORS = {"aperio", "generic-tiff"}  # whose levels are TIFF directories without overlaps or offsets


@dataclass(frozen=True, kw_only=True)
class Slide:
    """A slide as its header says.

    Attributes:
        files: all of its files; the first is the one to open.
        vendor: OpenSlide's name, ``dicom-frames``, ``wsidicom`` or ``tiff`` (plain).
        sizes: (width, height) of each level, finest first.
        downsamples: of each level, of level 0.
        mpp: µm per pixel of level 0, None where the file does not say it or says nonsense.
        grids: levels whose JPEG tiles can be read directly.
        properties: as OpenSlide gives them, or DICOM keywords; values may identify a person.
        associated: names of label, macro and such images.
        warnings: what a person should know.
    """

    files: tuple[Path, ...]
    vendor: str
    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    mpp: float | None
    grids: Mapping[int, JpegGrid] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    associated: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file that is opened."""
        return self.files[0]


def open_slide(files: Sequence[Path], *, frames: str | None = None) -> Slide:
    """A slide's header.

    Args:
        files: of one slide.
        frames: order of a DICOM slide's frames where the file does not say it, ``rows`` or ``columns``.

    Raises:
        DataError: damage, hostile sizes, or a kind that cannot be read; the message says what to do.
    """
    paths = tuple(files)
    start = read_head(paths[0])
    if start[:4] in MARKS:
        return _tiff(paths)
    if start[128:132] == b"DICM":
        return _dicom(paths, frames)
    return _by_openslide(paths)


def _library() -> Any:  # noqa: ANN401  # a module
    try:
        import openslide
    except (ImportError, OSError) as error:
        msg = "slides: expected the OpenSlide library, found none; install medfuse[slides]"
        raise ConfigError(msg) from error
    return openslide


def _failed(path: Path, error: Exception) -> DataError:
    said = re.sub(r"Reading \S+: ", "", str(error))  # a link to the file in a folder of a moment
    said = said.replace(str(path), "the file").replace(path.name, "the file")[:120]
    msg = (
        f"{path.name}: expected a slide that OpenSlide reads, found: {said}; is it whole, and are its parts beside it?"
    )
    return DataError(msg)


@contextmanager
def _openslide(files: Sequence[Path]) -> Iterator[Any]:
    """An OpenSlide object. Parts of a DICOM slide are shown to it alone, so that no other file of the folder enters."""
    library = _library()
    alone = read_head(files[0])[128:132] == b"DICM"
    with tempfile.TemporaryDirectory() if alone else nullcontext() as folder:
        path = files[0]
        if folder is not None:
            for k, part in enumerate(files):
                (Path(folder) / f"{k}{part.suffix}").symlink_to(part.resolve())
            path = Path(folder) / f"0{path.suffix}"
        try:
            slide = library.OpenSlide(str(path))
        except (library.OpenSlideError, OSError, MemoryError) as error:
            raise _failed(files[0], error) from error
        try:
            yield slide
        finally:
            slide.close()


def _by_openslide(paths: tuple[Path, ...]) -> Slide:
    with _openslide(paths) as slide:
        properties = dict(slide.properties)
        sizes, downsamples = tuple(slide.level_dimensions), tuple(map(float, slide.level_downsamples))
        associated = tuple(sorted(slide.associated_images))
    if not sizes or any(not 0 < side <= 2_000_000 for size in sizes for side in size):
        msg = f"{paths[0].name}: expected levels of at most 2,000,000 pixels a side, found others; is it damaged?"
        raise DataError(msg)
    mpp, warnings = _mpp(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
    return Slide(
        files=paths,
        vendor=properties.get("openslide.vendor", "openslide"),
        sizes=sizes,
        downsamples=downsamples,
        mpp=mpp,
        properties=properties,
        associated=associated,
        warnings=warnings,
    )


def _mpp(x: object, y: object) -> tuple[float | None, tuple[str, ...]]:
    """µm per pixel, or None and why not."""
    try:
        across, down = float(str(x)), float(str(y))
    except ValueError:
        return None, ("the file does not say its mpp; give the option slide_mpp",)
    if not all(SANE_MPP[0] <= side <= SANE_MPP[1] for side in (across, down)):
        return None, ("the file's resolution is not that of a slide; give the option slide_mpp",)
    if abs(across - down) > 0.02 * across:
        return None, ("the file says pixels that are not square, so its mpp is not used; give the option slide_mpp",)
    return (across + down) / 2, ()


# --- TIFF ------------------------------------------------------------------------------------------------------------


def _tiff(paths: tuple[Path, ...]) -> Slide:
    pages = read_pages(paths[0])
    with suppress(ConfigError):
        if _library().OpenSlide.detect_format(str(paths[0])) is None:
            return _plain(paths, pages[0])
    slide = _by_openslide(paths)
    if slide.vendor not in _JPEG_VENDORS:
        return slide
    grids = {level: grid for level in range(len(slide.sizes)) if (grid := _grid(slide, level, pages)) is not None}
    return replace(slide, grids=_same_bytes(slide, grids))


def _grid(slide: Slide, level: int, pages: Sequence[Page]) -> JpegGrid | None:
    """The JPEG tiles of a level, where exactly one directory can be it and all of its tiles are there."""
    scale = slide.downsamples[level]
    found = [p for p in pages if (p.width, p.height) == slide.sizes[level] and p.tile_width]
    if len(found) != 1 or scale != int(scale):
        return None
    page = found[0]
    plain = page.compression == 7 and page.samples == 3 and page.bits == 8 and page.planar == 1
    halves = page.tile_width % 16 == 0 and page.tile_height % 16 == 0
    if not plain or not halves or page.photometric not in {2, 6} or not (page.counts > 2).all():
        return None
    return JpegGrid(
        path=slide.path,
        width=page.width,
        height=page.height,
        tile_width=page.tile_width,
        tile_height=page.tile_height,
        offsets=page.offsets,
        counts=page.counts,
        head=jpeg_head(page.tables, rgb=page.photometric == 2),
    )


def _same_bytes(slide: Slide, grids: Mapping[int, JpegGrid]) -> dict[int, JpegGrid]:
    """Those grids whose heaviest tiles are what OpenSlide gives, byte for byte."""
    kept = {}
    for level, grid in grids.items():
        try:
            with opened(grid.path) as handle, _openslide(slide.files) as other:
                same = True
                for number in grid.heaviest(2, whole=False):
                    row, column = divmod(number, grid.columns)
                    x, y = column * grid.tile_width, row * grid.tile_height
                    w, h = min(grid.tile_width, grid.width - x), min(grid.tile_height, grid.height - y)
                    there = _openslide_region(other, slide, level, (x, y, w, h), name=slide.path)
                    same = same and np.array_equal(grid.decode(handle, number)[:h, :w], there)
        except DataError:
            continue
        if same:
            kept[level] = grid
    return kept


def _plain(paths: tuple[Path, ...], page: Page) -> Slide:
    """A TIFF without tiles, or one OpenSlide does not know: RGB, 8 bits, held whole."""
    if page.samples not in {3, 4} or page.bits != 8:
        msg = (
            f"{paths[0].name}: expected an RGB image of 8 bits, found {page.samples} channels of {page.bits} bits; "
            "slides of fluorescence are not read"
        )
        raise DataError(msg)
    if page.width * page.height > LARGEST_PLAIN:
        msg = (
            f"{paths[0].name}: expected tiles or at most {LARGEST_PLAIN} pixels, found {page.width} x {page.height} "
            "without tiles OpenSlide reads; convert it: vips tiffsave --tile --pyramid --compression jpeg"
        )
        raise DataError(msg)
    return Slide(
        files=paths,
        vendor="tiff",
        sizes=((page.width, page.height),),
        downsamples=(1.0,),
        mpp=None,
        warnings=("a plain TIFF does not say its mpp reliably; give the option slide_mpp",),
    )


def _plain_pixels(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise _failed(path, error) from error


# --- DICOM -----------------------------------------------------------------------------------------------------------


def _dicom(paths: tuple[Path, ...], frames: str | None) -> Slide:
    images = dicom_slide.image_files(paths)
    try:
        return _by_openslide(images)
    except DataError as refusal:
        try:
            return _by_frames(images, frames) if dicom_slide.is_plain(images) else _by_wsidicom(images)
        except MedfuseError as error:
            error.add_note(f"OpenSlide refused it before: {refusal}")
            raise


def _by_frames(images: tuple[Path, ...], order: str | None) -> Slide:
    """JPEG frames of one file, read directly."""
    found = dicom_slide.frames_of(images[0], order=order)
    mpp, warnings = _mpp(*found.mpp)
    return Slide(
        files=images,
        vendor="dicom-frames",
        sizes=((found.grid.width, found.grid.height),),
        downsamples=(1.0,),
        mpp=mpp,
        grids={0: found.grid},
        properties=found.properties,
        warnings=(*found.warnings, *warnings),
    )


def _by_wsidicom(images: tuple[Path, ...]) -> Slide:
    """What wsidicom reads; its levels are opened again when pixels are wanted."""
    dicom_wsi.check(images)
    with dicom_wsi.levels_of(images) as levels:
        sizes = tuple((level.width, level.height) for level in levels)
        absent = sum(level.absent for level in levels)
    width, height = sizes[0]
    data, _ = dicom_slide.header(images[0])
    mpp, warnings = _mpp(*dicom_slide.spacing(data, width, height))
    if absent:
        warnings = (*warnings, f"{absent} tiles are not in the file (a sparse slide); they are read as white")
    return Slide(
        files=images,
        vendor=WSIDICOM,
        sizes=sizes,
        downsamples=tuple((width / w + height / h) / 2 for w, h in sizes),
        mpp=mpp,
        properties=dicom_slide.properties_of(data),
        warnings=warnings,
    )


# --- pixels ----------------------------------------------------------------------------------------------------------


def _openslide_region(
    other: Any,  # noqa: ANN401  # an OpenSlide object
    slide: Slide,
    level: int,
    box: tuple[int, int, int, int],
    *,
    name: Path,
) -> NDArray[np.uint8]:
    x, y, w, h = box
    scale = slide.downsamples[level]
    try:
        image = other.read_region((round(x * scale), round(y * scale)), level, (w, h))
    except Exception as error:
        raise _failed(name, error) from error
    pixels = np.asarray(image)
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    part = alpha[..., None].astype(np.uint16)
    return ((pixels[..., :3] * part + 255 * (255 - part) + 127) // 255).astype(np.uint8)


@dataclass
class Reader:
    """Pixels of an open slide; made by :func:`reading`. OpenSlide or wsidicom is opened when needed."""

    slide: Slide
    cache: TileCache
    stack: ExitStack
    handle: int = -1
    other: Any = None
    whole: NDArray[np.uint8] | None = None
    levels: list[dicom_wsi.FrameGrid] = field(default_factory=list)

    def region(self, level: int, box: tuple[int, int, int, int], *, scale: int = 1) -> NDArray[np.uint8]:
        """Pixels (h, w, 3) of a level from x, y; white outside.

        ``scale`` reduces by so much; x, y, w and h then count reduced pixels.

        Raises:
            DataError: pixels that cannot be decoded.
        """
        x, y, w, h = box
        out = np.empty((h, w, 3), dtype=np.uint8)
        self.fill(level, (x, y), out, scale=scale)
        return out

    def fill(self, level: int, place: tuple[int, int], out: NDArray[np.uint8], *, scale: int = 1) -> None:
        """The same into ``out``."""
        (x, y), (h, w) = place, out.shape[:2]
        grid = self.slide.grids.get(level)
        if grid is not None:
            cut(grid, self.handle, self.cache, place=place, out=out, scale=scale)
        elif scale > 1:
            big = self.region(level, (x * scale, y * scale, w * scale, h * scale))
            out[:] = reduced(big, scale)
        elif self.whole is not None:
            out[:] = 255
            part = self.whole[max(y, 0) : y + h, max(x, 0) : x + w]
            out[max(-y, 0) : max(-y, 0) + part.shape[0], max(-x, 0) : max(-x, 0) + part.shape[1]] = part
        elif self.slide.vendor == WSIDICOM:
            self.levels = self.levels or self.stack.enter_context(dicom_wsi.levels_of(self.slide.files))
            cut(self.levels[level], self.handle, self.cache, place=place, out=out)
        else:
            self.other = self.other or self.stack.enter_context(_openslide(self.slide.files))
            out[:] = _openslide_region(self.other, self.slide, level, (x, y, w, h), name=self.slide.path)


def reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Area means over ``factor`` x ``factor`` pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels


@contextmanager
def reading(slide: Slide, cache: TileCache | None = None) -> Iterator[Reader]:
    """A reader of pixels; files are closed after."""
    with ExitStack() as stack:
        reader = Reader(slide=slide, cache=cache or TileCache(), stack=stack)
        if slide.vendor == "tiff":
            reader.whole = _plain_pixels(slide.path)
        if slide.grids:
            reader.handle = stack.enter_context(opened(slide.path))
        yield reader
