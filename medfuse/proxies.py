"""Columns that know the outcome: copies, bins, recodings and parts of it, and absences that only follow from it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.metrics.discrimination import auroc, harrell_c
from medfuse.sample import ModalityData
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.twins import profiles
from medfuse.types import PatientId

_ORDERS = 0.95  # a single column that orders survival better than this knows it
_DIAGNOSES = 0.98  # classes and values may have one strong honest predictor: a receptor's gene, an earlier measurement
_UNTIED = 0.99  # concordance among untied pairs: bins of the times tie, but never disagree with them
_REBUILDS = 0.97  # share of the outcome's variance that several columns together rebuild
_LEAST = 8  # patients in the smaller group below which perfect agreement is luck
_SHORTLIST = 100
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """What is tested: named (n, p) values, NaN where missing; ``coded`` are categories, whose order says nothing."""

    names: tuple[str, ...]
    value: NDArray[np.float32]
    coded: NDArray[np.bool_]


def suspects(modality: ModalityData, ids: Sequence[PatientId]) -> Suspects:
    """Every column, whether it is filled, and whether the patient has the modality at all."""
    names, value = profiles(modality, list(ids))
    kinds = [c.kind == "categorical" for c in modality.columns]
    coded = np.array(kinds if modality.layout == "columns" else [False] * len(names), dtype=bool)
    present = np.array([i in modality.samples for i in ids])
    missing = np.isnan(value)
    some = np.flatnonzero((missing.sum(axis=0) > (~present).sum()) & ~missing.all(axis=0))
    filled = np.where(present[:, None], ~missing[:, some], np.nan).astype(np.float32)
    return Suspects(
        names=(*names, *(f"{names[c]} (whether filled)" for c in some), f"{modality.name} (whether present)"),
        value=np.concatenate([value, filled, present[:, None].astype(np.float32)], axis=1),
        coded=np.concatenate([coded, np.zeros(len(some) + 1, dtype=bool)]),
    )


def _truths(target: Target) -> list[NDArray[np.float64]]:
    """The outcome as numbers, in the forms in which a column may hold it."""
    if isinstance(target, Survival):
        return [target.event.astype(np.float64), target.time, np.log1p(target.time)]
    if isinstance(target, Labels):
        return [(target.label == k).astype(np.float64) for k in range(len(target.classes))]
    return [target.value]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return abs(float(np.corrcoef(a, b)[0, 1])) if a.std() > 0 and b.std() > 0 else 0.0


def _ranks(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.unique(value, return_inverse=True)[1].astype(np.float64)


def _knows_survival(target: Survival, value: NDArray[np.float64]) -> bool:
    c = harrell_c(target, value, with_error=False)
    event = target.event
    if min(event.sum(), (~event).sum()) >= _LEAST:
        hit = auroc(event, value)
        if max(hit, 1 - hit) > _ORDERS:
            return True
    if not c.comparable or event.sum() < _LEAST:
        return False
    if max(c.value, 1 - c.value) > _ORDERS:
        return True
    # A strong predictor orders events; only what was made from the times orders the censored ones as well.
    c = harrell_c(dataclasses.replace(target, event=np.ones_like(event)), value, with_error=False)
    untied = c.concordant + c.discordant
    sizes = np.unique(value, return_counts=True)[1]
    agrees = max(c.concordant, c.discordant) > _UNTIED * untied
    return bool(agrees and untied > c.comparable / 5 and len(value) - sizes.max() >= _LEAST)


def _knows(target: Target, value: NDArray[np.float64]) -> bool:
    """Whether an ordered column is the outcome, or orders it better than any measurement could."""
    if len(np.unique(value)) < 2:
        return False
    if any(_correlation(value, truth) > 0.9999 for truth in _truths(target)):
        return True
    if isinstance(target, Survival):
        return _knows_survival(target, value)
    if isinstance(target, Values):
        return max(_correlation(value, target.value), _correlation(_ranks(value), _ranks(target.value))) > _DIAGNOSES
    for truth in _truths(target):
        if min(truth.sum(), (1 - truth).sum()) >= _LEAST:
            hit = auroc(truth > 0, value)
            if max(hit, 1 - hit) > _DIAGNOSES:
                return True
    return False


def _ordered_levels(codes: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Categories in the order of their mean outcome, each half's order found in the other half."""
    out = np.zeros(len(codes))
    half = np.arange(len(codes)) % 2 == 0
    for fit in (half, ~half):
        levels = np.unique(codes)
        mean = [truth[fit & (codes == level)].mean() if (fit & (codes == level)).any() else 0.0 for level in levels]
        rank = np.argsort(np.argsort(mean, kind="stable"))
        out[~fit] = rank[np.searchsorted(levels, codes[~fit])]
    return out


