"""The members of one outer fold: experts x inner folds x seeds, fitted and combined.

Each member's preprocessing and weights come from its own inner training patients, and it stops on its inner fold. What
the other members say of a patient they never saw is his out-of-fold prediction: the only kind of training prediction
that later steps (weights of the experts, recalibration) may use.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.batch import Batch
from medfuse.errors import CohortError, ConfigError, DataError
from medfuse.files import json_bytes, remove_temporaries, sha256_bytes
from medfuse.models import MultimodalModel, build_model
from medfuse.sample import ModalityData
from medfuse.targets import Survival, event_time_grid
from medfuse.training.balance import balance_notes
from medfuse.training.checkpoint import weights_sha256
from medfuse.training.combining import combine
from medfuse.training.device import make_fabric
from medfuse.training.fit import Progress, fit_member
from medfuse.training.fold import FoldModel, Links, chunks, speak
from medfuse.training.fold_settings import FoldSettings
from medfuse.training.forests import FORESTS, forest_settings, grow, no_forests
from medfuse.training.member import Member, fit_preprocessings, load_member, save_member, shapes_of
from medfuse.training.merging import balanced_weights, merge_members
from medfuse.training.outcomes import Outcomes, head_settings, require_fittable
from medfuse.training.patients import Patients, data_sha256, gather
from medfuse.training.settings import TrainSettings
from medfuse.types import PatientId


class InnerSplit(Protocol):
    """What is needed of a split inside the outer training patients."""

    @property
    def train(self) -> tuple[PatientId, ...]:
        """Patients to fit on."""

    @property
    def tuning(self) -> tuple[PatientId, ...]:
        """Patients to stop on."""


def fit_fold(
    data: Mapping[str, ModalityData],
    outcomes: Outcomes,
    *,
    train_ids: Sequence[PatientId],
    inner: Sequence[InnerSplit],
    settings: FoldSettings,
    folder: Path | None = None,
    watch: Callable[[str, Progress], None] = lambda member, progress: None,
) -> FoldModel:
    """Fit all members of an outer fold on its training patients.

    Args:
        data: modalities, in the order the model sees them; rows of other patients are not read.
        outcomes: of at least the training patients.
        train_ids: the outer training side.
        inner: splits inside it.
        settings: see :class:`FoldSettings`.
        folder: where finished members and checkpoints go: run again with the same folder, the fit goes on where it
            was killed, and its result is the same. :func:`medfuse.training.save_fold` completes it.
        watch: called with the member's name ("00-01" = seed, inner fold) and its progress.

    Raises:
        CohortError: nothing to learn from in a training side, with its inner fold and outcome in a note.
        StoreError: ``folder`` holds members of other settings or data.
    """
    if not inner or not settings.seeds:
        msg = f"fold: expected inner folds and seeds, found {len(inner)} and {len(settings.seeds)}"
        raise CohortError(msg)
    targets = outcomes.take(train_ids)
    require_fittable(targets, where="outer training side")
    time_grid = {
        name: event_time_grid(target, intervals=settings.intervals)
        for name, target in targets.items()
        if isinstance(target, Survival)
    }
    fitted: dict[str, list[_Fitted]] = {}
    skipped = {FORESTS: reason} if settings.forests and (reason := no_forests()) else {}
    experts = ("", *(data if settings.unimodal and len(data) > 1 else ()))
    for expert in (*experts[1:], "") if settings.merge else experts:  # what is merged is fitted first
        jobs = _jobs(data, outcomes, train_ids=train_ids, inner=inner, expert=expert)
        try:
            ready = [_prepare(job, outcomes, settings=settings, time_grid=time_grid) for job in jobs]
        except (CohortError, DataError) as error:
            if not expert:
                raise
            # Too few of its patients, or of their events; the joint network reads the modality all the same.
            skipped[expert] = str(error)
            continue
        parts = _parts(fitted, skipped) if settings.merge and not expert and len(data) > 1 else {}
        turns = [(prepared, seed) for prepared in ready for seed in settings.seeds]
        fitted[expert] = [
            _fit_one(prepared, settings=settings, seed=seed, folder=folder, watch=watch, parts=parts)
            for prepared, seed in turns
        ]
        if expert and settings.forests and FORESTS not in skipped:
            fitted[expert] += [
                _grow_one(prepared, outcomes, seed=seed, folder=folder)
                for prepared, seed in turns
                if not prepared.member.shapes[expert].item  # samples and voxels are no columns
            ]
    every = [one for expert in experts for one in fitted.get(expert, ())]
    members = [one.member for one in every]
    said = [(k, one.unseen_ids, one.links) for k, one in enumerate(every) if one.links is not None]
    return combine(
        members,
        said,
        train_ids=tuple(train_ids),
        targets=targets,
        time_grid=time_grid,
        data=data,
        skipped=skipped,
        balanced=settings.train.presence == "balanced",
        device=make_fabric(settings.train).device,
    )


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """A member, the training patients it never saw, and what it says of them."""

    member: Member
    unseen_ids: tuple[PatientId, ...]
    links: Links | None


def _fit_one(
    prepared: "_Prepared",
    *,
    settings: FoldSettings,
    seed: int,
    folder: Path | None,
    watch: Callable[[str, Progress], None],
    parts: Mapping[tuple[int, int], Sequence[_Fitted]],
) -> _Fitted:
    """A member of one inner fold and seed, and what it says of the patients it never saw."""
    merged = parts.get((seed, prepared.member.inner), ())
    judges = [ones for (own, inner), ones in parts.items() if own == seed and inner != prepared.member.inner]
    member = _member(prepared, settings=settings, seed=seed, folder=folder, watch=watch, parts=merged, judges=judges)
    device = make_fabric(settings.train).device
    links = speak(member, prepared.unseen, device=device) if prepared.unseen else None
    return _Fitted(member=member, unseen_ids=prepared.job.unseen, links=links)


def _grow_one(prepared: "_Prepared", outcomes: Outcomes, *, seed: int, folder: Path | None) -> _Fitted:
    """A forest of one inner fold and seed, and what it says of the patients it never saw."""
    job = prepared.job
    targets = outcomes.take(job.train)
    settings = forest_settings(job.expert, targets)
    blank = dataclasses.replace(prepared.member, seed=seed, settings=settings)
    path = None if folder is None else folder / "members" / blank.name
    fingerprint = "" if path is None else _fingerprint(prepared, blank, settings=TrainSettings())
    if path is not None and path.exists():
        member = load_member(path, fingerprint=fingerprint)
    else:
        member = grow(blank, chunks(blank, job.data, job.train), targets, seed=1000 * seed + job.inner)
        if path is not None:
            save_member(member, path, fingerprint=fingerprint)
    links = speak(member, prepared.unseen) if prepared.unseen else None
    return _Fitted(member=member, unseen_ids=job.unseen, links=links)


def _parts(
    fitted: Mapping[str, Sequence[_Fitted]], skipped: Mapping[str, str]
) -> dict[tuple[int, int], tuple[_Fitted, ...]]:
    """The unimodal members to merge, by seed and inner fold.

    Raises:
        CohortError: a modality without a network of its own.
    """
    for modality, reason in ((name, why) for name, why in skipped.items() if name != FORESTS):
        msg = f"train.merge: modality {modality} has no network of its own ({reason}); leave it out, or do not merge"
        raise CohortError(msg)
    found: dict[tuple[int, int], tuple[_Fitted, ...]] = {}
    for ones in fitted.values():
        for one in (found for found in ones if not found.member.forest):
            key = (one.member.seed, one.member.inner)
            found[key] = (*found.get(key, ()), one)
    return found


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the members of one expert and inner fold read, and whom."""

    expert: str
    inner: int
    data: Mapping[str, ModalityData]
    train: tuple[PatientId, ...]
    tuning: tuple[PatientId, ...]
    unseen: tuple[PatientId, ...]


