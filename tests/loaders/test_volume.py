"""NIfTI, MGH and NRRD: agreement with their reference readers, geometry of patches, refusals."""

import csv
import gzip
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes_whole import truth, whole

from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.limits import read_head
from medfuse.loaders import volume
from medfuse.loaders._volume import closest, orientation_of, starts, turn, turned, weights
from medfuse.loaders._volume_files import inflater, read_voxel_header
from medfuse.loaders.base import Head

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
AFFINE = np.array([[0.1, -1.9, 0.2, 40], [1.4, 0.1, 0.1, -30], [-0.1, 0.2, 2.9, 5], [0, 0, 0, 1]])


def head(path):
    return Head(path=path, size=path.stat().st_size, start=read_head(path))


def values(shape=(7, 6, 5), dtype=np.int16, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=shape).astype(dtype) if dtype in (np.float32, np.float64) else rng.integers(0, 99, shape, dtype)
    )


def nifti(path, data=None, affine=AFFINE, kind=nibabel.Nifti1Image, unit="mm", **header):
    image = kind(values() if data is None else data, affine)
    image.header.set_xyzt_units(unit)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def agrees(path, **options):
    found, centre, spacing, sample = whole("volume", [path], **options)
    data, true_centre, true_spacing, affine = truth(nibabel.load(path))
    np.testing.assert_allclose(found, data.astype(np.float32), rtol=1e-6)
    np.testing.assert_allclose(centre, true_centre, atol=1e-3)
    np.testing.assert_allclose(spacing, true_spacing, atol=1e-4)
    shape = np.asarray(data.shape[1:4])
    ours = turned(read_voxel_header(path).affine, read_voxel_header(path).shape)
    np.testing.assert_allclose(ours, affine, atol=1e-4)
    assert tuple(shape) == tuple(sample.facts["volume_shape"])


# --- agreement with nibabel and pynrrd -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_types_agree_with_nibabel(tmp_path, dtype, ending):
    agrees(nifti(tmp_path / f"a{ending}", values(dtype=dtype)))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_both_versions_and_byte_orders(tmp_path, kind, byteorder):
    data = values().astype(np.int16)
    image = kind(data, AFFINE, header=kind.header_class(endianness=byteorder))
    image.set_data_dtype(np.int16)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii")
    agrees(tmp_path / "a.nii")


def test_slope_intercept_and_extensions(tmp_path):
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.header.set_slope_inter(0.5, -7)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nibabel.save(image, tmp_path / "a.nii.gz")
    agrees(tmp_path / "a.nii.gz")
    assert any("extensions" in one.where for one in volume.identifying([tmp_path / "a.nii.gz"]))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_series_of_volumes_one_at_a_time(tmp_path, ending):
    path = nifti(tmp_path / f"a{ending}", values((4, 5, 6, 3)))
    agrees(path)
    sample = volume.read([path], {"patch": [2, 2, 2]})
    assert len(sample) == 3 * 2 * 3 * 3
    assert sample.position.shape[1] == 4
    assert len(volume.read([path], {"patch": [2, 2, 2], "volumes": 1})) == 18


def test_a_pair_of_files(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(values(), AFFINE), tmp_path / "a.hdr")
    files = sorted(tmp_path.iterdir())
    assert all(volume.recognise(head(p)) for p in files)
    assert volume.group(files) == [tuple(files)]
    found, centre, _, _ = whole("volume", files)
    data, true_centre, _, _ = truth(nibabel.load(tmp_path / "a.img"))
    np.testing.assert_array_equal(found, data)
    np.testing.assert_allclose(centre, true_centre, atol=1e-4)
    (tmp_path / "a.img").unlink()
    with pytest.raises(DataError, match="image beside it"):
        volume.describe([tmp_path / "a.hdr"])


def test_units_of_length_become_mm(tmp_path):
    spacing = whole("volume", [nifti(tmp_path / "a.nii", affine=np.diag([2000.0, 2000, 3000, 1]), unit="micron")])[2]
    np.testing.assert_allclose(spacing, (2, 2, 3))
    path = nifti(tmp_path / "b.nii", unit="unknown")
    assert any("no unit of length" in w for w in volume.describe([path]).warnings)


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
def test_mgh_agrees_with_nibabel(tmp_path, ending):
    nibabel.save(nibabel.MGHImage(values((4, 5, 6), np.float32), AFFINE), tmp_path / f"a{ending}")
    assert volume.recognise(head(tmp_path / f"a{ending}"))
    agrees(tmp_path / f"a{ending}")


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_nrrd_agrees_with_pynrrd(tmp_path, encoding, space):
    data = values()
    header = {"space": space, "space directions": AFFINE[:3, :3].T, "space origin": AFFINE[:3, 3], "encoding": encoding}
    nrrd.write(str(tmp_path / "a.nrrd"), data, header)
    sign = np.diag([-1, -1, 1, 1]) if space.startswith("left") else np.eye(4)
    affine = sign @ AFFINE
    found, centre, _, _ = whole("volume", [tmp_path / "a.nrrd"])
    np.testing.assert_array_equal(found[0, ..., 0], turn(data, affine))
    out = turned(affine, data.shape)
    middle = (np.asarray(found.shape[1:4]) - 1) / 2
    np.testing.assert_allclose(centre, out[:3, :3] @ middle + out[:3, 3], atol=1e-4)


