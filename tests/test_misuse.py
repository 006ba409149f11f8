"""What people do to the command line by mistake: a sentence that says what to do, and never a traceback."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medfuse import cli
from medfuse.errors import nearest
from medfuse.files import write_json

TRAIN = ("train", "--cohort", "transbig", "--recipe", "smoke")


@pytest.fixture
def run(tmp_path):
    """As much of a run as these commands look at before they refuse."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "run.json", {"format_version": 1, "status": "finished", "facts": {"outcomes": ["os"]}})
    splits = [{"name": "0", "train": ["a"], "tuning": [], "held_out": ["b"]}]
    write_json(folder / "splits.json", {"format_version": 1, "splits": splits})
    return str(folder)


def refused(capsys, *words):
    assert cli.main(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_no_generator_takes(capsys, monkeypatch, tmp_path, seed):
    monkeypatch.chdir(tmp_path)
    assert "seed" in refused(capsys, *TRAIN, "--seed", seed)
    assert "splits.seed" in refused(capsys, *TRAIN, "--set", f"splits.seed={seed}")
    assert list(tmp_path.iterdir()) == []


def test_out_is_a_file_or_lies_where_nothing_can_be_written(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
    (tmp_path / "file").write_text("mine")
    assert "expected a new or empty folder" in refused(capsys, *TRAIN, "--out", str(tmp_path / "file"))
    inside = str(tmp_path / "file" / "run")
    assert "expected a folder that can be written" in refused(capsys, *TRAIN, "--out", inside)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "store"]


def test_units_without_the_modality_they_are_of(capsys, run):
    for words in (("--units", "column"), ("--patients", "b"), ("--label", "1")):
        assert "add --within MODALITY" in refused(capsys, "explain", run, *words)
    assert "label" in refused(capsys, "explain", run, "--within", "clinical", "--label", "0")


def test_a_patient_who_is_not_held_out_is_refused_before_anything_is_computed(capsys, run):
    assert "found none with id a" in refused(capsys, "explain", run, "--patient", "a")


def test_paths_that_are_something_else(capsys, run, tmp_path):
    assert "found none at" in refused(capsys, "report", run, "--review", str(tmp_path / "none"))
    assert "expected a member" in refused(capsys, "merge", run, "--out", str(tmp_path / "merged"))
    assert "65535" in refused(capsys, "app", run, "--port", "99999999")


def test_a_cohort_of_tables_says_that_there_is_nothing_to_extract(capsys, tmp_path):
    assert cli.main(["extract", "--cohort", "transbig", "--store", str(tmp_path)]) == 0
    assert "nothing to extract" in capsys.readouterr().out


def test_a_name_that_is_a_fusion_and_a_recipe_is_listed_once():
    assert nearest("x", ["late", "lego", "late"]) == "Known: late, lego"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_behind_the_output():
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "medfuse", "version"]
        own = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=own)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert os.strerror(errno.ENOSPC) in done.stderr


def test_a_reader_who_leaves_early_gets_no_traceback():
    own = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-m", "medfuse", "version"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert said == ""
    assert running.returncode == 1


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_disk(monkeypatch):
    def fails(*_args):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "part")

    monkeypatch.setattr("medfuse.run.open_run", fails)
    with pytest.raises(FileNotFoundError):
        cli.main(["explain", "x"])


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*_args, **_options):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)

    monkeypatch.setattr("medfuse.workflow.train", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background may ignore it
    try:
        code = cli.main(TRAIN)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "run it again with the same --out" in capsys.readouterr().err
