"""Cooperative games: exact Shapley values, Harsanyi dividends and pairwise interactions.

A game of k players is an array (2^k, ...): entry c is the value of the coalition whose players are the bits of c. A
player who never changes a value gets exactly 0 and changes nothing for the others, so that a modality which a patient
lacks can stand in the game without being a player.
"""

from collections.abc import Sequence
from math import factorial

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError

Array = NDArray[np.float64]


def players_of(game: Array) -> int:
    """k, the number of players.

    Raises:
        ConfigError: the first axis is not 2^k long.
    """
    k = len(game).bit_length() - 1
    if k < 0 or len(game) != 1 << k:
        msg = f"game: expected 2^k coalitions, found {len(game)}"
        raise ConfigError(msg)
    return k


def coalition(players: Sequence[int]) -> int:
    """The number of a coalition."""
    return sum(1 << player for player in set(players))


def players(number: int, k: int) -> tuple[int, ...]:
    """The players of a coalition's number."""
    return tuple(player for player in range(k) if number >> player & 1)


def shapley(game: Array) -> Array:
    """Exact Shapley values: (k, ...); they sum to the value of all players less that of nobody.

    Raises:
        ConfigError: see :func:`players_of`.

    References:
        Shapley (1953), A value for n-person games.
    """
    k = players_of(game)
    out = np.zeros((k, *game.shape[1:]))
    for number in range(1 << k):
        size = number.bit_count()
        for player in range(k):
            if not number >> player & 1:
                share = factorial(size) * factorial(k - size - 1) / factorial(k)
                out[player] += share * (game[number | 1 << player] - game[number])
    return out


def dividends(game: Array) -> Array:
    """Harsanyi dividends (Möbius transform): (2^k, ...); entry 0 is the value of nobody, and all sum to that of all.

    Raises:
        ConfigError: see :func:`players_of`.

    References:
        Harsanyi (1959), A bargaining model for the cooperative n-person game.
    """
    k = players_of(game)
    out = np.array(game, dtype=np.float64)
    for player in range(k):
        having = np.flatnonzero(np.arange(1 << k) >> player & 1)
        out[having] -= out[having ^ (1 << player)]
    return out


def interactions(game: Array) -> Array:
    """Shapley interaction matrix (k, k, ...): half of each pair's index off the diagonal; rows sum to Shapley values.

    It hides effects of three and more players in the diagonal; :func:`dividends` are exact at every order.

    Raises:
        ConfigError: see :func:`players_of`.

    References:
        Grabisch and Roubens (1999), An axiomatic approach to the concept of interaction among players; the halving and
        the diagonal as in Lundberg et al. (2020), From local explanations to global understanding, eq. 3 to 6.
    """
    k = players_of(game)
    out = np.zeros((k, k, *game.shape[1:]))
    for i in range(k):
        for j in range(i):
            pair = 1 << i | 1 << j
            for number in range(1 << k):
                if number & pair:
                    continue
                size = number.bit_count()
                share = factorial(size) * factorial(k - size - 2) / (2 * factorial(k - 1))
                both, one, other = game[number | pair], game[number | 1 << i], game[number | 1 << j]
                out[i, j] += share * (both - one - other + game[number])
            out[j, i] = out[i, j]
    alone = shapley(game)
    for i in range(k):
        out[i, i] = alone[i] - out[i].sum(axis=0)
    return out


def interaction_share(game: Array) -> Array:
    """(...) part of the absolute dividends that belongs to coalitions of two and more; 0 when all dividends are 0.

    Raises:
        ConfigError: see :func:`players_of`.
    """
    found = np.abs(dividends(game))
    size = np.array([number.bit_count() for number in range(len(found))])
    total = found[size >= 1].sum(axis=0)
    return np.asarray(np.divide(found[size >= 2].sum(axis=0), total, out=np.zeros_like(total), where=total > 0))


def inter_shap(game: Array) -> Array:
    """(...) off-diagonal part of the absolute interaction matrix, for comparison with the literature; 0 when all 0.

    Raises:
        ConfigError: see :func:`players_of`.

    References:
        Wenderoth et al. (2025), Measuring cross-modal interactions in multimodal models, eq. 6 (InterSHAP).
    """
    matrix = np.abs(interactions(game))
    total = matrix.sum(axis=(0, 1))
    off = total - np.trace(matrix)
    return np.asarray(np.divide(off, total, out=np.zeros_like(total), where=total > 0))
