"""Patches of volumes and images to statistics with names: intensity, edges and blobs in mm, texture, shape.

Frozen, no download, the same everywhere; what is measured in mm stays comparable over scanners and spacings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError
from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample

Array = NDArray[np.float32]

_QUANTILES = (1, 5, 25, 50, 75, 95, 99)
_LEVELS = 8  # grey levels of the co-occurrence matrix
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_HU = (-500.0, 100.0, 300.0)  # air from tissue, contrast or blood from soft tissue, bone
_RELATIVE = (0.25, 0.5, 0.75)  # between the 5th and the 95th percentile of the patch


class VolumeStatistics(Extractor):
    """Statistics of each patch, of its voxels alone: no feature depends on another patch.

    Per channel: quantiles, mean, standard deviation, skewness, kurtosis, entropy of the intensities; gradient magnitude
    and Laplacian of Gaussian at each scale (derivatives of Gaussians, sampled every scale; Lindeberg 1998, eq. 4, with
    its normalisation by the scale); contrast, homogeneity, energy, correlation, entropy of grey-level co-occurrences of
    neighbours (Haralick 1973); and for each threshold the fraction above it, number and largest share of connected
    blobs, and surface over volume in 1/mm. Thresholds are HU (air, contrast, bone) where the unit is HU, else
    quarters of the range between the 5th and 95th percentile.

    Args:
        scales_mm: standard deviations of the Gaussians; below 0.7 voxels they are 0.7 voxels.
        thresholds: three or more values in the unit of the volume, instead of those above.
        grey: colour as luma (one set of features); else one set per channel.
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("patch",)

    def __init__(
        self,
        *,
        scales_mm: Sequence[float] = (1.5, 3.0, 6.0),
        thresholds: Sequence[float] | None = None,
        grey: bool = True,
    ) -> None:
        good = all(isinstance(s, int | float) and not isinstance(s, bool) for s in (*scales_mm, *(thresholds or ())))
        if not good or not scales_mm or min(scales_mm) <= 0:
            msg = "extractor volume: expected positive scales_mm and numbers as thresholds, found others"
            raise ConfigError(msg)
        self.scales = tuple(float(s) for s in scales_mm)
        self.thresholds = tuple(float(t) for t in thresholds) if thresholds else None
        self.grey = bool(grey)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Scales, thresholds and how colour is used."""
        return {"scales_mm": list(self.scales), "thresholds": list(self.thresholds or ()), "grey": self.grey}

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """Names of the features, those of a channel together."""
        one = [f"p{q}" for q in _QUANTILES] + ["mean", "std", "skewness", "kurtosis", "entropy"]
        for scale in self.scales:
            one += [
                f"{what}_{scale:g}mm" for what in ("gradient_mean", "gradient_p95", "log_mean", "log_min", "log_max")
            ]
        one += [f"cooccurrence_{what}" for what in ("contrast", "homogeneity", "energy", "correlation", "entropy")]
        for label in self._labels(raw.facts):
            one += [f"{what}_above_{label}" for what in ("fraction", "blobs_log", "largest_blob", "surface_per_mm")]
        channels = 1 if self.grey else raw.shape[-1]
        return tuple(one) if channels == 1 else tuple(f"{name}_channel{c}" for c in range(channels) for name in one)

    def _labels(self, facts: Mapping[str, Any]) -> list[str]:
        if self.thresholds is not None or facts.get("unit") == "HU":
            return [f"{t:g}" for t in self.thresholds or _HU]
        return [f"{t:.0%}_of_range" for t in _RELATIVE]

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> Array:
        """(k, F) of k patches (k, I, J, K, C)."""
        values = np.asarray(items, dtype=np.float32)
        if values.ndim != 5 or not np.isfinite(values).all():
            msg = f"extractor volume: expected finite patches (k, I, J, K, C), found {values.shape}"
            raise DataError(msg)
        spacing = np.asarray(facts.get("spacing_mm") or (1.0, 1.0, 1.0), dtype=np.float64)
        if self.grey and values.shape[-1] > 1:
            luma = _LUMA if values.shape[-1] == 3 else np.full(values.shape[-1], 1 / values.shape[-1], np.float32)
            values = (values @ luma)[..., None]
        parts = [self._channel(np.ascontiguousarray(values[..., c]), spacing, facts) for c in range(values.shape[-1])]
        return np.concatenate(parts, axis=1)

    def _channel(self, patches: Array, spacing: NDArray[np.float64], facts: Mapping[str, Any]) -> Array:
        kernels = [_kernels(patches.shape[1:], spacing, scale) for scale in self.scales]
        rows = []
        for patch in patches:
            ends = np.percentile(patch, _QUANTILES)
            row = [*ends, *_moments(patch), _entropy(np.histogram(patch, bins=32)[0])]
            for kernel, scale in zip(kernels, self.scales, strict=True):
                row += _edges_and_blobs(patch, kernel, scale)
            row += _cooccurrence(patch)
            if self.thresholds is not None or facts.get("unit") == "HU":
                levels = list(self.thresholds or _HU)
            else:
                levels = [float(ends[1] + t * (ends[5] - ends[1])) for t in _RELATIVE]
            for level in levels:
                row += _shape(patch > level, spacing)
            rows.append(row)
        return np.nan_to_num(np.asarray(rows, dtype=np.float64), posinf=0, neginf=0).astype(np.float32)


# --- intensities -----------------------------------------------------------------------------------------------------


def _moments(patch: Array) -> list[float]:
    centred = patch.astype(np.float64)
    mean = float(centred.mean())
    centred -= mean
    square = centred * centred
    variance = float(square.mean())
    if variance <= 1e-12 * max(1.0, mean * mean):
        return [mean, 0.0, 0.0, 0.0]
    third, fourth = float((square * centred).mean()), float((square * square).mean())
    return [mean, variance**0.5, third / variance**1.5, fourth / variance**2 - 3.0]


def _entropy(counts: NDArray[Any]) -> float:
    """Shannon entropy of counts, bits."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log2(share)).sum()) + 0.0


