"""Damaged heaps of HDF5 files, in which the library turns for ever inside one call: refused, or never asked for."""

import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from clock import Watch

from medfuse.errors import DataError
from medfuse.loaders import _h5ad, _heaps
from medfuse.loaders._h5ad import read_h5ad, shape_of
from medfuse.loaders._heaps import check_heaps

READ = """
import sys
from pathlib import Path
from medfuse.card import ModalityCard
from medfuse.errors import DataError
from medfuse.inspection import inspect
from medfuse.loaders import bags, read
folder = Path(sys.argv[1])
assert "damaged heap" in inspect([folder / "a.h5ad"])[0].refusal
for name, said in (("a.h5ad", {"loader": "expression", "unit": "tpm", "log_base": 2}), ("v.h5", {"loader": "vectors"})):
    try:
        read("m", ModalityCard(file=name, **said), resolve=lambda s: folder / s, patients=(None, ""))
    except DataError as error:
        print(error)
print(bags.read([folder / "b.h5"], {}).facts, bags.describe([folder / "b.h5"]).holds)
"""


def h5ad(path, *, latest=False):
    with h5py.File(path, "w", libver="latest" if latest else None) as file:
        for frame, count in (("obs", 3), ("var", 2)):
            group = file.create_group(frame)
            group.attrs["_index"] = "_index"
            group["_index"] = np.array([f"{frame}{k}" for k in range(count)], dtype="S5")
        file["X"] = np.ones((3, 2))
    return path


