"""WFDB records: a header, its signal files, and segments that follow each other."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders import _ecg_decode as decode
from medfuse.loaders._ecg_common import Channel, Recording, channels_of, millivolts, refuse
from medfuse.loaders._ecg_header import Header, Signal, header_or_none, read_header

ANNOTATIONS = {"atr", "qrs", "sqrs", "gqrs", "gqrsh", "gqrsl", "wqrs", "xws", "ari", "ecg", "man", "pu0", "pu1", "q1c"}
ANNOTATIONS |= {"q2c", "qt1", "qt2", "st", "ann", "not", "apn", "hea-", "event", "marker", "jqrs", "cvs"}


class _Block(NamedTuple):
    """The signals of one file: they are stored frame by frame."""

    path: Path
    fmt: int
    offset: int
    signals: tuple[Signal, ...]
    rows: tuple[int, ...]  # their numbers in the record
    frame: int  # samples of a frame
    frames: int  # in the file


# --- which files belong together -------------------------------------------------------------------------------------


def records(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Groups of files, the header that tells the record first; files that no header names are groups of one."""
    given = {path: None for path in files}
    headers = {path: header_or_none(path) for path in files if path.suffix == ".hea"}
    inner: set[Path] = set()
    parts: dict[Path, list[Path]] = {}
    for path, header in headers.items():
        parts[path] = _named_by(path, header, given)
        if header is not None and header.segments is not None:
            for child in parts[path][:]:
                inner.add(child)
                parts[path] += _named_by(child, headers.get(child), given)
    used = inner | {part for found in parts.values() for part in found}
    out = [(path, *dict.fromkeys(parts[path])) for path in headers if path not in inner]
    return out + [(path,) for path in files if path not in headers and path not in used]


def _named_by(path: Path, header: Header | None, given: Mapping[Path, None]) -> list[Path]:
    if header is None:
        wanted = [path.with_suffix(end) for end in (".dat", ".mat")]
    elif header.segments is not None:
        wanted = [path.with_name(f"{name}.hea") for name, _ in header.segments if name != "~"]
    else:
        wanted = [path.with_name(signal.file) for signal in header.signals if signal.file != "~"]
    wanted += [path.with_suffix(f".{end}") for end in sorted(ANNOTATIONS)]
    return [found for found in wanted if found in given]


# --- one record ------------------------------------------------------------------------------------------------------


def open_record(files: Sequence[Path], *, beside: bool = False) -> Recording:
    """A record from its header and files.

    Args:
        files: as :func:`records` groups them; nothing else is opened.
        beside: also use files that lie beside the header (to describe a header alone).

    Raises:
        DataError: a header or signal file that is missing, damaged, cut or of an unknown format.
    """
    top = next((path for path in files if path.suffix == ".hea"), None)
    if top is None:
        do = "add the .hea of the record to the files (a pattern such as ecg/{patient_id}.*)"
        raise refuse(files[0], "a WFDB record", "a signal file without its header", do)
    header = read_header(top)
    known = {path.name: path for path in files}
    if beside:
        known = {name: top.with_name(name) for name in _names(header) if top.with_name(name).is_file()} | known
    if header.segments is not None:
        return _joined(header, known, beside=beside)
    if header.layout or (header.signals and not header.frames and all(s.fmt == 0 for s in header.signals)):
        do = "it has no signal by design: read the multi-segment record that names it (give its header and segments)"
        raise refuse(top, "signals", "a layout header", do)
    return _single(header, known)


def _names(header: Header) -> list[str]:
    if header.segments is not None:
        return [f"{name}.hea" for name, _ in header.segments if name != "~"]
    return [signal.file for signal in header.signals]


def _single(header: Header, known: Mapping[str, Path]) -> Recording:
    if not header.signals:
        raise refuse(header.path, "signals", "none (the header has no signal lines)", "leave this record out")
    blocks = _blocks(header, known)
    frames = header.frames or min((b.frames for b in blocks), default=0)
    if not frames:
        raise refuse(header.path, "at least one sample", "none", "leave this record out")
    signals = header.signals
    channels, warnings = channels_of(
        [s.name for s in signals],
        [s.unit if s.fmt else "none" for s in signals],
        [header.frequency * s.per_frame for s in signals],
        [frames * s.per_frame for s in signals],
    )
    load = partial(_load, blocks, channels, frames)
    facts = {"format": sorted({s.fmt for s in signals})}
    return Recording(
        kind="WFDB record", channels=channels, load=load, facts=facts, warnings=(*header.warnings, *warnings)
    )


