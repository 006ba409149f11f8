"""Explanations of a run: computed once from its stored models, kept beside them, and read again without any model."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.errors import CohortError, ConfigError, StoreError, nearest
from medfuse.explain import Coalitions, Importance, coalition_values, contributions, importance_of
from medfuse.explain.coalitions import AS_SAID, RECALIBRATED
from medfuse.explain.faithfulness import Check
from medfuse.explain.recalibration import recalibrated
from medfuse.explaining_parts import FOLDER as FOLDER
from medfuse.explaining_parts import (
    Source,
    fold_folder,
    has_parts,
    read_checks,
    recalibration_of,
    unseen_of,
    write_checks,
    write_parts,
    write_recalibration,
)
from medfuse.files import new_folder, write_bytes, write_json
from medfuse.run import FORMAT_VERSION, Run, only_writer, open_run
from medfuse.training import cpu_threads, load_fold
from medfuse.types import PatientId
from medfuse.workflow import with_outcome

Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Say nothing."""


def explain_run(
    run: str | Path | Run,
    *,
    outcome: str | None = None,
    data_root: Path | None = None,
    store_root: Path | None = None,
    say: Say = _silent,
) -> list[Coalitions]:
    """Values of all coalitions for every held-out patient, each by the model that never saw the patient.

    Every coalition is moved to what it means by outcomes of training patients (:mod:`medfuse.explain.recalibration`),
    but for all that a patient has, which stays the run's own prediction; the values as the model says them are kept
    beside (``read_coalitions(..., raw=True)``). Values are stored in the run (``explanations/OUTCOME/FOLD``) and sealed
    with it; when they are there already, they
    are read. The data must be those that the run was trained on.

    Args:
        run: run directory.
        outcome: default the run's first.
        data_root: folder of the cohorts' files; default ``MEDFUSE_DATA``.
        store_root: folder of the feature store.
        say: called with each line of progress.

    Returns:
        One per outer fold, in order.

    Raises:
        CohortError: the data have changed since the run.
        ConfigError: no such outcome.
        StoreError: a part of the run is missing, damaged or of a newer format.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    names = [str(split["name"]) for split in opened.read("splits")["splits"]]
    outcome = _outcome(opened, outcome)
    if all((_folder(opened, outcome, name) / "index.json").is_file() for name in names) and all(
        has_parts(opened, outcome, name) for name in names
    ):
        return read_coalitions(opened, outcome)
    opened.verify()
    with only_writer(opened.path), cpu_threads(1):  # the fastest for small models
        source = read_source(opened, data_root=data_root, store_root=store_root)
        known = set(source.cohort.patient_ids)
        for split in opened.read("splits")["splits"]:
            name = str(split["name"])
            folder = _folder(opened, outcome, name)
            if (folder / "index.json").is_file() and has_parts(opened, outcome, name):
                continue
            ids = [PatientId(i) for i in split["held_out"]]
            lost = [i for i in ids if i not in known]
            if lost:
                msg = f"{opened.path}: expected held-out patient {lost[0]} in the cohort, found no such id"
                raise CohortError(msg)
            say(f"{outcome}, fold {name}: {len(ids)} patients, up to {1 << len(source.data)} coalitions each")
            fold = load_fold(opened.fold_folder(name))
            unseen = unseen_of(source, fold, outcome)
            if not (folder / "index.json").is_file():
                values = coalition_values(fold, source.data, ids, outcome=outcome, name=name)
                how = recalibration_of(unseen, values)
                say(f"  recalibrated: {int(how.fitted.sum())} of {len(how.fitted)} coalitions")
                write_coalitions(recalibrated(values, how), folder, raw=values)
            shown = _read(opened, folder)
            if shown.meaning == RECALIBRATED:
                write_recalibration(recalibration_of(unseen, shown), folder)
            write_parts(source, fold, _raw_of(opened, folder), folder, unseen=unseen, shown=shown, say=say)
        opened.seal()
    return read_coalitions(opened, outcome)


def read_source(run: Run, *, data_root: Path | None = None, store_root: Path | None = None) -> Source:
    """Cohort, data and recipe of a run.

    Raises:
        CohortError: the data have changed since the run.
        StoreError: a part of the run is missing or damaged.
    """
    facts = run.read("run")["facts"]
    cohort = with_outcome(read_cohort(read_card(run.path / "card.md"), data_root=data_root), facts["outcomes"])
    data = load_modalities(cohort, names=list(facts["data"]), store_root=store_root)
    changed = [name for name, modality in data.items() if facts["data"][name] != modality.key]
    if changed:
        msg = (
            f"{run.path}: expected the data of the run, found modality {changed[0]!r} changed since; explain "
            "with the files the run was trained on"
        )
        raise CohortError(msg)
    recipe = read_recipe(run.path / "recipe.yaml")
    return Source(run=run, cohort=cohort, data=data, recipe=recipe, outcomes=tuple(facts["outcomes"]))


def check_run(
    run: str | Path | Run,
    *,
    outcome: str | None = None,
    data_root: Path | None = None,
    store_root: Path | None = None,
    say: Say = _silent,
) -> list[Check]:
    """Check the explanations of a run at the default horizon; computed once, stored and sealed with it.

    Args and errors as of :func:`explain_run`, which is run first.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    found = explain_run(opened, outcome=outcome, data_root=data_root, store_root=store_root, say=say)
    known = read_checks(opened, found[0].outcome)
    if known:
        return known
    opened.verify()
    with only_writer(opened.path), cpu_threads(1):  # the fastest for small models
        source = read_source(opened, data_root=data_root, store_root=store_root)
        raw = read_coalitions(opened, found[0].outcome, raw=True)
        checks = write_checks(source, found, raw=raw, horizon=default_horizon(opened, found), say=say)
        opened.seal()
    return checks


