"""DICOM: what identifies a person."""

import numpy as np
import pydicom
import pytest
from dicom_made import AFFINE, edit, flat, item, series
from pydicom.uid import RLELossless

from medfuse.errors import DataError
from medfuse.loaders import _dicom_header, dicom
from medfuse.loaders._dicom_identifying import PROFILE

# --- who is in it ----------------------------------------------------------------------------------------------------


def where(path):
    return {one.where for one in dicom.identifying([path])}


def test_elements_of_the_basic_profile_are_named_without_their_values(tmp_path):
    (path,) = series(tmp_path, np.zeros((4, 4, 1)))
    before = where(path)
    assert "(0010,0010) PatientName" in before

    def plant(data):
        data.InstitutionName, data.OperatorsName = "Hidden^Value", "Hidden^Value"
        data.RequestAttributesSequence = [item(RequestedProcedureID="HIDDEN")]
        data.PatientBirthDate = "19000101"
        data.StudyDate = ""
        data.add_new(0x00291010, "LO", "HIDDEN")
        data.BurnedInAnnotation = "YES"
        data.BodyPartExamined = "HEAD"

    edit(path, plant)
    found = {one.where: one.kind for one in dicom.identifying([path])}
    new = set(found) - before
    assert {f.split()[1] for f in new if f.startswith("(00") and "xxxx" not in f} >= {
        "InstitutionName",
        "OperatorsName",
        "RequestedProcedureID",
        "PatientBirthDate",
        "BurnedInAnnotation:",
        "BodyPartExamined:",
    }
    assert "(0029,xxxx) private elements" in new
    assert not any("StudyDate" in f for f in found)
    assert "idden" not in str(found)
    assert "HIDDEN" not in str(found)
    assert found["(0010,0030) PatientBirthDate"] == "date"
    assert found["(0010,0010) PatientName"] == "name"


def test_every_top_level_text_element_of_the_profile_is_reported_when_planted(tmp_path):
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    samples = {"PN": "A^B", "DA": "20200101", "TM": "1010", "DT": "20200101", "AS": "010Y", "UI": "1.2.3", "CS": "A"}
    (path,) = series(tmp_path, np.zeros((4, 4, 1)))
    data, planted = pydicom.dcmread(path), []
    for tag in sorted(PROFILE):
        if tag >> 16 in (0, 2) or not keyword_for_tag(tag) or tag in data:
            continue
        vr = dictionary_VR(tag)
        if vr in samples or vr in ("LO", "SH", "LT", "ST", "UT", "UC"):
            data.add_new(tag, vr, samples.get(vr, "A"))
            planted.append(keyword_for_tag(tag))
    data.save_as(path, enforce_file_format=True)
    found = {w.split()[-1] for w in where(path)}
    assert len(planted) > 300
    assert set(planted) <= found


def test_the_risk_of_burned_in_text(tmp_path):
    path = flat(tmp_path / "u.dcm", np.zeros((4, 4), np.uint8))
    assert any("pixels" in w for w in where(path))
    edit(path, lambda d: setattr(d, "BurnedInAnnotation", "NO"))
    assert not any("pixels" in w for w in where(path))


def test_written_series_hold_nobody(tmp_path):
    (path,) = series(tmp_path, np.zeros((4, 4, 1)), patient_id="SYN1")
    data = pydicom.dcmread(path)
    assert data.PatientID == "SYN1"
    assert str(data.PatientName) == "Nobody^SYN1"
    assert not any(element.value for element in data if element.VR in ("DA", "TM", "DT"))
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    with pytest.raises(DataError, match="sheared"):
        series(tmp_path, affine=AFFINE + np.eye(4, k=1))
    with pytest.raises(DataError, match="clip"):
        series(tmp_path, np.full((4, 4, 2), 1e6))


def test_a_missing_codec_is_refused_by_the_name_of_the_extra(tmp_path, monkeypatch):
    (path,) = series(tmp_path, np.zeros((8, 8, 1)))
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.save_as(path, enforce_file_format=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"medfuse\[dicom-gpl\]"):
        dicom.read([path], {"min_slices": 1}).fetch([0])


def test_the_walker_and_pydicom_agree(tmp_path):
    for path in series(tmp_path):
        one, two = _dicom_header.read_header(path), _dicom_header._through_pydicom(path)
        assert {k: v.strip(b" \0") for k, v in one.values.items()} == {
            k: v.strip(b" \0") for k, v in two.values.items()
        }
        assert (one.pixels, one.syntax, one.order) == (two.pixels, two.syntax, two.order)
