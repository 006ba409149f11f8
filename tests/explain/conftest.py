"""A fold of small networks on the simulated cohort that the tests of training use."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import simulated

from medfuse.models import ModelSettings
from medfuse.training import FoldSettings, TrainSettings, fit_fold

QUICK = TrainSettings(epochs=12, lr=1e-2, batch_size=64, device="cpu", patience=0)


@pytest.fixture(scope="session")
def cohort():
    return simulated.simulate(150)


@pytest.fixture(scope="session", params=["joint", "experts", "late-cox"])
def fold(request, cohort):
    ids = cohort.ids[:110]
    late = request.param == "late-cox"
    settings = FoldSettings(
        model=ModelSettings(width=16, fusion={"name": "late"} if late else {"name": "transformer"}),
        heads={"os": {"name": "cox"}} if late else {},
        train=QUICK,
        seeds=(0, 1),
        unimodal=request.param == "experts",
        forests=request.param == "experts",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfuse.training.forests.TREES", 5)  # few and soft: explanations ask them thousands of times
        patch.setattr("medfuse.training.forests.SOFTNESS", 0.25)
        return fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings)
