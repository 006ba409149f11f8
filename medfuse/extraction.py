"""From raw files to the feature store: item by item, resumable, in any order, with any number of workers.

An item is what one loader reads at once (a slide, a DICOM series, a record) together with one extractor. Its key is
made of the SHA-256 of its files, the loader's options and version, and the extractor's settings and version; what is
stored already is kept, what is damaged is made again, and one bad file never stops the others.
"""

import glob
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from medfuse import loaders
from medfuse.card import default_data_root, jailed
from medfuse.cohort import Cohort, resolve_source
from medfuse.config import CohortCard, ModalityCard
from medfuse.errors import ConfigError, DataError, MedfuseError, StoreError
from medfuse.extractors import DEFAULTS, Extractor, build_extractor
from medfuse.files import sha256_file
from medfuse.limits import LARGEST_FOLDER
from medfuse.sample import RawSample
from medfuse.store import FeatureStore, StoredItem, entry_key
from medfuse.types import PatientId

Status = Literal["stored", "kept", "failed"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item to extract.

    Attributes:
        modality, patient_id: whose it is.
        identity: number of its token identity (a stain, a view), or -1.
        card: how it is read.
        files: its files; the table of all patients for a modality with ``file``.
        hashes: SHA-256 of each.
        id_column, row_prefix: how a table names its patients.
    """

    modality: str
    patient_id: PatientId
    identity: int
    card: ModalityCard
    files: tuple[Path, ...]
    hashes: tuple[str, ...]
    id_column: str | None = None
    row_prefix: str = ""

    @property
    def whose(self) -> str:
        """For messages."""
        return f"modality {self.modality}, patient {self.patient_id}"


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What became of one item; ``key`` is empty and ``reason`` says why when it failed."""

    modality: str
    patient_id: PatientId
    identity: int
    status: Status
    key: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExtractionReport:
    """All items of some modalities, in the order of the cohort; ``absent`` counts patients without any file."""

    items: tuple[Extracted, ...]
    absent: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Extracted, ...]:
        """Items that could not be read, with their reasons."""
        return tuple(item for item in self.items if item.status == "failed")


# --- which items there are -------------------------------------------------------------------------------------------


def _below(card: CohortCard, data_root: Path | None) -> Path:
    if data_root is None:
        msg = f"{card.name}: expected a data root for raw files, found none; pass --data-root or set MEDFUSE_DATA"
        raise ConfigError(msg)
    return jailed(card.root, data_root) if card.root else data_root


def _files_of(pattern: str, patient: PatientId, root: Path) -> list[Path]:
    """Files of one patient, sorted; a folder gives all files below it. Links out of the root are refused."""
    if any(part in {"", ".", ".."} for part in (patient, *patient.replace("\\", "/").split("/"))) or "\0" in patient:
        msg = (
            f"patient {patient!r}: expected an id that can be part of a path; rename the files, or list them in a table"
        )
        raise DataError(msg)
    wanted = pattern.replace("{patient_id}", glob.escape(patient))
    jailed(pattern.replace("{patient_id}", "x").replace("*", "x").replace("?", "x"), root)
    found: list[Path] = []
    for match in sorted(p.relative_to(root).as_posix() for p in root.glob(wanted)):
        path = jailed(match, root)
        below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += [jailed(p.relative_to(root).as_posix(), root) for p in below]
        if len(found) > LARGEST_FOLDER:
            msg = f"patient {patient}: expected at most {LARGEST_FOLDER} files, found more; narrow {pattern!r}"
            raise DataError(msg)
    return found


def patient_files(cohort: Cohort, name: str) -> dict[PatientId, tuple[Path, ...]]:
    """Files of each patient who has any, by the ``path`` of a modality's card.

    Raises:
        ConfigError: no data root, a path that leaves it, or a file that two patients match.
        DataError: an id that cannot be part of a path.
    """
    root = _below(cohort.card, cohort.data_root or default_data_root())
    pattern = str(cohort.card.modalities[name].path)
    found = {patient: tuple(_files_of(pattern, patient, root)) for patient in cohort.patient_ids}
    owners: dict[Path, PatientId] = {}
    for patient, path in ((patient, path) for patient, files in found.items() for path in files):
        if owners.setdefault(path, patient) != patient:
            msg = (
                f"modality {name}: expected files of one patient each, found {path.name} for patients {owners[path]} "
                f"and {patient}; put what follows an id in the file names behind {{patient_id}} in the card's path"
            )
            raise ConfigError(msg)
    return {patient: files for patient, files in found.items() if files}


