"""Games whose answers are known by hand (clinical_ux 3.4) and the axioms that every game must keep."""

import itertools

import numpy as np
import pytest

from medfuse.errors import ConfigError
from medfuse.games import (
    coalition,
    dividends,
    inter_shap,
    interaction_share,
    interactions,
    players,
    players_of,
    shapley,
)


def game_of(value, k):
    return np.array([value(set(players(number, k))) for number in range(1 << k)], dtype=float)


ADDITIVE = (0.5, -0.2, 0.1, 0.7, 0.0)


def test_additive():
    game = game_of(lambda s: sum(ADDITIVE[i] for i in s), 5)
    assert np.allclose(shapley(game), ADDITIVE, atol=1e-12)
    matrix = interactions(game)
    assert np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-15
    sizes = np.array([n.bit_count() for n in range(32)])
    assert np.abs(dividends(game)[sizes >= 2]).max() < 1e-15
    assert inter_shap(game) < 1e-12
    assert interaction_share(game) < 1e-12


def test_pair_synergy():
    game = game_of(lambda s: 0.8 * ({0, 1} <= s), 3)
    assert np.allclose(shapley(game), [0.4, 0.4, 0], atol=1e-12)
    matrix = interactions(game)
    assert np.allclose(matrix, [[0, 0.4, 0], [0.4, 0, 0], [0, 0, 0]], atol=1e-12)
    assert dividends(game)[coalition([0, 1])] == pytest.approx(0.8, abs=1e-12)
    assert inter_shap(game) == pytest.approx(1.0, abs=1e-12)


def test_triple_synergy():
    game = game_of(lambda s: 0.9 * (len(s) == 3), 3)
    assert np.allclose(shapley(game), 0.3, atol=1e-12)
    matrix = interactions(game)
    assert np.allclose(np.diag(matrix), -0.15, atol=1e-12)
    assert matrix[0, 1] == pytest.approx(0.225, abs=1e-12)
    assert np.allclose(dividends(game), [0] * 7 + [0.9], atol=1e-12)
    assert inter_shap(game) == pytest.approx(0.75, abs=1e-12)


def test_redundant():
    game = game_of(lambda s: 0.6 * bool(s), 2)
    assert np.allclose(shapley(game), [0.3, 0.3], atol=1e-12)
    assert np.allclose(interactions(game), [[0.6, -0.3], [-0.3, 0.6]], atol=1e-12)
    assert np.allclose(dividends(game), [0, 0.6, 0.6, -0.6], atol=1e-12)
    assert inter_shap(game) == pytest.approx(1 / 3, abs=1e-12)


def test_exclusive_or():
    game = game_of(lambda s: 1.0 if s >= {0, 1} else 0.5, 2)
    assert np.allclose(shapley(game), [0.25, 0.25], atol=1e-12)
    assert np.allclose(interactions(game), [[0, 0.25], [0.25, 0]], atol=1e-12)
    assert dividends(game)[3] == pytest.approx(0.5, abs=1e-12)
    assert inter_shap(game) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("k", range(1, 6))
def test_axioms_on_random_games(k):
    game = np.random.default_rng(k).normal(size=(1 << k, 7))
    phi, harsanyi, matrix = shapley(game), dividends(game), interactions(game)
    assert np.abs(phi.sum(0) - (game[-1] - game[0])).max() < 1e-12
    assert np.abs(matrix.sum(1) - phi).max() < 1e-12
    for number in range(1 << k):  # dividends rebuild the game
        inside = [s for s in range(1 << k) if s & number == s]
        assert np.abs(harsanyi[inside].sum(0) - game[number]).max() < 1e-12
    shared = sum(
        harsanyi[number] / number.bit_count() * np.isin(np.arange(k), players(number, k))[:, None]
        for number in range(1, 1 << k)
    )
    assert np.abs(shared - phi).max() < 1e-12
    orders = list(itertools.permutations(range(k)))  # the definition: mean marginal contribution over all orders
    mean = np.zeros_like(phi)
    for order in orders:
        for place, player in enumerate(order):
            mean[player] += game[coalition(order[: place + 1])] - game[coalition(order[:place])]
    assert np.abs(mean / len(orders) - phi).max() < 1e-12


def test_a_player_who_changes_nothing_can_be_left_out():
    small = np.random.default_rng(0).normal(size=(8, 3))
    wide = np.stack([small[(n & 1) | (n >> 1 & 2) | (n >> 1 & 4)] for n in range(16)])  # player 1 is a dummy
    rest = [0, 2, 3]
    assert np.abs(shapley(wide)[rest] - shapley(small)).max() < 1e-12
    assert (shapley(wide)[1] == 0).all()
    assert np.abs(interactions(wide)[np.ix_(rest, rest)] - interactions(small)).max() < 1e-12
    assert np.abs(interactions(wide)[1]).max() < 1e-12
    assert np.abs(dividends(wide)[[n for n in range(16) if n & 2]]).max() == 0


def test_not_a_game():
    with pytest.raises(ConfigError, match="expected 2\\^k coalitions, found 6"):
        players_of(np.zeros(6))
