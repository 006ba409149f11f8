"""Weights of experts: what is worth nothing says nothing, and nothing is chosen on rows that members were fitted on."""

import dataclasses

import numpy as np
import pytest

from medfuse.errors import CohortError
from medfuse.targets import Labels, Survival, Values
from medfuse.training.ensemble import OutOfFold, cross_fitted, fit_ensembles, link_of, outputs_of

N, FOLDS = 600, 3


def world(seed=0, *, noise=(0.3, 0.3, 30.0), absent=0.3, kind="survival"):
    """Three experts with one member per inner fold: a joint one and two unimodal ones, seen through noise."""
    draw = np.random.default_rng(seed)
    parts = draw.normal(size=(N, 2))
    risk = parts.sum(1)
    has = np.ones((3, N), dtype=bool)
    has[1:] = draw.random((2, N)) > absent
    has[0] = has[1:].any(0)
    said = [risk, parts[:, 0], parts[:, 1]]
    times = np.array([0.5, 1.0, 2.0])
    if kind == "survival":
        time, censoring = draw.exponential(size=N) / np.exp(risk), draw.exponential(2.0, size=N)
        target = Survival(event=time <= censoring, time=np.minimum(time, censoring))
    elif kind == "binary":
        target = Labels(label=(draw.random(N) < 1 / (1 + np.exp(-2 * risk))).astype(int), classes=("no", "yes"))
    else:
        target = Values(value=50 + 3 * risk + draw.normal(size=N))
    links, expert_of, inner_of = [], [], []
    for e in range(3):
        for inner in range(FOLDS):
            rows = np.flatnonzero((np.arange(N) % FOLDS == inner) & has[e])
            # every member has an offset and a scale of its own, as Cox networks have
            u = (said[e] + noise[e] * draw.normal(size=N))[rows, None] * (0.2 + inner) + 7 * inner
            u = u + np.log(times) if kind == "survival" else (u * [-0.5, 0.5] if kind == "binary" else u)
            links.append((len(links), rows, u))
            expert_of.append(e)
            inner_of.append(inner)
    return OutOfFold(
        links=links,
        has=has,
        expert_of=np.array(expert_of),
        inner_of=np.array(inner_of),
        target=target,
        times=times if kind == "survival" else None,
    )


@pytest.mark.parametrize("kind", ["survival", "binary", "continuous"])
def test_a_useless_expert_weighs_next_to_nothing_and_absent_says_nothing(kind):
    oof = world(kind=kind)
    found = fit_ensembles(oof)
    assert set(found) == {"chosen", "joint", "unimodal"}
    for ensemble in found.values():
        assert ensemble.weight.sum() == pytest.approx(1)
        assert (ensemble.weight >= 0).all()
    assert found["unimodal"].weight[0] == 0
    assert found["joint"].weight.tolist() == [1, 0, 0]
    assert found["unimodal"].weight[2] < 0.15 * found["unimodal"].weight[1]
    nobody = np.flatnonzero(~oof.has.any(0))
    link = found["chosen"].combine(oof.links, oof.has, shown=oof.has.T)
    assert len(nobody) > 20
    np.testing.assert_array_equal(link[nobody], np.broadcast_to(found["chosen"].level, link[nobody].shape))
    wild = [(k, rows, np.where(oof.has[oof.expert_of[k], rows][:, None], u, 1e9)) for k, rows, u in oof.links]
    np.testing.assert_array_equal(found["chosen"].combine(wild, oof.has, shown=oof.has.T), link)


def test_experts_weigh_as_their_inner_concordance_exceeds_chance():
    found = fit_ensembles(world(noise=(1.0, 0.3, 0.3)))["chosen"]
    merit = found.score - 0.5
    assert merit.min() > 0.1
    np.testing.assert_allclose(found.weight, merit / merit.sum())
    assert fit_ensembles(world(noise=(20.0, 0.2, 0.2)))["chosen"].weight[0] < 0.1


def test_another_share_of_the_joint_network_is_taken_where_it_is_clearly_better():
    """The joint expert sees both parts, of the others one sees its part and one sees nothing."""
    found = fit_ensembles(world())
    merit = found["chosen"].score - 0.5
    assert merit[0] / merit.sum() < 0.65
    assert found["chosen"].weight.tolist() == [1, 0, 0]


def test_the_best_of_several_shares_of_few_patients_is_not_taken():
    """Sixty patients and experts that are equally good: what is best differs from seed to seed, the weights do not."""
    best, shares = [], []
    for seed in range(10):
        found = fit_ensembles(few(world(seed, noise=(1.0, 1.0, 1.0), absent=0.0), 60))
        shares.append(found["chosen"].weight[0])
        best.append("joint" if found["joint"].tuning_score > found["unimodal"].tuning_score else "unimodal")
    assert set(best) == {"joint", "unimodal"}
    assert sum(0.2 < share < 0.6 for share in shares) >= 9


def few(oof, n):
    """The first n patients of a world."""
    keep = [rows < n for _, rows, _ in oof.links]
    return dataclasses.replace(
        oof,
        links=[(k, rows[own], u[own]) for (k, rows, u), own in zip(oof.links, keep, strict=True)],
        has=oof.has[:, :n],
        target=oof.target.take(np.arange(n)),
    )


def test_offsets_and_scales_of_members_do_not_matter():
    oof = world()
    moved = [(k, rows, 3.0 * u + 11.0 * k) for k, rows, u in oof.links]
    one, two = fit_ensembles(oof)["chosen"], fit_ensembles(dataclasses.replace(oof, links=moved))["chosen"]
    np.testing.assert_allclose(
        one.combine(oof.links, oof.has, shown=oof.has.T), two.combine(moved, oof.has, shown=oof.has.T), atol=1e-9
    )


