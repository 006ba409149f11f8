"""The worklist: one Parquet file of all held-out patients, made once per run, read a page at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse.errors import MedfuseError
from medfuse.explain import familiarity
from medfuse.explain.familiarity import NOT_CHECKED as NOT_CHECKED
from medfuse.explain.familiarity import WITHHELD
from medfuse.files import write_bytes
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.review.source import HIGH, LOW, FoldValues, ReviewRun, one_number

PAGE = 25
_ROWS = 2000  # patients whose replicates are read together
GROUPS = ("low", "middle", "high")


def worklist_path(run: ReviewRun, folder: Path) -> Path:
    """Where the worklist of exactly this run and outcome stands."""
    return folder / f"worklist-{run.sha256[:16]}-{run.outcome}.parquet"


def build_worklist(run: ReviewRun, folder: Path, *, people: pd.DataFrame | None = None) -> Path:
    """Write the worklist unless it is there.

    Args:
        run: explained run; of another, the file has no risks.
        folder: of the review.
        people: what the card says of patients (site, subgroups), by patient id.

    Returns:
        The file: ``patient_id fold available count``, then per horizon k ``risk_k low_k high_k group_k``, ``familiar``
        (familiar, unusual, withheld or not checked) and a column per field of ``people``.
    """
    path = worklist_path(run, folder)
    if not path.is_file():
        parts = [_fold_rows(run, one) for one in run.explained.values()]
        table = pd.concat(parts, ignore_index=True) if parts else _unexplained(run)
        table = table[~table["patient_id"].duplicated()]
        if people is not None and len(people):
            table = table.join(people, on="patient_id")
        write_bytes(path, table.sort_values("patient_id").to_parquet(index=False))
    return path


def _unexplained(run: ReviewRun) -> pd.DataFrame:
    held = run.predictions[run.predictions["partition"] == "held_out"]
    return pd.DataFrame(
        {
            "patient_id": held["patient_id"],
            "fold": held["fold"],
            "available": held["present"].str.replace(",", " + "),
            "count": held["present"].str.split(",").map(lambda names: sum(bool(n) for n in names)),
            "familiar": NOT_CHECKED,
        }
    )


def _fold_rows(run: ReviewRun, one: FoldValues) -> pd.DataFrame:
    present = np.asarray(one.present)
    names = np.array(one.modalities, dtype=object)
    patterns, inverse = np.unique(present, axis=0, return_inverse=True)
    texts = np.array([" + ".join(names[p]) or "none" for p in patterns], dtype=object)
    out: dict[str, Any] = {
        "patient_id": list(one.patient_ids),
        "fold": one.fold,
        "available": texts[inverse.ravel()],
        "count": present.sum(axis=1),
    }
    every: list[float | None] = list(run.horizons) if one.times is not None else [None]
    last = np.asarray(one.values[:, -1], dtype=np.float64)
    members = [np.asarray(one.replicates[:, a : a + _ROWS, -1]) for a in range(0, len(last), _ROWS)]
    for k, at in enumerate(every):
        at = 0.0 if run.kind == "multiclass" else at
        out[f"risk_{k}"] = risk = one_number(last, run, one.times, at)[1]
        spread = [np.quantile(one_number(m, run, one.times, at)[1], [LOW, HIGH], axis=0) for m in members]
        out[f"low_{k}"], out[f"high_{k}"] = np.concatenate(spread, axis=1) if spread else (risk, risk)
        out[f"group_{k}"] = _groups(run, one, risk, at)
    out["familiar"] = list(states(run, one.fold))
    return pd.DataFrame(out)


def _groups(run: ReviewRun, one: FoldValues, risk: np.ndarray[Any, Any], at: float | None) -> list[str]:
    """Thirds of the fold's own inner out-of-fold risks: no held-out row sets a cut."""
    cuts = risk_cuts(run, one.fold, at)
    return ["" if cuts is None else GROUPS[int(k)] for k in (np.searchsorted(cuts, risk) if cuts is not None else risk)]


def risk_cuts(run: ReviewRun, fold: str, at: float | None) -> np.ndarray[Any, Any] | None:
    """(2,) cuts between risk groups at a horizon; None where the run keeps no inner predictions."""
    frame = run.predictions
    inner = frame[(frame["partition"] == "inner") & (frame["fold"] == fold)]
    if not len(inner):
        return None
    if run.kind == "survival" and at is not None:
        times = np.asarray(inner["times"].iloc[0], dtype=np.float64)
        survival = np.stack(inner["survival"].to_list())
        grid, curves = np.append(0.0, times), np.concatenate([np.ones((len(survival), 1)), survival], axis=1)
        right = min(int(np.searchsorted(grid, at)), len(grid) - 1)
        part = (at - grid[right - 1]) / (grid[right] - grid[right - 1])
        risk = 1 - (curves[:, right - 1] * (1 - part) + curves[:, right] * part)
    else:
        risk = inner["risk_score"].to_numpy(dtype=np.float64)
    return np.asarray(np.quantile(risk, [1 / 3, 2 / 3]))


