"""DICOM: order and geometry, values, what is refused and why, what identifies a person."""

import csv
import os
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import real_files
from bombs import j2k, jpeg
from dicom_made import AFFINE, deflated, edit, enhanced, flat, item, segmentation, series, volume
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid
from volumes_whole import WHOLE, truth, whole

from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.limits import read_head
from medfuse.loaders import _dicom_header, _dicom_pixels, dicom
from medfuse.loaders._dicom_identifying import PROFILE
from medfuse.loaders._volume import turn, turned
from medfuse.loaders.base import Head

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dicom"


def head(path):
    return Head(path=path, size=path.stat().st_size, start=read_head(path))


def rotated(x, y, z, spacing=(1.5, 2.0, 3.0)):
    """An affine turned by angles (radians)."""
    a = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    b = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    c = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = (a @ b @ c) * np.asarray(spacing), (10, -20, 30)
    return out


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


# --- what is refused -------------------------------------------------------------------------------------------------


def moved(files, change):
    for k, path in enumerate(files):
        edit(path, lambda d, k=k: change(d, k))
    return files


def tilt(data, k):
    x, y, z = (float(v) for v in data.ImagePositionPatient)
    data.ImagePositionPatient = [x, y + 0.6 * k, z]


def jitter(data, k):
    if k == 3:
        x, y, z = (float(v) for v in data.ImagePositionPatient)
        data.ImagePositionPatient = [x, y, z + 0.2]


def aside(data, k):
    if k == 3:
        x, y, z = (float(v) for v in data.ImagePositionPatient)
        data.ImagePositionPatient = [x + 1.0, y, z]


def duplicate(data, k):
    if k == 3:
        data.ImagePositionPatient = [-30, -40, -50 + 3 * 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tilt, r"shear of 11\.3 degrees \(gantry tilt\)"),
        (jitter, "gaps from 2.800 to 3.200 mm"),
        (aside, "one moved aside"),
        (duplicate, "more at 1 .duplicates.. and fewer at 0"),
        (
            lambda d, k: d.__delattr__("ImagePositionPatient") if k == 1 else None,
            "expected the position of every slice",
        ),
        (lambda d, k: setattr(d, "PixelSpacing", [1, 1]) if k == 1 else None, "one pixel spacing"),
        (
            lambda d, k: setattr(d, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]) if k == 1 else None,
            "one orientation",
        ),
        (lambda d, k: setattr(d, "SeriesInstanceUID", "1.2.3") if k == 1 else None, "one series"),
        (lambda d, k: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular unit vectors"),
        (lambda d, k: setattr(d, "PixelSpacing", [0, 0]), "positive pixel spacing"),
        (lambda d, k: (d.__delattr__("RescaleSlope"), d.__delattr__("RescaleIntercept")), "HU are unknown"),
        (lambda d, k: d.__delattr__("RescaleSlope") if k == 1 else None, "in all slices or in none, found 5 of 6"),
        (lambda d, k: setattr(d, "RescaleSlope", "0"), "slope that is not 0"),
        (lambda d, k: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic"),
        (lambda d, k: setattr(d, "PhotometricInterpretation", "HSV"), "photometric interpretation"),
        (lambda d, k: setattr(d, "BitsStored", 17), "bits stored within bits allocated"),
        (lambda d, k: setattr(d, "Rows", 60000), "expected 1440000 bytes of voxels, found 240"),
        (lambda d, k: setattr(d, "Columns", 0), "at least one voxel"),
        (lambda d, k: setattr(d, "NumberOfFrames", 99), "bytes of voxels, found 240"),
        (lambda d, k: setattr(d, "SOPInstanceUID", "1.2.3"), "found 1 of them twice"),
    ],
)
def test_what_makes_no_regular_volume_is_refused_with_its_reason(tmp_path, change, reason):
    files = moved(series(tmp_path), change)
    with pytest.raises(DataError, match=reason):
        dicom.read(files, WHOLE).fetch([0])


def test_a_missing_slice_is_counted(tmp_path):
    files = series(tmp_path)
    with pytest.raises(DataError, match=r"found 2 slice.s. missing at 1 of 3 places"):
        dicom.read([files[k] for k in (0, 1, 4, 5)], {})


