"""Prototypes as ``medfuse explain`` stored them: whom a patient is like, the nearest training patients, exact terms.

Nothing is computed by a model. One joint network of the fold is shown, the first; the others have prototypes of their
own, of which the level of risk that they find nearest is counted beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medfuse.config import read_recipe
from medfuse.explain.parts import has_part, read_part
from medfuse.explain.prototype_record import PrototypeRecord, recipe_has_prototypes
from medfuse.metrics.nonparametric import SurvivalCurve, kaplan_meier
from medfuse.review.source import EXPLANATIONS, ReviewRun
from medfuse.review.words import risk_text, signed
from medfuse.types import PatientId

EXACT = 1e-4  # of a logit: what single precision leaves of a sum
FEW = 10  # training patients below which nothing is said of what became of them
NONE = "Prototypes: the fusion of this run has none."
NOT_STORED = "Prototypes: not stored; run medfuse explain on the run with a version that stores them."


@dataclass(frozen=True, kw_only=True)
class Group:
    """Training patients whose nearest prototype, in one modality, is one of some.

    Attributes:
        keys: their ids.
        fitted: the network shown was fitted on some of them, so that what became of them flatters it.
    """

    keys: tuple[str, ...]
    fitted: bool


def prototypes_of(run: ReviewRun, fold: str) -> PrototypeRecord | None:
    """Stored prototypes of an outer fold; None where there are none.

    Raises:
        StoreError: damaged or of a newer format.
    """
    key = f"prototypes {fold}"
    if key not in run.memory:
        folder = run.path / EXPLANATIONS / run.outcome / fold / "prototypes"
        run.memory[key] = read_part(PrototypeRecord, folder) if has_part(folder) else None
    found: PrototypeRecord | None = run.memory[key]
    return found


def why_none(run: ReviewRun) -> str:
    """Why a run shows no prototypes."""
    path = run.path / "recipe.yaml"
    return NOT_STORED if path.is_file() and recipe_has_prototypes(read_recipe(path)) else NONE


def network_sentence(found: PrototypeRecord, order: float | None = None) -> str:
    """Which network is shown, of how many, their part of the prediction, and how it orders patients (agreement)."""
    many = len(found.members)
    others = "" if many == 1 else f", the first of {many}; each of the others has prototypes of its own"
    together = "It says" if many == 1 else "Together they say"
    also = "" if order is None else f" This network orders held-out patients as the run does with Spearman {order:.2f}."
    return (
        f"Prototypes are those of joint network {found.members[0]} (seed, inner fold){others}. {together} "
        f"{found.share:.0%} of the run's prediction.{also} Levels are of {found.leading}, as each prototype started."
    )


def patient_table(found: PrototypeRecord, patient: str, modality: str) -> pd.DataFrame | None:
    """How like the prototypes of a modality a patient is; None where the modality is absent.

    Returns:
        Columns ``prototype level cosine probability nearest networks``: cosine of the patient's best instances,
        probability of assignment (NaN where the fusion computes none), and how many of the joint networks find this
        level nearest.
    """
    row, m = found.patient_ids.index(PatientId(patient)), found.modalities.index(modality)
    similarity = np.array(found.similarity[:, row, m], dtype=np.float64)  # (K, N)
    if np.isnan(similarity[0]).all():
        return None
    own = found.nearest(similarity)  # (K,)
    level = np.arange(similarity.shape[1]) // found.each
    probability = found.probability(similarity[0])
    return pd.DataFrame(
        {
            "prototype": found.names,
            "level": [found.levels[k] for k in level],
            "cosine": similarity[0],
            "probability": np.full(len(level), np.nan) if probability is None else probability,
            "nearest": ["nearest" if k == own[0] else "" for k in range(len(level))],
            "networks": [int((own // found.each == k).sum()) for k in level],
        }
    )


def nearest_of(found: PrototypeRecord, patient: str, modality: str) -> int:
    """Number of the nearest prototype; -1 where the modality is absent."""
    row, m = found.patient_ids.index(PatientId(patient)), found.modalities.index(modality)
    return int(found.nearest(np.array(found.similarity[0, row, m], dtype=np.float64)))


def group(
    found: PrototypeRecord, modality: str, numbers: Sequence[int], *, fitted: bool | None = None, least: int = FEW
) -> Group:
    """Training patients whose nearest prototype is one of ``numbers``.

    Args:
        found: of a fold.
        modality: its name.
        numbers: of prototypes.
        fitted: with those that the network was fitted on; default: without, unless fewer than ``least`` are left.
        least: patients.
    """
    m = found.modalities.index(modality)
    own = np.isin(found.train_nearest[:, m], numbers)
    fresh = own & np.asarray(found.unseen)
    everybody = int(fresh.sum()) < least if fitted is None else fitted
    rows = np.flatnonzero(own if everybody else fresh)
    return Group(
        keys=tuple(str(found.train_ids[int(i)]) for i in rows),
        fitted=bool(everybody and not np.asarray(found.unseen)[rows].all()),
    )


def who(fitted: bool) -> str:  # noqa: FBT001  # one question
    """Which training patients speak."""
    if fitted:
        return "training patients, most of whom the network was fitted on, which flatters it"
    return "training patients that the network was not fitted on"


def curve_of(run: ReviewRun, keys: Sequence[str]) -> SurvivalCurve | None:
    """Kaplan-Meier of some patients; None of other outcomes, or fewer than 10 known ones."""
    if run.kind != "survival":
        return None
    known = run.survival_of(tuple(keys))
    return kaplan_meier(known.time, known.event) if len(known) >= FEW else None


def outcome_text(run: ReviewRun, keys: Sequence[str], at: float | None) -> str:
    """What became of some training patients: risk by a horizon with its limits, share of classes, or mean value."""
    table = run.outcome_table
    told = table.loc[[k for k in keys if k in table.index]]
    told = told[told["observed"].astype(bool)]
    if len(told) < FEW:
        return f"fewer than {FEW} known"
    if run.kind == "survival":
        return _risk_text(run, keys, at)
    if run.kind == "continuous":
        value = told["value"].to_numpy(dtype=np.float64)
        return f"mean {value.mean():.3g}, SD {value.std():.3g}"
    share = told["label"].astype(int).value_counts(normalize=True).sort_index()
    return ", ".join(f"class {int(str(k)) + 1} {v:.0%}" for k, v in share.items())


def _risk_text(run: ReviewRun, keys: Sequence[str], at: float | None) -> str:
    known = run.survival_of(tuple(keys))
    if at is None or at > known.time.max():
        return "nobody was followed so long"
    curve = kaplan_meier(known.time, known.event)
    place = int(np.searchsorted(curve.times, at, side="right")) - 1
    if not (known.event & (known.time <= at)).any():
        return f"no event in {len(known)}"
    low, high = curve.limits()
    return risk_text(1 - float(curve(at)), 1 - float(high[place]), 1 - float(low[place]))


def exemplar_table(run: ReviewRun, found: PrototypeRecord, modality: str, number: int) -> pd.DataFrame:
    """The nearest training patients of a prototype, nearest first, with what became of them.

    Returns:
        Columns ``key cosine token fitted on``, and for survival outcomes ``outcome days``; token is which of several
        that the network read of the patient is the near one.
    """
    m = found.modalities.index(modality)
    rows = np.asarray(found.exemplar[m, number])
    there = rows >= 0
    rows = rows[there]
    several = int(np.max(found.exemplar_token[m], initial=0)) > 0
    table = pd.DataFrame(
        {
            "key": [str(found.train_ids[int(i)]) for i in rows],
            "cosine": np.asarray(found.exemplar_similarity[m, number], dtype=np.float64)[there],
        }
    )
    if several:
        table["token"] = [int(t) + 1 for t in np.asarray(found.exemplar_token[m, number])[there]]
    table["fitted on"] = ["no" if bool(found.unseen[int(i)]) else "yes" for i in rows]
    if run.kind == "survival" and len(run.outcome_table):
        told = run.outcome_table.reindex(table["key"])
        table["outcome"] = [
            "unknown" if o is not True and o != True else "event" if e else "censored"  # noqa: E712  # numpy's True
            for o, e in zip(told["observed"], told["event"], strict=True)
        ]
        table["days"] = ["" if pd.isna(day) else f"{day:.0f}" for day in told["time"]]
    return table


def run_table(run: ReviewRun, found: PrototypeRecord, modality: str, *, at: float | None, fitted: bool) -> pd.DataFrame:
    """The prototypes of a modality: what they stand for, who is nearest to them, and whether they have collapsed.

    Args:
        run: the run.
        found: of a fold.
        modality: its name.
        at: horizon of a survival outcome.
        fitted: also count training patients that the network was fitted on.

    Returns:
        Columns ``prototype level patients``, what became of them, ``held-out`` (patients, without outcomes), ``check``.
    """
    m = found.modalities.index(modality)
    held = found.nearest(np.array(found.similarity[0, :, m], dtype=np.float64))
    groups = [group(found, modality, [k], fitted=fitted) for k in range(len(found.names))]
    what = f"risk by day {at:.0f} [95 %]" if run.kind == "survival" and at is not None else "outcomes"
    return pd.DataFrame(
        {
            "prototype": found.names,
            "level": [found.levels[k // found.each] for k in range(len(groups))],
            "patients": [len(g.keys) for g in groups],
            what: [outcome_text(run, g.keys, at) for g in groups],
            "held-out": [int((held == k).sum()) for k in range(len(groups))],
            "check": checks(found, modality),
        }
    )


def checks(found: PrototypeRecord, modality: str) -> list[str]:
    """The collapse check of each prototype of a modality, in a few words; all training patients count."""
    nearest = found.train_nearest[:, found.modalities.index(modality)]
    return [_check(found, modality, k, int((nearest == k).sum())) for k in range(len(found.names))]


def _check(found: PrototypeRecord, modality: str, number: int, patients: int) -> str:
    pairs = [(i, j, c) for i, j, c in found.pairs().get(modality, []) if number in (i, j)]
    if pairs:
        same = ", ".join(f"{found.names[j if i == number else i]} ({c:.2f})" for i, j, c in pairs)
        return f"one with {same}"
    if not bool(found.used[number // found.each]):
        return "level of nobody"
    return "distinct" if patients else "nearest to nobody"


def collapse_sentence(found: PrototypeRecord) -> tuple[bool, str]:
    """Whether no two prototypes of the network shown are one, and the same of all networks in words."""
    pairs = found.pairs()
    others = sum(bool(found.pairs(k)) for k in range(1, len(found.members)))
    more = f" Of the {len(found.members) - 1} other networks, {others} have such a pair." if found.members[1:] else ""
    if not pairs:
        return (
            True,
            f"Collapse check: no two prototypes of a modality have a cosine of {found.collapsed} or more.{more}",
        )
    said = "; ".join(
        f"{name} " + ", ".join(f"{found.names[i]} and {found.names[j]} ({c:.2f})" for i, j, c in these)
        for name, these in pairs.items()
    )
    return False, f"Collapse check: these prototypes are one (cosine {found.collapsed} or more): {said}.{more}"


def agreement(run: ReviewRun, found: PrototypeRecord, fold: str) -> float | None:
    """Spearman correlation of the network's logit and the run's risk over held-out patients; None of several classes.

    No outcome is read.
    """
    logit = np.asarray(found.logit)
    if logit.shape[1] != 1 or len(logit) < FEW:
        return None
    frame = run.predictions
    own = frame[(frame["partition"] == "held_out") & (frame["fold"] == fold)].set_index("patient_id")["risk_score"]
    said = pd.Series(logit[:, 0], index=list(found.patient_ids))
    both = pd.concat([said, own[~own.index.duplicated()]], axis=1, join="inner").rank()
    value = both.corr().to_numpy()[0, 1] if len(both) >= FEW else np.nan
    return float(value) if np.isfinite(value) else None


def terms_table(found: PrototypeRecord, patient: str, label: int = 0) -> pd.DataFrame | None:
    """What each prototype of each own modality adds to the network's logit; None where the logit is no sum.

    Returns:
        Columns ``modality prototype level term``, largest in absolute value first.
    """
    if found.terms is None:
        return None
    row = found.patient_ids.index(PatientId(patient))
    has = ~np.isnan(np.asarray(found.similarity[0, row, :, 0]))
    values = np.array(found.terms[row, :, :, label], dtype=np.float64)[has]  # (own, N)
    names = [m for m, there in zip(found.modalities, has, strict=True) if there]
    table = pd.DataFrame(
        {
            "modality": np.repeat(np.array(names, dtype=object), len(found.names)),
            "prototype": list(found.names) * len(names),
            "level": [found.levels[k // found.each] for k in range(len(found.names))] * len(names),
            "term": values.ravel(),
        }
    )
    order = table["term"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def sums_of(found: PrototypeRecord, patient: str, label: int = 0) -> pd.DataFrame | None:
    """What each own modality adds to the logit of every network; None where the logit is no sum.

    Returns:
        Columns ``modality sum lowest highest``: of the network shown, and of all networks.
    """
    if found.modality_terms is None:
        return None
    row = found.patient_ids.index(PatientId(patient))
    has = ~np.isnan(np.asarray(found.similarity[0, row, :, 0]))
    each = np.array(found.modality_terms[:, row, :, label], dtype=np.float64)[:, has]
    own = [m for m, there in zip(found.modalities, has, strict=True) if there]
    return pd.DataFrame({"modality": own, "sum": each[0], "lowest": each.min(axis=0), "highest": each.max(axis=0)})


def sums_table(found: PrototypeRecord, patient: str, label: int = 0) -> pd.DataFrame | None:
    """:func:`sums_of` as the page shows it."""
    sums = sums_of(found, patient, label)
    if sums is None:
        return None
    heads = {"sum": "sum of its terms", "lowest": "lowest of all networks", "highest": "highest of all networks"}
    return sums.assign(**{name: [signed(float(v)) for v in sums[name]] for name in heads}).rename(columns=heads)


def sum_sentence(found: PrototypeRecord, patient: str, label: int = 0) -> str:
    """Constant, terms, logit and what is left in words."""
    if found.terms is None or found.constant is None:
        return ""
    row = found.patient_ids.index(PatientId(patient))
    constant, logit = float(found.constant[label]), float(found.logit[row, label])
    total = float(np.asarray(found.terms[row, :, :, label]).sum())
    left = abs(logit - constant - total)
    holds = left <= EXACT * max(1.0, abs(logit))
    return (
        f"{found.scale[0].upper()}{found.scale[1:]} of this network {logit:+.3f} = constant {constant:+.3f} + terms "
        f"{total:+.3f}; "
        + (
            f"the sum is exact (left: {left:.0e})."
            if holds
            else f"the sum does NOT hold (left: {left:.3g}): ranking only."
        )
    )
