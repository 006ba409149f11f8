"""Checks of the data card that a run was made with: what it answers, and what its author still owes."""

import re

from medfuse.card import CohortCard
from medfuse.documents.facts import RunFacts
from medfuse.documents.sheet import Entry

SECTIONS = (
    "Provenance",
    "Licence and use",
    "Population and outcome",
    "Modalities",
    "Missingness",
    "Known biases",
    "Intended use",
)
_UNDONE = re.compile(r"\b(TODO|TBD|FIXME|XXX|lorem ipsum)\b", re.IGNORECASE)
_SHORTEST = 20  # characters of a section that says something
_GOVERNANCE = {
    "licence": "Licence of the data.",
    "source": "Where the data come from.",
    "citation": "What to cite.",
    "consent": "Consent of the patients.",
    "deidentification": "How the data were made safe.",
}


def data_entries(facts: RunFacts) -> list[Entry]:
    """Entries of the data card's check: governance, definition, prose, and what the run found in the files."""
    card = facts.card
    if card is None:
        why = "the run's card.md cannot be read; restore it."
        return [Entry(key="card", section="Card", asks="The data card of the run.", author=why)]
    return [*_governance(card), *_definition(card), *_prose(facts), *_files(facts)]


def _entry(key: str, section: str, asks: str, *, ok: str = "", owed: str = "") -> Entry:
    """Filled where there is something; owed stands in only where there is not."""
    return Entry(key=key, section=section, asks=asks, filled=ok, author="" if ok else owed)


def _governance(card: CohortCard) -> list[Entry]:
    found = []
    for name, asks in _GOVERNANCE.items():
        text = str(getattr(card.governance, name))
        undone = bool(_UNDONE.search(text))
        found.append(
            _entry(name, "Governance", asks, ok="" if undone else text, owed=f"governance.{name} is not done.")
        )
    listed, stated = set(card.sources()), set(card.governance.sha256)
    bare = sorted(listed - stated)
    ok = f"All {len(listed)} files of the card." if not bare else f"{len(listed) - len(bare)} of {len(listed)} files."
    owed = f"SHA-256 of {', '.join(bare[:5])}{' and more' if len(bare) > 5 else ''}." if bare else ""
    asks = "SHA-256 of the files that the card names."
    found.append(Entry(key="sha256", section="Governance", asks=asks, filled=ok, author=owed))
    return found


def _definition(card: CohortCard) -> list[Entry]:
    section, found = "Definition", []
    for name, outcome in card.outcomes.items():
        asks = f"Outcome {name}: described, with its codes and unit."
        codes = ", ".join(outcome.event_codes or outcome.classes)
        unit = f", unit {outcome.unit}" if outcome.unit else ""
        said = f"{outcome.kind}{unit}{f', codes {codes}' if codes else ''}. {outcome.description}".strip()
        owed = "" if outcome.description else f"a description of {name}."
        found.append(Entry(key=f"outcome:{name}", section=section, asks=asks, filled=said, author=owed))
    for name, modality in card.modalities.items():
        columns = modality.columns if isinstance(modality.columns, dict) else {}
        bare = [c for c, v in columns.items() if v.kind == "numeric" and not v.unit]
        filled = f"{modality.loader}, {len(columns)} columns." if columns else f"{modality.loader}."
        owed = f"units of {', '.join(bare[:5])}{' and more' if len(bare) > 5 else ''}." if bare else ""
        asks = f"Modality {name}: every number has a unit."
        found.append(Entry(key=f"modality:{name}", section=section, asks=asks, filled=filled, author=owed))
    for key, what, value in (
        ("subgroups", "Columns of subgroups.", ", ".join(card.subgroups)),
        ("site", "Column of the site.", card.groups.site or ""),
        ("person", "Column of the person, where one may have several records.", card.groups.person or ""),
        ("index_time", "Column of the index time.", card.groups.index_time or ""),
    ):
        found.append(_entry(key, section, what, ok=value, owed="the column, or that there is none."))
    return found


def _prose(facts: RunFacts) -> list[Entry]:
    found = []
    for heading in SECTIONS:
        text = facts.prose.get(heading, "")
        key, asks = heading.lower().replace(" ", "_"), f"Section {heading}."
        if len(text) < _SHORTEST:
            table_only = heading in facts.prose and heading == "Modalities"
            ok = "As a table." if table_only else ""
            found.append(_entry(key, "Text", asks, ok=ok, owed=f"the section {heading!r} is missing or says nothing."))
        elif _UNDONE.search(text):
            found.append(_entry(key, "Text", asks, owed="the section has marks of work that is not done."))
        else:
            found.append(_entry(key, "Text", asks, ok=f"{len(text.split())} words."))
    return found


def _files(facts: RunFacts) -> list[Entry]:
    section, found = "Files as found", []
    a = facts.attrition
    problems = len(a.get("problems", ()))
    counted = "" if not a else f"{a['total']} patients, {a['modelled']} modelled, {len(a['excluded'])} left out."
    found.append(
        _entry("attrition", section, "Everybody is accounted for.", ok=counted, owed="the run keeps no counts.")
    )
    owed = "a look at the report, which lists them." if problems else ""
    text = f"{problems} problems of files." if a else ""
    missing = owed if a else "the run keeps no list of problems."
    found.append(Entry(key="problems", section=section, asks="Problems of the files.", filled=text, author=missing))
    warned = [f"{n}: {w}" for n, m in facts.data.get("modalities", {}).items() for w in m.get("warnings", ())]
    said = "; ".join(warned) if warned else "None."
    owed = "whether these are known and right." if warned else ""
    found.append(Entry(key="warnings", section=section, asks="Warnings of loaders.", filled=said, author=owed))
    leaks = facts.audit.get("findings", ())
    said = f"{len(leaks)} findings of {len(facts.audit.get('checks', ()))} checks."
    owed = "why each finding is no leak." if leaks else ""
    found.append(Entry(key="leaks", section=section, asks="Leak audit.", filled=said, author=owed))
    accepted = facts.card.governance.accepted if facts.card is not None else []
    said = f"Accepted after review: {', '.join(accepted)}." if accepted else "No identifying element was accepted."
    found.append(Entry(key="identifying", section=section, asks="Identifying elements.", filled=said))
    return found
