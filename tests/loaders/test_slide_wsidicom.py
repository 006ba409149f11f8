"""DICOM whole slides that OpenSlide refuses: wsidicom gives the pixels, and what could only be guessed is refused."""

import logging
import os
import sys
import warnings
from pathlib import Path

import dicom_slides as made
import numpy as np
import pydicom
import pytest
from clock import Watch

from medfuse.errors import DataError, MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import _dicom_wsi, _slide_files, slide
from medfuse.loaders._slide_files import open_slide
from medfuse.loaders._slide_writer import tissue_like
from medfuse.loaders._tiles import TileCache, cut

ALL = {"mpp": 0.5, "tile": 50, "tissue": 0.001, "pen": 1}
PIXELS = tissue_like(300, 200, seed=4)
REFUSED = ("implicit", "rle", "jpeg-ls")  # by OpenSlide 4.0.1


@pytest.fixture
def reader():
    """The extra; these tests are skipped where it is absent."""
    return pytest.importorskip("wsidicom", reason="needs the extra: pip install 'medfuse[wsi-dicom]'")


def expected(raw, pixels=PIXELS, wide=50):
    """Tiles of an array at the positions of a sample, white where it ends."""
    out = np.full((len(raw), wide, wide, 3), 255, np.uint8)
    for tile, (x, y) in zip(out, raw.position.astype(int), strict=True):
        part = pixels[y : y + wide, x : x + wide]
        tile[: len(part), : part.shape[1]] = part
    return out


# --- the pixels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", REFUSED)
@pytest.mark.parametrize("tiling", [{}, {"sparse": True}, {"parts": 3}])
def test_tiles_are_those_that_were_written(reader, tmp_path, codec, tiling):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec=codec, **tiling)
    with pytest.raises(DataError, match="OpenSlide"):
        _slide_files._by_openslide(tuple(files))
    assert slide.group(files) == [tuple(files)]
    raw = slide.read(files, ALL)
    assert (raw.facts["read_by"], raw.facts["mpp"], raw.facts["slide_size"]) == ("wsidicom", 0.5, [300, 200])
    np.testing.assert_array_equal(raw.fetch(range(len(raw))), expected(raw))
    np.testing.assert_array_equal(raw.fetch([5, 0, 5]), expected(raw)[[5, 0, 5]])
    (found,) = inspect([tmp_path])
    assert (found.loader, found.kind, found.holds["read_by"]) == ("slide", "whole slide", "wsidicom")


@pytest.mark.parametrize("codec", ["native", "jpeg", "jpeg2000"])
@pytest.mark.parametrize("tiling", [{}, {"leave_out": (3, 7)}, {"parts": 2, "leave_out": (3,)}])
def test_what_openslide_reads_wsidicom_reads_alike(reader, tmp_path, codec, tiling):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec=codec, **tiling)
    found = open_slide(files)
    assert found.vendor == "dicom"
    with _slide_files.reading(found) as other, _dicom_wsi.levels_of(files) as levels:
        out = np.empty((210, 310, 3), np.uint8)
        cut(levels[0], -1, TileCache(), place=(-5, -5), out=out)
        np.testing.assert_array_equal(out[5:205, 5:305], other.region(0, (0, 0, 300, 200)))
    assert (out[:5] == 255).all()
    assert (out[205:] == 255).all()
    assert levels[0].absent == len(tiling.get("leave_out", ()))


def test_levels_resampling_and_the_mask_are_those_of_a_tiff(reader, tmp_path):
    whole = tissue_like(512, 384, seed=7)
    half = whole.reshape(192, 2, 256, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    files = [
        *made.write(tmp_path / "1.dcm", half, codec="jpeg-ls", spacing=0.001, uid="1.2.3.2"),
        *made.write(tmp_path / "0.dcm", whole, codec="jpeg-ls", uid="1.2.3.1"),
    ]
    found = open_slide(files)
    assert (found.sizes, found.downsamples, found.mpp) == (((512, 384), (256, 192)), (1.0, 2.0), pytest.approx(0.5))
    from PIL import Image

    Image.fromarray(whole).save(tmp_path / "a.tif")
    for options in ({"mpp": 0.5, "tile": 64}, {"mpp": 0.7, "tile": 40}):
        raw = slide.read(files, options)
        plain = slide.read([tmp_path / "a.tif"], {**options, "slide_mpp": 0.5})
        np.testing.assert_array_equal(raw.position, plain.position)
        np.testing.assert_array_equal(raw.fetch(range(len(raw))), plain.fetch(range(len(plain))))
        assert raw.facts["tissue"] == plain.facts["tissue"]
    coarse = slide.read(files, {"mpp": 1.0, "tile": 64})
    assert (coarse.facts["level"], coarse.facts["tile_level0"]) == (1, 128)
    np.testing.assert_array_equal(coarse.fetch(range(len(coarse))), expected(Halved(coarse), half, 64))


class Halved:
    """A sample with its positions in pixels of level 1."""

    def __init__(self, raw):
        self.raw, self.position = raw, raw.position / 2

    def __len__(self):
        return len(self.raw)


def test_tiles_that_no_frame_fills_are_white_and_said(reader, tmp_path):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="rle", leave_out=(0, 6))
    raw = slide.read(files, ALL)
    assert any("2 tiles are not in the file" in text for text in raw.warnings)
    with _dicom_wsi.levels_of(files) as levels:
        assert (levels[0].decode(-1, 6) == 255).all()
        np.testing.assert_array_equal(levels[0].decode(-1, 7), PIXELS[64:128, 128:192])


