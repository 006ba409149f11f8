"""ECGs in XML: HL7 aECG and Philips Sierra; GE MUSE is named and refused.

References:
    HL7 V3 Annotated ECG, Release 1 (2005): sequenceSet, GLIST and SLIST values.
    Philips ECG XML schema 1.03-1.04: parsedwaveforms, the base64 of 16-bit samples or of XLI blocks.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse
from numpy.typing import NDArray

from medfuse.loaders._ecg_common import LOWEST16, Recording, channels_of, millivolts, refuse
from medfuse.loaders._ecg_xli import sierra_samples
from medfuse.loaders.base import Identifying

LARGEST = 16 << 20  # bytes
MOST_ELEMENTS, DEEPEST = 200_000, 100
_ROOTS = {"AnnotatedECG": "HL7 aECG", "restingecgdata": "Philips Sierra XML", "RestingECG": "GE MUSE XML"}
_FREQUENCY_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def recognise(start: bytes) -> bool:
    """XML, in UTF-8 or UTF-16, whose first element is one of ours."""
    text = start.decode("utf-16", "ignore") if start[:2] in {b"\xff\xfe", b"\xfe\xff"} else start.decode("latin-1")
    return text.lstrip("\ufeffï»¿ \r\n\t").startswith("<") and any(f"<{root}" in text for root in _ROOTS)


def local(element: Element) -> str:
    """Name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _root(path: Path) -> Element:
    """The document, refused before it grows: entities, size, number and depth of elements."""
    if path.stat().st_size > LARGEST:
        raise refuse(path, f"at most {LARGEST >> 20} MiB of XML", "more", "export the ECG alone")
    root: Element | None = None
    depth = count = 0
    try:
        for event, element in iterparse(path, events=("start", "end")):
            if event == "end":
                depth -= 1
                continue
            root = element if root is None else root
            depth, count = depth + 1, count + 1
            if count > MOST_ELEMENTS or depth > DEEPEST:
                found = f"more than {MOST_ELEMENTS} elements or {DEEPEST} levels"
                raise refuse(path, "an ECG in XML", found, "is it the right file?")
    except DefusedXmlException as error:
        raise refuse(path, "XML without entities", "definitions of entities", "remove them") from error
    except (ParseError, ValueError, LookupError, UnicodeError) as error:
        raise refuse(path, "whole XML", "damage", "copy the file again") from error
    if root is None or local(root) not in _ROOTS:
        raise refuse(path, f"a root element of {', '.join(_ROOTS)}", "another", "is it the right file?")
    return root


def open_xml(path: Path) -> Recording:
    """An ECG in XML.

    Raises:
        DataError: damaged, hostile, or of a kind that is not read.
    """
    root = _root(path)
    if local(root) == "AnnotatedECG":
        return _aecg(path, root)
    if local(root) == "restingecgdata":
        return _sierra(path, root)
    do = "export it as DICOM or HL7 aECG; its samples' layout is not public"
    raise refuse(path, "a format that is read", "GE MUSE XML, which is not", do)


def _below(element: Element, name: str) -> Iterator[Element]:
    return (found for found in element.iter() if local(found) == name)


def _child(element: Element, name: str) -> Element | None:
    return next((found for found in element if local(found) == name), None)


# --- HL7 aECG --------------------------------------------------------------------------------------------------------


def _aecg(path: Path, root: Element) -> Recording:
    derived = {id(found) for block in _below(root, "derivation") for found in _below(block, "sequenceSet")}
    sets = [found for found in _below(root, "sequenceSet") if id(found) not in derived]
    notes = [f"not read: {len(derived)} derived set of sequences (representative beats)"] if derived else []
    parts = [_sequences(path, one) for one in sets]
    parts = [part for part in parts if part[1]]
    if len(parts) != 1:
        found = f"{len(parts)}"
        raise refuse(path, "one set of recorded sequences", found, "split the document into one ECG each")
    frequency, leads = parts[0]
    lengths = {len(samples) for _, _, samples in leads}
    if len(lengths) != 1 or not max(lengths):
        raise refuse(path, "sequences of one length", f"{len(lengths)} lengths", "copy the file again")
    samples = np.array([samples for _, _, samples in leads], np.float32)
    names, units = [name for name, _, _ in leads], [unit for _, unit, _ in leads]
    return _held(names, units, frequency, samples, "HL7 aECG", notes)


