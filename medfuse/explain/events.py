"""What single events add to the contribution of a record that the network reads as a summary.

Players are the events that the model may see: for each coalition of them the summary is made again, by the pipeline
that made the stored one, and shown to the network; without any event the modality is absent, as it would be for a
patient without. Events of one variable belong together: Owen's value, the mean of what each event adds over all orders
in which variables come one after the other, each with its events one after the other. Values sum to the contribution
(but for ``recalibration``, as elsewhere), and those of a variable to its Shapley value among variables.

Where coalitions are too many for that, orders are drawn, with each its reverse, until the standard error of every value
is small beside the largest; sums hold for every draw. Where events are too many even for that, each one is left out
alone: a ranking only.

References:
    Owen (1977), Values of games with a priori unions. Castro, Gomez, Tejada (2009), Polynomial calculation of the
    Shapley value based on sampling (orders drawn). Mitchell, Cooper, Frank, Holmes (2022), Sampling permutations for
    Shapley value estimation (each order with its reverse).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import CohortError, ConfigError
from medfuse.explain.attribution import Attribution
from medfuse.explain.event_game import Array, EventGame, Kept, event_game
from medfuse.explain.tokens import Options, agreement
from medfuse.explain.unit_checks import Copies, Faithfulness, Units, checked
from medfuse.sample import ModalityData, ModalitySample
from medfuse.training.fold import FoldModel
from medfuse.types import PatientId

UNITS = "event"
EXACT = 4096  # coalitions of events that are all looked at
MOST_DRAWN = 200  # events of a patient; beyond, each is left out alone
MOST = 5000  # events of a patient
_ORDERS, _MOST_ORDERS = 8, 64  # pairs of an order and its reverse: at least, at most
_ERROR = 0.05  # standard error of a value beside the largest value
_WIDE = 1.645  # standard errors from the middle to the 95th percentile


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of one patient.

    Attributes:
        names: (n,) of events.
        variable: (n,) to which of the card's variables each belongs.
        days: (n,) before the index time; NaN without a time.
        again: (k, n) events that are there -> the k samples as the pipeline makes them; None: the modality is absent.
    """

    names: tuple[str, ...]
    variable: NDArray[np.int64]
    days: NDArray[np.float64]
    again: Callable[[Kept], Sequence[ModalitySample | None]]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Differences of the game that make up values.

    Attributes:
        kept: (k, n) coalitions.
        plus, minus: (m,) of which the difference is taken.
        event: (m,) whose value it goes to, with ``weight`` (m,).
    """

    kept: Kept
    plus: NDArray[np.int64]
    minus: NDArray[np.int64]
    event: NDArray[np.int64]
    weight: Array

    def values(self, game: Array) -> Array:
        """(..., n) of the game (..., k)."""
        change = self.weight * (game[..., self.plus] - game[..., self.minus])
        return np.asarray(change @ (self.event[:, None] == np.arange(self.kept.shape[1])))


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Of one patient: (R, n) by replicate, (n,) and its standard error; contribution and recalibration."""

    each: Array
    values: Array
    error: Array
    contribution: float
    recalibration: float


