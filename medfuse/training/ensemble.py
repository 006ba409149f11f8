"""Experts as one model: what each is worth and how sure they are together, learned from inner out-of-fold predictions.

An expert is a group of members that read the same modalities: the joint network reads all, a unimodal network one.
Everything happens on the outcome's link scale: log cumulative hazard, log probability, or the value itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import CohortError
from medfuse.targets import Labels, Survival, Target
from medfuse.training.recalibration import recalibrate, softmax
from medfuse.training.score import concordance

Array = NDArray[np.float64]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the joint network in the chosen model
_LEAST_WEIGHT = 1e-3
_EDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How members' outputs become one prediction of one outcome.

    With u_k the link of member k, expert e says z_e = mean over its members of (u_k - centre_k) / spread_k, and 0, the
    population, where the patient lacks its modalities. The link of the whole is level + slope * sum_e weight_e z_e.

    Attributes:
        expert_of: (members,) index of each member's expert.
        centre: (members, L) out-of-fold mean of each member's link.
        spread: (members,) its root mean square deviation; 1 where a member says the same of all.
        score: (E,) inner concordance of each expert, 0.5 = chance.
        weight: (E,) >= 0, sums to 1.
        slope: 0 when the combination orders patients wrongly out of fold, at most 5.
        level: (t,) for survival, (K,) for classes, (1,) for values: predictions match the outcomes on average.
        times: (t,) days; None unless the outcome is survival.
        tuning_score: inner concordance of the combination.
    """

    expert_of: NDArray[np.int64]
    centre: Array
    spread: Array
    score: Array
    weight: Array
    slope: float
    level: Array
    times: Array | None = None
    tuning_score: float = float("nan")

    def combine(self, links: Sequence[tuple[int, NDArray[np.intp], Array]], has: NDArray[np.bool_]) -> Array:
        """(n, L) link of n patients.

        Args:
            links: number of the member, rows it speaks of, and its links (rows, L) for them.
            has: (E, n) which patients have something that the expert reads.
        """
        z = expert_deviations(links, has, expert_of=self.expert_of, centre=self.centre, spread=self.spread)
        mixed: Array = np.einsum("e,enl->nl", self.weight, z)
        return np.asarray(self.level + self.slope * mixed, dtype=np.float64)


def link_of(outputs: Mapping[str, Array]) -> Array:
    """(n, L) what a head says, on the link scale; L = 1 for a head without curves."""
    if "survival" in outputs:
        return np.log(-np.log(np.clip(outputs["survival"], 1e-12, 1 - _EDGE)))
    if "probability" in outputs:
        log = np.log(np.clip(outputs["probability"], 1e-12, 1.0))
        return np.asarray(log - log.mean(axis=1, keepdims=True))
    return outputs["value" if "value" in outputs else "risk_score"][:, None]


def outputs_of(link: Array, target_type: type[Target]) -> dict[str, Array]:
    """The inverse of :func:`link_of`, with the risk score: mean log cumulative hazard, probability, or value."""
    if target_type is Survival:
        survival = np.minimum.accumulate(np.exp(-np.exp(np.minimum(link, 50.0))), axis=1)
        return {"risk_score": link.mean(axis=1), "survival": survival}
    if target_type is Labels:
        probability = softmax(link)
        return {"risk_score": probability[:, 1:].sum(axis=1), "probability": probability}
    return {"risk_score": link[:, 0], "value": link[:, 0]}