def test_copies_with_new_names_and_uids_are_duplicates_not_a_second_volume(tmp_path):
    files = series(tmp_path / "a")
    copies = [shutil.copy(p, tmp_path / f"{k}.dcm") for k, p in enumerate(files)]
    for path in copies:
        edit(path, lambda d: setattr(d, "SOPInstanceUID", generate_uid()))
    with pytest.raises(DataError, match="2 images at every slice position that no element tells apart"):
        dicom.read([*files, *copies], {})


def test_a_few_slices_are_no_volume_unless_asked_for(tmp_path):
    files = series(tmp_path, volume((5, 5, 2)))
    with pytest.raises(DataError, match="min_slices: 2"):
        dicom.read(files, {})
    assert len(dicom.read(files, {"min_slices": 2})) == 1


def test_series_orientations_and_frames_of_reference_are_split(tmp_path):
    first, second = series(tmp_path / "a"), series(tmp_path / "b", seed=1)
    turned_files = moved(series(tmp_path / "c", affine=rotated(1.57, 0, 0), seed=2), lambda d, k: None)
    for path in turned_files:
        edit(path, lambda d: setattr(d, "SeriesInstanceUID", pydicom.dcmread(first[0]).SeriesInstanceUID))
    found = dicom.group(sorted([*first, *second, *turned_files]))
    assert sorted(map(set, found), key=lambda s: sorted(s)) == sorted(
        [set(first), set(second), set(turned_files)], key=lambda s: sorted(s)
    )


def test_a_damaged_slice_keeps_its_series_out(tmp_path):
    files = series(tmp_path)
    content = files[-1].read_bytes()
    for length in (200, 400, 700, len(content) - 1):
        files[-1].write_bytes(content[:length])
        found = dicom.group(files)
        assert [set(f) for f in found] == [set(files)], length
        with pytest.raises(DataError, match=files[-1].name):
            dicom.read(found[0], {})


def test_a_damaged_image_of_another_series_or_of_none_stops_nobody_else(tmp_path):
    files, image = series(tmp_path), flat(tmp_path / "us.dcm", np.zeros((4, 4), np.uint8))
    other = series(tmp_path / "other", seed=3)[0]
    damaged = tmp_path / "damaged.dcm"
    content = other.read_bytes()
    damaged.write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00OW") - 40])
    assert set(dicom.group([*files, image, damaged])) == {(image,), tuple(sorted(files)), (damaged,)}
    damaged.write_bytes(
        content[:200]
    )  # which series, nobody can say: the volume may lack it, the single image does not
    found = dicom.group([*files, image, damaged])
    assert (image,) in found
    assert tuple(sorted([*files, damaged])) in found


