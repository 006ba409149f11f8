"""Reports and notes as sentences, from one text file per patient or from a column of a table."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.limits import inflate
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import RawSample
from medfuse.tables import column, patient_ids, read_table
from medfuse.types import PatientId

ITEM = "sentence"
OPTIONS = ("column", "longest")
LONGEST = 400  # characters of a sentence; longer ones (lists, tables) are cut at the next blank
_LARGEST = 16 << 20
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s)|\n(?=[A-Z][A-Za-z ]{1,40}:)")
_HINTS = {
    "name": re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof)\.?\s+[A-Z][a-z]+|\b(?:patient|name)\s*:\s*[A-Z]\w+", re.IGNORECASE),
    "date": re.compile(r"\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\b\d{4}-\d{2}-\d{2}\b"),
    "phone": re.compile(r"\+?\d[\d ()/-]{8,}\d"),
    "mail": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    "id": re.compile(r"\b(?:MRN|SSN|case|accession)\W{0,3}\w*\d{4,}\b", re.IGNORECASE),
}


def recognise(head: Head) -> bool:
    """Named .txt, and text."""
    return head.path.suffix.lower() == ".txt" and b"\0" not in head.start


def _decoded(path: Path) -> str:
    content = inflate(path, most=_LARGEST)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path.name}: expected text in UTF-8, found another encoding at byte {error.start}; save it as UTF-8"
        raise DataError(msg) from error
    if "\0" in text:
        msg = f"{path.name}: expected text, found binary content; is it the right file?"
        raise DataError(msg)
    return text


def sentences(text: str, *, longest: int = LONGEST) -> list[str]:
    """Sentences, list items and sections in order; blanks are single, and a long one is cut at a blank."""
    found = []
    for part in _END.split(text):
        rest = " ".join(part.split())
        while len(rest) > longest:
            cut = rest.rfind(" ", 1, longest)
            found.append(rest[: cut if cut > 0 else longest])
            rest = rest[len(found[-1]) :].strip()
        if rest:
            found.append(rest)
    return found


def _sample(text: str, options: Mapping[str, Any], *, where: str) -> RawSample:
    found = sentences(text, longest=int(options.get("longest", LONGEST)))
    if not found:
        msg = f"{where}: expected a text, found none; leave the patient out of the source if there is no report"
        raise DataError(msg)
    held = np.array(found, dtype=object)

    def fetch(rows: Sequence[int]) -> NDArray[Any]:
        return held[list(rows)]

    position = np.arange(len(found), dtype=np.float32)[:, None]
    return RawSample(item="sentence", shape=(), position=position, unit="index", fetch=fetch)


def _checked(options: Mapping[str, Any]) -> None:
    unknown = next((key for key in options if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"options of the loader text: unknown {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """Sentences of one patient's text file; see :mod:`medfuse.loaders.base`.

    Raises:
        DataError: empty, binary, or in another encoding than UTF-8.
    """
    _checked(options)
    return _sample("\n\n".join(_decoded(path) for path in files), options, where=files[0].name)


def read_table_of(path: Path, card: ModalityCard, *, patients: tuple[str | None, str]) -> dict[PatientId, RawSample]:
    """Sentences of all patients from ``options.column`` of a table; several rows of a patient follow each other.

    Raises:
        DataError: no such column.
    """
    _checked(card.options)
    frame = read_table(path)
    texts = column(frame, str(card.options.get("column", "text")), file=path.name)
    ids = patient_ids(frame, card.id or patients[0], prefix=patients[1], file=path.name)
    joined: dict[PatientId, list[str]] = {}
    for patient, text in zip(ids, texts, strict=True):
        if str(text).strip():
            joined.setdefault(patient, []).append(str(text))
    where = f"{path.name}, patient "
    return {i: _sample("\n\n".join(parts), card.options, where=where + i) for i, parts in joined.items()}


def describe(files: Sequence[Path]) -> Description:
    """Number of sentences and characters; no word of the text."""
    text = _decoded(files[0])
    return Description(kind="text", holds={"characters": len(text), "sentences": len(sentences(text))})


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Patterns that look like names, dates, numbers of people and of cases: hints, not a de-identification."""
    text = _decoded(files[0])
    return [Identifying(where=f"{files[0].name}: pattern", kind=kind) for kind, p in _HINTS.items() if p.search(text)]


def write_example(folder: Path) -> ModalityCard:
    """Two short reports, and the card that reads them."""
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    for patient, finding in (("001", "No mass. Margins are free."), ("002", "Mass of 31 mm. Two nodes are involved.")):
        (folder / "reports" / f"{patient}.txt").write_text(f"FINDINGS: {finding}\n\nIMPRESSION: see above.\n")
    return ModalityCard(loader="text", path="reports/{patient_id}.txt")
