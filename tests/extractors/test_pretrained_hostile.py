"""Files of torch.export that were made to do harm, or that compute something else than features."""

import contextlib
import io
import json
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from tiny_models import Maps, export, windows_pt2
from torch import nn

from medfuse.errors import DataError, MedfuseError
from medfuse.extractors._pt2 import Program
from medfuse.extractors.pretrained import Pretrained

WINDOWS = np.random.default_rng(0).normal(size=(3, 3, 100)).astype(np.float32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return windows_pt2(tmp_path_factory.mktemp("pt2") / "whole.pt2")


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts, *, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def changed(whole, path, ending, change):
    """The archive with one JSON member changed in place."""
    parts = members(whole)
    name = next(n for n in parts if n.endswith(ending))
    content = json.loads(parts[name])
    change(content)
    return write(path, {**parts, name: json.dumps(content).encode()})


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def torch_pickle(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_archive_that_was_written_again_runs(whole, tmp_path):
    """What the other tests change is what they are refused for."""
    again = write(tmp_path / "a.pt2", members(whole))
    assert np.array_equal(Pretrained(model=str(again))(WINDOWS, {}), Pretrained(model=str(whole))(WINDOWS, {}))


# --- pickles ---------------------------------------------------------------------------------------------------------


def test_torch_itself_runs_what_example_inputs_hold_and_medfuse_does_not_read_them(whole, tmp_path):
    """Why torch.export.load is never called; should torch come to refuse this, the documentation can say so."""
    parts, mark = members(whole), tmp_path / "mark"
    name = next(n for n in parts if n.endswith("sample_inputs/model.pt"))
    bad = write(tmp_path / "bad.pt2", {**parts, name: torch_pickle((Payload(mark), {}))})
    found = Pretrained(model=str(bad))(WINDOWS, {})
    assert np.array_equal(found, Pretrained(model=str(whole))(WINDOWS, {}))
    assert not mark.exists()
    with contextlib.suppress(Exception):  # whatever it says after the payload ran
        torch.export.load(bad)
    assert mark.exists()


@pytest.mark.parametrize("part", ["weights", "constants"])
def test_a_pickled_weight_is_refused(whole, tmp_path, part):
    mark = tmp_path / "mark"

    def change(content):
        entry = next(iter(content["config"].values()))
        entry["use_pickle"] = True

    bad = changed(whole, tmp_path / "bad.pt2", f"model_{part}_config.json", change)
    parts = members(bad)
    for name in [n for n in parts if f"data/{part}/" in n and not n.endswith(".json")]:
        parts[name] = torch_pickle(Payload(mark))
    write(bad, parts)
    with pytest.raises(DataError, match=f"expected weights as raw numbers, found a pickle for one of the {part}"):
        Pretrained(model=str(bad))(WINDOWS, {})
    assert not mark.exists()


def test_a_custom_object_is_refused(whole, tmp_path):
    mark = tmp_path / "mark"

    def change(content):
        content["config"]["x"] = {
            "path_name": "opaque_obj_0",
            "use_pickle": True,
            "is_param": False,
            "tensor_meta": None,
        }

    bad = changed(whole, tmp_path / "bad.pt2", "model_constants_config.json", change)
    parts = members(bad)
    prefix = next(iter(parts)).split("/")[0]
    write(bad, {**parts, f"{prefix}/data/constants/opaque_obj_0": pickle.dumps(Payload(mark))})
    with pytest.raises(DataError, match="found a pickle for one of the constants"):
        Pretrained(model=str(bad))(WINDOWS, {})
    assert not mark.exists()


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.serialization.os.system",
        "torch.hub.load",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.relu.default.__class__",
        "torch.ops.aten.__class__.__init__",
        "torch.ops.aten._unsafe_index.Tensor",
        "torch.ops.aten.no_such.default",
        "torch.ops.prim.device.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "_operator.attrgetter",
        "math.__loader__",
        "#own:op",
        "print",
    ],
)
def test_only_operators_that_compute_are_called(whole, tmp_path, target):
    def change(content):
        content["graph_module"]["graph"]["nodes"][1]["target"] = target

    bad = changed(whole, tmp_path / "bad.pt2", "models/model.json", change)
    with pytest.raises(DataError, match="expected operators of ATen that compute, found "):
        Pretrained(model=str(bad))(WINDOWS, {})


def test_texts_enter_no_operator(whole, tmp_path):
    def change(content):
        node = next(n for n in content["graph_module"]["graph"]["nodes"] if "gelu" in n["target"])
        node["inputs"][1]["arg"] = {"as_string": "/etc/passwd"}

    bad = changed(whole, tmp_path / "bad.pt2", "models/model.json", change)
    with pytest.raises(DataError, match="expected arguments that are tensors and numbers, found a text for gelu"):
        Pretrained(model=str(bad))(WINDOWS, {})


def test_symbols_and_names_are_never_evaluated(whole, tmp_path):
    """torch.export.load evaluates symbolic sizes as Python, and writes names into the code that it generates."""
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    parts = members(whole)
    name = next(n for n in parts if n.endswith("models/model.json"))
    text = parts[name].decode().replace("Symbol('s", f"{code} or Symbol('s")
    text = text.replace('"conv1d"', json.dumps(f"conv1d = 0; {code}; conv1d"))
    assert text.count("__import__") > 2
    bad = write(tmp_path / "bad.pt2", {**parts, name: text.encode()})
    assert np.array_equal(Pretrained(model=str(bad))(WINDOWS, {}), Pretrained(model=str(whole))(WINDOWS, {}))
    assert not mark.exists()


