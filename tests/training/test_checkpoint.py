import json

import numpy as np
import pytest
import torch

from medfuse.errors import StoreError
from medfuse.files import json_bytes, sha256_bytes
from medfuse.training import checkpoint as c


def save(folder, number, fingerprint="f"):
    folder.save(c.Checkpoint(tensors={"w": torch.full((3,), float(number))}, state={"epoch": number}))


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    folder = c.CheckpointFolder(tmp_path, fingerprint="f")
    assert folder.newest() is None
    for number in range(1, 5):
        save(folder, number)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000003", "checkpoint-00000004"]
    found = c.CheckpointFolder(tmp_path, fingerprint="f").newest()
    assert found.state == {"epoch": 4}
    assert found.tensors["w"].tolist() == [4.0] * 3
    again = c.CheckpointFolder(tmp_path, fingerprint="f")
    save(again, 9)
    assert (tmp_path / "checkpoint-00000005").is_dir()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest", "half a folder"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    folder = c.CheckpointFolder(tmp_path, fingerprint="f")
    save(folder, 1)
    save(folder, 2)
    newest = tmp_path / "checkpoint-00000002"
    tensors = newest / "tensors.safetensors"
    if damage == "flip":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    elif damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "remove":
        tensors.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (tmp_path / ".tmp-checkpoint-00000003-abcd").mkdir()
        newest.rename(tmp_path / ".tmp-checkpoint-00000002-abcd")
    assert folder.newest().state == {"epoch": 1}


def test_another_fingerprint_is_refused(tmp_path):
    save(c.CheckpointFolder(tmp_path, fingerprint="f"), 1)
    with pytest.raises(StoreError, match="these settings, data and seed"):
        c.CheckpointFolder(tmp_path, fingerprint="g").newest()


def test_a_newer_format_is_refused_not_guessed(tmp_path):
    save(c.CheckpointFolder(tmp_path, fingerprint="f"), 1)
    path = tmp_path / "checkpoint-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    manifest["format_version"] = c.FORMAT_VERSION + 1
    path.write_bytes(json_bytes({**manifest, "sha256": sha256_bytes(json_bytes(manifest))}))
    with pytest.raises(StoreError, match="format_version"):
        c.CheckpointFolder(tmp_path, fingerprint="f").newest()


def test_a_full_disk_keeps_the_older_checkpoints(tmp_path, monkeypatch):
    folder = c.CheckpointFolder(tmp_path, fingerprint="f")
    save(folder, 1)

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space"):
        save(folder, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001"]
    assert folder.newest().state == {"epoch": 1}


def test_tensor_files_hold_what_was_written_and_damage_is_typed(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.randn(4, 2, dtype=torch.float64).T}
    (tmp_path / "t").write_bytes(c.tensor_bytes(tensors))
    found = c.read_tensors(tmp_path / "t")
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert c.weights_sha256(found) == c.weights_sha256(tensors)
    arrays = {"x": np.arange(3), "y": np.array([[True], [False]])}
    c.write_arrays(tmp_path / "a", arrays)
    again = c.read_arrays(tmp_path / "a")
    assert all(again[k].dtype == arrays[k].dtype and (again[k] == arrays[k]).all() for k in arrays)
    (tmp_path / "t").write_bytes(b"\x80\x04nonsense")
    for read in (c.read_tensors, c.read_arrays):
        with pytest.raises(StoreError, match="safetensors"):
            read(tmp_path / "t")
        with pytest.raises(StoreError, match="safetensors"):
            read(tmp_path / "none")


def test_the_hash_of_a_batch_sees_every_part(batch_of):
    batch = batch_of(20, 1)
    assert c.batch_sha256(batch) == c.batch_sha256(batch_of(20, 1)) != c.batch_sha256(batch_of(20, 2))
    before = c.batch_sha256(batch)
    for tensor in (batch.tokens["a"], batch.present, batch.targets["os"].time, batch.token_mask["a"]):
        tensor[3] = ~tensor[3] if tensor.dtype == torch.bool else tensor[3] + 1
        assert c.batch_sha256(batch) != before
        before = c.batch_sha256(batch)
