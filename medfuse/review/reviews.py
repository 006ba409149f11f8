"""Readers' judgements: what a record holds, how readers agree, and how their estimates did beside the model's."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from medfuse.errors import ConfigError
from medfuse.review.log import ChainedLog
from medfuse.review.patient import patient_view
from medfuse.review.source import ReviewRun
from medfuse.review.words import percent

VERDICTS = ("agree", "disagree", "cannot judge")
_LONGEST = 4000
_FEW = 10


def record(
    log: ChainedLog, *, who: str, run: ReviewRun, patient: str, verdict: str, decisive: str, text: str, seconds: float
) -> dict[str, Any]:
    """Append a judgement.

    Raises:
        CohortError: no such patient.
        ConfigError: another verdict or modality, or a text that is too long.
        StoreError: it cannot be written.
    """
    run.locate(patient)
    if verdict not in VERDICTS or (decisive and decisive not in run.modalities) or len(text) > _LONGEST:
        msg = f"review: expected one of {', '.join(VERDICTS)}, a modality of the run and at most {_LONGEST} letters"
        raise ConfigError(msg)
    return log.append(
        "review",
        {
            "who": who,
            "patient": patient,
            "outcome": run.outcome,
            "run": run.id,
            "run_sha256": run.sha256,
            "verdict": verdict,
            "decisive": decisive,
            "text": text,
            "seconds": round(seconds),
        },
    )


def agreement(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Per pair of readers: patients judged by both, share of equal verdicts, Cohen's kappa (NaN when undefined).

    References:
        Cohen (1960), A coefficient of agreement for nominal scales.
    """
    last: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["kind"] == "review":
            last.setdefault(str(row["who"]), {})[str(row["patient"])] = str(row["verdict"])
    out = []
    for a, b in combinations(sorted(last), 2):
        both = sorted(last[a].keys() & last[b].keys())
        if not both:
            continue
        x, y = (np.array([VERDICTS.index(last[who][p]) for p in both]) for who in (a, b))
        same = float((x == y).mean())
        chance = float(sum((x == k).mean() * (y == k).mean() for k in range(len(VERDICTS))))
        kappa = (same - chance) / (1 - chance) if chance < 1 else float("nan")
        out.append({"reader": a, "other": b, "patients": len(both), "equal": same, "kappa": kappa})
    return pd.DataFrame(out, columns=["reader", "other", "patients", "equal", "kappa"])


def estimates(run: ReviewRun, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Readers' estimates beside the model's risk (with interval) at the same day, and what is known of the event.

    ``by then`` is yes, no, or unknown for patients censored before the day.
    """
    out = []
    for row in rows:
        if row["kind"] != "estimate" or not _of_run(row, run) or row["patient"] not in run.where:
            continue
        day = float(row["day"]) if run.kind == "survival" else None
        if run.kind == "continuous" or (day is not None and day <= 0):
            continue
        view = patient_view(run, str(row["patient"]), day)
        out.append(
            {
                "reader": row["who"],
                "patient": row["patient"],
                "day": day,
                "reader's estimate": row["percent"] / 100,
                "model": view.risk,
                "interval": f"{percent(view.low)} to {percent(view.high)}",
                "by then": _known(run, str(row["patient"]), day),
            }
        )
    return pd.DataFrame(out, columns=["reader", "patient", "day", "reader's estimate", "model", "interval", "by then"])


def _of_run(row: Mapping[str, Any], run: ReviewRun) -> bool:
    """Whether a record is of this run, whatever was added to it since; records of before know its seal alone."""
    return bool(row["run"] == run.id if "run" in row else row.get("run_sha256") == run.sha256)


def _known(run: ReviewRun, patient: str, day: float | None) -> str:
    table = run.outcome_table
    if day is None or patient not in table.index or not bool(table.loc[patient, "observed"]):
        return "unknown"
    row = table.loc[[patient]].iloc[0]
    time, event = float(row["time"]), bool(row["event"])
    return "yes" if event and time <= day else "no" if time >= day else "unknown"


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Brier score of readers and of the model on the same patients whose state at the day is known.

    Patients censored before the day are left out, which favours neither but makes both optimistic or not by chance;
    below 10 patients nothing is said.
    """
    known = table[table["by then"] != "unknown"]
    happened = (known["by then"] == "yes").astype(float)
    rows = []
    for reader, part in known.groupby("reader"):
        y = happened.loc[part.index]
        enough = len(part) >= _FEW
        rows.append(
            {
                "reader": reader,
                "patients": len(part),
                "reader's Brier": float(((part["reader's estimate"] - y) ** 2).mean()) if enough else float("nan"),
                "model's Brier": float(((part["model"] - y) ** 2).mean()) if enough else float("nan"),
            }
        )
    return pd.DataFrame(rows, columns=["reader", "patients", "reader's Brier", "model's Brier"])
