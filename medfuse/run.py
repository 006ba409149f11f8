"""A run: a directory that answers "which data made this model", readable without a server."""

import datetime
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse.errors import StoreError
from medfuse.files import MANIFEST, amended, read_json, seal, unsealed, verify, write_bytes, write_json, write_text
from medfuse.outputs import require_free
from medfuse.prediction import Prediction
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.tables import same_code
from medfuse.types import PatientId

FORMAT_VERSION = 1
_APART = ("tracking.json",)  # rewritten whenever MLflow is given the run again
# What defines a run, in words; a run of an earlier medfuse has no "people".
_FACTS = {
    "cohort": "cohort",
    "recipe": "recipe",
    "seed": "seed",
    "outcomes": "outcomes",
    "data": "data",
    "people": "patients, their outcomes or their folds",
}
_PACKAGES = ("medfuse", "torch", "numpy", "scipy", "pandas", "scikit-learn", "scikit-survival", "lifelines", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory.

    Parts: ``run.json`` (what, when, by which code), ``card.md``, ``recipe.yaml`` (resolved), ``splits.json``,
    ``data.json`` (modalities, with SHA-256), ``modalities.json`` (columns that a prediction needs), ``attrition.json``,
    ``audit.json``, ``metrics.json``, ``predictions.parquet``, ``outcomes.parquet``, ``curves.jsonl``, ``folds/K/``
    (sealed members), ``competition.json`` (with ``train.balance: agm``), ``stress/`` (of ``medfuse stress``),
    ``report.html``, ``manifest.json``, the SHA-256 of all of it, and, outside the seal,
    ``tracking.json`` (what became of the copy in MLflow).

    A run is sealed once, when it is trained; whatever changes a sealed part later goes through :meth:`amended`, all of
    it or nothing. New parts may be written over hours, and until an amendment seals them nobody vouches for them:
    whoever finds some (:meth:`unsealed`) goes on with the command that made them.
    """

    path: Path

    def read(self, part: str) -> Any:  # noqa: ANN401  # a JSON part
        """A JSON part.

        Raises:
            StoreError: it is missing, damaged or of a newer format.
        """
        content = read_json(self.path / f"{part}.json")
        version = content.get("format_version", 0) if isinstance(content, dict) else 0
        if version > FORMAT_VERSION:
            msg = (
                f"{self.path / part}.json: has format {version}, this medfuse reads up to {FORMAT_VERSION}; "
                "update medfuse"
            )
            raise StoreError(msg)
        return content

    def write(self, part: str, content: Mapping[str, Any]) -> None:
        """Write a JSON part atomically."""
        write_json(self.path / f"{part}.json", {"format_version": FORMAT_VERSION, **content})

    def write_text(self, name: str, text: str) -> None:
        """Write a text part atomically."""
        write_text(self.path / name, text)

    def append_curve(self, row: Mapping[str, Any]) -> None:
        """Add one row to the training curves, flushed: the copy that outlives a crash and a tracking server."""
        with (self.path / "curves.jsonl").open("ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a line cut short by a crash: the new row must not join it
                    stream.write(b"\n")
            stream.write(json.dumps(row).encode() + b"\n")

    def curves(self) -> list[dict[str, Any]]:
        """Rows of the training curves; a line cut short by a crash is left out."""
        path = self.path / "curves.jsonl"
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def fold_folder(self, fold: str) -> Path:
        """Folder of an outer fold's members."""
        return self.path / "folds" / fold

    def predictions(self) -> pd.DataFrame:
        """The predictions table; see :func:`predictions_frame`."""
        return pd.read_parquet(self.path / "predictions.parquet")

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Write a Parquet part atomically."""
        write_bytes(self.path / name, frame.to_parquet(index=False))

    def seal(self) -> None:
        """Write the SHA-256 of every part."""
        seal(self.path, {"format_version": FORMAT_VERSION, "kind": "run"}, apart=_APART)

    @contextmanager
    def amended(self) -> Iterator[Path]:
        """A folder for new content of sealed parts: it and all new parts are sealed in one step; held by one writer.

        See :func:`medfuse.files.amended`.
        """
        with amended(self.path, apart=_APART) as stage:
            yield stage

    def unsealed(self, part: str = ".") -> list[str]:
        """Names of files below a part of a sealed run that its seal does not know."""
        return [name for name in unsealed(self.path, below=part) if name not in _APART]

    def verify(self) -> None:
        """Check every part against its SHA-256.

        Raises:
            StoreError: names the part that changed.
        """
        verify(self.path, apart=_APART)

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end, seal included."""
        return self.read("run").get("status") == "finished" and (self.path / MANIFEST).is_file()


def versions() -> dict[str, str]:
    """Versions of what computed a run."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """Commit of medfuse's own source and whether tracked files differ from it; empty for an installed wheel."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return {}
    try:
        commit, dirty = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10, cwd=folder)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def create_run(path: Path, *, facts: Mapping[str, Any]) -> Run:
    """Make a run directory, or take up one of the same facts that was interrupted.

    Args:
        path: the directory.
        facts: what defines the run (cohort, recipe, seed, outcomes, data, people): the same facts resume, others are
            refused.

    Raises:
        StoreError: the directory holds something else, or a finished run.
    """
    run = Run(path=path)
    if (path / "run.json").is_file():
        old, new = run.read("run").get("facts", {}), json.loads(json.dumps(facts))
        other = [_FACTS.get(name, name) for name, value in old.items() if new.get(name) != value]
        if other:
            msg = (
                f"{path}: expected the run that goes on here, found one that differs in its {', '.join(other)}; choose "
                "another --out, or restore what has changed"
            )
            raise StoreError(msg)
        if run.finished:
            msg = f"{path}: holds a finished run; choose another --out, or delete it"
            raise StoreError(msg)
        unknown = [_FACTS.get(name, name) for name in new if name not in old]
        if unknown:
            msg = (
                f"{path}: expected an unfinished run that says what its {', '.join(unknown)} are, found one of an "
                "earlier medfuse, which did not; choose another --out"
            )
            raise StoreError(msg)
    else:
        require_free(path)
    path.mkdir(parents=True, exist_ok=True)
    set_status(run, "running", facts=facts, started=now())
    return run


