"""DICOM: order and geometry, values, series of volumes, images without a place, options."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_made import AFFINE, deflated, edit, enhanced, flat, item, rotated, series, volume
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from volumes_whole import whole

from medfuse.errors import ConfigError, DataError
from medfuse.loaders import dicom
from medfuse.loaders._volume import turn, turned

# --- order, geometry, values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.2, -0.3, 0.1), (1.5, 0.1, 2.8), (np.pi / 2, 0, 0), (0.4, 1.3, -2.0)])
def test_a_series_comes_back_in_ras_order_with_its_values_and_its_place(tmp_path, angles):
    hu, affine = volume(), rotated(*angles)
    files = series(tmp_path, hu, affine)
    assert [p.name for p in files] != sorted(p.name for p in files)
    (found,) = dicom.group(sorted(files))
    values, centre, spacing, sample = whole("dicom", found)
    np.testing.assert_array_equal(values[0, ..., 0], turn(hu, affine))
    expected = turned(affine, hu.shape)
    shape = np.asarray(turn(hu, affine).shape)
    np.testing.assert_allclose(centre, expected[:3, :3] @ ((shape - 1) / 2) + expected[:3, 3], atol=1e-4)
    np.testing.assert_allclose(spacing, np.sqrt((expected[:3, :3] ** 2).sum(axis=0)), atol=1e-5)
    assert sample.facts["unit"] == "HU"
    assert sample.unit == "mm"


def test_patches_hold_every_voxel_at_its_place(tmp_path):
    """Each voxel's value names its place in mm; the patches must agree with their positions."""
    shape = (11, 9, 7)
    world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    for axis in range(3):
        files = series(tmp_path / str(axis), np.rint(world[..., axis] * 10))
        sample = dicom.read(files, {"patch": [4, 3, 2]})
        assert sample.shape == (4, 3, 2, 1)
        assert len(sample) == 3 * 3 * 4
        centre = sample.fetch(range(len(sample))).mean(axis=(1, 2, 3, 4)) / 10
        np.testing.assert_allclose(centre, sample.position[:, axis], atol=0.06)


def test_any_order_and_any_file_names_give_the_same(tmp_path):
    files = series(tmp_path / "a")
    for k, path in enumerate(files):
        other = tmp_path / "b" / f"IM{(7 * k) % 11:03d}"
        other.parent.mkdir(exist_ok=True)
        shutil.copy(path, other)
    one, two = whole("dicom", files[::-1]), whole("dicom", sorted((tmp_path / "b").iterdir()))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_instance_numbers_against_the_geometry_do_not_matter(tmp_path):
    one = whole("dicom", series(tmp_path / "a"))
    two = whole("dicom", series(tmp_path / "b", order=[3, 1, 5, 0, 2, 4]))
    np.testing.assert_array_equal(one[0], two[0])


def test_each_slice_has_its_own_rescale(tmp_path):
    files = series(tmp_path)
    plain = whole("dicom", files)[0]

    def change(data):
        data.RescaleSlope, data.RescaleIntercept = "0.5", "-512.25"

    edit(files[2], change)
    values = whole("dicom", files)[0]
    np.testing.assert_array_equal(values[..., [0, 1, 3, 4, 5], :], plain[..., [0, 1, 3, 4, 5], :])
    np.testing.assert_allclose(values[..., 2, :], (plain[..., 2, :] + 1024) * 0.5 - 512.25)


