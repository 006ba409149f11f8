"""Headers and voxels of NIfTI-1, NIfTI-2, MGH/MGZ and NRRD files; voxels go straight into place.

References: the NIfTI-1 and NIfTI-2 headers of NIMH/DFWG (nifti1.h, nifti2.h), FreeSurfer's MGH format, Teem's NRRD.
"""

import bz2
import importlib
import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.limits import read_head
from medfuse.loaders._volume import checked_size

Array = NDArray[Any]
_CHUNK = 1 << 18
_MOST_AFTER, _MOST_BEFORE = 4 << 20, 64 << 20  # bytes beside the voxels: what follows them, header and extensions
_GZIP = b"\x1f\x8b"
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NIFTI_COLOURS = {128: 3, 2304: 4}
_MGH_TYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # to mm; 0: not said


@dataclass(frozen=True, kw_only=True)
class VoxelFile:
    """What a header says.

    Attributes:
        format: ``NIfTI-1`` ...
        path, offset: where the voxels are (of a packed file: in its content).
        packed: ``""``, ``gzip`` or ``bzip2``.
        dtype: of a stored value.
        shape: (I, J, K), first index fastest.
        volumes: of the fourth axis.
        samples: values of a voxel (colours), which follow each other in the file.
        volumes_first: the volumes' index runs fastest (NRRD).
        affine: index -> mm, RAS+, or None where the file does not say.
        slope, intercept: of the values.
        warnings: what was seen.
        notes: names of text fields that are not empty.
    """

    format: str
    path: Path
    offset: int
    packed: str
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    volumes: int = 1
    samples: int = 1
    volumes_first: bool = False
    affine: NDArray[np.float64] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes_of_volume(self) -> int:
        """Of one volume as stored."""
        return math.prod(self.shape) * self.samples * self.dtype.itemsize


def read_voxel_header(path: Path) -> VoxelFile:
    """The header of a volume, checked against the size of its file.

    Raises:
        DataError: no such format, damage, or more declared than there is.
    """
    start = read_head(path)
    try:
        if start[:4] == b"NRRD":
            found = _nrrd(path)
        elif is_nifti(start):
            found = _nifti(path, start)
        elif is_mgh(start):
            found = _mgh(path, start)
        else:
            msg = f"{path.name}: expected NIfTI, MGH or NRRD, found another content; is it the right file?"
            raise DataError(msg)
    except DataError:
        raise
    except Exception as error:
        msg = f"{path.name}: expected a header of a volume, found damage ({type(error).__name__}); copy the file again"
        raise DataError(msg) from error
    size = found.path.stat().st_size
    if found.offset > _MOST_BEFORE:
        msg = f"{path.name}: expected voxels within {_MOST_BEFORE >> 20} MiB, found a larger offset; repair the header"
        raise DataError(msg)
    shape = (*found.shape, found.volumes, found.samples)
    available = size if found.packed else max(0, size - found.offset)
    checked_size(shape, stored=found.dtype.itemsize, file_bytes=available, packed=bool(found.packed), where=path.name)
    return found


# --- NIfTI -----------------------------------------------------------------------------------------------------------


def is_nifti(start: bytes) -> bool:
    """NIfTI-1 (single file or header of a pair) or NIfTI-2."""
    one = start[344:348] in (b"n+1\0", b"ni1\0") and start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
    two = start[4:8] in (b"n+2\0", b"ni2\0") and start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    return one or two


# field -> code of struct and offset
_NIFTI_1 = {"dim": ("8h", 40), "type": ("h", 70), "pixdim": ("8f", 76), "offset": ("f", 108), "scale": ("2f", 112)}
_NIFTI_1 |= {"units": ("B", 123), "codes": ("2h", 252), "quaternion": ("6f", 256), "rows": ("12f", 280)}
_NIFTI_2 = {"dim": ("8q", 16), "type": ("h", 12), "pixdim": ("8d", 104), "offset": ("q", 168), "scale": ("2d", 176)}
_NIFTI_2 |= {"units": ("i", 500), "codes": ("2i", 344), "quaternion": ("6d", 352), "rows": ("12d", 400)}
_TEXTS_1 = {"descrip": (148, 80), "aux_file": (228, 24), "intent_name": (328, 16), "db_name": (14, 18)}
_TEXTS_2 = {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)}


def _nifti_fields(start: bytes) -> dict[str, Any]:
    order = "<" if start[0] in (0x5C, 0x1C) else ">"
    one = start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
    layout, texts = (_NIFTI_1, _TEXTS_1) if one else (_NIFTI_2, _TEXTS_2)
    fields: dict[str, Any] = {k: struct.unpack_from(order + code, start, at) for k, (code, at) in layout.items()}
    return fields | {
        "version": 1 if one else 2,
        "order": order,
        "pair": (start[344:347] if one else start[4:7]) in (b"ni1", b"ni2"),
        "notes": [k for k, (at, n) in texts.items() if start[at : at + n].strip(b"\0 ")],
    }


