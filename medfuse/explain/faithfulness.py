"""Does an explanation say what the model does? Checks of the contributions of a run, at the level of modalities.

Where there are several replicates, contributions of one half of them are judged by predictions of the other half:
judged by the predictions it was computed from, a contribution cannot be wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from medfuse.errors import ConfigError
from medfuse.explain.coalitions import Coalitions, coalition_values, replicates_of
from medfuse.explain.donors import HiddenCheck
from medfuse.games import shapley
from medfuse.models import build_model
from medfuse.sample import ModalityData
from medfuse.training.fold import FoldModel
from medfuse.training.member import Member

Array = NDArray[np.float64]
SIGNS = 0.8
RANDOM = 0.2
STABLE = 0.6
FORETOLD = 0.4
_FEWEST = 10  # patients below which a check says nothing
_PAIRS = 15  # of replicates


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        statistic: what came out; None when it could not be computed.
        low, high: 95 % bootstrap interval over patients, or None.
        rule: when it passes.
        passed: None when nothing can be said, with the reason in ``note``.
        patients: on how many.
        note: how it was computed, or why not.
    """

    name: str
    statistic: float | None = None
    low: float | None = None
    high: float | None = None
    rule: str = ""
    passed: bool | None = None
    patients: int = 0
    note: str = ""

    def line(self) -> str:
        """As one line of text."""
        word = {True: "passed", False: "FAILED", None: "not run"}[self.passed]
        figure = "" if self.statistic is None else f" {self.statistic:.3f}"
        figure += "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        who = f", {self.patients} patients" if self.patients else ""
        note = f"; {self.note}" if self.note else ""
        return f"{word:<8} {self.name}:{figure} ({self.rule}{who}{note})"


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """One row per patient (and class): modalities, and games by all replicates, by half of them and by the others."""

    present: NDArray[np.bool_]  # (n, M)
    every: Array  # (2^M, n)
    ranking: Array
    judging: Array
    each: list[Array]  # per replicate (2^M, n)
    halved: bool


def _rows(found: Sequence[Coalitions], horizon: float | None) -> _Rows:
    if horizon is None and found[0].kind == "survival":
        msg = "checks: expected a horizon for a survival outcome, found none; pass horizon="
        raise ConfigError(msg)
    present, every, ranking, judging, each = [], [], [], [], []
    count = min(len(one.replicates) for one in found)
    for one in found:
        for label in range(one.values.shape[-1]) if one.kind == "multiclass" else [None]:
            game = _flat(one.game(horizon=horizon, label=label), one)
            by = _flat(one.replicate_games(horizon=horizon, label=label), one)  # (2^M, R, n)
            present.append(np.asarray(one.present))
            every.append(game)
            ranking.append(by[:, ::2].mean(axis=1))
            judging.append(by[:, 1::2].mean(axis=1) if count > 1 else game)
            each.append(by[:, :count])
    together = np.concatenate(each, axis=2)
    return _Rows(
        present=np.concatenate(present),
        every=np.concatenate(every, axis=1),
        ranking=np.concatenate(ranking, axis=1),
        judging=np.concatenate(judging, axis=1),
        each=[together[:, r] for r in range(count)],
        halved=count > 1,
    )


def _flat(game: Array, one: Coalitions) -> Array:
    """Without the last axis of outcomes that have one number per patient."""
    return game[..., 0] if one.kind in ("binary", "continuous") else game


def game_checks(found: Sequence[Coalitions], *, horizon: float | None = None, seed: int = 0) -> list[Check]:
    """Checks that need stored values alone: deletion, insertion, signs, stability and completeness.

    Args:
        found: coalition values of held-out patients, per outer fold.
        horizon: days, for survival outcomes.
        seed: of the bootstrap.

    References:
        Samek et al. (2017), Evaluating the visualization of what a deep neural network has learned (deletion);
        Petsiuk et al. (2018), RISE, section 4 (insertion). NOTE[DIFF]: units are modalities, and random orders are
        not drawn: with so few units, the mean over all orders is exact.
    """
    rows = _rows(found, horizon)
    note = "ranked by half of the replicates, judged by the other" if rows.halved else "one replicate ranks and judges"
    agreed = _signs(rows)
    # Judged by the values it was computed from, a ranking nearly always wins; the figure is printed, not judged.
    itself = _paths(replace(rows, ranking=rows.every, judging=rows.every))
    checks = []
    for name, area, own in zip(("deletion", "insertion"), _paths(rows), itself, strict=True):
        more = f"{note}; by the whole model itself {own.mean():.3f}" if len(own) else note
        full = f"{name} against random order"
        checks.append(_interval_check(full, area, "interval above 0", 0.0, seed=seed, note=more))
    signs = _interval_check("sign", agreed, f"at least {SIGNS:.0%} agree", SIGNS, seed=seed, note=note)
    if signs.statistic is not None:
        signs = replace(signs, passed=signs.statistic >= SIGNS)
    return [*checks, signs, _stability(rows), _completeness(rows)]


