"""Damaged heaps of HDF5 files, in which the library turns for ever inside one call: refused, or never asked for."""

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from clock import Watch

from medfuse.card import ModalityCard
from medfuse.errors import DataError
from medfuse.inspection import inspect
from medfuse.loaders import _chunks, _h5ad, _heaps, bags, read
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
        assert _heaps.claimed(file["obs/_index"]) == 6
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


HUGE = 2_919_235_594  # bytes that one of three texts claims; the library took 2.7 GB and 3 to 5 s
TEXT = h5py.string_dtype()
TEXTS = np.array(["a", "bcd", "ef"], dtype=object)
STORED = {
    "contiguous": {},
    "chunks": {"chunks": (3,)},
    "gzip": {"chunks": (3,), "compression": "gzip"},
    "gzip and shuffle": {"chunks": (3,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (3,), "compression": "lzf"},
    "lzf and shuffle": {"chunks": (3,), "compression": "lzf", "shuffle": True},
}


def with_index(path, **made):
    h5ad(path)
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        file["obs"].create_dataset("_index", data=TEXTS, dtype=TEXT, **made)
    return path


def compact(group, name):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    kind, space = h5py.h5t.py_create(TEXT, logical=True), h5py.h5s.create_simple((3,))
    node = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist))
    node[...] = TEXTS


def claim(path, length=HUGE):
    """Another length in every reference to the text "bcd" that stands in the file as it is."""
    content = bytearray(path.read_bytes())
    count, heap = 0, content.find(b"GCOL")
    while heap >= 0:
        at = content.find(struct.pack("<IQ", 3, heap))
        while at >= 0:
            struct.pack_into("<I", content, at, length)
            at, count = content.find(struct.pack("<IQ", 3, heap), at + 1), count + 1
        heap = content.find(b"GCOL", heap + 1)
    path.write_bytes(content)
    return count


def claim_in_block(path, length=HUGE):
    """The same in a packed block."""
    with h5py.File(path, "a") as file:
        node = file["obs/_index"]
        plain = file.create_dataset("plain", data=TEXTS, dtype=TEXT, chunks=(3,))
        raw = bytearray(plain.id.read_direct_chunk((0,))[1])
        struct.pack_into("<I", raw, 16, length)
        plist = node.id.get_create_plist()
        made = {"compression": node.compression} if node.compression else {}
        twin = file.create_dataset("twin", data=np.frombuffer(bytes(raw), "V16"), chunks=(3,), **made)
        left_out = 1 if plist.get_nfilters() > 1 else 0  # the shuffle, which the library leaves out for texts
        node.id.write_direct_chunk((0,), twin.id.read_direct_chunk((0,))[1], left_out)


def refused(path, match):
    watch = Watch()
    for call in (lambda: read_h5ad(path, plan, layer="X"), lambda: inspect([path])[0].refusal):
        try:
            said = call()
        except DataError as error:
            said = str(error)
        if said:
            assert re.search(match, said), said
            break
    else:
        raise AssertionError("not refused")
    assert watch.spent() < 1


@pytest.mark.parametrize("storage", STORED)
def test_every_storage_is_looked_at_before_memory_is_taken(tmp_path, storage):
    path = with_index(tmp_path / "a.h5ad", **STORED[storage])
    assert read_h5ad(path, plan, layer="X").names == ["var0", "var1"]
    with h5py.File(path) as file:
        assert _heaps.claimed(file["obs/_index"]) == 6
        assert _h5ad._texts(file["obs/_index"]) == TEXTS.tolist()
    if STORED[storage]:
        claim_in_block(path)
    else:
        assert claim(path) == 1
    refused(path, r"a.h5ad: expected content of a size that fits the file, found 2,7\d\d MiB")


def test_many_short_claims_are_added_up(tmp_path):
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        file["obs"].create_dataset("_index", data=["x" * 50_000] * 3, dtype=TEXT, compression="lzf", chunks=(3,))
        assert _heaps.claimed(file["obs/_index"]) == 150_000


def test_texts_in_the_header_of_their_dataset_are_refused(tmp_path):
    """Nobody writes names of patients so; what they claim is not looked at."""
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        compact(file["obs"], "_index")
    for claimed in (3, HUGE):
        claim(path, claimed)
        refused(path, "expected texts beside the header of their dataset, found them in it; write the file again")


def with_fill(path, *, latest, **made):
    h5ad(path, latest=latest)
    with h5py.File(path, "a", libver="latest" if latest else None) as file:
        del file["obs/_index"]
        file["obs"].create_dataset("_index", shape=(3,), dtype=TEXT, fillvalue="bcd", **made)
        for number in range(40):
            file["obs/_index"].attrs[f"more {number}"] = number  # the header goes on elsewhere
    return path


