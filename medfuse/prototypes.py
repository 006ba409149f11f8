"""The prototypes of a run: which training patients they stand for, and what each adds to held-out predictions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medfuse.errors import ConfigError, ModelError, nearest
from medfuse.explain.prototype_record import SHOWN, PrototypeRecord
from medfuse.explained import chosen_outcome
from medfuse.explaining import explain_run
from medfuse.explaining_prototypes import has_prototypes, read_prototype_records
from medfuse.run import Run, open_run
from medfuse.types import PatientId

Terms = np.ndarray[tuple[int, int], np.dtype[np.float64]]
_LARGEST = 6  # terms of a patient in the lines of text


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """Prototypes of one joint network; those of another are others, so networks are never averaged here.

    Attributes:
        fold, member: whose.
        levels: one row per prototype: ``prototype name level means``.
        assignments: columns ``patient_id modality prototype similarity nearest probability`` of held-out patients;
            probability is NaN of a fusion that computes none.
        exemplars: columns ``modality prototype patient_id token similarity``: the nearest training instances.
        collapsed: per modality, pairs of prototypes that are one (first, second, cosine).
        terms: columns ``patient_id modality prototype class term`` of held-out patients, on the scale of ``scale``;
            None of a fusion whose logits are no sums (see :mod:`medfuse.models.contributions`).
        constant: (L,) logit of a patient without any modality; None like ``terms``.
        logit: (n, L) of the held-out patients: constant plus the sum of their terms.
        scale: unit of terms and logits, in words.
    """

    fold: str
    member: str
    levels: pd.DataFrame
    assignments: pd.DataFrame
    exemplars: pd.DataFrame
    collapsed: dict[str, list[tuple[int, int, float]]]
    terms: pd.DataFrame | None
    constant: np.ndarray[tuple[int], np.dtype[np.float64]] | None
    logit: pd.DataFrame
    scale: str


def read_prototypes(
    run: str | Path | Run,
    *,
    fold: str | None = None,
    outcome: str | None = None,
    count: int = 5,
    data_root: Path | None = None,
    store_root: Path | None = None,
) -> Prototypes:
    """The prototypes that ``medfuse explain`` stored, of the first joint network of a fold; a run is explained first.

    Args:
        run: trained with fusion ``prototype`` or ``prototype_additive``.
        fold: name of an outer fold; default the first.
        outcome: default the run's first.
        count: exemplars wanted per prototype, at most one per patient and 8 in all.
        data_root: folder of the cohort's files, read where the run is not explained yet.
        store_root: folder of the feature store, like it.

    Raises:
        ConfigError: no such fold or outcome, or another count.
        CohortError: the data have changed since the run.
        ModelError: the run's fusion has no prototypes.
        StoreError: the stored part is damaged or of a newer format.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    outcome = chosen_outcome(opened, outcome)
    names = [str(split["name"]) for split in opened.read("splits")["splits"]]
    if fold is not None and fold not in names:
        msg = f"{opened.path}: no fold {fold!r}; {nearest(fold, names)}"
        raise ConfigError(msg)
    if not 1 <= count <= SHOWN:
        msg = f"prototypes: expected a count of 1 to {SHOWN} exemplars, found {count}"
        raise ConfigError(msg)
    if not has_prototypes(opened):
        msg = f"{opened.path}: expected a run whose fusion has prototypes, found one without; train prototype_additive"
        raise ModelError(msg)
    explain_run(opened, outcome=outcome, data_root=data_root, store_root=store_root)
    chosen = names[0] if fold is None else fold
    return _tables(read_prototype_records(opened, outcome)[chosen], fold=chosen, count=count)


def _tables(found: PrototypeRecord, *, fold: str, count: int) -> Prototypes:
    return Prototypes(
        fold=fold,
        member=found.members[0],
        levels=pd.DataFrame(
            {
                "prototype": np.arange(found.similarity.shape[3]),
                "name": found.names,
                "level": np.arange(found.similarity.shape[3]) // found.each,
                "means": np.repeat(np.array(found.levels, dtype=object), found.each),
            }
        ),
        assignments=_assignments(found),
        exemplars=_exemplars(found, count),
        collapsed=found.pairs(),
        terms=_terms(found),
        constant=None if found.constant is None else np.array(found.constant),
        logit=pd.DataFrame(np.array(found.logit), index=pd.Index(found.patient_ids, name="patient_id")),
        scale=found.scale,
    )


