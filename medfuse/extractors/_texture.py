"""Texture of a grey image in one pass over its pixels."""

import numba
import numpy as np
from numpy.typing import NDArray

LEVELS = 16  # grey levels of the co-occurrence matrices
PATTERNS = 10  # rotation-invariant uniform local binary patterns of eight neighbours


def pattern_classes() -> NDArray[np.uint8]:
    """Class of each of the 256 codes (Ojala 2002, eq. 9): how many ones, or 9 where more than two neighbours differ."""
    classes = np.empty(256, dtype=np.uint8)
    for code in range(256):
        bits = [(code >> k) & 1 for k in range(8)]
        changes = sum(bits[k] != bits[k - 1] for k in range(8))
        classes[code] = sum(bits) if changes <= 2 else 9
    return classes


CLASSES = pattern_classes()


def texture(
    grey: NDArray[np.uint8], far: int, classes: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Local binary patterns, co-occurrences and gradients.

    Args:
        grey: (H, W), both at least ``far`` + 2.
        far: the larger of the two distances of co-occurrence, pixels; the smaller is 1.
        classes: of patterns, see :func:`pattern_classes`.

    Returns:
        Shares of the ten patterns (10,); symmetric co-occurrence probabilities at distance 1 and ``far``, to the right
        and below, (2, 16, 16); sums over pixels of gx², gy², gx gy, |g|, l and l² of the Laplacian, and their number.
    """
    patterns, pairs, sums = np.zeros(10), np.zeros((2, 16, 16)), np.zeros(7)
    _count(grey, far, classes, patterns, pairs, sums)
    pairs += pairs.transpose(0, 2, 1).copy()
    return patterns / patterns.sum(), pairs / pairs.sum(axis=(1, 2), keepdims=True), sums


@numba.njit(cache=True)  # type: ignore[untyped-decorator]  # numba has no types
def _count(
    grey: NDArray[np.uint8],
    far: int,
    classes: NDArray[np.uint8],
    patterns: NDArray[np.float64],
    pairs: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    """Add to patterns, pairs in one order and sums: plain loops, for array expressions take seconds to compile."""
    height, width = grey.shape
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            c, a0, a1 = np.int64(grey[y, x]), np.int64(grey[y - 1, x - 1]), np.int64(grey[y - 1, x])
            a2, a3, a4 = np.int64(grey[y - 1, x + 1]), np.int64(grey[y, x + 1]), np.int64(grey[y + 1, x + 1])
            a5, a6, a7 = np.int64(grey[y + 1, x]), np.int64(grey[y + 1, x - 1]), np.int64(grey[y, x - 1])
            code = (
                (a0 >= c)
                | (a1 >= c) << 1
                | (a2 >= c) << 2
                | (a3 >= c) << 3
                | (a4 >= c) << 4
                | (a5 >= c) << 5
                | (a6 >= c) << 6
                | (a7 >= c) << 7
            )
            patterns[classes[code]] += 1
            gx, gy = 0.5 * (a3 - a7), 0.5 * (a5 - a1)
            laplacian = float(a1 + a3 + a5 + a7 - 4 * c)
            sums[0] += gx * gx
            sums[1] += gy * gy
            sums[2] += gx * gy
            sums[3] += np.sqrt(gx * gx + gy * gy)
            sums[4] += laplacian
            sums[5] += laplacian * laplacian
            sums[6] += 1
    for k in range(2):
        step = 1 if k == 0 else far
        for y in range(height - step):
            for x in range(width - step):
                c = grey[y, x] >> 4
                pairs[k, c, grey[y, x + step] >> 4] += 1
                pairs[k, c, grey[y + step, x] >> 4] += 1
