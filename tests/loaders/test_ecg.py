"""ECG files of every format: equal to other software, refused by name when damaged, nothing interpolated."""

import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import wfdb

sys.path.insert(0, str(Path(__file__).parent))

import ecg_files as files_of
from clock import Watch

from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.inspection import inspect, recognise
from medfuse.loaders import ecg
from medfuse.loaders._ecg_common import lead_name
from medfuse.loaders.base import Head

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ecg"
LEADS = list(files_of.LEADS)


def all_of(raw):
    return raw.fetch(range(len(raw)))


def record(folder, name="r", *, seconds=10.0, frequency=250.0, seed=0, **more):
    signal = ecg.synthesise(seconds, frequency, seed=seed)
    return ecg.write_wfdb(folder, name, signal, sampling_frequency=frequency, **more), signal


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- WFDB ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [16, 212])
@pytest.mark.parametrize("samples", [999, 1000])
def test_what_we_write_wfdb_reads_the_same(tmp_path, fmt, samples):
    signal = ecg.synthesise(4.0, 250.0)[:3, :samples]
    signal[0, 7] = np.nan
    ecg.write_wfdb(tmp_path, "r", signal, sampling_frequency=250, leads=LEADS[:3], gain=200, fmt=fmt)
    theirs = wfdb.rdrecord(str(tmp_path / "r"))
    np.testing.assert_allclose(theirs.p_signal.T, signal, atol=0.5 / 200 + 1e-12)
    assert np.isnan(theirs.p_signal[7, 0])
    assert theirs.sig_name == LEADS[:3]
    digital = wfdb.rdrecord(str(tmp_path / "r"), physical=False)
    assert [c % 65536 for c in theirs.checksum] == [c % 65536 for c in digital.calc_checksum()]
    ours = ecg.read(ecg.group(sorted(tmp_path.iterdir()))[0], {"leads": ["II", "III"]})
    np.testing.assert_array_equal(all_of(ours)[0], theirs.p_signal[:, 1:].T.astype(np.float32))


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80", "508", "516", "524"])
def test_every_format_is_bit_equal_to_wfdb_and_so_is_every_slice(tmp_path, fmt):
    bits = {"80": 8, "508": 8, "212": 12, "24": 24, "524": 24, "32": 32}.get(fmt, 16)
    top = 2 ** (bits - 1) - 1
    digital = np.random.default_rng(0).integers(-top, top, (1001, 3), endpoint=True)
    digital[5, 1] = -top - 1 if fmt != "32" else -(2**31)  # a missing sample
    wfdb.wrsamp(
        "r",
        fs=100,
        units=["mV"] * 3,
        sig_name=["I", "II", "III"],
        d_signal=digital,
        fmt=[fmt] * 3,
        adc_gain=[123.4, 200.0, 7.0],
        baseline=[3, -8, 0],
        write_dir=str(tmp_path),
    )
    recording = ecg._open(tuple(sorted(tmp_path.iterdir(), reverse=True)))
    expected = wfdb.rdrecord(str(tmp_path / "r")).p_signal.astype(np.float32).T
    assert np.isnan(expected).sum() == 1
    np.testing.assert_array_equal(recording.load([0, 1, 2], 0, 1001), expected)
    for start, stop in ((1, 2), (2, 1001), (500, 733), (1000, 1001)):
        np.testing.assert_array_equal(recording.load([2, 0], start, stop), expected[[2, 0], start:stop])


@pytest.mark.parametrize(("fmt", "codes"), [(61, ">i2"), (160, "<u2"), (8, "i1")])
def test_formats_that_wfdb_does_not_write(tmp_path, fmt, codes):
    samples = np.array([100, 130, 90, -20, 45, 60], np.int64)
    stored = {61: samples, 160: samples + 32768, 8: np.diff(samples, prepend=100)}[fmt]
    (tmp_path / "r.dat").write_bytes(stored.astype(codes).tobytes())
    (tmp_path / "r.hea").write_text(f"r 1 100 6\nr.dat {fmt} 200 12 0 100 0 0 II\n")
    expected = wfdb.rdrecord(str(tmp_path / "r")).p_signal.astype(np.float32).T
    recording = ecg._open((tmp_path / "r.hea", tmp_path / "r.dat"))
    np.testing.assert_array_equal(recording.load([0], 0, 6), expected)
    np.testing.assert_array_equal(recording.load([0], 0, 6)[0], (samples / 200).astype(np.float32))
    np.testing.assert_array_equal(recording.load([0], 2, 5), expected[:, 2:5])


