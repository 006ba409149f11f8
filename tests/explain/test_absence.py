"""A model that learned something from a modality's absence is found out; one that did not is left in peace."""

import numpy as np
import pytest
import simulated

from medfuse.explain import coalition_values
from medfuse.explain.absence import absence_flags
from medfuse.explain.donors import donor_draws, missing_questions
from medfuse.explain.embedding import embed
from medfuse.models import ModelSettings
from medfuse.targets import Survival
from medfuse.training import FoldSettings, TrainSettings, fit_fold
from medfuse.training.outcomes import Outcomes
from medfuse.types import PatientId


def flags(informative, seed=0, n=700):
    """Three tables; the third is missing of a third of the patients, whose log hazard is ``informative`` higher."""
    rng = np.random.default_rng(seed)
    ids = tuple(PatientId(f"m{i}") for i in range(n))
    x, missing = rng.normal(size=(n, 3, 2)), rng.random(n) < 0.35
    log_hazard = x.sum(axis=2) @ np.array([0.7, 0.5, 0.3]) + informative * missing
    time, cut = rng.exponential(1000, size=n) / np.exp(log_hazard), rng.exponential(2500, size=n)
    data = {
        name: simulated.columns(name, x[:, k], ids, has=~missing if k == 2 else rng.random(n) < 0.85)
        for k, name in enumerate("abc")
    }
    outcomes = Outcomes(patient_ids=ids, targets={"os": Survival(event=time < cut, time=np.minimum(time, cut))})
    train, held = ids[:500], ids[500:]
    inner = [simulated.Inner(tuple(i for m, i in enumerate(train) if m % 2 != k), train[k::2]) for k in range(2)]
    settings = FoldSettings(
        model=ModelSettings(width=16),
        train=TrainSettings(epochs=20, lr=5e-3, batch_size=64, device="cpu", patience=0),
        seeds=(0,),
        unimodal=False,
    )
    fold = fit_fold(data, outcomes, train_ids=train, inner=inner, settings=settings)
    values = coalition_values(fold, data, held)
    found = donor_draws(
        fold, data, values, embed(fold, data, held), missing_questions(values.present), horizons=[400.0]
    )
    said = absence_flags(found.risk[:, 0], found.draws[..., 0].astype(np.float64), found.modality, 3)
    return said[found.modality == 2].mean(), said.mean()


@pytest.mark.parametrize(("informative", "low", "high"), [(0.0, 0.0, 0.2), (1.5, 0.75, 1.0)])
def test_absence_as_information(informative, low, high):
    third, every = flags(informative)
    assert low <= third <= high
    if not informative:
        assert every <= 0.2
