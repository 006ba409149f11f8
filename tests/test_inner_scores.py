"""Inner scores choose between models: what they are of must not have been chosen on the same patients."""

from types import SimpleNamespace

import numpy as np
import pytest

from medfuse.baselines.labels import _judged
from medfuse.baselines.learners import random_survival_forest
from medfuse.baselines.modality import cross_fitted
from medfuse.benchmarking import _judged as _judged_trials
from medfuse.metrics.discrimination import harrell_c
from medfuse.prediction import Prediction
from medfuse.splits import Split
from medfuse.targets import Survival

CANDIDATES, FOLDS, N = 8, 3, 90


def noise(seed):
    """Candidates who know nothing: scores, and C of each inner fold."""
    draw = np.random.default_rng(seed)
    survival = Survival(event=draw.random(N) < 0.6, time=draw.exponential(size=N))
    folds = [np.arange(k, N, FOLDS) for k in range(FOLDS)]
    oof = {f"candidate {i}": draw.normal(size=N) for i in range(CANDIDATES)}
    c = {name: [harrell_c(survival.take(rows), x[rows]).value for rows in folds] for name, x in oof.items()}
    return survival, folds, oof, c


def test_the_best_of_several_candidates_is_worth_nothing_on_noise():
    flattered, honest, merits = [], [], []
    for seed in range(80):
        survival, folds, oof, c = noise(seed)
        best = max(oof, key=lambda name: np.mean(c[name]))
        flattered.append(np.mean(c[best]))
        judged, merit = cross_fitted(oof, c, folds)
        honest.append(np.mean([harrell_c(survival.take(rows), judged[rows]).value for rows in folds]))
        merits.append(merit)
        assert _judged(c) == pytest.approx(honest[-1])  # the same rule, told in scores
    assert np.mean(flattered) > 0.54
    assert np.mean(honest) == pytest.approx(0.5, abs=3 * np.std(honest) / np.sqrt(80))
    assert np.mean(merits) > 0.54  # what the others thought of it


def test_a_candidate_that_is_better_everywhere_is_judged_by_its_own_score():
    survival, folds, oof, c = noise(0)
    oof["good"] = -survival.time
    c["good"] = [harrell_c(survival.take(rows), oof["good"][rows]).value for rows in folds]
    judged, merit = cross_fitted(oof, c, folds)
    np.testing.assert_allclose(judged, (oof["good"] - oof["good"].mean()) / oof["good"].std())
    np.testing.assert_array_equal(merit, 1.0)
    assert _judged(c) == 1.0


def test_one_fold_chooses_by_itself_and_undefined_scores_choose_nobody():
    _, _, oof, c = noise(1)
    judged, _ = cross_fitted(oof, {name: [np.mean(values)] for name, values in c.items()}, [np.arange(N)])
    best = oof[max(oof, key=lambda name: np.mean(c[name]))]
    np.testing.assert_allclose(judged, (best - best.mean()) / best.std())
    assert _judged({"a": [0.6], "b": [0.7]}) == 0.7
    assert _judged({"a": [np.nan, 0.6], "b": [np.nan, 0.5]}) == 0.6
    assert np.isnan(_judged({"a": [np.nan, np.nan]}))


def test_scores_of_a_forest_do_not_grow_with_the_number_of_patients():
    """They are standardised, and turned into curves, by what forests of fewer patients said."""
    pytest.importorskip("sksurv")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(900, 4))
    time, censoring = draw.exponential(np.exp(-x[:, 0])), draw.exponential(1.5, size=900)
    survival = Survival(event=time <= censoring, time=np.minimum(time, censoring))
    rows = np.arange(900)
    few, many = (
        random_survival_forest(x[:n], survival.take(rows[:n]), x[700:], 0)["random_survival_forest"] for n in (350, 700)
    )
    assert abs(many.mean() - few.mean()) < 0.2  # a sum over all times would differ by log 2
    assert abs(many.mean() - few.mean()) < 0.25 * few.std()


def test_the_best_of_several_trials_is_worth_nothing_on_noise():
    inner = [
        Split(name=str(k), train=tuple(f"p{i}" for i in range(N) if i % 3 != k), held_out=()) for k in range(FOLDS)
    ]
    best, judged = [], []
    for seed in range(60):
        survival, _, oof, _ = noise(seed)
        ids = tuple(f"p{i}" for i in range(N))
        tried = [
            {"y": Prediction(patient_ids=ids, present=np.ones((N, 1), bool), modalities=("a",), risk_score=risk)}
            for risk in oof.values()
        ]

        class Cohort:
            targets = {"y": survival}  # noqa: RUF012

            def target(self, outcome, ids, known=survival):
                return known.take(np.array([int(i[1:]) for i in ids], dtype=int))

        job = SimpleNamespace(outcomes=("y",), cohort=Cohort())
        best.append(max(harrell_c(survival, risk).value for risk in oof.values()))
        judged.append(_judged_trials(job, tried, inner)["y"])
        alone = _judged_trials(job, tried[:1], inner)["y"]
        assert alone == pytest.approx(harrell_c(survival, tried[0]["y"].risk_score).value)
    assert np.mean(best) > 0.53
    assert np.mean(judged) == pytest.approx(0.5, abs=3 * np.std(judged) / np.sqrt(60))
