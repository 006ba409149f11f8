"""What a camera, a scanner or an electrode would record of a synthetic patient: arrays, events and sentences.

The latent is structure that a person would look for: how large the lesion is, how densely nuclei lie, how high the ST
segment stands. It is never the brightness of an image: scanners, stains and gains differ between sites and patients by
more than what the structure adds to any mean.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfuse.synthetic.process import Array

# --- CT -------------------------------------------------------------------------------------------------------------

CT_SHAPE, CT_SPACING = (64, 64, 24), (5.0, 5.0, 5.0)
AIR, LUNG, TISSUE, LESION = -1000.0, -850.0, 40.0, 40.0
LUNG_CENTRES, LUNG_AXES = {"left": (-68.0, 0.0), "right": (68.0, 0.0)}, (46.0, 72.0)  # mm, x to the right


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
    """A CT: values (I, J, K) in HU, affine to mm in RAS+, and the centre of the lesion in mm."""

    values: NDArray[np.float32]
    affine: Array
    centre: tuple[float, float, float]


def _inside(distance: Array, softness: float) -> Array:
    """1 inside, 0 outside, and between them the part of a voxel that lies inside."""
    return np.asarray(np.clip(0.5 - distance / softness, 0.0, 1.0))


def ct_volume(diameter: float, side: str, style: SiteStyle, rng: np.random.Generator) -> Volume:
    """A chest with two lungs, and in the ``right`` or ``left`` one a round lesion of soft tissue, diameter in mm."""
    spacing = np.array(CT_SPACING)
    origin = -(np.array(CT_SHAPE) - 1) * spacing / 2
    x, y, z = np.meshgrid(
        *(o + s * np.arange(n) for o, s, n in zip(origin, spacing, CT_SHAPE, strict=True)), indexing="ij"
    )
    grown = float(rng.normal(1.0, 0.03))

    def ellipse(middle: tuple[float, float], radii: tuple[float, float]) -> Array:
        a, b = grown * radii[0], grown * radii[1]
        r = np.sqrt(((x - grown * middle[0]) / a) ** 2 + ((y - middle[1]) / b) ** 2)
        return _inside((r - 1) * min(a, b), CT_SPACING[0])

    values = AIR + (TISSUE - AIR) * ellipse((0.0, 0.0), (145.0, 105.0))
    for middle in LUNG_CENTRES.values():
        values = values + (LUNG - values) * ellipse(middle, LUNG_AXES)
    values = values + (200.0 - values) * ellipse((0.0, -70.0), (14.0, 14.0))  # spine
    free = (grown * LUNG_AXES[0] - diameter / 2 - 4.0, grown * LUNG_AXES[1] - diameter / 2 - 4.0)
    turn, reach = float(rng.uniform(0, 2 * np.pi)), float(np.sqrt(rng.random()))
    high = max(-float(origin[2]) - diameter / 2 - 5.0, 0.0)
    centre = (
        grown * LUNG_CENTRES[side][0] + 0.7 * reach * max(free[0], 0.0) * np.cos(turn),
        LUNG_CENTRES[side][1] + 0.7 * reach * max(free[1], 0.0) * np.sin(turn),
        float(rng.uniform(-high, high)),
    )
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) - diameter / 2
    values = values + (LESION - values) * _inside(distance, CT_SPACING[0])
    values = values + style.ct_shift + rng.normal(0, style.ct_noise, size=values.shape) + float(rng.normal(0, 10))
    affine = np.diag([*CT_SPACING, 1.0])
    affine[:3, 3] = origin
    return Volume(values=np.clip(values, -1024, 3000).astype(np.float32), affine=affine, centre=centre)


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
    stain = np.array(style.stain) * np.clip(rng.normal(1.0, 0.2, size=2), 0.5, 1.5)  # from block to block, too
    haematoxylin += np.float32(0.03) * mask
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
        light = np.float32(243.0) * np.exp(blue * haematoxylin + pink * eosin) + noise
        pixels[..., channel] = np.clip(np.rint(light), 0, 255)
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
    "There is a solid lesion in the {side} lung with a diameter of {size:.1f} mm.",
    "{Side} lung: solid nodule, {size:.1f} mm in diameter.",
    "A rounded mass is seen in the {side} lung; its diameter is {size:.1f} mm.",
)
_ORDINARY = (
    "No pleural effusion.",
    "Mediastinal nodes are below 10 mm.",
    "The heart is not enlarged.",
    "Degenerative changes of the spine.",
    "No pneumothorax.",
    "The upper abdomen is unremarkable.",
)


def report_text(diameter: float, side: str, style: SiteStyle, rng: np.random.Generator) -> str:
    """A short report that states the diameter, among sentences that say nothing of it."""
    finding = _FINDING[style.wording].format(side=side, Side=side.capitalize(), size=diameter)
    other = [str(s) for s in rng.choice(_ORDINARY, size=int(rng.integers(2, 5)), replace=False)]
    place = int(rng.integers(0, len(other) + 1))
    body = " ".join([*other[:place], finding, *other[place:]])
    return f"TECHNIQUE: Unenhanced CT of the chest, slice thickness 5 mm.\n\nFINDINGS: {body}\n"
