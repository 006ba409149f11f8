"""Explanations within a modality, of a run: computed once from its stored models, kept beside them, and read again."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse.errors import CohortError, ConfigError, StoreError, nearest
from medfuse.explain import Attribution, Check, Coalitions, Faithfulness, Options, attribute, check
from medfuse.explain.events import UNITS as EVENT
from medfuse.explain.events import attribute_events, check_events
from medfuse.explaining import FOLDER, default_horizon, explain_run, read_source
from medfuse.explaining_parts import Source
from medfuse.files import new_folder, read_json, write_bytes, write_json
from medfuse.run import FORMAT_VERSION, Run, only_writer, open_run
from medfuse.training import FoldModel, cpu_threads, load_fold
from medfuse.types import PatientId
from medfuse.within_events import events_for

Say = Callable[[str], None]
_ARRAYS = (
    "contribution",
    "presence",
    "recalibration",
    "gap",
    "stability",
    "patient",
    "unit",
    "positions",
    "values",
    "low",
    "high",
)
_LATER = "recalibration"  # explanations of before have none: their runs show values as the model says them
_SHOWN = 12


_MOVED = "(coalitions with and without the modality are recalibrated apart)"


def _silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What to explain.

    Attributes:
        outcome: default the run's first.
        horizon: days; default the middle reporting horizon.
        units: see :func:`medfuse.explain.attribute`; also ``event``, single events of a record read as a summary
            (:mod:`medfuse.explain.events`).
        class_index: of a multi-class outcome.
        patients: default all held-out patients who have the modality.
        check: also check the explanation, which takes longer.
        method: see :class:`medfuse.explain.Options`.
        cells: of a grid of regions.
    """

    outcome: str | None = None
    horizon: float | None = None
    units: str | None = None
    class_index: int | None = None
    patients: tuple[str, ...] = ()
    check: bool = False
    method: str = "auto"
    cells: int = 8


@dataclass(frozen=True, kw_only=True)
class Within:
    """Attributions by the model of one outer fold, and what their checks said (None: not checked)."""

    fold: str
    attribution: Attribution
    checked: Faithfulness | None

    @property
    def badge(self) -> str:
        """Text to stand beside every picture of these values."""
        return "not checked" if self.checked is None else self.checked.badge


def explain_within(
    run: str | Path | Run,
    modality: str,
    *,
    ask: Ask | None = None,
    data_root: Path | None = None,
    store_root: Path | None = None,
    say: Say = _silent,
) -> list[Within]:
    """What the units of a modality added to held-out predictions, each by the model that never saw the patient.

    Stored in the run (``explanations/OUTCOME/FOLD/within/MODALITY/UNITS``) and sealed with it, fold by fold. When the
    same question was answered before for at least these patients, the answer is read.

    Args:
        run: run directory.
        modality: its name.
        ask: see :class:`Ask`.
        data_root: folder of the cohorts' files; default ``MEDFUSE_DATA``.
        store_root: folder of the feature store.
        say: called with each line of progress.

    Returns:
        One per outer fold in which somebody asked for has the modality, in order.

    Raises:
        CohortError: the data have changed since the run, or no patient asked for is held out and has the modality.
        ConfigError: no such outcome, modality, units or horizon.
        StoreError: a part of the run is missing, damaged or of a newer format.
    """
    opened, ask = run if isinstance(run, Run) else open_run(run), ask or Ask()
    coalitions = explain_run(opened, outcome=ask.outcome, data_root=data_root, store_root=store_root, say=say)
    horizon = default_horizon(opened, coalitions) if ask.horizon is None else ask.horizon
    ask = dataclasses.replace(ask, outcome=coalitions[0].outcome, horizon=horizon)
    wanted = _wanted(opened, coalitions, modality, ask.patients)
    have = {name: _stored(_folder(opened, modality, name, ask), ask, ids) for name, ids in wanted.items()}
    missing = {name: ids for name, ids in wanted.items() if have[name] is None}
    if missing:
        opened.verify()
        with only_writer(opened.path), cpu_threads(1):  # the fastest for small models
            source = read_source(opened, data_root=data_root, store_root=store_root)
            for name, ids in missing.items():
                say(f"{ask.outcome}, fold {name}: {modality} of {len(ids)} patients")
                fold, folder = load_fold(opened.fold_folder(name)), _folder(opened, modality, name, ask)
                found, checked = _attributed(fold, source, ids, modality=modality, ask=ask)
                with opened.amended() as stage:  # it may take the place of the answer to another question
                    place = stage / folder.relative_to(opened.path)
                    _write(Within(fold=name, attribution=found, checked=checked), place, ask)
    return [read_one(_folder(opened, modality, name, ask)) for name in wanted]


