"""``medfuse stress``: a stored run's held-out patients again, with modalities hidden, noisy, diluted or swapped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse import figures
from medfuse.baselines import BASELINES
from medfuse.cohort import Cohort
from medfuse.config import Recipe
from medfuse.errors import StoreError
from medfuse.explaining import read_source
from medfuse.files import json_bytes, write_bytes
from medfuse.jobs import first_tabular
from medfuse.outputs import require_new, write_new
from medfuse.report import refresh_report
from medfuse.run import FORMAT_VERSION, Run, only_writer, open_run
from medfuse.sample import ModalityData
from medfuse.scenarios import HIDING, Scenario, plan
from medfuse.splits import Split, inner_folds
from medfuse.stress import MODEL, Row, StressFold, StressSettings, stress
from medfuse.training import load_fold

FOLDER = "stress"


@dataclass(frozen=True, kw_only=True)
class StressResult:
    """What was measured, and the files it stands in.

    Attributes:
        content: the JSON: mechanism, settings, and per outcome ``horizon`` and the ``rows`` of
            :func:`medfuse.stress.stress`.
        paths: JSON, CSV and figure.
    """

    content: dict[str, Any]
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class _Opened:
    run: Run
    recipe: Recipe
    cohort: Cohort
    data: dict[str, ModalityData]
    outcomes: tuple[str, ...]
    folds: list[StressFold]
    clinical: str


def stress_run(
    run: str | Path | Run,
    mechanism: str,
    *,
    rates: Sequence[float] | None = None,
    modalities: Sequence[str] | None = None,
    out: Path | None = None,
    draws: int | None = None,
    data_root: Path | None = None,
    store_root: Path | None = None,
    watch: Callable[[float], None] = lambda part: None,
) -> StressResult:
    """Stress a finished run on its own held-out patients, with its stored networks and the baselines of its recipe.

    Args:
        run: run directory.
        mechanism: one of ``medfuse.scenarios.MECHANISMS``.
        rates: default ``medfuse.scenarios.RATES``.
        modalities: to act on; default all (one at a time, except in mcar and mar).
        out: folder of the files, which must be new; default ``stress/`` in the run, whose report then shows them, and
            where they take the place of earlier ones of the same name.
        draws: repetitions of what is random.
        data_root: folder of the cohort's files.
        store_root: folder of the feature store.
        watch: called with the part that is done.

    Raises:
        ConfigError: an unknown mechanism or modality, or a rate out of range.
        StoreError: the run is not finished, a part of it has changed, or a file is there already.
        CohortError: the cohort's files are not those that the run was trained on.
    """
    found = run if isinstance(run, Run) else open_run(run)
    stem = "-".join([mechanism, *(modalities or ())])
    if out is not None:
        require_new(*_files(out, stem, found.read("run")["facts"]["outcomes"]))
    opened = _open(found, data_root=data_root, store_root=store_root)
    names = list(opened.data)
    scenarios = plan(mechanism, names, rates=rates, chosen=modalities, anchor=opened.clinical, draws=draws)
    results: dict[str, Any] = {}
    for number, outcome in enumerate(opened.outcomes):

        def show(part: float, done: int = number) -> None:
            watch((done + part) / len(opened.outcomes))

        results[outcome] = _outcome(opened, outcome, scenarios, watch=show)
    content = {
        "format_version": FORMAT_VERSION,
        "mechanism": mechanism,
        "rates": sorted({s.rate for s in scenarios if not np.isnan(s.rate)}),
        "modalities": list(modalities or names),
        "anchor": opened.clinical if mechanism == "mar" else None,
        "draws": max(s.draw for s in scenarios) + 1,
        "seed": opened.recipe.seed,
        "resamples": opened.recipe.evaluation.bootstrap,
        "outcomes": results,
    }
    return StressResult(content=content, paths=_write(opened.run, content, stem=stem, out=out))


def _open(run: Run, *, data_root: Path | None, store_root: Path | None) -> _Opened:
    if not run.finished:
        msg = f"{run.path}: expected a finished run, found one that is not; finish it with medfuse train"
        raise StoreError(msg)
    run.verify()
    source = read_source(run, data_root=data_root, store_root=store_root)
    recipe, cohort, outcomes = source.recipe, source.cohort, source.outcomes
    folds = []
    for row in run.read("splits")["splits"]:
        sides = {side: tuple(ids) for side, ids in row.items() if side != "name"}
        split = Split(name=row["name"], **sides)
        inner = inner_folds(
            split.train, cohort=cohort, outcome=outcomes[0], folds=recipe.splits.inner_folds, seed=recipe.seed
        )
        folds.append(StressFold(split=split, inner=inner, model=load_fold(run.fold_folder(split.name))))
    data = {name: source.data[name] for name in folds[0].model.modalities}  # in the order that the run has them
    return _Opened(
        run=run,
        recipe=recipe,
        cohort=cohort,
        data=data,
        outcomes=outcomes,
        folds=folds,
        clinical=first_tabular(cohort.card, data),
    )


def _outcome(
    opened: _Opened, outcome: str, scenarios: Sequence[Scenario], *, watch: Callable[[float], None]
) -> dict[str, Any]:
    kind = opened.cohort.card.outcomes[outcome].kind
    wanted, horizons = opened.recipe.baselines, opened.run.read("metrics")["outcomes"][outcome]["horizons"]
    settings = StressSettings(
        outcome=outcome,
        clinical=opened.clinical,
        baselines=None if wanted is None else [name for name in wanted if name in BASELINES[kind]],
        horizon=horizons[len(horizons) // 2] if horizons else None,
        resamples=opened.recipe.evaluation.bootstrap,
        seed=opened.recipe.seed,
    )
    rows = stress(opened.folds, scenarios, cohort=opened.cohort, data=opened.data, settings=settings, watch=watch)
    score = {"survival": "harrell_c", "continuous": "r2"}.get(kind, "auroc")
    return {"kind": kind, "score": score, "horizon": settings.horizon, "rows": rows}


def _write(run: Run, content: dict[str, Any], *, stem: str, out: Path | None) -> tuple[Path, ...]:
    """JSON, CSV and figure; in the run sealed with it, then its report again, sealed."""
    if out is not None:
        return _write_files(content, out, stem=stem, write=write_new)
    with only_writer(run.path):
        with run.amended() as stage:
            paths = _write_files(content, stage / FOLDER, stem=stem, write=write_bytes)
        refresh_report(run)
    return tuple(run.path / FOLDER / path.name for path in paths)


def _write_files(
    content: dict[str, Any], folder: Path, *, stem: str, write: Callable[[Path, bytes], None]
) -> tuple[Path, ...]:
    json, csv, *figure = _files(folder, stem, list(content["outcomes"]))
    frames = [pd.DataFrame(one["rows"]).assign(outcome=name) for name, one in content["outcomes"].items()]
    write(json, json_bytes(content))
    write(csv, pd.concat(frames, ignore_index=True).to_csv(index=False).encode())
    for path, one in zip(figure, content["outcomes"].values(), strict=True):
        write(path, figures.stress(one, mechanism=content["mechanism"]).encode())
    return (json, csv, *figure)


def _files(folder: Path, stem: str, outcomes: Sequence[str]) -> list[Path]:
    """JSON, CSV and the figure of each outcome."""
    names = [f"{stem}-{name}.svg" for name in outcomes] if len(outcomes) > 1 else [f"{stem}.svg"]
    return [folder / name for name in (f"{stem}.json", f"{stem}.csv", *names)]


def stress_lines(content: dict[str, Any]) -> list[str]:
    """The results as lines of text: the run's model beside the late average of what is present."""
    lines = []
    for outcome, one in content["outcomes"].items():
        lines.append(f"{outcome}, {content['mechanism']} ({one['score']}; calibration slope, 1 is perfect)")
        changed = "hidden" if content["mechanism"] in HIDING else "touched"  # slots of modalities, or patients
        head = ("rate or what is left", changed, "model", "score [95 %]", "slope [95 %]", "minus late average")
        lines.append(f"  {head[0]:<32} {head[1]:>7} {head[2]:<17} {head[3]:>22} {head[4]:>22} {head[5]:>23}")
        for row in one["rows"]:
            if row["model"] in (MODEL, row["reference"]):
                what = row["pattern"] if row["rate"] is None else f"{row['rate']:g} {row['pattern']}"
                gap = span(row, "difference") if row["model"] == MODEL and row["reference"] else ""
                lines.append(
                    f"  {what[:32]:<32} {row[changed]:>7.0%} {row['model'][:17]:<17} {span(row, 'score'):>22} "
                    f"{span(row, 'calibration_slope'):>22} {gap:>23}"
                )
    return lines


def span(row: Row, name: str) -> str:
    """A value of a row with its interval, as text."""
    if row.get(name) is None:
        return "undefined"
    ends = (row[f"{name}_low"], row[f"{name}_high"])
    return f"{row[name]:.3f}" + ("" if None in ends else f" [{ends[0]:.3f}, {ends[1]:.3f}]")
