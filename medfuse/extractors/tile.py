"""Tiles of stained tissue to what a pathologist names: stain, colour, texture, and nuclei by number and size."""

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from medfuse.errors import ConfigError, DataError
from medfuse.extractors._texture import CLASSES, LEVELS, texture
from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample

# Optical densities of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001, table 1), and what is left over
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_WORK = 1.0  # µm per pixel at which nuclei are looked for
_RADII = (2.0 * 2**0.5, 4.0, 4.0 * 2**0.5)  # µm
_CONTRAST = 0.09  # least response of a nucleus, difference of Gaussians of the haematoxylin density; chosen on two
# glioma regions against masks of their nuclei (benchmarks/slides.py), where it counts about 1.3 times as many
_APART = 3.0  # µm between two nuclei
_STATISTICS = ("mean", "std", "p10", "p50", "p90", "skew")
_GREY = ("contrast", "correlation", "energy", "homogeneity", "entropy")

_NAMES = (
    *(f"density_{c}_{s}" for s in ("mean", "std") for c in ("red", "green", "blue")),
    *(f"density_correlation_{pair}" for pair in ("red_green", "red_blue", "green_blue")),
    "tissue_fraction",
    "white_fraction",
    *(f"{stain}_{s}" for stain in ("haematoxylin", "eosin") for s in _STATISTICS),
    "haematoxylin_share",
    "residual_mean",
    "stain_angle_low",
    "stain_angle_high",
    "stain_plane_share",
    *(f"pattern{k}" for k in range(10)),
    *(f"grey_{s}_{d}" for d in ("near", "far") for s in _GREY),
    "gradient_mean",
    "gradient_energy",
    "gradient_coherence",
    "sharpness",
    *(f"haematoxylin_scale{k}" for k in range(3)),
    "nuclei_per_mm2",
    "nuclei_per_mm2_tissue",
    "nuclear_fraction",
    "nuclear_radius_mean",
    "nuclear_radius_std",
    "nuclear_contrast",
    "nuclear_haematoxylin",
    "nuclear_neighbour_mean",
    "nuclear_neighbour_std",
)


