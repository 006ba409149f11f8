"""Loaders: files of one format to a modality of a cohort. To add one: a file here and a row in ``LOADERS``.

What a module provides stands in :mod:`medfuse.loaders.base`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.sample import ModalityData
from medfuse.types import PatientId

# name in a card -> module, imported when it is asked for
LOADERS: dict[str, str] = {
    "tabular": "medfuse.loaders.tabular",
    "expression": "medfuse.loaders.expression",
    "bags": "medfuse.loaders.bags",
    "vectors": "medfuse.loaders.vectors",
    "dicom": "medfuse.loaders.dicom",
    "volume": "medfuse.loaders.volume",
    "variants": "medfuse.loaders.variants",
    "copy_number": "medfuse.loaders.copy_number",
    "events": "medfuse.loaders.events",  # before text: PhysioNet records are named .txt
    "text": "medfuse.loaders.text",
    "ecg": "medfuse.loaders.ecg",
    "slide": "medfuse.loaders.slide",
}
# Asked last and in this order what a file is: they take what no loader of a format of its own claims.
GENERIC = ("expression", "vectors", "tabular", "text")
# those that read files of one patient, and whose items an extractor turns into tokens
RAW = ("dicom", "volume", "text", "ecg", "slide", "bags")

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
    data: ModalityData = module_of(card.loader, where=f"modality {name}").read(
        name, card, resolve=resolve, patients=patients
    )
    return _with_patients(data, card)


def read_files(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], files: Mapping[PatientId, Sequence[Path]]
) -> ModalityData:
    """Read one modality whose card has a ``path`` of files of one patient each, and whose loader is one of tables.

    Args:
        name: the modality's name in the card.
        card: how it is read.
        resolve: another source of the card to its path.
        files: of each patient who has any.

    Raises:
        ConfigError: no such loader, or one that reads no files of single patients.
        DataError: a file that is damaged or not what the card says.
    """
    module = module_of(card.loader, where=f"modality {name}")
    if not hasattr(module, "read_files"):
        msg = f"modality {name}: the loader {card.loader} reads one file of all patients; name it as file"
        raise ConfigError(msg)
    data: ModalityData = module.read_files(name, card, resolve=resolve, files=files)
    return _with_patients(data, card)


def _with_patients(data: ModalityData, card: ModalityCard) -> ModalityData:
    if not data.samples:
        msg = (
            f"modality {data.name}: expected patients with values in {', '.join(card.sources()) or card.path}, found "
            "none; is a file cut short, or does the card name another id column? correct the card, or fetch the file "
            "again"
        )
        raise DataError(msg)
    return data


def module_of(loader: str, *, where: str) -> Any:  # noqa: ANN401  # a module
    """The module of a loader.

    Raises:
        ConfigError: no such loader.
    """
    if loader not in LOADERS:
        msg = f"{where}: no loader {loader!r}; {nearest(loader, LOADERS)}"
        raise ConfigError(msg)
    return importlib.import_module(LOADERS[loader])
