"""From raw files to the feature store: item by item, resumable, in any order, with any number of workers.

An item is what one loader reads at once (a slide, a DICOM series, a record) together with one extractor. Its key is
made of the SHA-256 of its files, the loader's options and version, and the extractor's settings and version; what is
stored already is kept, what is damaged is made again, and one bad file never stops the others.
"""

import glob
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from medfuse import gate, loaders
from medfuse.card import default_data_root, jailed
from medfuse.cohort import Cohort, resolve_source
from medfuse.config import CohortCard, ModalityCard
from medfuse.errors import ConfigError, DataError, MedfuseError, StoreError, nearest
from medfuse.extractors import DEFAULTS, Extractor, build_extractor
from medfuse.limits import LARGEST_FOLDER, files_below
from medfuse.processes import end_with_parent, one_thread
from medfuse.sample import RawSample
from medfuse.sources import SourceHashes, read_checksums
from medfuse.store import FeatureStore, StoredItem, entry_key
from medfuse.types import PatientId

Status = Literal["stored", "kept", "failed"]
_LONGEST = 60.0  # seconds between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item to extract.

    Attributes:
        modality, patient_id: whose it is.
        source_id: the patient's id in the files, where patient_id is a pseudonym.
        identity: number of its token identity (a stain, a view), or -1.
        card: how it is read.
        files: its files; the table of all patients for a modality with ``file``.
        hashes: SHA-256 of each.
        screened: what was accepted when its identifying elements were looked for; None where the card is not strict.
        id_column, row_prefix: how a table names its patients.
    """

    modality: str
    patient_id: PatientId
    source_id: PatientId
    identity: int
    card: ModalityCard
    files: tuple[Path, ...]
    hashes: tuple[str, ...] = ()
    screened: tuple[str, ...] | None = None
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
    root = data_root or default_data_root()
    if root is None:
        msg = f"{card.name}: expected a data root for raw files, found none; pass --data-root or set MEDFUSE_DATA"
        raise ConfigError(msg)
    return jailed(card.root, root) if card.root else root


def _files_of(pattern: str, patient: PatientId, root: Path) -> list[Path]:
    """Files of one patient, sorted; a folder gives all files below it. Links out of the root are refused."""
    if any(part in {"", ".", ".."} for part in (patient, *patient.replace("\\", "/").split("/"))) or "\0" in patient:
        msg = (
            f"patient {patient!r}: expected an id that can be part of a path; rename the files, or list them in a table"
        )
        raise DataError(msg)
    wanted = pattern.replace("{patient_id}", glob.escape(patient))
    jailed(pattern.replace("{patient_id}", "x").replace("*", "x").replace("?", "x"), root)
    try:
        exact = root / pattern.replace("{patient_id}", patient)
        if not glob.has_magic(pattern) and exact.is_symlink() and not exact.exists():
            msg = "expected files and folders, found a link to nothing"
            raise ValueError(msg)
        return _matches(root, wanted)
    except ConfigError as error:  # its text may hold names of files
        msg = f"patient {patient}: expected files below the data root, found a link out of it or a loop in {pattern!r}"
        raise DataError(f"{msg}; copy the files there") from error
    except ValueError as error:
        msg = f"patient {patient}: {error} in {pattern!r}; narrow the pattern, or tidy the folder"
        raise DataError(msg) from error


def _matches(root: Path, wanted: str) -> list[Path]:
    """Files that a pattern names, and those below folders that it names.

    Raises:
        ConfigError: a link out of the root.
        ValueError: too many or too deep, or something that is neither a file nor a folder.
    """
    found: list[Path] = []
    matches = list(islice(root.glob(wanted), LARGEST_FOLDER + 1))
    for match in sorted(p.relative_to(root).as_posix() for p in matches):
        path = jailed(match, root)
        if not (path.is_dir() or path.is_file()):
            msg = "expected files and folders, found a pipe, a device or a broken link"
            raise ValueError(msg)
        below = sorted(files_below(path)) if path.is_dir() else [path]
        found += [jailed(p.relative_to(root).as_posix(), root) for p in below]
    if len(found) > LARGEST_FOLDER:
        msg = f"expected at most {LARGEST_FOLDER} files, found more"
        raise ValueError(msg)
    return found


def patient_files(cohort: Cohort, name: str) -> dict[PatientId, tuple[Path, ...]]:
    """Files of each patient who has any, by the id in the files and the ``path`` of a modality's card.

    Raises:
        ConfigError: no data root, a path that leaves it, or a file that two patients match.
        DataError: an id that cannot be part of a path.
    """
    root = _below(cohort.card, cohort.data_root)
    pattern = str(cohort.card.modalities[name].path)
    sources = [cohort.source_id(patient) for patient in cohort.patient_ids]
    with cohort.names_in_errors():
        found = {patient: tuple(_files_of(pattern, patient, root)) for patient in sources}
        owners: dict[Path, PatientId] = {}
        for patient, path in ((patient, path) for patient, files in found.items() for path in files):
            if owners.setdefault(path, patient) != patient:
                raise ConfigError(_shared(name, path.name, owners[path], patient))
    return {patient: files for patient, files in found.items() if files}


def listing(cohort: Cohort, name: str) -> tuple[list[Item], list[Extracted]]:
    """Items of a raw modality, not hashed yet, and what is wrong with those that cannot even be listed."""
    card = cohort.card.modalities[name]
    if card.file:
        return list(_table_items(cohort, name)), []
    module = loaders.module_of(card.loader, where=f"modality {name}")
    items: list[Item] = []
    failed: list[Extracted] = []
    root = _below(cohort.card, cohort.data_root)
    patterns = list(enumerate(card.files.values())) if card.files else [(-1, str(card.path))]
    group = getattr(module, "group", lambda files: [(path,) for path in files])
    for patient in cohort.patient_ids:
        source = cohort.source_id(patient)
        for identity, pattern in patterns:
            whole = Item(modality=name, patient_id=patient, source_id=source, identity=identity, card=card, files=())
            try:
                found = _files_of(pattern, source, root)
                whole = replace(whole, files=tuple(found))
                items += [replace(whole, files=tuple(files)) for files in (group(found) if found else ())]
            except Exception as error:  # noqa: BLE001  # a loader that fails on one patient never stops the rest
                failed.append(_failure(whole, error))
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
                msg = _shared(name, unnamed(path.name, item), owners[path], item.patient_id)
                raise ConfigError(msg)


def _shared(name: str, file: str, first: PatientId, second: PatientId) -> str:
    return (
        f"modality {name}: expected files of one patient each, found {file} for patients {first} and {second}; put "
        "what follows an id in the file names behind {patient_id} in the card's path, such as {patient_id}_*"
    )


def _table_items(cohort: Cohort, name: str) -> Iterator[Item]:
    """Patients of a modality that one table holds."""
    card, people = cohort.card.modalities[name], cohort.card.patients
    module = loaders.module_of(card.loader, where=f"modality {name}")
    path = resolve_source(cohort.card, str(card.file), cohort.data_root)
    known = module.read_table_of(path, card, patients=(people.id, people.row_prefix))
    for patient in cohort.patient_ids:
        if cohort.source_id(patient) in known:
            yield Item(
                modality=name,
                patient_id=patient,
                source_id=cohort.source_id(patient),
                identity=-1,
                card=card,
                files=(path,),
                id_column=people.id,
                row_prefix=people.row_prefix,
            )


def plan(cohort: Cohort, name: str, *, hashes: SourceHashes | None = None) -> tuple[list[Item], list[Extracted]]:
    """Items of a raw modality with the SHA-256 of their files; those that cannot be listed or were changed fail.

    Raises:
        DataError: the card's list of checksums, or its table, cannot be read.
    """
    listed, failed = listing(cohort, name)
    hashes = hashes or SourceHashes()
    source, root = cohort.card.governance.checksums, Path()
    expected: dict[str, str] | None = None
    if source is not None and not cohort.card.modalities[name].file:
        expected = read_checksums(resolve_source(cohort.card, source, cohort.data_root))
        root = _below(cohort.card, cohort.data_root)
    items: list[Item] = []
    for item in listed:
        try:
            whole = replace(item, hashes=tuple(hashes(path) for path in item.files))
            if expected is not None:
                _same(whole, expected, root)
            items.append(whole)
        except MedfuseError as error:
            failed.append(_failure(item, error))
    return items, failed


def _same(item: Item, expected: Mapping[str, str], root: Path) -> None:
    for path, found in zip(item.files, item.hashes, strict=True):
        listed = expected.get(path.relative_to(root).as_posix())
        if listed != found:
            what = "it is not in the list" if listed is None else "its content has another SHA-256"
            msg = (
                f"{path.name}: expected the file that the card's checksums list, found that {what}; restore it, or "
                "review the change and write the list again with sha256sum"
            )
            raise DataError(msg)


def _failure(item: Item, error: BaseException) -> Extracted:
    reason = str(error) if isinstance(error, MedfuseError) else f"internal error: {type(error).__name__}; report it"
    return Extracted(
        modality=item.modality,
        patient_id=item.patient_id,
        identity=item.identity,
        status="failed",
        reason=unnamed(reason, item),
    )


def unnamed(text: str, item: Item) -> str:
    """A text for what medfuse writes: files are named by their pattern and number, for their own names may hold more.

    The file of a pattern without wildcards is named as it is, for its name is the pattern and the id.
    """
    patterns = list(item.card.files.values()) if item.identity >= 0 else [item.card.path or ""]
    pattern = patterns[max(item.identity, 0)]
    exact = pattern.replace("{patient_id}", item.source_id)
    for number, path in enumerate(() if item.card.file else item.files, 1):
        if path.as_posix().endswith(exact):
            label = path.name
        else:
            label = f"{pattern} (file {number} of {len(item.files)} of patient {item.source_id})"
        text = text.replace(str(path), label).replace(path.name, label) if label != path.name else text
        if label != path.name and len(path.stem) > 3 and path.stem not in item.source_id:
            text = text.replace(path.stem, label)
    if item.source_id != item.patient_id:
        stand_in = re.compile(rf"(?<![^\W_]){re.escape(item.source_id)}(?![^\W_])")
        text = stand_in.sub(item.patient_id, text)
    return text


def findings_of(item: Item) -> list[gate.Finding]:
    """What identifies a person in the files of an item, but for what the card accepts.

    Raises:
        DataError: the files cannot be looked into.
    """
    texts = gate.elements(item.card.loader, item.files, accepted=item.screened or ())
    label = unnamed(item.files[0].name, item)
    return [gate.Finding(part=item.modality, file=label, element=unnamed(text, item)) for text in texts]


def _pass_gate(cohort: Cohort, items: Sequence[Item], store: FeatureStore) -> tuple[list[Item], list[Extracted]]:
    """Items of a strict card that may be stored, and those that could not be looked into.

    Raises:
        DataError: anything that identifies a person, before any item is stored; a table that cannot be looked into.
    """
    accepted = tuple(cohort.card.governance.accepted)
    found = gate.of_card_tables(cohort)
    for name, card in {item.modality: item.card for item in items if item.card.file}.items():
        found += gate.of_sources(cohort, name, card)
    passed: list[Item] = []
    failed: list[Extracted] = []
    for item in (replace(one, screened=accepted) for one in items):
        try:
            if not item.card.file and item_key(item) not in store:
                found += findings_of(item)
            passed.append(item)
        except Exception as error:  # noqa: BLE001  # one bad file never stops the rest; it is not stored
            failed.append(_failure(item, error))
    if found:
        raise gate.refusal(cohort.card, found)
    return passed, failed


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
    settings: dict[str, Any] = {
        "loader": item.card.loader,
        "options": item.card.options,
        "unit": item.card.unit,
        "extractor": type(extractor).__name__,
        "extractor_version": extractor.version,
        "extractor_settings": dict(extractor.settings),
        "patient": item.patient_id if item.card.file else None,
    }
    if item.screened is not None:  # what was stored without being looked at is not what a strict card asks for
        settings["screened"] = sorted(item.screened)
    sources = {f"{k:06d}": sha for k, sha in enumerate(item.hashes)}
    return entry_key(name="item", settings=settings, sources=sources, version=loaders.VERSION)


def _raw(item: Item) -> RawSample:
    module = loaders.module_of(item.card.loader, where=item.whose)
    if item.card.file:
        everyone: Mapping[PatientId, RawSample] = _table(
            item.files[0], item.hashes[0], item.card.model_dump_json(), item.id_column, item.row_prefix
        )
        return everyone[item.source_id]
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


def extract_item(item: Item, store_root: Path, *, verify: bool = True) -> Extracted:
    """Extract one item unless the store holds it; never raises.

    Args:
        item: what is wanted.
        store_root: folder of the feature store.
        verify: compare every byte of a stored item with its SHA-256; else its manifest and sizes only.
    """
    started = time.perf_counter()
    try:
        key = item_key(item)
        store = FeatureStore(store_root)
        done = Extracted(
            modality=item.modality, patient_id=item.patient_id, identity=item.identity, status="kept", key=key
        )
        if key in store:
            try:
                store.get_item(key, check=verify)
                return done
            except StoreError:
                pass  # damaged: made again from its sources, whose hashes are in the key
        raw = _raw(item)
        extractor = _extractor_of(item.card, raw.item, where=item.whose)
        stored = StoredItem(
            sample=extractor.extract(raw),
            names=extractor.names(raw),
            unit=raw.unit,
            facts=extractor.facts(raw),
            warnings=tuple(unnamed(text, item) for text in raw.warnings),
        )
        store.put_item(stored, key=key, sources={f"{k:06d}": sha for k, sha in enumerate(item.hashes)})
        return replace(done, status="stored", seconds=time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001  # one bad item never stops the rest; it is listed
        return _failure(item, error)


# --- all items -------------------------------------------------------------------------------------------------------


def extract(
    cohort: Cohort,
    *,
    names: Sequence[str] | None = None,
    store_root: Path,
    workers: int = 1,
    verify: bool = True,
    rehash: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> ExtractionReport:
    """Fill the feature store with the raw modalities of a cohort.

    Args:
        cohort: whose files are wanted.
        names: raw modalities; default: all of the card.
        store_root: folder of the feature store.
        workers: child processes, so that a decoder that crashes takes none but its own; 0 = this process.
        verify: compare every byte of what is stored with its SHA-256; else manifests and sizes only.
        rehash: read every source file, also those that look as they did when they were read before.
        say: called with progress, throughput and time left.

    Returns:
        What became of every item, in the order of the cohort whatever the workers did.

    Raises:
        ConfigError: an unknown loader, extractor or option.
        DataError: a table of all patients that cannot be read; with a strict card, anything that identifies a person.
    """
    wanted = _raw_modalities(cohort, names)
    store = FeatureStore(store_root)
    store.sweep()
    secret = cohort.pseudonyms.path_secret if cohort.pseudonyms else b""
    hashes = SourceHashes(store_root, trust=not rehash, secret=secret)
    items: list[Item] = []
    results: list[Extracted] = []
    absent: dict[str, int] = {}
    for name in wanted:
        listed, failed = plan(cohort, name, hashes=hashes)
        if listed:
            item_key(listed[0])  # a wrong option stops here, not once per patient
        items += listed
        results += failed
        seen = {i.patient_id for i in listed} | {f.patient_id for f in failed}
        absent[name] = len(cohort.patient_ids) - len(seen)
    hashes.save()
    if cohort.card.strict:
        items, failed = _pass_gate(cohort, items, store)
        results += failed
    done = _run(
        items,
        partial(extract_item, verify=verify),
        store_root,
        workers=workers,
        there=lambda item: item_key(item) in store,
    )
    results += _told(done, len(items), say=say)
    order = {key: k for k, key in enumerate((n, i) for n in wanted for i in cohort.patient_ids)}
    results.sort(key=lambda r: (order[(r.modality, r.patient_id)], r.identity, r.key))
    return ExtractionReport(items=tuple(results), absent=absent)


def _raw_modalities(cohort: Cohort, names: Sequence[str] | None) -> list[str]:
    """The modalities asked for (none named: all of the card) that are files of one patient each.

    Raises:
        ConfigError: the card has no such modality.
    """
    unknown = next((n for n in names or () if n not in cohort.card.modalities), None)
    if unknown is not None:
        msg = f"card {cohort.card.name}: no modality {unknown!r}; {nearest(unknown, cohort.card.modalities)}"
        raise ConfigError(msg)
    return [n for n in (names or cohort.card.modalities) if cohort.card.modalities[n].loader in loaders.RAW]


def _told(done: Iterable[Extracted], total: int, *, say: Callable[[str], None]) -> Iterator[Extracted]:
    """What comes in, and ever more seldom a line on progress, throughput and time left."""
    started, last = time.perf_counter(), 0.0
    for number, result in enumerate(done, 1):
        yield result
        if number == 1:  # until then processes start, which says nothing of the rate
            started = time.perf_counter()
            continue
        spent = time.perf_counter() - started
        if spent - last > min(2 + last / 4, _LONGEST) or number == total:
            last, rate = spent, (number - 1) / max(spent, 1e-9)
            say(f"extract: {number} of {total} items, {rate:.1f} per s, {(total - number) / rate:.0f} s left")


_Work = Callable[[Item, Path], Extracted]


def _run(
    items: Sequence[Item],
    work: _Work,
    store_root: Path,
    *,
    workers: int,
    there: Callable[[Item], bool] = lambda item: False,
) -> Iterator[Extracted]:
    """Work on items in child processes, in any order; with no workers, in this process. ``there``: stored already."""
    if workers < 1:
        yield from (work(item, store_root) for item in items)
        return
    waiting = list(reversed(items))
    if workers == 1:  # what is stored is only looked at, which needs no other process
        yield from (work(item, store_root) for item in items if there(item))
        waiting = [item for item in waiting if not there(item)]
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    while waiting:
        running: dict[Any, tuple[Item, bool]] = {}  # and whether it is stored already
        try:
            with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(begun,)) as pool:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        known = there(waiting[-1])
                        running[pool.submit(work, waiting[-1], store_root)] = waiting[-1], known
                        waiting.pop()  # after the call, which a dead pool refuses
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del running[future]
                        yield result
        except BrokenProcessPool:  # a decoder killed its process: find whose file it was, one process each
            if not begun.is_set():
                msg = (
                    "expected child processes that start, found none that did; does a script call medfuse outside of "
                    "if __name__ == '__main__'? put its calls there (each child imports the script), or use workers=0"
                )
                raise ConfigError(msg) from None
            for item, known in running.values():
                found = _alone(item, work, store_root, context)
                # Its first process may have stored it and died before it could say so.
                yield replace(found, status="stored") if found.status == "kept" and not known else found


def _begin(begun: Any) -> None:  # noqa: ANN401  # an event of a context
    """In a child process, before its first item."""
    end_with_parent()
    one_thread()
    begun.set()


def _alone(item: Item, work: _Work, store_root: Path, context: Any) -> Extracted:  # noqa: ANN401  # a context
    try:
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
            return pool.submit(work, item, store_root).result()
    except BrokenProcessPool:
        reason = "the decoder crashed on this file; is it damaged? look at it with medfuse inspect"
        return _failure(item, DataError(f"{item.files[0].name}: {reason}"))
