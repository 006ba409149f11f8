"""ECG recordings as windows in mV: WFDB, EDF, DICOM waveforms, HL7 aECG and Philips Sierra XML.

Leads are found by name, never by position; units become mV. Filters, another sampling frequency and zeros in place of
missing samples come only from the options of the card, and are in the facts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.limits import read_head
from medfuse.loaders import _ecg_dicom, _ecg_edf, _ecg_wfdb, _ecg_xml
from medfuse.loaders._ecg_common import STANDARD, Recording, einthoven, millivolts, refuse
from medfuse.loaders._ecg_header import header_or_none, looks_like_header
from medfuse.loaders._ecg_windows import LARGEST_WINDOW, Plan, ratio, starts_of, window, windows
from medfuse.loaders._ecg_write import synthesise, write_wfdb
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import RawSample

ITEM = "window"
OPTIONS = ("leads", "sampling_frequency", "seconds", "stride", "bandpass", "notch", "gaps", "group")
SECONDS = 10.0  # of a window, where the card says nothing; a shorter recording is one window
EINTHOVEN_MV = 0.05  # RMS above which leads do not belong together
_HEADERS = 1000  # that are looked into for the name of a signal file
_SIGNAL_FILES = {".dat", ".mat", ".xyz", *(f".d{k}" for k in range(10))}


# --- which files these are -------------------------------------------------------------------------------------------


def _format(path: Path, start: bytes) -> str:
    if _ecg_dicom.recognise(start):
        return "dicom"
    if _ecg_xml.recognise(start):
        return "xml"
    if _ecg_edf.recognise(start):
        return "edf"
    if start[16:22] == b"SCPECG":
        return "scp"
    if path.suffix == ".hea":
        return "wfdb"
    return ""


def recognise(head: Head) -> bool:
    """By content; WFDB's signal and annotation files, which have no mark, by the header that names them."""
    known = _format(head.path, head.start)
    if known:
        return known != "wfdb" or looks_like_header(head.start)
    end = head.path.suffix.lower()
    if end[1:] in _ecg_wfdb.ANNOTATIONS:
        return head.path.with_suffix(".hea").is_file()
    if end not in _SIGNAL_FILES:
        return False
    first, own = glob_safe(head.path.stem[:3]), head.path.with_suffix(".hea")
    for paths in ((own,), head.path.parent.glob(f"{first}*.hea"), head.path.parent.glob("*.hea")):
        for path in sorted(paths)[:_HEADERS]:
            header = header_or_none(path) if path.is_file() else None
            if header and head.path.name in {signal.file for signal in header.signals}:
                return True
    return False


def glob_safe(text: str) -> str:
    """Letters that mean something in a pattern, escaped."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def group(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """A WFDB record's header, signal, segment and annotation files together; every other file alone."""
    own: list[Path] = []
    alone: list[tuple[Path, ...]] = []
    for path in files:
        kind = _format(path, _start(path)) if path.suffix != ".hea" else "wfdb"
        if kind in {"", "wfdb"}:
            own.append(path)
        else:
            alone.append((path,))
    return sorted([*alone, *_ecg_wfdb.records(own)])


def _start(path: Path) -> bytes:
    try:
        return read_head(path)
    except DataError:
        return b""


def _open(files: Sequence[Path], *, number: int = 0, beside: bool = False) -> Recording:
    first = files[0]
    if first.suffix != ".hea":
        kind = _format(first, read_head(first))
        if len(files) > 1 and kind:
            raise refuse(first, "one recording", f"{len(files)} files", "give each file as an item of its own")
        if kind == "dicom":
            return _ecg_dicom.open_waveform(first, number=number)
        if kind == "xml":
            return _ecg_xml.open_xml(first)
        if kind == "edf":
            return _ecg_edf.open_edf(first)
        if kind == "scp":
            do = "export it as DICOM or HL7 aECG, or convert it to WFDB"
            raise refuse(first, "a format that is read", "SCP-ECG (EN 1064), which is not", do)
    return _ecg_wfdb.open_record(files, beside=beside)


# --- options ---------------------------------------------------------------------------------------------------------


def _number(options: Mapping[str, Any], key: str) -> float | None:
    value = options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e7:
        msg = f"options of the loader ecg: expected {key} as a positive number, found {value!r}"
        raise ConfigError(msg)
    return float(value)


