"""The main jobs, end to end: train on a cohort's folds, apply a run to new patients, validate it on another cohort.

Everything here is orchestration; each step is a public function of the module that owns it.
"""

import datetime
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medfuse.applying import (
    apply_run,
    classes_of,
    names_of,
    prediction_table,
    read_for_run,
    require_same_outcome,
    same_names,
)
from medfuse.card import CohortCard
from medfuse.config import Recipe, read_card, read_recipe
from medfuse.dataset import manifest
from medfuse.errors import CohortError, MedfuseError, StoreError, nearest
from medfuse.evaluation import (
    Evaluation,
    EvaluationSettings,
    FoldPrediction,
    evaluate_outcome,
    from_json,
    in_words,
    summary_table,
)
from medfuse.files import json_bytes, sha256_bytes
from medfuse.folds import MODEL, FoldResult, FoldStep, run_folds, workers_of
from medfuse.jobs import Job, check_job, keys_of, prepare_job
from medfuse.merging import is_member, predict_merged
from medfuse.outputs import require_free, require_new, write_new
from medfuse.report import write_report
from medfuse.run import (
    Run,
    create_run,
    modality_specs,
    now,
    only_writer,
    open_run,
    predictions_frame,
    set_status,
)
from medfuse.tracking import Tracker, track

Say = Callable[[str], None]
Watch = Callable[[float, str], None]  # part of the fits done in [0, 1], and what is being fitted


def _silent(_: str) -> None:
    """Say nothing."""


def _unwatched(part: float, what: str) -> None:
    """Show nothing."""


def _default_out(card: CohortCard, recipe: Recipe) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{card.name}-{recipe.name}-{stamp}"


def _require_own_folder(path: Path) -> None:
    if path.resolve() == Path.cwd():  # what MLflow and later commands write there would break the run's seal
        msg = (
            f"{path}: expected a folder for the run alone, found the working folder, where MLflow's database and the "
            "feature store go; choose another --out"
        )
        raise StoreError(msg)


def _write_inputs(run: Run, job: Job, *, store_root: Path | None) -> None:
    card, cohort = job.cohort.card, job.cohort
    if card.path is not None:
        run.write_text("card.md", card.path.read_text(encoding="utf-8"))
    run.write_text("recipe.yaml", yaml.safe_dump(job.recipe.model_dump(mode="json"), sort_keys=False))
    sides = ("name", "train", "tuning", "held_out", "external", "unmatched")
    run.write("splits", {"splits": [{s: getattr(split, s) for s in sides} for split in job.splits]})
    named = {"sources": card.governance.sha256, "pseudonyms": names_of(cohort)}
    run.write("data", {"modalities": manifest(job.data, store_root=store_root), **named})
    run.write("modalities", {"modalities": modality_specs(job.data)})
    excluded = [{"patient_id": e.patient_id, "reason": e.reason} for e in cohort.attrition.excluded]
    problems = [{"file": p.file, "row": p.row, "column": p.column, "message": p.message} for p in cohort.problems]
    patterns: dict[str, int] = {}
    for i in cohort.patient_ids:
        key = " + ".join(name for name, m in job.data.items() if i in m.samples) or "none"
        patterns[key] = patterns.get(key, 0) + 1
    run.write(
        "attrition",
        {
            "total": cohort.attrition.total,
            "modelled": cohort.attrition.modelled,
            "excluded": excluded,
            "problems": problems,
            "availability": dict(sorted(patterns.items(), key=lambda kv: -kv[1])),
        },
    )
    run.write("audit", {**job.report.to_dict(), "allowed": job.recipe.allow_leaks})


