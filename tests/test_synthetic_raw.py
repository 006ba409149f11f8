"""Raw files of the synthetic cohort: every latent can be measured in them by the obvious means, with other software.

The measurements use pydicom, OpenSlide, wfdb and pyarrow directly and nothing of medfuse, so that what they find is in
the files.
"""

import filecmp
import re
import time

import numpy as np
import openslide
import pandas as pd
import pydicom
import pytest
import wfdb
from scipy import ndimage

from medfuse import synthetic
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError
from medfuse.synthetic import Missing, simulate
from medfuse.synthetic.raw import write_cohort

N, SEED = 24, 5
MISSING = Missing(mechanism="mnar", rate=0.15)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "cohort"
    write_cohort(folder, patients=N, seed=SEED, missing=MISSING)
    return folder


@pytest.fixture(scope="module")
def made():
    return simulate(N, seed=SEED, missing=MISSING, modalities=("expression", "mutations"))


def having(made, name):
    """Rows and ids of the patients who have a modality."""
    rows = np.flatnonzero(made.present[:, synthetic.MODALITIES.index(name)])
    return rows, [made.patient_ids[i] for i in rows]


# --- what a person would measure ------------------------------------------------------------------------------------


def ct_values(folder):
    slices = sorted((pydicom.dcmread(p) for p in folder.glob("*.dcm")), key=lambda d: d.ImagePositionPatient[2])
    voxel = float(slices[0].PixelSpacing[0]) * float(slices[0].PixelSpacing[1])
    voxel *= abs(float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2]))
    values = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])
    return values, voxel


def lesion_diameter(folder):
    """The largest dense piece that is not the body wall, as the diameter of a ball of its volume."""
    values, voxel = ct_values(folder)
    pieces, _ = ndimage.label(values > -405)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    sizes[sizes.argmax()] = 0
    return (6 * sizes.max() * voxel / np.pi) ** (1 / 3)


def slide_pixels(path):
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.level_count >= 3
        mpp = float(slide.properties["openslide.mpp-x"])
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(float)
    return pixels, mpp


def nuclei_per_mm2(path):
    """Dark blue blobs counted, over the area that is not glass."""
    pixels, mpp = slide_pixels(path)
    tissue = ndimage.binary_opening(ndimage.binary_closing(pixels.min(axis=2) < 225, iterations=2), iterations=2)
    stroma = np.median(pixels[tissue][:, 0])
    _, count = ndimage.label(ndimage.binary_opening(tissue & (pixels[..., 0] < stroma - 70), iterations=2))
    return count / (tissue.sum() * (mpp / 1000) ** 2)


def st_level(path):
    """Mean over V3-V5 and beats of the level 70-120 ms after R against the one 85-55 ms before it."""
    record = wfdb.rdrecord(str(path))
    signal, hertz = record.p_signal.T, record.fs
    assert record.units == ["mV"] * 12
    lead = signal[record.sig_name.index("II")]
    high = lead > np.median(lead) + 0.5 * (lead.max() - np.median(lead))
    pieces, count = ndimage.label(high)
    peaks = [int(p[0]) for p in ndimage.maximum_position(lead, pieces, range(1, count + 1))]

    def level(lead, start, stop):
        parts = [lead[p + round(start * hertz) : p + round(stop * hertz)] for p in peaks if p > hertz and p < 9 * hertz]
        return np.mean(np.concatenate(parts))

    shown = [signal[record.sig_name.index(name)] for name in ("V3", "V4", "V5")]
    return np.mean([level(s, 0.07, 0.12) - level(s, -0.085, -0.055) for s in shown])


def creatinine_slopes(root):
    events = pd.read_parquet(next((root / "ehr" / "data").rglob("*.parquet")))
    index = pd.read_csv(root / "patients.csv", parse_dates=["index_time"]).set_index("patient_id")["index_time"]
    found = {}
    for subject, rows in events[events["code"] == "LAB//CREATININE"].groupby("subject_id"):
        patient = f"SYN-{subject:04d}"
        value = np.where(rows["unit"] == "umol/L", rows["numeric_value"] / 88.4, rows["numeric_value"])
        years = (rows["time"] - index[patient]).dt.total_seconds() / (365.25 * 86400)
        assert (years <= 0).all()
        found[patient] = np.polyfit(years, value, 1)[0]
    return found


# --- every latent is there ------------------------------------------------------------------------------------------


def close(measured, true, *, correlation, error):
    measured, true = np.asarray(measured), np.asarray(true)
    assert np.corrcoef(measured, true)[0, 1] > correlation
    assert np.abs(measured - true).max() < error


def test_lesions_have_the_stated_diameter(root, made):
    rows, ids = having(made, "imaging")
    true = made.latents.measured("size")[rows]
    close([lesion_diameter(root / "imaging" / i) for i in ids], true, correlation=0.99, error=2.0)


def test_nuclei_have_the_stated_density(root, made):
    rows, ids = having(made, "pathology")
    true = made.latents.measured("density")[rows]
    close([nuclei_per_mm2(root / "pathology" / f"{i}.tif") for i in ids], true, correlation=0.99, error=150)


def test_st_segments_have_the_stated_level(root, made):
    rows, ids = having(made, "ecg")
    close([st_level(root / "ecg" / i) for i in ids], made.latents.measured("st")[rows], correlation=0.99, error=0.02)


def test_creatinine_has_the_stated_slope_in_whatever_unit(root, made):
    rows, ids = having(made, "ehr")
    slopes = creatinine_slopes(root)
    assert set(slopes) == set(ids)
    close([slopes[i] for i in ids], made.latents.measured("slope")[rows], correlation=0.999, error=0.02)


