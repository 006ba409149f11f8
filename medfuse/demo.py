"""``medfuse demo``: a synthetic cohort as raw files, extracted, trained on and reported, with the truth beside it.

Every step leaves what is there already: run again, it goes on where it was, and a finished demo only tells its result.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse import synthetic
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError, DataError
from medfuse.extraction import extract
from medfuse.files import read_json, write_text
from medfuse.folds import MODEL
from medfuse.metrics.comparison import Interval, bootstrap_c, paired_differences
from medfuse.outputs import require_free
from medfuse.run import Run, open_run
from medfuse.sample import ModalityData
from medfuse.synthetic import MODALITIES, SHOWS, Missing, Process, Simulation
from medfuse.synthetic.outcomes import Mechanism
from medfuse.synthetic.paper import TRUTH, facts_of
from medfuse.synthetic.raw import write_cohort
from medfuse.synthetic.recovery import recovered
from medfuse.targets import Survival
from medfuse.workflow import Say, Watch, train

PATIENTS = 200
# Stronger than the defaults of Process: this cohort is small, and is to show something.
PROCESS = Process(size=1.0, st=0.8, slope=0.8, together=1.0)
RATE = 0.15  # of patients without each modality
RESAMPLES = 500
WRITTEN, EXTRACTED = 0.2, 0.5  # part of the time that a demonstration takes up to there, for its progress bar


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What a demonstration left: the finished run, and the truth beside its result as lines of text."""

    run: Run
    lines: tuple[str, ...]


def missing_by(mechanism: str) -> Missing:
    """15 % of each modality absent by a mechanism of :class:`medfuse.synthetic.Missing`.

    Raises:
        ConfigError: no such mechanism.
    """
    return Missing(mechanism=cast(Mechanism, mechanism), rate=RATE)


def demo(
    out: Path,
    *,
    patients: int = PATIENTS,
    seed: int = 0,
    missing: Missing | None = None,
    workers: int | None = 1,
    say: Say = lambda text: None,
    watch: Watch = lambda part, what: None,
) -> Demo:
    """Files, feature store, training and report of a synthetic cohort below one folder.

    Args:
        out: gets ``cohort`` (raw files, card, and the truth, which no card names), ``store``, ``run``, ``truth.md``.
        patients: their number, 60 or more.
        seed: of the cohort and of the training.
        missing: how whole modalities come to be absent; default: 15 % of each completely at random.
        workers: as :func:`medfuse.workflow.train` takes them.
        say: called with each line of progress.
        watch: called with the part of all steps that is done, and what is being done.

    Raises:
        ConfigError: too few patients, or the folder holds another cohort.
        DataError: a file of the cohort cannot be read.
        StoreError: the run in the folder is of another version of the recipe or of the data.
    """
    if patients < 60:
        msg = f"demo: expected 60 patients or more, found {patients}; fewer leave nothing to learn from"
        raise ConfigError(msg)
    require_free(out, own=("cohort", _part_of(out / "cohort").name))
    made = synthetic.simulate(
        patients, seed=seed, process=PROCESS, missing=missing or missing_by("mcar"), modalities=()
    )
    card = _cohort(out / "cohort", made, say=say, watch=watch)
    run = _finished(out / "run")
    if run is None:
        watch(WRITTEN, "extracting features")
        _extracted(card, out / "store", say=say)
        say("training on what was extracted")
        run = train(
            card,
            recipe="demo",
            data_root=card.parent,
            store_root=out / "store",
            out=out / "run",
            seed=seed,
            workers=workers,
            say=say,
            watch=lambda part, what: watch(EXTRACTED + (1 - EXTRACTED) * part, what),
        )
    else:
        say(f"run: {run.path} is finished")
    data = load_modalities(read_cohort(read_card(card), data_root=card.parent), store_root=out / "store")
    lines = truth_lines(run, made, data)
    write_text(out / "truth.md", "\n".join(["# Truth beside result", "", "```", *lines, "```", ""]))
    return Demo(run=run, lines=lines)


def _part_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def _cohort(folder: Path, made: Simulation, *, say: Say, watch: Watch = lambda part, what: None) -> Path:
    """The card of the cohort; its files are written into a folder beside, which takes its name when it is complete."""
    wanted = facts_of(made)
    if folder.exists():
        told = folder / TRUTH / "process.json"
        found = read_json(told) if told.is_file() else {}
        if any(found.get(key) != value for key, value in wanted.items()):
            msg = f"{folder}: expected the cohort asked for, found other files; choose another --out"
            raise ConfigError(msg)
        say(f"cohort: {len(made)} patients are in {folder}")
        return folder / "card.md"
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(folder)
    if part.exists():
        shutil.rmtree(part)  # of a demo that was interrupted here
    say(f"cohort: writing the raw files of {len(made)} patients to {folder}, about {0.15 * len(made):.0f} s")
    done: list[str] = []

    def each(text: str) -> None:
        done.append(text)
        say(f"  {text}")
        watch(WRITTEN * len(done) / len(MODALITIES), "writing raw files")

    watch(0.0, "writing raw files")
    write_cohort(part, patients=len(made), seed=made.seed, missing=made.missing, process=made.process, say=each)
    part.rename(folder)
    return folder / "card.md"


