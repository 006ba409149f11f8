"""Volumes as NIfTI-1, NIfTI-2, MGH/MGZ or NRRD: patches with positions in mm (RAS+), and masks beside them."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError
from medfuse.loaders import _volume
from medfuse.loaders._volume_files import VoxelFile, is_mgh, is_nifti, read_values, read_voxel_header
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import RawSample

ITEM = "patch"
OWN = ("unit", "orientation", "segments", "nan")  # options beside those of every volume
_MASK = re.compile(r"[-_.](?:mask|label|labels|seg|segmentation)$", re.IGNORECASE)
_IMAGE = re.compile(r"[-_.](?:image|img|volume|0000)$", re.IGNORECASE)
_ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh.gz", ".mgh", ".nrrd", ".hdr.gz", ".hdr", ".img.gz", ".img")
_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def recognise(head: Head) -> bool:
    """By the marks of the formats; the image of a pair by its name and the header beside it."""
    start, name = head.start, head.path.name.lower()
    if is_nifti(start) or start[:7] == b"NRRD000":
        return True
    if name.endswith((".mgh", ".mgz", ".mgh.gz")):
        return is_mgh(start)
    return name.endswith((".img", ".img.gz")) and any(
        head.path.with_name(_stem(head.path) + ending).is_file() for ending in (".hdr", ".hdr.gz")
    )


def _stem(path: Path) -> str:
    name = path.name
    ending = next((e for e in _ENDINGS if name.lower().endswith(e)), path.suffix)
    return name[: len(name) - len(ending)]


def _is_mask(path: Path) -> bool:
    return bool(_MASK.search(_stem(path)))


def group(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """A volume, the other file of its pair (.hdr, .img), and its masks.

    A mask is named like the volume and ends in ``_mask``, ``_label(s)``, ``_seg`` or ``_segmentation``; an ending
    ``_image``, ``_volume`` or ``_0000`` of the volume does not count. A mask without a volume stands for itself.
    """
    items: dict[tuple[Path, str], list[Path]] = {}
    masks: list[Path] = []
    for path in sorted(files):
        if _is_mask(path):
            masks.append(path)
        else:
            items.setdefault((path.parent, _stem(path) + _pair(path)), []).append(path)
    named: dict[tuple[Path, str], list[list[Path]]] = {}
    for (folder, stem), members in items.items():
        named.setdefault((folder, _IMAGE.sub("", stem.split("\0")[0])), []).append(members)
    alone: list[tuple[Path, ...]] = []
    for path in masks:
        homes = named.get((path.parent, _IMAGE.sub("", _MASK.sub("", _stem(path)))), [])
        if len(homes) == 1:
            homes[0].append(path)
        else:
            alone.append((path,))
    return sorted([tuple(members) for members in items.values()] + alone)


def _pair(path: Path) -> str:
    """Empty for both files of a pair, else the ending, so that ``a.nii`` and ``a.nrrd`` are two items."""
    name = path.name.lower()
    return "" if name.endswith((".hdr", ".hdr.gz", ".img", ".img.gz")) else "\0" + name[len(_stem(path)) :]


def _parts(files: Sequence[Path]) -> tuple[VoxelFile, list[VoxelFile]]:
    """The volume, and its masks.

    Raises:
        DataError: none, or several volumes.
    """
    heads = [p for p in files if not p.name.lower().endswith((".img", ".img.gz"))] or list(files)
    images = [p for p in heads if not _is_mask(p)] or heads[:1]
    if len(images) > 1:
        msg = f"{images[0].name}: expected one volume of an item, found {len(images)}; group the files first"
        raise DataError(msg)
    return read_voxel_header(images[0]), [read_voxel_header(p) for p in heads if p != images[0]]


def _affine(found: VoxelFile, orientation: str | None) -> NDArray[np.float64]:
    if found.affine is not None:
        return _volume.checked_affine(found.affine, where=found.path.name)
    msg = (
        f"{found.path.name}: expected an orientation, found none (no sform or qform, or no space directions): left and "
        "right are unknown; repair the header, or set options.orientation (such as RAS) and options.spacing if you know"
    )
    if orientation is None:
        raise DataError(msg)
    out = np.zeros((4, 4))
    out[3, 3] = 1
    for axis, letter in enumerate(orientation):
        world, sign = _LETTERS[letter]
        out[world, axis] = sign
    return out


def _colours(found: VoxelFile) -> int:
    return min(found.samples, 3)


def describe(files: Sequence[Path]) -> Description:
    """Format, grid, spacing, orientation and type, from the header alone.

    Raises:
        DataError: damaged, more declared than there is, or an orientation that nobody knows.
    """
    found, masks = _parts(files)
    affine = _affine(found, None)
    holds: dict[str, Any] = {
        "format": found.format,
        "shape": list(found.shape),
        "spacing_mm": [round(s, 5) for s in _volume.spacing_of(affine)],
        "orientation": _volume.orientation_of(affine),
        "type": found.dtype.name,
    }
    if found.volumes > 1:
        holds["volumes"] = found.volumes
    if found.samples > 1:
        holds["colours"] = found.samples
    if masks:
        holds["masks"] = len(masks)
    kind = "series of volumes" if found.volumes > 1 else "volume"
    return Description(kind=kind, holds=holds, warnings=found.warnings)


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Text fields and extensions that are not empty; a name in the file's name is not looked for."""
    found = []
    for path in files:
        if not path.name.lower().endswith((".img", ".img.gz")):
            head = read_voxel_header(path)
            found += [Identifying(where=f"{head.format} field {note}", kind="free text") for note in head.notes]
    return found


