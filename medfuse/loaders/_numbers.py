"""Decimal text to float64 for large tables: one pass over the bytes, every number as Python's float reads it.

A decimal m x 10^e with an integer m below 2^64 and |e| <= 22 is rounded once, from a quotient or product that is known
to about 104 bits (error-free transformations of Dekker 1971, Numerische Mathematik 18:224-242, sections 5-6); what has
more digits, a larger exponent, or lies too near the middle of two numbers is left to Python's float.
"""

import numba
import numpy as np
from numpy.typing import NDArray

_POWERS = np.array([float(10**k) for k in range(23)])  # exact: 10^22 < 2^53 x 2^22
_DOT, _MINUS, _PLUS, _QUOTE, _BLANK, _NEWLINE, _RETURN = 46, 45, 43, 34, 32, 10, 13
OK, MISSING, BAD, HARD = 0, 1, 2, 3  # what became of a cell
LONG_ROW, OPEN_QUOTE, FULL = 1, 2, 3  # why a scan stopped


@numba.njit(cache=True, nogil=True)
def _scaled(mantissa: int, exponent: int) -> tuple[float, bool]:
    """Mantissa x 10^exponent rounded to nearest, and whether that is certain."""
    high = np.float64(mantissa)
    if high >= 1.8e19:
        return 0.0, False
    if mantissa <= 9007199254740992:  # both factors are exact: one operation rounds once
        if exponent >= 0:
            return high * _POWERS[exponent], True
        return high / _POWERS[-exponent], True
    if exponent > 0:
        return 0.0, False
    whole = np.uint64(high)
    low = np.float64(mantissa - whole) if mantissa >= whole else -np.float64(whole - mantissa)
    if exponent == 0:
        return high, True
    power = _POWERS[-exponent]
    quotient = high / power
    product = quotient * power
    split = 134217729.0  # 2^27 + 1
    a = quotient * split
    a_high = a - (a - quotient)
    a_low = quotient - a_high
    b = power * split
    b_high = b - (b - power)
    b_low = power - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    rest = (((high - product) - error) + low) / power
    result = quotient + rest
    lost = rest - (result - quotient)
    half = 0.5 * np.spacing(abs(result))
    return result, abs(abs(lost) - half) > half * 1e-6 and abs(abs(lost) - 0.5 * half) > half * 1e-6


@numba.njit(cache=True, nogil=True)
def _exponent(text: NDArray[np.uint8], at: int, end: int) -> tuple[int, bool]:
    """What stands behind the digits: e, a sign, digits; and whether it is that."""
    if text[at] != 101 and text[at] != 69:
        return 0, False
    at += 1
    sign = 1
    if at < end and (text[at] == _MINUS or text[at] == _PLUS):
        sign = -1 if text[at] == _MINUS else 1
        at += 1
    power = 0
    first = at
    while at < end and 48 <= text[at] <= 57 and power < 10000:
        power = power * 10 + (int(text[at]) - 48)
        at += 1
    return sign * power, at == end and at > first


@numba.njit(cache=True, nogil=True)
def _number(  # noqa: C901  # one pass, compiled
    text: NDArray[np.uint8], start: int, end: int, missing: NDArray[np.uint64]
) -> tuple[float, int]:
    """The cell ``text[start:end]`` as a number, and what became of it."""
    if end - start <= 8:
        packed = np.uint64(0)
        for k in range(start, end):
            packed = (packed << np.uint64(8)) | np.uint64(text[k])
        packed = packed | (np.uint64(end - start) << np.uint64(60))
        if end - start <= 4:
            for code in missing:
                if packed == code:
                    return np.nan, MISSING
    while start < end and text[start] == _BLANK:
        start += 1
    while end > start and text[end - 1] == _BLANK:
        end -= 1
    at = start
    negative = False
    if at < end and (text[at] == _MINUS or text[at] == _PLUS):
        negative = text[at] == _MINUS
        at += 1
    mantissa = np.uint64(0)
    digits = 0
    seen = False
    exponent = 0
    point = False
    while at < end:
        byte = text[at]
        if 48 <= byte <= 57:
            seen = True
            if digits < 19:
                mantissa = mantissa * np.uint64(10) + np.uint64(byte - 48)
                if mantissa > np.uint64(0):
                    digits += 1
                if point:
                    exponent -= 1
            else:
                return 0.0, HARD
        elif byte == _DOT and not point:
            point = True
        else:
            break
        at += 1
    if not seen:
        return 0.0, BAD
    if at < end:
        power, sound = _exponent(text, at, end)
        if not sound:
            return 0.0, BAD
        exponent += power
    if mantissa == np.uint64(0):
        return (-0.0 if negative else 0.0), OK
    if exponent < -22 or exponent > 22:
        return 0.0, HARD
    value, certain = _scaled(mantissa, exponent)
    return (-value if negative else value), (OK if certain else HARD)