@pytest.mark.parametrize(
    ("sop", "name"),
    [
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RT Dose"),
        ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR"),
        ("1.2.840.10008.5.1.4.1.1.9.2.1", "Hemodynamic Waveform"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Presentation State"),
        ("1.2.840.10008.5.1.4.1.1.66.1", "Spatial Registration"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF"),
    ],
)
def test_what_is_no_image_is_refused_by_its_name_and_stops_nothing_else(tmp_path, sop, name):
    files = series(tmp_path / "a")
    other = flat(tmp_path / "other.dcm", np.zeros((4, 4), np.uint8))

    def change(data):
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop

    edit(other, change)
    assert dicom.recognise(head(other))
    assert len(dicom.group([*files, other])) == 2
    with pytest.raises(DataError, match=name):
        dicom.describe([other])


@pytest.mark.parametrize("number", ["9.1.1", "9.1.2", "9.1.3", "77.1.6"])
def test_ecg_and_slides_are_left_to_their_loaders(tmp_path, number):
    path = flat(tmp_path / "x.dcm", np.zeros((4, 4), np.uint8))

    def change(data):
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{number}"

    assert dicom.recognise(head(path))
    edit(path, change)
    assert not dicom.recognise(head(path))
    path.write_bytes(path.read_bytes()[pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength + 144 :])
    assert not dicom.recognise(head(path))


def test_other_files_are_not_recognised(tmp_path):
    for name, content in (
        ("a.txt", b"hello " * 100),
        ("b", b"\x02\x01\x04"),
        ("c", b"\x08\x00\xff\xff" * 50),
        ("d", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert not dicom.recognise(head(tmp_path / name))


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


# --- masks -----------------------------------------------------------------------------------------------------------


def test_a_segmentation_restricts_patches_to_its_region(tmp_path):
    files = series(tmp_path / "ct", volume((12, 10, 6)))
    masks = np.zeros((2, 10, 12), bool)
    masks[0, 1, 2], masks[1, 9, 11] = True, True  # row 1, column 2 of slice 1; row 9, column 11 of slice 4
    mask = segmentation(tmp_path / "seg.dcm", [files[1], files[4]], masks, [1, 2])
    (found,) = dicom.group([mask, *files])
    assert set(found) == {mask, *files}
    assert dicom.describe(found).holds["segmentations"] == 1
    sample = dicom.read(found, {"patch": [1, 1, 1], "crop": "mask"})
    expected = np.array([[2, 1, 1], [11, 9, 4]]) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(sample.position[np.argsort(-sample.position[:, 0])], expected, atol=1e-4)
    one = dicom.read(found, {"patch": [1, 1, 1], "crop": "mask", "segments": [2]})
    np.testing.assert_allclose(one.position, expected[1:], atol=1e-4)
    assert any("not used" in w for w in dicom.read(found, {}).warnings)
    with pytest.raises(DataError, match="found an empty one"):
        dicom.read(found, {"crop": "mask", "segments": [3]})
    with pytest.raises(DataError, match="found no mask"):
        dicom.read(files, {"crop": "mask"})
    assert dicom.describe([mask]).kind == "segmentation"
    with pytest.raises(DataError, match="segmentation alone"):
        dicom.read([mask], {})


@pytest.mark.parametrize("most", [255, 100])
def test_a_fractional_segmentation_counts_above_half_of_its_largest_value(tmp_path, most):
    files = series(tmp_path / "ct")
    values = np.zeros((1, 10, 12), np.uint8)
    values[0, 2, 3], values[0, 4, 5], values[0, 6, 7] = most, most // 2, most // 2 + 1
    mask = segmentation(tmp_path / "seg.dcm", [files[2]], values, [1], kind="FRACTIONAL", most=most)
    sample = dicom.read([*files, mask], {"patch": [1, 1, 1], "crop": "mask"})
    expected = np.array([[3, 2, 2], [7, 6, 2]]) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(sample.position[np.argsort(-sample.position[:, 0])], expected, atol=1e-4)


def test_a_label_map_and_overlapping_segments(tmp_path):
    files = series(tmp_path / "ct")
    labels = np.zeros((1, 10, 12), np.uint8)
    labels[0, 2, 3], labels[0, 4, 5] = 1, 7
    mask = segmentation(tmp_path / "map.dcm", [files[2]], labels, [0], kind="LABELMAP")
    assert len(dicom.read([*files, mask], {"patch": [1, 1, 1], "crop": "mask"})) == 2
    one = dicom.read([*files, mask], {"patch": [1, 1, 1], "crop": "mask", "segments": [7]})
    np.testing.assert_allclose(one.position, np.array([[5, 4, 2]]) @ AFFINE[:3, :3].T + AFFINE[:3, 3], atol=1e-4)
    both = np.zeros((2, 10, 12), bool)
    both[:, 2, 3], both[1, 5, 5] = True, True
    other = segmentation(tmp_path / "both.dcm", [files[2], files[2]], both, [1, 2])
    lengths = [
        len(dicom.read([*files, other], {"patch": [1, 1, 1], "crop": "mask", "segments": s})) for s in ([], [1], [2])
    ]
    assert lengths == [2, 1, 2]


def test_patches_are_kept_by_their_share_of_the_mask(tmp_path):
    files = series(tmp_path / "ct")
    inside = np.zeros((1, 10, 12), bool)
    inside[0, 0:2, 0:3] = True  # 6 of the 16 voxels of one patch in its plane
    mask = segmentation(tmp_path / "seg.dcm", [files[0]], inside, [1])
    options = {"patch": [4, 4, 1], "crop": "mask"}
    assert len(dicom.read([*files, mask], options | {"coverage": 6 / 16})) == 1
    with pytest.raises(DataError, match="no patch has"):
        dicom.read([*files, mask], options | {"coverage": 7 / 16})
    resampled = dicom.read([*files, mask], options | {"spacing": [3, 4, 3], "patch": [2, 2, 1]})
    assert 0 < len(resampled) < len(dicom.read(files, {"patch": [2, 2, 1], "spacing": [3, 4, 3]}))


def test_a_segmentation_of_another_grid_is_refused(tmp_path):
    files = series(tmp_path / "ct")
    mask = segmentation(tmp_path / "seg.dcm", [files[1]], np.ones((1, 10, 12), bool), [1])
    away = item(PlanePositionSequence=[item(ImagePositionPatient=[-30, -40, -45.5])])

    def change(data):
        data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence = away.PlanePositionSequence

    edit(mask, change)
    with pytest.raises(DataError, match="one elsewhere"):
        dicom.read([*files, mask], {"crop": "mask"})


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


# --- hostile files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (JPEG2000Lossless, j2k(60000, 60000)),
        (JPEG2000Lossless, b"\0\0\0\x0cjP  \r\n\x87\n" + j2k(60000, 60000)),
        (pydicom.uid.JPEGBaseline8Bit, jpeg(60000, 60000)),
        (pydicom.uid.JPEGLSLossless, jpeg(60000, 60000, frame=0xF7)),
    ],
)
def test_a_stream_that_declares_another_size_is_not_decoded(tmp_path, syntax, stream):
    files = series(tmp_path, np.zeros((16, 16, 4)))
    path = files[0]
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([stream])
    data["PixelData"].is_undefined_length = True
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.save_as(path, enforce_file_format=True)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"found \(60000, 60000\) in the stream; a bomb"):
        dicom.read(files, {}).fetch([0])
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_deflated_cine_is_inflated_once(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 6, 8), np.uint8)
    path = deflated(tmp_path / "a.dcm", pydicom.dcmread(flat(tmp_path / "b.dcm", pixels)))
    calls = []
    inflated = _dicom_pixels.inflated
    monkeypatch.setattr(_dicom_pixels, "inflated", lambda *a, **k: calls.append(1) or inflated(*a, **k))
    values = whole("dicom", [path])[0]
    np.testing.assert_array_equal(values[:, :, ::-1, 0, 0].transpose(0, 2, 1), pixels)
    assert len(calls) <= 7


