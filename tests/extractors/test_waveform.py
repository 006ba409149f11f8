"""The waveform extractor: beats against annotations, intervals against what the signal was made with, no NaN ever."""

import os
from pathlib import Path

import numpy as np
import pytest
import wfdb

from medfuse.errors import ConfigError, DataError
from medfuse.extractors import build_extractor
from medfuse.extractors._beats import median_beat, r_peaks, usable
from medfuse.extractors.waveform import LEADS, Waveform
from medfuse.loaders import ecg
from medfuse.sample import RawSample

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ecg"
BEATS = set("NLRBAaJSVrFejnE/fQ?")


def raw_of(signal, leads=LEADS, frequency=500.0):
    return RawSample(
        item="window",
        shape=signal.shape,
        position=np.zeros((1, 1), np.float32),
        unit="s",
        fetch=lambda rows: np.asarray(signal, np.float32)[None],
        facts={"leads": list(leads), "sampling_frequency": frequency},
    )


def features(signal, leads=LEADS, frequency=500.0, **options):
    extractor = Waveform(**options)
    raw = raw_of(signal, leads, frequency)
    tokens = extractor.extract(raw).tokens
    names = extractor.names(raw)
    assert len(set(names)) == len(names) == tokens.shape[1]
    return dict(zip(names, tokens[0].tolist(), strict=True))


def matched(reference, found, tolerance):
    """Beats found once within the tolerance: true positives, false negatives, false positives."""
    free, hits = list(found), 0
    for at in reference:
        near = min(free, key=lambda k: abs(k - at), default=None)
        if near is not None and abs(near - at) <= tolerance:
            free.remove(near)
            hits += 1
    return np.array([hits, len(reference) - hits, len(free)])


# --- beats -----------------------------------------------------------------------------------------------------------


def spikes(times, frequency=500.0, seconds=10.0, width=0.01):
    t = np.arange(round(seconds * frequency)) / frequency
    return sum(np.exp(-0.5 * ((t - at) / width) ** 2) for at in times)[None]


@pytest.mark.parametrize("frequency", [100.0, 250.0, 360.0, 500.0, 1000.0])
def test_r_peaks_are_where_they_were_put(frequency):
    times = np.array([0.6, 1.5, 2.1, 3.3, 4.0, 4.9, 5.5, 6.6, 7.4, 8.3, 9.2])
    found = r_peaks(spikes(times, frequency), frequency) / frequency
    np.testing.assert_allclose(found, times, atol=1.5 / frequency)


def test_polarity_scale_and_a_t_wave_change_no_beat():
    times = np.arange(0.5, 9.6, 0.8)
    one = spikes(times) + 0.4 * spikes(times + 0.3, width=0.05)
    expected = r_peaks(one, 500.0)
    assert len(expected) == len(times)
    np.testing.assert_array_equal(r_peaks(-one, 500.0), expected)
    np.testing.assert_array_equal(r_peaks(one * 7, 500.0), expected)
    np.testing.assert_array_equal(r_peaks(np.concatenate([one, one * 0.1]), 500.0), expected)


def test_an_artefact_between_beats_is_no_beat_and_a_premature_beat_is_one():
    times = np.arange(0.5, 9.6, 0.8)
    signal = spikes(times)
    rng = np.random.default_rng(0)
    signal[0, 2000:2040] += rng.normal(0, 0.6, 40)  # 4.0 s: half way between two beats
    assert len(r_peaks(signal, 500.0)) == len(times)
    early = np.delete(times, 5)
    early = np.sort(np.append(early, times[5] - 0.35))
    signal = spikes(np.delete(times, 5)) - 1.5 * spikes([times[5] - 0.35], width=0.03)
    assert matched(early * 500, r_peaks(signal, 500.0), 40)[1:].tolist() == [0, 0]