@numba.njit(cache=True, nogil=True)
def _plain(text: NDArray[np.uint8], at: int, separator: int) -> tuple[float, int]:
    """Value, rounded once, and end of a cell of up to 15 digits, perhaps with a minus and a point.

    The end is -1 for every other cell, and for one at the end of the text.
    """
    negative = text[at] == _MINUS
    first = at + 1 if negative else at
    mantissa, point, at = 0, -1, first
    last = min(len(text), first + 17)
    while at < last:
        byte = text[at]
        if 48 <= byte <= 57:
            mantissa = mantissa * 10 + (int(byte) - 48)
        elif byte == _DOT and point < 0:
            point = at
        else:
            break
        at += 1
    digits = at - first - (1 if point >= 0 else 0)
    if at == last or not 0 < digits <= 15 or (text[at] != separator and text[at] != _NEWLINE):
        return 0.0, -1
    value = np.float64(mantissa)
    if point >= 0:
        value /= _POWERS[at - point - 1]
    return (-value if negative else value), at


@numba.njit(cache=True, nogil=True)
def scan(  # noqa: C901  # one pass; a quoted cell by a function of its own costs 1.6 times
    text: NDArray[np.uint8],
    separator: int,
    action: NDArray[np.int64],
    out: NDArray[np.float64],
    spans: NDArray[np.int64],
    missing: NDArray[np.uint64],
    odd: NDArray[np.int64],
) -> tuple[int, int, int, int, int]:
    """Read rows of cells.

    Args:
        text: (bytes,) of the rows.
        separator: byte between cells.
        action: (C,) per cell: -1 skip, k >= 0 a number for column k of ``out``, -2 - k a text for span k.
        out: (rows, numbers), filled.
        spans: (rows, texts, 2) first byte and end of each text cell, quotes included, filled.
        missing: packed codes of a missing cell.
        odd: (capacity, 5) row, column of ``out``, first byte, end, BAD or HARD of cells to look at again, filled.

    Returns:
        Rows, odd cells, rows with fewer cells, the first of them, and why it stopped (0: at the end).
    """
    size, cells = len(text), len(action)
    at, row, n_odd, n_short, first_short = 0, 0, 0, 0, -1
    while at < size:
        if text[at] == _NEWLINE or text[at] == _RETURN:  # the end of a row, or a blank line
            at += 1
            continue
        cell = 0
        if row >= len(out):
            return row, n_odd, n_short, first_short, FULL
        while True:
            begin = at
            if cell < cells and action[cell] >= 0 and at < size:
                value, end = _plain(text, at, separator)
                if end >= 0:
                    out[row, action[cell]] = value
                    cell, at = cell + 1, end
                    if text[at] == _NEWLINE:
                        break
                    at += 1
                    continue
            quoted = at < size and text[at] == _QUOTE
            if quoted:
                at += 1
                while at < size and (text[at] != _QUOTE or (at + 1 < size and text[at + 1] == _QUOTE)):
                    at += 2 if text[at] == _QUOTE else 1
                at += 1
                if at > size or (at < size and text[at] not in (separator, _NEWLINE, _RETURN)):
                    return row, n_odd, n_short, first_short, OPEN_QUOTE
            else:
                while at < size and text[at] != separator and text[at] != _NEWLINE:
                    at += 1
            end = at
            last = at >= size or text[at] != separator
            if last and not quoted and end > begin and text[end - 1] == _RETURN:
                end -= 1
            if cell >= cells:
                return row, n_odd, n_short, first_short, LONG_ROW
            do = action[cell]
            if do >= 0:
                inner = 1 if quoted else 0
                value, status = _number(text, begin + inner, end - inner, missing)
                out[row, do] = value
                if status >= BAD:
                    if n_odd == len(odd):
                        return row, n_odd, n_short, first_short, FULL
                    odd[n_odd] = (row, do, begin + inner, end - inner, status)
                    n_odd += 1
            elif do < -1:
                spans[row, -2 - do, 0], spans[row, -2 - do, 1] = begin, end
            cell += 1
            if last:
                break
            at += 1
        if cell < cells:
            first_short = row if n_short == 0 else first_short
            n_short += 1
        row += 1
    return row, n_odd, n_short, first_short, 0


def pack(codes: frozenset[str]) -> NDArray[np.uint64]:
    """Codes of at most four ASCII characters as the numbers that :func:`scan` compares with."""
    packed = []
    for code in sorted(codes):
        value = int.from_bytes(code.encode(), "big")
        packed.append(value | len(code) << 60)
    return np.array(packed, dtype=np.uint64)
