"""Waves of an ECG's leads and variables of an EHR: they sum to the contribution and find what was planted (E7)."""

import dataclasses

import numpy as np
import planted_tokens
import pytest

from medfuse.errors import ConfigError
from medfuse.explain import Options, attribute, check
from medfuse.explain.attribution import SUMS, group_names
from medfuse.explain.waves import OTHER, wave_of, waves
from medfuse.extractors import build_extractor
from medfuse.sample import Column, ModalityData, ModalitySample, RawSample

LEADS = ("I", "V2", "V5")


def feature_names():
    made = build_extractor({"name": "waveform", "convolutions": 4}, where="test")
    return made.names(RawSample.__new__(RawSample))  # the same for every recording


def some_names():
    kept = [n for n in feature_names() if n.startswith(("conv", "heart", "rr_", "qt_", *(f"{x}_" for x in LEADS)))]
    return tuple(kept)


def test_every_feature_of_the_extractor_has_a_wave():
    groups, of = waves(feature_names())
    assert OTHER not in groups
    assert len(of) == len(feature_names())
    for lead in ("I", "aVF", "V6", "other"):
        assert {f"{lead} {wave}" for wave in ("P", "QRS", "ST", "T", "spectrum")} <= set(groups)
    assert wave_of("V3_q_mv") == wave_of("V3_qrs_area") == "V3 QRS"
    assert wave_of("qtc_bazett_ms") == "QT interval"
    assert wave_of("t_axis_cos") == "axes"


def test_the_planted_wave_comes_first_and_the_checks_say_so():
    cohort = planted_tokens.planted("tiles")
    draw, names = np.random.default_rng(1), some_names()
    own, at = cohort.data["tiles"], names.index("V2_st60_mv")
    samples = {}
    for i in cohort.ids:
        signal = own.samples[i].tokens[cohort.carrier[i], 0] / 6
        tokens = 0.3 * draw.normal(size=(2, len(names))).astype(np.float32)
        tokens[:, at] += signal
        samples[i] = ModalitySample(tokens=tokens, position=np.arange(2, dtype=np.float32)[:, None])
    ecg = ModalityData(name="ecg", layout="vectors", features=len(names), samples=samples, feature_names=names)
    data = {"ecg": ecg, "noise": cohort.data["noise"]}
    cohort = dataclasses.replace(cohort, data=data)
    fold = planted_tokens.fit(cohort)
    ids = cohort.ids[240:280]
    found = attribute(fold, data, ids, modality="ecg", horizon=700.0, units="wave")
    assert found.names[found.unit[found.rows(ids[0])[0]]] in found.names
    assert set(found.label) == {SUMS}
    sums = np.bincount(found.patient, weights=found.values) + found.presence + found.recalibration
    np.testing.assert_allclose(sums, found.contribution, atol=0.05 * np.abs(found.contribution).max())
    first = [found.name(int(found.rows(i)[0])) for i in ids]
    assert np.mean([name == "V2 ST" for name in first]) >= 0.95
    said = {c.name: c for c in check(fold, data, found, patients=12, draws=2).checks}
    assert said["deletion"].passed
    assert said["insertion"].passed
    assert said["signs"].passed
    with pytest.raises(ConfigError, match="waves are features"):
        attribute(fold, data, ids, modality="ecg", horizon=700.0, units="wave", options=Options(method="removal"))
    with pytest.raises(ConfigError, match="has no units 'wave'"):
        attribute(fold, data, ids, modality="noise", horizon=700.0, units="wave")


def test_an_encoder_that_counts_windows_says_so():
    cohort = planted_tokens.planted("tiles", n=120)
    names = tuple(f"{lead}_st60_mv" for lead in "abcdefgh")
    data = {**cohort.data, "tiles": dataclasses.replace(cohort.data["tiles"], feature_names=names)}
    cohort = dataclasses.replace(cohort, data=data)
    fold = planted_tokens.fit(cohort, train=80, epochs=1, encoders={"tiles": {"name": "prototype_tokens"}})
    with pytest.raises(ConfigError, match="knows no features"):
        attribute(fold, data, cohort.ids[80:84], modality="tiles", horizon=700.0, units="wave")


def test_variables_of_an_ehr_are_players():
    cohort = planted_tokens.planted("clinical")
    own = cohort.data["clinical"]
    names = ("sodium.last", "sodium.slope", "creatinine.last", "creatinine.slope", "creatinine.count", "sex")
    data = {**cohort.data, "clinical": dataclasses.replace(own, columns=tuple(Column(name=n) for n in names))}
    assert group_names(data["clinical"]) == ("sodium", "creatinine", "sex")
    cohort = dataclasses.replace(cohort, data=data)
    fold = planted_tokens.fit(cohort)
    ids = cohort.ids[240:270]
    for method in ("auto", "path"):
        found = attribute(
            fold, data, ids, modality="clinical", horizon=700.0, units="group", options=Options(method=method)
        )
        assert found.method == ("removal" if method == "auto" else "path")
        assert set(found.label) == {SUMS}
        assert np.mean([found.name(int(found.rows(i)[0])) == "creatinine" for i in ids]) >= 0.95
    by_column = attribute(fold, data, ids, modality="clinical", horizon=700.0)
    each = by_column.values.reshape(len(ids), 6)
    np.testing.assert_allclose(found.values.reshape(len(ids), 3)[:, 1], each[:, 2:5].sum(axis=1), atol=1e-9)