def set_status(run: Run, status: str, **more: Any) -> None:  # noqa: ANN401  # JSON values
    """Record running, finished or failed, with further facts."""
    old = run.read("run") if (run.path / "run.json").is_file() else {}
    content = {
        **old,
        "status": status,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "versions": versions(),
        "git": git_state(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **more,
    }
    content.pop("format_version", None)
    run.write("run", content)


def open_run(path: str | Path) -> Run:
    """Open a run directory.

    Raises:
        StoreError: no run there, or one of a newer format.
    """
    run = Run(path=Path(path))
    if not (run.path / "run.json").is_file():
        msg = f"{path}: expected a run directory (with run.json), found none; check the path"
        raise StoreError(msg)
    run.read("run")
    return run


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the run directory for one process.

    Raises:
        StoreError: another live process of this host holds it, or nothing can be written there.
    """
    import fcntl

    place = path.resolve()  # "." has no name of its own
    beside = place.parent / f".{place.name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = beside.open("w")
    except OSError as error:
        msg = f"{path}: expected a folder that can be written, found: {error.strerror}; choose another --out"
        raise StoreError(msg) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock.fileno()), beside.stat()):  # of a writer that just ended
                raise BlockingIOError
        except OSError:
            msg = f"{path}: another process is writing this run; wait for it, or choose another --out"
            raise StoreError(msg) from None
        try:
            yield
        finally:
            beside.unlink(missing_ok=True)  # while it is held: nobody else's
    finally:
        lock.close()


def predictions_frame(rows: Sequence[tuple[str, str, str, str, Prediction]]) -> pd.DataFrame:
    """Predictions as a table.

    Args:
        rows: (model, outcome, partition ``held_out`` or ``inner``, fold, prediction).

    Returns:
        Columns ``model outcome partition fold patient_id risk_score present`` and, as lists per row, ``times`` and
        ``survival``, or ``probability``, or ``value``.
    """
    frames = []
    for model, outcome, partition, fold, p in rows:
        n = len(p)
        present = [",".join(m for m, has in zip(p.modalities, row, strict=True) if has) for row in p.present]
        frames.append(
            pd.DataFrame(
                {
                    "model": model,
                    "outcome": outcome,
                    "partition": partition,
                    "fold": fold,
                    "patient_id": list(p.patient_ids),
                    "risk_score": p.risk_score,
                    "present": present,
                    "times": [p.times] * n,
                    "survival": list(p.survival) if p.survival is not None else [None] * n,
                    "probability": list(p.probability) if p.probability is not None else [None] * n,
                    "value": p.value if p.value is not None else np.full(n, np.nan),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def modality_specs(data: Mapping[str, ModalityData]) -> dict[str, Any]:
    """What a later prediction needs to know of the modalities: layout, columns, levels, identities."""
    return {
        name: {
            "layout": m.layout,
            "features": m.features,
            "columns": [[c.name, c.kind, c.unit, list(c.levels)] for c in m.columns],
            "identities": list(m.identities),
            **({"meaning": m.meaning} if m.meaning else {}),
        }
        for name, m in data.items()
    }


def spec_columns(spec: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of one modality in :func:`modality_specs`."""
    return tuple(Column(name=c[0], kind=c[1], unit=c[2], levels=tuple(c[3])) for c in spec["columns"])


def modalities_from_frame(frame: pd.DataFrame, specs: Mapping[str, Any]) -> dict[str, ModalityData]:
    """Modalities of patients in a flat table, as the served model receives them.

    Args:
        frame: one row per patient, column ``patient_id`` and columns ``MODALITY.COLUMN``; layout ``vectors`` in one
            column ``MODALITY`` (or ``MODALITY.IDENTITY`` each) of lists. A missing cell is missing; a modality without
            any cell is absent.
        specs: of :func:`modality_specs`.

    Raises:
        StoreError: no ``patient_id`` column, or a level that the card does not know.
    """
    if "patient_id" not in frame.columns:
        msg = "predict: expected a column 'patient_id', found none; name it, one row per patient"
        raise StoreError(msg)
    ids = [PatientId(str(i)) for i in frame["patient_id"]]
    if len(set(ids)) < len(ids):
        twice = next(i for k, i in enumerate(ids) if i in ids[:k])
        msg = f"predict: expected one row per patient, found patient {twice} in several; merge or rename them"
        raise StoreError(msg)
    out = {}
    for name, spec in specs.items():
        columns = spec_columns(spec)
        samples = (
            _column_samples(frame, ids, name, columns)
            if spec["layout"] == "columns"
            else _vector_samples(frame, ids, name, spec)
        )
        out[name] = ModalityData(
            name=name,
            layout=spec["layout"],
            features=int(spec["features"]),
            columns=columns,
            identities=tuple(spec["identities"]),
            samples=samples,
        )
    return out


def _column_samples(
    frame: pd.DataFrame, ids: list[PatientId], name: str, columns: Sequence[Column]
) -> dict[PatientId, ModalitySample]:
    values = np.full((len(ids), len(columns)), np.nan)
    for c, column in enumerate(columns):
        key = f"{name}.{column.name}"
        if key not in frame.columns:
            continue
        if column.kind == "numeric":
            values[:, c] = pd.to_numeric(frame[key]).to_numpy(dtype=np.float64)
            continue
        for row, cell in enumerate(frame[key]):
            if pd.isna(cell):
                continue
            # As the loader compares: a code 2 comes from a CSV file as a number, and as 2.0 beside missing cells.
            hits = [k for k, level in enumerate(column.levels) if same_code(str(cell), level)]
            if not hits:
                known = ", ".join(column.levels)
                msg = f"column {key}, patient {ids[row]}: expected one of {known}, found another level"
                raise StoreError(msg)
            values[row, c] = hits[0]
    observed = ~np.isnan(values)
    tokens = np.stack([np.where(observed, values, 0.0), observed], axis=-1).astype(np.float32)
    position = np.arange(len(columns), dtype=np.float32)[:, None]
    return {
        patient: ModalitySample(tokens=tokens[i], position=position)
        for i, patient in enumerate(ids)
        if observed[i].any()
    }


def _vector_samples(
    frame: pd.DataFrame, ids: list[PatientId], name: str, spec: Mapping[str, Any]
) -> dict[PatientId, ModalitySample]:
    keys = [f"{name}.{identity}" for identity in spec["identities"]] or [name]
    samples = {}
    for row, patient in enumerate(ids):
        tokens, position = [], []
        for k, key in enumerate(keys):
            cell = frame[key].iloc[row] if key in frame.columns else None
            if cell is None or np.isscalar(cell):
                continue  # a missing list is NaN or None
            array = np.atleast_2d(np.asarray(cell, dtype=np.float32))
            tokens.append(array)
            position.append(np.full((len(array), 1), k, dtype=np.float32))
        if tokens:
            samples[patient] = ModalitySample(tokens=np.concatenate(tokens), position=np.concatenate(position))
    return samples
