"""What can go wrong with the modalities of patients, as pure functions: hidden, noisy, diluted or swapped.

A scenario changes what held-out patients show and never who they are: nobody is dropped, and a patient who is left
without any modality stays. Draws come from one generator per fold, mechanism, modality and repetition, and are shared
by all rates, so that what is hidden at 10 % is hidden at 20 % too.

References:
    Rubin (1976), Inference and missing data (at random, not at random). Swamy et al. (2023), MultiModN, section 5: the
    test whose missingness goes with the other class than in training. Verma et al. (2022), cross-modal dilution; Lin et
    al. (2025), MMIR, swapped content. NOTE[DIFF]: dilution needs no generator here: bags get tokens of other patients,
    tables get typical values in cells that were empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from medfuse.errors import ConfigError, nearest
from medfuse.preprocessing import dense_matrix, fit_preprocessing
from medfuse.sample import ModalityData, ModalitySample
from medfuse.targets import Labels, Survival, Target
from medfuse.types import PatientId

Samples = dict[str, dict[PatientId, ModalitySample]]
HIDING = ("subsets", "mcar", "mar", "mnar", "mnar-flip")
MECHANISMS = (*HIDING, "noise", "dilution", "swap")
_TENTHS = tuple(k / 10 for k in range(10))
RATES: dict[str, tuple[float, ...]] = {
    "subsets": (),
    "mcar": _TENTHS,
    "mar": _TENTHS,
    "mnar": (0.0, 0.2, 0.4, 0.6, 0.8),
    "mnar-flip": (0.0, 0.2, 0.4, 0.6, 0.8),
    "noise": (0.0, 0.25, 0.5, 1.0, 2.0),
    "dilution": (0.0, 0.25, 0.5, 1.0),
    "swap": (0.0, 0.1, 0.25, 0.5, 1.0),
}
DRAWS = {"subsets": 1, "dilution": 10, "swap": 10}  # of the others: 5
_SLOPE = 2.0  # of the logit of being hidden (mar) per standard deviation of what is seen
_TOKENS = 5000  # of train patients, from which the spread of a bag's features is taken


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way of changing the patients of a fold.

    Attributes:
        mechanism: one of ``MECHANISMS``.
        rate: share of patients (of tokens: dilution; in SD: noise); NaN for ``subsets``.
        modalities: what is acted on; for ``subsets`` what is left.
        draw: number of the repetition.
    """

    mechanism: str
    rate: float
    modalities: tuple[str, ...]
    draw: int

    @property
    def label(self) -> str:
        """What the scenario acts on, or leaves."""
        return " + ".join(self.modalities)


@dataclass(frozen=True, kw_only=True)
class Held:
    """Held-out patients of one fold, and what scenarios need to know of its training side.

    Attributes:
        ids: n held-out patients.
        data: modalities of everyone.
        train: ids of the training side, from which spreads, typical values and the reading of ``anchor`` come.
        target: outcome of ``ids``, which decides who is hidden in mnar alone.
        middle: days (survival) or value that parts the two sides of the outcome; ignored for classes.
        anchor: modality that stays and decides who is hidden in mar.
        number: of the fold.
        seed: of everything random.
    """

    ids: tuple[PatientId, ...]
    data: Mapping[str, ModalityData]
    train: tuple[PatientId, ...]
    target: Target
    middle: float
    anchor: str
    number: int
    seed: int


