"""Experts as one model: what each is worth and how sure they are together, learned from inner out-of-fold predictions.

An expert is a group of members that read the same modalities: the joint network reads all, a unimodal network one.
Everything happens on the outcome's link scale: log cumulative hazard, log probability, or the value itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import CohortError
from medfuse.targets import Labels, Survival, Target
from medfuse.training.patterns import Patterns, pattern_number
from medfuse.training.recalibration import recalibrate, softmax
from medfuse.training.score import concordance

Array = NDArray[np.float64]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the joint network, where its merit does not settle it
_LEAST_WEIGHT = 1e-3
_EDGE = 1e-6
_ROUNDING = 1e-5  # of a link: members compute in float32
_GROUPS = 20  # of patients, each left out once by the jackknife


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How members' outputs become one prediction of one outcome.

    With u_k the link of member k, expert e says z_e = mean over its members of (u_k - centre_k) / spread_k, and 0, the
    population, where the patient lacks its modalities. The link of the whole is level + slope * sum_e weight_e z_e,
    moved as ``patterns`` say to what it means of patients who have these modalities.

    Attributes:
        expert_of: (members,) index of each member's expert.
        centre: (members, L) out-of-fold mean of each member's link.
        spread: (members,) its root mean square deviation, at least a tenth of what is usual in its expert; 1 where all
            members of an expert say the same of everybody.
        score: (E,) inner concordance of each expert, 0.5 = chance.
        weight: (E,) >= 0, sums to 1.
        slope: 0 when the combination orders patients wrongly out of fold, at most 5.
        level: (t,) for survival, (K,) for classes, (1,) for values: predictions match the outcomes on average.
        times: (t,) days; None unless the outcome is survival.
        tuning_score: inner concordance of the combination.
        patterns: slope and level of each availability pattern; None where they are not known.
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
    patterns: Patterns | None = None

    def combine(
        self,
        links: Sequence[tuple[int, NDArray[np.intp], Array]],
        has: NDArray[np.bool_],
        *,
        shown: NDArray[np.bool_],
    ) -> Array:
        """(n, L) link of n patients.

        Args:
            links: number of the member, rows it speaks of, and its links (rows, L) for them.
            has: (E, n) which patients have something that the expert reads.
            shown: (n, M) the modalities of each.
        """
        z = expert_deviations(links, has, expert_of=self.expert_of, centre=self.centre, spread=self.spread)
        mixed: Array = np.einsum("e,enl->nl", self.weight, z)
        link = np.asarray(self.level + self.slope * mixed, dtype=np.float64)
        return link if self.patterns is None else self.patterns.moved(link, pattern_number(shown))


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

    def without(self, inner: int) -> "OutOfFold | None":
        """The same without the members and patients of an inner fold; None where nobody else has said anything."""
        members = np.flatnonzero(self.inner_of != inner)
        kept = [(k, rows, link) for k, rows, link in self.links if k in members]
        if not kept:
            return None
        rows = np.unique(np.concatenate([rows for _, rows, _ in kept]))
        return replace(
            self,
            links=[(int(np.searchsorted(members, k)), np.searchsorted(rows, own), link) for k, own, link in kept],
            has=self.has[:, rows],
            expert_of=self.expert_of[members],
            inner_of=self.inner_of[members],
            target=self.target.take(rows),
        )

    def concordance(self, deviation: Array, keep: NDArray[np.bool_] | None = None) -> float:
        """Mean over the inner folds of the concordance of a deviation (n, L) of all patients or of those to ``keep``.

        0.5 when undefined in all folds.
        """
        folds = self.folds() if keep is None else [rows[keep[rows]] for rows in self.folds()]
        found = [concordance(self.target.take(rows), deviation[rows]) for rows in folds if len(rows)]
        known = [value for value in found if np.isfinite(value)]
        return float(np.mean(known)) if known else 0.5


def fit_ensembles(oof: OutOfFold) -> dict[str, Ensemble]:
    """The model of an outcome, ``chosen``, and beside it ``joint`` and ``unimodal`` alone, where there are both.

    An expert weighs as much as its inner concordance exceeds chance, at least 0.001. Another share of the joint
    network, the first expert, out of 0, 1/4, 1/2, 3/4, 1 takes the place of this one only where its inner concordance
    is higher by more than one standard error of the difference: the best of several shares in a small cohort is
    mostly luck, in thousands of patients it is not. All is decided before a held-out row is read.

    Raises:
        CohortError: a member without out-of-fold patients.
    """
    centre, spread = _standard(oof)
    z = expert_deviations(oof.links, oof.has, expert_of=oof.expert_of, centre=centre, spread=spread)
    score = np.array([oof.concordance(z[e], oof.has[e]) for e in range(len(z))])
    merit = np.maximum(score - 0.5, _LEAST_WEIGHT)

    def mixed(weight: Array) -> Array:
        return np.asarray(np.einsum("e,enl->nl", weight, z))

    def fitted(weight: Array) -> Ensemble:
        slope, level = recalibrate(oof.target, mixed(weight), times=oof.times)
        return Ensemble(
            expert_of=oof.expert_of,
            centre=centre,
            spread=spread,
            score=score,
            weight=weight,
            slope=slope,
            level=level,
            times=oof.times,
            tuning_score=oof.concordance(mixed(weight)),
        )

    if len(z) == 1:
        return {"chosen": fitted(np.ones(1))}
    joint, unimodal = np.eye(len(z))[0], np.concatenate([[0.0], merit[1:] / merit[1:].sum()])
    own = merit / merit.sum()
    best = max((s * joint + (1 - s) * unimodal for s in SHARES), key=lambda weight: oof.concordance(mixed(weight)))
    chosen = best if _clearly_better(oof, mixed(best), mixed(own)) else own
    return {"chosen": fitted(chosen), "joint": fitted(joint), "unimodal": fitted(unimodal)}


def cross_fitted(oof: OutOfFold, ensembles: Mapping[str, Ensemble]) -> dict[str, Array]:
    """(n, L) links of each variant, where experts are weighed for each inner fold by what the other folds say.

    A score of what weights were chosen on flatters a model that has weights to choose: on noise, 150 patients with
    four modalities gave an inner concordance of .57. Slope and level are those of the whole, and no pattern is moved.
    """
    found = {}
    for variant, whole in ensembles.items():
        plain = replace(whole, patterns=None)
        found[variant] = plain.combine(oof.links, oof.has, shown=np.zeros((oof.has.shape[1], 0), dtype=bool))
    for inner in np.unique(oof.inner_of) if len(oof.has) > 1 else ():
        rest, own = oof.without(int(inner)), [one for one in oof.links if oof.inner_of[one[0]] == inner]
        if rest is None or not own:
            continue
        rows = np.unique(np.concatenate([rows for _, rows, _ in own]))
        for variant, fitted in fit_ensembles(rest).items():
            judged = replace(ensembles[variant], weight=fitted.weight, patterns=None)
            link = judged.combine(own, oof.has, shown=np.zeros((oof.has.shape[1], 0), dtype=bool))
            found[variant][rows] = link[rows]
    return found


def _clearly_better(oof: OutOfFold, one: Array, other: Array) -> bool:
    """Whether one deviation's inner concordance exceeds another's by a standard error, of a grouped jackknife."""
    rows = np.arange(len(one))
    gap = oof.concordance(one) - oof.concordance(other)
    if gap <= 0:
        return False
    without = [rows % _GROUPS != k for k in range(_GROUPS)]
    gaps = np.array([oof.concordance(one, keep) - oof.concordance(other, keep) for keep in without])
    error = np.sqrt((_GROUPS - 1) / _GROUPS * ((gaps - gaps.mean()) ** 2).sum())
    return bool(gap > error)


def _standard(oof: OutOfFold) -> tuple[Array, Array]:
    width = oof.links[0][2].shape[1] if oof.links else 1
    centre, spread = np.full((len(oof.expert_of), width), np.nan), np.zeros(len(oof.expert_of))
    for k, rows, link in oof.links:
        own = link[oof.has[oof.expert_of[k], rows]]
        if len(own):
            centre[k] = own.mean(axis=0)
            rms = float(np.sqrt(((own - centre[k]) ** 2).mean()))
            spread[k] = rms if rms > _ROUNDING * np.abs(centre[k]).max() else 0.0
    if np.isnan(centre).any():
        msg = "fold: a member has no out-of-fold patients; use two or more inner folds"
        raise CohortError(msg)
    for expert in np.unique(oof.expert_of):
        # A member whose few unseen patients are alike tells nothing of its spread, and of a patient who is not it must
        # not say more than its siblings would.
        own = oof.expert_of == expert
        usual = float(np.sqrt((spread[own] ** 2).mean()))
        spread[own] = np.maximum(spread[own], usual / 10) if usual else 1.0
    return centre, spread
