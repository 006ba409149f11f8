"""A run as the review reads it: stored numbers only, memory-mapped, without models, cohorts or training code."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import CohortError, ConfigError, StoreError, nearest
from medfuse.files import MANIFEST, json_bytes, read_json, sha256_bytes, sha256_file
from medfuse.metrics.nonparametric import SurvivalCurve, kaplan_meier
from medfuse.run import Run, open_run
from medfuse.targets import Survival

Array = NDArray[np.float64]
EXPLANATIONS = "explanations"
LOW, HIGH = 0.05, 0.95  # percentiles over replicates, as of the contributions


@dataclass(frozen=True, kw_only=True)
class FoldValues:
    """Stored coalition values of the held-out patients of one outer fold; see :class:`medfuse.explain.Coalitions`.

    Attributes:
        fold: its name.
        patient_ids: n ids.
        modalities: M names.
        present: (n, M).
        values: (n, 2^M, L) links, memory-mapped.
        replicates: (R, n, 2^M, L) float32 of each replicate, memory-mapped.
        times: (L,) days, or None.
        meaning: ``recalibrated``, or ``as the model says`` (also runs of before, which say nothing of it).
    """

    fold: str
    patient_ids: tuple[str, ...]
    modalities: tuple[str, ...]
    present: NDArray[np.bool_]
    values: Array
    replicates: NDArray[np.float32]
    times: Array | None
    meaning: str = "as the model says"


class ReviewRun:
    """One outcome of a run, opened for reading."""

    def __init__(self, run: Run, outcome: str | None = None) -> None:
        self.run = run
        self.facts: Mapping[str, Any] = run.read("run")
        self.outcomes: list[str] = list(self.facts["facts"]["outcomes"])
        self.outcome = self.outcomes[0] if outcome is None else outcome
        if self.outcome not in self.outcomes:
            msg = f"review: the run has no outcome {self.outcome!r}; {nearest(self.outcome, self.outcomes)}"
            raise ConfigError(msg)
        metrics = run.read("metrics")["outcomes"]
        self.metrics: Mapping[str, Any] = metrics[self.outcome]
        self.kind: str = self.metrics["kind"]
        self.model: str = self.metrics["carrying"]
        self.splits: Mapping[str, Mapping[str, Any]] = {str(s["name"]): s for s in run.read("splits")["splits"]}
        self.modalities: tuple[str, ...] = tuple(self.facts["facts"]["data"])
        manifest = run.path / MANIFEST
        self.sha256 = sha256_file(manifest) if manifest.is_file() else ""
        # of what defines the run (cohort, recipe, seed, outcomes, data): the same after another report or seal
        self.id = sha256_bytes(json_bytes(self.facts["facts"]))
        self.memory: dict[
            str, Any
        ] = {}  # per fold, the same for every reader: curves of the training side, calibration

    @property
    def path(self) -> Path:
        """Of the run directory."""
        return self.run.path

    @cached_property
    def horizons(self) -> tuple[float, ...]:
        """Days at which risks are shown: those of the report that every fold's curves reach; () without times."""
        if self.kind != "survival":
            return ()
        folds = self.explained.values() if self.explained else ()
        grids = [f.times for f in folds if f.times is not None]
        end = min((float(grid[-1]) for grid in grids), default=float("inf"))
        asked = [float(h) for h in self.metrics.get("horizons") or ()]
        return tuple(h for h in asked if h <= end) or ((end,) if np.isfinite(end) else tuple(asked))

    @property
    def default_horizon(self) -> float | None:
        """The middle one, as in ``medfuse explain``."""
        return self.horizons[len(self.horizons) // 2] if self.horizons else None

    @cached_property
    def explained(self) -> Mapping[str, FoldValues]:
        """Stored values per fold; empty when the run has not been explained for this outcome."""
        found = {name: self._fold(name) for name in self.splits}
        return {name: one for name, one in found.items() if one is not None} if all(found.values()) else {}

    def _fold(self, name: str) -> FoldValues | None:
        folder = self.path / EXPLANATIONS / self.outcome / name
        if not (folder / "index.json").is_file():
            return None
        index = read_json(folder / "index.json")

        def array(part: str) -> NDArray[Any]:
            try:
                return np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
            except (OSError, ValueError) as error:
                msg = f"{folder / part}.npy: expected an array, found none that can be read; explain the run again"
                raise StoreError(msg) from error

        return FoldValues(
            fold=name,
            patient_ids=tuple(index["patient_ids"]),
            modalities=tuple(index["modalities"]),
            present=array("present"),
            values=array("values"),
            replicates=array("replicates"),
            times=array("times") if index["kind"] == "survival" else None,
            meaning=str(index.get("meaning", FoldValues.meaning)),
        )

    def part(self, fold: str, name: str) -> Mapping[str, Any] | None:
        """A part of the explanation (gate, donors ...) as its fields; None where it was not computed."""
        folder = self.path / EXPLANATIONS / self.outcome / fold / name
        if not (folder / "index.json").is_file():
            return None
        index = read_json(folder / "index.json")
        try:
            found: dict[str, Any] = dict(index["rest"])
            for array in index["arrays"]:
                found[array] = np.load(folder / f"{array}.npy", mmap_mode="r", allow_pickle=False)
        except (KeyError, TypeError, OSError, ValueError) as error:
            msg = f"{folder}: expected a part of an explanation, found damage; explain the run again"
            raise StoreError(msg) from error
        return found

    @cached_property
    def checks(self) -> list[dict[str, Any]]:
        """Stored checks of faithfulness; empty where they were not run."""
        path = self.path / EXPLANATIONS / self.outcome / "checks.json"
        return list(read_json(path)["checks"]) if path.is_file() else []

    @cached_property
    def where(self) -> Mapping[str, tuple[str, int]]:
        """Held-out patient -> fold and row of its values; the first fold where splits overlap."""
        out: dict[str, tuple[str, int]] = {}
        for name, one in self.explained.items():
            for row, patient in enumerate(one.patient_ids):
                out.setdefault(patient, (name, row))
        return out

    def locate(self, patient: str) -> tuple[FoldValues, int]:
        """Values and row of a patient.

        Raises:
            CohortError: not a held-out patient of an explained run; the message does not repeat what was typed.
        """
        if patient not in self.where:
            msg = (
                "review: expected a held-out patient of an explained run, found no such key; choose one of the worklist"
            )
            raise CohortError(msg)
        fold, row = self.where[patient]
        return self.explained[fold], row

    @cached_property
    def outcome_table(self) -> pd.DataFrame:
        """Columns ``observed event time`` ... of this outcome by patient; empty where the run keeps none."""
        path = self.path / "outcomes.parquet"
        if not path.is_file():
            return pd.DataFrame(columns=["patient_id", "observed"]).set_index("patient_id")
        frame = pd.read_parquet(path)
        return frame[frame["outcome"] == self.outcome].set_index("patient_id")

    def survival_of(self, ids: list[str] | tuple[str, ...]) -> Survival:
        """Known outcomes of some of the patients; those without are left out."""
        rows = self.outcome_table.reindex([i for i in ids if i in self.outcome_table.index])
        rows = rows[rows["observed"].astype(bool)]
        return Survival(event=rows["event"].to_numpy(dtype=bool), time=rows["time"].to_numpy(dtype=np.float64))

    def training_curve(self, fold: str) -> SurvivalCurve | None:
        """Kaplan-Meier of the fold's training patients; None without survival outcomes."""
        if self.kind != "survival":
            return None
        if f"curve {fold}" not in self.memory:
            known = self.survival_of([str(i) for i in self.splits[fold]["train"]])
            self.memory[f"curve {fold}"] = kaplan_meier(known.time, known.event) if len(known) else None
        found: SurvivalCurve | None = self.memory[f"curve {fold}"]
        return found

    def supported_until(self, fold: str) -> float:
        """Last day at which at least 10 % of the training patients, and 10, are still at risk."""
        curve = self.training_curve(fold)
        if curve is None:
            return float("inf")
        enough = np.flatnonzero(curve.at_risk >= max(10.0, 0.1 * float(curve.at_risk[0])))
        return float(curve.times[enough[-1]]) if len(enough) else float(curve.times[0])

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Rows of the carrying model: held-out and inner out-of-fold."""
        import pyarrow.parquet as parquet

        chosen = [("model", "==", self.model), ("outcome", "==", self.outcome)]
        frame: pd.DataFrame = parquet.read_table(self.path / "predictions.parquet", filters=chosen).to_pandas()
        return frame


def open_review(path: str | Path, outcome: str | None = None) -> ReviewRun:
    """Open a run for the review.

    Raises:
        ConfigError: no such outcome.
        StoreError: no finished run there, or a part is missing, damaged or of a newer format.
    """
    run = open_run(path)
    if not run.finished:
        msg = f"{path}: expected a finished run, found one that is not; finish it with medfuse train"
        raise StoreError(msg)
    return ReviewRun(run, outcome)


def to_risk(link: Array, kind: str) -> Array:
    """Links (..., L) as risks: probability of the event by each time, or of each class; values stay as they are."""
    if kind == "continuous":
        return link
    if kind == "survival":
        return np.asarray(-np.expm1(-np.exp(np.minimum(link, 50.0))))
    if kind == "binary":
        return np.asarray(1 / (1 + np.exp(-link)))
    shifted = np.exp(link - link.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def at_time(link: Array, times: Array, horizon: float) -> Array:
    """Log cumulative hazards (..., L) at one day: survival is linear between grid points, as in every table of a run.

    Raises:
        ConfigError: the horizon is not within (0, last time].
    """
    if not 0 < horizon <= times[-1] * (1 + 1e-9):
        msg = f"review: expected a horizon within 0 and {times[-1]:g} days, found {horizon:g}"
        raise ConfigError(msg)
    right = min(int(np.searchsorted(times, horizon)), len(times) - 1)
    edge = to_risk(np.asarray(link[..., max(right - 1, 0) : right + 1], dtype=np.float64), "survival")
    start, before = (float(times[right - 1]), edge[..., 0]) if right else (0.0, np.zeros(edge.shape[:-1]))
    part = min((horizon - start) / (float(times[right]) - start), 1.0)
    risk = before * (1 - part) + edge[..., -1] * part
    return np.asarray(np.log(-np.log1p(-np.minimum(risk, 1 - 1e-16))))


def one_number(
    link: NDArray[np.floating[Any]], run: ReviewRun, times: Array | None, at: float | None
) -> tuple[Array, Array]:
    """Links (..., L) as one link and one risk each: at a horizon, of the event class, of class ``at``, or the value."""
    full = np.asarray(link, dtype=np.float64)
    if times is not None:
        if at is None:
            msg = "review: expected a horizon for a survival outcome, found none"
            raise ConfigError(msg)
        found = at_time(full, times, at)
        return found, to_risk(found, run.kind)
    column = int(at) if run.kind == "multiclass" and at is not None else 0
    return np.asarray(full[..., column]), np.asarray(to_risk(full, run.kind)[..., column])
