"""Harrell's C on the published out-of-fold risks of MCAT gives the published means: an exact test of the metric."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medfuse.metrics.discrimination import harrell_c
from medfuse.targets import Survival


@pytest.mark.realdata
def test_published_means_to_1e12():
    root = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "tcga_mcat"
    risks = pd.read_csv(root / "published_predictions.csv.gz")
    table = pd.read_csv(root / "published_cindex.csv").set_index(["model", "cohort"])["Val C-Index (Mean)"]
    compared = 0
    for (model, cohort), rows in risks.groupby(["model", "cohort"]):
        key = (model, cohort.removeprefix("tcga_"))
        if key not in table.index:
            continue
        values = []
        for _, fold in rows.groupby("fold"):
            survival = Survival(event=(fold.censorship == 0).to_numpy(), time=fold.survival_months.to_numpy(float))
            values.append(harrell_c(survival, fold.risk.to_numpy(float)).value)
        assert np.mean(values) == pytest.approx(table[key], abs=1e-12), key
        compared += 1
    assert compared >= 40
