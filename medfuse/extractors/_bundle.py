"""A MONAI bundle folder: the network that its configuration names, with weights from safetensors.

A bundle's configuration is a small programming language (``$`` evaluates Python, ``_target_`` calls anything), which is
not run: only plain values, references to plain values, and classes of ``monai.networks.nets`` are read.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from medfuse.errors import ConfigError
from medfuse.extractors._pt2_archive import CONVERT_WEIGHTS, refuse

WEIGHTS = "models/model.safetensors"
_CONFIGS = tuple(f"configs/{n}{end}" for n in ("inference", "train") for end in (".json", ".yaml", ".yml"))
_LARGEST = 1 << 22  # bytes of a configuration


def is_bundle(folder: Path) -> bool:
    """Has the marks of a bundle."""
    return (folder / "configs").is_dir() and any((folder / name).is_file() for name in _CONFIGS)


def files(folder: Path) -> list[Path]:
    """What the features depend on.

    Raises:
        DataError: no weights as safetensors.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        old = next((p for p in sorted((folder / "models").glob("*")) if p.suffix in {".pt", ".pth", ".ts"}), None)
        found = f"{old.name}, which can run code when it is read" if old else "none"
        do = CONVERT_WEIGHTS if old and old.suffix != ".ts" else "fetch the whole bundle with its weights (model.pt)"
        raise refuse(folder, WEIGHTS, found, do)
    config = next(folder / name for name in _CONFIGS if (folder / name).is_file())
    more = folder / "configs/metadata.json"
    return [weights, config, *([more] if more.is_file() else [])]


def channels(folder: Path) -> int | None:
    """Channels of the input, as the bundle's metadata say."""
    path = folder / "configs/metadata.json"
    try:
        found = _read(path)["network_data_format"]["inputs"]["image"]["num_channels"] if path.is_file() else None
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def load(folder: Path, *, layer: str | None, device: torch.device) -> Callable[[Tensor], Any]:
    """The network, ready to run on a batch.

    Args:
        folder: of the bundle.
        layer: name of the part whose output is wanted; None: the network's own.
        device: where it runs.

    Raises:
        DataError: a configuration that cannot be read without running it, or weights of another network.
        ConfigError: no such layer.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = next(folder / name for name in _CONFIGS if (folder / name).is_file())
    network = _network(path, _read(path))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise refuse(folder, "weights of the network that it names", "others", "fetch the whole bundle") from error
    network.eval().requires_grad_(requires_grad=False).to(device)
    parts = dict(network.named_modules())
    if layer is not None and layer not in parts:
        known = ", ".join(name for name in parts if name.count(".") == 0 and name)
        msg = f"{folder.name}: no layer {layer!r} in {type(network).__name__}; its parts: {known}"
        raise ConfigError(msg)
    return _Network(folder, network, None if layer is None else parts[layer])


class _Network:
    """A network, or one part of it whose output is wanted."""

    def __init__(self, folder: Path, network: nn.Module, part: nn.Module | None) -> None:
        self.folder, self.network, self.tapped = folder, network, part is not None
        self.channels = channels(folder)
        self.found: list[Any] = []
        if part is not None:
            part.register_forward_hook(lambda module, given, out: self.found.append(out))

    def __call__(self, items: Tensor) -> Any:  # noqa: ANN401  # what a network gives
        self.found.clear()
        do = "set the loader's options, or check the bundle's metadata"
        if self.channels is not None and items.shape[1] != self.channels:
            raise refuse(self.folder, f"items of {self.channels} channels", f"{items.shape[1]}", do)
        try:
            out = self.network(items)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            found = f"{type(error).__name__} on {tuple(items.shape)}"
            raise refuse(self.folder, "a network that runs on these items", found, do) from error
        if self.tapped and not self.found:
            do = "name another part as output"
            raise refuse(self.folder, "a layer that is used", "one that is not", do)
        taken = self.found[-1] if self.tapped else out
        self.found.clear()
        return taken


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text() if path.stat().st_size <= _LARGEST else ""
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise refuse(path, "JSON or YAML", type(error).__name__, "fetch the bundle again") from error
    if not isinstance(found, dict):
        raise refuse(path, "a mapping", type(found).__name__, "fetch the bundle again")
    return found


def _network(path: Path, config: Mapping[str, Any]) -> nn.Module:
    from monai.networks import nets

    stated = config.get("network_def")
    if not isinstance(stated, dict) or not isinstance(stated.get("_target_"), str):
        raise refuse(path, "network_def with a _target_", "none", "state the network in it")
    name = stated["_target_"].rpartition(".")[2]
    kind = getattr(nets, name, None) if stated["_target_"] in {name, f"monai.networks.nets.{name}"} else None
    if not (
        inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__.startswith("monai.networks.nets")
    ):
        do = "export it with torch.export and name the .pt2 file"
        raise refuse(path, "a class of monai.networks.nets as _target_", "another", do)
    options = {k: _plain(v, config, path, depth=0) for k, v in stated.items() if not k.startswith("_")}
    if "pretrained" in inspect.signature(kind).parameters:
        options["pretrained"] = False  # some fetch weights by themselves
    try:
        found: nn.Module = kind(**options)
    except Exception as error:  # whatever a network says of its options
        raise refuse(path, f"options of {name}", f"{type(error).__name__}", "correct network_def") from error
    return found


def _plain(value: Any, config: Mapping[str, Any], path: Path, *, depth: int) -> Any:  # noqa: ANN401  # JSON
    """A value with its references followed."""
    if depth > 20:
        raise refuse(path, "references that end", "a circle", "correct network_def")
    if isinstance(value, str) and value.startswith(("$", "%")):
        do = "write the value into network_def as a plain one"
        raise refuse(path, "plain values in network_def", "an expression, which is never run", do)
    if isinstance(value, str) and value.startswith("@"):
        target: Any = config
        for key in value[1:].replace("#", "::").split("::"):
            if not isinstance(target, dict) or key not in target:
                raise refuse(path, "references to values of this file", f"one to {key!r}", "correct network_def")
            target = target[key]
        return _plain(target, config, path, depth=depth + 1)
    if isinstance(value, dict):
        if "_target_" in value:
            raise refuse(path, "plain values in network_def", "an object", "write it as plain values")
        return {k: _plain(v, config, path, depth=depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, config, path, depth=depth + 1) for v in value]
    return value
