"""A sealed folder is changed in one step: whenever the writer dies, all of a change is there or none, and sealed."""

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kills import killed

from medfuse import files
from medfuse.errors import StoreError

OLD = {"a": "1", "sub/b": "1", "sub/c": "kept"}
NEW = {"a": "2", "sub/b": "2", "sub/c": "kept", "more/d/e": "2", "joined": "meanwhile"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sealed folder that a file has joined since; nothing waits for the disk, as no power is cut here."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name, text in OLD.items():
        files.write_text(tmp_path / name, text)
    files.seal(tmp_path, {"kind": "made"})
    files.write_text(tmp_path / "joined", "meanwhile")
    return tmp_path


def amend(folder):
    with files.amended(folder) as stage:
        for name in ("a", "sub/b", "more/d/e"):
            files.write_text(stage / name, "2")


def sealed(folder):
    """The parts, which agree with the seal."""
    return {name: (folder / name).read_text() for name in files.verify(folder)["files"]}


def test_all_is_changed_and_sealed(folder):
    amend(folder)
    assert sealed(folder) == NEW
    assert files.verify(folder)["kind"] == "made"
    assert files.unsealed(folder) == []
    assert sorted(p.name for p in folder.iterdir()) == ["a", "joined", "manifest.json", "more", "sub"]


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_state(folder, tmp_path_factory):
    place = shutil.copytree(folder, tmp_path_factory.mktemp("peace") / "x")
    with killed() as moments:
        amend(place)
    assert len(moments) > 20
    seen = []
    for end in range(len(moments)):
        place = shutil.copytree(folder, tmp_path_factory.mktemp("kill") / "x")
        with killed(end) as came:
            amend(place)
        assert len(came) == end
        found = sealed(place)
        assert found in (OLD, NEW), moments[end]
        seen.append(found == NEW)
        assert files.unsealed(place) == ([] if seen[-1] else ["joined"])
        amend(place)
        assert sealed(place) == NEW
        assert not list(place.rglob(".amendment*"))
    assert seen == sorted(seen), "once decided, it stays"
    assert seen.count(True) > 5 < seen.count(False)


def test_a_kill_while_the_next_process_ends_the_change(folder, tmp_path_factory):
    place = shutil.copytree(folder, tmp_path_factory.mktemp("peace") / "x")
    with killed() as moments:
        amend(place)
    decided = moments.index("replace a")
    ending = len(moments) - decided
    for end in range(ending):
        place = shutil.copytree(folder, tmp_path_factory.mktemp("kill") / "x")
        with killed(decided):
            amend(place)
        assert (place / "a").read_text() == "1"
        with killed(end):
            files.verify(place)
        assert sealed(place) == NEW


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from medfuse import files

rename = Path.replace
def replace(self, to):
    rename(self, to)
    if str(to) == str(Path(sys.argv[1]) / "a"):
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = replace
with files.amended(Path(sys.argv[1])) as stage:
    for name in ("a", "sub/b", "more/d/e"):
        files.write_text(stage / name, "2")
"""


def test_signal_nine_between_the_first_part_and_the_seal(folder):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, folder], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ((folder / "a").read_text(), (folder / "sub" / "b").read_text()) == ("2", "1")
    assert sealed(folder) == NEW


@pytest.mark.parametrize("part", ["a", "sub/b", "sub/c", "joined"])
def test_what_is_altered_while_a_part_is_written_is_not_sealed(folder, part):
    with files.amended(folder) as stage:
        files.write_text(stage / "more", "2")
        if part != "joined":
            (folder / part).write_text("x")
    if part == "joined":
        (folder / part).write_text("x")
    with pytest.raises(StoreError, match=f"{part}: content differs"):
        files.verify(folder)


@pytest.mark.parametrize("part", ["a", "sub/c", ".amendment/sub/b", ".amendment/manifest.json", "manifest.json"])
def test_what_is_altered_after_a_kill_is_found(folder, part):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, folder], check=False)
    assert done.returncode == -signal.SIGKILL
    content = (folder / part).read_bytes()
    (folder / part).write_bytes(content.replace(b"2", b"3") if b"2" in content else content + b" ")
    if part == "manifest.json":  # the old one, which is no longer in force
        assert sealed(folder) == NEW
        return
    with pytest.raises(StoreError, match="differs from"):
        files.verify(folder)
    with pytest.raises(StoreError, match="differs from"):
        files.verify(folder)  # however often one looks


def test_where_nothing_can_be_moved_it_says_so(folder, monkeypatch):
    assert subprocess.run([sys.executable, "-c", SIGNALLED, folder], check=False).returncode == -signal.SIGKILL

    def fail(*_args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StoreError, match=r"bring a change to its end .* Read-only file system; open it once"):
        files.verify(folder)


def test_a_reader_beside_a_writer_sees_a_sealed_folder(folder):
    over, found = threading.Event(), []

    def read():
        while not over.is_set():
            found.append(sealed(folder) if files.unsealed(folder) else None)
            files.verify(folder)

    readers = [threading.Thread(target=read) for _ in range(2)]
    problems = []
    threading.excepthook, before = lambda args: problems.append(args.exc_value), threading.excepthook
    try:
        for reader in readers:
            reader.start()
        for number in range(60):
            with files.amended(folder) as stage:
                for name in ("a", "sub/b"):
                    files.write_text(stage / name, str(number))
    finally:
        over.set()
        for reader in readers:
            reader.join()
        threading.excepthook = before
    assert not problems
    assert found


def test_files_apart_are_no_part(folder):
    files.seal(folder, {})
    with files.amended(folder, apart=("a",)) as stage:
        files.write_text(stage / "d", "2")
    assert "a" not in files.verify(folder)["files"]
    files.seal(folder, {})
    (folder / "a").write_text("other")
    files.verify(folder, apart=("a",))
    with pytest.raises(StoreError, match="a: content differs"):
        files.verify(folder)