# --- edges and blobs -------------------------------------------------------------------------------------------------

_Kernel = tuple[tuple[Array, Array, Array], ...]


def _kernels(shape: Sequence[int], spacing: NDArray[np.float64], scale: float) -> _Kernel:
    """For each axis: (cells, n) matrices of a Gaussian and of its first and second derivative, per mm.

    Cells lie one scale apart. Rows of the Gaussian sum to 1, those of derivatives to 0, also at the edges of a patch.
    """
    kernels = []
    for n, step in zip(shape, spacing, strict=True):
        sigma = max(scale, 0.7 * step)
        cells = max(1, round(n * step / sigma))
        at = (np.arange(cells) + 0.5) * n / cells - 0.5
        x = (np.arange(n)[None, :] - at[:, None]) * step
        smooth = np.exp(-0.5 * (x / sigma) ** 2)
        smooth /= smooth.sum(axis=1, keepdims=True)
        if n == 1:
            kernels.append((smooth.astype(np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)))
            continue
        first = smooth * x / sigma**2
        first -= smooth * first.sum(axis=1, keepdims=True)
        second = smooth * (x**2 / sigma**4 - 1 / sigma**2)
        second -= smooth * second.sum(axis=1, keepdims=True)
        kernels.append((smooth.astype(np.float32), first.astype(np.float32), second.astype(np.float32)))
    return tuple(kernels)


def _along(patch: Array, matrix: Array, axis: int) -> Array:
    return np.moveaxis(np.tensordot(matrix, patch, axes=(1, axis)), 0, axis)


def _derivatives(patch: Array, kernel: _Kernel, order: int) -> list[Array]:
    """The derivative of this order along each axis, smoothed along the others; what they share is computed once."""
    (across, *_), (down, *_), (along, *_) = kernel
    smooth = _along(patch, across, 0)
    smoother = _along(smooth, down, 1)
    return [
        _along(_along(_along(patch, kernel[0][order], 0), down, 1), along, 2),
        _along(_along(smooth, kernel[1][order], 1), along, 2),
        _along(smoother, kernel[2][order], 2),
    ]


def _edges_and_blobs(patch: Array, kernel: _Kernel, scale: float) -> list[float]:
    """Mean and 95th percentile of the gradient magnitude; mean absolute, least and largest Laplacian of Gaussian.

    Both are normalised by the scale (times sigma, times sigma squared), so that scales compare.
    """
    gradient = sum(one**2 for one in _derivatives(patch, kernel, 1)) ** 0.5 * scale
    laplacian = sum(_derivatives(patch, kernel, 2)) * scale**2
    return [
        float(np.mean(gradient)),
        float(np.percentile(gradient, 95)),
        float(np.mean(np.abs(laplacian))),
        float(np.min(laplacian)),
        float(np.max(laplacian)),
    ]


# --- texture ---------------------------------------------------------------------------------------------------------


def _cooccurrence(patch: Array) -> list[float]:
    """Contrast, homogeneity, energy, correlation and entropy of neighbours' grey levels, all axes together."""
    low, high = float(patch.min()), float(patch.max())
    levels = np.zeros(patch.shape, dtype=np.int64)
    if high > low:
        levels = np.minimum(((patch - low) * (_LEVELS / (high - low))).astype(np.int64), _LEVELS - 1)
    counts = np.zeros(_LEVELS * _LEVELS, dtype=np.int64)
    for axis in range(3):
        if levels.shape[axis] > 1:
            line = np.moveaxis(levels, axis, 0)
            counts += np.bincount((line[:-1] * _LEVELS + line[1:]).ravel(), minlength=_LEVELS**2)
    table = counts.reshape(_LEVELS, _LEVELS).astype(np.float64)
    table += table.T
    if not table.any():
        return [0.0, 1.0, 1.0, 0.0, 0.0]
    share = table / table.sum()
    i, j = np.indices(share.shape)
    mean = (i * share).sum()
    variance = ((i - mean) ** 2 * share).sum()
    correlation = ((i - mean) * (j - mean) * share).sum() / variance if variance > 0 else 0.0
    contrast, homogeneity = ((i - j) ** 2 * share).sum(), (share / (1 + (i - j) ** 2)).sum()
    return [float(contrast), float(homogeneity), float((share**2).sum()), float(correlation), _entropy(table)]


# --- shape -----------------------------------------------------------------------------------------------------------


def _shape(inside: NDArray[np.bool_], spacing: NDArray[np.float64]) -> list[float]:
    """Fraction of voxels, log(1 + number of blobs), fraction of the patch in the largest, faces over volume (1/mm)."""
    from scipy import ndimage

    count = int(inside.sum())
    if count == 0:
        return [0.0, 0.0, 0.0, 0.0]
    if count == inside.size:
        return [1.0, float(np.log(2)), 1.0, 0.0]
    labels, blobs = ndimage.label(inside)
    largest = int(np.bincount(labels.ravel())[1:].max())
    surface = 0.0
    for axis in range(3):
        faces = int(np.count_nonzero(np.diff(inside, axis=axis)))  # faces inside the patch; its own border is none
        surface += faces * float(np.prod(np.delete(spacing, axis)))
    volume = count * float(np.prod(spacing))
    return [count / inside.size, float(np.log1p(blobs)), largest / inside.size, surface / volume]
