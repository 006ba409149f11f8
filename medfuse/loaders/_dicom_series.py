"""What a DICOM object is, the planes of an image, and which files belong together."""

from collections.abc import Sequence

from medfuse.errors import DataError
from medfuse.loaders._dicom_enhanced import enhanced_frames
from medfuse.loaders._dicom_frame import Frame
from medfuse.loaders._dicom_header import Header

# SOP classes (PS3.4, B.5) by what becomes of them; the rest is refused by the name that pydicom knows
ECG = ("1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.840.10008.5.1.4.1.1.9.1.2", "1.2.840.10008.5.1.4.1.1.9.1.3")
SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
DIRECTORY = "1.2.840.10008.1.3.10"
SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_REFUSED = {  # prefix of a SOP class -> what it is, and what to do
    "1.2.840.10008.5.1.4.1.1.481.": "a radiotherapy object; give the images, and contours as a SEG or NIfTI mask",
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report; take its measurements into a table",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform that is no ECG; no loader reads it",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state; give the images that it refers to",
    "1.2.840.10008.5.1.4.1.1.66.": "registration, surface or fiducial data; give the images, registered",
    "1.2.840.10008.5.1.4.1.1.104.": "an encapsulated document; take its text through the loader text",
    "1.2.840.10008.5.1.4.1.1.91.": "microscopy annotations; no loader reads them",
    "1.2.840.10008.5.1.4.1.1.77.1.": "a visible-light image; the loader slide reads whole slides",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR spectroscopy; it holds no image",
    "1.2.840.10008.5.1.4.1.1.20": "a nuclear-medicine image, whose geometry is that of its detectors; convert it",
}
_PARAMETRIC = "1.2.840.10008.5.1.4.1.1.30"
STACKED = ("CT", "MR", "PT")  # modalities whose slices make volumes, and whose values are measured, not shown
FLAT = ("CR", "DX", "MG", "XA", "RF", "US", "IVUS", "IO", "PX", "RG", "OT", "SC", "")


# --- what a file is --------------------------------------------------------------------------------------------------


def name_of(sop: str) -> str:
    """Name of a SOP class."""
    from pydicom.uid import UID

    if not sop or sop.strip("0123456789."):
        return "an object without a valid SOP class"
    name = str(UID(sop, validation_mode=0).name)
    return name if name != sop else "an object of an unknown SOP class"


def refusal(header: Header) -> str:
    """Why an object is not read, or empty."""
    sop = header.text("SOPClassUID")
    if sop in SEGMENTATION or sop == _PARAMETRIC:
        return ""
    if sop == DIRECTORY:
        return f"{header.name}: a DICOMDIR, an index without images; give the folder of the images instead"
    for prefix, what in _REFUSED.items():
        if sop.startswith(prefix):
            return f"{header.name}: expected an image, found {name_of(sop)}: {what}"
    if header.pixels is None or not header.values.get("Rows"):
        what = name_of(sop)
        return f"{header.name}: expected an image, found {what} without pixels; is it truncated, or no image?"
    return ""


def lost_pixels(header: Header) -> bool:
    """An object of an image class, or of none, without pixels: probably truncated."""
    return header.pixels is None and (
        "Image Storage" in name_of(header.text("SOPClassUID")) or not header.has("SOPClassUID")
    )


def unsplit(header: Header) -> str:
    """Why an image cannot be cut into planes, or empty."""
    if "MOSAIC" in header.text("ImageType").split("\\"):
        return (
            f"{header.name}: a Siemens mosaic, whose slice directions stand in private elements only; "
            "convert it with dcm2niix and give the NIfTI"
        )
    return ""


# --- planes of a file ------------------------------------------------------------------------------------------------

_CLASSIC_KEYS = (
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "InstanceNumber",
)


def frames_of(header: Header) -> list[Frame]:
    """The planes of an image file.

    Raises:
        DataError: functional groups that are damaged.
    """
    count = header.integer("NumberOfFrames", 1) or 1
    if count < 1 or count > 1 << 20:
        msg = f"{header.name}: expected a number of frames up to a million, found another; repair the header"
        raise DataError(msg)
    if header.has("PerFrameFunctionalGroupsSequence"):
        return enhanced_frames(header, count)
    keys = {}
    for keyword in _CLASSIC_KEYS:
        try:
            value = header.number(keyword)
        except DataError:
            value = None
        if value is not None:
            keys[keyword] = value
    if count > 1 and header.has("ImagePositionPatient"):
        msg = (
            f"{header.name}: expected the position of each of its frames, found one for all; "
            "convert it to an enhanced object or NIfTI"
        )
        raise DataError(msg)
    position = header.numbers("ImagePositionPatient", 3)
    orientation = header.numbers("ImageOrientationPatient", 6)
    spacing = header.numbers("PixelSpacing", 2)
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    one = Frame(
        header=header,
        number=0,
        position=position,
        orientation=orientation,
        spacing=spacing,
        slope=slope,
        intercept=intercept,
        keys=keys,
    )
    if count == 1:
        return [one]
    return [
        Frame(
            header=header,
            number=k,
            position=None,
            orientation=None,
            spacing=spacing,
            slope=slope,
            intercept=intercept,
            keys={"frame": float(k)},
        )
        for k in range(count)
    ]


# --- grouping --------------------------------------------------------------------------------------------------------


def same_direction(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Two orientations that agree within about 0.06 degrees, or both absent."""
    if one is None or other is None:
        return one is other
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-3


def _kind(header: Header) -> tuple[str, ...]:
    spacing = header.numbers("PixelSpacing", 2)
    return (
        header.text("SeriesInstanceUID"),
        header.text("SOPClassUID"),
        header.text("ImageType"),
        header.text("FrameOfReferenceUID"),
        *(str(header.integer(k, 0)) for k in ("Rows", "Columns", "SamplesPerPixel")),
        "" if spacing is None else f"{spacing[0]:.4g} {spacing[1]:.4g}",
    )


def split(headers: Sequence[Header]) -> list[tuple[Header, ...]]:
    """Images that make one item each: slices of a series with one orientation; else every file for itself."""
    found: list[tuple[tuple[str, ...], tuple[float, ...] | None, list[Header]]] = []
    index: dict[tuple[str, ...], list[int]] = {}
    for header in headers:
        orientation = header.numbers("ImageOrientationPatient", 6)
        alone = header.integer("NumberOfFrames", 1) > 1 or not header.has("ImagePositionPatient") or orientation is None
        kind = ("", str(header.path)) if alone or not header.has("SeriesInstanceUID") else _kind(header)
        for k in index.setdefault(kind, []):
            if same_direction(found[k][1], orientation):
                found[k][2].append(header)
                break
        else:
            index[kind].append(len(found))
            found.append((kind, orientation, [header]))
    return [tuple(members) for _, _, members in found]
