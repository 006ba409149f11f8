"""Baselines: the bar to pass, on the same folds, fitted on train and chosen on inner folds only."""

from medfuse.baselines.base import BaselineResult, FoldData
from medfuse.baselines.labels import LABEL_BASELINES, VALUE_BASELINES
from medfuse.baselines.survival import SURVIVAL_BASELINES
from medfuse.errors import ConfigError, nearest
from medfuse.types import OutcomeKind

# kind of outcome -> name -> function of the fold; a function may give several results (one per modality)
BASELINES = {
    "survival": SURVIVAL_BASELINES,
    "binary": LABEL_BASELINES,
    "multiclass": LABEL_BASELINES,
    "continuous": VALUE_BASELINES,
}

__all__ = ["BASELINES", "BaselineResult", "FoldData", "fit_baselines"]


def fit_baselines(fold: FoldData, *, kind: OutcomeKind, names: list[str] | None = None) -> list[BaselineResult]:
    """Fit the named baselines of an outcome's kind on one fold.

    Args:
        fold: patients, modalities and inner folds.
        kind: of the outcome.
        names: rows of the table of that kind; default: all.

    Raises:
        ConfigError: an unknown name.
    """
    table = BASELINES[kind]
    results: list[BaselineResult] = []
    for name in list(table) if names is None else names:
        if name not in table:
            msg = f"baselines: no {kind} baseline {name!r}; {nearest(name, table)}"
            raise ConfigError(msg)
        results += table[name](fold)
    return results
