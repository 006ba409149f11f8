"""Whether numbers can be of the unit that a card states: refused where they cannot, warned of where it is unlikely."""

import math

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError

WHOLE_GENOME = 10_000  # genes from which on a table is taken to be all of them
_MANY = 1_000  # genes from which on the shape of the values says something
_LARGEST = {"tpm": 1e6, "fpkm": 1e9, "counts": 1e10, "cpm": 1e6, "rpkm": 1e9}


def check_unit(values: NDArray[np.float64], *, unit: str, log_base: float | None, file: str) -> list[str]:
    """Compare values with their stated unit; nothing is converted.

    Args:
        values: (patients, genes), NaN where missing.
        unit: of the card; only tpm, fpkm, rpkm, cpm, counts, zscore, copy_number (GISTIC) and mutation are known.
        log_base: of the card.
        file: for messages.

    Returns:
        Warnings.

    Raises:
        DataError: values that the unit cannot have.
    """
    if not values.size or np.isnan(values).all():
        return []
    largest, least = float(np.nanmax(values)), float(np.nanmin(values))
    name = unit.lower()
    if name == "zscore" and least >= 0 and values.shape[1] >= _MANY:
        return [f"{file}: z-scores without a value below 0 are unlikely; is the unit right?"]
    if name not in _LARGEST:
        return []
    if log_base is not None:
        limit = math.log(_LARGEST[name] + 1, log_base) + 1
        if largest > limit:
            raise _refusal(file, f"log{log_base:g} {unit} of at most {limit:.0f}", "larger values", "are they logged?")
        return []
    if least < 0:
        raise _refusal(file, f"{unit} of at least 0", "values below 0", "are they logged or standardised?")
    if name == "counts":
        return _counts(values, largest, file=file)
    return _relative(values, largest, unit=unit, file=file)


def _refusal(file: str, expected: str, found: str, question: str) -> DataError:
    return DataError(f"{file}: expected {expected}, found {found}; {question} correct unit and log_base in the card")


def _counts(values: NDArray[np.float64], largest: float, *, file: str) -> list[str]:
    broken = sum(int(np.count_nonzero(row[~np.isnan(row)] % 1)) for row in values)
    if broken:
        msg = (
            f"{file}: expected counts in whole numbers, found {broken} others; are they logged, normalised or expected "
            "counts (RSEM)? state the unit that they have, such as expected_counts"
        )
        raise DataError(msg)
    if largest < 30 and values.shape[1] >= WHOLE_GENOME:
        return [f"{file}: counts of at most {largest:.0f} over {values.shape[1]} genes are few; are they rounded logs?"]
    return []


def _relative(values: NDArray[np.float64], largest: float, *, unit: str, file: str) -> list[str]:
    if unit.lower() in {"tpm", "cpm"}:
        sums = np.array([np.nansum(row) for row in values])
        if sums.max() > 1.01e6:
            raise _refusal(file, f"{unit} that sum to at most a million per patient", "larger sums", "another unit?")
        low = int(np.count_nonzero(sums < 0.9e6))
        if low and values.shape[1] >= WHOLE_GENOME:
            return [
                f"{file}: {unit} of {low} of {len(values)} patients sum to less than 900,000 over {values.shape[1]} "
                "genes; are they logged, or were genes left out before?"
            ]
    if largest < 30 and values.shape[1] >= _MANY:
        return [f"{file}: {unit} of at most {largest:.3g} over {values.shape[1]} genes look logged; state log_base"]
    return []
