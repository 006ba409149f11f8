import math

import lifelines.datasets
import numpy as np
import pytest
import torch
from torch.nn import functional

from medfuse.errors import ModelError
from medfuse.losses import (
    classification_loss,
    cox_loss,
    discrete_hazard_loss,
    discrete_hazard_prior,
    interval_exposure,
    regression_loss,
    risk_sets,
)

# R 4.2.2, survival 3.5-3, coxph(Surv(time, status) ~ age + sex, lung): ../shared/reliability.md 7.2
LUNG = {
    "efron": ((0.0170453318454113, -0.513218517108384), -749.909801390395, -742.84824578377),
    "breslow": ((0.0170128891984432, -0.512564791518719), -750.122018895319, -743.079654197999),
}


@pytest.fixture(scope="module")
def lung():
    frame = lifelines.datasets.load_lung()
    assert frame["status"].sum() == 165  # 1 = died
    x = torch.tensor(frame[["age", "sex"]].to_numpy(dtype=np.float64))
    return x, torch.tensor(frame["status"].to_numpy() == 1), torch.tensor(frame["time"].to_numpy(dtype=np.float64))


def cohort(n, *, seed=0, scale=1.0, dtype=torch.float64):
    """Day-grained times with ties, about half of them events."""
    g = torch.Generator().manual_seed(seed)
    eta = torch.randn(n, generator=g, dtype=torch.float64) * scale
    time = torch.ceil(torch.rand(n, generator=g, dtype=torch.float64) * n / 4)
    return eta.to(dtype), torch.rand(n, generator=g) < 0.5, time


