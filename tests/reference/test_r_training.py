"""The training path against R: a linear network in the product's own loop, and the slope of recalibration."""

import numpy as np
import pytest
import torch
from from_r import array, dataset, fixture

from medfuse.batch import Batch, ModalityShape, target_tensors
from medfuse.cox import fit_cox
from medfuse.models.encoders.linear import LinearEncoder
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.heads import HEADS
from medfuse.models.model import MultimodalModel
from medfuse.models.settings import HeadSettings
from medfuse.training.fit import fit_member
from medfuse.training.recalibration import cox_slope
from medfuse.training.settings import TrainSettings


class Through(Fusion):
    """The token of the one modality is the state: nothing that is not linear."""

    def forward(self, tokens, masks, present):
        return Fused(states=tokens[0], weights=torch.ones_like(tokens[0][..., 0]))


def batch_of(x, survival):
    n, p = x.shape
    value = torch.tensor(x, dtype=torch.float32)
    return Batch(
        tokens={"a": torch.stack([value, torch.ones(n, p)], dim=-1)},
        token_mask={"a": torch.ones(n, p, dtype=torch.bool)},
        position={"a": torch.zeros(n, p, 1)},
        present=torch.ones(n, 1, dtype=torch.bool),
        modalities=("a",),
        targets={"os": target_tensors(survival)},
        patient_ids=tuple(f"p{i}" for i in range(n)),
    )


@pytest.mark.parametrize(("name", "ties"), [("lung", "efron"), ("lung", "breslow"), ("veteran", "efron")])
def test_a_linear_network_trained_by_fit_member_reaches_the_coefficients_of_r(name, ties):
    """Encoder, head, loss, optimiser, loop and selection of the product; within 1e-4 per standard deviation."""
    x, survival, _ = dataset(name)
    scale = x.std(axis=0)
    p = x.shape[1]

    def build():
        options = {"tokens": 1, "layers": 0, "dropout": 0.0, "input_dropout": 0.0, "flags": False}
        encoder = LinearEncoder(shape=ModalityShape(layout="columns", features=p), width=4, **options)
        head = HEADS["cox"](width=4, settings=HeadSettings(kind="survival", name="cox"), ties=ties)
        return MultimodalModel(encoders={"a": encoder}, fusion=Through(), heads={"os": head})

    settings = TrainSettings(
        epochs=250,
        batch_size=len(x),
        lr=3e-2,
        weight_decay=0.0,
        patience=0,
        clip=0.0,
        modality_dropout=False,
        device="cpu",
        threads=1,
    )
    fitted = fit_member(batch_of((x - x.mean(axis=0)) / scale, survival), None, build=build, settings=settings, seed=1)
    model = build()
    model.load_state_dict(fitted.state)
    with torch.no_grad():
        beta = (model.head("os").risk.weight @ model.encoders[0].body[0].weight)[0].double().numpy()
    expected = array(fixture("cox")["fits"][name][ties]["coefficients"])
    np.testing.assert_allclose(beta, expected * scale, atol=1e-4)


@pytest.mark.parametrize("name", ["lung", "veteran", "rossi", "gbsg", "pbc"])
def test_the_slope_of_recalibration_is_breslows(name):
    """Training may not import cox.py (it loads in numpy alone); it must say the same, which R says too."""
    x, survival, _ = dataset(name)
    score = x @ np.array(fixture("cox")["fits"][name]["breslow"]["coefficients"])
    score -= score.mean()
    fit = fit_cox(score[:, None], survival, ties="breslow")
    assert fit.coefficients[0] == pytest.approx(1, abs=1e-9)  # the fitted score needs no further slope
    assert cox_slope(survival, score) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["lung", "rossi"])
def test_the_data_are_the_public_ones(name):
    datasets = pytest.importorskip("lifelines.datasets")
    x, survival, _ = dataset(name)
    if name == "lung":
        frame = datasets.load_lung()
        expected = frame[["age", "sex"]], frame["status"] == 1, frame["time"]
    else:
        frame = datasets.load_rossi()
        expected = frame[["fin", "age", "race", "wexp", "mar", "paro", "prio"]], frame["arrest"] == 1, frame["week"]
    np.testing.assert_array_equal(x, expected[0].to_numpy(float))
    np.testing.assert_array_equal(survival.event, expected[1].to_numpy())
    np.testing.assert_array_equal(survival.time, expected[2].to_numpy(float))
