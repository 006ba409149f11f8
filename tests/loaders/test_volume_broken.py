"""Named broken volumes of each format with their errors, and bombs of DICOM and volumes in a process of their own."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from medfuse.errors import DataError
from medfuse.loaders import volume

AFFINE = np.array([[2.0, 0, 0, -9], [0, 2, 0, -8], [0, 0, 3, -7], [0, 0, 0, 1]])
VALUES = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)


def put(content, at, code, *numbers):
    new = struct.pack(code, *numbers)
    return content[:at] + new + content[at + len(new) :]


def nifti_1():
    image = nibabel.Nifti1Image(VALUES, AFFINE)
    image.set_qform(AFFINE, code=1)
    return image.to_bytes()


def nifti_2():
    return nibabel.Nifti2Image(VALUES, AFFINE).to_bytes()


def mgh():
    return nibabel.MGHImage(VALUES, AFFINE).to_bytes()


def nrrd_file(folder):
    header = {"space": "RAS", "space directions": AFFINE[:3, :3], "space origin": [1, 2, 3], "encoding": "raw"}
    nrrd.write(str(folder / "made.nrrd"), VALUES, header)
    return (folder / "made.nrrd").read_bytes()


def refused(path, content, reason, **options):
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        volume.read([path], options).fetch([0])
    assert str(error.value).startswith(path.name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c[:200], "another content"),
        (lambda c: c[:352], "expected 420 bytes of voxels, found 0"),
        (lambda c: c[:-1], "expected 420 bytes of voxels, found 419"),
        (lambda c: b"\0" * 348 + c[348:], "another content"),
        (lambda c: put(c, 344, "4s", b"n+9\0"), "another content"),
        (lambda c: put(c, 40, "<h", 0), "expected three axes, or four of a series, found 0"),
        (lambda c: put(c, 40, "<h", -3), "found 0"),
        (lambda c: put(c, 40, "<8h", 5, 3, 3, 3, 2, 2, 1, 1), "found 5"),
        (lambda c: put(c, 42, "<h", 0), "at least one voxel"),
        (lambda c: put(c, 42, "<h", -7), "at least one voxel"),
        (lambda c: put(c, 42, "<h", 8), "expected 480 bytes of voxels, found 420"),
        (lambda c: put(c, 70, "<h", 32), "found data type 32"),
        (lambda c: put(c, 70, "<h", 1536), "found data type 1536"),
        (lambda c: put(c, 70, "<h", 1), "found data type 1 "),
        (lambda c: put(c, 108, "<f", 12), "offset within it"),
        (lambda c: put(c, 108, "<f", -5), "offset within it"),
        (lambda c: put(c, 108, "<f", float("nan")), "damage"),
        (lambda c: put(c, 108, "<f", 1e30), "larger offset"),
        (lambda c: put(c, 252, "<2h", 0, 0), "left and right are unknown"),
        (lambda c: put(c, 280, "<4f", *[float("nan")] * 4), "three independent axes"),
        (lambda c: put(c, 280, "<12f", *[0.0] * 12), "three independent axes"),
        (lambda c: put(c, 280, "<4f", -2, 0, 0, -9), "mirror images"),
        (lambda c: put(c, 344, "4s", b"ni1\0"), "its image beside it|voxels"),
    ],
)
def test_broken_nifti(tmp_path, change, reason):
    refused(tmp_path / "a.nii", change(nifti_1()), reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c[:540], "another content|bytes of voxels|damage"),
        (lambda c: c[:-2], "found 418"),
        (lambda c: put(c, 4, "4s", b"n+3\0"), "another content"),
        (lambda c: put(c, 16, "<q", 9), "found 0"),
        (lambda c: put(c, 16, "<8q", 6, 2, 2, 2, 2, 2, 2, 1), "found 6"),
        (lambda c: put(c, 24, "<q", 0), "at least one voxel"),
        (lambda c: put(c, 24, "<q", -1), "at least one voxel"),
        (lambda c: put(c, 24, "<q", 1 << 62), "bytes of voxels, found 420"),
        (lambda c: put(c, 12, "<h", 2048), "found data type 2048"),
        (lambda c: put(c, 168, "<q", 100), "offset within it"),
        (lambda c: put(c, 168, "<q", 1 << 60), "larger offset"),
        (lambda c: put(c, 344, "<2i", 0, 0), "left and right are unknown"),
        (lambda c: put(c, 400, "<4d", *[float("inf")] * 4), "three independent axes"),
    ],
)
def test_broken_nifti_2(tmp_path, change, reason):
    refused(tmp_path / "a.nii", change(nifti_2()), reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c[:283], "another content"),
        (lambda c: c[:284], "found 0"),
        (lambda c: c[:-21], r"expected 420 bytes of voxels, found \d+"),
        (lambda c: put(c, 0, ">i", 2), "another content"),
        (lambda c: put(c, 0, "<i", 1), "another content"),
        (lambda c: put(c, 4, ">i", 0), "another content"),
        (lambda c: put(c, 4, ">i", -7), "another content"),
        (lambda c: put(c, 4, ">i", 1 << 30), "another content"),
        (lambda c: put(c, 4, ">3i", 1000, 1000, 1000), "expected 2000000000 bytes of voxels"),
        (lambda c: put(c, 16, ">i", 9), "expected 3780 bytes of voxels"),
        (lambda c: put(c, 20, ">i", 7), "another content"),
        (lambda c: put(c, 28, ">h", 0), "left and right are unknown"),
        (lambda c: put(c, 30, ">3f", 0, 0, 0), "three independent axes"),
        (lambda c: put(c, 42, ">3f", *[float("nan")] * 3), "three independent axes"),
    ],
)
def test_broken_mgh(tmp_path, change, reason):
    content = mgh()[: 284 + 420]
    refused(tmp_path / "a.mgh", change(content), reason)
    if len(change(content)) >= 284 and "found 0" not in reason and "bytes of voxels" not in reason:
        refused(tmp_path / "a.mgz", gzip.compress(change(content)), reason)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("NRRD0005", "NRRD9999", "expected|damage"),
        ("type: int16", "type: block", "another type"),
        ("type: int16", "type: int99", "another type|damage"),
        ("type: int16\n", "", "damage|another"),
        ("dimension: 3", "dimension: 2", "damage|found 2|three"),
        ("dimension: 3", "dimension: x", "damage"),
        ("sizes: 7 6 5", "sizes: 7 6", "damage|expected three axes"),
        ("sizes: 7 6 5", "sizes: 7 6 0", "at least one voxel"),
        ("sizes: 7 6 5", "sizes: 7 6 -5", "at least one voxel"),
        ("sizes: 7 6 5", "sizes: 7 6 5000000", "bytes of voxels"),
        ("encoding: raw", "encoding: ascii", "another type or encoding"),
        ("encoding: raw", "encoding: gzip", "damage"),
        ("encoding: raw", "encoding: bzip2", "damage"),
        ("encoding: raw", "encoding: raw\nbyte skip: -1", "bytes to skip"),
        ("encoding: raw", "encoding: raw\nline skip: 3", "bytes to skip"),
        ("encoding: raw", "encoding: raw\ndata file: ../other.raw", "others named"),
        ("encoding: raw", "encoding: raw\ndata file: LIST", "others named"),
        ("space: RAS", "space: scanner-xyz", "left and right are unknown"),
        ("space: RAS", "space: 3D-right-handed", "left and right are unknown"),
        ("(2,0,0)", "(0,0,0)", "three independent axes"),
        ("(2,0,0)", "(nan,0,0)", "three neighbouring axes|three independent axes"),
        ("(2,0,0)", "none", "three neighbouring axes"),
    ],
)
def test_broken_nrrd(tmp_path, old, new, reason):
    content = nrrd_file(tmp_path)
    for plain, short in ((b"space: right-anterior-superior", b"space: RAS"), (b"type: short", b"type: int16")):
        content = content.replace(plain, short)
    content = content.replace(b"(2.0,0.0,0.0)", b"(2,0,0)").replace(b"space: ras", b"space: RAS")
    assert old.encode() in content, content[:300]
    refused(tmp_path / "a.nrrd", content.replace(old.encode(), new.encode()), reason)


@pytest.mark.parametrize("keep", [100, 0.5, -1])
def test_a_cut_nrrd(tmp_path, keep):
    content = nrrd_file(tmp_path)
    length = int(len(content) * keep) if keep == 0.5 else keep
    refused(tmp_path / "a.nrrd", content[:length], "bytes of voxels|an empty line")


def test_bombs_are_refused_within_two_seconds_and_300_mib(tmp_path):
    """In one process, whose peak memory is that of all of them; time is the processor's."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    call = [sys.executable, str(here / "dicom_bombs.py"), str(tmp_path / "bombs")]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([*call, "make"], check=True, env=environment, timeout=120)
    done = subprocess.run(call, check=True, env=environment, timeout=120, capture_output=True, text=True)
    *bombs, peak = map(json.loads, done.stdout.splitlines())
    assert len(bombs) >= 20
    assert {b["name"] for b in bombs if not b["error"]} == set()
    assert {b["name"]: b["seconds"] for b in bombs if b["seconds"] > 2} == {}
    assert peak["mib"] < 300