@pytest.mark.parametrize("fmt", [310, 311])
@pytest.mark.parametrize("samples", [9, 10, 11])
def test_three_samples_in_four_bytes(tmp_path, fmt, samples):
    codes = np.random.default_rng(samples).integers(-511, 512, samples)
    triples = np.append(codes, np.zeros(-samples % 3, int)).reshape(-1, 3) & 0x3FF
    if fmt == 311:
        words = (triples << [0, 10, 20]).sum(axis=1).astype("<u4")
    else:
        low = triples[:, 0] << 1 | (triples[:, 2] & 31) << 11
        words = (low | (triples[:, 1] << 1 | (triples[:, 2] >> 5) << 11) << 16).astype("<u4")
    size = {310: (0, 2, 4), 311: (0, 2, 3)}[fmt][samples % 3] + samples // 3 * 4
    (tmp_path / "r.dat").write_bytes(words.tobytes()[:size])
    (tmp_path / "r.hea").write_text(f"r 1 100 {samples}\nr.dat {fmt} 200 12 0 0 0 0 II\n")
    recording = ecg._open((tmp_path / "r.hea", tmp_path / "r.dat"))
    for start in range(samples):
        np.testing.assert_array_equal(recording.load([0], start, samples)[0], (codes / 200).astype(np.float32)[start:])
    theirs = wfdb.rdrecord(str(tmp_path / "r")).p_signal[:, 0]
    np.testing.assert_array_equal(theirs.astype(np.float32), (codes / 200).astype(np.float32))
    (tmp_path / "r.dat").write_bytes(words.tobytes()[: size - 1])
    with pytest.raises(DataError, match="the file is cut"):
        ecg.read((tmp_path / "r.hea", tmp_path / "r.dat"), {})


def test_samples_per_frame_and_skew_are_as_in_wfdb(tmp_path):
    digital = np.arange(60, dtype="<i2")
    (tmp_path / "r.dat").write_bytes(digital.tobytes())
    (tmp_path / "r.hea").write_text("r 2 50 20\nr.dat 16x2:3 100/mV 16 0 0 0 0 II\nr.dat 16 100/mV 16 0 0 0 0 V1\n")
    theirs = wfdb.rdrecord(str(tmp_path / "r"), smooth_frames=False).e_p_signal
    recording = ecg._open((tmp_path / "r.hea", tmp_path / "r.dat"))
    assert [(c.frequency, c.samples) for c in recording.channels] == [(100.0, 40), (50.0, 20)]
    for row in (0, 1):
        found = recording.load([row], 0, recording.channels[row].samples)[0]
        real = 40 - 2 * 3 if row == 0 else 20
        np.testing.assert_array_equal(found[:real], theirs[row][:real].astype(np.float32))
    assert np.isnan(recording.load([0], 34, 40)).all()  # wfdb 4.3.1 has 0 in the first half of them
    with pytest.raises(DataError, match=r"one sampling frequency.*II 100, V1 50"):
        ecg.read((tmp_path / "r.hea", tmp_path / "r.dat"), {})


def segments(folder):
    """Three segments with a break, described by a layout; the second has no V1 and another gain."""
    signal = ecg.synthesise(12.0, 100.0)[[1, 6]]
    ecg.write_wfdb(folder, "s1", signal[:, :400], sampling_frequency=100, leads=["II", "V1"])
    ecg.write_wfdb(folder, "s2", signal[:1, 400:700], sampling_frequency=100, leads=["II"], gain=500)
    ecg.write_wfdb(folder, "s3", signal[:, 700:1100], sampling_frequency=100, leads=["II", "V1"])
    layout = "lay 2 100 0\n~ 0 1000/mV 16 0 0 0 0 II\n~ 0 1000/mV 16 0 0 0 0 V1\n"
    (folder / "lay.hea").write_text(layout)
    (folder / "m.hea").write_text("m/5 2 100 1150\nlay 0\ns1 400\ns2 300\n~ 50\ns3 400\n")
    return signal


def test_segments_follow_each_other_and_what_is_not_there_is_a_gap(tmp_path):
    segments(tmp_path)
    (group,) = ecg.group(sorted(tmp_path.iterdir()))
    assert group[0].name == "m.hea"
    assert len(group) == 8
    recording = ecg._open(group)
    theirs = wfdb.rdrecord(str(tmp_path / "m"), m2s=True).p_signal.astype(np.float32).T
    np.testing.assert_array_equal(recording.load([0, 1], 0, 1150), theirs)
    np.testing.assert_array_equal(recording.load([1, 0], 350, 800), theirs[::-1, 350:800])
    assert np.isnan(theirs[1, 400:750]).all()
    with pytest.raises(DataError, match="gaps: zero"):
        ecg.read(group, {"seconds": 5}).fetch([0])
    raw = ecg.read(group, {"gaps": "zero", "seconds": 11.5})
    np.testing.assert_array_equal(raw.fetch([0])[0], np.nan_to_num(theirs))
    assert raw.facts["gaps"] == "zero"
    assert raw.facts["seconds_between_segments"] == 0.5
    ecg.read(group, {"leads": ["II"], "seconds": 3})
    assert ecg.describe(group).holds["segments"] == 3


def test_a_layout_alone_is_refused_by_name_and_so_is_a_missing_segment(tmp_path):
    segments(tmp_path)
    with pytest.raises(DataError, match="layout header; it has no signal by design"):
        ecg.describe((tmp_path / "lay.hea",))
    (tmp_path / "s2.hea").unlink()
    (group,) = [g for g in ecg.group(sorted(tmp_path.iterdir())) if g[0].name == "m.hea"]
    with pytest.raises(DataError, match=r"segment s2\.hea among the files"):
        ecg.read(group, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("r 12 250 2500", "r 13 250 2500", "13 lines after the record line"),
        ("r 12 250 2500", "r 12 250 2501", "bytes as r.hea declares"),
        ("r 12 250 2500", "r 12 -250 2500", "record line"),
        ("r 12 250 2500", "r 12 0 2500", "sampling frequency"),
        ("r 12 250 2500", f"r 12 250 {10**15}", "number of samples"),
        ("r 12 250 2500", "r 99999 250 2500", "number of signals"),
        ("r.dat 16 1000(0)", "r.dat 17 1000(0)", "signal format of 8, 16"),
        ("r.dat 16 1000(0)", "../r.dat 16 1000(0)", "in the folder of the header"),
        ("r.dat 16 1000(0)", "/etc/passwd 16 1000(0)", "in the folder of the header"),
        ("r.dat 16 1000(0)", "q.dat 16 1000(0)", "signal file q.dat among the files"),
        ("1000(0)/mV", "1e999(0)/mV", "finite gain"),
        ("1000(0)/mV", "x/mV", "gain such as"),
        ("/mV", "/mmHg", "expected leads in volts"),
    ],
)
def test_a_wrong_header_is_refused_with_what_to_do(tmp_path, old, new, message):
    (header, data), _ = record(tmp_path)
    edit(header, old, new)
    with pytest.raises(DataError, match=message):
        ecg.read((header, data), {})
    assert inspect([tmp_path])[0].refusal or message == "signal file q.dat among the files"