def plain_cox(eta, event, time, ties):
    """The definition, one event time after another."""
    total = 0.0
    for t in sorted(set(time[event].tolist())):
        at_risk, dying = time >= t, event & (time == t)
        deaths = int(dying.sum())
        for rank in range(deaths):
            share = rank / deaths if ties == "efron" else 0.0
            total += math.log(float(eta[at_risk].exp().sum() - share * eta[dying].exp().sum()))
        total -= float(eta[dying].sum())
    return total / int(event.sum())


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_loss_equals_r_on_lung(lung, ties):
    x, event, time = lung
    coefficients, null, fitted = LUNG[ties]
    beta = torch.tensor(coefficients, dtype=torch.float64)
    for eta, expected in ((x @ beta, fitted), (x @ beta * 0, null)):
        value = -cox_loss(eta, event, time, ties=ties) * event.sum()
        assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_a_linear_network_reaches_the_coefficients_of_r(lung, ties):
    x, event, time = lung
    network = torch.nn.Linear(2, 1, bias=False).double()
    scale = x.std(0)
    centred = (x - x.mean(0)) / scale
    optimiser = torch.optim.LBFGS(
        network.parameters(), max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = cox_loss(network(centred)[:, 0], event, time, ties=ties)
        loss.backward()
        return loss

    optimiser.step(closure)
    beta = network.weight.detach()[0] / scale
    assert torch.allclose(beta, torch.tensor(LUNG[ties][0], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_cox_loss_equals_the_definition_and_finite_differences(ties, n):
    eta, event, time = cohort(n, seed=n)
    event[0] = True
    assert float(cox_loss(eta, event, time, ties=ties)) == pytest.approx(plain_cox(eta, event, time, ties), abs=1e-12)
    eta.requires_grad_()
    check = torch.autograd.gradcheck(lambda e: cox_loss(e, event, time, ties=ties), eta, atol=1e-8, rtol=1e-6)
    assert check


def test_efron_by_hand():
    # Two deaths at one time among three patients with hazards 1, 2, 3: log(6) + log(6 - 3/2) - log(1) - log(2).
    eta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log()
    event, time = torch.tensor([True, True, False]), torch.tensor([5.0, 5.0, 9.0])
    expected = (math.log(6) + math.log(4.5) - math.log(2)) / 2
    assert float(cox_loss(eta, event, time)) == pytest.approx(expected, abs=1e-14)


def test_patients_who_are_censored_before_the_first_event_do_not_count():
    eta, event, time = cohort(40)
    early = torch.cat([eta, torch.tensor([80.0], dtype=torch.float64)])
    both = torch.cat([event, torch.tensor([False])]), torch.cat([time, torch.tensor([0.5], dtype=torch.float64)])
    assert float(cox_loss(early, *both)) == pytest.approx(float(cox_loss(eta, event, time)), rel=1e-12)


@pytest.mark.parametrize("shift", [-1e4, -300.0, 50.0, 300.0, 1e4])
def test_cox_loss_does_not_see_a_shift(shift):
    eta, event, time = cohort(200)
    assert float(cox_loss(eta + shift, event, time)) == pytest.approx(float(cox_loss(eta, event, time)), rel=1e-9)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [30.0, 300.0, 1e4])
def test_cox_loss_is_finite_at_any_scale(scale, dtype, ties):
    eta, event, time = cohort(500)
    eta = (eta / eta.abs().max() * scale).to(dtype).requires_grad_()
    loss = cox_loss(eta, event, time, ties=ties)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(eta.grad).all()
    if scale <= 300:  # exact: log-space definition
        order = torch.argsort(time, descending=True, stable=True)
        if ties == "breslow":
            e, t = eta.detach().double()[order], time[order]
            sums = torch.logcumsumexp(e, 0)[torch.searchsorted(-t, -t, right=True) - 1]
            expected = (sums - e)[event[order]].mean()
            assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6 if dtype == torch.float32 else 1e-12)


def test_an_outlier_at_the_earliest_time_leaves_later_risk_sets_exact():
    eta, event, time = cohort(300)
    outlier = torch.cat([torch.tensor([300.0], dtype=torch.float64), eta])
    times, events = torch.cat([torch.zeros(1).double(), time]), torch.cat([torch.tensor([True]), event])
    expected = float(cox_loss(eta, event, time) * event.sum()) / float(events.sum())  # the outlier's own term is ~0
    assert float(cox_loss(outlier, events, times)) == pytest.approx(expected, rel=1e-9)


def test_float32_is_within_1e5_of_float64_at_ten_thousand_patients():
    eta, event, time = cohort(10_000, scale=15.0)
    eta = eta.clamp(-50, 50)
    exact = float(cox_loss(eta, event, time))
    assert float(cox_loss(eta.float(), event, time)) == pytest.approx(exact, rel=1e-5)


def test_one_tie_group_of_three_thousand():
    g = torch.Generator().manual_seed(0)
    eta = torch.randn(3000, generator=g, dtype=torch.float64).requires_grad_()
    event, time = torch.ones(3000, dtype=torch.bool), torch.ones(3000)
    loss = cox_loss(eta, event, time)
    loss.backward()
    w = eta.detach().exp()
    expected = (torch.log(w.sum() * (1 - torch.arange(3000).double() / 3000)).sum() - eta.detach().sum()) / 3000
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-12)
    assert float(eta.grad.sum()) == pytest.approx(0.0, abs=1e-10)


def test_memory_of_a_tie_group_is_linear():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    with Watch():
        cox_loss(torch.zeros(3000), torch.ones(3000, dtype=torch.bool), torch.ones(3000))
    assert 3000 <= largest <= 3001


