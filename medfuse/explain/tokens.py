"""What the units of one modality (columns, genes, stains, tiles, regions) add to its contribution.

The contribution of modality i is the Shapley-weighted mean over coalitions S of v(S with i) - v(S). Each difference is
taken apart along a way that leads from the absent modality to the patient's own, and the parts are averaged alike:

``path``: the modality appears with nothing in it (``presence``), and integrated gradients lead from there to what the
patient has. What "nothing" is belongs to the encoder: missing cells (table, linear), measured genes at their train mean
(pathway), the empty bag (prototype_tokens), instances as the average of train (bag).

``removal``: exact. With at most 8 units, every subset of them is shown, and the units share each difference as players
of a game that begins with the absent modality: Owen's value. With more, each unit alone is left out: no sum.

Where patterns are recalibrated, v(S with i) and what leads to it are read with the slope and level of S with i; what
it means to read the absent modality with those instead of with its own is a row of its own, ``recalibration``.

References:
    Sundararajan, Taly, Yan (2017), Axiomatic attribution for deep networks, eq. 1; Owen (1977), Values of games with a
    priori unions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from medfuse.errors import CohortError, ConfigError, nearest
from medfuse.explain.attribution import Attribution, group_names, groups, positions_of, set_names, unit_kind, unit_sums
from medfuse.explain.integrate import Line, integrate, start_values
from medfuse.explain.reader import Reader, Rows, coalitions_with, readers_of
from medfuse.explain.readout import Readout, make_readout, readout_links
from medfuse.explain.removal import MOST_UNITS, removed
from medfuse.explain.waves import waves
from medfuse.models import encoder_options
from medfuse.sample import ModalityData
from medfuse.training.fold import FoldModel, presence
from medfuse.training.patterns import MOST_MODALITIES
from medfuse.types import PatientId

Array = NDArray[np.float64]
METHODS = ("auto", "path", "removal")
_NEAR, _TINY = 0.01, 5e-5  # a gap, as a part of the contribution or as such, that asks for no more nodes
_ROWS, _NUMBERS = 512, 8_000_000  # coalitions, and numbers of the modality's tokens, that are looked at together


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to explain.

    Attributes:
        outcome: default the fold's first.
        class_index: of a multi-class outcome.
        method: ``path``, ``removal``, or ``auto``: removal for at most 8 identities (stains), else path.
        cells: of a region grid, along the longest side.
        nodes: of quadrature along a path, tried in turn until the gap is below 1 % of the contribution.
    """

    outcome: str | None = None
    class_index: int | None = None
    method: str = "auto"
    cells: int = 8
    nodes: tuple[int, ...] = (12, 36, 108, 432)

    def __post_init__(self) -> None:
        if self.method not in METHODS or self.cells < 1 or not self.nodes:
            msg = f"explain: expected cells >= 1 and a method, found {self.cells}, {self.method!r}; "
            raise ConfigError(msg + nearest(self.method, METHODS))


def attribute(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    modality: str,
    horizon: float | None = None,
    units: str | None = None,
    options: Options | None = None,
) -> Attribution:
    """What each unit of a modality adds to its contribution, for those of ``ids`` who have it.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        ids: patients; those without the modality are left out.
        modality: whose units.
        horizon: days, of a survival outcome.
        units: ``column``, ``gene_set`` or ``group`` (columns made of one variable); ``instance``, ``identity``,
            ``region`` or ``wave`` (waves of the leads of an ECG). Default: columns, identities where there are some,
            else instances.
        options: see :class:`Options`.

    Raises:
        ConfigError: no such modality, units, outcome, horizon, class or method, or more than 8 modalities.
        CohortError: nobody has the modality.
    """
    options = options or Options()
    if modality not in fold.modalities or modality not in data:
        msg = f"explain: no modality {modality!r}; {nearest(modality, fold.modalities)}"
        raise ConfigError(msg)
    if len(fold.modalities) > MOST_MODALITIES:
        msg = f"explain: expected at most {MOST_MODALITIES} modalities, found {len(fold.modalities)}; group them"
        raise ConfigError(msg)
    units = unit_kind(data[modality], units)
    having = tuple(i for i in ids if i in data[modality].samples)
    if not having:
        msg = f"explain: expected patients who have {modality}, found none of {len(ids)}"
        raise CohortError(msg)
    names = _names(fold, data[modality], units)
    few = units in ("identity", "group") and len(names) <= MOST_UNITS
    method = options.method if options.method != "auto" else "removal" if few else "path"
    if method == "removal" and units == "gene_set":
        msg = "explain: gene sets overlap, so that they cannot be removed one by one; use method path"
        raise ConfigError(msg)
    if method == "removal" and units == "wave":
        msg = "explain: waves are features, which cannot be taken from a network one by one; use method path"
        raise ConfigError(msg)
    ask = _Ask(
        fold=fold, data=dict(data), modality=modality, units=units, names=names, horizon=horizon, options=options
    )
    parts = [_closer(ask, chunk, method) for chunk in _chunks(ask, having)]
    return _joined(ask, having, parts, method)


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """What was asked."""

    fold: FoldModel
    data: dict[str, ModalityData]
    modality: str
    units: str
    names: tuple[str, ...]
    horizon: float | None
    options: Options

    @property
    def own(self) -> ModalityData:
        """The modality."""
        return self.data[self.modality]

    def group(self, patient_id: PatientId) -> NDArray[np.int64]:
        """Unit of every token of a patient; of every column."""
        return groups(self.own, patient_id, units=self.units, per_side=self.options.cells)


