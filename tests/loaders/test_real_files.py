"""Every file of the shared data is read or refused for a reason, and the committed table of them is current."""

import contextlib
import re

import pydicom
import pytest
import real_files

from medfuse.inspection import inspect, lines, recognise

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def table():
    return real_files.rows()


def test_the_committed_table_is_what_the_loaders_do(table):
    """Any error that is not ours ends this test."""
    assert real_files.page(table) == real_files.TABLE.read_text(encoding="utf-8")


def test_every_file_is_in_the_table_once(table):
    assert sum(row.files for row in table) == sum(path.is_file() for path in real_files.DATA.rglob("*")) == 803


def test_a_refusal_says_what_was_found_and_most_what_to_do(table):
    refused = [row for row in table if row.verdict.startswith("refused")]
    assert not [row for row in refused if "failed on it" in row.verdict or "internal" in row.verdict]
    assert all(len(row.verdict) > 60 for row in refused)
    assert all(re.search(r"; |: a DICOMDIR", row.verdict) for row in refused), refused
    failing = [row for row in table if "/failing/" in row.folder and row.loader == "dicom"]
    assert [row.files for row in failing] == [4, 2, 2, 2]
    assert all(row.verdict.startswith("refused") or "options" in row.verdict for row in failing)


WHO = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber", "StudyDate", "ContentDate")
WHO += ("InstitutionName", "ReferringPhysicianName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
ORDINARY = {"None", "institution", "2721"}  # values that are words or counts, too


def values_of_patients():
    """Values of identifying elements in the DICOM files, and comments in the headers of ECGs."""
    values = set()
    for path in sorted(p for p in real_files.DATA.rglob("*") if p.is_file()):
        if path.suffix == ".hea":
            comments = [line[1:] for line in path.read_text(errors="replace").splitlines() if line.startswith("#")]
            values |= {part.strip() for line in comments for part in re.split("[:<>]", line)}
        elif recognise(path) in {"dicom", "ecg", "slide"}:
            with contextlib.suppress(Exception):
                data = pydicom.dcmread(path, stop_before_pixels=True)
                values |= {str(data.get(word) or "").strip() for word in WHO}
    return {value for value in values if len(value) >= 4} - ORDINARY


@pytest.mark.filterwarnings("ignore")
def test_no_value_of_a_patient_is_said(table):
    names = sorted((p.name for p in real_files.DATA.rglob("*")), key=len, reverse=True)  # are the user's own
    said = "\n".join([*lines(inspect([real_files.DATA])), *(" ".join((row.holds, row.verdict)) for row in table)])
    for name in names:
        said = said.replace(name, "")
    values = values_of_patients()
    assert len(values) >= 500
    assert [v for v in values if re.search(rf"(?<![\w.]){re.escape(v)}(?![\w.])", said)] == []


def test_inspection_of_the_whole_folder_names_every_file_and_never_fails_inside():
    found = inspect([real_files.DATA])
    assert not [one for one in found if "failed on it" in one.refusal]
    assert sum(one.files for one in found) >= 803