def attribute_events(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    events: Mapping[PatientId, Events],
    *,
    modality: str,
    horizon: float | None = None,
    options: Options | None = None,
    seed: int = 0,
) -> Attribution:
    """What each event adds to the contribution of a record, for each patient of ``events``.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        events: of patients who have the modality.
        modality: whose summaries are made of the events.
        horizon: days, of a survival outcome.
        options: see :class:`medfuse.explain.Options`; with ``method`` ``removal`` each event is left out alone.
        seed: of the orders drawn.

    Returns:
        An attribution with units ``event``; ``presence`` is 0, for events are players of a game that begins with the
        absent modality; ``low`` and ``high`` span the replicates and 90 % of the error of drawing.

    Raises:
        ConfigError: as :func:`medfuse.explain.attribute`; method ``path``, which events do not have.
        CohortError: nobody has events, too many, or events that do not make the stored summary.
    """
    options = options or Options()
    if options.method == "path":
        msg = "explain: events come and go whole, which no path leads through; use method auto or removal"
        raise ConfigError(msg)
    if not events:
        msg = f"explain: expected patients with events of {modality}, found none"
        raise CohortError(msg)
    parts, outcome = [], ""
    for name, own in events.items():
        _checked(own, data[modality].samples[name], name)
        game = event_game(fold, data, name, again=own.again, modality=modality, horizon=horizon, options=options)
        parts.append(_explained(game, own, alone=options.method == "removal", seed=seed))
        outcome = game.outcome
    counts = [len(own) for own in events.values()]
    low, high = (
        np.concatenate([np.quantile(one.each, q, axis=0) + side * _WIDE * one.error for one in parts])
        for q, side in ((0.05, -1), (0.95, 1))
    )
    values = np.concatenate([one.values for one in parts])
    patient = np.repeat(np.arange(len(counts)), counts)
    contribution = np.array([one.contribution for one in parts])
    moved = np.array([one.recalibration for one in parts])
    at = [np.stack([own.variable, own.days], axis=1) for own in events.values()]
    return Attribution(
        outcome=outcome,
        modality=modality,
        units=UNITS,
        method="removal",
        cells=options.cells,
        start="the absent modality",
        horizon=horizon,
        class_index=options.class_index,
        patient_ids=tuple(events),
        contribution=contribution,
        presence=np.zeros(len(parts)),
        recalibration=moved,
        gap=contribution - moved - np.bincount(patient, weights=values, minlength=len(parts)),
        stability=np.array([agreement(one.each) for one in parts]),
        names=tuple(name for own in events.values() for name in own.names),
        patient=patient,
        unit=np.arange(len(values), dtype=np.int64),
        positions=np.concatenate(at).astype(np.float32),
        values=values,
        low=low.astype(np.float32),
        high=high.astype(np.float32),
    )


def _checked(own: Events, stored: ModalitySample, patient: PatientId) -> None:
    """Refuse events of which the pipeline does not make the summary that the run read."""
    if not 0 < len(own) <= MOST:
        msg = f"explain: expected 1 to {MOST} events of patient {patient}, found {len(own)}; explain columns or groups"
        raise CohortError(msg)
    whole = own.again(np.ones((1, len(own)), dtype=bool))[0]
    if whole is None or not np.array_equal(whole.tokens, stored.tokens):
        msg = f"explain: expected events of patient {patient} that make the stored summary, found others"
        raise CohortError(f"{msg}; use the files and the card that the run was trained on")


def _explained(game: EventGame, own: Events, *, alone: bool, seed: int) -> _Found:
    n, members = len(own), [np.flatnonzero(own.variable == v) for v in np.unique(own.variable)]
    every, error = np.ones(n, dtype=bool), np.zeros(n)
    if alone or (n > MOST_DRAWN and _coalitions(members) > EXACT):
        kept = np.concatenate([every[None, :], ~np.eye(n, dtype=bool)])
        said = game.values(kept)
        found = said[:, :1] - said[:, 1:]
    elif _coalitions(members) <= EXACT:
        plan = _exact(members, n)
        found = plan.values(game.values(plan.kept))
    else:
        found, error = _drawn(game, members, n, seed=seed)
    return _Found(
        each=found[1:],
        values=found[0],
        error=error,
        contribution=game.contribution,
        recalibration=game.recalibration,
    )


def _coalitions(members: Sequence[NDArray[np.intp]]) -> float:
    """How many coalitions Owen's value asks for."""
    inner = sum(2.0 ** min(len(own), 64) for own in members)
    return inner * 2.0 ** (len(members) - 1)


def _exact(members: Sequence[NDArray[np.intp]], n: int) -> _Plan:
    """Owen's value: other variables whole or not at all, and every coalition within an event's own variable."""
    place: dict[bytes, int] = {}
    rows: list[tuple[int, int, int, float]] = []

    def number(kept: NDArray[np.bool_]) -> int:
        return place.setdefault(kept.tobytes(), len(place))

    for v, own in enumerate(members):
        others = [one for u, one in enumerate(members) if u != v]
        for shown in itertools.product((False, True), repeat=len(others)):
            base = np.zeros(n, dtype=bool)
            for there, one in zip(shown, others, strict=True):
                base[one] = there
            outer = _weight(sum(shown), len(members))
            for kept, size in _subsets(base, own):
                before, inner = number(kept), outer * _weight(size, len(own))
                for event in own[~kept[own]]:
                    after = kept.copy()
                    after[event] = True
                    rows.append((number(after), before, int(event), inner))
    plus, minus, event, weight = (np.array(column) for column in zip(*rows, strict=True))
    kept = np.stack([np.frombuffer(key, dtype=bool) for key in place])
    return _Plan(kept=kept, plus=plus, minus=minus, event=event, weight=weight)


