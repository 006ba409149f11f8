"""Planted names in images, slides, volumes, events and variants; see :mod:`planted`."""

from pathlib import Path

import numpy as np


def ct(folder: Path, ids: list[str], new) -> dict:
    """Every element that names people and places, private ones too, in each slice; the last series is cut."""
    import pydicom

    from medfuse.loaders.dicom import write_ct_series

    words = ("PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "ReferringPhysicianName")
    words += ("InstitutionName", "AccessionNumber", "StudyDescription", "PatientComments", "OperatorsName")
    words += ("PerformingPhysicianName", "StationName", "StudyID", "SeriesDescription", "ImageComments")
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    for k, i in enumerate(ids):
        values = np.random.default_rng(k).integers(-1000, 1000, (24, 24, 5))
        paths = write_ct_series(folder / i, values, affine, patient_id=new("ct"), seed=k)
        names = {word: new("ct")[:16] for word in words}
        for path in paths:
            data = pydicom.dcmread(path)
            for word, name in names.items():
                setattr(data, word, name)
            data.private_block(0x0099, "MEDFUSE TEST", create=True).add_new(1, "LO", names["PatientName"])
            data.file_meta.SourceApplicationEntityTitle = names["StationName"]
            data.save_as(path)
            path.rename(path.with_name(f"{names['PatientID']}_{path.name}"))
    for path in sorted((folder / ids[-1]).iterdir())[:2]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {"loader": "dicom", "path": "ct/{patient_id}/*.dcm"}


def slides(folder: Path, ids: list[str], new) -> dict:
    """Aperio's description, and label and macro images whose very pixels spell names; the last file is cut."""
    import tifffile

    from medfuse.loaders.slide import tissue_like

    for k, i in enumerate(ids):
        keys = ("Filename", "User", "ImageID", "ScanScope ID", "Title", "Barcode", "Date", "Physician")
        said = "|".join(f"{key} = {new('slides')}" for key in keys)
        head = f"Aperio Image Library v11.2.1 \r\n256x256 (128x128) RAW|AppMag = 20|MPP = 0.5|{said}"
        plain = {"photometric": "rgb", "metadata": None}
        with tifffile.TiffWriter(folder / f"{i}.svs") as file:
            file.write(tissue_like(256, 256, seed=k, margin=0.02), tile=(128, 128), description=head, **plain)
            for part in ("label", "macro"):
                text = "".join(new("slides") for _ in range(6)).encode()
                pixels = np.frombuffer((text * 400)[: 48 * 64 * 3], np.uint8).reshape(48, 64, 3)
                about = f"Aperio Image Library v11.2.1 \r\n{part} 64x48 {new('slides')}"
                file.write(pixels, description=about, subfiletype=1 if part == "label" else 9, **plain)
    path = folder / f"{ids[-1]}.svs"
    path.write_bytes(path.read_bytes()[:9000])
    return {"loader": "slide", "path": "slides/{patient_id}.svs", "options": {"mpp": 0.5, "tile": 64, "pen": 1}}


def nifti(folder: Path, ids: list[str], new) -> dict:
    """All fields of text of the header, and an extension with comments; the last file is cut."""
    import nibabel

    for k, i in enumerate(ids):
        values = np.random.default_rng(k).integers(0, 900, (20, 22, 12)).astype(np.int16)
        image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]))
        for name in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[name] = new("nifti")[: image.header[name].dtype.itemsize]
        said = " ".join(new("nifti") for _ in range(4)).encode()
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", said))
        nibabel.save(image, folder / f"{i}.nii")
    path = folder / f"{ids[-1]}.nii"
    path.write_bytes(path.read_bytes()[:3000])
    return {"loader": "volume", "path": "nifti/{patient_id}.nii"}


def meds(folder: Path, ids: list[str], new) -> dict:
    """Texts and codes of events; the card maps whole numbers to the patients' ids."""
    import pandas as pd

    from medfuse.loaders.events import write_meds

    start = pd.Timestamp("2020-03-01 08:00")
    rows = []
    for k, _ in enumerate(ids):
        rows.append((k + 1, start, "ADMISSION//EMERGENCY", None, None, None))
        said = f"taken by {new('meds')} at home"
        rows.append((k + 1, start + pd.Timedelta(hours=2), "HR", 60.0 + k, "/min", said))
        rows.append((k + 1, start + pd.Timedelta(hours=3), f"NOTE//{new('meds')}", None, None, new("meds")))
    columns = ["subject_id", "time", "code", "numeric_value", "unit", "text_value"]
    write_meds(folder, pd.DataFrame(rows, columns=columns), name=new("meds"))
    options = {
        "index": {"event": "ADMISSION//*", "after_hours": 24},
        "lookback_days": 2,
        "windows": [1, 2],
        "patient_id": ids[0][:-4] + "{:04d}",
        "variables": {"heart_rate": {"codes": "HR", "unit": "/min"}},
        "hash": ["NOTE//*"],
        "buckets": 4,
    }
    return {"loader": "events", "file": "meds", "options": options}


GENES = ("TP53", "EGFR", "KRAS", "BRCA1", "PIK3CA", "NPM1")


def maf(folder: Path, ids: list[str], new) -> dict:
    """Comments, columns that nobody reads, and people who are in no cohort."""
    from medfuse.loaders.variants import write_maf

    samples = [*ids, *(new("maf") for _ in range(6))]
    genes = [GENES[k % len(GENES)] for k in range(len(samples))]
    write_maf(folder / "plain.maf", samples=samples, genes=genes, classes=["Missense_Mutation"] * len(samples))
    version, head, *rows = (folder / "plain.maf").read_text().splitlines()
    (folder / "plain.maf").unlink()
    lines = [version, f"#analyst {new('maf')}", f"{head}\tMatched_Norm_Sample_Barcode\tSequencer\tCenter"]
    lines += [f"{row}\t{new('maf')}\t{new('maf')}\t{new('maf')}" for row in rows]
    (folder / "all.maf").write_text("\n".join(lines) + "\n")
    (folder / "sequenced.csv").write_text("\n".join(["patient", *samples]) + "\n")
    return {"loader": "variants", "file": "maf/all.maf", "sequenced": "maf/sequenced.csv#patient"}


def vcf(folder: Path, ids: list[str], new) -> dict:
    """Lines of the header, a field of INFO, names of records, and people who are in no cohort."""
    from medfuse.loaders.variants import write_vcf

    samples = [*ids, *(new("vcf") for _ in range(6))]
    calls = np.random.default_rng(0).integers(0, 3, (len(GENES), len(samples)))
    write_vcf(folder / "all.vcf", calls, samples=samples, genes=GENES, kinds=["missense"] * len(GENES))
    out = []
    for line in (folder / "all.vcf").read_text().splitlines():
        if line.startswith("#CHROM"):
            out += [f"##{key}={new('vcf')}" for key in ("commandline", "source", "analyst", "SAMPLE", "bam") * 3]
        elif not line.startswith("#"):
            cells = line.split("\t")
            cells[2], cells[7] = new("vcf"), f"{cells[7]};BY={new('vcf')}"
            line = "\t".join(cells)
        out.append(line)
    (folder / "all.vcf").write_text("\n".join(out) + "\n")
    return {"loader": "variants", "file": "vcf/all.vcf"}


RAW = {"ct": ct, "slides": slides, "nifti": nifti}
TABLES = {"meds": meds, "maf": maf, "vcf": vcf}
