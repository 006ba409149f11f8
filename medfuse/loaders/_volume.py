"""Geometry of volumes: the affine, RAS+ once, spacing in mm, and patches with their positions in mm.

Words: a *volume* is an array with three space axes and an affine (index -> mm, RAS+). Arrays are turned to the closest
RAS+ axes once, here, by transposing and flipping views; oblique volumes stay oblique and their affine says so.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError, nearest
from medfuse.sample import RawSample

Array = NDArray[Any]

OPTIONS = ("spacing", "patch_mm", "patch", "stride_mm", "stride", "crop", "threshold", "coverage", "window", "volumes")
LARGEST_VOLUME = 4 << 30  # bytes of one volume as float32
LARGEST_RATIO = 400  # decoded over packed size above 256 MiB; a mask of zeros has 1000
MOST_PATCHES = 2_000_000
_FREE = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume, or a series of volumes of one geometry, that is read when it is asked for.

    Attributes:
        shape: voxels along the three axes.
        affine: (4, 4), index -> mm in RAS+.
        load: number of a volume -> (*shape, channels) float32 (any strides); opens on access, closes after.
        volumes: time points, echoes, directions ...
        channels: 1, or 3 for colour.
        mask: () -> bool array of ``shape``, where a mask came with the volume.
        facts: what the manifest keeps.
        warnings: what a person should know.
        where: for messages.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    load: Callable[[int], Array]
    volumes: int = 1
    channels: int = 1
    mask: Callable[[], NDArray[np.bool_]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    where: str = ""


# --- geometry --------------------------------------------------------------------------------------------------------


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Length of one step along each axis, mm."""
    a, b, c = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(a), float(b), float(c)


def orientation_of(affine: NDArray[np.float64]) -> str:
    """Directions in which the indices grow, such as ``RAS`` (closest axes)."""
    axes, signs = closest(affine)
    order = {
        axis: ("LR", "PA", "IS")[world][sign > 0] for world, (axis, sign) in enumerate(zip(axes, signs, strict=True))
    }
    return "".join(order[k] for k in range(3))