def test_no_beats_in_nothing():
    assert r_peaks(np.zeros((0, 5000)), 500.0).size == 0
    assert r_peaks(np.zeros((1, 5000)), 500.0).size == 0
    assert r_peaks(spikes([0.3])[:, :200], 500.0).size == 0
    assert median_beat(np.zeros((1, 5000)), np.zeros(0, np.int64), 500.0) is None
    assert median_beat(spikes([0.02]), np.array([10]), 500.0) is None


def test_what_is_usable():
    t = np.arange(1000) / 250
    wave = np.sin(2 * np.pi * 3 * t)
    bad = [np.zeros(1000), np.full(1000, 3.0), np.where(t > 2, np.nan, wave), wave * 1e4, np.round(wave)]
    assert usable(np.stack([wave, *bad])).tolist() == [True, False, False, False, False, False]


def real_record(path):
    group = next(g for g in ecg.group(sorted(path.parent.iterdir())) if g[0] == path.with_suffix(".hea"))
    recording = ecg._open(group)
    rows = [k for k, c in enumerate(recording.channels) if c.lead]
    channel = recording.channels[rows[0]]
    annotations = wfdb.rdann(str(path), "atr")
    beats = [s for s, symbol in zip(annotations.sample, annotations.symbol, strict=True) if symbol in BEATS]
    return recording.load(rows, 0, channel.samples).astype(np.float64), channel.frequency, np.array(beats)


@pytest.mark.realdata
def test_sensitivity_and_ppv_against_annotations_of_people():
    total = np.zeros(3, int)
    for path in [DATA / "wfdb_samples" / "100", *(DATA / "cpsc2021_2lead").glob("*.hea")]:
        signal, frequency, beats = real_record(path.with_suffix(""))
        found = r_peaks(signal[usable(signal)], frequency)
        counts = matched(beats, found, 0.15 * frequency)  # ANSI/AAMI EC57: 150 ms
        total += counts
        assert counts[0] / counts[:2].sum() > 0.99, path.name
        assert counts[0] / counts[::2].sum() > 0.94, path.name
    assert total[:2].sum() > 3000
    assert total[0] / total[:2].sum() > 0.998  # measured 0.9991 sensitivity
    assert total[0] / total[::2].sum() > 0.993  # measured 0.9951 positive predictive value


@pytest.mark.realdata
def test_windows_of_ten_seconds_find_the_same_beats():
    signal, frequency, beats = real_record(DATA / "wfdb_samples" / "100")
    length, edge, missed, extra = round(10 * frequency), 0.3 * frequency, 0, 0
    for start in range(0, signal.shape[1] - length + 1, length):
        found = r_peaks(signal[:, start : start + length], frequency)
        here = beats[(beats >= start) & (beats < start + length)] - start
        inner = [k for k in here if edge < k < length - edge]
        missed += sum(not (abs(found - k) <= 0.15 * frequency).any() for k in inner)
        extra += sum(not (abs(here - k) <= 0.15 * frequency).any() for k in found if edge < k < length - edge)
    assert (missed, extra) == (0, 0)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "pr", "qrs", "qt", "axis"),  # what the device wrote into the same file
    [
        ("dicom/anonymous_ecg.dcm", 161, 75, 368, 52),
        ("one_ecg_three_formats/Example.dcm", 148, 120, 420, -61),
        ("philips_sierra/129DYPRG.XML", 140, 96, 488, -21),
        ("philips_sierra/ad4d3d80-d165_1-04_orig.xml", 144, 102, 564, 85),
    ],
)
def test_intervals_and_axis_are_near_those_of_the_device(name, pr, qrs, qt, axis):
    raw = ecg.read((DATA / name,), {})
    extractor = Waveform()
    found = dict(zip(extractor.names(raw), extractor.extract(raw).tokens[0].tolist(), strict=True))
    assert abs(found["pr_ms"] - pr) < 20
    assert abs(found["qrs_ms"] - qrs) < 15
    assert -45 < found["qt_ms"] - qt < 20  # the tangent ends T earlier than a threshold does
    assert abs(np.degrees(np.arctan2(found["axis_sin"], found["axis_cos"])) - axis) < 15


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency", [250.0, 500.0, 1000.0])
@pytest.mark.parametrize("rate", [50.0, 72.0, 110.0])
def test_rate_and_intervals_of_a_made_ecg(rate, frequency):
    signal = ecg.synthesise(10.0, frequency, heart_rate=rate, rr_variability=0.01, seed=5)
    found = features(signal, frequency=frequency)
    root = (60 / rate) ** 0.5
    assert abs(found["heart_rate"] - rate) < 2
    assert found["rhythm_measured"] == found["pr_measured"] == found["qrs_measured"] == found["qt_measured"] == 1
    assert 75 < found["qrs_ms"] < 115  # Gaussians of 8-11 ms from -25 to 28 ms
    qt = 1000 * (0.28 * root + 2 * 0.045 * root) + 50
    assert abs(found["qt_ms"] - qt) < 40
    pr = 1000 * (0.16 + 2.2 * 0.022) * root - 45
    assert abs(found["pr_ms"] - pr) < 30
    assert found["qtc_bazett_ms"] == pytest.approx(found["qt_ms"] / found["rr_s"] ** 0.5, rel=1e-5)
    assert found["qtc_fridericia_ms"] == pytest.approx(found["qt_ms"] / found["rr_s"] ** (1 / 3), rel=1e-5)


