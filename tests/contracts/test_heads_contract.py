"""Every head of the table: valid predictions, order agrees with risk, poor batches finite, a known hazard recovered."""

from dataclasses import replace

import pytest
import torch
from invariants import assert_keeps_its_promises
from model_cases import HEADS_OF, SHAPES, make_batch, settings_for, targets_of

from medfuse.batch import TargetTensors
from medfuse.errors import ConfigError
from medfuse.models import HEADS, HeadSettings, build_model, default_head
from medfuse.training.ensemble import link_of

CASES = [(outcome, {}) for outcome in HEADS_OF]
CASES += [("os", {"proportional": False}), ("dfs", {"ties": "breslow"})]


def settings_of(outcome, options):
    return replace(HEADS_OF[outcome], options=options)


def head_of(outcome, options, width=16):
    torch.manual_seed(0)
    settings = settings_of(outcome, options)
    return HEADS[settings.name](width=width, settings=settings, **options)


def poor_targets(kind, observed):
    n = len(observed)
    if kind == "survival":
        return TargetTensors(kind=kind, observed=observed, event=torch.zeros(n) > 0, time=torch.full((n,), 7.0))
    if kind == "continuous":
        return TargetTensors(kind=kind, observed=observed, value=torch.full((n,), 3.0))
    return TargetTensors(kind=kind, observed=observed, label=torch.zeros(n, dtype=torch.int64))


def test_every_head_has_a_case_and_every_kind_a_default():
    assert {HEADS_OF[outcome].name for outcome, _ in CASES} == set(HEADS)
    for kind in ("survival", "binary", "multiclass", "continuous"):
        assert kind in HEADS[default_head(kind)].kinds


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_head_keeps_its_promises(outcome, options):
    def build():
        heads = {outcome: settings_of(outcome, options)}
        return build_model(settings_for("transformer"), shapes={"table": SHAPES["table"]}, heads=heads)

    assert_keeps_its_promises(build, make_batch(names=("table",)))


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_head_is_linear_so_that_states_may_be_averaged(outcome, options):
    head = head_of(outcome, options).double()
    a, b = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(head(0.3 * a + 0.7 * b), 0.3 * head(a) + 0.7 * head(b))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e6])