def _held(
    names: list[str], units: list[str], frequency: float, samples: NDArray[np.float32], kind: str, notes: list[str]
) -> Recording:
    channels, more = channels_of(names, units, [frequency] * len(names), [samples.shape[1]] * len(names))
    facts = {"format": kind}
    return Recording(
        kind=kind, channels=channels, load=partial(_taken, samples), facts=facts, warnings=tuple(notes + more)
    )


def _taken(samples: NDArray[np.float32], rows: Sequence[int], start: int, stop: int) -> NDArray[np.float32]:
    return samples[list(rows), start:stop]


def _sequences(path: Path, block: Element) -> tuple[float, list[tuple[str, str, NDArray[np.float32]]]]:
    frequency, leads = 0.0, []
    for sequence in _below(block, "sequence"):
        code, value = _child(sequence, "code"), _child(sequence, "value")
        if code is None or value is None:
            continue
        name = str(code.get("code", ""))
        if name.startswith("TIME"):
            frequency = _frequency(path, value)
        elif _child(value, "digits") is not None:
            leads.append(_digits(path, name, value))
    if leads and not frequency:
        raise refuse(path, "an increment of time in seconds", "none", "copy the file again")
    return frequency, leads


def _frequency(path: Path, value: Element) -> float:
    increment = _child(value, "increment")
    step = _float(path, increment, "an increment of time") if increment is not None else 0.0
    unit = _FREQUENCY_UNITS.get(str(increment.get("unit", "s")) if increment is not None else "", 0.0)
    if step * unit <= 0:
        raise refuse(path, "a positive increment in s, ms or us", "another", "copy the file again")
    return round(1 / (step * unit), 6)


def _float(path: Path, element: Element, what: str) -> float:
    try:
        number = float(element.get("value", ""))
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise refuse(path, f"a number as {what}", "other text", "copy the file again")
    return number


def _digits(path: Path, name: str, value: Element) -> tuple[str, str, NDArray[np.float32]]:
    """Lead, unit as written, and samples: origin + digit * scale, in mV."""
    origin, scale, digits = _child(value, "origin"), _child(value, "scale"), _child(value, "digits")
    if scale is None or digits is None:
        raise refuse(path, "a scale and digits of each sequence", "none", "copy the file again")
    unit = str(scale.get("unit", ""))
    start = _float(path, origin, "an origin") if origin is not None else 0.0
    if origin is not None and start and origin.get("unit", unit) != unit:
        raise refuse(path, "origin and scale in one unit", "two units", "export the file again")
    codes = whole_numbers(path, digits.text or "")
    samples = ((codes * _float(path, scale, "a scale") + start) * millivolts(unit)).astype(np.float32)
    samples[codes == LOWEST16] = np.nan
    return name, unit, samples


