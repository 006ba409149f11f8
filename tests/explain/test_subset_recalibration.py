"""Coalitions are moved to what they mean, on patients that no member saw; what a patient has in full stays."""

import numpy as np
import pytest

from medfuse.explain.coalitions import Coalitions
from medfuse.explain.recalibration import cross_fitted, recalibrated, subset_recalibration
from medfuse.games import shapley
from medfuse.targets import Labels, Survival, Values

TIMES = np.array([0.5, 1.0, 2.0])
N = 4000


def made(rng, n=N):
    """Hazard exp(a + b); a model that is right with both, four times too bold with one, and wrong about nobody."""
    x = rng.normal(size=(n, 2))
    log_h = np.log(TIMES)
    values = np.zeros((n, 4, 3))
    values[:, 0] = log_h + 1.0  # far too many events
    values[:, 1] = log_h + 4 * x[:, :1] - 0.5
    values[:, 2] = log_h - x[:, 1:]  # the wrong way round
    values[:, 3] = log_h + x.sum(1, keepdims=True)
    time = rng.exponential(size=n) * np.exp(-x.sum(1))
    censoring = rng.exponential(3.0, size=n)
    target = Survival(time=np.minimum(time, censoring), event=time <= censoring)
    present = np.ones((n, 2), dtype=bool)
    present[: n // 4, 1] = False
    values[: n // 4, 2], values[: n // 4, 3] = values[: n // 4, 0], values[: n // 4, 1]
    return x, target, coalitions(values, present, "survival", TIMES)


def coalitions(values, present, kind, times=None):
    return Coalitions(
        outcome="o",
        kind=kind,
        patient_ids=tuple(f"p{i}" for i in range(len(values))),
        modalities=("a", "b"),
        present=present,
        values=values,
        replicates=np.stack([values, values + 0.1]).astype(np.float32),
        times=times,
    )


def marginal(log_hazard, spread):
    """log(-log E S) where a normal part of the log hazard with this standard deviation is unknown."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    hazard = TIMES * np.exp(log_hazard[..., None, None] + spread * nodes[:, None])
    return np.log(-np.log(np.einsum("k,...kt->...t", weights / weights.sum(), np.exp(-hazard))))


def test_subsets_mean_what_they_say_afterwards():
    rng = np.random.default_rng(0)
    x, target, unseen = made(rng)
    found = subset_recalibration(unseen, target)
    assert found.fitted.all()
    fresh_x, _, fresh = made(rng)
    moved = recalibrated(fresh, found)
    full = slice(N // 4, None)
    np.testing.assert_array_equal(moved.values[full, 3], fresh.values[full, 3])
    np.testing.assert_array_equal(moved.values[: N // 4, 1], fresh.values[: N // 4, 1])  # it is all that they have
    np.testing.assert_allclose(
        moved.values[full, 0], np.tile(marginal(np.zeros(1), 2**0.5)[0], (N - N // 4, 1)), atol=0.1
    )
    truth = marginal(fresh_x[full, 0], 1.0)
    before, after = (np.abs(v.values[full, 1] - truth).mean() for v in (fresh, moved))
    assert after < 0.2 < 1.5 < before
    assert not found.slope[2].any()  # what orders patients wrongly says nothing
    phi = shapley(moved.game())
    assert np.abs(phi.sum(0) - (moved.game()[-1] - moved.game()[0])).max() < 1e-9
    assert x.shape == (N, 2)


def test_slopes_fall_in_time_as_the_worst_leave():
    """Half of a proportional-hazards model is not one: against the exact marginal at every time."""
    rng = np.random.default_rng(7)
    x, target, unseen = made(rng, 8000)
    time = rng.exponential(size=len(x)) * np.exp(-x[:, 0] - 2 * x[:, 1])
    free = rng.exponential(4.0, size=len(x))
    target = Survival(time=np.minimum(time, free), event=time <= free)
    present = np.ones((len(x), 2), dtype=bool)
    values = np.repeat(np.log(TIMES) + x[:, None, :1], 4, axis=1)
    values[:, 3] += 2 * x[:, 1:]
    unseen = coalitions(values, present, "survival", TIMES)
    found = subset_recalibration(unseen, target)
    assert found.slope[1, 0] > found.slope[1, 2] + 0.03
    rows = np.abs(x[:, 0]) < 2
    moved = recalibrated(unseen, found).values[rows, 1]
    truth = marginal(x[rows, 0], 2.0)
    assert np.abs(moved - truth).mean() < 0.06
    assert np.abs(moved - truth).mean() < 0.2 * np.abs(values[rows, 1] - truth).mean()


def test_replicates_move_alike():
    rng = np.random.default_rng(1)
    _, target, unseen = made(rng)
    found = subset_recalibration(unseen, target)
    moved = recalibrated(unseen, found)
    rows = slice(N // 4, None)
    gap = moved.replicates[1, rows, 1] - moved.replicates[0, rows, 1]
    np.testing.assert_allclose(gap, np.tile(0.1 * found.slope[1], (len(gap), 1)), atol=1e-4)
    np.testing.assert_allclose(moved.replicates[0, rows], moved.values[rows], atol=1e-4)


def test_few_events_are_left_as_they_are():
    rng = np.random.default_rng(2)
    _, target, unseen = made(rng, 60)
    none = Survival(time=target.time, event=np.zeros(60, dtype=bool) | (np.arange(60) < 10))
    found = subset_recalibration(unseen, none)
    assert not found.fitted.any()
    np.testing.assert_array_equal(recalibrated(unseen, found).values, unseen.values)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "continuous"])
def test_other_outcomes(kind):
    rng = np.random.default_rng(3)
    n = 3000
    x = rng.normal(size=n)
    present = np.ones((n, 2), dtype=bool)
    if kind == "continuous":
        values = np.stack([np.full(n, 9.0), 3 * x, x, x], axis=1)[..., None]
        target = Values(value=5 + x + rng.normal(size=n), unit="mm")
    elif kind == "binary":
        values = np.stack([np.full(n, 2.0), 3 * x, x, x], axis=1)[..., None]
        target = Labels(label=(rng.random(n) < 1 / (1 + np.exp(-x))).astype(np.int64), classes=("no", "yes"))
    else:
        link = np.stack([x, 0 * x, -x], axis=1)
        p = np.exp(link) / np.exp(link).sum(1, keepdims=True)
        label = (rng.random(n)[:, None] > p.cumsum(1)).sum(1)
        values = np.stack([0 * link + [1.0, 0, -1], 3 * link, link, link], axis=1)
        target = Labels(label=label.astype(np.int64), classes=("a", "b", "c"))
    unseen = coalitions(values, present, kind)
    found = subset_recalibration(unseen, target)
    moved = recalibrated(unseen, found).values
    assert found.slope[1] == pytest.approx(1 / 3, abs=0.05)
    assert np.ptp(moved[:, 0], axis=0).max() < 1e-9
    if kind == "continuous":
        wanted = np.array([target.value.mean()])
    else:
        log = np.log(np.bincount(target.label) / n)
        wanted = log[1:] - log[:1] if kind == "binary" else log - log.mean()
    assert np.abs(moved[0, 0] - wanted).max() < 0.01
    if kind != "continuous":
        assert np.abs(moved[:, 1] - values[:, 2]).mean() < 0.15


def test_cross_fitting_judges_patients_by_others():
    rng = np.random.default_rng(4)
    _, target, unseen = made(rng, 600)
    parts = (200, 200, 200)
    judged = cross_fitted(unseen, target, parts)
    assert not np.array_equal(judged.values, recalibrated(unseen, subset_recalibration(unseen, target)).values)
    time = target.time.copy()
    time[:200] = time[:200][::-1]  # outcomes of the first part do not touch its own values
    other = cross_fitted(unseen, Survival(time=time, event=target.event), parts)
    np.testing.assert_array_equal(other.values[:200], judged.values[:200])
    assert not np.array_equal(other.values[200:], judged.values[200:])
