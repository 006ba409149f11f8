"""Levels of risk, selection, information, and the fusions made of them, against truths that were planted."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch
from torch import nn
from torch.nn import functional

from medfuse.batch import Batch, ModalityShape, TargetTensors, without_modality
from medfuse.errors import ConfigError, ModelError
from medfuse.explain.prototype_record import PrototypeRecord
from medfuse.models import HeadSettings, ModelSettings, build_model
from medfuse.models.contributions import terms
from medfuse.models.exemplars import collapse, exemplars, likeness
from medfuse.models.information import Dependence
from medfuse.models.prototype_block import product_of_experts
from medfuse.models.prototypes import RiskLevels, select, top_count, top_mean


@pytest.fixture(autouse=True)
def one_thread():
    """Small operations on several threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def survival(time, event):
    n = len(time)
    return TargetTensors(
        kind="survival", observed=torch.ones(n, dtype=torch.bool), event=torch.tensor(event), time=torch.tensor(time)
    )


# --- levels -----------------------------------------------------------------------------------------------------


def test_levels_come_from_quantiles_of_train_event_times_and_censored_patients_keep_what_is_left():
    risk = RiskLevels(4)
    time = [float(t) for t in range(1, 9)]
    risk.fit({"os": survival(time, [True] * 8)})
    assert risk.edges.tolist() == pytest.approx([2.75, 4.5, 6.25])
    assert risk.mass.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    share, known = risk.of({"os": survival([1.0, 5.0, 5.375, 20.0], [True, True, False, False])})
    assert known.all()
    assert share[0].tolist() == [1, 0, 0, 0]
    assert share[1].tolist() == [0, 0, 1, 0]
    half = 0.5 * risk.mass[2] / (0.5 * risk.mass[2] + risk.mass[3])  # half of the third interval is over
    assert share[2].tolist() == pytest.approx([0, 0, float(half), 1 - float(half)], abs=1e-6)
    assert share[3].tolist() == [0, 0, 0, 1]


def test_levels_of_classes_are_the_classes():
    risk = RiskLevels(4)
    target = TargetTensors(kind="binary", observed=torch.tensor([True] * 4), label=torch.tensor([0, 0, 0, 1]))
    risk.fit({"recurrence": target})
    assert risk.mass.tolist() == [0.75, 0.25, 0, 0]
    assert risk.used.tolist() == [True, True, False, False]
    with pytest.raises(ConfigError, match="at least the 5 classes, found 4"):
        risk.fit({"grade": replace(target, label=torch.tensor([0, 1, 2, 4]))})


def test_levels_of_a_value_are_its_quantiles_and_the_outcome_that_leads_is_survival():
    risk = RiskLevels(2)
    value = TargetTensors(
        kind="continuous", observed=torch.tensor([True] * 4), value=torch.tensor([1.0, 2.0, 3.0, 9.0])
    )
    risk.fit({"size": value})
    assert risk.edges.tolist() == [2.5]
    assert risk.of({"size": value})[0].argmax(1).tolist() == [0, 0, 1, 1]
    risk.fit({"size": value, "os": survival([10.0, 20.0, 30.0, 40.0], [True] * 4)})
    assert risk.edges.tolist() == [25.0]


def test_ties_and_few_events_leave_levels_unused():
    risk = RiskLevels(4)
    risk.fit({"os": survival([5.0, 5.0, 5.0, 5.0, 9.0], [True] * 5)})
    assert int(risk.used.sum()) == 2
    assert torch.isfinite(risk.edges).all()
    assert float(risk.mass.sum()) == pytest.approx(1.0)


# --- selection --------------------------------------------------------------------------------------------------


def test_each_instance_is_selected_at_most_once_and_padding_never():
    score = torch.tensor([[0.1, 0.9, 0.5, 7.0, 7.0], [0.3, 0.2, 0.1, 0.0, -0.1], [1.0, 1.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True, False, False], [True] * 5, [False] * 5])
    index, kept = select(score, mask, keep=0.5)
    assert [sorted(i[k].tolist()) for i, k in zip(index, kept, strict=True)] == [[1, 2], [0, 1, 2], []]
    assert top_mean(score[..., None], mask, keep=0.5)[:, 0].tolist() == pytest.approx([0.7, 0.2, 0.0])


