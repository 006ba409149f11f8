"""The synthetic cohort as raw files: DICOM series, slides, WFDB records, gene tables, MAF, MEDS, reports.

The patients, their latents and their outcomes are those of :func:`medfuse.synthetic.simulate` with the same arguments,
so that the oracle of the tables is the oracle of the files, up to what a voxel, a pixel or a rounded number can show.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medfuse.card import ModalityCard
from medfuse.errors import ConfigError
from medfuse.files import write_text
from medfuse.loaders.dicom import write_ct_series
from medfuse.loaders.ecg import synthesise, write_wfdb
from medfuse.loaders.events import write_meds
from medfuse.loaders.expression import write_expression
from medfuse.loaders.slide import write_slide
from medfuse.loaders.variants import write_maf
from medfuse.synthetic.cohort import GENES, MUTATED, Simulation, simulate
from medfuse.synthetic.outcomes import Missing
from medfuse.synthetic.paper import TRUTH, write_card, write_gene_sets, write_patients, write_truth
from medfuse.synthetic.phantoms import (
    CODES,
    CT_SHAPE,
    SLIDE_MPP,
    SiteStyle,
    ct_volume,
    lab_readings,
    report_text,
    site_styles,
    slide_pixels,
)
from medfuse.synthetic.process import MODALITIES, ST_LEADS, Array, Process

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
ECG_SECONDS = 10.0
_PARTS = ("side", "imaging", "pathology", "ecg", "ehr", "reports", "index_time", "mutations")


def _rng(seed: int, part: str, patient: int) -> np.random.Generator:
    """A stream of its own for each part of each patient, whoever else is in the cohort."""
    return np.random.default_rng(np.random.SeedSequence([seed, 101 + _PARTS.index(part), patient]))


def ecg_signal(st_level: float, style: SiteStyle, rng: np.random.Generator, *, hertz: float) -> Array:
    """(12, samples) mV of a resting ECG whose leads V3 to V5 have an ST level in mV; the others have none.

    Every electrode has an offset of its own, so that the level is one only against the patient's own baseline.
    """
    rate, seed = float(rng.normal(72, 9)), int(rng.integers(1 << 31))

    def beats(st_mv: float) -> Array:
        return synthesise(
            ECG_SECONDS, hertz, heart_rate=min(max(rate, 45.0), 105.0), st_mv=st_mv, noise_mv=style.ecg_noise, seed=seed
        )

    signal, raised = beats(0.0), beats(st_level)  # of the same heart: the same rhythm and noise
    shown = [LEADS.index(name) for name in ST_LEADS]
    signal[shown] = raised[shown]
    first, second, *chest = rng.normal(0, 0.15, size=8)
    limb = [first, second, second - first, -(first + second) / 2, first - second / 2, second - first / 2]
    return np.asarray(signal + np.array([*limb, *chest])[:, None])


class _Writer:
    """Writes the modalities of one simulation below a folder; each method returns the card of its modality."""

    def __init__(self, folder: Path, simulation: Simulation, *, seed: int) -> None:
        self.folder, self.simulation, self.seed = folder, simulation, seed
        process = simulation.process
        self.styles = site_styles(process.sites, batch=process.batch, seed=seed)

    def _having(self, name: str) -> list[tuple[int, str, SiteStyle]]:
        """Row, id and site style of every patient who has a modality."""
        latents, ids = self.simulation.latents, self.simulation.patient_ids
        rows = np.flatnonzero(self.simulation.present[:, MODALITIES.index(name)])
        return [(int(i), str(ids[i]), self.styles[int(latents.site[i])]) for i in rows]

    def _side(self, row: int) -> str:
        return "right" if _rng(self.seed, "side", row).random() < 0.5 else "left"

    def imaging(self) -> ModalityCard:
        """A CT series per patient; the side is that of the report."""
        diameter = self.simulation.latents.measured("size")
        for row, patient, style in self._having("imaging"):
            volume = ct_volume(float(diameter[row]), self._side(row), style, _rng(self.seed, "imaging", row))
            folder = self.folder / "imaging" / patient
            write_ct_series(folder, np.rint(volume.values), volume.affine, patient_id=patient, seed=self.seed)
        return ModalityCard(
            loader="dicom",
            path="imaging/{patient_id}",
            options={"patch": list(CT_SHAPE), "window": [-1000, 400]},
            extractor={"name": "volume", "scales_mm": [3, 6, 12]},
            description="Chest CT without contrast, 5 mm voxels",
        )

    def pathology(self) -> ModalityCard:
        """A pyramidal slide per patient."""
        density = self.simulation.latents.measured("density")
        (self.folder / "pathology").mkdir(parents=True, exist_ok=True)
        for row, patient, style in self._having("pathology"):
            pixels = slide_pixels(float(density[row]), style, _rng(self.seed, "pathology", row))
            write_slide(self.folder / "pathology" / f"{patient}.tif", pixels, mpp=SLIDE_MPP)
        return ModalityCard(
            loader="slide",
            path="pathology/{patient_id}.tif",
            options={"mpp": SLIDE_MPP, "tile": 128},
            description="H&E slide of the tumour at 0.5 µm per pixel",
        )

    def ecg(self) -> ModalityCard:
        """A WFDB record per patient, at the sampling frequency of the site."""
        level = self.simulation.latents.measured("st")
        (self.folder / "ecg").mkdir(parents=True, exist_ok=True)
        for row, patient, style in self._having("ecg"):
            hertz = style.ecg_hertz
            signal = ecg_signal(float(level[row]), style, _rng(self.seed, "ecg", row), hertz=hertz)
            write_wfdb(self.folder / "ecg", patient, signal, sampling_frequency=hertz)
        return ModalityCard(
            loader="ecg",
            path="ecg/{patient_id}.*",
            options={"sampling_frequency": 250},
            description="12-lead ECG at rest, 10 s",
        )

    def expression(self) -> ModalityCard:
        """One table of all patients, genes in rows."""
        data = self.simulation.data["expression"]
        ids = list(data.samples)
        values = np.array([data.samples[i].tokens[:, 0] for i in ids]).reshape(len(ids), len(GENES))
        write_expression(self.folder / "expression.tsv", values, patients=ids, genes=GENES)
        write_gene_sets(self.folder / "pathways.gmt")
        return ModalityCard(
            loader="expression",
            file="expression.tsv",
            id="gene",
            orientation="genes_by_patients",
            unit="tpm",
            log_base=2,
            gmt="pathways.gmt",
            description="Gene expression of the tumour, log2 TPM",
        )

    def ehr(self, index_time: Sequence[pd.Timestamp]) -> ModalityCard:
        """One MEDS dataset of all patients, in the units of their sites."""
        slope = self.simulation.latents.measured("slope")
        rows = []
        for row, patient, style in self._having("ehr"):
            for reading in lab_readings(float(slope[row]), style, _rng(self.seed, "ehr", row)):
                at = index_time[row] + pd.Timedelta(days=reading.day)
                rows.append((subject_of(patient), at, reading.code, reading.value, reading.unit))
        frame = pd.DataFrame(rows, columns=["subject_id", "time", "code", "numeric_value", "unit"])
        write_meds(self.folder / "ehr", frame, name="medfuse-synthetic")
        width = len(self.simulation.patient_ids[0]) - len("SYN-")
        units = {"creatinine": "mg/dL", "haemoglobin": "g/dL", "sodium": "mmol/L"}
        variables = {
            name: {"codes": code, "unit": units[name], **({"analyte": name} if name == "creatinine" else {})}
            for name, code in CODES.items()
        }
        return ModalityCard(
            loader="events",
            files={"meds": "ehr", "patients": "patients.csv"},
            options={
                "format": "meds",
                "index": {"table": "patients", "column": "index_time"},
                "lookback_days": 366,
                "patient_id": f"SYN-{{:0{width}d}}",
                "variables": variables,
            },
            description="Laboratory values of the year before index time, MEDS",
        )

    def reports(self) -> ModalityCard:
        """A text per patient."""
        diameter = self.simulation.latents.measured("size")
        for row, patient, style in self._having("reports"):
            text = report_text(float(diameter[row]), self._side(row), style, _rng(self.seed, "reports", row))
            write_text(self.folder / "reports" / f"{patient}.txt", text)
        return ModalityCard(loader="text", path="reports/{patient_id}.txt", description="Report on the imaging")

    def mutations(self) -> ModalityCard:
        """A MAF of all patients, and the list of who was sequenced: some have no variant at all."""
        data = self.simulation.data["mutations"]
        row_of = {patient: row for row, patient in enumerate(self.simulation.patient_ids)}
        samples, genes, classes, fractions = [], [], [], []
        for patient, sample in data.samples.items():
            rng = _rng(self.seed, "mutations", row_of[patient])
            for gene in np.array(MUTATED)[sample.tokens[:, 0] > 0]:
                samples.append(str(patient))
                genes.append(str(gene))
                classes.append(str(rng.choice(("Missense_Mutation", "Nonsense_Mutation", "Frame_Shift_Del"))))
                fractions.append(round(float(rng.uniform(0.05, 0.5)), 2))
        write_maf(self.folder / "mutations.maf", samples=samples, genes=genes, classes=classes, vaf=fractions)
        write_text(self.folder / "sequenced.csv", "\n".join(["patient_id", *data.samples]) + "\n")
        return ModalityCard(
            loader="variants",
            file="mutations.maf",
            sequenced="sequenced.csv#patient_id",
            build="GRCh38",
            options={"values": ["mutated"], "genes": list(MUTATED)},
            description="Somatic mutations of the tumour in a panel of 40 genes",
        )


def subject_of(patient: str) -> int:
    """The whole number by which MEDS and OMOP know a patient."""
    return int(patient.removeprefix("SYN-"))


def write_cohort(
    out: Path,
    *,
    patients: int = 60,
    seed: int = 0,
    missing: Missing | None = None,
    process: Process | None = None,
    censored: float = 0.4,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a synthetic cohort as raw files.

    Args:
        out: the data root; it must be empty or not be there.
        patients: their number.
        seed: the same seed gives the same bytes in every file that carries no time of writing.
        missing: how whole modalities come to be absent (default: 15 % of each completely at random).
        process: strengths (default: those of :class:`Process`).
        censored: share of patients without an event, in expectation.
        say: called with the name of each modality when its files are written.

    Returns:
        Path of the data card, ``out/card.md``; what generated the cohort stands in ``out/truth``.

    Raises:
        ConfigError: a folder that is not empty, or what :func:`simulate` refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out}: expected an empty folder or none, found files; choose another, or empty it"
        raise ConfigError(msg)
    simulation = simulate(
        patients,
        seed=seed,
        process=process,
        missing=missing or Missing(mechanism="mcar", rate=0.15),
        censored=censored,
        modalities=("expression", "mutations"),
    )
    out.mkdir(parents=True, exist_ok=True)
    index_time = [
        pd.Timestamp("2015-01-01") + pd.Timedelta(days=int(_rng(seed, "index_time", i).integers(0, 1461)))
        for i in range(patients)
    ]
    write_patients(out, simulation, index_time=[f"{at:%Y-%m-%d}" for at in index_time])
    writer = _Writer(out, simulation, seed=seed)
    cards = {}
    for name in MODALITIES:
        write = getattr(writer, name)
        cards[name] = write(index_time) if name == "ehr" else write()
        say(f"{name}: {int(simulation.present[:, MODALITIES.index(name)].sum())} patients")
    path = write_card(out, simulation, cards, name="synthetic", index_time="index_time")
    write_truth(out / TRUTH, simulation)
    return path