class Drawing(nn.Module):
    def forward(self, x):
        return x.mean(2) + torch.rand_like(x[:, :, 0])


class Many(nn.Module):
    def forward(self, x):
        return x.mean(2), x.std(2)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            nn.Sequential(nn.Dropout(0.5), nn.Flatten()).train(),
            "a network in evaluation mode, found dropout in training",
        ),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Flatten()).train(), "a network in evaluation mode, found"),
        (Drawing().eval(), "a network without random draws, found rand_like"),
        (Many().eval(), "expected one output .*found 2; export the encoder alone"),
    ],
)
def test_what_is_no_frozen_encoder_is_refused(tmp_path, network, reason):
    path = export(tmp_path / "a.pt2", network, torch.randn(4, 3, 20), any_number=False)
    with pytest.raises(DataError, match=reason):
        Pretrained(model=str(path))(WINDOWS[..., :20], {})


def test_networks_of_volumes_and_inputs_of_another_type_run(tmp_path):
    torch.manual_seed(0)
    network = Maps(2, 3).eval()
    path = export(tmp_path / "a.pt2", network, torch.randn(2, 2, 9, 9, 9))
    items = np.random.default_rng(0).normal(size=(3, 9, 9, 9, 2)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(items).movedim(-1, 1)).mean((2, 3, 4)).numpy()
    assert np.abs(Pretrained(model=str(path))(items, {}) - expected).max() < 1e-5
    double = export(tmp_path / "b.pt2", network.double(), torch.randn(2, 2, 9, 9, 9).double())
    assert np.abs(Pretrained(model=str(double))(items, {}) - expected).max() < 1e-5


def test_intermediate_values_are_let_go(whole):
    program = Program(whole, CPU)
    kept = {*program._weights, *program._outputs}
    released = {name for names in program._last.values() for name in names}
    made = {name for node in program._nodes for name in node.makes} | {program.input}
    assert made - kept == released


# --- damage ----------------------------------------------------------------------------------------------------------


def test_sizes_outside_of_the_numbers_are_refused(whole, tmp_path):
    def larger(content):
        entry = next(iter(content["config"].values()))
        entry["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]
        entry["tensor_meta"]["strides"] = [{"as_int": 1}]

    def outside(content):
        next(iter(content["config"].values()))["tensor_meta"]["storage_offset"] = {"as_int": -8}

    for change in (larger, outside):
        bad = changed(whole, tmp_path / "bad.pt2", "model_weights_config.json", change)
        with pytest.raises(DataError, match="expected whole parts, found damage"):
            Pretrained(model=str(bad))(WINDOWS, {})


def test_archives_that_torch_does_not_write_are_refused(whole, tmp_path):
    parts = members(whole)
    prefix = next(iter(parts)).split("/")[0]
    cases = {
        "deflated": write(tmp_path / "a.pt2", parts, how=zipfile.ZIP_DEFLATED),
        "two programs": write(tmp_path / "b.pt2", {**parts, f"{prefix}/x/models/model.json": b"{}"}),
        "no program": write(tmp_path / "c.pt2", {n: c for n, c in parts.items() if "models/" not in n}),
        "big endian": write(tmp_path / "d.pt2", {**parts, f"{prefix}/byteorder": b"big"}),
        "a newer schema": changed(
            whole, tmp_path / "e.pt2", "models/model.json", lambda c: c["schema_version"].update(major=9)
        ),
        "nesting": write(tmp_path / "f.pt2", {**parts, f"{prefix}/models/model.json": b"[" * 200_000}),
    }
    (tmp_path / "g.pt2").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    for why, path in {**cases, "a pickle": tmp_path / "g.pt2"}.items():
        with pytest.raises(DataError, match=r"\.pt2: expected"):
            pytest.fail(f"{why}: {Pretrained(model=str(path))(WINDOWS, {}).shape}")
    assert not (tmp_path / "mark").exists()


def test_mutants_are_refused_or_run(whole, tmp_path, many):
    """Flipped, cut, spliced, zeroed: nothing but our errors, no silent change of a weight (the archive's CRC-32)."""
    content, draw = whole.read_bytes(), random.Random(0)
    expected = Pretrained(model=str(whole))(WINDOWS, {})
    path, ran = tmp_path / "m.pt2", 0
    for _ in range(many(60, 1000)):
        bad = bytearray(content)
        a, b = sorted(draw.randrange(len(bad)) for _ in range(2))
        kind = draw.choice(("flip", "cut", "splice", "zero"))
        if kind == "flip":
            bad[a] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            bad = bad[:a]
        elif kind == "splice":
            bad[a:b] = bad[b : b + draw.randrange(64)]
        else:
            bad[a : a + 16] = bytes(len(bad[a : a + 16]))
        path.write_bytes(bad)
        try:
            found = Pretrained(model=str(path))(WINDOWS, {})
        except MedfuseError:
            continue
        ran += 1
        assert np.abs(found - expected).max() < 1e-6
    assert ran < many(60, 1000)
