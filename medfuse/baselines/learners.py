"""Survival learners for one design matrix; each gives the risk scores of several candidates at once.

A candidate is a learner with its penalty. Which one is used is chosen on inner folds.
"""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from medfuse.cox import fit_cox
from medfuse.targets import Survival

Matrix = NDArray[np.float64]
# (train x, train outcome, other x, seed) -> candidate -> risk scores of the others
Learner = Callable[[Matrix, Survival, Matrix, int], dict[str, Matrix]]

NARROW = 60  # columns up to which a ridge Cox needs no principal components
_NARROW_PENALTIES = (0.1, 1.0, 10.0, 100.0)
_WIDE_PENALTIES = (3.0, 10.0, 30.0, 100.0)
_COMPONENTS = (10, 20, 40)


def principal_components(x: Matrix, others: Matrix, *, count: int) -> tuple[Matrix, Matrix]:
    """Standardised scores on the leading principal components of ``x``."""
    mean = x.mean(axis=0)
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    rank = int((s > 1e-8 * s[0]).sum()) if len(s) else 0
    k = max(1, min(count, rank))
    scale = np.sqrt(len(x))
    return u[:, :k] * scale, (others - mean) @ vt[:k].T / s[:k] * scale


def ridge_cox(x: Matrix, survival: Survival, others: Matrix, seed: int) -> dict[str, Matrix]:
    """Ridge Cox; wide tables through their principal components."""
    found: dict[str, Matrix] = {}
    if x.shape[1] <= NARROW:
        for penalty in _NARROW_PENALTIES:
            found[f"ridge_cox penalty {penalty:g}"] = fit_cox(x, survival, penalty=penalty).log_hazard(others)
        return found
    scores, other_scores = principal_components(x, others, count=max(_COMPONENTS))
    for count in _COMPONENTS:
        if count > scores.shape[1] and count != _COMPONENTS[0]:
            continue
        for penalty in _WIDE_PENALTIES:
            fit = fit_cox(scores[:, :count], survival, penalty=penalty)
            found[f"ridge_cox {count} components penalty {penalty:g}"] = fit.log_hazard(other_scores[:, :count])
    return found


def _structured(survival: Survival) -> NDArray[np.void]:
    # scikit-survival refuses times of 0: half a day is before every other day.
    y = np.empty(len(survival), dtype=[("event", bool), ("time", float)])
    y["event"], y["time"] = survival.event, np.maximum(survival.time, 0.5)
    return y


def coxnet(x: Matrix, survival: Survival, others: Matrix, seed: int) -> dict[str, Matrix]:
    """Elastic net Cox at three points of its penalty path (scikit-survival)."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    fit = CoxnetSurvivalAnalysis(l1_ratio=0.5, n_alphas=30, alpha_min_ratio=0.05, max_iter=20000)
    try:
        fit.fit(x, _structured(survival))
    except (ArithmeticError, ValueError):  # scikit-survival: numerical trouble on a degenerate fold
        return {}
    found = {}
    for share in (0.5, 0.25, 0.12):
        alpha = max(float(fit.alphas_[0]) * share, float(fit.alphas_[-1]))
        risk = fit.predict(others, alpha=alpha)
        if np.isfinite(risk).all() and np.ptp(fit.predict(x, alpha=alpha)) > 0:
            found[f"coxnet penalty {share:g} of the largest"] = np.asarray(risk, dtype=np.float64)
    return found


def random_survival_forest(x: Matrix, survival: Survival, others: Matrix, seed: int) -> dict[str, Matrix]:
    """Random survival forest (scikit-survival); the score is the log of the mean cumulative hazard over train times.

    The library's mortality is a sum over these times: it grows with the number of patients, and what a forest of all of
    train says would not be comparable with what forests of inner folds say.
    """
    from sksurv.ensemble import RandomSurvivalForest

    forest = RandomSurvivalForest(
        n_estimators=100, min_samples_leaf=10, max_features="sqrt", n_jobs=1, random_state=seed, low_memory=True
    )
    forest.fit(x, _structured(survival))
    mean = forest.predict(others) / len(forest.unique_times_)
    return {"random_survival_forest": np.log(np.maximum(mean, 1e-9))}


def boosting(x: Matrix, survival: Survival, others: Matrix, seed: int) -> dict[str, Matrix]:
    """Gradient boosted shallow trees on the Cox loss (scikit-survival)."""
    from sksurv.ensemble import GradientBoostingSurvivalAnalysis

    model = GradientBoostingSurvivalAnalysis(
        n_estimators=60, learning_rate=0.1, max_depth=2, subsample=0.5, max_features="sqrt", random_state=seed
    )
    model.fit(x, _structured(survival))
    return {"boosting": np.asarray(model.predict(others), dtype=np.float64)}


def strong_learners() -> dict[str, Learner]:
    """The learners of the weighted late average; without scikit-survival only the ridge Cox is left."""
    if find_spec("sksurv") is None:
        return {"ridge_cox": ridge_cox}
    return {
        "ridge_cox": ridge_cox,
        "coxnet": coxnet,
        "random_survival_forest": random_survival_forest,
        "boosting": boosting,
    }
