"""Folds whose patterns are moved as a test wishes."""

import dataclasses

import numpy as np

from medfuse.training.patterns import Patterns


def with_patterns(fold, patterns=None):
    """The same fold with other patterns, by outcome; none where an outcome has none."""
    ensembles = {
        outcome: {name: dataclasses.replace(e, patterns=(patterns or {}).get(outcome)) for name, e in variants.items()}
        for outcome, variants in fold.ensembles.items()
    }
    return dataclasses.replace(fold, ensembles=ensembles)


def with_any_patterns(fold, seed=5):
    """The same fold with patterns drawn at random, all but one of them moved."""
    draw = np.random.default_rng(seed)
    found = {}
    for outcome, variants in fold.ensembles.items():
        e = variants["chosen"]
        shape = (1 << len(fold.modalities), e.level.shape[0])
        slope = np.repeat(draw.uniform(0.3, 1.5, size=(shape[0], 1)), shape[1], axis=1)
        level = draw.normal(size=shape)
        level = np.sort(level, axis=1) if e.times is not None else level
        slope[2], level[2] = 1.0, 0.0
        found[outcome] = Patterns(slope=slope, level=level, fitted=np.arange(shape[0]) != 2)
    return with_patterns(fold, found)
