"""The feature store: modalities on disk, addressed by their content, sealed by a manifest of SHA-256.

A modality that a table gives is one entry. A modality of raw files has an entry per item (a slide, a series, a record),
written by an extractor, and one more entry that says which items make which patient.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import StoreError
from medfuse.files import new_folder, read_json, remove_abandoned, seal, sha256_bytes, verify, write_json
from medfuse.mapped import mapped
from medfuse.sample import ModalityData, ModalitySample
from medfuse.stored_table import (
    is_table,
    packed_columns,
    save_table,
    stored_columns,
    stored_positions,
    stored_tokens,
)
from medfuse.types import PatientId

FORMAT_VERSION = 2
_LARGEST_HALF = 6e4  # float16 ends at 65,504


@dataclass(frozen=True, kw_only=True)
class StoredItem:
    """What an extractor made of one item.

    Attributes:
        sample: tokens (T, F), memory-mapped in the precision of the disk, and positions.
        names: of the F features.
        unit: of the positions.
        facts: of the raw item, as JSON values.
        warnings: of its loader.
    """

    sample: ModalitySample
    names: tuple[str, ...] = ()
    unit: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PatientItems:
    """The items of one patient: (number of the token identity or -1, key of the item), in order."""

    patient_id: PatientId
    items: tuple[tuple[int, str], ...]


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

    An entry is complete only when its manifest exists. What is read in whole (tables) is verified in whole, size and
    SHA-256, whenever it is read. Items are mapped, and only rows that are asked for are read: :meth:`get` compares the
    manifest's own SHA-256 and the sizes, so that its cost does not grow with bytes. All their bytes are compared by
    every extraction, so once at the start of every load of a modality (which makes damaged items again), and by
    :meth:`verify`; a bit that flips on disk after that is seen by the next one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Folder of an entry."""
        return self.root / key[:32]

    def sweep(self) -> None:
        """Remove what killed writers left behind; what a living one holds stays."""
        if self.root.is_dir():
            remove_abandoned(self.root)

    def verify(self, key: str) -> None:
        """Compare every byte of an entry, and of the items that it names, with its SHA-256.

        Raises:
            StoreError: no such entry, or damage; the message names the part.
        """
        folder = self.path(key)
        verify(folder)
        if (folder / "index.json").is_file():
            for items in dict(read_json(folder / "index.json").get("items", {})).values():
                for _, item in items:
                    verify(self.path(item))

    def __contains__(self, key: str) -> bool:
        return (self.path(key) / "manifest.json").is_file()

    def put(self, data: ModalityData, *, key: str, sources: Mapping[str, str]) -> ModalityData:
        """Write an entry atomically and return it as read back.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        ids = list(data.samples)
        lengths = [len(data.samples[i].tokens) for i in ids]
        widths = {data.samples[i].position.shape[1] for i in ids}
        if len(widths) > 1:
            msg = f"modality {data.name}: expected one kind of position, found {len(widths)}; split it into modalities"
            raise StoreError(msg)
        with new_folder(self.path(key)) as folder:
            index: dict[str, Any] = {
                "name": data.name,
                "layout": data.layout,
                "features": data.features,
                "columns": packed_columns(data.columns),
                "identities": list(data.identities),
                "gene_sets": {name: list(genes) for name, genes in data.gene_sets.items()},
                "warnings": list(data.warnings),
                **({"item": list(data.item)} if data.item else {}),
                **({"meaning": data.meaning} if data.meaning else {}),
                "patient_ids": ids,
                "lengths": lengths,
            }
            if is_table(data):
                index["flags"] = save_table(folder, [data.samples[i] for i in ids])
            else:
                _save(folder / "tokens.npy", [data.samples[i].tokens for i in ids], width=data.features)
                _save(folder / "position.npy", [data.samples[i].position for i in ids], width=max(widths, default=1))
            write_json(folder / "index.json", index)
            seal(folder, {"format_version": FORMAT_VERSION, "key": key, "sources": dict(sources)}, blocks=True)
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
        if "items" in index:
            return self._gather(index, key=key)
        tokens, positions = stored_tokens(folder, index), stored_positions(folder, index)
        samples = {
            PatientId(patient): ModalitySample.trusted(tokens=own, position=position)
            for patient, own, position in zip(index["patient_ids"], tokens, positions, strict=True)
        }
        return ModalityData(
            name=index["name"],
            layout=index["layout"],
            features=index["features"],
            columns=stored_columns(index),
            identities=tuple(index["identities"]),
            gene_sets={gene_set: tuple(genes) for gene_set, genes in index["gene_sets"].items()},
            warnings=tuple(index["warnings"]),
            item=tuple(index.get("item", ())),
            meaning=str(index.get("meaning", "")),
            samples=samples,
            key=key,
        )

    def put_item(self, item: StoredItem, *, key: str, sources: Mapping[str, str]) -> None:
        """Write an item atomically; features as float16 where their range allows it.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        tokens = item.sample.tokens
        small = np.abs(tokens).max(initial=0.0) < _LARGEST_HALF
        with new_folder(self.path(key)) as folder:
            np.save(folder / "tokens.npy", tokens.astype(np.float16 if small else np.float32), allow_pickle=False)
            np.save(folder / "position.npy", item.sample.position, allow_pickle=False)
            content = {"names": list(item.names), "unit": item.unit, "facts": dict(item.facts)}
            write_json(folder / "item.json", {**content, "warnings": list(item.warnings)})
            seal(folder, {"format_version": FORMAT_VERSION, "key": key, "sources": dict(sources)})

    def get_item(self, key: str, *, check: bool = True) -> StoredItem:
        """Read an item, memory-mapped.

        Args:
            key: of the item.
            check: compare every file with its SHA-256 first; else the manifest's own, and sizes.

        Raises:
            StoreError: no such item, or damage.
        """
        folder = self.path(key)
        verify(folder, content=check)
        content = read_json(folder / "item.json")
        try:
            tokens = mapped(folder / "tokens.npy")
            position = np.load(folder / "position.npy", allow_pickle=False)
            sample = ModalitySample.trusted(tokens=tokens, position=position)
            return StoredItem(
                sample=sample,
                names=tuple(content["names"]),
                unit=content["unit"],
                facts=content["facts"],
                warnings=tuple(content["warnings"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{folder}: expected a stored item, found damage ({type(error).__name__}); run medfuse extract again"
            raise StoreError(msg) from error

    def put_items(
        self,
        name: str,
        patients: Sequence[PatientItems],
        *,
        key: str,
        identities: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> ModalityData:
        """Write which items make which patient, and return the modality as read back.

        Raises:
            StoreError: items of different widths, or the folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with new_folder(self.path(key)) as folder:
            items = {p.patient_id: [list(item) for item in p.items] for p in patients}
            index = {"name": name, "identities": list(identities), "warnings": list(warnings), "items": items}
            write_json(folder / "index.json", index)
            sources = {item: item for p in patients for _, item in p.items}
            seal(folder, {"format_version": FORMAT_VERSION, "key": key, "sources": sources})
        return self.get(key)

    def _gather(self, index: Mapping[str, Any], *, key: str) -> ModalityData:
        samples, widths, meanings, names = {}, set(), set(), set[tuple[str, ...]]()
        for patient, items in index["items"].items():
            parts = [(identity, self.get_item(item, check=False)) for identity, item in items]
            widths |= {part.sample.tokens.shape[1] for _, part in parts}
            meanings |= {_meaning(part.facts) for _, part in parts}
            names |= {part.names for _, part in parts}
            samples[PatientId(patient)] = _joined(parts)
        if len(widths) > 1:
            msg = f"modality {index['name']}: expected items of one width, found {sorted(widths)}; extract them alike"
            raise StoreError(msg)
        if len(meanings) > 1:  # raw windows or patches: the same numbers would mean something else
            msg = (
                f"modality {index['name']}: expected items alike in shape, channels, step and unit, found "
                f"{len(meanings)} kinds; state them in the extractor's options"
            )
            raise StoreError(msg)
        meaning = meanings.pop() if meanings else ""
        return ModalityData(
            name=index["name"],
            layout="vectors",
            item=tuple(json.loads(meaning).get("item", {}).get("shape", ())) if meaning else (),
            meaning=meaning,
            features=widths.pop() if widths else 0,
            identities=tuple(index["identities"]),
            warnings=tuple(index["warnings"]),
            samples=samples,
            key=key,
            feature_names=names.pop() if len(names) == 1 else (),
        )


def _meaning(facts: Mapping[str, Any]) -> str:
    """What the numbers of an item are, where its facts say it."""
    said = {name: facts[name] for name in ("item", "model") if name in facts}
    return json.dumps(said, sort_keys=True) if said else ""


def _joined(parts: Sequence[tuple[int, StoredItem]]) -> ModalitySample:
    """Items of one patient as one sample; with identities, the identity stands first in the position."""
    if len(parts) == 1 and parts[0][0] < 0:
        return parts[0][1].sample
    position = [
        part.sample.position
        if identity < 0
        else np.concatenate(
            [np.full((len(part.sample.position), 1), identity, np.float32), part.sample.position], axis=1
        )
        for identity, part in parts
    ]
    tokens = np.concatenate([part.sample.tokens for _, part in parts])
    return ModalitySample.trusted(tokens=tokens, position=np.concatenate(position))


def _save(path: Path, parts: list[NDArray[np.float32]], *, width: int) -> None:
    array = np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)
    np.save(path, array, allow_pickle=False)
