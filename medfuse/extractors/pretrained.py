"""Frozen encoders that others trained: a folder of Hugging Face, a ``torch.export`` file, a MONAI bundle.

Nothing is downloaded, no pickle is read, no code that comes with a model is run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError, nearest
from medfuse.extractors import _models
from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample

if TYPE_CHECKING:
    from torch import Tensor

_KINDS: dict[int, ItemKind] = {1: "sentence", 2: "vector", 3: "window", 4: "tile", 5: "patch"}  # by axes of a batch
_POOLING = ("cls", "mean", "pooler")


class Pretrained(Extractor):
    """Features of a frozen model, in float32 and evaluation mode.

    ========== ==================== ===============================================================================
    model      items                what enters, what is stored
    ========== ==================== ===============================================================================
    folder     tiles, sentences     the folder's own image settings or tokenizer; last hidden state, pooled
    ``.pt2``   all but sentences    (k, C, ...) float32; output (k, F), or maps (k, F, ...) averaged over places
    bundle     patches              as for ``.pt2``; ``output`` names the part whose output is wanted
    ========== ==================== ===============================================================================

    The same items give the same bytes in every process of one machine, whatever its number of threads: what is
    extracted again after a kill is what was. An item's features do not depend on the items beside it beyond rounding in
    float32 (1e-5 of the largest feature), which is below the precision of the store (float16, 2^-11 of a number).

    Args:
        model: folder or ``.pt2`` file, a relative path below MEDFUSE_MODELS, or else the working folder; or
            ``hub:OWNER/NAME@REVISION``, a model of Hugging Face that is in the local cache.
        output: for Hugging Face ``cls``, ``mean`` (of tokens or places) or ``pooler``, default ``cls`` of images and
            ``mean`` of text; for bundles a part of the network, such as ``layer4``, default the network's own.
        scaling: for ``.pt2`` and bundles: ``divide_by``, ``mean``, ``std`` (numbers, or one per channel):
            (x / divide_by - mean) / std; then, with ``standardise: true``, every channel of every item to mean 0 and
            deviation 1.
        truncate: for text: cut sentences that are longer than the model takes; else they are refused.
        expects: facts that the items must have, as the model was trained on them, such as ``{mpp: 0.5}`` or
            ``{sampling_frequency: 400, leads: [I, II]}``; numbers agree within 1 %.
        batch: items at once.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    References:
        Dosovitskiy et al. (2021), An image is worth 16x16 words (the first token as the image's); Reimers and Gurevych
        (2019), Sentence-BERT, section 3 (mean of the tokens).
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("tile", "patch", "window", "vector", "sentence")

    def __init__(
        self,
        *,
        model: str,
        output: str | None = None,
        scaling: Mapping[str, Any] | None = None,
        truncate: bool = False,
        expects: Mapping[str, Any] | None = None,
        batch: int = 32,
        device: str = "auto",
    ) -> None:
        self.path = _models.place(str(model))
        self.source = _models.source_of(self.path)
        self.output, self.truncate = output, bool(truncate)
        self.scaling = Scaling(**_known(scaling or {}))
        self.expects = dict(expects or {})
        self.batch, self.device = batch, device
        self._refuse_options(scaled=bool(scaling))
        self._loaded: tuple[str, Callable[[NDArray[Any]], Tensor]] | None = None

    def _refuse_options(self, *, scaled: bool) -> None:
        """An option that would not be read is a misunderstanding.

        Raises:
            ConfigError: such an option, or one out of range.
        """
        own = self.source == "huggingface"
        wrong = {
            "output": self.output is not None
            and (self.source == "torch_export" or (own and self.output not in _POOLING)),
            "truncate": self.truncate and not own,
            "scaling": own and scaled,
            "batch": isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1,
            "device": self.device not in {"auto", "cpu", "cuda"},
        }
        found = next((name for name, bad in wrong.items() if bad), None)
        if found is not None:
            msg = (
                f"extractor pretrained: expected options that a model of the kind {self.source} reads, within their "
                f"range, found another {found}; see docs/extractors/pretrained.md"
            )
            raise ConfigError(msg)

    @property
    def settings(self) -> Mapping[str, Any]:
        """SHA-256 of weights, configuration and preprocessing, and the options that change a feature."""
        return {
            "source": self.source,
            "sha256": _models.digest(self.path, self.source),
            "output": self.output,
            "scaling": self.scaling.settings(),
            "truncate": self.truncate,
            "expects": self.expects,
        }

    def facts(self, raw: RawSample) -> Mapping[str, Any]:
        """The facts of the raw sample, and which model and options the features are of."""
        of = {name: value for name, value in self.settings.items() if name != "expects"}
        return {**raw.facts, "model": of}

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """Numbers: directions of a learned space have no names."""
        width = self(raw.fetch([0]), raw.facts).shape[1]
        return tuple(f"embedding{k}" for k in range(width))

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """Features (k, F) of k items of any kind that the model takes.

        Raises:
            DataError: items that the model does not take, facts that it does not expect, features that are not finite.
            ConfigError: an extra that is not installed.
        """
        self._agree(facts)
        kind = _KINDS.get(items.ndim)
        own = self.source == "huggingface"
        if kind is None or (own and kind not in {"tile", "sentence"}) or (not own and kind == "sentence"):
            msg = (
                f"extractor pretrained: expected items that a model of the kind {self.source} takes, found "
                f"{kind or 'others'}; Hugging Face takes tiles and sentences, export others with torch.export"
            )
            raise DataError(msg)
        run = self._run()
        parts = [run(items[start : start + self.batch]) for start in range(0, len(items), self.batch)]
        found = np.concatenate([part.detach().float().cpu().numpy() for part in parts])
        if found.ndim != 2 or len(found) != len(items) or not np.isfinite(found).all():
            msg = (
                f"{self.path.name}: expected finite features ({len(items)}, F), found {found.shape}; choose another "
                "output, layer or pooling, or check the numbers that enter"
            )
            raise DataError(msg)
        return found

    def _agree(self, facts: Mapping[str, Any]) -> None:
        for name, wanted in self.expects.items():
            if not _alike(facts.get(name), wanted):
                msg = (
                    f"extractor pretrained: expected items with {name} {wanted!r}, as the model was trained, found "
                    f"{facts.get(name)!r}; set the loader's options"
                )
                raise DataError(msg)

    def _run(self) -> Callable[[NDArray[Any]], "Tensor"]:
        digest = _models.digest(self.path, self.source)
        if self._loaded is None or self._loaded[0] != digest:
            self._loaded = (digest, self._load())
        return self._loaded[1]

    def _load(self) -> Callable[[NDArray[Any]], "Tensor"]:
        import torch

        name = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        if self.source == "huggingface":
            from medfuse.extractors._huggingface import HuggingFace

            model = HuggingFace(self.path, pooling=self.output, truncate=self.truncate, device=device)

            def embed(items: NDArray[Any]) -> "Tensor":
                return model.texts([str(text) for text in items]) if items.ndim == 1 else model.images(items)

            return _exact(embed)
        run, fixed = self._network(device)

        def forward(items: NDArray[Any]) -> "Tensor":
            with torch.no_grad():
                own = torch.from_numpy(self.scaling(items)).clone()  # aligned as torch's own: kernels choose by it
                return _features(run, own.to(device), fixed, where=self.path.name)

        return _exact(forward)

    def _network(self, device: Any) -> tuple[Callable[["Tensor"], Any], int | None]:  # noqa: ANN401  # a torch device
        """The network, and the number of items that it takes at once where only one is right."""
        if self.source == "monai_bundle":
            from medfuse.extractors import _bundle

            return _bundle.load(self.path, layer=self.output, device=device), None
        from medfuse.extractors._pt2 import Program

        program = Program(self.path, device)
        return program, program.shape[0] if program.shape else None


# --- what enters -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """(x / divide_by - mean) / std per channel, then each channel of each item by itself where ``standardise`` is set.

    Raises:
        ConfigError: numbers that cannot be.
    """

    divide_by: float = 1.0
    mean: Sequence[float] | float = 0.0
    std: Sequence[float] | float = 1.0
    standardise: bool = False

    def __post_init__(self) -> None:
        numbers = {name: _numbers(getattr(self, name), name) for name in ("divide_by", "mean", "std")}
        if not (numbers["std"] > 0).all() or not (numbers["divide_by"] > 0).all() or len(numbers["divide_by"]) > 1:
            msg = "extractor pretrained: expected positive divide_by and std in scaling, found others"
            raise ConfigError(msg)

    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        numbers = {name: _numbers(getattr(self, name), name).tolist() for name in ("divide_by", "mean", "std")}
        return {**numbers, "standardise": bool(self.standardise)}

    def __call__(self, items: NDArray[Any]) -> NDArray[np.float32]:
        """Channels first, scaled.

        Raises:
            DataError: numbers for another number of channels.
        """
        x = np.asarray(items, dtype=np.float32)
        x = np.moveaxis(x, -1, 1) if x.ndim >= 4 else x
        mean, std = _numbers(self.mean, "mean"), _numbers(self.std, "std")
        if {len(mean), len(std)} - {1, x.shape[1]}:
            msg = f"extractor pretrained: expected mean and std of {x.shape[1]} channels, found {len(mean)}, {len(std)}"
            raise DataError(msg)
        ones = (1,) * (x.ndim - 2)
        x = (x / np.float32(self.divide_by) - mean.reshape(-1, *ones)) / std.reshape(-1, *ones)
        if self.standardise and x.ndim > 2:
            places = tuple(range(2, x.ndim))
            spread = x.std(axis=places, keepdims=True)
            x = (x - x.mean(axis=places, keepdims=True)) / np.where(spread > 1e-8, spread, 1)
        return np.ascontiguousarray(x, dtype=np.float32)


def _known(scaling: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(Scaling)]
    unknown = next((key for key in scaling if key not in known), None)
    if unknown is not None:
        msg = f"extractor pretrained: scaling has no option {unknown!r}; {nearest(str(unknown), known)}"
        raise ConfigError(msg)
    return dict(scaling)


# --- running ---------------------------------------------------------------------------------------------------------


def _exact(run: Callable[[NDArray[Any]], "Tensor"]) -> Callable[[NDArray[Any]], "Tensor"]:
    """Full float32, one thread and the same algorithms every time, on a GPU, too.

    Sums are split among threads, so their number would change the last bit; workers are what runs side by side.
    """
    import torch

    def inner(items: NDArray[Any]) -> "Tensor":
        kept, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                return run(items)
        finally:
            torch.set_float32_matmul_precision(kept)
            torch.set_num_threads(threads)

    return inner


def _features(run: Callable[["Tensor"], Any], items: "Tensor", fixed: int | None, *, where: str) -> "Tensor":
    """(k, F) of k items; a network of a fixed number takes the last ones with copies of the last item.

    Raises:
        DataError: an output that is no feature vector.
    """
    import torch

    parts = []
    for part in torch.split(items, fixed or len(items)):
        lacking = fixed - len(part) if fixed else 0
        whole = torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part
        out = run(whole)
        found = [out] if isinstance(out, torch.Tensor) else list(out) if isinstance(out, list | tuple) else []
        if len(found) != 1 or not isinstance(found[0], torch.Tensor) or found[0].ndim < 2:
            msg = (
                f"{where}: expected one output (items, features) or (items, features, places ...), found {len(found)}; "
                "export the encoder alone, or name a layer of the bundle"
            )
            raise DataError(msg)
        features = found[0] if found[0].ndim == 2 else found[0].flatten(2).mean(2)
        parts.append(features[: len(part)])
    return torch.cat(parts)


def _numbers(stated: Sequence[float] | float, name: str) -> NDArray[np.float32]:
    try:
        found = np.atleast_1d(np.asarray(stated, dtype=np.float32))
    except (TypeError, ValueError):
        found = np.zeros(0, dtype=np.float32)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        msg = f"extractor pretrained: expected {name} as one number or one per channel, found {stated!r}"
        raise ConfigError(msg)
    return found


def _alike(found: Any, wanted: Any) -> bool:  # noqa: ANN401  # facts and a card
    if isinstance(wanted, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(wanted)
        return same and all(_alike(a, b) for a, b in zip(found, wanted, strict=True))
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (found, wanted))
    return abs(found - wanted) <= 0.01 * abs(wanted) if numbers else bool(found == wanted)
