"""DICOM files made for tests; nobody is in them."""

import io

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

from medfuse.limits import read_head
from medfuse.loaders.base import Head
from medfuse.loaders.dicom import write_ct_series

AFFINE = np.array([[-1.5, 0, 0, 30], [0, -2, 0, 40], [0, 0, 3, -50], [0, 0, 0, 1]], dtype=float)


def volume(shape=(12, 10, 6), seed=0):
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(float)


def series(folder, hu=None, affine=AFFINE, **options):
    return list(write_ct_series(folder, volume() if hu is None else hu, affine, **options))


def edit(path, change, **save):
    """Change a file through pydicom."""
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path, enforce_file_format=True, **save)
    return path


def flat(path, pixels, *, modality="US", photometric="MONOCHROME2", spacing=(0.5, 0.25), **elements):
    """A single image without a place in the patient."""
    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta = meta
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = generate_uid(), generate_uid(), modality
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    data.Rows, data.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:3]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        data.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if spacing:
        data.PixelSpacing = list(spacing)
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)
    return path


def item(**elements):
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def enhanced(
    path, planes, positions, *, times=None, spacing=(2.0, 1.5), sop="1.2.840.10008.5.1.4.1.1.2.1", modality="CT"
):
    """An enhanced object: planes (F, R, C) int16 at positions (F, 3), rescaled by 2 x - 1000."""
    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = meta.MediaStorageSOPClassUID = sop
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta, data.Modality, data.SeriesInstanceUID = meta, modality, generate_uid()
    data.Rows, data.Columns, data.NumberOfFrames = planes.shape[1], planes.shape[2], len(planes)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=list(spacing), SliceThickness=3)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-1000, RescaleType="HU")],
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[float(v) for v in where])],
            FrameContentSequence=[
                item(TemporalPositionIndex=int(times[k])) if times is not None else item(StackID="1")
            ],
        )
        for k, where in enumerate(positions)
    ]
    data.PixelData = planes.astype("<i2").tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def segmentation(path, source_files, masks, numbers, *, kind="BINARY", most=255):
    """A SEG: masks (F, R, C) of segment ``numbers[f]`` at the slice of ``source_files[f]``.

    ``kind`` FRACTIONAL takes values up to ``most``, LABELMAP numbers of segments (``numbers`` is not used).
    """
    sources = [pydicom.dcmread(p, stop_before_pixels=True) for p in source_files]
    first = sources[0]
    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta, data.Modality, data.SeriesInstanceUID = meta, "SEG", generate_uid()
    data.Rows, data.Columns, data.NumberOfFrames = masks.shape[1], masks.shape[2], len(masks)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 1 if kind == "BINARY" else 8
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
    data.SegmentationType = kind
    if kind == "FRACTIONAL":
        data.SegmentationFractionalType, data.MaximumFractionalValue = "PROBABILITY", most
    if kind == "LABELMAP":
        data.SOPClassUID = meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    data.ReferencedSeriesSequence = [item(SeriesInstanceUID=first.SeriesInstanceUID)]
    data.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=3)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=source.ImagePositionPatient)],
            **({} if kind == "LABELMAP" else {"SegmentIdentificationSequence": [item(ReferencedSegmentNumber=number)]}),
        )
        for source, number in zip(sources, numbers, strict=True)
    ]
    flat_values = masks.ravel().astype(np.uint8)
    packed = (np.packbits(flat_values, bitorder="little") if bits == 1 else flat_values).tobytes()
    data.PixelData = packed + b"\0" * (len(packed) % 2)
    data.save_as(path, enforce_file_format=True)
    return path


def deflated(path, data):
    """A deflated file of a data set, written as PS3.5 A.5 says (through pydicom)."""
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return path


def head(path):
    return Head(path=path, size=path.stat().st_size, start=read_head(path))


def rotated(x, y, z, spacing=(1.5, 2.0, 3.0)):
    """An affine turned by angles (radians)."""
    a = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    b = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    c = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = (a @ b @ c) * np.asarray(spacing), (10, -20, 30)
    return out


def moved(files, change):
    for k, path in enumerate(files):
        edit(path, lambda d, k=k: change(d, k))
    return files
