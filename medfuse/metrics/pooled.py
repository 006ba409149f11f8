"""The headline score of every kind of outcome, pooled within folds, of a sample and of its resamples.

Survival: Harrell's C. Two classes: AUROC. More classes: the mean of the AUROC of each class against the rest. Values: R
squared. Patients are compared within their fold (R squared: with the mean of their fold), so that networks of different
folds need not agree about levels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.metrics.comparison import bootstrap_values, resample_weights
from medfuse.metrics.discrimination import stratified_c
from medfuse.targets import Labels, Survival, Target

Array = NDArray[np.float64]
_AT_ONCE = 64  # resamples whose weights are numbers of eight bytes at the same time


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a model says of n patients, as far as scores read it: the field that the kind of outcome has."""

    risk: Array
    probability: Array | None = None
    value: Array | None = None

    def take(self, rows: NDArray[np.intp]) -> "Told":
        """Some of the patients."""
        return Told(
            risk=self.risk[rows],
            probability=None if self.probability is None else self.probability[rows],
            value=None if self.value is None else self.value[rows],
        )


def as_times(target: Labels, *, label: int | None = None) -> Survival:
    """Patients of a class have the event at once, the others never: Harrell's C is then the AUROC.

    Args:
        target: classes.
        label: number of the class; default any but the first, which is what a risk score is the probability of.
    """
    has = target.label > 0 if label is None else target.label == label
    return Survival(event=has, time=np.where(has, 0.0, 1.0), observed=target.observed)


def pooled_scores(
    target: Target,
    told: list[Told],
    *,
    strata: NDArray[np.generic],
    n_resamples: int,
    seed: int,
    person: NDArray[np.int64] | None = None,
) -> tuple[Array, Array]:
    """Scores of m models on the same patients and the same resamples.

    Args:
        target: of n patients.
        told: what each of the m models says of them.
        strata: (n,) folds.
        n_resamples: R.
        seed: of the resamples, which are those of :func:`medfuse.metrics.comparison.bootstrap_values`.
        person: (n,) of :func:`medfuse.metrics.comparison.people`, where folds share patients.

    Returns:
        (m,) scores of the sample and (m, R) of its resamples; NaN where undefined, as when a class has no patient.
    """
    options = {"strata": strata, "n_resamples": n_resamples, "seed": seed, "person": person}
    if isinstance(target, Survival):
        return _concordance(target, np.stack([t.risk for t in told]), options)
    if isinstance(target, Labels):
        if len(target.classes) == 2:
            return _concordance(as_times(target), np.stack([t.risk for t in told]), options)
        each = [
            _concordance(as_times(target, label=k), np.stack([_given(t.probability)[:, k] for t in told]), options)
            for k in range(len(target.classes))
        ]
        return np.mean([score for score, _ in each], axis=0), np.mean([drawn for _, drawn in each], axis=0)
    observed = target.observed.astype(np.float64)
    value = np.where(target.observed, target.value, 0.0)
    said = np.stack([np.where(target.observed, _given(t.value), 0.0) for t in told])
    weights = resample_weights(strata, n_resamples=n_resamples, seed=seed, person=person)
    drawn = [
        _explained(value, said, weights[start : start + _AT_ONCE] * observed, strata)
        for start in range(0, n_resamples, _AT_ONCE)
    ]
    return _explained(value, said, observed[None], strata)[:, 0], np.concatenate([np.zeros((len(told), 0)), *drawn], 1)


def _given(array: Array | None) -> Array:
    if array is None:
        msg = "pooled_scores: expected probabilities or values for this kind of outcome, found none"
        raise ValueError(msg)
    return array


def _concordance(survival: Survival, risk: Array, options: dict[str, object]) -> tuple[Array, Array]:
    """(m,) and (m, R) concordance within strata, of risk (m, n)."""
    strata = options["strata"]
    score = np.array([stratified_c(survival, one, strata).value for one in risk])  # type: ignore[arg-type]
    return score, bootstrap_values(survival, risk, **options)  # type: ignore[arg-type]


def _explained(value: Array, said: Array, weights: Array, strata: NDArray[np.generic]) -> Array:
    """(m, R) share of the variance within strata that predictions (m, n) explain, under weights (R, n)."""
    left = (said - value) ** 2 @ weights.T
    spread = np.zeros(len(weights))
    for label in np.unique(strata):
        rows = strata == label
        y, w = value[rows], weights[:, rows]
        total = w.sum(axis=1)
        mean = w @ y / np.where(total > 0, total, 1.0)
        spread += (w * (y - mean[:, None]) ** 2).sum(axis=1)
    return np.where(spread > 1e-12, 1.0 - left / np.where(spread > 1e-12, spread, 1.0), np.nan)
