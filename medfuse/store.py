"""The feature store: modalities on disk, addressed by their content, sealed by a manifest of SHA-256."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import StoreError
from medfuse.files import new_folder, seal, sha256_bytes, verify, write_json
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.types import PatientId

FORMAT_VERSION = 1


def entry_key(*, name: str, settings: Mapping[str, Any], sources: Mapping[str, str], version: int) -> str:
    """Content address of a modality.

    Args:
        name: the modality's name.
        settings: how it was read, as JSON values.
        sources: source as the card names it -> SHA-256 of the file.
        version: version of the code that read it.

    Returns:
        64 hexadecimal digits; any change of a source, a setting or the code gives another key.
    """
    content = {"name": name, "settings": settings, "sources": sources, "version": version, "format": FORMAT_VERSION}
    return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


class FeatureStore:
    """A folder with one sealed folder per entry.

    An entry is complete only when its manifest exists; readers verify sizes and SHA-256 before they look inside.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Folder of an entry."""
        return self._root / key[:32]

    def __contains__(self, key: str) -> bool:
        return (self.path(key) / "manifest.json").is_file()

    def put(self, data: ModalityData, *, key: str, sources: Mapping[str, str]) -> ModalityData:
        """Write an entry atomically and return it as read back.

        Raises:
            StoreError: the folder cannot be written.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        ids = list(data.samples)
        lengths = [len(data.samples[i].tokens) for i in ids]
        widths = {data.samples[i].position.shape[1] for i in ids}
        if len(widths) > 1:
            msg = f"modality {data.name}: expected one kind of position, found {len(widths)}; split it into modalities"
            raise StoreError(msg)
        with new_folder(self.path(key)) as folder:
            _save(folder / "tokens.npy", [data.samples[i].tokens for i in ids], width=data.features)
            _save(folder / "position.npy", [data.samples[i].position for i in ids], width=widths.pop() if widths else 1)
            index = {
                "name": data.name,
                "layout": data.layout,
                "features": data.features,
                "columns": [[c.name, c.kind, c.unit, list(c.levels)] for c in data.columns],
                "identities": list(data.identities),
                "gene_sets": {name: list(genes) for name, genes in data.gene_sets.items()},
                "warnings": list(data.warnings),
                "patient_ids": ids,
                "lengths": lengths,
            }
            write_json(folder / "index.json", index)
            seal(folder, {"format_version": FORMAT_VERSION, "key": key, "sources": dict(sources)})
        return self.get(key)

    def get(self, key: str) -> ModalityData:
        """Read an entry, memory-mapped.

        Raises:
            StoreError: no such entry, a newer format, or damage; the message names the part.
        """
        folder = self.path(key)
        manifest = verify(folder)
        if manifest.get("format_version") != FORMAT_VERSION or manifest.get("key") != key:
            msg = (
                f"{folder}: expected format {FORMAT_VERSION} and key {key[:12]}..., found another; "
                "update medfuse or delete it"
            )
            raise StoreError(msg)
        index = json.loads((folder / "index.json").read_bytes())
        tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        position = np.load(folder / "position.npy", mmap_mode="r", allow_pickle=False)
        ends = np.cumsum(index["lengths"])
        samples = {
            PatientId(patient): ModalitySample(tokens=tokens[end - n : end], position=position[end - n : end])
            for patient, n, end in zip(index["patient_ids"], index["lengths"], ends, strict=True)
        }
        return ModalityData(
            name=index["name"],
            layout=index["layout"],
            features=index["features"],
            columns=tuple(Column(name=c[0], kind=c[1], unit=c[2], levels=tuple(c[3])) for c in index["columns"]),
            identities=tuple(index["identities"]),
            gene_sets={gene_set: tuple(genes) for gene_set, genes in index["gene_sets"].items()},
            warnings=tuple(index["warnings"]),
            samples=samples,
            key=key,
        )


def _save(path: Path, parts: list[NDArray[np.float32]], *, width: int) -> None:
    array = np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)
    np.save(path, array, allow_pickle=False)
