"""Small DICOM whole slides of any codec, tiling and number of parts, complete enough for OpenSlide and wsidicom."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import simplejpeg
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
CODECS = {
    "native": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg": JPEGBaseline8Bit,
    "jpeg-ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}


def encoded(frame: np.ndarray, codec: str) -> bytes:
    """One frame as the codec keeps it."""
    if codec in {"native", "implicit"}:
        return frame.tobytes()
    if codec == "jpeg":
        return simplejpeg.encode_jpeg(frame, quality=90)
    if codec == "jpeg-ls":
        import jpeg_ls

        return bytes(jpeg_ls.encode_array(frame, interleave_mode=2))
    if codec == "jpeg2000":
        from openjpeg.utils import encode_array

        return bytes(encode_array(frame, photometric_interpretation=1, use_mct=True))
    from pydicom.pixels.encoders.base import get_encoder

    described = {"rows": frame.shape[0], "columns": frame.shape[1], "samples_per_pixel": 3, "bits_allocated": 8}
    described |= {
        "bits_stored": 8,
        "pixel_representation": 0,
        "photometric_interpretation": "RGB",
        "number_of_frames": 1,
        "planar_configuration": 0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_encoder(RLELossless).encode(frame, encoding_plugin="pydicom", **described)


def of(*items: dict[str, object]) -> Sequence:
    """A sequence of data sets."""
    made = []
    for item in items:
        data = Dataset()
        for name, value in item.items():
            setattr(data, name, value)
        made.append(data)
    return Sequence(made)


def header(width: int, height: int, tile: int, *, spacing: float, uid: str, codec: str) -> Dataset:
    """All but the frames and their places."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CLASS, uid
    data.file_meta.TransferSyntaxUID = CODECS[codec]
    data.SOPClassUID, data.SOPInstanceUID = CLASS, uid
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.5", "1.2.4", "1.2.6"
    data.PatientName, data.PatientID, data.StudyDate = "Secret^Name", "S-123", "20200101"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Modality, data.ContainerIdentifier = "SM", "S-123-C"
    data.Rows = data.Columns = tile
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.TotalPixelMatrixFocalPlanes = data.NumberOfOpticalPaths = 1
    data.TotalPixelMatrixOriginSequence = of({"XOffsetInSlideCoordinateSystem": 0, "YOffsetInSlideCoordinateSystem": 0})
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    data.ImagedVolumeWidth, data.ImagedVolumeHeight, data.ImagedVolumeDepth = width * spacing, height * spacing, 0.001
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PlanarConfiguration, data.SamplesPerPixel = 7, 0, 0, 3
    photometric = {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_RCT"}
    data.PhotometricInterpretation = photometric.get(codec, "RGB")
    data.SpecimenLabelInImage, data.BurnedInAnnotation, data.VolumetricProperties = "NO", "NO", "VOLUME"
    data.FocusMethod, data.ExtendedDepthOfField = "AUTO", "NO"
    data.OpticalPathSequence = of({"OpticalPathIdentifier": "0"})
    measures = {"PixelSpacing": [spacing, spacing], "SliceThickness": 0.001}
    data.SharedFunctionalGroupsSequence = of(
        {
            "PixelMeasuresSequence": of(measures),
            "OpticalPathIdentificationSequence": of({"OpticalPathIdentifier": "0"}),
            "WholeSlideMicroscopyImageFrameTypeSequence": of({"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]}),
        }
    )
    return data


def place(row: int, column: int, spacing: float) -> dict[str, object]:
    """Of a frame, functional group of one that is TILED_SPARSE."""
    at = {"RowPositionInTotalImagePixelMatrix": row + 1, "ColumnPositionInTotalImagePixelMatrix": column + 1}
    at |= {"XOffsetInSlideCoordinateSystem": row * spacing, "YOffsetInSlideCoordinateSystem": column * spacing}
    at |= {"ZOffsetInSlideCoordinateSystem": 0}
    return {"PlanePositionSlideSequence": of(at)}


def write(
    path: Path, pixels: np.ndarray, *, codec: str, tile: int = 64, spacing: float = 0.0005, leave_out=(),
    parts: int = 1, sparse: bool = False, uid: str = "1.2.3", **changes: object,
) -> list[Path]:  # fmt: skip
    """Write a level; a file, or ``parts`` files of a concatenation. Frames in ``leave_out`` are not in the file."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.pad(pixels, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)), constant_values=255)
    places = [(r, c) for r in range(rows) for c in range(columns) if r * columns + c not in leave_out]
    frames = [np.ascontiguousarray(padded[r * tile :, c * tile :][:tile, :tile]) for r, c in places]
    made, each = [], -(-len(frames) // parts)
    for part in range(parts):
        mine = range(part * each, min(len(frames), (part + 1) * each))
        data = header(width, height, tile, spacing=spacing, uid=f"{uid}.{part}" if parts > 1 else uid, codec=codec)
        data.NumberOfFrames = len(mine)
        data.DimensionOrganizationType = "TILED_SPARSE" if sparse or leave_out else "TILED_FULL"
        if sparse or leave_out:
            groups = [place(places[k][0] * tile, places[k][1] * tile, spacing) for k in mine]
            data.PerFrameFunctionalGroupsSequence = of(*groups)
        if parts > 1:
            data.ConcatenationUID, data.SOPInstanceUIDOfConcatenationSource = f"{uid}.9", f"{uid}.8"
            data.InConcatenationNumber, data.InConcatenationTotalNumber = part + 1, parts
            data.ConcatenationFrameOffsetNumber = mine[0]
        for name, value in changes.items():
            setattr(data, name, value)
        content = [encoded(frames[k], codec) for k in mine]
        data.PixelData = b"".join(content) if codec in {"native", "implicit"} else encapsulate(content)
        data["PixelData"].VR = "OB"
        made.append(path.with_name(f"{path.stem}{part or ''}.dcm"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.dcmwrite(made[-1], data, enforce_file_format=True)
    return made
