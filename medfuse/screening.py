"""``medfuse check --strict``: every file of a cohort is asked what in it identifies a person; nothing is stored."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from medfuse import gate, loaders
from medfuse.cohort import Cohort
from medfuse.extraction import findings_of, listing, patient_files, unnamed


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What was found in the files of a cohort.

    Attributes:
        findings: identifying elements that the card does not accept, by file.
        unread: files that could not be looked into, with the reason.
        silent: parts whose loader looks for nothing, so that nothing can be said of them.
    """

    findings: tuple[gate.Finding, ...]
    unread: tuple[str, ...]
    silent: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing found, and every file could be looked into."""
        return not self.findings and not self.unread


def screen(cohort: Cohort) -> Screening:
    """Look for what identifies a person in the card's tables and in every file of its modalities; never raises.

    Args:
        cohort: whose files are looked at, from their headers where the format has one.
    """
    found: list[gate.Finding] = []
    unread: list[str] = []

    def ask(part: str, look: Callable[[], list[gate.Finding]]) -> None:
        try:
            found.extend(look())
        except Exception as error:  # noqa: BLE001  # one file that cannot be read never stops the rest
            reason = gate.why(error)
            shown = reason if cohort.pseudonyms is None else cohort.public_text(reason)
            unread.append(f"{part}: {shown}")

    ask("patients and outcomes", lambda: gate.of_card_tables(cohort))
    accepted = tuple(cohort.card.governance.accepted)
    silent = [] if gate.looks("tabular") else ["patients and outcomes (tabular)"]
    for name, card in cohort.card.modalities.items():
        if not gate.looks(card.loader):
            silent.append(f"{name} ({card.loader})")
        elif card.loader in loaders.RAW and not card.file:
            _raw(cohort, name, accepted, found=found, unread=unread)
        else:
            ask(name, partial(gate.of_sources, cohort, name, card))
            if card.path:
                ask(name, partial(_of_patients, cohort, name))
    return Screening(findings=tuple(found), unread=tuple(unread), silent=tuple(silent))


def _of_patients(cohort: Cohort, name: str) -> list[gate.Finding]:
    return gate.of_patients(cohort, name, patient_files(cohort, name))


def _raw(cohort: Cohort, name: str, accepted: tuple[str, ...], *, found: list[gate.Finding], unread: list[str]) -> None:
    try:
        items, failed = listing(cohort, name)
    except Exception as error:  # noqa: BLE001  # as above
        unread.append(f"{name}: {gate.why(error)}")
        return
    unread += [f"{name}, patient {one.patient_id}: {one.reason}" for one in failed]
    for item in items:
        try:
            found += findings_of(dataclasses.replace(item, screened=accepted))
        except Exception as error:  # noqa: BLE001  # as above
            unread.append(f"{name}, patient {item.patient_id}: {unnamed(gate.why(error), item)}")
