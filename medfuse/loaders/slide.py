"""Whole slides as tiles of tissue: OpenSlide's formats, pyramidal and plain TIFF, DICOM whole slide images."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfuse.config import ModalityCard
from medfuse.errors import DataError
from medfuse.limits import read_head
from medfuse.loaders._dicom_slide import is_slide, series_of
from medfuse.loaders._slide_files import WSIDICOM, open_slide
from medfuse.loaders._slide_tiles import Fetch, checked, mpp_of, sharpness, tiles_of
from medfuse.loaders._slide_writer import tissue_like, write_features, write_slide
from medfuse.loaders._tiff import MARKS
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import RawSample

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["describe", "group", "identifying", "picture", "read", "recognise", "tiles_of", "write_example"]
__all__ += ["write_features", "write_slide"]

ITEM = "tile"
_COMPANIONS = (".mrxs", ".vms", ".vmu")  # an index with its parts in other files, known by name

_NAMES = {
    "name": re.compile(r"user|operator|artist|physician|author|hostcomputer|institution|person|patientname", re.I),
    "date": re.compile(r"date|time", re.I),
    "id": re.compile(
        r"barcode|filename|imageid|slide.?(name|id)|patient|accession|case|specimen|uid|title|scanscope|serial|"
        r"container|study", re.I,
    ),
    "free text": re.compile(r"comment|description|notes?$|documentname", re.I),
}  # fmt: skip
_VALUES = {
    "date": re.compile(r"\b(19|20)\d{2}[-./]?[01]\d[-./]?[0-3]\d\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b"),
    "id": re.compile(r"\bTCGA-\w{2}-\w{4}|\b[A-Z]{1,3}\d{2}-\d{4,}\b"),
}
_HARMLESS = re.compile(
    r"^openslide\.(?!comment|barcode)|^tiff\.(ResolutionUnit|XResolution|YResolution)$|quickhash|(Class|Scheme)UID$|"
    r"Code(Value|Meaning)$|Designator$|Dimension|SpecimenLabelInImage$|Time(Base|out)|Exposure ?Time$"
)


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
        "read_by": "JPEG tiles" if slide.grids else {"tiff": "PIL", WSIDICOM: WSIDICOM}.get(slide.vendor, "OpenSlide"),
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


# --- reading ---------------------------------------------------------------------------------------------------------


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """Tiles of tissue of one slide; see :class:`medfuse.loaders._slide_tiles.Options` and :mod:`medfuse.loaders.base`.

    Positions are upper left corners in level-0 pixels. The grid begins at 0, 0 and covers the slide; what a tile shows
    beyond the slide's edge is white. Memory does not grow with the slide.

    Raises:
        ConfigError: an option that does not exist or is out of range.
        DataError: damage, µm per pixel that nobody states, a slide coarser than wanted, or no tissue.
    """
    chosen = checked(options)
    tiles = tiles_of(files, options)
    slide, plan = tiles.slide, tiles.plan
    mpp, said = mpp_of(slide, chosen)
    if not tiles.kept.any():
        msg = (
            f"{slide.path.name}: expected tiles with at least {chosen.tissue:.0%} of tissue, found none of "
            f"{len(tiles.kept)} (most {tiles.tissue.max():.0%}, ink {tiles.overview.pen.mean():.0%} of the slide); "
            "is it blank? else lower tissue, raise pen, or use smaller tiles"
        )
        raise DataError(msg)
    fetch = Fetch(slide, plan, tiles.place[tiles.kept], chosen.tile)
    count = int(tiles.kept.sum())
    some = sharpness(fetch(sorted(set(np.linspace(0, count - 1, 9).astype(int).tolist()))))
    facts = {
        "mpp": round(plan.mpp, 6),
        "slide_mpp": round(mpp, 6),
        "mpp_from": said,
        "slide_size": list(slide.sizes[0]),
        "glass": list(tiles.overview.glass),
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