def test_nrrd_series_with_volumes_first(tmp_path):
    data = values((3, 7, 6, 5))
    directions = np.vstack([[np.nan] * 3, AFFINE[:3, :3].T])
    header = {"space": "right-anterior-superior", "space directions": directions, "space origin": [0, 0, 0]}
    header["kinds"] = ["list", "domain", "domain", "domain"]
    nrrd.write(str(tmp_path / "a.nrrd"), data, header)
    found = whole("volume", [tmp_path / "a.nrrd"])[0]
    np.testing.assert_array_equal(found[..., 0], np.stack([turn(d, AFFINE) for d in data]))


# --- orientation -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=9, max_size=9), st.tuples(*[st.integers(1, 5)] * 3))
def test_turning_keeps_every_voxel_at_its_place(numbers, shape):
    steps = np.asarray(numbers).reshape(3, 3)
    if abs(np.linalg.det(steps)) < 0.1:
        return
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, (3, -4, 5)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ steps.T + affine[:3, 3]
    out = turned(affine, shape)
    moved = turn(world, affine)
    again = np.stack(np.meshgrid(*map(np.arange, moved.shape[:3]), indexing="ij"), axis=-1) @ out[:3, :3].T + out[:3, 3]
    np.testing.assert_allclose(moved, again, atol=1e-9)
    assert closest(out)[0] == (0, 1, 2)
    assert closest(out)[1] == (1, 1, 1)


@settings(max_examples=40, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_names_of_directions_are_those_of_nibabel(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, order] * 2.0
    assert tuple(orientation_of(affine)) == nibabel.aff2axcodes(affine)


def test_no_orientation_is_refused_unless_it_is_given(tmp_path):
    path = nifti(tmp_path / "a.nii", affine=None)
    image = nibabel.load(path)
    image.set_sform(None)
    image.set_qform(None)
    nibabel.save(image, tmp_path / "b.nii")
    with pytest.raises(DataError, match=r"options\.orientation"):
        volume.read([tmp_path / "b.nii"], {})
    found = whole("volume", [tmp_path / "b.nii"], orientation="LPS")[0]
    np.testing.assert_array_equal(found[0, ..., 0], np.asarray(image.dataobj)[::-1, ::-1])


def test_a_mirrored_sform_is_refused_and_a_moved_one_reported(tmp_path):
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.set_qform(np.diag([2.0, 2, 2, 1]), code=1)
    image.set_sform(np.diag([-2.0, 2, 2, 1]), code=1)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="mirror images"):
        volume.describe([tmp_path / "a.nii"])
    image.set_sform(np.array([[2.0, 0, 0, 9], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]), code=1)
    nibabel.save(image, tmp_path / "a.nii")
    assert any("differ by up to 9.00" in w for w in volume.describe([tmp_path / "a.nii"]).warnings)


# --- patches and resampling ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_patches_cover_an_axis(length, side, stride):
    side, stride = min(side, length), min(stride, min(side, length))
    found = starts(length, side, stride)
    covered = np.zeros(length, bool)
    for first in found:
        covered[first : first + side] = True
    assert covered.all()
    assert found[-1] + side == length
    assert found == sorted(set(found))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 30), st.floats(0.2, 4))
def test_resampling_keeps_a_ramp_and_a_constant(old, step):
    new = max(2, round(old / step))
    matrix = weights(old, step, new)
    np.testing.assert_allclose(matrix @ np.ones(old), 1, atol=1e-5)
    at = (np.arange(new) - (new - 1) / 2) * step + (old - 1) / 2
    inside = (at - max(step, 1) >= 0) & (at + max(step, 1) <= old - 1)
    ramp = matrix @ np.arange(old, dtype=np.float32)
    np.testing.assert_allclose(ramp[inside], at[inside], atol=0.5 if step > 1 else 1e-3)


