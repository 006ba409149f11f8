"""A folder in the layout of Hugging Face: the model and its tokenizer or image settings, offline and without code.

``transformers`` is an extra; it is imported when a model is loaded.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medfuse.errors import ConfigError, DataError
from medfuse.extractors._pt2_archive import CONVERT_WEIGHTS, refuse

IMAGE = "preprocessor_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_READ = {".json", ".txt", ".model", ".safetensors"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"}
_CONVERT = (
    'convert it once, if you trust where it is from: python -c "from transformers import AutoModel; '
    "AutoModel.from_pretrained('DIR').save_pretrained('DIR')\" with your folder as DIR"
)


def is_model(folder: Path) -> bool:
    """Has the marks of such a folder."""
    return (folder / "config.json").is_file()


def from_cache(name: str, revision: str, *, cache: Path | None = None) -> Path:
    """Folder of a model of the hub that is on this machine already; nothing is fetched.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit.
        cache: folder of the cache; default that of Hugging Face (HF_HOME).

    Raises:
        ConfigError: without the extra.
        DataError: not in the cache.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise _without("huggingface_hub") from error
    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=cache, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        msg = (
            f"extractor pretrained: expected {name!r} ({revision}) in the local cache of Hugging Face, found none; "
            f'medfuse downloads nothing: run hf download {name} --revision {revision} --exclude "*.bin" "*.pt" '
            "(its licence is yours to check), or name a folder as model"
        )
        raise DataError(msg) from error


def _without(package: str) -> ConfigError:
    msg = (
        f"extractor pretrained: expected the package {package} for a model of Hugging Face, found none; "
        "pip install 'medfuse[pretrained]'"
    )
    return ConfigError(msg)


def files(folder: Path) -> list[Path]:
    """What the features depend on.

    Raises:
        DataError: weights that are not safetensors, or a model that brings its own code.
    """
    found = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _READ)
    if not any(p.suffix == ".safetensors" for p in found):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        what = f"{pickles[0]}, which can run code when it is read" if pickles else "none"
        do = "fetch the whole model"
        if pickles:
            do = _CONVERT if pickles[0].startswith("pytorch_model") else CONVERT_WEIGHTS
        raise refuse(folder, "weights as model.safetensors", what, do)
    for path in found:
        if path.suffix == ".json" and path.name.endswith("config.json") and "auto_map" in _settings(path):
            do = "it is never run: export the model with torch.export and name the .pt2 file"
            raise refuse(folder, "a model of transformers itself", "one that brings its own code (auto_map)", do)
    if _settings(folder / "config.json").get("use_pretrained_backbone"):
        do = "set it to false in config.json if model.safetensors holds the backbone, too"
        raise refuse(folder, "a model that is whole", "one that fetches its backbone (use_pretrained_backbone)", do)
    return found


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(path, "JSON", type(error).__name__, "fetch the model again") from error
    return found if isinstance(found, dict) else {}


