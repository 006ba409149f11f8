"""Loaders: raw files of one format to a modality of a cohort."""

import importlib
from collections.abc import Callable
from pathlib import Path

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.sample import ModalityData

# name in a card -> module with read(card, name=..., resolve=..., default_id=...) and write_example(folder)
LOADERS: dict[str, str] = {
    "tabular": "medfuse.loaders.tabular",
    "expression": "medfuse.loaders.expression",
    "vectors": "medfuse.loaders.vectors",
}

VERSION = 2  # raise it when a loader reads the same files differently: stored entries are then rebuilt


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read one modality.

    Args:
        name: the modality's name in the card.
        card: how it is read.
        resolve: a source of the card to its path.
        patients: id column of the patients table (None: ids are row numbers) and the prefix of row numbers.

    Raises:
        ConfigError: no such loader.
        DataError: a file that is missing, damaged or not what the card says.
    """
    if card.loader not in LOADERS:
        msg = f"modality {name}: no loader {card.loader!r}; {nearest(card.loader, LOADERS)}"
        raise ConfigError(msg)
    module = importlib.import_module(LOADERS[card.loader])
    data: ModalityData = module.read(name, card, resolve=resolve, patients=patients)
    if not data.samples:
        msg = (
            f"modality {name}: expected patients with values in {', '.join(card.sources())}, found none; is a file cut "
            "short, or does the card name another id column? correct the card, or fetch the file again"
        )
        raise DataError(msg)
    return data