class TileFeatures(Extractor):
    """Named features of H&E tiles, each tile by itself; nothing is learned or downloaded.

    Optical density relative to the slide's glass (facts ``glass``, else 245), haematoxylin and eosin by fixed stain
    vectors, the tile's own stain plane, grey-level texture, and nuclei as blobs of haematoxylin at 1 µm per pixel.

    Args:
        bank: number of random filters beside them, 7 x 7 on optical density at 1 µm per pixel; mean and standard
            deviation of the rectified response of each.
        seed: of the random filters.

    References:
        Ruifrok and Johnston (2001), Anal Quant Cytol Histol 23, eq. 1-4; Macenko et al. (2009), ISBI, section 2 (plane
        of the densities and robust extreme angles); Ojala et al. (2002), eq. 9; Haralick et al. (1973), f1-f9;
        Lindeberg (1998), difference of Gaussians as a scale-normalised Laplacian; Saxe et al. (2011), random filters.
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("tile",)

    def __init__(self, *, bank: int = 0, seed: int = 0) -> None:
        if not 0 <= bank <= 1024:
            msg = f"extractor tile: expected bank between 0 and 1024, found {bank!r}"
            raise ConfigError(msg)
        self.bank, self.seed = bank, seed
        third = np.cross(*_STAINS)
        rows = np.stack([*_STAINS, third])
        self._unmix = np.linalg.inv(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        filters = np.random.default_rng(seed).normal(size=(7 * 7 * 3, bank)).astype(np.float32)
        filters -= filters.mean(axis=0, keepdims=True)
        self._filters = filters / np.maximum(np.linalg.norm(filters, axis=0, keepdims=True), 1e-12)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Size and seed of the random filters."""
        return {"bank": self.bank, "seed": self.seed}

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """What each feature is; densities are optical, radii and distances in µm."""
        return _NAMES + tuple(f"random{k}_{s}" for s in ("mean", "std") for k in range(self.bank))

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """Features (k, F) of tiles (k, H, W, 3) uint8.

        Raises:
            DataError: tiles without µm per pixel, or smaller than 16 pixels.
        """
        mpp = float(facts.get("mpp", 0))
        if not mpp > 0 or items.ndim != 4 or min(items.shape[1:3]) < 16:
            msg = f"extractor tile: expected tiles of 16 pixels or more and facts with mpp, found {items.shape}, {mpp}"
            raise DataError(msg)
        table = _density_table(facts.get("glass", (245, 245, 245)))
        return np.stack([self._one(tile, table, mpp) for tile in items])

    def _one(self, tile: NDArray[np.uint8], table: NDArray[np.float32], mpp: float) -> NDArray[np.float32]:
        od = np.stack([table[k][tile[..., k]] for k in range(3)])  # (3, H, W)
        times = max(1, round(_WORK / mpp))
        coarse = _shrunk(od, times)
        stains = np.einsum("chw,cs->shw", coarse, self._unmix)
        tissue = float((coarse.sum(axis=0) > 0.25).mean())
        parts: list[list[float] | NDArray[np.float64]] = [
            _colour(coarse, tile, tissue),
            _stain(stains),
            _plane(coarse),
            _texture(tile, mpp),
            _nuclei(np.maximum(stains[0], 0), mpp * times, tissue),
        ]
        if self.bank:
            parts.append(self._random(coarse))
        return np.concatenate(parts).astype(np.float32)

    def _random(self, od: NDArray[np.float32]) -> NDArray[np.float64]:
        windows = np.lib.stride_tricks.sliding_window_view(od, (7, 7), axis=(1, 2))[:, ::2, ::2]
        columns = windows.transpose(1, 2, 0, 3, 4).reshape(-1, 7 * 7 * 3)
        response = np.abs(columns @ self._filters)
        return np.concatenate([response.mean(axis=0), response.std(axis=0)]).astype(np.float64)


def _density_table(glass: Any) -> NDArray[np.float32]:  # noqa: ANN401  # three numbers
    """Optical density of each value in each channel, (3, 256), not below 0."""
    white = np.clip(np.asarray(glass, dtype=np.float64), 200, 255)[:, None]
    return np.maximum(-np.log((np.arange(256) + 1.0) / (white + 1.0)), 0).astype(np.float32)


def _shrunk(values: NDArray[np.float32], times: int) -> NDArray[np.float32]:
    """Area means (C, H // times, W // times)."""
    if times == 1:
        return values
    h, w = values.shape[1] // times * times, values.shape[2] // times * times
    total = values[:, :h:times, :w:times].copy()
    for i, j in itertools.product(range(times), repeat=2):
        if i or j:
            total += values[:, i:h:times, j:w:times]
    return total / np.float32(times * times)


def _colour(od: NDArray[np.float32], tile: NDArray[np.uint8], tissue: float) -> list[float]:
    flat = od.reshape(3, -1)
    mean = flat.mean(axis=1)
    apart = flat - mean[:, None]
    spread = apart @ apart.T / flat.shape[1]
    std = np.sqrt(np.diagonal(spread))
    together = [spread[i, j] / max(std[i] * std[j], 1e-6) for i, j in ((0, 1), (0, 2), (1, 2))]
    white = float((tile.min(axis=2) > 215).mean())
    return [*map(float, (*mean, *std, *np.clip(together, -1, 1))), tissue, white]


def _stain(stains: NDArray[np.float32]) -> list[float]:
    found: list[float] = []
    for values in stains[:2].reshape(2, -1):
        mean = float(values.mean())
        apart = values - np.float32(mean)
        square = apart * apart
        std = float(square.mean()) ** 0.5
        skew = float((square * apart).mean()) / max(std, 1e-3) ** 3
        found += [mean, std, *map(float, np.percentile(values, (10, 50, 90))), skew]
    h, e = (float(np.maximum(stains[k], 0).mean()) for k in range(2))
    return [*found, h / max(h + e, 1e-3), float(np.abs(stains[2]).mean())]