class HuggingFace:
    """A model of images or of text.

    Args:
        folder: in the layout of Hugging Face.
        pooling: ``cls`` (first token), ``mean`` (of all tokens or places) or ``pooler``; None: ``cls`` of images,
            ``mean`` of text.
        truncate: cut sentences that are longer than the model takes.
        device: where it runs.

    Raises:
        ConfigError: without the extra.
        DataError: a folder that transformers cannot read.
    """

    def __init__(self, folder: Path, *, pooling: str | None, truncate: bool, device: torch.device) -> None:
        try:
            os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
            import transformers
        except ImportError as error:
            raise _without("transformers") from error
        self.folder, self.pooling, self.truncate, self.device = folder, pooling, truncate, device
        offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model: nn.Module
            model, loading = transformers.AutoModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **offline
            )
            texts = any((folder / name).is_file() for name in _TOKENIZERS)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **offline) if texts else None
        except Exception as error:  # whatever transformers says of a folder
            do = "check it with AutoModel.from_pretrained, or export it with torch.export"
            raise refuse(folder, "a model that transformers reads", type(error).__name__, do) from error
        lacking = [str(key) for key in (*loading["missing_keys"], *loading["mismatched_keys"])]
        drawn = [key for key in lacking if pooling == "pooler" or not key.startswith("pooler.")]
        if drawn:  # transformers draws them at random
            found = f"none for {len(drawn)} of its parts"
            raise refuse(folder, "weights for the whole model", found, "fetch the whole model, or save its encoder")
        self.model = model.eval().requires_grad_(requires_grad=False).to(device)
        for weights in (*self.model.parameters(), *self.model.buffers()):
            weights.data = weights.data.clone()  # aligned as torch's own, not as the mapped file: kernels choose by it
        self.image = ImageSettings(folder / IMAGE) if (folder / IMAGE).is_file() else None

    @torch.no_grad()
    def images(self, tiles: NDArray[np.uint8]) -> Tensor:
        """Features (k, F) of tiles (k, H, W, 3).

        Raises:
            DataError: a model that is not one of images.
        """
        if self.image is None:
            raise refuse(self.folder, f"a model of images with {IMAGE}", "none", "name a model of images")
        return self._pooled({"pixel_values": self.image(tiles).to(self.device)}, default="cls")

    @torch.no_grad()
    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Features (k, F) of k sentences; those of one length go together, so that no padding enters.

        Raises:
            DataError: a model that is not one of text, or a sentence that is too long for it.
        """
        if self.tokenizer is None:
            raise refuse(self.folder, "a model of text with a tokenizer", "none", "name a model of text")
        most = getattr(self.model.config, "max_position_embeddings", None)
        limit = min(int(most or 1 << 30), int(self.tokenizer.model_max_length))
        coded = [self._coded(text, limit) for text in sentences]
        lengths = sorted({len(ids["input_ids"]) for ids in coded})
        out: dict[int, Tensor] = {}
        for length in lengths:
            rows = [k for k, ids in enumerate(coded) if len(ids["input_ids"]) == length]
            given = {key: torch.tensor([coded[k][key] for k in rows], device=self.device) for key in coded[rows[0]]}
            out.update(zip(rows, self._pooled(given, default="mean"), strict=True))
        return torch.stack([out[k] for k in range(len(sentences))])

    def _coded(self, text: str, limit: int) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = dict(self.tokenizer(text, truncation=False, verbose=False))
        if len(ids["input_ids"]) <= limit:
            return ids
        if not self.truncate:
            msg = (
                f"extractor pretrained: expected sentences of at most {limit} tokens, found {len(ids['input_ids'])}; "
                "set truncate: true, or split the text into shorter sections"
            )
            raise DataError(msg)
        return dict(self.tokenizer(text, truncation=True, max_length=limit))

    def _pooled(self, given: Mapping[str, Tensor], *, default: str) -> Tensor:
        try:
            out = self.model(**given)
        except Exception as error:  # whatever a model says of an input that it does not take
            do = "does the model take this kind of item, of this size? a model of both needs one of its towers"
            raise refuse(self.folder, "a model that runs on these items", type(error).__name__, do) from error
        pooling = self.pooling or default
        if pooling == "pooler":
            found = getattr(out, "pooler_output", None)
            if found is None:
                raise refuse(self.folder, "a model with a pooler", "none", "set pooling to cls or mean")
            return torch.flatten(found, 1)
        states = getattr(out, "last_hidden_state", None)
        if states is None or states.ndim not in (3, 4):
            raise refuse(self.folder, "a model with a last hidden state", "none", "export it with torch.export")
        if states.ndim == 4:  # maps (k, F, h, w) of a convolutional network
            if pooling == "cls" and self.pooling:
                raise refuse(self.folder, "a model with a first token for pooling cls", "maps", "set pooling to mean")
            return torch.mean(states, dim=(2, 3))
        return torch.select(states, 1, 0) if pooling == "cls" else torch.mean(states, dim=1)


class ImageSettings:
    """Resize, crop, rescale and normalise as ``preprocessor_config.json`` says, with Pillow and no torchvision.

    Raises:
        DataError: a step that is not one of these, or one that is not stated in full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        s = _settings(path)
        known = {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"}
        other = sorted(key for key, on in s.items() if key.startswith("do_") and on and key not in known)
        if other:
            raise refuse(path, "resize, crop, rescale, normalise", other[0], "export the model with torch.export")
        try:
            self.size = _size(s["size"]) if s.get("do_resize") else None
            self.resample = int(s["resample"]) if self.size else 0
            self.crop = _size(s["crop_size"])[:2] if s.get("do_center_crop") else None
            if self.crop == (0, 0):
                msg = "crop_size"
                raise KeyError(msg)
            self.factor = float(s.get("rescale_factor", 1 / 255)) if s.get("do_rescale", True) else 1.0
            channels = ("image_mean", "image_std")
            self.mean, self.std = (
                np.asarray(s[key] if s.get("do_normalize") else [n] * 3, np.float32) for n, key in enumerate(channels)
            )
            if (
                self.mean.shape != (3,)
                or self.std.shape != (3,)
                or not (self.std > 0).all()
                or not 0 <= self.resample < 6
            ):
                msg = "numbers that cannot be"
                raise ValueError(msg)
        except (KeyError, TypeError, ValueError) as error:
            do = "state size, resample, crop_size, image_mean and image_std in it"
            raise refuse(path, "complete image settings", f"{type(error).__name__}", do) from error

    def __call__(self, tiles: NDArray[np.uint8]) -> Tensor:
        """(k, H, W, 3) uint8 to (k, 3, h, w) float32."""
        pixels = np.stack([self._cropped(self._resized(tile)) for tile in tiles]).astype(np.float32)
        pixels = (pixels * np.float32(self.factor) - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).clone()  # aligned as torch's own

    def _resized(self, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.size is None:
            return tile
        from PIL import Image

        high, wide, shortest = self.size
        if shortest:
            short = min(tile.shape[:2])
            high, wide = (int(n * shortest / short) for n in tile.shape[:2])
        if (high, wide) == tile.shape[:2]:
            return tile
        image = Image.fromarray(tile).resize((wide, high), resample=Image.Resampling(self.resample))
        return np.asarray(image)

    def _cropped(self, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.crop is None:
            return tile
        high, wide = self.crop
        top, left = (tile.shape[0] - high) // 2, (tile.shape[1] - wide) // 2
        if min(top, left) < 0:
            do = "read larger tiles, or correct crop_size"
            raise refuse(self.path, f"tiles of {high} x {wide} or more", f"{tile.shape[0]} x {tile.shape[1]}", do)
        return tile[top : top + high, left : left + wide]


def _size(stated: Any) -> tuple[int, int, int]:  # noqa: ANN401  # JSON
    """Height, width, shortest edge; the last is 0 where the first two are stated.

    Raises:
        KeyError: neither.
    """
    if isinstance(stated, int):
        return stated, stated, 0
    if "shortest_edge" in stated:
        return 0, 0, int(stated["shortest_edge"])
    return int(stated["height"]), int(stated["width"]), 0
