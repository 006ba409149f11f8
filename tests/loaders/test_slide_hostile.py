"""Slides that are damaged or made to harm: a typed refusal, soon, in little memory."""

import json
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from clock import Watch

from medfuse.errors import DataError, MedfuseError
from medfuse.loaders import slide
from medfuse.loaders._slide_writer import tissue_like
from medfuse.loaders._tiff import read_pages


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    file = tmp_path_factory.mktemp("sound") / "a.tif"
    slide.write_slide(file, tissue_like(512, 384, seed=3), mpp=0.5, levels=2, tile=128)
    return file.read_bytes()


def tiff(tags, after=b"", follow=0):
    """A classic TIFF of one directory at 8; tags are (number, type, count, value or offset)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", follow) + after


def image(width, height, tile, offset=300, count=100, **more):
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 7), 262: (3, 1, 6), 277: (3, 1, 3)}
    tags |= {322: (4, 1, tile), 323: (4, 1, tile), 324: (4, 1, offset), 325: (4, 1, count)}
    tags |= {int(k[1:]): v for k, v in more.items()}
    return [(number, *value) for number, value in tags.items()]


def hostile(sound):
    first = struct.unpack("<I", sound[4:8])[0]
    entries = struct.unpack("<H", sound[first : first + 2])[0]
    link = first + 2 + 12 * entries
    cycle = bytearray(sound)
    cycle[link : link + 4] = sound[4:8]
    sof = sound.index(b"\xff\xc0")
    bomb = bytearray(sound)
    bomb[sof + 5 : sof + 9] = b"\xff\xff\xff\xff"  # height and width of the first tile's JPEG stream
    for start in [k for k in range(len(sound) - 1) if sound[k : k + 2] == b"\xff\xc0"]:
        bomb[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    pad = b"\0" * 4000
    return {
        "a cycle of directories": bytes(cycle),
        "a directory that is its own next": tiff(image(64, 64, 64), pad, follow=8),
        "cut in half": sound[: len(sound) // 2],
        "cut by a byte": sound[:-1],
        "only a header": sound[:8],
        "a JPEG bomb": bytes(bomb),
        "two million pixels a side in one tile": tiff(image(2_000_000, 2_000_000, 2_000_000), pad),
        "a side above any slide": tiff(image(0xFFFFFFFF, 0xFFFFFFFF, 256), pad),
        "few bytes, many pixels": tiff(image(60_000, 60_000, 256), pad),
        "tiles without width": tiff(image(64, 64, 0), pad),
        "no size": tiff(image(0, 0, 64), pad),
        "a tile beyond the end": tiff(image(64, 64, 64, offset=1 << 30), pad),
        "a tile longer than the file": tiff(image(64, 64, 64, count=1 << 30), pad),
        "a tag of four billion values": tiff(image(64, 64, 64, t324=(4, 0xFFFFFFFF, 300)), pad),
        "a million channels": tiff(image(64, 64, 64, t277=(4, 1, 1_000_000)), pad),
        "65,535 tags": b"II*\0\x08\0\0\0\xff\xff" + pad,
        "a huge strip": tiff(
            [t for t in image(900_000, 900_000, 1, t273=(4, 1, 300), t279=(4, 1, 100)) if t[0] not in range(322, 326)],
            pad,
        ),
        "a directory beyond the end": b"II*\0\xff\xff\xff\x7f" + pad,
        "a BigTIFF beyond the end": b"II+\0\x08\0\0\0" + b"\xff" * 8 + pad,
        "no directory": b"II*\0\0\0\0\0" + pad,
    }


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from medfuse.errors import MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import slide
from clock import Watch
import openslide, PIL.Image, simplejpeg, scipy.ndimage
memory = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
before, found = memory(), {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    watch = Watch()
    inspect([path])
    try:
        slide.read([path], {"tile": 64, "slide_mpp": 0.5})
        found[path.name] = ["read", watch.spent()]
    except MedfuseError as error:
        found[path.name] = [str(error), watch.spent()]
print(json.dumps([memory() - before, found]))
"""