def test_how_many_are_kept_is_exact_and_does_not_depend_on_padding():
    sizes = torch.arange(1, 3001)
    mask = torch.arange(3000) < sizes[:, None]
    for tenths in range(1, 11):
        keep = tenths / 10
        assert torch.equal(top_count(mask, keep), -(-sizes * tenths // 10))  # whole numbers, rounded up
    ones = torch.ones(1, 240, 2)
    for keep, size in ((0.3, 200), (0.6, 100)):
        real = torch.arange(240)[None] < size
        assert torch.equal(top_mean(ones, real, keep=keep), torch.ones(1, 2))
        assert torch.equal(top_mean(ones[:, :size], real[:, :size], keep=keep), torch.ones(1, 2))


def planted_bags(n, *, size=60, informative=3, features=16, seed=0):
    """Bags of noise; 5 % of the instances carry the direction of the patient's level of risk. Also which ones."""
    g = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 4, (n,), generator=g)
    directions = 4.0 * torch.eye(features)[:4]
    tokens = torch.randn(n, size, features, generator=g)
    where = torch.rand(n, size, generator=g).argsort(1)[:, :informative]
    truth = torch.zeros(n, size, dtype=torch.bool).scatter_(1, where, True)
    tokens[truth] += directions[level].repeat_interleave(informative, 0)
    time = (level.float() + torch.rand(n, generator=g)) * 100
    target = TargetTensors(
        kind="survival",
        observed=torch.ones(n, dtype=torch.bool),
        event=torch.rand(n, generator=g) < 0.8,
        time=time,
    )
    batch = Batch(
        tokens={"bag": tokens},
        token_mask={"bag": torch.ones(n, size, dtype=torch.bool)},
        position={"bag": torch.zeros(n, size, 1)},
        present=torch.ones(n, 1, dtype=torch.bool),
        modalities=("bag",),
        targets={"os": target},
        patient_ids=tuple(f"p{i}" for i in range(n)),
    )
    return batch, truth, level


def bag_model(**options):
    shapes = {"bag": ModalityShape(layout="vectors", features=16)}
    head = HeadSettings(kind="survival", name="discrete_hazard", time_grid=(100.0, 200.0, 300.0, 400.0))
    settings = ModelSettings(
        width=32,
        fusion={"name": "prototype", "keep": 0.1, **options},
        encoders={"bag": {"name": "bag", "pooling": "none", "layers": 0, "input_dropout": 0.0}},
    )
    return build_model(settings, shapes=shapes, heads={"os": head})


def fit_bags(model, train, *, steps, lr=3e-3, seed=0):
    torch.manual_seed(seed)
    model.begin(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        batch = train.select(torch.randint(0, len(train), (64,)))
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    return model.eval()


def recall(model, batch, truth):
    with torch.no_grad():
        selected = model.fuse(batch).parts["selected.0"]
    found = torch.zeros_like(truth).scatter_(1, selected.clamp(min=0), selected >= 0)
    assert int(found.sum(1).max()) == 6
    return float((found & truth).sum() / truth.sum())


def test_the_informative_instances_of_unseen_bags_are_selected():
    """5 % of the instances are informative and 10 % are selected; knowing the four directions would find 95 %."""
    torch.manual_seed(0)
    model = bag_model()
    train, _, _ = planted_bags(300)
    unseen, truth, level = planted_bags(100, seed=1)
    before = recall(model, unseen, truth)
    fit_bags(model, train, steps=80)
    after = recall(model, unseen, truth)
    assert before < 0.5
    assert after >= 0.8, after
    with torch.no_grad():
        assert float((model.fuse(unseen).parts["level.0"].argmax(1) == level).float().mean()) > 0.8


# --- information ------------------------------------------------------------------------------------------------


def everyone(x):
    return torch.ones(len(x), dtype=torch.bool)


def fit_estimator(x, y, *, steps=300, seed=0):
    torch.manual_seed(seed)
    estimator = Dependence(x.shape[1], y.shape[1], hidden=16)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        estimator.fit_loss(x, y, everyone(x)).backward()
        optimizer.step()
    return estimator


def test_the_estimate_rises_with_the_correlation():
    g = torch.Generator().manual_seed(0)
    found = []
    for rho in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95):
        x, noise = torch.randn(4000, 1, generator=g), torch.randn(4000, 1, generator=g)
        y = rho * x + math.sqrt(1 - rho**2) * noise
        estimator = fit_estimator(x[:2000], y[:2000])
        found.append(float(estimator.estimate(x[2000:], y[2000:], everyone(x[2000:])).detach()))
        assert found[-1] == pytest.approx(rho**2, abs=0.08)  # what q of unit variance must give
    assert found == sorted(found)


def test_the_bound_moves_the_representations_and_the_fit_moves_the_estimator():
    torch.manual_seed(0)
    estimator = Dependence(3, 3, hidden=8)
    x, y = torch.randn(32, 3, requires_grad=True), torch.randn(32, 3, requires_grad=True)
    estimator.estimate(x, y, everyone(x)).backward()
    assert all(p.grad is None for p in estimator.parameters())
    assert (x.grad != 0).any()
    assert (y.grad != 0).any()
    x.grad = y.grad = None
    estimator.fit_loss(x, y, everyone(x)).backward()
    assert x.grad is None
    assert y.grad is None
    assert all((p.grad != 0).any() for p in estimator.parameters())
    assert float(estimator.bound(x[:1], y[:1], everyone(x[:1])).detach()) == 0.0


def test_the_estimate_is_the_mean_over_all_pairs():
    torch.manual_seed(0)
    estimator = Dependence(2, 3, hidden=4)
    x, y = torch.randn(7, 2), torch.randn(7, 3)
    said = estimator.mean(x)
    pairs = (said[:, None] - y[None]).square().mean(2)
    expected = 0.5 * (pairs.mean() - pairs.diagonal().mean())
    assert float(estimator.estimate(x, y, everyone(x)).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def lower_dependence(*, task, bound, steps=300):
    """Two linear views of a shared and an own factor each learn to tell the own one and to say little of each other.

    Args:
        task: weight of telling the own factor.
        bound: whether what they say of each other is lowered.
        steps: of Adam.

    Returns:
        Held-out estimate before and after, by an estimator of its own, and the error of what must be told.
    """
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    views, read = nn.ModuleList([nn.Linear(2, 4), nn.Linear(2, 4)]), nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    estimator = Dependence(4, 4, hidden=16)
    optimizer = torch.optim.Adam([p for part in (views, estimator, read) for p in part.parameters()], lr=1e-2)

    def look(n):
        shared, own = torch.randn(n, 1, generator=g), torch.randn(n, 2, generator=g)
        seen = [view(torch.cat([shared, own[:, k, None]], 1)) for k, view in enumerate(views)]
        return [functional.layer_norm(v, v.shape[-1:]) for v in seen], own

    def told(seen, own):
        return sum(
            (head(v)[:, 0] - own[:, k]).square().mean() for k, (head, v) in enumerate(zip(read, seen, strict=True))
        )

    def held_out():
        with torch.no_grad():
            (a, b), own = look(2000)
        judge = fit_estimator(a[:1000], b[:1000], steps=150)
        left = judge.estimate(a[1000:], b[1000:], everyone(a[1000:]))
        return float(left.detach()), float(told((a, b), own).detach()) / 2

    before, _ = held_out()
    for _ in range(steps):
        (a, b), own = look(128)
        optimizer.zero_grad()
        loss = task * told((a, b), own) + estimator.fit_loss(a, b, everyone(a))
        (loss + estimator.bound(a, b, everyone(a)) if bound else loss).backward()
        optimizer.step()
    return before, *held_out()


def test_lowering_the_bound_lowers_a_held_out_estimate():
    """Nothing else moves the views: a task, too, would take much of what they share."""
    before, after, _ = lower_dependence(task=0.0, bound=True)
    assert before > 0.1
    assert after < 0.1 * before, (before, after)


@pytest.mark.slow
def test_with_a_task_the_bound_takes_what_is_shared_and_leaves_what_must_be_told():
    """The task alone takes much of it, too; the bound must take more, at no price to the task."""
    _, alone, error_alone = lower_dependence(task=0.1, bound=False)
    _, after, error = lower_dependence(task=0.1, bound=True)
    assert after < 0.3 * alone, (after, alone)
    assert error < error_alone + 0.05 < 0.2


def test_shrinking_is_no_reward_as_it_is_in_a_joint_update():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=g)
    y = 0.9 * x + 0.1 * torch.randn(500, 4, generator=g)
    estimator = fit_estimator(x, y)
    scale = torch.ones((), requires_grad=True)
    said = estimator.mean(x * scale)
    own, others = (said - y * scale).square().mean(), (said[:, None] - y * scale).square().mean()
    (0.5 * (others - own) + own).backward()  # the released code: nothing detached, no norm
    assert float(scale.grad) > 0.1  # falling scale lowers it
    fresh = torch.ones((), requires_grad=True)
    a, b = (functional.layer_norm(v * fresh, v.shape[-1:]) for v in (x, y))
    estimator.bound(a, b, everyone(a)).backward()
    assert abs(float(fresh.grad)) < 1e-3


# --- the fusions ------------------------------------------------------------------------------------------------


def test_an_absent_expert_leaves_the_others_and_the_prior():
    mean, variance = torch.randn(3, 2, 4), torch.rand(3, 2, 4) + 0.1
    present = torch.tensor([[True, True], [True, False], [False, False]])
    found, spread = product_of_experts(mean, variance, present)
    both = 1 + 1 / variance[0, 0] + 1 / variance[0, 1]
    assert torch.allclose(found[0], (mean[0, 0] / variance[0, 0] + mean[0, 1] / variance[0, 1]) / both)
    assert torch.allclose(found[1], mean[1, 0] / variance[1, 0] / (1 + 1 / variance[1, 0]))
    assert found[2].tolist() == [0.0] * 4
    assert spread[2].tolist() == [1.0] * 4


def prototype_model(name="prototype", **options):
    torch.manual_seed(0)
    settings = ModelSettings(width=16, fusion={"name": name, **options}, encoders={"bag": {"pooling": "none"}})
    return build_model(settings, shapes=SHAPES, heads=HEADS_OF)


@pytest.mark.parametrize("name", ["prototype", "prototype_additive"])
def test_what_was_fitted_is_proved_by_a_hash_and_repeats(name):
    hashes, states = [], []
    for batch in (make_batch(20), make_batch(20), make_batch(20, seed=1), make_batch(24).select(range(20))):
        model = prototype_model(name)
        torch.manual_seed(1)
        model.begin(batch)
        hashes.append(bytes(model.fusion.fitted.tolist()).hex())
        states.append(model.state_dict())
    assert hashes[0] == hashes[1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert hashes[0] != hashes[2]
    changed = make_batch(20)
    changed.targets["os"].time[3] += 1.0
    model.begin(changed)
    assert bytes(model.fusion.fitted.tolist()).hex() not in hashes


@pytest.mark.parametrize("name", ["prototype", "prototype_additive"])
def test_labels_change_the_loss_and_never_the_forward_pass(name):
    model, batch = prototype_model(name), make_batch()
    model.begin(batch)
    order = torch.randperm(len(batch))
    other = replace(batch, targets={k: t.apply(lambda v: v[order]) for k, t in batch.targets.items()})
    model.train()
    states, losses = [], []
    for shown in (batch, other):
        torch.manual_seed(3)
        states.append(model.fuse(shown).states)
        torch.manual_seed(3)
        losses.append(float(model.loss(shown).detach()))
    assert torch.equal(*states)
    assert losses[0] != losses[1]


def test_the_oracle_of_the_paper_reads_labels_in_training_steps_alone_and_warns():
    model, batch = prototype_model(positive="oracle"), make_batch()
    model.begin(batch)
    labels = {k: t.apply(lambda v: v.flip(0)) for k, t in batch.targets.items()}  # those of other patients
    assert any("feeds the true level of risk" in note for note in model.notes)
    assert not any("level of risk" in note for note in prototype_model().notes)

    def states(read, targets):
        torch.manual_seed(3)
        shown = replace(batch, targets=targets)
        return (model.fusion.told(*model.encode(shown), shown.present, targets) if read else model.fuse(shown)).states

    model.train()
    assert not torch.allclose(states(True, batch.targets), states(True, labels))
    assert torch.equal(states(False, batch.targets), states(False, labels))
    asked = []
    told, model.fusion.told = model.fusion.told, lambda *parts: asked.append(1) or told(*parts)
    model.loss(batch)
    assert asked  # a training step is told
    del model.fusion.told
    model.eval()
    model.loss(batch)
    model.predict(batch)
    assert len(asked) == 1


def test_what_the_oracle_tells_is_the_level_of_the_patient():
    model, batch = prototype_model(positive="oracle"), make_batch()
    model.begin(batch)
    fusion = model.fusion
    share, known = fusion.risk.of(batch.targets)
    tokens, masks = model.encode(batch)
    told = fusion.opinions(tokens, masks, torch.where(known[:, None], share, 0.0))
    for block, said, inferred in zip(fusion.prototypes, told, fusion.opinions(tokens, masks), strict=True):
        assert torch.allclose(said.mean[known], share[known] @ block.mean)
        assert torch.equal(said.mean[~known], inferred.mean[~known])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep in"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"levels": 1}, "levels: expected a whole number >= 2"),
        ({"weights": {"prototypes": 1.0}}, 'did you mean "prototype"'),
        ({"weights": {"bound": -1.0}}, "weights.bound: expected a number >= 0"),
        ({"positive": "infered"}, 'did you mean "inferred"'),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        prototype_model(**options)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "0.1"])
