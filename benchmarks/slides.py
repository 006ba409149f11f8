"""Tiles of slides beside OpenSlide and beside bare JPEG decoding, one thread, in one process.

Usage: python benchmarks/slides.py [--repeats 5] [--data ../shared/data] [--out FILE.json]
Slides: a synthetic one (JPEG 4:2:0 tiles of 256 pixels, shared tables, 0.25 µm per pixel, one level, so that no stored
level fits 0.5 µm) and CMU-1-Small-Region.svs (tiles of 240 pixels). Our tiles are checked against OpenSlide's before
anything is timed: byte for byte on the native grid and off it; at half size against the area mean, as error of 255.
Candidates take turns, our cache of decoded tiles is emptied before every turn, and ratios are of processor time. The
limit decodes every native tile that is touched once. Also: nuclei of the extractor ``tile`` against two masks.
Goals: P6-P8 of ../shared/performance.md.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
from _timing import extra_peak_mib, load, machine, ratios, round_robin
from PIL import Image
from scipy import ndimage

from medfuse.extractors.tile import TileFeatures
from medfuse.loaders import slide
from medfuse.loaders._slide_files import open_slide
from medfuse.loaders._slide_tiles import Fetch
from medfuse.loaders._slide_writer import tissue_like
from medfuse.loaders._tiles import TileCache, opened
from medfuse.sample import RawSample


def synthetic(path: Path, width: int = 8192, height: int = 4096) -> None:
    """Tissue everywhere: one texture of 2,048 pixels, repeated."""
    texture = tissue_like(2048, 2048, seed=0, margin=-0.5)
    wide = np.tile(texture, (2, 2, 1))

    def box(x: int, y: int, w: int, h: int) -> np.ndarray:
        return wide[y % 2048 : y % 2048 + h, x % 2048 : x % 2048 + w]

    slide.write_slide(path, box, mpp=0.25, size=(width, height), levels=1, quality=80)


def with_openslide(path: Path, raw: RawSample, *, wide: int, level: int = 0) -> np.ndarray:
    """The same tiles through OpenSlide and PIL."""
    size = raw.shape[0]
    out = np.empty((len(raw), *raw.shape), np.uint8)
    with openslide.OpenSlide(str(path)) as other:
        for k, (x, y) in enumerate(raw.position):
            image = other.read_region((int(x), int(y)), level, (wide, wide)).convert("RGB")
            out[k] = image if wide == size else image.resize((size, size), Image.Resampling.BILINEAR)
    return out


def ours(raw: RawSample) -> None:
    raw.fetch.cache = TileCache(limit=raw.fetch.cache.limit)
    for _ in raw.batches(64):
        pass


def streams(path: Path, raw: RawSample) -> list[bytes]:
    """JPEG streams, in memory, of the native tiles that a sample's tiles touch."""
    grid = open_slide([path]).grids[0]
    side = raw.facts["tile_level0"] - 1
    left, top = raw.position[:, 0], raw.position[:, 1]
    touched = set()
    for x0, y0, x1, y1 in zip(left, top, left + side, top + side, strict=True):
        for row in range(int(y0 // grid.tile_height), int(y1 // grid.tile_height) + 1):
            touched |= {
                row * grid.columns + column
                for column in range(int(x0 // grid.tile_width), int(x1 // grid.tile_width) + 1)
            }
    with opened(path) as handle:
        return [grid.head + os.pread(handle, int(grid.counts[k]), int(grid.offsets[k]))[2:] for k in sorted(touched)]


def inside(path: Path, options: dict[str, object]) -> RawSample:
    """Our sample, of tiles wholly on the slide (OpenSlide is black beyond it, we are white)."""
    raw = slide.read([path], {"tissue": 0.01, **options})
    width, height = raw.facts["slide_size"]
    side = raw.facts["tile_level0"]
    rows = np.flatnonzero((raw.position[:, 0] + side <= width) & (raw.position[:, 1] + side <= height))
    fetch = Fetch(raw.fetch.slide, raw.fetch.plan, raw.fetch.place[rows], raw.shape[0])
    return dataclasses.replace(raw, position=raw.position[rows], fetch=fetch)


def timed(path: Path, raw: RawSample, *, wide: int, repeats: int, exact: bool) -> dict[str, object]:
    found = streams(path, raw)
    side = open_slide([path]).grids[0].tile_width // (1 if exact else 2)

    def limit() -> None:
        for stream in found:
            if exact:
                simplejpeg.decode_jpeg(stream, "RGB")
            else:
                simplejpeg.decode_jpeg(stream, "RGB", min_height=side, min_width=side, min_factor=2)

    theirs = with_openslide(path, raw, wide=wide)
    mine = np.concatenate(list(raw.batches(64)))
    if exact:
        assert np.array_equal(mine, theirs), "our tiles differ from OpenSlide's"
        error = {"differs_from_openslide": 0}
    else:
        times = wide // raw.shape[0]
        apart, pil = [], []
        with openslide.OpenSlide(str(path)) as other:
            for k, (x, y) in enumerate(raw.position):
                full = np.asarray(other.read_region((int(x), int(y)), 0, (wide, wide)).convert("RGB"), np.float32)
                mean = full.reshape(raw.shape[0], times, raw.shape[1], times, 3).mean(axis=(1, 3))
                apart.append(np.abs(mine[k] - mean))
                pil.append(np.abs(theirs[k] - mean).mean())
        worst = np.array([a.max() for a in apart])
        error = {
            "mean_of_255_from_area_mean": round(float(np.mean([a.mean() for a in apart])), 3),
            "p99.9_of_255": round(float(np.quantile(np.concatenate([a.ravel()[::7] for a in apart]), 0.999)), 2),
            "max_of_255": round(float(worst.max()), 1),
            "PIL_bilinear_mean_of_255_from_area_mean": round(float(np.mean(pil)), 3),
        }
    calls = {
        "medfuse": lambda: ours(raw),
        "openslide read_region" + (" + PIL bilinear" if wide != raw.shape[0] else ""): lambda: with_openslide(
            path, raw, wide=wide
        ),
        "limit: decode every native tile once, from memory": limit,
    }
    times_of = round_robin(calls, repeats=repeats, budget=90)
    return {
        "tiles": len(raw),
        "native_tiles_touched": len(found),
        "native_tiles_per_s_of_the_limit": round(
            len(found) / times_of["limit: decode every native tile once, from memory"]["cpu_ms"] * 1e3
        ),
        "read_by": raw.facts["read_by"],
        "dct": raw.facts["dct"],
        "error": error,
        "tiles_per_s": {name: round(len(raw) / t["cpu_ms"] * 1e3) for name, t in times_of.items()},
        "times": times_of,
        "times_of_ours": ratios(times_of, "medfuse"),
        "extra_peak_mib": extra_peak_mib(lambda: ours(raw)),
    }


def tiles(path: Path, mpp: float, repeats: int) -> dict[str, object]:
    side = open_slide([path]).grids[0].tile_width
    native = inside(path, {"mpp": mpp, "tile": side})
    off = inside(path, {"mpp": mpp, "tile": 224})
    coarse = inside(path, {"mpp": 2 * mpp, "tile": 224})
    return {
        "native_tile": side,
        "mean_bytes_of_tile": round(float(np.mean([len(s) for s in streams(path, native)]))),
        f"P6 {side} px on the native grid": timed(path, native, wide=side, repeats=repeats, exact=True),
        "P7 224 px off the grid": timed(path, off, wide=224, repeats=repeats, exact=True),
        f"P8 224 px at {2 * mpp:g} from {mpp:g}": timed(path, coarse, wide=448, repeats=repeats, exact=False),
    }


def nuclei(data: Path) -> dict[str, object]:
    """Density of nuclei per tile of 256 pixels against the masks of two glioma regions (0.5 µm per pixel)."""
    extractor = TileFeatures()
    names = extractor.names(None)
    found, known, regions = [], [], []
    for image, mask in zip(sorted((data / "imgs").glob("*.png")), sorted((data / "segs").glob("*.png")), strict=True):
        pixels = np.asarray(Image.open(image))[..., :3].reshape(4, 256, 4, 256, 3).swapaxes(1, 2)
        features = extractor(np.ascontiguousarray(pixels.reshape(16, 256, 256, 3)), {"mpp": 0.5})
        labels, count = ndimage.label(np.asarray(Image.open(mask)) > 0)
        area = np.bincount(labels.ravel())[1:]
        middle = np.array(ndimage.center_of_mass(labels > 0, labels, range(1, count + 1)))[area > 30]
        truth = np.zeros((4, 4))
        np.add.at(truth, tuple((middle // 256).astype(int).T), 1)
        per_mm2 = truth.ravel() / 0.128**2
        ours_of = features[:, names.index("nuclei_per_mm2")]
        regions.append(
            {
                "per_mm2": round(float(ours_of.mean())),
                "per_mm2_of_mask": round(float(per_mm2.mean())),
                "correlation_of_16_tiles": round(float(np.corrcoef(ours_of, per_mm2)[0, 1]), 3),
                "radius_um": round(float(features[:, names.index("nuclear_radius_mean")].mean()), 2),
                "radius_um_of_mask": round(float(np.sqrt(np.median(area[area > 30]) / np.pi) * 0.5), 2),
            }
        )
        found.append(ours_of)
        known.append(per_mm2)
    a, b = np.concatenate(found), np.concatenate(known)
    return {
        "regions": regions,
        "correlation_of_32_tiles": round(float(np.corrcoef(a, b)[0, 1]), 3),
        "ratio": round(float(a.mean() / b.mean()), 3),
        "note": "the least contrast of a nucleus (0.09) was chosen on these two regions; the masks miss pale nuclei",
    }


def extraction(repeats: int) -> dict[str, object]:
    texture = tissue_like(1024, 1024, seed=1, margin=-0.5)
    some = np.ascontiguousarray(texture.reshape(4, 256, 4, 256, 3).swapaxes(1, 2).reshape(16, 256, 256, 3))
    plain, bank = TileFeatures(), TileFeatures(bank=32)
    times = round_robin(
        {"tile": lambda: plain(some, {"mpp": 0.5}), "tile, bank 32": lambda: bank(some, {"mpp": 0.5})},
        repeats=repeats,
        calls=3,
    )
    return {name: {"tiles_per_s": round(16 / t["cpu_ms"] * 1e3), **t} for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {
        "machine": machine("openslide-python", "simplejpeg", "numpy", "pillow"),
        "openslide": openslide.__library_version__,
        "load_before": load(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.tif"
        synthetic(path, *((1536, 1280) if options.small else ()))
        result["synthetic"] = {"mib": round(path.stat().st_size / 2**20, 1), **tiles(path, 0.25, options.repeats)}
    cmu = options.data / "wsi" / "CMU-1-Small-Region.svs"
    if cmu.exists():
        result["CMU-1-Small-Region"] = tiles(cmu, 0.499, options.repeats)
        result["nuclei"] = nuclei(options.data / "wsi" / "tcga_roi_1024")
    result["extractor"] = extraction(options.repeats)
    result["load_after"] = load()
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