def _interval_check(name: str, values: Array, rule: str, limit: float, *, seed: int, note: str) -> Check:
    """Mean over patients with a bootstrap interval; it passes when the interval lies above the limit."""
    if len(values) < _FEWEST:
        return Check(name=name, rule=rule, patients=len(values), note=f"fewer than {_FEWEST} patients to judge by")
    draws = np.random.default_rng(seed).integers(0, len(values), size=(1000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Check(
        name=name,
        statistic=float(values.mean()),
        low=float(low),
        high=float(high),
        rule=rule,
        passed=bool(low > limit),
        patients=len(values),
        note=note,
    )


def _paths(rows: _Rows) -> tuple[Array, Array]:
    """Areas between the curves of our order and of a random one, patients with two modalities or more.

    Deletion takes the most raising modality away first: random less ours. Insertion adds it first: ours less random.
    """
    phi = shapley(rows.ranking)  # (M, n)
    deletion, insertion = [], []
    for i in range(len(rows.present)):
        own = np.flatnonzero(rows.present[i])
        if len(own) < 2:
            continue
        order = own[np.argsort(-phi[own, i], kind="stable")]
        bits = (1 << order).tolist()
        v = rows.judging[:, i]
        shown = [sum(bits[:s]) for s in range(1, len(bits))]  # the s most raising
        left = [sum(bits[s:]) for s in range(1, len(bits))]  # all but the s most raising
        anyone = np.mean([np.mean([v[sum(c)] for c in combinations(bits, s)]) for s in range(1, len(bits))])
        deletion.append(anyone - np.mean(v[left]))
        insertion.append(np.mean(v[shown]) - anyone)
    return np.array(deletion), np.array(insertion)


def _signs(rows: _Rows) -> Array:
    """Per patient, the part of its most raising and most lowering modality whose removal moves the value as it says."""
    phi = np.where(rows.present.T, shapley(rows.ranking), 0.0)
    found = []
    for i in range(len(rows.present)):
        own = int(rows.present[i] @ (1 << np.arange(len(phi))))
        v, agree = rows.judging[:, i], []
        top, bottom = int(phi[:, i].argmax()), int(phi[:, i].argmin())
        if phi[top, i] > 0:
            agree.append(v[own & ~(1 << top)] < v[own])
        if phi[bottom, i] < 0:
            agree.append(v[own & ~(1 << bottom)] > v[own])
        if agree:
            found.append(float(np.mean(agree)))
    return np.array(found)


def _stability(rows: _Rows) -> Check:
    name, rule = "stability over seeds and inner folds", f"Spearman at least {STABLE:g}"
    if not rows.halved:
        return Check(name=name, rule=rule, note="one replicate; train with more seeds or inner folds")
    has = rows.present.T
    phi = [shapley(game)[has] for game in rows.each]
    pairs = list(combinations(range(len(phi)), 2))[:_PAIRS]
    each = [_spearman(phi[a], phi[b]) for a, b in pairs]
    known = [r for r in each if np.isfinite(r)]
    if not known or len(rows.present) < _FEWEST:
        return Check(name=name, rule=rule, patients=len(rows.present), note="contributions do not differ")
    value = float(np.mean(known))
    note = f"mean over {len(known)} pairs of replicates, from {min(known):.2f} to {max(known):.2f}"
    return Check(name=name, statistic=value, rule=rule, passed=value >= STABLE, patients=len(rows.present), note=note)


def _completeness(rows: _Rows) -> Check:
    phi = shapley(rows.every)
    whole = rows.every[-1] - rows.every[0]
    gap = np.abs(phi.sum(axis=0) - whole)
    size = float(np.abs(whole).mean())
    value = float(gap.max()) / size if size > 0 else float(gap.max())
    return Check(
        name="completeness",
        statistic=value,
        rule="largest gap at most 5 % of the mean difference explained",
        passed=value <= 0.05,
        patients=len(rows.present),
    )


def _spearman(a: Array, b: Array) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def randomised(fold: FoldModel, *, seed: int) -> FoldModel:
    """The same fold by its first replicate, with all weights as before training.

    Weights that start at 0 are drawn, too: a network that says nothing would pass any check.
    """
    kept = replicates_of(fold.members)[0]
    ensembles = {
        outcome: {
            variant: replace(e, expert_of=e.expert_of[kept], centre=e.centre[kept], spread=e.spread[kept])
            for variant, e in variants.items()
        }
        for outcome, variants in fold.ensembles.items()
    }
    return replace(
        fold, members=tuple(_reset(fold.members[k], seed=1000 * seed + k) for k in kept), ensembles=ensembles
    )


def _reset(member: Member, *, seed: int) -> Member:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(member.settings, shapes=member.shapes, heads=member.heads)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return replace(member, state={name: value.clone() for name, value in model.state_dict().items()})


def randomisation_check(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    found: Coalitions,
    *,
    horizon: float | None = None,
    draws: int = 20,
    most: int = 100,
) -> Check:
    """Contributions must depend on what was learned: those of networks as before training must not resemble them.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        data: modalities.
        found: coalition values of the fold's held-out patients.
        horizon: days, for survival outcomes.
        draws: how many times weights are drawn.
        most: patients to compare.

    References:
        Adebayo et al. (2018), Sanity checks for saliency maps, section 3. NOTE[DIFF]: all weights at once, and one
        Spearman correlation over patients per modality, averaged over modalities and draws.
    """
    name, rule = "weight randomisation", f"absolute Spearman at most {RANDOM:g}"
    some = found.take(np.arange(min(most, len(found))))
    if len(some) < _FEWEST:
        return Check(name=name, rule=rule, patients=len(some), note=f"fewer than {_FEWEST} patients to judge by")
    own = _rows([some], horizon)
    learned = shapley(own.every)
    each = []
    for draw in range(draws):
        blank = randomised(fold, seed=draw + 1)
        values = coalition_values(blank, data, some.patient_ids, outcome=found.outcome)
        other = shapley(_rows([values], horizon).every)
        by = [_spearman(learned[m, has], other[m, has]) for m, has in enumerate(own.present.T)]
        each.append(np.nanmean(by) if np.isfinite(by).any() else np.nan)
    known = np.array([r for r in each if np.isfinite(r)])
    if not len(known):
        return Check(name=name, rule=rule, patients=len(some), note="contributions do not differ between patients")
    value = float(known.mean())
    note = f"mean of {len(known)} draws, from {known.min():.2f} to {known.max():.2f}"
    return Check(name=name, statistic=value, rule=rule, passed=abs(value) <= RANDOM, patients=len(some), note=note)


def hidden_checks(found: HiddenCheck) -> list[Check]:
    """What :func:`medfuse.explain.donors.check_hidden` found, as checks."""
    foretold = "value of a modality that was hidden"
    rule = f"Spearman of expected and realised change at least {FORETOLD:g}"
    crossing, better = "crossing of the threshold by a hidden modality", "Brier score below that of the base rate"
    if not np.isfinite(found.spearman):
        note = "too few questions with donors"
        return [Check(name=foretold, rule=rule, note=note), Check(name=crossing, rule=better, note=note)]
    return [
        Check(
            name=foretold,
            statistic=found.spearman,
            rule=rule,
            passed=found.spearman >= FORETOLD,
            note=f"{found.questions} questions",
        ),
        Check(
            name=crossing,
            statistic=found.brier,
            rule=better,
            passed=found.brier < found.brier_base if 0 < found.crossed < 1 else None,
            note=f"base rate {found.crossed:.2f}, Brier {found.brier_base:.3f}",
        ),
    ]


NOT_RUN = (
    Check(
        name="label randomisation",
        rule="mean absolute contribution at most 0.25 of the model's",
        note="it needs the whole run trained again on permuted outcomes, which is not cheap",
    ),
    Check(
        name="planted truth",
        rule="at least 95 % name the planted modality first",
        note="it needs a cohort whose truth is known; see the tests of medfuse",
    ),
)


def to_json(checks: Sequence[Check]) -> list[dict[str, object]]:
    """As JSON values."""
    return [dict(vars(check)) for check in checks]


def from_json(content: Sequence[Mapping[str, object]]) -> list[Check]:
    """The inverse of :func:`to_json`."""
    return [Check(**cast(dict[str, object], dict(row))) for row in content]  # type: ignore[arg-type]
