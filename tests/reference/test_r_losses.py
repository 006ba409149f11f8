"""Training losses against R: coxph without a step, and glm on person-periods.

Asked: 1e-9 for values, 1e-10 for gradients. Largest found on one x86-64 machine: 4e-12 and 4e-11 (1.5e-14 relative).
"""

import numpy as np
import pytest
import torch
from from_r import array, dataset, fixture

from medfuse.losses import cox_loss, discrete_hazard_loss


def tensors(name):
    x, survival, _ = dataset(name)
    return torch.tensor(x), torch.tensor(survival.event), torch.tensor(survival.time)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", sorted(fixture("losses")["cox"]))
def test_cox_loss_and_its_gradients_away_from_the_maximum(name, ties):
    x, event, time = tensors(name)
    case = fixture("losses")["cox"][name]
    beta = torch.tensor(case["beta"], dtype=torch.float64, requires_grad=True)
    eta = x @ beta
    eta.retain_grad()
    log_likelihood = -cox_loss(eta, event, time, ties=ties) * event.sum()
    log_likelihood.backward()
    assert float(log_likelihood.detach()) == pytest.approx(case[ties]["log_likelihood"], abs=1e-9)
    score = array(case[ties]["score"])
    np.testing.assert_allclose(beta.grad.numpy(), score, rtol=1e-9, atol=1e-10 * np.abs(score).max())
    # The derivative of Cox's log-likelihood by a patient's log hazard is the martingale residual.
    np.testing.assert_allclose(eta.grad.numpy(), case[ties]["martingale"], atol=1e-10)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("name", sorted(fixture("losses")["cox"]))
def test_cox_loss_in_float32(name, ties):
    x, event, time = tensors(name)
    case = fixture("losses")["cox"][name]
    eta = (x @ torch.tensor(case["beta"], dtype=torch.float64)).float()
    value = -cox_loss(eta, event, time, ties=ties) * event.sum()
    assert float(value) == pytest.approx(case[ties]["log_likelihood"], rel=1e-5)


def logits_of(name, case, link):
    """The fitted hazards of R's glm as logits, and the parameters they come from."""
    x, _, _ = dataset(name)
    standardised = torch.tensor((x - x.mean(0)) / x.std(0, ddof=1))
    level = torch.tensor(case["level"], dtype=torch.float64, requires_grad=True)
    slope = torch.tensor(case["slope"], dtype=torch.float64, requires_grad=True)
    eta = level + (standardised @ slope)[:, None]
    if link == "cloglog":  # 1 - h = exp(-exp(eta))
        eta = torch.log(torch.expm1(torch.exp(eta)))
    return eta, level, slope


@pytest.mark.parametrize("link", ["logit", "cloglog"])
@pytest.mark.parametrize("name", sorted(fixture("losses")["discrete"]))
def test_discrete_hazard_loss_is_the_likelihood_of_glm_and_its_maximum(name, link):
    _, event, time = tensors(name)
    case = fixture("losses")["discrete"][name]
    logits, level, slope = logits_of(name, case[link], link)
    edges = torch.tensor(case["edges"], dtype=torch.float64)
    log_likelihood = -discrete_hazard_loss(logits, event, time, edges) * len(time)
    log_likelihood.backward()
    assert float(log_likelihood.detach()) == pytest.approx(case[link]["log_likelihood"], abs=1e-9)
    for gradient in (level.grad, slope.grad):  # glm stopped where the score is zero
        np.testing.assert_allclose(gradient.numpy(), 0.0, atol=1e-8)


@pytest.mark.parametrize("name", sorted(fixture("losses")["elsewhere"]))
def test_discrete_hazard_loss_and_its_gradient_elsewhere(name):
    _, event, time = tensors(name)
    case = fixture("losses")["elsewhere"][name]
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    edges = torch.tensor(case["edges"], dtype=torch.float64)
    nll = discrete_hazard_loss(logits, event, time, edges) * len(time)
    nll.backward()
    assert float(nll.detach()) == pytest.approx(-case["log_likelihood"], abs=1e-9)
    np.testing.assert_allclose(logits.grad.numpy(), case["gradient"], atol=1e-10)


def test_a_logit_model_trained_on_the_loss_reaches_the_coefficients_of_glm():
    """Newton's method on the loss from zero ends where R's glm ends."""
    x, event, time = tensors("veteran")
    case = fixture("losses")["discrete"]["veteran"]
    edges = torch.tensor(case["edges"], dtype=torch.float64)
    standardised = (x - x.mean(0)) / x.std(0)
    count = len(edges)

    def loss(theta):
        return discrete_hazard_loss(theta[:count] + (standardised @ theta[count:])[:, None], event, time, edges)

    theta = torch.zeros(count + x.shape[1], dtype=torch.float64)
    theta[:count] = -1.0
    for _ in range(12):
        gradient = torch.autograd.functional.jacobian(loss, theta)
        theta = theta - torch.linalg.solve(torch.autograd.functional.hessian(loss, theta), gradient)
    expected = np.concatenate([case["logit"]["level"], case["logit"]["slope"]])
    np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-7, atol=1e-8)