class _Hashes:
    """SHA-256 of files, each computed once per run."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def __call__(self, path: Path) -> str:
        if path not in self._known:
            self._known[path] = sha256_file(path)
        return self._known[path]


def plan(cohort: Cohort, name: str) -> tuple[list[Item], list[Extracted]]:
    """Items of a raw modality, and what is wrong with those that cannot even be listed."""
    card = cohort.card.modalities[name]
    module = loaders.module_of(card.loader, where=f"modality {name}")
    hashes = _Hashes()
    items: list[Item] = []
    failed: list[Extracted] = []
    if card.file:
        path = resolve_source(cohort.card, card.file, cohort.data_root)
        people = cohort.card.patients
        known = module.read_table_of(path, card, patients=(people.id, people.row_prefix))
        for patient in cohort.patient_ids:
            if patient in known:
                items.append(
                    Item(
                        modality=name,
                        patient_id=patient,
                        identity=-1,
                        card=card,
                        files=(path,),
                        hashes=(hashes(path),),
                        id_column=people.id,
                        row_prefix=people.row_prefix,
                    )
                )
        return items, failed
    root = _below(cohort.card, cohort.data_root)
    patterns = list(enumerate(card.files.values())) if card.files else [(-1, str(card.path))]
    group = getattr(module, "group", lambda files: [(path,) for path in files])
    for patient in cohort.patient_ids:
        for identity, pattern in patterns:
            try:
                found = _files_of(pattern, patient, root)
                for files in group(found) if found else ():
                    items.append(
                        Item(
                            modality=name,
                            patient_id=patient,
                            identity=identity,
                            card=card,
                            files=tuple(files),
                            hashes=tuple(hashes(path) for path in files),
                        )
                    )
            except MedfuseError as error:
                failed.append(_failure(name, patient, identity, error))
    _refuse_shared(items, name)
    return items, failed


def _refuse_shared(items: Sequence[Item], name: str) -> None:
    """A pattern such as ``{patient_id}*`` gives the files of patient 10 to patient 1, too.

    Raises:
        ConfigError: a file belongs to two patients.
    """
    owners: dict[Path, PatientId] = {}
    for item in items:
        for path in item.files:
            if owners.setdefault(path, item.patient_id) != item.patient_id:
                msg = (
                    f"modality {name}: expected files of one patient each, found {path.name} for patients "
                    f"{owners[path]} and {item.patient_id}; put what follows an id in the file names behind "
                    "{patient_id} in the card's path, such as {patient_id}_*"
                )
                raise ConfigError(msg)


def _failure(name: str, patient: PatientId, identity: int, error: BaseException) -> Extracted:
    reason = str(error) if isinstance(error, MedfuseError) else f"internal error: {type(error).__name__}; report it"
    return Extracted(modality=name, patient_id=patient, identity=identity, status="failed", reason=reason)


# --- one item --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _extractor(options: str, *, where: str) -> Extractor:
    return build_extractor(json.loads(options), where=where)


def _extractor_of(card: ModalityCard, item_kind: str, *, where: str) -> Extractor:
    options = dict(card.extractor) or {"name": DEFAULTS[item_kind]}  # type: ignore[index]
    return _extractor(json.dumps(options, sort_keys=True), where=where)


def item_key(item: Item) -> str:
    """Content address of an item: its files, options and the code that reads them; not its name or place.

    The extractor of a kind is fixed by the loader, so its settings can be known before anything is read.
    """
    module = loaders.module_of(item.card.loader, where=item.whose)
    extractor = _extractor_of(item.card, module.ITEM, where=item.whose)
    settings = {
        "loader": item.card.loader,
        "options": item.card.options,
        "unit": item.card.unit,
        "extractor": type(extractor).__name__,
        "extractor_version": extractor.version,
        "extractor_settings": dict(extractor.settings),
        "patient": item.patient_id if item.card.file else None,
    }
    sources = {f"{k:06d}": sha for k, sha in enumerate(item.hashes)}
    return entry_key(name="item", settings=settings, sources=sources, version=loaders.VERSION)


def _raw(item: Item) -> RawSample:
    module = loaders.module_of(item.card.loader, where=item.whose)
    if item.card.file:
        everyone: Mapping[PatientId, RawSample] = _table(
            item.files[0], item.hashes[0], item.card.model_dump_json(), item.id_column, item.row_prefix
        )
        return everyone[item.patient_id]
    raw: RawSample = module.read(item.files, item.card.options)
    return raw


@lru_cache(maxsize=2)
def _table(
    path: Path, sha256: str, card: str, id_column: str | None, row_prefix: str
) -> Mapping[PatientId, RawSample]:  # the hash is part of the cache's key
    parsed = ModalityCard.model_validate_json(card)
    module = loaders.module_of(parsed.loader, where=path.name)
    found: Mapping[PatientId, RawSample] = module.read_table_of(path, parsed, patients=(id_column, row_prefix))
    return found


def extract_item(item: Item, store_root: Path) -> Extracted:
    """Extract one item unless the store holds it, sound; never raises."""
    started = time.perf_counter()
    try:
        key = item_key(item)
        store = FeatureStore(store_root)
        done = Extracted(
            modality=item.modality, patient_id=item.patient_id, identity=item.identity, status="kept", key=key
        )
        if key in store:
            try:
                store.get_item(key)
                return done
            except StoreError:
                pass  # damaged: made again from its sources, whose hashes are in the key
        raw = _raw(item)
        extractor = _extractor_of(item.card, raw.item, where=item.whose)
        stored = StoredItem(
            sample=extractor.extract(raw),
            names=extractor.names(raw),
            unit=raw.unit,
            facts=raw.facts,
            warnings=raw.warnings,
        )
        store.put_item(stored, key=key, sources={f"{k:06d}": sha for k, sha in enumerate(item.hashes)})
        return replace(done, status="stored", seconds=time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001  # one bad item never stops the rest; it is listed
        return _failure(item.modality, item.patient_id, item.identity, error)


# --- all items -------------------------------------------------------------------------------------------------------


def extract(
    cohort: Cohort,
    *,
    names: Sequence[str] | None = None,
    store_root: Path,
    workers: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> ExtractionReport:
    """Fill the feature store with the raw modalities of a cohort.

    Args:
        cohort: whose files are wanted.
        names: raw modalities; default: all of the card.
        store_root: folder of the feature store.
        workers: processes; 1 = this one.
        say: called with progress, throughput and time left.

    Returns:
        What became of every item, in the order of the cohort whatever the workers did.

    Raises:
        ConfigError: an unknown loader, extractor or option.
        DataError: a table of all patients that cannot be read.
    """
    wanted = [n for n in (names or cohort.card.modalities) if cohort.card.modalities[n].loader in loaders.RAW]
    items: list[Item] = []
    results: list[Extracted] = []
    absent: dict[str, int] = {}
    for name in wanted:
        listed, failed = plan(cohort, name)
        if listed:
            item_key(listed[0])  # a wrong option stops here, not once per patient
        items += listed
        results += failed
        seen = {i.patient_id for i in listed} | {f.patient_id for f in failed}
        absent[name] = len(cohort.patient_ids) - len(seen)
    started, last = time.perf_counter(), 0.0
    for number, result in enumerate(_run(items, store_root, workers=workers), 1):
        results.append(result)
        spent = time.perf_counter() - started
        if spent - last > 2 or number == len(items):
            last, rate = spent, number / max(spent, 1e-9)
            say(f"extract: {number} of {len(items)} items, {rate:.1f} per s, {(len(items) - number) / rate:.0f} s left")
    order = {key: k for k, key in enumerate((n, i) for n in wanted for i in cohort.patient_ids)}
    results.sort(key=lambda r: (order[(r.modality, r.patient_id)], r.identity, r.key))
    return ExtractionReport(items=tuple(results), absent=absent)


def _run(items: Sequence[Item], store_root: Path, *, workers: int) -> Iterator[Extracted]:
    if workers <= 1:
        yield from (extract_item(item, store_root) for item in items)
        return
    waiting = list(reversed(items))
    context = multiprocessing.get_context("spawn")
    while waiting:
        running: dict[Any, Item] = {}
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        item = waiting.pop()
                        running[pool.submit(extract_item, item, store_root)] = item
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del running[future]
                        yield result
        except BrokenProcessPool:  # a decoder killed its process: find whose file it was, one process each
            for item in running.values():
                yield _alone(item, store_root, context)


def _alone(item: Item, store_root: Path, context: Any) -> Extracted:  # noqa: ANN401  # a multiprocessing context
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(extract_item, item, store_root).result()
    except BrokenProcessPool:
        reason = "the decoder crashed on this file; is it damaged? look at it with medfuse inspect"
        return Extracted(
            modality=item.modality,
            patient_id=item.patient_id,
            identity=item.identity,
            status="failed",
            reason=f"{item.files[0].name}: {reason}",
        )
