"""Sentences to hashed n-grams: no download, no vocabulary to fit, the same everywhere."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)?", re.UNICODE)


class HashedNgrams(Extractor):
    """Words and pairs of words, each to one of ``features`` signed places by its hash; square roots, unit length.

    Args:
        features: F, a power of two.
        pairs: also use pairs of neighbouring words ("no mass").

    References:
        Weinberger et al. (2009), Feature hashing for large scale multitask learning, eq. 2.
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("sentence",)

    def __init__(self, *, features: int = 512, pairs: bool = True) -> None:
        self.features, self.pairs = features, pairs

    @property
    def settings(self) -> Mapping[str, Any]:
        """Number of features, and whether pairs are used."""
        return {"features": self.features, "pairs": self.pairs}

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """Places have no names of their own."""
        return tuple(f"hash{k}" for k in range(self.features))

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """(k, F) of k sentences."""
        out = np.zeros((len(items), self.features), dtype=np.float32)
        for row, text in enumerate(items):
            words = _WORD.findall(str(text).lower())
            grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)] * self.pairs
            for gram in grams:
                code = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "little")
                out[row, code % self.features] += 1.0 if code >> 63 else -1.0
        out = np.sign(out) * np.sqrt(np.abs(out))
        length = np.sqrt((out**2).sum(axis=1, keepdims=True))
        return np.asarray(out / np.where(length > 0, length, 1), dtype=np.float32)
