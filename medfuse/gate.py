"""The gate: what identifies a person is looked for in the files themselves, before anything of them is stored.

Each loader knows where its format keeps names, numbers, dates and free text (``identifying`` of its module). The gate
asks them, leaves out what the card's ``governance.accepted`` lists, and refuses the rest by file and element; a value
is never repeated. What a loader cannot see (a face in a scan, a name inside pixels, an unusual sentence) passes: an
empty list is no proof of de-identification.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from medfuse import loaders
from medfuse.card import CohortCard, ModalityCard
from medfuse.cohort import Cohort, resolve_source
from medfuse.errors import DataError, MedfuseError
from medfuse.limits import files_below
from medfuse.loaders.base import Identifying
from medfuse.types import PatientId

_SHOWN = 8  # elements in a refusal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An identifying element of a file.

    Attributes:
        part: modality, or ``patients and outcomes`` for the card's own tables.
        file: as medfuse may write it; the name of a patient's file can hold more than the card says.
        element: as ``governance.accepted`` names it, such as ``(0010,0010) PatientName: name``.
    """

    part: str
    file: str
    element: str

    def __str__(self) -> str:
        return f"{self.part}, {self.file}: {self.element}"


def looks(loader: str) -> bool:
    """Whether a loader can say what identifies a person in its files."""
    return hasattr(loaders.module_of(loader, where="gate"), "identifying")


def elements(loader: str, files: Sequence[Path], *, accepted: Sequence[str] = ()) -> list[str]:
    """Identifying elements of files that belong together, without names of files, each once.

    Args:
        loader: who reads the files.
        files: of one item.
        accepted: elements to leave out; ``*`` and ``?`` match as in names of files.

    Raises:
        DataError: the files cannot be looked into.
    """
    if not looks(loader):
        return []
    found: list[Identifying] = loaders.module_of(loader, where="gate").identifying(files)
    texts = dict.fromkeys(f"{_without(one.where, files)}: {one.kind}" for one in found)
    return [text for text in texts if not any(_same(text, pattern) for pattern in accepted)]


def _without(where: str, files: Sequence[Path]) -> str:
    for path in files:
        where = where.removeprefix(f"{path.name}: ")
    return where


def _same(text: str, pattern: str) -> bool:
    return text == pattern or fnmatchcase(text, pattern.replace("[", "[[]"))


def of_sources(cohort: Cohort, name: str, card: ModalityCard) -> list[Finding]:
    """What the files of a modality that lie under fixed names hold: tables of all patients.

    The column of ids is left out: without it nothing could be joined, and pseudonyms stand in for it.

    Raises:
        DataError: a file cannot be looked into.
    """
    found = []
    for source in card.sources():
        path = resolve_source(cohort.card, source, cohort.data_root, folder=card.loader == "events")
        files = sorted(files_below(path)) if path.is_dir() else [path]
        ids = (card.id, cohort.card.patients.id)
        found += _of_table(name, source, files, loader=card.loader, ids=ids, accepted=cohort.card.governance.accepted)
    return found


def of_patients(cohort: Cohort, name: str, files: Mapping[PatientId, Sequence[Path]]) -> list[Finding]:
    """What files of one patient each hold, for a modality whose loader is one of tables.

    Args:
        cohort: whose files they are.
        name: of the modality.
        files: by the patient's id in the files.

    Raises:
        DataError: a file cannot be looked into.
    """
    card = cohort.card.modalities[name]
    accepted = cohort.card.governance.accepted
    return [
        Finding(part=name, file=f"file {number} of patient {cohort.public(patient)}", element=text)
        for patient, paths in files.items()
        for number, path in enumerate(paths, 1)
        for text in elements(card.loader, [path], accepted=accepted)
    ]


def of_card_tables(cohort: Cohort) -> list[Finding]:
    """What the tables of patients, outcomes and subgroups hold, each looked at once.

    Raises:
        DataError: a file cannot be looked into.
    """
    card = cohort.card
    ids = {card.patients.file: [card.patients.id]}
    for file, _ in card.subgroup_columns():
        ids.setdefault(file, [card.patients.id])
    for outcome in card.outcomes.values():
        ids.setdefault(outcome.file or card.patients.file, [card.patients.id]).append(outcome.id)
    found = []
    for source, columns in ids.items():
        path = resolve_source(card, source, cohort.data_root)
        found += _of_table(
            "patients and outcomes", source, [path], loader="tabular", ids=columns, accepted=card.governance.accepted
        )
    return found


def _of_table(
    part: str,
    source: str,
    files: Sequence[Path],
    *,
    loader: str,
    ids: Iterable[str | None],
    accepted: Sequence[str],
) -> list[Finding]:
    known = tuple(f"column {name!r}: " for name in ids if name)
    texts = [text for text in elements(loader, files, accepted=accepted) if not (known and text.startswith(known))]
    return [Finding(part=part, file=source, element=text) for text in texts]


def refusal(card: CohortCard, findings: Sequence[Finding]) -> DataError:
    """The error that names files and elements, the most frequent elements first, and says what to do."""
    counts = Counter((one.part, one.element) for one in findings)
    first = {(one.part, one.element): one.file for one in reversed(findings)}
    named = [
        f"{part}, {first[part, element]}: {element}" + (f" (and {count - 1} more files)" if count > 1 else "")
        for (part, element), count in counts.most_common(_SHOWN)
    ]
    more = f"; {len(counts) - _SHOWN} more elements" if len(counts) > _SHOWN else ""
    return DataError(
        f"{card.name}: expected files without identifying elements, for the card is strict, found {'; '.join(named)}"
        f"{more}. Nothing of these files was stored. De-identify them, or list elements that a person has reviewed "
        "under governance.accepted; medfuse check --strict lists all of them"
    )


def why(error: Exception) -> str:
    """The reason why a file could not be looked into."""
    return str(error) if isinstance(error, MedfuseError) else f"internal error: {type(error).__name__}; report it"
