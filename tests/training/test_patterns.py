"""Availability patterns are moved to what they mean, on patients that no member saw; what many patients have stays."""

import dataclasses

import numpy as np
import pytest
import simulated

from medfuse.explain.coalitions import Coalitions
from medfuse.explain.recalibration import cross_fitted, recalibrated
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.models import ModelSettings
from medfuse.targets import Labels, Survival, Values
from medfuse.training import FoldSettings, TrainSettings, fit_fold, predict_fold
from medfuse.training.patterns import _kaplan_meier, fit_patterns, pattern_number

TIMES = np.array([0.5, 1.0, 2.0])
N = 4000


def made(rng, n=N):
    """Hazard exp(a + b); a model that is right with both, four times too bold with a, and wrong about b and nobody."""
    x = rng.normal(size=(n, 2))
    log_h = np.log(TIMES)
    link = np.zeros((n, 4, 3))
    link[:, 0] = log_h + 1.0  # far too many events
    link[:, 1] = log_h + 4 * x[:, :1] - 0.5
    link[:, 2] = log_h - x[:, 1:]  # the wrong way round
    link[:, 3] = log_h + x.sum(1, keepdims=True)
    time = rng.exponential(size=n) * np.exp(-x.sum(1))
    censoring = rng.exponential(3.0, size=n)
    return x, Survival(time=np.minimum(time, censoring), event=time <= censoring), link


def both(n):
    return np.ones((n, 2), dtype=bool)


def marginal(log_hazard, spread):
    """log(-log E S) where a normal part of the log hazard with this standard deviation is unknown."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    hazard = TIMES * np.exp(log_hazard[..., None, None] + spread * nodes[:, None])
    return np.log(-np.log(np.einsum("k,...kt->...t", weights / weights.sum(), np.exp(-hazard))))


def mean_survival(link):
    return np.exp(-np.exp(link)).mean(axis=0)


def test_patterns_mean_what_they_say_afterwards():
    rng = np.random.default_rng(0)
    _, target, link = made(rng)
    found = fit_patterns(link, both(N), target, times=TIMES)
    assert found.fitted.all()
    x, _, fresh = made(rng)
    moved = found.moved(fresh, np.broadcast_to(np.arange(4), (N, 4)))
    np.testing.assert_allclose(moved[:, 0], np.tile(marginal(np.zeros(1), 2**0.5)[0], (N, 1)), atol=0.1)
    truth = marginal(x[:, 0], 1.0)
    before, after = (np.abs(one - truth).mean() for one in (fresh[:, 1], moved[:, 1]))
    assert after < 0.2 < 1.5 < before
    assert found.slope[2].max() < 0.1  # what orders patients wrongly says next to nothing
    assert np.abs(moved[:, 3] - fresh[:, 3]).mean() < 0.1  # it was right


def test_the_mean_is_that_of_what_the_same_patients_are_told_from_all_they_have():
    rng = np.random.default_rng(1)
    _, target, link = made(rng, 1500)
    found = fit_patterns(link, both(1500), target, times=TIMES)
    for number in range(3):
        moved = found.moved(link[:, number], np.full(1500, number))
        np.testing.assert_allclose(mean_survival(moved), mean_survival(link[:, 3]), atol=1e-6)


def test_who_was_measured_does_not_become_a_risk_factor():
    """b was measured in survivors; a model that knows nothing of it says the same of all, and still does afterwards."""
    rng = np.random.default_rng(2)
    _, target, _ = made(rng, 2000)
    present = both(2000)
    present[:, 1] = ~target.event | (rng.random(2000) < 0.3)
    link = np.broadcast_to(np.log(TIMES), (2000, 4, 3)).copy()
    found = fit_patterns(link, present, target, times=TIMES)
    moved = found.moved(link, np.broadcast_to(np.arange(4), (2000, 4)))
    np.testing.assert_allclose(moved, link, atol=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("happy", [0, 300])
@pytest.mark.parametrize("events", [0, 20, 400])
def test_what_the_model_makes_of_an_absence_is_kept_where_it_was_fitted_on_it(events, happy, balanced):
    """It says twice the hazard of those who lack b; whoever is only shown without b is told the mean of all."""
    rng = np.random.default_rng(3)
    _, target, _ = made(rng, 2000)
    present = both(2000)
    present[np.flatnonzero(target.event)[:events], 1] = False
    present[np.flatnonzero(~target.event)[:happy], 1] = False
    link = np.broadcast_to(np.log(TIMES), (2000, 4, 3)).copy()
    link[:, 1] += np.log(2)
    link[~present[:, 1], 3] += np.log(2)  # what is absent is absent from all coalitions
    found = fit_patterns(link, present, target, times=TIMES, balanced=balanced)
    whole = link[np.arange(2000), pattern_number(present)]
    expected = target.n_events * (events + happy) / 2000  # few events where many were to be expected tell as much
    told_by = events if balanced else max(events, expected)
    part = told_by / (told_by + 20)
    everybody, own = np.log(-np.log(mean_survival(whole))), np.log(TIMES) + np.log(2)
    np.testing.assert_allclose(found.level[1], part * own + (1 - part) * everybody, atol=1e-6)


def test_slopes_move_less_where_the_model_was_fitted_on_the_pattern():
    rng = np.random.default_rng(3)
    x, target, link = made(rng, 400)
    link[:, 1] = np.log(TIMES) + 1.5 * x[:, :1]
    many = both(400)
    many[:200, 1] = False
    nobody, half = (fit_patterns(link, p, target, times=TIMES).slope[1].mean() for p in (both(400), many))
    assert 0 < 1 - half < 0.8 * (1 - nobody)


def test_what_a_model_does_not_read_changes_nothing():
    rng = np.random.default_rng(9)
    _, target, link = made(rng, 600)
    link[:, 3], link[:, 2] = link[:, 1], link[:, 0]  # it does not read b
    present = both(600)
    present[:, 1] = ~target.event | (rng.random(600) < 0.3)
    found = fit_patterns(link, present, target, times=TIMES)
    for number, alike in ((3, 1), (2, 0)):
        np.testing.assert_array_equal(found.slope[number], found.slope[alike])
        np.testing.assert_array_equal(found.level[number], found.level[alike])
    assert np.abs(found.slope[1] - 1).max() > 0.1


def test_slopes_fall_in_time_as_the_worst_leave():
    """Half of a proportional-hazards model is not one: against the exact marginal at every time."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(8000, 2))
    time = rng.exponential(size=len(x)) * np.exp(-x[:, 0] - 2 * x[:, 1])
    free = rng.exponential(4.0, size=len(x))
    target = Survival(time=np.minimum(time, free), event=time <= free)
    link = np.repeat(np.log(TIMES) + x[:, None, :1], 4, axis=1)
    link[:, 3] += 2 * x[:, 1:]
    found = fit_patterns(link, both(len(x)), target, times=TIMES)
    assert found.slope[1, 0] > found.slope[1, 2] + 0.03
    rows = np.abs(x[:, 0]) < 2
    moved = found.moved(link[rows, 1], np.ones(rows.sum(), dtype=np.int64))
    truth = marginal(x[rows, 0], 2.0)
    assert np.abs(moved - truth).mean() < 0.06
    assert np.abs(moved - truth).mean() < 0.2 * np.abs(link[rows, 1] - truth).mean()


