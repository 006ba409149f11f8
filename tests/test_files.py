import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medfuse import files
from medfuse.errors import StoreError


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "sub" / "a.json"
    files.write_json(target, {"b": 1, "a": [1.5, "ü"]})
    files.write_json(target, {"b": 2})
    assert files.read_json(target) == {"b": 2}
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path])
def test_json_refuses_what_it_cannot_hold(tmp_path, value):
    with pytest.raises(StoreError):
        files.write_json(tmp_path / "a.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch, step):
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, step, fail)
    with pytest.raises(StoreError, match="No space left"):
        files.write_bytes(target, b"new" * 1000)
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_a_typed_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match="expected JSON"):
        files.read_json(tmp_path / "a.json")


def test_writers_of_the_same_folder_at_the_same_time_all_succeed(tmp_path):
    """Two patients with the same file have the same item; whoever is last, one whole folder stands there."""
    target, rounds, writers = tmp_path / "entry", 50, 4
    barrier = threading.Barrier(writers)

    def write(number):
        for _ in range(rounds):
            with files.new_folder(target) as temporary:
                (temporary / "a").write_text(str(number))
                (temporary / "b").write_text(str(number))
                barrier.wait(timeout=30)

    with ThreadPoolExecutor(writers) as pool:
        for done in [pool.submit(write, number) for number in range(writers)]:
            done.result()
    assert (target / "a").read_text() == (target / "b").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    with files.new_folder(target) as temporary:
        (temporary / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"

    def fails():
        with files.new_folder(target) as temporary:
            (temporary / "x").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert (target / "x").read_text() == "1"
    with files.new_folder(target) as temporary:
        (temporary / "y").write_text("3")
    assert [p.name for p in target.iterdir()] == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def replace_with(target, text):
    with files.new_folder(target) as temporary:
        (temporary / "x").write_text(text)


def test_when_the_last_rename_fails_the_old_folder_stands_there_again(tmp_path, monkeypatch):
    target, rename = tmp_path / "folder", Path.replace
    replace_with(target, "1")

    def fail(self, to):
        if Path(to) == target and not self.name.endswith("-old"):
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StoreError, match="No space left"):
        replace_with(target, "2")
    monkeypatch.undo()
    assert (target / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


KILLED = """
import os, signal, sys
from pathlib import Path
from medfuse import files

rename = Path.replace
def replace(self, to):
    rename(self, to)
    if str(to).endswith("-old"):
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = replace
with files.new_folder(Path(sys.argv[1])) as temporary:
    (temporary / "x").write_text("2")
"""


@pytest.fixture
def killed(tmp_path):
    """A sealed folder, a part of which was being replaced when the writer was killed between the two renames."""
    replace_with(tmp_path / "sub" / "part", "1")
    replace_with(tmp_path / "sub" / "part-00000000-x", "1")  # a name that looks like another's
    files.seal(tmp_path, {})
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "sub" / "part"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "sub" / "part").exists()
    return tmp_path


def test_after_a_kill_between_the_renames_the_sealed_folder_has_its_part_again(killed):
    files.verify(killed)
    assert (killed / "sub" / "part" / "x").read_text() == "1"
    replace_with(killed / "sub" / "part", "3")
    files.seal(killed, {})  # the temporary folder of the killed writer is no part
    assert set(files.verify(killed)["files"]) == {"sub/part/x", "sub/part-00000000-x/x"}


@pytest.mark.parametrize("sweep", [files.remove_abandoned, files.remove_temporaries])
@pytest.mark.parametrize("again", [False, True])
def test_a_sweep_puts_the_old_folder_back_unless_a_new_one_stands_there(killed, sweep, again):
    if again:
        replace_with(killed / "sub" / "part", "3")
    sweep(killed / "sub")
    assert (killed / "sub" / "part" / "x").read_text() == ("3" if again else "1")
    assert sorted(p.name for p in (killed / "sub").iterdir()) == ["part", "part-00000000-x"]


