"""Mixture summaries of bags, against a mixture that was planted and against the sums written out."""

import math

import pytest
import torch

from medfuse.batch import ModalityShape
from medfuse.models.encoders import PrototypeTokensEncoder
from medfuse.models.prototypes import kmeans

CENTRES = torch.tensor([[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]])


def encoder(prototypes=3, features=3):
    torch.manual_seed(0)
    shape = ModalityShape(layout="vectors", features=features)
    return PrototypeTokensEncoder(shape=shape, width=8, prototypes=prototypes, dropout=0.0).eval()


def planted(n, size, *, seed=0):
    """Bags of three kinds of instances; how many of each a bag has differs."""
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(n, 3, generator=g)
    kind = torch.multinomial(share, size, replacement=True, generator=g)
    counts = torch.stack([(kind == k).sum(1) for k in range(3)], 1)
    return CENTRES[kind] + 0.5 * torch.randn(n, size, 3, generator=g), counts


def begun(n=50, size=40):
    found = encoder()
    tokens, _ = planted(n, size)
    mask = torch.ones(n, size, dtype=torch.bool)
    found.begin(tokens, mask, torch.zeros(n, size, 1))
    return found


def test_k_means_finds_planted_centres_and_is_seeded():
    points, _ = planted(40, 50)
    torch.manual_seed(0)
    centres, nearest = kmeans(points.flatten(0, 1), count=3)
    order = centres.argmax(1).argsort()
    assert torch.allclose(centres[order], CENTRES, atol=0.1)
    assert nearest.shape == (2000,)
    torch.manual_seed(0)
    assert torch.equal(kmeans(points.flatten(0, 1), count=3)[0], centres)


def test_k_means_of_fewer_points_than_centres_is_finite():
    centres, nearest = kmeans(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), count=5)
    assert torch.isfinite(centres).all()
    assert {tuple(centres[k].tolist()) for k in nearest.tolist()} == {(1.0, 1.0), (2.0, 2.0)}


def test_the_summary_of_unseen_bags_is_their_composition():
    found = begun()
    assert found.variance.tolist() == pytest.approx([0.25] * 3, rel=0.15)
    order = found.means.argmax(1)
    tokens, counts = planted(30, 60, seed=1)
    weight, mean, variance = found.summary(tokens, torch.ones(30, 60, dtype=torch.bool))
    assert torch.allclose(weight.sum(1), torch.ones(30), atol=1e-5)
    assert float((weight - (counts[:, order] + found.share) / 61).abs().max()) < 1e-3
    many = counts[:, order] >= 15
    assert float((mean - found.means)[many].abs().max()) < 0.7  # the mean of 15 with deviation 0.5, and one of train
    assert float((variance / found.variance)[many].log().mean().abs()) < 0.2


def test_one_em_step_written_out():
    found = begun()
    x = torch.tensor([[[4.0, 0.5, 0.0], [1.0, 4.0, 0.2], [2.0, 2.0, 2.0]]])
    log = torch.stack([found.share.log() - 0.5 * ((i - found.means).square() / found.variance).sum(1) for i in x[0]])
    q = log.softmax(1)
    weight, mean, variance = found.summary(x, torch.ones(1, 3, dtype=torch.bool))
    for c in range(3):
        n = q[:, c].sum()
        expected = (found.means[c] + (q[:, c, None] * x[0]).sum(0)) / (1 + n)
        square = (found.variance + found.means[c] ** 2 + (q[:, c, None] * x[0] ** 2).sum(0)) / (1 + n)
        assert float(weight[0, c]) == pytest.approx(float((n + found.share[c]) / 4), rel=1e-4)
        assert torch.allclose(mean[0, c], expected, atol=1e-4)
        assert torch.allclose(variance[0, c], (square - expected**2).clamp(min=1e-3 * found.variance), atol=1e-3)


def test_an_empty_bag_is_the_population_and_gets_no_token():
    found = begun()
    tokens, mask = torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool)
    encoded, there = found(tokens, mask, torch.zeros(2, 4, 1))
    assert not there.any()
    assert torch.allclose(encoded[0], found.out.bias + found.kind, atol=1e-4)


def test_long_bags_are_summarised_in_pieces_alike(monkeypatch):
    found = begun()
    tokens, _ = planted(4, 50, seed=2)
    mask = torch.arange(50) < torch.tensor([50, 3, 21, 0])[:, None]
    whole = found.summary(tokens, mask)
    monkeypatch.setattr("medfuse.models.encoders.prototype_tokens._STEP", 7)
    for one, other in zip(whole, found.summary(tokens, mask), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_was_fitted_comes_from_train_and_is_proved_by_a_hash():
    one, other = begun(), begun()
    assert torch.equal(one.fitted, other.fitted)
    assert torch.equal(one.means, other.means)
    assert not torch.equal(one.fitted, begun(49).fitted)
    before = one.means.clone()
    tokens, _ = planted(10, 10, seed=5)
    one.train()(tokens, torch.ones(10, 10, dtype=torch.bool), torch.zeros(10, 10, 1))
    assert torch.equal(one.means, before)


def test_nothing_of_the_size_of_the_bag_is_kept_for_the_backward_pass():
    found = begun().train()
    tokens, _ = planted(2, 3000, seed=3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found(tokens, torch.ones(2, 3000, dtype=torch.bool), torch.zeros(2, 3000, 1))[0].sum().backward()
    assert max(kept) < 1000
    assert math.isfinite(float(found.out.weight.grad.sum()))