def test_a_field_that_grows_linearly_is_the_same_field_after_resampling(tmp_path):
    shape = (20, 24, 16)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    for axis in range(3):
        world = (index @ AFFINE[:3, :3].T + AFFINE[:3, 3])[..., axis].astype(np.float32)
        path = nifti(tmp_path / f"{axis}.nii", world)
        sample = volume.read([path], {"spacing": 1.3, "patch": [6, 6, 6]})
        np.testing.assert_allclose(sample.facts["spacing_mm"], 1.3, rtol=1e-6)
        means = sample.fetch(range(len(sample))).mean(axis=(1, 2, 3, 4))
        side = np.asarray(sample.facts["volume_shape"])
        inner = np.abs(sample.position - np.median(sample.position, axis=0)).max(axis=1) < side.min() * 0.25
        assert inner.sum() > 3
        np.testing.assert_allclose(means[inner], sample.position[inner, axis], atol=0.05)


def test_the_centre_of_the_volume_stays_when_it_is_resampled(tmp_path):
    path = nifti(tmp_path / "a.nii")
    native, other = whole("volume", [path])[1], whole("volume", [path], spacing=[0.7, 1.1, 5])[1]
    np.testing.assert_allclose(native, other, atol=1e-4)


def test_a_patch_does_not_depend_on_which_others_are_fetched(tmp_path):
    sample = volume.read([nifti(tmp_path / "a.nii.gz")], {"patch": [3, 2, 2], "stride": [2, 1, 2], "spacing": 1.0})
    everything = sample.fetch(range(len(sample)))
    for row in (0, 5, len(sample) - 1):
        np.testing.assert_array_equal(sample.fetch([row])[0], everything[row])
    np.testing.assert_array_equal(np.concatenate(list(sample.batches(7))), everything)


def test_patches_in_mm(tmp_path):
    path = nifti(tmp_path / "a.nii", values((20, 20, 10)), np.diag([1.0, 1, 2, 1]))
    sample = volume.read([path], {"patch_mm": 8, "stride_mm": 4})
    assert sample.shape == (8, 8, 4, 1)
    assert sorted(set(np.diff(sorted(set(sample.position[:, 0].tolist()))))) == [4.0]


# --- masks -----------------------------------------------------------------------------------------------------------


def test_a_mask_goes_with_its_volume(tmp_path):
    image = nifti(tmp_path / "a_image.nii.gz", affine=np.diag([2.0, 2, 2, 1]))
    label = np.zeros((7, 6, 5), np.uint8)
    label[1, 2, 3], label[4, 4, 4] = 1, 2
    mask = nifti(tmp_path / "a_label.nii.gz", label, np.diag([2.0, 2, 2, 1]))
    other = nifti(tmp_path / "b.nii.gz")
    assert volume.group([mask, other, image]) == [(image, mask), (other,)]
    sample = volume.read([image, mask], {"patch": [1, 1, 1], "crop": "mask"})
    np.testing.assert_allclose(sample.position, [[2, 4, 6], [8, 8, 8]])
    assert len(volume.read([image, mask], {"patch": [1, 1, 1], "crop": "mask", "segments": [2]})) == 1
    assert any("not used" in w for w in volume.read([image, mask], {}).warnings)
    assert volume.describe([image, mask]).holds["masks"] == 1
    assert len(volume.read([mask], {})) == 1
    nifti(tmp_path / "a_label.nii.gz", label, np.diag([2.0, 2, 2.1, 1]))
    with pytest.raises(DataError, match="grid of its volume"):
        volume.read([image, mask], {"crop": "mask"})


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"orient": "RAS"}, 'did you mean "orientation"'),
        ({"orientation": "RAX"}, "three letters"),
        ({"orientation": "RLS"}, "three letters"),
        ({"nan": "zero"}, "finite number"),
        ({"segments": 3}, "labels such as"),
        ({"unit": 5}, "a word such as HU"),
        ({"crop": "body"}, "needs a threshold"),
    ],
)
def test_wrong_options(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        volume.read([nifti(tmp_path / "a.nii")], options)


def test_nan_is_refused_unless_a_value_stands_for_it(tmp_path):
    data = values(dtype=np.float32)
    data[1, 2, 3] = np.nan
    path = nifti(tmp_path / "a.nii.gz", data)
    with pytest.raises(DataError, match="found 1 that are NaN"):
        volume.read([path], {}).fetch([0])
    assert np.isfinite(whole("volume", [path], nan=0)[0]).all()


def test_complex_and_five_axes_are_refused(tmp_path):
    with pytest.raises(DataError, match="data type 32"):
        volume.describe([nifti(tmp_path / "a.nii", values().astype(np.complex64))])
    with pytest.raises(DataError, match="found 5"):
        volume.describe([nifti(tmp_path / "b.nii", values((3, 3, 3, 2, 2)))])


def test_a_header_that_declares_more_than_there_is(tmp_path):
    path = nifti(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 2000, 2000, 2000, 1, 1, 1, 1)
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match="bytes of voxels"):
        volume.describe([path])
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match="a bomb"):
        volume.read([packed], {})
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_damaged_check_sum_and_a_cut_are_refused(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", values((30, 30, 30)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damage"):
        volume.read([path], {}).fetch([0])
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"truncated|damage"):
        volume.read([path], {}).fetch([0])


