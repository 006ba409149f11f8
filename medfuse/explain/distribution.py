"""Is a patient like those the model was trained on? A score per modality, and "prediction withheld" as a state.

The score reads the inputs as preprocessing leaves them: how far along the directions in which training patients vary,
how far off them, and, where a patient has many tokens, how far these are off the directions in which tokens vary;
whichever is the most unusual.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError
from medfuse.explain.familiarity import FEWEST, reasons, states
from medfuse.preprocessing import Preprocessing, fit_preprocessing, transform, transform_many
from medfuse.sample import ModalityData
from medfuse.training.fold import presence
from medfuse.types import PatientId

Array = NDArray[np.float64]
_FOLDS = 5
_EXPLAINED = 0.9
_MOST = 50  # directions
_TOKENS = 4000  # that directions of tokens are fitted on
_TAIL = 0.1  # part of the training scores that the tail is fitted on
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How n patients stand against the training patients of their model.

    Attributes:
        modalities: the M names.
        patient_ids: n ids.
        present: (n, M).
        percentile: (n, M) of the score among training patients, beyond the largest by a fitted tail; NaN where absent.
        pattern_count: (n,) training patients with exactly the same modalities.
        unscored: M texts why a modality has no score; empty where it has.
    """

    modalities: tuple[str, ...]
    patient_ids: tuple[PatientId, ...]
    present: NDArray[np.bool_]
    percentile: Array
    pattern_count: NDArray[np.int64]
    unscored: tuple[str, ...]

    def reasons(self, row: int) -> list[str]:
        """What is unusual about a patient, as sentences without any value of the patient."""
        count, present = int(self.pattern_count[row]), self.present[row]
        return reasons(self.modalities, self.percentile[row], pattern_count=count, present=present)

    @property
    def state(self) -> tuple[str, ...]:
        """N words of :func:`medfuse.explain.familiarity.states`."""
        return states(self.percentile, pattern_count=self.pattern_count, present=self.present)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Directions in which rows (n, p) vary.

    Attributes:
        mean, scale: (p,).
        axes: (q, p) directions, with ``variance`` (q,) along them.
        residual: mean squared distance from the space of the axes.
    """

    mean: Array
    scale: Array
    axes: Array
    variance: Array
    residual: float

    def distances(self, x: Array) -> tuple[Array, Array]:
        """(n,) squared distances along the axes and off them, each over its mean among the rows it was fitted on."""
        z = (x - self.mean) / self.scale
        along = z @ self.axes.T
        off = np.maximum((z**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        return (along**2 / self.variance).mean(axis=1), off / self.residual


@dataclass(frozen=True, kw_only=True)
class ModalityScore:
    """What was fitted on training patients for one modality.

    Attributes:
        preprocessing: of the modality.
        patients: directions of the patients' features, one fit per fifth of the training patients left out.
        tokens: of single tokens in the same way; none of layout ``columns``.
        centre, spread: (2,) or (3,) of the logarithms of the distances among training patients out of fold.
        train: (n,) sorted cross-fitted scores of the training patients.
    """

    preprocessing: Preprocessing
    patients: tuple[Space, ...]
    tokens: tuple[Space, ...]
    centre: Array
    spread: Array
    train: Array

    def score(self, data: ModalityData, ids: Sequence[PatientId]) -> Array:
        """(n,) scores of patients who have the modality; larger is more unusual.

        Distances are the mean over the fits, none of which saw the patients, as none saw the fifth it left out.
        """
        x = features(self.preprocessing, data, ids)
        own = _token_part(self.preprocessing, data, ids, self.tokens)
        each = [_logs(x, space, own[k] if self.tokens else None) for k, space in enumerate(self.patients)]
        return np.asarray(((np.mean(each, axis=0) - self.centre) / self.spread).max(axis=1))

    def percentile(self, score: Array) -> Array:
        """(n,) percentiles among the training patients; the upper tenth is read from an exponential tail."""
        n = len(self.train)
        start = self.train[-max(2, int(np.ceil(_TAIL * n)))]
        beyond = self.train[self.train >= start]
        width = max(float((beyond - start).mean()), _TINY)
        inside = np.searchsorted(self.train, score, side="left") / n
        tail = 1 - len(beyond) / n * np.exp(-np.maximum(score - start, 0.0) / width)
        return np.asarray(100 * np.where(score > start, tail, np.minimum(inside, 1 - len(beyond) / n)))


def features(p: Preprocessing, data: ModalityData, ids: Sequence[PatientId]) -> Array:
    """(n, f) preprocessed inputs of patients who have the modality, one row each.

    Columns: values, 0 where missing, and the share of missing ones. Vectors: per token identity their mean; of a bag
    the mean and standard deviation over its tokens, and the logarithm of their number.
    """
    if p.layout == "columns":
        tokens, _ = transform_many(p, data, ids)
        missing = 1 - tokens[:, :, 1].mean(axis=1, keepdims=True, dtype=np.float64)
        return np.concatenate([tokens[:, :, 0].astype(np.float64), missing], axis=1)
    rows = []
    for patient in ids:
        sample = transform(p, data.samples[patient])
        tokens = sample.tokens.astype(np.float64)
        if p.identities:
            which = sample.position[:, 0].astype(np.int64)
            parts = [
                tokens[which == k].mean(axis=0) if (which == k).any() else np.zeros(tokens.shape[1])
                for k in range(len(p.identities))
            ]
        else:
            parts = [tokens.mean(axis=0), tokens.std(axis=0)]
        rows.append(np.concatenate([*parts, [np.log(len(tokens))]]))
    return np.stack(rows)


def fit_score(data: ModalityData, train_ids: Sequence[PatientId], *, seed: int = 0) -> ModalityScore:
    """Fit a modality's score; training patients are scored by fits on the four other fifths of them.

    Args:
        data: the modality.
        train_ids: training patients; those without it say nothing.
        seed: of the fifths and of the tokens that directions are fitted on.

    Raises:
        DataError: fewer than 20 training patients have the modality, or none of its columns varies.

    References:
        Jackson and Mudholkar (1979), Control procedures for residuals associated with principal component analysis:
        T2 (eq. 1.4) and Q (eq. 1.5). NOTE[DIFF]: each on the logarithmic scale, standardised on cross-fitted training
        patients; Q also of single tokens, as its mean over a patient; the largest is the score.
    """
    ids = [i for i in train_ids if i in data.samples]
    if len(ids) < FEWEST:
        msg = f"modality {data.name}: expected {FEWEST} training patients to compare with, found {len(ids)}"
        raise DataError(msg)
    p = fit_preprocessing(data, ids)
    x = features(p, data, ids)
    rng = np.random.default_rng(seed)
    part = rng.permutation(len(x)) % _FOLDS
    drawn = None if p.layout == "columns" else [_some_tokens(p, data, i, rng, len(ids)) for i in ids]

    patients, tokens = list[Space](), list[Space]()
    logs = np.zeros((len(x), 2 if drawn is None else 3))
    for k in range(_FOLDS):
        rest, own = np.flatnonzero(part != k), np.flatnonzero(part == k)
        patients.append(_space(x[rest]))
        if drawn is not None:
            tokens.append(_space(np.concatenate([drawn[i] for i in rest])))
        off = _token_part(p, data, [ids[i] for i in own], tokens[-1:])
        logs[own] = _logs(x[own], patients[-1], off[0] if tokens else None)
    centre = np.median(logs, axis=0)
    spread = np.maximum((np.quantile(logs, 0.84, axis=0) - np.quantile(logs, 0.16, axis=0)) / 2, 1e-4)
    train = np.sort(((logs - centre) / spread).max(axis=1))
    return ModalityScore(
        preprocessing=p,
        patients=tuple(patients),
        tokens=tuple(tokens),
        centre=centre,
        spread=spread,
        train=train,
    )


def _some_tokens(
    p: Preprocessing, data: ModalityData, patient: PatientId, rng: np.random.Generator, patients: int
) -> Array:
    """Some of a patient's tokens, as many of each patient."""
    tokens = transform(p, data.samples[patient]).tokens
    count = min(len(tokens), max(4, _TOKENS // patients))
    return np.asarray(tokens[np.sort(rng.choice(len(tokens), count, replace=False))], dtype=np.float64)


def _token_part(p: Preprocessing, data: ModalityData, ids: Sequence[PatientId], spaces: Sequence[Space]) -> Array:
    """(k, n) mean over a patient's tokens of their distance off the directions in which tokens vary, by k fits."""
    found = np.zeros((len(spaces), len(ids)))
    for i, patient in enumerate(ids if spaces else ()):
        tokens = transform(p, data.samples[patient]).tokens.astype(np.float64)
        found[:, i] = [space.distances(tokens)[1].mean() for space in spaces]
    return found


def _space(x: Array) -> Space:
    """Directions of rows (n, p): enough for 90 % of the variance, at most a fifth of the rows and 50."""
    n = len(x)
    mean = x.mean(axis=0)
    spread = x.std(axis=0)
    scale = np.maximum(spread, 0.05 * max(float(np.median(spread)), _TINY))  # what never varied must not own the score
    z = (x - mean) / scale
    wide = z.shape[1] > n
    value, vector = np.linalg.eigh(z @ z.T if wide else z.T @ z)  # the smaller of the two
    keep = np.flatnonzero(value > 1e-10 * max(float(value[-1]), _TINY))[::-1]
    variance, vector = value[keep] / max(n - 1, 1), vector[:, keep]
    total = np.cumsum(variance) / max(float(variance.sum()), _TINY)
    q = min(int(np.searchsorted(total, _EXPLAINED)) + 1, _MOST, max(1, n // 5), len(variance))
    axes = (vector[:, :q] / np.sqrt(value[keep[:q]])).T @ z if wide else vector[:, :q].T
    rest = max(float(variance[q:].sum()), 0.01 * float(variance.sum()), _TINY)
    return Space(mean=mean, scale=scale, axes=axes, variance=np.maximum(variance[:q], _TINY), residual=rest)


def _logs(x: Array, space: Space, tokens: Array | None) -> Array:
    """(n, 2 or 3) logarithms of the distances."""
    parts = [*space.distances(x), *([] if tokens is None else [tokens])]
    return np.log(np.stack(parts, axis=1) + 1e-6)


def distribution(
    data: Mapping[str, ModalityData],
    train_ids: Sequence[PatientId],
    ids: Sequence[PatientId],
    *,
    modalities: Sequence[str] = (),
) -> Distribution:
    """Compare patients with the training patients of their model.

    Args:
        data: modalities.
        train_ids: training patients of the outer fold.
        ids: n patients.
        modalities: names, in the order of ``present``; default: those of ``data``.
    """
    names, ids = tuple(modalities) or tuple(data), tuple(ids)
    present = presence(data, names, ids)
    percentile, unscored = np.full((len(ids), len(names)), np.nan), []
    for i, name in enumerate(names):
        own = [patient for patient, has in zip(ids, present[:, i], strict=True) if has]
        try:
            if own:
                fitted = fit_score(data[name], train_ids)
                percentile[present[:, i], i] = fitted.percentile(fitted.score(data[name], own))
            unscored.append("")
        except DataError as error:
            unscored.append(str(error))
    bits = 1 << np.arange(len(names))
    train = presence(data, names, tuple(train_ids)) @ bits
    count = np.bincount(train, minlength=1 << len(names))
    return Distribution(
        modalities=names,
        patient_ids=ids,
        present=present,
        percentile=percentile,
        pattern_count=count[present @ bits].astype(np.int64),
        unscored=tuple(unscored),
    )