def expert_deviations(
    links: Sequence[tuple[int, NDArray[np.intp], Array]],
    has: NDArray[np.bool_],
    *,
    expert_of: NDArray[np.int64],
    centre: Array,
    spread: Array,
) -> Array:
    """(E, n, L) standardised deviation of each patient from the population, by each expert; 0 where it has no say."""
    total = np.zeros((*has.shape, centre.shape[1]))
    count = np.zeros(has.shape)
    for k, rows, link in links:
        total[expert_of[k], rows] += (link - centre[k]) / spread[k]
        count[expert_of[k], rows] += 1
    return np.where((has & (count > 0))[..., None], total / np.maximum(count, 1)[..., None], 0.0)


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """What members say of training patients they never saw, for one outcome.

    Attributes:
        links: number of the member, rows it speaks of, links (rows, L).
        has: (E, n).
        expert_of: (members,).
        inner_of: (members,) index of the inner fold of each member.
        target: n patients.
        times: (t,) days of a survival outcome.
    """

    links: Sequence[tuple[int, NDArray[np.intp], Array]]
    has: NDArray[np.bool_]
    expert_of: NDArray[np.int64]
    inner_of: NDArray[np.int64]
    target: Target
    times: Array | None = None

    def folds(self) -> list[NDArray[np.intp]]:
        """Rows of each inner fold."""
        rows: dict[int, set[int]] = {}
        for k, spoken_of, _ in self.links:
            rows.setdefault(int(self.inner_of[k]), set()).update(spoken_of.tolist())
        return [np.array(sorted(r), dtype=np.intp) for _, r in sorted(rows.items())]

    def concordance(self, deviation: Array, keep: NDArray[np.bool_]) -> float:
        """Mean over the inner folds of the concordance of a deviation (n, L); 0.5 when undefined in all of them."""
        found = [concordance(self.target.take(r), deviation[r]) for rows in self.folds() if len(r := rows[keep[rows]])]
        known = [value for value in found if np.isfinite(value)]
        return float(np.mean(known)) if known else 0.5


def fit_ensembles(oof: OutOfFold) -> dict[str, Ensemble]:
    """The model of an outcome, ``chosen``, and beside it ``joint`` and ``unimodal`` alone, where there are both.

    An expert weighs as much as its inner concordance exceeds chance, at least 0.001. How much the joint network, the
    first expert, says in ``chosen`` is the share out of 0, 1/4, 1/2, 3/4, 1 with the best inner concordance (the
    smaller share where two are equal), so that the model is chosen before a held-out row is read.

    Raises:
        CohortError: a member without out-of-fold patients.
    """
    centre, spread = _standard(oof)
    z = expert_deviations(oof.links, oof.has, expert_of=oof.expert_of, centre=centre, spread=spread)
    score = np.array([oof.concordance(z[e], oof.has[e]) for e in range(len(z))])
    merit = np.maximum(score - 0.5, _LEAST_WEIGHT)
    everyone = np.ones(oof.has.shape[1], dtype=bool)

    def fitted(share: float) -> Ensemble:
        weight = np.concatenate([[share], (1 - share) * merit[1:] / merit[1:].sum()]) if len(z) > 1 else np.ones(1)
        mixed = np.einsum("e,enl->nl", weight, z)
        slope, level = recalibrate(oof.target, mixed, times=oof.times)
        return Ensemble(
            expert_of=oof.expert_of,
            centre=centre,
            spread=spread,
            score=score,
            weight=weight,
            slope=slope,
            level=level,
            times=oof.times,
            tuning_score=oof.concordance(mixed, everyone),
        )

    if len(z) == 1:
        return {"chosen": fitted(1.0)}
    tried = [fitted(share) for share in SHARES]
    return {"chosen": max(tried, key=lambda e: e.tuning_score), "joint": tried[-1], "unimodal": tried[0]}


def _standard(oof: OutOfFold) -> tuple[Array, Array]:
    width = oof.links[0][2].shape[1] if oof.links else 1
    centre, spread = np.full((len(oof.expert_of), width), np.nan), np.ones(len(oof.expert_of))
    for k, rows, link in oof.links:
        own = link[oof.has[oof.expert_of[k], rows]]
        if len(own):
            centre[k] = own.mean(axis=0)
            spread[k] = float(np.sqrt(((own - centre[k]) ** 2).mean())) or 1.0
    if np.isnan(centre).any():
        msg = "fold: a member has no out-of-fold patients; use two or more inner folds"
        raise CohortError(msg)
    return centre, spread
