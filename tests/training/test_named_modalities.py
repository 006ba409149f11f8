"""A recipe that names a modality serves the joint network and the network of every single modality."""

import numpy as np
import pytest
import simulated

from medfuse.models import ModelSettings
from medfuse.training import FoldSettings, TrainSettings, fit_fold, predict_fold


@pytest.mark.parametrize(
    "fusion",
    [
        {"name": "coattention", "query": "expression"},
        {"name": "prime", "prime": "stains", "code": 4},
        {"name": "cascade", "order": ["stains", "clinical", "expression"], "latents": 2},
    ],
)
def test_a_fold_is_fitted_and_predicts(fusion):
    cohort = simulated.only(simulated.simulate(120), "os")
    settings = FoldSettings(
        model=ModelSettings(width=8, fusion=fusion),
        train=TrainSettings(epochs=8, lr=1e-2, device="cpu"),
        seeds=(0,),
        unimodal=True,
    )
    ids = cohort.ids[:100]
    fold = fit_fold(cohort.data, cohort.outcomes, train_ids=ids, inner=cohort.inner(ids), settings=settings)
    assert fold.experts == ("", "clinical", "expression", "stains")
    assert not fold.skipped
    risk = predict_fold(fold, cohort.data, cohort.ids[100:])["os"].risk_score
    assert np.isfinite(risk).all()
    assert len(set(risk.tolist())) == 20
