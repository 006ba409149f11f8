"""What a missing modality would add: the patient's prediction with the modality of each of K similar donors.

Donors are training patients near in what the patient has who also have the modality. The spread of the predictions
with theirs says how far the patient's own could move. It never says which test to order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from medfuse.errors import ConfigError
from medfuse.explain.coalitions import Coalitions, at_horizon, contrast, replicates_of
from medfuse.explain.embedding import Array, Embeddings, by_pattern, distances
from medfuse.explain.mixing import mixed_links
from medfuse.sample import ModalityData
from medfuse.training.fold import CHOSEN, FoldModel, reads
from medfuse.types import OutcomeKind, PatientId

DONORS = 50
FEWEST = 10
REPLICATES = 2


@dataclass(frozen=True, kw_only=True)
class Donors:
    """Questions "what would modality m add to patient i?" and the predictions that answer them.

    Attributes:
        outcome: its name.
        kind: its kind.
        modalities: the M names.
        patient_ids: n held-out patients.
        train_ids: training ids that ``donor`` points to.
        horizons: (H,) days of a survival outcome, else (0,).
        patient: (q,) row of ``patient_ids``.
        modality: (q,) index of the modality asked about.
        available: (q, M) modalities shown.
        risk: (q, V) predicted without it: risk at each horizon, of the event class, of each class, or the value.
        draws: (q, K, V) float32 predicted with each donor's; NaN where there are fewer than K.
        donor: (q, K) row of ``train_ids``, nearest first; -1 where there is none.
        distance: (q, K) float32 cosine distance in ``available``.
    """

    outcome: str
    kind: OutcomeKind
    modalities: tuple[str, ...]
    patient_ids: tuple[PatientId, ...]
    train_ids: tuple[PatientId, ...]
    horizons: Array
    patient: NDArray[np.int64]
    modality: NDArray[np.int64]
    available: NDArray[np.bool_]
    risk: Array
    draws: NDArray[np.float32]
    donor: NDArray[np.int64]
    distance: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.patient)

    def take(self, rows: NDArray[np.intp]) -> "Donors":
        """The same for some of the questions."""
        names = ("patient", "modality", "available", "risk", "draws", "donor", "distance")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, kw_only=True)
class AddedValue:
    """Answers to q questions at one horizon or class; NaN where fewer than 10 donors were found.

    Attributes:
        threshold: risk p_t above which one would act.
        risk: (q,) predicted without the modality.
        mean: (q,) mean over the donors.
        expected_change: (q,) E|r_j - r_0|.
        low, high: (q,) 5th and 95th percentile of r_j.
        crossing: (q,) part of the donors that move the prediction to the other side of the threshold.
        evsi: (q,) expected value of sample information at the threshold, in true positives per patient.
        donors: (q,) how many.
    """

    threshold: float
    risk: Array
    mean: Array
    expected_change: Array
    low: Array
    high: Array
    crossing: Array
    evsi: Array
    donors: NDArray[np.int64]


def missing_questions(present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Patient (q,), modality (q,) and available (q, M): one question per modality that a patient lacks."""
    patient, modality = np.nonzero(~np.asarray(present))
    return patient, modality, np.asarray(present)[patient]


