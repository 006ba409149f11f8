"""The outer folds of a job, fitted and predicted: one after the other, or side by side in processes of their own.

A fold draws from generators of its own, so it is the same wherever it is fitted, beside whichever others.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from medfuse.baselines import FoldData, fit_baselines
from medfuse.errors import ConfigError, MedfuseError, ModelError, StoreError
from medfuse.evaluation import FoldPrediction, headline_score
from medfuse.jobs import Job, baseline_names, first_tabular, fold_settings, inner_of, keys_of, outcomes_of
from medfuse.prediction import Prediction
from medfuse.processes import end_with_parent, free_memory, held_memory, one_thread, usable_cores
from medfuse.splits import Split
from medfuse.training import (
    CHOSEN,
    FoldModel,
    Progress,
    competition,
    cpu_threads,
    device_of,
    fit_fold,
    load_fold,
    model_notes,
    predict_variants,
    save_fold,
)

MODEL = "medfuse"  # name of the trained model beside the baselines
_MEMORY = 2 * 2**30  # bytes that must be free for each process, or as many as this one holds
_SEEN = "CUDA_VISIBLE_DEVICES"
_WORTH_IT = 1000  # steps of a fold; fewer take less time than it takes a process to import torch


@dataclass(frozen=True, kw_only=True)
class FoldStep:
    """Where the fit of a fold stands: ``number`` of its ``members`` has come to ``progress``."""

    fold: str
    member: str
    number: int
    members: int
    progress: Progress

    @property
    def part(self) -> float:
        """Part of the fold's fits that is done, in [0, 1]."""
        return (self.number - 1 + self.progress.step / self.progress.steps) / self.members


@dataclass(frozen=True, kw_only=True)
class FoldScore:
    """What one model says of the held-out patients of a fold, and its inner (tuning) score."""

    outcome: str
    model: str
    held_out: FoldPrediction
    tuning: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """A fold that is done.

    Attributes:
        fold: its name.
        scores: of the model, its variants and the baselines.
        out_of_fold: by outcome, the model's predictions of training patients by members that never saw them.
        competition: of :func:`medfuse.training.competition`, where the recipe balances modalities.
    """

    fold: str
    scores: tuple[FoldScore, ...]
    out_of_fold: Mapping[str, Prediction]
    competition: Any = None


Watch = Callable[[FoldStep], None]


