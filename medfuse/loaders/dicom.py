"""DICOM images: series as volumes, X-rays and ultrasound as images, in patches with positions in mm (RAS+).

Slices are ordered by geometry, values are in the unit of the header (HU of a CT), a 4-D series is a series of volumes.
What is no image, or no regular grid, is refused by name; whole slides and ECG belong to the loaders slide and ecg.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError
from medfuse.loaders import _dicom_identifying as identity
from medfuse.loaders import _volume
from medfuse.loaders._dicom_frame import Frame
from medfuse.loaders._dicom_grid import Stack, assemble, flat
from medfuse.loaders._dicom_header import PREAMBLE, Header, Unusual, meta_of, read_header, series_within
from medfuse.loaders._dicom_mask import check_segmentation, mask_of, referenced_series
from medfuse.loaders._dicom_pixels import channels_of, check_pixels, load, unit_of
from medfuse.loaders._dicom_series import (
    DIRECTORY,
    ECG,
    SEGMENTATION,
    SLIDE,
    STACKED,
    frames_of,
    lost_pixels,
    name_of,
    refusal,
    split,
    unsplit,
)
from medfuse.loaders._dicom_write import write_ct_series
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import RawSample

__all__ = [
    "ITEM",
    "describe",
    "group",
    "identifying",
    "read",
    "read_volume",
    "recognise",
    "write_ct_series",
    "write_example",
]

ITEM = "patch"
OWN = ("min_slices", "pixel_mm", "segments")  # options beside those of every volume
LEAST = 4  # slices of a CT, MR or PET


def recognise(head: Head) -> bool:
    """``DICM`` after 128 bytes, or an element of group 2 or 8 at the beginning; not ECG, not whole slides."""
    start = head.start
    if start[128:PREAMBLE] == b"DICM":
        try:
            sop = meta_of(start)[1]
        except (Unusual, struct.error, IndexError):  # a damaged beginning is still DICOM's to refuse
            sop = ""
    elif start[:1] in (b"\x02", b"\x08") and start[1:2] == b"\0" and start[3:4] == b"\0":
        vr, length = start[4:6], int.from_bytes(start[4:8], "little")
        if not (vr.isalpha() and vr.isupper()) and length > 1024:
            return False
        sop = ""
    elif start[:3] in (b"\0\x02\0", b"\0\x08\0") and start[4:6].isalpha() and start[4:6].isupper():  # big endian
        sop = ""
    else:
        return False
    place = start.find(b"\x08\x00\x16\x00")
    if not sop and place >= 0:
        explicit = start[place + 4 : place + 6] == b"UI"
        length = int.from_bytes(start[place + 6 : place + 8] if explicit else start[place + 4 : place + 8], "little")
        sop = start[place + 8 : place + 8 + length].decode("ascii", "replace").strip("\0 ")
    return sop not in (*ECG, SLIDE)


# --- which files belong together -------------------------------------------------------------------------------------


def group(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Items: slices of a series with one orientation and grid; multi-frame objects and flat images each for itself.

    A segmentation goes with the series that it refers to, a DICOMDIR with the first images; what is no image stands
    alone, so that it is refused by its name and stops nothing else. A damaged image goes with its series, or, where it
    does not say which, with every series of several files in its folder: none is to go in a slice short.
    """
    images: list[Header] = []
    masks: list[Header] = []
    indices: list[Path] = []
    alone: list[Path] = []
    damaged: list[Path] = []
    for path in files:
        try:
            header = read_header(path)
            sop = header.text("SOPClassUID")
            if sop == DIRECTORY:
                indices.append(path)
            elif sop in SEGMENTATION:
                masks.append(header)
            elif refusal(header):
                (damaged if lost_pixels(header) else alone).append(path)
            else:
                split([header])
                images.append(header)
        except DataError:
            (damaged if _marked(path) else alone).append(path)
    items = [list(members) for members in split(images)]
    alone += _with_series(masks, items)
    found = [[h.path for h in members] for members in items]
    sizes = [len(members) for members in items]
    for path in damaged:
        uid = series_within(path)
        if uid:
            homes = [k for k, members in enumerate(items) if members[0].text("SeriesInstanceUID") == uid]
        else:
            homes = [k for k, n in enumerate(sizes) if n > 1 and found[k][0].parent == path.parent]
        for k in homes:
            found[k].append(path)
        alone += [] if homes else [path]
    if indices and found:
        found[0] += indices
    else:
        alone += indices
    return sorted([tuple(sorted(f)) for f in found] + [(p,) for p in alone])


def _with_series(masks: Sequence[Header], items: list[list[Header]]) -> list[Path]:
    """Put segmentations to the series that they refer to; those whose series is not there are returned."""
    alone = []
    for mask in masks:
        try:
            wanted = referenced_series(mask)
        except DataError:
            wanted = set()
        home = next((i for i in items if i[0].text("SeriesInstanceUID") in wanted), None)
        if home is None:
            alone.append(mask.path)
        else:
            home.append(mask)
    return alone


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE)[128:] == b"DICM"
    except OSError:
        return False


