"""Statistics of patches: their values where they are known, mm instead of voxels, no dependence on other patches."""

import numpy as np
import pytest

from medfuse.errors import ConfigError, DataError
from medfuse.extractors.volume import VolumeStatistics
from medfuse.sample import RawSample

SHAPE = (24, 20, 16)
HU = {"unit": "HU", "spacing_mm": [1.0, 1.0, 1.0]}


def described(patches, facts=HU, **arguments):
    """List of {name: value}."""
    patches = np.asarray(patches, dtype=np.float32)
    patches = patches if patches.ndim == 5 else patches[..., None]
    extractor = VolumeStatistics(**arguments)
    sample = RawSample(
        item="patch",
        shape=patches.shape[1:],
        position=np.zeros((len(patches), 3), np.float32),
        unit="mm",
        fetch=lambda rows: patches[list(rows)],
        facts=facts,
        warnings=(),
    )
    names, rows = extractor.names(sample), extractor(patches, facts)
    assert rows.shape == (len(patches), len(names))
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    return [dict(zip(names, row.tolist(), strict=True)) for row in rows]


def noise(number=3, seed=0):
    return np.random.default_rng(seed).normal(20, 50, (number, *SHAPE))


def grid(spacing=(1, 1, 1)):
    return np.meshgrid(*(s * (np.arange(n) - (n - 1) / 2) for n, s in zip(SHAPE, spacing, strict=True)), indexing="ij")


def test_intensities_are_those_of_numpy():
    patches = noise()
    for row, patch in zip(described(patches), patches.astype(np.float32), strict=True):
        assert row["mean"] == pytest.approx(patch.mean(), rel=1e-4)
        assert row["std"] == pytest.approx(patch.std(), rel=1e-4)
        for q in (1, 5, 25, 50, 75, 95, 99):
            assert row[f"p{q}"] == pytest.approx(np.percentile(patch, q), rel=1e-4, abs=1e-3)
        centred = patch - patch.mean()
        assert row["skewness"] == pytest.approx((centred**3).mean() / patch.std() ** 3, abs=1e-3)
        assert row["kurtosis"] == pytest.approx((centred**4).mean() / patch.std() ** 4 - 3, abs=1e-3)
        assert row["fraction_above_100"] == pytest.approx((patch > 100).mean(), abs=1e-6)


def test_a_constant_patch_has_neither_spread_nor_edges():
    (row,) = described(np.full((1, *SHAPE), 40.0))
    assert row["mean"] == 40
    for name, value in row.items():
        if name.startswith(("std", "skewness", "kurtosis", "gradient", "log_", "cooccurrence_contrast", "entropy")):
            assert value == pytest.approx(0, abs=1e-3), name
    assert (row["fraction_above_-500"], row["fraction_above_100"]) == (1, 0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.0)])
def test_the_gradient_of_a_ramp_is_its_slope_in_mm(spacing):
    x, y, _ = grid(spacing)
    (row,) = described([3 * x + 4 * y], HU | {"spacing_mm": list(spacing)}, scales_mm=[1.5])
    assert row["gradient_mean_1.5mm"] == pytest.approx(5 * 1.5, rel=0.2)  # less at the edges of the patch
    assert row["gradient_p95_1.5mm"] == pytest.approx(5 * 1.5, rel=0.05)


def test_a_bright_blob_has_a_negative_laplacian_at_its_scale_and_a_dark_one_a_positive():
    x, y, z = grid()
    blob = 100 * np.exp(-(x**2 + y**2 + z**2) / (2 * 3.0**2))
    bright, dark = described([blob, -blob], scales_mm=[1.5, 3.0])
    assert bright["log_min_3mm"] < -2 * abs(bright["log_max_3mm"])
    assert dark["log_max_3mm"] == pytest.approx(-bright["log_min_3mm"], rel=1e-3)
    # scale-normalised Laplacian of a Gaussian blob at its centre: -3 A s^2 r^3 / (r^2 + s^2)^(5/2), largest near s = r
    expected = -3 * 100 * 9 * 27 / 18**2.5
    assert bright["log_min_3mm"] == pytest.approx(expected, rel=0.15)
    assert bright["log_min_3mm"] < bright["log_min_1.5mm"]


def test_blobs_are_counted_and_their_surface_is_in_mm():
    patch = np.zeros(SHAPE)
    patch[2:6, 2:6, 2:6] = 200
    patch[10:12, 10:12, 10:12] = 200
    spacing = [2.0, 2.0, 2.0]
    (row,) = described([patch], HU | {"spacing_mm": spacing})
    assert row["blobs_log_above_100"] == pytest.approx(np.log(3))
    assert row["largest_blob_above_100"] == pytest.approx(64 / patch.size)
    assert row["fraction_above_100"] == pytest.approx(72 / patch.size)
    assert row["surface_per_mm_above_100"] == pytest.approx((6 * 16 + 6 * 4) * 4 / (72 * 8))


def test_texture_of_a_chequerboard_and_of_halves():
    board = (np.indices(SHAPE).sum(axis=0) % 2) * 100.0
    halves = np.zeros(SHAPE)
    halves[12:] = 100
    rough, smooth = described([board, halves])
    assert rough["cooccurrence_contrast"] == pytest.approx(49)
    assert rough["cooccurrence_correlation"] == pytest.approx(-1)
    assert smooth["cooccurrence_contrast"] < 2
    assert smooth["cooccurrence_correlation"] > 0.9
    assert rough["mean"] == smooth["mean"]


def test_a_patch_does_not_depend_on_the_others():
    patches = noise(4)
    together = VolumeStatistics()(patches[..., None].astype(np.float32), HU)
    for k in range(4):
        np.testing.assert_array_equal(
            VolumeStatistics()(patches[k : k + 1, ..., None].astype(np.float32), HU)[0], together[k]
        )


def test_thresholds_follow_the_unit_and_the_choice():
    patches = noise(1)
    relative = described(patches, {"unit": "arbitrary", "spacing_mm": [1, 1, 1]})[0]
    assert "fraction_above_50%_of_range" in relative
    shifted = described(2 * patches + 7, {"unit": "arbitrary", "spacing_mm": [1, 1, 1]})[0]
    assert relative["fraction_above_50%_of_range"] == pytest.approx(shifted["fraction_above_50%_of_range"], abs=1e-3)
    assert "fraction_above_0" in described(patches, HU, thresholds=[0, 10, 20])[0]


def test_colours_as_luma_or_one_by_one():
    patches = np.random.default_rng(0).uniform(0, 255, (2, 9, 8, 1, 3))
    facts = {"unit": "RGB", "spacing_mm": [1, 1, 1]}
    grey, each = described(patches, facts), described(patches, facts, grey=False)
    assert len(each[0]) == 3 * len(grey[0])
    luma = patches[0] @ [0.299, 0.587, 0.114]
    assert grey[0]["mean"] == pytest.approx(luma.mean(), rel=1e-4)
    assert each[0]["mean_channel1"] == pytest.approx(patches[0, ..., 1].mean(), rel=1e-4)


def test_what_cannot_be_is_refused():
    for wrong in ({"scales_mm": []}, {"scales_mm": [0]}, {"scales_mm": ["1"]}, {"thresholds": ["a"]}):
        with pytest.raises(ConfigError, match="scales_mm"):
            VolumeStatistics(**wrong)
    with pytest.raises(DataError, match="finite patches"):
        VolumeStatistics()(np.full((1, 4, 4, 4, 1), np.nan), HU)
    with pytest.raises(DataError, match="finite patches"):
        VolumeStatistics()(np.zeros((4, 4, 4)), HU)