def test_deep_sequences_end_in_a_refusal(tmp_path):
    (plain,) = series(tmp_path, np.zeros((4, 4, 1)))
    content = plain.read_bytes()
    at = content.index(b"\x20\x00\x0d\x00UI")
    nested = b"\x19\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    plain.write_bytes(content[:at] + nested * 5000 + content[at:])
    with pytest.raises(DataError, match="nested at most"):
        dicom.describe([plain])


def test_a_dicomdir_is_refused_and_what_it_names_is_not_opened(tmp_path):
    folder = tmp_path / "set"
    files = series(folder)
    outside = tmp_path / "secret.dc"
    shutil.copy(files[0], outside)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.DirectoryRecordSequence = [item(DirectoryRecordType="IMAGE", ReferencedFileID=["XX", "SECRETDCM"])]
    index = folder / "DICOMDIR"
    data.save_as(index, enforce_file_format=True)
    index.write_bytes(index.read_bytes().replace(b"XX\\SECRETDCM", b"..\\secret.dc"))
    with pytest.raises(DataError, match="DICOMDIR"):
        dicom.describe([index])
    (found,) = dicom.group([*files, index])
    assert outside not in found
    assert len(dicom.read(found, {})) == len(dicom.read(files, {}))
    assert dicom.group([index]) == [(index,)]


