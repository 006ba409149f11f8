"""One person's content under two ids: the same rows, or rows nearer to each other than strangers ever are.

Nothing here knows of splits: :mod:`medfuse.audit` keeps the pairs that a split sets apart.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medfuse.preprocessing import stack
from medfuse.sample import ModalityData, ModalitySample
from medfuse.types import PatientId

Pair = tuple[PatientId, PatientId]

WIDE = 50  # measured values from which one equal modality suffices
_DISTINCT = 50  # distinct values in a row below which the same values in any order are coincidence
_SKETCH = 64  # tokens per patient that stand for a bag
_COLUMNS = 2048  # columns that are enough to recognise a neighbour
_NEAR = 5  # the neighbour that gives the local scale; up to four copies of a person leave it a stranger
_MAX_DIMENSION = 25.0
_RATIO = 1 / 3  # of the 5th neighbour's distance; the nearest strangers of five TCGA cohorts reach 0.45
_CHANCE = 1e-3  # expected number of such pairs by chance, per modality
_LEVELS = 12  # distinct values below which a column is a code, and equal codes are ordinary
_HOLDERS = 4  # patients with one row, beyond which the row is a default and nobody's
_FAR = 1e6  # stands for a distance over too few shared cells


# --- the same values, in whatever order ------------------------------------------------------------------------------


def _mixed(bits: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A hash of each 32-bit word (multiplications and shifts, as in the finaliser of MurmurHash3)."""
    h = bits.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        h ^= h >> np.uint64(33)
        h *= factor
    return h ^ (h >> np.uint64(33))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of the values at the 11 significant binary digits of half precision, so that a re-saved copy is equal."""
    bits = np.ascontiguousarray(values + np.float32(0), dtype=np.float32).view(np.uint32)  # + 0: one zero only
    return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def _row_keys(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A key of each (T, F) row that no order of its values changes; only rows of enough distinct values have one."""
    bits = _rounded(rows)
    if rows.shape[1] < _DISTINCT:  # a short row is recognised by its order
        bits = bits ^ (np.arange(rows.shape[1], dtype=np.uint32) * np.uint32(0x9E3779B1))
    distinct = (np.diff(np.sort(rows, axis=1), axis=1) != 0).sum(axis=1) + 1
    return np.asarray(_mixed(bits).sum(axis=1, dtype=np.uint64)[distinct >= min(_DISTINCT, 3 * rows.shape[1] // 4)])


def _sketches(modality: ModalityData) -> dict[PatientId, NDArray[np.uint64]]:
    """Keys of each patient's rows; of a large bag those with the smallest keys of their first value."""
    numeric = np.array([c.kind == "numeric" for c in modality.columns], dtype=bool)
    found: dict[PatientId, NDArray[np.uint64]] = {}
    defaults: set[int] = set()  # rows that stand twice in one patient: blank tiles, failed extractions
    for patient, sample in modality.samples.items():
        tokens = np.asarray(sample.tokens)
        if modality.layout == "columns":
            rows = tokens[numeric & (tokens[:, 1] > 0), 0][None]
            rows = rows if rows.shape[1] >= _DISTINCT else rows[:0]  # narrow tables: by distance, below
        else:
            first = _mixed(_rounded(tokens[:, 0]))
            rows = tokens[np.argsort(first, kind="stable")[:_SKETCH]] if modality.features >= 8 else tokens[:0]
        keys, count = np.unique(_row_keys(rows), return_counts=True) if rows.size else (np.zeros(0, np.uint64), 0)
        defaults.update(keys[count > 1].tolist())
        if keys.size:
            found[patient] = keys
    if defaults:
        out = np.array(sorted(defaults), dtype=np.uint64)
        found = {patient: keys[~np.isin(keys, out)] for patient, keys in found.items()}
    return found


def equal_content(modality: ModalityData) -> list[Pair]:
    """Patients who share rows: a whole profile with its columns in any order, or tokens of a bag.

    A row that many patients share (a blank tile, a default) says nothing of who they are. One shared token is enough
    where tokens have identities; of two free bags, half of the smaller one's must be shared.
    """
    sketches = _sketches(modality)
    holders: dict[int, list[PatientId]] = defaultdict(list)
    for patient, keys in sketches.items():
        for key in keys.tolist():
            holders[key].append(patient)
    shared: dict[Pair, int] = defaultdict(int)
    for patients in holders.values():
        if len(patients) <= _HOLDERS:
            for i, a in enumerate(patients):
                for b in patients[i + 1 :]:
                    shared[a, b] += 1
    free = modality.layout == "vectors" and not modality.identities
    pairs = []
    for (a, b), count in shared.items():
        smaller = min(len(sketches[a]), len(sketches[b]))
        # Sketches of bags of unlike size reach unlike far; a subset shows fewer, but never by chance.
        if not free or count >= min(smaller, max(2, smaller // 20)):
            pairs.append((a, b))
    return pairs


# --- nearer than strangers are ---------------------------------------------------------------------------------------


def _without_defaults(column: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """A column with its default values as missing, and its resolution: the usual gap between neighbouring values.

    A value is a default when a fifth of the patients have it, or four times as many as have a usual value: filled-in
    means and modes are not measurements of anyone.
    """
    out = column.copy()
    known = np.flatnonzero(~np.isnan(column))
    value, inverse, count = np.unique(column[known], return_inverse=True, return_counts=True)
    if not len(value):
        return out, np.inf
    usual = np.median(count[inverse])
    default = (count > len(known) / 5) | (count >= 4 * usual)
    out[known[default[inverse]]] = np.nan
    left = value[~default]
    return out, float(np.median(np.diff(left))) if len(left) >= _LEVELS else np.inf


def _own_tokens(modality: ModalityData, sample: ModalitySample) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A patient's tokens and their identities; one that stands under several identities is a failed extraction."""
    if not modality.identities:
        return sample.tokens, np.zeros(len(sample.tokens), dtype=np.int64)
    _, inverse, count = np.unique(sample.tokens, axis=0, return_inverse=True, return_counts=True)
    own = count[inverse.ravel()] == 1
    return sample.tokens[own], sample.position[own, 0].astype(np.int64)


def _matrix(modality: ModalityData) -> tuple[list[PatientId], NDArray[np.float64], bool]:
    """(n, q) values, NaN where missing, and whether they are of one unit.

    Numeric columns, or the mean token per identity; at most about ``_COLUMNS`` of them, evenly chosen.
    """
    ids = list(modality.samples)
    if modality.layout == "columns":
        numeric = np.flatnonzero([c.kind == "numeric" for c in modality.columns])
        chosen = numeric[:: max(1, -(-len(numeric) // _COLUMNS))]
        x = np.full((len(ids), len(chosen)), np.nan)
        for i, patient in enumerate(ids):
            tokens = modality.samples[patient].tokens[chosen]
            x[i, tokens[:, 1] > 0] = tokens[tokens[:, 1] > 0, 0]
        one_unit = len({modality.columns[c].unit for c in chosen}) == 1
    else:
        groups = max(1, len(modality.identities))
        step = max(1, -(-modality.features * groups // _COLUMNS))
        width = len(range(0, modality.features, step))
        x = np.full((len(ids), groups, width), np.nan)
        for i, patient in enumerate(ids):
            sample = modality.samples[patient]
            tokens, which = _own_tokens(modality, sample)
            for group in np.unique(which):
                x[i, group] = tokens[which == group, ::step].mean(axis=0, dtype=np.float64)
        _forget_failed(x)
        x, one_unit = x.reshape(len(ids), -1), True
    return ids, x, one_unit


def _forget_failed(x: NDArray[np.float64]) -> None:
    """Make missing, in (n, identities, q), what looks the same under two identities of one patient.

    Two stains of a tissue differ by about as much everywhere; where they differ twenty times less, both extractions
    saw nothing.
    """
    groups = x.shape[1]
    apart = np.full((len(x), groups, groups), np.nan)
    for i in range(groups):
        for j in range(i):
            apart[:, i, j] = apart[:, j, i] = np.sqrt(((x[:, i] - x[:, j]) ** 2).mean(axis=1))
    if np.isfinite(apart).any():
        with np.errstate(invalid="ignore"):
            failed = (apart < np.nanmedian(apart) / 20).any(axis=2)
        x[failed] = np.nan


def _standardised(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, q) robustly scaled columns, clipped, NaN where missing or a default; (q,) squared resolutions."""
    columns, resolution = [], []
    for c in range(x.shape[1]):
        value, gap = _without_defaults(x[:, c])
        known = value[~np.isnan(value)]
        if len(known) < 8 or len(known) < len(x) / 10:
            continue
        centre = np.median(known)
        spread = float(1.4826 * np.median(np.abs(known - centre))) or float(known.std())
        if spread > 0 and gap < spread:
            # Clipped, because one extreme value makes any two profiles that share it alike.
            columns.append(np.clip((value - centre) / spread, -5, 5))
            resolution.append((gap / spread) ** 2)
    z = np.stack(columns, axis=1) if columns else np.zeros((len(x), 0))
    return z, np.array(resolution)


def _distances(
    z: NDArray[np.float64], resolution: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """Blocks of rows: their start, root mean squared distances to all n rows, and numbers of shared cells."""
    known = (~np.isnan(z)).astype(np.float64)
    value = np.where(known > 0, z, 0.0)
    block = max(1, 2**22 // max(len(z), 1))
    least = max(5.0, float(np.median(known.sum(axis=1))) / 5)
    for start in range(0, len(z), block):
        a, m = value[start : start + block], known[start : start + block]
        shared = m @ known.T
        square = (a**2) @ known.T + m @ (value**2).T - 2 * a @ value.T + (m * resolution) @ known.T
        distance = np.where(shared >= least, np.sqrt(np.maximum(square, 0.0) / np.maximum(shared, 1)), _FAR)
        distance[np.arange(len(a)), start + np.arange(len(a))] = _FAR
        yield start, distance, shared


def _neighbours(
    z: NDArray[np.float64], resolution: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(n, 2k) nearest other rows, nearest first, their distances, and numbers of shared cells."""
    who = np.zeros((len(z), 2 * k), dtype=np.int64)
    near, cells = np.zeros(who.shape), np.zeros(who.shape)
    for start, distance, shared in _distances(z, resolution):
        rows = slice(start, start + len(distance))
        first = np.argpartition(distance, 2 * k, axis=1)[:, : 2 * k]
        first = np.take_along_axis(first, np.argsort(np.take_along_axis(distance, first, 1), axis=1), 1)
        who[rows] = first
        near[rows] = np.take_along_axis(distance, first, 1)
        cells[rows] = np.take_along_axis(shared, first, 1)
    return who, near, cells


def _cell_by_cell(
    z: NDArray[np.float64], resolution: NDArray[np.float64], who: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n, m) geometric mean distances per cell: many equal cells count, one corrected cell hardly does."""
    columns = []
    for j in range(who.shape[1]):
        cell = np.log((z - z[who[:, j]]) ** 2 + resolution) / 2
        known = ~np.isnan(cell)
        columns.append(np.exp(np.where(known, cell, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)))
    return np.stack(columns, axis=1)


def _dimension(near: NDArray[np.float64], k: int) -> float:
    """Intrinsic dimension d: the 2k-th neighbour's ball holds twice as many as the k-th's, so r grows by 2^(1/d)."""
    whole = near[:, -1] < _FAR
    growth = float(np.median(np.log(near[whole, -1] / near[whole, k - 1]))) if whole.any() else 0.0
    return float(min(_MAX_DIMENSION, np.log(2) / growth)) if growth > 0 else _MAX_DIMENSION


def _near_rows(x: NDArray[np.float64]) -> set[tuple[int, int]]:
    z, resolution = _standardised(x)
    n = len(z)
    k = min(_NEAR, (n - 1) // 3)
    if k < 2 or z.shape[1] < 5:
        return set()
    who, near, cells = _neighbours(z, resolution, k)
    whole = near[:, -1] < _FAR
    if not whole.any():
        return set()
    dimension = _dimension(near, k)
    per_cell = dimension / float(np.median(cells[whole]))
    if z.shape[1] < WIDE:
        # Few patients make the dimension seem low. How low is seen where it is known: in shuffled columns.
        rng = np.random.default_rng(0)
        shuffled = np.stack([rng.permutation(column) for column in z.T], axis=1)
        seen = _dimension(_neighbours(shuffled, resolution, k)[1], k)
        per_cell = min(1.0, dimension / seen)
        near = np.where(near < _FAR, _cell_by_cell(z, resolution, who), _FAR)
    usual = float(np.median(near[whole, k - 1]))
    pairs = set()
    for a, j in np.argwhere(near[:, : k - 1] < _FAR):
        b = who[a, j]
        scale = min(near[a, k - 1], near[b, k - 1], usual)
        power = min(_MAX_DIMENSION, per_cell * cells[a, j])
        ratio = near[a, j] / scale if scale > 0 else 1.0
        if ratio < _RATIO and (k - 1) * n * ratio**power < _CHANCE:
            pairs.add((int(min(a, b)), int(max(a, b))))
    return pairs


def near_content(modality: ModalityData) -> list[Pair]:
    """Patients nearer to each other than chance allows: one sample measured, rounded or rescaled twice.

    With k - 1 neighbours uniform in a ball of d dimensions, one of them stands within a share r of the distance to the
    k-th with a probability of at most (k - 1) r^d. The dimension d is the data's own, from how the 5th and 10th
    neighbours' distances compare; two equal cells count as apart by the resolution of their column.

    References:
        Facco et al. (2017), Estimating the intrinsic dimension of datasets by a minimal neighborhood information,
        Sci Rep 7:12140, equations 2 to 5, here with the k-th neighbour in place of the second.
    """
    ids, x, one_unit = _matrix(modality)
    forms = [x]
    if x.shape[1] >= WIDE and one_unit:  # one unit: a rescaled copy is still a copy
        # By medians: one extreme gene would make the rest of a row small, and any two such rows alike.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a patient of whom nothing is left stays NaN
            scaled = x - np.nanmedian(x, axis=1, keepdims=True)
            spread = np.nanmedian(np.abs(scaled), axis=1, keepdims=True)
        forms = [scaled / np.where(spread > 0, spread, 1.0), *([x] if np.isnan(x).any() else [])]
    found = set().union(*(_near_rows(form) for form in forms))
    return [(ids[a], ids[b]) for a, b in sorted(found)]


def told_apart(modality: ModalityData, a: PatientId, b: PatientId) -> bool:
    """Whether a modality that both patients have shows two different people."""
    if a not in modality.samples or b not in modality.samples:
        return False
    x, y = modality.samples[a].tokens, modality.samples[b].tokens
    return x.shape != y.shape or not np.allclose(x, y, rtol=1e-2, atol=1e-6)


def profiles(modality: ModalityData, ids: list[PatientId]) -> tuple[list[str], NDArray[np.float32]]:
    """What a modality says of some patients as named (n, p) values, NaN where missing; used to look for the outcome."""
    if modality.layout == "columns":
        tokens, _ = stack(modality, ids)
        return [c.name for c in modality.columns], np.where(tokens[:, :, 1] > 0, tokens[:, :, 0], np.float32(np.nan))
    x = np.full((len(ids), modality.features + 1), np.nan, dtype=np.float32)
    for i, patient in enumerate(ids):
        if patient in modality.samples:
            tokens = modality.samples[patient].tokens
            x[i] = [*tokens.mean(axis=0), len(tokens)]
    return [*(f"{modality.name}[{j}]" for j in range(modality.features)), "number of tokens"], x
