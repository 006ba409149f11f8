"""Sample names to patient ids, by a rule that the card states; never guessed."""

import re
from collections.abc import Sequence

from medfuse.errors import DataError
from medfuse.types import PatientId

_TCGA = re.compile(r"^(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:-(\d{2})[A-Z]?(?:-.*)?)?$")


def patients_of(samples: Sequence[str], rule: str, *, file: str) -> list[PatientId]:
    """The patient of each sample.

    Args:
        samples: names as the file has them.
        rule: ``as_is``, or ``tcga_patient``: the first three parts of a TCGA barcode.
        file: for messages.

    Raises:
        DataError: rule ``tcga_patient`` and a name that is no TCGA barcode, or the barcode of normal tissue (sample
            types 10 to 19), which would otherwise be merged with the patient's tumour.
    """
    if rule == "as_is":
        return [PatientId(sample.strip()) for sample in samples]
    found = []
    for number, sample in enumerate(samples, 1):
        match = _TCGA.match(sample.strip())
        if match is None:
            msg = (
                f"{file}, sample {number}: expected a TCGA barcode such as TCGA-AB-2803-03A, found another form; "
                "correct the names, or state barcode: as_is"
            )
            raise DataError(msg)
        if match[2] and 10 <= int(match[2]) <= 19:
            msg = (
                f"{file}, sample {number}: expected tumour samples, found normal tissue (sample type {match[2]}); "
                "leave normal samples out of the file, or choose the others by the card's columns"
            )
            raise DataError(msg)
        found.append(PatientId(match[1]))
    return found


def look_like_barcodes(names: Sequence[str]) -> bool:
    """Whether all names are TCGA barcodes, and so samples rather than genes."""
    return bool(names) and all(_TCGA.match(name.strip()) for name in names)
