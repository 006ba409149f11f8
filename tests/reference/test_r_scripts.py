"""Where R is installed, the scripts still say what the fixtures hold."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from from_r import FIXTURES

SCRIPTS = Path(__file__).parent / "r"
NEEDS = {"brier": "riskRegression"}


def differences(kept, made, where=""):
    """Places where two JSON values differ by more than 1e-9."""
    if isinstance(kept, dict):
        assert kept.keys() == made.keys(), where
        return [d for key in kept for d in differences(kept[key], made[key], f"{where}/{key}")]
    if isinstance(kept, list):
        assert len(kept) == len(made), where
        return [d for k, (a, b) in enumerate(zip(kept, made, strict=True)) for d in differences(a, b, f"{where}/{k}")]
    if isinstance(kept, float) or isinstance(made, float):
        same = kept is not None and made is not None and math.isclose(kept, made, rel_tol=1e-9, abs_tol=1e-9)
    else:
        same = kept == made
    return [] if same else [where]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.R") if path.stem != "common"))
def test_script_says_what_its_fixture_holds(name, tmp_path):
    packages = {"survival", "carData", NEEDS.get(name, "survival")}
    there = subprocess.run(["Rscript", "-e", "cat(rownames(installed.packages()))"], capture_output=True, text=True)
    missing = packages - set(there.stdout.split())
    if missing:
        pytest.skip(f"R has no {', '.join(sorted(missing))}")
    environment = {**os.environ, "MEDFUSE_FIXTURES": str(tmp_path)}
    subprocess.run(["Rscript", str(SCRIPTS / f"{name}.R")], env=environment, check=True, capture_output=True)
    made = sorted(tmp_path.glob("*.json"))
    assert made
    for path in made:
        kept, new = json.loads((FIXTURES / path.name).read_text()), json.loads(path.read_text())
        assert kept.pop("made_by")["script"] == new.pop("made_by")["script"]
        assert not differences(kept, new)
