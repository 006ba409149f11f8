"""EDF, EDF+ and BDF recordings.

References:
    Kemp et al. (1992), A simple format for exchange of digitized polygraphic recordings; Kemp & Olivan (2003), EDF+.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfuse.loaders._ecg_common import LOWEST16, Channel, Recording, channels_of, millivolts, refuse
from medfuse.loaders.base import Identifying

_FIELDS: tuple[tuple[str, int], ...] = (
    ("label", 16),
    ("transducer", 80),
    ("unit", 8),
    ("low", 8),
    ("high", 8),
    ("lowest", 8),
    ("highest", 8),
)
_FIELDS += (("filter", 80), ("samples", 8), ("reserved", 32))


class _Signal(NamedTuple):
    label: str
    unit: str
    factor: float  # unit per code
    offset: float  # unit at code 0
    samples: int  # in a data record
    before: int  # samples of other signals before it in a data record


class _Edf(NamedTuple):
    path: Path
    width: int  # bytes of a sample
    head: int  # bytes
    record: int  # samples
    records: int
    seconds: float  # of a record
    signals: tuple[_Signal, ...]
    warnings: tuple[str, ...]


def recognise(start: bytes) -> bool:
    """EDF's version 0 with a number of signals, or BDF's mark."""
    mark = start[:8] == b"0       " or start[:8] == b"\xffBIOSEMI"
    return mark and len(start) >= 256 and start[252:256].strip().isdigit()


def _numbers(path: Path, words: Sequence[bytes], what: str) -> list[float]:
    found = []
    for word in words:
        try:
            found.append(float(word.decode("ascii").strip().replace(",", ".")))
        except (UnicodeDecodeError, ValueError):
            found.append(math.nan)
    if not all(map(math.isfinite, found)):
        raise refuse(path, f"numbers as {what}", "other text", "copy the file again, or repair its header")
    return found


def _header(path: Path) -> _Edf:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(256)
        if not recognise(first):
            raise refuse(path, "an EDF or BDF header", "none", "is it the right file, and whole?")
        (count,) = _numbers(path, [first[252:256]], "number of signals")
        content = file.read(int(count) * 256)
    if not 0 < count <= 1024 or len(content) < count * 256:
        raise refuse(path, f"headers of {count:g} signals", f"{len(content)} bytes", "copy the file again")
    if first[192:236].startswith((b"EDF+D", b"BDF+D")):
        raise refuse(path, "a continuous recording", "EDF+D, with interruptions", "export its pieces as EDF+C")
    fields, at = {}, 0
    for name, width in _FIELDS:
        fields[name] = [content[at + k * width : at + (k + 1) * width] for k in range(int(count))]
        at += int(count) * width
    records, seconds = _numbers(path, [first[236:244], first[244:252]], "number and seconds of data records")
    samples = [int(n) for n in _numbers(path, fields["samples"], "samples of a data record")]
    width = 3 if first[0] == 0xFF else 2
    if min(samples) < 0 or not 0 < sum(samples) <= 1 << 24 or seconds < 0 or max(samples) > seconds * 1e7 > 0:
        raise refuse(path, "data records of a positive length", "another", "copy the file again")
    records, notes = _records(path, size - 256 * (int(count) + 1), int(records), width * sum(samples))
    signals, before = [], 0
    for k, number in enumerate(samples):
        label = fields["label"][k].decode("latin-1").strip()
        if label not in {"EDF Annotations", "BDF Annotations", "Status"} and number:
            signals.append(_signal(path, fields, k, label, number, before))
        before += number
    return _Edf(path, width, 256 * (int(count) + 1), before, records, seconds, tuple(signals), tuple(notes))


def _records(path: Path, size: int, declared: int, width: int) -> tuple[int, list[str]]:
    """Data records, checked against the size of the file."""
    stored = max(size, 0) // width
    if declared == -1:
        return stored, ["the number of data records is not in the header (the recording was not closed); all are read"]
    if not 0 < declared <= stored:
        raise refuse(path, f"{declared} data records", f"{stored}", "the file is cut: copy it again")
    return declared, []


def _signal(path: Path, fields: dict[str, list[bytes]], k: int, label: str, samples: int, before: int) -> _Signal:
    words = [fields[name][k] for name in ("low", "high", "lowest", "highest")]
    low, high, lowest, highest = _numbers(path, words, "physical and digital ranges")
    if highest <= lowest or high == low:
        raise refuse(path, f"a range of signal {k + 1}", "none", "the signal is not calibrated: repair its header")
    factor = (high - low) / (highest - lowest)
    unit = fields["unit"][k].decode("latin-1").strip()
    return _Signal(label, unit, factor, low - lowest * factor, samples, before)


def open_edf(path: Path) -> Recording:
    """The signals of a file; those of annotations are left out.

    Raises:
        DataError: damaged, cut, without signals, or with interruptions.
    """
    edf = _header(path)
    if not edf.signals or not edf.seconds:
        do = "it holds annotations alone: leave it out, or name the file with the signals"
        raise refuse(path, "signals", "none", do)
    channels, more = channels_of(
        [s.label for s in edf.signals],
        [s.unit for s in edf.signals],
        [s.samples / edf.seconds for s in edf.signals],
        [s.samples * edf.records for s in edf.signals],
    )
    kind = "EDF recording" if edf.width == 2 else "BDF recording"
    facts = {"format": kind.split()[0], "data_record_seconds": edf.seconds}
    load = partial(_load, edf, channels)
    return Recording(kind=kind, channels=channels, load=load, facts=facts, warnings=(*edf.warnings, *more))


def _load(edf: _Edf, channels: Sequence[Channel], rows: Sequence[int], start: int, stop: int) -> NDArray[np.float32]:
    per = edf.signals[rows[0]].samples  # the rows have one sampling frequency
    first, last = start // per, -(-stop // per)
    with edf.path.open("rb") as file:
        file.seek(edf.head + first * edf.record * edf.width)
        content = file.read((last - first) * edf.record * edf.width)
    if len(content) < (last - first) * edf.record * edf.width:
        raise refuse(edf.path, f"data records {first} to {last}", "fewer", "copy the file again")
    if edf.width == 2:
        digital = np.frombuffer(content, "<i2").reshape(last - first, edf.record)
    else:
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        digital = (wide.view("<i4")[:, 0] >> 8).reshape(last - first, edf.record)
    out = np.empty((len(rows), stop - start), np.float32)
    for place, row in enumerate(rows):
        signal = edf.signals[row]
        codes = digital[:, signal.before : signal.before + per].reshape(-1)[start - first * per : stop - first * per]
        out[place] = (codes * signal.factor + signal.offset) * millivolts(signal.unit)
        if edf.width == 2:
            out[place][codes == LOWEST16] = np.nan
    return out


def identifying(path: Path) -> list[Identifying]:
    """Fields of the header that are filled; ``X`` means not given."""
    with path.open("rb") as file:
        first = file.read(256)
    found = []
    for where, kind, field in (
        ("local patient identification", "name", first[8:88]),
        ("local recording identification", "free text", first[88:168].replace(b"Startdate", b"")),
        ("startdate", "date", first[168:176].replace(b"01.01.85", b"")),
    ):
        if field.replace(b"X", b"").strip():
            found.append(Identifying(where=f"EDF header: {where}", kind=kind))
    return found
