"""Scaling, one-hot coding and dropping of constants: fitted on train patients only, used by networks and baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import DataError, ModelError
from medfuse.sample import ModalityData, ModalitySample
from medfuse.types import Layout, PatientId

# Standardised values beyond this carry no more information than "extreme", and one outlier must not own a network.
CLIP = 8.0
RAW_CLIP = 64.0  # of raw windows and patches, where an R wave is ten standard deviations high and must not be cut
_TINY = 1e-8
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What was fitted for one modality.

    Attributes:
        modality: its name.
        layout: ``columns`` or ``vectors``.
        feature_names: p names; one-hot features are called ``column=level``.
        source: (p,) index of the stored column or vector feature that a feature reads.
        level: (p,) level index that a one-hot feature marks, -1 for the others.
        reference: (p,) level against which the one feature of a two-level column stands, -1 for the others.
        column_of_feature: (p,) index of the kept column that a feature belongs to.
        n_columns: number of kept columns.
        mean, scale: (p,) of layout ``columns``; (I, p) of layout ``vectors``, one row per token identity (I >= 1).
        missing: (p,) True where some train patient misses the feature.
        identities: names of the token identities.
        dropped: columns that were dropped, with the reason.
        item: shape of one raw item, channels first, or (): then mean and scale are those of its channel.
    """

    modality: str
    layout: Layout
    feature_names: tuple[str, ...]
    source: NDArray[np.int64]
    level: NDArray[np.int64]
    reference: NDArray[np.int64]
    column_of_feature: NDArray[np.int64]
    n_columns: int
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    missing: NDArray[np.bool_]
    identities: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    item: tuple[int, ...] = ()


