"""Adaptive gradient modulation: shares sum to the output, no value changes, gradients scale as promised."""

import dataclasses
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from medfuse.batch import ModalityShape, without_modality
from medfuse.errors import ConfigError
from medfuse.models import FUSIONS, Fused, Fusion, HeadSettings, ModelSettings, MultimodalModel, build_model
from medfuse.models.encoders import ENCODERS
from medfuse.models.heads import HEADS
from medfuse.training import FoldSettings, TrainSettings, check_fold, fit_fold, fit_member, model_notes
from medfuse.training.balance import Balancer, balance_notes, muted, shapley
from medfuse.training.competition import unexplained

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from invariants import assert_never_waits_for_the_device
from model_cases import HEADS_OF, RAW_SHAPES, SHAPES, make_batch

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


def with_long_bags(batch, tokens=300):
    """Bags beyond the length up to which padding is looked at anyway."""
    g = torch.Generator().manual_seed(5)
    mask = torch.rand(len(batch), tokens, generator=g) < 0.8
    mask &= batch.present[:, batch.modalities.index("bag"), None]
    return replace(
        batch,
        tokens={**batch.tokens, "bag": torch.randn(len(batch), tokens, 5, generator=g) * mask[..., None]},
        token_mask={**batch.token_mask, "bag": mask},
        position={**batch.position, "bag": torch.zeros(len(batch), tokens, 2)},
    )


ABSENT = [
    ("transformer", {}, ("bag", "table")),
    ("transformer", {"packed": True}, ("table", "stains")),
    ("transformer", {"recovery": 1.0}, ("table", "bag")),
    ("concat", {}, ("table", "bag")),
    ("concat", {}, ("ecg", "table")),
    ("cascade", {"residual": True}, THREE),
    ("sequential", {}, THREE),
    ("prototype", {}, ("bag", "table")),
]


@pytest.mark.parametrize(("fusion", "options", "names"), ABSENT)
def test_a_modality_that_a_patient_lacks_has_a_share_of_exactly_nothing(monkeypatch, fusion, options, names):
    """Long bags, raw items and packed tokens as well, of which muted passes would draw less dropout."""
    torch.manual_seed(0)
    shapes = {name: {**SHAPES, **RAW_SHAPES}[name] for name in names}
    model = build_model(
        ModelSettings(width=16, fusion={"name": fusion, **options}), shapes=shapes, heads={"os": HEADS_OF["os"]}
    )
    batch = only_os(make_batch(names=names))
    batch = with_long_bags(batch) if "bag" in names else batch
    model.begin(batch)
    found, encoded = [], []
    strengths = Balancer._strengths

    def seen(self, model, batch, phi, nobody):
        found.append(phi)
        return strengths(self, model, batch, phi, nobody)

    monkeypatch.setattr(Balancer, "_strengths", seen)
    for encoder in model.encoders:
        encoder.register_forward_hook(lambda *parts: encoded.append(1))
    model.train()
    torch.manual_seed(1)
    plain = float(model.loss(batch).detach())
    encoded.clear()
    torch.manual_seed(1)
    loss = balancer_of(names).loss(model, batch).item()
    if options.get("packed"):
        assert model.fusion.packed  # again
    else:  # which draws dropout for other tokens than packed attention does
        assert loss == pytest.approx(plain, rel=1e-5)
    for column, share in enumerate(found[0]):
        has = batch.present[:, column]
        assert not share["os"][~has].any()
        assert share["os"][has].detach().abs().max() > 1e-4
    assert len(encoded) == len(names)  # once each


def test_what_stood_in_a_muted_slot_changes_nothing():
    batch = make_batch(names=THREE)
    tokens, masks = model_of("concat").encode(batch)
    shown = muted(tokens, masks, batch.present, (True, False, True))
    expected = without_modality(batch, "bag").present
    assert torch.equal(shown[2], expected)
    assert not shown[0][1][batch.present[:, 1]].any()
    assert torch.equal(shown[0][1][~batch.present[:, 1]], tokens[1][~batch.present[:, 1]])
    assert not shown[1][1].any()
    for column in (0, 2):
        assert torch.equal(shown[0][column], tokens[column])
        assert torch.equal(shown[1][column], masks[column])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_modulated_step_never_waits_for_the_device(monkeypatch, fusion):
    model, balancer = model_of(fusion), balancer_of()
    monkeypatch.setattr(model, "loss", lambda batch: balancer.loss(model, batch))
    assert_never_waits_for_the_device(model, make_batch(names=THREE))
    assert balancer.sums.is_meta


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


