"""Put members together that lie on disk: ``medfuse merge``."""

from collections.abc import Sequence
from pathlib import Path

from medfuse.errors import StoreError
from medfuse.outputs import require_new
from medfuse.training import load_member, save_member
from medfuse.training.member import Member
from medfuse.training.merging import merge_members, spherical_mean, tuning_weights

__all__ = ["merge_folders", "merge_members", "spherical_mean", "tuning_weights"]


def merge_folders(folders: Sequence[Path], *, out: Path, weights: Sequence[float] | None = None) -> Member:
    """Merge members of the fusion ``lego``, such as those that departments trained on patients of their own.

    Args:
        folders: of sealed members (``RUN/folds/FOLD/members/NAME``), with different modalities.
        out: folder to write, which must not be there.
        weights: per folder; default: by tuning score.

    Raises:
        StoreError: a folder that is damaged, or ``out`` is there already.
        ModelError: members that cannot be put together.
    """
    require_new(out)
    for folder in folders:
        if not (folder / "member.json").is_file():
            msg = f"{folder}: expected a member (RUN/folds/FOLD/members/NAME), found none; check the path"
            raise StoreError(msg)
    merged = merge_members([load_member(folder) for folder in folders], weights=weights)
    save_member(merged, out)
    return merged