def test_recalibrated_curves_agree_with_the_life_table_in_each_third_of_risk():
    from lifelines import KaplanMeierFitter

    oof = world(3)
    ensemble = fit_ensembles(oof)["chosen"]
    outputs = outputs_of(ensemble.combine(oof.links, oof.has, shown=oof.has.T), Survival)
    order = np.argsort(outputs["risk_score"])
    for third in np.array_split(order, 3):
        km = KaplanMeierFitter().fit(oof.target.time[third], oof.target.event[third]).predict([0.5, 1.0]).to_numpy()
        assert np.abs(outputs["survival"][third, :2].mean(0) - km).max() < 0.1
    assert (np.diff(outputs["survival"], axis=1) <= 0).all()
    middle = outputs["survival"][order, 1]
    assert (np.diff(middle) <= 1e-12).all()  # the order of risks is that of the curves


def test_links_and_outputs_are_inverse():
    draw = np.random.default_rng(0)
    curve = np.sort(draw.uniform(0.01, 0.99, size=(5, 4)), axis=1)[:, ::-1]
    np.testing.assert_allclose(outputs_of(link_of({"survival": curve}), Survival)["survival"], curve, atol=1e-12)
    p = draw.dirichlet(np.ones(3), size=5)
    np.testing.assert_allclose(outputs_of(link_of({"probability": p}), Labels)["probability"], p, atol=1e-12)
    v = draw.normal(size=5)
    np.testing.assert_array_equal(outputs_of(link_of({"value": v, "risk_score": v}), Values)["value"], v)


@pytest.mark.parametrize("constant", [-1.234, 0.1])
def test_a_member_that_says_the_same_of_all_it_never_saw_does_not_explode(constant):
    oof = world()
    links = [(k, rows, np.full_like(u, constant) if k == 4 else u) for k, rows, u in oof.links]
    found = fit_ensembles(dataclasses.replace(oof, links=links))["chosen"]
    usual = fit_ensembles(oof)["chosen"].spread
    assert found.spread[[3, 5]] == pytest.approx(usual[[3, 5]])
    assert found.spread[4] > 0.05 * min(usual[3], usual[5])
    everyone = [(k, rows, np.full_like(u, constant) if 3 <= k < 6 else u) for k, rows, u in oof.links]
    found = fit_ensembles(dataclasses.replace(oof, links=everyone))["chosen"]
    assert (found.spread[3:6] == 1.0).all()
    assert (found.spread[[0, 1, 2, 6, 7, 8]] == usual[[0, 1, 2, 6, 7, 8]]).all()


def test_a_member_without_out_of_fold_patients_is_refused():
    oof = world()
    with pytest.raises(CohortError, match="out-of-fold"):
        fit_ensembles(dataclasses.replace(oof, links=oof.links[1:]))


def test_one_expert_is_the_model():
    oof = world()
    alone = dataclasses.replace(
        oof, links=oof.links[:3], has=oof.has[:1], expert_of=np.zeros(3, int), inner_of=np.arange(3)
    )
    found = fit_ensembles(alone)
    assert set(found) == {"chosen"}
    assert found["chosen"].weight.tolist() == [1]


def test_inner_scores_of_noise_are_those_of_chance_only_where_weights_are_cross_fitted():
    """Planted: six experts who know nothing. Weights find the luckiest, and a score on its rows believes it."""
    n, experts, flattered, honest = 120, 6, [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        time, censoring = draw.exponential(size=n), draw.exponential(2.0, size=n)
        pairs = [(e, inner) for e in range(experts) for inner in range(FOLDS)]
        oof = OutOfFold(
            links=[
                (k, rows := np.flatnonzero(np.arange(n) % FOLDS == inner), draw.normal(size=(len(rows), 1)))
                for k, (_, inner) in enumerate(pairs)
            ],
            has=np.ones((experts, n), dtype=bool),
            expert_of=np.array([e for e, _ in pairs]),
            inner_of=np.array([inner for _, inner in pairs]),
            target=Survival(event=time <= censoring, time=np.minimum(time, censoring)),
            times=np.array([0.5]),
        )
        found = fit_ensembles(oof)
        flattered.append(found["chosen"].tuning_score)
        honest.append(oof.concordance(cross_fitted(oof, found)["chosen"]))
    assert np.mean(flattered) > 0.54
    assert np.mean(honest) == pytest.approx(0.5, abs=3 * np.std(honest) / np.sqrt(60))


def test_cross_fitted_links_are_those_of_the_whole_where_no_weight_is_chosen():
    oof = world()
    found = fit_ensembles(oof)
    judged = cross_fitted(oof, found)
    whole = found["joint"].combine(oof.links, oof.has, shown=np.zeros((N, 0), dtype=bool))
    np.testing.assert_array_equal(judged["joint"], whole)
    assert oof.concordance(judged["chosen"]) == pytest.approx(found["chosen"].tuning_score, abs=0.01)
    first = [(e, rows, link) for e, (_, rows, link) in enumerate(oof.links[::3])]
    single = dataclasses.replace(oof, links=first, expert_of=np.arange(3), inner_of=np.zeros(3, int))
    alone = fit_ensembles(single)  # one inner fold: there is no other to choose weights on
    plain = alone["chosen"].combine(single.links, single.has, shown=np.zeros((N, 0), dtype=bool))
    np.testing.assert_array_equal(cross_fitted(single, alone)["chosen"], plain)
    assert single.without(0) is None
