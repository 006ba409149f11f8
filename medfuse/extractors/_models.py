"""Where a pretrained model lies, what kind it is, and which of its files its features depend on."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from medfuse.errors import ConfigError
from medfuse.extractors import _bundle, _huggingface
from medfuse.extractors._pt2_archive import CONVERT_WEIGHTS
from medfuse.files import sha256_file

Source = Literal["huggingface", "torch_export", "monai_bundle"]
HUB = "hub:"


def place(stated: str) -> Path:
    """The folder or file that a card names; ``hub:OWNER/NAME@REVISION`` is looked for in the local cache alone.

    Raises:
        ConfigError: nothing there.
        DataError: not in the cache.
    """
    if stated.startswith(HUB):
        name, _, revision = stated.removeprefix(HUB).partition("@")
        return _huggingface.from_cache(name, revision or "main")
    path = Path(stated).expanduser()
    path = path if path.is_absolute() else Path(os.environ.get("MEDFUSE_MODELS", "")) / path
    if not path.exists():
        msg = (
            f"extractor pretrained: expected a model at {stated!r}, found none; a relative path is below "
            "MEDFUSE_MODELS, or the working folder where that is not set; a model of the hub is hub:OWNER/NAME"
        )
        raise ConfigError(msg)
    return path


def source_of(path: Path) -> Source:
    """What kind of model this is, by its content.

    Raises:
        ConfigError: none of them, or weights as a pickle.
    """
    if path.is_dir():
        if _bundle.is_bundle(path):
            return "monai_bundle"
        if _huggingface.is_model(path):
            return "huggingface"
    elif path.suffix == ".pt2":
        return "torch_export"
    pickle = path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".ts"}
    found = "a file that can run code when it is read" if pickle else "something else"
    do = f"; {CONVERT_WEIGHTS}, or export the network with torch.export" if pickle else ""
    msg = (
        "extractor pretrained: expected a folder of Hugging Face (config.json), a torch.export file (.pt2) or a MONAI "
        f"bundle (configs/), found {found} at {path.name}{do}"
    )
    raise ConfigError(msg)


def files_of(path: Path, source: Source) -> list[Path]:
    """Files that the features depend on.

    Raises:
        DataError: weights that are not safetensors, or a model that brings its own code.
    """
    if source == "torch_export":
        return [path]
    return _bundle.files(path) if source == "monai_bundle" else _huggingface.files(path)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:  # size and time are part of the cache's key
    del size, changed
    return sha256_file(path)


def digest(path: Path, source: Source) -> str:
    """One SHA-256 of the names and contents of these files; a file is read again when its size or time changed.

    Raises:
        DataError: as for :func:`files_of`.
    """
    files = files_of(path, source)
    names = ["model.pt2"] if source == "torch_export" else [file.relative_to(path).as_posix() for file in files]
    hashes = {name: _sha256(file, *_stamp(file)) for name, file in zip(names, files, strict=True)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
