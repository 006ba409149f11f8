"""Whole slides as tiles of tissue: OpenSlide's formats, pyramidal and plain TIFF, DICOM whole slide images."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.limits import read_head
from medfuse.loaders._dicom_slide import is_slide, series_of
from medfuse.loaders._slide_files import SANE_MPP, Slide, open_slide, reading, reduced
from medfuse.loaders._slide_writer import tissue_like, write_features, write_slide
from medfuse.loaders._tiff import MARKS
from medfuse.loaders._tiles import DCT_MAX, DCT_MEAN, SCALES, TileCache, dct_error
from medfuse.loaders._tissue import Overview, overview, share
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import RawSample

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["describe", "group", "identifying", "picture", "read", "recognise", "tiles_of", "write_example"]
__all__ += ["write_features", "write_slide"]

ITEM = "tile"
OPTIONS = ("mpp", "tile", "slide_mpp", "tissue", "pen", "resample", "frames")
SAME = 0.02  # a level whose mpp is this near to the wanted one is used as it is
_COMPANIONS = (".mrxs", ".vms", ".vmu")  # an index with its parts in other files, known by name
_STRIP = 8192  # level pixels: tiles are ordered in strips this wide, so that few decoded tiles serve many
_MOST = 2_000_000  # tiles of a grid

_NAMES = {
    "date": re.compile(r"date|time", re.IGNORECASE),
    "id": re.compile(
        r"barcode|filename|imageid|slide.?(name|id)|patient|accession|case|specimen|uid|title|scanscope|serial|"
        r"container|study", re.IGNORECASE,
    ),
    "name": re.compile(r"user|operator|artist|physician|\bauthor|hostcomputer|institution", re.IGNORECASE),
    "free text": re.compile(r"comment|description|notes?$|documentname", re.IGNORECASE),
}  # fmt: skip
_VALUES = {
    "date": re.compile(r"\b(19|20)\d{2}[-./]?[01]\d[-./]?[0-3]\d\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b"),
    "id": re.compile(r"\bTCGA-\w{2}-\w{4}|\b[A-Z]{1,3}\d{2}-\d{4,}\b"),
}
_HARMLESS = re.compile(
    r"^openslide\.(?!comment|barcode)|^tiff\.(ResolutionUnit|XResolution|YResolution)$|quickhash|(Class|Scheme)UID$|"
    r"Code(Value|Meaning)$|Designator$|Dimension|SpecimenLabelInImage$|Time(Base|out)|Exposure ?Time$"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a slide is cut into tiles.

    Attributes:
        mpp: µm per pixel of the tiles; a level within 2 % of it is taken as it is.
        tile: width and height, pixels.
        slide_mpp: µm per pixel of level 0, for slides that do not say it.
        tissue: least fraction of a tile that is tissue.
        pen: largest fraction of a tile that is ink.
        resample: ``dct`` halves (quarters ...) JPEG tiles while they are decoded, where that stays within a mean of
            1.0 and 40 at most, of 255, of the area mean (checked per slide); ``area`` always takes area means.
        frames: order of a DICOM slide's frames where the file does not say it, ``rows`` or ``columns``.
    """

    mpp: float = 0.5
    tile: int = 256
    slide_mpp: float | None = None
    tissue: float = 0.25
    pen: float = 0.25
    resample: Literal["dct", "area"] = "dct"
    frames: Literal["rows", "columns"] | None = None


