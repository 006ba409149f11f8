"""Named broken EDF, DICOM and Sierra files, each with what is said of it."""

import ecg_files as files_of
import numpy as np
import pydicom
import pytest

from medfuse.errors import DataError
from medfuse.inspection import inspect
from medfuse.loaders import ecg

LEADS = files_of.LEADS

# --- EDF: byte ranges of the header of two signals --------------------------------------------------------------------

FIELDS = {"version": 0, "reserved": 192, "records": 236, "seconds": 244, "count": 252}
SECOND = {"label": 16, "unit": 96 * 2 + 8, "low": 104 * 2 + 8, "high": 112 * 2 + 8, "lowest": 120 * 2 + 8}
SECOND |= {"highest": 128 * 2 + 8, "samples": 216 * 2 + 8}
EDF = {
    "no version": ("version", "1       ", "EDF"),
    "no number of signals": ("count", "    ", "EDF"),
    "no signal": ("count", "0   ", "headers of 0 signals"),
    "too many signals": ("count", "9999", "headers of 9999 signals"),
    "more signals than headers": ("count", "40  ", "headers of 40 signals"),
    "interrupted": ("reserved", "EDF+D", r"EDF\+D"),
    "text as records": ("records", "many    ", "numbers as number and seconds"),
    "no records": ("records", "0       ", "0 data records"),
    "more records than stored": ("records", "400     ", "400 data records"),
    "text as seconds": ("seconds", "one     ", "numbers as number and seconds"),
    "negative seconds": ("seconds", "-1      ", "data records of a positive length"),
    "no duration": ("seconds", "0       ", "expected"),
    "another unit": ("unit", "mmHg    ", "no lead|volts|leads"),
    "text as range": ("low", "low     ", "numbers as physical"),
    "an empty physical range": ("high", "-9      ", "a range of signal 2"),
    "an inverted digital range": ("highest", "-32768  ", "a range of signal 2"),
    "no samples": ("samples", "-250    ", "data records of a positive length"),
    "more samples than stored": ("samples", "99999   ", "4 data records"),
    "infinite samples": ("samples", "1e999   ", "numbers as samples"),
}


@pytest.mark.parametrize("name", EDF)
def test_a_broken_edf_is_refused(tmp_path, name):
    field, text, said = EDF[name]
    codes = files_of.codes(seconds=4)
    signals = [("EKG I", "uV", -9, 9, codes[0]), ("EKG II", "uV", -9, 9, codes[1])]
    path = files_of.write_edf(tmp_path / "e.edf", signals, records=4)
    assert ecg.read((path,), {}).facts["leads"] == ["I", "II"]
    at = FIELDS[field] if field in FIELDS else 256 + SECOND[field]
    content = bytearray(path.read_bytes())
    content[at : at + len(text)] = text.encode()
    path.write_bytes(bytes(content))
    if name == "another unit":
        assert ecg.read((path,), {}).facts["leads"] == ["I"]  # the other lead stays
        return
    with pytest.raises(DataError, match=said):
        ecg._ecg_edf.open_edf(path)
    assert not any("medfuse failed" in one.refusal for one in inspect([path]))


# --- DICOM ------------------------------------------------------------------------------------------------------------


def group_of(data):
    return data.WaveformSequence[0]


def set_on(where, name, value):
    def change(data):
        node = group_of(data) if where == "group" else group_of(data).ChannelDefinitionSequence[3]
        if value is None:
            delattr(node, name)
        else:
            setattr(node, name, value)

    return change


