"""``medfuse check CARD``: what stands in a cohort's files, before anything is fitted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfuse.audit import audit
from medfuse.cohort import Cohort, availability, read_cohort
from medfuse.config import SplitsRecipe, read_card
from medfuse.dataset import load_modalities
from medfuse.errors import MedfuseError
from medfuse.sample import ModalityData
from medfuse.screening import screen
from medfuse.splits import Split, make_splits
from medfuse.targets import Labels, Survival

if TYPE_CHECKING:
    from rich.console import Group

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What ``medfuse check`` found; ``ok`` is False when the card's files cannot be used as they are.

    Attributes:
        card: its name.
        attrition: rows of (what, patients): everyone in = modelled + listed with a reason.
        excluded: rows of (patient id, reason).
        modalities: rows per modality: patients, columns, warnings.
        patterns: rows of (available modalities, patients).
        folds: rows per split and outcome: patients and events on each side.
        problems: rows of (file, row, column, message), errors included.
        identifying: rows of (part, file, element), where the check was strict.
        ok: no error and no leak.
    """

    card: str
    attrition: list[Row]
    excluded: list[Row]
    modalities: list[Row]
    patterns: list[Row]
    folds: list[Row]
    problems: list[Row]
    ok: bool
    identifying: list[Row] = field(default_factory=list)

    def to_dict(self) -> Row:
        """As JSON values."""
        return asdict(self)


def _events(cohort: Cohort, outcome: str, ids: tuple[Any, ...]) -> int | None:
    target = cohort.target(outcome, ids)
    if isinstance(target, Survival):
        return target.n_events
    if isinstance(target, Labels):
        return int(((target.label == len(target.classes) - 1) & target.observed).sum())
    return None


def _fold_rows(cohort: Cohort, splits: list[Split]) -> list[Row]:
    return [
        {
            "split": split.name,
            "outcome": outcome,
            "train": len(split.train),
            "train events": _events(cohort, outcome, split.train),
            "held_out": len(split.held_out),
            "held_out events": _events(cohort, outcome, split.held_out),
        }
        for split in splits
        for outcome in cohort.targets
    ]


def _modality_row(name: str, modality: ModalityData) -> Row:
    return {
        "modality": name,
        "patients": len(modality.samples),
        "columns": len(modality.columns) or modality.features,
        "warnings": "; ".join(modality.warnings),
    }


def _pattern_rows(cohort: Cohort, data: Mapping[str, ModalityData]) -> list[Row]:
    table = availability(cohort, {name: set(modality.samples) for name, modality in data.items()})
    available = [" + ".join(n for n in table.columns if row[n]) or "none" for _, row in table.iterrows()]
    return [{"available": key, "patients": int(count)} for key, count in Counter(available).most_common()]


def _failed(name: str, error: MedfuseError) -> CheckReport:
    problem = _problem("", str(error), "error")
    return CheckReport(
        card=name, attrition=[], excluded=[], modalities=[], patterns=[], folds=[], problems=[problem], ok=False
    )


def _problem(file: str, message: str, severity: str) -> Row:
    return {"file": file, "row": None, "column": None, "message": message, "severity": severity}


def _screened(cohort: Cohort) -> tuple[list[Row], list[Row]]:
    """Identifying elements by file, and the problems that they are."""
    found = screen(cohort)
    rows = [{"part": one.part, "file": one.file, "element": one.element} for one in found.findings]
    problems = [_problem("gate", f"cannot be looked into: {text}", "error") for text in found.unread]
    if rows:
        files = len({(one.part, one.file) for one in found.findings})
        message = (
            f"{len(rows)} identifying elements in {files} files; nothing was stored. De-identify the files, or list "
            "elements that a person has reviewed under governance.accepted"
        )
        problems.append(_problem("gate", message, "error"))
    if found.silent:
        message = f"nothing is looked for in {', '.join(found.silent)}: look at them yourself"
        problems.append(_problem("gate", message, "note"))
    return rows, problems


def check(
    card: str | Path, *, data_root: Path | None = None, store_root: Path | None = None, strict: bool = False
) -> CheckReport:
    """Validate a card against its files.

    Args:
        card: name of a data card, or a path to one.
        data_root: folder of the cohorts' files.
        store_root: folder of the feature store.
        strict: look for what identifies a person first, as a strict card does, and store nothing if there is any.

    Returns:
        The report; what the files refuse stands in ``problems``, as the first refusal of each part.

    Raises:
        ConfigError: there is no such card, or its front matter is wrong.
    """
    definition = read_card(card)
    try:
        cohort = read_cohort(definition, data_root=data_root)
    except MedfuseError as error:
        return _failed(definition.name, error)
    problems: list[Row] = [{**asdict(p), "severity": "note"} for p in cohort.problems]
    data: dict[str, ModalityData] = {}
    identifying: list[Row] = []
    if strict or definition.strict:
        identifying, refused = _screened(cohort)
        problems += refused
    for name in () if identifying else definition.modalities:
        try:
            data |= load_modalities(cohort, names=[name], store_root=store_root)
        except MedfuseError as error:
            problems.append(_problem(name, str(error), "error"))
    splits: list[Split] = []
    try:
        first = next(iter(cohort.targets))
        splits = make_splits(cohort, SplitsRecipe(), first)
        for finding in audit(cohort, data, splits, first).findings:
            text = f"{finding.message} [{', '.join(finding.evidence[:5])}]"
            problems.append(_problem("audit", text, finding.severity))
    except MedfuseError as error:
        problems.append(_problem("folds", str(error), "error"))
    a = cohort.attrition
    return CheckReport(
        card=definition.name,
        attrition=[
            {"what": "in the patients table", "patients": a.total},
            {"what": "modelled", "patients": a.modelled},
            {"what": "left out, each with a reason", "patients": len(a.excluded)},
        ],
        excluded=[asdict(e) for e in a.excluded],
        modalities=[_modality_row(name, modality) for name, modality in data.items()],
        patterns=_pattern_rows(cohort, data),
        folds=_fold_rows(cohort, splits),
        problems=problems,
        identifying=identifying,
        ok=not any(p["severity"] == "error" for p in problems),
    )


def render(report: CheckReport) -> "Group":
    """The report as tables for a terminal."""
    from rich.console import Group
    from rich.table import Table

    def table(title: str, rows: list[Row], *, limit: int = 30) -> Table:
        drawn = Table(title=title, title_justify="left", show_edge=False)
        for key in rows[0]:
            drawn.add_column(key, overflow="fold")
        for row in rows[:limit]:
            drawn.add_row(*("" if v is None else str(v) for v in row.values()))
        if len(rows) > limit:
            drawn.add_row(f"... {len(rows) - limit} more (--json prints all)", *[""] * (len(rows[0]) - 1))
        return drawn

    elements = Counter((row["part"], row["element"]) for row in report.identifying)
    first = {(row["part"], row["element"]): row["file"] for row in reversed(report.identifying)}
    found = [{"part": p, "element": e, "files": n, "first": first[p, e]} for (p, e), n in elements.items()]
    parts = {
        f"{report.card}: patients": report.attrition,
        "left out": report.excluded,
        "modalities": report.modalities,
        "availability": report.patterns,
        "folds": report.folds,
        "identifying elements": found,
        "problems": report.problems,
    }
    verdict = "ok: the card and its files agree" if report.ok else "NOT ok: see the problems of severity error"
    return Group(*(table(title, rows) for title, rows in parts.items() if rows), verdict)
