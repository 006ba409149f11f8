"""A small cohort with a table and notes, for the tests of the gate."""

import json
from pathlib import Path

CANARY = "Qzxv"
IDS = tuple(f"A-10{k:02d}" for k in range(1, 21))
KEY = "0123456789abcdef0123456789abcdef"


def card_file(folder: Path, modalities: dict, *, ids=IDS, name="gate", **options) -> Path:
    """A card (JSON is YAML) and its table of patients; ``options``: strict, accepted, pseudonyms, checksums."""
    rows = "".join(f"{i},{100 + 50 * (k * 7 % len(ids))},{k % 2}\n" for k, i in enumerate(ids))
    (folder / "patients.csv").write_text(f"id,days,died\n{rows}")
    governance = {"licence": "CC0", "source": "made up", "citation": "none", "consent": "none", "deidentification": "x"}
    governance |= {k: options[k] for k in ("accepted", "checksums") if k in options}
    survival = {"kind": "survival", "time": "days", "unit": "days", "event": "died"}
    content = {
        "name": name,
        "title": "Gate",
        "governance": governance,
        "strict": options.get("strict", False),
        "patients": {"file": "patients.csv", "id": "id", "pseudonyms": options.get("pseudonyms", False)},
        "outcomes": {"os": {**survival, "event_codes": ["1"], "censored_codes": ["0"]}},
        "modalities": modalities,
    }
    path = folder / "card.md"
    path.write_text(f"---\n{json.dumps(content)}\n---\n\n# Gate\n")
    return path


def with_text(folder: Path, notes: dict[str, str], *, path="notes/{patient_id}.txt", **options) -> Path:
    """Twenty patients with a table of ages, and notes of some."""
    (folder / "notes").mkdir(exist_ok=True)
    (folder / "table.csv").write_text(
        "id,age\n" + "".join(f"{i},{40 + (k * k * 17 + 5) % 23}\n" for k, i in enumerate(IDS))
    )
    for patient, text in notes.items():
        (folder / "notes" / f"{patient}.txt").write_text(text)
    modalities = {
        "table": {"loader": "tabular", "file": "table.csv", "columns": {"age": {"kind": "numeric", "unit": "years"}}},
        "notes": {"loader": "text", "path": path},
    }
    return card_file(folder, modalities, **options)
