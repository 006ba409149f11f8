"""From a run to a file, and from a file to its record."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medfuse.errors import ConfigError, DataError, nearest
from medfuse.exporting.flat import as_csv, from_csv
from medfuse.exporting.html import as_html, from_html
from medfuse.exporting.pdf import as_pdf, from_pdf
from medfuse.exporting.record import patient_record
from medfuse.files import sha256_bytes
from medfuse.outputs import require_new, write_new
from medfuse.review.export import openings
from medfuse.review.log import ChainedLog
from medfuse.review.settings import ReviewSettings, beside
from medfuse.review.source import ReviewRun, open_review
from medfuse.run import Run

Record = Mapping[str, Any]


def as_json(record: Record) -> bytes:
    """A record as JSON."""
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(content: bytes) -> dict[str, Any]:
    """The record of :func:`as_json`.

    Raises:
        DataError: another file.
    """
    try:
        record = json.loads(content)
    except ValueError as error:
        msg = "expected the JSON of an export, found none; export the patient again"
        raise DataError(msg) from error
    if not isinstance(record, dict):
        msg = "expected the JSON of an export, found another value; export the patient again"
        raise DataError(msg)
    return record


# Names as the review shows them: media type, and record -> bytes.
FORMATS: Mapping[str, tuple[str, Callable[[Record], bytes]]] = {
    "HTML": ("text/html", as_html),
    "PDF": ("application/pdf", as_pdf),
    "JSON": ("application/json", as_json),
    "CSV": ("text/csv", as_csv),
}
READERS: Mapping[str, Callable[[bytes], dict[str, Any]]] = {
    "HTML": from_html,
    "PDF": from_pdf,
    "JSON": from_json,
    "CSV": from_csv,
}


def form_of(content: bytes) -> str:
    """The form of an exported file, by how it begins."""
    start = content[:200].lstrip()
    if start.startswith(b"%PDF-"):
        return "PDF"
    if start.lower().startswith(b"<!doctype html"):
        return "HTML"
    return "JSON" if start.startswith(b"{") else "CSV"


def record_of(content: bytes) -> tuple[str, dict[str, Any]]:
    """Form and record of an exported file.

    Raises:
        DataError: it is no export, or a damaged one.
    """
    form = form_of(content)
    record = READERS[form](content)
    missing = [key for key in ("patient", "outcome", "at", "stamp", "content_sha256", "format") if key not in record]
    if missing or not isinstance(record.get("stamp"), Mapping):
        msg = "expected an exported patient record, found one without its parts; export the patient again"
        raise DataError(msg)
    return form, record


def export_patient(
    run: str | Path | Run | ReviewRun,
    patient: str,
    *,
    form: str = "pdf",
    at: float | None = None,
    outcome: str | None = None,
    out: Path | None = None,
    withheld: bool = False,
) -> tuple[Path, str]:
    """Write the review of one patient as a file that only its owner can read.

    Nothing is overwritten (:mod:`medfuse.outputs`). Where the run has a review with an audit log, the export is
    recorded there, without the patient.

    Args:
        run: an explained run.
        patient: key of a held-out patient.
        form: html, pdf, json or csv.
        at: horizon in days (default the run's), or class.
        outcome: default the run's first.
        out: the file, which must be new; default ``patient-report-HASH.FORM`` in the working folder.
        withheld: also export a prediction that the review withholds.

    Returns:
        The file, and its SHA-256.

    Raises:
        CohortError: no such patient; the message does not repeat what was typed.
        ConfigError: an unknown form, outcome or horizon, or a prediction that is withheld.
        StoreError: the run is not finished or damaged, or the file is there already or cannot be written.
    """
    if out is not None:
        require_new(out)
    name = form.upper()
    if name not in FORMATS:
        known = [key.lower() for key in FORMATS]
        msg = f"export: no format {form!r}; {nearest(form.lower(), known)}"
        raise ConfigError(msg)
    opened = run if isinstance(run, ReviewRun) else open_review(run.path if isinstance(run, Run) else run, outcome)
    log = ChainedLog(ReviewSettings(run=str(opened.path), folder=str(beside(opened.path))).audit_file)
    record = patient_record(opened, patient, at, audit_head=log.head() if log.path.is_file() else "")
    if record["familiar"] == "withheld" and not withheld:
        msg = (
            "export: expected a patient whose prediction is shown, found one that is withheld (unlike the training "
            "patients); --withheld exports it all the same, marked so"
        )
        raise ConfigError(msg)
    content = FORMATS[name][1](record)
    digest = sha256_bytes(content)
    path = out or Path(f"patient-report-{digest[:8]}.{form.lower()}")
    write_new(path, content)
    path.chmod(0o600)
    if log.path.is_file():
        log.append("export", {"by": "command line", "form": name, "file_sha256": digest, "run_sha256": opened.sha256})
    return path, digest


def times_opened(run: str | Path, folder: Path | None = None) -> int | None:
    """How often held-out results were opened in the review of a run, by its audit log; None where there is no log.

    Args:
        run: run directory.
        folder: of the review; default the one beside the run.

    Raises:
        ConfigError: the folder is not there.
        StoreError: the log's chain is broken.
    """
    if folder is not None and not folder.is_dir():
        msg = f"report --review: expected the folder of a review, found none at {folder}; check the path"
        raise ConfigError(msg)
    log = ChainedLog(Path(folder or beside(Path(run))) / "audit.jsonl")
    return openings(log, open_review(run).id) if log.path.is_file() else None
