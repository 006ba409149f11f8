"""Headers of WFDB records.

References:
    Moody, WFDB Applications Guide, header(5).
"""

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from medfuse.errors import DataError
from medfuse.loaders._ecg_common import refuse
from medfuse.loaders._ecg_decode import BLOCKS, FLAC

LARGEST_HEADER = 1 << 20
LARGEST_LENGTH = 1 << 40  # samples per signal; more is damage
MOST_SIGNALS, MOST_SEGMENTS = 1024, 20_000
_DEFAULT_GAIN, _DEFAULT_FREQUENCY = 200.0, 250.0
_GAINS = (1e-9, 1e12)  # beyond which no recorder is
_FORMAT = re.compile(r"(\d{1,9})(?:x(\d{1,9}))?(?::(\d{1,9}))?(?:\+(\d{1,18}))?$", re.ASCII)
_GAIN = re.compile(r"(-?[\d.]+(?:[eE][+-]?\d+)?)(?:\((-?\d+)\))?(?:/(\S+))?$", re.ASCII)
_NUMBER = re.compile(r"-?\d+$", re.ASCII)
_RECORD = re.compile(r"[\w.-]+(?:/\d+)?[ \t]+\d+(?:[ \t]+[\d.]|[ \t\r]*$)", re.ASCII)


class Signal(NamedTuple):
    """One signal line; ``file`` is ``~`` in a layout, gain in units per code, ``initial`` the first code."""

    file: str
    fmt: int
    per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    unit: str
    initial: int
    checksum: int | None
    name: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """One header: either signals or segments (name, frames); ``frames`` is 0 where the header gives no length."""

    path: Path
    frequency: float
    frames: int
    signals: tuple[Signal, ...] = ()
    segments: tuple[tuple[str, int], ...] | None = None
    comments: int = 0
    dated: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def layout(self) -> bool:
        """Whether it only names signals and has none itself."""
        return bool(self.signals) and all(signal.file == "~" for signal in self.signals)


def looks_like_header(start: bytes) -> bool:
    """Whether the first line that is no comment is a record line."""
    for line in start.decode("latin-1").splitlines():
        if line.strip() and not line.startswith("#"):
            return _RECORD.match(line.strip()) is not None
    return False


