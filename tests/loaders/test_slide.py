"""Whole slides: the pixels of OpenSlide, the tissue, and what is refused."""

import os
import struct
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image, ImageDraw

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import _slide_files, _slide_tiles, _slide_writer, _tiles, slide, vectors
from medfuse.loaders._slide_files import open_slide
from medfuse.loaders._slide_writer import tissue_like
from medfuse.loaders._tissue import masks
from medfuse.loaders.base import Head
from medfuse.sample import ModalitySample

REAL = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared/data")) / "wsi"
ALL = {"tissue": 0.001, "pen": 1.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("slides") / "a.tif"
    slide.write_slide(file, tissue_like(1100, 900, seed=3), mpp=0.25, levels=3)
    return file


def by_openslide(path, raw, wide, level=0):
    """The same tiles through OpenSlide, white where the slide ends."""
    out = []
    with openslide.OpenSlide(str(path)) as other:
        for x, y in raw.position:
            image = other.read_region((int(x), int(y)), level, (wide, wide))
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            out.append(np.asarray(Image.alpha_composite(white, image).convert("RGB")))
    return np.stack(out)


@pytest.mark.parametrize(
    ("mpp", "tile", "level"), [(0.25, 256, 0), (0.25, 224, 0), (0.25, 96, 0), (0.5, 128, 1), (0.5, 100, 1), (1, 64, 2)]
)
def test_pixels_are_those_of_openslide_on_and_off_the_native_grid(path, mpp, tile, level):
    raw = slide.read([path], {"mpp": mpp, "tile": tile, **ALL})
    assert raw.facts["read_by"] == "JPEG tiles"
    assert (raw.facts["level"], raw.facts["reduced_by"], raw.facts["mpp"]) == (level, 1, mpp)
    np.testing.assert_array_equal(np.concatenate(list(raw.batches(7))), by_openslide(path, raw, tile, level))


def test_without_the_fast_path_the_same_pixels_come_from_openslide(path, monkeypatch):
    options = {"mpp": 0.25, "tile": 224, **ALL}
    fast = slide.read([path], options)
    monkeypatch.setattr(_slide_files, "_JPEG_VENDORS", set())
    slow = slide.read([path], options)
    assert slow.facts["read_by"] == "generic-tiff"
    np.testing.assert_array_equal(slow.fetch(range(len(slow))), fast.fetch(range(len(fast))))


def test_components_are_rgb_where_the_directory_says_so(path, tmp_path):
    content = bytearray(path.read_bytes())
    entry = struct.pack("<HHIHH", 262, 3, 1, 6, 0)
    assert content.count(entry) == 3
    file = tmp_path / "rgb.tif"
    file.write_bytes(bytes(content).replace(entry, struct.pack("<HHIHH", 262, 3, 1, 2, 0)))
    raw = slide.read([file], {"mpp": 0.25, "tile": 256, **ALL})
    assert raw.facts["read_by"] == "JPEG tiles"
    np.testing.assert_array_equal(raw.fetch(range(len(raw))), by_openslide(file, raw, 256))


@pytest.mark.parametrize("times", [2, 4, 8])
def test_scaled_decoding_stays_near_the_area_mean(tmp_path, times):
    file = tmp_path / "one.tif"
    slide.write_slide(file, tissue_like(1024, 1024, seed=5, margin=-0.5), mpp=0.25, levels=1)
    options = {"mpp": 0.25 * times, "tile": 64, **ALL}
    dct, area = (slide.read([file], {**options, "resample": r}) for r in ("dct", "area"))
    assert dct.facts["dct"]
    assert not area.facts["dct"]
    full = by_openslide(file, area, 64 * times).reshape(-1, 64, times, 64, times, 3).mean(axis=(2, 4), dtype=float)
    exact = area.fetch(range(len(area)))
    assert np.abs(exact - full).max() <= 0.5 + 1e-9
    apart = np.abs(dct.fetch(range(len(dct))) - full)
    assert apart.mean() <= _tiles.DCT_MEAN
    assert apart.max() <= _tiles.DCT_MAX


def test_scaled_decoding_is_not_used_where_it_would_be_far_off(tmp_path):
    file = tmp_path / "stripes.tif"
    stripes = np.full((512, 512, 3), (200, 120, 170), np.uint8)
    stripes[::4] = 20  # colour that changes faster than the file keeps it
    stripes[:, ::7] = 250
    slide.write_slide(file, stripes, mpp=0.25, levels=1, quality=95)
    assert not slide.read([file], {"mpp": 0.5, "tile": 64, **ALL}).facts["dct"]


def test_a_size_between_levels_is_resampled_and_says_its_mpp(path):
    raw = slide.read([path], {"mpp": 0.4, "tile": 100, **ALL})
    assert raw.facts["mpp"] == pytest.approx(0.4)
    assert raw.facts["tile_level0"] == 160
    theirs = by_openslide(path, raw, 160)
    expected = [np.asarray(Image.fromarray(t).resize((100, 100), Image.Resampling.BILINEAR)) for t in theirs]
    np.testing.assert_array_equal(raw.fetch(range(len(raw))), expected)


def test_fetch_is_lazy_in_any_order_and_leaves_nothing_open(path):
    raw = slide.read([path], {"mpp": 0.25, "tile": 200, **ALL})
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    whole = raw.fetch(range(len(raw)))
    some = [5, 0, 5, len(raw) - 1]
    np.testing.assert_array_equal(raw.fetch(some), whole[some])
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert len({tuple(p) for p in raw.position}) == len(raw)
    assert (raw.position % 200 == 0).all()


def test_decoded_tiles_are_bounded(path, monkeypatch):
    monkeypatch.setattr(_tiles, "CACHE", 3 * 256 * 256 * 3)
    raw = slide.read([path], {"mpp": 0.25, "tile": 224, **ALL})
    np.testing.assert_array_equal(raw.fetch(range(len(raw))), by_openslide(path, raw, 224))
    assert raw.fetch.cache.size <= 3 * 256 * 256 * 3


@pytest.mark.parametrize(("mpp", "tile"), [(0.25, 224), (0.25, 100), (0.25, 300)])
def test_no_native_tile_is_decoded_twice_although_only_neighbours_are_kept(path, monkeypatch, mpp, tile):
    raw = slide.read([path], {"mpp": mpp, "tile": tile, **ALL})
    decode, numbers = _tiles.JpegGrid.decode, []

    def counted(grid, handle, number, **more):
        numbers.append(number)
        return decode(grid, handle, number, **more)

    monkeypatch.setattr(_tiles.JpegGrid, "decode", counted)
    for _ in raw.batches(7):
        pass
    assert len(numbers) == len(set(numbers)) > 4
    assert raw.fetch.cache.size <= raw.fetch.cache.limit <= _tiles.CACHE


# --- µm per pixel, options -------------------------------------------------------------------------------------------


def plain(tmp_path, **options):
    file = tmp_path / "plain.tif"
    Image.fromarray(tissue_like(400, 300, seed=1)).save(file, **options)
    return file


def test_a_plain_tiff_needs_the_card_to_say_its_mpp(tmp_path):
    file = plain(tmp_path, dpi=(72, 72))
    with pytest.raises(DataError, match="slide_mpp"):
        slide.read([file], {})
    raw = slide.read([file], {"slide_mpp": 0.5, "tile": 100})
    assert raw.facts["mpp_from"] == "card"
    x, y = map(int, raw.position[0])
    np.testing.assert_array_equal(raw.fetch([0])[0], np.asarray(Image.open(file))[y : y + 100, x : x + 100])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_plain_tiffs_of_any_codec(tmp_path, compression):
    raw = slide.read([plain(tmp_path, compression=compression)], {"slide_mpp": 0.5, "tile": 64})
    assert raw.fetch(range(len(raw))).std() > 5


def test_mpp_that_contradicts_the_file_or_is_too_fine_is_refused(path):
    with pytest.raises(DataError, match="remove the option"):
        slide.read([path], {"slide_mpp": 0.5})
    with pytest.raises(DataError, match=r"set mpp: 0\.25"):
        slide.read([path], {"mpp": 0.1})


@pytest.mark.parametrize(
    "options",
    [
        {"mmp": 0.5},
        {"mpp": 0},
        {"mpp": "0.5"},
        {"mpp": float("nan")},
        {"tile": 8},
        {"tile": 100.5},
        {"tile": True},
        {"tissue": 2},
        {"pen": -1},
        {"resample": "nearest"},
        {"frames": "spiral"},
        {"slide_mpp": 400},
    ],
)
def test_options_are_checked(path, options):
    with pytest.raises(ConfigError, match="options of the loader slide"):
        slide.read([path], options)


# --- tissue ----------------------------------------------------------------------------------------------------------


def drawn(draw_on, colour, *, glass=(243, 242, 244), size=300):
    image = Image.new("RGB", (size, size), glass)
    draw_on(ImageDraw.Draw(image), colour)
    pixels = np.asarray(image).astype(float) + np.random.default_rng(0).normal(0, 1.5, (size, size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def blob(draw, colour):
    draw.ellipse((60, 60, 240, 240), fill=colour)


@pytest.mark.parametrize(
    "colour", [(200, 120, 170), (236, 214, 228), (90, 60, 130), (150, 110, 70), (225, 200, 235), (185, 55, 90)]
)
def test_tissue_is_found_whether_dark_pale_blue_or_brown(colour):
    tissue, pen = masks(drawn(blob, colour), 8.0)
    truth = np.asarray(drawn(blob, (0, 0, 0))).max(axis=2) < 100
    assert (tissue & truth).sum() / (tissue | truth).sum() > 0.93
    assert not pen.any()


@pytest.mark.parametrize("colour", [(30, 60, 180), (20, 120, 70), (40, 45, 140), (245, 20, 30), (12, 12, 15)])
def test_ink_is_not_tissue(colour):
    tissue, pen = masks(drawn(blob, colour), 8.0)
    assert not tissue.any()
    assert pen[150, 150]


def test_glass_dirt_and_noise_are_not_tissue():
    for colour in ((243, 242, 244), (180, 180, 182), (120, 119, 121)):
        assert not masks(drawn(blob, colour), 8.0)[0].any()


def test_a_slide_of_nothing_but_tissue_is_all_tissue():
    assert masks(drawn(lambda draw, c: draw.rectangle((0, 0, 300, 300), fill=c), (215, 150, 190)), 8.0)[0].mean() > 0.99


def test_blank_slides_and_inked_tiles_are_left_out_and_said(tmp_path):
    blank = np.full((512, 512, 3), 243, np.uint8)
    slide.write_slide(tmp_path / "blank.tif", blank, mpp=0.5, levels=1)
    with pytest.raises(DataError, match="is it blank"):
        slide.read([tmp_path / "blank.tif"], {})
    inked = tissue_like(1024, 1024, seed=2, margin=-0.5)
    inked[:, 300:500] = (25, 60, 190)
    slide.write_slide(tmp_path / "ink.tif", inked, mpp=0.5, levels=1)
    raw = slide.read([tmp_path / "ink.tif"], {"tile": 128})
    assert raw.facts["pen_tiles"] > 0
    assert any("pen marks" in w for w in raw.warnings)
    assert not ((raw.position[:, 0] + 128 > 330) & (raw.position[:, 0] < 470)).any()
    tiles = slide.tiles_of([tmp_path / "ink.tif"], {"tile": 128})
    assert tiles.pen[(tiles.position[:, 0] == 384)].min() > 0.5


def test_fractions_of_tiles_are_exact_areas():
    from medfuse.loaders._tissue import share

    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    left, top = np.array([2.5, 8.5, -1.0, 11.5]), np.array([1.5, 4.5, -1.0, 9.5])
    found = share(mask, left, top, 2.0) * 4
    np.testing.assert_allclose(found, [1.5 * 1.5, 0.5 * 0.5, 0, 0], atol=1e-12)


def test_the_picture_shows_the_grid(path):
    image = slide.picture([path], {"mpp": 0.5, "tile": 64})
    pixels = np.asarray(image)
    green = (pixels == (0, 140, 0)).all(axis=2)
    assert 0.01 < green.mean() < 0.5
    tiles = slide.tiles_of([path], {"mpp": 0.5, "tile": 64})
    zoom = image.width / 1100
    x, y = tiles.position[tiles.kept][0] * zoom
    assert green[max(round(float(y)) - 2, 0) : round(float(y)) + 3, round(float(x) + 6)].any()


# --- what it is ------------------------------------------------------------------------------------------------------


def head(path):
    return Head(path=path, size=path.stat().st_size, start=path.read_bytes()[:4096])


def test_slides_are_known_by_content(path, tmp_path):
    renamed = tmp_path / "slide.dat"
    renamed.write_bytes(path.read_bytes())
    assert slide.recognise(head(renamed))
    other = tmp_path / "a.svs"
    other.write_bytes(b"not a slide")
    assert not slide.recognise(head(other))
    ct = tmp_path / "ct.dcm"
    ct.write_bytes(b"\0" * 128 + b"DICM" + b"1.2.840.10008.5.1.4.1.1.2\0")
    assert not slide.recognise(head(ct))
    like = tmp_path / "like.dcm"
    like.write_bytes(b"\0" * 128 + b"DICM" + b"1.2.840.10008.5.1.4.1.1.77.1.61")
    assert not slide.recognise(head(like))
    found = inspect([path])[0]
    assert (found.loader, found.kind) == ("slide", "whole slide")
    assert found.holds["levels"] == [[1100, 900], [550, 450], [275, 225]]
    assert found.holds["mpp"] == 0.25


def test_an_index_is_grouped_with_the_folder_of_its_name(tmp_path):
    (tmp_path / "a").mkdir()
    parts = [tmp_path / "a" / name for name in ("Data0000.dat", "Slidedat.ini")]
    for part in (tmp_path / "a.mrxs", *parts, tmp_path / "b.tif"):
        part.write_bytes(b"x")
    (tmp_path / "a" / "link").symlink_to("/etc/hostname")
    assert slide.group([tmp_path / "a.mrxs", *parts, tmp_path / "b.tif"]) == [
        (tmp_path / "a.mrxs", *parts),
        (tmp_path / "b.tif",),
    ]
    with pytest.raises(DataError):
        slide.read([tmp_path / "a.mrxs", *parts], {})


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_written_slide_is_read_by_openslide_and_written_the_same_again(tmp_path, monkeypatch):
    pixels = tissue_like(700, 500, seed=9)
    slide.write_slide(tmp_path / "a.tif", pixels, mpp=0.37, levels=3, tile=128)
    slide.write_slide(
        tmp_path / "b.tif",
        lambda x, y, w, h: pixels[y : y + h, x : x + w],
        mpp=0.37,
        size=(700, 500),
        levels=3,
        tile=128,
    )
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    monkeypatch.setattr(_slide_writer, "_BIG", 0)
    slide.write_slide(tmp_path / "big.tif", pixels, mpp=0.37, levels=3, tile=128)
    assert (tmp_path / "big.tif").read_bytes()[:4] == b"II+\0"
    for name in ("a.tif", "big.tif"):
        with openslide.OpenSlide(str(tmp_path / name)) as other:
            assert other.level_dimensions == ((700, 500), (350, 250), (175, 125))
            assert float(other.properties["openslide.mpp-x"]) == pytest.approx(0.37, rel=1e-5)
            found = np.asarray(other.read_region((0, 0), 0, (700, 500)))[..., :3].astype(int)
        assert np.abs(found - pixels).mean() < 4
        assert len(open_slide([tmp_path / name]).grids) == 3


@pytest.mark.parametrize("wrong", [{"tile": 100}, {"levels": 20}, {"levels": 0}])
def test_a_slide_that_cannot_be_is_not_written(tmp_path, wrong):
    with pytest.raises(DataError):
        slide.write_slide(tmp_path / "x.tif", np.zeros((300, 300, 3), np.uint8), mpp=0.5, **wrong)
    with pytest.raises(DataError):
        slide.write_slide(tmp_path / "x.tif", np.zeros((300, 300), np.uint8), mpp=0.5)
    with pytest.raises(DataError, match="size"):
        slide.write_slide(tmp_path / "x.tif", lambda x, y, w, h: np.zeros((h, w, 3), np.uint8), mpp=0.5)


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_features_go_to_clam_and_trident_files_and_back(path, tmp_path, layout):
    import h5py

    raw = slide.read([path], {"mpp": 0.5, "tile": 128})
    tokens = np.random.default_rng(0).normal(size=(len(raw), 8)).astype(np.float32)
    sample = ModalitySample(tokens=tokens, position=raw.position)
    slide.write_features(tmp_path / "a.h5", sample, facts=raw.facts, layout=layout)
    card = ModalityCard(loader="vectors", file="a.h5")
    data = vectors.read("m", card, resolve=lambda name: tmp_path / name, patients=(None, ""))
    np.testing.assert_array_equal(data.samples["a"].tokens, tokens)
    np.testing.assert_array_equal(data.samples["a"].position, raw.position)
    with h5py.File(tmp_path / "a.h5") as file:
        given = dict(file["coords"].attrs)
    assert given["patch_size"] == 128
    if layout == "trident":
        assert (given["patch_size_level0"], given["level0_magnification"], given["target_magnification"]) == (
            256,
            40,
            20,
        )
    with pytest.raises(DataError, match="tiles of a slide"):
        slide.write_features(tmp_path / "b.h5", sample, facts={})


# --- real files ------------------------------------------------------------------------------------------------------

# file -> options that read it and tiles then, or what the refusal says whatever the options
VERDICTS = {
    "CMU-1-Small-Region.svs": ({}, 51),
    "TCGA-CR-7395-01A-01-TS1.svs": ({"slide_mpp": 0.5}, 168),
    "TCGA-XK-AAJU_dicom_wsi.dcm": ({"slide_mpp": 4.0, "mpp": 4.0, "tile": 128, "frames": "columns"}, 221),
    "openslide_fixtures/boxes.tiff": ({"slide_mpp": 0.5, "tile": 64, "pen": 1}, 17),
    "openslide_fixtures/boxes_0.dcm": ({"mpp": 0.499, "tile": 16, "tissue": 0, "pen": 1}, "no"),
    "openslide_fixtures/boxes_1.dcm": ({}, "thumbnail"),
    "openslide_fixtures/small.svs": ({"mpp": 0.499, "tile": 16, "tissue": 0, "pen": 1}, "no"),
    "malformed/broken.svs": ({}, "Unsupported"),
    "malformed/unopenable.tiff": ({}, "compression"),
    "malformed/unreadable.svs": ({}, "Bogus marker"),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_every_real_file_is_read_or_refused_with_a_reason(name):
    options, expected = VERDICTS[name]
    assert len([p for p in REAL.rglob("*") if p.is_file() and p.suffix != ".png"]) == len(VERDICTS)
    for some in ({}, {"slide_mpp": 0.5, "tile": 64, "tissue": 0.05}, options):
        try:
            slide.describe([REAL / name])
            slide.identifying([REAL / name])
            raw = slide.read([REAL / name], some)
            found = len(raw)
            assert raw.fetch([0]).shape == (1, *raw.shape)
        except MedfuseError as error:
            found = str(error)
    assert found == expected or str(expected) in str(found), found
    if isinstance(found, str):
        assert "; " in found


@pytest.mark.realdata
def test_real_svs_pixels_are_those_of_openslide_and_half_size_is_near():
    file = REAL / "CMU-1-Small-Region.svs"
    for tile in (240, 224):
        raw = slide.read([file], {"mpp": 0.499, "tile": tile})
        assert raw.facts["read_by"] == "JPEG tiles"
        np.testing.assert_array_equal(raw.fetch(range(len(raw))), by_openslide(file, raw, tile))
    raw = slide.read([file], {"mpp": 0.998, "tile": 224})
    full = by_openslide(file, raw, 448).reshape(-1, 224, 2, 224, 2, 3).mean(axis=(2, 4), dtype=float)
    apart = np.abs(raw.fetch(range(len(raw))) - full)[(raw.position + 448 <= (2220, 2967)).all(axis=1)]
    assert raw.facts["dct"]
    assert apart.mean() <= 1
    assert apart.max() <= 32


@pytest.mark.realdata
def test_labels_are_named_but_never_decoded(monkeypatch):
    decoded = []

    def refuse(self, name):
        decoded.append(name)
        raise AssertionError(name)

    monkeypatch.setattr(openslide._AssociatedImageMap, "__getitem__", refuse)
    file = REAL / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(str(file)) as other, pytest.raises(AssertionError):
        other.associated_images["label"]  # the trap works
    assert decoded.pop() == "label"
    found = slide.identifying([file])
    slide.describe([file])
    slide.read([file], {}).fetch([0])
    slide.picture([file], {})
    assert not decoded
    said = " ".join(f"{one.where} {one.kind}" for one in found)
    assert "associated image label image" in said
    assert "associated image macro image" in said
    assert "aperio.Date date" in said
    for value in ("CMU-1", "12/29/09", "b414003d", "1004486", "CPAPERIOCS"):
        assert value not in said


@pytest.mark.realdata
def test_the_order_of_frames_is_never_guessed():
    file = REAL / "TCGA-XK-AAJU_dicom_wsi.dcm"
    with pytest.raises(DataError, match="option frames"):
        slide.read([file], {"slide_mpp": 4.0, "mpp": 4.0})
    by_columns = slide.tiles_of([file], {"slide_mpp": 4.0, "mpp": 4.0, "frames": "columns"}).overview.pixels
    by_rows = slide.tiles_of([file], {"slide_mpp": 4.0, "mpp": 4.0, "frames": "rows"}).overview.pixels
    assert (by_columns.max(axis=2) < 5).mean() < 0.02  # the black padding of the last frames lies beyond the slide
    assert (by_rows.max(axis=2) < 5).mean() > 0.08


@pytest.mark.realdata
def test_a_thumbnail_alone_is_no_slide_and_a_series_is_one_item():
    boxes = [REAL / "openslide_fixtures" / f"boxes_{k}.dcm" for k in (0, 1)]
    with pytest.raises(DataError, match="label, overview or thumbnail"):
        slide.read([boxes[1]], {})
    assert slide.group(boxes) == [tuple(boxes)]
    assert slide.describe(boxes).holds["format"] == "dicom"


def test_strips_keep_tiles_of_a_wide_slide_together(path, monkeypatch):
    monkeypatch.setattr(_slide_tiles, "_STRIP", 400)
    raw = slide.read([path], {"mpp": 0.25, "tile": 200, **ALL})
    np.testing.assert_array_equal(raw.fetch(range(len(raw))), by_openslide(path, raw, 200))
    strips = raw.position[:, 0] // 400
    assert (np.diff(strips) >= 0).all()
