"""SHA-256 of source files, remembered between runs, so that a second run does not read terabytes again.

What is trusted: a file whose path, size, modification time and change time are those of an earlier run is taken for
the same file. A program that changes content and sets all of these back goes unseen; a file changed within two seconds
before it was remembered is read again. ``medfuse extract --rehash`` trusts nothing. The list lies in the feature store
and holds no path: files are found by a hash of theirs (keyed, where the cohort has pseudonyms).
"""

import hashlib
import hmac
import json
import time
from pathlib import Path

from medfuse.errors import DataError, MedfuseError
from medfuse.files import read_json, sha256_bytes, sha256_file, write_json

FILE = "sources.json"
SMALLEST = 1 << 16  # bytes; smaller files are read again, which costs as much as asking
_SAVE_EVERY = 60.0  # seconds
_RACY = 2_000_000_000  # nanoseconds in which a file may change without changing its times


class SourceHashes:
    """SHA-256 of files, each read once per run, and once per change over runs.

    Args:
        store_root: where the list lies; None: nothing is remembered.
        trust: False reads every file again, and remembers what it finds.
        secret: key of the hashes of paths.
        smallest: bytes from which a file is worth remembering.
    """

    def __init__(
        self, store_root: Path | None = None, *, trust: bool = True, secret: bytes = b"", smallest: int = SMALLEST
    ) -> None:
        self._file = None if store_root is None else store_root / FILE
        self._secret, self._smallest = secret, smallest
        self._this_run: dict[Path, str] = {}
        self._known: dict[str, list[int | str]] = {}
        self._written = 0
        self._changed, self._saved = False, time.monotonic()
        if self._file is not None and self._file.is_file():
            self._known = _read(self._file)
            self._written = self._file.stat().st_mtime_ns if trust else 0

    def __call__(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            StoreError: it cannot be read.
        """
        if path not in self._this_run:
            self._this_run[path] = self._look_up(path)
        return self._this_run[path]

    def _look_up(self, path: Path) -> str:
        try:
            state = path.stat()
        except OSError:
            return sha256_file(path)
        if self._file is None or state.st_size < self._smallest:
            return sha256_file(path)
        name = hmac.new(self._secret, str(path.absolute()).encode(errors="surrogateescape"), hashlib.sha256)
        key, now = name.hexdigest()[:32], [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        known = self._known.get(key)
        still = max(state.st_mtime_ns, state.st_ctime_ns) + _RACY < self._written
        if known is not None and known[:3] == now and still:
            return str(known[3])
        found = sha256_file(path)
        self._known[key] = [*now, found]
        self._changed = True
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()
        return found

    def save(self) -> None:
        """Write the list, where something was read."""
        if self._file is not None and self._changed:
            content = {"files": self._known}
            write_json(self._file, {**content, "sha256": _seal(content)})
            self._changed, self._saved = False, time.monotonic()


def _seal(content: object) -> str:
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())


def _read(file: Path) -> dict[str, list[int | str]]:
    """The list; empty where it is damaged, for it can be made again."""
    try:
        content = read_json(file)
        known: dict[str, list[int | str]] = content["files"]
        return known if content["sha256"] == _seal({"files": known}) else {}
    except (MedfuseError, KeyError, TypeError):
        return {}


def read_checksums(file: Path) -> dict[str, str]:
    """Lines of ``sha256sum``: path below the card's root -> SHA-256.

    Raises:
        DataError: a line of another form.
    """
    found: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        msg = f"{file.name}: expected lines of sha256sum in UTF-8, found other bytes; write it again with sha256sum"
        raise DataError(msg) from error
    for number, line in enumerate(lines, 1):
        digest, _, path = line.partition(" ")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or path[:1] not in {" ", "*"}:
            msg = f"{file.name}, line {number}: expected a line of sha256sum, found another; write it with sha256sum"
            raise DataError(msg)
        found[path[1:].removeprefix("./")] = digest
    return found
