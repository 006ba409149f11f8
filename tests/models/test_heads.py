import math

import pytest
import torch
from model_cases import HEADS_OF

from medfuse.batch import TargetTensors
from medfuse.errors import ModelError
from medfuse.losses import cox_loss
from medfuse.models import HeadSettings
from medfuse.models.heads import ClassificationHead, CoxHead, DiscreteHazardHead, RegressionHead


def test_discrete_hazard_starts_at_the_population():
    head = DiscreteHazardHead(width=4, settings=HEADS_OF["os"])
    found = head.predict(head(torch.zeros(1, 4)))
    hazard = torch.sigmoid(torch.tensor(HEADS_OF["os"].prior, dtype=torch.float64))
    assert torch.allclose(found["survival"][0], torch.cumprod(1 - hazard, 0), atol=1e-6)
    expected = -torch.log(torch.cumprod(1 - hazard, 0)).mean()
    assert float(found["risk_score"]) == pytest.approx(float(expected), abs=1e-6)


def test_proportional_curves_never_cross():
    torch.manual_seed(0)
    head = DiscreteHazardHead(width=4, settings=HEADS_OF["os"])
    found = head.predict(head(torch.randn(50, 4) * 20))
    order = found["risk_score"].argsort()
    assert (found["survival"][order].diff(dim=0) <= 0).all()
    assert head.risk.weight.shape == (1, 4)
    assert DiscreteHazardHead(width=4, settings=HEADS_OF["os"], proportional=False).risk.weight.shape == (3, 4)


def test_cox_head_has_no_curves_and_honours_ties():
    torch.manual_seed(0)
    head = CoxHead(width=4, settings=HEADS_OF["dfs"], ties="breslow")
    logits = head(torch.randn(30, 4))
    assert set(head.predict(logits)) == {"risk_score"}
    event, time = torch.ones(30, dtype=torch.bool), torch.arange(30.0).div(3).ceil()
    target = TargetTensors(kind="survival", observed=torch.ones(30, dtype=torch.bool), event=event, time=time)
    assert torch.equal(head.loss(logits, target), cox_loss(logits[:, 0], event, time, ties="breslow"))
    assert not torch.equal(head.loss(logits, target), cox_loss(logits[:, 0], event, time))


def test_classification_starts_at_the_frequencies():
    settings = HeadSettings(kind="binary", name="classification", n_classes=2, prior=(math.log(0.8), math.log(0.2)))
    head = ClassificationHead(width=4, settings=settings)
    found = head.predict(head(torch.zeros(1, 4)))
    assert found["probability"][0].tolist() == pytest.approx([0.8, 0.2], abs=1e-6)
    assert float(found["risk_score"]) == pytest.approx(0.2, abs=1e-6)


def test_regression_speaks_the_unit_of_the_outcome():
    head = RegressionHead(width=4, settings=HEADS_OF["score"])
    assert head.predict(torch.tensor([[0.5]]))["value"].tolist() == [11.0]
    target = TargetTensors(kind="continuous", observed=torch.tensor([True]), value=torch.tensor([13.0]))
    assert float(head.loss(torch.tensor([[0.5]]), target)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        (DiscreteHazardHead, {"kind": "survival", "name": "discrete_hazard"}, "expected a time_grid"),
        (DiscreteHazardHead, {"kind": "survival", "name": "x", "time_grid": (1.0, 2.0), "prior": (0.1,)}, "2 and 1"),
        (ClassificationHead, {"kind": "binary", "name": "classification", "n_classes": 1}, "expected >= 2 classes"),
    ],
)
def test_heads_refuse_settings_that_do_not_fit(head, settings, message):
    with pytest.raises(ModelError, match=message):
        head(width=4, settings=HeadSettings(**settings))


def test_head_refuses_a_target_of_another_kind():
    head = CoxHead(width=4, settings=HEADS_OF["dfs"])
    target = TargetTensors(kind="continuous", observed=torch.tensor([True]), value=torch.tensor([13.0]))
    with pytest.raises(ModelError, match="expected a target with event, found one of kind continuous"):
        head.loss(torch.zeros(1, 1), target)