def _extracted(card: Path, store: Path, *, say: Say) -> None:
    cohort = read_cohort(read_card(card), data_root=card.parent)
    say(f"extract: raw files to stored features in {store}")
    report = extract(cohort, store_root=store, workers=min(4, os.cpu_count() or 1), say=say)
    if report.failed:
        first = report.failed[0]
        msg = (
            f"demo: expected every file to be read, found {len(report.failed)} failures; the first: modality "
            f"{first.modality}, patient {first.patient_id}: {first.reason}"
        )
        raise DataError(msg)


def _finished(path: Path) -> Run | None:
    """The run in a folder if it is finished and sound."""
    if not (path / "run.json").is_file():
        return None
    run = open_run(path)
    if not run.finished:
        return None
    run.verify()
    return run


# --- truth beside result ---------------------------------------------------------------------------------------------


def _held_out(run: Run, made: Simulation) -> tuple[pd.DataFrame, NDArray[np.intp], NDArray[np.intp], Survival]:
    """Held-out risk scores (one row per patient, one column per model), folds, rows in the simulation, outcomes."""
    frame = run.predictions()
    frame = frame[frame["partition"] == "held_out"]
    scores = frame.pivot(index="patient_id", columns="model", values="risk_score")
    own = frame[frame["model"] == MODEL].set_index("patient_id")["fold"].loc[scores.index]
    row = {str(patient): k for k, patient in enumerate(made.patient_ids)}
    rows = np.array([row[str(patient)] for patient in scores.index], dtype=np.intp)
    return scores, np.unique(own, return_inverse=True)[1].astype(np.intp), rows, made.survival.take(rows)


def _span(c: Interval) -> str:
    return f"{c.estimate:.3f} [{c.low:.3f}, {c.high:.3f}]"


def truth_lines(run: Run, made: Simulation, data: Mapping[str, ModalityData]) -> tuple[str, ...]:
    """The best reachable C beside the model's, and per modality what is in it, what it is worth and what was found.

    All C are Harrell's over pairs within folds, on the held-out patients of the run, with bootstrap intervals.
    """
    scores, strata, rows, outcome = _held_out(run, made)
    latents, present = made.latents.take(rows), made.present[rows]

    def c_of(risk: NDArray[np.float64]) -> Interval:
        return bootstrap_c(outcome, risk, strata=strata, n_resamples=RESAMPLES, seed=0)

    best = synthetic.best_score(made.process, latents, present)
    model = scores[MODEL].to_numpy(dtype=np.float64)
    gap = paired_differences(outcome, best, {MODEL: model}, strata=strata, n_resamples=RESAMPLES)[MODEL]
    lines = [
        f"Truth beside result: Harrell's C of {len(rows)} held-out patients [95 % interval]",
        f"  {'the truth: best reachable':<28} {_span(c_of(best))}",
        f"  {MODEL:<28} {_span(c_of(model))}, {_span(gap)} below the truth",
        "",
        f"  {'modality':<12} {'shows':<9} {'R2 from files':>13}   {'C of its truth alone':<22} C of ridge Cox on it",
    ]
    plain = {
        patient: {name: float(getattr(made.latents, name)[k]) for name in synthetic.LATENTS}
        for k, patient in enumerate(made.patient_ids)
    }
    r2 = recovered(data, plain)
    for m, name in enumerate(MODALITIES):
        alone = np.zeros_like(present)
        alone[:, m] = present[:, m]
        worth = c_of(synthetic.best_score(made.process, latents, alone))
        found = c_of(scores[f"ridge_cox:{name}"].to_numpy(dtype=np.float64))
        lines.append(f"  {name:<12} {SHOWS[name]:<9} {r2[name]:>13.2f}   {_span(worth):<22} {_span(found)}")
    both = [MODALITIES.index(name) for name in synthetic.PAIR]
    pair = np.zeros_like(present)
    pair[:, both] = present[:, both]
    worth = c_of(synthetic.best_score(made.process, latents, pair))
    lines.append(f"  {' + '.join(synthetic.PAIR):<36}   {_span(worth)} (says nothing unless both are there)")
    return tuple(lines)