def read_header(path: Path) -> Header:
    """Parse a header.

    Raises:
        DataError: not a header, damaged, or larger than any real one.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise refuse(path, "a readable file", type(error).__name__, "check its path and permissions") from error
    return _parsed(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _parsed(path: Path, size: int, changed: int) -> Header:
    if size > LARGEST_HEADER:
        found = f"{size >> 10} KiB"
        raise refuse(path, f"a header of at most {LARGEST_HEADER >> 10} KiB", found, "is it the right file?")
    with path.open("rb", buffering=0) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    comments = 0
    lines: list[str] = []
    for line in text.replace("\r", "\n").split("\n"):
        if line.startswith("#"):
            comments += len(line) > 1
        elif line and not line.isspace():
            lines.append(line.split("#", 1)[0] if "#" in line and not lines else line)
    if not lines or "\0" in text or not _RECORD.match(lines[0].strip()):
        do = "is it a WFDB header, and whole?"
        raise refuse(path, "a record line (name, number of signals, frequency, length)", "none", do)
    return _header(path, lines, comments)


def _header(path: Path, lines: list[str], comments: int) -> Header:
    words = lines[0].split()
    _, multi, count = words[0].partition("/")
    warnings = []
    signals = _whole(path, words[1], "number of signals", most=MOST_SIGNALS)
    frequency = _DEFAULT_FREQUENCY
    if len(words) > 2:
        frequency = _positive(path, words[2].partition("/")[0].partition("(")[0], "sampling frequency")
    else:
        warnings.append(f"the header gives no sampling frequency; WFDB's default of {_DEFAULT_FREQUENCY:g} Hz is used")
    frames = _whole(path, words[3], "number of samples", most=LARGEST_LENGTH) if len(words) > 3 else 0
    head = Header(path=path, frequency=frequency, frames=frames, comments=comments, dated=len(words) > 4)
    wanted = _whole(path, count, "number of segments", most=MOST_SEGMENTS) if multi else signals
    if len(lines) - 1 < wanted:
        found = f"{len(lines) - 1}"
        raise refuse(path, f"{wanted} lines after the record line", found, "the header is cut: copy it again")
    if multi:
        segments = tuple(_segment(path, line) for line in lines[1 : wanted + 1])
        if frames and frames != sum(length for _, length in segments):
            raise refuse(path, f"segments of {frames} samples together", "another sum", "copy the header again")
        frames = sum(length for _, length in segments)
        return replace(head, frames=frames, segments=segments, warnings=tuple(warnings))
    parsed = tuple(_signal(path, line, warnings) for line in lines[1 : signals + 1])
    return replace(head, signals=parsed, warnings=tuple(dict.fromkeys(warnings)))


def _signal(path: Path, line: str, warnings: list[str]) -> Signal:
    words = line.split(None, 8)
    match = _FORMAT.match(words[1]) if len(words) > 1 else None
    if match is None:
        raise refuse(path, "a file name and a format in each signal line", "neither", "copy the header again")
    fmt, per_frame = int(match[1]), int(match[2] or 1)
    skew, offset = int(match[3] or 0), int(match[4] or 0)
    if (fmt and fmt not in BLOCKS and fmt not in FLAC) or not 0 < per_frame <= 10_000 or skew > 1 << 20:
        known = ", ".join(str(k) for k in sorted((*BLOCKS, *FLAC)))
        raise refuse(path, f"a signal format of {known}", words[1][:20], "convert it with WFDB's xform")
    if not _plain(words[0]):
        raise refuse(path, "signal files in the folder of the header", "another path", "put them beside the header")
    gain, baseline, unit = _gain(path, words[2] if len(words) > 2 else "", warnings)
    numbers = [int(word) if _NUMBER.match(word) and len(word) < 20 else None for word in words[3:8]]
    numbers += [None] * (5 - len(numbers))
    zero = numbers[1] or 0
    return Signal(
        file=words[0],
        fmt=fmt,
        per_frame=per_frame,
        skew=skew,
        offset=offset,
        gain=gain,
        baseline=zero if baseline is None else baseline,
        unit=unit,
        initial=zero if numbers[2] is None else numbers[2],
        checksum=numbers[3],
        name=words[8].strip() if len(words) > 8 else "",
    )


def _gain(path: Path, word: str, warnings: list[str]) -> tuple[float, int | None, str]:
    match = _GAIN.match(word) if word else None
    if word and match is None:
        raise refuse(path, "a gain such as 200(0)/mV", "another word", "copy the header again")
    gain = float(match[1]) if match and match[1].count(".") < 2 else 0.0
    baseline = int(match[2]) if match and match[2] and len(match[2]) < 20 else None
    if gain and not _GAINS[0] <= abs(gain) <= _GAINS[1]:
        raise refuse(path, "a finite gain, from 1e-9 to 1e12 codes per unit", "another", "copy the header again")
    if gain == 0:
        warnings.append(
            f"a gain of 0 or none in the header: not calibrated; WFDB's default of {_DEFAULT_GAIN:g} is used"
        )
        gain = _DEFAULT_GAIN
    return gain, baseline, (match[3] if match and match[3] else "mV")


def _plain(name: str) -> bool:
    """Whether a name stays in the folder of the header."""
    return not ("/" in name or "\\" in name or name.startswith(".") or "\0" in name)


def _segment(path: Path, line: str) -> tuple[str, int]:
    words = line.split()
    name = words[0]
    if not _plain(name):
        raise refuse(path, "segments in the folder of the header", "another path", "put them beside the header")
    return name, _whole(path, words[1] if len(words) > 1 else "", "number of samples", most=LARGEST_LENGTH)


def _whole(path: Path, word: str, what: str, *, most: int) -> int:
    number = int(word) if word.isascii() and word.isdecimal() and len(word) < 20 else -1
    if not 0 <= number <= most:
        raise refuse(path, f"a {what} from 0 to {most}", "another word", "copy the header again")
    return number


def _positive(path: Path, word: str, what: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < 1e7:
        raise refuse(path, f"a positive {what}", "another word", "copy the header again")
    return number


def header_or_none(path: Path) -> Header | None:
    """A header, or None where it cannot be parsed."""
    try:
        return read_header(path)
    except DataError:
        return None
