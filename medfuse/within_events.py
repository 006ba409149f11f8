"""Single events of a record that a run reads as a summary: found again in the cohort's files, and explained."""

from collections.abc import Sequence
from pathlib import Path

from medfuse.card import resolve_source
from medfuse.cohort import Cohort
from medfuse.errors import ConfigError
from medfuse.explain.events import Events
from medfuse.types import PatientId

LOADER = "events"


def events_for(cohort: Cohort, modality: str, ids: Sequence[PatientId]) -> dict[PatientId, Events]:
    """What the model may see of patients who have a modality, event by event, through the card.

    Args:
        cohort: of the run, whose files are those that it read.
        modality: its name.
        ids: patients as the cohort calls them.

    Raises:
        ConfigError: a modality of another loader, or whose tokens are events already.
        DataError: as the loader.
    """
    from medfuse.loaders.event_copies import patient_events

    card = cohort.card
    spec = card.modalities[modality]
    if spec.loader != LOADER:
        msg = f"explain: expected units event of a modality of the loader {LOADER}, found the loader {spec.loader}; "
        raise ConfigError(msg + f"leave units out for {modality}")

    def resolve(source: str) -> Path:
        return resolve_source(card, source, cohort.data_root, folder=True)

    with cohort.names_in_errors():
        named = {cohort.source_id(i): i for i in ids}
        found = patient_events(spec, list(named), resolve=resolve, id_column=card.patients.id)
    return {
        named[PatientId(source)]: Events(names=own.names, variable=own.variable, days=own.days, again=own.summaries)
        for source, own in found.items()
    }
