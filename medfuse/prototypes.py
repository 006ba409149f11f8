"""The prototypes of a run: which training instances they stand for, and what each adds to held-out predictions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medfuse.batch import Batch
from medfuse.errors import ConfigError, nearest
from medfuse.explained import chosen_outcome
from medfuse.explaining import read_source
from medfuse.models.contributions import terms
from medfuse.models.exemplars import collapse, exemplars
from medfuse.models.fusion.prototype_additive import AdditivePrototypeFusion
from medfuse.run import Run, open_run
from medfuse.training import load_fold
from medfuse.training.member import make_batch, transform_patients
from medfuse.types import PatientId


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """Prototypes of one member; those of another member are others, so members are never averaged here.

    Attributes:
        fold, member: whose.
        exemplars: columns ``modality prototype patient_id token similarity``: the nearest training instances.
        collapsed: per modality, pairs of prototypes that are one (first, second, cosine).
        terms: columns ``patient_id modality prototype term`` of held-out patients, means over the logits of the
            outcome; None of a fusion whose logits are no sums (see :mod:`medfuse.models.contributions`).
        constant: mean logit of a patient without any modality; None like ``terms``.
    """

    fold: str
    member: str
    exemplars: pd.DataFrame
    collapsed: dict[str, list[tuple[int, int, float]]]
    terms: pd.DataFrame | None
    constant: float | None


def read_prototypes(
    run: str | Path | Run,
    *,
    fold: str | None = None,
    outcome: str | None = None,
    count: int = 5,
    data_root: Path | None = None,
    store_root: Path | None = None,
) -> Prototypes:
    """Look at the first joint member of a fold.

    Args:
        run: trained with fusion ``prototype`` or ``prototype_additive``.
        fold: name of an outer fold; default the first.
        outcome: default the run's first.
        count: exemplars wanted per prototype, at most one per patient.
        data_root: folder of the cohort's files.
        store_root: folder of the feature store.

    Raises:
        ConfigError: no such fold or outcome.
        CohortError: the data have changed since the run.
        ModelError: the run's fusion has no prototypes.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    outcome = chosen_outcome(opened, outcome)
    splits = {str(split["name"]): split for split in opened.read("splits")["splits"]}
    name = next(iter(splits)) if fold is None else fold
    if name not in splits:
        msg = f"{opened.path}: no fold {name!r}; {nearest(name, splits)}"
        raise ConfigError(msg)
    source = read_source(opened, data_root=data_root, store_root=store_root)
    member = next(m for m in load_fold(opened.fold_folder(name)).members if not m.expert)
    model = member.build()

    def batch(side: str) -> tuple[tuple[PatientId, ...], Batch]:
        ids = tuple(PatientId(i) for i in splits[name][side])
        samples = transform_patients(dict(source.data), member.preprocessing, ids)
        return ids, make_batch(samples, ids, shapes=member.shapes)

    _, train = batch("train")
    rows = exemplars(model, train, count=count)
    shown = pd.DataFrame(
        [(e.modality, e.prototype, str(e.patient_id), e.token, e.similarity) for e in rows],
        columns=["modality", "prototype", "patient_id", "token", "similarity"],
    )
    table, constant = None, None
    if isinstance(model.fusion, AdditivePrototypeFusion):
        ids, held = batch("held_out")
        found = terms(model, held, outcome=outcome)
        values = found.terms.mean(-1).numpy().astype(np.float64)  # (B, M, N)
        patient, modality, number = (axis.ravel() for axis in np.indices(values.shape))
        table = pd.DataFrame(
            {
                "patient_id": np.array(ids, dtype=object)[patient],
                "modality": np.array(model.modalities, dtype=object)[modality],
                "prototype": number,
                "term": values.ravel(),
            }
        )
        constant = float(found.constant.mean())
    return Prototypes(
        fold=name, member=member.name, exemplars=shown, collapsed=collapse(model), terms=table, constant=constant
    )