def train(  # noqa: PLR0913  # what the command takes
    cohort: str | Path,
    *,
    recipe: str | Path = "default",
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    store_root: Path | None = None,
    out: Path | None = None,
    seed: int | None = None,
    workers: int | None = 1,
    say: Say = _silent,
    watch: Watch = _unwatched,
) -> Run:
    """Train and evaluate on the folds of a cohort.

    The model that carries the claim is the recipe's, fixed before any held-out row is read; its inner (tuning) score
    stands in the run beside those of the baselines. An interrupted run goes on when it is started again with the same
    ``out``.

    Args:
        cohort: name of a data card, or a path to one.
        recipe: name of a recipe, or a path to one.
        overrides: ``section.key=value`` texts.
        data_root: folder of the cohorts' files; default ``MEDFUSE_DATA``.
        store_root: folder of the feature store; default ``MEDFUSE_STORE`` or ``.medfuse/store``.
        out: run directory; default ``runs/COHORT-RECIPE-TIME``.
        seed: of everything random; default the recipe's.
        workers: folds fitted side by side, each in a process of its own (a script then guards its calls with ``if
            __name__ == "__main__"``); 1: one after the other, in this process; None: as many as the machine carries.
            Results are the same.
        say: called with each line of progress.
        watch: called often with the part of the fits that is done and what is being fitted, for a progress bar.

    Returns:
        The run, complete with ``metrics.json``, ``predictions.parquet`` and ``report.html``.

    Raises:
        MedfuseError: what was expected, found, where and what to do.
    """
    card = read_card(cohort)
    settings = read_recipe(recipe, [*overrides, *([f"seed={seed}"] if seed is not None else [])])
    path = out or _default_out(card, settings)
    _require_own_folder(path)
    require_free(path, own=("run.json",))
    job = prepare_job(card, settings, data_root=data_root, store_root=store_root, say=say)
    check_job(job, say=say)
    side_by_side = workers_of(job, workers)
    reopen = partial(prepare_job, card, settings, data_root=data_root, store_root=store_root, say=_silent)
    say(f"run directory: {path}")  # what an interrupted run goes on with
    facts = {
        "cohort": card.name,
        "recipe": sha256_bytes(json_bytes(settings.model_dump(mode="json"))),
        "seed": settings.seed,
        "outcomes": list(job.outcomes),
        **keys_of(job),
    }
    with only_writer(path):
        run = create_run(path, facts=facts)
        try:
            _write_inputs(run, job, store_root=store_root)
            with track(run, settings, card=card, folds=[s.name for s in job.splits], say=say) as tracker:
                _fit_and_evaluate(job, run, tracker=tracker, workers=side_by_side, reopen=reopen, say=say, watch=watch)
        except MedfuseError as error:
            set_status(run, "failed", finished=now(), error=str(error))
            raise
    return run


def _fit(
    job: Job, run: Run, *, tracker: Tracker, workers: int, reopen: Callable[[], Job], say: Say, watch: Watch
) -> list[FoldResult]:
    """Results of all folds, in their order; curves go to the run and to MLflow as they come."""
    parts = {split.name: 0.0 for split in job.splits}
    started, total = time.perf_counter(), len(parts)

    def step(at: FoldStep) -> None:
        parts[at.fold] = at.part
        watch(sum(parts.values()) / total, f"fold {at.fold}: member {at.number} of {at.members} ({at.member})")
        if at.progress.record is not None:
            row = {"fold": at.fold, "member": at.member, "step": at.progress.step, **at.progress.record}
            run.append_curve(row)
            tracker.epoch(at.fold, at.member, at.progress.step, at.progress.record)

    how = f"{workers} side by side" if workers > 1 else "one after the other"
    say(f"training on {total} folds, {how}; after each stands how long the others will take")
    found: dict[str, FoldResult] = {}
    with closing(run_folds(job, run.path, workers=workers, reopen=reopen, watch=step)) as results:
        for result in results:
            found[result.fold], parts[result.fold] = result, 1.0
            if result.competition is not None:
                before = run.read("competition")["folds"] if (run.path / "competition.json").is_file() else {}
                run.write("competition", {"folds": {**before, result.fold: result.competition}})
            spent, done = time.perf_counter() - started, sum(parts.values())
            left = spent * (total - done) / done
            rest = f"about {left:.0f} s left" if len(found) < total else "evaluating"
            say(f"fold {result.fold}: done ({len(found)}/{total}), {spent:.0f} s, {rest}")
    return [found[split.name] for split in job.splits]


