"""Every ``--out``, and every default of one: what a user has there stays, and the refusal comes first."""

import inspect
import os

import pytest

from medfuse import cli
from medfuse.errors import StoreError
from medfuse.files import write_json
from medfuse.outputs import require_free, require_new, write_new

MINE = b"mine"


@pytest.fixture
def run(tmp_path):
    """As much of a run as these commands look at before they refuse."""
    folder = tmp_path / "run"
    facts = {"outcomes": ["os"], "data": {"m": "0"}}
    write_json(folder / "run.json", {"format_version": 1, "status": "finished", "facts": facts})
    write_json(folder / "manifest.json", {"files": {}})
    return folder


FILES = {
    "predict": (("RUN", "--cohort", "transbig"), "predictions_transbig.csv"),
    "evaluate": (("RUN", "--cohort", "transbig"), "external_transbig.json"),
    "export": (("RUN", "--patient", "a", "--format", "pdf"), None),
    "merge": (("RUN",), None),
}
FOLDERS = {
    "train": ("--cohort", "transbig", "--recipe", "smoke"),
    "benchmark": ("--cohort", "transbig", "--models", "concat"),
    "demo": ("--patients", "60"),
}
OTHERS = {"stress": "files in a folder, below"}


def refused(capsys, *words):
    assert cli.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def words_of(command, run):
    return [command, *(run if word == "RUN" else word for word in FILES[command][0])]


def test_every_command_with_out_is_asked_here():
    callbacks = {(c.name or c.callback.__name__): c.callback for c in cli.app.registered_commands}
    having = {name for name, call in callbacks.items() if "out" in inspect.signature(call).parameters}
    assert having == FILES.keys() | FOLDERS.keys() | OTHERS.keys()


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_what_stands_at_the_place_of_a_file_stays(capsys, run, tmp_path, command, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_bytes(MINE)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "nothing")
    said = refused(capsys, *words_of(command, run), "--out", place)
    assert f"{place}: expected a place where nothing stands" in said
    assert "choose another --out, or delete it" in said
    assert os.path.lexists(place)
    assert kind != "file" or place.read_bytes() == MINE


@pytest.mark.parametrize("command", [name for name in FILES if FILES[name][1]])
def test_the_default_place_is_no_exception(capsys, run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    name = FILES[command][1]
    (tmp_path / name).write_bytes(MINE)
    assert f"{name}: expected a place where nothing stands" in refused(capsys, *words_of(command, run))
    assert (tmp_path / name).read_bytes() == MINE


@pytest.mark.parametrize("command", FILES)
def test_nothing_is_put_into_a_run(capsys, run, command):
    assert "outside of runs" in refused(capsys, *words_of(command, run), "--out", run / "deep" / "new")
    assert sorted(p.name for p in run.iterdir()) == ["manifest.json", "run.json"]


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_of_other_files_stays(capsys, run, tmp_path, monkeypatch, command):
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
    place = tmp_path / "place"
    for name in ("table.csv", "truth.md", "notes"):
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(MINE)
    said = refused(capsys, command, *FOLDERS[command], "--out", place)
    assert f"{place}: expected a new or empty folder, found other files; choose another --out" in said
    assert {p.name: p.read_bytes() for p in place.iterdir()} == dict.fromkeys(("table.csv", "truth.md", "notes"), MINE)
    assert "outside of runs" in refused(capsys, command, *FOLDERS[command], "--out", run / "deep" / "new")
    assert not (run / "deep").exists()


@pytest.mark.parametrize("name", ["subsets.json", "subsets.csv", "subsets.svg"])
def test_stress_adds_new_files_to_a_folder(capsys, run, tmp_path, name):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / name).write_bytes(MINE)
    words = ("stress", run, "--mechanism", "subsets", "--out")
    assert f"{name}: expected a place where nothing stands" in refused(capsys, *words, tmp_path / "place")
    assert [p.read_bytes() for p in (tmp_path / "place").iterdir()] == [MINE]
    assert "outside of runs" in refused(capsys, *words, run / "stress")


def test_the_same_content_again_is_no_loss(tmp_path):
    """As an export, whose default name is its hash; its time of writing stays, too."""
    write_new(tmp_path / "a", MINE)
    before = (tmp_path / "a").stat().st_mtime_ns
    write_new(tmp_path / "a", MINE)
    assert (tmp_path / "a").stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="nothing stands, found a file"):
        write_new(tmp_path / "a", b"other")
    assert (tmp_path / "a").read_bytes() == MINE


def test_what_a_command_began_is_taken_up(tmp_path):
    require_free(tmp_path / "new")
    require_free(tmp_path)
    (tmp_path / ".tmp-run.json-00000000").write_bytes(b"{")  # a killed writer's
    require_free(tmp_path)
    (tmp_path / "cells").mkdir()
    require_free(tmp_path, own=("cells", "work"))
    with pytest.raises(StoreError, match="found other files"):
        require_free(tmp_path, own=("work",))
    require_new(tmp_path / "cells" / "new")
