"""Whether an exported file says what the run says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medfuse.errors import DataError, MedfuseError
from medfuse.exporting.record import comparable, content_sha256, patient_record, run_id
from medfuse.exporting.writing import FORMATS, record_of
from medfuse.review.source import open_review
from medfuse.run import Run, open_run

_CLOSE = 1e-9  # relative: another machine may round the last digit otherwise


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One thing that was verified.

    Attributes:
        what: in a few words.
        ok: None where it cannot be told.
        why: what was found; it names no value of the patient.
    """

    what: str
    ok: bool | None
    why: str = ""

    def line(self) -> str:
        """As one line of text."""
        word = {True: "ok ", False: "BAD", None: "?  "}[self.ok]
        return f"{word} {self.what}" + (f": {self.why}" if self.why else "")


def verify_export(run: str | Path | Run, path: Path) -> list[Verified]:
    """Verify an exported file against its run.

    Args:
        run: run directory.
        path: the file.

    Returns:
        What was verified; the file is good where none is False.

    Raises:
        DataError: the file is no export, or cannot be read.
        StoreError: no run there.
    """
    run = run.path if isinstance(run, Run) else run
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path}: expected an exported file, found: {error.strerror}"
        raise DataError(msg) from error
    form, record = record_of(content)
    found = [_whole(record), _shown(form, record, content)]
    opened = open_review(run)
    same = record["stamp"].get("run_id") == run_id(opened)
    found.append(Verified(what="run", ok=same, why="" if same else "the file was made from another run"))
    if not same:
        return found
    found.append(_sealed(run))
    again = record["stamp"].get("run_manifest_sha256") == opened.sha256
    note = "" if again else "the run was sealed again since, as by another report; the numbers decide"
    found.append(Verified(what="seal of the run", ok=True if again else None, why=note))
    found.append(_numbers(run, record))
    return found


def _whole(record: Mapping[str, Any]) -> Verified:
    try:
        ok = record["content_sha256"] == content_sha256(record)
    except MedfuseError:
        ok = False
    return Verified(what="record", ok=ok, why="" if ok else "it was changed since the export")


def _shown(form: str, record: Mapping[str, Any], content: bytes) -> Verified:
    """What the file shows is what its record says: the record is written again and compared byte for byte."""
    what = f"what the {form} shows"
    drawn = record["stamp"].get("drawn_by", {})
    here = {name: metadata.version(name) for name in ("medfuse", "matplotlib")}
    try:
        same = FORMATS[form][1](record) == content
    except (MedfuseError, KeyError, TypeError, ValueError):
        return Verified(what=what, ok=False, why="the record cannot be shown")
    if same:
        return Verified(what=what, ok=True)
    if drawn != here and form in ("HTML", "PDF"):
        made = ", ".join(f"{k} {v}" for k, v in drawn.items()) if isinstance(drawn, Mapping) else "others"
        return Verified(what=what, ok=None, why=f"it was drawn by {made}; verify it with these versions")
    return Verified(what=what, ok=False, why="it differs from its record")


def _sealed(run: str | Path) -> Verified:
    try:
        open_run(run).verify()
    except MedfuseError as error:
        return Verified(what="parts of the run", ok=False, why=str(error))
    return Verified(what="parts of the run", ok=True)


def _numbers(run: str | Path, record: Mapping[str, Any]) -> Verified:
    """The numbers, computed again from the stored values of the run."""
    try:
        again = patient_record(open_review(run, str(record["outcome"])), str(record["patient"]), record["at"])
    except MedfuseError:
        return Verified(what="numbers", ok=False, why="the run has no such patient, outcome or horizon")
    theirs, ours = comparable(record), comparable(again)
    bad = [key for key in theirs | ours if not _equal(theirs.get(key), ours.get(key))]
    return Verified(what="numbers", ok=not bad, why=f"other in the run: {', '.join(bad)}" if bad else "")


def _equal(a: Any, b: Any) -> bool:  # noqa: ANN401  # JSON values
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if numbers:
        return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return type(a) is type(b) and bool(a == b)
