"""The leak audit: does anything of the held-out patients, or of the outcome itself, reach the fit?

Who stands on two sides is looked for here, whose content does in :mod:`medfuse.twins`, which columns know the outcome
in :mod:`medfuse.proxies`, and what was fitted on held-out rows in :mod:`medfuse.isolation`.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort
from medfuse.errors import DataError, LeakError
from medfuse.isolation import fit_isolation, fitted_preprocessing, outcome_isolation
from medfuse.proxies import joint_columns, outcome_columns
from medfuse.sample import ModalityData
from medfuse.splits import Split
from medfuse.twins import WIDE, equal_content, near_content, told_apart
from medfuse.types import PatientId

__all__ = [
    "AuditReport",
    "Finding",
    "audit",
    "fit_isolation",
    "fitted_preprocessing",
    "outcome_isolation",
    "require_clean",
]

_SIDES = ("train", "tuning", "held_out", "external")
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding; ``evidence`` names patients and columns, never values."""

    kind: str
    severity: Literal["error", "warning"]
    message: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All findings, and which checks ran."""

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No finding of severity error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"ok": self.ok, "checks": list(self.checks), "findings": [asdict(f) for f in self.findings]}


def require_clean(report: AuditReport, *, allow: bool) -> None:
    """Stop on a leak, unless the run explicitly allows it (and records that).

    Raises:
        LeakError: with the evidence.
    """
    if report.ok or allow:
        return
    lines = [f"{f.message} [{', '.join(f.evidence[:6])}]" for f in report.findings if f.severity == "error"]
    msg = "leak audit: " + "; ".join(lines) + "; mend it, or state allow_leaks: true, which is written into the run"
    raise LeakError(msg)


# --- the same name, differently written -------------------------------------------------------------------------------


def _parts(text: str) -> tuple[str, ...]:
    """Runs of letters and of digits: "P-001", "p 001" and "P001" are alike, "1-11" and "11-1" are not."""
    plain = unicodedata.normalize("NFKC", text).casefold().strip()
    plain = re.sub(r"^(\d+)\.0+$", r"\1", plain)  # a number that went through a table of floats
    return tuple(re.findall(r"\d+|[^\W\d_]+", plain)) or (plain,)


def same_names(texts: Sequence[str]) -> dict[str, str]:
    """Each text -> one form per name: letter case, spaces, separators, zero padding and a trailing ".0" do not count.

    Padding counts as padding only where the lengths differ ("a01-1" and "a1-01" are two names), and case only where
    the names keep to a few styles: among random pseudonyms of both cases it tells people apart.
    """
    distinct = list(dict.fromkeys(texts))
    styles = {re.sub(r"[^\W\d_]", lambda m: "a" if m[0].islower() else "A", re.sub(r"\d", "9", t)) for t in distinct}
    both = [t for t in distinct if t.lower() != t and t.upper() != t]
    if len(styles) > max(8, len(distinct) / 4) and len(both) > len(distinct) / 2:
        return {text: text.strip() for text in distinct}
    groups: dict[tuple[str, ...], dict[int, tuple[str, ...]]] = defaultdict(dict)
    form = {}
    for text in distinct:
        parts = _parts(text)
        bare = tuple(p.lstrip("0") or "0" if p.isdigit() else p for p in parts)
        length = sum(len(p) for p in parts)
        same_length = groups[bare].setdefault(length, parts)
        form[text] = "\0".join(bare if same_length == parts else parts)
    return form


def _named(cohort: Cohort, split: Split, form: Mapping[str, str], *, what: str) -> dict[str, dict[str, PatientId]]:
    """Name -> side -> first patient of that name there."""
    records = {record.patient_id: record for record in cohort.records}
    where: dict[str, dict[str, PatientId]] = defaultdict(dict)
    for side in _SIDES:
        for patient in getattr(split, side):
            name = getattr(records[patient], what) if patient in records else None
            if name is not None:
                where[form[name]].setdefault(side, patient)
    return where


def _on_two_sides(cohort: Cohort, split: Split, *, what: Literal["person", "patient_id", "site"]) -> Iterator[Finding]:
    names = [getattr(record, what) for record in cohort.records if getattr(record, what) is not None]
    where = _named(cohort, split, same_names(names), what=what)
    shared = [list(sides.items()) for sides in where.values() if len(sides) > 1]
    if shared:
        noun = {"person": "persons", "patient_id": "patients", "site": "sites"}[what]
        column = {"person": cohort.card.groups.person, "site": cohort.card.groups.site}.get(what)
        column = column or cohort.card.patients.id or "row number"
        place = f"{cohort.card.patients.file}, column {column!r}"
        yield Finding(
            kind=f"shared {noun[:-1]}",
            severity="error",
            message=f"split {split.name}: {len(shared)} {noun} stand on two sides ({place})",
            evidence=tuple(" = ".join(f"{patient} ({side})" for side, patient in s) for s in shared[:_SHOWN]),
        )


def _unlisted(split: Split) -> Iterator[Finding]:
    if split.unmatched:
        yield Finding(
            kind="unmatched ids",
            severity="warning",
            message=f"split {split.name}: {len(split.unmatched)} published ids are not in the cohort",
            evidence=tuple(split.unmatched[:_SHOWN]),
        )


def _without_site(cohort: Cohort, splits: Sequence[Split]) -> Iterator[Finding]:
    used = {i for split in splits for side in _SIDES for i in getattr(split, side)}
    without = [r.patient_id for r in cohort.records if r.site is None and r.patient_id in used]
    if without:
        yield Finding(
            kind="shared site",
            severity="warning",
            message=f"{len(without)} patients have no site, so grouping by site cannot be verified for them",
            evidence=tuple(without[:_SHOWN]),
        )


# --- the same content under two ids -----------------------------------------------------------------------------------


def _file(cohort: Cohort, name: str) -> str:
    card = cohort.card.modalities.get(name)
    return f"modality {name} ({', '.join(card.sources()[:2])})" if card else f"modality {name}"


def _apart(sides: Sequence[Mapping[PatientId, str]], a: PatientId, b: PatientId) -> bool:
    """Whether some split has the two on different sides."""
    return any(a in split and b in split and split[a] != split[b] for split in sides)


def _content(cohort: Cohort, data: Mapping[str, ModalityData], splits: Sequence[Split]) -> Iterator[Finding]:
    """One person's content on two sides, under two ids.

    An error when the content is wide, or when nothing tells the two patients apart; a narrow panel that agrees while
    other modalities differ is a warning.
    """
    sides = [{i: side for side in _SIDES for i in getattr(split, side)} for split in splits]
    equal = {name: [p for p in equal_content(m) if _apart(sides, *p)] for name, m in data.items()}
    near = {name: [p for p in near_content(m) if _apart(sides, *p)] for name, m in data.items()}
    alike = {name: {frozenset(p) for p in (*equal[name], *near[name])} for name in data}

    def differ(a: PatientId, b: PatientId, name: str) -> bool:
        others = [other for other in data if other != name and {a, b} not in alike[other]]
        return any(told_apart(data[other], a, b) for other in others)

    for name, modality in data.items():
        again = {frozenset(p) for p in equal[name]}
        near[name] = [p for p in near[name] if frozenset(p) not in again]
        wide = modality.layout == "vectors" or len(modality.columns) >= WIDE
        for kind, pairs in (("duplicate content", equal[name]), ("near-duplicate profile", near[name])):
            grave: list[str] = []
            slight: list[str] = []
            for a, b in pairs:
                differs = not wide and differ(a, b, name)
                (slight if differs else grave).append(f"{a} = {b}" if kind == "duplicate content" else f"{a} ~ {b}")
            for severity, found in (("error", grave), ("warning", slight)):
                if found:
                    said = "share rows of" if kind == "duplicate content" else "are nearer than strangers can be in"
                    yield Finding(
                        kind=kind,
                        severity=severity,  # type: ignore[arg-type]  # one of the two literals above
                        message=f"{len(found)} pairs of patients on two sides {said} {_file(cohort, name)}",
                        evidence=tuple(found[:_SHOWN]),
                    )


# --- the outcome among the columns ------------------------------------------------------------------------------------


def _index_days(cohort: Cohort, ids: Sequence[PatientId]) -> NDArray[np.float64]:
    """(n, 1) index times in days, or (n, 0) unless every patient has one."""
    records = {record.patient_id: record for record in cohort.records}
    try:
        days = np.array([records[i].index_time or "NaT" for i in ids], dtype="datetime64[D]").astype(np.float64)
    except ValueError:
        return np.zeros((len(ids), 0))
    missing = any(records[i].index_time is None for i in ids)
    return np.zeros((len(ids), 0)) if missing else days[:, None]


def _proxies(cohort: Cohort, data: Mapping[str, ModalityData], split: Split, outcome: str) -> Iterator[Finding]:
    """Columns that know the outcome, looked for among train patients only."""
    spec = cohort.card.outcomes[outcome]
    names = {n for n in (spec.time, spec.event, spec.column) if n}
    ids = split.train
    target, known = cohort.target(outcome, ids), _index_days(cohort, ids)
    found: list[tuple[str, list[str]]] = []
    for name, modality in data.items():
        labelled = [c.name for c in modality.columns if _parts(c.name) in {_parts(n) for n in names}]
        derived = outcome_columns(modality, ids, target, known=known)
        found.append((_file(cohort, name), list(dict.fromkeys([*labelled, *derived]))))
    if not any(columns for _, columns in found):
        found = [("tables together", joint_columns(data, ids, target, known=known))]
    for where, columns in found:
        if columns:
            yield Finding(
                kind="label-derived column",
                severity="error",
                message=f"{where}: {len(columns)} columns are or know the outcome {outcome}",
                evidence=tuple(columns[:_SHOWN]),
            )


# --- all of it --------------------------------------------------------------------------------------------------------


def audit(
    cohort: Cohort,
    data: Mapping[str, ModalityData],
    splits: Sequence[Split],
    outcome: str | Sequence[str],
    *,
    group_by_site: bool = False,
) -> AuditReport:
    """Look for leaks; nothing is raised, the caller decides (:func:`require_clean`).

    Args:
        cohort: patients and outcomes.
        data: modalities.
        splits: outer splits.
        outcome: the outcomes that are predicted, or the one.
        group_by_site: sites were asked to stay on one side.
    """
    findings: list[Finding] = []
    for split in splits:
        twice = list(_on_two_sides(cohort, split, what="person"))
        findings += twice or _on_two_sides(cohort, split, what="patient_id")
        findings += _on_two_sides(cohort, split, what="site") if group_by_site else ()
        findings += _unlisted(split)
    findings += _without_site(cohort, splits) if group_by_site else ()
    findings += _content(cohort, data, splits)
    if splits:
        for name in [outcome] if isinstance(outcome, str) else outcome:
            findings += _proxies(cohort, data, splits[0], name)
        try:
            changed = fit_isolation(fitted_preprocessing, data, splits[0])
        except DataError as error:
            error.add_note(f"split {splits[0].name}, {len(splits[0].train)} training patients")
            raise
        if changed:
            findings.append(
                Finding(
                    kind="fit isolation",
                    severity="error",
                    message="perturbing held-out rows changed fitted numbers",
                    evidence=changed[:_SHOWN],
                )
            )
    dated = [name for name in data if name in cohort.card.modalities and cohort.card.modalities[name].days_from_index]
    checks = ["shared person", "unmatched ids", "duplicate content", "near-duplicate profile", "label-derived column"]
    checks += ["fit isolation", *(["shared site"] if group_by_site else []), *(f"index time of {n}" for n in dated)]
    return AuditReport(findings=tuple(findings), checks=tuple(checks))
