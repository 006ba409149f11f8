from dataclasses import replace

import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch, settings_for

from medfuse.models import build_model
from medfuse.models.fusion import TransformerFusion
from medfuse.models.fusion.recovery import Recovery, kept_at_random
from medfuse.models.fusion.transformer import even_shares
from medfuse.models.packing import pack

NAMES = ("a", "b", "c")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])


def parts(seed=0, width=8):
    g = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(4, k, width, generator=g) for k in (1, 2, 3)]
    masks = [PRESENT[:, i, None].expand(4, t.shape[1]) for i, t in enumerate(tokens)]
    return tokens, masks, PRESENT


def build(**options):
    torch.manual_seed(0)
    return TransformerFusion(modalities=NAMES, width=8, heads=2, **options)


# --- packed -------------------------------------------------------------------------------------------------------


def test_packing_puts_patients_of_equal_length_together_and_finds_them_again():
    mask = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]).bool()
    tokens = torch.arange(16.0).view(4, 4, 1)
    packing = pack(mask)
    assert packing.groups == ((1, 1), (1, 2), (2, 3))
    assert packing.take(tokens)[:, 0].tolist() == [4, 12, 15, 0, 2, 3, 8, 9, 10]
    assert packing.take(tokens)[packing.first][packing.back][:, 0].tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"recovery": 1.0}, {"residual": True}, {"even": True}, {"even": True, "recovery": 1.0}]
)
def test_packed_equals_unpacked_in_values_and_gradients(depth, options):
    given = {"depth": depth, "dropout": 0.0, "token_dropout": 0.0, **options}
    batch, found = make_batch(48), []
    for packed in (False, True):
        torch.manual_seed(0)
        fusion = {"name": "transformer", "packed": packed, **given}
        model = build_model(replace(settings_for("transformer"), fusion=fusion), shapes=SHAPES, heads=HEADS_OF)
        for module in model.encoders.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "column_dropout"):
                module.column_dropout = 0.0
        torch.manual_seed(1)  # of what the recovery hides
        model.train()
        loss = model.loss(batch)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((torch.cat(list(model.eval()(batch).values()), 1).detach(), loss.detach(), gradients))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-5


# --- an even share of attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"packed": True, "depth": 3}, {"recovery": 1.0}])
def test_a_modality_whose_tokens_are_all_repeated_says_the_same(options):
    tokens, masks, present = parts()
    masks[2] = masks[2] & torch.tensor([True, True, False])  # padding is no token
    twice = [tokens[0], tokens[1], tokens[2].repeat(1, 5, 1)], [masks[0], masks[1], masks[2].repeat(1, 5)]
    found = {}
    for even in (False, True):
        fusion = build(even=even, **options).eval()
        found[even] = (fusion(*twice, present).states - fusion(tokens, masks, present).states).abs().amax((1, 2))
    assert found[True].max() < 1e-5
    assert (found[False][PRESENT[:, 2]] > 1e-2).all()


def test_before_anything_is_learned_each_modality_has_the_same_share_of_attention():
    _, masks, _ = parts()
    share = torch.softmax(even_shares(masks).masked_fill(~torch.cat([PRESENT.new_ones(4, 1), *masks], 1), -1e9), 1)
    each = torch.stack([part.sum(1) for part in share.split([1, 1, 2, 3], dim=1)], dim=1)
    told = torch.cat([torch.ones(4, 1), PRESENT.float()], 1)
    torch.testing.assert_close(each, told / told.sum(1, keepdim=True))


def test_of_one_modality_there_is_nothing_to_weigh():
    tokens, masks, present = parts()
    states = []
    for even in (False, True):
        torch.manual_seed(0)
        fusion = TransformerFusion(modalities=("c",), width=8, heads=2, even=even).eval()
        states.append(fusion(tokens[2:], masks[2:], present[:, 2:]).states)
    assert torch.equal(*states)


# --- a readout of each modality alone -----------------------------------------------------------------------------


def test_a_readout_of_a_modality_depends_on_it_alone():
    fusion = build(unimodal_aux=0.6, token_dropout=0.0).train()
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).readouts
    assert [r.included.tolist() for r in base] == PRESENT.T.tolist()
    assert [r.weight for r in base] == [pytest.approx(0.2)] * 3
    moved = fusion([tokens[0], tokens[1] + torch.randn(8), tokens[2]], masks, present).readouts
    changed = [
        bool((a.states != b.states)[PRESENT[:, m]].any()) for m, (a, b) in enumerate(zip(base, moved, strict=True))
    ]
    assert changed == [False, True, False]
    assert fusion.eval()(tokens, masks, present).readouts == ()
    assert build().train()(*parts()).readouts == ()