def test_a_gain_of_zero_is_the_default_and_a_warning(tmp_path):
    (header, data), _ = record(tmp_path)
    expected = all_of(ecg.read((header, data), {}))
    edit(header, "1000(0)/mV", "0/mV")
    raw = ecg.read((header, data), {})
    assert any("default of 200" in warning for warning in raw.warnings)
    np.testing.assert_allclose(all_of(raw), expected * 5, rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1e-3), ("nV", 1e-6), ("V", 1e3), ("mv", 1)])
def test_units_of_volts_become_mv(tmp_path, unit, factor):
    (header, data), _ = record(tmp_path)
    expected = all_of(ecg.read((header, data), {}))
    edit(header, "/mV", f"/{unit}")
    np.testing.assert_allclose(all_of(ecg.read((header, data), {})), expected * factor, rtol=1e-6)


def test_missing_samples_are_gaps_and_never_filled_unless_told(tmp_path):
    signal = ecg.synthesise(10.0, 250.0)
    signal[3, 100:110] = np.nan
    files = ecg.write_wfdb(tmp_path, "r", signal, sampling_frequency=250)
    with pytest.raises(DataError, match=r"window at 0 s.*gaps: zero"):
        ecg.read(files, {})
    raw = ecg.read(files, {"gaps": "zero"})
    assert (all_of(raw)[0, 3, 100:110] == 0).all()
    np.testing.assert_allclose(all_of(raw)[0], np.nan_to_num(signal), atol=6e-4)
    filtered = ecg.read(files, {"gaps": "zero", "bandpass": [0.5, 40], "sampling_frequency": 125})
    assert (all_of(filtered)[0, 3, 51:55] == 0).all()


# --- leads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("i", "I"),
        ("DI", "I"),
        ("avr", "aVR"),
        ("AVR", "aVR"),
        ("MLII", "II"),
        ("MDC_ECG_LEAD_AVF", "aVF"),
        ("Lead II", "II"),
        ("ECG V1", "V1"),
        ("vx", "VX"),
        ("RESP", ""),
        ("", ""),
    ],
)
def test_lead_names(text, name):
    assert lead_name(text) == name


def test_leads_come_by_name_in_the_order_asked_for(tmp_path):
    signal = ecg.synthesise(10.0, 250.0)
    order = [7, 3, 0, 11, 5, 1, 2, 4, 6, 8, 9, 10]
    names = [LEADS[k].upper() for k in order]
    files = ecg.write_wfdb(tmp_path, "r", signal[order], sampling_frequency=250, leads=names)
    raw = ecg.read(files, {})
    assert raw.facts["leads"] == LEADS
    np.testing.assert_allclose(all_of(raw)[0], signal, atol=6e-4)
    some = ecg.read(files, {"leads": ["V2", "aVR"]})
    np.testing.assert_allclose(all_of(some)[0], signal[[7, 3]], atol=6e-4)
    assert any("not read" in warning for warning in some.warnings)
    with pytest.raises(DataError, match=r"expected the leads V9.*found"):
        ecg.read(files, {"leads": ["V9"]})


def test_leads_that_do_not_belong_together_are_a_warning_with_the_rms(tmp_path):
    signal = ecg.synthesise(10.0, 250.0)
    good = ecg.read(ecg.write_wfdb(tmp_path, "good", signal, sampling_frequency=250), {})
    assert not good.warnings
    assert max(good.facts["einthoven_rms_mv"].values()) < 0.001
    swapped = signal[[1, 0, *range(2, 12)]]
    bad = ecg.read(ecg.write_wfdb(tmp_path, "bad", swapped, sampling_frequency=250), {})
    assert any("I - II + III should vanish, its RMS is 0." in warning for warning in bad.warnings)
    assert not any("aVR" in warning for warning in bad.warnings)