@pytest.mark.parametrize("made", [{}, {"chunks": (2,)}])
def test_a_fill_value_is_looked_at_before_the_dataset_is_opened(tmp_path, made):
    path = with_fill(tmp_path / "a.h5ad", latest=False, **made)
    with h5py.File(path) as file:
        assert _heaps.claimed(file["obs/_index"]) >= 9
        assert _h5ad._texts(file["obs/_index"]) == ["bcd"] * 3
    assert claim(path)
    refused(path, "found a damaged fill value at byte")


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("block", [0, 512])
def test_fill_values_are_found_in_old_and_new_headers(tmp_path, latest, block):
    """New headers have a checksum, so that a changed one would not even be opened."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest" if latest else None, userblock_size=block) as file:
        for number in range(40):
            file.attrs[f"more {number}"] = number
        node = file.create_dataset("d", shape=(3,), dtype=TEXT, fillvalue="bcd")
        node.attrs["long"] = "x" * 3000
    with h5py.File(path) as file, path.open("rb") as raw:
        at = block + h5py.h5o.get_info(file.id, b"d").addr
        found = dict(_heaps._messages(raw, at, base=block, end=path.stat().st_size))
        assert found[5][:1] == b"\3" if latest else b"\2"
        assert found[5][6 if latest else 8 :][:4] == struct.pack("<I", 3)
        assert {1, 3, 8, 12} <= found.keys(), "shape, type, layout, attribute"
        _heaps.check_header(file, "d")
        _heaps.check_header(file, "e")  # there is none: the library says so


@pytest.mark.parametrize("loader", ["vectors", "bags"])
def test_a_fill_value_of_what_should_be_numbers_is_not_read(tmp_path, loader):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", shape=(3, 2), dtype=TEXT, fillvalue="bcd")
    assert claim(tmp_path / "a.h5")
    watch = Watch()
    assert "damaged fill value" in inspect([tmp_path / "a.h5"])[0].refusal
    card = ModalityCard(file="a.h5", loader="vectors")
    calls = {
        "bags": lambda: bags.read([tmp_path / "a.h5"], {}),
        "vectors": lambda: read("m", card, resolve=tmp_path.joinpath, patients=(None, "")),
    }
    with pytest.raises(DataError, match="damaged fill value"):
        calls[loader]()
    assert watch.spent() < 1


def test_texts_in_a_table_and_lists_where_numbers_belong_are_refused(tmp_path):
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["obs"]
        file["obs"] = np.array([("a", 1), ("bcd", 2), ("ef", 3)], dtype=[("index", TEXT), ("n", "i4")])
    assert claim(path)
    refused(path, "expected texts or numbers, found type 'O'")
    path = h5ad(tmp_path / "b.h5ad")
    with h5py.File(path, "a") as file:
        del file["X"]
        for name in ("indices", "indptr", "data"):
            node = file.create_dataset(f"X/{name}", shape=(3,), dtype=h5py.vlen_dtype(int))
            for k, numbers in enumerate(([0], [0, 1, 1], [1])):
                node[k] = np.array(numbers)
        file["X"].attrs["encoding-type"] = "csr_matrix"
    claim(path)
    refused(path, "expected texts or numbers, found type 'O'")


def test_one_attribute_is_one_text(tmp_path):
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        file["obs"].attrs["_index"] = ["_index"] * 3
    refused(path, "expected one text as attribute _index, found a list")


def bomb(size):
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(size)), packer.flush()])


def test_a_block_that_unpacks_to_more_than_it_states_is_refused(tmp_path):
    """A file of 90 KB; the library unpacked 80 MB for six numbers."""
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["X"]
        node = file.create_dataset("X", data=np.ones((3, 2)), chunks=(3, 2), compression="gzip")
        node.id.write_direct_chunk((0, 0), bomb(80))
    refused(path, "expected blocks of 48 bytes, found one that unpacks to more")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        node = file.create_dataset("features", data=np.ones((3, 2)), chunks=(3, 2), compression="gzip")
        node.id.write_direct_chunk((0, 0), bomb(80))
    with pytest.raises(DataError, match="found one that unpacks to more"):
        bags.read([tmp_path / "b.h5"], {})
    with pytest.raises(DataError, match="found one that unpacks to more"):
        read("m", ModalityCard(file="b.h5", loader="vectors"), resolve=tmp_path.joinpath, patients=(None, ""))


def test_blocks_are_as_large_as_a_file_of_this_size_may_hold(tmp_path):
    path = h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["X"]
        made = {"maxshape": (None, None), "chunks": (1 << 13, 1 << 14), "compression": "gzip"}
        file.create_dataset("X", shape=(3, 2), dtype="f8", **made)
    refused(path, "expected content of a size that fits the file, found 1,024 MiB")


def test_honest_blocks_of_any_size_pass(tmp_path):
    path = h5ad(tmp_path / "a.h5ad")
    numbers = np.tile(np.arange(1000.0), (700, 1))
    with h5py.File(path, "a") as file:
        for frame, count in (("obs", 700), ("var", 1000)):
            del file[f"{frame}/_index"]
            file[f"{frame}/_index"] = np.array([f"{k}" for k in range(count)], dtype="S5")
        del file["X"]
        file.create_dataset("X", data=numbers, chunks=(700, 1000), compression="gzip", shuffle=True)
        _chunks.check_blocks(file["X"])
    assert np.array_equal(read_h5ad(path, plan, layer="X").values, numbers)


def test_lengths_of_another_width_are_refused(tmp_path):
    """References would have another size; no program is known that writes such files."""
    path = h5ad(tmp_path / "a.h5ad")
    content = bytearray(path.read_bytes())
    content[14] = 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected lengths of 8 bytes, found 4"):
        check_heaps(path)
