"""What ``medfuse explain`` stored in a run, read again without data or models: values, tables and importance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import CohortError, ConfigError, StoreError, nearest
from medfuse.explain import Coalitions, Importance, contributions, importance_of
from medfuse.explain.coalitions import AS_SAID
from medfuse.explaining_parts import fold_folder
from medfuse.run import Run, open_run
from medfuse.types import PatientId


def require_held_out(run: Run, patient: str | None) -> None:
    """Refuse a patient who is not among the held-out patients, before anything is computed.

    Raises:
        CohortError: no such patient.
    """
    if patient is not None and not any(patient in split["held_out"] for split in run.read("splits")["splits"]):
        msg = f"explain: expected a held-out patient of the run, found none with id {patient}; check the id"
        raise CohortError(msg)


def chosen_outcome(run: Run, outcome: str | None) -> str:
    """An outcome of the run; default its first.

    Raises:
        ConfigError: no such outcome.
    """
    ours: list[str] = run.read("run")["facts"]["outcomes"]
    if outcome is None:
        return ours[0]
    if outcome not in ours:
        msg = f"explain: the run has no outcome {outcome!r}; {nearest(outcome, ours)}"
        raise ConfigError(msg)
    return outcome


def read_coalitions(run: str | Path | Run, outcome: str | None = None) -> list[Coalitions]:
    """Stored values of a run, one per outer fold, memory-mapped; no model is needed.

    Args:
        run: an explained run.
        outcome: default the run's first.

    Raises:
        ConfigError: no such outcome.
        StoreError: the run has not been explained, or a part is damaged or of a newer format.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    outcome = chosen_outcome(opened, outcome)
    found = []
    for split in opened.read("splits")["splits"]:
        folder = fold_folder(opened, outcome, str(split["name"]))
        if not (folder / "index.json").is_file():
            msg = f"{opened.path}: outcome {outcome!r} has not been explained; run medfuse explain {opened.path}"
            raise StoreError(msg)
        found.append(read_fold(opened, folder))
    return found


def read_fold(run: Run, folder: Path) -> Coalitions:
    """Stored values of one outer fold.

    Raises:
        StoreError: damaged or of a newer format.
    """
    index = run.read(str((folder / "index").relative_to(run.path)))

    def array(name: str) -> NDArray[Any]:
        try:
            return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            msg = f"{folder / name}.npy: expected an array, found none that can be read; explain the run again"
            raise StoreError(msg) from error

    return Coalitions(
        outcome=index["outcome"],
        kind=index["kind"],
        patient_ids=tuple(PatientId(i) for i in index["patient_ids"]),
        modalities=tuple(index["modalities"]),
        present=array("present"),
        values=array("values"),
        replicates=array("replicates"),
        times=array("times") if index["kind"] == "survival" else None,
        fold=tuple(index["fold"]),
        meaning=index.get("meaning", AS_SAID),  # runs of before have none
    )


def default_horizon(run: Run, found: Sequence[Coalitions]) -> float | None:
    """The middle one of the run's reporting horizons that every fold's curves reach; None for other outcomes.

    Raises:
        StoreError: a part of the run is missing or damaged.
    """
    if found[0].times is None:
        return None
    end = min(float(c.times[-1]) for c in found if c.times is not None)
    horizons = [float(h) for h in run.read("metrics")["outcomes"][found[0].outcome].get("horizons") or ()]
    within = [h for h in horizons if h <= end]
    return within[len(within) // 2] if within else end


def contribution_table(
    found: Sequence[Coalitions], *, horizon: float | None = None, label: int | None = None
) -> pd.DataFrame:
    """One row per patient and modality that the patient has.

    Args:
        found: of :func:`explain_run` or :func:`read_coalitions`.
        horizon: days, for survival outcomes.
        label: index of the class, for multi-class outcomes.

    Returns:
        Columns ``fold patient_id modality contribution low high`` (on the link: log cumulative hazard, log odds or
        value), ``ratio`` (its exponential: of cumulative hazards or odds), ``points`` (its part of the difference in
        risk, a Shapley value of its own) and ``risk`` (of the patient); the last three are NaN for values.

    Raises:
        ConfigError: no horizon or class where one is needed, or one that the outcome does not have.
    """
    tables = []
    for one in found:
        link = contributions(one, horizon=horizon, label=label)
        risk = contributions(one, horizon=horizon, label=label, scale="risk")
        if link.contribution.ndim != 2:
            msg = f"explain: outcome {one.outcome!r} has several numbers per patient; choose a horizon or a class"
            raise ConfigError(msg)
        row, column = np.nonzero(one.present)
        part: dict[str, object] = {
            "fold": [one.fold[i] for i in row],
            "patient_id": [one.patient_ids[i] for i in row],
            "modality": [one.modalities[i] for i in column],
        }
        for name in ("contribution", "low", "high"):
            part[name] = getattr(link, name)[row, column]
        has_risk = one.kind != "continuous"
        part["ratio"] = np.exp(link.contribution[row, column]) if has_risk else np.nan
        part["points"] = risk.contribution[row, column] if has_risk else np.nan
        part["risk"] = risk.everybody[row] if has_risk else np.nan
        tables.append(pd.DataFrame(part))
    return pd.concat(tables, ignore_index=True)


def pooled_importance(
    found: Sequence[Coalitions], *, horizon: float | None = None, label: int | None = None, seed: int = 0
) -> list[Importance]:
    """Importance of each modality over the held-out patients of all folds; see :func:`medfuse.explain.importance`.

    Raises:
        ConfigError: a horizon or class that the outcome does not have.
    """
    each = [contributions(one, horizon=horizon, label=label) for one in found]
    return importance_of(np.concatenate([c.contribution for c in each]), each[0].modalities, seed=seed)