def _jobs(
    data: Mapping[str, ModalityData],
    outcomes: Outcomes,
    *,
    train_ids: Sequence[PatientId],
    inner: Sequence[InnerSplit],
    expert: str,
) -> list[_Job]:
    """One job per inner fold; a unimodal network is fitted on, and speaks of, patients who have its modality."""
    outer, jobs = set(train_ids), []

    def own(ids: Sequence[PatientId]) -> tuple[PatientId, ...]:
        return tuple(i for i in ids if not expert or i in data[expert].samples)

    for number, split in enumerate(inner):
        outside = next((i for i in (*split.train, *split.tuning) if i not in outer), None)
        if outside is not None:
            msg = f"inner fold: expected patients of the outer training side, found {outside}; check the splits"
            raise CohortError(msg)
        inside = set(split.train)
        jobs.append(
            _Job(
                expert=expert,
                inner=number,
                data={expert: data[expert]} if expert else data,
                train=own(split.train),
                tuning=own(split.tuning),
                unseen=own([i for i in train_ids if i not in inside]),
            )
        )
    return jobs


def check_fold(
    data: Mapping[str, ModalityData],
    outcomes: Outcomes,
    *,
    train_ids: Sequence[PatientId],
    inner: Sequence[InnerSplit],
    settings: FoldSettings,
    build: bool = True,
) -> tuple[str, ...]:
    """Raise what :func:`fit_fold` would raise before its first step, so that nothing is written for a hopeless fit.

    Args:
        data: modalities.
        outcomes: of at least the training patients.
        train_ids: the outer training side.
        inner: splits inside it.
        settings: see :class:`FoldSettings`.
        build: also build the model of the first inner fold, which tells unknown components and options.

    Returns:
        What must be known of the fusions before they are fitted; nothing unless ``build``.

    Raises:
        CohortError, ConfigError, DataError, ModelError: as :func:`fit_fold`.
    """
    targets = outcomes.take(train_ids)
    require_fittable(targets, where="outer training side")
    for number, split in enumerate(inner):
        require_fittable(outcomes.take(split.train), where="inner training side")
        try:
            fit_preprocessings(data, split.train)
        except (CohortError, DataError) as error:
            error.add_note(f"inner fold {number}, {len(split.train)} training patients")
            raise
    notes: tuple[str, ...] = ()
    if build:
        grids = {
            name: event_time_grid(t, intervals=settings.intervals)
            for name, t in targets.items()
            if isinstance(t, Survival)
        }
        ids = inner[0].train
        heads = head_settings(outcomes.take(ids), heads=settings.heads, time_grid=grids)
        with torch.random.fork_rng(devices=[]):
            shapes = shapes_of(fit_preprocessings(data, ids), data)
            notes = build_model(settings.model, shapes=shapes, heads=heads).fusion.notes
            for number, fusion in enumerate(settings.committee):
                try:
                    model = build_model(dataclasses.replace(settings.model, fusion=fusion), shapes=shapes, heads=heads)
                except ConfigError as error:
                    error.add_note(f"model.committee, fusion {number + 1} of {len(settings.committee)}")
                    raise
                notes += model.fusion.notes
        if settings.train.balance == "agm":
            fusions = [str(fusion.get("name")) for fusion in (settings.model.fusion, *settings.committee)]
            notes += balance_notes(fusions, together=not settings.merge or settings.tune_epochs > 0)
    return notes


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """One inner fold, ready for its members."""

    job: _Job
    member: Member  # without weights
    train: Batch | Patients
    tuning: Batch | Patients | None
    unseen: Sequence[Batch]