def test_few_events_are_left_as_they_are():
    _, target, link = made(np.random.default_rng(4), 60)
    few = Survival(time=target.time, event=np.arange(60) < 10)
    found = fit_patterns(link, both(60), few, times=TIMES)
    assert found.fitted.tolist() == [True, False, False, False]
    moved = found.moved(link, np.broadcast_to(np.arange(4), (60, 4)))
    np.testing.assert_array_equal(moved[:, 1:], link[:, 1:])
    # But nobody knows less of a patient without any modality: the mean of what all are told.
    np.testing.assert_allclose(mean_survival(moved[:, 0]), mean_survival(link[:, 3]), atol=1e-6)
    assert np.ptp(moved[:, 0], axis=0).max() == 0


def test_a_pattern_that_nobody_has_is_not_moved():
    rng = np.random.default_rng(4)
    _, target, link = made(rng, 600)
    either = np.zeros((600, 2), dtype=bool)
    either[np.arange(600), np.arange(600) % 2] = True
    link[:, 3] = link[np.arange(600), pattern_number(either)]
    found = fit_patterns(link, either, target, times=TIMES)
    assert found.fitted.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(found.slope[3], 1.0)
    np.testing.assert_array_equal(found.level[3], 0.0)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "continuous"])
def test_other_outcomes(kind):
    rng = np.random.default_rng(5)
    n = 3000
    x = rng.normal(size=n)
    width = {"binary": 2, "multiclass": 3, "continuous": 1}[kind]
    right = np.outer(x, np.linspace(-1, 1, width) if width > 1 else [1.0])
    link = np.stack([np.full_like(right, 0.7), 3 * right + 0.4 * np.arange(width), right, right], axis=1)
    if kind == "continuous":
        target = Values(value=x + rng.normal(size=n))
    else:
        p = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
        label = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)
        target = Labels(label=label, classes=tuple("abc"[:width]))
    found = fit_patterns(link, both(n), target)
    moved = found.moved(link, np.broadcast_to(np.arange(4), (n, 4)))
    if kind == "continuous":
        wanted = right
        np.testing.assert_allclose(moved[:, 0], right.mean(), atol=1e-9)
    else:
        centred = moved - moved.mean(axis=-1, keepdims=True)
        moved, wanted = centred, right
        share = np.exp(moved[0, 0]) / np.exp(moved[0, 0]).sum()
        np.testing.assert_allclose(share, p.mean(axis=0), atol=1e-6)
    assert np.abs(moved[:, 1] - wanted).mean() < 0.1 < 0.5 < np.abs(link[:, 1] - wanted).mean()