def closest(affine: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Which array axis runs closest to R, A and S, and its sign: the assignment with the largest sum of cosines."""
    cosines = affine[:3, :3] / np.maximum(np.asarray(spacing_of(affine)), 1e-12)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    best = max(orders, key=lambda o: sum(abs(cosines[world, axis]) for world, axis in enumerate(o)))
    signs = [1 if cosines[world, axis] >= 0 else -1 for world, axis in enumerate(best)]
    return best, (signs[0], signs[1], signs[2])


def turned(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The affine of the array that :func:`turn` gives."""
    axes, signs = closest(affine)
    out = np.eye(4)
    out[:3, 3] = affine[:3, 3]
    for world, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        out[:3, world] = affine[:3, axis] * sign
        if sign < 0:
            out[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
    return out


def turn(array: Array, affine: NDArray[np.float64]) -> Array:
    """View of an array (three space axes first) whose axes grow to R, A and S."""
    axes, signs = closest(affine)
    view = array.transpose((*axes, *range(3, array.ndim)))
    return view[tuple(slice(None, None, sign) for sign in signs)]


def checked_affine(affine: Array, *, where: str) -> NDArray[np.float64]:
    """An affine that is finite, lies within a kilometre and has three independent axes of at least a nanometre.

    Raises:
        DataError: it is not.
    """
    affine = np.asarray(affine, dtype=np.float64)
    near = bool(np.isfinite(affine).all()) and float(np.abs(affine).max()) <= 1e6
    steps = affine[:3, :3] if near else np.zeros((3, 3))
    lengths = np.sqrt((steps**2).sum(axis=0))
    unit = steps / np.maximum(lengths, 1e-12)
    if lengths.min() < 1e-6 or abs(float(unit[:, 0] @ np.cross(unit[:, 1], unit[:, 2]))) < 1e-3:
        msg = f"{where}: expected a geometry with three independent axes in mm, found none; repair the header"
        raise DataError(msg)
    return affine


def checked_size(
    shape: Sequence[int], *, stored: int, file_bytes: int, packed: bool, where: str, ratio: int = LARGEST_RATIO
) -> None:
    """Compare the declared size of one or more volumes with the bytes that are there, before anything is allocated.

    Args:
        shape: all axes.
        stored: bytes of one stored value.
        file_bytes: size of the data on disk.
        packed: compressed, so that more than ``file_bytes`` may come out.
        where: for messages.
        ratio: largest unpacked over packed size above 256 MiB.

    Raises:
        DataError: an empty axis, more than is there, or more than the caps allow.
    """
    count = 1
    for length in shape:
        if length < 1:
            msg = f"{where}: expected at least one voxel along each axis, found {tuple(shape)}; repair the header"
            raise DataError(msg)
        count *= int(length)
    if packed and count * stored > max(_FREE, file_bytes * ratio):
        msg = f"{where}: declares {count * stored >> 20} MiB in {file_bytes >> 10} KiB; a bomb? unpack it yourself"
        raise DataError(msg)
    if not packed and count * stored > file_bytes:
        msg = f"{where}: expected {count * stored} bytes of voxels, found {file_bytes}; truncated? copy it again"
        raise DataError(msg)
    if int(np.prod([int(n) for n in shape[:3]], dtype=object)) * 4 > LARGEST_VOLUME:
        msg = f"{where}: expected a volume of at most {LARGEST_VOLUME >> 30} GiB in float32, found {tuple(shape)}"
        raise DataError(msg)


# --- options ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PatchOptions:
    """How a volume becomes patches; lengths are (3,), along R, A and S.

    Attributes:
        spacing: mm of a voxel after resampling (linear); None: native.
        patch_mm, patch: side in mm or in voxels (one of both); default 32 mm.
        stride_mm, stride: distance between patches; default: the side.
        crop: ``none``, ``body`` (above ``threshold``) or ``mask`` (of the files).
        threshold: of ``body``, in the volume's unit.
        coverage: least fraction of a patch inside the crop; 0: any voxel.
        window: (low, high): values are clipped.
        volumes: ``all``, ``mean``, ``first`` or a number, of series of volumes.
    """

    spacing: tuple[float, ...] | None = None
    patch_mm: tuple[float, ...] | None = None
    patch: tuple[int, ...] | None = None
    stride_mm: tuple[float, ...] | None = None
    stride: tuple[int, ...] | None = None
    crop: str = "none"
    threshold: float | None = None
    coverage: float = 0.0
    window: tuple[float, float] | None = None
    volumes: str | int = "all"


def _three(options: Mapping[str, Any], key: str, kind: type) -> Any:  # noqa: ANN401  # a tuple of three numbers or None
    value = options.get(key)
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    good = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e5 for v in values)
    if len(values) != 3 or not good or (kind is int and any(v != int(v) for v in values)):
        msg = f"option {key}: expected one positive number or three (R, A, S), found {value!r}"
        raise ConfigError(msg)
    return tuple(kind(v) for v in values)


def _number(options: Mapping[str, Any], key: str, *, low: float, high: float) -> float | None:
    value = options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        msg = f"option {key}: expected a number from {low:g} to {high:g}, found {value!r}"
        raise ConfigError(msg)
    return float(value)


def parsed(options: Mapping[str, Any], *, loader: str, more: Sequence[str] = ()) -> PatchOptions:
    """Options of a card, checked; ``more`` are the loader's own, which it checks itself.

    Raises:
        ConfigError: an unknown option, or a value that it cannot have.
    """
    known = (*OPTIONS, *more)
    unknown = next((key for key in options if key not in known), None)
    if unknown is not None:
        msg = f"options of the loader {loader}: unknown {unknown!r}; {nearest(unknown, known)}"
        raise ConfigError(msg)
    for one, other in (("patch", "patch_mm"), ("stride", "stride_mm")):
        if options.get(one) is not None and options.get(other) is not None:
            msg = f"options of the loader {loader}: expected {one} or {other}, found both"
            raise ConfigError(msg)
    window = options.get("window")
    if window is not None:
        numbers = (
            isinstance(window, list | tuple) and len(window) == 2 and all(isinstance(v, int | float) for v in window)
        )
        if not numbers or not window[0] < window[1]:
            msg = f"option window: expected two numbers, low < high, found {window!r}"
            raise ConfigError(msg)
        window = (float(window[0]), float(window[1]))
    crop, volumes = options.get("crop", "none"), options.get("volumes", "all")
    if crop not in ("none", "body", "mask"):
        msg = f"option crop: found {crop!r}; {nearest(str(crop), ('none', 'body', 'mask'))}"
        raise ConfigError(msg)
    if volumes not in ("all", "mean", "first") and (
        isinstance(volumes, bool) or not isinstance(volumes, int) or volumes < 0
    ):
        msg = f"option volumes: expected all, mean, first or a number from 0, found {volumes!r}"
        raise ConfigError(msg)
    return PatchOptions(
        spacing=_three(options, "spacing", float),
        patch_mm=_three(options, "patch_mm", float),
        patch=_three(options, "patch", int),
        stride_mm=_three(options, "stride_mm", float),
        stride=_three(options, "stride", int),
        crop=crop,
        threshold=_number(options, "threshold", low=-1e9, high=1e9),
        coverage=_number(options, "coverage", low=0, high=1) or 0.0,
        window=window,
        volumes=volumes,
    )


# --- reading a volume once -------------------------------------------------------------------------------------------


class Held:
    """The volume that was asked for last, decoded and turned to RAS+: one at a time in the whole process.

    No file stays open. A sample that is dropped drops its volume; a fetch from another sample takes the place.
    """

    _recent: ClassVar["weakref.ref[Held] | None"] = None

    def __init__(self, volume: Volume, choice: str | int) -> None:
        self.volume, self.choice = volume, choice
        self._number = -1
        self._array: Array | None = None

    def __call__(self, number: int) -> Array:
        """Volume ``number`` as (I, J, K, C) float32 in RAS+ order."""
        if self._array is None or self._number != number:
            other = Held._recent() if Held._recent is not None else None
            if other is not None:
                other._array = None
            self._array = None  # before the next one is there
            array = turn(self._load(number), self.volume.affine)
            self._array, self._number = array, number
            Held._recent = weakref.ref(self)
            return array
        return self._array

    def _load(self, number: int) -> Array:
        if self.choice != "mean" or self.volume.volumes == 1:
            return self.volume.load(
                number if self.choice == "all" else 0 if isinstance(self.choice, str) else self.choice
            )
        total = np.array(self.volume.load(0), dtype=np.float32)
        for k in range(1, self.volume.volumes):
            total += self.volume.load(k)
        total /= self.volume.volumes
        return total


def read_whole(volume: Volume, number: int = 0) -> tuple[Array, NDArray[np.float64]]:
    """One volume as (I, J, K, C) float32 in RAS+ order (a view of what was decoded), and its affine (index -> mm)."""
    return turn(volume.load(number), volume.affine), turned(volume.affine, volume.shape)


# --- resampling ------------------------------------------------------------------------------------------------------


def weights(old: int, step: float, new: int) -> NDArray[np.float32]:
    """(new, old) matrix of linear interpolation along an axis; ``step`` is new over old spacing, centres are aligned.

    Where the new spacing is larger, the triangle is widened to it, so that no voxel is skipped (a linear filter
    without aliasing); where it is smaller, this is plain linear interpolation. Edges are repeated.
    """
    centre = (np.arange(new) - (new - 1) / 2) * step + (old - 1) / 2
    width = max(step, 1.0)
    distance = np.abs(np.arange(old)[None, :] - np.clip(centre, 0, old - 1)[:, None])
    matrix = np.maximum(0.0, 1.0 - distance / width)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The voxels that patches are cut from: those of the file, or resampled ones."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    matrices: tuple[NDArray[np.float32], ...] | None

    def cut(self, array: Array, start: Sequence[int], side: Sequence[int]) -> Array:
        """One patch (I, J, K, C) of the grid, from an array of the file's voxels."""
        if self.matrices is None:
            return array[tuple(slice(s, s + n) for s, n in zip(start, side, strict=True))]
        rows = [m[s : s + n] for m, s, n in zip(self.matrices, start, side, strict=True)]
        used = [np.flatnonzero(r.any(axis=0)) for r in rows]
        array = array[tuple(slice(int(u[0]), int(u[-1]) + 1) for u in used)]
        for axis, (row, u) in enumerate(zip(rows, used, strict=True)):
            array = np.moveaxis(np.tensordot(row[:, u[0] : u[-1] + 1], array, axes=(1, axis)), 0, axis)
        return array


def _grid(volume: Volume, spacing: tuple[float, ...] | None) -> _Grid:
    axes, _ = closest(volume.affine)
    shape = tuple(volume.shape[axis] for axis in axes)
    affine = turned(volume.affine, volume.shape)
    if spacing is None:
        return _Grid(shape=shape, affine=affine, matrices=None)
    native = spacing_of(affine)
    steps = [1.0 if n == 1 else new / old for n, new, old in zip(shape, spacing, native, strict=True)]
    new_shape = tuple(max(1, round(n / step)) for n, step in zip(shape, steps, strict=True))
    checked_size(new_shape, stored=0, file_bytes=1, packed=True, where=volume.where + " after resampling")
    first = [(n - 1) / 2 - (m - 1) / 2 * step for n, m, step in zip(shape, new_shape, steps, strict=True)]
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
    moved[:3, :3] = affine[:3, :3] * np.asarray(steps)
    matrices = tuple(weights(n, step, m) for n, step, m in zip(shape, steps, new_shape, strict=True))
    return _Grid(shape=new_shape, affine=moved, matrices=matrices)


# --- patches ---------------------------------------------------------------------------------------------------------


def starts(length: int, side: int, stride: int) -> list[int]:
    """First voxels of patches along an axis; the last one is moved inward, so that every voxel is in a patch."""
    last = length - side
    found = list(range(0, last + 1, stride))
    return found if found[-1] == last else [*found, last]


def _voxels(voxels: Any, mm: Any, spacing: Sequence[float], default: Sequence[int]) -> list[int]:  # noqa: ANN401
    if voxels is not None:
        return [int(v) for v in voxels]
    if mm is not None:
        return [max(1, round(m / s)) for m, s in zip(mm, spacing, strict=True)]
    return list(default)


def _cuts(grid: _Grid, options: PatchOptions, *, where: str) -> tuple[list[list[int]], list[int]]:
    """First voxels of the patches along each axis, and their sides."""
    spacing = spacing_of(grid.affine)
    side = _voxels(options.patch, options.patch_mm, spacing, [max(1, round(32 / s)) for s in spacing])
    side = [min(n, length) for n, length in zip(side, grid.shape, strict=True)]
    stride = _voxels(options.stride, options.stride_mm, spacing, side)
    lines = [starts(length, n, step) for length, n, step in zip(grid.shape, side, stride, strict=True)]
    if len(lines[0]) * len(lines[1]) * len(lines[2]) > MOST_PATCHES:
        msg = f"{where}: expected at most {MOST_PATCHES} patches; choose a larger patch or stride"
        raise ConfigError(msg)
    return lines, side


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part (faces) of a mask."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _region(volume: Volume, held: Held, options: PatchOptions) -> NDArray[np.bool_] | None:
    """Voxels (RAS+ order) that patches must touch; None: everywhere."""
    if options.crop == "none":
        return None
    if options.crop == "mask":
        if volume.mask is None:
            msg = f"{volume.where}: crop: mask was asked for, found no mask among its files; add it, or crop otherwise"
            raise DataError(msg)
        region = turn(volume.mask(), volume.affine)
    else:
        threshold = options.threshold
        if threshold is None and volume.facts.get("unit") == "HU":
            threshold = -500.0
        if threshold is None:
            msg = f"{volume.where}: crop: body needs a threshold where values are not HU; set options.threshold"
            raise ConfigError(msg)
        region = largest_part(held(0).mean(axis=-1) > threshold)
    if not region.any():
        msg = f"{volume.where}: expected a region to crop to, found an empty one; check the mask or the threshold"
        raise DataError(msg)
    return region


def _shares(
    region: NDArray[np.bool_], grid: _Grid, lines: Sequence[Sequence[int]], side: Sequence[int]
) -> NDArray[np.float64]:
    """Mean of a region (resampled where the grid is) over each patch, in the order of their corners (P,)."""
    sums = []
    for axis, (line, n) in enumerate(zip(lines, side, strict=True)):
        rows = np.zeros((len(line), region.shape[axis]))
        for k, start in enumerate(line):
            if grid.matrices is None:
                rows[k, start : start + n] = 1 / n
            else:
                rows[k] = grid.matrices[axis][start : start + n].mean(axis=0)
        sums.append(rows)
    found = np.empty(tuple(map(len, lines)))
    for k, row in enumerate(sums[0]):
        used = np.flatnonzero(row)
        part = region[used[0] : used[-1] + 1]
        plane = np.tensordot(row[used[0] : used[-1] + 1], part, axes=(0, 0))
        found[k] = sums[1] @ plane @ sums[2].T if plane.any() else 0
    return found.ravel()


def sample(volume: Volume, options: PatchOptions) -> RawSample:
    """Patches of a volume, cut when they are asked for; a fetch decodes the volume once and closes its files.

    Raises:
        ConfigError: options that do not fit the volume.
        DataError: a crop without a region.
    """
    if isinstance(options.volumes, int) and options.volumes >= volume.volumes:
        msg = f"{volume.where}: option volumes: expected a number below {volume.volumes}, found {options.volumes}"
        raise ConfigError(msg)
    grid = _grid(volume, options.spacing)
    lines, side = _cuts(grid, options, where=volume.where)
    corners = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    held = Held(volume, options.volumes)
    region = _region(volume, held, options)
    if region is not None:
        shares = _shares(region, grid, lines, side)
        corners = corners[(shares > 0) & (shares >= options.coverage - 1e-9)]
        if not len(corners):
            msg = f"{volume.where}: no patch has {options.coverage:.0%} of its voxels in the region; lower coverage"
            raise DataError(msg)
    centres = corners + (np.asarray(side) - 1) / 2
    position = (centres @ grid.affine[:3, :3].T + grid.affine[:3, 3]).astype(np.float32)
    many = options.volumes == "all" and volume.volumes > 1
    times = volume.volumes if many else 1
    if many:
        number = np.repeat(np.arange(times, dtype=np.float32), len(corners))[:, None]
        position = np.concatenate([np.tile(position, (times, 1)), number], axis=1)
    shape = (side[0], side[1], side[2], volume.channels)

    def fetch(rows: Sequence[int]) -> Array:
        out = np.empty((len(rows), *shape), dtype=np.float32)
        for k, row in enumerate(rows):
            out[k] = grid.cut(held(row // len(corners)), corners[row % len(corners)], side)
        if options.window is not None:
            np.clip(out, *options.window, out=out)
        return out

    facts = {
        **volume.facts,
        "volume_shape": [int(n) for n in grid.shape],
        "spacing_mm": [round(s, 6) for s in spacing_of(grid.affine)],
        "native_spacing_mm": [round(s, 6) for s in spacing_of(turned(volume.affine, volume.shape))],
        "volumes": times,
    }
    return RawSample(
        item="patch", shape=shape, position=position, unit="mm", fetch=fetch, facts=facts, warnings=volume.warnings
    )
