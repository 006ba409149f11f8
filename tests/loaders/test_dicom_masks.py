"""DICOM SEG: masks that restrict patches to a region."""

import numpy as np
import pytest
from dicom_made import AFFINE, edit, item, segmentation, series, volume

from medfuse.errors import DataError
from medfuse.loaders import dicom

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