def test_a_batch_that_lacks_a_modality_changes_no_habit():
    """Strengths exactly as always: nobody runs ahead, whoever else is in the batch."""
    balancer = balancer_of(("a", "b", "c"), 2.5)
    steady = torch.tensor([0.5, 0.55, 0.9], dtype=torch.float64)
    for _ in range(20):
        assert balancer._factors(steady).tolist() == pytest.approx([1, 1, 1])
    lacking = torch.tensor([0.5, 0.55, float("nan")], dtype=torch.float64)
    assert balancer._factors(lacking).tolist() == pytest.approx([1, 1, 1])
    alone = torch.tensor([float("nan"), 0.7, float("nan")], dtype=torch.float64)
    assert balancer._factors(alone).tolist() == [1, 1, 1]
    assert balancer._factors(torch.full((3,), float("nan"), dtype=torch.float64)).tolist() == [1, 1, 1]


def test_a_step_that_runs_out_of_memory_is_counted_once(monkeypatch):
    train = only_os(make_batch(48, names=("table", "bag")))
    original, close, counted, refused = Balancer.loss, Balancer.close_epoch, [], []

    def loss(self, model, batch, **of):
        found = original(self, model, batch, **of)
        if len(batch) > 10:
            refused.append(1)
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(Balancer, "loss", loss)
    monkeypatch.setattr(Balancer, "close_epoch", lambda self: counted.append(self.sums[2].tolist()) or close(self))
    for micro in (1, 2):
        settings = TrainSettings(
            epochs=2, batch_size=16, balance="agm", modality_dropout=False, accumulate=micro, device="cpu"
        )
        fit_member(train, None, build=small(), settings=settings, seed=3)
    assert len(refused) == 1
    assert counted[:2] == counted[2:]


def test_where_nothing_is_balanced_a_run_says_so():
    assert balance_notes(["transformer", "lego"]) == ()
    (note,) = balance_notes(["transformer", "stacked"])
    assert "reaches no modality of fusion stacked" in note
    (note,) = balance_notes(["lego"], together=False)
    assert "train.tune_epochs is 0" in note
    model, batch = model_of("stacked"), make_batch(names=THREE)
    found = []
    for alpha in (0.0, 5.0):
        balancer = balancer_of(alpha=alpha)
        balancer.sums = torch.tensor([[1.0, 2.0, 3.0], [1.0] * 3, [1.0] * 3])  # a habit to differ from
        torch.manual_seed(1)
        found.append(gradients(model, balancer.loss(model, batch)))
    for name, gradient in found[0].items():
        if name.startswith("encoders"):
            torch.testing.assert_close(found[1][name], gradient, atol=0, rtol=0)
    assert not torch.equal(found[0]["fusion.preference"], found[1]["fusion.preference"])


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


def test_the_note_reaches_the_console_and_the_report(cohort):
    ids = cohort.ids[:90]
    outcomes = dataclasses.replace(cohort.outcomes, targets={"os": cohort.outcomes.targets["os"]})
    settings = FoldSettings(
        model=ModelSettings(width=8, fusion={"name": "late"}),
        committee=({"name": "stacked"},),
        train=TrainSettings(epochs=1, batch_size=64, balance="agm", device="cpu"),
        seeds=(0, 1),
        unimodal=False,
    )
    given = {"train_ids": ids, "inner": cohort.inner(ids)}
    expected = balance_notes(["stacked"])
    assert check_fold(cohort.data, outcomes, settings=settings, **given) == expected
    assert model_notes(fit_fold(cohort.data, outcomes, settings=settings, **given)) == expected
    plain = dataclasses.replace(settings, train=dataclasses.replace(settings.train, balance="none"))
    assert check_fold(cohort.data, outcomes, settings=plain, **given) == ()
    assert model_notes(fit_fold(cohort.data, outcomes, settings=plain, **given)) == ()
    merged = dataclasses.replace(
        settings, model=ModelSettings(width=8, fusion={"name": "lego"}), committee=(), unimodal=True, merge=True
    )
    assert check_fold(cohort.data, outcomes, settings=merged, **given) == balance_notes([], together=False)
    tuned = dataclasses.replace(merged, tune_epochs=1)
    assert check_fold(cohort.data, outcomes, settings=tuned, **given) == ()
