"""What a training run knows before it fits: patients, data, splits and what the audit said of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfuse.audit import AuditReport, audit, require_clean
from medfuse.baselines import BASELINES
from medfuse.card import CohortCard, OutcomeCard
from medfuse.cohort import Cohort, read_cohort
from medfuse.config import Recipe
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError, MedfuseError, nearest
from medfuse.files import json_bytes, sha256_bytes
from medfuse.models import ModelSettings
from medfuse.sample import ModalityData
from medfuse.splits import Split, inner_folds, make_splits
from medfuse.training import FoldSettings, Outcomes, TrainSettings, check_fold

Say = Callable[[str], None]


def fold_settings(recipe: Recipe, outcomes: Mapping[str, OutcomeCard] | None = None) -> FoldSettings:
    """What a recipe says of members, as the plain settings that training takes.

    Args:
        recipe: its heads are keyed by outcome or by kind of outcome.
        outcomes: outcomes to predict, by name.
    """
    heads = {}
    for name, outcome in (outcomes or {}).items():
        chosen = recipe.model.heads.get(name, recipe.model.heads.get(outcome.kind))
        if chosen is not None:
            heads[name] = chosen
    return FoldSettings(
        model=ModelSettings(**recipe.model.model_dump(include={"width", "encoders", "defaults", "fusion"})),
        heads=heads,
        seeds=tuple(recipe.seed + k for k in range(recipe.train.seeds)),
        committee=tuple(recipe.model.committee),
        unimodal=recipe.train.unimodal,
        forests=recipe.train.forests and recipe.train.unimodal,
        merge=recipe.train.merge,
        tune_epochs=recipe.train.tune_epochs,
        train=TrainSettings(
            **recipe.train.model_dump(exclude={"seeds", "unimodal", "forests", "merge", "tune_epochs"})
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a training run knows before it fits."""

    cohort: Cohort
    recipe: Recipe
    outcomes: tuple[str, ...]
    data: dict[str, ModalityData]
    splits: list[Split]
    report: AuditReport

    @property
    def overlapping(self) -> bool:
        """Whether held-out patients stand in several splits, as in two official test sets."""
        seen = [i for split in self.splits for i in split.held_out]
        return len(set(seen)) < len(seen)


def prepare_job(card: CohortCard, recipe: Recipe, *, data_root: Path | None, store_root: Path | None, say: Say) -> Job:
    """Read a cohort's patients and modalities, split them, and audit them.

    Raises:
        ConfigError: an outcome that the card does not have.
        LeakError: what the audit found, unless the recipe allows it.
    """
    cohort = read_cohort(card, data_root=data_root)
    wanted = recipe.outcomes or [next(iter(card.outcomes))]
    for name in wanted:
        if name not in card.outcomes:
            msg = f"recipe outcomes: card {card.name} has no outcome {name!r}; {nearest(name, card.outcomes)}"
            raise ConfigError(msg)
    cohort = with_outcome(cohort, wanted)
    data = load_modalities(cohort, names=recipe.modalities, store_root=store_root)
    splits = make_splits(cohort, recipe.splits, wanted[0])
    say(f"{card.name}: {cohort.attrition.modelled} of {cohort.attrition.total} patients, {len(splits)} splits")
    report = audit(cohort, data, splits, wanted, group_by_site=recipe.splits.group_by_site)
    for finding in report.findings:
        say(f"audit {finding.severity}: {finding.message}")
    require_clean(report, allow=recipe.allow_leaks)
    return Job(cohort=cohort, recipe=recipe, outcomes=tuple(wanted), data=data, splits=splits, report=report)


def with_outcome(cohort: Cohort, outcomes: Sequence[str]) -> Cohort:
    """The patients of whom at least one of the outcomes is known: those that a run is about."""
    known = np.logical_or.reduce([cohort.targets[name].observed for name in outcomes])
    return cohort.subset([i for i, k in zip(cohort.patient_ids, known, strict=True) if k])


def inner_of(job: Job, split: Split) -> list[Split]:
    """Inner folds of an outer training side."""
    folds, seed = job.recipe.splits.inner_folds, job.recipe.seed
    return inner_folds(split.train, cohort=job.cohort, outcome=job.outcomes[0], folds=folds, seed=seed)


def outcomes_of(job: Job) -> Outcomes:
    """The outcomes that a job predicts, of all its patients."""
    targets = {name: job.cohort.targets[name] for name in job.outcomes}
    return Outcomes(patient_ids=job.cohort.patient_ids, targets=targets)


def keys_of(job: Job) -> dict[str, Any]:
    """What a fit depends on beside its recipe, as JSON: the same keys, the same patients, outcomes, folds and data.

    ``data`` is the key of each modality, ``people`` the SHA-256 of the patients, their outcomes and every side of every
    split, outer and inner.
    """
    ids = tuple(sorted(job.cohort.patient_ids))
    outcomes = []
    for name in job.outcomes:
        target = job.cohort.target(name, ids)
        # What stands where an outcome is unknown is never read.
        known = {k: v[target.observed].tolist() if isinstance(v, np.ndarray) else v for k, v in vars(target).items()}
        outcomes.append([name, target.observed.tolist(), known])
    people = [ids, outcomes, [asdict(side) for split in job.splits for side in (split, *inner_of(job, split))]]
    return {"data": {name: m.key for name, m in job.data.items()}, "people": sha256_bytes(json_bytes(people))}


def baseline_names(recipe: Recipe, kind: str) -> list[str] | None:
    """The recipe's baselines for a kind of outcome; None: all of that kind. A name is for the kinds that have it."""
    return None if recipe.baselines is None else [name for name in recipe.baselines if name in BASELINES[kind]]


def check_job(job: Job, *, say: Say) -> None:
    """Raise what the fits would raise, before a run directory is made; say which baselines an outcome has no use for.

    Raises:
        CohortError: a training side with nothing to learn from, with its split and outcome in notes.
        ConfigError: an unknown baseline, component or option.
    """
    cards = {name: job.cohort.card.outcomes[name] for name in job.outcomes}
    known = {name for card in cards.values() for name in BASELINES[card.kind]}
    everywhere = {name for table in BASELINES.values() for name in table}
    for name in job.recipe.baselines or ():
        if name not in everywhere:
            msg = f"baselines: no baseline {name!r} for {', '.join(cards)}; {nearest(name, known)}"
            raise ConfigError(msg)
    for outcome, card in cards.items():
        other = [name for name in job.recipe.baselines or () if name not in BASELINES[card.kind]]
        if other:
            say(f"{outcome}: left out {', '.join(other)}, baselines of other kinds of outcome")
    settings = fold_settings(job.recipe, cards)
    for number, split in enumerate(job.splits):
        try:
            notes = check_fold(
                job.data,
                outcomes_of(job),
                train_ids=split.train,
                inner=inner_of(job, split),
                settings=settings,
                build=number == 0,
            )
        except MedfuseError as error:
            error.add_note(f"split {split.name}, {len(split.train)} training patients")
            raise
        for note in notes:
            say(f"warning: {note}")


def first_tabular(card: CohortCard, data: Mapping[str, ModalityData]) -> str:
    """The modality of clinical baselines."""
    tabular = [name for name in data if card.modalities[name].loader == "tabular"]
    return (tabular or list(data))[0]
