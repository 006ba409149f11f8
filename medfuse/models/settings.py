"""What a model is built from: plain dataclasses, and how a row of a component table becomes a module."""

import inspect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medfuse.errors import ConfigError, ModelError, nearest
from medfuse.types import OutcomeKind

T = TypeVar("T")
Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The three slots of a model as names and options.

    Attributes:
        width: D, numbers per token between the slots.
        encoders: per modality ``{"name": ..., **options}``; others get the encoder of their layout.
        defaults: per default encoder (``bag``, ``table``, ...) what takes its place in every modality that would have
            it and of which ``encoders`` says nothing.
        fusion: ``{"name": ..., **options}``.
    """

    width: int = 64
    encoders: Mapping[str, Options] = field(default_factory=dict)
    defaults: Mapping[str, Options] = field(default_factory=dict)
    fusion: Options = field(default_factory=lambda: {"name": "transformer"})

    def __post_init__(self) -> None:
        if self.width < 1:
            msg = f"model.width: expected at least 1, found {self.width}"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """A head and what it learned from the train targets before any gradient step.

    Attributes:
        kind: kind of the outcome.
        name: row of ``HEADS``.
        options: keyword arguments of the head.
        time_grid: (K,) right edges of the intervals in days (``discrete_hazard``).
        prior: (K,) logits of the population hazards, or (C,) log frequencies of the classes; () = zeros.
        n_classes: C (``classification``).
        mean: mean of the train values, in their unit (``regression``).
        scale: standard deviation of the train values (``regression``).
    """

    kind: OutcomeKind
    name: str
    options: Options = field(default_factory=dict)
    time_grid: tuple[float, ...] = ()
    prior: tuple[float, ...] = ()
    n_classes: int = 0
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        edges = (0.0, *self.time_grid)
        if any(b <= a for a, b in itertools.pairwise(edges)):
            msg = "HeadSettings: expected a time_grid of increasing right edges above 0 days"
            raise ModelError(msg)
        if not self.scale > 0:
            msg = f"HeadSettings: expected scale > 0, found {self.scale}; is the outcome constant in train?"
            raise ModelError(msg)


def construct(table: Mapping[str, type[T]], settings: Options, *, where: str, given: Mapping[str, Any]) -> T:
    """Build the row ``settings["name"]`` of ``table``; its other keys are options of the constructor.

    Args:
        table: component table.
        settings: ``{"name": ..., **options}``.
        where: place in the recipe, for the message.
        given: arguments that medfuse supplies and a recipe may not.

    Raises:
        ConfigError: no or an unknown name, an unknown option, or one the component refuses.
    """
    name = str(settings.get("name"))
    if name not in table:
        msg = f'{where}.name: expected a known name, found "{name}"; {nearest(name, table)}'
        raise ConfigError(msg)
    options = {key: value for key, value in settings.items() if key != "name"}
    known = set(inspect.signature(table[name]).parameters) - set(given)
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "it takes no options"
            msg = f'{where}: "{name}" has no option "{key}"; {hint}'
            raise ConfigError(msg)
    try:
        return table[name](**given, **options)
    except TypeError as error:
        msg = f'{where}: "{name}" cannot be built: {error}'
        raise ConfigError(msg) from error


def check_rate(where: str, value: float) -> float:
    """Return a dropout rate, refusing one outside [0, 1)."""
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        msg = f"{where}: expected a rate in [0, 1), found {value}"
        raise ConfigError(msg)
    return float(value)


def check_weight(where: str, value: float) -> float:
    """Return the weight of a term of the loss, refusing one that is negative or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        msg = f"{where}: expected a weight >= 0, found {value}"
        raise ConfigError(msg)
    return float(value)


def check_count(where: str, value: int, *, least: int = 1) -> int:
    """Return a whole number, refusing one below ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        msg = f"{where}: expected a whole number >= {least}, found {value}"
        raise ConfigError(msg)
    return value


def check_choice(where: str, value: str, known: tuple[str, ...]) -> str:
    """Return a word, refusing one that is not in ``known``."""
    if value not in known:
        msg = f'{where}: expected another word than "{value}"; {nearest(str(value), known)}'
        raise ConfigError(msg)
    return value
