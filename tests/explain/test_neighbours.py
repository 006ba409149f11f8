"""Embeddings and similar patients (V4): training patients only, as available at least, and able to say nobody."""

import dataclasses

import numpy as np
import pytest

from medfuse.errors import ModelError
from medfuse.explain.embedding import Embeddings, distances, embed
from medfuse.explain.neighbours import FEWEST, neighbours
from medfuse.targets import Survival


@pytest.fixture(scope="module")
def found(fold, cohort):
    inner = [split.tuning for split in cohort.inner(cohort.ids[:110])]
    return embed(fold, cohort.data, cohort.ids[110:], inner=inner)


def test_embeddings_are_standardised_on_train_and_absent_where_the_modality_is(found, cohort):
    for i, name in enumerate(found.modalities):
        has = np.array([p in cohort.data[name].samples for p in found.train_ids])
        assert np.array_equal(found.train_present[:, i], has)
        own = found.train[has, i]
        varies = own.std(axis=0) > 1e-3
        assert varies.sum() >= 8
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(own.std(axis=0)[varies], 1, atol=1e-4)
    assert found.unseen.sum() == 55


def test_an_embedding_depends_on_its_own_modality_alone(fold, cohort, found):
    without = {name: dataclasses.replace(m, samples={}) for name, m in cohort.data.items() if name != "stains"}
    alone = embed(fold, {**without, "stains": cohort.data["stains"]}, cohort.ids[110:])
    column = fold.modalities.index("stains")
    np.testing.assert_allclose(alone.held_out[:, column], found.held_out[:, column], atol=1e-4)
    assert np.isnan(np.delete(alone.held_out, column, axis=1)).all()
    assert not alone.unseen.any()


def test_neighbours_are_training_patients_who_have_as_much(found, cohort):
    near = neighbours(found, k=8)
    assert not set(near.train_ids) & set(near.patient_ids)
    for i in range(len(near.patient_ids)):
        rows = near.row[i][near.row[i] >= 0]
        assert (found.train_present[rows] >= near.present[i]).all()
        assert (np.diff(near.distance[i][: len(rows)]) >= 0).all()
        assert (np.diff(near.percentile[i][: len(rows)]) >= 0).all()
    shown = near.patient_ids[int(np.flatnonzero(near.comparable)[0])]
    assert {i for i, _, _ in near.of(shown)} <= set(cohort.ids[:110])


def made(n, rng, m=2, d=6, offset=0.0):
    return (rng.normal(size=(n, m, d)) + offset).astype(np.float32)


def embeddings(train, held_out):
    n, t = len(held_out), len(train)
    return Embeddings(
        modalities=("a", "b"),
        train_ids=tuple(f"t{i}" for i in range(t)),
        patient_ids=tuple(f"p{i}" for i in range(n)),
        train=train,
        held_out=held_out,
        unseen=np.arange(t) < t // 2,
    )


def test_about_one_patient_in_twenty_like_the_training_ones_has_nobody_comparable():
    rng = np.random.default_rng(0)
    near = neighbours(embeddings(made(600, rng), made(1000, rng)))
    assert 0.02 <= 1 - near.comparable.mean() <= 0.09
    assert (near.close[near.comparable] >= FEWEST).all()


def test_a_stranger_has_nobody_comparable():
    """V4: training patients in a narrow cone, the stranger on the other side."""
    rng = np.random.default_rng(1)
    train = made(200, rng, offset=4.0)
    near = neighbours(embeddings(train, np.stack([-train[0], train[1] + 0.01])))
    assert list(near.comparable) == [False, True]
    assert near.of("p0") == []
    assert near.of("p1")[0][0] == "t1"
    target = Survival(event=np.ones(200, dtype=bool), time=np.arange(200.0) + 1)
    assert near.curve("p0", target) is None
    curve = near.curve("p1", target)
    assert curve is not None
    assert len(curve.times) == 20
    with pytest.raises(ModelError, match="found p9"):
        near.of("p9")
    with pytest.raises(ModelError, match="expected outcomes of 200"):
        near.curve("p1", target.take(np.arange(5)))


def test_few_training_patients_and_patients_without_anything():
    rng = np.random.default_rng(2)
    train = made(30, rng)
    train[4:, 1] = np.nan
    held = made(3, rng)
    held[1, 1] = np.nan
    held[2] = np.nan
    near = neighbours(embeddings(train, held))
    assert not near.comparable[0], "only 4 training patients have both"
    assert (near.row[0] >= 0).sum() == 4
    assert (near.row[1] >= 0).all()
    assert (near.row[2] == -1).all()
    assert not near.comparable[2]


def test_distances():
    a = np.array([[[1.0, 0.0], [0.0, 1.0]]], dtype=np.float32)
    b = np.array([[[2.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [0.0, -1.0]], [[1, 0], [np.nan, 0]]], dtype=np.float32)
    both = distances(a, b, np.array([True, True]))
    np.testing.assert_allclose(both[0, :2], [0, 2], atol=1e-12)
    assert np.isinf(both[0, 2])
    np.testing.assert_allclose(distances(a, b, np.array([True, False]))[0], [0, 2, 0], atol=1e-12)
    assert (distances(a, b, np.array([False, False])) == 0).all()
