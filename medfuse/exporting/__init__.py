"""Exports of one patient's review, as HTML, PDF, JSON and CSV, and their verification against the run.

Every form carries the whole record: banner, numbers, checks, run id and hashes. A reader who has the run can verify
that the numbers are those of the run, and that what is shown is what the record says.
"""

from medfuse.exporting.record import content_sha256, patient_record
from medfuse.exporting.verifying import Verified, verify_export
from medfuse.exporting.writing import FORMATS, export_patient, record_of, times_opened

__all__ = [
    "FORMATS",
    "Verified",
    "content_sha256",
    "export_patient",
    "patient_record",
    "record_of",
    "times_opened",
    "verify_export",
]