def _blocks(header: Header, known: Mapping[str, Path]) -> list[_Block]:
    by_file: dict[str, list[int]] = {}
    for row, signal in enumerate(header.signals):
        if signal.fmt:
            by_file.setdefault(signal.file, []).append(row)
    blocks = []
    for name, rows in by_file.items():
        signals = tuple(header.signals[row] for row in rows)
        first = signals[0]
        if name not in known:
            do = "add it to the files of the patient (a pattern such as ecg/{patient_id}.*)"
            raise refuse(header.path, f"the signal file {name[:80]} among the files", "it is not", do)
        if any((s.fmt, s.offset) != (first.fmt, first.offset) for s in signals):
            raise refuse(header.path, "one format per signal file", "several", "copy the header again")
        frame = sum(s.per_frame for s in signals)
        frames = _stored(header, known[name], first, len(signals), frame)
        blocks.append(_Block(known[name], first.fmt, first.offset, signals, tuple(rows), frame, frames))
    return blocks


def _stored(header: Header, path: Path, first: Signal, signals: int, frame: int) -> int:
    """Frames in a signal file, at least as many as the header declares."""
    wanted = header.frames
    if first.fmt in decode.FLAC:
        if frame != signals * first.per_frame:
            raise refuse(header.path, "one number of samples per frame in a FLAC file", "several", "use xform")
        samples = wanted * first.per_frame + first.offset
        return (decode.check_flac(path, first.fmt, signals=signals, samples=samples) - first.offset) // first.per_frame
    try:
        size = os.stat(path).st_size - first.offset  # noqa: PTH116  # Path.stat costs more than the rest here
    except OSError as error:
        raise refuse(path, "a readable file", type(error).__name__, "check its path and permissions") from error
    if wanted and decode.bytes_of(first.fmt, wanted * frame) > size:
        expected = f"{decode.bytes_of(first.fmt, wanted * frame) + first.offset} bytes as {header.path.name} declares"
        raise refuse(
            path, expected, f"{size + first.offset}", "the file is cut, or the wrong one: copy the record again"
        )
    return wanted or decode.samples_in(first.fmt, max(size, 0)) // frame


def _load(
    blocks: Sequence[_Block], channels: Sequence[Channel], frames: int, rows: Sequence[int], start: int, stop: int
) -> NDArray[np.float32]:
    out: NDArray[np.float32] | None = None
    for block in blocks:
        if not set(rows) & set(block.rows):
            continue
        if list(rows) == list(block.rows) and not any(s.skew for s in block.signals) and block.fmt != 8:
            alike = {(s.gain, s.baseline, s.unit, s.per_frame) for s in block.signals}
            if len(alike) == 1 and block.signals[0].per_frame == 1:  # all of one file, alike: one pass
                stored = _frames_of(block, start, stop).T
                return _to_mv(np.ascontiguousarray(stored), block.signals[0], block.fmt)
        if out is None:
            out = np.full((len(rows), stop - start), np.nan, np.float32)
        for place, row in enumerate(rows):
            if row in block.rows:
                _fill(out[place], block, block.rows.index(row), frames, start, stop)
    return np.full((len(rows), stop - start), np.nan, np.float32) if out is None else out