def stack(data: ModalityData, ids: Sequence[PatientId]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stored tokens of layout ``columns`` as one array.

    Returns:
        (n, C, 2) float32, zeros where the patient lacks the modality, and (n,) bool who has it.
    """
    out = np.zeros((len(ids), len(data.columns), 2), dtype=np.float32)
    present = np.zeros(len(ids), dtype=bool)
    for i, patient in enumerate(ids):
        sample = data.samples.get(patient)
        if sample is not None:
            out[i] = sample.tokens
            present[i] = True
    return out, present


def fit_preprocessing(data: ModalityData, ids: Sequence[PatientId]) -> Preprocessing:
    """Fit on the patients ``ids``, and on nobody else.

    Args:
        data: the modality; patients outside ``ids`` are never read.
        ids: train patients; those without the modality say nothing.

    Raises:
        DataError: nobody of ``ids`` has the modality, or every column is constant or empty.
    """
    if not any(patient in data.samples for patient in ids):
        msg = (
            f"modality {data.name}: expected train patients who have it, found none of {len(ids)}; "
            "leave it out of the recipe's modalities"
        )
        raise DataError(msg)
    fit = _fit_columns if data.layout == "columns" else _fit_items if data.item else _fit_vectors
    fitted = fit(data, ids)
    if not fitted.feature_names:
        msg = (
            f"modality {data.name}: expected a column that varies in train, found {len(fitted.dropped)} "
            f"constant or empty, in {sum(i in data.samples for i in ids)} patients who have it; "
            "leave it out of the recipe's modalities"
        )
        raise DataError(msg)
    return fitted


def _fit_columns(data: ModalityData, ids: Sequence[PatientId]) -> Preprocessing:
    tokens, present = stack(data, ids)
    value, observed = tokens[present, :, 0].astype(np.float64), tokens[present, :, 1] > 0
    count = observed.sum(axis=0)
    safe = np.maximum(count, 1)
    mean = np.where(observed, value, 0.0).sum(axis=0) / safe
    spread = np.sqrt((np.where(observed, value - mean, 0.0) ** 2).sum(axis=0) / safe)
    names: list[str] = []
    rows: list[tuple[int, int, int, float, float, int]] = []
    dropped: list[tuple[str, str]] = []
    kept = 0
    for c, column in enumerate(data.columns):
        if count[c] == 0:
            dropped.append((column.name, "never observed in train"))
        elif column.kind == "categorical":
            seen = np.unique(value[observed[:, c], c].astype(np.int64))
            if len(seen) < 2:
                dropped.append((column.name, "one level in train"))
                continue
            # Two levels are one contrast: the second against the first.
            reference = int(seen[0]) if len(seen) == 2 else -1
            for level in seen[1:] if len(seen) == 2 else seen:
                share = float((value[observed[:, c], c] == level).mean())
                names.append(f"{column.name}={column.levels[level]}")
                rows.append((c, int(level), kept, share, float(np.sqrt(share * (1 - share))), reference))
            kept += 1
        elif spread[c] <= _TINY * max(1.0, abs(mean[c])):
            dropped.append((column.name, "constant in train"))
        else:
            names.append(column.name)
            rows.append((c, -1, kept, float(mean[c]), float(spread[c]), -1))
            kept += 1
    source = np.array([r[0] for r in rows], dtype=np.int64)
    return Preprocessing(
        modality=data.name,
        layout="columns",
        feature_names=tuple(names),
        source=source,
        level=np.array([r[1] for r in rows], dtype=np.int64),
        reference=np.array([r[5] for r in rows], dtype=np.int64),
        column_of_feature=np.array([r[2] for r in rows], dtype=np.int64),
        n_columns=kept,
        mean=np.array([r[3] for r in rows], dtype=np.float64),
        scale=np.array([r[4] for r in rows], dtype=np.float64),
        missing=(count < len(observed))[source] if len(source) else np.zeros(0, dtype=bool),
        identities=(),
        dropped=tuple(dropped),
    )


def _identity(data_identities: Sequence[str], sample: ModalitySample) -> NDArray[np.int64]:
    if not data_identities:
        return np.zeros(len(sample.tokens), dtype=np.int64)
    return sample.position[:, 0].astype(np.int64)


def _bag_moments(data: ModalityData, sample: ModalitySample) -> tuple[Array, Array, Array]:
    """Number of tokens (I,), their mean and squared deviations from it (I, F), per identity; kept with the bag."""
    kept: tuple[Array, Array, Array] | None = getattr(sample, "_moments", None)
    if kept is not None and len(kept[0]) == max(1, len(data.identities)):
        return kept
    which, groups = _identity(data.identities, sample), max(1, len(data.identities))
    count = np.bincount(which, minlength=groups).astype(np.float64)
    mean, around = np.zeros((groups, data.features)), np.zeros((groups, data.features))
    for group in np.flatnonzero(count):
        tokens = np.array(sample.tokens if groups == 1 else sample.tokens[which == group], dtype=np.float64)
        mean[group] = tokens.mean(axis=0)
        tokens -= mean[group]
        around[group] = np.einsum("tf,tf->f", tokens, tokens)
    object.__setattr__(sample, "_moments", (count, mean, around))
    return count, mean, around


def _fit_items(data: ModalityData, ids: Sequence[PatientId]) -> Preprocessing:
    """Raw items: one mean and one scale per channel, over all places of all items of train; no feature is dropped."""
    groups, channels = max(1, len(data.identities)), data.item[0]
    samples = [data.samples[i] for i in ids if i in data.samples]
    count = sum(sample.tokens.shape[0] for sample in samples) * (data.features // channels)
    mean = np.zeros(channels)
    square = np.zeros(channels)
    for sample in samples:
        mean += sample.tokens.reshape(len(sample.tokens), channels, -1).sum(axis=(0, 2), dtype=np.float64) / count
    for sample in samples:
        apart = sample.tokens.reshape(len(sample.tokens), channels, -1) - mean[:, None]
        square += (apart**2).sum(axis=(0, 2)) / count
    spread = np.sqrt(square)
    varies = bool((spread > _TINY).any())
    known = np.isin(np.arange(groups), np.concatenate([_identity(data.identities, s) for s in samples]))
    rows = np.where(known[:, None], np.where(spread > _TINY, spread, 1.0), np.inf)
    size = data.features if varies else 0
    every = all(len(np.unique(_identity(data.identities, s))) == groups for s in samples)
    places = data.features // channels
    return Preprocessing(
        modality=data.name,
        layout="vectors",
        feature_names=tuple(f"{data.name}[{j}]" for j in range(size)),
        source=np.arange(size, dtype=np.int64),
        level=np.full(size, -1, dtype=np.int64),
        reference=np.full(size, -1, dtype=np.int64),
        column_of_feature=np.arange(size, dtype=np.int64),
        n_columns=size,
        mean=np.tile(np.repeat(mean, places), (groups, 1))[:, :size],
        scale=np.repeat(rows, places, axis=1)[:, :size],
        missing=np.full(size, not every),
        identities=data.identities,
        dropped=() if varies else ((data.name, "constant in train"),),
        item=data.item,
    )


def _fit_vectors(data: ModalityData, ids: Sequence[PatientId]) -> Preprocessing:
    groups = max(1, len(data.identities))
    mean = np.zeros((groups, data.features))
    square = np.zeros((groups, data.features))
    count = np.zeros(groups)
    every = True
    for patient in ids:
        if patient not in data.samples:
            continue
        # Chan, Golub, LeVeque (1983): moments of two sets joined without cancellation. A bag is read once, however many
        # folds it takes part in.
        n, centre, around = _bag_moments(data, data.samples[patient])
        every &= bool((n > 0).all())
        both = np.maximum(count + n, 1)[:, None]
        shift = centre - mean
        square += around + shift**2 * (count * n)[:, None] / both
        mean += shift * n[:, None] / both
        count += n
    spread = np.sqrt(square / np.maximum(count, 1)[:, None])
    varies = (spread > _TINY).any(axis=0)
    source = np.flatnonzero(varies).astype(np.int64)
    # A token identity that no train patient has tells nothing: it is shown as 0, whatever its numbers.
    scale = np.where(count[:, None] > 0, np.where(spread > _TINY, spread, 1.0), np.inf)[:, source]
    return Preprocessing(
        modality=data.name,
        layout="vectors",
        feature_names=tuple(f"{data.name}[{j}]" for j in source),
        source=source,
        level=np.full(len(source), -1, dtype=np.int64),
        reference=np.full(len(source), -1, dtype=np.int64),
        column_of_feature=np.arange(len(source), dtype=np.int64),
        n_columns=len(source),
        mean=mean[:, source],
        scale=scale,
        missing=np.full(len(source), not every),
        identities=data.identities,
        dropped=tuple((f"{data.name}[{j}]", "constant in train") for j in np.flatnonzero(~varies)),
    )


def _transform_columns(p: Preprocessing, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, C, 2) stored -> (n, p, 2) standardised value (0 where missing) and observed flag."""
    value, observed = tokens[:, p.source, 0].astype(np.float64), tokens[:, p.source, 1] > 0
    coded = p.level >= 0
    marked = np.where(coded, value == p.level, value)
    if coded.any():
        # A level that train never saw tells nothing: it is the missing state.
        observed = observed & (~coded | _known_level(p, value))
    z = np.clip((marked - p.mean) / p.scale, -CLIP, CLIP)
    return np.stack([np.where(observed, z, 0.0), observed], axis=-1).astype(np.float32)


def _known_level(p: Preprocessing, value: NDArray[np.float64]) -> NDArray[np.bool_]:
    known = np.zeros(value.shape, dtype=bool)
    for c in np.unique(p.column_of_feature[p.level >= 0]):
        features = np.flatnonzero(p.column_of_feature == c)
        levels = [*p.level[features].tolist(), *p.reference[features].tolist()]
        known[:, features] = np.isin(value[:, features[:1]], levels)
    return known


def transform(p: Preprocessing, sample: ModalitySample) -> ModalitySample:
    """One patient's tokens as a model reads them.

    Returns:
        layout ``columns``: tokens (p, 2); layout ``vectors``: (T, p) standardised.
    """
    if p.layout == "columns":
        tokens = _transform_columns(p, sample.tokens[None])[0]
        position = np.arange(len(tokens), dtype=np.float32)[:, None]
        return ModalitySample(tokens=tokens, position=position)
    tokens = sample.tokens if len(p.source) == sample.tokens.shape[1] else sample.tokens[:, p.source]
    # A copy, in the precision that files have: bags are long, and no temporary of their size is made.
    z = np.array(tokens, dtype=np.float32)
    which = _identity(p.identities, sample) if p.identities else 0
    z -= p.mean.astype(np.float32)[which]
    z /= p.scale.astype(np.float32)[which]
    limit = RAW_CLIP if p.item else CLIP
    return ModalitySample.trusted(tokens=np.clip(z, -limit, limit, out=z), position=sample.position)


def transform_many(
    p: Preprocessing, data: ModalityData, ids: Sequence[PatientId]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Layout ``columns`` for many patients at once: (n, p, 2) tokens and (n,) who has the modality."""
    if p.layout != "columns":
        msg = f"modality {p.modality}: transform_many is for layout columns; use transform per patient"
        raise ModelError(msg)
    tokens, present = stack(data, ids)
    return _transform_columns(p, tokens) * present[:, None, None], present


def dense_matrix(
    p: Preprocessing, data: ModalityData, ids: Sequence[PatientId]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A design matrix for models that know no tokens.

    Layout ``columns``: standardised values, 0 (the train mean) where missing, and one indicator per column that some
    train patient misses. Layout ``vectors``: token identities side by side, 0 and an indicator where one is absent; a
    free bag is the mean of its tokens. Raw items (windows, patches) are the mean and the standard deviation of each
    channel: single samples and voxels mean nothing by their place. Absent patients are rows of zeros.

    Returns:
        (n, q) float64 and (n,) bool who has the modality.
    """
    present = np.array([patient in data.samples for patient in ids], dtype=bool)
    if p.layout == "columns":
        tokens, present = transform_many(p, data, ids)
        first = np.unique(p.column_of_feature[p.missing], return_index=True)[1]
        flagged = np.flatnonzero(p.missing)[first]
        absent = (1.0 - tokens[:, flagged, 1]) * present[:, None]
        return np.concatenate([tokens[:, :, 0].astype(np.float64), absent], axis=1), present
    groups, width = max(1, len(p.identities)), 2 * p.item[0] if p.item else len(p.source)
    x = np.zeros((len(ids), groups, width + 1))
    for i, patient in enumerate(ids):
        if not present[i]:
            continue
        sample = transform(p, data.samples[patient])
        which = _identity(p.identities, sample)
        count = np.bincount(which, minlength=groups)
        np.add.at(x[i, :, :width], which, _channel_moments(sample.tokens, p.item[0]) if p.item else sample.tokens)
        x[i, :, :width] /= np.maximum(count, 1)[:, None]
        x[i, :, width] = count == 0
    indicators = x[:, :, width] if p.missing.any() and p.identities else x[:, :0, width]
    return np.concatenate([x[:, :, :width].reshape(len(ids), -1), indicators], axis=1), present


def _channel_moments(tokens: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Mean and standard deviation (T, 2 C) of the channels of raw items."""
    items = tokens.reshape(len(tokens), channels, -1)
    return np.concatenate([items.mean(axis=2), items.std(axis=2)], axis=1)


def to_arrays(p: Preprocessing) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays for safetensors and the rest for JSON; :func:`from_arrays` is the exact inverse."""
    arrays: dict[str, NDArray[Any]] = {
        "source": p.source,
        "level": p.level,
        "reference": p.reference,
        "column_of_feature": p.column_of_feature,
        "mean": p.mean,
        "scale": p.scale,
        "missing": p.missing.astype(np.uint8),
    }
    rest: dict[str, Any] = {
        "modality": p.modality,
        "layout": p.layout,
        "feature_names": list(p.feature_names),
        "n_columns": p.n_columns,
        "identities": list(p.identities),
        "dropped": [list(row) for row in p.dropped],
        **({"item": list(p.item)} if p.item else {}),
    }
    return arrays, rest


def from_arrays(arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any]) -> Preprocessing:
    """The inverse of :func:`to_arrays`."""
    return Preprocessing(
        modality=rest["modality"],
        layout=rest["layout"],
        feature_names=tuple(rest["feature_names"]),
        source=arrays["source"],
        level=arrays["level"],
        reference=arrays["reference"],
        column_of_feature=arrays["column_of_feature"],
        n_columns=int(rest["n_columns"]),
        mean=arrays["mean"],
        scale=arrays["scale"],
        missing=arrays["missing"].astype(bool),
        identities=tuple(rest["identities"]),
        dropped=tuple((row[0], row[1]) for row in rest["dropped"]),
        item=tuple(rest.get("item", ())),
    )
