"""Members that lie on disk put together (``medfuse merge``), and what the result says of patients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse.applying import classes_of, prediction_table, read_coded, require_same_outcome
from medfuse.card import CohortCard
from medfuse.config import read_card
from medfuse.errors import ModelError, StoreError
from medfuse.files import read_json
from medfuse.outputs import require_new
from medfuse.prediction import Prediction
from medfuse.run import Run
from medfuse.training import cpu_threads, load_member, save_member
from medfuse.training.ensemble import outputs_of
from medfuse.training.fold import KINDS, chunks, presence, speak
from medfuse.training.member import Member
from medfuse.training.merging import merge_members as merge_before_tuning
from medfuse.training.merging import spherical_mean, tuning_weights

__all__ = ["is_member", "merge_folders", "merge_members", "predict_merged", "spherical_mean", "tuning_weights"]

_READING = "reading"  # what it takes to read patients: the JSON part of a merged member that no other member has


def is_member(folder: Path) -> bool:
    """Whether a folder holds a member."""
    return (folder / "member.json").is_file()


def merge_members(members: Sequence[Member], *, weights: Sequence[float] | None = None) -> Member:
    """:func:`medfuse.training.merging.merge_members` of members that nobody will train together afterwards.

    Args:
        members: two or more, with disjoint modalities, the same fusion and width, and the same outcomes in any order.
        weights: per member; default: by tuning score.

    Raises:
        ModelError: members that cannot be put together, or that ``combine`` their blocks otherwise than by ``merge``:
            a latent that goes through blocks which never met is no mean of anything.
    """
    for member in members:
        combine = member.settings.fusion.get("combine", "merge")
        if combine != "merge":
            msg = (
                f"merge: expected members of model.fusion.combine merge, found {combine} ({', '.join(member.shapes)}), "
                "which needs training together after the merge; train the members with model.fusion.combine=merge, or "
                "all modalities in one run with train.merge=true and train.tune_epochs"
            )
            raise ModelError(msg)
    return merge_before_tuning(members, weights=weights)


def merge_folders(folders: Sequence[Path], *, out: Path, weights: Sequence[float] | None = None) -> Member:
    """Merge members of the fusion ``lego``, such as those that departments trained on patients of their own.

    What their runs know of columns, units and classes is kept beside the result, so that it can read patients.

    Args:
        folders: of sealed members (``RUN/folds/FOLD/members/NAME``), with different modalities.
        out: folder to write, which must not be there.
        weights: per folder; default: by tuning score.

    Raises:
        StoreError: a folder that is damaged, or ``out`` is there already.
        ModelError: members that cannot be put together.
        CohortError: of runs that mean other outcomes by the same name.
    """
    require_new(out)
    for folder in folders:
        if not is_member(folder):
            msg = f"{folder}: expected a member (RUN/folds/FOLD/members/NAME), found none; check the path"
            raise StoreError(msg)
    members = [load_member(folder) for folder in folders]
    merged = merge_members(members, weights=weights)
    save_member(merged, out, more={_READING: _reading(folders, members)})
    return merged


def _reading(folders: Sequence[Path], members: Sequence[Member]) -> dict[str, Any]:
    """Specs of modalities and names of classes, of members that lie in runs; their outcomes must be the same."""
    specs: dict[str, Any] = {}
    first: Run | None = None
    for folder, member in zip(folders, members, strict=True):
        above = folder.absolute().parents
        if len(above) < 4 or not (above[3] / "modalities.json").is_file():
            continue  # copied out of its run
        run = Run(path=above[3])
        known = run.read("modalities")["modalities"]
        specs |= {name: known[name] for name in member.shapes if name in known}
        first = first or run
        if (run.path / "card.md").is_file():
            for name in member.heads:
                require_same_outcome(first, read_card(run.path / "card.md"), name)
    return {"modalities": specs, "classes": {} if first is None else classes_of(first)}


def predict_merged(
    folder: Path, card: CohortCard, *, data_root: Path | None = None, store_root: Path | None = None
) -> pd.DataFrame:
    """What a merged member says of the patients of a card, as :func:`medfuse.applying.prediction_table`.

    Its members may have seen no patient in common, and nothing recalibrated it: ranks are what to rely on.

    Raises:
        StoreError: a damaged folder, or a member that does not know how to read patients.
        MedfuseError: what the card's files refuse, or columns and units of other meaning.
    """
    member = load_member(folder)
    known: Mapping[str, Any] = read_json(folder / f"{_READING}.json") if (folder / f"{_READING}.json").is_file() else {}
    missing = [name for name in member.shapes if name not in known.get("modalities", {})]
    if missing:
        msg = (
            f"{folder}: expected a member that medfuse merge put together from members inside their runs, found one "
            f"that does not know the columns of {', '.join(missing)}; merge RUN/folds/FOLD/members/NAME"
        )
        raise StoreError(msg)
    specs = {name: known["modalities"][name] for name in member.shapes}
    people, data = read_coded(specs, card, data_root=data_root, store_root=store_root, need_outcomes=False)
    ids = people.patient_ids
    with cpu_threads(1):
        links = speak(member, chunks(member, data, ids))
    found = {
        outcome: Prediction(
            patient_ids=ids,
            present=presence(data, tuple(member.shapes), ids),
            modalities=tuple(member.shapes),
            times=np.array(head.time_grid) if head.kind == "survival" else None,
            **outputs_of(links[outcome], KINDS[head.kind]),
        )
        for outcome, head in member.heads.items()
    }
    return prediction_table(found, unknown="a merged member keeps no ids", classes=known["classes"])