def test_labels_and_overviews_are_never_given_to_it(reader, tmp_path, monkeypatch):
    kinds = {name: ["ORIGINAL", "PRIMARY", name, "NONE"] for name in ("LABEL", "OVERVIEW")}
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls")
    for number, (name, kind) in enumerate(kinds.items()):
        files += made.write(tmp_path / f"{name}.dcm", PIXELS, codec="jpeg-ls", uid=f"1.2.9{number}", ImageType=kind)
    given, before = [], reader.WsiDicom.open
    monkeypatch.setattr(reader.WsiDicom, "open", lambda files, **more: given.append(files) or before(files, **more))
    slide.read(files, ALL).fetch([0])
    assert given
    assert all([path.name for path in files] == ["a.dcm"] for files in given)
    with pytest.raises(DataError, match="only its label, overview"):
        slide.read(files[1:], ALL)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["sm_image_jpegls.dcm", "sm_image_jpegls_nobot.dcm"])
def test_a_real_slide_in_jpeg_ls_is_its_uncompressed_twin(reader, name):
    folder = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared/data")) / "dicom/highdicom"
    pixels = []
    for path in (folder / name, folder / "sm_image.dcm"):
        found = open_slide([path])
        with _slide_files.reading(found) as other:
            pixels.append(other.region(0, (0, 0, *found.sizes[0])))
    assert (found.vendor, open_slide([folder / name]).vendor) == ("dicom", "wsidicom")
    np.testing.assert_array_equal(*pixels)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_the_extra_the_refusal_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls")
    with pytest.raises(DataError, match=r"pip install 'medfuse\[wsi-dicom\]'") as caught:
        slide.read(files, ALL)
    assert "Unsupported transfer syntax" in caught.value.__notes__[0]
    assert "wsi-dicom" in inspect([tmp_path])[0].refusal


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"BitsAllocated": 16}, "RGB of 8 bits"),
        ({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "fluorescence are not read"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "found YBR_FULL of 8 bits in 1.2.840.10008.1.2.5"),
        ({"PlanarConfiguration": 1}, "RGB of 8 bits"),
        ({"NumberOfFrames": 19}, "expected 20 frames that cover 300 x 200 pixels, found 19"),
        ({"NumberOfFrames": 40}, "found 40 in 1 file.*several focal planes"),
        ({"NumberOfFrames": 2_000_000_000}, "NumberOfFrames"),
        ({"NumberOfFrames": 1_000_000}, "a bomb"),
        ({"Rows": 60_000, "Columns": 60_000}, "a bomb"),
        ({"TotalPixelMatrixColumns": 2_000_000, "TotalPixelMatrixRows": 2_000_000}, "expected 976562500 frames"),
        ({"DimensionOrganizationType": "TILED_SPARSE", "TotalPixelMatrixColumns": 400_000}, "or fewer.*found 20"),
        ({"TotalPixelMatrixColumns": 4_000_000_000}, "TotalPixelMatrixColumns"),
        ({"InConcatenationTotalNumber": 2}, "all parts"),
        ({"ConcatenationFrameOffsetNumber": 5}, "all parts"),
        ({"Rows": 32, "TotalPixelMatrixRows": 100}, "expected a whole frame of 64 x 32"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(reader, tmp_path, changes, said):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="rle", **changes)
    watch = Watch()
    with pytest.raises(DataError, match=said):
        slide.read(files, ALL).fetch([0])
    assert watch.spent() < 2


def test_a_part_that_is_missing_is_refused(reader, tmp_path):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls", parts=3, sparse=True)
    for lost in files:
        with pytest.raises(DataError, match="give all parts of the slide"):
            slide.read([path for path in files if path != lost], ALL)


def test_files_of_two_slides_are_refused(reader, tmp_path):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls", uid="1.2.3.1")
    files += made.write(
        tmp_path / "b.dcm", PIXELS[:100, :150], codec="jpeg-ls", uid="1.2.3.2", StudyInstanceUID="1.2.7"
    )
    with pytest.raises(DataError, match="do not make one pyramid"):
        slide.read(files, ALL)


def test_tiles_beside_the_grid_and_two_at_one_place_are_refused(reader, tmp_path):
    for shift in (5, 64):
        (file,) = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls", leave_out=(7,))
        data = pydicom.dcmread(file)
        at = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSlideSequence[0]
        at.ColumnPositionInTotalImagePixelMatrix += shift
        data.save_as(file)
        with pytest.raises(DataError, match="beside the grid, or two at one place"):
            slide.read([file], ALL)


@pytest.mark.parametrize("codec", ["jpeg-ls", "jpeg2000"])
def test_a_stream_that_says_another_size_is_refused_before_it_is_decoded(reader, tmp_path, codec, monkeypatch):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec=codec)
    content = bytearray(files[0].read_bytes())
    mark, at = (b"\xff\xf7", 5) if codec == "jpeg-ls" else (b"\xff\x4f\xff\x51", 8)
    places = [k for k in range(len(content)) if content[k : k + len(mark)] == mark]
    assert len(places) >= 20
    for place in places:
        content[place + at : place + at + (4 if at == 5 else 8)] = (
            b"\xff\xff" * 2 if at == 5 else b"\x7f\xff\xff\xff" * 2
        )
    files[0].write_bytes(content)
    _dicom_wsi.check(files)
    with _dicom_wsi.levels_of(files) as levels:
        decoder = levels[0].image.decoder
        monkeypatch.setattr(type(decoder), "decode", lambda self, frame: pytest.fail("a bomb was decoded"))
        with pytest.raises(DataError, match="the file is damaged"):
            levels[0].decode(-1, 0)


