"""The leak audit: does anything of the held-out patients, or of the outcome itself, reach the fit?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfuse.cohort import Cohort
from medfuse.errors import LeakError
from medfuse.files import sha256_bytes
from medfuse.metrics.discrimination import auroc, harrell_c
from medfuse.preprocessing import fit_preprocessing, stack, to_arrays
from medfuse.sample import ModalityData, ModalitySample
from medfuse.splits import Split
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.types import PatientId

_PROXY = 0.95  # a single column that orders outcomes better than this knows them
_TWIN = 0.999  # two profiles that correlate more than this are one sample
_INFORMATIVE = 10  # distinct measured values below which equal rows are coincidence
_WIDE = 50  # columns from which one equal modality suffices


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


def _persons(cohort: Cohort, split: Split) -> Iterator[Finding]:
    person = {record.patient_id: record.person for record in cohort.records}
    train = {person[i]: i for i in (*split.train, *split.tuning)}
    shared = [(train[person[i]], i) for i in split.held_out if person[i] in train]
    if shared:
        yield Finding(
            kind="shared person",
            severity="error",
            message=f"split {split.name}: {len(shared)} persons stand in train and in held_out",
            evidence=tuple(f"{a} = {b}" for a, b in shared[:10]),
        )


def _digests(modality: ModalityData) -> dict[PatientId, str]:
    """Content of each patient with enough measured values that equality is no coincidence; codes do not count."""
    numeric = np.array([c.kind == "numeric" for c in modality.columns], dtype=bool)
    found = {}
    for patient, sample in modality.samples.items():
        tokens = np.asarray(sample.tokens)
        value = tokens[numeric & (tokens[:, 1] > 0), 0] if modality.layout == "columns" else tokens.ravel()
        if len(np.unique(value)) >= _INFORMATIVE:
            found[patient] = sha256_bytes(np.ascontiguousarray(tokens).tobytes())
    return found


def _content(data: Mapping[str, ModalityData], sides: Mapping[PatientId, set[str]]) -> Iterator[Finding]:
    """Equal content under two ids that some split keeps apart.

    An error when the content is wide, or when nothing tells the two patients apart; a narrow panel that agrees while
    other modalities differ (a default row, say) is a warning.
    """
    digests = {name: _digests(modality) for name, modality in data.items()}
    for name, found in digests.items():
        first_of: dict[str, PatientId] = {}
        grave: list[str] = []
        slight: list[str] = []
        for patient, digest in found.items():
            first = first_of.setdefault(digest, patient)
            if first == patient or sides.get(first) == sides.get(patient):
                continue
            wide = data[name].samples[patient].tokens.shape[0] >= _WIDE or data[name].layout == "vectors"
            differs = any(
                other[first] != other[patient] for other in digests.values() if first in other and patient in other
            )
            (grave if wide or not differs else slight).append(f"{first} = {patient}")
        for severity, pairs in (("error", grave), ("warning", slight)):
            if pairs:
                yield Finding(
                    kind="duplicate content",
                    severity=severity,  # type: ignore[arg-type]  # one of the two literals above
                    message=f"modality {name}: {len(pairs)} pairs of patients on two sides have identical content",
                    evidence=tuple(pairs[:10]),
                )


def _profiles(data: Mapping[str, ModalityData], sides: Mapping[PatientId, set[str]]) -> Iterator[Finding]:
    """Nearly equal numeric profiles of two patients on two sides: the same sample measured or rounded twice."""
    for name, modality in data.items():
        if modality.layout != "columns" or len(modality.columns) < 50:
            continue
        ids = list(modality.samples)
        tokens, _ = stack(modality, ids)
        value = tokens[:, :, 0].astype(np.float64)
        if len(np.unique(value[:50])) < 20:
            continue  # yes/no columns: near-equality is ordinary there
        # About the median profile, because all tissues resemble each other in the raw values; clipped, because one
        # extreme gene makes any two profiles that share it correlate.
        value -= np.median(value, axis=0)
        spread = np.median(np.abs(value), axis=0)
        value = np.clip(value / np.where(spread > 0, spread, 1.0), -5, 5)
        value -= value.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(value, axis=1, keepdims=True)
        unit = value / np.where(norm > 0, norm, 1)
        close = np.argwhere(np.triu(unit @ unit.T, k=1) > _TWIN)
        pairs = [f"{ids[a]} ~ {ids[b]}" for a, b in close if sides.get(ids[a]) != sides.get(ids[b])]
        if pairs:
            yield Finding(
                kind="near-duplicate profile",
                severity="error",
                message=f"modality {name}: {len(pairs)} pairs of patients on two sides correlate above {_TWIN}",
                evidence=tuple(pairs[:10]),
            )


def _proxy_score(target: Target, value: NDArray[np.float64]) -> float:
    if isinstance(target, Survival):
        c = harrell_c(target, value).value
    elif isinstance(target, Labels):
        c = auroc(target.label == len(target.classes) - 1, value)
    else:
        spread = value.std() * target.value.std()
        c = 0.5 if spread == 0 else 0.5 + abs(float(np.corrcoef(value, target.value)[0, 1])) / 2
    return 0.5 if np.isnan(c) else max(c, 1 - c)


def _equals(target: Target, value: NDArray[np.float64]) -> bool:
    """Whether a column is the outcome itself, perhaps in other units or with its codes swapped."""
    truths: list[NDArray[np.float64]] = []
    if isinstance(target, Survival):
        truths = [target.event.astype(np.float64), target.time]
    elif isinstance(target, Labels):
        truths = [target.label.astype(np.float64)]
    elif isinstance(target, Values):
        truths = [target.value]
    return any(
        truth.std() > 0 and value.std() > 0 and abs(float(np.corrcoef(value, truth)[0, 1])) > 0.9999 for truth in truths
    )


def _proxies(cohort: Cohort, data: Mapping[str, ModalityData], split: Split, outcome: str) -> Iterator[Finding]:
    """Columns that know the outcome, looked for among train patients only."""
    spec = cohort.card.outcomes[outcome]
    names = {n for n in (spec.time, spec.event, spec.column) if n}
    for name, modality in data.items():
        if modality.layout != "columns":
            continue
        ids = [i for i in split.train if i in modality.samples]
        target = cohort.target(outcome, ids)
        tokens, _ = stack(modality, ids)
        labelled = [c.name for c in modality.columns if c.name in names]
        derived = []
        for c, column in enumerate(modality.columns):
            known = (tokens[:, c, 1] > 0) & target.observed
            if known.sum() < 10 or column.name in labelled:
                continue
            rows = np.flatnonzero(known)
            value = tokens[rows, c, 0].astype(np.float64)
            part = target.take(rows)
            if _equals(part, value) or _proxy_score(part, value) > _PROXY:
                derived.append(column.name)
        if labelled or derived:
            yield Finding(
                kind="label-derived column",
                severity="error",
                message=f"modality {name}: {len(labelled) + len(derived)} columns are or know the outcome {outcome}",
                evidence=tuple([*labelled, *derived][:10]),
            )


def _unlisted(split: Split) -> Iterator[Finding]:
    if split.unmatched:
        yield Finding(
            kind="unmatched ids",
            severity="warning",
            message=f"split {split.name}: {len(split.unmatched)} published ids are not in the cohort",
            evidence=tuple(split.unmatched[:10]),
        )


def fit_isolation(
    fit: Callable[[Mapping[str, ModalityData], Sequence[PatientId]], Mapping[str, NDArray[Any]]],
    data: Mapping[str, ModalityData],
    split: Split,
) -> tuple[str, ...]:
    """Perturb every row outside ``split.train`` and fit again: names of fitted arrays that changed by a bit.

    Args:
        fit: fits on the given ids and returns everything it fitted.
        data: modalities.
        split: whose train side is fitted on.
    """
    train = set(split.train)

    def perturbed(modality: ModalityData) -> ModalityData:
        samples = {}
        for patient, sample in modality.samples.items():
            tokens = sample.tokens
            if patient not in train:
                tokens = np.array(tokens)
                if modality.layout == "columns":
                    numeric = np.array([c.kind == "numeric" for c in modality.columns])
                    tokens[numeric, 0] = tokens[numeric, 0] * -3 + 17
                else:
                    tokens = tokens * -3 + 17
            samples[patient] = ModalitySample(tokens=tokens, position=sample.position)
        return ModalityData(
            name=modality.name,
            layout=modality.layout,
            features=modality.features,
            columns=modality.columns,
            identities=modality.identities,
            samples=samples,
        )

    before = fit(data, split.train)
    after = fit({name: perturbed(modality) for name, modality in data.items()}, split.train)
    return tuple(name for name in before if before[name].tobytes() != after[name].tobytes())


def fitted_preprocessing(data: Mapping[str, ModalityData], ids: Sequence[PatientId]) -> dict[str, NDArray[Any]]:
    """Everything that preprocessing fits, by name, for :func:`fit_isolation`."""
    return {
        f"{name}.{key}": array
        for name, modality in data.items()
        for key, array in to_arrays(fit_preprocessing(modality, ids))[0].items()
    }


def audit(cohort: Cohort, data: Mapping[str, ModalityData], splits: Sequence[Split], outcome: str) -> AuditReport:
    """Look for leaks; nothing is raised, the caller decides (:func:`require_clean`).

    Args:
        cohort: patients and outcomes.
        data: modalities.
        splits: outer splits.
        outcome: the outcome that is predicted.
    """
    findings: list[Finding] = []
    sides: dict[PatientId, set[str]] = {}
    for split in splits:
        findings += _persons(cohort, split)
        findings += _unlisted(split)
        for side in ("train", "held_out"):
            for patient in getattr(split, side):
                sides.setdefault(patient, set()).add(f"{split.name}:{side}")
    findings += _content(data, sides)
    findings += _profiles(data, sides)
    if splits:
        findings += _proxies(cohort, data, splits[0], outcome)
        changed = fit_isolation(fitted_preprocessing, data, splits[0])
        if changed:
            findings.append(
                Finding(
                    kind="fit isolation",
                    severity="error",
                    message="perturbing held-out rows changed fitted numbers",
                    evidence=changed[:10],
                )
            )
    checks = ("shared person", "unmatched ids", "duplicate content", "near-duplicate profile", "label-derived column")
    return AuditReport(findings=tuple(findings), checks=(*checks, "fit isolation"))