def _number(options: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = options.get(name)
    if value is None and name == "slide_mpp":
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        msg = f"options of the loader slide: expected {name} between {low} and {high}, found {value!r}"
        raise ConfigError(msg)


def _options(options: Mapping[str, Any]) -> Options:
    """Options of a card.

    Raises:
        ConfigError: an unknown one, or a value out of range.
    """
    unknown = next((key for key in options if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"options of the loader slide: unknown {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)
    ranges = {"mpp": SANE_MPP, "slide_mpp": SANE_MPP, "tile": (16, 4096), "tissue": (0, 1), "pen": (0, 1)}
    for name, (low, high) in ranges.items():
        if name in options:
            _number(options, name, low, high)
    for name, known in (("resample", ("dct", "area")), ("frames", ("rows", "columns", None))):
        if name in options and options[name] not in known:
            msg = f"options of the loader slide: expected {name} {' or '.join(map(str, known))}, found another"
            raise ConfigError(msg)
    if options.get("tile", 256) != int(options.get("tile", 256)):
        msg = f"options of the loader slide: expected whole pixels of a tile, found {options['tile']!r}"
        raise ConfigError(msg)
    return Options(**options)


# --- which file it is ------------------------------------------------------------------------------------------------


def recognise(head: Head) -> bool:
    """A TIFF file, a DICOM file of the class of whole slides, or one that OpenSlide knows by its companions."""
    if head.start[:4] in MARKS or is_slide(head.start):
        return True
    if head.path.suffix.lower() not in (*_COMPANIONS, ".czi", ".svslide"):
        return False
    try:
        import openslide
    except (ImportError, OSError):
        return True  # reading then says what to install
    return openslide.OpenSlide.detect_format(str(head.path)) is not None


def group(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Files of one slide: instances of a DICOM series; an index with the files of the folder of its name."""
    series: dict[str, list[Path]] = {}
    rest: list[Path] = []
    for path in files:
        start = read_head(path)
        if is_slide(start):
            series.setdefault(_series(path), []).append(path)
        else:
            rest.append(path)
    found = [tuple(paths) for paths in series.values()]
    indices = [path for path in rest if path.suffix.lower() in _COMPANIONS]
    taken: set[Path] = set()
    for path in indices:
        beside = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path.parent
        within = [p for p in sorted(beside.iterdir()) if p.is_file() and not p.is_symlink()] if beside.is_dir() else []
        parts = [p for p in within if p != path and p not in indices]
        taken |= {path, *parts}
        found.append((path, *parts))
    return sorted([*found, *((path,) for path in rest if path not in taken)])


def _series(path: Path) -> str:
    try:
        return series_of(path) or str(path)
    except DataError:
        return str(path)  # alone; reading it says what is wrong


def describe(files: Sequence[Path]) -> Description:
    """Levels, µm per pixel, how it is read and which further images it holds; no pixel is decoded but two tiles."""
    slide = open_slide(files, frames="rows")
    holds: dict[str, Any] = {
        "format": slide.vendor,
        "levels": [list(size) for size in slide.sizes],
        "mpp": None if slide.mpp is None else round(slide.mpp, 5),
        "read_by": "JPEG tiles" if slide.grids else ("PIL" if slide.vendor == "tiff" else "OpenSlide"),
        "associated_images": list(slide.associated),
    }
    said = tuple(w.replace("option frames: rows was believed", "give the option frames") for w in slide.warnings)
    return Description(kind="whole slide", holds=holds, warnings=said)


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Label and macro images, and properties that look like names, numbers, dates or free text; no value of them."""
    slide = open_slide(files, frames="rows")
    found = [
        Identifying(where=f"associated image {name}", kind="image")
        for name in slide.associated
        if name.lower() not in {"thumbnail"}
    ]
    for key, value in sorted(slide.properties.items()):
        if _HARMLESS.search(key) or not value.strip():
            continue
        kind = next((k for k, p in _NAMES.items() if p.search(key)), None)
        kind = kind or next((k for k, p in _VALUES.items() if p.search(value)), None)
        if kind:
            found.append(Identifying(where=f"property {key}", kind=kind))
    return found


# --- which tiles there are -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where tiles are read: ``source`` reduced pixels of ``level``, each ``scale`` pixels wide, per tile.

    Attributes:
        level, scale, source: as above; ``dct`` says that the decoder reduces by ``scale``.
        side: of a tile, level-0 pixels.
        mpp: of the tiles as they come out.
    """

    level: int
    scale: int
    source: int
    side: float
    mpp: float
    dct: bool


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tiles of a slide, in strips of 8,192 level pixels and row by row within them.

    Attributes:
        slide, plan, overview: what they come from.
        position: (T, 2) x, y of the upper left corner, level-0 pixels.
        place: (T, 2) the same in reduced pixels of the plan's level.
        tissue, pen: (T,) fractions.
        kept: (T,) enough tissue and not too much ink.
    """

    slide: Slide
    plan: Plan
    overview: Overview
    position: NDArray[np.float32]
    place: NDArray[np.int64]
    tissue: NDArray[np.float64]
    pen: NDArray[np.float64]
    kept: NDArray[np.bool_]


def _mpp_of(slide: Slide, options: Options) -> tuple[float, str]:
    name = slide.path.name
    if slide.mpp is None and options.slide_mpp is None:
        why = next((w for w in slide.warnings if "slide_mpp" in w), "give the option slide_mpp")
        msg = f"{name}: expected µm per pixel, found none: {why}"
        raise DataError(msg)
    if slide.mpp is not None and options.slide_mpp is not None and abs(slide.mpp / options.slide_mpp - 1) > 0.05:
        msg = (
            f"{name}: expected slide_mpp {options.slide_mpp} of the card, found {slide.mpp:.4g} in the file; "
            "remove the option, or leave out this slide"
        )
        raise DataError(msg)
    if slide.mpp is not None:
        return slide.mpp, "file"
    return float(options.slide_mpp or 0), "card"


def plan_of(slide: Slide, mpp: float, options: Options) -> Plan:
    """The coarsest level that is at least as fine as wanted, and how its pixels become tiles.

    Raises:
        DataError: the slide is coarser than wanted.
    """
    factor = options.mpp / mpp
    if factor < 1 - SAME:
        msg = f"{slide.path.name}: expected at most {options.mpp} µm per pixel, found {mpp:.4g}; set mpp: {mpp:.3g}"
        raise DataError(msg)
    able = [k for k, d in enumerate(slide.downsamples) if d <= factor * (1 + SAME)]
    level = max(able, key=lambda k: slide.downsamples[k])
    down = slide.downsamples[level]
    ratio = factor / down
    scale = max(1, round(ratio))
    if abs(ratio / scale - 1) > SAME:
        source = max(1, round(options.tile * ratio))
        return Plan(
            level=level, scale=1, source=source, side=source * down, mpp=mpp * down * source / options.tile, dct=False
        )
    dct = options.resample == "dct" and scale in SCALES and level in slide.grids
    if dct:
        grid = slide.grids[level]
        mean, largest = dct_error(grid, scale)
        dct = mean <= DCT_MEAN and largest <= DCT_MAX
    return Plan(
        level=level, scale=scale, source=options.tile, side=options.tile * scale * down, mpp=mpp * down * scale, dct=dct
    )


def _places(slide: Slide, plan: Plan) -> NDArray[np.int64]:
    """Upper left corners in reduced pixels, strip by strip; tiles at the right and lower edge reach beyond it."""
    step = plan.source * plan.scale
    width, height = slide.sizes[plan.level]
    columns, rows = math.ceil(width / step), math.ceil(height / step)
    if columns * rows > _MOST:
        msg = f"{slide.path.name}: expected at most {_MOST} tiles, found {columns * rows}; use larger tiles or mpp"
        raise DataError(msg)
    y, x = np.mgrid[:rows, :columns]
    strip = x // max(1, _STRIP // step)
    order = np.lexsort((x.ravel(), y.ravel(), strip.ravel()))
    return np.stack([x.ravel()[order], y.ravel()[order]], axis=1).astype(np.int64) * plan.source


def tiles_of(files: Sequence[Path], options: Mapping[str, Any]) -> Tiles:
    """All tiles of a slide with their fractions of tissue and ink; see :func:`read`."""
    chosen = _options(options)
    slide = open_slide(files, frames=chosen.frames)
    mpp, _ = _mpp_of(slide, chosen)
    plan = plan_of(slide, mpp, chosen)
    place = _places(slide, plan)
    with reading(slide) as reader:
        seen = overview(reader, mpp)
    position = place * (plan.side / plan.source)
    left, top, side = position[:, 0] / seen.step, position[:, 1] / seen.step, plan.side / seen.step
    tissue, pen = share(seen.tissue, left, top, side), share(seen.pen, left, top, side)
    return Tiles(
        slide=slide,
        plan=plan,
        overview=seen,
        position=position.astype(np.float32),
        place=place,
        tissue=tissue,
        pen=pen,
        kept=(tissue >= max(chosen.tissue, 1e-9)) & (pen <= chosen.pen),
    )


# --- reading ---------------------------------------------------------------------------------------------------------


class _Fetch:
    """Tiles by number; files are opened when asked and closed after, decoded neighbours are kept (48 MiB at most)."""

    def __init__(self, slide: Slide, plan: Plan, place: NDArray[np.int64], size: int) -> None:
        self.slide, self.plan, self.place, self.size = slide, plan, place, size
        self.cache = TileCache()

    def __call__(self, rows: Sequence[int]) -> NDArray[Any]:
        from PIL import Image

        plan, size = self.plan, self.size
        out = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        with reading(self.slide, self.cache) as reader:
            for k, row in enumerate(rows):
                x, y = map(int, self.place[row])
                if plan.dct or (plan.scale == 1 and plan.source == size):
                    reader.fill(plan.level, (x, y), out[k], scale=plan.scale)
                    continue
                wide = plan.source * plan.scale
                part = reader.region(plan.level, (x * plan.scale, y * plan.scale, wide, wide))
                if plan.scale > 1:
                    out[k] = reduced(part, plan.scale)
                else:
                    out[k] = Image.fromarray(part).resize((size, size), Image.Resampling.BILINEAR)
        return out


def sharpness(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian of the mean channel of each tile: low where it is out of focus or empty."""
    grey = tiles.mean(axis=3)
    laplacian = (
        grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
    )
    return np.asarray(laplacian.var(axis=(1, 2)))


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """Tiles of tissue of one slide; see :class:`Options` and :mod:`medfuse.loaders.base`.

    Positions are upper left corners in level-0 pixels. The grid begins at 0, 0 and covers the slide; what a tile shows
    beyond the slide's edge is white. Memory does not grow with the slide.

    Raises:
        ConfigError: an option that does not exist or is out of range.
        DataError: damage, µm per pixel that nobody states, a slide coarser than wanted, or no tissue.
    """
    chosen = _options(options)
    tiles = tiles_of(files, options)
    slide, plan = tiles.slide, tiles.plan
    mpp, said = _mpp_of(slide, chosen)
    if not tiles.kept.any():
        msg = (
            f"{slide.path.name}: expected tiles with at least {chosen.tissue:.0%} of tissue, found none of "
            f"{len(tiles.kept)} (most {tiles.tissue.max():.0%}, ink {tiles.overview.pen.mean():.0%} of the slide); "
            "is it blank? else lower tissue, raise pen, or use smaller tiles"
        )
        raise DataError(msg)
    fetch = _Fetch(slide, plan, tiles.place[tiles.kept], chosen.tile)
    count = int(tiles.kept.sum())
    some = sharpness(fetch(sorted(set(np.linspace(0, count - 1, 9).astype(int).tolist()))))
    facts = {
        "mpp": round(plan.mpp, 6),
        "slide_mpp": round(mpp, 6),
        "mpp_from": said,
        "slide_size": list(slide.sizes[0]),
        "level": plan.level,
        "tile_level0": round(plan.side, 3),
        "read_by": "JPEG tiles" if plan.level in slide.grids else slide.vendor,
        "reduced_by": plan.scale if plan.source == chosen.tile else round(plan.source / chosen.tile, 4),
        "dct": plan.dct,
        "tiles_of_grid": len(tiles.kept),
        "tissue": round(float(tiles.overview.tissue.mean()), 4),
        "pen": round(float(tiles.overview.pen.mean()), 4),
        "pen_tiles": int(((tiles.tissue >= chosen.tissue) & (tiles.pen > chosen.pen)).sum()),
        "sharpness": round(float(np.median(some)), 2),
    }
    warnings = list(slide.warnings) if said == "file" else [w for w in slide.warnings if "slide_mpp" not in w]
    if facts["pen_tiles"]:
        warnings.append(f"{facts['pen_tiles']} tiles of tissue were left out because of pen marks")
    return RawSample(
        item="tile",
        shape=(chosen.tile, chosen.tile, 3),
        position=tiles.position[tiles.kept],
        unit="level-0 pixels",
        fetch=fetch,
        facts=facts,
        warnings=tuple(warnings),
    )


def picture(files: Sequence[Path], options: Mapping[str, Any]) -> "Image":
    """The overview with the tiles that are read (green), those left out for ink (red), and ink in yellow."""
    from PIL import Image, ImageDraw

    tiles = tiles_of(files, options)
    pixels = tiles.overview.pixels.copy()
    pixels[tiles.overview.pen] = (255, 220, 0)
    times = max(1, 768 // max(pixels.shape[:2]))
    image = Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1))
    draw = ImageDraw.Draw(image)
    zoom = times / tiles.overview.step
    for (x, y), kept, pen in zip(tiles.position, tiles.kept, tiles.pen, strict=True):
        if kept or pen > 0:
            box = [x * zoom, y * zoom, (x + tiles.plan.side) * zoom - 1, (y + tiles.plan.side) * zoom - 1]
            draw.rectangle(box, outline=(0, 140, 0) if kept else (200, 0, 0))
    return image


def write_example(folder: Path) -> ModalityCard:
    """Two small pyramids of tissue-like texture at 0.5 µm per pixel, and the card that reads them."""
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    for patient in ("001", "002"):
        write_slide(folder / "slides" / f"{patient}.tif", tissue_like(640, 512, seed=int(patient)), mpp=0.5, levels=2)
    options = {"mpp": 0.5, "tile": 128}
    return ModalityCard(loader="slide", path="slides/{patient_id}.tif", options=options)
