"""Where a command writes what its user asked for: nothing that stands there is ever overwritten.

One rule for every ``--out`` and for its default. A file must be new (``predict``, ``evaluate``, ``export``, and the
files that ``stress`` puts into a folder). A folder must be new or empty, or hold what the same command left there,
which is taken up (``train`` of the same facts until it is finished, ``benchmark``, ``demo``; ``merge`` wants a new
one). Neither may lie in a run: a run is sealed, and what belongs to it (explanations, ``stress/``, report) goes there
without ``--out``. The refusal comes before anything is computed; who means to replace a file deletes it first.

Feature stores (``extract --store``) and folders of reviews (``app --folder``) are places that commands add to.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from medfuse.errors import StoreError
from medfuse.files import MANIFEST, TEMPORARY, write_bytes

_ELSE = "choose another --out"


def require_new(*paths: Path) -> None:
    """Refuse places where something stands, be it a link to nothing, or that lie in a run.

    Raises:
        StoreError: names the first such place.
    """
    for path in paths:
        if os.path.lexists(path):
            kind = "a folder" if path.is_dir() else "a file"
            msg = f"{path}: expected a place where nothing stands, found {kind}; {_ELSE}, or delete it"
            raise StoreError(msg)
        _require_outside(path)


def require_free(folder: Path, *, own: Sequence[str] = ()) -> None:
    """Refuse a folder of other files, and one in a run.

    Args:
        folder: where a command makes its folder.
        own: what a folder of the same command holds, of which one is enough for it to be taken up.

    Raises:
        StoreError: names the folder.
    """
    taken = os.path.lexists(folder) and (not folder.is_dir() or any(map(_is_of_somebody, folder.iterdir())))
    if taken and not any((folder / name).exists() for name in own):
        msg = f"{folder}: expected a new or empty folder, found other files; {_ELSE}"
        raise StoreError(msg)
    _require_outside(folder)


def write_new(path: Path, content: bytes) -> None:
    """Write a file where nothing stands, atomically; one that has this content is left as it is.

    Raises:
        StoreError: something else stands there, or it cannot be written.
    """
    if not (path.is_file() and path.read_bytes() == content):
        require_new(path)
        write_bytes(path, content)


def _is_of_somebody(path: Path) -> bool:
    return not path.name.startswith(TEMPORARY)  # which a killed writer left


def _require_outside(path: Path) -> None:
    for folder in path.absolute().parents:
        if (folder / "run.json").is_file() and (folder / MANIFEST).is_file():
            msg = f"{path}: expected a place outside of runs, which are sealed, found one inside {folder}; {_ELSE}"
            raise StoreError(msg)