@pytest.mark.parametrize("n", [0, 1, 50])
def test_cox_loss_without_events_is_a_zero_tied_to_the_graph(n):
    weight = torch.ones(1, requires_grad=True)
    loss = cox_loss(weight * torch.arange(float(n)), torch.zeros(n, dtype=torch.bool), torch.arange(float(n)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert weight.grad.tolist() == [0.0]


def test_cox_loss_of_one_patient_is_zero():
    eta = torch.tensor([7.0], requires_grad=True)
    loss = cox_loss(eta, torch.tensor([True]), torch.tensor([3.0]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert eta.grad.tolist() == [0.0]


def test_cox_loss_scales_the_incoming_gradient():
    eta, event, time = cohort(30)
    eta.requires_grad_()
    (single,) = torch.autograd.grad(cox_loss(eta, event, time), eta)
    (triple,) = torch.autograd.grad(3 * cox_loss(eta, event, time), eta)
    assert torch.allclose(triple, 3 * single)


def test_cox_loss_passes_nan_on():
    eta, event, time = cohort(20)
    eta[3] = math.nan
    assert torch.isnan(cox_loss(eta, event, time))


def test_cox_loss_does_not_depend_on_patient_order_or_time_unit():
    eta, event, time = cohort(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    expected = float(cox_loss(eta, event, time))
    assert float(cox_loss(eta[order], event[order], time[order])) == pytest.approx(expected, rel=1e-12)
    assert float(cox_loss(eta, event, time / 30.4375)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 1), torch.zeros(3) > 0, torch.zeros(3)), "three tensors"),
        ((torch.zeros(3), torch.zeros(2) > 0, torch.zeros(3)), "three tensors"),
    ],
)
def test_cox_loss_refuses_shapes(arguments, message):
    with pytest.raises(ModelError, match=message):
        cox_loss(*arguments)


def test_cox_loss_refuses_unknown_ties():
    with pytest.raises(ModelError, match='expected ties "efron" or "breslow", found "exact"'):
        cox_loss(torch.zeros(1), torch.ones(1) > 0, torch.ones(1), ties="exact")


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("tied", [True, False])
def test_known_risk_sets_change_nothing(ties, tied):
    eta, event, time = cohort(80)
    time = time if tied else torch.randperm(80, generator=torch.Generator().manual_seed(0)).double()
    sets = risk_sets(event, time, ties=ties)
    assert (sets.share is not None and bool(sets.share.any())) == (tied and ties == "efron")
    expected = cox_loss(eta, event, time, ties=ties)
    assert torch.equal(cox_loss(eta, event, time, ties=ties, sets=sets), expected)
    assert float(expected) == pytest.approx(plain_cox(eta, event, time, ties), abs=1e-12)


def test_risk_sets_refuse():
    with pytest.raises(ModelError, match=r"expected event and time \(n >= 1,\)"):
        risk_sets(torch.zeros(0) > 0, torch.zeros(0))
    eta, event, time = cohort(9)
    with pytest.raises(ModelError, match="expected risk sets of 8 patients, found 9"):
        cox_loss(eta[1:], event[1:], time[1:], sets=risk_sets(event, time))
    with pytest.raises(ModelError, match="observed or sets, found both"):
        cox_loss(eta, event, time, sets=risk_sets(event, time), observed=event)


EDGES = torch.tensor([10.0, 30.0, 60.0], dtype=torch.float64)


def test_interval_exposure_by_hand():
    time = torch.tensor([0.0, 0.0, 10.0, 10.0, 15.0, 15.0, 60.0, 60.0, 90.0, 90.0], dtype=torch.float64)
    event = torch.tensor([False, True] * 5)
    survived, died = interval_exposure(event, time, EDGES)
    assert survived.tolist() == [
        [0, 0, 0],
        [0, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
        [1, 0.25, 0],
        [1, 0, 0],
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 1],
        [1, 1, 1],  # an event past the grid is survival of the grid
    ]
    assert died.nonzero().tolist() == [[1, 0], [3, 0], [5, 1], [7, 2]]


def test_discrete_hazard_loss_by_hand():
    hazard = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    logits = torch.logit(hazard).expand(3, 3)
    event, time = torch.tensor([True, False, True]), torch.tensor([25.0, 45.0, 61.0], dtype=torch.float64)
    expected = -(
        (math.log(0.9) + math.log(0.2))
        + (math.log(0.9) + math.log(0.8) + 0.5 * math.log(0.7))
        + (math.log(0.9) + math.log(0.8) + math.log(0.7))
    )
    assert float(discrete_hazard_loss(logits, event, time, EDGES)) == pytest.approx(expected / 3, abs=1e-12)


def test_discrete_hazard_loss_equals_the_clamped_form_where_the_clamp_never_acts():
    g = torch.Generator().manual_seed(0)
    logits = (torch.rand(200, 3, generator=g, dtype=torch.float64) * 6 - 3).requires_grad_()
    event = torch.rand(200, generator=g) < 0.5
    interval = torch.randint(0, 3, (200,), generator=g)
    time = EDGES[interval]  # censored at right edges: the whole interval was survived
    hazard = torch.sigmoid(logits)
    padded = torch.cat([torch.ones(200, 1).double(), torch.cumprod(1 - hazard, 1)], 1)
    rows = torch.arange(200)
    died = padded[rows, interval].clamp(min=1e-7).log() + hazard[rows, interval].clamp(min=1e-7).log()
    expected = -torch.where(event, died, padded[rows, interval + 1].clamp(min=1e-7).log()).mean()
    loss = discrete_hazard_loss(logits, event, time, EDGES)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-9)
    (ours,), (theirs,) = torch.autograd.grad(loss, logits, retain_graph=True), torch.autograd.grad(expected, logits)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_discrete_hazard_loss_gradient_equals_finite_differences():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 3, generator=g, dtype=torch.float64, requires_grad=True)
    event, time = torch.rand(12, generator=g) < 0.5, torch.rand(12, generator=g, dtype=torch.float64) * 80
    assert torch.autograd.gradcheck(lambda z: discrete_hazard_loss(z, event, time, EDGES), logits, atol=1e-8)