def workers_of(job: Job, wanted: int | None) -> int:
    """How many folds are fitted side by side.

    Args:
        job: what is fitted.
        wanted: at most so many; None: on a CPU one per core, as far as memory goes, one per GPU, and one where the
            fits are over before a process would have started.

    Raises:
        ConfigError: ``wanted`` below 1.
    """
    if wanted is not None:
        if wanted < 1:
            msg = f"workers: expected a number >= 1, found {wanted}; 1 fits one fold after the other"
            raise ConfigError(msg)
        return min(wanted, len(job.splits))
    if most_steps(job) < _WORTH_IT:
        return 1
    threads, device = job.recipe.train.threads, device_of(job.recipe.train.device)
    if device == "cuda":
        return max(1, min(len(job.splits), torch.cuda.device_count()))
    if not threads or device != "cpu":
        return 1
    memory = free_memory()
    # Another process reads the whole cohort again, as this one did for the job.
    room = len(job.splits) if memory is None else memory // max(_MEMORY, held_memory())
    return max(1, min(len(job.splits), usable_cores() // threads, room))


def most_steps(job: Job) -> int:
    """Optimiser steps of all networks of the first fold, if none of them stops early."""
    train, split = job.recipe.train, job.splits[0]
    return _networks(job) * train.epochs * math.ceil(len(split.train) / train.batch_size)


def _networks(job: Job) -> int:
    """How many a fold has."""
    settings = job.recipe.train
    experts = 1 + len(job.data) * (settings.unimodal and len(job.data) > 1)
    return experts * job.recipe.splits.inner_folds * settings.seeds


def run_folds(
    job: Job, folder: Path, *, workers: int, reopen: Callable[[], Job], watch: Watch
) -> Generator[FoldResult, None, None]:
    """Fit and predict every outer fold; what an earlier process finished in ``folder`` is taken from there.

    Args:
        job: what to fit.
        folder: of the run; a fold's members go to ``folds/FOLD``.
        workers: folds side by side, each in a process of its own; 1 = one after the other, in this process.
        reopen: makes the job again, in another process: that one maps files of its own instead of being sent them.
        watch: called with every step.

    Yields:
        Results as they come, with several workers in any order.

    Raises:
        MedfuseError: what a fit refuses.
        ModelError: a process that ended before it was done.
        StoreError: another process found other patients, outcomes, folds or data than this one, or a fold in
            ``folder`` was fitted on other patients.
    """
    if workers > 1:
        yield from _side_by_side(job, folder, workers=workers, reopen=reopen, watch=watch)
        return
    for split in job.splits:
        yield run_fold(job, split, folder=folder, watch=watch)


def run_fold(job: Job, split: Split, *, folder: Path, watch: Watch) -> FoldResult:
    """Fit the model and the baselines on one outer training side and predict the held-out patients."""
    inner = inner_of(job, split)
    with cpu_threads(job.recipe.train.threads):
        fold = _fitted(job, split, inner, folder=folder / "folds" / split.name, watch=watch)
        found = [
            _variant(job, fold, split, outcome=outcome, variant=variant, predicted=predicted[outcome])
            for variant, predicted in predict_variants(fold, job.data, split.held_out).items()
            for outcome in job.outcomes
        ]
        found += [score for outcome in job.outcomes for score in _baselines(job, split, inner, outcome=outcome)]
        return FoldResult(
            fold=split.name,
            scores=tuple(found),
            out_of_fold={outcome: fold.out_of_fold[outcome][CHOSEN] for outcome in job.outcomes},
            competition=competition(fold, job.data, inner) if job.recipe.train.balance == "agm" else None,
        )


def _fitted(job: Job, split: Split, inner: Sequence[Split], *, folder: Path, watch: Watch) -> FoldModel:
    if (folder / "manifest.json").is_file():  # finished by an earlier process
        fold = load_fold(folder)
        if fold.train_ids != split.train:
            msg = (
                f"{folder}: expected a fold fitted on the {len(split.train)} training patients of split {split.name}, "
                f"found one fitted on {len(fold.train_ids)}, not the same; train again with another --out"
            )
            raise StoreError(msg)
        return fold
    settings = fold_settings(job.recipe, {name: job.cohort.card.outcomes[name] for name in job.outcomes})
    # Forests grow in no time, and count with the networks beside which they stand.
    members, begun = _networks(job), list[str]()

    def step(member: str, progress: Progress) -> None:
        if member not in begun:
            begun.append(member)
        watch(FoldStep(fold=split.name, member=member, number=len(begun), members=members, progress=progress))

    fold = fit_fold(
        job.data,
        outcomes_of(job),
        train_ids=split.train,
        inner=inner,
        settings=settings,
        folder=folder,
        watch=step,
    )
    save_fold(fold, folder)
    return fold


def _variant(
    job: Job, fold: FoldModel, split: Split, *, outcome: str, variant: str, predicted: Prediction
) -> FoldScore:
    """The model, or beside it the joint network or the unimodal networks alone."""
    chosen = variant == CHOSEN
    return FoldScore(
        outcome=outcome,
        model=MODEL if chosen else f"{MODEL}:{variant}",
        held_out=FoldPrediction(fold=split.name, prediction=predicted, train_ids=split.train),
        tuning=inner_score(job, fold, outcome, variant=variant),
        notes=(*fold.describe(outcome), *model_notes(fold)) if chosen else (),
    )


def inner_score(job: Job, fold: FoldModel, outcome: str, *, variant: str) -> float:
    """Inner score of a fold's model: of predictions of training patients that no weight of it was chosen on."""
    return training_score(job, fold.cross_fitted[outcome][variant], outcome)


def training_score(job: Job, said: Prediction, outcome: str) -> float:
    """Score of what is said of training patients, by the score that heads the outcome's results."""
    found = FoldPrediction(fold="inner", prediction=said, train_ids=said.patient_ids)
    return headline_score(found, job.cohort, outcome)


def baseline_data(job: Job, split: Split, inner: Sequence[Split], *, outcome: str) -> FoldData:
    """What the baselines of a fold are fitted on: the patients and inner folds of its models."""
    return FoldData(
        cohort=job.cohort,
        outcome=outcome,
        data=job.data,
        split=split,
        inner=inner,
        clinical=first_tabular(job.cohort.card, job.data),
        seed=job.recipe.seed,
    )


def _baselines(job: Job, split: Split, inner: Sequence[Split], *, outcome: str) -> list[FoldScore]:
    context = baseline_data(job, split, inner, outcome=outcome)
    kind = job.cohort.card.outcomes[outcome].kind
    return [
        FoldScore(
            outcome=outcome,
            model=result.name,
            held_out=FoldPrediction(fold=split.name, prediction=result.prediction, train_ids=split.train),
            tuning=result.tuning_score,
            notes=tuple(result.notes),
        )
        for result in fit_baselines(context, kind=kind, names=baseline_names(job.recipe, kind))
    ]


# --- side by side ----------------------------------------------------------------------------------------------------


def _side_by_side(
    job: Job, folder: Path, *, workers: int, reopen: Callable[[], Job], watch: Watch
) -> Generator[FoldResult, None, None]:
    context = multiprocessing.get_context("spawn")  # a fork would take over the threads of torch and MLflow half-way
    waiting = [split.name for split in job.splits]
    crew: dict[Connection, BaseProcess] = {}
    keys = keys_of(job)
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            child: BaseProcess = context.Process(target=_work, args=(theirs, reopen, keys, folder), daemon=True)
            with _interrupts_ignored(), _own_gpu(len(crew)):
                child.start()
            theirs.close()  # or the end of the process would never be seen
            crew[ours] = child
            ours.send(waiting.pop(0))
        while crew:
            for connection in cast(list[Connection], wait(list(crew))):
                said = _heard(connection, crew[connection])
                if isinstance(said, FoldStep):
                    watch(said)
                    continue
                if waiting:
                    connection.send(waiting.pop(0))
                else:
                    connection.close()
                    crew.pop(connection).join()
                yield said
    finally:
        for process in crew.values():
            process.terminate()
        for process in crew.values():
            process.join()


@contextmanager
def _own_gpu(number: int) -> Iterator[None]:
    """A process started inside the block sees one GPU alone, the next in turn; with fewer than two nothing changes."""
    count, before = torch.cuda.device_count(), os.environ.get(_SEEN)
    if count < 2:
        yield
        return
    listed = before.split(",") if before else [str(k) for k in range(count)]
    os.environ[_SEEN] = listed[number % count].strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SEEN]
        else:
            os.environ[_SEEN] = before


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started inside the block ignores Ctrl-C from its first moment, also while it imports.

    Its parent, who hears Ctrl-C too (but for the milliseconds of the block), ends it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:  # a handler that is not Python's
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _heard(connection: Connection, process: BaseProcess) -> FoldStep | FoldResult:
    try:
        said = connection.recv()
    except (EOFError, OSError):
        process.join()
        msg = (
            f"expected a process that fits folds, found that it ended (exit status {process.exitcode}); was it out of "
            "memory, or does a script call medfuse outside of if __name__ == '__main__'? Train again with the same "
            "--out, which goes on where it was, and fewer --workers (with 1, no process is started)"
        )
        raise ModelError(msg) from None
    if isinstance(said, MedfuseError):
        raise said
    return cast(FoldStep | FoldResult, said)


def _work(connection: Connection, reopen: Callable[[], Job], keys: Mapping[str, Any], folder: Path) -> None:
    """In a process of its own: fit the folds whose names come in, until no more come."""
    end_with_parent()
    one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that another thread than the main one started does not yet
    try:
        job = reopen()
        if (found := keys_of(job)) != keys:
            what = "data" if found["data"] != keys["data"] else "patients, outcomes or folds"
            msg = f"expected the {what} that training began with, found others; were files changed? train again"
            raise StoreError(msg)
        splits = {split.name: split for split in job.splits}
        while True:
            connection.send(run_fold(job, splits[connection.recv()], folder=folder, watch=connection.send))
    except MedfuseError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):  # nothing more to do, or nobody to do it for
        return
