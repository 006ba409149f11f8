"""Checks of explanations pass where they must and fail where they must."""

import dataclasses

import numpy as np
import pytest

from medfuse.errors import ConfigError
from medfuse.explain import coalition_values
from medfuse.explain.coalitions import Coalitions
from medfuse.explain.donors import HiddenCheck
from medfuse.explain.faithfulness import (
    NOT_RUN,
    from_json,
    game_checks,
    hidden_checks,
    randomisation_check,
    to_json,
)
from medfuse.files import json_bytes

HORIZON = 500.0


def values_of(effects, *, noise, replicates=6, seed=0, kind="continuous"):
    """Additive values (n, M) of every replicate, with noise on every coalition of every replicate."""
    rng = np.random.default_rng(seed)
    n, m = effects.shape
    bits = (np.arange(1 << m)[:, None] >> np.arange(m)) & 1
    each = (effects @ bits.T)[None] + noise * rng.normal(size=(replicates, n, 1 << m))
    return Coalitions(
        outcome="y",
        kind=kind,
        patient_ids=tuple(f"p{i}" for i in range(n)),
        modalities=tuple("abcd"[:m]),
        present=np.ones((n, m), dtype=bool),
        values=each.mean(axis=0)[..., None],
        replicates=each[..., None].astype(np.float32),
    )


def by_name(checks):
    return {check.name.split()[0]: check for check in checks}


def test_a_true_explanation_passes():
    effects = np.random.default_rng(1).normal(size=(120, 4))
    found = by_name(game_checks([values_of(effects, noise=0.05)]))
    assert [c.passed for c in found.values()] == [True] * 5
    assert found["sign"].statistic > 0.95
    assert found["completeness"].statistic < 1e-9
    assert found["deletion"].low > 0


def test_noise_fails_where_the_replicates_that_rank_do_not_judge():
    found = by_name(game_checks([values_of(np.zeros((120, 4)), noise=1.0)]))
    assert found["deletion"].passed is False
    assert found["insertion"].passed is False
    assert found["sign"].passed is False
    assert abs(found["sign"].statistic - 0.5) < 0.12
    assert found["stability"].passed is False


def test_areas_are_those_of_the_definition():
    """Three modalities 1, 2, 3 in one patient: the curves by hand."""
    one = values_of(np.tile([1.0, 2.0, 3.0], (12, 1)), noise=0.0)
    found = by_name(game_checks([one]))
    # shown: 3, 3 + 2, mean 4; left: 1 + 2, 1, mean 2; any order: mean of (2, 4) is 3
    assert found["insertion"].statistic == pytest.approx(1.0)
    assert found["deletion"].statistic == pytest.approx(1.0)


def test_little_to_judge_by():
    effects = np.random.default_rng(1).normal(size=(6, 3))
    found = by_name(game_checks([values_of(effects, noise=0.05)]))
    assert found["deletion"].passed is None
    assert "fewer than 10" in found["deletion"].note
    alone = by_name(game_checks([values_of(np.tile(effects, (5, 1)), noise=0.05, replicates=1)]))
    assert alone["stability"].passed is None
    assert "one replicate" in alone["deletion"].note


@pytest.mark.parametrize("outcome", ["os", "recurrence", "size"])
def test_checks_of_trained_networks(fold, cohort, outcome):
    found = coalition_values(fold, cohort.data, cohort.ids[90:], outcome=outcome)
    checks = game_checks([found], horizon=HORIZON if outcome == "os" else None)
    assert by_name(checks)["completeness"].passed
    assert by_name(checks)["stability"].statistic is not None
    with pytest.raises(ConfigError, match="expected a horizon"):
        game_checks([dataclasses.replace(found, kind="survival")])


def test_networks_that_learned_nothing_say_something_else(fold, cohort, monkeypatch):
    found = coalition_values(fold, cohort.data, cohort.ids[100:], outcome="os")
    check = randomisation_check(fold, cohort.data, found, horizon=HORIZON)
    assert check.passed, check.line()
    monkeypatch.setattr("medfuse.explain.faithfulness.randomised", lambda fold, seed: fold)
    same = randomisation_check(fold, cohort.data, found, horizon=HORIZON, draws=1)
    assert same.passed is False
    assert same.statistic > 0.99


def test_they_are_kept_and_printed():
    checks = [
        *game_checks([values_of(np.random.default_rng(1).normal(size=(30, 3)), noise=0.1)]),
        *hidden_checks(HiddenCheck(questions=90, spearman=0.5, brier=0.1, brier_base=0.2, crossed=0.3)),
        *hidden_checks(HiddenCheck(questions=1, spearman=np.nan, brier=np.nan, brier_base=np.nan, crossed=np.nan)),
        *NOT_RUN,
    ]
    assert [c.passed for c in checks[5:9]] == [True, True, None, None]
    assert from_json(to_json(checks)) == checks
    assert b"NaN" not in json_bytes(to_json(checks))
    text = "\n".join(check.line() for check in checks)
    assert "passed   sign: " in text
    assert "not run  label randomisation:" in text