def test_modified_leads_signals_of_other_kinds_and_unknown_names(tmp_path):
    signal = ecg.synthesise(10.0, 250.0)[:3]
    files = ecg.write_wfdb(tmp_path, "a", signal, sampling_frequency=250, leads=["MLII", "RESP", "V5"])
    raw = ecg.read(files, {})
    assert raw.facts["leads"] == ["II", "V5"]
    assert any("modified" in w for w in raw.warnings)
    assert any("RESP" in w for w in raw.warnings)
    both = ecg.write_wfdb(tmp_path, "b", signal, sampling_frequency=250, leads=["MLII", "II", "II"])
    assert ecg.read(both, {}).facts["leads"] == ["II", "MLII", "II #3"]
    unknown = ecg.write_wfdb(tmp_path, "c", signal, sampling_frequency=250, leads=["col", "row", "x1"])
    raw = ecg.read(unknown, {})
    assert raw.facts["leads"] == ["col", "row", "x1"]
    assert any("no signal has the name of a lead" in w for w in raw.warnings)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_hold_every_sample_once_or_more(tmp_path):
    files, signal = record(tmp_path, seconds=25.5)
    raw = ecg.read(files, {})
    assert raw.position[:, 0].tolist() == [0, 10, 15.5]
    np.testing.assert_allclose(all_of(raw)[2], signal[:, -2500:], atol=6e-4)
    raw = ecg.read(files, {"seconds": 5, "stride": 2.5})
    assert raw.shape == (12, 1250)
    assert raw.position[:, 0].tolist() == [*np.arange(0, 20.1, 2.5), 20.5]
    np.testing.assert_array_equal(raw.fetch([3])[0], raw.fetch([2, 3])[1])
    np.testing.assert_array_equal(raw.fetch([0]), raw.fetch([0]))
    with pytest.raises(DataError, match=r"at least 30 s, found 25\.5 s"):
        ecg.read(files, {"seconds": 30})
    with pytest.raises(DataError, match="expected at most 1000000"):
        ecg.read(files, {"seconds": 0.001, "stride": 8e-6, "sampling_frequency": 250_000})


def test_a_short_recording_is_one_window_of_its_length(tmp_path):
    files, _ = record(tmp_path, seconds=3.2)
    assert ecg.read(files, {}).shape == (12, 800)


def test_resampling_keeps_times_and_is_in_the_facts(tmp_path):
    seconds = np.arange(0, 30, 1 / 500)
    tone = np.sin(2 * np.pi * 3 * seconds)[None]
    files = ecg.write_wfdb(tmp_path, "r", tone, sampling_frequency=500, leads=["II"])
    raw = ecg.read(files, {"sampling_frequency": 360, "seconds": 7})
    assert raw.facts["sampling_frequency"] == 360
    assert raw.facts["recorded_sampling_frequency"] == 500
    for number, start in enumerate(raw.position[:, 0]):
        expected = np.sin(2 * np.pi * 3 * (start + np.arange(2520) / 360))
        found = raw.fetch([number])[0, 0]
        np.testing.assert_allclose(found[100:-100], expected[100:-100], atol=0.01)


def test_filters_are_off_unless_named_and_leave_the_phase(tmp_path):
    t = np.arange(0, 20, 1 / 500)
    wave, hum, drift = (
        np.sin(2 * np.pi * 8 * t),
        0.3 * np.sin(2 * np.pi * 50 * t),
        2 + 0.5 * np.sin(2 * np.pi * 0.05 * t),
    )
    files = ecg.write_wfdb(tmp_path, "r", (wave + hum + drift)[None], sampling_frequency=500, leads=["II"])
    np.testing.assert_allclose(ecg.read(files, {}).fetch([0])[0, 0], (wave + hum + drift)[:5000], atol=6e-4)
    raw = ecg.read(files, {"bandpass": [0.5, 120], "notch": 50})
    assert raw.facts["bandpass"] == [0.5, 120]
    assert raw.facts["notch"] == 50
    inner = slice(1000, 4000)
    np.testing.assert_allclose(raw.fetch([0])[0, 0, inner], wave[inner], atol=0.03)
    np.testing.assert_allclose(raw.fetch([1])[0, 0, inner], wave[5000:][inner], atol=0.03)
    with pytest.raises(DataError, match="filters below 250 Hz"):
        ecg.read(files, {"bandpass": [0.5, 300]})


@pytest.mark.parametrize(
    "options",
    [
        {"lead": ["I"]},
        {"gaps": "interpolate"},
        {"leads": "I"},
        {"leads": ["I", "I"]},
        {"seconds": -1},
        {"seconds": True},
        {"bandpass": [40, 0.5]},
        {"bandpass": 5},
        {"bandpass": ["a", "b"]},
        {"sampling_frequency": 249.987654},
    ],
)
def test_wrong_options_are_refused(tmp_path, options):
    files, _ = record(tmp_path)
    with pytest.raises(ConfigError):
        ecg.read(files, options)


# --- EDF, DICOM, XML -------------------------------------------------------------------------------------------------


def test_edf_in_two_frequencies(tmp_path):
    rng = np.random.default_rng(0)
    ecg_codes, slow = rng.integers(-2000, 2000, (2, 1000)), rng.integers(0, 9, 200)
    signals = [("ECG I", "uV", -3276.7, 3276.7, ecg_codes[0]), ("Resp", "mV", -1, 1, slow)]
    signals += [("EKG II", "mV", -3.2767, 3.2767, ecg_codes[1]), ("EDF Annotations", "", -1, 1, np.zeros(400, int))]
    path = files_of.write_edf(tmp_path / "r.edf", signals, records=4, patient="MCH-01 F 02-MAY-51 Doe")
    raw = ecg.read((path,), {})
    assert raw.facts["leads"] == ["I", "II"]
    assert raw.facts["sampling_frequency"] == 250
    np.testing.assert_allclose(all_of(raw)[0], ecg_codes * 1e-4, atol=1e-6)
    part = ecg._open((path,)).load([0, 2], 240, 760)
    np.testing.assert_array_equal(part, all_of(raw)[0][:, 240:760])
    assert [(i.where, i.kind) for i in ecg.identifying((path,))] == [
        ("EDF header: local patient identification", "name")
    ]
    content = path.read_bytes()
    for size, message in ((len(content) - 1, "data records"), (700, "headers of 4"), (100, "EDF")):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=message):
            ecg._ecg_edf.open_edf(path)
    files_of.write_edf(path, signals, records=4, mark="EDF+D")
    with pytest.raises(DataError, match="EDF\\+D"):
        ecg.read((path,), {})
    files_of.write_edf(path, signals[3:], records=4, mark="EDF+C")
    with pytest.raises(DataError, match="annotations alone"):
        ecg.read((path,), {})