def _prepare(
    job: _Job, outcomes: Outcomes, *, settings: FoldSettings, time_grid: Mapping[str, NDArray[np.float64]]
) -> _Prepared:
    if job.expert and not job.unseen:  # a member could be compared with nobody's outcome
        msg = f"expected patients who have it in every inner fold, found none in inner fold {job.inner}"
        raise CohortError(msg)
    targets = outcomes.take(job.train)
    require_fittable(targets, where="inner training side")
    preprocessing = fit_preprocessings(job.data, job.train)
    shapes = shapes_of(preprocessing, job.data)
    encoders = {name: options for name, options in settings.model.encoders.items() if not job.expert or name in shapes}
    member = Member(
        seed=0,
        inner=job.inner,
        expert=job.expert,
        preprocessing=preprocessing,
        shapes=shapes,
        settings=dataclasses.replace(settings.model, encoders=encoders),
        heads=head_settings(targets, heads=settings.heads, time_grid=time_grid),
        state={},
    )
    tuning = outcomes.take(job.tuning)
    return _Prepared(
        job=job,
        member=member,
        train=gather(job.data, preprocessing, job.train, shapes=shapes, targets=targets),
        tuning=gather(job.data, preprocessing, job.tuning, shapes=shapes, targets=tuning) if job.tuning else None,
        unseen=chunks(member, job.data, job.unseen),
    )