def test_weights_of_the_additive_one_are_checked_too(weight):
    with pytest.raises(ConfigError, match=r"weights\.apart: expected a weight >= 0"):
        prototype_model("prototype_additive", weights={"apart": weight})


@pytest.mark.parametrize("name", ["prototype", "prototype_additive"])
def test_exemplars_are_the_nearest_instances_of_different_patients(name):
    model, batch = prototype_model(name), make_batch()
    model.begin(batch)
    found = exemplars(model, batch, count=3)
    prototypes = len(model.fusion.blocks[0].mean)
    assert len(found) == 4 * prototypes * 3
    similarity = model.fuse(batch).parts["similarity.2"].detach()
    bags = [e for e in found if e.modality == "bag" and e.prototype == 1]
    assert len({e.patient_id for e in bags}) == 3
    assert [e.similarity for e in bags] == sorted((e.similarity for e in bags), reverse=True)
    for e in bags:
        row = batch.patient_ids.index(e.patient_id)
        assert bool(batch.token_mask["bag"][row, e.token])
        assert float(similarity[row, e.token, 1]) == pytest.approx(e.similarity)
    real = batch.token_mask["bag"][..., None]
    assert bags[0].similarity == pytest.approx(float(similarity.masked_fill(~real, -1)[..., 1].max()))