def plan(
    mechanism: str,
    modalities: Sequence[str],
    *,
    rates: Sequence[float] | None = None,
    chosen: Sequence[str] | None = None,
    anchor: str = "",
    draws: int | None = None,
) -> list[Scenario]:
    """All scenarios of a mechanism, the unchanged one first.

    Args:
        mechanism: one of ``MECHANISMS``.
        modalities: of the run.
        rates: default ``RATES``; 0 is always among them.
        chosen: modalities to act on: together in mcar and mar, one at a time in the others. Default all.
        anchor: modality that mar leaves alone.
        draws: repetitions of what is random.

    Raises:
        ConfigError: an unknown mechanism or modality, a rate out of range, or nothing to act on.
    """
    _check(mechanism, modalities, rates=rates, chosen=chosen)
    if mechanism == "subsets":
        sizes = range(len(modalities), 0, -1)
        left = [subset for size in sizes for subset in combinations(modalities, size)]
        return [Scenario(mechanism=mechanism, rate=float("nan"), modalities=s, draw=0) for s in left]
    acted = [m for m in modalities if (not chosen or m in chosen) and not (mechanism == "mar" and m == anchor)]
    if not acted:
        msg = f"stress mar: expected a modality besides {anchor}, which decides who is hidden, found none"
        raise ConfigError(msg)
    groups = [tuple(acted)] if mechanism in ("mcar", "mar") else [(m,) for m in acted]
    levels = sorted({0.0, *(rates or RATES[mechanism])})
    repeats = draws or DRAWS.get(mechanism, 5)
    return [
        Scenario(mechanism=mechanism, rate=rate, modalities=group, draw=draw)
        for group in groups
        for rate in levels
        for draw in range(repeats if rate else 1)
    ]


def _check(
    mechanism: str, modalities: Sequence[str], *, rates: Sequence[float] | None, chosen: Sequence[str] | None
) -> None:
    if mechanism not in MECHANISMS:
        msg = f"stress: no mechanism {mechanism!r}; {nearest(mechanism, MECHANISMS)}"
        raise ConfigError(msg)
    for name in chosen or ():
        if name not in modalities:
            msg = f"stress --modality: the run has no modality {name!r}; {nearest(name, modalities)}"
            raise ConfigError(msg)
    if mechanism == "subsets" and (rates or chosen):
        msg = "stress subsets: expected no --rate and no --modality, for every subset is tried; leave them out"
        raise ConfigError(msg)
    most = 10.0 if mechanism == "noise" else 1.0
    bad = [rate for rate in rates or () if not 0 <= rate <= most]
    if bad:
        msg = f"stress --rate: expected {mechanism} rates in [0, {most:g}], found {bad[0]:g}; 50 % is 0.5"
        raise ConfigError(msg)


def show(scenario: Scenario, held: Held) -> tuple[Samples, NDArray[np.bool_]]:
    """What the held-out patients show in a scenario, and (n, M) where it differs from what they have."""
    samples = {m: {i: d.samples[i] for i in held.ids if i in d.samples} for m, d in held.data.items()}
    touched = np.zeros((len(held.ids), len(held.data)), dtype=bool)
    names = list(held.data)
    if scenario.mechanism == "subsets":
        for column, name in enumerate(names):
            if name not in scenario.modalities:
                touched[:, column] = [i in samples[name] for i in held.ids]
                samples[name] = {}
        return samples, touched
    for name in scenario.modalities:
        column = names.index(name)
        rng = np.random.default_rng(
            [held.seed, held.number, MECHANISMS.index(scenario.mechanism), column, scenario.draw]
        )
        if scenario.mechanism in HIDING:
            hit = rng.random(len(held.ids)) < _hidden(scenario, held)
            gone = {i for i, h in zip(held.ids, hit, strict=True) if h and i in samples[name]}
            samples[name] = {i: s for i, s in samples[name].items() if i not in gone}
        else:
            changed = _CHANGES[scenario.mechanism](samples[name], scenario.rate, held, name, rng)
            gone = set(changed)
            samples[name] = {**samples[name], **changed}
        touched[:, column] = [i in gone for i in held.ids]
    return samples, touched


# --- hiding -----------------------------------------------------------------------------------------------------


def _hidden(scenario: Scenario, held: Held) -> NDArray[np.float64]:
    """(n,) probability that a modality of each patient is hidden."""
    if scenario.mechanism == "mcar":
        return np.full(len(held.ids), scenario.rate)
    if scenario.mechanism == "mar":
        return _steered(_reading(held), scenario.rate)
    wanted = 1 if scenario.mechanism == "mnar" else -1
    return np.where(side(held.target, held.middle) == wanted, scenario.rate, 0.0)