def mutants(content, count, seed):
    rng = np.random.default_rng(seed)
    for k in range(count):
        data = bytearray(content)
        a, b = sorted(int(v) for v in rng.integers(0, len(data), 2))
        if k % 4 == 0:
            for place in rng.integers(0, min(len(data), 1400 if k % 8 else len(data)), 1 + k % 5):
                data[place] ^= 1 << int(rng.integers(8))
        elif k % 4 == 1:
            data = data[:a]
        elif k % 4 == 2:
            data[a : min(b, a + 64)] = bytes(min(b, a + 64) - a)
        else:
            data[a:a] = data[b : b + 40]
        yield bytes(data)


def survives(folder, number, seed):
    files = series(folder, volume((6, 5, 4)))
    content = files[1].read_bytes()
    said = []
    for k, mutant in enumerate(mutants(content, number, seed)):
        files[1].write_bytes(mutant)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                for found in dicom.group(files):
                    dicom.describe(found)
                    dicom.identifying(found)
                    sample = dicom.read(found, {"min_slices": 1})
                    assert np.isfinite(sample.fetch(range(len(sample)))).all(), k
            except MedfuseError as error:
                said.append(str(error))
    assert not any("Nobody" in s for s in said)
    return len(said)


def test_mutants_are_read_or_refused(tmp_path):
    assert survives(tmp_path, 60, seed=7) > 20


@pytest.mark.slow
def test_a_thousand_mutants_are_read_or_refused(tmp_path):
    assert survives(tmp_path, 1000, seed=8) > 300


# --- who is in it ----------------------------------------------------------------------------------------------------


def where(path):
    return {one.where for one in dicom.identifying([path])}


def test_elements_of_the_basic_profile_are_named_without_their_values(tmp_path):
    (path,) = series(tmp_path, np.zeros((4, 4, 1)))
    before = where(path)
    assert "(0010,0010) PatientName" in before

    def plant(data):
        data.InstitutionName, data.OperatorsName = "Hidden^Value", "Hidden^Value"
        data.RequestAttributesSequence = [item(RequestedProcedureID="HIDDEN")]
        data.PatientBirthDate = "19000101"
        data.StudyDate = ""
        data.add_new(0x00291010, "LO", "HIDDEN")
        data.BurnedInAnnotation = "YES"
        data.BodyPartExamined = "HEAD"

    edit(path, plant)
    found = {one.where: one.kind for one in dicom.identifying([path])}
    new = set(found) - before
    assert {f.split()[1] for f in new if f.startswith("(00") and "xxxx" not in f} >= {
        "InstitutionName",
        "OperatorsName",
        "RequestedProcedureID",
        "PatientBirthDate",
        "BurnedInAnnotation:",
        "BodyPartExamined:",
    }
    assert "(0029,xxxx) private elements" in new
    assert not any("StudyDate" in f for f in found)
    assert "idden" not in str(found)
    assert "HIDDEN" not in str(found)
    assert found["(0010,0030) PatientBirthDate"] == "date"
    assert found["(0010,0010) PatientName"] == "name"


def test_every_top_level_text_element_of_the_profile_is_reported_when_planted(tmp_path):
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    samples = {"PN": "A^B", "DA": "20200101", "TM": "1010", "DT": "20200101", "AS": "010Y", "UI": "1.2.3", "CS": "A"}
    (path,) = series(tmp_path, np.zeros((4, 4, 1)))
    data, planted = pydicom.dcmread(path), []
    for tag in sorted(PROFILE):
        if tag >> 16 in (0, 2) or not keyword_for_tag(tag) or tag in data:
            continue
        vr = dictionary_VR(tag)
        if vr in samples or vr in ("LO", "SH", "LT", "ST", "UT", "UC"):
            data.add_new(tag, vr, samples.get(vr, "A"))
            planted.append(keyword_for_tag(tag))
    data.save_as(path, enforce_file_format=True)
    found = {w.split()[-1] for w in where(path)}
    assert len(planted) > 300
    assert set(planted) <= found


def test_the_risk_of_burned_in_text(tmp_path):
    path = flat(tmp_path / "u.dcm", np.zeros((4, 4), np.uint8))
    assert any("pixels" in w for w in where(path))
    edit(path, lambda d: setattr(d, "BurnedInAnnotation", "NO"))
    assert not any("pixels" in w for w in where(path))