def test_seal_and_verify_name_the_damaged_part(tmp_path):
    (tmp_path / "sub").mkdir()
    files.write_bytes(tmp_path / "a.bin", b"abc")
    files.write_bytes(tmp_path / "sub" / "b.bin", b"defg")
    files.seal(tmp_path, {"format_version": 1})
    manifest = files.verify(tmp_path)
    assert manifest["format_version"] == 1
    assert manifest["files"]["a.bin"]["sha256"] == files.sha256_bytes(b"abc")
    assert set(manifest["files"]) == {"a.bin", "sub/b.bin"}

    (tmp_path / "sub" / "b.bin").write_bytes(b"defh")
    with pytest.raises(StoreError, match=r"b\.bin: content differs"):
        files.verify(tmp_path)
    (tmp_path / "sub" / "b.bin").unlink()
    with pytest.raises(StoreError, match="found no file"):
        files.verify(tmp_path)


def write_manifest(folder, content):
    files.write_json(folder / "manifest.json", {**content, "sha256": files.sha256_bytes(files.json_bytes(content))})


@pytest.mark.parametrize("blocks", [False, True])
def test_no_flipped_bit_of_a_sealed_folder_passes(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(files, "BLOCK", 2)
    files.write_bytes(tmp_path / "a.bin", b"abc")
    files.seal(tmp_path, {"best": 0.25, "name": "x"}, blocks=blocks)
    assert ("blocks" in files.read_json(tmp_path / "manifest.json")["files"]["a.bin"]) == blocks
    flipped = 0
    for name in ("a.bin", "manifest.json"):
        good = (tmp_path / name).read_bytes()
        for bit in range(0, len(good) * 8, 7 if blocks and name != "a.bin" else 1):
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(StoreError):
                files.verify(tmp_path)
            flipped += 1
        (tmp_path / name).write_bytes(good)
    assert flipped > (350 if blocks else 1000)
    assert files.verify(tmp_path)["best"] == 0.25


def test_blocks_are_the_sha256_of_every_4_mib_and_none_goes_missing(tmp_path):
    content = bytearray(random.Random(0).randbytes(2 * files.BLOCK + 12345))
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    files.seal(tmp_path, {}, blocks=True)
    entry = files.verify(tmp_path)["files"]["a.bin"]
    pieces = [content[k : k + files.BLOCK] for k in range(0, len(content), files.BLOCK)]
    assert entry == {"bytes": len(content), "blocks": [files.sha256_bytes(bytes(piece)) for piece in pieces]}
    assert files.sha256_blocks(path) == entry["blocks"]
    first, second, last = map(bytes, pieces)
    flipped = [bytearray(content) for _ in range(4)]
    for damaged, at in zip(flipped, (0, files.BLOCK - 1, files.BLOCK, len(content) - 1), strict=True):
        damaged[at] ^= 1
    for damaged in (*flipped, second + first + last, content[:-1], content + b"x", first + second, b""):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"a\.bin: content differs"):
            files.verify(tmp_path)
    path.write_bytes(content)
    write_manifest(tmp_path, {"files": {"a.bin": {**entry, "blocks": entry["blocks"][:2]}}})
    with pytest.raises(StoreError, match=r"a\.bin: content differs"):
        files.verify(tmp_path)


def test_one_core_hashes_the_same_blocks(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(random.Random(1).randbytes(files.BLOCK + 1))
    several = files.sha256_blocks(tmp_path / "a.bin")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert files.sha256_blocks(tmp_path / "a.bin") == several
    assert len(several) == 2
    with pytest.raises(StoreError, match="readable"):
        files.sha256_blocks(tmp_path / "none")


def test_verify_refuses_a_folder_without_or_with_a_hostile_manifest(tmp_path):
    with pytest.raises(StoreError, match="manifest"):
        files.verify(tmp_path)
    write_manifest(tmp_path, {"files": {"../../etc/hostname": {"bytes": 1, "sha256": "0"}}})
    with pytest.raises(StoreError, match="leaves it"):
        files.verify(tmp_path)
    (tmp_path / "a").write_text("")
    write_manifest(tmp_path, {"files": {"a": 1}})
    with pytest.raises(StoreError, match="differs"):
        files.verify(tmp_path)
    files.write_json(tmp_path / "manifest.json", [1])
    with pytest.raises(StoreError, match="list of files"):
        files.verify(tmp_path)


def test_remove_temporaries_spares_the_rest(tmp_path):
    (tmp_path / ".tmp-x").write_text("")
    (tmp_path / ".tmp-y").mkdir()
    (tmp_path / "keep").write_text("")
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]


def test_sha256_file_of_a_missing_file(tmp_path):
    with pytest.raises(StoreError, match="readable"):
        files.sha256_file(tmp_path / "none")
