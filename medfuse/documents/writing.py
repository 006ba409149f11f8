"""Writing the documents of a run beside its report."""

from pathlib import Path

from medfuse.documents.data_card import data_entries
from medfuse.documents.facts import RunFacts, read_facts
from medfuse.documents.model_card import model_entries
from medfuse.documents.sheet import Sheet
from medfuse.documents.tripod import REFERENCE
from medfuse.documents.tripod_answers import tripod_entries
from medfuse.files import read_json, write_json, write_text
from medfuse.run import Run

_OPENED = "held_out_opened_times"
DOCUMENTS = ("model_card", "tripod_ai", "data_card")


def sheets(facts: RunFacts) -> list[Sheet]:
    """The three documents of a run."""
    title = facts.card.title if facts.card is not None else str(facts.about["facts"]["cohort"])
    stamp = _stamp(facts)
    return [
        Sheet(
            name="model_card",
            title=f"Model card: {title}",
            about=[
                "Intended users: researchers. Trained on the cohort below; estimates describe groups like it.",
                "Source attributes after ONC HTI-1, 45 CFR 170.315(b)(11)(iv)(B), in our own words.",
            ],
            stamp=stamp,
            entries=model_entries(facts),
        ),
        Sheet(
            name="tripod_ai",
            title=f"TRIPOD+AI: {title}",
            about=[f"Items in our own words; for their full text see {REFERENCE} D: development, E: evaluation."],
            stamp=stamp,
            entries=tripod_entries(facts),
        ),
        Sheet(
            name="data_card",
            title=f"Data card checks: {title}",
            about=["What the data card of the run answers, and what its author still owes."],
            stamp=stamp,
            entries=data_entries(facts),
        ),
    ]


def _stamp(facts: RunFacts) -> list[tuple[str, str]]:
    about = facts.about
    git = about.get("git", {})
    code = f"{git.get('commit', 'unknown')[:12]}{' (with local changes)' if git.get('dirty') else ''}"
    return [
        ("cohort", str(about["facts"]["cohort"])),
        ("outcomes", ", ".join(facts.metrics)),
        ("status", str(about.get("status"))),
        ("finished", str(about.get("finished"))),
        ("recipe SHA-256", str(about["facts"]["recipe"])),
        ("seed", str(about["facts"]["seed"])),
        ("code", code),
        *((f"data {name} SHA-256", str(key)) for name, key in about["facts"]["data"].items()),
    ]


def write_documents(run: Run, *, opened: int | None = None, into: Path | None = None) -> list[Path]:
    """Write model card, TRIPOD+AI table and data-card checks as Markdown, HTML and JSON.

    Args:
        run: with its metrics written.
        opened: how often held-out results were opened in reviews; None: as the documents that are there say.
        into: folder; default the run.

    Returns:
        The files.

    Raises:
        StoreError: a part of the run is missing or damaged.
    """
    paths = []
    opened = counted_before(run) if opened is None else opened
    for sheet in sheets(read_facts(run, opened=opened)):
        for ending in ("md", "html", "json"):
            paths.append((into or run.path) / f"{sheet.name}.{ending}")
        write_text(paths[-3], sheet.to_markdown())
        write_text(paths[-2], sheet.to_html())
        write_json(paths[-1], {"format_version": 1, _OPENED: opened, **sheet.to_json()})
    return paths


def counted_before(run: Run) -> int | None:
    """How often held-out results were opened, as the model card of a run says; None where it does not."""
    path = run.path / "model_card.json"
    found = read_json(path).get(_OPENED) if path.is_file() else None
    return found if isinstance(found, int) else None
