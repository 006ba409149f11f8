"""The flip test of MultiModN: who learned from a test's absence fails when the habit is the other way round."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "mnar_flip.py"
SPEC = importlib.util.spec_from_file_location("mnar_flip", PATH)
flip = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(flip)


def test_balanced_presence_passes_and_dropout_alone_does_not():
    """One seed and small networks."""
    quick = (*flip.FEW, "train.lr=3e-3", "train.epochs=15", "model.width=16", "train.unimodal=false")
    balanced = flip.fitted("presence: balanced", seed=0, patients=400, more=quick)
    assert balanced["clean"] > 0.72  # the oracle's is 0.80
    assert abs(balanced["clean"] - balanced["flipped"]) <= 0.05
    dropout = flip.fitted("dropout alone", seed=0, patients=400, more=quick)
    assert dropout["same habit"] > 0.85  # it reads the absence
    assert dropout["flipped"] < 0.6


@pytest.mark.slow
def test_five_seeds():
    gaps = []
    for seed in range(5):
        found = flip.fitted("presence: balanced", seed=seed, patients=1000)
        gaps.append(found["clean"] - found["flipped"])
        assert found["clean"] > 0.75
    assert abs(np.mean(gaps)) <= 0.05
