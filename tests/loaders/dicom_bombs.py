"""Small files that would fill the memory or take for ever.

``python tests/loaders/dicom_bombs.py FOLDER make`` writes them; without ``make`` they are read, and one JSON line a bomb says
its name, seconds of the processor and error; the last line is the peak memory.
"""

import gzip
import json
import struct
import sys
import time
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from dicom_made import deflated, flat, item, segmentation, series

from medfuse.errors import DataError
from medfuse.loaders import dicom, volume

_MEGABYTE = bytes(1 << 20)


def zeros(megabytes, before=b"", *, gz=False):
    """A deflate (or gzip) stream of ``before`` and many zeros: one block, repeated (a full flush forgets the past)."""
    engine = zlib.compressobj(9, zlib.DEFLATED, 31 if gz else -15)
    start = engine.compress(before + _MEGABYTE) + engine.flush(zlib.Z_FULL_FLUSH)
    block = engine.compress(_MEGABYTE) + engine.flush(zlib.Z_FULL_FLUSH)
    return start + block * megabytes


def plain(folder, **elements):
    """One small CT slice with some elements changed, as a pydicom data set."""
    (path,) = series(folder, np.zeros((16, 16, 1)))
    data = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def saved(path, data, syntax=None):
    if syntax is not None:
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
    return path


def inflating(path, data, megabytes, *, header=b"", declared=0):
    """A deflated file whose content ends in zeros: of its pixels (``declared`` bytes) or of an element ``header``."""
    deflated(path, data)
    content = path.read_bytes()
    at = content.index(b"1.2.840.10008.1.2.1.99")
    end = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    body = zlib.decompress(content[end:], -15)
    pixels = body.rindex(b"\xe0\x7f\x10\x00O")
    tail = header or body[pixels : pixels + 8] + struct.pack("<I", declared)
    path.write_bytes(content[:end] + zeros(megabytes, body[:pixels] + tail))
    assert at < end
    return path


def stream(path, code, syntax, rows=60000, columns=60000):
    """An encapsulated image of 16 x 16 whose stream declares more."""
    data = plain(path.parent / path.stem, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)
    data.PixelData = pydicom.encaps.encapsulate([code(rows, columns)])
    data["PixelData"].is_undefined_length = True
    return saved(path, data, syntax)


def j2k(rows, columns):
    """Begin of a JPEG 2000 stream that declares a size (ISO 15444-1, A.5.1)."""
    return b"\xff\x4f\xff\x51" + struct.pack(">2H8I", 41, 0, columns, rows, 0, 0, columns, rows, 0, 0) + bytes(400)


def jpeg(rows, columns, frame=0xC0):
    """Begin of a JPEG or JPEG-LS stream that declares a size (ISO 10918-1, B.2.2)."""
    head = b"\xff\xd8\xff\xe0" + struct.pack(">H", 16) + bytes(14)
    return head + struct.pack(">2BHB2HB", 0xFF, frame, 11, 8, rows, columns, 1) + b"\x01\x11\x00" + bytes(400)


def with_element(path, element, before=b"\x20\x00\x0d\x00UI"):
    """Bytes put into the header of a slice."""
    data = plain(path.parent / path.stem)
    content = saved(path, data).read_bytes()
    at = content.index(before)
    path.write_bytes(content[:at] + element + content[at:])
    return path