def _names(fold: FoldModel, data: ModalityData, units: str) -> tuple[str, ...]:
    if units == "column":
        return tuple(column.name for column in data.columns)
    if units == "identity":
        return data.identities
    if units == "group":
        return group_names(data)
    if units == "wave":
        return waves(data.feature_names)[0]
    if units != "gene_set":
        return ()
    more: set[str] = set()
    for member in fold.members:
        shape = member.shapes.get(data.name)
        given = encoder_options(member.settings, data.name, shape).get("pathways") if shape else None
        if isinstance(given, Mapping):
            more |= set(given)
    return set_names(data, sorted(more))


def _chunks(ask: _Ask, ids: Sequence[PatientId]) -> list[tuple[PatientId, ...]]:
    """A few patients at a time, those with long bags fewer."""
    most = max(1, _ROWS >> max(0, len(ask.fold.modalities) - 1))
    found: list[list[PatientId]] = [[]]
    longest = 0
    for i in ids:
        longest = max(longest, ask.own.samples[i].tokens.size)
        if found[-1] and (len(found[-1]) >= most or longest * (len(found[-1]) + 1) > _NUMBERS):
            found.append([])
            longest = ask.own.samples[i].tokens.size
        found[-1].append(i)
    return [tuple(chunk) for chunk in found]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A few patients: (n,) contribution and what no unit has of it, and per patient (R, units), with their units."""

    contribution: Array
    presence: Array
    recalibration: Array
    each: tuple[Array, ...]
    values: tuple[Array, ...]
    found: tuple[NDArray[np.int64], ...]
    positions: tuple[NDArray[np.float32], ...]
    start: str


def _closer(ask: _Ask, ids: tuple[PatientId, ...], method: str) -> _Part:
    """A few patients; those in whom a gap is left again, with more nodes."""
    part, nodes = _explained(ask, ids, method), ask.options.nodes[1:]
    gap = np.abs(part.contribution - part.presence - part.recalibration - np.array([v.sum() for v in part.values]))
    rough = np.flatnonzero(gap > np.maximum(_NEAR * np.abs(part.contribution), _TINY))
    if method == "removal" or not nodes or not len(rough):
        return part
    finer = dataclasses.replace(ask, options=dataclasses.replace(ask.options, nodes=nodes))
    again = _closer(finer, tuple(ids[row] for row in rough), method)
    each, values = list(part.each), list(part.values)
    for place, row in enumerate(rough):
        each[row], values[row] = again.each[place], again.values[place]
    return dataclasses.replace(part, each=tuple(each), values=tuple(values))


def _explained(ask: _Ask, ids: tuple[PatientId, ...], method: str) -> _Part:
    fold, column = ask.fold, ask.fold.modalities.index(ask.modality)
    has = presence(ask.data, fold.modalities, ids)
    rows = coalitions_with(has, column)
    without = rows.keep.copy()
    without[:, column] = False
    read = partial(make_readout, fold, outcome=ask.options.outcome, horizon=ask.horizon, label=ask.options.class_index)
    readouts = [read(keep) for keep in (rows.keep, without)]
    full, none = (
        readout_links(fold, ask.data, ids, patient=rows.patient, keep=keep, outcome=readouts[0].outcome)
        for keep in (rows.keep, without)
    )
    values = readouts[0].value(readouts[0].combined(full)).numpy()
    nothing = readouts[1].combined(none)
    before = readouts[1].value(nothing).numpy()
    absent = readouts[0].value(nothing).numpy()  # read as the values are: the path stays within one recalibration
    contribution = _summed(rows, values - before, len(ids))
    readers = readers_of(fold, ask.data, ids, modality=ask.modality, rows=rows, outcome=readouts[0].outcome)
    fixed = {k: link for k, link in full.items() if k not in {reader.number for reader in readers}}
    tokens = [ask.group(i) for i in ids]
    if method == "removal":
        each, mean, begun = removed(readers, readouts[0], fixed, rows=rows, ends=(absent, values), groups=tokens)
        empty = _summed(rows, begun - absent, len(ids))
        start = "the absent modality" if ask.own.layout == "vectors" else "all cells missing"
    else:
        each, empty, start = _walked(ask, readers, readouts[0], fixed, rows=rows, absent=absent, groups=tokens)
        mean = each.mean(axis=0)
    every = ask.units in ("gene_set", "wave")
    found = [np.arange(mean.shape[1]) if every else np.unique(group) for group in tokens]
    return _Part(
        contribution=contribution,
        presence=empty,
        recalibration=_summed(rows, absent - before, len(ids)),
        each=tuple(each[:, row, u] for row, u in enumerate(found)),
        values=tuple(mean[row, u] for row, u in enumerate(found)),
        found=tuple(found),
        positions=tuple(
            positions_of(ask.own, i, g, u, units=ask.units) for i, g, u in zip(ids, tokens, found, strict=True)
        ),
        start=start,
    )


def _summed(rows: Rows, values: Array, n: int) -> Array:
    """(n,) Shapley-weighted sum of values (r,) of each patient's rows."""
    return np.bincount(rows.patient, weights=rows.share * values, minlength=n).astype(np.float64)


