"""Games against shapiq's ExactComputer: Shapley values, Möbius transform, pairwise interactions with their diagonal.

shapiq_games.py wrote the numbers. Asked: 1e-9. Largest found on one x86-64 machine: 2e-15.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from medfuse.games import coalition, dividends, interactions, shapley

HERE = Path(__file__).parent
CONTENT = json.loads((HERE / "fixtures" / "games.json").read_text())
ATOL = 1e-9


def by_coalition(named, k):
    """(2^k,) in the order of medfuse's games; what shapiq does not say is NaN."""
    out = np.full(1 << k, np.nan)
    for players, value in named.items():
        out[coalition([int(player) for player in players.split(",") if player])] = value
    return out


def test_where_the_numbers_are_from():
    made_by = CONTENT["made_by"]
    assert made_by["packages"]["shapiq"] == "1.4.1"
    assert (HERE.parents[1] / made_by["script"]).is_file()
    assert sorted(game["players"] for game in CONTENT["games"]) == [3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("game", CONTENT["games"], ids=lambda game: f"{game['players']} players, seed {game['seed']}")
def test_a_random_game(game):
    k, values = game["players"], np.array(game["values"])
    single = [1 << player for player in range(k)]
    np.testing.assert_allclose(shapley(values), by_coalition(game["shapley"], k)[single], rtol=0, atol=ATOL)
    np.testing.assert_allclose(dividends(values), by_coalition(game["moebius"], k), rtol=0, atol=ATOL)
    # Off the diagonal is half of each pair's index; the diagonal is what order 2 leaves to a player alone.
    theirs, ours = by_coalition(game["2-SII"], k), interactions(values)
    np.testing.assert_allclose(np.diag(ours), theirs[single], rtol=0, atol=ATOL)
    for i in range(k):
        for j in range(i):
            assert 2 * ours[i, j] == pytest.approx(theirs[1 << i | 1 << j], rel=0, abs=ATOL)
            assert ours[i, j] == ours[j, i]
