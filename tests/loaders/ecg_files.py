"""Small ECG files of every format, written from their specifications, for the tests of the loader."""

import base64
import warnings

import numpy as np

from medfuse.loaders.ecg import synthesise

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def codes(seconds=10.0, frequency=250.0, microvolts=5.0, seed=0):
    """(12, samples) whole numbers of ``microvolts`` each."""
    return np.round(synthesise(seconds, frequency, seed=seed) * 1000 / microvolts).astype(np.int32)


def write_edf(path, signals, *, records, seconds=1.0, mark="", patient="X X X X"):
    """Signals: (label, unit, physical low and high, codes)."""
    count = len(signals)
    per = [len(codes) // records for *_, codes in signals]
    head = f"{'0':8}{patient:80}{'Startdate X X X X':80}01.01.8500.00.00{256 * (count + 1):<8}{mark:44}"
    head += f"{records:<8}{seconds:<8g}{count:<4}"
    columns = ([s[0] for s in signals], 16), ([""] * count, 80), ([s[1] for s in signals], 8)
    columns += ([s[2] for s in signals], 8), ([s[3] for s in signals], 8), ([-32767] * count, 8), ([32767] * count, 8)
    columns += ([""] * count, 80), (per, 8), ([""] * count, 32)
    head += "".join(f"{value!s:<{width}}" for values, width in columns for value in values)
    body = b"".join(
        np.asarray(codes[k * n : (k + 1) * n], "<i2").tobytes()
        for k in range(records)
        for n, (*_, codes) in zip(per, signals, strict=True)
    )
    path.write_bytes(head.encode("ascii") + body)
    return path


def write_dicom(path, groups, *, sop="1.2.840.10008.5.1.4.1.1.9.1.1", syntax="1.2.840.10008.1.2.1", patient="DOE^J"):
    """Groups: dict(codes (leads, samples), leads, frequency, and optional originality, sensitivity, unit, baseline)."""
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = sop, "1.2.3", syntax
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = sop, "1.2.3", "ECG"
    data.PatientName, data.PatientID, data.StudyDate = patient, "12345", "20200101"
    data.WaveformSequence = pydicom.Sequence([_group(Dataset, **group) for group in groups])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def _group(dataset, *, codes, leads, frequency, originality="ORIGINAL", sensitivity=5, unit="uV", **more):
    group = dataset()
    group.MultiplexGroupTimeOffset, group.WaveformOriginality = "0", originality
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = codes.shape
    group.SamplingFrequency = frequency
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, more.get("kind", "SS")
    if "padding" in more:
        group.add_new(0x5400100A, "OW", np.array([more["padding"]], "<i2").tobytes())
    group.ChannelDefinitionSequence = []
    for lead in leads:
        channel, source, units = dataset(), dataset(), dataset()
        source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = "x", "99TEST", f"Lead {lead}"
        channel.ChannelSourceSequence = [source]
        if sensitivity:
            units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", "unit"
            channel.ChannelSensitivity, channel.ChannelSensitivityUnitsSequence = sensitivity, [units]
            channel.ChannelSensitivityCorrectionFactor, channel.ChannelBaseline = 1, more.get("baseline", 0)
        channel.WaveformBitsStored = 16
        group.ChannelDefinitionSequence.append(channel)
    kind = "<u2" if more.get("kind") == "US" else "<i2"
    group.add_new(0x54001010, "OW", codes.T.astype(kind).tobytes())
    return group


def aecg(codes, *, leads=LEADS, step=("0.004", "s"), scale=("5", "uV"), origin="0", body=""):
    """An HL7 aECG document."""
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value><origin value="{origin}" '
        f'unit="{scale[1]}"/><scale value="{scale[0]}" unit="{scale[1]}"/><digits>{" ".join(map(str, row))}</digits>'
        "</value></sequence></component>"
        for lead, row in zip(leads, codes.tolist(), strict=True)
    )
    return (
        '<?xml version="1.0"?><AnnotatedECG xmlns="urn:hl7-org:v3"><componentOf><subject><trialSubject>'
        "<subjectDemographicPerson><name>Doe</name></subjectDemographicPerson></trialSubject></subject></componentOf>"
        f"{body}<component><series><component><sequenceSet><component><sequence>"
        f'<code code="TIME_ABSOLUTE"/><value><head value="2002"/>'
        f'<increment value="{step[0]}" unit="{step[1]}"/></value>'
        f"</sequence></component>{sequences}</sequenceSet></component></series></component></AnnotatedECG>"
    )


def sierra(codes, *, packed, frequency=500, version="1.04"):
    """A Philips Sierra document; ``packed`` as XLI."""
    content = b"".join(map(xli_block, predicted(codes))) if packed else codes.astype("<i2").tobytes()
    method = 'compression="XLI"' if packed else ""
    return (
        f'<?xml version="1.0"?><restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo>'
        f"<documentversion>{version}</documentversion></documentinfo><patient><patientid>77</patientid></patient>"
        f"<signalcharacteristics><samplingrate>{frequency}</samplingrate><resolution>5</resolution>"
        f"<bitspersample>16</bitspersample></signalcharacteristics><waveforms><parsedwaveforms {method} "
        f'leadlabels="{" ".join(LEADS)}" durationperchannel="{codes.shape[1] * 1000 // frequency}">'
        f"{base64.b64encode(content).decode()}</parsedwaveforms></waveforms></restingecgdata>"
    )


def predicted(codes):
    """What XLI stores: limb leads as differences to Einthoven and Goldberger."""
    out = codes.copy()
    out[2] = codes[1] - codes[0] - codes[2]
    out[3] = -codes[3] - (codes[0] + codes[1]) // 2
    out[4] = (codes[0] - codes[2]) // 2 - codes[4]
    out[5] = (codes[1] + codes[2]) // 2 - codes[5]
    return out


def xli_block(row):
    """Second differences plus 64, upper bytes then lower bytes, LZW with codes of 10 bits."""
    row = row.astype(np.int64)
    bend = 2 * row[1:-1] - row[:-2] - row[2:]
    words = np.concatenate([row[:2], bend[1:] + 64, [64]]).astype(np.int16).view(np.uint16)
    raw = (words >> 8).astype(np.uint8).tobytes() + (words & 0xFF).astype(np.uint8).tobytes()
    table, found, out = {bytes([k]): k for k in range(256)}, b"", []
    for byte in raw:
        longer = found + bytes([byte])
        if longer in table:
            found = longer
            continue
        out.append(table[found])
        if len(table) < 1023:
            table[longer] = len(table)
        found = bytes([byte])
    out += [table[found], 1023]
    bits = "".join(f"{code:010b}" for code in out)
    bits += "0" * (-len(bits) % 8)
    block = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return len(block).to_bytes(4, "little") + b"\0\0" + int(bend[0]).to_bytes(2, "little", signed=True) + block