@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_predictions_are_valid_at_any_scale(outcome, options, scale):
    head = head_of(outcome, options)
    logits = head(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * scale)
    found = head.predict(logits)
    assert found["risk_score"].shape == (40,)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert all(value.dtype == torch.float64 for value in found.values())
    if "survival" in found:
        assert found["survival"].shape == (40, 3)
        assert (found["survival"] >= 0).all()
        assert (found["survival"] <= 1).all()
        assert (found["survival"].diff(dim=1) <= 0).all()
    if "probability" in found:
        assert torch.allclose(found["probability"].sum(1), torch.ones(40).double())
        assert torch.allclose(found["risk_score"], 1 - found["probability"][:, 0])


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_poor_batches_are_finite_and_an_unobserved_one_is_an_exact_zero(outcome, options):
    head = head_of(outcome, options)
    kind = HEADS_OF[outcome].kind
    states = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for seen in ([True] * 3, [True, False, False]):
        loss = head.loss(head(states), poor_targets(kind, torch.tensor(seen)))
        loss.backward()
        assert torch.isfinite(loss)
    head.zero_grad()
    loss = head.loss(head(states), poor_targets(kind, torch.zeros(3, dtype=torch.bool)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all((p.grad == 0).all() for p in head.parameters())


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_unobserved_patients_are_not_read(outcome, options):
    head = head_of(outcome, options)
    g = torch.Generator().manual_seed(0)
    target, states = targets_of(20, g)[outcome], torch.randn(20, 16, generator=g)
    rows = target.observed.nonzero()[:, 0]
    alone = head.loss(head(states[rows]), target.apply(lambda t: t[rows]))
    expected = head.loss(head(states), target)
    assert torch.allclose(expected, alone, rtol=1e-6)

    def spoil(t):
        wrong = t.new_tensor(torch.nan if t.is_floating_point() else -7)
        return t if t.dtype == torch.bool else torch.where(target.observed, t, wrong)

    assert torch.equal(head.loss(head(states), target.apply(spoil)), expected)
    lost = replace(target, observed=torch.zeros_like(target.observed))
    logits = head(states).detach().requires_grad_()
    nothing = head.loss(logits, lost.apply(spoil))
    nothing.backward()
    assert nothing.item() == 0.0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_loss_prefers_the_right_order(outcome, options):
    """A few steps on one informative number: risk agrees with the outcome afterwards."""
    head = head_of(outcome, options, width=1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=g)
    seen = torch.ones(200, dtype=torch.bool)
    kind = HEADS_OF[outcome].kind
    if kind == "survival":
        time = 10 * torch.exp(-1.5 * x[:, 0]) * torch.empty(200).exponential_(generator=g)
        target = TargetTensors(kind=kind, observed=seen, event=time < 20, time=time.clamp(max=20))
    elif kind == "continuous":
        target = TargetTensors(kind=kind, observed=seen, value=10 + 2 * x[:, 0])
    else:
        target = TargetTensors(kind=kind, observed=seen, label=(x[:, 0] > 0).long())
    optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        head.loss(head(x), target).backward()
        optimiser.step()
    found = head.predict(head(x).detach())
    assert torch.corrcoef(torch.stack([found["risk_score"], x[:, 0].double()]))[0, 1] > 0.5
    if "survival" in found:
        first = x[:, 0].argsort()
        assert (found["survival"][first[-1]] < found["survival"][first[0]]).all()


@pytest.mark.parametrize("proportional", [True, False])
def test_a_known_hazard_is_recovered(proportional):
    g = torch.Generator().manual_seed(0)
    hazard = torch.tensor([0.1, 0.3, 0.2])
    edges = torch.tensor([5.0, 10.0, 20.0])
    n = 6000
    died = torch.rand(n, 3, generator=g) < hazard
    event = died.any(1)
    time = torch.where(event, edges[died.float().argmax(1)] - 1, torch.tensor(20.0))
    settings = replace(HEADS_OF["os"], options={"proportional": proportional})
    head = HEADS["discrete_hazard"](width=2, settings=settings, proportional=proportional)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    target = TargetTensors(kind="survival", observed=torch.ones(n, dtype=torch.bool), event=event, time=time)

    def closure():
        optimiser.zero_grad()
        loss = head.loss(head(torch.zeros(n, 2)), target)
        loss.backward()
        return loss

    optimiser.step(closure)
    found = head.predict(head(torch.zeros(1, 2)).detach())["survival"][0]
    assert torch.allclose(found.float(), torch.cumprod(1 - hazard, 0), atol=0.02)


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_head_refuses_another_kind_of_outcome(outcome, options):
    other = "continuous" if HEADS_OF[outcome].kind != "continuous" else "survival"
    settings = HeadSettings(kind=other, name=HEADS_OF[outcome].name, options=options, time_grid=(1.0,), n_classes=2)
    with pytest.raises(ConfigError, match=f"found {other}"):
        build_model(settings_for("late"), shapes={"table": SHAPES["table"]}, heads={outcome: settings})


@pytest.mark.parametrize(("outcome", "options"), CASES)
def test_the_link_with_gradients_is_that_of_the_predictions(outcome, options):
    head = head_of(outcome, options)
    logits = head(3 * torch.randn(9, 16, generator=torch.Generator().manual_seed(1))).detach().requires_grad_()
    link = head.link(logits)
    said = {key: value.numpy() for key, value in head.predict(logits).items()}
    assert torch.allclose(link.double().detach(), torch.from_numpy(link_of(said)), atol=1e-5)
    (slope,) = torch.autograd.grad(link.sum() + (link**2).sum(), logits)
    assert torch.isfinite(slope).all()
    assert slope.abs().sum() > 0