@pytest.mark.parametrize("signed", [0, 1])
def test_twelve_of_sixteen_bits_without_the_overlay_above_them(tmp_path, signed):
    files = series(tmp_path, np.zeros((8, 8, 4)))
    stored = np.random.default_rng(1).integers(-2048 if signed else 0, 2047 if signed else 4096, (8, 8))

    def change(data):
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, signed
        data.PixelData = ((stored & 0xFFF) | 0x5000).astype("<u2").tobytes()

    edit(files[0], change)
    values = whole("dicom", files)[0]
    np.testing.assert_array_equal(values[0, ::-1, ::-1, 0, 0].T, stored - 1024)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless, "deflated"]
)
def test_encodings_agree_with_the_plain_one(tmp_path, syntax):
    plain = series(tmp_path / "plain", volume((64, 48, 5)))
    expected, centre, spacing, _ = whole("dicom", plain)
    files = []
    for k, path in enumerate(plain):
        data = pydicom.dcmread(path)
        target = tmp_path / f"{k}.dcm"
        if syntax == "deflated":
            files.append(deflated(target, data))
            continue
        if syntax in (RLELossless, JPEG2000Lossless):
            data.compress(syntax)
        elif syntax == ExplicitVRBigEndian:
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
            data.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(target, data, implicit_vr=False, little_endian=False, enforce_file_format=True)
            files.append(target)
            continue
        else:
            data.file_meta.TransferSyntaxUID = syntax
        data.save_as(
            target, enforce_file_format=True, **({"implicit_vr": True} if syntax == ImplicitVRLittleEndian else {})
        )
        files.append(target)
    values, where, step, _ = whole("dicom", files)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(where, centre)
    np.testing.assert_array_equal(step, spacing)
    assert dicom.describe(files).holds["shape"] == [64, 48, 5]


def test_a_modality_lut_takes_the_place_of_the_rescale(tmp_path):
    files = series(tmp_path, np.zeros((4, 4, 4)))
    for path in files:

        def change(data):
            del data.RescaleSlope, data.RescaleIntercept
            data.BitsStored, data.HighBit, data.PixelRepresentation, data.BitsAllocated = 8, 7, 0, 8
            data.PixelData = bytes(range(16))
            data.ModalityLUTSequence = [
                item(LUTDescriptor=[16, 0, 16], ModalityLUTType="HU", LUTData=[k * k + 1 for k in range(16)])
            ]
            data.ModalityLUTSequence[0]["LUTDescriptor"].VR = "US"
            data.ModalityLUTSequence[0]["LUTData"].VR = "US"

        edit(path, change)
    values = whole("dicom", files)[0]
    np.testing.assert_array_equal(np.sort(values[0, :, :, 0, 0].ravel()), [k * k + 1 for k in range(16)])