def of_dicom(folder):
    """Path by name."""
    few, many = {"Rows": 16, "Columns": 16}, {"Rows": 16384, "Columns": 16384}
    nested = b"\x19\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    items = b"\x19\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * (4 << 20)
    private = b"\xdf\x7f\x10\x10OB\0\0" + struct.pack("<I", 0xF0000000)
    twice = b"\x08\x00\x16\x00UI\x02\x001\0" + b"\x19\x00\x10\x10OB\0\0" + struct.pack("<I", 0xF0000000)
    colour = pydicom.dcmread(flat(folder / "c.dcm", np.zeros((16, 16, 3), np.uint8), photometric="RGB"))
    seg = segmentation(folder / "s.dcm", series(folder / "s", np.zeros((16, 16, 1))), np.ones((1, 16, 16), bool), [1])
    frames = pydicom.dcmread(seg)
    frames.Rows = frames.Columns = 60000
    slices = sorted((folder / "s").iterdir())
    runs = plain(folder / "r", Rows=30000, Columns=30000, BitsAllocated=8, BitsStored=8, HighBit=7)
    runs.PixelData = pydicom.encaps.encapsulate([struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (1 << 20)])
    runs["PixelData"].is_undefined_length = True
    return {
        "deflated pixels as declared": inflating(
            folder / "1.dcm", plain(folder / "a", **many), 2048, declared=16384 * 16384 * 2
        ),
        "deflated header": inflating(folder / "2.dcm", plain(folder / "b", **few), 2048, header=private),
        "deflated, elements out of order": inflating(folder / "3.dcm", plain(folder / "d", **few), 2048, header=twice),
        "deflated colours that go on": inflating(folder / "4.dcm", colour, 2048, declared=0xF0000000),
        "rows and columns": saved(folder / "5.dcm", plain(folder / "e", Rows=65535, Columns=65535)),
        "frames": saved(folder / "6.dcm", plain(folder / "f", NumberOfFrames=2147483647)),
        "JPEG 2000": stream(folder / "7.dcm", j2k, pydicom.uid.JPEG2000Lossless),
        "JPEG": stream(folder / "8.dcm", jpeg, pydicom.uid.JPEGBaseline8Bit),
        "RLE": saved(folder / "9.dcm", runs, pydicom.uid.RLELossless),
        "nested sequences": with_element(folder / "10.dcm", nested * 50000),
        "items": with_element(folder / "11.dcm", items),
        "segmentation": [saved(folder / "12.dcm", frames), *slices],
        "functional groups": saved(
            folder / "13.dcm",
            plain(folder / "g", NumberOfFrames=1, PerFrameFunctionalGroupsSequence=[item() for _ in range(200_000)]),
        ),
    }


def of_volumes(folder):
    """Path by name."""
    path = folder / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), path)
    one = path.read_bytes()
    nibabel.save(nibabel.Nifti2Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), path)
    two = path.read_bytes()
    nibabel.save(nibabel.MGHImage(np.zeros((8, 8, 8), np.float32), np.eye(4)), folder / "a.mgh")
    mgh = (folder / "a.mgh").read_bytes()
    large = one[:40] + struct.pack("<8h", 3, 2000, 2000, 2000, 1, 1, 1, 1) + one[56:]
    axes = one[:40] + struct.pack("<8h", 4, *[32767] * 4, 1, 1, 1) + one[56:]
    away = one[:108] + struct.pack("<f", 3e9) + one[112:]
    overflow = two[:16] + struct.pack("<8q", 3, 1 << 62, 1 << 62, 1 << 62, 1, 1, 1, 1) + two[80:]
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: RAS\nsizes: {0} {0} {0}\nencoding: {1}\nendian: little\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    contents = {
        "large.nii.gz": zeros(4096, large[:352], gz=True),
        "more than its voxels.nii.gz": zeros(4096, one, gz=True),
        "four axes.nii.gz": gzip.compress(axes),
        "voxels far away.nii.gz": zeros(3072, away, gz=True),
        "overflow.nii": overflow,
        "large.mgz": zeros(4096, mgh[:4] + struct.pack(">3i", 2000, 2000, 2000) + mgh[16:284], gz=True),
        "large.nrrd": head.format(2000, "gzip").encode() + zeros(4096, gz=True),
        "more than its voxels.nrrd": head.format(8, "gzip").encode() + zeros(4096, gz=True),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def attempt(module, files, options):
    """Error of a full read, or empty."""
    try:
        for found in module.group(files):
            module.identifying(found)
            module.read(found, options).fetch([0])
    except DataError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:  # make them; reading is measured in a process of its own
        (target / "dicom").mkdir(parents=True)
        (target / "volume").mkdir()
        made = {"dicom": of_dicom(target / "dicom"), "volume": of_volumes(target / "volume")}
        (target / "bombs.json").write_text(json.dumps(made, default=str))
        sys.exit()
    for loader, bombs in json.loads((target / "bombs.json").read_text()).items():
        for name, bomb in bombs.items():
            module, options = (dicom, {"min_slices": 1}) if loader == "dicom" else (volume, {})
            options = options | ({"crop": "mask"} if name == "segmentation" else {})
            began = time.process_time()
            said = attempt(module, list(map(Path, bomb if isinstance(bomb, list) else [bomb])), options)
            line = {"name": f"{loader}: {name}", "seconds": time.process_time() - began, "error": said}
            sys.stdout.write(json.dumps(line) + "\n")
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent before exec
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    sys.stdout.write(json.dumps({"name": "peak", "mib": peak}) + "\n")
