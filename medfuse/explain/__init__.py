"""Explanations: what each modality contributed, tested against games and cohorts whose answers are known."""

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
