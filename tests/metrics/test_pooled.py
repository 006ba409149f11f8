"""One pooled score for every kind of outcome: the textbook number within folds, on the same resamples."""

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from medfuse.metrics.comparison import bootstrap_values, resample_weights, simultaneous
from medfuse.metrics.pooled import Told, as_times, pooled_scores
from medfuse.targets import Labels, Survival, Values

N = 90
STRATA = np.repeat([0, 1, 2], N // 3)
RESAMPLES = 130  # more than are weighed at once


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def scored(target, told):
    return pooled_scores(target, told, strata=STRATA, n_resamples=RESAMPLES, seed=4)


def written_out(k):
    """Rows of resample k, each as often as it was drawn."""
    return np.repeat(np.arange(N), resample_weights(STRATA, n_resamples=RESAMPLES, seed=4)[k])


def test_values_are_compared_with_the_mean_of_their_fold(draw):
    value = draw.normal(size=N) + 10 * STRATA  # folds differ in level, which no prediction within a fold explains
    observed = draw.random(N) < 0.9
    target = Values(value=np.where(observed, value, np.nan), observed=observed)
    told = [Told(risk=v, value=v) for v in (value + draw.normal(size=N), np.full(N, value[observed].mean()))]
    score, drawn = scored(target, told)
    assert drawn.shape == (2, RESAMPLES)

    def by_hand(rows, said):
        rows = rows[observed[rows]]
        left = ((value[rows] - said[rows]) ** 2).sum()
        folds = [value[rows[STRATA[rows] == s]] for s in range(3)]
        return 1 - left / sum(((f - f.mean()) ** 2).sum() for f in folds)

    for m in range(2):
        assert score[m] == pytest.approx(by_hand(np.arange(N), told[m].value))
        for k in (0, 64, 129):
            assert drawn[m, k] == pytest.approx(by_hand(written_out(k), told[m].value))
    one, _ = pooled_scores(target, told, strata=np.zeros(N), n_resamples=0, seed=0)
    assert one[0] == pytest.approx(r2_score(value[observed], told[0].value[observed]))
    assert one[1] == pytest.approx(0, abs=1e-9)
    assert score[1] < -10  # within folds the mean of all is a poor guess
    constant, _ = scored(Values(value=np.ones(N)), told)
    assert np.isnan(constant).all()


def test_classes_are_each_compared_with_the_rest_and_no_risk_score_of_one_class_is_taken_for_all(draw):
    label = draw.integers(0, 3, size=N)
    share = draw.dirichlet(np.ones(3), size=N) + 0.3 * np.eye(3)[label]
    share /= share.sum(axis=1, keepdims=True)
    told = [Told(risk=1 - share[:, 0], probability=share), Told(risk=draw.normal(size=N), probability=share)]
    target = Labels(label=label, classes=("a", "b", "c"))
    score, drawn = scored(target, told)
    assert score[0] == score[1]  # risk is of the classes but the first, and says nothing about the others
    assert (drawn[0] == drawn[1]).all()
    alone, _ = pooled_scores(target, told[:1], strata=np.zeros(N), n_resamples=0, seed=0)
    assert alone[0] == pytest.approx(roc_auc_score(label, share, multi_class="ovr", average="macro"))
    rows = written_out(7)
    parts = []
    for k in range(3):  # pairs within folds
        found = [(rows[STRATA[rows] == s], k) for s in range(3)]
        pairs = [(label[r] == k).sum() * (label[r] != k).sum() for r, k in found]
        areas = [roc_auc_score(label[r] == k, share[r, k]) for r, k in found]
        parts.append(np.average(areas, weights=pairs))
    assert drawn[0, 7] == pytest.approx(np.mean(parts))


def test_two_classes_and_survival_are_what_they_were(draw):
    risk, label = draw.normal(size=N), draw.integers(0, 2, size=N)
    target = Labels(label=label, classes=("no", "yes"))
    share = np.stack([1 - risk, risk], axis=1)
    survival = Survival(event=label == 1, time=draw.exponential(size=N))
    for found, pairs in ((target, as_times(target)), (survival, survival)):
        expected = bootstrap_values(pairs, risk, strata=STRATA, n_resamples=RESAMPLES, seed=4)
        assert (scored(found, [Told(risk=risk, probability=share)])[1][0] == expected).all()


def test_a_class_that_nobody_has_makes_the_score_undefined_and_the_difference_says_so(draw):
    share = draw.dirichlet(np.ones(3), size=N)
    target = Labels(label=draw.integers(0, 2, size=N), classes=("a", "b", "nobody"))
    score, drawn = scored(target, [Told(risk=share[:, 0], probability=share)] * 2)
    assert np.isnan(score).all()
    assert np.isnan(drawn).all()
    (gap,) = simultaneous(score[:1] - score[1:], drawn[:1] - drawn[1:])
    assert np.isnan(gap.estimate)
    assert gap.reason == "no resample is defined"
