"""Where heart beats are, and what an average beat looks like: QRS, P, T and their times.

References:
    Pan & Tompkins (1985), A real-time QRS detection algorithm, eq. 12-23 (thresholds, search back, T waves);
    here the filters have no delay and the leads vote together.
    Lepeschkin & Surawicz (1952), The measurement of the Q-T interval (tangent at the steepest slope of T).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal as sp
from scipy.ndimage import uniform_filter1d

Array = NDArray[np.float64]
SLOWEST = 40.0  # Hz; a sampling frequency below it shows no QRS
_REFRACTORY, _T_WAVE = 0.20, 0.36  # s


def bandpass(signal: Array, low: float, high: float, *, frequency: float) -> Array:
    """Butterworth of order 2, forward and backward; ``high`` gives way to half the sampling frequency."""
    high = min(high, 0.45 * frequency)
    sos = sp.butter(2, [low, high], "bandpass", fs=frequency, output="sos")
    pad = min(signal.shape[-1] - 1, round(frequency))
    return np.asarray(sp.sosfiltfilt(sos, signal, axis=-1, padlen=pad))


def without_hum(signal: Array, frequency: float) -> Array:
    """The signal less the one sinusoid near 50 and near 60 Hz that fits it best, where that is over 0.01 mV.

    Unlike a notch it does not ring after a QRS: a pure tone over the whole window is all that it takes away.
    """
    samples = signal.shape[1]
    for mains in (50.0, 60.0):
        if not len(signal) or 2.2 * mains > frequency or samples < 2 * frequency:
            continue
        tones = np.arange(mains - 0.2, mains + 0.21, 0.05)
        waves = np.exp(-2j * np.pi * np.outer(tones, np.arange(samples) / frequency))
        weights = waves @ signal.T * (2 / samples)  # (tones, leads)
        best = int((np.abs(weights) ** 2).sum(axis=1).argmax())
        taken = np.where(np.abs(weights[best]) > 0.01, weights[best], 0)
        signal = signal - np.real(taken[:, None] * np.conj(waves[best])[None])
    return signal


def usable(signal: Array) -> NDArray[np.bool_]:
    """Leads (rows) that carry a signal: finite, not flat, not mostly repeated samples, not absurdly large."""
    if signal.shape[1] < 2:
        return np.zeros(len(signal), bool)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(signal).all(axis=1)
        moving = (np.diff(signal, axis=1) != 0).mean(axis=1) > 0.05
        spread = signal.std(axis=1)
    return np.asarray(finite & moving & (spread > 5e-3) & (spread < 50))


def r_peaks(signal: Array, frequency: float) -> NDArray[np.int64]:
    """Samples of R peaks (largest deflection of each QRS).

    Args:
        signal: (leads, samples) in mV, all usable.
        frequency: Hz, at least 40.

    Returns:
        Rising sample numbers; empty where there is no beat.
    """
    if signal.size == 0 or frequency < SLOWEST or signal.shape[1] < frequency:
        return np.zeros(0, np.int64)
    band = bandpass(signal, 5.0, 18.0, frequency=frequency)
    slope = np.gradient(band, axis=1) * frequency
    power = slope**2
    scale = np.percentile(power, 98, axis=1, keepdims=True)
    together = np.minimum(power / np.maximum(scale, 1e-12), 4.0).mean(axis=0)
    energy = uniform_filter1d(together, max(3, round(0.12 * frequency)))
    candidates, _ = sp.find_peaks(energy, distance=max(1, round(_REFRACTORY * frequency)))
    if not candidates.size:
        return np.zeros(0, np.int64)
    kept = _thresholded(candidates, energy, np.abs(slope).mean(axis=0), frequency)
    return _without_artefacts(_on_the_peak(kept, band, frequency), band, frequency)


def _thresholded(candidates: NDArray[np.int64], energy: Array, slope: Array, frequency: float) -> NDArray[np.int64]:
    """Candidates above a threshold between running means of beats and of noise, with a search back."""
    heights = energy[candidates]
    start = heights[: max(3, np.searchsorted(candidates, 3 * frequency))]
    beat, noise = float(np.percentile(start, 90)), float(np.percentile(start, 25)) * 0.5
    kept: list[int] = []
    gaps: list[float] = []
    skipped: list[int] = []
    for at, height in zip(candidates.tolist(), heights.tolist(), strict=True):
        usual = float(np.median(gaps[-8:])) if gaps else 0.0
        if kept and usual and at - kept[-1] > 1.66 * usual:
            back = [k for k in skipped if k - kept[-1] > _T_WAVE * frequency]
            best = max(back, key=lambda k: energy[k], default=-1)
            if best >= 0 and energy[best] > noise + 0.125 * (beat - noise):
                gaps.append(best - kept[-1])
                kept.append(best)
                skipped = [k for k in skipped if k > best]
                beat = 0.25 * float(energy[best]) + 0.75 * beat
        threshold = noise + 0.25 * (beat - noise)
        early = bool(kept) and at - kept[-1] < _T_WAVE * frequency
        if height > threshold and not (early and _is_t_wave(at, kept[-1], slope, frequency)):
            if kept:
                gaps.append(at - kept[-1])
            kept.append(at)
            skipped = []
            beat = 0.125 * min(height, 3 * beat) + 0.875 * beat
        else:
            skipped.append(at)
            noise = 0.125 * height + 0.875 * noise
    return np.array(kept, np.int64)


def _is_t_wave(at: int, before: int, slope: Array, frequency: float) -> bool:
    half = round(0.06 * frequency)
    here, there = slope[max(0, at - half) : at + half + 1], slope[max(0, before - half) : before + half + 1]
    return bool(here.max() < 0.5 * there.max())


def _on_the_peak(kept: NDArray[np.int64], band: Array, frequency: float) -> NDArray[np.int64]:
    magnitude = np.abs(band).mean(axis=0)
    half = round(0.08 * frequency)
    peaks = [max(0, k - half) + int(magnitude[max(0, k - half) : k + half + 1].argmax()) for k in kept.tolist()]
    return np.unique(np.array(peaks, np.int64))


def _without_artefacts(peaks: NDArray[np.int64], band: Array, frequency: float) -> NDArray[np.int64]:
    """Without peaks that are unlike the median QRS and lie between two beats of about the usual distance.

    A premature beat may have any shape, but a pause follows it; muscle and electrodes do not wait.
    """
    half = round(0.06 * frequency)
    inside = [k for k in peaks.tolist() if k >= half and k + half < band.shape[1]]
    if len(inside) < 5:
        return peaks
    shapes = np.stack([band[:, k - half : k + half + 1].reshape(-1) for k in inside])
    template = np.median(shapes, axis=0)
    size = np.linalg.norm(shapes, axis=1) * np.linalg.norm(template)
    alike = dict(zip(inside, (shapes @ template / np.maximum(size, 1e-12)).tolist(), strict=True))
    usual = float(np.median(np.diff(peaks)))
    kept = peaks.tolist()
    for at in sorted((k for k in inside if alike[k] < 0.6), key=lambda k: alike[k]):
        place = kept.index(at)
        if 0 < place < len(kept) - 1 and kept[place + 1] - kept[place - 1] < 1.4 * usual:
            del kept[place]
    return np.array(kept, np.int64)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A median beat, and what was found in it.

    Attributes:
        lead: (leads, samples) in mV over the level before the QRS.
        r: sample of the R peak.
        onset, offset: samples of the QRS.
        p_onset, p_peak, t_peak, t_end: samples, -1 where it could not be measured.
        beats: how many were averaged.
        noise: (leads,) mV, standard deviation of single beats around the median one.
    """

    lead: Array
    r: int
    onset: int
    offset: int
    p_onset: int
    p_peak: int
    t_peak: int
    t_end: int
    beats: int
    noise: Array


