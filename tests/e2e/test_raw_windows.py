"""Raw ECG windows from WFDB files to a trained network, its report and its predictions, beside a table."""

import numpy as np
import pandas as pd
import pytest

from medfuse.errors import CohortError
from medfuse.loaders.ecg import synthesise, write_wfdb
from medfuse.training import load_fold
from medfuse.workflow import predict, train

N = 60
CARD = """---
name: raw
title: Made up
governance: {licence: CC0, source: made up, citation: none, consent: none needed, deidentification: made up}
patients: {file: patients.csv, id: id}
outcomes:
  high: {kind: binary, column: high, classes: ["no", "yes"]}
modalities:
  ecg:
    loader: ecg
    path: ecg/{patient_id}.*
    options: {seconds: 2, sampling_frequency: 50}
    extractor: {name: windows, leads: [II, V2, V5], sampling_frequency: 50, seconds: 2}
  clinical: {loader: tabular, file: patients.csv, columns: {age: {kind: numeric, unit: years}}}
---

# Made up
"""
SETTINGS = (
    "model.encoders={ecg: {name: ecg_resnet, blocks: 2, filters: 8}}",
    "model.width=8",
    "train.seeds=1",
    "train.epochs=12",
    "train.batch_size=12",
    "train.lr=3e-3",
    "train.patience=0",
    "evaluation.bootstrap=20",
    "tracking.mlflow=false",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The ST level says who is high; every seventh patient has no ECG."""
    root = tmp_path_factory.mktemp("raw_windows")
    (root / "data/ecg").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["id,age,high"]
    for k in range(N):
        high = k % 2
        rows.append(f"p{k:02d},{rng.normal(60, 9):.1f},{'yes' if high else 'no'}")
        if k % 7 != 3:
            signal = synthesise(5.0, 100.0, heart_rate=float(rng.uniform(55, 95)), st_mv=0.2 * high, seed=k)
            write_wfdb(root / "data/ecg", f"p{k:02d}", signal, sampling_frequency=100.0)
    (root / "data/patients.csv").write_text("\n".join(rows) + "\n")
    (root / "data/card.md").write_text(CARD)
    return root


@pytest.fixture(scope="module")
def run(place):
    return train(
        place / "data/card.md",
        recipe="smoke",
        overrides=SETTINGS,
        data_root=place / "data",
        store_root=place / "store",
        out=place / "run",
    )


def test_the_network_is_trained_and_beats_chance(run):
    for split in run.read("splits")["splits"]:
        member = load_fold(run.fold_folder(split["name"])).members[0]
        assert member.shapes["ecg"].item == member.preprocessing["ecg"].item == (3, 100)
        assert type(member.build().encoders[member.build().modalities.index("ecg")]).__name__ == "EcgResnetEncoder"
    models = run.read("metrics")["outcomes"]["high"]["models"]
    assert models["medfuse"]["mean"]["auroc"] > 0.75


def test_predictions_come_back_from_the_run_directory(run, place, tmp_path):
    where = {"data_root": place / "data", "store_root": place / "store"}
    one, two = (pd.read_csv(predict(run, place / "data/card.md", **where, out=tmp_path / f"{k}.csv")) for k in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert len(one) == N


def test_another_order_of_leads_is_refused(run, place, tmp_path):
    """As many numbers, of the same unit, that mean something else."""
    (place / "data/other.md").write_text(CARD.replace("leads: [II, V2, V5]", "leads: [V5, V2, II]"))
    with pytest.raises(CohortError, match=r"modality ecg: expected .* raw items of the same channels, step and unit"):
        predict(
            run,
            place / "data/other.md",
            data_root=place / "data",
            store_root=place / "store",
            out=tmp_path / "predictions.csv",
        )