def _scaled(value: NDArray[np.float32]) -> NDArray[np.float64]:
    """Robustly scaled and clipped columns, 0 where missing."""
    x = value.astype(np.float64)
    known = ~np.isnan(x)
    x = np.where(known, x, 0.0)
    count = np.maximum(known.sum(axis=0), 1)
    for _ in range(2):  # clipped about the mean of what the first round left
        mean = x.sum(axis=0) / count
        spread = np.sqrt((np.where(known, x - mean, 0.0) ** 2).sum(axis=0) / count)
        x = np.where(known, np.clip(x, mean - 3 * spread, mean + 3 * spread), 0.0)
    centred = np.where(known, x - x.sum(axis=0) / count, 0.0)
    norm = np.linalg.norm(centred, axis=0)
    return np.asarray(centred / np.where(norm > 0, norm, 1.0))


def _shortlist(s: Suspects, target: Target) -> NDArray[np.intp]:
    """Columns worth an exact look: all of a narrow table, else those that correlate most with the outcome."""
    if len(s.names) <= 2 * _SHORTLIST:
        return np.arange(len(s.names))
    truths = [t[:, None].astype(np.float32) for t in _truths(target)]
    truth = _scaled(np.concatenate(truths, axis=1))
    blocks = [_scaled(s.value[:, b : b + _BLOCK]).T @ truth for b in range(0, s.value.shape[1], _BLOCK)]
    strength = np.abs(np.concatenate(blocks))
    best = [np.argsort(-strength[:, t], kind="stable")[:_SHORTLIST] for t in range(strength.shape[1])]
    return np.unique(np.concatenate([*best, np.flatnonzero(s.coded)[:_SHORTLIST]]))


def _alone(s: Suspects, target: Target, chosen: NDArray[np.intp]) -> list[str]:
    found = []
    for c in chosen:
        rows = np.flatnonzero(~np.isnan(s.value[:, c]) & target.observed)
        if len(rows) < 10:
            continue
        part, value = target.take(rows), s.value[rows, c].astype(np.float64)
        forms = [_ordered_levels(value, truth) for truth in _truths(part)] if s.coded[c] else [value]
        if any(_knows(part, form) for form in forms):
            found.append(s.names[c])
    return found


