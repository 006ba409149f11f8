"""From planes to grids: slices that lie on a regular grid become a stack; what does not is refused with its reason.

Order and geometry come from Image Position and Image Orientation (PS3.3, C.7.6.2.1.1) alone, never from file names.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._dicom_enhanced import dataset_of
from medfuse.loaders._dicom_frame import Frame
from medfuse.loaders._dicom_header import Header
from medfuse.loaders._dicom_series import same_direction

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Planes on a regular grid.

    Attributes:
        frames: (volumes)(slices).
        affine: (4, 4), (column, row, slice) -> mm, RAS+.
        rows, columns, samples: of each plane.
        warnings: what was seen.
        order: which element told the volumes apart.
    """

    frames: tuple[tuple[Frame, ...], ...]
    affine: Vector
    rows: int
    columns: int
    samples: int
    warnings: tuple[str, ...] = ()
    order: str = ""


def _agreed(frames: Sequence[Frame], *, where: str) -> None:
    first = frames[0]
    for frame in frames[1:]:
        head = frame.header
        if head is not first.header:
            for keyword in ("SeriesInstanceUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"):
                if head.values.get(keyword) != first.header.values.get(keyword):
                    msg = f"{where}: expected images of one series, found two kinds of {keyword}; group the files first"
                    raise DataError(msg)
            if head.text("FrameOfReferenceUID") != first.header.text("FrameOfReferenceUID"):
                msg = f"{where}: expected one frame of reference, found two; group the files first"
                raise DataError(msg)
        if not same_direction(frame.orientation, first.orientation):
            msg = f"{where}: expected slices of one orientation, found several (localizers, or two series in one?)"
            raise DataError(msg + "; group the files first")
        if frame.spacing is None or any(
            abs(a - b) > 1e-4 * abs(b) for a, b in zip(frame.spacing, first.spacing or (0, 0), strict=True)
        ):
            msg = f"{where}: expected slices of one pixel spacing, found several; group the files first"
            raise DataError(msg)


def _axes(frame: Frame, *, where: str) -> tuple[Vector, Vector, Vector]:
    """Unit vectors along a row, down a column, and their normal."""
    row, column = np.asarray(frame.orientation[:3]), np.asarray(frame.orientation[3:])  # type: ignore[index]
    lengths = math.sqrt(row @ row), math.sqrt(column @ column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > 1e-2:
        msg = f"{where}: expected perpendicular unit vectors as image orientation, found others; repair the header"
        raise DataError(msg)
    return row, column, np.cross(row / lengths[0], column / lengths[1])


def _by_position(frames: Sequence[Frame], normal: Vector, *, where: str) -> tuple[list[list[Frame]], Vector]:
    """Frames that share a position along the normal, in the order of the positions (K,)."""
    depth = np.asarray([float(np.asarray(f.position) @ normal) for f in frames])
    order = np.argsort(depth, kind="stable")
    places: list[list[Frame]] = []
    found: list[float] = []
    for k in order:
        if found and depth[k] - found[-1] < 1e-3:
            places[-1].append(frames[k])
        else:
            places.append([frames[k]])
            found.append(float(depth[k]))
    counts = Counter(len(place) for place in places)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        more, fewer = sum(len(p) > usual for p in places), sum(len(p) < usual for p in places)
        msg = (
            f"{where}: expected {usual} image(s) at each of {len(places)} slice positions, found more at {more} "
            f"(duplicates?) and fewer at {fewer} (missing?); complete the series"
        )
        raise DataError(msg)
    return places, np.asarray(found)


def _ordered(places: list[list[Frame]], *, where: str) -> tuple[tuple[tuple[Frame, ...], ...], str]:
    """(volumes)(slices), by the first element that tells the images at every position apart in the same way."""
    many = len(places[0])
    if many == 1:
        return (tuple(place[0] for place in places),), ""
    names = [k for k in places[0][0].keys if all(k in f.keys for place in places for f in place)]
    for name in names:
        values = [sorted(f.keys[name] for f in place) for place in places]
        distinct = all(len(set(v)) == many for v in values)
        if distinct and (name == "InstanceNumber" or all(v == values[0] for v in values)):
            sorted_places = [sorted(place, key=lambda f: f.keys[name]) for place in places]
            return tuple(tuple(place[v] for place in sorted_places) for v in range(many)), name
    msg = f"{where}: found {many} images at every slice position that no element tells apart; remove the duplicates"
    raise DataError(msg)


def _step(found: Vector, places: list[list[Frame]], normal: Vector, *, where: str) -> Vector:
    """Vector from one slice to the next (LPS, mm), after the checks of the grid."""
    gaps = np.diff(found)
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > max(0.01 * usual, 2e-3))
    if len(wrong):
        holes = [round(float(gaps[k]) / usual) - 1 for k in wrong]
        whole = all(abs(float(gaps[k]) / usual - (n + 1)) < 0.05 and n > 0 for k, n in zip(wrong, holes, strict=True))
        what = f"{sum(holes)} slice(s) missing" if whole else f"gaps from {gaps.min():.3f} to {gaps.max():.3f} mm"
        msg = (
            f"{where}: expected slices {usual:.3f} mm apart within 1 %, found {what} at {len(wrong)} of {len(gaps)} "
            "places; complete the series, or convert it to a regular grid"
        )
        raise DataError(msg)
    first, last = np.asarray(places[0][0].position), np.asarray(places[-1][0].position)
    step: Vector = (last - first) / (len(places) - 1)
    aside = step - (step @ normal) * normal
    tilt = math.degrees(math.atan2(float(np.sqrt(aside @ aside)), float(step @ normal)))
    if tilt > 0.3:
        msg = (
            f"{where}: expected slices stacked along their normal, found a shear of {tilt:.1f} degrees (gantry tilt); "
            "correct the tilt and give the result as NIfTI (dcm2niix does both)"
        )
        raise DataError(msg)
    for place in places:
        line = np.asarray(place[0].position) - first
        off = line - (line @ normal) * normal
        shear = abs(math.sin(math.radians(tilt)) * float(line @ normal))
        if float(np.sqrt(off @ off)) > max(0.05 * usual, 0.1) + shear:
            msg = f"{where}: expected slices above each other, found one moved aside; repair the positions"
            raise DataError(msg)
    return step


