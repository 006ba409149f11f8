"""Outcomes of a cohort: one frozen type per kind, and one gate for each.

``event`` is True when the event happened. Times are days from index time. A patient whose outcome is unknown has
``observed`` False; what stands in the other fields there is never read.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import CohortError


def _observed(observed: NDArray[np.bool_] | None, n: int) -> NDArray[np.bool_]:
    if observed is None:
        return np.ones(n, dtype=bool)
    if observed.shape != (n,) or observed.dtype != bool:
        msg = f"observed: expected a boolean array of shape ({n},), found {observed.dtype} {observed.shape}"
        raise CohortError(msg)
    return observed


@dataclass(frozen=True, kw_only=True)
class Survival:
    """Right-censored times.

    Attributes:
        event: (n,) bool, True when the event happened at ``time``.
        time: (n,) float64 days from index time, >= 0.
        observed: (n,) bool, False where the outcome is unknown (default: all known).

    Raises:
        CohortError: on wrong shapes or dtypes, and on NaN, infinite or negative times among observed patients.
    """

    event: NDArray[np.bool_]
    time: NDArray[np.float64]
    observed: NDArray[np.bool_] = field(default=None)  # type: ignore[arg-type]  # filled in __post_init__

    def __post_init__(self) -> None:
        event, time = np.asarray(self.event), np.asarray(self.time, dtype=np.float64)
        if event.dtype != bool or event.ndim != 1 or time.shape != event.shape:
            msg = (
                f"Survival: expected boolean event (n,) and time (n,), found {event.dtype} {event.shape}, {time.shape}"
            )
            raise CohortError(msg)
        observed = _observed(self.observed, len(event))
        bad = np.flatnonzero(observed & ~(np.isfinite(time) & (time >= 0)))
        if bad.size:
            msg = (
                f"Survival: expected finite times >= 0, found {bad.size} negative, NaN or infinite (first at row "
                f"{bad[0]}); correct the source or mark the outcome as missing"
            )
            raise CohortError(msg)
        object.__setattr__(self, "event", event)
        object.__setattr__(self, "time", time)
        object.__setattr__(self, "observed", observed)

    def __len__(self) -> int:
        return len(self.event)

    def take(self, index: NDArray[np.intp]) -> "Survival":
        """Rows ``index`` in that order."""
        return Survival(event=self.event[index], time=self.time[index], observed=self.observed[index])

    @property
    def n_events(self) -> int:
        """Number of observed events."""
        return int((self.event & self.observed).sum())


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Class labels.

    Attributes:
        label: (n,) int64 index into ``classes``.
        classes: names of the classes; for a binary outcome ``classes[1]`` is the event.
        observed: (n,) bool, False where unknown.

    Raises:
        CohortError: on fewer than two classes or labels outside them.
    """

    label: NDArray[np.int64]
    classes: tuple[str, ...]
    observed: NDArray[np.bool_] = field(default=None)  # type: ignore[arg-type]  # filled in __post_init__

    def __post_init__(self) -> None:
        label = np.asarray(self.label, dtype=np.int64)
        observed = _observed(self.observed, len(label))
        if len(self.classes) < 2:
            msg = f"Labels: expected at least two classes, found {len(self.classes)}; declare the codes in the card"
            raise CohortError(msg)
        bad = np.flatnonzero(observed & ((label < 0) | (label >= len(self.classes))))
        if bad.size:
            msg = f"Labels: expected 0..{len(self.classes) - 1}, found another label first at row {bad[0]}"
            raise CohortError(msg)
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "observed", observed)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[np.intp]) -> "Labels":
        """Rows ``index`` in that order."""
        return Labels(label=self.label[index], classes=self.classes, observed=self.observed[index])


@dataclass(frozen=True, kw_only=True)
class Values:
    """A continuous outcome.

    Attributes:
        value: (n,) float64 in ``unit``.
        unit: unit of the values, as the card states it.
        observed: (n,) bool, False where unknown.

    Raises:
        CohortError: when an observed value is not finite.
    """

    value: NDArray[np.float64]
    unit: str = ""
    observed: NDArray[np.bool_] = field(default=None)  # type: ignore[arg-type]  # filled in __post_init__

    def __post_init__(self) -> None:
        value = np.asarray(self.value, dtype=np.float64)
        observed = _observed(self.observed, len(value))
        bad = np.flatnonzero(observed & ~np.isfinite(value))
        if bad.size:
            msg = f"Values: expected finite values, found NaN or infinity first at row {bad[0]}; mark it as missing"
            raise CohortError(msg)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "observed", observed)

    def __len__(self) -> int:
        return len(self.value)

    def take(self, index: NDArray[np.intp]) -> "Values":
        """Rows ``index`` in that order."""
        return Values(value=self.value[index], unit=self.unit, observed=self.observed[index])


Target = Survival | Labels | Values


def fittable(target: Target) -> None:
    """Refuse a training target that holds nothing to learn from.

    Raises:
        CohortError: no observed patient; no event; or a single class.
    """
    if not target.observed.any():
        msg = "train: expected patients with a known outcome, found none; check the outcome columns of the card"
        raise CohortError(msg)
    if isinstance(target, Survival) and target.n_events == 0:
        msg = (
            f"train: expected at least one event, found {int(target.observed.sum())} patients and all of "
            "them censored; "
            "check which code means event in the card, or use larger folds"
        )
        raise CohortError(msg)
    if isinstance(target, Labels) and len(np.unique(target.label[target.observed])) < 2:
        msg = "train: expected at least two classes, found one; check the codes in the card, or use larger folds"
        raise CohortError(msg)


def event_time_grid(target: Survival, *, intervals: int = 20) -> NDArray[np.float64]:
    """Right edges of time intervals at quantiles of the event times.

    Args:
        target: training patients; only their observed events are used.
        intervals: wanted number of intervals; ties in the quantiles give fewer.

    Returns:
        (k,) strictly increasing days, the last edge at the last event: no curve is promised beyond it.

    Raises:
        CohortError: when there is no event.
    """
    fittable(target)
    times = target.time[target.event & target.observed]
    edges = np.unique(np.quantile(times, np.linspace(0, 1, intervals + 1)[1:]))
    return np.asarray(edges[edges > 0] if (edges > 0).any() else np.array([1.0]), dtype=np.float64)
