"""A cohort's modalities: from the card's files through the feature store, for the cohort's patients."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfuse import gate, loaders
from medfuse.cohort import Cohort, resolve_source
from medfuse.errors import DataError, StoreError, nearest
from medfuse.extraction import extract, patient_files
from medfuse.files import sha256_file, sha256_path
from medfuse.sample import ModalityData
from medfuse.store import FeatureStore, PatientItems, entry_key
from medfuse.types import PatientId


def default_store_root() -> Path:
    """MEDFUSE_STORE, or ``.medfuse/store`` in the working folder."""
    return Path(os.environ.get("MEDFUSE_STORE", ".medfuse/store"))


def _load(cohort: Cohort, name: str, *, store: FeatureStore, hashes: dict[Path, str]) -> ModalityData:
    card = cohort.card
    spec = card.modalities[name]
    if spec.loader in loaders.RAW:
        return _extracted(cohort, name, store=store)

    def resolve(source: str) -> Path:
        return resolve_source(card, source, cohort.data_root, folder=spec.loader == "events")

    sources = {}
    for source in spec.sources():
        path = resolve(source)
        if path not in hashes:
            hashes[path] = sha256_path(path)
        sources[source] = hashes[path]
    files = patient_files(cohort, name) if spec.path else {}
    for patient, paths in files.items():
        sources |= {f"{cohort.public(patient)}#{k}": sha256_file(path) for k, path in enumerate(paths)}
    patients = (card.patients.id, card.patients.row_prefix)
    settings = {**spec.model_dump(mode="json", exclude={"description"}), "patients": list(patients), **_gated(cohort)}
    key = entry_key(name=name, settings=settings, sources=sources, version=loaders.VERSION)
    if key in store:
        try:
            return store.get(key)
        except StoreError:
            pass  # a damaged entry is rebuilt from its sources, whose hashes are part of the key
    _screen(cohort, name, files)
    with cohort.names_in_errors():
        if spec.path:
            data = loaders.read_files(name, spec, resolve=resolve, files=files)
        else:
            data = loaders.read(name, spec, resolve=resolve, patients=patients)
    return store.put(_renamed(data, cohort), key=key, sources=sources)


def _gated(cohort: Cohort) -> dict[str, Any]:
    """What strictness and pseudonyms add to the key of an entry."""
    found: dict[str, Any] = {}
    if cohort.card.strict:
        found["screened"] = sorted(cohort.card.governance.accepted)
    if cohort.pseudonyms is not None:  # the entry holds who is in the cohort, under other names
        found |= {"pseudonyms": cohort.pseudonyms.fingerprint, "of": sorted(cohort.source_ids)}
    return found


def _screen(cohort: Cohort, name: str, files: Mapping[PatientId, Sequence[Path]]) -> None:
    """Refuse a modality of a strict card whose files identify a person."""
    if not cohort.card.strict:
        return
    found = gate.of_sources(cohort, name, cohort.card.modalities[name]) + gate.of_patients(cohort, name, files)
    if found:
        raise gate.refusal(cohort.card, found)


def _renamed(data: ModalityData, cohort: Cohort) -> ModalityData:
    """The patients of the cohort under their pseudonyms, where it has some; nobody else."""
    if cohort.pseudonyms is None:
        return data
    names = {source: public for public, source in cohort.source_ids.items()}
    return dataclasses.replace(
        data,
        samples={names[i]: sample for i, sample in data.samples.items() if i in names},
        warnings=tuple(cohort.pseudonyms.text(text, [*names, *data.samples]) for text in data.warnings),
    )


def _extracted(cohort: Cohort, name: str, *, store: FeatureStore) -> ModalityData:
    """A modality of raw files: items that the store lacks are extracted, those that fail are listed."""
    report = extract(cohort, names=[name], store_root=store.root)
    parts: dict[PatientId, list[tuple[int, str]]] = {}
    for item in report.items:
        if item.key:
            parts.setdefault(item.patient_id, []).append((item.identity, item.key))
    patients = [PatientItems(patient_id=i, items=tuple(items)) for i, items in parts.items()]
    spec = cohort.card.modalities[name]
    warnings = [f"patient {item.patient_id}: {item.reason}" for item in report.failed]
    content = {"items": [[p.patient_id, list(map(list, p.items))] for p in patients], "warnings": warnings}
    key = entry_key(name=name, settings=content, sources={}, version=loaders.VERSION)
    if key in store:
        try:
            return store.get(key)
        except StoreError:
            pass
    return store.put_items(name, patients, key=key, identities=tuple(spec.files), warnings=warnings)


def load_modalities(
    cohort: Cohort, *, names: Sequence[str] | None = None, store_root: Path | None = None
) -> dict[str, ModalityData]:
    """Read the modalities of a cohort, reusing what the feature store holds.

    Args:
        cohort: whose patients are wanted; others in the files are left out.
        names: modalities to read, in this order; default: all of the card.
        store_root: folder of the feature store; default ``MEDFUSE_STORE`` or ``.medfuse/store``.

    Raises:
        DataError: an unknown modality, one that nobody in the cohort has, or what the loaders refuse; with a strict
            card, anything that identifies a person.
    """
    store = FeatureStore(store_root or default_store_root())
    hashes: dict[Path, str] = {}
    loaded = {}
    if cohort.card.strict:
        found = gate.of_card_tables(cohort)
        if found:
            raise gate.refusal(cohort.card, found)
    wanted = list(names) if names is not None else list(cohort.card.modalities)
    ids = cohort.patient_ids
    for name in wanted:
        if name not in cohort.card.modalities:
            msg = f"card {cohort.card.name}: no modality {name!r}; {nearest(name, cohort.card.modalities)}"
            raise DataError(msg)
        data = _load(cohort, name, store=store, hashes=hashes)
        samples = {patient: data.samples[patient] for patient in ids if patient in data.samples}
        if not samples:
            msg = (
                f"modality {name}: expected patients of cohort {cohort.card.name}, found none of {len(ids)} among "
                f"{len(data.samples)} in the files; do the ids have the same form?"
            )
            raise DataError(msg)
        loaded[name] = dataclasses.replace(data, samples=samples)
    return loaded


def manifest(data: Mapping[str, ModalityData], *, store_root: Path | None = None) -> dict[str, Any]:
    """What a run records of its data: per modality key, sources with SHA-256, counts and warnings."""
    from medfuse.files import verify

    store = FeatureStore(store_root or default_store_root())
    rows = {}
    for name, modality in data.items():
        sealed = verify(store.path(modality.key))
        rows[name] = {
            "key": modality.key,
            "sources": sealed["sources"],
            "patients": len(modality.samples),
            "columns": len(modality.columns) or modality.features,
            "identities": list(modality.identities),
            "warnings": list(modality.warnings),
        }
    return rows
