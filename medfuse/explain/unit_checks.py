"""Whether an attribution can be believed: checks of what happens when units are really taken away, and of the weights.

The list is fixed beforehand; metrics of explanations disagree, and choosing among them would be shopping.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.explain.attribution import Attribution, groups, set_shares
from medfuse.explain.readout import make_readout, readout_links
from medfuse.explain.tokens import Options, agreement, attribute
from medfuse.explain.waves import waves
from medfuse.models import build_model
from medfuse.sample import ModalityData, ModalitySample
from medfuse.training.fold import FoldModel, presence
from medfuse.types import PatientId

Array = NDArray[np.float64]
_STEPS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.85)
_TOP = 0.2  # of the units, taken away for the check of signs
_TOGETHER = 4  # patients whose altered copies are predicted together


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: its statistic with a 95 % interval where there is one, what was asked of it, and whether it passed."""

    name: str
    value: float
    low: float
    high: float
    asked: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """All checks of the attributions of one modality by one fold.

    Attributes:
        modality: its name.
        units: of the attribution.
        patients: how many were checked.
        checks: in order.
    """

    modality: str
    units: str
    patients: int
    checks: tuple[Check, ...]

    @property
    def badge(self) -> str:
        """``passed 5 of 6: not stability``."""
        failed = [check.name for check in self.checks if not check.passed]
        text = f"passed {len(self.checks) - len(failed)} of {len(self.checks)}"
        return f"{text}: not {', '.join(failed)}" if failed else text


def check(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    found: Attribution,
    *,
    patients: int = 40,
    draws: int = 5,
    seed: int = 0,
    permuted: FoldModel | None = None,
) -> Faithfulness:
    """Check an attribution.

    deletion, insertion: how much further than in random order the value falls when the most raising units leave first,
    and rises when they come first; mean over patients of the mean over the steps of 10 to 85 % of the units.
    signs: share of patients in whom removing the most raising fifth of units lowers the value, and removing the most
    lowering fifth raises it. weights: rank correlation with maps of networks with random weights. completeness: share
    of patients whose values sum to the contribution. stability: rank correlation between replicates. labels, only
    with ``permuted``: mean absolute contribution of a model that was trained on permuted outcomes, over that of this.

    Args:
        fold: that made the attribution.
        data: modalities.
        found: of :func:`medfuse.explain.attribute`.
        patients: at most so many, drawn at random, are checked by removing units and randomising weights.
        draws: random orders, and random networks.
        seed: of all draws.
        permuted: a fold trained on permuted outcomes.

    References:
        Samek et al. (2017), Evaluating the visualization of what a deep neural network has learned (deletion); Petsiuk
        et al. (2018), RISE (insertion); Adebayo et al. (2018), Sanity checks for saliency maps (weights, labels).
    """
    own = data[found.modality]
    fill = _average(fold, own) if found.units == "wave" else None
    units = Units(
        members=lambda patient, unit: _tokens(own, patient, found, unit),
        altered=lambda copies: altered(data, found.modality, copies, fill=fill),
        again=lambda other, ids: _again(other, data, found, ids),
    )
    return checked(fold, found, units, patients=patients, draws=draws, seed=seed, permuted=permuted)


Copies = Mapping[PatientId, tuple[PatientId, NDArray[np.bool_]]]  # a copy's id -> of whom it is, and what it keeps


@dataclass(frozen=True, kw_only=True)
class Units:
    """How units of an attribution are taken from a patient, and how another model is asked the same.

    Attributes:
        members: patient and (U,) units -> (U, T) which of the patient's tokens, features or events each has.
        altered: copies of patients that keep some of these -> modalities that hold the copies.
        again: model and patients -> their attribution by that model.
    """

    members: Callable[[PatientId, NDArray[np.int64]], NDArray[np.bool_]]
    altered: Callable[[Copies], Mapping[str, ModalityData]]
    again: Callable[[FoldModel, Sequence[PatientId]], Attribution]