def _walked(
    ask: _Ask,
    readers: Sequence[Reader],
    readout: Readout,
    fixed: dict[int, torch.Tensor],
    *,
    rows: Rows,
    absent: Array,
    groups: Sequence[NDArray[np.int64]],
) -> tuple[Array, Array, str]:
    """(R, n, units) by replicate, (n,) presence and what the paths start from."""
    lines = []
    for reader in readers:
        path = reader.path()
        if ask.units == "wave" and path.full.ndim != 3:
            msg = "explain: this encoder counts whole windows and knows no features; take a bag encoder, or instances"
            raise ConfigError(msg)
        to_units = partial(
            unit_sums,
            path=path,
            preprocessing=reader.preprocessing,
            data=ask.own,
            units=ask.units,
            names=ask.names,
            groups=groups,
        )
        lines.append(Line(reader=reader, path=path, to_units=to_units, wide=ask.units == "wave"))
    empty = _summed(rows, start_values(lines, readout, fixed) - absent, len(groups))
    each = integrate(lines, readout, fixed, rows=rows, nodes=ask.options.nodes[0])
    return each, empty, "; ".join(dict.fromkeys(line.path.start for line in lines))


def _joined(ask: _Ask, ids: tuple[PatientId, ...], parts: Sequence[_Part], method: str) -> Attribution:
    each = [one for part in parts for one in part.each]
    values = [one for part in parts for one in part.values]
    contribution = np.concatenate([part.contribution for part in parts])
    begun = np.concatenate([part.presence for part in parts])
    moved = np.concatenate([part.recalibration for part in parts])
    kept = [np.arange(len(v)) for v in values]
    if ask.units == "column":  # columns that no member reads have nothing to say of anybody
        sources = [m.preprocessing[ask.modality].source for m in ask.fold.members if ask.modality in m.preprocessing]
        kept = [np.unique(np.concatenate(sources)) for _ in values]
    low, high = (
        np.concatenate([np.quantile(one[:, k], q, axis=0) for one, k in zip(each, kept, strict=True)])
        for q in (0.05, 0.95)
    )
    unit = [one for part in parts for one in part.found]
    positions = [one for part in parts for one in part.positions]
    return Attribution(
        outcome=next(iter(ask.fold.ensembles)) if ask.options.outcome is None else ask.options.outcome,
        modality=ask.modality,
        units=ask.units,
        method=method,
        cells=ask.options.cells,
        start="; ".join(dict.fromkeys(part.start for part in parts)),
        horizon=ask.horizon,
        class_index=ask.options.class_index,
        patient_ids=ids,
        contribution=contribution,
        presence=begun,
        recalibration=moved,
        gap=contribution - begun - moved - np.array([v.sum() for v in values]),
        stability=np.array([agreement(one[:, k]) for one, k in zip(each, kept, strict=True)]),
        names=ask.names,
        patient=np.repeat(np.arange(len(ids)), [len(k) for k in kept]),
        unit=np.concatenate([u[k] for u, k in zip(unit, kept, strict=True)]).astype(np.int64),
        positions=np.concatenate([at[k] for at, k in zip(positions, kept, strict=True)]),
        values=np.concatenate([v[k] for v, k in zip(values, kept, strict=True)]),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
    )


def agreement(each: Array) -> float:
    """Mean Spearman correlation between pairs of replicates (R, units); NaN for one replicate or one unit."""
    if len(each) < 2 or each.shape[1] < 2:
        return float("nan")
    ranks = rankdata(each, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    ranks = np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)
    count = len(ranks)
    return float(((ranks.sum(axis=0) ** 2).sum() - (ranks**2).sum()) / (count * (count - 1)))
