"""Planted truth: two modalities that say nothing alone and everything together; who can find them, and who cannot."""

import numpy as np
import pytest
import torch

from medfuse.batch import Batch, ModalityShape, TargetTensors, without_modality
from medfuse.models import HeadSettings, ModelSettings, build_model

SHAPE = ModalityShape(layout="columns", features=2)
NAMES = ("left", "right", "noise")
JOINT = [
    ("coattention", 150),
    ("concat", 150),
    ("sequential", 150),
    ("transformer", 150),
    pytest.param("cascade", 300, marks=pytest.mark.slow),
    pytest.param("latent", 150, marks=pytest.mark.slow),
]
LATE = ["late", "stacked"]  # averages of what single modalities say
ONE = ["prime"]  # reads one modality where it is there


def simulate(n, seed):
    """Label 1 with probability 0.95 where the first columns of left and right have the same sign, else 0.05."""
    g = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(n, 2, generator=g) for name in NAMES}
    same = values["left"][:, 0] * values["right"][:, 0] > 0
    label = (torch.rand(n, generator=g) < torch.where(same, 0.95, 0.05)).long()
    flag = torch.ones(n, 2)
    return Batch(
        tokens={name: torch.stack([x, flag], dim=-1) for name, x in values.items()},
        token_mask=dict.fromkeys(NAMES, flag.bool()),
        position=dict.fromkeys(NAMES, torch.arange(2.0).expand(n, -1)[..., None]),
        present=torch.ones(n, 3, dtype=torch.bool),
        modalities=NAMES,
        targets={"y": TargetTensors(kind="binary", observed=torch.ones(n, dtype=torch.bool), label=label)},
        patient_ids=tuple(str(i) for i in range(n)),
    )


def auroc(risk, label):
    rank = np.argsort(np.argsort(risk))
    positive = label.numpy() == 1
    return (rank[positive].mean() - (positive.sum() - 1) / 2) / (~positive).sum()


def fitted(name, *, steps=150):
    torch.manual_seed(0)
    model = build_model(
        ModelSettings(
            width=16,
            fusion={"name": name, "dropout": 0.0},
            encoders={m: {"name": "table", "column_dropout": 0.0} for m in NAMES},
        ),
        shapes=dict.fromkeys(NAMES, SHAPE),
        heads={"y": HeadSettings(kind="binary", name="classification", n_classes=2)},
    )
    train = simulate(1500, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    draw = torch.Generator().manual_seed(2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(train.select(torch.randint(0, len(train), (128,), generator=draw))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def held_out(model, hide=()):
    test = simulate(2000, seed=3)
    for name in hide:
        test = without_modality(test, name)
    return auroc(model.predict(test)["y"]["risk_score"].numpy(), test.targets["y"].label)


@pytest.mark.parametrize(("name", "steps"), JOINT)
def test_joint_fusions_find_the_pair(name, steps):
    model = fitted(name, steps=steps)
    assert held_out(model) >= 0.9  # the oracle reaches 0.95
    assert abs(held_out(model, hide=("right",)) - 0.5) < 0.06  # and nothing is there without the other


@pytest.mark.parametrize("name", LATE + ONE)
def test_averages_of_single_modalities_cannot(name):
    assert abs(held_out(fitted(name)) - 0.5) < 0.06