def dicom_group(**more):
    return {"codes": files_of.codes(), "leads": LEADS, "frequency": 250, **more}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_dicom_waveforms_become_mv(tmp_path, syntax):
    group = dicom_group(baseline=20)
    derived = {**group, "originality": "DERIVED", "codes": group["codes"][:, :300]}
    path = files_of.write_dicom(tmp_path / "r.dcm", [group, derived], syntax=syntax)
    raw = ecg.read((path,), {})
    assert raw.facts["leads"] == LEADS
    np.testing.assert_allclose(all_of(raw)[0], group["codes"] * 0.005 + 0.020, atol=1e-6)
    assert any("group 2, derived" in w for w in raw.warnings)
    found = {i.where: i.kind for i in ecg.identifying((path,))}
    assert found["(0010,0010) PatientName"] == "name"
    assert found["(0010,0020) PatientID"] == "id"
    assert not any("DOE" in where or "12345" in where for where in found)
    np.testing.assert_array_equal(ecg.read((path,), {"group": 2}).shape, (12, 300))
    with pytest.raises(DataError, match="group: NUMBER"):
        ecg.read((path,), {"group": 3})


def test_dicom_that_is_not_to_be_read_is_refused(tmp_path):
    path = tmp_path / "r.dcm"
    files_of.write_dicom(path, [dicom_group(), dicom_group()])
    with pytest.raises(DataError, match=r"1: original, 12 channels of 2500 samples at 250 Hz; 2: original"):
        ecg.read((path,), {})
    files_of.write_dicom(path, [dicom_group()], sop="1.2.840.10008.5.1.4.1.1.9.2.1")
    with pytest.raises(DataError, match="expected an ECG"):
        ecg.read((path,), {})
    files_of.write_dicom(path, [dicom_group(kind="MB")])
    with pytest.raises(DataError, match="samples of type"):
        ecg.read((path,), {})
    files_of.write_dicom(path, [dicom_group(sensitivity=None)])
    with pytest.raises(DataError, match="leads in volts"):
        ecg.read((path,), {})
    files_of.write_dicom(path, [dicom_group(codes=files_of.codes()[:11])])
    with pytest.raises(DataError, match="11 channels"):
        ecg.read((path,), {})


def test_dicom_padding_is_a_gap_unless_it_is_zero(tmp_path):
    group = dicom_group(padding=-32767)
    group["codes"][4, 50] = -32767
    path = files_of.write_dicom(tmp_path / "r.dcm", [group])
    with pytest.raises(DataError, match="missing"):
        ecg.read((path,), {})
    assert all_of(ecg.read((path,), {"gaps": "zero"}))[0, 4, 50] == 0
    files_of.write_dicom(path, [dicom_group(padding=0)])
    assert any("cannot be told from 0 mV" in w for w in ecg.read((path,), {}).warnings)


