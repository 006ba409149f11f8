"""Exports of one patient: JSON, CSV and a self-contained HTML page, each with the banner, hashes and versions."""

import csv
import datetime
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from medfuse.review import missing
from medfuse.review.log import ChainedLog
from medfuse.review.patient import patient_view, risk_table, summary
from medfuse.review.settings import ReviewSettings
from medfuse.review.source import ReviewRun
from medfuse.review.words import BANNER, percent

_DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "|")


def unlock_count(settings: ReviewSettings, run_sha256: str) -> int:
    """How often held-out results of a run were opened.

    Raises:
        StoreError: the audit log's chain is broken.
    """
    rows = ChainedLog(settings.audit_file).rows()
    return sum(r["kind"] == "held-out opened" and r.get("run_sha256") == run_sha256 for r in rows)


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
        "risks": _rows(risk_table(run, patient)),
        "curve": _rows(view.curve),
        "contributions_are": view.meaning,
        "contributions": _rows(view.contributions),
        "dividends": _rows(view.dividends),
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


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    def clean(value: Any) -> Any:  # noqa: ANN401  # a cell
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return [{str(k): clean(v) for k, v in row.items()} for row in frame.to_dict("records")]


def as_json(record: Mapping[str, Any]) -> bytes:
    """A record as JSON."""
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def as_csv(record: Mapping[str, Any]) -> bytes:
    """Contributions and risks as CSV; text that a spreadsheet would run as a formula is quoted by an apostrophe."""
    stream = io.StringIO()
    out = csv.writer(stream)
    rows: list[Sequence[Any]] = [
        ("note", record["banner"]),
        ("patient", record["patient"]),
        ("outcome", record["outcome"]),
        *(("risk", r["day"], r["risk"], r["low"], r["high"]) for r in record["risks"]),
        ("modality", "contribution", "low", "high", "ratio", "points"),
        *(
            (c["modality"], c["contribution"], c["low"], c["high"], c["ratio"], c["points"])
            for c in record["contributions"]
        ),
        ("run_manifest_sha256", record["stamp"]["run_manifest_sha256"]),
        ("exported", record["stamp"]["exported"]),
    ]
    out.writerows([[_safe(cell) for cell in row] for row in rows])
    return stream.getvalue().encode()


def _safe(cell: Any) -> Any:  # noqa: ANN401  # a cell
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_DANGEROUS) else cell


def as_html(record: Mapping[str, Any]) -> bytes:
    """A page that opens offline: no script, no request, everything escaped."""
    risks = [
        (
            "" if r["day"] is None else f"{r['day']:.0f} days",
            percent(r["risk"]) if record["kind"] != "continuous" else f"{r['risk']:.2f}",
            f"{percent(r['low'])} to {percent(r['high'])}"
            if record["kind"] != "continuous"
            else f"{r['low']:.2f} to {r['high']:.2f}",
        )
        for r in record["risks"]
    ]
    parts = [
        (
            c["modality"],
            f"{c['contribution']:+.3f}",
            f"{c['low']:+.3f} to {c['high']:+.3f}",
            "" if c["ratio"] is None else f"{c['ratio']:.2f}",
            "" if c["points"] is None else f"{100 * c['points']:+.1f}",
        )
        for c in record["contributions"]
    ]
    stamped = record["stamp"]
    facts = [
        ("patient", record["patient"]),
        ("outcome", record["outcome"]),
        ("has", ", ".join(record["has"]) or "no modality"),
        ("lacks", ", ".join(record["lacks"]) or "nothing"),
        ("like the training patients", record["familiar"] + "".join(f"; {r}" for r in record["reasons"])),
    ]
    hashes = [
        ("run manifest SHA-256", stamped["run_manifest_sha256"]),
        ("recipe SHA-256", stamped["recipe_sha256"]),
        *((f"data {name} SHA-256", value) for name, value in stamped["data_sha256"].items()),
        ("versions", ", ".join(f"{k} {v}" for k, v in stamped["versions"].items())),
        ("trained, exported", f"{stamped['trained']}, {stamped['exported']}"),
        ("last hash of the audit log", stamped["audit_log_head"]),
    ]
    body = (
        f"<p class=warn>{escape(record['banner'])}</p><h1>Patient report</h1>{_table(('', ''), facts)}"
        f"<h2>Risk</h2>{_table(('horizon', 'risk', 'interval'), risks)}"
        f"<h2>Contributions</h2>{_table(('modality', 'contribution', 'interval', 'x hazard or odds', 'points'), parts)}"
        f"<h2>In words</h2>{''.join(f'<p>{escape(s)}</p>' for s in record['summary'])}"
        f"<h2>What this was made from</h2>{_table(('', ''), hashes)}"
    )
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
        "table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;"
        "text-align:left;overflow-wrap:anywhere}.warn{border-left:6px solid #D55E00;background:#fdf3ec;padding:.5rem}"
    )
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>medfuse patient report</title>"
        f"<style>{style}</style></head><body>{body}</body></html>"
    )
    return page.encode()


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


FORMATS: Mapping[str, tuple[str, Any]] = {
    "HTML": ("text/html", as_html),
    "JSON": ("application/json", as_json),
    "CSV": ("text/csv", as_csv),
}