def _assignments(found: PrototypeRecord) -> pd.DataFrame:
    similarity = np.array(found.similarity[0], dtype=np.float64)  # (n, M, N)
    patient, modality, number = np.nonzero(~np.isnan(similarity))
    at = (patient, modality, number)
    probability = found.probability(similarity)
    return pd.DataFrame(
        {
            "patient_id": np.array(found.patient_ids, dtype=object)[patient],
            "modality": np.array(found.modalities, dtype=object)[modality],
            "prototype": number,
            "similarity": similarity[at],
            "nearest": found.nearest(similarity)[patient, modality] == number,
            "probability": np.nan if probability is None else probability[at],
        }
    )


def _exemplars(found: PrototypeRecord, count: int) -> pd.DataFrame:
    row = np.array(found.exemplar)[:, :, :count]
    modality, number, place = np.nonzero(row >= 0)
    at = (modality, number, place)
    return pd.DataFrame(
        {
            "modality": np.array(found.modalities, dtype=object)[modality],
            "prototype": number,
            "patient_id": np.array(found.train_ids, dtype=object)[row[at]],
            "token": np.array(found.exemplar_token)[at],
            "similarity": np.array(found.exemplar_similarity, dtype=np.float64)[at],
        }
    )


def _terms(found: PrototypeRecord) -> pd.DataFrame | None:
    if found.terms is None:
        return None
    values = np.array(found.terms)  # (n, M, N, L)
    patient, modality, number, label = (axis.ravel() for axis in np.indices(values.shape))
    return pd.DataFrame(
        {
            "patient_id": np.array(found.patient_ids, dtype=object)[patient],
            "modality": np.array(found.modalities, dtype=object)[modality],
            "prototype": number,
            "class": label,
            "term": values.ravel(),
        }
    )


def prototype_lines(run: Run, outcome: str, *, patient: str | None = None) -> list[str]:
    """The stored prototypes as lines of text: of all, or of a patient; that there are none where a run has none.

    Raises:
        StoreError: a part is damaged or of a newer format.
    """
    if not has_prototypes(run):
        return [] if patient is not None else ["prototypes: none, the fusion of this run has no prototypes"]
    found = read_prototype_records(run, outcome)
    if patient is not None:
        return [line for name, one in found.items() for line in _patient(one, name, patient)]
    out = [] if found else ["prototypes: not stored; run medfuse explain on the run"]
    for name, one in found.items():
        pairs = [
            f"{m} {one.names[i]} and {one.names[j]} ({c:.2f})" for m, these in one.pairs().items() for i, j, c in these
        ]
        many = len(one.members)
        out.append(
            f"prototypes of fold {name}: {one.similarity.shape[3]} per modality, network {one.members[0]} of {many}; "
            f"collapsed pairs: {', '.join(pairs) or 'none'}"
        )
    return out


def _patient(found: PrototypeRecord, fold: str, patient: str) -> list[str]:
    if patient not in found.patient_ids:
        return []
    row = found.patient_ids.index(PatientId(patient))
    similarity = np.array(found.similarity[:, row], dtype=np.float64)  # (K, M, N)
    nearest_one = found.nearest(similarity)
    out = [f"  prototypes of network {found.members[0]}, fold {fold} (1 of {len(found.members)}, each has its own)"]
    for m, name in enumerate(found.modalities):
        at = int(nearest_one[0, m])
        if at < 0:
            continue
        agree = int((nearest_one[:, m] // found.each == at // found.each).sum())
        out.append(
            f"    {name:<20} nearest {found.names[at]} ({found.levels[at // found.each]}), cosine "
            f"{similarity[0, m, at]:+.2f}; {agree} of {len(found.members)} networks say the same level"
        )
    return out + _patient_terms(found, row)


def _patient_terms(found: PrototypeRecord, row: int) -> list[str]:
    if found.terms is None or found.constant is None:
        return []
    out = []
    for label, constant in enumerate(np.array(found.constant)):
        terms = np.array(found.terms[row, :, :, label])
        where = f", class {label + 1}" if len(found.constant) > 1 else ""
        out.append(
            f"    {found.scale}{where} {found.logit[row, label]:+.3f} = constant {constant:+.3f} + terms "
            f"{terms.sum():+.3f}; the largest:"
        )
        out += [f"      {what:<26} {value:+.3f}" for what, value in _largest(found, terms)]
    return out


def _largest(found: PrototypeRecord, terms: Terms) -> list[tuple[str, float]]:
    order = np.argsort(-np.abs(terms), axis=None, kind="stable")[:_LARGEST]
    rows, columns = np.unravel_index(order, terms.shape)
    named = [(f"{found.modalities[m]} {found.names[p]}", m, p) for m, p in zip(rows, columns, strict=True)]
    return [(what, float(terms[m, p])) for what, m, p in named if terms[m, p] != 0]
