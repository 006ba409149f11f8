"""DICOM waveforms: 12-lead, general and ambulatory ECG.

References:
    DICOM PS3.3 C.10.9 (Waveform Module), PS3.16 CID 3001 (ECG leads), PS3.5 7.6 (encoding).
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.loaders._ecg_common import LOWEST16, Channel, Recording, channels_of, lead_name, millivolts, refuse
from medfuse.loaders._ecg_dicom_walk import check_elements
from medfuse.loaders.base import Identifying

LARGEST = 64 << 20  # bytes of a file; sample data lies inside a sequence and is read with it
_WAVEFORMS = "1.2.840.10008.5.1.4.1.1.9."
_ECG = {"1.1": "12-lead ECG", "1.2": "general ECG", "1.3": "ambulatory ECG", "1.4": "general 32-bit ECG"}
_TYPES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
_NUMBERS = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 65: "-aVR"} | {
    k: f"V{k - 2}" for k in range(3, 9)
}
_CODE = re.compile(r"(?:5\.6\.3-9-|2:)(\d+)$")  # SCP-ECG and MDC number the leads alike
_IMPLICIT, _BIG, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_PERSON = {0x00100020: "id", 0x00101000: "id", 0x00101001: "name", 0x00101040: "address", 0x00102154: "phone"}
_PERSON |= {0x00080050: "id", 0x00080080: "institution", 0x00380010: "id", 0x00181000: "id", 0x00200010: "id"}


def recognise(start: bytes) -> bool:
    """A DICOM file whose meta information names a class of waveforms."""
    return start[128:132] == b"DICM" and _WAVEFORMS.encode() in start[132:1200]


def _dataset(path: Path) -> Any:  # noqa: ANN401  # a pydicom dataset
    import pydicom  # a tenth of a second

    if path.stat().st_size > LARGEST:
        raise refuse(path, f"at most {LARGEST >> 20} MiB", "more", "convert it to WFDB, which is read in windows")
    content = path.read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax == _DEFLATED:
        raise refuse(path, "an open transfer syntax", "a deflated one", "rewrite it, for instance with dcmconv +te")
    start = 144 + int(meta.FileMetaInformationGroupLength)
    check_elements(path, content, start, explicit=syntax != _IMPLICIT, big=syntax == _BIG)
    return pydicom.dcmread(io.BytesIO(content))


def _guarded(path: Path, call: Any) -> Any:  # noqa: ANN401  # of the call
    """What a call gives; anything that pydicom throws at damaged content becomes one error."""
    import pydicom

    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")  # odd UIDs and the like: values of a patient, and of no use here
            return call()
    except DataError:
        raise
    except Exception as error:
        raise refuse(path, "a whole DICOM waveform", type(error).__name__, "copy the file again") from error


def open_waveform(path: Path, *, number: int = 0) -> Recording:
    """The original waveforms of a file.

    Args:
        path: of the file.
        number: multiplex group, from 1; 0: the only original one.

    Raises:
        DataError: damaged, no ECG, compressed samples, or several original groups and none chosen.
    """
    recording: Recording = _guarded(path, lambda: _recording(path, _dataset(path), number))
    return recording


def _recording(path: Path, dataset: Any, number: int) -> Recording:  # noqa: ANN401  # a pydicom dataset
    kind = _ECG.get(str(dataset.SOPClassUID).removeprefix(_WAVEFORMS), "")
    if not kind:
        raise refuse(path, "an ECG", f"waveforms of the class {dataset.SOPClassUID}", "leave the file out")
    groups = list(dataset.WaveformSequence)
    original = [k for k, g in enumerate(groups) if str(g.get("WaveformOriginality", "ORIGINAL")) != "DERIVED"]
    chosen = [number - 1] if number else original
    if not chosen or not 0 <= chosen[0] < len(groups) or len(chosen) > 1:
        found = "; ".join(f"{k + 1}: {_label(g)}" for k, g in enumerate(groups))[:400]
        raise refuse(path, "one original multiplex group", found or "none", "choose one with group: NUMBER")
    group = groups[chosen[0]]
    notes = [f"not read: group {k + 1}, {_label(g)}" for k, g in enumerate(groups) if k != chosen[0]]
    return _group(path, group, f"DICOM {kind}", notes, big=dataset.file_meta.TransferSyntaxUID == _BIG)


def _label(group: Any) -> str:  # noqa: ANN401  # a pydicom dataset
    samples, frequency = int(group.NumberOfWaveformSamples), float(group.SamplingFrequency)
    origin = str(group.get("WaveformOriginality", "ORIGINAL")).lower()
    return f"{origin}, {int(group.NumberOfWaveformChannels)} channels of {samples} samples at {frequency:g} Hz"


def _group(path: Path, group: Any, kind: str, notes: list[str], *, big: bool) -> Recording:  # noqa: ANN401
    count, samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    frequency = float(group.SamplingFrequency)
    code = str(group.WaveformSampleInterpretation)
    if code not in _TYPES:
        raise refuse(path, f"samples of type {', '.join(_TYPES)}", code, "convert the file to 16-bit samples")
    dtype = np.dtype(_TYPES[code]).newbyteorder(">" if big else "<")
    if int(group.WaveformBitsAllocated) != dtype.itemsize * 8:
        found = f"{int(group.WaveformBitsAllocated)} bits allocated"
        raise refuse(path, f"{dtype.itemsize * 8} bits for samples of type {code}", found, "export the recording again")
    content = bytes(group.WaveformData)
    wanted = count * samples * dtype.itemsize
    definitions = list(group.ChannelDefinitionSequence)
    if not wanted or not wanted <= len(content) <= wanted + 1 or len(definitions) != count or not 0 < frequency < 1e7:
        found = f"{len(content)} bytes and {len(definitions)} channels"
        raise refuse(path, f"{wanted} bytes of {count} channels", found, "copy the file again")
    names = [_name(definition) for definition in definitions]
    units = [_unit(definition) for definition in definitions]
    scales = np.array([_scale(definition) for definition in definitions])
    channels, more = channels_of(names, [unit for unit, _ in units], [frequency] * count, [samples] * count)
    notes = notes + more + [note for _, note in dict.fromkeys(units) if note]
    skews = {float(d.get("ChannelSampleSkew", 0) or 0) for d in definitions}
    if len(skews) > 1:
        notes.append("channels are sampled one after another within a sample (skew); they are not moved")
    missing, note = _padding(group, code, dtype, wanted)
    digital = np.frombuffer(content, dtype, count * samples).reshape(samples, count)
    load = partial(_load, digital, scales, channels, missing)
    facts = {"format": "DICOM", "sample_interpretation": code}
    return Recording(kind=kind, channels=channels, load=load, facts=facts, warnings=tuple(notes + note))


def _name(definition: Any) -> str:  # noqa: ANN401  # a pydicom dataset
    """Canonical by the code of the source, else by its meaning or the label."""
    source = definition.get("ChannelSourceSequence")
    if source:
        match = _CODE.search(str(source[0].get("CodeValue", "")))
        if match and int(match[1]) in _NUMBERS:
            return _NUMBERS[int(match[1])]
        meaning = str(source[0].get("CodeMeaning", ""))
        if lead_name(meaning):
            return lead_name(meaning)
    return str(definition.get("ChannelLabel", "")) or (meaning if source else "")


def _unit(definition: Any) -> tuple[str, str]:  # noqa: ANN401  # a pydicom dataset
    units = definition.get("ChannelSensitivityUnitsSequence")
    if "ChannelSensitivity" not in definition or not units:
        return "none", "a channel without sensitivity is not calibrated and is not read"
    return str(units[0].CodeValue), ""


def _scale(definition: Any) -> tuple[float, float]:  # noqa: ANN401  # a pydicom dataset
    """Factor and offset to mV; PS3.3 C.10.9.1.4.2: the baseline is in the units of the sensitivity."""
    unit = millivolts(_unit(definition)[0])
    correction = definition.get("ChannelSensitivityCorrectionFactor")
    factor = float(definition.get("ChannelSensitivity", 0) or 0) * float(1 if correction is None else correction)
    return factor * unit, float(definition.get("ChannelBaseline", 0) or 0) * unit


def _padding(group: Any, code: str, dtype: np.dtype[Any], wanted: int) -> tuple[list[int], list[str]]:  # noqa: ANN401
    missing = [LOWEST16] if code == "SS" else []
    value = group.get("WaveformPaddingValue")
    if isinstance(value, bytes) and len(value) >= dtype.itemsize:
        value = int(np.frombuffer(value[: dtype.itemsize], dtype)[0])
    if not isinstance(value, int):
        return missing, []
    if value == 0:  # writers set it as a matter of course, and 0 is where an ECG rests
        return missing, ["the padding value 0 cannot be told from 0 mV; no sample is taken as padding for it"]
    return sorted({*missing, value}), []


def _load(
    digital: NDArray[Any],
    scales: NDArray[np.float64],
    channels: Sequence[Channel],
    missing: Sequence[int],
    rows: Sequence[int],
    start: int,
    stop: int,
) -> NDArray[np.float32]:
    taken = digital[start:stop, list(rows)].T
    out = (taken * scales[list(rows), :1] + scales[list(rows), 1:]).astype(np.float32)
    for value in missing:
        out[taken == value] = np.nan
    return np.ascontiguousarray(out)


def identifying(path: Path) -> list[Identifying]:
    """Elements of persons, ids and dates that are not empty, at any depth; names of tags only."""
    found: list[Identifying] = _guarded(path, lambda: list(dict.fromkeys(_walk(_dataset(path), 0))))
    return found


def _walk(dataset: Any, depth: int) -> Iterator[Identifying]:  # noqa: ANN401  # a pydicom dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value if depth < 8 else ():
                yield from _walk(item, depth + 1)
        kind = "name" if element.VR == "PN" else "date" if element.VR in {"DA", "DT"} else _PERSON.get(element.tag, "")
        if element.tag.is_private and element.VR != "SQ":
            kind = "private"
        if kind and str(element.value or "").strip():
            yield Identifying(where=f"{element.tag} {element.keyword}", kind=kind)
