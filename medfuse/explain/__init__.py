"""Explanations: what each modality contributed, tested against games and cohorts whose answers are known.

What runs a model is loaded on first use: what only reads stored values (the review) does not load a network library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from medfuse.explain.contributions import Contributions, Importance, contributions, importance, importance_of

if TYPE_CHECKING:
    from medfuse.explain.attribution import Attribution
    from medfuse.explain.coalitions import Coalitions, coalition_values
    from medfuse.explain.tokens import Options, attribute
    from medfuse.explain.unit_checks import Check, Faithfulness, check

_LATER = {
    "Attribution": "attribution",
    "Check": "unit_checks",
    "Coalitions": "coalitions",
    "Faithfulness": "unit_checks",
    "Options": "tokens",
    "attribute": "tokens",
    "check": "unit_checks",
    "coalition_values": "coalitions",
}

__all__ = [
    "Attribution",
    "Check",
    "Coalitions",
    "Contributions",
    "Faithfulness",
    "Importance",
    "Options",
    "attribute",
    "check",
    "coalition_values",
    "contributions",
    "importance",
    "importance_of",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a module attribute may be anything
    if name not in _LATER:
        msg = f"module 'medfuse.explain' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"medfuse.explain.{_LATER[name]}"), name)
