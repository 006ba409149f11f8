"""Running sums by doubling are those of torch."""

import pytest
import torch

from medfuse.losses import cox_loss
from medfuse.running_sum import running_sum


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (7, 3), (8, 2), (1000,)])
def test_sums_are_those_of_cumsum(shape, deterministic):
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = running_sum(values, 0)
    torch.testing.assert_close(found, values.cumsum(0))
    weight = torch.randn(shape, dtype=torch.float64)
    (found * weight).sum().backward()
    torch.testing.assert_close(values.grad, weight.flip(0).cumsum(0).flip(0))


def test_another_dimension(deterministic):
    values = torch.randn(3, 5, 4)
    torch.testing.assert_close(running_sum(values, 1), values.cumsum(1))


def test_the_loss_of_cox_is_the_same(deterministic):
    event, time = torch.rand(300) < 0.6, torch.randint(1, 60, (300,)).float()
    risk = torch.randn(300, requires_grad=True)
    found = cox_loss(risk, event, time)
    (gradient,) = torch.autograd.grad(found, risk)
    torch.use_deterministic_algorithms(False)
    expected = cox_loss(risk, event, time)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, risk)[0])