def hidden_questions(present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The same for each modality that a patient has, beside another, as if it were missing: these can be checked."""
    has = np.asarray(present)
    patient, modality = np.nonzero(has & (has.sum(axis=1) > 1)[:, None])
    available = has[patient].copy()
    available[np.arange(len(patient)), modality] = False
    return patient, modality, available


def donor_draws(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    values: Coalitions,
    embeddings: Embeddings,
    questions: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]],
    *,
    horizons: Sequence[float] = (),
    donors: int = DONORS,
) -> Donors:
    """Predict every patient in question with the modality of each of its donors.

    The first two replicates speak of the donors; what they say less what the same say without the modality is added
    to what all replicates say without it.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        values: coalition values of n held-out patients.
        embeddings: of the same held-out patients and the fold's training patients.
        questions: of :func:`missing_questions` or :func:`hidden_questions`.
        horizons: days; those beyond the model's grid are left out.
        donors: K.

    Raises:
        ConfigError: values and embeddings are of other patients, or a survival outcome without a horizon on its grid.
    """
    if values.patient_ids != embeddings.patient_ids or fold.train_ids != embeddings.train_ids:
        msg = "donors: expected values and embeddings of the same patients and fold, found others"
        raise ConfigError(msg)
    end = 0.0 if values.times is None else float(values.times[-1])
    at = np.array([h for h in horizons if 0 < h <= end], dtype=np.float64)
    if values.kind == "survival" and not len(at):
        msg = f"donors: expected a horizon within 0 and {end:g} days, found none of {list(horizons)}"
        raise ConfigError(msg)
    patient, modality, available = questions
    donor, distance = _nearest(embeddings, patient, modality, available, k=donors)
    number = available @ (1 << np.arange(len(values.modalities)))
    without = values.values[patient, number]  # (q, L)
    change = _changes(fold, data, values, (patient, modality, available), donor)
    draws = _risks(without[:, None] + change, values, at).astype(np.float32)
    draws[donor < 0] = np.nan
    return Donors(
        outcome=values.outcome,
        kind=values.kind,
        modalities=values.modalities,
        patient_ids=values.patient_ids,
        train_ids=fold.train_ids,
        horizons=at,
        patient=patient,
        modality=modality,
        available=available,
        risk=_risks(without, values, at),
        draws=draws,
        donor=donor,
        distance=distance.astype(np.float32),
    )


def _risks(link: Array, values: Coalitions, horizons: Array) -> Array:
    """(..., V) of links (..., L)."""
    if values.kind == "survival":
        link = np.maximum.accumulate(link, axis=-1)
        each = [at_horizon(link, values, horizon=float(h), scale="risk") for h in horizons]
        return np.stack(each, axis=-1)
    return at_horizon(link, values, scale="risk")


def _nearest(
    found: Embeddings, patient: NDArray[np.int64], modality: NDArray[np.int64], available: NDArray[np.bool_], *, k: int
) -> tuple[NDArray[np.int64], Array]:
    """Rows (q, k) of training patients who have what is available and the modality, and their distances."""
    donor, distance = np.full((len(patient), k), -1, dtype=np.int64), np.full((len(patient), k), np.nan)
    order = np.random.default_rng(0).permutation(len(found.train_ids))  # among equals, as they come
    for pattern, rows in by_pattern(np.concatenate([available, np.eye(available.shape[1], dtype=bool)[modality]], 1)):
        given, asked = np.split(pattern, 2)
        able = order[found.train_present[order][:, given | asked].all(axis=1)]
        d = distances(found.held_out[patient[rows]], found.train[able], given)
        best = np.argsort(d, axis=1, kind="stable")[:, :k]
        donor[rows, : best.shape[1]] = able[best]
        distance[rows, : best.shape[1]] = np.take_along_axis(d, best, axis=1)
    return donor, distance


def _changes(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    values: Coalitions,
    questions: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]],
    donor: NDArray[np.int64],
) -> Array:
    """(q, K, L) change of the link when a donor's modality is added; 0 where there is no donor."""
    patient, modality, available = questions
    q, k = donor.shape
    if not q:
        return np.zeros((0, k, values.values.shape[-1]))
    everyone = (*fold.train_ids, *values.patient_ids)
    base = np.where(available, patient[:, None] + len(fold.train_ids), -1)  # (q, M)
    mixed = np.repeat(base[:, None], k + 1, axis=1)  # row 0 of each question: nothing added
    mixed[np.arange(q)[:, None], np.arange(1, k + 1)[None, :], modality[:, None]] = donor
    rows = mixed.reshape(-1, base.shape[1])
    source, back = np.unique(rows, axis=0, return_inverse=True)
    ensemble = fold.ensembles[values.outcome][CHOSEN]
    speaking = [e for e, weight in enumerate(ensemble.weight) if weight > 0]
    asked = [
        number
        for group in replicates_of(fold.members)[:: max(1, len(replicates_of(fold.members)) // REPLICATES)][:REPLICATES]
        for number in group
        if int(ensemble.expert_of[number]) in speaking
    ]
    links = mixed_links(fold, data, everyone, source=source, numbers=asked, outcome=values.outcome)
    has = reads(fold.experts, fold.modalities, source >= 0)
    everywhere = np.arange(len(source), dtype=np.intp)
    said = ensemble.combine([(n, everywhere, links[n]) for n in asked], has, shown=source >= 0)
    link = contrast(said, values.kind)
    each = link[back.ravel()].reshape(q, k + 1, -1)
    return np.asarray(each[:, 1:] - each[:, :1])


def added_value(found: Donors, *, threshold: float, column: int = 0, fewest: int = FEWEST) -> AddedValue:
    """Answers at one horizon (or class) and threshold.

    Args:
        found: of :func:`donor_draws`.
        threshold: risk p_t in (0, 1), or a value.
        column: index of the horizon or class.
        fewest: donors below which there is no answer.

    References:
        Expected value of sample information with the net benefit of Vickers and Elkin (2006), Decision curve analysis:
        U(r) = r - (1 - r) p_t / (1 - p_t), E[max(U(r_j), 0)] - max(U(mean r_j), 0); NaN for values.
    """
    if found.kind != "continuous" and not 0 < threshold < 1:
        msg = f"donors: expected a threshold within 0 and 1, found {threshold:g}"
        raise ConfigError(msg)
    draws, risk = np.asarray(found.draws[..., column], dtype=np.float64), np.asarray(found.risk[:, column])
    count = (~np.isnan(draws)).sum(axis=1)
    few = count < fewest
    draws = np.where(few[:, None], 0.0, draws)  # what stands there is blanked below

    def blank(x: Array) -> Array:
        return np.where(few, np.nan, x)

    mean = np.nanmean(draws, axis=1) if len(draws) else risk
    low, high = np.nanquantile(draws, [0.05, 0.95], axis=1) if len(draws) else (risk, risk)
    there = ~np.isnan(draws)
    crossed = np.where(there, (draws - threshold) * (risk[:, None] - threshold) < 0, 0).sum(axis=1)
    evsi = np.full(len(draws), np.nan)
    if found.kind != "continuous" and len(draws):
        odds = threshold / (1 - threshold)
        act = np.maximum(draws - (1 - draws) * odds, 0.0)
        evsi = np.nanmean(act, axis=1) - np.maximum(mean - (1 - mean) * odds, 0.0)
    return AddedValue(
        threshold=threshold,
        risk=risk,
        mean=blank(mean),
        expected_change=blank(np.nanmean(np.abs(draws - risk[:, None]), axis=1) if len(draws) else risk),
        low=blank(low),
        high=blank(high),
        crossing=blank(crossed / np.maximum(there.sum(axis=1), 1)),
        evsi=blank(evsi),
        donors=count,
    )


@dataclass(frozen=True, kw_only=True)
class HiddenCheck:
    """How well the answers foretell what a modality did where it was there and hidden.

    Attributes:
        questions: how many.
        spearman: between expected and realised absolute change.
        brier: of the crossing probability.
        brier_base: of the share of crossings, said of everyone.
        crossed: that share.
    """

    questions: int
    spearman: float
    brier: float
    brier_base: float
    crossed: float


Pairs = NDArray[np.float64]  # (q, 4) expected change, realised change, crossing probability, crossed


def hidden_pairs(found: Donors, values: Coalitions, *, threshold: float, column: int = 0) -> Pairs:
    """Answers to :func:`hidden_questions` beside what the models say when the modality is shown, where both are known.

    Args:
        found: answers to questions about modalities that the patients have.
        values: coalition values of the same patients.
        threshold: see :func:`added_value`.
        column: index of the horizon or class.
    """
    said = added_value(found, threshold=threshold, column=column)
    number = found.available @ (1 << np.arange(len(found.modalities))) + (1 << found.modality)
    truth = _risks(values.values[found.patient, number], values, found.horizons)[:, column]
    crossed = (truth - threshold) * (said.risk - threshold) < 0
    pairs = np.stack([said.expected_change, np.abs(truth - said.risk), said.crossing, crossed], axis=1)
    return np.asarray(pairs[~np.isnan(said.expected_change)])


def check_hidden(pairs: Pairs) -> HiddenCheck:
    """How well answers agree with what was hidden; NaN for fewer than three questions.

    Args:
        pairs: of :func:`hidden_pairs`, of one fold or of several.
    """
    expected, realised, crossing, crossed = pairs.T
    nan = float("nan")
    if len(pairs) < 3 or np.ptp(expected) == 0 or np.ptp(realised) == 0:
        return HiddenCheck(questions=len(pairs), spearman=nan, brier=nan, brier_base=nan, crossed=nan)
    share = float(crossed.mean())
    return HiddenCheck(
        questions=len(pairs),
        spearman=float(spearmanr(expected, realised).statistic),
        brier=float(np.mean((crossing - crossed) ** 2)),
        brier_base=float(np.mean((share - crossed) ** 2)),
        crossed=share,
    )