def side(target: Target, middle: float) -> NDArray[np.int64]:
    """(n,) 1 for the event class, an event by ``middle`` or a value above it; -1 for the other side; 0 unknown."""
    if isinstance(target, Survival):
        early = target.event & (target.time <= middle)
        found = np.where(early, 1, np.where(target.time > middle, -1, 0))
    elif isinstance(target, Labels):
        found = np.where(target.label > 0, 1, -1)
    else:
        found = np.where(target.value > middle, 1, -1)
    return np.where(target.observed, found, 0).astype(np.int64)


def _reading(held: Held) -> NDArray[np.float64]:
    """(n,) first principal component of the anchor, standardised on train; 0 for a patient who lacks it."""
    fitted = fit_preprocessing(held.data[held.anchor], held.train)
    x, has = dense_matrix(fitted, held.data[held.anchor], held.train)
    other, there = dense_matrix(fitted, held.data[held.anchor], held.ids)
    mean = x[has].mean(axis=0)
    axis = np.linalg.svd(x[has] - mean, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])  # the sign of a component is arbitrary
    spread = float(((x[has] - mean) @ axis).std()) or 1.0
    return np.where(there, (other - mean) @ axis / spread, 0.0)


def _steered(reading: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """(n,) logistic probabilities in a reading whose mean is the rate."""
    if rate <= 0 or rate >= 1:
        return np.full(len(reading), rate)
    low, high = -100.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        above = expit(middle + _SLOPE * reading).mean() > rate
        low, high = (low, middle) if above else (middle, high)
    return np.asarray(expit(low + _SLOPE * reading), dtype=np.float64)


# --- changing what is there -------------------------------------------------------------------------------------

_Own = Mapping[PatientId, ModalitySample]


def _train_samples(held: Held, name: str) -> list[ModalitySample]:
    return [s for i in held.train if (s := held.data[name].samples.get(i)) is not None]


def _tokens(held: Held, name: str, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tokens and positions of train patients: at most 5,000 of them, of at most 200 patients."""
    own = _train_samples(held, name)
    some = [own[k] for k in rng.permutation(len(own))[:200]]
    each = max(1, _TOKENS // max(len(some), 1))
    rows = [rng.permutation(len(s.tokens))[:each] for s in some]
    tokens = np.concatenate([np.asarray(s.tokens[r]) for s, r in zip(some, rows, strict=True)])
    return tokens, np.concatenate([s.position[r] for s, r in zip(some, rows, strict=True)])


def _identity(data: ModalityData, position: NDArray[np.float32]) -> NDArray[np.int64]:
    return position[:, 0].astype(np.int64) if data.identities else np.zeros(len(position), dtype=np.int64)


def _spread(data: ModalityData, tokens: NDArray[np.float32], position: NDArray[np.float32]) -> NDArray[np.float64]:
    """(I, F) standard deviation of the tokens of each identity, which preprocessing scales apart; of all where few."""
    own = _identity(data, position)
    out = np.tile(tokens.std(axis=0, dtype=np.float64), (max(1, len(data.identities)), 1))  # float16 would overflow
    for identity in np.flatnonzero(np.bincount(own, minlength=len(out)) > 1):
        out[identity] = tokens[own == identity].std(axis=0, dtype=np.float64)
    return out


def _noise(own: _Own, rate: float, held: Held, name: str, rng: np.random.Generator) -> dict[PatientId, ModalitySample]:
    """Normal noise of ``rate`` train SD on numbers; a coded cell is redrawn from train with probability rate / 2."""
    if rate == 0:
        return {}
    data, changed = held.data[name], {}
    if data.layout == "vectors":
        spread = _spread(data, *_tokens(held, name, rng))
        for patient, sample in own.items():
            drawn = rng.standard_normal(sample.tokens.shape)
            moved = sample.tokens + rate * spread[_identity(data, sample.position)] * drawn
            changed[patient] = ModalitySample(tokens=moved.astype(np.float32), position=sample.position)
        return changed
    train = np.stack([s.tokens for s in _train_samples(held, name)])  # (t, C, 2)
    value = np.where(train[..., 1] > 0, train[..., 0], np.nan)
    coded = np.array([c.kind != "numeric" for c in data.columns], dtype=bool)
    known = (~np.isnan(value)).sum(axis=0)
    mean = np.nansum(value, axis=0) / np.maximum(known, 1)
    spread = np.sqrt(np.nansum((value - mean) ** 2, axis=0) / np.maximum(known, 1))
    pools = {c: value[~np.isnan(value[:, c]), c] for c in np.flatnonzero(coded & (known > 0))}
    for patient, sample in own.items():
        tokens = sample.tokens.astype(np.float64)
        shift, redraw, pick = rng.standard_normal(len(coded)), rng.random(len(coded)), rng.random(len(coded))
        tokens[:, 0] += np.where(coded | (tokens[:, 1] == 0), 0.0, rate * spread * shift)
        for c, pool in pools.items():
            if tokens[c, 1] > 0 and redraw[c] < rate / 2:
                tokens[c, 0] = pool[int(pick[c] * len(pool))]
        changed[patient] = ModalitySample(tokens=tokens.astype(np.float32), position=sample.position)
    return changed


def _typical(held: Held, name: str) -> NDArray[np.float32]:
    """(C,) median of numeric and mode of coded columns in train; NaN where nobody has a value."""
    train = np.stack([s.tokens for s in _train_samples(held, name)])
    out = np.full(train.shape[1], np.nan, dtype=np.float32)
    for c, column in enumerate(held.data[name].columns):
        known = train[train[:, c, 1] > 0, c, 0]
        if not len(known):
            continue
        levels, count = np.unique(known, return_counts=True)
        out[c] = np.median(known) if column.kind == "numeric" else levels[np.argmax(count)]
    return out


def _dilution(
    own: _Own, rate: float, held: Held, name: str, rng: np.random.Generator
) -> dict[PatientId, ModalitySample]:
    """Bags: ``rate`` times as many further tokens, of train patients. Tables: that share of the empty cells filled."""
    changed = {}
    if held.data[name].layout == "vectors":
        tokens, position = _tokens(held, name, rng)
        for patient, sample in own.items():
            pick = rng.integers(0, len(tokens), size=len(sample.tokens))[: int(np.ceil(rate * len(sample.tokens)))]
            if len(pick):
                both = np.concatenate([sample.tokens, tokens[pick]])
                where = np.concatenate([sample.position, position[pick]])
                changed[patient] = ModalitySample(tokens=both, position=where)
        return changed
    typical = _typical(held, name)
    for patient, sample in own.items():
        hit = rng.random(len(typical)) < rate
        fill = hit & (sample.tokens[:, 1] == 0) & ~np.isnan(typical)
        if fill.any():
            filled = np.stack([typical, np.ones_like(typical)], axis=1)
            whole = np.where(fill[:, None], filled, sample.tokens).astype(np.float32)
            changed[patient] = ModalitySample(tokens=whole, position=sample.position)
    return changed


def _swap(own: _Own, rate: float, held: Held, name: str, rng: np.random.Generator) -> dict[PatientId, ModalitySample]:
    """A share of the patients who have the modality each show that of the next one among them, in a random order."""
    del held, name
    ids = list(own)
    order, hit = rng.permutation(len(ids)), rng.random(len(ids)) < rate
    chosen = [ids[k] for k in order if hit[k]]
    if len(chosen) < 2:
        return {}
    return {patient: own[donor] for patient, donor in zip(chosen, [*chosen[1:], chosen[0]], strict=True)}


_CHANGES = {"noise": _noise, "dilution": _dilution, "swap": _swap}
