"""The prototypes of a run, stored beside its explanations: ``explanations/OUTCOME/FOLD/prototypes``."""

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medfuse.config import read_recipe
from medfuse.explain import Coalitions
from medfuse.explain.parts import has_part, read_part, write_part
from medfuse.explain.prototype_record import PrototypeRecord, recipe_has_prototypes
from medfuse.explain.prototypes import joint_members, leading_head, prototype_record
from medfuse.explaining_parts import Source, fold_folder, inner_unseen
from medfuse.run import Run
from medfuse.targets import Labels
from medfuse.training import FoldModel

NAME = "prototypes"
Say = Callable[[str], None]


def has_prototypes(run: Run) -> bool:
    """Whether the recipe's joint networks have prototypes.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    return recipe_has_prototypes(read_recipe(run.path / "recipe.yaml"))


def stored_prototypes(run: Run, outcome: str, fold: str) -> bool:
    """Whether nothing is left to store: they are there, or the run has none."""
    return has_part(fold_folder(run, outcome, fold) / NAME) or not has_prototypes(run)


def write_prototypes(source: Source, fold: FoldModel, values: Coalitions, *, say: Say) -> None:
    """Compute and store the prototypes of one fold, unless they are there; where it has none, say so and store nothing.

    Args:
        source: cohort, data and recipe of the run.
        fold: its model.
        values: coalition values of its held-out patients.
        say: called with each line of progress.
    """
    folder = fold_folder(source.run, values.outcome, values.fold[0]) / NAME
    if has_part(folder):
        return
    members = joint_members(fold)
    if not members:
        names = sorted({str(m.settings.fusion.get("name")) for m in fold.members if not m.expert})
        say(f"  prototypes: none, fusion {', '.join(names)} has none")
        return
    leading = source.cohort.targets[leading_head(members[0].heads)[0]]
    found = prototype_record(
        fold,
        source.data,
        values.patient_ids,
        outcome=values.outcome,
        classes=leading.classes if isinstance(leading, Labels) else (),
        inner=inner_unseen(source, fold.train_ids),
    )
    if found is not None:
        write_part(found, folder)
        say(f"  prototypes: {found.similarity.shape[3]} per modality, network {found.members[0]} is shown")


def read_prototype_records(run: Run, outcome: str) -> dict[str, PrototypeRecord]:
    """Stored prototypes by outer fold, memory-mapped; of folds that have none, or did not store them, nothing.

    Raises:
        StoreError: a part is damaged or of a newer format.
    """
    names = [str(split["name"]) for split in run.read("splits")["splits"]]
    folders = {name: fold_folder(run, outcome, name) / NAME for name in names}
    return {name: read_part(PrototypeRecord, folder) for name, folder in folders.items() if has_part(folder)}


def effective_numbers(found: PrototypeRecord) -> dict[str, int]:
    """How many prototypes of each modality are of any effect in the network shown.

    Those that some training patient is nearest to count; prototypes that are one by the collapse check count once.
    """
    count, pairs, out = len(found.names), found.pairs(), {}
    for m, name in enumerate(found.modalities):
        one = np.array([(i, j) for i, j, _ in pairs.get(name, [])], dtype=np.int64).reshape(-1, 2)
        same = coo_array((np.ones(len(one)), (one[:, 0], one[:, 1])), shape=(count, count))
        part = connected_components(same, directed=False)[1]
        nearest = found.train_nearest[:, m]
        out[name] = len(set(part[nearest[nearest >= 0]].tolist()))
    return out
