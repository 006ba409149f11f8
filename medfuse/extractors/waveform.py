"""ECG windows to measurements with names: rhythm, intervals, amplitudes, ST level, axis, spectrum, signal quality.

Nothing is NaN: what could not be measured is 0 and its flag ``..._measured`` is 0. The features are the same whatever
leads a recording has; a lead that is absent has ``present`` 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import signal as sp

from medfuse.errors import ConfigError, DataError
from medfuse.extractors._beats import SLOWEST, Array, Beat, median_beat, r_peaks, usable
from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SLOTS = (*LEADS, "other")  # the first lead of another name
_RHYTHM = ("heart_rate", "rr_s", "rr_sd_s", "rr_rmssd_s", "rr_largest_ratio", "rhythm_measured", "beats")
_INTERVALS: tuple[str, ...] = (
    "pr_ms",
    "pr_measured",
    "qrs_ms",
    "qrs_measured",
    "qt_ms",
    "qtc_bazett_ms",
    "qtc_fridericia_ms",
)
_INTERVALS += ("qt_measured", "axis_cos", "axis_sin", "axis_measured", "t_axis_cos", "t_axis_sin", "t_axis_measured")
_QUALITY = ("usable_leads", "beat_agreement", "noise_mv")
_LEAD = ("present", "measured", "p_mv", "q_mv", "r_mv", "s_mv", "st60_mv", "t_mv", "qrs_area")
_BANDS = ((0.5, 5.0), (5.0, 15.0), (15.0, 40.0), (40.0, 100.0))
_SPECTRUM = ("log_power", *(f"power_{low:g}_{high:g}_hz" for low, high in _BANDS))
_RATE = 100.0  # Hz of the convolutions
_TAPS = 9


class Waveform(Extractor):
    """Measurements of each window, and responses to fixed random convolutions of its clearest lead.

    Args:
        convolutions: number of kernels; each gives its largest response and the share of positive ones.
        seed: of the kernels.

    References:
        Kligfield et al. (2007), Recommendations for the standardization and interpretation of the electrocardiogram.
        Bazett (1920), Fridericia (1920): QT over the square and cubic root of RR in seconds.
        Dempster et al. (2020), ROCKET, section 3 (kernels of length 9, centred weights, dilation, PPV and maximum).
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("window",)

    def __init__(self, *, convolutions: int = 32, seed: int = 0) -> None:
        if not 0 <= convolutions <= 10_000:
            msg = f"extractor waveform: expected 0 to 10,000 convolutions, found {convolutions}"
            raise ConfigError(msg)
        self.convolutions, self.seed = convolutions, seed
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(convolutions, _TAPS))
        self._kernels = weights - weights.mean(axis=1, keepdims=True)
        self._dilations = 2 ** rng.integers(0, 5, convolutions)
        self._biases = rng.uniform(-1, 1, convolutions)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Number and seed of the convolutions."""
        return {"convolutions": self.convolutions, "seed": self.seed}

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """The same for every recording."""
        leads = [f"{slot}_{name}" for slot in SLOTS for name in (*_LEAD, *_SPECTRUM)]
        kernels = [f"conv{k}_{name}" for k in range(self.convolutions) for name in ("max", "positive")]
        return (*_RHYTHM, *_INTERVALS, *_QUALITY, *leads, *kernels)

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """(k, F) of k windows (leads, samples) in mV.

        Raises:
            DataError: facts without leads, or a sampling frequency below 40 Hz.
        """
        leads, frequency = [str(name) for name in facts.get("leads", ())], float(facts.get("sampling_frequency", 0))
        if items.ndim != 3 or len(leads) != items.shape[1] or frequency < SLOWEST:
            msg = (
                f"extractor waveform: expected windows (k, {len(leads)} leads, samples) at {SLOWEST:g} Hz or more, "
                f"found {items.shape} at {frequency:g} Hz; choose another extractor"
            )
            raise DataError(msg)
        return np.stack([self._one(item.astype(np.float64), leads, frequency) for item in items])

    def _one(self, signal: Array, leads: Sequence[str], frequency: float) -> NDArray[np.float32]:
        good = usable(signal)
        clean = np.where(np.isfinite(signal), signal, 0.0)
        peaks = r_peaks(clean[good], frequency)
        beat = median_beat(clean[good], peaks, frequency)
        rows = {leads[row]: k for k, row in enumerate(np.flatnonzero(good).tolist())}
        spectra = _spectra(clean, frequency)
        parts: list[Sequence[float] | Array] = [
            _rhythm(peaks, frequency),
            _intervals(beat, peaks, rows, frequency),
            _quality(beat, good),
        ]
        for slot in SLOTS:
            name = slot if slot != "other" else next((lead for lead in leads if lead not in LEADS), "")
            parts.append(_lead(beat, rows, name, frequency))
            parts.append(spectra[leads.index(name)] if name in leads and name in rows else [0.0] * len(_SPECTRUM))
        parts.append(self._responses(clean, good, leads, frequency))
        out = np.concatenate([np.asarray(part, np.float64) for part in parts])
        bounded = np.clip(np.nan_to_num(out, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)
        return np.asarray(bounded, dtype=np.float32)

    def _responses(
        self, signal: Array, good: NDArray[np.bool_], leads: Sequence[str], frequency: float
    ) -> NDArray[np.float64]:
        out = np.zeros(2 * self.convolutions)
        if not good.any() or not self.convolutions:
            return out
        order = [leads.index(name) for name in ("II", "V5", "I", "V2") if name in leads]
        row = next((k for k in order if good[k]), int(np.flatnonzero(good)[0]))
        samples = round(signal.shape[1] / frequency * _RATE)
        sos = sp.butter(2, [0.5, min(40.0, 0.45 * frequency)], "bandpass", fs=frequency, output="sos")
        smooth = sp.sosfiltfilt(sos, signal[row], padlen=min(signal.shape[1] - 1, round(frequency)))
        line = np.interp(np.arange(samples) / _RATE, np.arange(len(smooth)) / frequency, smooth)
        line = (line - line.mean()) / max(float(line.std()), 1e-6)
        for k, (kernel, dilation) in enumerate(zip(self._kernels, self._dilations.tolist(), strict=True)):
            reach = (_TAPS - 1) * dilation
            padded = np.pad(line, reach // 2)
            response = sum(w * padded[j * dilation : j * dilation + samples] for j, w in enumerate(kernel.tolist()))
            response = np.asarray(response)[:samples] + self._biases[k]
            out[2 * k], out[2 * k + 1] = (response.max(), (response > 0).mean()) if response.size else (0.0, 0.0)
        return out


def _rhythm(peaks: NDArray[np.int64], frequency: float) -> list[float]:
    intervals = np.diff(peaks) / frequency
    if intervals.size < 2:
        return [0.0] * (len(_RHYTHM) - 1) + [float(len(peaks))]
    middle = float(np.median(intervals))
    rmssd = float(np.sqrt((np.diff(intervals) ** 2).mean()))
    ratio = float(intervals.max() / max(intervals.min(), 1e-3))
    return [60 / middle, middle, float(intervals.std()), rmssd, ratio, 1.0, float(len(peaks))]


def _intervals(beat: Beat | None, peaks: NDArray[np.int64], rows: Mapping[str, int], frequency: float) -> list[float]:
    if beat is None:
        return [0.0] * len(_INTERVALS)
    ms = 1000 / frequency
    qrs = (beat.offset - beat.onset) * ms
    pr = (beat.onset - beat.p_onset) * ms if beat.p_onset >= 0 else 0.0
    qt = (beat.t_end - beat.onset) * ms if beat.t_end >= 0 else 0.0
    found = [pr, float(pr > 0), qrs, float(20 < qrs < 280)]
    if qt and len(peaks) > 1:
        rr = float(np.median(np.diff(peaks))) / frequency
        found += [qt, qt / rr**0.5, qt / rr ** (1 / 3), 1.0]
    else:
        found += [0.0] * 4
    found += _axis(beat, rows, slice(beat.onset, beat.offset + 1))
    half = round(0.06 * frequency)
    found += _axis(beat, rows, slice(beat.t_peak - half, beat.t_peak + half + 1)) if beat.t_peak > half else [0.0] * 3
    return found


def _axis(beat: Beat, rows: Mapping[str, int], span: slice) -> list[float]:
    """Direction of the mean vector in the frontal plane, from the areas in two limb leads; clockwise from lead I."""
    area = {name: float(beat.lead[row, span].sum()) for name, row in rows.items()}
    if "I" not in area or not area.keys() & {"aVF", "II"}:
        return [0.0] * 3
    down = area["aVF"] if "aVF" in area else area["II"] - area["I"] / 2
    x, y = area["I"], down * 2 / 3**0.5
    length = float(np.hypot(x, y))
    return [x / length, y / length, 1.0] if length > 0.02 else [0.0] * 3


def _quality(beat: Beat | None, good: NDArray[np.bool_]) -> list[float]:
    if beat is None:
        return [float(good.sum()), 0.0, 0.0]
    height = np.ptp(beat.lead, axis=1)
    agreement = float(np.mean(height / (height + 4 * beat.noise + 1e-9)))
    return [float(good.sum()), agreement, float(np.median(beat.noise))]


def _lead(beat: Beat | None, rows: Mapping[str, int], name: str, frequency: float) -> list[float]:
    """Amplitudes in mV over the level before the QRS; S after R, Q before it, ST 60 ms after the J point."""
    if name not in rows:
        return [0.0] * len(_LEAD)
    if beat is None:
        return [1.0] + [0.0] * (len(_LEAD) - 1)
    line = beat.lead[rows[name]]
    qrs = line[beat.onset : beat.offset + 1]
    q, r, s = _qrs_waves(qrs)
    p = float(line[beat.p_peak]) if beat.p_peak >= 0 else 0.0
    t = float(line[beat.t_peak]) if beat.t_peak >= 0 else 0.0
    at, half = beat.offset + round(0.06 * frequency), max(1, round(0.01 * frequency))
    st = float(line[at - half : at + half + 1].mean()) if at + half < len(line) else 0.0
    area = float(qrs.sum()) * 1000 / frequency
    return [1.0, 1.0, p, q, r, s, st, t, area]


def _qrs_waves(qrs: Array) -> tuple[float, float, float]:
    """Q, R and S in mV; R is the highest summit inside, and a complex without one is all Q."""
    summits, _ = sp.find_peaks(qrs, height=0.02)
    if not summits.size:
        return min(0.0, float(qrs.min(initial=0.0))), 0.0, 0.0
    top = int(summits[qrs[summits].argmax()])
    return min(0.0, float(qrs[:top].min(initial=0.0))), float(qrs[top]), min(0.0, float(qrs[top:].min(initial=0.0)))


def _spectra(signal: Array, frequency: float) -> list[list[float]]:
    """Of each lead: log10 of its power over 0.5 Hz in mV^2, and the shares of four bands."""
    window = np.hanning(signal.shape[1])
    centred = signal - signal.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred * window, axis=1)) ** 2 / max(float((window**2).sum()) * signal.shape[1], 1e-9)
    hertz = np.fft.rfftfreq(signal.shape[1], 1 / frequency)
    total = power[:, hertz >= 0.5].sum(axis=1)
    shares = [power[:, (hertz >= low) & (hertz < high)].sum(axis=1) / np.maximum(total, 1e-12) for low, high in _BANDS]
    return [[float(np.log10(total[row] + 1e-9)), *(float(s[row]) for s in shares)] for row in range(len(signal))]
