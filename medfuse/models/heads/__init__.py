"""Heads: state to prediction, and the loss that trains it. To add one: a file here and a row in ``HEADS``."""

from medfuse.models.heads.base import Head
from medfuse.models.heads.classification import ClassificationHead
from medfuse.models.heads.cox import CoxHead
from medfuse.models.heads.discrete_hazard import DiscreteHazardHead
from medfuse.models.heads.regression import RegressionHead
from medfuse.types import OutcomeKind

HEADS: dict[str, type[Head]] = {
    "discrete_hazard": DiscreteHazardHead,
    "cox": CoxHead,
    "classification": ClassificationHead,
    "regression": RegressionHead,
}


def default_head(kind: OutcomeKind) -> str:
    """Head of an outcome whose recipe names none."""
    return {"survival": "discrete_hazard", "continuous": "regression"}.get(kind, "classification")


__all__ = [
    "HEADS",
    "ClassificationHead",
    "CoxHead",
    "DiscreteHazardHead",
    "Head",
    "RegressionHead",
    "default_head",
]
