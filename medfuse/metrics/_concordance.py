"""Counting pairs in n log n: times from last to first, a Fenwick tree over the ranks of the risk scores."""

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True)
def _add(tree: NDArray[np.float64], position: int, weight: float) -> None:
    i = position + 1
    while i < len(tree):
        tree[i] += weight
        i += i & (-i)


@numba.njit(cache=True)
def _below(tree: NDArray[np.float64], position: int) -> float:
    """Weight at ranks < position."""
    total = 0.0
    i = position
    while i > 0:
        total += tree[i]
        i -= i & (-i)
    return total


@numba.njit(cache=True)
def count_pairs(
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    weight: NDArray[np.float64],
    pair_weight: NDArray[np.float64],
    ranks: int,
) -> tuple[float, float, float]:
    """Weights of concordant, discordant and risk-tied pairs.

    A pair counts when the earlier time is an event, or the times tie and only one of the two is an event.

    Args:
        order: rows by time, latest first; within a time the censored first.
        group: group of equal times of each row in that order.
        event: (n,) by row.
        rank: (n,) dense rank of the risk score.
        weight: (n,) case weights.
        pair_weight: (n,) weight of the pairs whose earlier member is the row.
        ranks: number of distinct ranks.
    """
    tree = np.zeros(ranks + 1)
    at = np.zeros(ranks)
    inside = 0.0
    concordant, discordant, tied = 0.0, 0.0, 0.0
    n = len(order)
    start = 0
    while start < n:
        stop = start
        while stop < n and group[stop] == group[start]:
            row = order[stop]
            if not event[row] and weight[row] != 0.0:
                _add(tree, rank[row], weight[row])
                at[rank[row]] += weight[row]
                inside += weight[row]
            stop += 1
        for k in range(start, stop):
            row = order[k]
            if event[row] and weight[row] != 0.0:
                lower = _below(tree, rank[row])
                same = at[rank[row]]
                scale = weight[row] * pair_weight[row]
                concordant += scale * lower
                tied += scale * same
                discordant += scale * (inside - lower - same)
        for k in range(start, stop):
            row = order[k]
            if event[row] and weight[row] != 0.0:
                _add(tree, rank[row], weight[row])
                at[rank[row]] += weight[row]
                inside += weight[row]
        start = stop
    return concordant, discordant, tied


@numba.njit(cache=True)
def involvement(  # noqa: C901  # one pass each way, unrolled for numba
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    pair_weight: NDArray[np.float64],
    ranks: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per row, over all pairs it takes part in: sum of pair scores (1, 1/2, 0) and of pair weights."""
    n = len(order)
    score, total = np.zeros(n), np.zeros(n)
    # As the earlier member: a walk from the latest time.
    tree, at, inside = np.zeros(ranks + 1), np.zeros(ranks), 0.0
    start = 0
    while start < n:
        stop = start
        while stop < n and group[stop] == group[start]:
            row = order[stop]
            if not event[row]:
                _add(tree, rank[row], 1.0)
                at[rank[row]] += 1.0
                inside += 1.0
            stop += 1
        for k in range(start, stop):
            row = order[k]
            if event[row]:
                score[row] += pair_weight[row] * (_below(tree, rank[row]) + 0.5 * at[rank[row]])
                total[row] += pair_weight[row] * inside
        for k in range(start, stop):
            row = order[k]
            if event[row]:
                _add(tree, rank[row], 1.0)
                at[rank[row]] += 1.0
                inside += 1.0
        start = stop
    # As the later member: a walk from the earliest time over the events that came before.
    tree, at, inside = np.zeros(ranks + 1), np.zeros(ranks), 0.0
    stop = n
    while stop > 0:
        start = stop
        while start > 0 and group[start - 1] == group[stop - 1]:
            start -= 1
        for k in range(start, stop):
            row = order[k]
            if event[row]:  # events of the same time are no pairs
                score[row] += inside - _below(tree, rank[row]) - 0.5 * at[rank[row]]
                total[row] += inside
        for k in range(start, stop):
            row = order[k]
            if event[row]:
                _add(tree, rank[row], pair_weight[row])
                at[rank[row]] += pair_weight[row]
                inside += pair_weight[row]
        for k in range(start, stop):
            row = order[k]
            if not event[row]:
                score[row] += inside - _below(tree, rank[row]) - 0.5 * at[rank[row]]
                total[row] += inside
        stop = start
    # "at" counts ties once below and once above: what is higher or tied half was taken from the whole.
    return score, total


@numba.njit(cache=True, parallel=True)
def count_many(
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    weights: NDArray[np.float64],
    pair_weight: NDArray[np.float64],
    ranks: int,
) -> NDArray[np.float64]:
    """:func:`count_pairs` for many rows of case weights: (resamples, 3)."""
    out = np.zeros((len(weights), 3))
    for b in numba.prange(len(weights)):
        out[b, 0], out[b, 1], out[b, 2] = count_pairs(order, group, event, rank, weights[b], pair_weight, ranks)
    return out
