"""Single events of a record read as a summary: values sum, are Owen's, and are told apart from a ranking (E7)."""

import dataclasses
import itertools

import numpy as np
import pytest
from patterned import with_any_patterns

from medfuse.errors import CohortError, ConfigError
from medfuse.explain import Options, coalition_values, contributions
from medfuse.explain import events as module
from medfuse.explain.attribution import RANKING, SUMS
from medfuse.explain.events import Events, attribute_events
from medfuse.games import shapley
from medfuse.sample import ModalitySample

HORIZON = {"os": 700.0, "recurrence": None, "size": None}


def summarised(value, variable, template):
    """Mean, last value and number of three variables, as a loader of summaries would: a sample per coalition."""

    def again(kept):
        out = []
        for row in kept:
            if not row.any():
                out.append(None)
                continue
            tokens = np.array(template.tokens)
            own = [value[row & (variable == v)] for v in range(3)]
            tokens[0] = (own[0].mean(), 1) if len(own[0]) else (0, 0)
            tokens[1] = (own[1][-1], 1) if len(own[1]) else (0, 0)
            tokens[2] = (len(own[2]) - 1.5, 1)
            out.append(ModalitySample(tokens=tokens, position=template.position))
        return out

    return again


def record(cohort, patient, n, seed=0):
    """``n`` events of three variables, and the cohort's data with the summary that they make."""
    draw = np.random.default_rng(seed)
    variable = np.sort(np.arange(n) % 3)
    value = draw.normal(size=n).astype(np.float32) * 2
    again = summarised(value, variable, cohort.data["clinical"].samples[patient])
    own = Events(
        names=tuple(f"v{v}, {k} days before" for k, v in enumerate(variable)),
        variable=variable,
        days=np.arange(n, 0, -1.0),
        again=again,
    )
    (whole,) = again(np.ones((1, n), bool))
    clinical = dataclasses.replace(cohort.data["clinical"], samples={**cohort.data["clinical"].samples, patient: whole})
    return own, {**cohort.data, "clinical": clinical}


def games(fold, data, patient, own, kept, *, outcome):
    """Contribution of the record for each coalition of events, by other code: copies of the patient are predicted."""
    copies = {f"c{k}": sample for k, sample in enumerate(own.again(kept))}
    changed = {
        name: dataclasses.replace(
            one,
            samples={
                c: (sample if name == "clinical" else one.samples[patient])
                for c, sample in copies.items()
                if sample is not None and patient in one.samples
            },
        )
        for name, one in data.items()
    }
    values = coalition_values(fold, changed, list(copies), outcome=outcome)
    phi = contributions(values, horizon=HORIZON[outcome]).contribution
    phi = phi if phi.ndim == 2 else phi[..., 0]
    return phi[:, fold.modalities.index("clinical")]


@pytest.mark.parametrize("outcome", list(HORIZON))
def test_values_are_owens_of_the_recalibrated_contribution(fold, cohort, outcome):
    """Against the mean over all orders that respect variables, of contributions computed by other code."""
    patient = next(i for i in cohort.ids[115:] if all(i in one.samples for one in cohort.data.values()))
    own, data = record(cohort, patient, 6)
    fold = with_any_patterns(fold)
    options = Options(outcome=outcome)
    found = attribute_events(fold, data, {patient: own}, modality="clinical", horizon=HORIZON[outcome], options=options)
    kept = (np.arange(64)[:, None] >> np.arange(6)) & 1 > 0
    phi = games(fold, data, patient, own, kept, outcome=outcome)
    phi[0] = found.recalibration[0]  # what is left of the contribution when there is nothing to read
    np.testing.assert_allclose(found.contribution[0], phi[-1], atol=2e-5)
    orders = [
        sum(blocks, ())
        for variables in itertools.permutations(range(3))
        for blocks in itertools.product(*[itertools.permutations(np.flatnonzero(own.variable == v)) for v in variables])
    ]
    total = np.zeros(6)
    for order in orders:
        number = 0
        for event in order:
            total[event] += (phi[number | 1 << event] - phi[number]) / len(orders)
            number |= 1 << event
    np.testing.assert_allclose(found.values, total, atol=2e-5 * max(1, np.abs(total).max()))
    assert np.abs(total).max() > 0.01
    assert abs(found.recalibration[0]) > 1e-3
    assert found.presence[0] == 0
    assert abs(found.gap[0]) < 2e-5 * max(1, np.abs(total).max())
    assert found.label == (SUMS,)
    assert (found.low <= found.high).all()
    whole = [sum(1 << e for e in np.flatnonzero(own.variable == v)) for v in range(3)]
    between = phi[[sum(w for bit, w in enumerate(whole) if number >> bit & 1) for number in range(8)]]
    sums = np.bincount(own.variable, weights=found.values)
    np.testing.assert_allclose(sums, shapley(between), atol=5e-5)  # a variable's events have its Shapley value