def checked(
    fold: FoldModel,
    found: Attribution,
    units: Units,
    *,
    patients: int,
    draws: int,
    seed: int,
    permuted: FoldModel | None = None,
) -> Faithfulness:
    """The checks of :func:`check` for units of any kind."""
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.choice(len(found), size=min(patients, len(found)), replace=False))
    areas, signs = [], list[float]()
    for start in range(0, len(chosen), _TOGETHER):
        for area, sign in _taken_apart(
            fold, found, units, rows=chosen[start : start + _TOGETHER], draw=draw, draws=draws
        ):
            areas.append(area)
            signs += sign
    checks = [
        _mean_check(name, np.array([a[i] for a in areas]), draw) for i, name in enumerate(("deletion", "insertion"))
    ]
    share = float(np.mean(signs)) if signs else float("nan")
    checks.append(_at_least("signs", share, 0.8))
    ids = [found.patient_ids[row] for row in chosen]
    checks.append(_weights(fold, found, units, ids=ids, draws=draws, seed=seed))
    checks.append(_at_least("completeness", float(found.complete.mean()), 0.95))
    known = found.stability[np.isfinite(found.stability)]
    checks.append(_at_least("stability", float(known.mean()) if len(known) else float("nan"), 0.6))
    if permuted is not None:
        other = np.abs(units.again(permuted, found.patient_ids).contribution).mean()
        ratio = float(other / np.abs(found.contribution).mean())
        nan = float("nan")
        checks.append(Check(name="labels", value=ratio, low=nan, high=nan, asked="<= 0.25", passed=ratio <= 0.25))
    return Faithfulness(modality=found.modality, units=found.units, patients=len(chosen), checks=tuple(checks))


def _at_least(name: str, value: float, least: float) -> Check:
    return Check(
        name=name, value=value, low=float("nan"), high=float("nan"), asked=f">= {least:g}", passed=value >= least
    )


def _mean_check(name: str, each: Array, draw: np.random.Generator) -> Check:
    """Mean over patients with a bootstrap interval over them, which must lie above 0."""
    again = each[draw.integers(0, len(each), size=(2000, len(each)))].mean(axis=1)
    low, high = (float(q) for q in np.quantile(again, [0.025, 0.975]))
    return Check(name=name, value=float(each.mean()), low=low, high=high, asked="interval above 0", passed=low > 0)


def _again(
    fold: FoldModel, data: Mapping[str, ModalityData], found: Attribution, ids: Sequence[PatientId]
) -> Attribution:
    """The same question to another model."""
    options = Options(
        outcome=found.outcome, class_index=found.class_index, method=found.method, cells=found.cells, nodes=(12,)
    )
    return attribute(
        fold, data, ids, modality=found.modality, horizon=found.horizon, units=found.units, options=options
    )


def randomised(fold: FoldModel, *, seed: int) -> FoldModel:
    """The same fold with freshly drawn weights in every member."""
    members = []
    for number, member in enumerate(fold.members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + number)
            model = build_model(member.settings, shapes=member.shapes, heads=member.heads)
        members.append(dataclasses.replace(member, state=model.state_dict()))
    return dataclasses.replace(fold, members=tuple(members))


def _weights(
    fold: FoldModel,
    found: Attribution,
    units: Units,
    *,
    ids: Sequence[PatientId],
    draws: int,
    seed: int,
) -> Check:
    """Mean rank correlation of each patient's values with those of random networks."""
    each = []
    for number in range(draws):
        other = units.again(randomised(fold, seed=seed + number), ids)
        ours = {(i, u): v for i, u, v in _keyed(found)}
        theirs: dict[str, list[tuple[float, float]]] = {}
        for i, u, v in _keyed(other):
            theirs.setdefault(i, []).append((ours.get((i, u), 0.0), v))
        known = [r for pairs in theirs.values() if np.isfinite(r := agreement(np.array(pairs).T))]
        each.append(float(np.mean(known)) if known else float("nan"))
    mean = float(np.mean(each))
    return Check(
        name="weights",
        value=mean,
        low=float(np.min(each)),
        high=float(np.max(each)),
        asked="|mean| <= 0.2 (range of draws)",
        passed=abs(mean) <= 0.2,
    )


def _keyed(found: Attribution) -> list[tuple[str, int, float]]:
    ids = [found.patient_ids[row] for row in found.patient]
    return list(zip(ids, found.unit.tolist(), found.values.tolist(), strict=True))


