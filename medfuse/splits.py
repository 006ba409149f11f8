"""Who is fitted on, who is chosen on, and who is reported once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort, resolve_source
from medfuse.config import SplitsRecipe
from medfuse.errors import CohortError, ConfigError, DataError
from medfuse.tables import column, read_table
from medfuse.targets import Labels, Survival, Target
from medfuse.types import PatientId

Ids = tuple[PatientId, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Disjoint patients: ``train`` is fitted on, ``tuning`` chosen on, ``held_out`` reported once.

    Attributes:
        unmatched: ids that a published split names and the cohort does not have; listed, not lost.

    Raises:
        CohortError: a patient stands on two sides; names the first.
    """

    name: str
    train: Ids
    tuning: Ids = ()
    held_out: Ids = ()
    external: Ids = ()
    unmatched: Ids = field(default=())

    def __post_init__(self) -> None:
        seen: dict[PatientId, str] = {}
        for side in ("train", "tuning", "held_out", "external"):
            for patient in getattr(self, side):
                if patient in seen:
                    msg = (
                        f"split {self.name}: patient {patient} stands in {seen[patient]} and in {side}; "
                        "expected disjoint sides; correct the folds"
                    )
                    raise CohortError(msg)
                seen[patient] = side


def check_persons(split: Split, cohort: Cohort) -> None:
    """Refuse a split that has one person on two sides under different ids.

    Raises:
        CohortError: names the first shared person's ids.
    """
    person = {record.patient_id: record.person for record in cohort.records}
    where: dict[str, tuple[str, PatientId]] = {}
    for side in ("train", "tuning", "held_out"):
        for patient in getattr(split, side):
            previous = where.setdefault(person[patient], (side, patient))
            if previous[0] != side:
                msg = (
                    f"split {split.name}: {previous[1]} ({previous[0]}) and {patient} ({side}) are the same person; "
                    "expected each person on one side; group the folds by person"
                )
                raise CohortError(msg)


def _known(cohort: Cohort, ids: Sequence[str]) -> tuple[Ids, Ids]:
    have = set(cohort.patient_ids)
    unique = [cohort.public(i) for i in dict.fromkeys(ids)]
    return tuple(i for i in unique if i in have), tuple(i for i in unique if i not in have)


def published_splits(cohort: Cohort) -> list[Split]:
    """The folds that the card publishes.

    Raises:
        ConfigError: the card has none.
        DataError: a fold file that is missing or of another form.
        CohortError: a patient or a person on two sides.
    """
    folds = cohort.card.folds
    if folds is None:
        msg = f"card {cohort.card.name}: has no published folds; set splits.source: generated in the recipe"
        raise ConfigError(msg)
    sides: list[tuple[str, list[str], list[str]]] = []
    for k in range(folds.k if folds.pattern else 0):
        source = str(folds.pattern).replace("{k}", str(k))
        frame = read_table(resolve_source(cohort.card, source, cohort.data_root))
        train = column(frame, folds.train, file=source).dropna().tolist()
        sides.append((str(k), train, column(frame, folds.held_out, file=source).dropna().tolist()))
    for name, source in folds.files.items():
        path = resolve_source(cohort.card, source, cohort.data_root)
        try:
            rows = json.loads(path.read_bytes())
            parts = {
                side: [str(r["patient_id"]) for r in rows if r["dataset"] == side] for side in ("training", "test")
            }
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = (
                f"{path.name}: expected a JSON list of {{patient_id, dataset: training|test}}, found another form; "
                "fetch the file again, or correct the card's folds"
            )
            raise DataError(msg) from error
        sides.append((name, parts["training"], parts["test"]))
    splits = []
    for name, train, held_out in sides:
        fit, unknown_fit = _known(cohort, train)
        out, unknown_out = _known(cohort, held_out)
        split = Split(name=name, train=fit, held_out=out, unmatched=unknown_fit + unknown_out)
        check_persons(split, cohort)
        splits.append(split)
    return splits


def _strata(target: Target) -> NDArray[np.int64]:
    """Event or class of each patient; unknown outcomes are a stratum of their own."""
    if isinstance(target, Survival):
        values = target.event.astype(np.int64)
    elif isinstance(target, Labels):
        values = target.label
    else:
        known = target.value[target.observed]
        edges = np.quantile(known, [0.2, 0.4, 0.6, 0.8]) if len(known) else np.zeros(0)
        values = np.searchsorted(edges, target.value).astype(np.int64)
    return np.where(target.observed, values, -1)