def median_beat(signal: Array, peaks: NDArray[np.int64], frequency: float) -> Beat | None:
    """The median over beats, aligned at their R peaks; None where no whole beat is inside.

    Args:
        signal: (leads, samples) in mV; wander below 0.5 Hz is removed here (no shift of phase).
        peaks: of :func:`r_peaks`.
        frequency: Hz.
    """
    if not peaks.size:
        return None
    interval = float(np.median(np.diff(peaks))) / frequency if len(peaks) > 1 else 0.8
    before = round(min(0.36, 0.45 * interval) * frequency)
    after = round(min(0.62, 0.75 * interval) * frequency)
    inside = peaks[(peaks >= before) & (peaks + after < signal.shape[1])]
    if not inside.size:
        return None
    steady = without_hum(bandpass(signal, 0.5, 150.0, frequency=frequency), frequency)
    each = np.stack([steady[:, k - before : k + after + 1] for k in inside.tolist()])
    beat = np.median(each, axis=0)
    noise = 1.4826 * np.median(np.abs(each - beat).reshape(len(each), len(signal), -1), axis=(0, 2))
    onset, offset = _qrs(beat, before, frequency)
    level_from = max(0, onset - max(1, round(0.02 * frequency)))  # a whole period of mains hum
    beat = beat - beat[:, level_from : max(onset, level_from + 1)].mean(axis=1, keepdims=True)
    smooth = uniform_filter1d(beat, max(1, round(0.024 * frequency)), axis=1)
    p_onset, p_peak = _p_wave(smooth, onset, frequency)
    t_peak, t_end = _t_wave(smooth, offset, frequency)
    return Beat(
        lead=beat,
        r=before,
        onset=onset,
        offset=offset,
        p_onset=p_onset,
        p_peak=p_peak,
        t_peak=t_peak,
        t_end=t_end,
        beats=len(inside),
        noise=noise,
    )