# --- series of volumes, multi-frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "EchoTime", "InstanceNumber"])
def test_a_series_of_volumes_is_told_apart_by_an_element(tmp_path, keyword):
    files = []
    for time in range(3):
        part = series(tmp_path / str(time), volume((6, 5, 4), seed=time), seed=time)
        for k, path in enumerate(part):

            def change(data, time=time, k=k):
                data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.4"
                data.InstanceNumber = 1 + k + 4 * time if keyword == "InstanceNumber" else 1
                if keyword != "InstanceNumber":
                    setattr(data, keyword, 10 + time)

            edit(path, change)
        files += part
    (found,) = dicom.group(sorted(files, key=lambda p: p.name))
    values, _, _, sample = whole("dicom", found)
    for time in range(3):
        np.testing.assert_array_equal(
            values[time, ::-1, ::-1, :, 0][::-1, ::-1], turn(volume((6, 5, 4), seed=time), AFFINE)
        )
    np.testing.assert_array_equal(sample.position[:, 3], [0, 1, 2])
    assert dicom.describe(found).holds["volumes_by"] == keyword
    mean = whole("dicom", found, volumes="mean")[0]
    np.testing.assert_allclose(mean[0], values.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(whole("dicom", found, volumes=2)[0][0], values[2])
    with pytest.raises(ConfigError, match="below 3"):
        whole("dicom", found, volumes=3)


def test_an_enhanced_object_in_any_order_of_frames(tmp_path):
    rng = np.random.default_rng(0)
    planes, order = rng.integers(-500, 500, (10, 4, 5)), rng.permutation(10)
    positions = [(1.0, 2.0, 3.0 * (k % 5)) for k in range(10)]
    path = enhanced(tmp_path / "e.dcm", planes[order], [positions[k] for k in order], times=[k // 5 for k in order])
    values, centre, spacing, _ = whole("dicom", [path])
    for time in range(2):
        expected = 2 * planes[5 * time : 5 * time + 5].transpose(2, 1, 0)[::-1, ::-1] - 1000
        np.testing.assert_array_equal(values[time, ..., 0], expected)
    np.testing.assert_allclose(spacing, (1.5, 2, 3))
    np.testing.assert_allclose(centre, (-1 - 1.5 * 2, -2 - 2 * 1.5, 6), atol=1e-5)
    assert dicom.describe([path]).holds["volumes"] == 2


def test_functional_groups_of_another_number_than_frames_are_refused(tmp_path):
    path = enhanced(tmp_path / "e.dcm", np.zeros((5, 4, 4)), [(0, 0, 3.0 * k) for k in range(5)])
    edit(path, lambda d: d.PerFrameFunctionalGroupsSequence.pop())
    with pytest.raises(DataError, match="groups of 5 frames, found 4"):
        dicom.describe([path])


# --- images without a place in the patient ---------------------------------------------------------------------------


def test_an_ultrasound_image_counts_mm_in_its_plane(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    values, centre, spacing, _ = whole("dicom", [flat(tmp_path / "u.dcm", pixels)])
    np.testing.assert_array_equal(values[0, :, ::-1, 0, 0].T, pixels)
    np.testing.assert_allclose(spacing, (0.25, 0.5, 1))
    np.testing.assert_allclose(centre, (0.25 * 3.5, -0.5 * 2.5, 0))


def test_a_cine_is_a_series_of_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 8), dtype=np.uint8)
    values, _, _, sample = whole("dicom", [flat(tmp_path / "u.dcm", pixels)])
    np.testing.assert_array_equal(values[:, :, ::-1, 0, 0].transpose(0, 2, 1), pixels)
    assert sample.position[:, 3].tolist() == [0, 1, 2, 3, 4]


def test_no_spacing_is_refused_unless_it_is_given(tmp_path):
    path = flat(tmp_path / "u.dcm", np.zeros((6, 8), np.uint8), spacing=None)
    with pytest.raises(DataError, match="pixel_mm"):
        dicom.read([path], {})
    assert "read needs options.pixel_mm" in dicom.describe([path]).warnings[-1]
    np.testing.assert_allclose(whole("dicom", [path], pixel_mm=0.2)[2], (0.2, 0.2, 1))


def test_regions_of_an_ultrasound_give_its_spacing_when_they_agree(tmp_path):
    def region(delta):
        return item(
            RegionSpatialFormat=1,
            PhysicalUnitsXDirection=3,
            PhysicalUnitsYDirection=3,
            PhysicalDeltaX=delta,
            PhysicalDeltaY=delta,
        )

    pixels = np.zeros((6, 8), np.uint8)
    one = flat(tmp_path / "a.dcm", pixels, spacing=None, SequenceOfUltrasoundRegions=[region(0.02)])
    np.testing.assert_allclose(whole("dicom", [one])[2], (0.2, 0.2, 1))
    two = flat(tmp_path / "b.dcm", pixels, spacing=None, SequenceOfUltrasoundRegions=[region(0.02), region(0.03)])
    with pytest.raises(DataError, match="pixel spacing"):
        dicom.read([two], {})


def test_monochrome1_is_turned_over_where_values_are_shown_and_kept_where_they_are_measured(tmp_path):
    pixels = np.array([[0, 10], [200, 255]], np.uint8)
    path = flat(tmp_path / "x.dcm", pixels, modality="DX", photometric="MONOCHROME1")
    np.testing.assert_array_equal(whole("dicom", [path])[0][0, :, ::-1, 0, 0].T, 255 - pixels.astype(int))
    files = series(tmp_path / "ct")
    plain = whole("dicom", files)[0]
    for path in files:
        edit(path, lambda d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"))
    np.testing.assert_array_equal(whole("dicom", files)[0], plain)


def test_colours_come_as_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    values = whole("dicom", [flat(tmp_path / "rgb.dcm", rgb, photometric="RGB")])[0]
    np.testing.assert_array_equal(values[0, :, ::-1, 0].transpose(1, 0, 2), rgb)
    grey = np.full((6, 8, 3), (100, 128, 128), np.uint8)
    values = whole("dicom", [flat(tmp_path / "ybr.dcm", grey, photometric="YBR_FULL")])[0]
    assert (values == 100).all()


def test_a_palette_gives_its_colours(tmp_path):
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    table = [0, 20, 30, 255]
    elements = {}
    for k, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = bytes(np.roll(table, k).astype(np.uint8))
    path = flat(tmp_path / "p.dcm", pixels, photometric="PALETTE COLOR", **elements)
    values = whole("dicom", [path])[0][0, :, ::-1, 0].transpose(1, 0, 2)
    np.testing.assert_array_equal(values.reshape(4, 3), np.stack([np.roll(table, k) for k in range(3)], axis=1))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"spacin": 1}, 'did you mean "spacing"'),
        ({"spacing": -1}, "one positive number or three"),
        ({"spacing": [1, 2]}, "one positive number or three"),
        ({"patch": 2.5}, "one positive number or three"),
        ({"patch": 4, "patch_mm": 10}, "patch or patch_mm, found both"),
        ({"stride": 4, "stride_mm": 10}, "stride or stride_mm, found both"),
        ({"window": [5, 1]}, "low < high"),
        ({"window": 7}, "low < high"),
        ({"crop": "boddy"}, 'did you mean "body"'),
        ({"coverage": 2}, "from 0 to 1"),
        ({"threshold": "low"}, "a number from"),
        ({"volumes": -1}, "all, mean, first"),
        ({"min_slices": 0}, "from 1"),
        ({"pixel_mm": "x"}, "positive number of mm"),
        ({"segments": "liver"}, "numbers of segments"),
    ],
)
def test_wrong_options_say_what_was_expected(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        dicom.read(series(tmp_path), options)


def test_window_and_body(tmp_path):
    hu = np.full((20, 16, 6), -1000.0)
    hu[4:10, 6:12, 2:5] = 60
    files = series(tmp_path, hu)
    sample = dicom.read(files, {"patch": [2, 2, 1], "crop": "body", "window": [-100, 50]})
    assert len(sample) == 3 * 3 * 3
    assert (sample.fetch(range(len(sample))) == 50).all()
    assert len(dicom.read(files, {"patch": [4, 4, 1], "crop": "body", "coverage": 1.0})) < len(
        dicom.read(files, {"patch": [4, 4, 1], "crop": "body"})
    )


# --- laziness and memory ---------------------------------------------------------------------------------------------


def test_nothing_is_open_and_pixels_are_read_when_they_are_asked_for(tmp_path):
    files = series(tmp_path)
    sample = dicom.read(files, {"patch": [4, 4, 2]})
    descriptors = Path("/proc/self/fd")
    open_files = {p.readlink() for p in descriptors.iterdir() if p.exists()}
    assert not open_files & set(files)
    expected = sample.fetch([3])
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-8])
    np.testing.assert_array_equal(sample.fetch([3]), expected)  # decoded before
    other = dicom.read(series(tmp_path / "other"), {"patch": [4, 4, 2]})
    other.fetch([0])  # one volume is held in the process: the other takes the place
    with pytest.raises(DataError, match="truncated"):
        sample.fetch([3])