def _taken_apart(
    fold: FoldModel,
    found: Attribution,
    units: Units,
    *,
    rows: NDArray[np.int64],
    draw: np.random.Generator,
    draws: int,
) -> list[tuple[tuple[float, float], list[float]]]:
    """Per patient (area of deletion, area of insertion), and 1 or 0 for each sign that can be asked."""
    copies: dict[PatientId, tuple[PatientId, NDArray[np.bool_]]] = {}
    plan = []
    for row in rows:
        patient = found.patient_ids[row]
        own = np.flatnonzero(found.patient == row)
        value, token = found.values[own], units.members(patient, found.unit[own])
        count = len(own)
        steps = sorted({min(count - 1, max(1, round(s * count))) for s in _STEPS}) if count > 1 else []
        falling = np.argsort(-value, kind="stable")  # the most raising first
        orders = [draw.permutation(count) for _ in range(draws)]
        asked: dict[str, NDArray[np.intp]] = {}
        for step in steps:
            asked[f"delete {step}"] = falling[step:]
            asked[f"insert {step}"] = falling[:step]
            asked |= {f"random {step} {k}": order[:step] for k, order in enumerate(orders)}
            asked |= {f"random {count - step} {k}": order[: count - step] for k, order in enumerate(orders)}
        top = max(1, round(_TOP * count))
        up, down = falling[:top], falling[::-1][:top]
        up, down = up[value[up] > 0], down[value[down] < 0]
        asked |= {"all": falling, "raising": np.setdiff1d(falling, up), "lowering": np.setdiff1d(falling, down)}
        for name, kept in asked.items():
            shown = token[kept].any(axis=0) | ~token.any(axis=0)
            copies[PatientId(f"{patient}\x00{name}")] = (patient, np.asarray(shown))
        plan.append((patient, steps, count, len(up), len(down)))
    said = dict(zip(copies, predicted(fold, units.altered(copies), list(copies), like=found), strict=True))
    return [_judged(said, *one, draws=draws) for one in plan]


def _judged(
    said: Mapping[PatientId, float],
    patient: PatientId,
    steps: Sequence[int],
    count: int,
    up: int,
    down: int,
    *,
    draws: int,
) -> tuple[tuple[float, float], list[float]]:
    def value(name: str) -> float:
        return said[PatientId(f"{patient}\x00{name}")]

    def by_chance(kept: int) -> float:
        return float(np.mean([value(f"random {kept} {k}") for k in range(draws)]))

    deletion = float(np.mean([by_chance(count - s) - value(f"delete {s}") for s in steps])) if steps else 0.0
    insertion = float(np.mean([value(f"insert {s}") - by_chance(s) for s in steps])) if steps else 0.0
    signs = [float(value("raising") < value("all"))] if up else []
    signs += [float(value("lowering") > value("all"))] if down else []
    return (deletion, insertion), signs


def _tokens(data: ModalityData, patient: PatientId, found: Attribution, units: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(units, T) tokens of a patient's stored sample that belong to each unit."""
    if found.units == "gene_set":
        return np.asarray(set_shares(data, found.names).T[units] > 0)
    if found.units == "wave":
        return np.asarray(units[:, None] == waves(data.feature_names)[1][None, :])
    group = groups(data, patient, units=found.units, per_side=found.cells)
    return np.asarray(units[:, None] == group[None, :])


def _average(fold: FoldModel, data: ModalityData) -> NDArray[np.float32]:
    """(F,) what training patients have on average, over the members; 0 of features that no member reads."""
    total, count = np.zeros(data.features), np.zeros(data.features)
    for member in fold.members:
        if data.name in member.preprocessing:
            own = member.preprocessing[data.name]
            total[own.source] += own.mean.mean(axis=0)
            count[own.source] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


def altered(
    data: Mapping[str, ModalityData],
    modality: str,
    copies: Copies,
    *,
    fill: NDArray[np.float32] | None = None,
) -> dict[str, ModalityData]:
    """Copies of patients that keep only some tokens (T,) of one modality: cells go missing, instances leave.

    A bag of which nothing is left is absent. With ``fill`` (F,), features (F,) are kept or replaced instead of tokens.
    """
    found = {}
    for name, one in data.items():
        samples: dict[PatientId, ModalitySample] = {}
        for copy, (patient, kept) in copies.items():
            sample = one.samples.get(patient)
            if sample is None:
                continue
            if name == modality and fill is not None:
                tokens = np.where(kept[None, :], sample.tokens, fill).astype(np.float32)
                samples[copy] = ModalitySample.trusted(tokens=tokens, position=sample.position)
            elif name == modality and one.layout == "columns":
                tokens = np.where(kept[:, None], sample.tokens, 0).astype(np.float32)
                samples[copy] = ModalitySample.trusted(tokens=tokens, position=sample.position)
            elif name != modality:
                samples[copy] = sample
            elif kept.any():
                samples[copy] = sample.take(np.flatnonzero(kept))
        found[name] = dataclasses.replace(one, samples=samples)
    return found


def predicted(
    fold: FoldModel, data: Mapping[str, ModalityData], ids: Sequence[PatientId], *, like: Attribution
) -> list[float]:
    """What the fold says of patients, on the scale of an attribution."""
    keep = presence(data, fold.modalities, ids)
    readout = make_readout(fold, keep, outcome=like.outcome, horizon=like.horizon, label=like.class_index)
    links = readout_links(fold, data, ids, patient=np.arange(len(ids)), keep=keep, outcome=like.outcome)
    found = readout.value(readout.combined(links))
    return [float(v) for v in found]
