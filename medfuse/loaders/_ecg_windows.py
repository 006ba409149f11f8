"""Windows of a recording: filtered and resampled only where the card says so, gaps refused or set to zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError
from medfuse.loaders._ecg_common import Recording

MOST_WINDOWS = 1_000_000
LARGEST_WINDOW = 256 << 20  # bytes
CONTEXT = 5.0  # seconds of the recording on each side of a window that a filter sees


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How windows are cut.

    Attributes:
        rows: channels of the recording, in the order of the leads.
        frequency, target: of the files and of the windows, Hz.
        up, down: target / frequency.
        length: samples of a window, at ``target``.
        starts: first sample of each window, at ``target``.
        bandpass, notch: Hz, or None.
        zero: gaps become 0 mV; else they are refused.
    """

    rows: tuple[int, ...]
    frequency: float
    target: float
    up: int
    down: int
    length: int
    starts: NDArray[np.int64]
    bandpass: tuple[float, float] | None
    notch: float | None
    zero: bool

    @property
    def plain(self) -> bool:
        """Whether samples are used as they are stored."""
        return self.up == self.down and self.bandpass is None and self.notch is None


def ratio(frequency: float, target: float) -> tuple[int, int]:
    """Up- and downsampling factors of a polyphase filter.

    Raises:
        ConfigError: no factors up to 10,000 give the frequency to one part in a million.
    """
    found = (Fraction(target) / Fraction(frequency)).limit_denominator(10_000)
    if found.numerator > 10_000 or not found or abs(found * Fraction(frequency) / Fraction(target) - 1) > 1e-6:
        msg = f"sampling_frequency: expected a simple ratio to the recording's {frequency:g} Hz, found {target:g} Hz"
        raise ConfigError(msg)
    return found.numerator, found.denominator


def starts_of(samples: int, length: int, stride: int) -> NDArray[np.int64]:
    """First samples of windows that together hold all: the last one ends with the recording.

    >>> starts_of(25, 10, 10).tolist()
    [0, 10, 15]
    """
    count = (samples - length) // stride + 1
    last = samples - length
    if count >= MOST_WINDOWS:
        msg = f"windows: expected at most {MOST_WINDOWS}, found {count}; raise seconds or stride"
        raise DataError(msg)
    starts = np.arange(count, dtype=np.int64) * stride
    return starts if starts[-1] == last else np.append(starts, last)


def window(recording: Recording, plan: Plan, number: int) -> NDArray[np.float32]:
    """One window, (leads, samples) float32 in mV.

    Raises:
        DataError: it has a gap, and gaps are refused.
    """
    start = int(plan.starts[number])
    if plan.plain:
        found = recording.load(plan.rows, start, start + plan.length)
        return _closed(found, plan, start)
    samples = recording.channels[plan.rows[0]].samples
    first = start * plan.down // plan.up
    last = min(samples, -(-(start + plan.length) * plan.down // plan.up))
    margin = round(CONTEXT * plan.frequency)
    begin = max(0, first - margin) // plan.down * plan.down  # a multiple, so that resampled samples keep their times
    found = recording.load(plan.rows, begin, min(samples, last + margin))
    absent = np.isnan(found)
    if absent[:, first - begin : last - begin].any() and not plan.zero:
        raise _gap(plan, start)
    found = np.where(absent, np.float32(0), found)
    done = _resampled(_filtered(found, plan), plan)[:, start - begin * plan.up // plan.down :][:, : plan.length]
    if done.shape[1] < plan.length:  # the last sample of a recording may round away
        done = np.pad(done, ((0, 0), (0, plan.length - done.shape[1])), mode="edge")
    if absent.any():
        nearest = (np.arange(plan.length) + start) * plan.down // plan.up - begin
        done[absent[:, np.minimum(nearest, absent.shape[1] - 1)]] = 0
    return done


def _closed(found: NDArray[np.float32], plan: Plan, start: int) -> NDArray[np.float32]:
    if not np.isfinite(np.dot(found.reshape(-1), found.reshape(-1))):  # NaN, without an array of flags
        absent = np.isnan(found)
        if absent.any() and not plan.zero:
            raise _gap(plan, start)
        found[absent] = 0
        if not np.isfinite(found).all():
            msg = "ECG: expected finite samples, found infinity; copy the recording again"
            raise DataError(msg)
    return found


def _gap(plan: Plan, start: int) -> DataError:
    return DataError(
        f"ECG window at {start / plan.target:g} s: expected samples throughout, found missing ones; "
        "set gaps: zero in the options to read them as 0 mV, or leave the recording out"
    )


def _filtered(signal: NDArray[np.float32], plan: Plan) -> NDArray[np.float64]:
    """Forward and backward (no shift of phase): Butterworth band-pass of order 2 twice, notch with Q = 30."""
    from scipy import signal as sp  # half a second to import, and not needed for windows as they are stored

    out = signal.astype(np.float64)
    sections = []
    if plan.bandpass is not None:
        sections.append(sp.butter(2, plan.bandpass, "bandpass", fs=plan.frequency, output="sos"))
    if plan.notch is not None:
        sections.append(sp.tf2sos(*sp.iirnotch(plan.notch, 30.0, fs=plan.frequency)))
    for sos in sections:
        pad = min(out.shape[1] - 1, 3 * (2 * len(sos) + 1) + round(plan.frequency))
        out = np.asarray(sp.sosfiltfilt(sos, out, axis=1, padlen=pad))
    return out


def _resampled(signal: NDArray[np.float64], plan: Plan) -> NDArray[np.float32]:
    if plan.up != plan.down:
        from scipy import signal as sp

        signal = np.asarray(sp.resample_poly(signal, plan.up, plan.down, axis=1, padtype="line"))
    return signal.astype(np.float32)


def windows(
    recording: Recording, plan: Plan, numbers: Sequence[int], ready: list[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Windows by number, (k, leads, samples); ``ready`` holds window 0 until it is first asked for."""
    if len(numbers) == 1:
        return (ready.pop() if ready and numbers[0] == 0 else window(recording, plan, int(numbers[0])))[None]
    out = np.empty((len(numbers), len(plan.rows), plan.length), np.float32)
    for place, number in enumerate(numbers):
        out[place] = ready.pop() if ready and number == 0 else window(recording, plan, int(number))
    return out
