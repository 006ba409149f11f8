"""What a camera, a scanner or an electrode would record of a synthetic patient: arrays, events and sentences.

The latent is structure that a person would look for: how large the lesion is, how densely nuclei lie, how high the ST
segment stands. It is never the brightness of an image: scanners, stains and gains differ between sites and patients by
more than what the structure adds to any mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfuse.synthetic.process import Array

# --- CT -------------------------------------------------------------------------------------------------------------

CT_SHAPE, CT_SPACING = (64, 64, 24), (5.0, 5.0, 5.0)
AIR, LUNG, FAT, TISSUE, BONE = -1000.0, -850.0, -100.0, 40.0, 250.0  # HU


@dataclass(frozen=True, kw_only=True)
class SiteStyle:
    """How one site records; drawn once per site, unrelated to any risk.

    Attributes:
        ct_noise: standard deviation in HU.
        ct_shift: of all values, HU.
        stain: (2,) factors of haematoxylin and eosin.
        ecg_hertz: sampling frequency.
        ecg_noise: standard deviation in mV.
        lab_unit: of creatinine.
        wording: number of the report's template.
    """

    ct_noise: float
    ct_shift: float
    stain: tuple[float, float]
    ecg_hertz: float
    ecg_noise: float
    lab_unit: str
    wording: int


def site_styles(sites: int, *, batch: float, seed: int) -> tuple[SiteStyle, ...]:
    """One style per site; ``batch`` 0 makes all sites alike."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    styles = []
    for k in range(sites):
        odd = batch > 0 and k % 2 == 1
        styles.append(
            SiteStyle(
                ct_noise=12.0 + 8.0 * batch * float(rng.uniform(0, 1)),
                ct_shift=15.0 * batch * float(rng.uniform(-1, 1)),
                stain=(1 + 0.2 * batch * float(rng.uniform(-1, 1)), 1 + 0.2 * batch * float(rng.uniform(-1, 1))),
                ecg_hertz=500.0 if odd else 250.0,
                ecg_noise=0.01 + 0.01 * batch * float(rng.uniform(0, 1)),
                lab_unit="umol/L" if odd else "mg/dL",
                wording=k % 3 if batch > 0 else 0,
            )
        )
    return tuple(styles)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A CT: values (I, J, K) in HU, and the affine from voxels to mm in RAS+."""

    values: NDArray[np.float32]
    affine: Array


def _partial(distance: Array) -> Array:
    """1 inside (distance < 0 mm), 0 outside, and between them the part of a voxel that lies inside."""
    return np.asarray(np.clip(0.5 - distance / CT_SPACING[0], 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class _Anatomy:
    """Ellipses of one chest in mm: centre x, y and radii; and the height of the right dome of the diaphragm."""

    body: tuple[float, float, float, float]
    lungs: Mapping[str, tuple[float, float, float, float]]
    heart: tuple[float, float, float, float]
    spine: tuple[float, float, float, float]
    fat: float
    dome: float


def _anatomy(rng: np.random.Generator) -> _Anatomy:
    """People differ: wide and narrow, lying off the centre, with more or less fat, with one lung larger."""

    def about(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    x, y = about(0, 4), about(0, 5)
    wide = about(140, 6)
    deep = about(102, 5)
    lungs = {
        side: (x + sign * about(66, 2), y + about(2, 3), about(45, 2), about(70, 4))
        for side, sign in (("left", -1), ("right", 1))
    }
    return _Anatomy(
        body=(x, y, wide, deep),
        lungs=lungs,
        heart=(x - about(18, 4), y + about(22, 4), about(34, 4), about(30, 4)),
        spine=(x + about(0, 3), y - deep + about(34, 3), about(14, 1.5), about(14, 1.5)),
        fat=about(12, 4),
        dome=about(-45, 6),
    )


def _chest(grid: tuple[Array, Array, Array], anatomy: _Anatomy) -> Array:
    """HU of a chest without a lesion on a grid of mm."""
    x, y, z = grid

    def inside(ellipse: tuple[float, float, float, float], *, less: float = 0.0) -> Array:
        a, b = ellipse[2] - less, ellipse[3] - less
        r = np.sqrt(((x - ellipse[0]) / a) ** 2 + ((y - ellipse[1]) / b) ** 2)
        return _partial((r - 1) * min(a, b))

    values = AIR + (FAT - AIR) * inside(anatomy.body)
    values = values + (TISSUE - values) * inside(anatomy.body, less=anatomy.fat)
    for side, ellipse in anatomy.lungs.items():
        lung = np.minimum(inside(ellipse), inside(anatomy.body, less=anatomy.fat + 12.0))  # behind the ribs
        if side == "right":  # the liver below
            lung = lung * _partial(anatomy.dome - z)
        values = values + (LUNG - values) * lung
    values = values + (TISSUE - values) * inside(anatomy.heart)
    return np.asarray(values + (BONE - values) * inside(anatomy.spine))


def _place(values: Array, side: str, room: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """A voxel of one lung that lies at least ``room`` mm from anything else; the deepest one where there is none."""
    body = np.asarray(ndimage.binary_fill_holes(np.any(values > -400, axis=2)))
    lung = (values < -600) & body[:, :, None]
    middle = CT_SHAPE[0] // 2
    if side == "right":
        lung[:middle] = False
    else:
        lung[middle:] = False
    depth = ndimage.distance_transform_edt(np.pad(lung, 1), sampling=CT_SPACING)[1:-1, 1:-1, 1:-1]
    free = np.flatnonzero(depth >= min(room, float(depth.max())))
    i, j, k = np.unravel_index(int(rng.choice(free)), CT_SHAPE)
    return int(i), int(j), int(k)


def ct_volume(diameter: float, side: str, style: SiteStyle, rng: np.random.Generator) -> Volume:
    """A chest with two lungs, and in the ``right`` or ``left`` one a round lesion of soft tissue, diameter in mm."""
    spacing = np.array(CT_SPACING)
    origin = -(np.array(CT_SHAPE) - 1) * spacing / 2
    axes = [o + s * np.arange(n) for o, s, n in zip(origin, spacing, CT_SHAPE, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    values = _chest((x, y, z), _anatomy(rng))
    voxel = np.array(_place(values, side, diameter / 2 + 6.0, rng))
    centre = origin + spacing * (voxel + rng.uniform(-0.4, 0.4, size=3))
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) - diameter / 2
    values = values + (TISSUE - values) * _partial(distance)
    noise = style.ct_noise * float(rng.uniform(0.7, 1.3)) * rng.standard_normal(values.shape)
    values = values + noise + style.ct_shift + float(rng.normal(0, 10))
    affine = np.diag([*CT_SPACING, 1.0])
    affine[:3, 3] = origin
    return Volume(values=np.clip(values, -1024, 3000).astype(np.float32), affine=affine)


# --- slide ----------------------------------------------------------------------------------------------------------

SLIDE_PIXELS, SLIDE_MPP = 1024, 0.5
NUCLEUS_UM = 3.0  # radius
# Optical density per channel: haematoxylin after Ruifrok, Johnston (2001), eosin as pale pink as stroma looks.
_HAEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.10, 0.86, 0.50])


def _smooth(size: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth random field within -1..1, by linear interpolation of a coarse grid."""
    grid = rng.uniform(-1, 1, size=(cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
    i = at.astype(int)
    f = at - i
    rows = grid[i] * (1 - f)[:, None] + grid[i + 1] * f[:, None]
    return np.asarray(rows[:, i] * (1 - f) + rows[:, i + 1] * f)


def tissue_mask(rng: np.random.Generator, *, size: int = SLIDE_PIXELS) -> NDArray[np.bool_]:
    """(size, size) True where tissue lies: one piece with a wavy edge, 40 to 60 % of the field."""
    axis = np.arange(size, dtype=np.float32) / size - np.float32(0.5)
    around = np.linspace(-np.pi, np.pi, 2048)
    edge = rng.uniform(0.36, 0.44) + sum(0.02 / k * np.sin(k * around + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    angle = np.arctan2(axis[:, None], axis[None, :])
    radius = np.asarray(edge, dtype=np.float32)[((angle + np.pi) * (2047 / (2 * np.pi))).astype(np.int32)]
    return np.asarray(np.hypot(axis[:, None], axis[None, :]) < radius)


def nuclei(density: float, mask: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """(k, 2) row and column of nuclei: ``density`` per mm2 of the mask, in it, and at least 8 µm from each other."""
    wanted = round(density * float(mask.sum()) * (SLIDE_MPP / 1000) ** 2)
    edge, apart = int(np.ceil(NUCLEUS_UM / SLIDE_MPP)) + 1, int(np.ceil(8.0 / SLIDE_MPP))
    free = ndimage.binary_erosion(mask, iterations=edge)
    dy, dx = np.mgrid[-apart : apart + 1, -apart : apart + 1]
    taken = np.hypot(dy, dx) < apart
    padded = np.zeros((free.shape[0] + 2 * apart, free.shape[1] + 2 * apart), dtype=bool)
    padded[apart:-apart, apart:-apart] = free
    found: list[tuple[int, int]] = []
    for place in rng.choice(np.flatnonzero(free), size=20 * wanted):
        row, column = divmod(int(place), free.shape[1])
        if padded[row + apart, column + apart]:
            found.append((row, column))
            padded[row : row + 2 * apart + 1, column : column + 2 * apart + 1] &= ~taken
            if len(found) == wanted:
                break
    return np.asarray(found, dtype=np.float64) + rng.uniform(-0.5, 0.5, size=(len(found), 2))


def slide_pixels(density: float, style: SiteStyle, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(1024, 1024, 3) uint8: pink stroma with blue nuclei on glass, at 0.5 µm per pixel, by the law of Beer."""
    mask = tissue_mask(rng)
    size = len(mask)
    haematoxylin, eosin = np.zeros((2, size, size), dtype=np.float32)
    stain = np.array(style.stain) * np.clip(rng.normal(1.0, (0.2, 0.3), size=2), 0.4, 1.6)  # from block to block, too
    haematoxylin += np.float32(rng.uniform(0.0, 0.16)) * mask  # thickness and mucin: more colour than the nuclei add
    eosin += mask * (np.float32(0.22) + np.float32(0.07) * _smooth(size, 24, rng))
    radius = NUCLEUS_UM / SLIDE_MPP
    reach = int(np.ceil(radius)) + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    for row, column in nuclei(density, mask, rng).tolist():
        r, c = round(row), round(column)
        top, left = max(r - reach, 0), max(c - reach, 0)
        cut = (slice(top, r + reach + 1), slice(left, c + reach + 1))
        disc = np.clip(radius + 0.5 - np.hypot(dy + r - row, dx + c - column), 0, 1)
        shape = haematoxylin[cut].shape
        disc = disc[top - r + reach :, left - c + reach :][: shape[0], : shape[1]]
        haematoxylin[cut] = np.maximum(haematoxylin[cut], rng.uniform(0.75, 0.95) * disc)
    noise = np.float32(2.0) * rng.standard_normal((size, size), dtype=np.float32)
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    for channel in range(3):
        blue = np.float32(-np.log(10) * stain[0] * _HAEMATOXYLIN[channel])
        pink = np.float32(-np.log(10) * stain[1] * _EOSIN[channel])
        light = np.exp(blue * haematoxylin + pink * eosin)
        light *= np.float32(243.0)
        light += noise
        pixels[..., channel] = np.clip(np.rint(light, out=light), 0, 255, out=light)
    return pixels


# --- laboratory values ----------------------------------------------------------------------------------------------

MG_PER_DL_IN_UMOL = 10_000.0 / 113.118  # creatinine: 1 mg/dL in µmol/L


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One laboratory value: days from index time (<= 0), code, value and unit."""

    day: float
    code: str
    value: float
    unit: str


CODES = {"creatinine": "LAB//CREATININE", "haemoglobin": "LAB//HAEMOGLOBIN", "sodium": "LAB//SODIUM"}


def lab_readings(slope: float, style: SiteStyle, rng: np.random.Generator) -> list[Reading]:
    """Values of the last year: creatinine on a line of a slope in mg/dL per year, in the site's unit; two idle ones.

    The least-squares slope of the creatinine values is the latent: their noise is free of any trend.
    """
    k = int(rng.integers(7, 12))
    day = np.sort(rng.choice(np.arange(2, 361), size=k, replace=False)).astype(float)[::-1] * -1.0
    design = np.stack([np.ones(k), day], axis=1)
    noise = rng.normal(0, 0.06, size=k)
    noise -= design @ np.linalg.lstsq(design, noise, rcond=None)[0]
    level = float(np.clip(rng.normal(1.7, 0.15), 1.35, 2.1))
    creatinine = np.maximum(level + slope * (day / 365.25 + 0.5) + noise, 0.2)
    factor, digits = (MG_PER_DL_IN_UMOL, 1) if style.lab_unit == "umol/L" else (1.0, 3)
    found = [
        Reading(day=float(d), code=CODES["creatinine"], value=round(float(v * factor), digits), unit=style.lab_unit)
        for d, v in zip(day, creatinine, strict=True)
    ]
    for name, mean, spread, unit in (("haemoglobin", 13.5, 1.2, "g/dL"), ("sodium", 140.0, 2.5, "mmol/L")):
        own = float(rng.normal(mean, spread))
        for d in rng.choice(np.arange(2, 361), size=3, replace=False):
            found.append(
                Reading(day=-float(d), code=CODES[name], value=round(own + float(rng.normal(0, 0.3)), 1), unit=unit)
            )
    return sorted(found, key=lambda r: r.day)


# --- report ---------------------------------------------------------------------------------------------------------

_FINDING = (
    "There is a {word} solid lesion in the {side} lung with a diameter of {size:.1f} mm.",
    "{Side} lung: {word} solid nodule, {size:.1f} mm in diameter.",
    "A {word} rounded mass is seen in the {side} lung; its diameter is {size:.1f} mm.",
)
_WORDS = ((22.0, "tiny"), (27.0, "small"), (33.0, "medium-sized"), (38.0, "large"), (np.inf, "huge"))  # mm, below
_ORDINARY = (
    "No pleural effusion.",
    "Mediastinal nodes are below 10 mm.",
    "The heart is not enlarged.",
    "Degenerative changes of the spine.",
    "No pneumothorax.",
    "The upper abdomen is unremarkable.",
)


def report_text(diameter: float, side: str, style: SiteStyle, rng: np.random.Generator) -> str:
    """A short report that states the diameter, in a word and in mm, among sentences that say nothing of it."""
    word = next(word for below, word in _WORDS if diameter < below)
    finding = _FINDING[style.wording].format(word=word, side=side, Side=side.capitalize(), size=diameter)
    other = [str(s) for s in rng.choice(_ORDINARY, size=int(rng.integers(2, 5)), replace=False)]
    place = int(rng.integers(0, len(other) + 1))
    body = " ".join([*other[:place], finding, *other[place:]])
    return f"TECHNIQUE: Unenhanced CT of the chest, slice thickness 5 mm.\n\nFINDINGS: {body}\n"