def _wanted(
    run: Run, coalitions: Sequence[Coalitions], modality: str, patients: Sequence[str]
) -> dict[str, list[PatientId]]:
    """By outer fold, who was asked for (none named: everybody) and has the modality."""
    wanted: dict[str, list[PatientId]] = {}
    for one in coalitions:
        if modality not in one.modalities:
            msg = f"{run.path}: no modality {modality!r}; {nearest(modality, one.modalities)}"
            raise ConfigError(msg)
        has = one.present[:, one.modalities.index(modality)]
        asked = [i for i, there in zip(one.patient_ids, has, strict=True) if there and (not patients or i in patients)]
        if asked:
            wanted[one.fold[0]] = asked
    found = {i for asked in wanted.values() for i in asked}
    if not wanted or not found.issuperset(patients):
        msg = f"explain: expected held-out patients who have {modality}, found no such id; check the ids"
        raise CohortError(msg)
    return wanted


def _attributed(
    fold: FoldModel,
    source: Source,
    ids: Sequence[PatientId],
    *,
    modality: str,
    ask: Ask,
) -> tuple[Attribution, Faithfulness | None]:
    options = Options(outcome=ask.outcome, class_index=ask.class_index, method=ask.method, cells=ask.cells)
    data = source.data
    if ask.units == EVENT:
        events = events_for(source.cohort, modality, ids)
        found = attribute_events(fold, data, events, modality=modality, horizon=ask.horizon, options=options)
        return found, check_events(fold, data, events, found) if ask.check else None
    found = attribute(fold, data, ids, modality=modality, horizon=ask.horizon, units=ask.units, options=options)
    return found, check(fold, data, found) if ask.check else None


def _folder(run: Run, modality: str, fold: str, ask: Ask) -> Path:
    return run.path / FOLDER / str(ask.outcome) / fold / "within" / modality / (ask.units or "default")


def _question(ask: Ask) -> dict[str, Any]:
    """What must be the same for a stored answer to be one."""
    return {key: getattr(ask, key) for key in ("outcome", "horizon", "units", "class_index", "method", "cells")}


def _stored(folder: Path, ask: Ask, ids: Sequence[PatientId]) -> Within | None:
    """A stored answer to this question for at least these patients."""
    if not (folder / "index.json").is_file():
        return None
    if read_json(folder / "index.json").get("question") != _question(ask):
        return None
    found = read_one(folder)
    known = set(found.attribution.patient_ids)
    return found if known >= set(ids) and (found.checked or not ask.check) else None


def _write(found: Within, folder: Path, ask: Ask) -> None:
    one = found.attribution
    plain = {
        f.name: getattr(one, f.name) for f in dataclasses.fields(one) if f.name not in _ARRAYS and f.name != "names"
    }
    with new_folder(folder) as temporary:
        for name in _ARRAYS:
            stream = io.BytesIO()
            np.save(stream, np.ascontiguousarray(getattr(one, name)), allow_pickle=False)
            write_bytes(temporary / f"{name}.npy", stream.getvalue())
        checked = None
        if found.checked is not None:
            checked = {**dataclasses.asdict(found.checked), "badge": found.badge}
            checked["checks"] = [{k: _json(v) for k, v in c.items()} for c in checked["checks"]]
        content = {
            "fold": found.fold,
            "question": _question(ask),
            **plain,
            "names": list(one.names),
            "checked": checked,
        }
        write_json(temporary / "index.json", {"format_version": FORMAT_VERSION, **content})


def _json(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_one(folder: Path) -> Within:
    """A stored explanation within a modality; arrays are memory-mapped, and no model is needed.

    Raises:
        StoreError: damaged, incomplete or of a newer format.
    """
    index = read_json(folder / "index.json")
    if index.get("format_version", 0) > FORMAT_VERSION:
        msg = f"{folder}: has format {index['format_version']}, this medfuse reads {FORMAT_VERSION}; update medfuse"
        raise StoreError(msg)
    try:
        there = [name for name in _ARRAYS if name != _LATER or (folder / f"{name}.npy").is_file()]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in there}
        arrays.setdefault(_LATER, np.zeros(len(index["patient_ids"])))
        kept = {f.name for f in dataclasses.fields(Attribution)} - set(_ARRAYS)
        plain = {name: index[name] for name in kept}
        plain |= {"names": tuple(index["names"]), "patient_ids": tuple(PatientId(i) for i in index["patient_ids"])}
        checked = index["checked"]
        if checked is not None:
            nan = float("nan")
            rows: list[dict[str, Any]] = [
                {k: nan if v is None else v for k, v in row.items()} for row in checked["checks"]
            ]
            checked = Faithfulness(
                modality=checked["modality"],
                units=checked["units"],
                patients=checked["patients"],
                checks=tuple(Check(**row) for row in rows),
            )
        return Within(fold=index["fold"], attribution=Attribution(**arrays, **plain), checked=checked)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{folder}: expected a stored explanation, found a damaged one; explain the run again"
        raise StoreError(msg) from error


