"""WFDB records written, and a parametric ECG to write into them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._ecg_common import STANDARD

# direction of each lead's positive pole in the body's frame: x to the left, y to the feet, z to the front
_AXES = {
    "I": (1.0, 0.0, 0.0),
    "II": (0.5, 0.866, 0.0),
    "V1": (-0.30, 0.10, 0.95),
    "V2": (0.10, 0.15, 0.98),
    "V3": (0.50, 0.20, 0.84),
    "V4": (0.80, 0.25, 0.54),
    "V5": (0.96, 0.25, 0.10),
    "V6": (0.96, 0.20, -0.20),
}
# wave: seconds from the R peak at 60 per min, width s, amplitude mV, direction; P and T move with the RR interval
_WAVES = {
    "P": (-0.16, 0.022, 0.16, (0.64, 0.76, 0.10)),
    "Q": (-0.025, 0.008, 0.15, (-0.70, -0.20, 0.68)),
    "R": (0.0, 0.011, 1.20, (0.70, 0.60, -0.38)),
    "S": (0.028, 0.009, 0.30, (-0.50, -0.10, -0.86)),
    "T": (0.28, 0.045, 0.35, (0.62, 0.60, 0.50)),
}


def synthesise(
    seconds: float,
    sampling_frequency: float,
    *,
    heart_rate: float = 70.0,
    st_mv: float = 0.0,
    rr_variability: float = 0.03,
    noise_mv: float = 0.01,
    seed: int = 0,
) -> NDArray[np.float64]:
    """A 12-lead ECG of a beating dipole, for examples and synthetic cohorts; no model of any disease.

    P, Q, R, S and T are Gaussians in time along directions in space, projected on the leads I, II and V1-V6; III, aVR,
    aVL and aVF follow from I and II (Einthoven, Goldberger). The RR interval has a slow and a respiratory rhythm and
    the QT follows its square root (Bazett).

    Args:
        seconds: of the recording.
        sampling_frequency: Hz.
        heart_rate: beats per minute.
        st_mv: level in mV between the J point and the T wave, of all leads but aVR, which has its opposite.
        rr_variability: standard deviation of the RR intervals over their mean.
        noise_mv: standard deviation of white noise; a tenth of it and slow: the wander of the baseline.
        seed: of rhythm and noise.

    Returns:
        (12, samples) mV in the order I, II, III, aVR, aVL, aVF, V1-V6.

    References:
        McSharry et al. (2003), A dynamical model for generating synthetic electrocardiogram signals, eq. 1-2.
    """
    rng = np.random.default_rng(seed)
    samples = round(seconds * sampling_frequency)
    time = np.arange(samples) / sampling_frequency
    peaks, intervals = _peaks(seconds, 60.0 / heart_rate, rr_variability, rng)
    independent = np.zeros((len(_AXES), samples))
    axes = np.array(list(_AXES.values()))
    for peak, interval in zip(peaks, intervals, strict=True):
        stretch = math.sqrt(interval)
        near = slice(*np.searchsorted(time, [peak - 0.5 * stretch, peak + 0.8 * stretch]))
        here = time[near] - peak
        for name, (centre, width, height, direction) in _WAVES.items():
            factor = stretch if name in "PT" else 1.0
            wave = height * np.exp(-0.5 * ((here - centre * factor) / (width * factor)) ** 2)
            independent[:, near] += (axes @ np.array(direction))[:, None] * wave
        if st_mv:
            rise = 1 / (1 + np.exp(-(here - 0.045) / 0.004)) - 1 / (1 + np.exp(-(here - 0.30 * stretch) / 0.03))
            independent[:, near] += st_mv * rise
    wander = 0.1 * noise_mv * np.sin(2 * np.pi * 0.25 * time + rng.uniform(0, 6.28, (len(_AXES), 1)))
    independent += wander + rng.normal(0, noise_mv, independent.shape)
    first, second = independent[0], independent[1]
    limb = [first, second, second - first, -(first + second) / 2, first - second / 2, second - first / 2]
    return np.concatenate([np.array(limb), independent[2:]])


def _peaks(seconds: float, interval: float, spread: float, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    peaks, intervals = [], []
    at, phase = interval * float(rng.uniform(0.2, 0.8)), rng.uniform(0, 6.28, 2)
    while at < seconds + interval:
        slow = math.sin(0.6 * at + phase[0]) + math.sin(1.6 * at + phase[1]) + float(rng.normal(0, 0.5))
        here = interval * max(0.3, 1 + spread * slow / 1.12)
        peaks.append(at)
        intervals.append(here)
        at += here
    return peaks, intervals


def write_wfdb(
    folder: Path,
    record: str,
    signal_mv: NDArray[np.floating],
    *,
    sampling_frequency: float,
    leads: Sequence[str] = STANDARD,
    gain: float = 1000.0,
    fmt: int = 16,
) -> tuple[Path, Path]:
    """Write a record as ``record.hea`` and ``record.dat``.

    Args:
        folder: exists.
        record: name, of letters, digits, ``-`` and ``_``.
        signal_mv: (leads, samples) in mV; NaN is written as a missing sample.
        sampling_frequency: Hz.
        leads: names.
        gain: codes per mV.
        fmt: 16 or 212.

    Returns:
        The two paths.

    Raises:
        DataError: another shape, a name that no record can have, or values outside the range of the format.
    """
    signal = np.asarray(signal_mv, np.float64)
    if signal.ndim != 2 or len(signal) != len(leads) or not signal.size or fmt not in {16, 212}:
        msg = f"write_wfdb: expected ({len(leads)} leads, samples) and format 16 or 212, found {signal.shape}, {fmt}"
        raise DataError(msg)
    if not record.replace("-", "_").isidentifier() and not record.replace("-", "").replace("_", "").isalnum():
        msg = "write_wfdb: expected a record name of letters, digits, - and _, found another"
        raise DataError(msg)
    missing = np.isnan(signal)
    code = np.round(np.where(missing, 0, signal) * gain)
    largest = 2047 if fmt == 212 else 32767
    if np.abs(code).max() > largest:
        msg = f"write_wfdb: expected at most {largest / gain:g} mV, found {np.abs(code).max() / gain:g}; use less gain"
        raise DataError(msg)
    code[missing] = -largest - 1
    digital = code.astype(np.int16)
    content = digital.T.astype("<i2").tobytes() if fmt == 16 else _packed212(digital.T.reshape(-1))
    data, header = folder / f"{record}.dat", folder / f"{record}.hea"
    data.write_bytes(content)
    lines = [f"{record} {len(leads)} {sampling_frequency:.10g} {signal.shape[1]}"]
    for lead, row in zip(leads, digital, strict=True):
        checksum = int((int(row.sum(dtype=np.int64)) + 32768) % 65536 - 32768)
        lines.append(f"{record}.dat {fmt} {gain:.10g}(0)/mV {16 if fmt == 16 else 12} 0 {row[0]} {checksum} 0 {lead}")
    header.write_text("\n".join(lines) + "\n")
    return header, data


def _packed212(flat: NDArray[np.int16]) -> bytes:
    pairs = np.append(flat, flat[:0] if len(flat) % 2 == 0 else np.int16(0)).astype(np.uint16).reshape(-1, 2) & 0xFFF
    out = np.empty((len(pairs), 3), np.uint8)
    out[:, 0] = pairs[:, 0] & 0xFF
    out[:, 1] = pairs[:, 0] >> 8 | (pairs[:, 1] >> 8) << 4
    out[:, 2] = pairs[:, 1] & 0xFF
    return out.tobytes()[: -(-len(flat) * 3 // 2)]