def _checked(options: Mapping[str, Any]) -> None:
    unknown = next((key for key in options if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"options of the loader ecg: unknown {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)
    if options.get("gaps", "refuse") not in {"refuse", "zero"}:
        msg = "options of the loader ecg: expected gaps: refuse or zero, found another word"
        raise ConfigError(msg)
    leads = options.get("leads")
    named = isinstance(leads, list | tuple) and all(isinstance(lead, str) for lead in leads)
    if leads is not None and (not named or not leads or len(set(leads)) != len(leads)):
        msg = "options of the loader ecg: expected leads as a list of different names, such as [I, II, V1]"
        raise ConfigError(msg)
    band = options.get("bandpass")
    numbers = isinstance(band, list | tuple) and all(type(edge) in {int, float} for edge in band)
    if band is not None and (not numbers or len(band) != 2 or not 0 < band[0] < band[1]):
        msg = "options of the loader ecg: expected bandpass as two rising frequencies in Hz, such as [0.5, 40]"
        raise ConfigError(msg)


def _rows(recording: Recording, options: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Channels in the order of ``leads``; without it, standard leads in their order and then the others."""
    names = {channel.name: row for row, channel in enumerate(recording.channels)}
    wanted = options.get("leads")
    if wanted is None:
        order = {name: k for k, name in enumerate(STANDARD)}
        rows = [row for row, channel in enumerate(recording.channels) if channel.lead]
        rows.sort(key=lambda row: order.get(recording.channels[row].name, len(order)))
    else:
        missing = [str(name) for name in wanted if str(name) not in names]
        if missing:
            found = ", ".join(names)[:400]
            msg = f"{where}: expected the leads {', '.join(missing)}, found {found}; name leads that it has"
            raise DataError(msg)
        rows = [names[str(name)] for name in wanted]
    volts = [row for row in rows if millivolts(recording.channels[row].unit)]
    if not rows or len(volts) < len(rows):
        kept = ", ".join(f"{c.name} ({c.unit})" for c in recording.channels)[:400]
        found = kept or "no signal"
        msg = f"{where}: expected leads in volts, found {found}; is it an ECG? name its leads in the options"
        raise DataError(msg)
    frequencies = {recording.channels[row].frequency for row in rows}
    if len(frequencies) > 1:
        each = ", ".join(f"{recording.channels[row].name} {recording.channels[row].frequency:g}" for row in rows)
        msg = f"{where}: expected leads of one sampling frequency, found {each} Hz; choose some with leads: [...]"
        raise DataError(msg)
    return tuple(rows)


def _plan(recording: Recording, options: Mapping[str, Any], where: str) -> Plan:
    rows = _rows(recording, options, where)
    channel = recording.channels[rows[0]]
    frequency, target = channel.frequency, _number(options, "sampling_frequency") or channel.frequency
    up, down = ratio(frequency, target) if target != frequency else (1, 1)
    samples = channel.samples * up // down
    seconds = _number(options, "seconds")
    length = round(seconds * target) if seconds else min(round(SECONDS * target), samples)
    if not 0 < length <= samples:
        found = f"{channel.samples / frequency:.3g} s"
        msg = f"{where}: expected at least {length / target:g} s, found {found}; lower seconds, or leave it out"
        raise DataError(msg)
    if length * len(rows) * 4 * max(1, down // up) > LARGEST_WINDOW:
        msg = f"{where}: expected windows of at most {LARGEST_WINDOW >> 20} MiB, found more; lower seconds"
        raise DataError(msg)
    stride = round((_number(options, "stride") or length / target) * target)
    if stride < 1:
        msg = "options of the loader ecg: expected a stride of at least one sample"
        raise ConfigError(msg)
    band, notch = options.get("bandpass"), _number(options, "notch")
    high = max([float(band[1]) if band else 0.0, notch or 0.0])
    if high >= frequency / 2:
        msg = f"{where}: expected filters below {frequency / 2:g} Hz, half its sampling frequency, found {high:g}"
        raise DataError(msg)
    return Plan(
        rows=rows,
        frequency=frequency,
        target=target,
        up=up,
        down=down,
        length=length,
        starts=starts_of(samples, length, stride),
        bandpass=(float(band[0]), float(band[1])) if band else None,
        notch=notch,
        zero=options.get("gaps") == "zero",
    )


# --- the contract ----------------------------------------------------------------------------------------------------


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """Windows of one recording; see :mod:`medfuse.loaders.base`.

    Args:
        files: of one recording, as :func:`group` joins them.
        options: ``leads`` (names, in order), ``seconds`` (10, or the whole recording where it is shorter) and
            ``stride`` of windows, ``sampling_frequency`` in Hz (polyphase), ``bandpass`` [low, high] and ``notch`` in
            Hz (both without shift of phase), ``gaps`` (``refuse`` or ``zero``), ``group`` (multiplex group of DICOM).

    Raises:
        DataError: damaged, cut, no ECG, leads that are not there, gaps that are not allowed.
        ConfigError: an option that does not exist or cannot be.
    """
    _checked(options)
    where = files[0].name
    recording = _open(files, number=int(_number(options, "group") or 0))
    plan = _plan(recording, options, where)
    leads = [recording.channels[row].name for row in plan.rows]
    first = window(recording, plan, 0)
    checks = einthoven(first, leads)
    return RawSample(
        item="window",
        shape=(len(leads), plan.length),
        position=(plan.starts / plan.target).astype(np.float32)[:, None],
        unit="s",
        fetch=partial(_fetch, recording, plan, [first]),
        facts=_facts(recording, plan, leads, checks),
        warnings=(*recording.warnings, *_left_out(recording, plan), *_apart(checks)),
    )


def _fetch(recording: Recording, plan: Plan, ready: list[NDArray[np.float32]], numbers: Sequence[int]) -> NDArray[Any]:
    return windows(recording, plan, numbers, ready)


def _facts(recording: Recording, plan: Plan, leads: list[str], checks: Mapping[str, float]) -> dict[str, Any]:
    return {
        "kind": recording.kind,
        "leads": leads,
        "units": "mV",
        "sampling_frequency": plan.target,
        "recorded_sampling_frequency": plan.frequency,
        "seconds": plan.length / plan.target,
        "bandpass": list(plan.bandpass) if plan.bandpass else None,
        "notch": plan.notch,
        "gaps": "zero" if plan.zero else "refuse",
        "einthoven_rms_mv": dict(checks),
        **recording.facts,
    }


def _left_out(recording: Recording, plan: Plan) -> list[str]:
    rest = [c for row, c in enumerate(recording.channels) if row not in plan.rows]
    if not rest:
        return []
    return [f"not read: {', '.join(f'{c.name} ({c.unit})' for c in rest)}"]


def _apart(checks: Mapping[str, float]) -> list[str]:
    return [
        f"{label} should vanish, its RMS is {value:.3f} mV: leads may be swapped, inverted, or of different times"
        for label, value in checks.items()
        if value > EINTHOVEN_MV
    ]


def describe(files: Sequence[Path]) -> Description:
    """Format, leads, frequencies, units and length, from headers."""
    recording = _open(files, beside=True)
    leads = [channel for channel in recording.channels if channel.lead]
    if not leads:
        _rows(recording, {}, files[0].name)
    holds: dict[str, Any] = {
        "leads": [channel.name for channel in leads],
        "sampling_frequency": sorted({channel.frequency for channel in leads}),
        "seconds": round(max(channel.samples / channel.frequency for channel in leads), 3),
        "samples": max(channel.samples for channel in leads),
        "units": sorted({channel.unit for channel in leads}),
        **recording.facts,
    }
    rest = [f"{c.name} ({c.unit}, {c.frequency:g} Hz)" for c in recording.channels if not c.lead]
    if rest:
        holds["other_signals"] = rest
    marks = sorted(p.suffix[1:] for p in files if p.suffix[1:] in _ecg_wfdb.ANNOTATIONS)
    if marks:
        holds["annotations"] = marks
    warnings = list(recording.warnings)
    if files[0].suffix == ".hea" and not any(p.suffix not in {".hea"} for p in files):
        warnings.append(
            "only the header is given: name its signal files in the pattern too, such as ecg/{patient_id}.*"
        )
    return Description(kind=recording.kind, holds=holds, warnings=tuple(warnings))


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Elements that may identify a person: header comments, names, ids and dates; never their values."""
    first = files[0]
    if first.suffix == ".hea":
        found = []
        for path in files:
            header = header_or_none(path) if path.suffix == ".hea" else None
            if header and header.comments:
                found.append(Identifying(where=f"{path.name}: {header.comments} comment lines", kind="free text"))
            if header and header.dated:
                found.append(Identifying(where=f"{path.name}: base time or date", kind="date"))
        return found
    kind = _format(first, read_head(first))
    if kind == "dicom":
        return _ecg_dicom.identifying(first)
    if kind == "xml":
        return _ecg_xml.identifying(first)
    if kind == "edf":
        return _ecg_edf.identifying(first)
    return []


def write_example(folder: Path) -> ModalityCard:
    """Two records of 10 s with 12 leads at 250 Hz, and the card that reads them."""
    (folder / "ecg").mkdir(parents=True, exist_ok=True)
    for number, patient in enumerate(("001", "002")):
        signal = synthesise(10.0, 250.0, heart_rate=62.0 + 21 * number, st_mv=0.1 * number, seed=number)
        write_wfdb(folder / "ecg", patient, signal, sampling_frequency=250.0)
    return ModalityCard(loader="ecg", path="ecg/{patient_id}.*")


__all__ = ["describe", "group", "identifying", "read", "recognise", "synthesise", "write_example", "write_wfdb"]