def _nifti(path: Path, start: bytes) -> VoxelFile:
    head = _nifti_fields(start)
    count = head["dim"][0]
    sizes = [int(n) for n in head["dim"][1 : count + 1]] if 1 <= count <= 7 else []
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if not 2 <= len(sizes) <= 4:
        msg = f"{path.name}: expected three axes, or four of a series, found {len(sizes)}; write the parts as volumes"
        raise DataError(msg)
    sizes += [1] * (4 - len(sizes))
    code = head["type"][0]
    if code in _NIFTI_TYPES:
        dtype, samples = np.dtype(head["order"] + _NIFTI_TYPES[code]), 1
    elif code in _NIFTI_COLOURS:
        dtype, samples = np.dtype("u1"), _NIFTI_COLOURS[code]
    else:
        msg = f"{path.name}: expected whole numbers, floats or colours, found data type {code} (complex, bits, or long "
        raise DataError(msg + "double); convert it to float")
    affine, warnings = _nifti_affine(head, path.name)
    slope, intercept = (float(v) for v in head["scale"])
    if not math.isfinite(slope) or slope == 0 or samples > 1:
        slope, intercept = 1.0, 0.0
    if not math.isfinite(intercept):
        intercept = 0.0
    where, offset = path, int(head["offset"][0])
    if head["pair"]:
        where, offset = _image_of(path), max(0, offset)
    elif offset < (352 if head["version"] == 1 else 544):
        msg = f"{path.name}: expected voxels after the header, found an offset within it; repair the header"
        raise DataError(msg)
    notes = head["notes"] + ([f"{offset - 352} bytes of extensions"] if not head["pair"] and offset > 544 else [])
    return VoxelFile(
        format=f"NIfTI-{head['version']}",
        path=where,
        offset=offset,
        packed=_packing(where),
        dtype=dtype,
        shape=(sizes[0], sizes[1], sizes[2]),
        volumes=sizes[3],
        samples=samples,
        affine=affine,
        slope=slope,
        intercept=intercept,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _image_of(path: Path) -> Path:
    name = path.name
    for one, other in ((".hdr.gz", ".img.gz"), (".hdr.gz", ".img"), (".hdr", ".img"), (".hdr", ".img.gz")):
        if name.endswith(one):
            image = path.with_name(name.removesuffix(one) + other)
            if image.is_file():
                return image
    msg = f"{path.name}: expected its image beside it (.img), found none; copy both files"
    raise DataError(msg)


def _nifti_affine(head: Mapping[str, Any], where: str) -> tuple[NDArray[np.float64] | None, list[str]]:
    """The sform where it is set, else the qform, else None; both in mm.

    Raises:
        DataError: both are set and one is the mirror image of the other.
    """
    warnings: list[str] = []
    unit = head["units"][0] & 7
    if unit == 0:
        warnings.append("the header names no unit of length; mm are assumed, as the format's users do")
    scale = _UNITS.get(unit, 1.0)
    qcode, scode = head["codes"]
    forms: dict[str, NDArray[np.float64]] = {}
    if scode > 0:
        forms["sform"] = np.vstack([np.asarray(head["rows"], dtype=np.float64).reshape(3, 4) * scale, [0, 0, 0, 1]])
    if qcode > 0:
        forms["qform"] = _from_quaternion(head["quaternion"], head["pixdim"], scale)
    if len(forms) == 2 and all(np.isfinite(f).all() for f in forms.values()):
        one, other = forms["sform"], forms["qform"]
        if np.linalg.det(one[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
            msg = f"{where}: sform and qform are mirror images of each other, so left and right are unknown"
            raise DataError(msg)
        away = float(np.abs(one[:3] - other[:3]).max())
        if away > 1e-2:
            warnings.append(f"sform and qform differ by up to {away:.2f}; the sform is used")
    return next(iter(forms.values()), None), warnings


def _from_quaternion(values: Any, pixdim: Any, scale: float) -> NDArray[np.float64]:  # noqa: ANN401  # numbers
    """Method 2 of nifti1.h: a rotation as quaternion (its real part follows), a shift, the sign of the third axis."""
    b, c, d, x, y, z = (float(v) for v in values)
    length = b * b + c * c + d * d
    if length > 1:
        b, c, d = (v / math.sqrt(length) for v in (b, c, d))
        length = 1.0
    a = math.sqrt(1 - length)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    steps = np.array([pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1)], dtype=np.float64)
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation * steps * scale, np.array([x, y, z]) * scale
    return out


# --- MGH -------------------------------------------------------------------------------------------------------------


def is_mgh(start: bytes) -> bool:
    """Version 1, four positive sizes and a known type, big endian."""
    if len(start) < 284:
        return False
    numbers = struct.unpack(">6i", start[:24])
    return numbers[0] == 1 and all(0 < n < 1 << 20 for n in numbers[1:5]) and numbers[5] in _MGH_TYPES


def _mgh(path: Path, start: bytes) -> VoxelFile:
    _, i, j, k, volumes, code, _ = struct.unpack(">7i", start[:28])
    good = struct.unpack(">h", start[28:30])[0]
    numbers = struct.unpack(">15f", start[30:90])
    affine = None
    if good > 0:
        steps = np.asarray(numbers[3:12], dtype=np.float64).reshape(3, 3).T * np.asarray(numbers[:3])
        affine = np.eye(4)
        affine[:3, :3] = steps
        affine[:3, 3] = np.asarray(numbers[12:15]) - steps @ (np.asarray([i, j, k]) / 2)
    return VoxelFile(
        format="MGH",
        path=path,
        offset=284,
        packed=_packing(path),
        dtype=np.dtype(">" + _MGH_TYPES[code]),
        shape=(i, j, k),
        volumes=volumes,
        affine=affine,
    )


# --- NRRD ------------------------------------------------------------------------------------------------------------

_SPACES = {"right-anterior-superior": (1, 1, 1), "left-anterior-superior": (-1, 1, 1)}
_SPACES |= {"left-posterior-superior": (-1, -1, 1), "ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}
_NRRD_TYPES = {"char": "i1", "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1"}
_NRRD_TYPES |= {"uint8": "u1", "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "int16": "i2"}
_NRRD_TYPES |= {"signed short int": "i2", "int16_t": "i2", "ushort": "u2", "unsigned short": "u2", "uint16": "u2"}
_NRRD_TYPES |= {"unsigned short int": "u2", "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4"}
_NRRD_TYPES |= {"int32_t": "i4", "uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "float": "f4"}
_NRRD_TYPES |= {"double": "f8"}
_NRRD_PACKED = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}


def _nrrd(path: Path) -> VoxelFile:
    import nrrd

    with path.open("rb") as file:
        start = file.read(1 << 20)
    ends = [start.find(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in start]
    if not ends:
        msg = f"{path.name}: expected an empty line after the header within 1 MiB, found none; truncated?"
        raise DataError(msg)
    head: dict[str, Any] = nrrd.read_header(io.BytesIO(start[: min(ends)]))
    if any(key.replace(" ", "").lower() == "datafile" for key in head):
        msg = f"{path.name}: expected header and voxels in one file, found others named; join them (unu save)"
        raise DataError(msg)
    kind, packed = str(head["type"]).lower(), str(head.get("encoding", "")).lower()
    if kind not in _NRRD_TYPES or packed not in _NRRD_PACKED:
        msg = f"{path.name}: expected whole numbers or floats, raw, gzip or bzip2, found another type or encoding"
        raise DataError(msg + "; convert it")
    if any(int(head.get(key, 0)) for key in ("line skip", "byte skip", "lineskip", "byteskip")):
        msg = f"{path.name}: expected voxels right after the header, found lines or bytes to skip; write it anew"
        raise DataError(msg)
    axes, affine = _nrrd_axes(head, path.name)
    sizes = [int(n) for n in head["sizes"]]
    other = [n for k, n in enumerate(sizes) if k not in axes]
    first = axes[0] == 1
    colour = first and other[0] in (3, 4) and "color" in str((head.get("kinds") or [""])[0]).lower()
    order = ">" if str(head.get("endian", "little")).lower() == "big" else "<"
    usual = {"type", "dimension", "sizes", "encoding", "endian", "space", "space directions", "space origin", "kinds"}
    notes = [k for k in head if k not in usual | {"spacings", "thicknesses", "axis mins", "centers", "space units"}]
    return VoxelFile(
        format="NRRD",
        path=path,
        offset=min(ends),
        packed=_NRRD_PACKED[packed],
        dtype=np.dtype(order + _NRRD_TYPES[kind]),
        shape=(sizes[axes[0]], sizes[axes[1]], sizes[axes[2]]),
        volumes=1 if colour or not other else other[0],
        samples=other[0] if colour else 1,
        volumes_first=first and not colour,
        affine=affine,
        notes=tuple(notes),
    )


def _nrrd_axes(head: Mapping[str, Any], where: str) -> tuple[tuple[int, int, int], NDArray[np.float64] | None]:
    """The three neighbouring axes in space, and the affine (None where the space has no directions)."""
    dimension = int(head["dimension"])
    directions = head.get("space directions")
    if dimension not in (3, 4) or len(head["sizes"]) != dimension:
        msg = f"{where}: expected three axes, or four of a series, found {dimension}; write the parts as volumes"
        raise DataError(msg)
    if directions is None:
        kinds = [str(k).lower() for k in head.get("kinds") or ["domain"] * dimension]
        axes = [k for k, kind in enumerate(kinds) if kind in ("domain", "space")] if dimension == 4 else [0, 1, 2]
    else:
        rows = [None if row is None or np.isnan(np.asarray(row, float)).any() else row for row in directions]
        axes = [k for k, row in enumerate(rows) if row is not None]
    if len(axes) != 3 or axes[2] - axes[0] != 2:
        msg = f"{where}: expected three neighbouring axes in space, found others; write the parts as volumes"
        raise DataError(msg)
    signs = _SPACES.get(str(head.get("space", "")).lower())
    affine = None
    if directions is not None and signs is not None:
        affine = np.eye(4)
        affine[:3, :3] = np.stack([np.asarray(directions[k], dtype=np.float64) for k in axes], axis=1)
        affine[:3, 3] = np.asarray(head.get("space origin", (0, 0, 0)), dtype=np.float64)
        affine = np.diag([*signs, 1.0]) @ affine
    return (axes[0], axes[1], axes[2]), affine


# --- voxels ----------------------------------------------------------------------------------------------------------


def _packing(path: Path) -> str:
    with path.open("rb") as file:
        return "gzip" if file.read(2) == _GZIP else ""


def inflater() -> tuple[Any, str]:
    """The fastest module here with zlib's interface, and its name: isal (an extra), zlib-ng (an extra) or zlib."""
    for name in ("isal.isal_zlib", "zlib_ng.zlib_ng"):
        try:
            return importlib.import_module(name), name
        except ImportError:
            continue
    return zlib, "zlib"


def _content(found: VoxelFile, *, most: int) -> Iterator[bytes]:
    """Pieces of the content of a file from its first byte on, at most ``most`` bytes; gzip to its check sum.

    Raises:
        DataError: damaged or truncated.
    """
    module, _ = inflater()
    given = 0
    try:
        with found.path.open("rb") as file:
            base = found.offset if found.format == "NRRD" else 0
            file.seek(base)
            engine: Any = bz2.BZ2Decompressor() if found.packed == "bzip2" else module.decompressobj(wbits=31)
            while not engine.eof:
                rest = getattr(engine, "unconsumed_tail", b"")
                data = rest or (b"" if not getattr(engine, "needs_input", True) else file.read(_CHUNK // 4))
                piece = engine.decompress(data, _CHUNK)
                if not piece and not data and getattr(engine, "needs_input", True):
                    msg = f"{found.path.name}: expected {most} bytes, found {given}; truncated? copy it again"
                    raise DataError(msg)
                given += len(piece)
                yield piece
                if given > most + _MOST_AFTER:
                    msg = f"{found.path.name}: expected {most} bytes, found over {_MOST_AFTER >> 20} MiB after them"
                    raise DataError(msg + "; a bomb? write it anew")
    except (OSError, EOFError, ValueError, zlib.error, module.error) as error:
        msg = f"{found.path.name}: expected whole packed content, found damage ({type(error).__name__}); copy it again"
        raise DataError(msg) from error


def read_values(found: VoxelFile, out: Array, *, first: int) -> None:
    """``out.size`` stored values from number ``first`` on, cast into ``out`` (flat), piece by piece.

    Raises:
        DataError: truncated or damaged.
    """
    size = found.dtype.itemsize
    if not found.packed:
        with found.path.open("rb") as file:
            file.seek(found.offset + first * size)
            for at in range(0, out.size, _CHUNK):
                part = np.fromfile(file, dtype=found.dtype, count=min(_CHUNK, out.size - at))
                if len(part) < min(_CHUNK, out.size - at):
                    msg = f"{found.path.name}: expected more voxels, found the end of the file; copy it again"
                    raise DataError(msg)
                out[at : at + len(part)] = part
        return
    skip = (0 if found.format == "NRRD" else found.offset) + first * size
    done, carry = 0, b""
    for piece in _content(found, most=skip + out.size * size):
        view = memoryview(piece)[skip:]
        skip -= min(skip, len(piece))
        if done == out.size or not view:
            continue
        if carry:  # a value that lies in two pieces
            whole = carry + view[: size - len(carry)]
            view, carry = view[size - len(carry) :], whole
            if len(carry) < size:
                continue
            out[done] = np.frombuffer(carry, dtype=found.dtype)[0]
            done += 1
        count = min(len(view) // size, out.size - done)
        out[done : done + count] = np.frombuffer(view, dtype=found.dtype, count=count)
        done, carry = done + count, bytes(view[count * size : (count + 1) * size])
    if done < out.size:
        msg = f"{found.path.name}: expected {out.size} voxels, found {done}; truncated? copy it again"
        raise DataError(msg)