def whole_numbers(path: Path, text: str) -> NDArray[np.float64]:
    """Numbers between blanks.

    Raises:
        DataError: other text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy says that it stopped early
        try:
            found = np.fromstring(text, np.float64, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise refuse(path, "numbers as samples", "other text", "copy the file again") from error
    if not np.isfinite(found).all():
        raise refuse(path, "finite samples", "others", "copy the file again")
    return found


# --- Philips Sierra --------------------------------------------------------------------------------------------------


def _sierra(path: Path, root: Element) -> Recording:
    waveforms = next(_below(root, "parsedwaveforms"), None)
    signal = next(_below(root, "signalcharacteristics"), None)
    if waveforms is None or signal is None or not (waveforms.text or "").strip():
        raise refuse(path, "parsedwaveforms and signalcharacteristics", "none", "export the ECG with its waveforms")
    version = (next((e.text or "" for e in _below(root, "documentversion")), "")).strip()
    if version not in {"1.03", "1.04", "1.04.01", "1.04.02"}:
        raise refuse(path, "Sierra XML 1.03 or 1.04", "another version", "export it as DICOM or HL7 aECG")
    fields = {local(child): (child.text or "").strip() for child in signal}
    labels = waveforms.get("leadlabels") or next((e.text or "" for e in _below(root, "mainwaveformformat")), "")
    frequency, resolution, milliseconds = (
        _attribute(path, word, what)
        for word, what in (
            (fields.get("samplingrate"), "sampling rate"),
            (fields.get("resolution") or fields.get("signalresolution"), "resolution"),
            (waveforms.get("durationperchannel"), "duration"),
        )
    )
    if fields.get("bitspersample", "16") != "16" or fields.get("signaloffset", "0") != "0":
        raise refuse(path, "signed 16-bit samples without an offset", "others", "export it as DICOM or HL7 aECG")
    names = labels.split()
    samples = round(milliseconds * frequency / 1000)
    if not names or len(names) > 16 or not 0 < samples <= 1 << 17:
        found = f"{len(names)} leads of {samples} samples"
        raise refuse(path, "1 to 16 leads of 1 to 2^17 samples", found, "copy the file again")
    if len(set(names)) < len(names):
        raise refuse(path, "each lead once", "one twice", "export it again, as DICOM or HL7 aECG")
    packed = "XLI" in {waveforms.get("compression"), waveforms.get("compressmethod")}
    codes = sierra_samples(path, waveforms.text or "", names, samples, packed=packed)
    codes, notes = _without_calibration(codes, frequency)
    millivolt = (codes * (resolution * 1e-3)).astype(np.float32)
    millivolt[codes == LOWEST16] = np.nan
    return _held(names, ["uV"] * len(names), frequency, millivolt, "Philips Sierra XML", notes)


def _without_calibration(codes: NDArray[np.int32], frequency: float) -> tuple[NDArray[np.int32], list[str]]:
    """The recording without the pulse that the device appends: there, all leads are the same."""
    different = np.flatnonzero(codes.max(axis=0) != codes.min(axis=0))
    end = int(different[-1]) + 1 if different.size else 0
    rest = codes.shape[1] - end
    if not end or len(codes) < 3 or rest < 0.1 * frequency or not codes[0, end:].any():
        return codes, []
    return codes[:, :end], [f"not read: the calibration pulse in the last {rest / frequency:.3g} s"]


def _attribute(path: Path, word: str | None, what: str) -> float:
    try:
        number = float(word or "")
    except ValueError:
        number = 0.0
    if not 0 < number < 1e7:
        raise refuse(path, f"a positive {what}", "none", "copy the file again")
    return number


# --- persons ---------------------------------------------------------------------------------------------------------

_PERSONS = {"name": "name", "lastname": "name", "firstname": "name", "patientid": "id", "birthTime": "date"}
_PERSONS |= {
    "dateofbirth": "date",
    "birthdate": "date",
    "addr": "address",
    "PatientID": "id",
    "PatientLastName": "name",
}
_PERSONS |= {"PatientFirstName": "name", "operator": "name", "operatorid": "id", "orderingclinician": "name"}
_PERSONS |= {
    "attendingclinician": "name",
    "MRN": "id",
    "uniquepatientid": "id",
    "effectiveTime": "date",
    "text": "free text",
}
_PERSONS |= {"acquisitiontime": "date", "comments": "free text", "reasonfororder": "free text", "ordernumber": "id"}


def identifying(path: Path) -> list[Identifying]:
    """Elements of persons and times that hold something; paths of elements only."""
    found = {}
    root = _root(path)
    for parent in root.iter():
        for child in parent:
            kind = _PERSONS.get(local(child), "")
            filled = (child.text or "").strip(" -\r\n\t") or child.get("value") or len(child)
            if kind and filled:
                found[f"{local(parent)}/{local(child)}"] = kind
            if local(parent) == "trialSubject" and local(child) == "id":
                found["trialSubject/id"] = "id"
            if child.get("date"):
                found[f"{local(child)}/@date"] = "date"
    return [Identifying(where=where, kind=kind) for where, kind in found.items()]
