"""Vectors as they are."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample


class IdentityExtractor(Extractor):
    """Stored features are the items themselves."""

    accepts: ClassVar[tuple[ItemKind, ...]] = ("vector",)

    @property
    def settings(self) -> Mapping[str, Any]:
        """No options."""
        return {}

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """Names that the loader gave, or numbers."""
        given = raw.facts.get("features")
        return tuple(given) if given else tuple(f"f{k}" for k in range(raw.shape[0]))

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """The items."""
        return np.asarray(items, dtype=np.float32)
