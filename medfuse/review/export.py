"""What an export of one patient holds, in numbers, with hashes and versions; :mod:`medfuse.exporting` writes it."""

import datetime
from typing import Any

import numpy as np
import pandas as pd

from medfuse.review import missing
from medfuse.review.log import ChainedLog
from medfuse.review.patient import patient_view, risk_table, summary
from medfuse.review.settings import ReviewSettings
from medfuse.review.source import ReviewRun
from medfuse.review.words import BANNER


def openings(log: ChainedLog, run_id: str) -> int:
    """How often held-out results of a run were opened, in whatever state: an explanation or report does not undo that.

    Rows of before say which seal the run had and not which run it was: all of them count.

    Args:
        log: audit log of the review, which lies beside one run unless it is put elsewhere.
        run_id: of :class:`medfuse.review.source.ReviewRun`.

    Raises:
        StoreError: the audit log's chain is broken.
    """
    return sum(row["kind"] == "held-out opened" and row.get("run", run_id) == run_id for row in log.rows())


def unlock_count(settings: ReviewSettings, run_id: str) -> int:
    """:func:`openings`, by the audit log of a review's settings."""
    return openings(ChainedLog(settings.audit_file), run_id)


def patient_record(run: ReviewRun, patient: str, at: float | None = None, *, audit_head: str = "") -> dict[str, Any]:
    """Everything the patient page shows in numbers, as JSON values.

    Raises:
        CohortError: no such patient.
    """
    view = patient_view(run, patient, at)
    word, reasons = missing.familiarity(run, patient)
    return {
        "banner": BANNER,
        "patient": patient,
        "outcome": run.outcome,
        "kind": run.kind,
        "at": view.at,
        "fold": view.fold,
        "has": list(view.has),
        "lacks": list(view.lacks),
        "familiar": word,
        "reasons": reasons,
        "risk": {
            "value": view.risk,
            "low": view.low,
            "high": view.high,
            "interval": "5th to 95th percentile of replicates",
        },
        "nobody_risk": view.nobody_risk,
        "replicates": view.replicates,
        "risks": rows_of(risk_table(run, patient)),
        "curve": rows_of(view.curve),
        "contributions_are": view.meaning,
        "contributions": rows_of(view.contributions),
        "dividends": rows_of(view.dividends),
        "summary": summary(view),
        "stamp": stamp(run, audit_head=audit_head),
    }


def stamp(run: ReviewRun, *, audit_head: str = "") -> dict[str, Any]:
    """Hashes, versions and time that every export carries."""
    facts = run.facts
    return {
        "run_manifest_sha256": run.sha256,
        "recipe_sha256": facts["facts"]["recipe"],
        "data_sha256": dict(facts["facts"]["data"]),
        "versions": dict(facts["versions"]),
        "trained": facts.get("finished"),
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "audit_log_head": audit_head,
    }


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as JSON values; what is not finite is None."""

    def clean(value: Any) -> Any:  # noqa: ANN401  # a cell
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return [{str(k): clean(v) for k, v in row.items()} for row in frame.to_dict("records")]