def _member(
    prepared: _Prepared,
    *,
    settings: FoldSettings,
    seed: int,
    folder: Path | None,
    watch: Callable[[str, Progress], None],
    parts: Sequence[_Fitted] = (),
    judges: Sequence[Sequence[_Fitted]] = (),
) -> Member:
    """Fit a member, or read it when an earlier process finished it; with ``parts``, start from their merger.

    Each part weighs what its like of the other inner folds, ``judges``, are worth.
    """
    model = prepared.member.settings
    if not prepared.member.expert:
        model = settings.joint(seed)
    blank = dataclasses.replace(prepared.member, seed=seed, settings=model)
    if parts:
        apart = [one.member for one in parts]
        others = [[one.member for one in ones] for ones in judges]
        blank = merge_members(apart, weights=balanced_weights(apart, [one.links for one in parts], judges=others))
    # The one modality of a unimodal network is there for everyone it is fitted on: hiding it would only waste patients.
    train = dataclasses.replace(settings.train, modality_dropout=settings.train.modality_dropout and not blank.expert)
    if parts:
        train = dataclasses.replace(train, epochs=max(1, settings.tune_epochs))
    fingerprint = ""
    if folder is not None:
        fingerprint = _fingerprint(prepared, blank, settings=train)
        remove_temporaries(folder / "members")
        if (folder / "members" / blank.name).exists():
            return load_member(folder / "members" / blank.name, fingerprint=fingerprint)
    work = None if folder is None else folder / "work" / blank.name
    member = blank
    if not parts or settings.tune_epochs:
        fitted = fit_member(
            prepared.train,
            prepared.tuning,
            build=lambda: _start(blank),
            settings=train,
            seed=1000 * seed + blank.inner,  # every member starts elsewhere
            workdir=work,
            watch=lambda progress: watch(blank.name, progress),
        )
        member = dataclasses.replace(blank, state=fitted.state, history=fitted.history, best_epoch=fitted.best_epoch)
    if folder is not None and work is not None:
        save_member(member, folder / "members" / blank.name, fingerprint=fingerprint)
        shutil.rmtree(work, ignore_errors=True)
    return member


def _start(blank: Member) -> MultimodalModel:
    """A new model, or one that goes on from the weights there are."""
    if not blank.state:
        return build_model(blank.settings, shapes=blank.shapes, heads=blank.heads)
    model = blank.build()
    model.begun = True
    return model


def _fingerprint(prepared: _Prepared, member: Member, *, settings: TrainSettings) -> str:
    harmless = {"checkpoint_every": 0, "checkpoint_seconds": 0.0, "threads": 0}
    parts = {
        "train": dataclasses.asdict(dataclasses.replace(settings, **harmless)),  # type: ignore[arg-type]
        "model": dataclasses.asdict(member.settings),
        "shapes": {name: dataclasses.asdict(shape) for name, shape in member.shapes.items()},
        "heads": {name: dataclasses.asdict(head) for name, head in member.heads.items()},
        "member": [member.seed, member.inner, member.expert, *([weights_sha256(member.state)] if member.state else [])],
        "data": [data_sha256(prepared.train), data_sha256(prepared.tuning)],
    }
    return sha256_bytes(json_bytes(parts))