def _qrs(beat: Array, r: int, frequency: float) -> tuple[int, int]:
    """Where the leads together start and stop to move fast around the R peak."""
    width = max(1, round(0.008 * frequency))
    smooth = uniform_filter1d(beat, width, axis=1)
    speed = np.sqrt((np.gradient(smooth, axis=1) ** 2).mean(axis=0))
    near = slice(max(0, r - round(0.06 * frequency)), r + round(0.06 * frequency))
    threshold = float(np.percentile(speed, 30)) + 0.03 * float(speed[near].max())
    calm = max(2, round(0.012 * frequency))
    onset, offset = r, r
    for onset in range(r, max(calm, r - round(0.13 * frequency)), -1):
        if (speed[onset - calm : onset] < threshold).all():
            break
    for offset in range(r, min(beat.shape[1] - calm - 1, r + round(0.16 * frequency))):
        if (speed[offset + 1 : offset + 1 + calm] < threshold).all():
            break
    return onset, offset


def _p_wave(smooth: Array, onset: int, frequency: float) -> tuple[int, int]:
    """Onset and peak of P, (-1, -1) where nothing stands out of the noise before the QRS."""
    last = onset - round(0.03 * frequency)
    first = max(0, onset - round(0.26 * frequency))
    if last - first < round(0.06 * frequency):
        return -1, -1
    flat = smooth[:, first : last + 1]
    line = np.linspace(0, 1, flat.shape[1])
    edge = max(1, round(0.012 * frequency))
    begin = flat[:, :edge].mean(axis=1, keepdims=True)
    size = np.sqrt(((flat - begin - (flat[:, -1:] - begin) * line) ** 2).mean(axis=0))
    peak = int(size.argmax())
    if size[peak] < 0.025 or peak < edge or peak > len(size) - edge - 1:
        return -1, -1
    below = np.flatnonzero(size[:peak] < 0.15 * size[peak])
    return (first + int(below[-1]) + 1, first + peak) if below.size else (-1, -1)


def _t_wave(smooth: Array, offset: int, frequency: float) -> tuple[int, int]:
    """Peak of T and its end, where the tangent at the steepest slope meets the level before the QRS."""
    first = offset + round(0.06 * frequency)
    if smooth.shape[1] - first < round(0.12 * frequency):
        return -1, -1
    size = np.sqrt((smooth**2).mean(axis=0))
    peak = first + int(size[first:].argmax())
    rest = size[peak:]
    if size[peak] < 0.03 or peak <= first + 1 or len(rest) < round(0.05 * frequency):
        return -1, -1
    fall = np.diff(rest)
    steepest = int(fall.argmin())
    level = float(rest[steepest:].min())
    if fall[steepest] >= 0:
        return peak, -1
    end = peak + steepest + 0.5 + (rest[steepest] + rest[steepest + 1] - 2 * level) / 2 / -float(fall[steepest])
    return peak, round(end) if end <= smooth.shape[1] - 1 else -1
