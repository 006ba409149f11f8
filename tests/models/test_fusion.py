import pytest
import torch

from medfuse.errors import ConfigError
from medfuse.models.fusion import ConcatFusion, LateFusion, TransformerFusion

PRESENT = torch.tensor([[True, True], [True, False], [False, False]])


def parts(seed=0, width=8):
    g = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(3, 2, width, generator=g), torch.randn(3, 3, width, generator=g)]
    masks = [PRESENT[:, i, None].expand(3, t.shape[1]) for i, t in enumerate(tokens)]
    return tokens, masks, PRESENT


def test_late_weights_are_equal_over_the_present_and_the_learned_state_serves_the_rest():
    fused = LateFusion(modalities=("a", "b"), width=8)(*parts())
    assert fused.weights.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert fused.states.shape == (3, 3, 8)


def test_late_learned_weights_are_a_softmax_over_the_present():
    fusion = LateFusion(modalities=("a", "b"), width=8, weighting="learned")
    with torch.no_grad():
        fusion.preference.copy_(torch.tensor([0.0, 3.0]).log1p())
    fused = fusion(*parts())
    expected = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(fused.weights, expected)


def test_a_late_state_depends_on_its_modality_only():
    fusion = LateFusion(modalities=("a", "b"), width=8).eval()
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    moved = fusion([tokens[0], tokens[1] + torch.randn(8)], masks, present).states
    assert torch.equal(base[:, 0], moved[:, 0])
    assert (base[0, 1] != moved[0, 1]).any()
    assert torch.equal(base[:, 2], moved[:, 2])


def test_concat_tells_absent_from_an_average_of_zero():
    fusion = ConcatFusion(modalities=("a", "b"), width=8).eval()
    with torch.no_grad():
        for norm in fusion.norms:
            norm.bias.zero_()
    tokens, masks, _ = parts()
    zeros = [torch.zeros_like(t) for t in tokens]
    with_flag = fusion(zeros, masks, torch.tensor([[True, True]] * 3)).states
    without = fusion(zeros, masks, torch.tensor([[True, False]] * 3)).states
    assert (with_flag != without).any()


def test_concat_gives_an_absent_modality_nothing_but_its_flag():
    fusion = ConcatFusion(modalities=("a", "b"), width=8).eval()
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    with torch.no_grad():
        fusion.norms[1].bias += 1.0
    moved = fusion(tokens, masks, present).states
    assert (base != moved).any(-1)[:, 0].tolist() == present[:, 1].tolist()


def test_the_late_residual_of_an_absent_modality_is_nothing():
    fusion = TransformerFusion(modalities=("a", "b"), width=8, heads=2, residual=True).eval()
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    with torch.no_grad():
        fusion.own[1].bias += 1.0
    moved = fusion(tokens, masks, present).states
    assert (base != moved).any(-1)[:, 0].tolist() == present[:, 1].tolist()


def test_transformer_state_does_not_depend_on_the_order_of_tokens():
    fusion = TransformerFusion(modalities=("a", "b"), width=8, heads=2).eval()
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    mixed = fusion([tokens[0].flip(1), tokens[1][:, [2, 0, 1]]], masks, present).states
    assert torch.allclose(base, mixed, atol=1e-5)
    swapped = fusion([tokens[0], tokens[1] * -1], masks, present).states
    assert (base[0] != swapped[0]).any()


def test_the_last_layer_computes_the_patient_token_alone_and_alike():
    torch.manual_seed(0)
    fusion = TransformerFusion(modalities=("a", "b"), width=8, heads=2, depth=1).eval()
    x, mask = torch.randn(3, 6, 8), torch.ones(3, 6, dtype=torch.bool)
    block = fusion.blocks[0]
    assert torch.allclose(block(x, mask, queries=1), block(x, mask)[:, :1], atol=1e-6)


@pytest.mark.parametrize(
    ("fusion", "options", "message"),
    [
        (TransformerFusion, {"heads": 3}, "heads: expected a divisor of the width 8, found 3"),
        (TransformerFusion, {"depth": 0}, "depth: expected a whole number >= 1"),
        (TransformerFusion, {"dropout": 1.0}, "dropout: expected a rate"),
        (LateFusion, {"weighting": "learnt"}, 'did you mean "learned"'),
        (ConcatFusion, {"hidden": -1}, "hidden: expected a whole number"),
    ],
)
def test_fusions_refuse_options_out_of_range(fusion, options, message):
    with pytest.raises(ConfigError, match=message):
        fusion(modalities=("a", "b"), width=8, **options)
