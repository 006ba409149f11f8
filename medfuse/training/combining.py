"""Members made into one model by what they said of training patients they never saw."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.errors import CohortError
from medfuse.prediction import Prediction
from medfuse.sample import ModalityData
from medfuse.targets import Target
from medfuse.training.ensemble import Ensemble, OutOfFold, cross_fitted, fit_ensembles, outputs_of
from medfuse.training.fold import FoldModel, Links, presence, reads
from medfuse.training.member import Member
from medfuse.training.patterns import MOST_MODALITIES, fit_patterns
from medfuse.training.shown import Shown, distinct_patterns, member_links
from medfuse.types import PatientId

Said = list[tuple[int, NDArray[np.intp], Links]]  # number of the member, rows it speaks of, links of these
_MOST_ROWS = 1 << 19  # of all patterns together: enough patients to fit two numbers of each


def combine(
    members: Sequence[Member],
    said: Sequence[tuple[int, tuple[PatientId, ...], Links]],
    *,
    train_ids: tuple[PatientId, ...],
    targets: Mapping[str, Target],
    time_grid: Mapping[str, NDArray[np.float64]],
    data: Mapping[str, ModalityData],
    skipped: Mapping[str, str],
    balanced: bool = False,
    device: torch.device | str = "cpu",
) -> FoldModel:
    """Members and what each said of training patients it never saw, as one model.

    Args:
        members: all, those of the joint network first.
        said: number of the member, the training patients it never saw, its links; members without any are left out.
        train_ids: n patients.
        targets: of the same patients.
        time_grid: per survival outcome.
        data: modalities.
        skipped: what was left out, with the reason.
        balanced: whether training hid presence that goes with outcomes.
        device: where the members compute.

    Raises:
        CohortError: a member without out-of-fold patients.
    """
    row_of = {patient: row for row, patient in enumerate(train_ids)}
    rows = {k: np.array([row_of[i] for i in patients], dtype=np.intp) for k, patients, _ in said}
    modalities, experts = tuple(data), tuple(dict.fromkeys(m.expert for m in members))
    present = presence(data, modalities, train_ids)
    has = reads(experts, modalities, present)
    expert_of = np.array([experts.index(m.expert) for m in members], dtype=np.int64)
    inner_of = np.array([m.inner for m in members], dtype=np.int64)
    oofs = {
        outcome: OutOfFold(
            links=[(k, rows[k], one[outcome]) for k, _, one in said],
            has=has,
            expert_of=expert_of,
            inner_of=inner_of,
            target=target,
            times=time_grid.get(outcome),
        )
        for outcome, target in targets.items()
    }
    ensembles, crossed = _weighed(oofs)
    fold = FoldModel(
        members=tuple(members),
        train_ids=train_ids,
        modalities=modalities,
        ensembles=ensembles,
        out_of_fold={},
        cross_fitted={},
        skipped=dict(skipped),
    )
    joint = {members[k].inner: patients for k, patients, _ in said if not members[k].expert}
    unseen = [joint.get(inner, ()) for inner in range(max(joint, default=-1) + 1)]
    fold = _with_patterns(fold, data, unseen, targets=targets, balanced=balanced, device=device)
    whole = {
        outcome: {variant: one.combine(oofs[outcome].links, has, shown=present) for variant, one in variants.items()}
        for outcome, variants in fold.ensembles.items()
    }
    spoken = np.unique([row_of[i] for part in unseen for i in part]).astype(np.intp)
    return dataclasses.replace(
        fold,
        out_of_fold=_predictions(fold, whole, spoken, present=present, targets=targets),
        cross_fitted=_predictions(fold, crossed, spoken, present=present, targets=targets),
    )


def _weighed(
    oofs: Mapping[str, OutOfFold],
) -> tuple[dict[str, dict[str, Ensemble]], dict[str, dict[str, NDArray[np.float64]]]]:
    """Per outcome and variant: the ensemble, and the links (n, L) whose score chooses between models."""
    ensembles, crossed = {}, {}
    for outcome, oof in oofs.items():
        try:
            ensembles[outcome] = fit_ensembles(oof)
            crossed[outcome] = cross_fitted(oof, ensembles[outcome])
        except CohortError as error:
            error.add_note(f'outcome "{outcome}"')
            raise
    return ensembles, crossed


def _predictions(
    fold: FoldModel,
    links: Mapping[str, Mapping[str, NDArray[np.float64]]],
    rows: NDArray[np.intp],
    *,
    present: NDArray[np.bool_],
    targets: Mapping[str, Target],
) -> dict[str, dict[str, Prediction]]:
    """Per outcome and variant, what links (n, L) of the training patients say of those in ``rows``."""
    return {
        outcome: {
            variant: Prediction(
                patient_ids=tuple(fold.train_ids[row] for row in rows),
                present=present[rows],
                modalities=fold.modalities,
                times=fold.ensembles[outcome][variant].times,
                **outputs_of(link[rows], type(targets[outcome])),
            )
            for variant, link in variants.items()
        }
        for outcome, variants in links.items()
    }


def _with_patterns(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    unseen: Sequence[Sequence[PatientId]],
    *,
    targets: Mapping[str, Target],
    balanced: bool,
    device: torch.device | str,
) -> FoldModel:
    """Every availability pattern moved to what it means; of more than 8 modalities none, as they are too many."""
    if len(fold.modalities) > MOST_MODALITIES:
        return fold
    every = {i for part in unseen for i in part}
    rows = np.array([row for row, patient in enumerate(fold.train_ids) if patient in every], dtype=np.intp)
    rows = rows[:: max(1, -(-(len(rows) << len(fold.modalities)) // _MOST_ROWS))]
    ids = tuple(fold.train_ids[row] for row in rows)
    present = presence(data, fold.modalities, ids)
    shown, row_of = distinct_patterns(present)
    said = unseen_links(fold, data, unseen, ids=ids, shown=shown, outcomes=tuple(targets), device=device)
    has = reads(fold.experts, fold.modalities, shown.keep)
    ensembles: dict[str, dict[str, Ensemble]] = {}
    for outcome, variants in fold.ensembles.items():
        links = [(k, at, one[outcome]) for k, at, one in said]
        for variant, ensemble in variants.items():
            link = ensemble.combine(links, has, shown=shown.keep)[row_of]
            known = targets[outcome].take(rows)
            found = fit_patterns(link, present, known, times=ensemble.times, balanced=balanced)
            ensembles.setdefault(outcome, {})[variant] = dataclasses.replace(ensemble, patterns=found)
    return dataclasses.replace(fold, ensembles=ensembles)


def unseen_links(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    unseen: Sequence[Sequence[PatientId]],
    *,
    ids: Sequence[PatientId],
    shown: Shown,
    outcomes: Sequence[str],
    device: torch.device | str = "cpu",
) -> Said:
    """Links of the rows of ``shown``, each by the members that never saw the patient.

    Args:
        fold: whose members speak.
        data: modalities.
        unseen: per inner fold, the patients that its members never saw.
        ids: n patients; those of ``unseen`` who are not among them are left out.
        shown: rows about ``ids``.
        outcomes: whose links.
        device: where the members compute.
    """
    place = {patient: row for row, patient in enumerate(ids)}
    found: Said = []
    for inner, part in enumerate(unseen):
        members = {k: member for k, member in enumerate(fold.members) if member.inner == inner}
        asked = np.array([place[i] for i in part if i in place], dtype=np.intp)
        rows = np.flatnonzero(np.isin(shown.patient, asked))
        if not members or not len(rows):
            continue
        position = np.zeros(len(ids), dtype=np.intp)
        position[asked] = np.arange(len(asked))
        links = member_links(
            members,
            data,
            [ids[row] for row in asked],
            modalities=fold.modalities,
            shown=Shown(patient=position[shown.patient[rows]], keep=shown.keep[rows]),
            outcomes=outcomes,
            device=device,
        )
        found += [(k, rows, one) for k, one in links.items()]
    return found