def test_the_pathway_is_shifted_as_stated(root, made):
    rows, ids = having(made, "expression")
    table = pd.read_csv(root / "expression.tsv", sep="\t", index_col="gene")
    assert list(table.columns) == ids
    sets = [line.split("\t") for line in (root / "pathways.gmt").read_text().splitlines()]
    own = next(parts[2:] for parts in sets if parts[0] == "PATHWAY_03")
    others = [gene for gene in table.index if gene not in {g for parts in sets for g in parts[2:]}]
    score = (table.loc[own].mean() - table.loc[others].mean()).to_numpy()
    true = made.latents.measured("pathway")[rows]
    close(score - score.mean(), true - true.mean(), correlation=0.9999, error=0.01)


def test_reports_state_the_diameter(root, made):
    rows, ids = having(made, "reports")
    stated = []
    for patient in ids:
        text = (root / "reports" / f"{patient}.txt").read_text()
        found = re.findall(r"([\d.]+) mm", text)
        stated.append(next(float(x) for x in found if "." in x))
    close(stated, made.latents.measured("size")[rows], correlation=0.9999, error=0.051)


def test_report_and_image_name_the_same_side(root, made):
    both = [i for i in having(made, "imaging")[1] if i in having(made, "reports")[1]]
    for patient in both:
        values, _ = ct_values(root / "imaging" / patient)
        pieces, _ = ndimage.label(values > -405)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        sizes[sizes.argmax()] = 0
        column = ndimage.center_of_mass(pieces == sizes.argmax())[2]
        # DICOM columns run from the patient's right to the left where the row cosine is +x (LPS).
        first = next((root / "imaging" / patient).glob("*.dcm"))
        to_left = float(pydicom.dcmread(first, stop_before_pixels=True).ImageOrientationPatient[0]) > 0
        side = "left" if (column > values.shape[2] / 2) == to_left else "right"
        assert side in (root / "reports" / f"{patient}.txt").read_text().lower()


def test_no_latent_is_a_brightness_or_an_offset(root, made):
    """The mean of all values says little of the latent, in images as in signals."""
    rows, ids = having(made, "imaging")
    ct = [ct_values(root / "imaging" / i)[0].mean() for i in ids]
    assert abs(np.corrcoef(ct, made.latents.size[rows])[0, 1]) < 0.5
    rows, ids = having(made, "pathology")
    light = [slide_pixels(root / "pathology" / f"{i}.tif")[0].mean() for i in ids]
    assert abs(np.corrcoef(light, made.latents.density[rows])[0, 1]) < 0.5
    rows, ids = having(made, "ecg")
    level = [wfdb.rdrecord(str(root / "ecg" / i)).p_signal[:, 8:11].mean() for i in ids]
    assert abs(np.corrcoef(level, made.latents.st[rows])[0, 1]) < 0.5


# --- the folder -----------------------------------------------------------------------------------------------------


def test_only_patients_who_have_a_modality_have_its_files(root, made):
    names = {
        "imaging": {p.name for p in (root / "imaging").iterdir()},
        "pathology": {p.stem for p in (root / "pathology").iterdir()},
        "ecg": {p.stem for p in (root / "ecg").iterdir()},
        "reports": {p.stem for p in (root / "reports").iterdir()},
    }
    for name, found in names.items():
        assert found == set(having(made, name)[1]), name
        assert len(found) < N


def test_the_card_reads_what_was_written_and_truth_is_not_among_it(root, made, tmp_path):
    card = read_card(root / "card.md")
    cohort = read_cohort(card, data_root=root)
    assert cohort.patient_ids == made.patient_ids
    assert set(card.modalities) == set(synthetic.MODALITIES)
    assert not [source for source in card.sources() if "truth" in source]
    assert not [spec for spec in card.modalities.values() if "truth" in str(spec.path)]
    # those of a file per patient: test_demo.py
    data = load_modalities(cohort, names=["ehr", "expression", "mutations"], store_root=tmp_path / "store")
    for name, modality in data.items():
        assert set(modality.samples) == set(having(made, name)[1]), name
    columns = [c.name for c in data["ehr"].columns]
    rows, ids = having(made, "ehr")
    slope = [data["ehr"].samples[i].tokens[columns.index("creatinine.slope"), 0] * 365.25 for i in ids]
    close(slope, made.latents.measured("slope")[rows], correlation=0.999, error=0.02)
    genes = np.array([data["expression"].samples[i].tokens[:, 0] for i in having(made, "expression")[1]])
    score = synthetic.pathway_score(genes, tuple(c.name for c in data["expression"].columns))
    true = made.latents.pathway[having(made, "expression")[0]]
    assert np.corrcoef(score, true)[0, 1] > 0.9999


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 3), (again, 3), (other, 4)):
        write_cohort(folder, patients=2, seed=seed, missing=Missing())
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert [f for f in files if not filecmp.cmp(first / f, again / f, shallow=False)] == []
    same = [f for f in files if (other / f).is_file() and filecmp.cmp(first / f, other / f, shallow=False)]
    drawn = {"imaging", "pathology", "ecg", "reports", "patients.csv", "expression.tsv", "mutations.maf"}
    assert not drawn & {f.parts[0] for f in same}


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="empty folder"):
        write_cohort(tmp_path, patients=3)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_sixty_patients_take_less_than_a_minute_and_100_mb(tmp_path):
    start = time.process_time()
    write_cohort(tmp_path / "cohort", patients=60)
    assert time.process_time() - start < 60
    assert sum(p.stat().st_size for p in (tmp_path / "cohort").rglob("*") if p.is_file()) < 100e6