DICOM = {
    "no waveform": lambda data: delattr(data, "WaveformSequence"),
    "an empty sequence": lambda data: setattr(data, "WaveformSequence", pydicom.Sequence([])),
    "no frequency": set_on("group", "SamplingFrequency", None),
    "frequency of zero": set_on("group", "SamplingFrequency", 0),
    "negative frequency": set_on("group", "SamplingFrequency", -500),
    "no number of channels": set_on("group", "NumberOfWaveformChannels", None),
    "more channels than defined": set_on("group", "NumberOfWaveformChannels", 13),
    "more samples than stored": set_on("group", "NumberOfWaveformSamples", 2501),
    "a billion samples": set_on("group", "NumberOfWaveformSamples", 2**32 - 1),
    "no samples": set_on("group", "NumberOfWaveformSamples", 0),
    "no data": set_on("group", "WaveformData", None),
    "half of the data": set_on("group", "WaveformData", b"\0" * 30_000),
    "samples of 12 bits": set_on("group", "WaveformBitsAllocated", 12),
    "samples of another kind": set_on("group", "WaveformSampleInterpretation", "UB"),
    "no channels defined": set_on("group", "ChannelDefinitionSequence", None),
    "a channel without source": set_on("channel", "ChannelSourceSequence", None),
    "a channel without sensitivity": set_on("channel", "ChannelSensitivity", None),
    "a channel without unit": set_on("channel", "ChannelSensitivityUnitsSequence", None),
}
LOSES_A_LEAD = {"a channel without source", "a channel without sensitivity", "a channel without unit"}


@pytest.mark.parametrize("name", DICOM)
def test_a_broken_dicom_ecg_is_refused_or_loses_the_lead(tmp_path, name):
    group = {"codes": files_of.codes(), "leads": LEADS, "frequency": 250}
    path = files_of.write_dicom(tmp_path / "d.dcm", [group])
    assert ecg.read((path,), {}).facts["leads"] == list(LEADS)
    data = pydicom.dcmread(path)
    DICOM[name](data)
    data.save_as(path)
    try:
        leads = ecg.read((path,), {}).facts["leads"]
    except DataError as error:
        said = str(error)
        leads = None
    assert leads is None or (name in LOSES_A_LEAD and LEADS[3] not in leads)
    assert leads is not None or ("expected" in said and "; " in said and "d.dcm" in said)
    assert not any("medfuse failed" in one.refusal for one in inspect([path]))


# --- Sierra -----------------------------------------------------------------------------------------------------------

SIERRA = {
    "cut": ("</restingecgdata>", ""),
    "another version": (">1.04<", ">2.0<"),
    "text as frequency": ("<samplingrate>500", "<samplingrate>x"),
    "frequency of zero": ("<samplingrate>500", "<samplingrate>0"),
    "negative frequency": ("<samplingrate>500", "<samplingrate>-500"),
    "no resolution": ("<resolution>5", "<resolution>"),
    "resolution of zero": ("<resolution>5", "<resolution>0"),
    "other bits": ("<bitspersample>16", "<bitspersample>12"),
    "no waveforms": ("<parsedwaveforms", "<otherwaveforms"),
    "another duration": ('durationperchannel="', 'durationperchannel="1'),
    "no duration": ("durationperchannel=", "length="),
    "no leads": ("leadlabels=", "labels="),
    "a lead twice": ("I II III", "I I III"),
    "no base64": ("</parsedwaveforms>", "*</parsedwaveforms>"),
    "bytes are missing": ("AAA", "A"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", SIERRA)
def test_a_broken_sierra_document_is_refused(tmp_path, name, packed):
    old, new = SIERRA[name]
    text = files_of.sierra(files_of.codes(seconds=2, frequency=500), packed=packed)
    path = tmp_path / "s.xml"
    path.write_text(text)
    expected = ecg.read((path,), {}).fetch([0])
    assert np.isfinite(expected).all()
    if old not in text:
        old = text[text.index("</parsedwaveforms>") - 40 :][:20]
        new = old[:9]
    broken = text.replace(old, new, 1)
    if name == "no waveforms":
        broken = broken.replace("</parsedwaveforms", "</otherwaveforms")
    path.write_text(broken)
    with pytest.raises(DataError, match="expected") as caught:
        ecg.read((path,), {})
    assert "; " in str(caught.value)
    assert not any("medfuse failed" in one.refusal for one in inspect([path]))