def test_written_series_hold_nobody(tmp_path):
    (path,) = series(tmp_path, np.zeros((4, 4, 1)), patient_id="SYN1")
    data = pydicom.dcmread(path)
    assert data.PatientID == "SYN1"
    assert str(data.PatientName) == "Nobody^SYN1"
    assert not any(element.value for element in data if element.VR in ("DA", "TM", "DT"))
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    with pytest.raises(DataError, match="sheared"):
        series(tmp_path, affine=AFFINE + np.eye(4, k=1))
    with pytest.raises(DataError, match="clip"):
        series(tmp_path, np.full((4, 4, 2), 1e6))


def test_a_missing_codec_is_refused_by_the_name_of_the_extra(tmp_path, monkeypatch):
    (path,) = series(tmp_path, np.zeros((8, 8, 1)))
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.save_as(path, enforce_file_format=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"medfuse\[dicom-gpl\]"):
        dicom.read([path], {"min_slices": 1}).fetch([0])


def test_the_walker_and_pydicom_agree(tmp_path):
    for path in series(tmp_path):
        one, two = _dicom_header.read_header(path), _dicom_header._through_pydicom(path)
        assert {k: v.strip(b" \0") for k, v in one.values.items()} == {
            k: v.strip(b" \0") for k, v in two.values.items()
        }
        assert (one.pixels, one.syntax, one.order) == (two.pixels, two.syntax, two.order)


# --- real files ------------------------------------------------------------------------------------------------------

TRUTHS = [
    "ge/anatomical/001",
    "ge/dti/001",
    "ge/dti/002",
    "ge/fmri/001",
    "generic/anatomical/001",
    "generic/anatomical/001_implicit",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed/001",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
    "generic/rgb/001",
    "hitachi/anatomical/001",
    "siemens/fmri_classic/001",
]


def agrees(folder, image):
    import nibabel

    (files,) = dicom.group(sorted(p for p in folder.iterdir() if p.suffix != ".txt"))
    values, centre, spacing, _ = whole("dicom", files)
    data, true_centre, true_spacing, affine = truth(nibabel.load(image))
    assert values.shape == data.shape
    np.testing.assert_allclose(values, data.astype(np.float32), rtol=1e-6)
    np.testing.assert_allclose(centre, true_centre, atol=2e-3)
    np.testing.assert_allclose(spacing, true_spacing, atol=1e-4)
    plan = dicom._plan(files, least=None, pixel_mm=None)
    shape = (plan.stack.columns, plan.stack.rows, len(plan.stack.frames[0]))
    np.testing.assert_allclose(turned(plan.stack.affine, shape), affine, atol=2e-3)


@pytest.mark.realdata
@pytest.mark.parametrize("name", TRUTHS)
def test_voxels_and_affine_are_those_of_the_true_nifti(name):
    agrees(DATA / "dicom2nifti" / name, DATA / "dicom2nifti" / f"{name}_ground_truth.nii.gz")


@pytest.mark.realdata
def test_a_ge_series_of_ten_volumes_is_that_of_dcm2niix():
    folder = DATA / "series_mr_ge_epi_4d"
    agrees(folder / "mr_0004", folder / "reference_nifti" / "DCM2NIIX_regression_test_4.nii")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gantrytilting", "gantry tilt"),
        ("slicecount", "at least 4 slices, found 2"),
        ("sliceorientation", "one orientation|at least 4 slices|one pixel spacing|frame of reference"),
    ],
)
def test_what_others_refuse_is_refused_with_its_reason(name, reason):
    files = sorted((DATA / "dicom2nifti" / "failing" / name / "001").iterdir())
    with pytest.raises(DataError, match=reason):
        dicom.read(files, {})
    for found in dicom.group(files):
        with pytest.raises(DataError, match=reason):
            dicom.describe(found)


