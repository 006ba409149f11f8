"""Tensors and checkpoints on disk: safetensors and JSON, sealed by SHA-256; nothing is ever unpickled."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from medfuse.batch import Batch
from medfuse.errors import StoreError
from medfuse.files import new_folder, remove_temporaries, seal, verify, write_bytes

FORMAT_VERSION = 1
_KEPT = 2
_TENSORS = "tensors.safetensors"


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors; the same tensors give the same bytes."""
    return safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())})


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and contents of tensors."""
    return hashlib.sha256(tensor_bytes(tensors)).hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        StoreError: when it is missing or damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        msg = f"{path}: expected a safetensors file, found it missing or damaged; restore it or fit again"
        raise StoreError(msg) from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a safetensors file as NumPy arrays.

    Raises:
        StoreError: when it is missing or damaged.
    """
    try:
        return safetensors.numpy.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        msg = f"{path}: expected a safetensors file, found it missing or damaged; restore it or fit again"
        raise StoreError(msg) from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write NumPy arrays as safetensors, atomically."""
    write_bytes(path, safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())}))


def supported(manifest: Mapping[str, Any], *, where: Path, newest: int = FORMAT_VERSION) -> None:
    """Refuse a format that is newer than this version of medfuse, or none.

    Raises:
        StoreError: when ``format_version`` is not 1 .. ``newest``.
    """
    version = manifest.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        msg = f"{where}: expected format_version 1 to {newest}, found another; use the medfuse that wrote it"
        raise StoreError(msg)


def batch_sha256(batch: Batch | None) -> str:
    """SHA-256 over everything a batch holds, so that a checkpoint is never continued on other data."""
    digest = hashlib.sha256()
    if batch is not None:
        parts: dict[str, Tensor | None] = {"present": batch.present}
        for name in batch.modalities:
            parts |= {f"{name}.tokens": batch.tokens[name], f"{name}.mask": batch.token_mask[name]}
            parts[f"{name}.position"] = batch.position[name]
        for name, target in batch.targets.items():
            fields = ("observed", "event", "time", "label", "value")
            parts |= {f"target.{name}.{field}": getattr(target, field) for field in fields}
        for name, tensor in sorted(parts.items()):
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update("\0".join(batch.patient_ids).encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a fit needs to go on as if it had never stopped: tensors, and the JSON rest."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """The newest two checkpoints of one fit.

    Args:
        folder: theirs alone; made when missing.
        fingerprint: hash of all that decides the result: settings, seed, shapes, data, device type.
    """

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._number = max((int(path.name[11:]) for path in self._paths()), default=0)

    def _paths(self) -> list[Path]:
        """Complete or damaged checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("checkpoint-*") if path.name[11:].isdigit())

    def newest(self) -> Checkpoint | None:
        """Load the newest checkpoint that verifies; damaged ones are passed over.

        Raises:
            StoreError: when it belongs to other settings or data, or to a newer format.
        """
        for path in reversed(self._paths()):
            try:
                manifest = verify(path)
                tensors = read_tensors(path / _TENSORS)
            except StoreError:
                continue  # a crash or a damaged disk; the one before it is as good, only older
            supported(manifest, where=path)
            if manifest["fingerprint"] != self.fingerprint:
                msg = (
                    f"{path}: expected a checkpoint of these settings, data and seed, found one of others; "
                    "use another folder, or delete this one to fit afresh"
                )
                raise StoreError(msg)
            return Checkpoint(tensors=tensors, state=manifest["state"])
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint beside the older ones, then drop all but the newest two.

        Raises:
            StoreError: when it cannot be written; the older ones stay.
        """
        self._number += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        with new_folder(self.folder / f"checkpoint-{self._number:08d}") as folder:
            write_bytes(folder / _TENSORS, tensor_bytes(checkpoint.tensors))
            header = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, "state": checkpoint.state}
            seal(folder, {**header, "versions": {"torch": torch.__version__, "threads": torch.get_num_threads()}})
        for path in self._paths()[:-_KEPT]:
            # Renamed first, so that a half-deleted checkpoint is never taken for one.
            path.replace(path.with_name(f".tmp-{path.name}"))
        remove_temporaries(self.folder)