# --- recovery -----------------------------------------------------------------------------------------------------


def test_every_number_of_kept_modalities_is_drawn_alike():
    torch.manual_seed(0)
    present = torch.tensor([[True, True, False, True]]).expand(9000, 4)
    kept = kept_at_random(present)
    assert not (kept & ~present).any()
    for k in (1, 2, 3):
        assert abs(float((kept.sum(1) == k).float().mean()) - 1 / 3) < 0.03
    assert kept[kept.sum(1) == 1].float().mean(0)[[0, 1, 3]].sub(1 / 3).abs().max() < 0.05
    assert not kept_at_random(torch.zeros(3, 2, dtype=torch.bool)).any()
    assert kept_at_random(torch.eye(3, dtype=torch.bool)).equal(torch.eye(3, dtype=torch.bool))


def recovery(**options):
    torch.manual_seed(0)
    return Recovery(NAMES, width=8, heads=2, dropout=0.0, **options)


def test_hidden_content_does_not_enter_its_own_recovery():
    module = recovery()
    summaries = torch.randn(4, 3, 8)
    base = module(summaries, PRESENT)
    other = torch.where(PRESENT[..., None], summaries, torch.nan)
    assert torch.equal(module(other, PRESENT), base)
    moved = module(summaries + PRESENT[..., None] * torch.randn(3, 8), PRESENT)
    assert (base != moved).flatten(1).any(1).tolist() == [True, True, True, False]


def test_slots_follow_their_modality():
    """Modalities in another order, with their codes, give the same summaries in that order."""
    module, order = recovery(), [2, 0, 1]
    summaries = torch.randn(4, 3, 8)
    base = module(summaries, PRESENT)
    with torch.no_grad():
        module.modality.copy_(module.modality[order].clone())
    assert torch.allclose(module(summaries[:, order], PRESENT[:, order]), base[:, order], atol=1e-6)


def test_the_recovery_loss_counts_what_was_hidden_and_teaches_no_encoder():
    fusion = build(recovery=0.5, dropout=0.0, token_dropout=0.0).train()
    tokens, masks, present = parts()
    tokens = [t.requires_grad_() for t in tokens]
    torch.manual_seed(3)
    fused = fusion(tokens, masks, present)
    hidden, error = fused.parts["hidden"], fused.parts["error"]
    assert hidden.any()
    assert not (hidden & ~present).any()
    assert not hidden.all(1).any()
    assert (error[~hidden] == 0).all()
    assert (error[hidden] > 0).all()
    penalty = fusion.penalties(fused, {})["recovery"]
    assert float(penalty.detach()) == pytest.approx(0.5 * float(error[hidden].mean().detach()), rel=1e-5)
    penalty.backward()
    assert all(t.grad is None for t in tokens)
    assert (fusion.recovery.out.weight.grad != 0).any()
    assert fusion.penalties(fusion.eval()(*parts()), {}) == {}


def test_a_recovered_token_stands_for_absent_modalities_alone():
    fusion = build(recovery=1.0).eval()
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    with torch.no_grad():
        fusion.recovery.mark.add_(torch.linspace(-1, 1, len(fusion.recovery.mark)))  # a constant, layer norm takes away
    moved = fusion(tokens, masks, present).states
    assert (base != moved).any(-1)[:, 0].tolist() == [False, True, True, True]


def test_recovery_learns_what_one_modality_says_of_another():
    g = torch.Generator().manual_seed(0)
    summary = torch.nn.functional.layer_norm(torch.randn(400, 8, generator=g), (8,))
    summaries, present = torch.stack([summary, summary.flip(1)], dim=1), torch.ones(400, 2, dtype=torch.bool)
    torch.manual_seed(0)
    module = Recovery(("a", "b"), width=8, heads=2, dropout=0.0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(120):
        error, hidden = module.errors(summaries[:300], present[:300])
        optimizer.zero_grad()
        (error.sum() / hidden.sum()).backward()
        optimizer.step()
    error, hidden = module.errors(summaries[300:], present[300:])
    assert float((error.sum() / hidden.sum()).detach()) < 0.5  # the mean alone leaves 1