def _plane(od: NDArray[np.float32]) -> list[float]:
    """Robust extreme angles of the densities in the plane of their two leading directions, and its share of them."""
    flat = od.reshape(3, -1).astype(np.float64)
    flat = flat[:, flat.sum(axis=0) > 0.25]
    if flat.shape[1] < 50:
        return [0.0, 0.0, 0.0]
    values, vectors = np.linalg.eigh(flat @ flat.T / flat.shape[1])
    first, second = vectors[:, 2], vectors[:, 1]
    first = first * np.sign(first.sum() or 1)
    second = second * np.sign(second[0] or 1)  # towards red absorption, where haematoxylin is
    low, high = map(float, np.percentile(np.arctan2(second @ flat, first @ flat), (1, 99)))
    return [low, high, float((values[1] + values[2]) / max(values.sum(), 1e-9))]


def _texture(tile: NDArray[np.uint8], mpp: float) -> list[float]:
    grey = ((tile[..., 0].astype(np.uint16) + 2 * tile[..., 1].astype(np.uint16) + tile[..., 2]) >> 2).astype(np.uint8)
    far = int(np.clip(round(2.0 / mpp), 2, 12))
    patterns, pairs, sums = texture(grey, far, CLASSES)
    found = list(patterns)
    i, j = np.mgrid[:LEVELS, :LEVELS]
    for p in pairs:
        mean = (i * p).sum()
        spread = ((i - mean) ** 2 * p).sum()
        correlation = ((i - mean) * (j - mean) * p).sum() / spread if spread > 1e-9 else 1.0
        entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
        found += [((i - j) ** 2 * p).sum(), correlation, (p**2).sum(), (p / (1 + np.abs(i - j))).sum(), entropy]
    xx, yy, xy, length, l1, l2, n = sums
    coherence = np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-9)
    return [*found, length / n, (xx + yy) / n, coherence, l2 / n - (l1 / n) ** 2]


def _nuclei(haematoxylin: NDArray[np.float32], mpp: float, tissue: float) -> list[float]:
    """Blobs of haematoxylin: maxima over place and scale of differences of Gaussians, sigma = radius / sqrt(2)."""
    sigmas = [r / 2**0.5 / mpp for r in (*_RADII, _RADII[-1] * 2**0.5)]
    smooth = [ndimage.gaussian_filter(haematoxylin, s, mode="reflect", truncate=3.0) for s in sigmas]
    scales = np.stack([a - b for a, b in itertools.pairwise(smooth)])
    best = scales.max(axis=0)
    size = 2 * max(1, round(_APART / mpp / 2)) + 1
    peaks = (best >= ndimage.maximum_filter(best, size=size, mode="reflect")) & (best > _CONTRAST)
    y, x = np.nonzero(peaks)
    mm2 = haematoxylin.size * mpp**2 * 1e-6
    energy = [float(s.std(dtype=np.float64)) for s in scales]
    share = float((best > _CONTRAST).mean())
    if not len(y):
        return [*energy, 0.0, 0.0, share, *([0.0] * 6)]
    radius = np.asarray(_RADII)[scales[:, y, x].argmax(axis=0)] * 2**0.25  # seen best between the two sigmas
    edge = float(max(haematoxylin.shape)) * mpp
    near = np.full(1, edge)
    if len(y) > 1:
        places = np.stack([y, x], axis=1)
        near = np.asarray(cKDTree(places).query(places, k=2)[0])[:, 1] * mpp
    density = len(y) / mm2
    return [
        *energy,
        density,
        density / max(tissue, 0.05),
        share,
        float(radius.mean()),
        float(radius.std()),
        float(best[y, x].mean()),
        float(smooth[0][y, x].mean()),
        float(near.mean()),
        float(near.std()),
    ]