@pytest.mark.realdata
def test_every_real_file_is_read_or_refused_as_in_the_table():
    """Also of the volumes; any error that is not ours ends this test."""
    with real_files.TABLE.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    found = [dict(zip(real_files.COLUMNS, row, strict=True)) for row in sorted(real_files.rows())]
    assert found == table
    assert sum(row["verdict"].startswith("read") for row in table) >= 120
    for row in table:
        if row["verdict"].startswith("refused"):
            assert len(row["verdict"]) > 60, row
    failing = [row for row in table if "/failing/" in row["item"] and row["loader"] == "dicom"]
    assert len(failing) == 4
    assert all(row["verdict"].startswith("refused") for row in failing)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["binary", "binary_fractional", "true_fractional"])
def test_real_segmentations_of_a_ct_lie_where_their_frames_say(name):
    slices = [DATA / "pydicom_test_files/dicomdirtests/77654033/CT2" / n for n in ("17136", "17166", "17196")]
    seg = DATA / "highdicom" / f"seg_image_ct_{name}.dcm"
    data = pydicom.dcmread(seg)
    most = int(data.get("MaximumFractionalValue", 1))
    inside = {
        (column, row, round(float(group.PlanePositionSequence[0].ImagePositionPatient[2]), 3))
        for plane, group in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True)
        for row, column in np.argwhere(plane.astype(float) > most / 2)
    }
    sample = dicom.read([*slices, seg], {"patch": [1, 1, 1], "crop": "mask", "min_slices": 3})
    assert len(sample) == len(inside) > 0
    lps = sample.position * [-1, -1, 1]
    step = float(pydicom.dcmread(slices[0]).PixelSpacing[0])
    origin = [float(v) for v in pydicom.dcmread(slices[0]).ImagePositionPatient]
    found = {
        (round((x - origin[0]) / step), round((y - origin[1]) / step), round(float(z), 3)) for x, y, z in lps.tolist()
    }
    assert found == inside


@pytest.mark.realdata
def test_a_real_segmentation_of_an_x_ray_restricts_it():
    seg = DATA / "highdicom" / "seg_image_cr_binary.dcm"
    wanted = pydicom.dcmread(seg).ReferencedSeriesSequence[0].SeriesInstanceUID
    (image,) = [
        p
        for p in (DATA / "pydicom_test_files/dicomdirtests/77654033").glob("CR*/*")
        if pydicom.dcmread(p).SeriesInstanceUID == wanted
    ]
    assert dicom.group([image, seg]) == [tuple(sorted([image, seg]))]
    sample = dicom.read([image, seg], {"patch": [1, 1, 1], "crop": "mask"})
    mask = pydicom.dcmread(seg).pixel_array.astype(bool)
    shown = whole("dicom", [image])[0][0, :, :, 0, 0].T[::-1]  # rows from top, as stored
    assert len(sample) == mask.sum()
    np.testing.assert_array_equal(np.sort(sample.fetch(range(len(sample))).ravel()), np.sort(shown[mask]))


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_expb"])
def test_encodings_of_one_real_image_agree(name):
    expected = whole("dicom", [DATA / "pydicom_test_files" / "MR_small.dcm"], min_slices=1)[0]
    values = whole("dicom", [DATA / "pydicom_test_files" / f"{name}.dcm"], min_slices=1)[0]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.realdata
def test_a_real_segmentation_lies_where_its_maker_says():
    folder = DATA / "highdicom"
    files = [folder / "ct_image.dcm", folder / "seg_image_ct_binary_single_frame.dcm"]
    sample = dicom.read(files, {"min_slices": 1, "patch": [1, 1, 1], "crop": "mask"})
    mask = pydicom.dcmread(files[1]).pixel_array
    assert len(sample) == int(mask.sum())
    row, column = np.argwhere(mask)[0]
    origin = np.array([-158.135803, -179.035797, -75.699997])
    place = (origin + np.array([column * 0.661468, row * 0.661468, 0])) * [-1, -1, 1]
    assert np.abs(sample.position - place).sum(axis=1).min() < 1e-3


@pytest.mark.realdata
def test_real_ecg_and_slides_are_left_alone():
    assert not dicom.recognise(head(DATA / "pydicom_test_files" / "waveform_ecg.dcm"))
    for path in sorted((DATA / "highdicom").glob("sm_image*.dcm")):
        assert not dicom.recognise(head(path)), path.name
