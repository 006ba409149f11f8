"""Explanations: what each modality contributed, tested against games and cohorts whose answers are known."""

from medfuse.explain.attribution import Attribution
from medfuse.explain.coalitions import Coalitions, coalition_values
from medfuse.explain.contributions import Contributions, Importance, contributions, importance, importance_of
from medfuse.explain.tokens import Options, attribute
from medfuse.explain.unit_checks import Check, Faithfulness, check

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