def _rebuilt(x: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Share of the variance of a truth that a linear form explains out of the half in which it was fitted."""
    half = np.arange(len(x)) % 2 == 0
    left = 0.0
    for fit in (half, ~half):
        w = np.linalg.lstsq(x[fit], truth[fit], rcond=1e-8)[0]
        left += float(((truth[~fit] - x[~fit] @ w) ** 2).sum())
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - left / total if total > 0 else 0.0


def _forward(parts: NDArray[np.float64], base: NDArray[np.float64], truth: NDArray[np.float64]) -> list[int]:
    """Parts in the order in which each explains most of what those before it left of the truth.

    Args:
        parts: (n, p).
        base: (n, m) what is known anyway.
        truth: (n,).
    """
    q = np.linalg.qr(base)[0]
    left, rest = parts - q @ (q.T @ parts), truth - q @ (q.T @ truth)
    start = np.linalg.norm(parts, axis=0)
    picked: list[int] = []
    for _ in range(min(parts.shape[1], len(truth) // 6 - base.shape[1])):
        norm = np.linalg.norm(left, axis=0)
        gain = np.where(norm > 1e-6 * start, np.abs(rest @ left) / np.maximum(norm, 1e-300), 0.0)
        best = int(np.argmax(gain))
        if gain[best] <= 1e-9 * np.linalg.norm(truth):
            break
        picked.append(best)
        direction = left[:, best] / norm[best]
        rest = rest - direction * (direction @ rest)
        left = left - np.outer(direction, direction @ left)
    return picked


def _parts(s: Suspects, chosen: NDArray[np.intp], rows: NDArray[np.intp]) -> tuple[list[int], NDArray[np.float64]]:
    """Standardised numbers of the chosen columns, one per level of a category, means where missing; and whose."""
    owner: list[int] = []
    parts: list[NDArray[np.float64]] = []
    for c in chosen.tolist():
        value = s.value[rows, c].astype(np.float64)
        missing = np.isnan(value)
        if missing.all():
            continue
        forms = [np.where(missing, np.nanmean(value), value)]
        if s.coded[c]:
            levels, count = np.unique(value[~missing], return_counts=True)
            forms = [(value == level).astype(np.float64) for level in levels[np.argsort(-count)][:10]]
        for form in forms:
            if form.std() > 0:
                owner.append(c)
                parts.append((form - form.mean()) / form.std())
    return owner, np.stack(parts, axis=1) if parts else np.zeros((len(rows), 0))


def _together(s: Suspects, target: Target, chosen: NDArray[np.intp], known: NDArray[np.float64]) -> list[str]:
    """Columns that only together are the outcome: its parts, or two dates whose difference is the time.

    Args:
        s: columns.
        target: outcome of the same patients.
        chosen: columns to look at.
        known: (n, m) what the card says of the patients, such as index time; no evidence, but a part all the same.
    """
    rows = np.flatnonzero(target.observed)
    owner, parts = _parts(s, chosen, rows)
    if len(rows) < 30 or not owner:
        return []
    given = known[rows] - known[rows].mean(axis=0)
    base = np.column_stack([np.ones(len(rows)), given / np.maximum(given.std(axis=0), 1e-12)])
    found: list[str] = []
    for truth in _truths(target.take(rows)):
        picked = _forward(parts, base, truth)
        if _rebuilt(np.column_stack([base, parts[:, picked]]), truth) <= _REBUILDS:
            continue
        kept = list(picked)
        for part in reversed(picked):  # the weakest first: leave out whatever is not needed
            fewer = [other for other in kept if other != part]
            if _rebuilt(np.column_stack([base, parts[:, fewer]]), truth) > _REBUILDS:
                kept = fewer
        found += [s.names[owner[p]] for p in kept]
    return list(dict.fromkeys(found))


def outcome_columns(
    modality: ModalityData, ids: Sequence[PatientId], target: Target, *, known: NDArray[np.float64]
) -> list[str]:
    """Names of columns that know the outcome of the patients ``ids``, alone or together.

    Args:
        modality: where to look.
        ids: n train patients.
        target: their outcome.
        known: (n, m) numbers that the card gives beside the modalities, such as index time in days; m may be 0.
    """
    s = suspects(modality, ids)
    chosen = _shortlist(s, target)
    alone = _alone(s, target, chosen)
    return alone or _together(s, target, chosen, known)


def joint_columns(
    data: Mapping[str, ModalityData], ids: Sequence[PatientId], target: Target, *, known: NDArray[np.float64]
) -> list[str]:
    """As :func:`outcome_columns`, for parts that stand in different narrow tables."""
    narrow = [suspects(m, ids) for m in data.values() if m.layout == "columns" and len(m.columns) <= _SHORTLIST]
    if len(narrow) < 2:
        return []
    s = Suspects(
        names=tuple(name for part in narrow for name in part.names),
        value=np.concatenate([part.value for part in narrow], axis=1),
        coded=np.concatenate([part.coded for part in narrow]),
    )
    return _together(s, target, np.arange(len(s.names)), known)
