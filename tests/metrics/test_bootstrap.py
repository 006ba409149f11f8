"""The bootstrap of C against the direct C of each materialised resample."""

import numpy as np
import pytest

from medfuse.metrics import comparison
from medfuse.metrics.comparison import bootstrap_c, bootstrap_values, people, resample_weights
from medfuse.metrics.discrimination import auroc, harrell_c, stratified_c, uno_c, uno_weight
from medfuse.targets import Survival


def tied(seed, n=60, *, observed=1.0):
    """Ties in time, in scores, and of both; ``observed``: share of known outcomes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    time = np.ceil(rng.exponential(4 * np.exp(-x)))
    survival = Survival(event=rng.random(n) < 0.6, time=time, observed=rng.random(n) < observed)
    return survival, np.round(x + rng.normal(size=n), 1)


def resamples(strata, n_resamples, seed):
    """Rows of each resample, cases repeated as often as they were drawn."""
    weights = resample_weights(strata, n_resamples=n_resamples, seed=seed)
    return [np.repeat(np.arange(len(strata)), row) for row in weights]


@pytest.mark.parametrize("seed", range(5))
def test_harrell_of_each_resample_equals_the_direct_one_bit_for_bit(seed):
    survival, risk = tied(seed)
    values = bootstrap_values(survival, risk, n_resamples=130, seed=seed)  # two whole blocks and a part
    direct = [harrell_c(survival.take(rows), risk[rows]).value for rows in resamples(np.zeros(60), 130, seed)]
    np.testing.assert_array_equal(values, direct)


def test_strata_pair_only_within_and_unknown_outcomes_say_nothing():
    survival, risk = tied(1, n=150, observed=0.8)
    fold = np.arange(150) % 4
    values = bootstrap_values(survival, risk + 100 * fold, strata=fold, n_resamples=80, seed=3)
    direct = [stratified_c(survival.take(rows), risk[rows], fold[rows]).value for rows in resamples(fold, 80, 3)]
    np.testing.assert_allclose(values, direct, atol=1e-12)
    assert np.std(values) > 0


@pytest.mark.parametrize("convention", ["r", "sksurv"])
@pytest.mark.parametrize("tau", [None, 6.0])
def test_uno_of_each_resample_equals_the_direct_one(convention, tau):
    survival, risk = tied(2, observed=0.9)
    weight = uno_weight(survival, train=survival, tau=tau, convention=convention)
    values = bootstrap_values(survival, risk, pair_weight=weight, n_resamples=70, seed=4)
    direct = [
        uno_c(survival.take(rows), risk[rows], train=survival, tau=tau, convention=convention).value
        for rows in resamples(np.zeros(60), 70, 4)
    ]
    np.testing.assert_allclose(values, direct, atol=1e-12)


def test_auroc_of_each_resample_equals_the_direct_one():
    rng = np.random.default_rng(5)
    label, score = rng.random(80) < 0.3, np.round(rng.normal(size=80), 1)
    as_times = Survival(event=label, time=np.where(label, 0.0, 1.0))
    values = bootstrap_values(as_times, score, n_resamples=70, seed=5)
    direct = [auroc(label[rows], score[rows]) for rows in resamples(np.zeros(80), 70, 5)]
    np.testing.assert_allclose(values, direct, atol=1e-12)


def test_models_share_the_resamples():
    survival, risk = tied(6, n=90)
    models = np.stack([risk, -risk, np.round(risk)])
    fold = np.arange(90) % 3
    together = bootstrap_values(survival, models, strata=fold, n_resamples=70)
    assert together.shape == (3, 70)
    np.testing.assert_allclose(together[0] + together[1], 1.0, atol=1e-12)  # the reversed model on the same rows
    for model, values in zip(models, together, strict=True):
        np.testing.assert_array_equal(values, bootstrap_values(survival, model, strata=fold, n_resamples=70))


def test_values_depend_on_the_seed_and_neither_on_threads_nor_on_how_many_are_asked_for():
    survival, risk = tied(7, n=120)
    fold = np.arange(120) % 2
    values = bootstrap_values(survival, risk, strata=fold, n_resamples=300, seed=8, threads=1)
    for threads in (2, 3, 64):
        again = bootstrap_values(survival, risk, strata=fold, n_resamples=300, seed=8, threads=threads)
        np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(values[:70], bootstrap_values(survival, risk, strata=fold, n_resamples=70, seed=8))
    assert not np.array_equal(values, bootstrap_values(survival, risk, strata=fold, n_resamples=300, seed=9))
    assert len(np.unique(values)) > 200  # blocks do not repeat each other


def test_draws_are_multinomial_within_strata():
    strata = np.repeat(["a", "b", "c"], [1, 30, 50])
    weights = resample_weights(strata, n_resamples=4000, seed=0).astype(float)
    for label, size in (("a", 1), ("b", 30), ("c", 50)):
        drawn = weights[:, strata == label]
        assert (drawn.sum(axis=1) == size).all()
        np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=0.1)  # six standard errors
        np.testing.assert_allclose(drawn.var(axis=0).mean(), 1 - 1 / size, atol=0.03)


def test_draws_are_the_same_in_small_portions(monkeypatch):
    """Large strata are drawn a few resamples at a time."""
    strata = np.repeat([0, 1], [20, 41])
    whole = resample_weights(strata, n_resamples=70, seed=2)
    monkeypatch.setattr(comparison, "_DRAWS", 50)
    np.testing.assert_array_equal(whole, resample_weights(strata, n_resamples=70, seed=2))


def test_a_cohort_larger_than_16_bit_counts_is_exact():
    n = 70_000
    survival, risk = tied(9, n=n)
    value = bootstrap_values(survival, risk, n_resamples=1, seed=1)[0]
    rows = resamples(np.zeros(n), 1, 1)[0]
    assert harrell_c(survival.take(rows), risk[rows], with_error=False).value == value


def test_undefined_resamples_are_nan_and_edges_do_not_fail():
    two = Survival(event=np.array([True, False]), time=np.array([1.0, 2.0]))
    values = bootstrap_values(two, np.array([1.0, 0.0]), n_resamples=200)
    assert set(values[~np.isnan(values)]) == {1.0}
    assert 70 < np.isnan(values).sum() < 130  # one of the two was drawn twice
    nobody = Survival(event=np.zeros(0, dtype=bool), time=np.zeros(0))
    assert np.isnan(bootstrap_values(nobody, np.zeros(0), n_resamples=3)).all()
    assert bootstrap_values(two, np.zeros(2), n_resamples=0).shape == (0,)
    assert np.isnan(bootstrap_c(two, np.zeros(2), n_resamples=0).low)


def test_who_stands_in_several_splits_is_drawn_into_all_of_them():
    ids = ["a", "b", "c", "d", "b", "e", "f", "d"]  # b and d in both splits
    strata = np.repeat([0, 1], 4)
    person = people(ids)
    weights = resample_weights(strata, n_resamples=200, seed=0, person=person).astype(int)
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 3] == weights[:, 7]).all()
    assert (weights[:, [0, 2]].sum(1) == 2).all()  # of those in the first alone, as many as there are
    assert (weights[:, [5, 6]].sum(1) == 2).all()
    assert (weights[:, [1, 3]].sum(1) == 2).all()
    assert len(np.unique(weights, axis=0)) > 20
    assert people(ids[:4]) is None


def test_a_split_that_is_given_twice_is_no_second_cohort():
    survival, risk = tied(0, n=80)
    twice = survival.take(np.tile(np.arange(80), 2))
    strata, person = np.repeat([0, 1], 80), people([*range(80)] * 2)
    once = bootstrap_values(survival, risk, n_resamples=300, seed=3)
    both = bootstrap_values(twice, np.tile(risk, 2), strata=strata, n_resamples=300, seed=3, person=person)
    np.testing.assert_allclose(both, once, rtol=1e-12)
    apart = bootstrap_values(twice, np.tile(risk, 2), strata=strata, n_resamples=300, seed=3)
    assert apart.std() < 0.85 * once.std()  # the interval of twice as many patients
