"""Valid DICOM CT series from arrays, of people who do not exist: for examples, tests and synthetic cohorts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError

_ROOT = "2.25."  # UIDs from UUIDs (PS3.5, B.2)
_CT = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"


def _uid(*parts: object) -> str:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return _ROOT + str(int.from_bytes(digest, "big") >> 1)


def write_ct_series(
    folder: Path,
    volume_hu: NDArray[Any],
    affine: NDArray[Any],
    *,
    patient_id: str = "NOBODY",
    seed: int = 0,
    modality: str = "CT",
    order: Sequence[int] | None = None,
) -> tuple[Path, ...]:
    """Write a volume as a CT series: one Part-10 file per slice, explicit VR little endian, signed 16 bits, -1024.

    Args:
        folder: made where it is missing; file names are made of a hash and say nothing of the order.
        volume_hu: (I, J, K) in HU; rounded to whole numbers, from -1024 - 2^15 + 1024 on as 16 bits allow.
        affine: (4, 4), index -> mm, RAS+; its third axis must be perpendicular to the first two.
        patient_id: a made-up id; the name is ``Nobody^<patient_id>``. No date, no institution, no other person.
        seed: changes all UIDs and file names.
        modality: for tests of other modalities; the SOP class stays CT.
        order: in which slices are numbered (InstanceNumber); default: along the third axis.

    Returns:
        The files, in the order of the third axis.

    Raises:
        DataError: not three axes, not finite, sheared, or values that 16 bits cannot hold.
    """
    volume = np.asarray(volume_hu)
    affine = np.asarray(affine, dtype=np.float64)
    if volume.ndim != 3 or affine.shape != (4, 4) or not np.isfinite(volume).all() or not np.isfinite(affine).all():
        msg = f"write_ct_series: expected finite (I, J, K) values and a (4, 4) affine, found {volume.shape}"
        raise DataError(msg + f", {affine.shape}")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    cosines = lps[:3, :3] / steps
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > 1e-3:
        msg = "write_ct_series: expected perpendicular axes, found a sheared affine; resample the volume first"
        raise DataError(msg)
    stored = np.rint(volume) + 1024
    if stored.min() < -32768 or stored.max() > 32767:
        msg = "write_ct_series: expected HU from -33792 to 31743, found others; clip them first"
        raise DataError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(order) if order is not None else list(range(volume.shape[2]))
    key = (patient_id, seed, volume.shape, hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest())
    data = _series(key=key, rows=volume.shape[1], columns=volume.shape[0])
    data.Modality = modality
    data.PatientID, data.PatientName = patient_id, f"Nobody^{patient_id}"
    data.ImageOrientationPatient = [_decimal(v) for v in (*cosines[:, 0], *cosines[:, 1])]
    data.PixelSpacing = [_decimal(steps[1]), _decimal(steps[0])]
    data.SliceThickness = data.SpacingBetweenSlices = _decimal(steps[2])
    paths = []
    for k in range(volume.shape[2]):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = _uid(*key, "image", k)
        data.InstanceNumber = numbers[k] + 1
        data.ImagePositionPatient = [_decimal(v) for v in lps[:3, :3] @ [0, 0, k] + lps[:3, 3]]
        data.PixelData = stored[:, :, k].T.astype("<i2").tobytes()
        path = folder / (hashlib.sha256(f"{key}/{k}".encode()).hexdigest()[:12] + ".dcm")
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5, 6.2)."""
    for digits in range(14, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return "0"


def _series(*, key: Sequence[object], rows: int, columns: int) -> Any:  # noqa: ANN401  # a pydicom data set
    """All that the slices of a series have in common: making it anew for each takes as long as writing it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    data, meta = Dataset(), FileMetaDataset()
    data.SOPClassUID = meta.MediaStorageSOPClassUID = UID(_CT)
    meta.TransferSyntaxUID = UID(_EXPLICIT)
    meta.ImplementationClassUID = UID(_uid("medfuse"))
    data.file_meta = meta
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(*key, "study"), _uid(*key, "series")
    data.FrameOfReferenceUID = _uid(*key, "frame")
    data.SeriesNumber, data.AcquisitionNumber, data.KVP = 1, 1, "120"
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate"):
        setattr(data, keyword, "")
    data.PatientSex, data.StudyID, data.Manufacturer, data.PositionReferenceIndicator = "", "", "medfuse", ""
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "synthetic, no person"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = rows, columns
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.BurnedInAnnotation = "NO"
    return data
