import math

import pytest
import torch

from medfuse.errors import ConfigError
from medfuse.models.attention import GatedPooling, MultiHeadAttention, masked_mean, masked_softmax
from medfuse.models.cost import FlopCounter

MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


def test_masked_softmax_by_hand():
    scores = torch.tensor([[0.0, math.log(3.0), 50.0]] * 3)
    expected = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(masked_softmax(scores, MASK), expected)
    assert torch.allclose(masked_softmax(scores.T, MASK.T, dim=0), expected.T)


def test_masked_softmax_has_finite_gradients_with_everything_masked():
    scores = torch.zeros(3, 3, requires_grad=True)
    (masked_softmax(scores, MASK) * torch.arange(3.0)).sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[2] == 0).all()


def test_masked_mean_by_hand():
    tokens = torch.tensor([[[2.0], [4.0], [9.0]]]).expand(3, 3, 1)
    assert masked_mean(tokens, MASK)[:, 0].tolist() == [3.0, 2.0, 0.0]


def test_attention_equals_torch():
    torch.manual_seed(0)
    ours = MultiHeadAttention(8, heads=2)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(8), ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, queries = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    mask = MASK[:2]
    expected, _ = theirs(queries, x, x, key_padding_mask=~mask)
    assert torch.allclose(ours(queries, x, mask), expected, atol=1e-6)


@pytest.mark.parametrize("heads", [3, 0])
def test_attention_refuses_heads_that_do_not_divide_the_width(heads):
    with pytest.raises(ConfigError, match="heads: expected"):
        MultiHeadAttention(8, heads=heads)


def test_gated_pooling_gives_means_with_weights_that_sum_to_one():
    torch.manual_seed(0)
    pool = GatedPooling(4, tokens=2, hidden=5)
    tokens = torch.randn(3, 3, 4)
    pooled, weights = pool(tokens, MASK)
    assert pooled.shape == (3, 2, 4)
    assert torch.allclose(weights.sum(-1), torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert (weights[:, :, 2] == 0).all()
    assert torch.allclose(pooled[1], tokens[1, :1].expand(2, 4))
    assert (pooled[2] == 0).all()


def test_the_arithmetic_of_attention_by_hand():
    """Four maps and two products; torch's own counter leaves attention on a CPU out."""
    attention = MultiHeadAttention(8, heads=2).eval()
    queries, keys = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    for graph in (True, False):
        with torch.set_grad_enabled(graph), FlopCounter() as counter:
            attention(queries, keys, torch.ones(3, 5, dtype=torch.bool))
        assert counter.total == 2 * 3 * (2 * (2 + 5) * 8 * 8 + 2 * 2 * 5 * 8)