def free(content):
    """Where the header of the free space of the only heap stands."""
    at = content.index(b"GCOL") + 16
    while content[at : at + 2] != b"\0\0":
        (length,) = struct.unpack_from("<Q", content, at + 8)
        at += 16 + -(-length // 8) * 8
    return at


def damage(path, number, length):
    """Another number and length of the object that is the free space."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<HHIQ", content, free(content), number, 0, 0, length)
    path.write_bytes(content)
    return path


def test_a_mutant_of_the_ten_thousand_ends(tmp_path):
    """64 bytes of zeros in a heap; a library that is asked turns until it is killed."""
    damage(h5ad(tmp_path / "a.h5ad"), 0, 0)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["features"] = ["one", "two"]
    damage(tmp_path / "v.h5", 0, 0)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"] = np.ones((3, 4), "f4")
        file["coords"] = np.ones((3, 2), int)
        file["coords"].attrs["patch_size"] = "256"
        file["coords"].attrs["patch_level"] = 1
    damage(tmp_path / "b.h5", 0, 0)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two, three = done.stdout.splitlines()
    assert one.startswith("a.h5ad: expected texts that follow each other, found a damaged heap of them at byte ")
    assert two.startswith("v.h5: expected a vector (F,) or a bag (T, F) of numbers, found object (2,)")
    assert "'tokens': 3" in three
    assert "patch_size" not in three


@pytest.mark.parametrize(("number", "length"), [(0, 0), (2, 2**64 - 16), (2, 2**64 - 1), (0, 1), (0, 8)])
def test_an_object_without_space_is_found(tmp_path, number, length):
    with pytest.raises(DataError, match=r"a.h5ad: .* damaged heap of them at byte 2,048; fetch the file again"):
        check_heaps(damage(h5ad(tmp_path / "a.h5ad"), number, length))


@pytest.mark.parametrize(("number", "length"), [(2, 2**64 - 32), (0, 2**63), (2, 5000)])
def test_what_the_library_refuses_itself_is_left_to_it(tmp_path, number, length):
    check_heaps(damage(h5ad(tmp_path / "a.h5ad"), number, length))
    with pytest.raises(OSError, match="ran off end"), h5py.File(tmp_path / "a.h5ad") as file:
        file["obs"].attrs["_index"]


@pytest.mark.parametrize("block", [0, 512, 2048])
@pytest.mark.parametrize("latest", [False, True])
def test_sound_heaps_pass(tmp_path, monkeypatch, block, latest):
    monkeypatch.setattr(_heaps, "_PIECE", 1000)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest" if latest else None, userblock_size=block) as file:
        file["names"] = [f"GENE{k}" * (k % 9) for k in range(5000)]
        file["long"] = ["x" * 70_000, "y"]
        file.attrs["one"] = "text"
    with (tmp_path / "a.h5").open("rb") as file:
        found = list(_heaps._found(file, b"GCOL\x01"))
        assert _heaps._superblock(file, 1 << 20) == (block, 8)
    content = (tmp_path / "a.h5").read_bytes()
    assert found == [k for k in range(len(content)) if content.startswith(b"GCOL", k)]
    assert len(found) > 3
    check_heaps(tmp_path / "a.h5", attributes=["one"])


def with_length(path, before, length):
    """Another length of the one text whose reference comes next after some bytes."""
    content = bytearray(path.read_bytes())
    place, start, at = struct.pack("<Q", content.index(b"GCOL")), -1, -1
    while at < 0:
        start = content.index(before, start + 1)
        at = content.find(place, start, start + 90)
    content[at - 4 : at] = struct.pack("<I", length)
    path.write_bytes(content)


@pytest.mark.parametrize("latest", [False, True])
def test_an_attribute_longer_than_the_file_is_refused_before_memory_is_taken_for_it(tmp_path, latest):
    """Another mutant of the 10,000: 3 GB and 6 s of the processor."""
    path = h5ad(tmp_path / "a.h5ad", latest=latest)
    check_heaps(path, attributes=["_index"])
    with_length(path, b"_index\0", 2_919_235_594)
    check_heaps(path)
    for call in (lambda: read_h5ad(path, plan, layer="X"), lambda: shape_of(path)):
        watch = Watch()
        with pytest.raises(DataError, match=r"a.h5ad: .* found a damaged attribute _index at byte .*; fetch the file"):
            call()
        assert watch.spent() < 1


def plan(names):
    return [], names


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"chunks": (2,)},
        {"chunks": (2,), "compression": "gzip"},
        {"chunks": (2,), "compression": "gzip", "shuffle": True},
        {"chunks": (2,), "compression": "lzf"},
    ],
)
def test_the_lengths_that_texts_claim_are_known_before_one_is_read(tmp_path, made):
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        file["obs"].create_dataset("_index", data=["a", "bcd", "ef"], dtype=h5py.string_dtype(), **made)
        assert _heaps.claimed(file["obs/_index"]) == (0 if made.get("compression") == "lzf" else 6)
        assert _h5ad._texts(file["obs/_index"]) == ["a", "bcd", "ef"]


def test_a_text_longer_than_the_file_is_refused_before_memory_is_taken_for_it(tmp_path):
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        file["obs"].create_dataset("_index", data=["a", "bcd", "ef"], dtype=h5py.string_dtype())
        start = file["obs/_index"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[start : start + 4] = struct.pack("<I", 2_919_235_594)
    path.write_bytes(content)
    watch = Watch()
    with pytest.raises(DataError, match="found 2,784 MiB in"):
        read_h5ad(path, plan, layer="X")
    assert watch.spent() < 1


def test_no_hdf5_is_left_to_the_library(tmp_path):
    for content in (b"", b"GCOL\x01" + bytes(99), b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "a.h5").write_bytes(content)
        check_heaps(tmp_path / "a.h5")


def test_heaps_that_lie_in_each_other_take_no_time(tmp_path):
    """Each of them would be gone through to the end of the file."""
    head = h5ad(tmp_path / "a.h5").read_bytes()
    heap = b"GCOL\x01\0\0\0" + struct.pack("<QHHIQ", 1 << 40, 1, 1, 0, 0)
    Path(tmp_path / "a.h5").write_bytes(head + (struct.pack("<HHIQ", 1, 1, 0, 32) + heap) * 20_000)
    watch = Watch()
    with pytest.raises(DataError, match="damaged heap"):
        check_heaps(tmp_path / "a.h5")
    assert watch.spent() < 2