def _assign(groups: Sequence[str], strata: NDArray[np.int64], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each row: groups stay whole, and each fold gets its share of every stratum.

    Groups are taken largest first (ties in random order) and each goes to the fold that it leaves most balanced.
    """
    names = sorted(set(groups))
    if len(names) < folds:
        msg = f"folds: expected at least {folds} groups of patients, found {len(names)}; ask for fewer folds"
        raise CohortError(msg)
    levels = np.unique(strata)
    row_of = {name: i for i, name in enumerate(names)}
    member = np.array([row_of[g] for g in groups])
    counts = np.zeros((len(names), len(levels)))
    np.add.at(counts, (member, np.searchsorted(levels, strata)), 1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    # Rare strata first, then larger groups first; a stable sort keeps the random order of equals.
    rare = counts @ (1.0 / counts.sum(axis=0))
    order = order[np.argsort(-rare[order], kind="stable")]
    target = counts.sum(axis=0) / folds
    filled = np.zeros((folds, len(levels)))
    fold_of = np.zeros(len(names), dtype=np.int64)
    for group in order:
        after = (filled + counts[group] - target) / np.maximum(target, 1e-9)
        before = (filled - target) / np.maximum(target, 1e-9)
        cost = (after**2 - before**2).sum(axis=1) + 1e-9 * filled.sum(axis=1)
        chosen = int(np.argmin(cost))
        fold_of[group] = chosen
        filled[chosen] += counts[group]
    return np.asarray(fold_of[member], dtype=np.int64)


def _group_names(cohort: Cohort, ids: Sequence[PatientId], *, by_site: bool) -> list[str]:
    records = {record.patient_id: record for record in cohort.records}
    if not by_site:
        return [records[i].person for i in ids]
    without = [i for i in ids if records[i].site is None]
    if without:
        msg = f"folds by site: patient {without[0]} has no site ({len(without)} such); name the site column in the card"
        raise CohortError(msg)
    # A person treated at two sites ties the two together: they stay on one side.
    parent = {name: name for i in ids for name in (f"site {records[i].site}", f"person {records[i].person}")}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for i in ids:
        first, second = sorted((root(f"site {records[i].site}"), root(f"person {records[i].person}")))
        parent[second] = first
    return [root(f"site {records[i].site}") for i in ids]


def generated_splits(
    cohort: Cohort, *, outcome: str, folds: int, seed: int, group_by_site: bool = False, repeats: int = 1
) -> list[Split]:
    """Cross-validation folds, grouped by person (or by site) and balanced by event or class.

    Depends on the set of patients, not on their order.

    Raises:
        CohortError: fewer groups than folds, or a patient without a site when grouped by site.
    """
    ids = tuple(sorted(cohort.patient_ids))
    groups = _group_names(cohort, ids, by_site=group_by_site)
    strata = _strata(cohort.target(outcome, ids))
    splits = []
    for repeat in range(repeats):
        fold = _assign(groups, strata, folds=folds, seed=seed + 1000 * repeat)
        for k in range(folds):
            name = str(k) if repeats == 1 else f"{repeat}.{k}"
            out = tuple(i for i, f in zip(ids, fold, strict=True) if f == k)
            split = Split(name=name, train=tuple(i for i, f in zip(ids, fold, strict=True) if f != k), held_out=out)
            check_persons(split, cohort)
            splits.append(split)
    return splits


def temporal_split(cohort: Cohort, *, cutoff: str) -> Split:
    """Train on patients with index time before ``cutoff`` (ISO 8601), report on the others.

    Raises:
        CohortError: a patient without an index time, or one that is not ISO 8601.
        ConfigError: ``cutoff`` is not ISO 8601.
    """
    try:
        limit = np.datetime64(cutoff)
    except ValueError:
        msg = f"splits.cutoff: expected an ISO 8601 date, found {cutoff!r}"
        raise ConfigError(msg) from None
    before: list[PatientId] = []
    after: list[PatientId] = []
    for record in cohort.records:
        try:
            time = np.datetime64(record.index_time or "")
        except ValueError:
            time = np.datetime64("NaT")
        if np.isnat(time):
            msg = (
                f"patient {record.patient_id}: expected an ISO 8601 index time, found none; "
                "name groups.index_time in the card"
            )
            raise CohortError(msg)
        (before if time < limit else after).append(record.patient_id)
    split = Split(name="temporal", train=tuple(before), held_out=tuple(after))
    check_persons(split, cohort)
    return split


def inner_folds(ids: Sequence[PatientId], *, cohort: Cohort, outcome: str, folds: int, seed: int) -> list[Split]:
    """Folds nested inside ``ids``: each has ``train`` and ``tuning``, nothing held out.

    Grouped by person, balanced by event or class; depends on the set of ids, not on their order.
    """
    ordered = tuple(sorted(ids))
    groups = _group_names(cohort, ordered, by_site=False)
    fold = _assign(groups, _strata(cohort.target(outcome, ordered)), folds=folds, seed=seed)
    return [
        Split(
            name=f"inner-{k}",
            train=tuple(i for i, f in zip(ordered, fold, strict=True) if f != k),
            tuning=tuple(i for i, f in zip(ordered, fold, strict=True) if f == k),
        )
        for k in range(folds)
    ]


def make_splits(cohort: Cohort, recipe: SplitsRecipe, outcome: str) -> list[Split]:
    """The splits that a recipe asks for; ``auto`` takes published folds where the card has them.

    Raises:
        ConfigError, CohortError, DataError: as the functions above.
    """
    source = recipe.source
    if source == "auto":
        source = "published" if cohort.card.folds is not None else "generated"
    if source == "published":
        return published_splits(cohort)
    if source == "temporal":
        if recipe.cutoff is None:
            msg = "splits.source temporal: expected splits.cutoff, an ISO 8601 date, found none"
            raise ConfigError(msg)
        return [temporal_split(cohort, cutoff=recipe.cutoff)]
    return generated_splits(
        cohort,
        outcome=outcome,
        folds=recipe.folds,
        seed=recipe.seed,
        group_by_site=recipe.group_by_site,
        repeats=recipe.repeats,
    )