@pytest.mark.parametrize(
    ("step", "scale", "factor"),
    [(("0.004", "s"), ("5", "uV"), 5e-3), (("4", "ms"), ("0.005", "mV"), 5e-3), (("4000", "us"), ("5000", "nV"), 5e-3)],
)
def test_aecg_becomes_mv(tmp_path, step, scale, factor):
    codes = files_of.codes()
    path = tmp_path / "r.xml"
    path.write_text(files_of.aecg(codes, step=step, scale=scale))
    raw = ecg.read((path,), {})
    assert raw.facts["leads"] == LEADS
    assert raw.facts["sampling_frequency"] == 250
    np.testing.assert_allclose(all_of(raw)[0], codes * factor, atol=1e-6)
    assert [(i.where, i.kind) for i in ecg.identifying((path,))] == [("subjectDemographicPerson/name", "name")]
    codes[2, 9] = -32768
    path.write_text(files_of.aecg(codes))
    with pytest.raises(DataError, match="missing"):
        ecg.read((path,), {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<digits>", "<digits>12 x ", "numbers as samples"),
        ("<digits>", "<digits>nan ", "finite"),
        ("<digits>", "<digits>1 ", "one length"),
        ('value="0.004"', 'value="0"', "positive increment"),
        ('unit="s"', 'unit="min"', "positive increment"),
        ('<scale value="5"', '<scale value="a"', "a scale"),
        ("</AnnotatedECG>", "", "whole XML"),
        ("TIME_ABSOLUTE", "OTHER", "increment of time"),
    ],
)
def test_a_wrong_aecg_is_refused(tmp_path, old, new, message):
    path = tmp_path / "r.xml"
    path.write_text(files_of.aecg(files_of.codes(seconds=2)).replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        ecg.read((path,), {})


@pytest.mark.parametrize("packed", [True, False])
def test_sierra_is_read_to_the_code_and_without_the_calibration_pulse(tmp_path, packed):
    codes = files_of.codes(seconds=10.6, frequency=500)
    pulse = np.concatenate([np.zeros(50), np.full(100, 200), np.zeros(50)]).astype(np.int32)
    path = tmp_path / "r.xml"
    path.write_text(files_of.sierra(np.concatenate([codes, np.tile(pulse, (12, 1))], axis=1), packed=packed))
    recording = ecg._open((path,))
    assert recording.channels[0].samples == 5300
    np.testing.assert_allclose(recording.load(range(12), 0, 5300), codes * 0.005, atol=1e-6)
    assert any("calibration pulse in the last 0.4 s" in w for w in recording.warnings)
    assert {i.kind for i in ecg.identifying((path,))} == {"id"}
    for old, new in ((">1.04<", ">1.05<"), ("<samplingrate>500", "<samplingrate>x"), ('durationperchannel="', 'x="')):
        path.write_text(files_of.sierra(codes, packed=packed).replace(old, new))
        with pytest.raises(DataError):
            ecg.read((path,), {})


def test_formats_that_are_not_read_are_refused_by_name(tmp_path):
    muse = tmp_path / "muse.xml"
    muse.write_text('<?xml version="1.0"?><!DOCTYPE RestingECG SYSTEM "restecg.dtd"><RestingECG></RestingECG>')
    scp = tmp_path / "r.scp"
    scp.write_bytes(b"\0" * 16 + b"SCPECG" + b"\0" * 100)
    found = {Path(one.path).name: one for one in inspect([tmp_path])}
    assert "GE MUSE XML, which is not; export it as DICOM or HL7 aECG" in found["muse.xml"].refusal
    assert "SCP-ECG" in found["r.scp"].refusal
    assert {one.loader for one in found.values()} == {"ecg"}


# --- hostile and damaged files ---------------------------------------------------------------------------------------


def bombs(folder):
    """Names and files that promise far more than they are."""
    entities = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10 if k else "lol" * 10}">' for k in range(12))
    text = files_of.aecg(files_of.codes(seconds=2))
    head, _, rest = text.partition("?>")
    yield "entities.xml", f"{head}?><!DOCTYPE AnnotatedECG [{entities}]>{rest.replace('<digits>', '<digits>&a11;')}"
    outside = '<!DOCTYPE AnnotatedECG [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    yield "outside.xml", f"{head}?>{outside}{rest.replace('<digits>', '<digits>&a;')}"
    yield "deep.xml", text.replace("<component>", "<a>" * 500_000, 1)
    yield "many.xml", text.replace("<component>", "<a/>" * 1_000_000 + "<component>", 1)
    yield "long.hea", "long 1 250 100\n" + "#" * (30 << 20)
    yield "gap.hea", f"gap/2 1 250 {10**12 + 500}\n~ {10**12}\nr 500\n"
    yield "signals.hea", "signals 1000000 250 100\n"
    yield "size.hea", "size 12 250 1000000000\n" + "r.dat 16 200/mV 16 0 0 0 0 I\n" * 12


def test_bombs_are_refused_in_two_seconds_and_300_mb(tmp_path):
    ecg.write_wfdb(tmp_path, "r", ecg.synthesise(2, 250)[:1], sampling_frequency=250, leads=["I"])
    for name, content in bombs(tmp_path):
        path = tmp_path / name
        path.write_text(content)
        files = (path, tmp_path / "r.hea", tmp_path / "r.dat") if path.suffix == ".hea" else (path,)
        tracemalloc.start()
        watch = Watch()
        with pytest.raises(MedfuseError):
            ecg.read(files, {"gaps": "zero"}) if name != "gap.hea" else ecg.read(files, {"gaps": "zero", "seconds": 1})
        spent, peak = watch.spent(), tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert spent < 6, name  # tracing makes it some three times as slow
        assert peak < 300e6, name


def test_a_dicom_of_a_million_elements_is_refused_quickly(tmp_path):
    path = files_of.write_dicom(tmp_path / "r.dcm", [dicom_group()])
    content = path.read_bytes()
    path.write_bytes(content + b"\x11\x00\x10\x10UL\x04\x00\0\0\0\0" * 1_000_000)
    watch = Watch()
    with pytest.raises(DataError, match="elements"):
        ecg.read((path,), {})
    nested = b"\x11\x00\x20\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5_000
    path.write_bytes(content + nested)
    with pytest.raises(DataError, match=r"levels|cut"):
        ecg.read((path,), {})
    assert watch.spent() < 2


def examples(folder):
    """A small file of each format, and what goes with it."""
    folder.mkdir(exist_ok=True)
    signal = ecg.synthesise(2.0, 250.0)
    groups = [ecg.write_wfdb(folder, f"w{fmt}", signal, sampling_frequency=250, gain=200, fmt=fmt) for fmt in (16, 212)]
    codes = files_of.codes(seconds=2)
    groups.append((files_of.write_edf(folder / "e.edf", [("I", "uV", -9, 9, codes[0])], records=2),))
    groups.append((files_of.write_dicom(folder / "d.dcm", [dicom_group(codes=codes)]),))
    for name, text in (("a.xml", files_of.aecg(codes)), ("s.xml", files_of.sierra(codes, packed=True, frequency=250))):
        (folder / name).write_text(text)
        groups.append((folder / name,))
    (folder / "m").mkdir(exist_ok=True)
    segments(folder / "m")
    return [*groups, *ecg.group(sorted((folder / "m").iterdir()))]