def _outcome(run: Run, outcome: str | None) -> str:
    ours: list[str] = run.read("run")["facts"]["outcomes"]
    if outcome is None:
        return ours[0]
    if outcome not in ours:
        msg = f"explain: the run has no outcome {outcome!r}; {nearest(outcome, ours)}"
        raise ConfigError(msg)
    return outcome


def _folder(run: Run, outcome: str, fold: str) -> Path:
    return fold_folder(run, outcome, fold)


def write_coalitions(coalitions: Coalitions, folder: Path, *, raw: Coalitions | None = None) -> None:
    """Write values as arrays that can be memory-mapped, at once or not at all; ``raw`` as the model says them."""
    with new_folder(folder) as temporary:
        for name in ("values", "replicates", "present", "times"):
            array = getattr(coalitions, name)
            if array is not None:
                write_bytes(temporary / f"{name}.npy", _npy(array))
        if raw is not None and coalitions.meaning == RECALIBRATED:
            write_bytes(temporary / "raw_values.npy", _npy(raw.values))
            write_bytes(temporary / "raw_replicates.npy", _npy(raw.replicates))
        write_json(
            temporary / "index.json",
            {
                "format_version": FORMAT_VERSION,
                "outcome": coalitions.outcome,
                "kind": coalitions.kind,
                "meaning": coalitions.meaning,
                "modalities": list(coalitions.modalities),
                "patient_ids": list(coalitions.patient_ids),
                "fold": list(coalitions.fold),
            },
        )


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def read_coalitions(run: str | Path | Run, outcome: str | None = None, *, raw: bool = False) -> list[Coalitions]:
    """Stored values of a run, one per outer fold, memory-mapped; no model is needed.

    Args:
        run: an explained run.
        outcome: default the run's first.
        raw: as the model says them, instead of the values that are shown (``meaning`` says which they are).

    Raises:
        ConfigError: no such outcome.
        StoreError: the run has not been explained, or a part is damaged or of a newer format.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    outcome = _outcome(opened, outcome)
    found = []
    for split in opened.read("splits")["splits"]:
        folder = _folder(opened, outcome, str(split["name"]))
        if not (folder / "index.json").is_file():
            msg = f"{opened.path}: outcome {outcome!r} has not been explained; run medfuse explain {opened.path}"
            raise StoreError(msg)
        found.append(_raw_of(opened, folder) if raw else _read(opened, folder))
    return found


def _raw_of(run: Run, folder: Path) -> Coalitions:
    """The values as the model says them: kept beside those shown, where these are others."""
    found = _read(run, folder)
    return _read(run, folder, prefix="raw_") if found.meaning == RECALIBRATED else found


def _read(run: Run, folder: Path, *, prefix: str = "") -> Coalitions:
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
        values=array(f"{prefix}values"),
        replicates=array(f"{prefix}replicates"),
        times=array("times") if index["kind"] == "survival" else None,
        fold=tuple(index["fold"]),
        meaning=AS_SAID if prefix else index.get("meaning", AS_SAID),  # runs of before kept no others
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


def lines(found: Sequence[Coalitions], *, horizon: float | None, patient: str | None = None) -> list[str]:
    """The contributions as lines of text: of a patient, or of all as mean absolute values with 95 % intervals.

    A multi-class outcome gives such a block for each class.

    Raises:
        CohortError: the patient is not among those explained.
        ConfigError: a horizon that the outcome does not have.
    """
    first = found[0]
    labels = range(first.values.shape[-1]) if first.kind == "multiclass" else [None]
    out: list[str] = []
    for label in labels:
        where = "" if horizon is None else f" at {horizon:g} days"
        where += "" if label is None else f", class {label + 1}"
        if patient is None:
            out += _global_lines(found, where, horizon=horizon, label=label)
        else:
            out += _patient_lines(found, where, patient, horizon=horizon, label=label)
    return out


def _unit(found: Sequence[Coalitions]) -> str:
    units = {"survival": "log cumulative hazard", "continuous": "the value", "multiclass": "log probability"}
    return units.get(found[0].kind, "log odds") + f" ({found[0].meaning})"


def _global_lines(found: Sequence[Coalitions], where: str, *, horizon: float | None, label: int | None) -> list[str]:
    out = [f"{found[0].outcome}{where}: mean absolute contribution to {_unit(found)} [95 % interval], share"]
    for one in pooled_importance(found, horizon=horizon, label=label):
        value, low, high = one.mean_absolute
        if not one.patients:
            out.append(f"  {one.modality:<20} no held-out patient has it")
            continue
        share = "no contribution at all" if np.isnan(one.share[0]) else f"{one.share[0]:4.0%} of all"
        out.append(f"  {one.modality:<20} {value:6.3f} [{low:.3f}, {high:.3f}]  {share}, {one.patients} patients")
    return out


def _patient_lines(
    found: Sequence[Coalitions], where: str, patient: str, *, horizon: float | None, label: int | None
) -> list[str]:
    table = contribution_table(found, horizon=horizon, label=label)
    own = table[table["patient_id"] == patient]
    if not len(own):
        msg = f"explain: expected a held-out patient with a modality, found none with id {patient}; check the id"
        raise CohortError(msg)
    out = []
    for fold, rows in own.groupby("fold"):
        risk = "" if np.isnan(rows["risk"].iloc[0]) else f", risk {rows['risk'].iloc[0]:.1%}"
        out.append(
            f"{found[0].outcome}{where}, patient {patient}, model of fold {fold}{risk}; contributions to {_unit(found)}"
        )
        numbers = rows[["contribution", "low", "high", "ratio", "points"]].to_numpy(dtype=np.float64)
        for name, (value, low, high, ratio, points) in zip(rows["modality"], numbers, strict=True):
            read = "" if np.isnan(points) else f"  x {ratio:.2f}  {100 * points:+.1f} points"
            out.append(f"  {name:<20} {value:+.3f} [{low:+.3f}, {high:+.3f}]{read}")
    return out