@pytest.mark.parametrize("level", [-1e4, -100.0, 100.0, 1e4])
def test_discrete_hazard_loss_is_finite_at_any_scale(level):
    logits = torch.full((8, 3), level, requires_grad=True)
    event, time = torch.tensor([True, False] * 4), torch.linspace(1, 80, 8)
    loss = discrete_hazard_loss(logits, event, time, EDGES.float())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_discrete_hazard_loss_reads_half_precision_in_float32():
    logits = torch.zeros(4, 3, dtype=torch.bfloat16)
    loss = discrete_hazard_loss(logits, torch.ones(4) > 0, torch.full((4,), 5.0), EDGES)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(2))


def test_empty_losses_are_zeros_tied_to_the_graph():
    for shape, call in (
        ((0, 3), lambda z: discrete_hazard_loss(z, torch.zeros(0) > 0, torch.zeros(0), EDGES)),
        ((0, 2), lambda z: classification_loss(z, torch.zeros(0, dtype=torch.int64))),
        ((0,), lambda z: regression_loss(z, torch.zeros(0))),
    ):
        weight = torch.ones(shape, requires_grad=True)
        loss = call(weight)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert weight.grad.shape == shape


def test_discrete_hazard_loss_refuses_another_number_of_intervals():
    with pytest.raises(ModelError, match=r"expected logits \(n, 3\), found \(4, 2\)"):
        discrete_hazard_loss(torch.zeros(4, 2), torch.ones(4) > 0, torch.ones(4), EDGES)


def test_the_best_hazards_follow_kaplan_meier_with_twenty_intervals():
    g = torch.Generator().manual_seed(0)
    died = -1000 * torch.log(torch.rand(4000, generator=g, dtype=torch.float64))
    left = -700 * torch.log(torch.rand(4000, generator=g, dtype=torch.float64))
    event, time = died <= left, torch.minimum(died, left)
    edges = torch.quantile(time[event], torch.linspace(0.05, 1, 20, dtype=torch.float64))
    prior = discrete_hazard_prior(event, time, edges).double()
    survival = torch.exp(functional.logsigmoid(-prior).cumsum(0))
    order = torch.argsort(time)
    at_risk = 4000 - torch.arange(4000)
    kaplan_meier = torch.cumprod(1 - event[order].double() / at_risk, 0)
    expected = kaplan_meier[torch.searchsorted(time[order], edges, right=True) - 1]
    assert torch.allclose(survival[:-1], expected[:-1], atol=0.01)
    free = prior.clone().requires_grad_()
    loss = discrete_hazard_loss(free.expand(4000, 20), event, time, edges)
    assert torch.autograd.grad(loss, free)[0].abs().max() < 1e-3  # the prior all but minimises the loss


def test_discrete_hazard_prior_is_finite_without_events():
    prior = discrete_hazard_prior(torch.zeros(5) > 0, torch.full((5,), 20.0), EDGES)
    assert torch.isfinite(prior).all()
    assert (prior < -5).all()


def test_classification_and_regression_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert float(classification_loss(logits, torch.tensor([1]))) == pytest.approx(-math.log(0.75), abs=1e-6)
    assert float(regression_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]))) == pytest.approx(2.0)
