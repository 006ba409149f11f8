import numpy as np
import pytest
import simulated
import torch
from torch import nn

from medfuse.batch import Batch, target_tensors
from medfuse.targets import Survival
from medfuse.types import PatientId

FEATURES = 10


@pytest.fixture(scope="session")
def cohort():
    return simulated.simulate(150)


class TinyModel(nn.Module):
    """A stand-in with the interface of MultimodalModel: one hidden layer, dropout, Breslow partial likelihood."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def begin(self, train):
        """Fits nothing before the first step."""

    def forward(self, batch):
        shown = torch.where(batch.present[:, :1], batch.tokens["a"][..., 0], 0.0)
        return {"os": self.net(shown)[:, 0]}

    outcomes = ("os",)
    bags = ()
    begun = False

    def loss(self, batch, *, of=None):
        return self.loss_of(self(batch), batch.targets) * (1 if of is None else len(batch) / len(of))

    def loss_of(self, logits, targets):
        target = targets["os"]
        order = torch.argsort(target.time, descending=True, stable=True)
        log_hazard, event = logits["os"].float()[order], target.event[order]
        return -((log_hazard - torch.logcumsumexp(log_hazard, 0)) * event).sum() / event.sum().clamp(min=1)

    def predictions(self, logits):
        return {"os": {"risk_score": logits["os"]}}


def make_batch(n, seed, *, event=None):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, FEATURES)).astype(np.float32)
    time = draw.exponential(size=n) / np.exp(x[:, 0] + x[:, 1])
    censoring = draw.exponential(1.5, size=n)
    happened = time < censoring if event is None else np.full(n, event)
    survival = Survival(event=happened, time=np.minimum(time, censoring))
    return Batch(
        tokens={"a": torch.from_numpy(x)[..., None]},
        token_mask={"a": torch.ones(n, FEATURES, dtype=torch.bool)},
        position={"a": torch.zeros(n, FEATURES, 1)},
        present=torch.ones(n, 1, dtype=torch.bool),
        modalities=("a",),
        targets={"os": target_tensors(survival)},
        patient_ids=tuple(PatientId(f"p{seed}-{i}") for i in range(n)),
    )


@pytest.fixture
def tiny():
    return TinyModel


@pytest.fixture
def batches():
    return make_batch(200, 1), make_batch(80, 2)


@pytest.fixture
def batch_of():
    return make_batch