def test_a_fetch_takes_at_most_one_and_a_half_volumes(tmp_path):
    files = series(tmp_path, np.zeros((128, 128, 24)))
    size = 128 * 128 * 24 * 4
    sample = dicom.read(files, {"patch": [32, 32, 8]})
    sample.fetch([0])
    other = dicom.read(files, {"patch": [32, 32, 8]})
    tracemalloc.start()
    for batch in other.batches(8):
        assert batch.dtype == np.float32
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * size


def test_an_x_ray_has_the_spacing_of_its_detector_and_says_so(tmp_path):
    path = flat(
        tmp_path / "a.dcm", np.zeros((6, 8), np.uint16), modality="DX", spacing=None, ImagerPixelSpacing=[0.2, 0.1]
    )
    sample = dicom.read([path], {})
    np.testing.assert_allclose(sample.facts["spacing_mm"][:2], (0.1, 0.2))
    assert any("magnification" in w for w in sample.warnings)


def test_a_whole_volume_and_its_affine_put_every_voxel_where_it_was(tmp_path):
    hu = volume()
    values, affine = dicom.read_volume(series(tmp_path, hu))
    np.testing.assert_array_equal(values[..., 0], turn(hu, AFFINE))
    np.testing.assert_allclose(affine, turned(AFFINE, hu.shape), atol=1e-6)