def _fit_and_evaluate(
    job: Job, run: Run, *, tracker: Tracker, workers: int, reopen: Callable[[], Job], say: Say, watch: Watch
) -> None:
    started = time.perf_counter()
    found = _fit(job, run, tracker=tracker, workers=workers, reopen=reopen, say=say, watch=watch)
    watch(1.0, "evaluating")
    settings = EvaluationSettings(
        horizons=None if job.recipe.evaluation.horizons is None else tuple(job.recipe.evaluation.horizons),
        bootstrap=job.recipe.evaluation.bootstrap,
        minimum_cell=job.recipe.evaluation.minimum_cell,
        seed=job.recipe.seed,
    )
    metrics: dict[str, Any] = {}
    rows = [
        (MODEL, outcome, "inner", result.fold, result.out_of_fold[outcome])
        for result in found
        for outcome in job.outcomes
    ]
    for outcome in job.outcomes:
        held_out: dict[str, list[FoldPrediction]] = {}
        tuning: dict[str, list[float | None]] = {}
        notes: dict[str, list[str]] = {}
        for score in (s for result in found for s in result.scores if s.outcome == outcome):
            held_out.setdefault(score.model, []).append(score.held_out)
            tuning.setdefault(score.model, []).append(None if np.isnan(score.tuning) else score.tuning)
            notes.setdefault(score.model, []).extend(f"fold {score.held_out.fold}: {note}" for note in score.notes)
        evaluation = evaluate_outcome(
            held_out,
            job.cohort,
            outcome,
            carrying=MODEL,
            settings=settings,
            notes=notes,
            overlapping=job.overlapping,
        )
        metrics[outcome] = {**evaluation.to_json(), "tuning": tuning}
        rows += [(model, outcome, "held_out", f.fold, f.prediction) for model, folds in held_out.items() for f in folds]
        for line in summary_lines(evaluation):
            say(line)
    run.write("metrics", {"outcomes": metrics})
    run.write_table("predictions.parquet", predictions_frame(rows))
    run.write_table("outcomes.parquet", _outcomes_frame(job))
    set_status(run, "finished", finished=now(), carrying=MODEL, seconds=round(time.perf_counter() - started, 1))
    write_report(run)
    run.seal()
    tracker.finish(run)


def _outcomes_frame(job: Job) -> pd.DataFrame:
    """Outcomes of the modelled patients, so that the report and later readers need no source file."""
    tables = []
    for name in job.outcomes:
        target = job.cohort.targets[name]
        columns = {k: v for k in ("event", "time", "label", "value") if (v := getattr(target, k, None)) is not None}
        ids = list(job.cohort.patient_ids)
        tables.append(pd.DataFrame({"outcome": name, "patient_id": ids, "observed": target.observed, **columns}))
    return pd.concat(tables, ignore_index=True)


def read_evaluations(run: Run) -> dict[str, Evaluation]:
    """Evaluations of a finished run, by outcome."""
    content = run.read("metrics")["outcomes"]
    return {name: from_json({k: v for k, v in one.items() if k != "tuning"}) for name, one in content.items()}