def test_a_jpeg_ls_stream_without_its_end_is_refused_before_it_is_decoded(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "encoded", lambda frame, codec, before=made.encoded: before(frame, codec)[:-40])
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls")
    watch = Watch()
    with pytest.raises(DataError, match="that is cut"):  # CharLS takes 5 s of the processor for such a frame
        slide.read(files, ALL)
    assert watch.spent() < 2


def test_nothing_of_a_patient_is_said(reader, tmp_path, caplog):
    files = made.write(tmp_path / "a.dcm", PIXELS, codec="jpeg-ls", uid="1.2.3.1")
    files += made.write(tmp_path / "b.dcm", PIXELS[:100], codec="jpeg-ls", uid="1.2.3.2", FrameOfReferenceUID="1.2.77")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        said = " ".join(one.refusal for one in inspect([tmp_path]))
        found = {one.where: one.kind for one in slide.identifying(files[:1])}
    text = said + caplog.text + " ".join(str(one.message) for one in caught)
    assert not any(secret in text for secret in ("Secret", "S-123", "20200101", "1.2.77"))
    assert (found["property PatientName"], found["property PatientID"]) == ("name", "id")
    assert found["property ContainerIdentifier"] == "id"


def mutants(folder, count, seed):
    """Share of the damaged files that were refused; whatever else than a typed error fails the test."""
    rng = np.random.default_rng(seed)
    cases = [{"codec": "jpeg-ls"}, {"codec": "rle", "leave_out": (2,)}, {"codec": "implicit", "sparse": True}]
    said = []
    for number in range(count):
        (file,) = made.write(folder / "a.dcm", PIXELS[:120, :120], **cases[number % len(cases)])
        content = bytearray(file.read_bytes())
        length = content.find(b"\xe0\x7f\x10\x00") + 200 if rng.random() < 0.7 else len(content)  # mostly the header
        match int(rng.integers(4)):
            case 0:
                for place in rng.integers(132, length, size=int(rng.integers(1, 5))):
                    content[place] ^= 1 << int(rng.integers(8))
            case 1:
                del content[int(rng.integers(132, len(content))) :]
            case 2:
                at, other = (int(k) for k in rng.integers(132, length, size=2))
                content[at:at] = content[other : other + int(rng.integers(1, 99))]
            case _:
                at = int(rng.integers(132, length))
                content[at : at + 16] = bytes(16)
        file.write_bytes(content)
        watch = Watch()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                raw = slide.read([file], ALL)
                assert raw.fetch(range(len(raw))).shape == (len(raw), 50, 50, 3)
            except MedfuseError as error:
                said.append(str(error))
            assert not any("medfuse failed on it" in one.refusal for one in inspect([file]))
        assert watch.spent() < 5
    assert all("expected" in text for text in said)
    return len(said) / count


def test_mutants_are_read_or_refused(reader, tmp_path):
    assert mutants(tmp_path, 40, seed=5) > 0.3


@pytest.mark.slow
def test_a_thousand_mutants_are_read_or_refused(reader, tmp_path, many):
    assert mutants(tmp_path, many(1000, 10_000), seed=6) > 0.3
