"""What an exported record says of prototypes: the numbers of the patient and evidence pages, of one network."""

from typing import Any

from medfuse.explain.prototype_record import PrototypeRecord
from medfuse.review import prototypes
from medfuse.review.export import rows_of
from medfuse.review.patient import PatientView
from medfuse.review.source import ReviewRun

Row = dict[str, Any]


def prototype_record(run: ReviewRun, view: PatientView) -> Row | None:
    """Whom a patient is like, by the network shown, as JSON values; None where the fold has no stored prototypes.

    Raises:
        StoreError: they are damaged or of a newer format.
    """
    found = prototypes.prototypes_of(run, view.fold)
    if found is None:
        return None
    sound, said = prototypes.collapse_sentence(found)
    return {
        "network": found.members[0],
        "networks": len(found.members),
        "share": found.share,
        "about": prototypes.network_sentence(found, prototypes.agreement(run, found, view.fold)),
        "collapse": {"sound": sound, "text": said},
        "modalities": [_modality(run, found, view, name) for name in found.modalities if name in view.has],
        "sum": _sum(found, view),
    }


def _modality(run: ReviewRun, found: PrototypeRecord, view: PatientView, name: str) -> Row:
    """A modality of this patient: all its prototypes, and the training patients near the nearest one."""
    table = prototypes.patient_table(found, view.patient, name)
    own = prototypes.nearest_of(found, view.patient, name)
    group = prototypes.group(found, name, [own])
    at = view.at if run.kind == "survival" else None
    rows = [] if table is None else rows_of(table.assign(check=prototypes.checks(found, name)))
    for number, row in enumerate(rows):
        row["nearest"] = number == own
        row["exemplars"] = rows_of(prototypes.exemplar_table(run, found, name, number)[["key", "cosine"]])
    return {
        "modality": name,
        "nearest": found.names[own],
        "prototypes": rows,
        "exemplars": rows_of(prototypes.exemplar_table(run, found, name, own)),
        "became": {
            "patients": len(group.keys),
            "day": at,
            "of": prototypes.who(group.fitted),
            "text": prototypes.outcome_text(run, group.keys, at),
        },
    }


def _sum(found: PrototypeRecord, view: PatientView) -> Row | None:
    """The exact terms of the logit; None of a fusion whose logit is no sum."""
    label = int(view.at or 0) if view.kind == "multiclass" else 0
    terms = prototypes.terms_table(found, view.patient, label)
    sums = prototypes.sums_of(found, view.patient, label)
    if terms is None or sums is None or found.constant is None:
        return None
    row = [str(i) for i in found.patient_ids].index(view.patient)
    return {
        "scale": found.scale,
        "logit": float(found.logit[row, label]),
        "constant": float(found.constant[label]),
        "text": prototypes.sum_sentence(found, view.patient, label),
        "terms": rows_of(terms),
        "by_modality": rows_of(sums),
    }
