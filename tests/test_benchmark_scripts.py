"""Every script in benchmarks/ runs with a tiny count, so that none rots; what it asserts of values holds here too."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
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
    "app": ["--patients", "40", "--reruns", "10"],
    "bags": ["--small", "--repeats", "1"],
    "committee": ["--cohorts", "transbig", "--outcome", "distant_metastasis", *QUICK],
    "ecg": ["--small"],
    "ehr": ["--small", "--turns", "1"],
    "explaining": ["--small"],
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
    "synthetic": ["--patients", "30", "--seeds", "1"],
    "tcga": ["--cohorts", "transbig", "--outcome", "distant_metastasis", *QUICK],
    "tracking": ["--small"],
    "volumes": ["--small"],
    "zoo": ["--runs", "runs", "--cohorts", "transbig", "--models", "concat", *QUICK],
}
SCRIPTS["zoo"] += ["--set", "outcomes=[distant_metastasis]"]
DATA = os.environ.get("MEDFUSE_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
REAL = {"snn": ["--cohorts", "mcat_blca", "--seeds", "1", "--epochs", "1"]}  # a publication's tables and nothing else


def test_every_script_is_listed():
    assert set(SCRIPTS) | set(REAL) == {p.stem for p in FOLDER.glob("*.py") if not p.name.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_runs_and_leaves_the_committed_figures_alone(tmp_path, name):
    if name == "app" and not (shutil.which("chromium") and find_spec("playwright")):
        pytest.skip("needs Debian's chromium and the extra browser")
    runs(tmp_path, name, SCRIPTS[name])


@pytest.mark.realdata
@pytest.mark.parametrize("name", sorted(REAL))
def test_a_script_on_real_tables_runs(tmp_path, name):
    runs(tmp_path, name, REAL[name], MEDFUSE_DATA=DATA)


def runs(tmp_path, name, options, **own):
    committed = FOLDER / "results" / f"{name}.json"
    before = committed.read_bytes() if committed.is_file() else b""
    own |= {"MEDFUSE_BENCH": str(tmp_path), "MEDFUSE_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, str(FOLDER / f"{name}.py"), *options, "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, **own, "PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out.json").read_text())
    assert (committed.read_bytes() if committed.is_file() else b"") == before