def read_within(run: str | Path | Run, modality: str, *, outcome: str, units: str | None = None) -> list[Within]:
    """Stored explanations within a modality, one per outer fold that has one; no model is needed.

    Raises:
        StoreError: there is none, or one is damaged or of a newer format.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    ask = Ask(outcome=outcome, units=units)
    names = [str(split["name"]) for split in opened.read("splits")["splits"]]
    folders = [_folder(opened, modality, name, ask) for name in names]
    found = [read_one(folder) for folder in folders if (folder / "index.json").is_file()]
    if not found:
        msg = (
            f"{opened.path}: {modality!r} has not been explained; run medfuse explain {opened.path} --within {modality}"
        )
        raise StoreError(msg)
    return found


def within_table(found: Sequence[Within]) -> pd.DataFrame:
    """One row per patient and unit, and two (``part`` presence, recalibration) for what no unit has, so that sums hold.

    Returns:
        Columns ``fold patient_id modality part unit contribution low high x y z label badge``: the position stands in
        x, y and z (NaN where it has fewer numbers), low and high are NaN for presence and recalibration; a run whose
        values are as the model says them has no rows of recalibration.
    """
    tables = []
    for one in found:
        a = one.attribution
        at = np.full((len(a.patient), 3), np.nan)
        at[:, : min(3, a.positions.shape[1])] = a.positions[:, :3]
        ids = np.array(a.patient_ids, dtype=object)
        label = np.array(a.label, dtype=object)
        units = {"fold": one.fold, "patient_id": ids[a.patient], "modality": a.modality, "part": "unit"}
        units |= {"unit": [a.name(row) for row in range(len(a.patient))], "contribution": a.values}
        units |= {"low": a.low, "high": a.high, "x": at[:, 0], "y": at[:, 1], "z": at[:, 2], "label": label[a.patient]}
        rest = {"fold": one.fold, "patient_id": ids, "modality": a.modality, "part": "presence"}
        rest |= {"unit": "(from the absent modality to " + a.start + ")", "contribution": a.presence, "label": label}
        both = [pd.DataFrame(units), pd.DataFrame(rest)]
        if np.any(a.recalibration):
            moved = {**rest, "part": "recalibration", "unit": _MOVED, "contribution": a.recalibration}
            both.append(pd.DataFrame(moved))
        tables.append(pd.concat(both, ignore_index=True).assign(badge=one.badge))
    return pd.concat(tables, ignore_index=True)


def within_lines(found: Sequence[Within], *, patient: str | None = None) -> list[str]:
    """The attributions as lines of text: of a patient, or mean absolute values over patients of units with names.

    Raises:
        CohortError: the patient is not among those explained.
    """
    first = found[0].attribution
    where = "" if first.horizon is None else f" at {first.horizon:g} days"
    out = [f"{first.outcome}{where}: what each {first.units} of {first.modality} adds, by {first.method}"]
    if patient is not None:
        known = [one for one in found if patient in one.attribution.patient_ids]
        if not known:
            first.rows(patient)  # says that nobody has this id
        for one in known:
            out += _patient_lines(one, patient)
        return out
    for one in found:
        a = one.attribution
        size = np.abs(a.values)
        out.append(f"  fold {one.fold}: {len(a)} patients, {int(a.complete.sum())} with complete sums; {one.badge}")
        if not a.names or a.units == EVENT:  # events of one patient are not those of another
            out.append(f"    {len(size)} values, mean absolute {size.mean():.4f}; name a patient to see the largest")
            continue
        mean = np.bincount(a.unit, weights=size, minlength=len(a.names)) / len(a)
        for unit in np.argsort(-mean, kind="stable")[:_SHOWN]:
            out.append(f"    {a.names[unit]:<28} {mean[unit]:.4f}")
        out.append(f"    {'(in no unit: presence)':<28} {np.abs(a.presence).mean():.4f}")
        if np.any(a.recalibration):
            out.append(f"    {'(recalibration)':<28} {np.abs(a.recalibration).mean():.4f}")
    return out


def _patient_lines(one: Within, patient: str) -> list[str]:
    a = one.attribution
    row, rows = a.patient_ids.index(PatientId(patient)), a.rows(patient)
    out = [
        f"  patient {patient}, model of fold {one.fold}: contribution {a.contribution[row]:+.3f}; {a.label[row]} "
        f"(gap {a.gap[row]:+.4f}); {one.badge}"
    ]
    for k in rows[:_SHOWN]:
        at = "" if a.names else " at " + ", ".join(f"{x:g}" for x in a.positions[k])
        out.append(f"    {a.name(int(k)) + at:<28} {a.values[k]:+.4f} [{a.low[k]:+.4f}, {a.high[k]:+.4f}]")
    if len(rows) > _SHOWN:
        rest = float(a.values[rows[_SHOWN:]].sum())
        out.append(f"    {f'{len(rows) - _SHOWN} more':<28} {rest:+.4f}")
    out.append(f"    {'(presence)':<28} {a.presence[row]:+.4f}  from the absent modality to: {a.start}")
    if np.any(a.recalibration):
        out.append(f"    {'(recalibration)':<28} {a.recalibration[row]:+.4f}  {_MOVED}")
    return out