def _thickness(frame: Frame) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = frame.header.number(keyword)
        if value is not None and value > 0:
            return value
    return frame.keys.get("SliceThickness")


def _affine(first: Vector, row: Vector, column: Vector, step: Vector, spacing: Sequence[float]) -> Vector:
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = row * spacing[1], column * spacing[0], step, first
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def assemble(frames: Sequence[Frame], *, least: int) -> Stack:
    """Planes with positions to a grid.

    Args:
        frames: of one orientation, in any order.
        least: fewest slices that make a volume.

    Raises:
        DataError: what does not make a regular grid, with its reason.
    """
    where = frames[0].header.name + (f" and {len(frames) - 1} more" if len(frames) > 1 else "")
    first = frames[0]
    lacking = next(
        (k for k in ("position", "orientation", "spacing") if any(getattr(f, k) is None for f in frames)), ""
    )
    if lacking:
        msg = f"{where}: expected the {lacking} of every slice, found one without; repair the header"
        raise DataError(msg)
    if min(first.spacing or (0,)) <= 0:
        msg = f"{where}: expected a positive pixel spacing, found another; repair the header"
        raise DataError(msg)
    _agreed(frames, where=where)
    instances = Counter((f.header.text("SOPInstanceUID") or str(f.header.path), f.number) for f in frames)
    twice = sum(n > 1 for n in instances.values())
    if twice:
        msg = f"{where}: expected every image once, found {twice} of them twice (SOPInstanceUID); remove the duplicates"
        raise DataError(msg)
    row, column, normal = _axes(first, where=where)
    places, found = _by_position(frames, normal, where=where)
    if len(places) < least:
        msg = (
            f"{where}: expected a volume of at least {least} slices, found {len(places)} slice position(s) (a "
            f"localizer, or a part of a series?); set options.min_slices: {len(places)} to read it nevertheless"
        )
        raise DataError(msg)
    warnings: list[str] = []
    if len(places) > 1:
        step = _step(found, places, normal, where=where)
    else:
        thickness = _thickness(first)
        if thickness is None:
            warnings.append("one slice without a thickness: 1 mm stands for it")
        step = normal * (thickness or 1.0)
    volumes, order = _ordered(places, where=where)
    if first.header.number("GantryDetectorTilt"):
        warnings.append("GantryDetectorTilt is not 0 though the slices are stacked straight: a corrected series?")
    head = first.header
    return Stack(
        frames=volumes,
        affine=_affine(np.asarray(volumes[0][0].position), row, column, step, first.spacing or (1.0, 1.0)),
        rows=head.integer("Rows"),
        columns=head.integer("Columns"),
        samples=head.integer("SamplesPerPixel", 1),
        warnings=tuple(warnings),
        order=order,
    )


def flat(frames: Sequence[Frame], *, pixel_mm: float | None) -> Stack:
    """An image without a place in the patient (X-ray, ultrasound): mm from the centre of the first pixel, in its plane.

    Columns grow along x and rows along -y, so that the image, looked at, stands upright in the x-y plane.

    Raises:
        DataError: no pixel spacing is known.
    """
    head = frames[0].header
    warnings: list[str] = ["no position in the patient: mm count from the corner of the image, in its plane"]
    spacing: Sequence[float] | None = (pixel_mm, pixel_mm) if pixel_mm else frames[0].spacing
    if spacing is None:
        spacing = head.numbers("ImagerPixelSpacing", 2)
        if spacing is not None:
            warnings.append("spacing is that of the detector; the body is smaller by the magnification")
    if spacing is None:
        spacing = head.numbers("NominalScannedPixelSpacing", 2) or _ultrasound_spacing(head)
    if spacing is None or min(spacing) <= 0:
        msg = (
            f"{head.name}: expected a pixel spacing, found none (no PixelSpacing, ImagerPixelSpacing or calibrated "
            "ultrasound region); set options.pixel_mm if you know it"
        )
        raise DataError(msg)
    affine = np.diag([spacing[1], -spacing[0], 1.0, 1.0])
    return Stack(
        frames=tuple((f,) for f in frames),
        affine=affine,
        rows=head.integer("Rows"),
        columns=head.integer("Columns"),
        samples=head.integer("SamplesPerPixel", 1),
        warnings=tuple(warnings),
        order="frame" if len(frames) > 1 else "",
    )


def _ultrasound_spacing(header: Header) -> tuple[float, float] | None:
    """Spacing of the 2-D regions (PS3.3, C.8.5.5) where all agree, mm; None where there is none."""
    if not header.has("SequenceOfUltrasoundRegions"):
        return None
    found = set()
    for region in dataset_of(header, ["SequenceOfUltrasoundRegions"]).get("SequenceOfUltrasoundRegions", ()):
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        if region.get("RegionSpatialFormat") == 1 and units == (3, 3):  # a 2-D image in cm
            x, y = abs(float(region.PhysicalDeltaX)) * 10, abs(float(region.PhysicalDeltaY)) * 10
            found.add((round(y, 6), round(x, 6)))
    return found.pop() if len(found) == 1 else None