# --- what an item is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """An item whose headers were read and checked."""

    stack: Stack
    images: tuple[Header, ...]
    masks: tuple[Header, ...]
    unit: str
    channels: int
    warnings: tuple[str, ...]


def _headers(files: Sequence[Path]) -> tuple[list[Header], list[Header]]:
    """Images and segmentations.

    Raises:
        DataError: an object that is not read, or none that is an image.
    """
    images: list[Header] = []
    masks: list[Header] = []
    for path in files:
        header = read_header(path)
        why = refusal(header)
        if header.text("SOPClassUID") == DIRECTORY and len(files) > 1:
            continue
        if why or unsplit(header):
            raise DataError(why or unsplit(header))
        (masks if header.text("SOPClassUID") in SEGMENTATION else images).append(header)
    return images, masks


def _plan(files: Sequence[Path], *, least: int | None, pixel_mm: float | None) -> _Plan:
    images, masks = _headers(files)
    if not images:
        msg = f"{files[0].name}: expected images, found a segmentation alone; give it together with its series"
        raise DataError(msg)
    first = images[0]
    frames: list[Frame] = []
    channels = {channels_of(header) for header in images}
    for header in images:
        check_pixels(header, frames=header.integer("NumberOfFrames", 1) or 1)
        frames += frames_of(header)
    modality = first.text("Modality")
    placed = any(f.position is not None for f in frames)
    if placed or modality in STACKED:
        stack = assemble(frames, least=least if least is not None else LEAST if modality in STACKED else 1)
    elif len(images) > 1:
        msg = f"{first.name}: expected one image without a place in the patient, found {len(images)}; group the files"
        raise DataError(msg)
    else:
        stack = flat(frames, pixel_mm=pixel_mm)
    if len(channels) > 1:
        msg = f"{first.name}: expected grey or colour slices, found both; group the files first"
        raise DataError(msg)
    count = channels.pop()
    shape = (stack.columns, stack.rows, len(stack.frames[0]) * count)
    _volume.checked_size(shape, stored=0, file_bytes=1, packed=True, where=first.name)
    _volume.checked_affine(stack.affine, where=first.name)
    unit, seen = unit_of(stack)
    if any(h.has("PixelPaddingValue") for h in images):
        seen.append("pixels outside the field hold a padding value; set options.window to bound it")
    return _Plan(
        stack=stack,
        images=tuple(images),
        masks=tuple(masks),
        unit="RGB" if count == 3 else unit,
        channels=count,
        warnings=(*stack.warnings, *seen),
    )


def describe(files: Sequence[Path]) -> Description:
    """Modality, grid, spacing, orientation, bits and encoding, from headers alone.

    Raises:
        DataError: no image, or one that is not read, with the reason.
    """
    images, masks = _headers(files)
    if masks and not images:
        size = {k.lower(): masks[0].integer(k) for k in ("Rows", "Columns")}
        why = "a mask: read it together with its series (options.crop: mask)"
        return Description(kind="segmentation", holds={"frames": check_segmentation(masks[0])} | size, warnings=(why,))
    plan = _plan(files, least=None, pixel_mm=None if _placed(images[0]) else _known_or_one(images[0]))
    head, stack = plan.images[0], plan.stack
    shape = (stack.columns, stack.rows, len(stack.frames[0]))
    warnings = plan.warnings
    if not _placed(head) and _known_or_one(head) is not None:
        warnings = (*warnings, "no pixel spacing: read needs options.pixel_mm")
    holds: dict[str, Any] = {
        "modality": head.text("Modality"),
        "object": name_of(head.text("SOPClassUID")),
        "shape": [int(n) for n in shape],
        "spacing_mm": [round(s, 5) for s in _volume.spacing_of(stack.affine)],
        "orientation": _volume.orientation_of(stack.affine),
        "unit": plan.unit,
        "bits": f"{head.integer('BitsStored', 0)} of {head.integer('BitsAllocated')}",
        "photometric": head.text("PhotometricInterpretation"),
        "encoding": name_of(head.syntax),
    }
    if len(stack.frames) > 1:
        holds |= {"volumes": len(stack.frames), "volumes_by": stack.order}
    if plan.masks:
        holds["segmentations"] = len(plan.masks)
    what = "series" if len(plan.images) > 1 else "image"
    return Description(kind=f"{head.text('Modality') or 'other'} {what}", holds=holds, warnings=warnings)


def _placed(header: Header) -> bool:
    return header.has("ImagePositionPatient") or header.has("PerFrameFunctionalGroupsSequence")