def test_collapsed_prototypes_are_told():
    model = prototype_model()
    model.begin(make_batch())
    assert collapse(model) == {}
    with torch.no_grad():
        model.fusion.blocks[1].mean[2] = 3 * model.fusion.blocks[1].mean[0]
    found = collapse(model)
    assert list(found) == ["wide"]
    assert found["wide"][0][:2] == (0, 2)
    with pytest.raises(ModelError, match="expected a model whose fusion has prototypes"):
        collapse(build_model(ModelSettings(width=16), shapes=SHAPES, heads=HEADS_OF))


@pytest.mark.parametrize("outcome", list(HEADS_OF))
def test_the_terms_of_the_additive_model_sum_to_the_logit(outcome):
    model, batch = prototype_model("prototype_additive"), make_batch()
    model.begin(batch)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        logits = model.eval()(batch)[outcome]
    found = terms(model, batch, outcome=outcome)
    assert float((found.logits - logits).abs().max()) <= 1e-6
    assert found.terms.shape == (24, 4, 8, logits.shape[1])
    assert (found.terms[~batch.present] == 0).all()
    assert (found.modality[batch.present] != 0).all()
    without = terms(model, without_modality(batch, "wide"), outcome=outcome)
    assert torch.equal(without.terms[:, [0, 2, 3]], found.terms[:, [0, 2, 3]])  # exactly its own terms go
    assert float((found.logits - without.logits - found.modality[:, 1]).abs().max()) <= 1e-6


