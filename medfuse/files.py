"""Writing files so that a crash leaves the old state or the new one, and reading them so that damage is seen.

One rule for every file: a temporary file in the same folder, write, flush, fsync, rename, fsync the folder. A folder of
several files is complete only when its manifest (sizes and SHA-256) exists; readers ignore or refuse one without it.
A folder that has its manifest is changed by :func:`amended` alone: all of a change and its new manifest, or none of it.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from medfuse.errors import StoreError

MANIFEST = "manifest.json"
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}  # a folder stands where one is to go
BLOCK = 1 << 22  # bytes that one SHA-256 of a list covers
TEMPORARY = ".tmp-"
_AMENDMENT = ".amendment"  # a change of a sealed folder that is decided and not yet all in place
_SET_ASIDE = re.compile(rf"{re.escape(TEMPORARY)}(.+)-[0-9a-f]{{8}}-old")  # what stood where a new folder goes
_PIECE = 1 << 18  # bytes read at a time: they are hashed while they are in the cache
_MOST_THREADS = 4


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces.

    Raises:
        StoreError: when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        msg = f"{path}: expected a readable file, found: {error.strerror}"
        raise StoreError(msg) from error


def sha256_blocks(path: Path) -> list[str]:
    """Hexadecimal SHA-256 of every 4 MiB of a file, hashed on up to four cores at once.

    One SHA-256 is a chain that a second core cannot join; together these cover the same bytes.

    Raises:
        StoreError: when the file cannot be read.
    """
    try:
        from medfuse.processes import usable_cores

        starts = range(0, path.stat().st_size, BLOCK)
        threads = min(_MOST_THREADS, usable_cores())
        if threads == 1 or len(starts) < 2:
            return [_sha256_block(path, start) for start in starts]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda start: _sha256_block(path, start), starts))
    except OSError as error:
        msg = f"{path}: expected a readable file, found: {error.strerror}"
        raise StoreError(msg) from error


def _sha256_block(path: Path, start: int) -> str:
    digest, piece, left = hashlib.sha256(), memoryview(bytearray(_PIECE)), BLOCK
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (n := file.readinto(piece[: min(left, _PIECE)])):
            digest.update(piece[:n])
            left -= n
    return digest.hexdigest()


def sha256_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and SHA-256 of everything below a folder.

    Raises:
        StoreError: when a file cannot be read.
    """
    if not path.is_dir():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_bytes("".join(f"{sha256_file(p)} {p.relative_to(path).as_posix()}\n" for p in files).encode())


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (a no-op where folders cannot be opened, as on Windows)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash at any point it holds all of ``content`` or what it held before.

    Raises:
        StoreError: when it cannot be written, as on a full disk; nothing half-written is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _hold(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror}); free space or choose another folder, then run again"
        raise StoreError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def json_bytes(content: object) -> bytes:
    """JSON as the project writes it: sorted keys, UTF-8, no NaN.

    Raises:
        StoreError: for a value that JSON cannot hold, NaN and infinity included.
    """
    try:
        return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        msg = f"expected values that JSON can hold, found: {error}"
        raise StoreError(msg) from error


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; see :func:`write_bytes` and :func:`json_bytes`."""
    write_bytes(path, json_bytes(content))


def read_json(path: Path) -> Any:  # noqa: ANN401  # the caller knows the shape of its own file
    """Read a JSON file.

    Raises:
        StoreError: when it is missing or is not JSON.
    """
    return _read_json(path)[0]


def _read_json(path: Path) -> tuple[Any, bytes]:
    """What a JSON file says, and the bytes it was read from: another may stand there a moment later."""
    try:
        found = path.read_bytes()
        return json.loads(found), found
    except OSError as error:
        msg = f"{path}: expected a JSON file, found: {error.strerror}"
        raise StoreError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{path}: expected JSON, found damaged or other text; restore the file or write it again"
        raise StoreError(msg) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well, and vanishes when it does not.

    Replacing an existing folder is two renames. When the second fails, the old folder is put back. A kill between them
    leaves no folder there rather than a mixture, and the old one beside it: :func:`verify` of the sealed folder above
    and the sweeps (:func:`remove_abandoned`, :func:`remove_temporaries`) put it back. Until then a reader sees it as
    missing, and makes it again where that can be done. Of several writers at the same time, the last one's folder
    stays.

    Raises:
        StoreError: when the folder cannot be made or moved.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    held = None
    try:
        temporary.mkdir(parents=True)
        with contextlib.suppress(OSError):
            held = os.open(temporary, os.O_RDONLY)
            _hold(held)
        yield temporary
        fsync_folder(temporary)
        _take_place(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror}); free space or choose another folder, then run again"
        raise StoreError(msg) from error
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, path: Path) -> None:
    """Rename a folder to ``path``, in place of what stands there, whatever other writers put there meanwhile.

    A folder is renamed only where nothing or an empty folder stands, so what stands is moved away first, and again as
    often as another writer was quicker between the two.
    """
    while True:
        old = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}-old")
        newer = False  # stands at path
        try:
            with contextlib.suppress(FileNotFoundError):
                path.replace(old)
            temporary.replace(path)
            newer = True
            return
        except OSError as error:
            newer = error.errno in _TAKEN and temporary.exists()
            if not newer:
                raise
        finally:
            if newer:
                shutil.rmtree(old, ignore_errors=True)
            else:
                _settle(old, path)


def _settle(old: Path, path: Path) -> None:
    """Put a folder that was moved away from ``path`` back, or delete it when another stands there now.

    A living writer whose place was taken by this moves it away again.
    """
    try:
        if not path.exists():
            old.replace(path)
            return
    except OSError as error:
        if error.errno not in _TAKEN:
            return  # it stays for a later try
    shutil.rmtree(old, ignore_errors=True)


def _settle_all(folder: Path, *, pattern: str = f"{TEMPORARY}*") -> list[Path]:
    """Put back, or delete, what killed writers moved away in ``folder``; the other temporaries there."""
    others = []
    for entry in list(folder.glob(pattern)):
        match = _SET_ASIDE.fullmatch(entry.name)
        if match is None:
            others.append(entry)
        else:
            _settle(entry, entry.with_name(match[1]))
    return others


def _hold(descriptor: int, *, wait: bool = False) -> bool:
    """Whether this process now holds an open file or folder for itself; the system lets go when it dies."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def remove_abandoned(folder: Path) -> None:
    """Delete what killed writers left in a folder that others may be writing to; what they had moved away is put back.

    A writer holds its temporary file or folder with a lock, which ends with its process. What is empty and younger
    than a minute may belong to one who has not come to the lock yet, and stays.
    """
    for entry in _settle_all(folder):
        with contextlib.suppress(OSError):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                is_folder = entry.is_dir()
                empty = not (any(entry.iterdir()) if is_folder else entry.stat().st_size)
                if (empty and time.time() - entry.stat().st_mtime < 60) or not _hold(descriptor):
                    continue
                if is_folder:
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed writer left, and put back what it moved away; only for a folder with a single writer."""
    for entry in _settle_all(folder):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _found(path: Path, kind: str) -> dict[str, object]:
    """Size and content of a file as a manifest states them; ``kind`` is ``sha256`` of the whole, or ``blocks``."""
    content: str | list[str] = sha256_blocks(path) if kind == "blocks" else sha256_file(path)
    return {"bytes": path.stat().st_size, kind: content}


def seal(folder: Path, header: Mapping[str, object], *, blocks: bool = False, apart: Collection[str] = ()) -> None:
    """Write the manifest of a folder, last: ``header``, size and SHA-256 of every file, and a SHA-256 of itself.

    Args:
        folder: the folder.
        header: what else the manifest says, as JSON values.
        blocks: files above 4 MiB get the list of :func:`sha256_blocks` in place of one SHA-256; for folders whose
            reader waits for :func:`verify`.
        apart: names of files that are no part.
    """
    _settle_amendment(folder)
    files = {
        name: _found(folder / name, "blocks" if blocks and (folder / name).stat().st_size > BLOCK else "sha256")
        for name in _parts(folder)
        if name not in apart
    }
    write_bytes(folder / MANIFEST, _manifest_bytes({**header, "files": files}))


def _parts(folder: Path, *, below: str = ".") -> list[str]:
    """Names of the files of a folder, or below a part of it, but for its manifest and what is temporary.

    Raises:
        StoreError: a folder that cannot be read; one that vanishes meanwhile was temporary.
    """

    def refused(error: OSError) -> None:
        if error.errno != errno.ENOENT:
            msg = f"{error.filename}: expected a folder that can be read, found: {error.strerror}"
            raise StoreError(msg) from error

    found = []
    for place, folders, names in os.walk(folder / below, onerror=refused):
        folders[:] = [name for name in folders if name != _AMENDMENT and not name.startswith(TEMPORARY)]
        inside = (Path(place, name) for name in names if not name.startswith(TEMPORARY))
        found += [path.relative_to(folder).as_posix() for path in inside if path.is_file()]
    return sorted(name for name in found if name != MANIFEST)


def _manifest_bytes(content: Mapping[str, object]) -> bytes:
    return json_bytes({**content, "sha256": sha256_bytes(json_bytes(content))})


def _read_manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    """A manifest that agrees with its own SHA-256, and its bytes."""
    manifest, found = _read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        msg = f"{folder / MANIFEST}: expected a manifest with its list of files, found another JSON file"
        raise StoreError(msg)
    if _manifest_bytes({key: value for key, value in manifest.items() if key != "sha256"}) != found:
        msg = f"{folder / MANIFEST}: content differs from its own SHA-256; restore it or write the folder again"
        raise StoreError(msg)
    return manifest, found


def verify(folder: Path, *, content: bool = True, apart: Collection[str] = ()) -> dict[str, Any]:
    """Check every file of a sealed folder against its manifest, and the manifest against itself: no flipped bit passes.

    A part that a killed writer had moved away (:func:`new_folder`) is put back first, and a change that it had decided
    (:func:`amended`) is brought to its end. A folder that another process changes meanwhile is looked at again.

    Args:
        folder: the sealed folder.
        content: False compares the manifest with its own SHA-256 and the sizes of the files, and reads none of them.
        apart: names of files that are no part, whatever the manifest says of them.

    Returns:
        The manifest.

    Raises:
        StoreError: no manifest, a missing file, another size or another SHA-256; the message names the part.
    """
    while True:
        _settle_amendment(folder)
        manifest, before = _read_manifest(folder)
        try:
            _check_parts(folder, manifest, names=manifest["files"].keys() - set(apart), content=content)
        except StoreError:
            if not (folder / _AMENDMENT).exists() and _read_manifest(folder)[1] == before:
                raise
        else:
            return manifest


def _check_parts(folder: Path, manifest: Mapping[str, Any], *, names: Collection[str], content: bool = True) -> None:
    """Check files of a folder against the entries of a manifest."""
    for name in sorted(names):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            msg = f"{folder / MANIFEST}: expected files inside the folder, found a path that leaves it"
            raise StoreError(msg)
        if not path.is_file():
            _settle_all(folder, pattern=f"**/{TEMPORARY}*")  # moved away by a writer that was killed
        if not path.is_file():
            msg = f"{path}: expected by the manifest of {folder}, found no file; restore it or write the folder again"
            raise StoreError(msg)
        if not _agrees(path, manifest["files"].get(name), content=content):
            msg = f"{path}: content differs from its manifest (size or SHA-256); restore it or write the folder again"
            raise StoreError(msg)


def _agrees(path: Path, entry: object, *, content: bool) -> bool:
    """Whether a file is what a manifest's entry says; without ``content`` only its size is looked at."""
    if not isinstance(entry, dict):
        return False
    kind = "blocks" if "blocks" in entry else "sha256"
    found = _found(path, kind) if content else {"bytes": path.stat().st_size, kind: entry.get(kind)}
    return bool(entry == found)


