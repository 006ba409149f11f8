import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch

from medfuse.errors import ConfigError
from medfuse.models import ModelSettings, build_model
from medfuse.models.fusion import CascadeFusion
from medfuse.models.fusion.orders import balanced_orders, draw_order

NAMES = ("a", "b", "c")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])


def parts(seed=0, width=8):
    g = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(4, k, width, generator=g) for k in (1, 2, 3)]
    masks = [PRESENT[:, i, None].expand(4, t.shape[1]) for i, t in enumerate(tokens)]
    return tokens, masks, PRESENT


def build(**options):
    torch.manual_seed(0)
    return CascadeFusion(modalities=NAMES, width=8, heads=2, **options).eval()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
def test_orders_give_every_place_and_every_pair_alike(m):
    orders = balanced_orders(m)
    assert len(set(orders)) == len(orders) == (1, 2, 6, 8, 10, None, None, 16)[m - 1]
    for i in range(m):
        assert len({sum(order[place] == i for order in orders) for place in range(m)}) == 1
        for j in range(i):
            first = sum(order.index(i) < order.index(j) for order in orders)
            assert 2 * first == len(orders)


def test_every_order_is_drawn_from_the_global_generator():
    torch.manual_seed(0)
    drawn = {draw_order(3) for _ in range(60)}
    assert drawn == set(balanced_orders(3))


def test_an_absent_modality_leaves_the_queries_unchanged():
    fusion = build(order=NAMES)
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    with torch.no_grad():
        for parameter in fusion.stages[1].parameters():
            parameter.add_(1.0)
    moved = fusion(tokens, masks, present).states
    assert (base != moved).any(-1)[:, 0].tolist() == present[:, 1].tolist()


def test_evaluation_averages_over_orders_and_one_order_is_one_of_them():
    shuffled, fixed = build(), build(order=["c", "a", "b"])
    fused = shuffled(*parts())
    assert fused.states.shape == (4, 6, 8)
    assert torch.allclose(fused.weights, torch.full((4, 6), 1 / 6))
    place = balanced_orders(3).index((2, 0, 1))
    assert torch.equal(fused.states[:, place], fixed(*parts()).states[:, 0])
    assert (fused.states[0].unique(dim=0).shape[0]) == 6  # the order does matter
    assert torch.allclose(fused.states[2], fused.states[2, :1].expand(6, -1))  # one modality: it does not


def test_training_reads_one_order_with_a_readout_per_stage_but_the_last():
    fusion = build(auxiliary=0.25).train()
    fused = fusion(*parts())
    assert fused.states.shape == (4, 1, 8)
    assert [readout.weight for readout in fused.readouts] == [0.25, 0.25]
    columns = PRESENT.T.tolist()
    assert all(readout.included.tolist() in columns for readout in fused.readouts)
    assert fusion.eval()(*parts()).readouts == ()
    assert build(auxiliary=0.0).train()(*parts()).readouts == ()


def test_training_draws_the_same_orders_from_the_same_seed():
    fusion = build(dropout=0.0, token_dropout=0.0).train()
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(torch.cat([fusion(*parts()).states for _ in range(6)]))
    assert torch.equal(*runs)
    assert runs[0][:4].unsqueeze(0).eq(runs[0].view(6, 4, 1, 8)[1:]).flatten(1).all(1).sum() < 5  # and several of them


def test_readouts_see_the_stages_before_them_alone():
    fusion = build(order=NAMES, dropout=0.0, token_dropout=0.0, residual=True).train()
    tokens, masks, present = parts()
    base = [readout.states for readout in fusion(tokens, masks, present).readouts]
    moved = [r.states for r in fusion([tokens[0], tokens[1] + torch.randn(8), tokens[2]], masks, present).readouts]
    assert torch.equal(base[0], moved[0])
    assert (base[1] != moved[1]).any(1).tolist() == present[:, 1].tolist()


def test_attention_is_never_empty_nor_constant():
    fusion = build(order=NAMES, latents=2)
    tokens, masks, present = parts()
    single = fusion.stages[0].read
    single(torch.randn(4, 2, 8), tokens[0], masks[0]).square().sum().backward()
    assert (single.attention.query.weight.grad != 0).any()  # one key alone would not move the queries
    assert (single.null.grad != 0).any()
    nobody = fusion(tokens, [torch.zeros_like(m) for m in masks], torch.zeros_like(present))
    nobody.states.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters() if p.grad is not None)


def test_the_order_of_a_recipe_does_not_matter_to_a_network_of_one_modality():
    given = {"width": 8, "fusion": {"name": "cascade", "order": list(SHAPES), "heads": 2}}
    model = build_model(ModelSettings(**given), shapes={"bag": SHAPES["bag"]}, heads=HEADS_OF)
    assert model.eval().predict(make_batch(names=("bag",)))["os"]["risk_score"].shape == (24,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": ["a", "b", "d"]}, 'found "d"'),
        ({"order": ["a", "b"]}, "each of a, b, c once, found a, b"),
        ({"order": "shufled"}, 'expected "shuffled"'),
        ({"latents": 0}, "latents: expected"),
        ({"auxiliary": -1.0}, "auxiliary: expected a weight"),
    ],
)
def test_cascade_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