def test_terms_are_of_the_additive_model_alone():
    with pytest.raises(ModelError, match="expected fusion prototype_additive, found PrototypeFusion"):
        terms(prototype_model(), make_batch(), outcome="os")


def test_stored_similarities_give_the_probabilities_that_the_model_mixes_its_prototypes_by():
    model, batch = prototype_model(), make_batch()
    model.begin(batch)
    with torch.no_grad():
        similarity = likeness(model, model.eval().fuse(batch).parts).similarity.double().numpy()
        said = model.fusion.opinions(*model.encode(batch))
    stored = SimpleNamespace(temperature=model.fusion.temperature, used=model.fusion.risk.used.numpy(), each=1)
    probability = PrototypeRecord.probability(stored, similarity)
    assert (np.isnan(similarity).all(2) == ~batch.present.numpy()).all()
    for m, block in enumerate(model.fusion.blocks):
        there = batch.present[:, m].numpy()
        assert there.any()
        mixed = probability[there, m] @ block.mean.detach().double().numpy()
        assert np.abs(mixed - said[m].mean.double().numpy()[there]).max() <= 1e-5


def test_the_likeness_of_the_additive_model_is_its_activation():
    model, batch = prototype_model("prototype_additive"), make_batch()
    model.begin(batch)
    with torch.no_grad():
        parts = model.eval().fuse(batch).parts
    seen = likeness(model, parts)
    assert torch.equal(seen.similarity.nan_to_num(), parts["activation"])
    assert torch.equal(seen.similarity[..., 0].isnan(), ~batch.present)
    assert (seen.best.nan_to_num() >= seen.similarity.nan_to_num() - 1e-6).all()
    assert ((seen.token == -1).all(2) == ~batch.present).all()
