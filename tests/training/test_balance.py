"""Adaptive gradient modulation: shares sum to the output, no value changes, gradients scale as promised."""

import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from medfuse.batch import ModalityShape
from medfuse.errors import ConfigError
from medfuse.models import FUSIONS, Fused, Fusion, HeadSettings, ModelSettings, MultimodalModel, build_model
from medfuse.models.encoders import ENCODERS
from medfuse.models.heads import HEADS
from medfuse.training import TrainSettings, fit_member
from medfuse.training.balance import Balancer, shapley
from medfuse.training.competition import unexplained

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from model_cases import HEADS_OF, SHAPES, make_batch

THREE = ("table", "bag", "stains")


def model_of(fusion, names=THREE):
    torch.manual_seed(0)
    shapes = {name: SHAPES[name] for name in names}
    model = build_model(ModelSettings(width=16, fusion={"name": fusion}), shapes=shapes, heads=HEADS_OF)
    model.begin(make_batch(names=names))
    return model.train()


def balancer_of(names=THREE, alpha=1.0):
    return Balancer(modalities=names, alpha=alpha, draws=torch.Generator().manual_seed(0))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("names", [THREE, tuple(SHAPES)])
def test_no_value_changes_and_without_alpha_no_gradient_either(fusion, names):
    """Three modalities: all orders; four: one random order and its reverse."""
    batch, model = make_batch(names=names), model_of(fusion, names)
    torch.manual_seed(1)
    plain = model.loss(batch)
    expected, after = gradients(model, plain), torch.get_rng_state()
    for alpha in (0.0, 2.5):
        balancer = balancer_of(names, alpha)
        for _ in range(2):  # from the second step on there is a habit to differ from
            torch.manual_seed(1)
            loss = balancer.loss(model, batch)
            found = gradients(model, loss)
            assert torch.equal(torch.get_rng_state(), after)
            assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
        if alpha == 0:
            largest = max(float(g.abs().max()) for g in expected.values())
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(largest, 1.0), rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shares_sum_to_the_output_and_an_absent_modality_has_none(fusion):
    batch, model = make_batch(names=THREE), model_of(fusion)

    def visible(subset):
        torch.manual_seed(3)  # the same dropout in every pass
        return model(replace(batch, present=batch.present & torch.tensor(subset)))

    phi = shapley(visible, list(permutations(range(3))))
    none, whole = visible((False,) * 3), visible((True,) * 3)
    for outcome in whole:
        total = none[outcome] + sum(share[outcome] for share in phi)
        torch.testing.assert_close(total, whole[outcome], atol=1e-5, rtol=0)
        for column, share in enumerate(phi):
            assert float(share[outcome][~batch.present[:, column]].detach().abs().max()) < 1e-5
            assert float(share[outcome][batch.present[:, column]].detach().abs().max()) > 1e-4


class AdditiveFusion(Fusion):
    """The sum of the modalities' mean tokens: each one's Shapley value is its own term."""

    def forward(self, tokens, masks, present):
        states = torch.stack([t.mean(1) for t in tokens], dim=1)
        return Fused(states=states, weights=present.float())


def test_gradients_of_an_additive_model_scale_by_the_factors(monkeypatch):
    """Which only holds when the muted passes carry gradient."""
    names = ("table", "bag")
    torch.manual_seed(0)
    encoders = {n: ENCODERS["linear"](shape=SHAPES[n], width=16, dropout=0.0) for n in names if n != "bag"}
    encoders["bag"] = ENCODERS["bag"](shape=SHAPES["bag"], width=16, dropout=0.0)
    head = HEADS["discrete_hazard"](width=16, settings=HEADS_OF["os"])
    model = MultimodalModel(encoders=encoders, fusion=AdditiveFusion(), heads={"os": head}).train()
    batch = make_batch(names=names)
    torch.manual_seed(1)
    expected = gradients(model, model.loss(batch))
    monkeypatch.setattr(Balancer, "_factors", lambda self, strength: torch.tensor([2.0, 0.5]))
    torch.manual_seed(1)
    found = gradients(model, balancer_of(names).loss(model, batch))
    scale = {"encoders.0": 2.0, "encoders.1": 0.5}
    for name, gradient in expected.items():
        if name.startswith("encoders"):
            torch.testing.assert_close(found[name], scale[name[:10]] * gradient, atol=1e-6, rtol=1e-4)


