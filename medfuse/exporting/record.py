"""The record of one patient: everything that an export says, as JSON values."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from medfuse.errors import StoreError
from medfuse.exporting.prototypes import prototype_record
from medfuse.files import MANIFEST, json_bytes, read_json, sha256_bytes
from medfuse.review import export, missing
from medfuse.review.patient import patient_view
from medfuse.review.performance import patient_bound
from medfuse.review.source import EXPLANATIONS, ReviewRun

FORMAT_VERSION = 1
_DIGEST = "content_sha256"
_UNTESTED = ("stamp", _DIGEST)  # what a record of the same patient may differ in


def patient_record(run: ReviewRun, patient: str, at: float | None = None, *, audit_head: str = "") -> dict[str, Any]:
    """Everything that the review shows of a patient in numbers, with its uncertainty, checks and hashes.

    Args:
        run: an explained run.
        patient: key of a held-out patient.
        at: horizon in days of survival outcomes (default the run's), class of multi-class ones.
        audit_head: last hash of the audit log.

    Raises:
        CohortError: no such patient; the message does not repeat what was typed.
        ConfigError: a horizon beyond the curves.
    """
    record: dict[str, Any] = {"format": "medfuse patient export", "format_version": FORMAT_VERSION}
    record |= export.patient_record(run, patient, at, audit_head=audit_head)
    alike = prototype_record(run, patient_view(run, patient, at))
    if alike is not None:
        record["prototypes"] = alike
    likeness = missing.familiarity_table(run, patient)
    record["uncertainty"] = {
        "lower_bound": patient_bound(run, patient),
        "likeness": [] if likeness is None else export.rows_of(likeness),
        "unsupported": missing.unsupported(run, patient),
    }
    record["checks"] = [dict(check) for check in run.checks]
    record["stamp"] |= {
        "run_id": run_id(run),
        "cohort": run.facts["facts"]["cohort"],
        "parts_sha256": _parts(run, record["fold"]),
        "drawn_by": {name: metadata.version(name) for name in ("medfuse", "matplotlib")},
    }
    return record | {_DIGEST: content_sha256(record)}


def run_id(run: ReviewRun) -> str:
    """SHA-256 of what defines the run (cohort, recipe, seed, outcomes, data): the same after another report or seal."""
    return run.id


def content_sha256(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without this hash."""
    return sha256_bytes(json_bytes({key: value for key, value in record.items() if key != _DIGEST}))


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in two exports of the same patient at the same horizon."""
    return {key: value for key, value in record.items() if key not in _UNTESTED}


def _parts(run: ReviewRun, fold: str) -> dict[str, str]:
    """SHA-256 of the stored files that the numbers come from, as the run's seal has them."""
    if not (run.path / MANIFEST).is_file():
        return {}
    files = read_json(run.path / MANIFEST).get("files", {})
    folder = f"{EXPLANATIONS}/{run.outcome}/{fold}"
    values = ("values", "replicates", "prototypes/similarity", "prototypes/exemplar", "prototypes/terms")
    names = ("predictions.parquet", "metrics.json", *(f"{folder}/{name}.npy" for name in values))
    try:
        return {name: str(files[name]["sha256"]) for name in names if name in files}
    except (KeyError, TypeError) as error:
        msg = f"{run.path / MANIFEST}: expected the SHA-256 of each part, found damage; restore the run"
        raise StoreError(msg) from error