@pytest.mark.parametrize("st", [-0.2, -0.05, 0.0, 0.1, 0.3])
def test_st_level_is_what_was_put_in(st):
    found = features(ecg.synthesise(10.0, 500.0, st_mv=st, seed=2))
    for lead in ("I", "II", "V1", "V2", "V5"):
        assert abs(found[f"{lead}_st60_mv"] - st) < 0.03, lead
    assert abs(found["aVR_st60_mv"] + st) < 0.03


def test_amplitudes_and_axis():
    found = features(ecg.synthesise(10.0, 500.0, seed=1, noise_mv=0.002))
    assert abs(found["II_r_mv"] - 1.2 * (0.5 * 0.70 + 0.866 * 0.60)) < 0.12  # Q and S take a little of R
    assert found["V1_s_mv"] < -0.4 < 0.1 < found["V1_r_mv"] + 0.1
    assert found["aVR_r_mv"] < 0.15
    assert found["aVR_q_mv"] < -0.5 or found["aVR_s_mv"] < -0.5
    assert 25 < np.degrees(np.arctan2(found["axis_sin"], found["axis_cos"])) < 65
    assert found["axis_measured"] == 1


def test_rr_variability_is_measured():
    steady = features(ecg.synthesise(60.0, 250.0, rr_variability=0.0), frequency=250.0)
    varied = features(ecg.synthesise(60.0, 250.0, rr_variability=0.08), frequency=250.0)
    assert steady["rr_sd_s"] < 0.005
    assert varied["rr_sd_s"] == pytest.approx(0.08 * 60 / 70, rel=0.4)


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_noise_moves_rate_and_st_little_and_is_reported(noise):
    rng = np.random.default_rng(0)
    clean = ecg.synthesise(10.0, 500.0, st_mv=0.15, seed=4)
    t = np.arange(5000) / 500
    wander = 0.5 * np.sin(2 * np.pi * 0.2 * t) + 0.1 * np.sin(2 * np.pi * 50 * t)
    noisy = features(clean + wander + rng.normal(0, noise, clean.shape))
    quiet = features(clean)
    assert abs(noisy["heart_rate"] - quiet["heart_rate"]) < 1
    assert abs(noisy["II_st60_mv"] - 0.15) < 0.08
    assert noisy["noise_mv"] > quiet["noise_mv"]
    assert noisy["beat_agreement"] < quiet["beat_agreement"]


