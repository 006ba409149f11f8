from dataclasses import replace

import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch, settings_for

from medfuse.errors import ConfigError
from medfuse.models import build_model
from medfuse.models.fusion import PrimeFusion, StackedFusion

NAMES = ("a", "b", "c")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])


def parts(seed=0, width=8, present=PRESENT):
    g = torch.Generator().manual_seed(seed)
    n = len(present)
    tokens = [torch.randn(n, k, width, generator=g) for k in (1, 2, 3)]
    masks = [present[:, i, None].expand(n, t.shape[1]) for i, t in enumerate(tokens)]
    return tokens, masks, present


def build(kind, **options):
    torch.manual_seed(0)
    return kind(modalities=NAMES, width=8, **{"dropout": 0.0, **options})


def test_the_prime_modality_alone_is_read_where_it_is():
    fusion = build(PrimeFusion, prime="b").eval()
    assert fusion.uses(PRESENT).tolist() == [
        [False, True, False],
        [True, False, True],
        [False, True, False],
        [False, False, False],
    ]
    weights = fusion(*parts()).weights
    expected = [[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float32))


def test_evaluation_takes_the_mean_of_the_code_and_training_draws():
    fusion = build(PrimeFusion)
    assert not torch.equal(fusion.train()(*parts()).states[:, 0], fusion(*parts()).states[:, 0])
    assert torch.equal(fusion.eval()(*parts()).states, fusion(*parts()).states)
    assert fusion(*parts()).readouts == ()


def test_targets_are_detached_and_learn_by_their_own_readouts():
    fusion = build(PrimeFusion, bottleneck=0.0).train()
    tokens, masks, present = parts()
    tokens = [t.requires_grad_() for t in tokens]
    fused = fusion(tokens, masks, present)
    fusion.penalties(fused, {})["reconstruction"].backward()
    assert (tokens[0].grad[:2] != 0).any()
    assert tokens[1].grad is None
    assert [readout.included.tolist() for readout in fused.readouts] == [PRESENT[:, 1].tolist(), PRESENT[:, 2].tolist()]
    torch.stack([r.states for r in fused.readouts]).square().sum().backward()
    assert tokens[1].grad is not None


def test_terms_count_only_who_has_both_and_do_not_fall_with_missingness():
    fusion = build(PrimeFusion).train()
    everybody = torch.ones(4, 3, dtype=torch.bool)
    tokens, masks, _ = parts(present=everybody)

    def terms(present):
        torch.manual_seed(1)
        found = fusion.penalties(fusion(tokens, masks, present), {})
        return {name: float(term.detach()) for name, term in found.items()}

    present = everybody.clone()
    present[1:, 1:] = False  # targets of the first patient alone
    torch.manual_seed(1)
    fused = fusion(tokens, masks, everybody)
    mine = float((fused.parts["error1"][0] + fused.parts["error2"][0]).detach()) / 2
    assert terms(present)["reconstruction"] == pytest.approx(fusion.reconstruction * mine, rel=1e-5)
    assert terms(present)["bottleneck"] == pytest.approx(terms(everybody)["bottleneck"], rel=1e-6)
    nobody = torch.zeros(4, 3, dtype=torch.bool)
    assert terms(nobody) == {"bottleneck": 0.0, "reconstruction": 0.0}


def test_the_divergence_by_hand():
    fusion = build(PrimeFusion, bottleneck=1.0, code=3).train()
    tokens, masks, present = parts()
    mean, log_variance = fusion.encode(fusion.norms[0](tokens[0].mean(1))).chunk(2, dim=1)
    own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean(1)[:2].mean()
    found = fusion.penalties(fusion(tokens, masks, present), {})["bottleneck"]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_code_learns_what_the_prime_modality_says_of_another():
    """b is a rotation of a: the decoder must beat the mean of the target on patients it never saw."""
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
    a = torch.randn(600, 1, 8, generator=g)
    present = torch.ones(600, 2, dtype=torch.bool)
    tokens = [a, a @ turn]
    torch.manual_seed(0)
    fusion = PrimeFusion(modalities=("a", "b"), width=8, dropout=0.0, bottleneck=1e-3, reconstruction=1.0)
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-2)

    def error(rows):
        fused = fusion([t[rows] for t in tokens], [present[rows, :1]] * 2, present[rows])
        return sum(fusion.penalties(fused, {}).values())

    fusion.train()
    for _ in range(150):
        optimizer.zero_grad()
        error(slice(0, 500)).backward()
        optimizer.step()
    assert float(error(slice(500, 600)).detach()) < 0.5  # the target is normalised: its mean alone leaves about 1


def test_prime_of_a_network_of_one_modality_and_refusals():
    settings = replace(settings_for("prime"), fusion={"name": "prime", "prime": "wide"})
    model = build_model(settings, shapes={"bag": SHAPES["bag"]}, heads=HEADS_OF)
    model.train().loss(make_batch(names=("bag",))).backward()
    with pytest.raises(ConfigError, match='did you mean "wide"'):
        build_model(replace(settings, fusion={"name": "prime", "prime": "wid"}), shapes=SHAPES, heads=HEADS_OF)
    with pytest.raises(ConfigError, match="code: expected"):
        build(PrimeFusion, code=0)


def test_the_combination_reaches_no_state_and_readouts_do():
    fusion = build(StackedFusion).train()
    tokens, masks, present = parts()
    tokens = [t.requires_grad_() for t in tokens]
    fused = fusion(tokens, masks, present)
    (fused.states.sum((1, 2)) * fused.weights[:, 0]).sum().backward()
    assert all(t.grad is None for t in tokens)
    assert all(p.grad is None for p in fusion.own.parameters())
    assert (fusion.preference.grad != 0).any()
    assert (fusion.gain.grad != 0).any()
    fused.readouts[1].states.sum().backward()
    assert tokens[0].grad is None
    assert tokens[1].grad is not None
    assert [r.included.tolist() for r in fused.readouts] == PRESENT.T.tolist()


def test_weights_and_gain_by_hand():
    fusion = build(StackedFusion).eval()
    with torch.no_grad():
        fusion.preference.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        fusion.gain.copy_(torch.tensor([1.0, 2.0, 3.0]).expm1().log())  # softplus of these is 1, 2, 3
    tokens, masks, present = parts()
    fused = fusion(tokens, masks, present)
    expected = torch.tensor([[1 / 6, 2 / 6, 3 / 6, 0], [1 / 4, 0, 3 / 4, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert torch.allclose(fused.weights, expected, atol=1e-6)
    own = fusion.own[1](fusion.norms[1](tokens[1].mean(1)))
    assert torch.allclose(fused.states[[0, 2], 1], torch.tensor([[3.0], [1.0]]) * own[[0, 2]], atol=1e-5)
    assert torch.allclose(build(StackedFusion).eval()(*parts()).states[0, 1], own[0], atol=1e-5)  # the gain starts at 1