def mutate(content, rng):
    content = bytearray(content) or bytearray(1)  # a cut at the beginning leaves nothing
    at = int(rng.integers(len(content)))
    match int(rng.integers(4)):
        case 0:
            for k in rng.integers(0, len(content), int(rng.integers(1, 9))):
                content[k] = int(rng.integers(256))
        case 1:
            del content[at:]
        case 2:
            other = int(rng.integers(len(content)))
            content[at:at] = content[other : other + int(rng.integers(1, 200))]
        case _:
            content[at : at + 64] = bytes(min(64, len(content) - at))
    return bytes(content)


def run_mutants(folder, count, seed):
    """Each mutant is read or refused with a typed error; the slowest one in seconds."""
    rng = np.random.default_rng(seed)
    groups = examples(folder)
    slowest, reasons = 0.0, []
    for number in range(count):
        group = groups[number % len(groups)]
        path = group[int(rng.integers(len(group)))]
        content = path.read_bytes()
        path.write_bytes(mutate(content, rng) if rng.random() < 0.9 else mutate(mutate(content, rng), rng))
        watch = Watch()
        for call in (
            lambda group=group: ecg.read(group, {"gaps": "zero"}).fetch([0]),
            lambda group=group: ecg.describe(group),
            lambda group=group: ecg.identifying(group),
            lambda group=group: ecg.group(group),
            lambda path=path: recognise(path),
        ):
            try:
                call()
            except MedfuseError as error:
                reasons.append(str(error))
        slowest = max(slowest, watch.spent())
        path.write_bytes(content)
    assert len(reasons) > count // 4
    assert min(map(len, reasons)) > 30
    return slowest


def test_mutants_are_read_or_refused_and_nothing_else(tmp_path):
    assert run_mutants(tmp_path, 96, 7) < 2


@pytest.mark.slow
def test_a_thousand_mutants(tmp_path, many):
    assert run_mutants(tmp_path, many(1000, 10_000), 11) < 2


# --- contract --------------------------------------------------------------------------------------------------------


def test_group_joins_a_record_and_its_annotations_and_nothing_else(tmp_path):
    record(tmp_path, "a")
    record(tmp_path, "b")
    (tmp_path / "a.atr").write_bytes(b"\0\0")
    (tmp_path / "orphan.dat").write_bytes(b"\0\0")
    groups = ecg.group(sorted(tmp_path.iterdir()))
    assert [[p.name for p in g] for g in groups] == [
        ["a.hea", "a.dat", "a.atr"],
        ["b.hea", "b.dat"],
        ["orphan.dat"],
    ]
    assert ecg.describe(groups[0]).holds["annotations"] == ["atr"]
    with pytest.raises(DataError, match="signal file without its header"):
        ecg.read(groups[2], {})


def test_describe_reads_no_sample(tmp_path, monkeypatch):
    (header, data), _ = record(tmp_path)
    monkeypatch.setattr("medfuse.loaders._ecg_decode.read_samples", lambda *a, **k: pytest.fail("samples were read"))
    found = ecg.describe((header, data))
    assert found.holds["leads"] == LEADS
    assert found.holds["seconds"] == 10
    assert any("only the header is given" in w for w in ecg.describe((header,)).warnings)


def test_what_identifies_is_named_without_its_value(tmp_path):
    (header, data), _ = record(tmp_path)
    assert ecg.identifying((header, data)) == []
    header.write_text(header.read_text().replace("250 2500", "250 2500 10:11:12 01/02/1999") + "# John Doe, 81\n")
    found = ecg.identifying((header, data))
    assert [one.kind for one in found] == ["free text", "date"]
    raw = ecg.read((header, data), {})
    everything = json.dumps([dict(raw.facts), raw.warnings, [one.where for one in found]])
    assert "John" not in everything
    assert "1999" not in everything


def test_facts_are_json_and_recognise_needs_content(tmp_path):
    (header, data), _ = record(tmp_path)
    json.dumps(dict(ecg.read((header, data), {}).facts))
    assert not ecg.recognise(Head(path=tmp_path / "x.hea", size=9, start=b"not a header"))
    assert not ecg.recognise(Head(path=tmp_path / "x.dat", size=9, start=b"123456789"))
    assert not ecg.recognise(Head(path=tmp_path / "x.xml", size=9, start=b"<html>"))


def test_the_synthesiser_has_the_rate_and_the_st_level_it_was_asked_for():
    flat, raised = ecg.synthesise(20, 500, seed=3), ecg.synthesise(20, 500, st_mv=0.3, seed=3)
    rise = raised - flat
    assert 0.27 < np.percentile(rise[1], 99) < 0.33
    assert -0.33 < np.percentile(rise[3], 1) < -0.27
    np.testing.assert_allclose(flat[0] - flat[1] + flat[2], 0, atol=1e-12)
    fast = ecg.synthesise(20, 500, heart_rate=120, seed=3, noise_mv=0)
    slow = ecg.synthesise(20, 500, heart_rate=60, seed=3, noise_mv=0)
    counts = [
        int(((x[1, 1:-1] > 0.8) & (x[1, 1:-1] >= x[1, :-2]) & (x[1, 1:-1] > x[1, 2:])).sum()) for x in (slow, fast)
    ]
    assert 18 <= counts[0] <= 22
    assert 37 <= counts[1] <= 43