def _fill(out: NDArray[np.float32], block: _Block, number: int, frames: int, start: int, stop: int) -> None:
    """One signal's samples; a skew moves it, and what then lies behind its end is missing."""
    signal = block.signals[number]
    per, moved = signal.per_frame, signal.skew * signal.per_frame
    end = min(stop + moved, frames * per)
    if end <= start + moved:
        return
    first = 0 if block.fmt == 8 else (start + moved) // per
    before = sum(s.per_frame for s in block.signals[:number])
    stored = _frames_of(block, first, -(-end // per))[:, before : before + per].reshape(-1)
    if block.fmt == 8:
        stored = stored.cumsum(dtype=np.int32) + np.int32(signal.initial)
    wanted = stored[start + moved - first * per : end - first * per]
    out[: len(wanted)] = _to_mv(wanted, signal, block.fmt)


def _frames_of(block: _Block, first: int, last: int) -> NDArray[np.signedinteger]:
    """Frames ``first`` to ``last``, (frames, samples of a frame)."""
    if block.fmt in decode.FLAC:
        per = block.signals[0].per_frame
        found = decode.read_flac(block.path, start=first * per + block.offset, stop=last * per + block.offset)
        return found.reshape(last - first, per, -1).transpose(0, 2, 1).reshape(last - first, -1)
    flat = decode.read_samples(
        block.path, block.fmt, offset=block.offset, start=first * block.frame, stop=last * block.frame
    )
    return flat.reshape(-1, block.frame)


def _to_mv(digital: NDArray[np.signedinteger], signal: Signal, fmt: int) -> NDArray[np.float32]:
    return decode.physical(
        digital,
        gain=signal.gain,
        baseline=signal.baseline,
        scale=millivolts(signal.unit),
        missing=decode.MISSING.get(fmt),
    )


# --- segments --------------------------------------------------------------------------------------------------------


def _joined(header: Header, known: Mapping[str, Path], *, beside: bool) -> Recording:
    """Segments one after the other; a signal that a segment does not have, and a ``~``, are gaps."""
    segments: list[tuple[int, int, Recording]] = []
    layout: Header | None = None
    warnings: list[str] = list(header.warnings)
    start = 0
    for name, frames in header.segments or ():
        path = known.get(f"{name}.hea")
        if name != "~" and path is None:
            do = "add all segments to the files of the patient"
            raise refuse(header.path, f"the segment {name[:80]}.hea among the files", "it is not", do)
        if path is not None and not frames:
            layout = read_header(path)
        elif path is not None:
            inner = _segment(path, header, frames, known, beside=beside)
            segments.append((start, start + frames, inner))
            warnings += inner.warnings
        start += frames
    if not segments:
        raise refuse(header.path, "a segment with signals", "none", "leave this record out")
    named = [(s.name, s.unit, header.frequency * s.per_frame) for s in layout.signals] if layout else []
    for _, _, part in segments:
        for channel in part.channels:
            if channel.original not in [name for name, _, _ in named]:
                named.append((channel.original, channel.unit, channel.frequency))
    originals, units, frequencies = (list(column) for column in zip(*named, strict=True))
    per = [round(frequency / header.frequency) for frequency in frequencies]
    channels, more = channels_of(originals, units, frequencies, [header.frames * k for k in per])
    gaps = header.frames - sum(last - first for first, last, _ in segments)
    facts = {"segments": len(segments), "seconds_between_segments": round(gaps / header.frequency, 3)}
    load = partial(_load_segments, segments, channels, per)
    return Recording(
        kind="WFDB record of several segments",
        channels=channels,
        load=load,
        facts=facts,
        warnings=tuple(dict.fromkeys([*warnings, *more])),
    )


def _segment(path: Path, header: Header, frames: int, known: Mapping[str, Path], *, beside: bool) -> Recording:
    inner = read_header(path)
    if inner.segments is not None:
        raise refuse(path, "a segment with signals", "a record of segments itself", "read it as a record of its own")
    if inner.frames not in {0, frames} or inner.frequency != header.frequency:
        found = f"{inner.frames} at {inner.frequency:g}"
        expected = f"{frames} samples at {header.frequency:g} Hz as {header.path.name} declares"
        raise refuse(path, expected, found, "copy the record again")
    if beside:
        known = {s.file: path.with_name(s.file) for s in inner.signals if path.with_name(s.file).is_file()} | dict(
            known
        )
    return _single(inner, known)


def _load_segments(
    segments: Sequence[tuple[int, int, Recording]],
    channels: Sequence[Channel],
    per: Sequence[int],
    rows: Sequence[int],
    start: int,
    stop: int,
) -> NDArray[np.float32]:
    out = np.full((len(rows), stop - start), np.nan, np.float32)
    for begin, end, part in segments:
        for place, row in enumerate(rows):
            first, last = max(start, begin * per[row]), min(stop, end * per[row])
            if first >= last:
                continue
            here = [k for k, c in enumerate(part.channels) if c.original == channels[row].original]
            if here and part.channels[here[0]].frequency != channels[row].frequency:
                msg = f"{channels[row].name}: expected one sampling frequency in all segments; read the segments apart"
                raise DataError(msg)
            if here and millivolts(part.channels[here[0]].unit):
                shift = begin * per[row]
                out[place, first - start : last - start] = part.load(here[:1], first - shift, last - shift)[0]
    return out