def test_outcomes_that_are_not_known_are_not_read():
    rng = np.random.default_rng(6)
    _, target, link = made(rng, 800)
    seen = np.arange(800) % 4 > 0
    found = [
        fit_patterns(
            link,
            both(800),
            Survival(time=np.where(seen, target.time, t), event=target.event, observed=seen),
            times=TIMES,
        )
        for t in (0.0, 99.0)
    ]
    np.testing.assert_array_equal(found[0].slope, found[1].slope)
    np.testing.assert_array_equal(found[0].level, found[1].level)


def test_kaplan_meier_is_that_of_the_metrics():
    rng = np.random.default_rng(8)
    time, event = rng.integers(1, 20, size=200).astype(float), rng.random(200) < 0.4
    at = np.arange(0.5, 21, 0.5)
    np.testing.assert_allclose(_kaplan_meier(time, event, at), kaplan_meier(time, event)(at), atol=1e-12)


def test_numbers_of_patterns():
    shown = np.array([[False, False, False], [True, False, False], [True, True, False], [False, False, True]])
    assert pattern_number(shown).tolist() == [0, 1, 3, 4]


def coalitions(link, present):
    return Coalitions(
        outcome="o",
        kind="survival",
        patient_ids=tuple(f"p{i}" for i in range(len(link))),
        modalities=("a", "b"),
        present=present,
        values=link,
        replicates=np.stack([link, link + 0.1]).astype(np.float32),
        times=TIMES,
    )


def test_replicates_of_an_explanation_move_alike():
    x, target, link = made(np.random.default_rng(1))
    link[:, 1] = np.log(TIMES) + 1.5 * x[:, :1]
    present = both(N)
    present[: N // 4, 1] = False
    link[: N // 4, 2], link[: N // 4, 3] = link[: N // 4, 0], link[: N // 4, 1]
    found = fit_patterns(link, present, target, times=TIMES)
    moved = recalibrated(coalitions(link, present), found)
    assert moved.meaning == "recalibrated"
    rows = slice(N // 4, None)
    gap = moved.replicates[1, rows, 1] - moved.replicates[0, rows, 1]
    assert np.isclose(gap, 0.1 * found.slope[1], atol=1e-4).mean() > 0.995  # but where hazards may not fall in time
    np.testing.assert_allclose(moved.replicates[0, rows], moved.values[rows], atol=1e-4)
    np.testing.assert_array_equal(moved.values[: N // 4, 3], moved.values[: N // 4, 1])  # a is all that they have


def test_cross_fitting_judges_patients_by_others():
    _, target, link = made(np.random.default_rng(4), 600)
    plain, parts = coalitions(link, both(600)), (200, 200, 200)
    judged = cross_fitted(plain, target, parts)
    all_of_them = fit_patterns(link, both(600), target, times=TIMES)
    assert not np.array_equal(judged.values, recalibrated(plain, all_of_them).values)
    time = target.time.copy()
    time[:200] = time[:200][::-1]  # outcomes of the first part do not touch its own values
    other = cross_fitted(plain, Survival(time=time, event=target.event), parts)
    np.testing.assert_array_equal(other.values[:200], judged.values[:200])
    assert not np.array_equal(other.values[200:], judged.values[200:])


def test_more_than_eight_modalities_are_left_as_they_are():
    cohort = simulated.simulate(90)
    one = cohort.data["clinical"]
    data = {f"c{k}": dataclasses.replace(one, name=f"c{k}") for k in range(9)}
    settings = FoldSettings(
        model=ModelSettings(width=8),
        train=TrainSettings(epochs=1, device="cpu", batch_size=64),
        seeds=(0,),
        unimodal=False,
    )
    ids = cohort.ids[:80]
    fold = fit_fold(data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings)
    assert fold.ensembles["os"]["chosen"].patterns is None
    assert len(predict_fold(fold, data, cohort.ids[80:])["os"]) == 10
