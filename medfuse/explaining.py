"""Explanations of a run: computed once from its stored models, kept beside them, and read again without any model."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.cohort import Cohort, read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.errors import CohortError
from medfuse.explain import Coalitions, coalition_values
from medfuse.explain.faithfulness import Check
from medfuse.explained import chosen_outcome, read_fold
from medfuse.explained import contribution_table as contribution_table
from medfuse.explained import default_horizon as default_horizon
from medfuse.explained import pooled_importance as pooled_importance
from medfuse.explained import read_coalitions as read_coalitions
from medfuse.explaining_parts import FOLDER as FOLDER
from medfuse.explaining_parts import (
    Source,
    fold_folder,
    has_parts,
    read_checks,
    unseen_of,
    write_checks,
    write_parts,
)
from medfuse.explaining_prototypes import stored_prototypes, write_prototypes
from medfuse.files import new_folder, write_bytes, write_json
from medfuse.jobs import with_outcome
from medfuse.report import refresh_report
from medfuse.run import FORMAT_VERSION, Run, only_writer, open_run
from medfuse.training import cpu_threads, load_fold
from medfuse.types import PatientId

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

    Every coalition is what the model would predict of the patient from these modalities alone, which means what it says
    of patients who have them (:mod:`medfuse.training.patterns`). Values are stored in the run
    (``explanations/OUTCOME/FOLD``) fold by fold; its report and documents are written again with them, and all is
    sealed in one step (:meth:`Run.amended`). When they are there, sealed, they are read; after a kill, what is there is
    kept, and the rest is done. The data must be those that the run was trained on.

    Args:
        run: run directory.
        outcome: default the run's first.
        data_root: folder of the cohorts' files; default ``MEDFUSE_DATA``.
        store_root: folder of the feature store.
        say: called with each line of progress.

    Returns:
        One per outer fold, in order.

    Raises:
        CohortError: the data or the outcomes have changed since the run.
        ConfigError: no such outcome.
        StoreError: a part of the run is missing, damaged or of a newer format.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    names = [str(split["name"]) for split in opened.read("splits")["splits"]]
    outcome = chosen_outcome(opened, outcome)
    if all(_complete(opened, outcome, name) for name in names) and not opened.unsealed(f"{FOLDER}/{outcome}"):
        return read_coalitions(opened, outcome)
    opened.verify()
    with only_writer(opened.path), cpu_threads(1):  # the fastest for small models
        source = read_source(opened, data_root=data_root, store_root=store_root)
        for split in opened.read("splits")["splits"]:
            if not _complete(opened, outcome, str(split["name"])):
                _explain_fold(opened, source, split, outcome=outcome, say=say)
        refresh_report(opened)
    return read_coalitions(opened, outcome)


def _explain_fold(opened: Run, source: Source, split: Mapping[str, Any], *, outcome: str, say: Say) -> None:
    """Write what a fold lacks: values of all coalitions, what rests on them, prototypes."""
    name = str(split["name"])
    folder = _folder(opened, outcome, name)
    ids = [PatientId(i) for i in split["held_out"]]
    known = set(source.cohort.patient_ids)
    lost = next((i for i in ids if i not in known), None)
    if lost is not None:
        msg = f"{opened.path}: expected held-out patient {lost} in the cohort, found no such id"
        raise CohortError(msg)
    say(f"{outcome}, fold {name}: {len(ids)} patients, up to {1 << len(source.data)} coalitions each")
    fold = load_fold(opened.fold_folder(name))
    if _explained(opened, outcome, name):  # by a version that stored no prototypes
        write_prototypes(source, fold, read_fold(opened, folder), say=say)
        return
    unseen = unseen_of(source, fold, outcome)
    if not (folder / "index.json").is_file():
        write_coalitions(coalition_values(fold, source.data, ids, outcome=outcome, name=name), folder)
    values = read_fold(opened, folder)
    write_parts(source, fold, values, folder, unseen=unseen, say=say)
    write_prototypes(source, fold, values, say=say)


def read_source(run: Run, *, data_root: Path | None = None, store_root: Path | None = None) -> Source:
    """Cohort, data and recipe of a run.

    Raises:
        CohortError: the data or the outcomes have changed since the run.
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
    _require_same_outcomes(run, cohort, facts["outcomes"])
    recipe = read_recipe(run.path / "recipe.yaml")
    return Source(run=run, cohort=cohort, data=data, recipe=recipe, outcomes=tuple(facts["outcomes"]))


def _require_same_outcomes(run: Run, cohort: Cohort, outcomes: Sequence[str]) -> None:
    """Refuse a cohort whose known outcomes, or the patients who have one, are not those that the run stores."""
    stored = pd.read_parquet(run.path / "outcomes.parquet")
    for name in outcomes:
        target = cohort.targets[name]
        columns = [column for column in ("event", "time", "label", "value") if hasattr(target, column)]
        rows = stored[(stored.outcome == name) & stored.observed]
        before = dict(zip(rows.patient_id, rows[columns].itertuples(index=False, name=None), strict=True))
        values = zip(*(getattr(target, column).tolist() for column in columns), strict=True)
        told = zip(cohort.patient_ids, values, target.observed, strict=True)
        if {patient: value for patient, value, known in told if known} != before:
            msg = (
                f"{run.path}: expected the patients and outcomes that the run was trained on, found others for outcome "
                f"{name!r}; restore its files, or train again"
            )
            raise CohortError(msg)


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
        checks = write_checks(source, found, horizon=default_horizon(opened, found), say=say)
        refresh_report(opened)
    return checks


def _folder(run: Run, outcome: str, fold: str) -> Path:
    return fold_folder(run, outcome, fold)


def _explained(run: Run, outcome: str, fold: str) -> bool:
    return (_folder(run, outcome, fold) / "index.json").is_file() and has_parts(run, outcome, fold)


def _complete(run: Run, outcome: str, fold: str) -> bool:
    return _explained(run, outcome, fold) and stored_prototypes(run, outcome, fold)


def write_coalitions(coalitions: Coalitions, folder: Path) -> None:
    """Write values as arrays that can be memory-mapped, at once or not at all."""
    with new_folder(folder) as temporary:
        for name in ("values", "replicates", "present", "times"):
            array = getattr(coalitions, name)
            if array is not None:
                write_bytes(temporary / f"{name}.npy", _npy(array))
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
