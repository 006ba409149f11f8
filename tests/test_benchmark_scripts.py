"""Every script in benchmarks/ runs with a tiny count, so that none rots; what it asserts of values holds here too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
QUICK = [
    "--set",
    "train.epochs=1",
    "--set",
    "train.seeds=1",
    "--set",
    "splits.folds=2",
    "--set",
    "splits.inner_folds=2",
]
SCRIPTS = {
    "bags": ["--small", "--repeats", "1"],
    "ecg": ["--small"],
    "ehr": ["--small", "--turns", "1"],
    "expression": ["--small"],
    "losses": ["--small", "--repeats", "1"],
    "metrics": ["--small"],
    "missing": ["--cohorts", "transbig", "--draws", "1", *QUICK, "--set", "outcomes=[distant_metastasis]"],
    "mnar_flip": ["--seeds", "1", "--patients", "60"],
    "oracle": ["--small", "--fusions", "concat"],
    "packed": ["--small", "--repeats", "1"],
    "slides": ["--small", "--repeats", "1", "--data", "nowhere"],
    "startup": ["--small"],
    "store": ["--small"],
    "synthetic": ["--patients", "16", "--seeds", "1"],
    "tcga": ["--cohorts", "transbig", "--outcome", "distant_metastasis", *QUICK],
    "tracking": ["--small"],
    "volumes": ["--small"],
}


def test_every_script_is_listed():
    assert set(SCRIPTS) == {p.stem for p in FOLDER.glob("*.py") if not p.name.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_runs_and_leaves_the_committed_figures_alone(tmp_path, name):
    committed = FOLDER / "results" / f"{name}.json"
    before = committed.read_bytes() if committed.is_file() else b""
    own = {"MEDFUSE_BENCH": str(tmp_path), "MEDFUSE_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, str(FOLDER / f"{name}.py"), *SCRIPTS[name], "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, **own, "PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out.json").read_text())
    assert (committed.read_bytes() if committed.is_file() else b"") == before