def states(run: ReviewRun, fold: str) -> tuple[str, ...]:
    """Per held-out patient, whether it is like the training patients; withheld of who has no modality at all."""
    present = np.asarray(run.explained[fold].present)
    part = run.part(fold, "distribution")
    if part is None:
        return tuple(NOT_CHECKED if has.any() else WITHHELD for has in present)
    return familiarity.states(part["percentile"], pattern_count=part["pattern_count"], present=present)


@dataclass(frozen=True, kw_only=True)
class Query:
    """What of the worklist is asked for.

    Attributes:
        search: part of a key.
        group: risk group at the horizon, or empty.
        familiar: state, or empty.
        review: ``due`` or ``done`` (by this reader), or empty.
        modality: that the patient has, or empty.
        page: from 0.
    """

    search: str = ""
    group: str = ""
    familiar: str = ""
    review: str = ""
    modality: str = ""
    page: int = 0


def find(path: Path, query: Query, *, column: int = 0, done: Sequence[str] = ()) -> tuple[pd.DataFrame, int]:
    """One page of the worklist: patients whose review is due first, then by key; never by risk.

    Args:
        path: of :func:`build_worklist`.
        query: what is asked for.
        column: number of the horizon.
        done: keys that the reader has reviewed.

    Returns:
        Up to 25 rows with a column ``review``, and how many there are in all.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, memory_map=True)
    reviewed = pc.is_in(table["patient_id"], value_set=pa.array(list(done), pa.string()))
    keep = pc.invert(pc.is_null(table["patient_id"]))
    if query.search:
        keep = pc.and_(keep, pc.match_substring(table["patient_id"], query.search, ignore_case=True))
    if query.group and f"group_{column}" in table.column_names:
        keep = pc.and_(keep, pc.equal(table[f"group_{column}"], query.group))
    if query.familiar:
        keep = pc.and_(keep, pc.equal(table["familiar"], query.familiar))
    if query.modality:
        padded = pc.binary_join_element_wise("+ ", table["available"], " +", "")
        keep = pc.and_(keep, pc.match_substring(padded, f"+ {query.modality} +"))
    if query.review:
        keep = pc.and_(keep, reviewed if query.review == "done" else pc.invert(reviewed))
    rows = np.flatnonzero(keep.to_numpy())
    is_done = reviewed.to_numpy()[rows]
    rows = rows[np.argsort(is_done, kind="stable")]  # keys are sorted already
    shown = rows[query.page * PAGE : (query.page + 1) * PAGE]
    frame = table.take(pa.array(shown)).to_pandas()
    frame.insert(1, "review", np.where(np.isin(frame["patient_id"], list(done)), "done", "due"))
    return frame, len(rows)


def counts(run: ReviewRun, path: Path) -> dict[str, str]:
    """Patients, events, censored, median follow-up by the reverse Kaplan-Meier estimate, as text."""
    import pyarrow.parquet as parquet

    total = parquet.read_metadata(path).num_rows
    out = {"Held-out patients": f"{total:,}"}
    table = run.outcome_table
    if run.kind != "survival" or not len(table):
        return out
    known = table[table["observed"].astype(bool)]
    event = known["event"].to_numpy(dtype=bool)
    out |= {"Events": f"{int(event.sum()):,}", "Censored": f"{int((~event).sum()):,}"}
    if len(known):
        follow = kaplan_meier(known["time"].to_numpy(dtype=np.float64), ~event).median()
        out["Median follow-up"] = f"{follow:.0f} days" if np.isfinite(follow) else "not reached"
    return out


def availability(run: ReviewRun, path: Path) -> pd.DataFrame:
    """Patterns of available modalities: columns ``modalities patients events`` (events of survival outcomes)."""
    frame = pd.read_parquet(path, columns=["patient_id", "available"])
    table = run.outcome_table
    if run.kind == "survival" and len(table):
        happened = (table["event"].astype(bool) & table["observed"].astype(bool)).reindex(frame["patient_id"])
        frame["event"] = happened.fillna(value=False).to_numpy(dtype=bool)
    else:
        frame["event"] = False
    found = frame.groupby("available").agg(patients=("patient_id", "size"), events=("event", "sum")).reset_index()
    found = found.rename(columns={"available": "modalities"})
    return found.sort_values("patients", ascending=False, ignore_index=True)


def people_of(run: ReviewRun, data_root: Path | None) -> pd.DataFrame | None:
    """Site and subgroups of the card by patient; None where the cohort's files are not there or have changed."""
    from medfuse.cohort import read_cohort
    from medfuse.config import read_card

    try:
        cohort = read_cohort(read_card(run.path / "card.md"), data_root=data_root)
    except MedfuseError:
        return None
    return _people(cohort.records)


def _people(records: Sequence[Any]) -> pd.DataFrame:
    rows: list[Mapping[str, Any]] = [
        {"patient_id": str(r.patient_id), **({"site": r.site} if r.site else {}), **dict(r.subgroups)} for r in records
    ]
    frame = pd.DataFrame(rows).set_index("patient_id") if rows else pd.DataFrame()
    taken = {"fold", "available", "count", "familiar", "review"}
    return frame[[c for c in frame.columns if c not in taken]].astype("string")
