"""Baselines of outcomes with classes or values: (ridge) regression and gradient boosting on everything side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from medfuse.baselines.base import BaselineResult, FoldData, Matrix, chosen_by_others
from medfuse.metrics.discrimination import auroc
from medfuse.prediction import Prediction
from medfuse.targets import Labels, Values
from medfuse.types import PatientId


def _predicted(fold: FoldData, probability: Matrix) -> Prediction:
    ids = fold.split.held_out
    return Prediction(
        patient_ids=ids,
        present=fold.present(ids),
        modalities=tuple(fold.data),
        risk_score=1.0 - probability[:, 0],
        probability=probability,
    )


def _probability(model: Any, x: Matrix, classes: int) -> Matrix:  # noqa: ANN401  # a scikit-learn classifier
    """(n, K) probabilities, 0 for classes that the fit never saw."""
    out = np.zeros((len(x), classes))
    out[:, model.classes_] = model.predict_proba(x)
    return out


def _macro_auroc(label: np.ndarray, probability: Matrix) -> float:
    values = [auroc(label == k, probability[:, k]) for k in range(probability.shape[1])]
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _classified(fold: FoldData, name: str, makers: dict[str, Callable[[], Any]]) -> list[BaselineResult]:
    """Choose a candidate by inner AUROC, refit it on train."""
    modalities = list(fold.data)
    scores: dict[str, list[float]] = {candidate: [] for candidate in makers}
    for fit_ids, tune_ids in fold.inner_ids:
        if not tune_ids:
            continue
        x, other = fold.design(modalities, fit_ids, tune_ids)
        y, z = cast(Labels, fold.target(fit_ids)), cast(Labels, fold.target(tune_ids))
        for candidate, make in makers.items():
            probability = _probability(make().fit(x, y.label), other, len(y.classes))
            scores[candidate].append(_macro_auroc(z.label, probability))
    mean = {candidate: float(np.nanmean(values)) for candidate, values in scores.items()}
    chosen = max(mean, key=lambda candidate: mean[candidate])
    x, held = fold.design(modalities, fold.train_ids, fold.split.held_out)
    y = cast(Labels, fold.target(fold.train_ids))
    probability = _probability(makers[chosen]().fit(x, y.label), held, len(y.classes))
    note = f"{chosen}, inner AUROC {mean[chosen]:.3f}"
    return [
        BaselineResult(name=name, prediction=_predicted(fold, probability), tuning_score=_judged(scores), notes=(note,))
    ]


def _judged(scores: Mapping[str, Sequence[float]]) -> float:
    """Mean over the inner folds of the score, in each, of the candidate that the others choose."""
    found = [scores[name][k] for k, (name, _) in enumerate(chosen_by_others(scores))]
    return float(np.nanmean(found)) if found and not np.isnan(found).all() else float("nan")


def logistic(fold: FoldData) -> list[BaselineResult]:
    """Ridge logistic regression, penalty by inner folds."""
    from sklearn.linear_model import LogisticRegression

    def maker(c: float) -> Callable[[], Any]:
        return lambda: LogisticRegression(C=c, max_iter=2000)

    return _classified(fold, "logistic", {f"C {c:g}": maker(c) for c in (1e-3, 1e-2, 1e-1, 1.0)})


def gradient_boosting(fold: FoldData) -> list[BaselineResult]:
    """Gradient boosted trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    def maker(rate: float) -> Callable[[], Any]:
        return lambda: HistGradientBoostingClassifier(
            max_iter=100, learning_rate=rate, max_depth=3, min_samples_leaf=10, random_state=fold.seed
        )

    return _classified(fold, "gradient_boosting", {f"learning rate {r:g}": maker(r) for r in (0.03, 0.1)})


def prevalence(fold: FoldData) -> list[BaselineResult]:
    """Everyone gets the class frequencies of train."""
    y = cast(Labels, fold.target(fold.train_ids))
    share = np.bincount(y.label, minlength=len(y.classes)) / len(y)
    return [
        BaselineResult(name="prevalence", prediction=_predicted(fold, np.tile(share, (len(fold.split.held_out), 1))))
    ]


def ridge(fold: FoldData) -> list[BaselineResult]:
    """Ridge regression, penalty by leave-one-out within train."""
    ids = fold.split.held_out
    value = _ridge(fold, fold.train_ids, ids)
    prediction = Prediction(
        patient_ids=ids, present=fold.present(ids), modalities=tuple(fold.data), risk_score=value, value=value
    )
    return [BaselineResult(name="ridge", prediction=prediction, tuning_score=_inner_r2(fold))]


def _ridge(fold: FoldData, fit_ids: Sequence[PatientId], others: Sequence[PatientId]) -> Matrix:
    """(n,) values of ``others``, by a fit to ``fit_ids``."""
    from sklearn.linear_model import RidgeCV

    x, other = fold.design(list(fold.data), fit_ids, others)
    y = cast(Values, fold.target(fit_ids))
    return np.asarray(RidgeCV(alphas=np.logspace(0, 4, 9)).fit(x, y.value).predict(other), dtype=np.float64)


def _inner_r2(fold: FoldData) -> float:
    """R squared of the inner out-of-fold predictions together, as networks are scored; NaN where it is undefined."""
    said, truth = [np.zeros(0)], [np.zeros(0)]
    for fit_ids, tune_ids in fold.inner_ids:
        if tune_ids and len(fit_ids) > 1:
            said.append(_ridge(fold, fit_ids, tune_ids))
            truth.append(cast(Values, fold.target(tune_ids)).value)
    y, found = np.concatenate(truth), np.concatenate(said)
    spread = float(((y - y.mean()) ** 2).sum()) if len(y) > 2 else 0.0
    return 1.0 - float(((y - found) ** 2).sum()) / spread if spread > 0 else float("nan")


LABEL_BASELINES: dict[str, Callable[[FoldData], list[BaselineResult]]] = {
    "prevalence": prevalence,
    "logistic": logistic,
    "gradient_boosting": gradient_boosting,
}
VALUE_BASELINES: dict[str, Callable[[FoldData], list[BaselineResult]]] = {"ridge": ridge}
