import itertools
import math

import numpy as np
import pytest

from medfuse.batch import target_tensors
from medfuse.targets import Labels, Survival, Values
from medfuse.training.score import harrell_c, tuning_score


def brute_force(event, time, risk):
    won = pairs = 0.0
    for i, j in itertools.permutations(range(len(time)), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += 1
            won += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return won / pairs if pairs else math.nan


@pytest.mark.parametrize("seed", range(20))
def test_harrell_c_against_all_pairs(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 30))
    event, time = draw.random(n) < 0.6, draw.integers(1, 8, size=n).astype(float)
    risk = draw.integers(0, 5, size=n).astype(float)
    assert harrell_c(event, time, risk) == pytest.approx(brute_force(event, time, risk), abs=1e-15, nan_ok=True)


def test_blocks_do_not_change_it():
    draw = np.random.default_rng(1)
    event, time, risk = draw.random(1500) < 0.9, draw.random(1500), draw.random(1500)
    order = np.argsort(time)
    later = np.triu(np.ones((1500, 1500), bool), 1) & event[order][:, None]
    wanted = (later & (risk[order][:, None] > risk[order][None, :])).sum() / later.sum()
    assert harrell_c(event, time, risk) == pytest.approx(wanted, abs=1e-12)


def test_undefined_is_nan_and_unknown_outcomes_are_not_read():
    survival = Survival(
        event=np.array([True, True, False]), time=np.array([1.0, 2, 3]), observed=np.array([1, 0, 1], bool)
    )
    targets = {"os": target_tensors(survival)}
    assert tuning_score({"os": {"risk_score": np.array([1.0, -9, 0])}}, targets) == 1.0
    censored = {"os": target_tensors(Survival(event=np.zeros(3, bool), time=np.ones(3)))}
    assert math.isnan(tuning_score({"os": {"risk_score": np.zeros(3)}}, censored))


def test_several_outcomes_are_averaged_and_undefined_ones_left_out():
    labels = target_tensors(Labels(label=np.array([0, 1, 1, 0]), classes=("no", "yes")))
    values = target_tensors(Values(value=np.array([1.0, 2, 3, 4])))
    censored = target_tensors(Survival(event=np.zeros(4, bool), time=np.ones(4)))
    probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.8, 0.2], [0.7, 0.3]])  # 3 of 4 pairs
    predicted = {
        "recurrence": {"probability": probability},
        "size": {"value": np.array([1.0, 2, 3, 3])},
        "os": {"risk_score": np.zeros(4)},
    }
    found = tuning_score(predicted, {"recurrence": labels, "size": values, "os": censored})
    assert found == pytest.approx((0.75 + (1 - 1 / 5)) / 2)
