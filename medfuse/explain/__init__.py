"""Explanations: what each modality contributed, tested against games and cohorts whose answers are known.

What runs a model is loaded on first use: what only reads stored values (the review) does not load a network library.
"""

from typing import TYPE_CHECKING, Any

from medfuse.explain.contributions import Contributions, Importance, contributions, importance, importance_of

if TYPE_CHECKING:
    from medfuse.explain.coalitions import Coalitions, coalition_values

__all__ = [
    "Coalitions",
    "Contributions",
    "Importance",
    "coalition_values",
    "contributions",
    "importance",
    "importance_of",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a module attribute may be anything
    if name not in {"Coalitions", "coalition_values"}:
        msg = f"module 'medfuse.explain' has no attribute {name!r}; public names: {', '.join(__all__)}"
        raise AttributeError(msg)
    from medfuse.explain import coalitions

    return getattr(coalitions, name)
