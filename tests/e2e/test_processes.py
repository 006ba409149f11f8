"""Fresh processes: without scikit-survival, and from the installed wheel in another folder."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import made_up
import pytest

REPOSITORY = Path(__file__).parents[2]

WITHOUT = """
import sys

class Fence:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sksurv":
            raise AssertionError("scikit-survival is imported")

sys.meta_path.insert(0, Fence())
from medfuse.cli import main
for words in {commands!r}:
    code = main(words)
    assert code == 0, (words, code)
assert "sksurv" not in sys.modules
print("all without")
"""


def run_python(*words, cwd, **environment):
    own = {k: v for k, v in os.environ.items() if k not in ("MEDFUSE_DATA", "MEDFUSE_STORE", "PYTHONPATH")}
    env = {**own, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_train_evaluate_and_predict_run_without_scikit_survival(tmp_path):
    """With the baselines that need it switched off, nothing imports it: even trying to would fail here."""
    here = made_up.write(tmp_path / "here", n=60)
    there = made_up.write(tmp_path / "there", n=40, seed=1, prefix="q", name="there")
    options = [word for setting in (*made_up.QUICK, "train.epochs=1") for word in ("--set", setting)]
    words = ["train", "--cohort", str(here), "--recipe", "smoke", "--data-root", str(here.parent), *options]
    commands = [
        [*words, "--out", "none", "--set", "baselines=[]"],
        [*words, "--out", "r", "--set", "baselines=[kaplan_meier, clinical_cox]"],
        ["evaluate", "r", "--cohort", str(there), "--data-root", str(there.parent)],
        ["predict", "r", "--cohort", str(there), "--data-root", str(there.parent)],
        ["report", "r"],
    ]
    done = run_python("-c", WITHOUT.format(commands=commands), cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert "all without" in done.stdout
    for run, count in (("none", 1), ("r", 3)):
        models = json.loads((tmp_path / run / "metrics.json").read_text())["outcomes"]["survival"]["models"]
        assert len(models) == count
    assert (tmp_path / "predictions_there.csv").is_file()


@pytest.mark.slow
def test_the_wheel_trains_in_another_folder(tmp_path):
    """Cards and recipes travel in the wheel; nothing of the repository is needed."""
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    isolated = [] if find_spec("hatchling") is None else ["--no-build-isolation"]
    built = run_python(*pip, "wheel", "--no-deps", *isolated, "-w", str(tmp_path / "w"), str(REPOSITORY), cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "w").glob("medfuse-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, suffix in (("data_cards", ".md"), ("pipelines", ".yaml")):
        for path in (REPOSITORY / folder).glob(f"*{suffix}"):
            assert f"medfuse/_data/{folder}/{path.name}" in names
    assert not [name for name in names if name.split("/")[0] in {"tests", "benchmarks", "notebooks"}]
    site = tmp_path / "site"
    installed = run_python(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run_python("-c", "import medfuse; print(medfuse.__file__)", cwd=elsewhere, PYTHONPATH=str(site))
    assert Path(where.stdout.strip()).is_relative_to(site), where.stdout + where.stderr
    words = ["-m", "medfuse", "train", "--cohort", "transbig", "--recipe", "smoke", "--out", "run"]
    done = run_python(*words, "--set", "train.epochs=2", cwd=elsewhere, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    facts = json.loads((elsewhere / "run" / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["git"] == {}  # an installed wheel is no checkout
    assert (elsewhere / "run" / "report.html").is_file()
    unknown = run_python("-m", "medfuse", "check", "transbigg", cwd=elsewhere, PYTHONPATH=str(site))
    assert unknown.returncode == 2
    assert 'did you mean "transbig"' in unknown.stderr