# --- reading ---------------------------------------------------------------------------------------------------------


class _Voxels:
    """Volumes of a file; of a packed series the stored values are kept, so that it is unpacked once."""

    def __init__(self, found: VoxelFile, nan: float | None) -> None:
        self.found, self.nan = found, nan
        self._stored: NDArray[Any] | None = None

    def __call__(self, number: int) -> NDArray[np.float32]:
        """(I, J, K, C) float32; what float32 cannot hold is infinite, and refused with NaN."""
        with np.errstate(all="ignore"):
            return self._finite(self._scaled(number))

    def _scaled(self, number: int) -> NDArray[np.float32]:
        found = self.found
        count = math.prod(found.shape) * found.samples
        if found.volumes > 1 and (found.packed or found.volumes_first):
            if self._stored is None:
                stored = np.empty(count * found.volumes, dtype=found.dtype)
                read_values(found, stored, first=0)
                self._stored = stored
            step = (
                slice(number, None, found.volumes)
                if found.volumes_first
                else slice(number * count, (number + 1) * count)
            )
            flat = self._stored[step].astype(np.float32)
        else:
            flat = np.empty(count, dtype=np.float32)
            read_values(found, flat, first=number * count)
        if found.slope != 1 or found.intercept != 0:
            flat *= np.float32(found.slope)
            flat += np.float32(found.intercept)
        return flat.reshape((found.samples, *found.shape), order="F").transpose(1, 2, 3, 0)[..., : _colours(found)]

    def _finite(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        modest = max(abs(self.found.slope), abs(self.found.intercept)) < 1e9
        if (self.found.dtype.kind in "iu" and modest) or np.isfinite(out.sum(dtype=np.float64)):
            return out
        wrong = ~np.isfinite(out)
        if self.nan is None:
            msg = (
                f"{self.found.path.name}: expected finite voxels, found {int(wrong.sum())} that are NaN or infinite; "
                "set options.nan to the value that stands for them, such as 0"
            )
            raise DataError(msg)
        out[wrong] = self.nan
        return out


def _own(options: Mapping[str, Any]) -> tuple[str | None, list[int], float | None]:
    orientation, segments, nan = options.get("orientation"), options.get("segments") or [], options.get("nan")
    if orientation is not None and (
        not isinstance(orientation, str)
        or len(orientation) != 3
        or {_LETTERS.get(c, (9, 0))[0] for c in orientation} != {0, 1, 2}
    ):
        msg = f"option orientation: expected three letters such as RAS or LPS, found {orientation!r}"
        raise ConfigError(msg)
    if not isinstance(segments, list | tuple) or any(isinstance(s, bool) or not isinstance(s, int) for s in segments):
        msg = f"option segments: expected labels such as [1, 2], found {segments!r}"
        raise ConfigError(msg)
    if nan is not None and (isinstance(nan, bool) or not isinstance(nan, int | float) or not math.isfinite(nan)):
        msg = f"option nan: expected a finite number, found {nan!r}"
        raise ConfigError(msg)
    if not isinstance(options.get("unit", ""), str):
        msg = "option unit: expected a word such as HU, found something else"
        raise ConfigError(msg)
    return orientation, list(segments), nan


def _mask(masks: Sequence[VoxelFile], found: VoxelFile, affine: NDArray[np.float64], segments: Sequence[int]) -> Any:  # noqa: ANN401
    inside = np.zeros(found.shape, dtype=bool)
    for mask in masks:
        same = mask.shape == found.shape and mask.volumes == 1 and mask.samples == 1
        if not same or (mask.affine is not None and np.abs(mask.affine - affine).max() > 1e-2):
            msg = f"{mask.path.name}: expected a mask on the grid of its volume, found another; resample it"
            raise DataError(msg)
        values = _Voxels(mask, None)(0)[..., 0]
        inside |= np.isin(values, list(segments)) if segments else values > 0
    return inside


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """Patches of one item (see :func:`group`); see :class:`medfuse.loaders._volume.PatchOptions` for the options.

    Own options: ``unit`` of the values (``HU``; the formats do not say), ``orientation`` where the header has none,
    ``segments`` (labels that ``crop: mask`` uses; all), ``nan`` (value that stands for NaN; refused without).
    Positions are mm in RAS+ (x, y, z), of a series also the number of the volume.

    Raises:
        ConfigError: an unknown option, or a value that it cannot have.
        DataError: damage, no orientation, or NaN.
    """
    chosen = _volume.parsed(options, loader="volume", more=OWN)
    return _volume.sample(_volume_of(files, options, cropped=chosen.crop == "mask"), chosen)


def read_volume(
    files: Sequence[Path], options: Mapping[str, Any] | None = None, *, number: int = 0
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """One whole volume of an item: (I, J, K, C) float32 in RAS+ order, and its affine (index -> mm).

    Args:
        files: of one item, as :func:`group` gives them.
        options: ``orientation`` and ``nan``, as of :func:`read`.
        number: of the volume in a series of volumes.

    Raises:
        ConfigError: an option that it cannot have.
        DataError: as :func:`read`.
    """
    return _volume.read_whole(_volume_of(files, options or {}, cropped=True), number)


def _volume_of(files: Sequence[Path], options: Mapping[str, Any], *, cropped: bool) -> _volume.Volume:
    orientation, segments, nan = _own(options)
    found, masks = _parts(files)
    affine = _affine(found, orientation)
    warnings = list(found.warnings)
    if found.affine is None:
        warnings.append("orientation as the options say, voxels of 1 mm; the header has neither")
    if found.samples == 4:
        warnings.append("the fourth colour (opacity) is left out")
    if masks and not cropped:
        warnings.append("a mask is there and not used; options.crop: mask restricts patches to it")
    return _volume.Volume(
        shape=found.shape,
        affine=affine,
        load=_Voxels(found, nan),
        volumes=found.volumes,
        channels=_colours(found),
        mask=(lambda: _mask(masks, found, affine, segments)) if masks else None,
        facts={"format": found.format, "unit": str(options.get("unit", "RGB" if found.samples > 1 else "arbitrary"))},
        warnings=tuple(warnings),
        where=found.path.name,
    )


def write_example(folder: Path) -> ModalityCard:
    """Two small NIfTI volumes (one gzip) in LPS order with a bright ball, and the card that reads them."""
    import nibabel

    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    x, y, z = np.meshgrid(np.arange(24), np.arange(20), np.arange(12), indexing="ij")
    for number, (patient, ending, radius) in enumerate((("001", ".nii.gz", 3.0), ("002", ".nii", 5.0))):
        ball = (x - 12) ** 2 + (y - 9) ** 2 + (z - 6) ** 2 < radius**2
        noise = np.random.default_rng(number).normal(0, 10, x.shape)
        values = np.rint(np.where(ball, 400.0, 100.0) + noise).astype(np.int16)
        affine = np.diag([-1.5, -1.5, 2.0, 1.0])
        affine[:3, 3] = [17, 14, -11]
        image: Any = nibabel.Nifti1Image(values, affine)  # type: ignore[no-untyped-call]
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / "volumes" / f"{patient}{ending}")
    return ModalityCard(loader="volume", path="volumes/{patient_id}.nii*", options={"patch": [8, 8, 6]})