def unsealed(folder: Path, *, below: str = ".") -> list[str]:
    """Names of the files below a part of a sealed folder that its manifest does not speak of: nobody vouches for them.

    A change that a killed writer had decided (:func:`amended`) is brought to its end first.

    Raises:
        StoreError: no manifest, or a damaged one.
    """
    _settle_amendment(folder)
    known = _read_manifest(folder)[0]["files"]
    return [name for name in _parts(folder, below=below) if name not in known]


@contextlib.contextmanager
def amended(folder: Path, *, apart: Collection[str] = ()) -> Iterator[Path]:
    """Change a sealed folder in one step, so that its seal holds before, after and, for whoever looks, between.

    The block writes to the folder that it is given: what stands there at the end takes the place of the parts of the
    same names, or joins them. A new manifest beside it speaks of these, of files that joined the folder unsealed since,
    and of all other parts **as the old one does**: they are not read again, so that what was altered meanwhile still
    differs from its seal. One rename (to ``.amendment``) decides. Before it, a kill leaves the folder as it was. After
    it, the files are moved to their places, the manifest last; whoever looks first after a kill (:func:`verify`,
    :func:`seal`, :func:`unsealed`, another amendment) checks what is left against the new manifest and moves it. So a
    reader needs no repair of its own, and what neither the old manifest nor a decided one describes is still found.

    One writer at a time: the caller holds the folder (``run.only_writer``).

    Args:
        folder: the sealed folder.
        apart: names of files that are no part, and are dropped from the seal.

    Raises:
        StoreError: no manifest or a damaged one, or something cannot be written.
    """
    _settle_amendment(folder)
    for place in {path.parent for path in folder.rglob(f"{TEMPORARY}*")}:
        remove_abandoned(place)
    with new_folder(folder / _AMENDMENT) as stage:
        yield stage
        old, _ = _read_manifest(folder)
        files = {name: entry for name, entry in old["files"].items() if name not in apart}
        files |= {name: _found(folder / name, "sha256") for name in _parts(folder) if name not in {*files, *apart}}
        files |= {name: _found(stage / name, "sha256") for name in _parts(stage)}
        header = {key: value for key, value in old.items() if key not in {"sha256", "files"}}
        write_bytes(stage / MANIFEST, _manifest_bytes({**header, "files": files}))
    _settle_amendment(folder)


def _settle_amendment(folder: Path) -> None:
    """Bring a decided change to its end, or wait for the process that is doing so."""
    stage = folder / _AMENDMENT
    while True:
        try:
            descriptor = os.open(stage, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            _hold(descriptor, wait=True)
            if _is_open(descriptor, stage):  # and not one that was ended meanwhile
                _move_staged(stage, folder)
                return
        except OSError as error:
            msg = (
                f"{folder}: expected to bring a change to its end that was cut short, found: {error.strerror}; open it "
                "once where it can be written"
            )
            raise StoreError(msg) from error
        finally:
            os.close(descriptor)


def _is_open(descriptor: int, path: Path) -> bool:
    """Whether what stands at ``path`` is what ``descriptor`` has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _move_staged(stage: Path, folder: Path) -> None:
    """Move checked files from ``stage`` to the same places in ``folder``, the manifest last."""
    names = _parts(stage)
    last = [MANIFEST] if (stage / MANIFEST).is_file() else []
    if names:
        _check_parts(stage, _read_manifest(stage if last else folder)[0], names=names)
    for name in names + last:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(place)
        fsync_folder(place.parent)
    for empty in (*sorted((p for p in stage.rglob("*") if p.is_dir()), reverse=True), stage):
        empty.rmdir()
