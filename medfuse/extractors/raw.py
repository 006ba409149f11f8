"""Windows and patches as they are, for encoders that are trained on them (``ecg_resnet``, ``volume_resnet``).

Every item has the same shape, channels first, and says what its numbers are: the store refuses to mix items whose
channels, steps or units differ.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import ConfigError, DataError
from medfuse.extractors.base import Extractor
from medfuse.sample import ItemKind, RawSample

_STANDARD = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LARGEST_ITEM = 1 << 20  # numbers of one item; a cohort of larger ones cannot be trained on


class _Raw(Extractor):
    """Items flattened to features; the fact ``item`` says their shape, channels, step and unit."""

    @abstractmethod
    def item(self, raw: RawSample) -> dict[str, Any]:
        """Shape (channels first), names of the channels, step in every axis with its unit, unit of the numbers."""

    def names(self, raw: RawSample) -> tuple[str, ...]:
        """None: the place of a sample or a voxel is no feature."""
        return ()

    def facts(self, raw: RawSample) -> Mapping[str, Any]:
        """The facts of the raw sample, and what an item is."""
        return {**raw.facts, "item": self.item(raw)}


class RawWindows(_Raw):
    """ECG windows (leads, samples) in mV, leads in one order, to tokens of leads x samples numbers.

    Args:
        leads: names in the order wanted; a recording that lacks one is refused, unless ``absent`` is ``zero``.
        sampling_frequency: Hz that the windows have; the loader's option of that name resamples.
        seconds: length of a window; the loader's option of that name cuts them.
        absent: ``refuse`` or ``zero``, for leads that are not there and for what a shorter recording lacks at its end.
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("window",)

    def __init__(
        self,
        *,
        leads: Sequence[str] = _STANDARD,
        sampling_frequency: float = 100.0,
        seconds: float = 10.0,
        absent: str = "refuse",
    ) -> None:
        bad = isinstance(leads, str) or not leads or len(set(leads)) < len(leads)
        if bad or absent not in {"refuse", "zero"} or not (_positive(sampling_frequency) and _positive(seconds)):
            msg = (
                "extractor windows: expected different leads, positive sampling_frequency (Hz) and seconds, and absent "
                f"refuse or zero, found {list(leads)}, {sampling_frequency!r}, {seconds!r}, {absent!r}"
            )
            raise ConfigError(msg)
        self.leads = tuple(map(str, leads))
        self.frequency, self.seconds, self.absent = float(sampling_frequency), float(seconds), absent
        self.samples = round(self.frequency * self.seconds)
        if not 1 <= self.samples * len(self.leads) <= LARGEST_ITEM:
            msg = f"extractor windows: expected 1 to {LARGEST_ITEM:,} numbers per window, found {self.samples} per lead"
            raise ConfigError(msg)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Leads, frequency, length and what becomes of absent parts."""
        return {
            "leads": list(self.leads),
            "sampling_frequency": self.frequency,
            "seconds": self.seconds,
            "absent": self.absent,
        }

    def item(self, raw: RawSample) -> dict[str, Any]:
        """(leads, samples) in mV; the step is in s."""
        shape, step = [len(self.leads), self.samples], [1 / self.frequency]
        return {"shape": shape, "channels": list(self.leads), "step": step, "step_unit": "s", "unit": "mV"}

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """(k, leads x samples) of k windows (k, leads, samples).

        Raises:
            DataError: another frequency or length, a lead that is not there, or numbers that are not finite.
        """
        leads, found = [str(name) for name in facts.get("leads", ())], float(facts.get("sampling_frequency", 0))
        if items.ndim != 3 or items.shape[1] != len(leads) or abs(found - self.frequency) > 1e-6 * self.frequency:
            msg = (
                f"extractor windows: expected windows at {self.frequency:g} Hz, found {found:g} Hz; set "
                f"options.sampling_frequency of the loader to {self.frequency:g}, or that of the extractor"
            )
            raise DataError(msg)
        lacking = [name for name in self.leads if name not in leads]
        short, long = items.shape[2] < self.samples, items.shape[2] > self.samples
        if long or (self.absent == "refuse" and (lacking or short)):
            msg = (
                f"extractor windows: expected leads {', '.join(self.leads)} of {self.samples} samples, found "
                f"{', '.join(leads)} of {items.shape[2]}; set options.seconds of the loader, or name the leads that "
                "all recordings have, or absent: zero"
            )
            raise DataError(msg)
        out = np.zeros((len(items), len(self.leads), self.samples), dtype=np.float32)
        for row, name in enumerate(self.leads):
            if name in leads:
                out[:, row, : items.shape[2]] = items[:, leads.index(name)]
        return _finite(out, "windows")


class RawPatches(_Raw):
    """Volume patches (I, J, K, C) to tokens of C x I x J x K numbers, channels first.

    Args:
        shape: (I, J, K) that patches must have.
        spacing_mm: that they must have; the loader's option ``spacing`` resamples. A network sees voxels, not mm, so
            without it every volume must have the spacing of the others.
        unit: that the facts must state, ``HU`` for CT; None takes any, the same for all.
    """

    accepts: ClassVar[tuple[ItemKind, ...]] = ("patch",)

    def __init__(
        self, *, shape: Sequence[int], spacing_mm: Sequence[float] | float | None = None, unit: str | None = None
    ) -> None:
        wrong = len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape)
        steps = (spacing_mm,) * 3 if isinstance(spacing_mm, int | float) else spacing_mm
        if wrong or (steps is not None and (len(steps) != 3 or not all(map(_positive, steps)))):
            msg = (
                "extractor patches: expected shape [I, J, K] in voxels and spacing_mm as one or three positive "
                f"numbers, found {shape!r}, {spacing_mm!r}"
            )
            raise ConfigError(msg)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.spacing = None if steps is None else [float(step) for step in steps]
        self.unit = unit
        if math.prod(self.shape) > LARGEST_ITEM:
            msg = f"extractor patches: expected at most {LARGEST_ITEM:,} voxels per patch, found {self.shape}"
            raise ConfigError(msg)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Shape, spacing and unit that are asked for."""
        return {"shape": list(self.shape), "spacing_mm": self.spacing, "unit": self.unit}

    def item(self, raw: RawSample) -> dict[str, Any]:
        """(C, I, J, K); the step is in mm, the unit that of the volume."""
        step = self.spacing or [round(float(s), 3) for s in raw.facts.get("spacing_mm", (0, 0, 0))]
        channels, unit = raw.shape[-1], raw.facts.get("unit")
        names = [str(c) for c in range(channels)]
        return {"shape": [channels, *self.shape], "channels": names, "step": step, "step_unit": "mm", "unit": unit}

    def __call__(self, items: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[np.float32]:
        """(k, C x I x J x K) of k patches (k, I, J, K, C).

        Raises:
            DataError: another shape, spacing or unit, or numbers that are not finite.
        """
        spacing, unit = facts.get("spacing_mm") or (0, 0, 0), facts.get("unit")
        apart = self.spacing and any(abs(a - b) > 0.01 * b for a, b in zip(spacing, self.spacing, strict=True))
        if items.ndim != 5 or items.shape[1:4] != self.shape or apart or (self.unit and unit != self.unit):
            msg = (
                f"extractor patches: expected patches {self.shape} at {self.spacing or 'any'} mm in "
                f"{self.unit or 'any unit'}, found {items.shape[1:4]} at {list(spacing)} mm in {unit}; set the "
                "loader's options patch and spacing, or the extractor's"
            )
            raise DataError(msg)
        first = np.moveaxis(np.asarray(items, dtype=np.float32), -1, 1)
        return _finite(first, "patches")


def _positive(value: Any) -> bool:  # noqa: ANN401  # of a card
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e7


def _finite(items: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(items).all():
        msg = f"extractor {name}: expected finite numbers, found NaN or infinity; set the loader's option for gaps"
        raise DataError(msg)
    return np.ascontiguousarray(items).reshape(len(items), -1)
