"""Cohorts that leave little to explain: one modality, nothing missing, a continuous outcome."""

import made_up
import numpy as np
import pytest

from medfuse.explaining import check_run, default_horizon, explain_run, lines
from medfuse.explaining_parts import patient_lines, read_parts
from medfuse.workflow import train

CASES = {
    "one modality": {"modalities": ("clinical",), "outcomes": ("survival",)},
    "a value": {"modalities": ("genes", "clinical"), "outcomes": ("size",)},
    "classes": {"modalities": ("stains", "genes", "clinical"), "outcomes": ("subtype",)},
}


@pytest.mark.parametrize("case", CASES)
def test_little_to_explain(case, tmp_path):
    card = made_up.write(tmp_path, n=60, **CASES[case])
    outcome = CASES[case]["outcomes"][0]
    run = train(
        card,
        recipe="smoke",
        overrides=(*made_up.QUICK, f"outcomes=[{outcome}]", "baselines=[]"),
        data_root=tmp_path,
        store_root=tmp_path / "store",
        out=tmp_path / "run",
    )
    where = {"data_root": tmp_path, "store_root": tmp_path / "store"}
    found = explain_run(run, **where)
    checks = {check.name: check for check in check_run(run, **where)}
    run.verify()
    assert checks["completeness"].passed
    if case == "one modality":
        assert checks["deletion against random order"].passed is None
        assert checks["value of a modality that was hidden"].passed is None
    parts = read_parts(run, outcome)
    at = default_horizon(run, found)
    for one, part in zip(found, parts, strict=True):
        assert len(part.donors) == (~one.present).sum()
        for patient in one.patient_ids[:5]:
            text = "\n".join(patient_lines(parts, patient, horizon=at))
            assert "inputs" in text
            assert "nan" not in text
    assert np.isfinite(parts[0].gate.concordance[-1])
    assert "nan" not in "\n".join(lines(found, horizon=at))