def test_fewer_leads_and_other_names_keep_the_features():
    signal = ecg.synthesise(10.0, 500.0, seed=6)
    whole, one = features(signal), features(signal[[1]], ["II"])
    assert whole.keys() == one.keys()
    assert abs(one["heart_rate"] - whole["heart_rate"]) < 1
    assert one["II_present"] == 1
    assert one["I_present"] == one["axis_measured"] == one["other_present"] == 0
    odd = features(signal[[1, 6]], ["MCL1", "V1"])
    assert odd["other_present"] == odd["V1_present"] == 1
    assert odd["other_r_mv"] == pytest.approx(one["II_r_mv"], abs=0.05)
    order = [5, 3, 1, 11, 0, 2, 4, 6, 7, 8, 9, 10]
    shuffled = features(signal[order], [LEADS[k] for k in order])
    np.testing.assert_allclose(list(shuffled.values()), list(whole.values()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["zeros", "constant", "noise", "one flat lead", "half zero", "step", "tiny", "huge", "nan"]
)
@pytest.mark.parametrize("frequency", [50.0, 500.0])
def test_nothing_is_ever_nan(kind, frequency):
    rng = np.random.default_rng(0)
    good = ecg.synthesise(6.0, frequency, seed=1)
    signal = {
        "zeros": np.zeros_like(good),
        "constant": np.full_like(good, -3.0),
        "noise": rng.normal(0, 1, good.shape),
        "one flat lead": good * (np.arange(12) != 1)[:, None],
        "half zero": good * (np.arange(good.shape[1]) < good.shape[1] // 2),
        "step": np.where(np.arange(good.shape[1]) < 90, 0.0, 5.0) + 0 * good,
        "tiny": good * 1e-30,
        "huge": good * 1e30,
        "nan": np.where(np.arange(good.shape[1]) == 77, np.nan, good),
    }[kind]
    found = features(signal, frequency=frequency)
    assert np.isfinite(list(found.values())).all()
    if kind in {"zeros", "constant", "tiny", "huge", "nan"}:
        assert found["rhythm_measured"] == found["qrs_measured"] == found["usable_leads"] == 0


@pytest.mark.parametrize("samples", [1, 2, 7, 13, 40, 99, 260, 600])
def test_short_windows_are_measured_as_far_as_they_go(samples):
    found = features(ecg.synthesise(6.0, 250.0)[:, :samples], frequency=250.0)
    assert np.isfinite(list(found.values())).all()


def test_items_do_not_know_each_other_and_settings_are_in_the_key():
    items = np.stack([ecg.synthesise(5.0, 250.0, seed=k) for k in range(3)]).astype(np.float32)
    facts = {"leads": LEADS, "sampling_frequency": 250.0}
    extractor = Waveform(convolutions=4)
    together = extractor(items, facts)
    for k in range(3):
        np.testing.assert_array_equal(extractor(items[k : k + 1], facts)[0], together[k])
    assert extractor.settings == {"convolutions": 4, "seed": 0}
    other = Waveform(convolutions=4, seed=1)(items, facts)
    assert not np.array_equal(other, together)
    np.testing.assert_array_equal(Waveform(convolutions=4)(items, facts), together)
    assert Waveform(convolutions=0)(items, facts).shape[1] == together.shape[1] - 8


def test_wrong_use_is_refused():
    facts = {"leads": ["I"], "sampling_frequency": 250.0}
    with pytest.raises(DataError, match="expected windows"):
        Waveform()(np.zeros((1, 2, 100), np.float32), facts)
    with pytest.raises(DataError, match="expected windows"):
        Waveform()(np.zeros((1, 1, 100), np.float32), {**facts, "sampling_frequency": 1 / 60})
    with pytest.raises(ConfigError, match="convolutions"):
        build_extractor({"name": "waveform", "convolutions": -1}, where="test")
    with pytest.raises(ConfigError, match="no option"):
        build_extractor({"name": "waveform", "kernels": 3}, where="test")
