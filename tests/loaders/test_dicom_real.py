"""DICOM: real files, against true NIfTI and the table of verdicts."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_made import head
from volumes_whole import truth, whole

from medfuse.errors import DataError
from medfuse.loaders import dicom
from medfuse.loaders._volume import turned

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dicom"


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