def test_orders_that_are_drawn_agree_with_all_of_them(fold, cohort, monkeypatch):
    patient = cohort.ids[120]
    own, data = record(cohort, patient, 9, seed=3)
    ask = {"modality": "clinical", "horizon": 700.0, "options": Options(outcome="os")}
    exact = attribute_events(fold, data, {patient: own}, **ask)
    monkeypatch.setattr(module, "EXACT", 1)
    drawn = attribute_events(fold, data, {patient: own}, **ask)
    assert not np.array_equal(drawn.values, exact.values)
    assert drawn.complete.all()
    np.testing.assert_allclose(drawn.values.sum(), exact.values.sum(), atol=1e-5)  # of every draw, not on average
    assert np.abs(drawn.values - exact.values).max() < 0.2 * np.abs(exact.values).max()  # 4 standard errors of .05
    wider = (drawn.high - drawn.low) > (exact.high - exact.low)
    assert wider.mean() > 0.5


def test_leaving_out_one_of_many_is_a_ranking_only(fold, cohort, monkeypatch):
    patient = cohort.ids[120]
    own, data = record(cohort, patient, 9, seed=3)
    fold = with_any_patterns(fold)
    options = Options(outcome="os", method="removal")
    found = attribute_events(fold, data, {patient: own}, modality="clinical", horizon=700.0, options=options)
    kept = np.concatenate([np.ones((1, 9), bool), ~np.eye(9, dtype=bool)])
    phi = games(fold, data, patient, own, kept, outcome="os")
    np.testing.assert_allclose(found.values, phi[0] - phi[1:], atol=2e-5)
    assert found.label == (RANKING,)
    monkeypatch.setattr(module, "EXACT", 1)
    monkeypatch.setattr(module, "MOST_DRAWN", 8)  # so many events that even drawing takes too long
    many = attribute_events(
        fold,
        data,
        {patient: own},
        modality="clinical",
        horizon=700.0,
        options=dataclasses.replace(options, method="auto"),
    )
    np.testing.assert_array_equal(many.values, found.values)


def test_one_event_alone_is_the_whole_record(fold, cohort):
    patient = cohort.ids[121]
    own, data = record(cohort, patient, 1)
    found = attribute_events(
        fold, data, {patient: own}, modality="clinical", horizon=700.0, options=Options(outcome="os")
    )
    np.testing.assert_allclose(found.values + found.recalibration, found.contribution, atol=1e-6)
    assert found.positions.tolist() == [[0.0, 1.0]]


def test_refusals(fold, cohort, monkeypatch):
    patient = cohort.ids[120]
    own, data = record(cohort, patient, 6)
    ask = {"modality": "clinical", "horizon": 700.0}
    with pytest.raises(CohortError, match="that make the stored summary, found others"):
        attribute_events(fold, cohort.data, {patient: own}, **ask, options=Options(outcome="os"))
    with pytest.raises(ConfigError, match="no path leads through"):
        attribute_events(fold, data, {patient: own}, **ask, options=Options(outcome="os", method="path"))
    with pytest.raises(CohortError, match="found none"):
        attribute_events(fold, data, {}, **ask)
    monkeypatch.setattr(module, "MOST", 5)
    with pytest.raises(CohortError, match="expected 1 to 5 events"):
        attribute_events(fold, data, {patient: own}, **ask, options=Options(outcome="os"))