def test_a_modality_ahead_of_its_habit_is_slowed():
    balancer = balancer_of(("a", "b"))
    assert balancer._factors(torch.tensor([1.0, 1.0], dtype=torch.float64)).tolist() == [1, 1]
    ahead = balancer._factors(torch.tensor([0.2, 1.0], dtype=torch.float64))
    assert ahead[0] < 1 < ahead[1]
    lacking = balancer._factors(torch.tensor([float("nan"), 1.0], dtype=torch.float64))
    assert lacking[0] == 1  # nobody in the batch has it
    record = balancer.close_epoch()
    assert record["strength.a"] == pytest.approx(0.6)
    assert set(record) == {"strength.a", "strength.b", "factor.a", "factor.b"}
    assert not balancer.sums.any()


def only_os(batch):
    return replace(batch, targets={"os": batch.targets["os"]})


def small(names=("table", "bag")):
    heads = {"os": HEADS_OF["os"]}
    shapes = {name: SHAPES[name] for name in names}
    return lambda: build_model(ModelSettings(width=8, fusion={"name": "concat"}), shapes=shapes, heads=heads)


def test_a_fit_records_strengths_and_goes_on_exactly_where_it_stopped(tmp_path):
    train, tuning = (only_os(make_batch(n, names=("table", "bag"), seed=n)) for n in (48, 24))
    settings = TrainSettings(
        epochs=4, batch_size=16, balance="agm", balance_alpha=2.0, presence="balanced", checkpoint_every=1
    )
    whole = fit_member(train, tuning, build=small(), settings=settings, seed=3)
    assert all(row["strength.table"] > 0 and row["factor.bag"] > 0 for row in whole.history)
    assert 0 < whole.history[0]["kept.table"] <= 1

    def dies(progress):
        if progress.step == 8:  # in the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_member(train, tuning, build=small(), settings=settings, seed=3, workdir=tmp_path, watch=dies)
    again = fit_member(train, tuning, build=small(), settings=settings, seed=3, workdir=tmp_path)
    for name, value in whole.state.items():
        assert torch.equal(value, again.state[name])
    plain = fit_member(train, tuning, build=small(), settings=TrainSettings(epochs=4, batch_size=16), seed=3)
    assert any(not torch.equal(value, plain.state[name]) for name, value in whole.state.items())


def test_one_modality_needs_no_balance_and_other_words_are_refused():
    shapes = {"table": SHAPES["table"]}
    heads = {"dfs": HeadSettings(kind="survival", name="cox")}
    build = lambda: build_model(ModelSettings(width=8, fusion={"name": "concat"}), shapes=shapes, heads=heads)  # noqa: E731
    assert isinstance(SHAPES["table"], ModalityShape)
    fitted = fit_member(
        make_batch(24, names=("table",)), None, build=build, settings=TrainSettings(epochs=1, balance="agm"), seed=0
    )
    assert not any(key.startswith("strength") for key in fitted.history[0])
    with pytest.raises(ConfigError, match=r"train\.balance: expected one of none, agm"):
        TrainSettings(balance="amg")
    with pytest.raises(ConfigError, match=r"train\.presence"):
        TrainSettings(presence="balance")


def test_competition_strength_is_what_the_state_no_longer_holds():
    draw = np.random.default_rng(0)
    state = draw.normal(size=(3000, 8)) * 5 + 3
    said = state @ draw.normal(size=8)
    assert unexplained(state, said, penalty=1e-6) < 1e-6
    assert unexplained(state, said) < 0.01
    assert unexplained(state, draw.normal(size=3000)) == pytest.approx(1, abs=0.02)
    half = said / said.std() + draw.normal(size=3000)
    assert unexplained(state, half) == pytest.approx(0.5, abs=0.05)
    assert np.isnan(unexplained(state, np.ones(3000)))
    # leave-one-out, as by refitting without each patient
    x, y, penalty = draw.normal(size=(12, 3)), draw.normal(size=12), 5.0
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    left, alone = [], []
    for i in range(12):
        keep = np.arange(12) != i
        mean = y[keep].mean()
        a = np.column_stack([np.ones(11), x[keep]])
        beta = np.linalg.solve(a.T @ a + np.diag([0, penalty, penalty, penalty]), a.T @ y[keep])
        left.append(y[i] - np.r_[1, x[i]] @ beta)
        alone.append(y[i] - mean)
    assert unexplained(x, y, penalty=penalty) == pytest.approx(np.square(left).sum() / np.square(alone).sum())
