"""Extractors: raw items to stored features, frozen and offline. To add one: a file here and a row in ``EXTRACTORS``."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from medfuse.errors import ConfigError, nearest
from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind

# name in a card -> module:class, imported when it is asked for
EXTRACTORS: dict[str, str] = {
    "identity": "medfuse.extractors.identity:IdentityExtractor",
    "hashed_ngrams": "medfuse.extractors.text:HashedNgrams",
    "waveform": "medfuse.extractors.waveform:Waveform",
    "tile": "medfuse.extractors.tile:TileFeatures",
    "volume": "medfuse.extractors.volume:VolumeStatistics",
    "windows": "medfuse.extractors.raw:RawWindows",
    "pretrained": "medfuse.extractors.pretrained:Pretrained",
    "patches": "medfuse.extractors.raw:RawPatches",
}
# the extractor of a kind of item when the card names none
DEFAULTS: dict[ItemKind, str] = {
    "vector": "identity",
    "sentence": "hashed_ngrams",
    "window": "waveform",
    "tile": "tile",
    "patch": "volume",
}


def build_extractor(options: Mapping[str, Any], *, where: str) -> Extractor:
    """An extractor by the options of a card, ``{"name": ..., **arguments}``.

    Raises:
        ConfigError: no such extractor, or an argument that it does not have.
    """
    arguments = dict(options)
    name = str(arguments.pop("name", ""))
    if name not in EXTRACTORS:
        msg = f"{where}: no extractor {name!r}; {nearest(name, EXTRACTORS)}"
        raise ConfigError(msg)
    module, _, attribute = EXTRACTORS[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    known = inspect.signature(kind).parameters
    unknown = next((key for key in arguments if key not in known), None)
    if unknown is not None:
        msg = f"{where}: the extractor {name} has no option {unknown!r}; {nearest(unknown, known)}"
        raise ConfigError(msg)
    extractor: Extractor = kind(**arguments)
    return extractor


__all__ = ["DEFAULTS", "EXTRACTORS", "Extractor", "build_extractor"]