def _number(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The results as lines of text: the carrying model first, marked with a star; below, what they say in words."""
    lines = [
        f"{evaluation.outcome} ({evaluation.score})",
        f"  {'model':<28} {'folds':>13}  {'pooled [95 % interval]':>23}  {'difference [simultaneous]':>26}",
    ]
    for row in summary_table(evaluation):
        mark = "*" if row["carrying"] else " "
        folds = f"{_number(row['mean'])} ({_number(row['sd'])})"
        pooled = f"{_number(row['pooled'])} [{_number(row['low'])}, {_number(row['high'])}]"
        gap = f"{_number(row['difference'])} [{_number(row['difference_low'])}, {_number(row['difference_high'])}]"
        line = f"{mark} {row['model']:<28} {folds:>13}  {pooled:>23}  {gap if not row['carrying'] else '':>26}"
        lines.append(line.rstrip())
    return [*lines, *in_words(evaluation)]


def predict(
    run: str | Path | Run,
    cohort: str | Path,
    *,
    data_root: Path | None = None,
    store_root: Path | None = None,
    out: Path | None = None,
) -> Path:
    """Apply a run to the patients of a card; outcomes are not needed, and patients may miss modalities.

    Args:
        run: run directory, or a member of :func:`medfuse.merging.merge_folders`, whose predictions nothing
            recalibrates.
        cohort: card of the patients; its modalities have the run's columns.
        data_root: folder of the cohorts' files.
        store_root: folder of the feature store.
        out: CSV file, which must be new; default ``predictions_COHORT.csv``.

    Returns:
        The file written: all folds' members averaged, ids that were seen in training flagged.

    Raises:
        MedfuseError: the run or the card cannot be read, they do not fit each other, or the file is there already.
    """
    merged = not isinstance(run, Run) and is_member(Path(run))
    opened = run if merged or isinstance(run, Run) else open_run(run)
    card = read_card(cohort)
    path = out or Path(f"predictions_{card.name}.csv")
    require_new(path)
    where = {"data_root": data_root, "store_root": store_root}
    if isinstance(opened, Run):
        people, data, folds = read_for_run(opened, card, **where, need_outcomes=False)
        table = prediction_table(
            apply_run(folds, data, people.patient_ids),
            folds=folds,
            unknown="" if same_names(opened, people) else "pseudonyms of another key",
            classes=classes_of(opened),
        )
    else:
        table = predict_merged(Path(opened), card, **where)
    # A cell that a spreadsheet would run as a formula is made text.
    for name in ("patient_id", "modalities"):
        table[name] = [f"'{v}" if v[:1] in "=+-@\t\r\0" else v for v in table[name]]
    write_new(path, table.to_csv(index=False).encode())
    return path


def evaluate(
    run: str | Path | Run,
    cohort: str | Path,
    *,
    outcome: str | None = None,
    data_root: Path | None = None,
    store_root: Path | None = None,
    out: Path | None = None,
) -> tuple[Evaluation, Path]:
    """External validation: apply a run to another cohort with the same modalities and outcome.

    Args:
        run: run directory.
        cohort: card of the other cohort.
        outcome: which of the run's outcomes; default: the first that the card has.
        data_root: folder of the cohorts' files.
        store_root: folder of the feature store.
        out: JSON file, which must be new; default ``external_COHORT.json`` in the working folder.

    Returns:
        The evaluation, and the file written.

    Raises:
        CohortError: the outcome is another, or patients of the cohort were trained on.
        StoreError: the file is there already.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    card = read_card(cohort)
    path = out or Path(f"external_{card.name}.json")
    require_new(path)
    people, data, folds = read_for_run(opened, card, data_root=data_root, store_root=store_root, need_outcomes=True)
    ours = list(folds[0].ensembles)
    chosen = outcome or next((name for name in ours if name in card.outcomes), ours[0])
    if chosen not in ours or chosen not in card.outcomes:
        both = [name for name in ours if name in card.outcomes]
        msg = (
            f"card {card.name}: expected the run's outcome {chosen!r}, found none in the card or the run; "
            f"{nearest(chosen, both or card.outcomes)}"
        )
        raise CohortError(msg)
    require_same_outcome(opened, card, chosen)
    seen = [i for i in people.patient_ids if any(i in fold.train_ids for fold in folds)]
    if seen:
        msg = (
            f"card {card.name}: patient {seen[0]} was trained on ({len(seen)} such ids); an external cohort shares no "
            "patient with the run; the run's own held-out results are in its report"
        )
        raise CohortError(msg)
    prediction = apply_run(folds, data, people.patient_ids)[chosen]
    # The censoring distribution is the external cohort's own: the run's patients are not at hand here.
    fold = FoldPrediction(fold=card.name, prediction=prediction, train_ids=people.patient_ids)
    evaluation = evaluate_outcome({MODEL: [fold]}, people, chosen, carrying=MODEL, settings=EvaluationSettings())
    unknown = {} if same_names(opened, people) else {"overlap_with_training": "unknown: pseudonyms of another key"}
    write_new(path, json_bytes({**evaluation.to_json(), **unknown}))
    return evaluation, path


def rewrite_report(run: str | Path | Run, *, opened: int | None = None) -> Path:
    """Write a run's ``report.html`` and documents again, and seal the run with them, in one step.

    Args:
        run: run directory.
        opened: how often held-out results were opened in reviews, for the model card.

    Raises:
        StoreError: a part of the run has changed since it was written.
    """
    found = run if isinstance(run, Run) else open_run(run)
    found.verify()
    with only_writer(found.path), found.amended() as stage:
        path = write_report(found, opened=opened, into=stage)
    return found.path / path.name
