"""Which tiles a slide is cut into, and reading them: options, plan of levels, grid with its tissue and ink."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError, nearest
from medfuse.loaders import _tiles
from medfuse.loaders._slide_files import SANE_MPP, Slide, open_slide, reading, reduced
from medfuse.loaders._tiles import DCT_MAX, DCT_MEAN, SCALES, TileCache, dct_error
from medfuse.loaders._tissue import Overview, overview, share

OPTIONS = ("mpp", "tile", "slide_mpp", "tissue", "pen", "resample", "frames")
SAME = 0.02  # a level whose mpp is this near to the wanted one is used as it is
_STRIP = 4096  # level pixels: tiles are ordered in strips this wide, so that few decoded tiles serve many
_MOST = 2_000_000  # tiles of a grid


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
            1.0 and 32 at most, of 255, of the area mean (checked per slide); ``area`` always takes area means.
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


def checked(options: Mapping[str, Any]) -> Options:
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
    """Tiles of a slide, in strips of 4,096 level pixels and row by row within them.

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


def mpp_of(slide: Slide, options: Options) -> tuple[float, str]:
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
    chosen = checked(options)
    slide = open_slide(files, frames=chosen.frames)
    mpp, _ = mpp_of(slide, chosen)
    plan = plan_of(slide, mpp, chosen)
    place = _places(slide, plan)
    with reading(slide) as reader:
        seen = overview(reader, mpp)
    position = place.astype(np.float64) * (plan.side / plan.source)
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


def _neighbours(slide: Slide, plan: Plan) -> int:
    """Bytes of the decoded native tiles that one row of tiles in a strip touches: what the next row can use again.

    More would be fresh memory, which costs as much as copying out of it.
    """
    grid = slide.grids.get(plan.level)
    if grid is None:
        return _tiles.CACHE
    step, scale = plan.source * plan.scale, plan.scale if plan.dct else 1
    columns = min(grid.columns, math.ceil(max(step, _STRIP) / grid.tile_width) + 2)
    rows = min(grid.rows, math.ceil(step / grid.tile_height) + 1)
    return min(_tiles.CACHE, columns * rows * (grid.tile_width // scale) * (grid.tile_height // scale) * 3)


class Fetch:
    """Tiles by number; files are opened when asked and closed after, decoded neighbours are kept (32 MiB at most)."""

    def __init__(self, slide: Slide, plan: Plan, place: NDArray[np.int64], size: int) -> None:
        self.slide, self.plan, self.place, self.size = slide, plan, place, size
        self.cache = TileCache(limit=_neighbours(slide, plan))

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
                    out[k] = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BILINEAR))
        return out


def sharpness(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian of the mean channel of each tile: low where it is out of focus or empty."""
    grey = tiles.mean(axis=3)
    laplacian = (
        grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
    )
    return np.asarray(laplacian.var(axis=(1, 2)))