def test_hostile_files_are_refused_soon_in_little_memory(sound, tmp_path):
    files = hostile(sound)
    for number, content in enumerate(files.values()):
        (tmp_path / f"{number:02d}.tif").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown, found = json.loads(done.stdout)
    assert grown < 300, "MiB"
    for name, (said, seconds) in zip(files, found.values(), strict=True):
        assert said != "read", name
        assert "expected" in said, name
        assert "found" in said, name
        assert seconds < 2, name


def test_many_directories_in_a_chain_end(tmp_path):
    file = tmp_path / "chain.tif"
    content = b"II*\0\x08\0\0\0"
    for k in range(3000):
        entries = struct.pack("<HHII", 256, 4, 1, 16) + struct.pack("<HHII", 257, 4, 1, 16)
        content += struct.pack("<H", 2) + entries + struct.pack("<I", 8 + 30 * (k + 1))
    file.write_bytes(content)
    with pytest.raises(DataError):
        read_pages(file)


def mutant(content, rng):
    out = bytearray(content)
    kind = rng.integers(5)
    at = int(rng.integers(len(out)))
    if kind == 0:
        for place in rng.integers(0, len(out), size=int(rng.integers(1, 9))):
            out[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        out = out[:at]
    elif kind == 2:
        out = out[:at] + out[int(rng.integers(len(out))) :]
    elif kind == 3:
        out[at : at + int(rng.integers(1, 500))] = b"\0" * min(int(rng.integers(1, 500)), len(out) - at)
    else:  # the directory, where it hurts
        first = struct.unpack("<I", content[4:8])[0]
        for place in rng.integers(first, min(first + 250, len(out)), size=int(rng.integers(1, 5))):
            out[place] = int(rng.integers(256))
    return bytes(out)


def survive(path, content, options):
    path.write_bytes(content)
    watch = Watch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slide.describe([path])
            slide.identifying([path])
            raw = slide.read([path], options)
            pixels = raw.fetch(range(len(raw)))
        assert pixels.shape == (len(raw), *raw.shape)
    except MedfuseError as error:
        said = str(error)
    else:
        said = "expected"
    assert "expected" in said
    assert watch.spent() < 5


def mutate(sound, folder, count):
    rng = np.random.default_rng(11)
    for _ in range(count):
        survive(folder / "m.tif", mutant(sound, rng), {"tile": 64, "slide_mpp": 0.5, "tissue": 0.01})


def test_mutants_are_read_or_refused(sound, tmp_path):
    mutate(sound, tmp_path, 60)


@pytest.mark.slow
def test_a_thousand_mutants_are_read_or_refused(sound, tmp_path, many):
    mutate(sound, tmp_path, many(1000, 10_000))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slide(tmp_path):
    texture = tissue_like(1024, 1024, seed=0, margin=-0.5)
    script = """
import sys
from pathlib import Path
from medfuse.loaders import slide
raw = slide.read([Path(sys.argv[1])], {"mpp": 0.25, "tile": 224})
for _ in raw.batches(64): pass
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""
    peaks = []
    for width, height in ((3072, 2048), (16384, 8192)):
        file = tmp_path / f"{width}.tif"
        wide = np.tile(texture, (2, 2, 1))
        slide.write_slide(
            file,
            lambda x, y, w, h, wide=wide: wide[y % 1024 : y % 1024 + h, x % 1024 : x % 1024 + w],
            mpp=0.25,
            size=(width, height),
            levels=1,
        )
        done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks  # of 384 MiB that the larger one has more


# --- DICOM -----------------------------------------------------------------------------------------------------------


def dicom(path: Path, *, pixels=None, full=True, order="rows", positions=False, **changes):
    """A DICOM slide of JPEG frames of 64 pixels, with the fewest elements."""
    import pydicom
    import simplejpeg
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.sequence import Sequence

    pixels = tissue_like(200, 150, seed=4) if pixels is None else pixels
    height, width = pixels.shape[:2]
    rows, columns = -(-height // 64), -(-width // 64)
    padded = np.pad(pixels, ((0, rows * 64 - height), (0, columns * 64 - width), (0, 0)))
    places = [(r, c) for r in range(rows) for c in range(columns)]
    places = places if order == "rows" else [(r, c) for c in range(columns) for r in range(rows)]
    frames = [
        simplejpeg.encode_jpeg(np.ascontiguousarray(padded[r * 64 :, c * 64 :][:64, :64]), quality=90)
        for r, c in places
    ]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3", "1.2.4"
    data.PatientName, data.PatientID, data.StudyDate = "Secret^Name", "S-123", "20200101"
    data.Rows = data.Columns = 64
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows, data.NumberOfFrames = width, height, len(frames)
    data.BitsAllocated = data.BitsStored = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 3, "YBR_FULL_422"
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * 0.0005, height * 0.0005
    if full:
        data.DimensionOrganizationType = "TILED_FULL"
    if positions:
        groups = []
        for r, c in places:
            item, place = Dataset(), Dataset()
            place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = (
                r * 64 + 1,
                c * 64 + 1,
            )
            item.PlanePositionSlideSequence = Sequence([place])
            groups.append(item)
        data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for name, value in changes.items():
        setattr(data, name, value)
    data.PixelData = encapsulate(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    return pixels


DICOM = {"mpp": 0.5, "tile": 50, "tissue": 0.001, "pen": 1}


@pytest.mark.parametrize(
    "made",
    [{}, {"full": False, "positions": True}, {"full": False, "positions": True, "order": "columns"}],
)
def test_jpeg_frames_of_a_dicom_slide_lie_where_the_file_says(tmp_path, made):
    pixels = dicom(tmp_path / "a.dcm", **made)
    raw = slide.read([tmp_path / "a.dcm"], DICOM)
    assert raw.facts["read_by"] == "JPEG tiles"
    assert raw.facts["mpp"] == pytest.approx(0.5, rel=1e-3)
    for tile, (x, y) in zip(raw.fetch(range(len(raw))), raw.position.astype(int), strict=True):
        part = pixels[y : y + 50, x : x + 50].astype(int)
        assert np.abs(tile[: len(part), : part.shape[1]] - part).mean() < 6
        assert (tile[len(part) :] == 255).all()


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_frames_without_places_need_the_option(tmp_path, order):
    pixels = dicom(tmp_path / "a.dcm", full=False, order=order)
    with pytest.raises(DataError, match="option frames"):
        slide.read([tmp_path / "a.dcm"], DICOM)
    raw = slide.read([tmp_path / "a.dcm"], {**DICOM, "frames": order})
    assert any("was believed" in w for w in raw.warnings)
    x, y = raw.position[3].astype(int)
    assert np.abs(raw.fetch([3])[0][:20, :20] - pixels[y : y + 20, x : x + 20].astype(int)).mean() < 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}, "label"),
        ({"NumberOfFrames": 4}, "frames"),
        ({"NumberOfFrames": 2_000_000_000}, "NumberOfFrames"),
        ({"TotalPixelMatrixColumns": 4_000_000_000}, "TotalPixelMatrixColumns"),
        ({"Rows": 0}, "Rows"),
        ({"ImagedVolumeWidth": 15.0}, "resolution is not that of a slide"),
        ({"ImagedVolumeWidth": 0.12}, "not square"),
        ({"Rows": 32, "TotalPixelMatrixRows": 90, "ImagedVolumeHeight": 0.045}, "JPEG tile"),
    ],
)
def test_dicom_slides_that_contradict_themselves_are_refused(tmp_path, changes, said):
    dicom(tmp_path / "a.dcm", **changes)
    with pytest.raises(DataError, match=said):
        slide.read([tmp_path / "a.dcm"], DICOM)


def test_a_dicom_slide_names_elements_but_not_their_values(tmp_path):
    dicom(tmp_path / "a.dcm")
    found = {one.where: one.kind for one in slide.identifying([tmp_path / "a.dcm"])}
    assert found["property PatientName"] == "name"
    assert found["property PatientID"] == "id"
    assert found["property StudyDate"] == "date"
    assert "Secret" not in str(found)
    assert "S-123" not in str(found)


def test_a_cut_or_mutated_dicom_slide_is_read_or_refused(tmp_path):
    dicom(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    with pytest.raises(DataError, match="cut off"):
        slide.describe([_written(tmp_path / "h.dcm", content[: len(content) // 2])])
    rng = np.random.default_rng(5)
    for _ in range(40):
        out = bytearray(content)
        for place in rng.integers(132, len(out), size=int(rng.integers(1, 5))):
            out[place] = int(rng.integers(256))
        survive(tmp_path / "m.dcm", bytes(out), DICOM)


def _written(path, content):
    path.write_bytes(content)
    return path