def _weight(size: int, players: int) -> float:
    """Shapley's weight of what one of some players adds to a coalition of the others."""
    return 1 / (players * math.comb(players - 1, size)) if size < players else 0.0


def _subsets(base: NDArray[np.bool_], own: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.bool_], int]]:
    for bits in itertools.product((False, True), repeat=len(own)):
        kept = base.copy()
        kept[own] = bits
        yield kept, sum(bits)


def _drawn(game: EventGame, members: Sequence[NDArray[np.intp]], n: int, *, seed: int) -> tuple[Array, Array]:
    """(1 + R, n) values from orders drawn, and (n,) their standard error."""
    draw = np.random.default_rng(seed)
    pairs: list[Array] = []  # each (1 + R, n)
    while len(pairs) < _MOST_ORDERS:
        orders = []
        for _ in range(_ORDERS):
            order = np.concatenate([draw.permutation(members[v]) for v in draw.permutation(len(members))])
            orders += [order, order[::-1]]
        plan = _along(np.stack(orders))
        said = game.values(plan.kept)
        step = np.stack([said[:, plan.plus], said[:, plan.minus]])
        change = (step[0] - step[1]).reshape(len(said), len(orders), n)
        added = np.zeros_like(change)
        np.put_along_axis(added, np.broadcast_to(np.stack(orders), change.shape), change, axis=2)
        pairs += list((added[:, ::2] + added[:, 1::2]).transpose(1, 0, 2) / 2)
        every = np.stack(pairs)
        error = every[:, 0].std(axis=0, ddof=1) / math.sqrt(len(pairs))
        mean = every.mean(axis=0)
        if error.max() <= _ERROR * np.abs(mean[0]).max():
            break
    return mean, error


def _along(orders: NDArray[np.intp]) -> _Plan:
    """Coalitions as events arrive in some orders (p, n); one difference per order and arrival."""
    p, n = orders.shape
    arrival = np.argsort(orders, axis=1)  # when each event arrives
    kept = (arrival[:, None, :] < np.arange(n + 1)[None, :, None]).reshape(-1, n)
    distinct, back = np.unique(kept, axis=0, return_inverse=True)
    back = back.reshape(p, n + 1)
    ones = np.full(p * n, 1 / p)
    return _Plan(kept=distinct, plus=back[:, 1:].ravel(), minus=back[:, :-1].ravel(), event=orders.ravel(), weight=ones)


def check_events(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    events: Mapping[PatientId, Events],
    found: Attribution,
    *,
    patients: int = 12,
    draws: int = 3,
    seed: int = 0,
) -> Faithfulness:
    """The checks of :func:`medfuse.explain.check`, with events that really leave the record."""
    first = {i: int(np.flatnonzero(found.patient == row)[0]) for row, i in enumerate(found.patient_ids)}

    def members(patient: PatientId, unit: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(unit[:, None] - first[patient] == np.arange(len(events[patient])))

    def again(other: FoldModel, ids: Sequence[PatientId]) -> Attribution:
        own = {i: events[i] for i in events if i in ids}
        options = Options(outcome=found.outcome, class_index=found.class_index)
        asked = attribute_events(
            other, data, own, modality=found.modality, horizon=found.horizon, options=options, seed=seed
        )
        shift = np.array([first[i] for i in asked.patient_ids])
        begin = np.searchsorted(asked.patient, np.arange(len(asked)))
        return dataclasses.replace(asked, unit=asked.unit + (shift - begin)[asked.patient])

    units = Units(members=members, altered=lambda copies: _altered(data, found.modality, events, copies), again=again)
    return checked(fold, found, units, patients=patients, draws=draws, seed=seed)


def _altered(
    data: Mapping[str, ModalityData], modality: str, events: Mapping[PatientId, Events], copies: Copies
) -> dict[str, ModalityData]:
    """Copies of patients whose record has only some of its events."""
    found = {}
    for name, one in data.items():
        samples = {c: one.samples[p] for c, (p, _) in copies.items() if p in one.samples}
        if name == modality:
            for patient in {p for p, _ in copies.values()}:
                own = [c for c, (p, _) in copies.items() if p == patient]
                for c, sample in zip(own, events[patient].again(np.stack([copies[c][1] for c in own])), strict=True):
                    if sample is None:
                        del samples[c]
                    else:
                        samples[c] = sample
        found[name] = dataclasses.replace(one, samples=samples)
    return found