def _known_or_one(header: Header) -> float | None:
    """None where the header of a flat image tells its spacing, else 1 (for a description only)."""
    try:
        flat(frames_of(header)[:1], pixel_mm=None)
    except DataError:
        return 1.0
    return None


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Elements of the basic profile that are there and not empty, private ones, and the risk of text in pixels."""
    return identity.identifying([read_header(path) for path in files])


# --- reading ---------------------------------------------------------------------------------------------------------


def _own(options: Mapping[str, Any]) -> tuple[int | None, float | None, list[int]]:
    least, pixel, segments = options.get("min_slices"), options.get("pixel_mm"), options.get("segments") or []
    if least is not None and (isinstance(least, bool) or not isinstance(least, int) or least < 1):
        msg = f"option min_slices: expected a whole number from 1, found {least!r}"
        raise ConfigError(msg)
    if pixel is not None and (isinstance(pixel, bool) or not isinstance(pixel, int | float) or not 0 < pixel < 1e3):
        msg = f"option pixel_mm: expected a positive number of mm, found {pixel!r}"
        raise ConfigError(msg)
    if not isinstance(segments, list | tuple) or any(isinstance(s, bool) or not isinstance(s, int) for s in segments):
        msg = f"option segments: expected numbers of segments such as [1, 2], found {segments!r}"
        raise ConfigError(msg)
    return least, pixel, list(segments)


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """Patches of one item (see :func:`group`); see :class:`medfuse.loaders._volume.PatchOptions` for the options.

    Own options: ``min_slices`` (fewest slices of a CT, MR or PET; 4), ``pixel_mm`` (spacing of a flat image whose
    header has none), ``segments`` (numbers of the segments that ``crop: mask`` uses; all).
    Positions are mm in RAS+ (x, y, z), of 4-D series also the number of the volume.

    Raises:
        ConfigError: an unknown option, or a value that it cannot have.
        DataError: no image, no regular grid, damage, or no decoder.
    """
    chosen = _volume.parsed(options, loader="dicom", more=OWN)
    volume = _volume_of(files, options, cropped=chosen.crop == "mask")
    return _volume.sample(volume, chosen)


def read_volume(
    files: Sequence[Path], options: Mapping[str, Any] | None = None, *, number: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One whole volume of an item: (I, J, K, C) float32 in RAS+ order and in its unit, and its affine (index -> mm).

    Args:
        files: of one item, as :func:`group` gives them.
        options: ``min_slices`` and ``pixel_mm``, as of :func:`read`.
        number: of the volume in a series of volumes.

    Raises:
        ConfigError: an option that it cannot have.
        DataError: as :func:`read`.
    """
    return _volume.read_whole(_volume_of(files, options or {}, cropped=True), number)


def _volume_of(files: Sequence[Path], options: Mapping[str, Any], *, cropped: bool) -> _volume.Volume:
    least, pixel_mm, segments = _own(options)
    plan = _plan(files, least=least, pixel_mm=pixel_mm)
    stack, masks = plan.stack, plan.masks
    head = plan.images[0]

    def mask() -> Any:  # noqa: ANN401  # an array
        return np.logical_or.reduce([mask_of(m, stack, segments) for m in masks])

    warnings = plan.warnings
    if masks and not cropped:
        warnings = (*warnings, "a segmentation is there and not used; options.crop: mask restricts patches to it")
    return _volume.Volume(
        shape=(stack.columns, stack.rows, len(stack.frames[0])),
        affine=stack.affine,
        load=lambda number: load(stack, number),
        volumes=len(stack.frames),
        channels=plan.channels,
        mask=mask if masks else None,
        facts={"modality": head.text("Modality"), "unit": plan.unit},
        warnings=warnings,
        where=head.name,
    )


def write_example(folder: Path) -> ModalityCard:
    """Two small CT series with a bright ball in a body, file names without order, and the card that reads them."""
    x, y, z = np.meshgrid(np.arange(24), np.arange(20), np.arange(6), indexing="ij")
    for number, (patient, centre, radius) in enumerate((("001", (9, 9, 2), 3.0), ("002", (14, 10, 3), 4.5))):
        body = ((x - 11.5) / 11) ** 2 + ((y - 9.5) / 9) ** 2 < 1
        ball = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (1.5 * (z - centre[2])) ** 2) < radius
        noise = np.random.default_rng(number).normal(0, 8, x.shape)
        hu = np.where(ball, 120.0, np.where(body, 20.0, -1000.0)) + np.rint(noise) * body
        affine = np.diag([-2.0, -2.0, 3.0, 1.0])
        affine[:3, 3] = [23, 19, -40]
        write_ct_series(folder / "imaging" / patient, hu, affine, patient_id=f"SYNTHETIC{patient}", seed=number)
    return ModalityCard(
        loader="dicom", path="imaging/{patient_id}", options={"patch": [8, 8, 3], "window": [-1000, 1000]}
    )