@pytest.mark.parametrize(
    ("name", "signal", "leads"),
    [("a/b", np.zeros((1, 5)), ["I"]), ("a", np.zeros((2, 5)), ["I"]), ("a", np.full((1, 5), 99.0), ["I"])],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, signal, leads):
    with pytest.raises(DataError):
        ecg.write_wfdb(tmp_path, name, signal, sampling_frequency=100, leads=leads)


# --- real files ------------------------------------------------------------------------------------------------------

REFUSED = {  # what is refused, and a word of why
    "s25047-2704-05-04-10-44n.hea": "leads in volts",
    "test_edfann.edf": "annotations alone",
    "Example.scp": "SCP-ECG",
    "cinc2022_training_data.csv": "without its header",
}
GAPS = {"v102s.hea", "mixedsignals.hea", "041s.hea", "s25047-2704-05-04-10-44.hea", "100skew.hea"}


def real_groups():
    for folder in sorted({path.parent for path in DATA.rglob("*") if path.is_file()}):
        yield from ecg.group(sorted(path for path in folder.iterdir() if path.is_file()))


@pytest.mark.realdata
def test_every_real_file_is_read_or_refused_with_a_reason():
    seen = 0
    for group in real_groups():
        name = group[0].name
        options = {"gaps": "zero"} if name in GAPS else {}
        seen += len(group)
        if name in REFUSED:
            with pytest.raises(DataError, match=REFUSED[name]):
                ecg.read(group, options)
            continue
        raw = ecg.read(group, options)
        for start in range(0, len(raw), 64):
            assert np.isfinite(raw.fetch(range(start, min(start + 64, len(raw))))).all()
        assert ecg.describe(group).holds["leads"]
    assert seen >= len([p for p in DATA.rglob("*") if p.is_file()])


@pytest.mark.realdata
def test_real_wfdb_records_are_bit_equal_to_wfdb():
    for group in real_groups():
        if group[0].suffix != ".hea" or group[0].name in REFUSED:
            continue
        recording = ecg._open(group)
        theirs = wfdb.rdrecord(str(group[0].with_suffix("")), smooth_frames=False)
        signals = theirs.e_p_signal if theirs.e_p_signal is not None else list(theirs.p_signal.T)
        for row, channel in enumerate(recording.channels):
            if channel.unit.lower() == "mv":
                found = recording.load([row], 0, channel.samples)[0]
                np.testing.assert_array_equal(found, np.asarray(signals[row]).astype(np.float32), err_msg=str(group[0]))


@pytest.mark.realdata
def test_nothing_of_a_dicom_goes_to_the_log(caplog):
    group = (DATA / "one_ecg_three_formats" / "Example.dcm",)  # its UIDs are invalid and hold a date
    ecg.read(group, {})
    ecg.describe(group)
    ecg.identifying(group)
    assert not caplog.records


@pytest.mark.realdata
def test_one_recording_in_dicom_and_aecg_agrees():
    folder = DATA / "one_ecg_three_formats"
    one, other = (ecg.read((folder / name,), {}) for name in ("Example.dcm", "Example.xml"))
    assert one.facts["leads"] == other.facts["leads"] == LEADS
    assert one.facts["sampling_frequency"] == other.facts["sampling_frequency"] == 500
    assert np.abs(all_of(one) - all_of(other)).max() == 0


@pytest.mark.realdata
def test_sierra_agrees_with_its_own_representative_beats():
    import base64

    from defusedxml.ElementTree import parse

    path = DATA / "philips_sierra" / "ad4d3d80-d165_1-04_orig.xml"
    recording = ecg._open((path,))
    signal = recording.load(range(12), 0, recording.channels[0].samples)
    for beat in (e for e in parse(path).getroot().iter() if e.tag.endswith("}repbeat")):
        lead = beat.get("leadname")
        if lead == "V3":  # its electrode settles over the whole recording
            continue
        coded = next(e.text for e in beat if e.tag.endswith("}waveform"))
        mean = np.frombuffer(base64.b64decode(coded), "<i2")[:600] * 0.0025
        mean = mean - mean.mean()
        row = signal[[c.name for c in recording.channels].index(lead)]
        pieces = np.lib.stride_tricks.sliding_window_view(row, 600)
        pieces = pieces - pieces.mean(axis=1, keepdims=True)
        likeness = pieces @ mean / np.linalg.norm(pieces, axis=1) / np.linalg.norm(mean)
        best = int(likeness.argmax())
        assert likeness[best] > 0.99, lead
        assert 0.95 < pieces[best] @ mean / (mean @ mean) < 1.1, lead  # and of the same size: units are right


@pytest.mark.realdata
def test_inspect_of_the_real_folder_never_fails_inside():
    found = inspect([DATA])
    assert not any("medfuse failed on it" in one.refusal for one in found)
    assert len([one for one in found if one.loader == "ecg" and not one.refusal]) >= 58


def test_example_files_can_be_copied_anywhere(tmp_path):
    card = ecg.write_example(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert card.loader == "ecg"
    one, other = (ecg.read(ecg.group(sorted((tmp_path / k / "ecg").iterdir()))[0], {}) for k in "ab")
    np.testing.assert_array_equal(all_of(one), all_of(other))