def test_a_nrrd_that_names_other_files_is_refused(tmp_path):
    (tmp_path / "a.nhdr").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: /etc/passwd\n\n" + bytes(16)
    )
    with pytest.raises(DataError, match="others named"):
        volume.describe([tmp_path / "a.nhdr"])


def test_no_more_than_one_and_a_half_volumes_of_memory(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", values((100, 100, 60)))
    size = 100 * 100 * 60 * 4
    sample = volume.read([path], {"patch": 20})
    tracemalloc.start()
    for _ in sample.batches(4):
        pass
    assert tracemalloc.get_traced_memory()[1] < 1.5 * size + (3 << 20)  # pieces of 1 MiB
    tracemalloc.stop()


def mutants(content, count, seed):
    rng = np.random.default_rng(seed)
    for k in range(count):
        data = bytearray(content)
        a, b = sorted(int(v) for v in rng.integers(0, len(data), 2))
        if k % 4 == 0:
            for place in rng.integers(0, min(len(data), 352 if k % 8 else len(data)), 1 + k % 5):
                data[place] ^= 1 << int(rng.integers(8))
        elif k % 4 == 1:
            data = data[:a]
        elif k % 4 == 2:
            data[a : min(b, a + 64)] = bytes(min(b, a + 64) - a)
        else:
            data[a:a] = data[b : b + 40]
        yield bytes(data)


def survives(folder, number, seed):
    folder.mkdir(exist_ok=True)
    nibabel.save(nibabel.MGHImage(values((4, 5, 6), np.float32), AFFINE), folder / "a.mgz")
    header = {"space": "left-posterior-superior", "space directions": AFFINE[:3, :3], "space origin": [1, 2, 3]}
    nrrd.write(str(folder / "a.nrrd"), values(), header)
    nrrd.write(str(folder / "b.nrrd"), values(), header | {"encoding": "bzip2"})
    nibabel.save(nibabel.MGHImage(values((4, 5, 6), np.float32), AFFINE), folder / "b.mgh")
    nifti(folder / "a.nii")
    nifti(folder / "b.nii.gz", values((4, 5, 6, 2)))
    nifti(folder / "c.nii", kind=nibabel.Nifti2Image)
    refused = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for k, mutant in enumerate(mutants(content, number, seed)):
            path.write_bytes(mutant)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    volume.describe([path])
                    volume.identifying([path])
                    sample = volume.read([path], {"nan": 0})
                    assert np.isfinite(sample.fetch([0, len(sample) - 1])).all(), k
                except MedfuseError:
                    refused += 1
    return refused


def test_mutants_are_read_or_refused(tmp_path):
    assert survives(tmp_path / "m", 60, seed=3) > 90


@pytest.mark.slow
def test_a_thousand_mutants_are_read_or_refused(tmp_path, many):
    count = many(1000, 10_000)
    assert survives(tmp_path / "m", count, seed=4) > 1.5 * count


def test_the_inflater_is_one_that_is_here():
    module, name = inflater()
    assert name in ("isal.isal_zlib", "zlib_ng.zlib_ng", "zlib")
    assert module.decompressobj(wbits=31).decompress(gzip.compress(b"abc")) == b"abc"


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz", "functional.nii", "test.mgz"])
def test_real_volumes_agree_with_nibabel(name):
    path = DATA / "volumes" / "nibabel" / name
    assert volume.recognise(head(path))
    agrees(path)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["brain1", "breast1"])
def test_means_inside_a_real_mask_are_those_of_pyradiomics(name):
    """Number of voxels, mean, variance, extremes and percentiles are those of the published baseline of PyRadiomics."""
    folder = DATA / "volumes" / "pyradiomics"
    files = [folder / f"{name}_image.nrrd", folder / f"{name}_label.nrrd"]
    assert volume.group(files) == [tuple(files)]
    sample = volume.read(files, {"patch": [1, 1, 1], "crop": "mask", "segments": [1]})
    found = sample.fetch(range(len(sample))).ravel().astype(float)
    table = csv.reader((folder / "baseline" / "baseline_firstorder.csv").read_text().splitlines())
    header = next(table)
    wanted = {row[0].removeprefix("original_firstorder_"): row[header.index(name)] for row in table}
    assert len(found) == int(wanted["diagnostics_Mask-original_VoxelNum"])
    for ours, key in (
        (found.mean(), "Mean"),
        (found.min(), "Minimum"),
        (found.max(), "Maximum"),
        (found.var(), "Variance"),
    ):
        np.testing.assert_allclose(ours, float(wanted[key]), rtol=1e-6)
    np.testing.assert_allclose(
        np.percentile(found, [10, 90]), [float(wanted[k]) for k in ("10Percentile", "90Percentile")]
    )
