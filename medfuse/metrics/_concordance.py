"""Counting pairs in n log n: times from last to first, a Fenwick tree over the ranks of the risk scores."""

import numba
import numpy as np
from numpy.typing import NDArray

# Resamples that share one walk. A node of the tree is then a row of 64 counts, four cache lines that are added as
# vectors, and one walk with its mispredicted branches and address arithmetic serves all 64.
LANES = 64


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
            if not event[row]:
                _add(tree, rank[row], 1.0)
                at[rank[row]] += 1.0
                inside += 1.0
            stop += 1
        for k in range(start, stop):
            row = order[k]
            if event[row]:
                lower = _below(tree, rank[row])
                same = at[rank[row]]
                concordant += pair_weight[row] * lower
                tied += pair_weight[row] * same
                discordant += pair_weight[row] * (inside - lower - same)
        for k in range(start, stop):
            row = order[k]
            if event[row]:
                _add(tree, rank[row], 1.0)
                at[rank[row]] += 1.0
                inside += 1.0
        start = stop
    return concordant, discordant, tied


@numba.njit(cache=True)
def involvement(
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    pair_weight: NDArray[np.float64],
    ranks: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per row, over all pairs it takes part in: sum of pair scores (1, 1/2, 0) and of pair weights."""
    score, total = _as_earlier(order, group, event, rank, pair_weight, ranks)
    more_score, more_total = _as_later(order, group, event, rank, pair_weight, ranks)
    # "at" counts ties once below and once above: what is higher or tied half was taken from the whole.
    return score + more_score, total + more_total


@numba.njit(cache=True)
def _as_earlier(
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    pair_weight: NDArray[np.float64],
    ranks: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the pairs in which a row has the earlier time: a walk from the latest."""
    score, total = np.zeros(len(order)), np.zeros(len(order))
    tree, at, inside = np.zeros(ranks + 1), np.zeros(ranks), 0.0
    n, start = len(order), 0
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
    return score, total


@numba.njit(cache=True)
def _as_later(
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    pair_weight: NDArray[np.float64],
    ranks: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the pairs in which a row has the later time: a walk from the earliest over the events that came before."""
    score, total = np.zeros(len(order)), np.zeros(len(order))
    tree, at, inside = np.zeros(ranks + 1), np.zeros(ranks), 0.0
    stop = len(order)
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
    return score, total


@numba.njit(cache=True, nogil=True)
def scatter_draws(draws: NDArray[np.uint32], rows: NDArray[np.int64], counts: NDArray[np.uint8], lane: int) -> None:
    """Add draws, (r, k) places in ``rows``, one resample per row, to ``counts`` (n, LANES) from ``lane`` on."""
    for b in range(draws.shape[0]):
        for k in range(draws.shape[1]):
            counts[rows[draws[b, k]], lane + b] += 1


@numba.njit(cache=True, nogil=True)
def _add_lanes(
    tree: NDArray[np.uint32],
    at: NDArray[np.uint32],
    inside: NDArray[np.uint32],
    position: int,
    count: NDArray[np.uint8],
) -> None:
    i = position + 1
    while i < len(tree):
        for b in range(LANES):
            tree[i, b] += count[b]
        i += i & (-i)
    for b in range(LANES):
        at[position, b] += count[b]
        inside[b] += count[b]


@numba.njit(cache=True, nogil=True)
def _below_lanes(tree: NDArray[np.uint32], position: int, below: NDArray[np.uint32]) -> None:
    below[:] = 0
    i = position
    while i > 0:
        for b in range(LANES):
            below[b] += tree[i, b]
        i -= i & (-i)


@numba.njit(cache=True, nogil=True)
def count_resamples(
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    event: NDArray[np.bool_],
    rank: NDArray[np.int64],
    counts: NDArray[np.uint8],
    pair_weight: NDArray[np.float64],
    work: NDArray[np.uint32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """:func:`count_pairs` of ``LANES`` resamples in one walk: their sums of pair scores (1, 1/2, 0) and of weights.

    With pair weights of 1 every partial sum is a multiple of 1/2 below 2**53 (n < 9e7), and so exact.

    Args:
        order: (k,) rows by time, latest first; within a time the censored first.
        group: (k,) group of equal times of each row in that order.
        event: (n,) by row.
        rank: (n,) dense rank of the risk score.
        counts: (n, LANES) how often each row stands in each resample.
        pair_weight: (n,) weight of the pairs whose earlier member is the row.
        work: (2 * ranks + 1, LANES) scratch, overwritten: memory that is not mapped anew for each call.
    """
    work[:] = 0
    at, tree = work[: len(work) // 2], work[len(work) // 2 :]
    inside, below = np.zeros(LANES, np.uint32), np.zeros(LANES, np.uint32)
    score, pairs = np.zeros(LANES), np.zeros(LANES)
    n = len(order)
    start = 0
    while start < n:
        stop = start
        while stop < n and group[stop] == group[start]:
            row = order[stop]
            if not event[row]:
                _add_lanes(tree, at, inside, rank[row], counts[row])
            stop += 1
        for k in range(start, stop):
            row = order[k]
            if event[row] and pair_weight[row] != 0.0:
                weight, same, count = pair_weight[row], at[rank[row]], counts[row]
                _below_lanes(tree, rank[row], below)
                for b in range(LANES):
                    scale = weight * count[b]
                    score[b] += scale * (below[b] + 0.5 * same[b])
                    pairs[b] += scale * inside[b]
        for k in range(start, stop):
            row = order[k]
            if event[row]:
                _add_lanes(tree, at, inside, rank[row], counts[row])
        start = stop
    return score, pairs
