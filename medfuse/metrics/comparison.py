"""Intervals and paired comparisons by case bootstrap within strata (folds)."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from medfuse.metrics import _concordance
from medfuse.metrics._concordance import LANES
from medfuse.metrics.discrimination import NO_PAIRS, ranked, stratified_c
from medfuse.targets import Survival

_DRAWS = 2**16  # drawn at once: 256 KiB, which stay in the cache until they are counted


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a percentile interval; ``p_value`` (two-sided, of no difference) for differences only."""

    estimate: float
    low: float
    high: float
    p_value: float = float("nan")
    reason: str = ""


def _draw(parts: Sequence[NDArray[np.int64]], counts: NDArray[np.uint8], *, seed: int, block: int) -> NDArray[np.uint8]:
    """Fill ``counts`` (n, LANES) with the draws of one block of resamples: ``parts`` are the rows of each stratum.

    A count above 255 would wrap; its probability is below 1e-500.
    """
    rng = np.random.default_rng([seed, block])
    counts[:] = 0
    for rows in parts:
        together = max(1, _DRAWS // len(rows))
        for lane in range(0, LANES, together):
            shape = (min(together, LANES - lane), len(rows))
            draws = rng.integers(0, len(rows), size=shape, dtype=np.uint32)
            _concordance.scatter_draws(draws, rows, counts, lane)
    return counts


def _parts(strata: NDArray[np.generic]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(strata == label).astype(np.int64) for label in np.unique(strata)]


def people(ids: Sequence[object]) -> NDArray[np.int64] | None:
    """(n,) number of the person that each row is about; None where nobody stands twice, as in ordinary folds."""
    number = {name: k for k, name in enumerate(dict.fromkeys(ids))}
    return None if len(number) == len(ids) else np.array([number[name] for name in ids], dtype=np.int64)


def _drawn(strata: NDArray[np.generic], person: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    """What is drawn from what: rows of each stratum, or people of each set of strata that they stand in."""
    if person is None:
        return _parts(strata)
    stands: list[list[str]] = [[] for _ in range(int(person.max(initial=-1)) + 1)]
    for who, label in zip(person, strata, strict=True):
        stands[who].append(str(label))
    return _parts(np.array(["\x1f".join(labels) for labels in stands]))


def resample_weights(
    strata: NDArray[np.generic], *, n_resamples: int, seed: int, person: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """(n_resamples, n) how often each case is drawn; every stratum keeps its size.

    Resamples are drawn in blocks of 64, block b from ``default_rng([seed, b])``: the first ones do not depend on how
    many are asked for, and none depends on the number of threads. (Before there were blocks all came from
    ``default_rng(seed)``: intervals of that time differ from today's of the same seed, within bootstrap error.)
    ``person`` as in :func:`bootstrap_values`.
    """
    parts = _drawn(strata, person)
    units = len(strata) if person is None else int(person.max(initial=-1)) + 1
    counts = np.empty((units, LANES), np.uint8)
    blocks = [_draw(parts, counts, seed=seed, block=b).T.copy() for b in range(-(-n_resamples // LANES))]
    found = np.concatenate([np.zeros((0, units), np.uint8), *blocks])[:n_resamples]
    return found if person is None else found[:, person]


def bootstrap_values(
    survival: Survival,
    risk_score: NDArray[np.float64],
    *,
    strata: NDArray[np.generic] | None = None,
    pair_weight: NDArray[np.float64] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    threads: int | None = None,
    person: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """C of each resample over pairs within strata.

    Patients are sorted and ranked once; a resample is how often each of them counts (:func:`resample_weights`), and
    64 resamples share each walk of the tree of ranks. Memory is about 0.6 kB per patient and thread at any number of
    resamples.

    Args:
        survival: n patients; unobserved ones are drawn and say nothing.
        risk_score: (n,), or (m, n) of m models, all on the same resamples.
        strata: (n,) labels, for instance folds.
        pair_weight: (n,) weight of the pairs whose earlier member is the row: ``uno_weight(...)`` gives Uno's C given
            the censoring distribution of train; default 1, Harrell's C.
        n_resamples: number of resamples.
        seed: >= 0.
        threads: how many work at once; no value depends on it. Default: ``numba.get_num_threads()``.
        person: (n,) of :func:`people`: who stands in several strata is drawn into all of them at once, and people are
            drawn among those who stand in the same ones. Default: every row is somebody else.

    Returns:
        (n_resamples,), or (m, n_resamples); NaN where a resample holds no comparable pair.

    References:
        Efron, Tibshirani (1993), An introduction to the bootstrap, section 6.2: resamples as case weights.
    """
    risk = np.asarray(risk_score, dtype=np.float64)
    models = np.atleast_2d(risk)
    n = len(survival)
    strata = np.zeros(n) if strata is None else np.asarray(strata)
    parts, drawn = _parts(strata), _drawn(strata, person)
    weight = np.broadcast_to(1.0 if pair_weight is None else pair_weight, (n,)).astype(np.float64)
    walks, rank = _walks(survival, models, parts)
    blocks = -(-n_resamples // LANES)
    workers = max(1, min(numba.get_num_threads() if threads is None else threads, blocks))
    sums = np.zeros((len(models), 2, blocks, LANES))

    def count(first: int) -> None:
        units = np.empty((n if person is None else int(person.max(initial=-1)) + 1, LANES), np.uint8)
        work = np.empty((1 + 2 * max((w.ranks for w in walks), default=0), LANES), np.uint32)
        for block in range(first, blocks, workers):
            _draw(drawn, units, seed=seed, block=block)
            counts = units if person is None else units[person]
            for w in walks:
                sums[w.model, :, block] += _concordance.count_resamples(
                    w.order, w.group, survival.event, rank[w.model], counts, weight, work[: 2 * w.ranks + 1]
                )

    if workers == 1:
        count(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(count, range(workers)))
    score, pairs = sums.reshape(len(models), 2, blocks * LANES)[:, :, :n_resamples].transpose(1, 0, 2)
    values = np.where(pairs > 0, score / np.where(pairs > 0, pairs, 1.0), np.nan)
    return values.reshape(*risk.shape[:-1], n_resamples)


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """The observed rows of one stratum in the order of a walk, and the number of distinct scores of one model there."""

    model: int
    order: NDArray[np.int64]
    group: NDArray[np.int64]
    ranks: int


def _walks(
    survival: Survival, models: NDArray[np.float64], parts: Sequence[NDArray[np.int64]]
) -> tuple[list[_Walk], NDArray[np.int64]]:
    """What to walk, and the (m, n) ranks of the scores within each stratum."""
    walks, rank = [], np.zeros(models.shape, np.int64)
    for rows in parts:
        known = rows[survival.observed[rows]]
        for m, risk in enumerate(models):
            r = ranked(survival.take(known), risk[known])
            rank[m, known] = r.rank
            walks.append(_Walk(model=m, order=known[r.order], group=r.group, ranks=r.ranks))
    return walks, rank


def _interval(estimate: float, values: NDArray[np.float64], *, level: float, reason: str) -> Interval:
    values = values[~np.isnan(values)]
    if np.isnan(estimate) or len(values) < 2:
        nan = float("nan")
        return Interval(estimate=estimate, low=nan, high=nan, reason=reason or "no resample is defined")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high))


def bootstrap_c(
    survival: Survival,
    risk_score: NDArray[np.float64],
    *,
    strata: NDArray[np.generic] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Harrell's C (pairs within strata) with a case-bootstrap percentile interval."""
    strata = np.zeros(len(survival)) if strata is None else np.asarray(strata)
    point = stratified_c(survival, risk_score, strata)
    values = bootstrap_values(survival, risk_score, strata=strata, n_resamples=n_resamples, seed=seed)
    return _interval(point.value, values, level=level, reason=NO_PAIRS if np.isnan(point.value) else "")


def paired_differences(
    survival: Survival,
    risk_score: NDArray[np.float64],
    others: Mapping[str, NDArray[np.float64]],
    *,
    strata: NDArray[np.generic],
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """C of one model minus C of each other, on the same resamples, with simultaneous intervals.

    The half-width of each interval is its bootstrap standard error times one quantile of the largest absolute
    standardised deviation over all comparisons (max-t), so that all hold together at ``level``.

    References:
        Westfall, Young (1993), Resampling-based multiple testing, section 2.
    """
    if not others:
        return {}
    point = stratified_c(survival, risk_score, strata).value
    names = list(others)
    estimates = np.array([point - stratified_c(survival, others[name], strata).value for name in names])
    models = np.stack([risk_score, *others.values()])
    values = bootstrap_values(survival, models, strata=strata, n_resamples=n_resamples, seed=seed)
    found = simultaneous(estimates, values[0] - values[1:], level=level)
    return dict(zip(names, found, strict=True))


def simultaneous(estimates: NDArray[np.float64], draws: NDArray[np.float64], *, level: float = 0.95) -> list[Interval]:
    """Intervals of m differences (m,) from their resamples (m, R), by the max-t of :func:`paired_differences`.

    A resample in which one of them is undefined is left out for all.
    """
    draws = draws[:, ~np.isnan(draws).any(axis=0)]
    if draws.shape[1] < 2 or np.isnan(estimates).any():
        nan = float("nan")
        return [Interval(estimate=float(e), low=nan, high=nan, reason="no resample is defined") for e in estimates]
    error = draws.std(axis=1, ddof=1)
    centred = np.abs(draws - draws.mean(axis=1, keepdims=True)) / np.maximum(error, 1e-12)[:, None]
    width = np.quantile(centred.max(axis=0), level)
    tails = np.minimum((draws <= 0).mean(axis=1), (draws >= 0).mean(axis=1))
    return [
        Interval(
            estimate=float(estimates[k]),
            low=float(estimates[k] - width * error[k]),
            high=float(estimates[k] + width * error[k]),
            p_value=float(min(1.0, 2 * max(tails[k], 1 / draws.shape[1]))),
        )
        for k in range(len(estimates))
    ]


def percentile(estimate: float, draws: NDArray[np.float64], *, level: float = 0.95, reason: str = "") -> Interval:
    """An estimate with the percentile interval of its resamples (R,), undefined ones left out."""
    return _interval(estimate, draws, level=level, reason=reason)
