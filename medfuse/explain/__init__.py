"""Explanations: what each modality contributed, tested against games and cohorts whose answers are known.

The names below are resolved on first use: what only reads stored values (the review) does not load a network library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medfuse.explain.coalitions import Coalitions, coalition_values
    from medfuse.explain.contributions import Contributions, Importance, contributions, importance, importance_of

__all__ = [
    "Coalitions",
    "Contributions",
    "Importance",
    "coalition_values",
    "contributions",
    "importance",
    "importance_of",
]

_COALITIONS = {"Coalitions", "coalition_values"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a module attribute may be anything
    if name not in __all__:
        msg = f"module 'medfuse.explain' has no attribute {name!r}; public names: {', '.join(__all__)}"
        raise AttributeError(msg)
    part = "coalitions" if name in _COALITIONS else "contributions"
    value = getattr(importlib.import_module(f"medfuse.explain.{part}"), name)
    globals()[name] = value
    return value
