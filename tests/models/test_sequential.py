from dataclasses import replace

import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch, settings_for

from medfuse.batch import without_modality
from medfuse.errors import ModelError
from medfuse.models import build_model, increments
from medfuse.models.fusion import SequentialFusion

NAMES = ("a", "b", "c")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])


def parts(seed=0, width=8):
    g = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(4, k, width, generator=g) for k in (1, 2, 3)]
    masks = [PRESENT[:, i, None].expand(4, t.shape[1]) for i, t in enumerate(tokens)]
    return tokens, masks, PRESENT


def build(**options):
    torch.manual_seed(0)
    return SequentialFusion(modalities=NAMES, width=8, **{"dropout": 0.0, **options}).eval()


def model_of(names, **options):
    torch.manual_seed(0)
    settings = replace(settings_for("sequential"), fusion={"name": "sequential", **options})
    model = build_model(settings, shapes={name: SHAPES[name] for name in names}, heads=HEADS_OF).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, make_batch(names=names)


def test_a_step_by_hand():
    fusion = build(order=NAMES)
    tokens, masks, present = parts()
    state = fusion.start.expand(4, -1)
    for step, token, there in zip(fusion.steps, tokens, present.T, strict=True):
        state = state + there[:, None] * step(state, token.mean(1))
    assert torch.allclose(fusion(tokens, masks, present).states[:, 0], fusion.norm(state), atol=1e-6)


def test_readouts_are_the_states_before_the_last_of_those_who_took_the_step():
    fusion = build(order=["c", "a", "b"], auxiliary=0.6).train()
    fused = fusion(*parts())
    assert [readout.included.tolist() for readout in fused.readouts] == [
        [True] * 4,
        PRESENT[:, 2].tolist(),
        PRESENT[:, 0].tolist(),
    ]
    assert [readout.weight for readout in fused.readouts] == [pytest.approx(0.2)] * 3
    assert torch.equal(fused.readouts[0].states, fusion.norm(fusion.start).expand(4, -1))
    assert fusion.eval()(*parts()).readouts == ()


def test_the_penalty_is_the_mean_change_over_the_steps_that_were_taken():
    fusion = build(order=NAMES, state_change=0.5).train()
    tokens, masks, present = parts()
    fused = fusion(tokens, masks, present)
    state, changes = fusion.start.expand(4, -1), []
    for step, token, there in zip(fusion.steps, tokens, present.T, strict=True):
        change = step(state, token.mean(1))
        changes += change[there].square().mean(1).tolist()
        state = state + there[:, None] * change
    assert len(changes) == int(PRESENT.sum())
    expected = 0.5 * sum(changes) / len(changes)
    assert float(fusion.penalties(fused, {})["state_change"].detach()) == pytest.approx(expected, rel=1e-5)
    assert build(state_change=0.0).penalties(fused, {}) == {}


def test_the_scale_of_the_penalty_does_not_fall_with_missingness():
    fusion = build(order=NAMES).train()
    tokens, masks, _ = parts()
    for only in (torch.tensor([[True] * 3] * 4), torch.tensor([[True] * 3] + [[False] * 3] * 3)):
        same = [t[:1].expand_as(t) for t in tokens]
        found = fusion.penalties(fusion(same, [torch.ones_like(m) for m in masks], only), {})["state_change"]
        expected = fusion.penalties(fusion([t[:1] for t in same], [m[:1] for m in masks], only[:1]), {})["state_change"]
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("names", [tuple(SHAPES), tuple(SHAPES)[:3]])
def test_increments_add_up_to_everything_minus_nothing(names):
    model, batch = model_of(names)
    empty = batch
    for name in names:
        empty = without_modality(empty, name)
    for outcome in ("os", "grade"):
        found = increments(model, batch, outcome)
        expected = (model(batch)[outcome] - model(empty)[outcome]).detach()
        assert torch.allclose(found.sum(1), expected, atol=1e-5)
        assert (found[~batch.present] == 0).all()
        assert (found[batch.present].abs().sum(-1) > 0).all()


def test_increments_of_two_from_the_subsets_and_the_single_orders():
    """phi_a = 1/2 [v(a) - v() + v(b then a) - v(b)]."""
    model, batch = model_of(("table", "wide"))
    batch = batch.select([3, 7])
    assert batch.present.all()
    values = {}
    for order in (("table", "wide"), ("wide", "table")):
        ordered = replace(settings_for("sequential"), fusion={"name": "sequential", "order": list(order)})
        other = build_model(ordered, shapes={m: SHAPES[m] for m in ("table", "wide")}, heads=HEADS_OF).eval()
        other.load_state_dict(model.state_dict())
        values[order] = other(batch)["os"]
    alone = {m: model(without_modality(batch, m))["os"] for m in ("table", "wide")}  # without the named one
    nothing = model(without_modality(without_modality(batch, "table"), "wide"))["os"]
    expected = 0.5 * (alone["wide"] - nothing + values["wide", "table"] - alone["table"])
    assert torch.allclose(increments(model, batch, "os")[:, 0], expected, atol=1e-5)


def test_increments_refuse_another_fusion_or_training():
    model, batch = model_of(("table", "wide"))
    with pytest.raises(ModelError, match="SequentialFusion in training"):
        increments(model.train(), batch, "os")
    late = build_model(settings_for("late"), shapes=SHAPES, heads=HEADS_OF).eval()
    with pytest.raises(ModelError, match="LateFusion"):
        increments(late, make_batch(), "os")
    with pytest.raises(ModelError, match='no outcome "oss"'):
        increments(model.eval(), batch, "oss")
