"""Append-only records beside a run: every line holds the hash of the line before, so that a change is seen."""

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medfuse.errors import StoreError

START = "0" * 64


class ChainedLog:
    """A file of JSON lines, each with ``previous`` and ``sha256``; written by any number of processes of one host.

    The chain shows that a line was changed, removed or inserted. Whoever can write the file can write a new chain: the
    last hash belongs into another place (every export prints it).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write one line, flushed to disk, and return it.

        Raises:
            StoreError: the file cannot be written, or its last line is damaged.
            ValueError: content under a name that the log itself uses, which would be lost.
        """
        import fcntl

        taken = sorted({"at", "kind", "previous", "sha256"} & set(content))
        if taken:
            msg = f"audit log: expected content under names of its own, found {', '.join(taken)}; rename them"
            raise ValueError(msg)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                previous = self._last(file)
                row = {
                    "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                    "kind": kind,
                    **content,
                    "previous": previous,
                }
                row["sha256"] = _digest(row)
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            msg = f"{self.path}: cannot be written ({error.strerror}); free space or choose another --folder"
            raise StoreError(msg) from error
        with contextlib.suppress(OSError):
            self.path.chmod(0o600)
        return row

    def _last(self, file: Any) -> str:  # noqa: ANN401  # a binary file
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return START
        file.seek(max(0, size - 65536))
        tail = file.read()
        if not tail.endswith(b"\n"):
            msg = f"{self.path}: expected whole lines, found one cut short; keep a copy and repair the last line"
            raise StoreError(msg)
        try:
            return str(json.loads(tail.rstrip(b"\n").rsplit(b"\n", 1)[-1])["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{self.path}: expected a record in the last line, found damage; keep a copy and repair it"
            raise StoreError(msg) from error

    def rows(self) -> list[dict[str, Any]]:
        """All records, oldest first.

        Raises:
            StoreError: the chain is broken; the message names the line.
        """
        return list(self._read())

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        previous = START
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                sound = row["previous"] == previous and row["sha256"] == _digest(row)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                msg = f"{self.path}: expected an unbroken chain, found line {number} changed, missing or inserted"
                raise StoreError(msg)
            previous = row["sha256"]
            yield row

    def head(self) -> str:
        """Hash of the last record; 64 zeros of an empty log."""
        rows = self.rows()
        return str(rows[-1]["sha256"]) if rows else START


def _digest(row: Mapping[str, Any]) -> str:
    body = {key: value for key, value in row.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
