"""Samples of Philips Sierra XML: base64 of 16-bit samples, or of XLI blocks.

An XLI block of a lead is LZW (codes of 10 bits) over the upper and then the lower bytes of 16-bit second differences;
of the limb leads beyond I and II, what is stored is the difference to what Einthoven and Goldberger predict. What is
read is checked against the representative beats and the measurements of the same documents (tests).
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfuse.loaders._ecg_common import refuse

_BITS, _END = 10, 1023
_PREDICTED = ("I", "II", "III", "aVR", "aVL", "aVF")


def sierra_samples(path: Path, text: str, names: Sequence[str], samples: int, *, packed: bool) -> NDArray[np.int32]:
    """Codes of all leads, (leads, samples).

    Raises:
        DataError: damaged or cut.
    """
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise refuse(path, "base64", "other text", "copy the file again") from error
    if not packed:
        if len(content) != len(names) * samples * 2:
            raise refuse(path, f"{len(names) * samples * 2} bytes", f"{len(content)}", "copy the file again")
        return np.frombuffer(content, "<i2").reshape(len(names), samples).astype(np.int32)
    out = np.empty((len(names), samples), np.int32)
    at = 0
    for row in range(len(names)):
        size = int.from_bytes(content[at : at + 4], "little")
        block = content[at + 8 : at + 8 + size]
        if len(content) < at + 8 or len(block) != size:
            raise refuse(path, f"{len(names)} whole XLI blocks", f"{row}", "copy the file again")
        start = int.from_bytes(content[at + 6 : at + 8], "little", signed=True)
        raw = _inflated(block[: 3 * samples], most=2 * samples)
        if len(raw) < 2 * samples:
            raise refuse(path, f"{samples} samples in XLI block {row + 1}", f"{len(raw) // 2}", "copy the file again")
        out[row] = _summed(raw, start)
        at += 8 + size
    return _predicted(out, names)


def _inflated(block: bytes, *, most: int) -> bytes:
    """LZW with codes of a fixed width, most significant bit first; never more than ``most`` bytes."""
    table: list[bytes] = [bytes([k]) for k in range(256)]
    bits = np.unpackbits(np.frombuffer(block, np.uint8))
    codes = bits[: len(bits) // _BITS * _BITS].reshape(-1, _BITS) @ (1 << np.arange(_BITS)[::-1])
    out = bytearray()
    last = b""
    for code in codes.tolist():
        if code == _END or len(out) >= most:
            break
        if code < len(table):
            entry = table[code]
        elif code == len(table) and last:
            entry = last + last[:1]
        else:
            break  # damage: the caller sees too few bytes
        out += entry
        if last and len(table) < _END:
            table.append(last + entry[:1])
        last = entry
    return bytes(out[:most])


def _summed(raw: bytes, start: int) -> NDArray[np.int32]:
    """Second differences, less 64, of all samples but the first two; the first correction is in the block's header."""
    half = len(raw) // 2
    upper, lower = np.frombuffer(raw[:half], np.uint8), np.frombuffer(raw[half : 2 * half], np.uint8)
    codes = (upper.astype(np.uint16) << 8 | lower).astype(np.int16).astype(np.int64)
    if half < 3:
        return codes.astype(np.int32)
    second = -np.concatenate([[start], codes[2:-1] - 64])
    slope = np.cumsum(second) + codes[1] - codes[0]
    out = np.concatenate([codes[:2], codes[1] + np.cumsum(slope)])
    return np.asarray(out, dtype=np.int64).astype(np.int32)


def _predicted(codes: NDArray[np.int32], names: Sequence[str]) -> NDArray[np.int32]:
    if tuple(names[:6]) != _PREDICTED:
        return codes
    first, second = codes[0], codes[1]
    codes[2] = second - first - codes[2]
    codes[3] = -codes[3] - (first + second) // 2
    codes[4] = (first - codes[2]) // 2 - codes[4]
    codes[5] = (second + codes[2]) // 2 - codes[5]
    return codes
