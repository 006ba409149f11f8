"""Files of many formats with a made-up name in every place that can hold one, for the test of planted PHI."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import planted_more
from gate_cases import card_file

from medfuse import loaders

sys.path.insert(0, str(Path(__file__).parent / "loaders"))

MARK = "Qzx"  # every canary begins with it; no word, number or name of medfuse has it


class Canaries:
    """Numbered canaries, counted by format."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, form: str) -> str:
        self.counts[form] = self.counts.get(form, 0) + 1
        return f"{MARK}{form.capitalize()}{sum(self.counts.values()):04d}"


def notes(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Reports that name people, in files that name them too; the last is broken."""
    for i in ids:
        text = f"Seen by Dr. {new('text')} {new('text')}, born 01.02.1950.\nMRN {new('text')}12345. Mass of 31 mm.\n"
        (folder / f"{i}_{new('text')}.txt").write_text(text * 3)
        new.counts["text"] += 6  # each stands three times
    next(folder.glob(f"{ids[-1]}_*")).write_bytes(b"\xff\xfe" + new("text").encode())
    return {"loader": "text", "path": "notes/{patient_id}_*.txt"}


def wfdb(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Comments of headers."""
    from medfuse.loaders.ecg import synthesise, write_wfdb

    for k, i in enumerate(ids):
        write_wfdb(folder, i, synthesise(10.0, 250.0, seed=k), sampling_frequency=250.0)
        with (folder / f"{i}.hea").open("a") as file:
            file.writelines(f"# <{key}>: {new('wfdb')}\n" for key in ("name", "physician", "address", "age", "id") * 3)
    (folder / f"{ids[-1]}.dat").write_bytes(new("wfdb").encode())
    return {"loader": "ecg", "path": "wfdb/{patient_id}.*"}


def edf(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Patient and recording of the header."""
    from ecg_files import LEADS, codes, write_edf

    for k, i in enumerate(ids):
        signals = [(lead, "uV", -163835, 163835, row) for lead, row in zip(LEADS, codes(seed=k), strict=True)]
        words = " ".join(new("edf") for _ in range(5))
        path = write_edf(folder / f"{i}.edf", signals, records=10, patient=words[:80])
        content = path.read_bytes()
        words = " ".join(new("edf") for _ in range(4))
        path.write_bytes(content[:88] + f"Startdate 01-JAN-1950 {words}".ljust(80)[:80].encode() + content[168:])
    (folder / f"{ids[-1]}.edf").write_bytes((folder / f"{ids[-1]}.edf").read_bytes()[:5000])
    return {"loader": "ecg", "path": "edf/{patient_id}.edf"}


def dicom(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Every element that names people, places and numbers, private ones, and file meta."""
    import pydicom
    from ecg_files import LEADS, codes, write_dicom

    words = ("PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "ReferringPhysicianName")
    words += ("InstitutionName", "AccessionNumber", "StudyDescription", "PatientComments", "OperatorsName")
    words += ("PerformingPhysicianName", "StationName", "StudyID", "SeriesDescription", "PatientMotherBirthName")
    for k, i in enumerate(ids):
        path = write_dicom(folder / f"{i}.dcm", [{"codes": codes(seed=k), "leads": LEADS, "frequency": 250}])
        data = pydicom.dcmread(path)
        for word in words:
            setattr(data, word, new("dicom")[:16])
        block = data.private_block(0x0099, "MEDFUSE TEST", create=True)
        block.add_new(1, "LO", new("dicom"))
        data.save_as(path)
    whole = (folder / f"{ids[-1]}.dcm").read_bytes()
    (folder / f"{ids[-1]}.dcm").write_bytes(whole[: len(whole) // 2])
    return {"loader": "ecg", "path": "dicom/{patient_id}.dcm"}


def aecg(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Names, addresses and comments of the document."""
    from ecg_files import aecg as document
    from ecg_files import codes

    for k, i in enumerate(ids):
        body = "".join(f"<text>{new('aecg')}</text><!-- {new('aecg')} -->" for _ in range(6))
        text = document(codes(seed=k), body=body).replace("Doe", new("aecg"))
        (folder / f"{i}.xml").write_text(text)
    (folder / f"{ids[-1]}.xml").write_text(text[: len(text) // 2])
    return {"loader": "ecg", "path": "aecg/{patient_id}.xml"}


def table(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Columns that the card does not name, beside one that it does."""
    rng = np.random.default_rng(0)
    rows = [f"{i},{rng.normal(60, 9):.1f},{new('csv')},{new('csv')},{new('csv')}@x.org" for i in ids]
    (folder / "table.csv").write_text("\n".join(["id,age,name,address,mail", *rows]) + "\n")
    return {"loader": "tabular", "file": "table/table.csv", "columns": {"age": {"kind": "numeric", "unit": "years"}}}


def bags(folder: Path, ids: list[str], new: Canaries) -> dict:
    """Arrays named by patient, and one of somebody who is in no cohort."""
    rng = np.random.default_rng(1)
    for stain in ("he", "cd8"):
        others = {new("npz"): rng.normal(size=5).astype(np.float32) for _ in range(10)}
        np.savez(folder / f"{stain}.npz", **{i: rng.normal(size=5).astype(np.float32) for i in ids}, **others)
    return {"loader": "vectors", "files": {"HE": "bags/he.npz", "CD8": "bags/cd8.npz"}}


RAW = {"notes": notes, "wfdb": wfdb, "edf": edf, "dicom": dicom, "aecg": aecg}
TABLES = {"table": table, "bags": bags}
EVERY = RAW | TABLES | planted_more.RAW | planted_more.TABLES


def cohort(
    folder: Path, *, patients: int, each: int, only: Sequence[str] = (*RAW, *TABLES), **options: object
) -> tuple[Path, dict[str, int]]:
    """A card of formats, whose patients' own ids are canaries; ``each`` of them have raw files of a kind."""
    new = Canaries()
    ids = [new("id") for _ in range(patients)]
    modalities = {}
    for name in only:
        (folder / name).mkdir()
        raw = name in {**RAW, **planted_more.RAW}
        modalities[name] = EVERY[name](folder / name, ids[:each] if raw else ids, new)
        assert modalities[name]["loader"] in loaders.LOADERS
    return card_file(folder, modalities, ids=tuple(ids), pseudonyms=True, **options), new.counts
