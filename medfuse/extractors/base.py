"""What an extractor is: frozen, offline, raw items to stored features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.sample import ItemKind, ModalitySample, RawSample


class Extractor(ABC):
    """Items of one kind to feature vectors.

    Constructor arguments are keyword-only and come from the card; :attr:`settings` holds all of them, and with the
    class's ``version`` they enter the key of what is stored.
    """

    accepts: ClassVar[tuple[ItemKind, ...]]
    version: ClassVar[int] = 1

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything that changes a feature (options, hash of weights), as JSON values."""

    @abstractmethod
    def names(self, raw: RawSample) -> tuple[str, ...]:
        """Names of the F features."""

    @abstractmethod
    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """Features (k, F), finite, of k items; no item's features depend on its neighbours."""

    def facts(self, raw: RawSample) -> Mapping[str, Any]:
        """What is stored beside the features, as JSON values: the facts of the raw sample."""
        return raw.facts

    def extract(self, raw: RawSample, *, batch: int = 64) -> ModalitySample:
        """All items of a sample.

        Raises:
            DataError: items of another kind, or features that are not finite.
        """
        if raw.item not in self.accepts:
            msg = (
                f"extractor {type(self).__name__}: expected items of kind {' or '.join(self.accepts)}, "
                f"found {raw.item}; choose another extractor in the card"
            )
            raise DataError(msg)
        parts = [self(items, raw.facts) for items in raw.batches(batch)]
        return ModalitySample(tokens=np.concatenate(parts).astype(np.float32), position=raw.position)
