"""Where tissue is: an overview of the slide at about 8 µm per pixel, ink and glass apart, and the tiles worth reading.

Everything is judged by optical density relative to the slide's own glass, od = -ln((I + 1) / (I0 + 1)) per channel
(Beer and Lambert; Ruifrok and Johnston 2001, eq. 1): glass has none, grey dirt has it alike in all channels, stains in
some more than in others. Tissue is where the channels differ by more than Otsu's threshold of that difference, which
is kept between bounds so that a slide of nothing but tissue, or a pale one, or an empty one is not split at noise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfuse.loaders._slide_files import Reader, reduced

OVERVIEW_MPP = 8.0
_LONGEST = 3072  # pixels of an overview
_BLOCK = 2048  # pixels of a level that are read at once
_PALEST, _SAFEST = 0.03, 0.09  # bounds of the threshold, difference of optical densities
_SPECK, _HOLE, _STROKE = 2_500.0, 10_000.0, 20_000.0  # µm²: least tissue, largest hole that is filled, least ink


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A slide at low magnification.

    Attributes:
        pixels: (h, w, 3) uint8.
        step: level-0 pixels of one overview pixel.
        tissue, pen: (h, w) masks; no pixel is both.
        glass: (3,) what light without tissue looks like.
    """

    pixels: NDArray[np.uint8]
    step: float
    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    glass: tuple[float, float, float]


def overview(reader: Reader, mpp: float) -> Overview:
    """Overview and masks, from the coarsest level that is fine enough; read in blocks, so memory stays flat.

    Args:
        reader: an open slide.
        mpp: µm per pixel of level 0.

    Raises:
        DataError: pixels that cannot be decoded.
    """
    slide = reader.slide
    wanted = max(OVERVIEW_MPP / mpp, max(slide.sizes[0]) / _LONGEST, 1.0)
    level = max((k for k, d in enumerate(slide.downsamples) if d <= wanted), key=lambda k: slide.downsamples[k])
    times = max(1, int(wanted / slide.downsamples[level]))
    scale = max(s for s in (8, 4, 2, 1) if s <= times) if level in slide.grids else 1
    times = times // scale * scale
    width, height = slide.sizes[level]
    out = np.empty((-(-height // times), -(-width // times), 3), dtype=np.uint8)
    block = max(_BLOCK // times, 1)  # overview pixels
    for top in range(0, len(out), block):
        for left in range(0, out.shape[1], block):
            h, w = min(block, len(out) - top), min(block, out.shape[1] - left)
            fine = times // scale
            part = reader.region(level, (left * fine, top * fine, w * fine, h * fine), scale=scale)
            out[top : top + h, left : left + w] = reduced(part, fine)
    step = times * slide.downsamples[level]
    tissue, pen = masks(out, step * mpp)
    return Overview(pixels=out, step=step, tissue=tissue, pen=pen, glass=glass_of(out))


def glass_of(pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Median of what is bright and grey; 245 where less than a hundredth of the slide is."""
    bright = pixels[(pixels.min(axis=2) >= 200) & (np.ptp(pixels, axis=2) <= 20)]
    if len(bright) <= 0.01 * pixels[..., 0].size:
        return (245.0, 245.0, 245.0)
    r, g, b = np.maximum(np.median(bright, axis=0), 220.0)
    return (float(r), float(g), float(b))


def densities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density (h, w, 3) relative to the glass."""
    glass = glass_of(pixels)
    out = np.empty(pixels.shape, dtype=np.float32)
    for k in range(3):
        table = np.maximum(-np.log((np.arange(256) + 1.0) / (glass[k] + 1.0)), 0)
        out[..., k] = table.astype(np.float32)[pixels[..., k]]
    return out


def otsu(values: NDArray[np.float32], *, bins: int = 256) -> float:
    """Threshold that splits values into two classes of largest between-class variance (Otsu 1979, eq. 18)."""
    count, edges = np.histogram(values, bins=bins)
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(count)
    mass = np.cumsum(count * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / below[-1] - mass) ** 2 / (below.astype(float) * above)
    return float(edges[1:][np.argmax(np.nan_to_num(between, posinf=0))])


def masks(pixels: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tissue and pen of an overview.

    Ink: absorbs red more than green (blue, green), which haematoxylin, eosin and brown do not; or green and blue
    strongly but red not at all (red); or everything alike and strongly (black).

    Args:
        pixels: (h, w, 3) uint8.
        mpp: µm per pixel of them.
    """
    od = densities(pixels)
    for k in range(3):
        ndimage.gaussian_filter(od[..., k], 1.0, output=od[..., k])
    r, g, b = od[..., 0], od[..., 1], od[..., 2]
    low, high = od.min(axis=2), od.max(axis=2)
    blue = (r - g > 0.2) | ((r > 0.8) & (r - g > 0.05))
    ink = blue | ((r < 0.12) & (g > 1.0) & (b > 0.8)) | ((low > 0.9) & (high - low < 0.3 * high))
    pen = _larger(ink, _STROKE / mpp**2)
    pen = ndimage.binary_dilation(pen, iterations=max(1, round(24 / mpp))) if pen.any() else pen
    apart = high - low
    glass = apart[~pen]
    split = otsu(glass) if glass.size else _SAFEST
    tissue = (apart > min(max(split, _PALEST), _SAFEST)) & ~pen
    tissue = ndimage.binary_closing(tissue, iterations=max(1, round(16 / mpp))) | tissue
    tissue = _larger(tissue, _SPECK / mpp**2)
    return ~_larger(~tissue, _HOLE / mpp**2, edge=True) & ~pen, pen


def _larger(mask: NDArray[np.bool_], pixels: float, *, edge: bool = False) -> NDArray[np.bool_]:
    """Connected parts of at least so many pixels, or (``edge``) that reach the edge of the picture."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    keep = np.bincount(labels.ravel()) >= pixels
    if edge:
        keep[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = True
    keep[0] = False
    return np.asarray(keep[labels])


def share(mask: NDArray[np.bool_], left: NDArray[Any], top: NDArray[Any], side: float) -> NDArray[np.float64]:
    """Fraction of squares (left, top, side), in mask pixels, that the mask covers; outside of it there is nothing."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    table[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)

    def covered(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        x, y = np.clip(x, 0, mask.shape[1]), np.clip(y, 0, mask.shape[0])
        i, j = np.minimum(y.astype(int), mask.shape[0] - 1), np.minimum(x.astype(int), mask.shape[1] - 1)
        v, u = y - i, x - j
        above = table[i, j] * (1 - u) + table[i, j + 1] * u
        below = table[i + 1, j] * (1 - u) + table[i + 1, j + 1] * u
        return np.asarray(above * (1 - v) + below * v)

    right, low = left + side, top + side
    inside = covered(right, low) - covered(left, low) - covered(right, top) + covered(left, top)
    return np.asarray(np.clip(inside / side**2, 0, 1))
