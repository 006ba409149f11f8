"""A patient's own files, as the review shows them: which they are, and what stands in them.

They need the cohort's files (``--data-root``). A file is shown only when its SHA-256 is the one that the run read.
"""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfuse.card import jailed
from medfuse.config import read_card
from medfuse.errors import ConfigError
from medfuse.files import sha256_path
from medfuse.limits import files_below
from medfuse.loaders import module_of
from medfuse.review.source import ReviewRun


@dataclass(frozen=True, kw_only=True)
class RawFiles:
    """Files of one patient in one modality, checked against the run, or why there are none.

    Attributes:
        loader, options: of the card.
        items: files of each slide, series or record.
        numbers: of each item in the feature store; None where its content is not there.
        reason: why there are none.
    """

    loader: str = ""
    options: Mapping[str, Any]
    items: tuple[tuple[Path, ...], ...] = ()
    numbers: tuple[int | None, ...] = ()
    reason: str = ""

    def item(self, number: int) -> "RawFiles":
        """One of several slides, series or records."""
        return replace(self, items=self.items[number : number + 1], numbers=self.numbers[number : number + 1])


def raw_files(
    run: ReviewRun, patient: str, modality: str, *, data_root: Path | None, sources: Mapping[str, str]
) -> RawFiles:
    """A patient's files, whose content is what the run read.

    Args:
        run: the run.
        patient: a key of the run (only those reach a path).
        modality: its name.
        data_root: folder of the cohort's files.
        sources: of :class:`medfuse.review.evidence.Evidence`.

    Raises:
        CohortError: no such patient.
    """
    run.locate(patient)
    if data_root is None:
        return RawFiles(options={}, reason="the files are not at hand; start the review with --data-root to see them")
    if run.run.read("data").get("pseudonyms"):
        return RawFiles(options={}, reason="keys are pseudonyms here, so the files cannot be found by them")
    card = read_card(run.path / "card.md")
    spec = card.modalities[modality]
    if not spec.path or "{" not in spec.path:
        return RawFiles(options={}, reason="this modality comes from a table, shown above")
    if any(part in {"", ".", ".."} for part in patient.replace("\\", "/").split("/")) or "\0" in patient:
        return RawFiles(options={}, reason="the key cannot be part of a path")
    root = jailed(card.root, data_root) if card.root else data_root
    pattern = spec.path.replace("{patient_id}", glob.escape(patient))
    found: list[Path] = []
    for match in sorted(root.glob(pattern)):
        path = jailed(match.relative_to(root).as_posix(), root)
        found += sorted(files_below(path)) if path.is_dir() else [path]
    if not found:
        return RawFiles(options={}, reason="the files of this patient are not where the card says")
    known = set(sources.values())
    if known and not {digest(run, path) for path in found} & known:
        return RawFiles(options={}, reason="the files are not those that the run read (SHA-256 differs)")
    module = module_of(spec.loader, where=f"modality {modality}")
    group = getattr(module, "group", lambda files: [(path,) for path in files])
    items = tuple(tuple(i) for i in group(found))
    return RawFiles(
        loader=spec.loader,
        options=dict(spec.options),
        items=items,
        numbers=tuple(_number(run, files, sources) for files in items),
    )


def digest(run: ReviewRun, path: Path) -> str:
    """SHA-256 of a file or folder, read once per change of its sizes and times."""
    below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    state = [(p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in below]
    key = f"sha256 {path} {state}"
    if key not in run.memory:
        run.memory[key] = sha256_path(path)
    return str(run.memory[key])


def _number(run: ReviewRun, files: Sequence[Path], sources: Mapping[str, str]) -> int | None:
    """Which item of the store was read from these files: sources are named ``item 2, file 1``."""
    known = {v: int(k.split(",")[0].removeprefix("item ")) - 1 for k, v in sources.items() if k.startswith("item ")}
    found = {known[d] for d in (digest(run, path) for path in files) if d in known}
    return found.pop() if len(found) == 1 else None


def read_ecg(files: RawFiles) -> tuple[np.ndarray[Any, Any], float, list[str]]:
    """First window (leads, samples) in mV, samples per second, names of the leads in the file's order.

    Raises:
        DataError: the file cannot be read.
    """
    module = module_of(files.loader, where="review")
    sample = module.read(files.items[0], {})
    return np.asarray(sample.fetch([0])[0]), float(sample.facts["sampling_frequency"]), list(sample.facts["leads"])


def read_text(files: RawFiles) -> list[str]:
    """Sentences of the report, as the run read them.

    Raises:
        DataError: the file cannot be read.
    """
    sample = module_of(files.loader, where="review").read(files.items[0], files.options)
    return [str(s) for s in sample.fetch(range(len(sample)))]


def read_volume(files: RawFiles) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(I, J, K) in RAS+ order, and its affine.

    Raises:
        ConfigError: a loader without whole volumes.
        DataError: the series cannot be read.
    """
    module = module_of(files.loader, where="review")
    if not hasattr(module, "read_volume"):
        msg = f"review: the loader {files.loader} gives no whole volumes; show the table of features instead"
        raise ConfigError(msg)
    voxels, affine = module.read_volume(files.items[0], {})
    return voxels[..., 0], affine
