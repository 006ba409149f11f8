"""What the ECG formats share: a recording as channels that load themselves in mV, lead names, units, refusals.

Missing samples are NaN here and nowhere else: WFDB's lowest code of a format, -32768 in the 16-bit formats, stretches
between the segments of a record. Nothing is interpolated.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError

STANDARD = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LOWEST16 = -32768  # the 16-bit code that stands for "no sample"
_OTHER: tuple[str, ...] = (
    "V",
    "V7",
    "V8",
    "V9",
    "V2R",
    "V3R",
    "V4R",
    "V5R",
    "V6R",
    "V7R",
    "X",
    "Y",
    "Z",
    "VX",
    "VY",
    "VZ",
    "-aVR",
)
_OTHER += ("MCL1", "MCL2", "MCL3", "MCL4", "MCL5", "MCL6", "ECG", "ECG1", "ECG2", "ECG3", "CC5", "CM5", "D", "A", "J")
_OTHER += ("ES", "AS", "AI", "CM2", "CM4", "MLI", "MLIII", "MV1", "MV2", "MV5")
ALIASES = {name.upper(): name for name in (*STANDARD, *_OTHER)} | {
    "DI": "I",
    "DII": "II",
    "DIII": "III",
    "D1": "I",
    "D2": "II",
    "D3": "III",
    "L1": "I",
    "L2": "II",
    "L3": "III",
    "MLII": "II",  # modified lead II of ambulatory recorders
    "MDC_ECG_LEAD_AVR": "aVR",
    "EKG": "ECG",
    "EKG1": "ECG1",
    "EKG2": "ECG2",
    "C1": "V1",
    "C2": "V2",
    "C3": "V3",
    "C4": "V4",
    "C5": "V5",
    "C6": "V6",
}
MODIFIED = ("MLII",)  # read as their standard lead, and a warning says so
_TO_MV = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "microv": 1e-3, "nv": 1e-6, "v": 1e3}
_PREFIX = re.compile(r"^(?:mdc_ecg_lead_|lead[ _]+|ecg[ _]+|ekg[ _]+)", re.IGNORECASE)


_VANISH: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("I - II + III", ("I", "III"), ("II",)),
    ("aVR + aVL + aVF", ("aVR", "aVL", "aVF"), ()),
)


class Channel(NamedTuple):
    """One signal of a recording: names, Hz, samples, and whether it is a lead in a unit of volts."""

    name: str
    original: str
    unit: str
    frequency: float
    samples: int
    lead: bool


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording.

    Attributes:
        kind: format, in the field's words.
        channels: all its signals.
        load: numbers of channels of one sampling frequency, first and last sample -> (k, n) float32 in mV, NaN where
            there is no sample; opens the files and closes them.
        facts: JSON values about it.
        warnings: what the header tells.
    """

    kind: str
    channels: tuple[Channel, ...]
    load: Callable[[Sequence[int], int, int], NDArray[np.float32]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def refuse(path: Path, expected: str, found: str, do: str) -> DataError:
    """An error of one file; no value of a patient goes into it."""
    return DataError(f"{path.name}: expected {expected}, found {found}; {do}")


def lead_name(text: str) -> str:
    """The canonical name of a lead; empty when it is none that is known.

    >>> lead_name("avr"), lead_name("MLII"), lead_name("Lead I (Einthoven)"), lead_name("RESP")
    ('aVR', 'II', 'I', '')
    """
    found = ALIASES.get(text)
    if found is None:
        bare = _PREFIX.sub("", text.strip())
        found = ALIASES.get(bare.upper()) or ALIASES.get(bare.split(" (")[0].strip().upper(), "")
    return found


def millivolts(unit: str) -> float:
    """How many mV one unit is; 0 when it is no unit of volts."""
    return _TO_MV.get(unit.strip().lower(), 0.0)


def named(originals: Sequence[str]) -> tuple[list[str], list[str]]:
    """Canonical names, each used once, and warnings; an alias that would repeat a name keeps its own."""
    plain = {text.strip().upper() for text in originals}
    names: list[str] = []
    warnings: list[str] = []
    for number, text in enumerate(originals, 1):
        name = lead_name(text)
        if text.strip().upper() in MODIFIED and name in plain:
            name = text.strip()
        elif text.strip().upper() in MODIFIED:
            warnings.append(f"lead {text.strip()} is a modified lead on the torso; it is read as {name}")
        name = name or text.strip() or f"signal {number}"
        if name in names:
            name = f"{name} #{number}"
            warnings.append(f"two signals are named {text.strip()!r}; the later one is {name!r}")
        names.append(name)
    return names, warnings


def channels_of(
    originals: Sequence[str], units: Sequence[str], frequencies: Sequence[float], samples: Sequence[int]
) -> tuple[tuple[Channel, ...], list[str]]:
    """Channels with canonical names.

    A signal is a lead when its unit is one of volts and its name is known; where no name is known, all signals in
    volts are leads under the names that they have, and a warning says so.
    """
    names, warnings = named(originals)
    volts = [millivolts(unit) > 0 for unit in units]
    known = [v and bool(lead_name(text)) for v, text in zip(volts, originals, strict=True)]
    if not any(known) and any(volts):
        known = volts
        warnings.append("no signal has the name of a lead; all signals in volts are read under their own names")
    return tuple(map(Channel, names, originals, units, frequencies, samples, known)), warnings


def einthoven(signal: NDArray[np.float32], leads: Sequence[str]) -> dict[str, float]:
    """RMS in mV of what must vanish, I - II + III and aVR + aVL + aVF, as far as the leads are there.

    Args:
        signal: (leads, samples) in mV; NaN is left out.
        leads: canonical names.
    """
    found: dict[str, float] = {}
    row = {name: number for number, name in enumerate(leads)}
    for label, plus, minus in _VANISH:
        if all(name in row for name in (*plus, *minus)):
            rest = signal[row[plus[0]]] + signal[row[plus[1]]]
            for name in plus[2:]:
                rest = rest + signal[row[name]]
            for name in minus:
                rest = rest - signal[row[name]]
            square = float(np.dot(rest, rest)) / max(rest.size, 1)
            if not np.isfinite(square):
                rest = rest[np.isfinite(rest)]
                square = float(np.dot(rest, rest)) / max(rest.size, 1)
            found[label] = round(square**0.5, 6)
    return found
