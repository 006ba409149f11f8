"""Samples of the WFDB signal formats, vectorised.

References:
    Moody, WFDB Applications Guide, signal(5): formats 8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfuse.loaders._ecg_common import refuse

# format -> samples and bytes of a block, and the code that means "no sample"
BLOCKS = {8: (1, 1), 16: (1, 2), 24: (1, 3), 32: (1, 4), 61: (1, 2), 80: (1, 1), 160: (1, 2)}
BLOCKS |= {212: (2, 3), 310: (3, 4), 311: (3, 4)}
FLAC = {508: 8, 516: 16, 524: 24}  # bits per sample
MISSING = {16: -(1 << 15), 24: -(1 << 23), 32: -(1 << 31), 61: -(1 << 15), 80: -128, 160: -(1 << 15), 212: -2048}
MISSING |= {310: -512, 311: -512, 508: -128, 516: -(1 << 15), 524: -(1 << 23)}


def bytes_of(fmt: int, samples: int) -> int:
    """Bytes that hold so many samples, the last block perhaps cut."""
    per, size = BLOCKS[fmt]
    whole, rest = divmod(samples, per)
    tail = {212: (0, 2), 310: (0, 2, 4), 311: (0, 2, 3)}.get(fmt, (0,))
    return whole * size + tail[rest]


def samples_in(fmt: int, size: int) -> int:
    """Whole samples that fit into so many bytes."""
    per, block = BLOCKS[fmt]
    found = size // block * per
    while bytes_of(fmt, found + 1) <= size:
        found += 1
    return found


def read_samples(path: Path, fmt: int, *, offset: int, start: int, stop: int) -> NDArray[np.signedinteger]:
    """Samples ``start`` to ``stop`` of a signal file, in file order; format 8 as the differences that it stores."""
    per, size = BLOCKS[fmt]
    first = start // per
    begin, end = first * size, bytes_of(fmt, stop)
    with path.open("rb", buffering=0) as file:
        if offset + begin:
            file.seek(offset + begin)
        content = file.read(end - begin)
    if len(content) != end - begin:
        raise refuse(path, f"{end - begin} bytes at {offset + begin}", str(len(content)), "copy the record again")
    return _decode(fmt, content)[start - first * per : stop - first * per]


def _decode(fmt: int, content: bytes) -> NDArray[np.signedinteger]:  # noqa: C901  # one branch per format
    if fmt == 16:
        return np.frombuffer(content, "<i2")
    if fmt == 212:
        return _decode212(content)
    if fmt == 61:
        return np.frombuffer(content, ">i2").astype(np.int16)
    if fmt == 8:
        return np.frombuffer(content, np.int8)
    if fmt == 80:
        return (np.frombuffer(content, np.uint8) ^ 0x80).view(np.int8)
    if fmt == 160:
        return (np.frombuffer(content, "<u2") ^ 0x8000).astype("<u2").view("<i2")
    if fmt == 32:
        return np.frombuffer(content, "<i4")
    if fmt == 24:
        raw = np.frombuffer(content, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(raw), 4), np.uint8)
        wide[:, 1:] = raw
        return wide.view("<i4")[:, 0] >> 8
    words = np.frombuffer(content + b"\0" * (-len(content) % 4), "<u4")
    out = np.empty((len(words), 3), np.int16)
    if fmt == 311:  # three samples in the lower 30 bits
        for k in range(3):
            out[:, k] = (words >> (10 * k)).astype(np.uint16) << 6
    else:  # 310: bits 1-10 of each half, and the upper five bits of both halves
        out[:, 0] = (words >> 1).astype(np.uint16) << 6
        out[:, 1] = (words >> 17).astype(np.uint16) << 6
        out[:, 2] = ((words >> 11) & 31 | (words >> 22) & 0x3E0).astype(np.uint16) << 6
    return (out >> 6).reshape(-1)


def _decode212(content: bytes) -> NDArray[np.signedinteger]:
    """Two 12-bit samples in three bytes: the middle byte holds the upper four bits of both."""
    raw = np.frombuffer(content + b"\0" * (-len(content) % 3), np.uint8).reshape(-1, 3)
    out = np.empty((len(raw), 2), np.int16)
    middle = raw[:, 1].astype(np.int16)
    np.left_shift(middle, 12, out=out[:, 0])
    out[:, 0] |= raw[:, 0].astype(np.int16) << 4
    np.left_shift(middle & 0xF0, 8, out=out[:, 1])
    out[:, 1] |= raw[:, 2].astype(np.int16) << 4
    out >>= 4
    return out.reshape(-1)


def check_flac(path: Path, fmt: int, *, signals: int, samples: int) -> int:
    """Samples per signal of a FLAC file, from its first 42 bytes.

    Raises:
        DataError: no FLAC, or another number of signals, of bits or (``samples`` > 0) fewer samples than declared.
    """
    with path.open("rb") as file:
        head = file.read(42)
    if len(head) < 42 or head[:4] != b"fLaC":
        raise refuse(path, "a FLAC file", "none", "copy the record again")
    packed = int.from_bytes(head[18:26], "big")  # STREAMINFO: rate 20, channels - 1 3, bits - 1 5, samples 36 bits
    channels, bits, total = (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & (1 << 36) - 1
    if channels != signals or bits > FLAC[fmt] or total < samples:
        found = f"{channels} of {bits} bits and {total} samples"
        raise refuse(
            path, f"{signals} signals of {FLAC[fmt]} bits and {samples} samples", found, "copy the record again"
        )
    return total


def read_flac(path: Path, *, start: int, stop: int) -> NDArray[np.signedinteger]:
    """Samples ``start`` to ``stop`` of all signals, (samples, signals).

    Raises:
        DataError: damaged.
    """
    import soundfile  # libsndfile, loaded where it is needed

    try:
        with soundfile.SoundFile(path) as file:
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[file.subtype]
            file.seek(start)
            found = file.read(stop - start, dtype="int16" if bits == 16 else "int32", always_2d=True)
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise refuse(path, "whole FLAC frames", type(error).__name__, "copy the record again") from error
    if len(found) != stop - start:
        raise refuse(path, f"samples {start} to {stop}", f"{len(found)} of them", "copy the record again")
    shift = 0 if bits == 16 else 32 - bits
    return np.asarray(found >> shift)


def physical(
    digital: NDArray[np.signedinteger], *, gain: float, baseline: float, scale: float, missing: int | None
) -> NDArray[np.float32]:
    """``(digital - baseline) / gain * scale`` rounded once to float32; NaN where there is no sample."""
    exact = abs(baseline) < 1 << 22 and digital.dtype.itemsize < 4 and float(np.float32(gain)) == gain and scale == 1
    if exact:  # every operand is exact in float32, so that its division rounds as the one in float64 would
        out = digital.astype(np.float32)
        if baseline:
            out -= np.float32(baseline)
        out /= np.float32(gain)
    else:
        out = ((digital - np.float64(baseline)) / (gain / scale)).astype(np.float32)
    if missing is not None:
        absent = digital == missing
        if absent.any():
            out[absent] = math.nan
    return out
