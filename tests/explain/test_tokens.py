"""Within a modality: values sum to its contribution, agree with other software, and find what was planted (E7)."""

import dataclasses

import numpy as np
import planted_tokens
import pytest
import torch
from captum.attr import IntegratedGradients
from patterned import with_any_patterns, with_patterns

from medfuse.errors import CohortError, ConfigError
from medfuse.explain import Options, attribute, check, coalition_values, contributions
from medfuse.explain.attribution import RANKING, SUMS, cells
from medfuse.explain.unit_checks import altered, predicted, randomised
from medfuse.games import shapley
from medfuse.sample import ModalitySample
from medfuse.training import predict_fold

HORIZON = {"os": 700.0, "recurrence": None, "size": None}
SOME = slice(118, 132)


def ask(fold, cohort, modality, outcome="os", units=None, ids=None, **options):
    return attribute(
        fold,
        cohort.data,
        cohort.ids[SOME] if ids is None else ids,
        modality=modality,
        horizon=HORIZON[outcome],
        units=units,
        options=Options(outcome=outcome, **options),
    )


@pytest.mark.parametrize("outcome", list(HORIZON))
@pytest.mark.parametrize(
    ("modality", "method"),
    [("clinical", "path"), ("clinical", "removal"), ("expression", "path"), ("stains", "removal"), ("stains", "path")],
)
def test_values_sum_to_the_contribution(fold, cohort, modality, method, outcome):
    """E7, against contributions that were computed by other code."""
    found = ask(fold, cohort, modality, outcome, method=method)
    assert found.patient_ids == tuple(i for i in cohort.ids[SOME] if i in cohort.data[modality].samples)
    values = coalition_values(fold, cohort.data, found.patient_ids, outcome=outcome)
    column = fold.modalities.index(modality)
    phi = contributions(values, horizon=HORIZON[outcome]).contribution
    phi = phi[:, column] if phi.ndim == 2 else phi[:, column, 0]
    np.testing.assert_allclose(found.contribution, phi, atol=1e-5 * max(1, np.abs(phi).max()))
    sums = np.bincount(found.patient, weights=found.values, minlength=len(found)) + found.presence
    np.testing.assert_allclose(found.contribution - sums - found.recalibration, found.gap, atol=1e-9)
    assert found.complete.all()
    assert set(found.label) == {SUMS}
    assert (np.abs(found.gap) <= np.maximum(0.05 * np.abs(phi), 1e-4)).all()
    if method == "removal":
        assert np.abs(found.gap).max() <= 1e-5 * max(1, np.abs(phi).max())
    assert np.abs(found.values).max() > 1e-3


@pytest.mark.parametrize("outcome", list(HORIZON))
@pytest.mark.parametrize(("modality", "method"), [("clinical", "path"), ("stains", "removal")])
def test_values_sum_to_the_contribution_of_the_recalibrated_game(fold, cohort, modality, method, outcome):
    """E7 where coalitions are moved far: against contributions that were computed by other code."""
    fold = with_any_patterns(fold)
    values = coalition_values(fold, cohort.data, cohort.ids[SOME], outcome=outcome)
    phi = contributions(values, horizon=HORIZON[outcome]).contribution
    phi = phi[:, fold.modalities.index(modality)]
    has = [i in cohort.data[modality].samples for i in values.patient_ids]
    phi = (phi if phi.ndim == 1 else phi[:, 0])[has]
    found = ask(fold, cohort, modality, outcome, method=method)
    np.testing.assert_allclose(found.contribution, phi, atol=1e-5 * max(1, np.abs(phi).max()))
    sums = np.bincount(found.patient, weights=found.values, minlength=len(found)) + found.presence
    np.testing.assert_allclose(found.contribution - sums - found.recalibration, found.gap, atol=1e-9)
    assert found.complete.all()
    assert np.abs(found.recalibration).max() > 0.01
    assert not ask(with_patterns(fold), cohort, modality, outcome, method=method).recalibration.any()


def test_stains_are_players_of_the_game_that_begins_with_the_absent_modality(fold, cohort):
    """Owen's value, from predictions of patients whose files were altered: other code, other data.

    Before patterns are recalibrated, which would read the absent modality otherwise than the stains.
    """
    fold = with_patterns(fold)
    found = ask(fold, cohort, "stains")
    assert np.abs(found.presence).max() == 0
    patient = next(i for i in found.patient_ids if len(cohort.data["stains"].samples[i].tokens) == 2)
    others = [m for m in ("clinical", "expression") if patient in cohort.data[m].samples]
    total = np.zeros(2)
    for number in range(1 << len(others)):
        shown = {m for bit, m in enumerate(others) if number >> bit & 1}
        data = {
            name: one if name in shown | {"stains"} else dataclasses.replace(one, samples={})
            for name, one in cohort.data.items()
        }
        copies = {f"c{k}": (patient, np.array([k & 1, k >> 1]) > 0) for k in range(4)}
        game = np.array(predicted(fold, altered(data, "stains", copies), list(copies), like=found))
        size, count = len(shown), len(others) + 1
        share = [1.0, 1 / 2, 1 / 3][len(others)] if size in (0, len(others)) else 1 / 6
        assert count in (1, 2, 3)
        total += share * shapley(game)
    own = found.patient == found.patient_ids.index(patient)
    np.testing.assert_allclose(found.values[own], total, atol=1e-4)
    assert [found.name(row) for row in np.flatnonzero(own)] == ["he", "ki67"]


@pytest.fixture(scope="module")
def genes():
    cohort = planted_tokens.planted("expression", n=90)
    cohort = dataclasses.replace(cohort, data={"expression": cohort.data["expression"]})
    return cohort, planted_tokens.fit(cohort, train=70, epochs=6, encoders={"expression": {"name": "linear"}})


def test_integrated_gradients_agree_with_captum(genes):
    """One modality, of one member after the other: captum integrates the same line with another quadrature."""
    cohort, fold = genes
    ids = cohort.ids[70:74]
    one = dataclasses.replace(fold, members=fold.members[:1])
    ensembles = {
        "os": {
            name: dataclasses.replace(e, expert_of=e.expert_of[:1], centre=e.centre[:1], spread=e.spread[:1])
            for name, e in fold.ensembles["os"].items()
        }
    }
    one = dataclasses.replace(one, ensembles=ensembles)
    time = float(fold.ensembles["os"]["chosen"].times[4])
    found = attribute(one, cohort.data, ids, modality="expression", horizon=time)
    member, ensemble = one.members[0], ensembles["os"]["chosen"]
    model = member.build()
    from medfuse.training.member import make_batch, transform_patients

    batch = make_batch(transform_patients(cohort.data, member.preprocessing, ids), ids, shapes=member.shapes)

    def value(flag):
        tokens = torch.stack([batch.tokens["expression"][..., 0].repeat(len(flag) // len(ids), 1), flag], dim=-1)
        mask = torch.ones_like(flag, dtype=torch.bool)
        encoded, there = model.encoders[0](tokens, mask, torch.zeros_like(flag)[..., None])
        logits = model.decode(model.fusion([encoded], [there], mask[:, :1]))["os"]
        hazard = -torch.nn.functional.logsigmoid(-logits)
        return ensemble.slope / ensemble.spread[0] * hazard[:, :5].sum(1).log()

    theirs = IntegratedGradients(value).attribute(batch.tokens["expression"][..., 1], n_steps=400)
    ours = found.values.reshape(len(ids), -1)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=2e-3 * np.abs(ours).max())


def test_gene_sets_are_sums_of_their_genes(genes):
    cohort, fold = genes
    options = {"modality": "expression", "horizon": 500.0}
    columns = attribute(fold, cohort.data, cohort.ids[70:], **options)
    sets = attribute(fold, cohort.data, cohort.ids[70:], units="gene_set", **options)
    by_gene = columns.values.reshape(20, 60).reshape(20, 6, 10).sum(axis=2)
    np.testing.assert_allclose(sets.values.reshape(20, 7)[:, :6], by_gene, atol=1e-9)
    assert sets.names == ("S0", "S1", "S2", "S3", "S4", "S5", "(in no gene set)")
    assert np.array_equal(sets.values.reshape(20, 7)[:, 6], np.zeros(20))


def test_a_gene_of_two_sets_is_divided_and_pathways_count_their_own(genes):
    cohort, _ = genes
    overlapping = {**cohort.data["expression"].gene_sets, "TWICE": tuple(f"expression{j}" for j in range(30, 40))}
    data = {"expression": dataclasses.replace(cohort.data["expression"], gene_sets=overlapping)}
    doubled = dataclasses.replace(cohort, data=data)
    for encoder in ("linear", "pathway"):
        fold = planted_tokens.fit(doubled, train=70, epochs=4, encoders={"expression": {"name": encoder}})
        found = attribute(fold, data, cohort.ids[70:], modality="expression", horizon=500.0, units="gene_set")
        genewise = attribute(fold, data, cohort.ids[70:], modality="expression", horizon=500.0)
        assert found.complete.all()
        sums = [np.bincount(a.patient, weights=a.values) for a in (found, genewise)]
        np.testing.assert_allclose(sums[0], sums[1], atol=1e-8)
        table = found.values.reshape(20, -1)
        same = np.allclose(table[:, found.names.index("S3")], table[:, found.names.index("TWICE")])
        assert same == (encoder == "linear")


def test_leaving_out_one_of_many_is_a_ranking_only(fold, cohort):
    found = ask(fold, cohort, "expression", method="removal")
    assert RANKING in found.label
    assert not found.complete.all()


def test_a_missing_cell_adds_nothing(fold, cohort):
    found = ask(fold, cohort, "clinical", ids=cohort.ids[100:])
    blank = [
        cohort.data["clinical"].samples[found.patient_ids[row]].tokens[unit, 1] == 0
        for row, unit in zip(found.patient, found.unit, strict=True)
    ]
    assert np.array_equal(found.values[blank], np.zeros(sum(blank)))
    assert sum(blank) > 3
    assert (np.abs(found.values[~np.array(blank)]) > 0).mean() > 0.9


@pytest.mark.parametrize("encoder", [{"name": "bag"}, {"name": "bag", "pooling": "mean"}, {"name": "prototype_tokens"}])
def test_instances_and_regions(encoder):
    cohort = planted_tokens.planted("tiles", n=80)
    samples = dict(cohort.data["tiles"].samples)
    ids = cohort.ids[60:70]
    twice = np.concatenate([samples[ids[0]].tokens, samples[ids[0]].tokens[:1]])
    place = np.concatenate([samples[ids[0]].position, [[9000.0, 9000.0]]]).astype(np.float32)
    samples[ids[0]] = ModalitySample(tokens=twice, position=place)
    data = {**cohort.data, "tiles": dataclasses.replace(cohort.data["tiles"], samples=samples)}
    fold = planted_tokens.fit(dataclasses.replace(cohort, data=data), train=60, epochs=5, encoders={"tiles": encoder})
    one = attribute(fold, data, ids, modality="tiles", horizon=500.0)
    grid = attribute(fold, data, ids, modality="tiles", horizon=500.0, units="region", options=Options(cells=3))
    assert one.complete.all()
    assert np.bincount(one.patient).tolist() == [len(samples[i].tokens) for i in ids]
    own = one.values[one.patient == 0]
    assert own[0] == pytest.approx(own[-1], rel=1e-4, abs=1e-7)  # equal instances count alike, wherever they are
    assert one.positions[len(own) - 1].tolist() == [9000.0, 9000.0]
    for row, i in enumerate(ids):
        cell = cells(samples[i].position, per_side=3)
        sums = np.bincount(cell, weights=one.values[one.patient == row], minlength=9)
        ours = grid.patient == row
        assert np.array_equal(grid.unit[ours], np.unique(cell))
        np.testing.assert_allclose(grid.values[ours], sums[grid.unit[ours]], atol=1e-9)


def test_cells_are_cubes_of_equal_side():
    position = np.array([[0, 0], [10, 0], [0, 5], [9.9, 5]], dtype=np.float32)
    assert cells(position, per_side=2).tolist() == [0, 1, 2, 3]
    assert cells(position[:1], per_side=4).tolist() == [0]
    assert len(np.unique(cells(np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32), per_side=2))) == 8


def test_refusals(fold, cohort):
    with pytest.raises(ConfigError, match="no modality 'clincal'"):
        ask(fold, cohort, "clincal")
    with pytest.raises(ConfigError, match="has no units 'gene_set'"):
        ask(fold, cohort, "expression", units="gene_set")
    with pytest.raises(ConfigError, match="expected cells"):
        ask(fold, cohort, "stains", method="occlusion")
    with pytest.raises(ConfigError, match="expected a horizon within"):
        attribute(fold, cohort.data, cohort.ids[:3], modality="clinical")
    with pytest.raises(ConfigError, match="has no times"):
        attribute(fold, cohort.data, cohort.ids[:3], modality="clinical", horizon=9.0, options=Options(outcome="size"))
    nobody = [i for i in cohort.ids if i not in cohort.data["stains"].samples]
    with pytest.raises(CohortError, match="expected patients who have stains"):
        ask(fold, cohort, "stains", ids=nobody)
    found = ask(fold, cohort, "clinical")
    with pytest.raises(CohortError, match="found none with id"):
        found.rows("somebody")


def test_altered_patients_are_what_the_model_sees(fold, cohort):
    found = ask(fold, cohort, "clinical")
    patient = found.patient_ids[0]
    same = altered(cohort.data, "clinical", {"c": (patient, np.ones(4, dtype=bool))})
    said = predict_fold(fold, same, ["c"])["os"].survival
    np.testing.assert_allclose(said, predict_fold(fold, cohort.data, [patient])["os"].survival)
    gone = altered(cohort.data, "stains", {"c": (patient, np.zeros(2, dtype=bool))})
    assert not gone["stains"].samples


@pytest.fixture(scope="module")
def clinical():
    cohort = planted_tokens.planted("clinical", n=260)
    return cohort, planted_tokens.fit(cohort, train=180, epochs=25)


def test_the_planted_column_comes_first_and_the_checks_say_so(clinical):
    cohort, fold = clinical
    found = attribute(fold, cohort.data, cohort.ids[180:], modality="clinical", horizon=700.0)
    assert planted_tokens.first_is_right(found, cohort) >= 0.95
    checked = check(fold, cohort.data, found, patients=15, draws=4)
    passed = {c.name: c.passed for c in checked.checks}
    assert passed["deletion"]
    assert passed["insertion"]
    assert passed["signs"]
    assert passed["completeness"]
    assert checked.badge.startswith(f"passed {sum(passed.values())} of 6")


def test_checks_fail_for_values_of_the_wrong_sign_and_for_those_of_other_units(clinical):
    """The checks can fail; and values of random weights are recognised as such."""
    cohort, fold = clinical
    ids = cohort.ids[180:210]
    other = attribute(randomised(fold, seed=5), cohort.data, ids, modality="clinical", horizon=700.0)
    found = attribute(fold, cohort.data, ids, modality="clinical", horizon=700.0)
    wrong = dataclasses.replace(found, values=-found.values)
    by_name = {c.name: c for c in check(fold, cohort.data, wrong, patients=15, draws=2).checks}
    assert not by_name["deletion"].passed
    assert not by_name["insertion"].passed
    assert not by_name["signs"].passed
    assert by_name["deletion"].high < 0
    moved = dataclasses.replace(found, values=np.roll(found.values.reshape(30, 6), 1, axis=1).ravel())
    moved = {c.name: c for c in check(fold, cohort.data, moved, patients=15, draws=2).checks}
    right = {c.name: c for c in check(fold, cohort.data, found, patients=15, draws=2).checks}
    assert moved["deletion"].value < right["deletion"].value / 4
    assert not moved["deletion"].passed
    known = {c.name: c for c in check(randomised(fold, seed=5), cohort.data, other, patients=5, draws=1, seed=5).checks}
    assert not known["weights"].passed  # the draw is the same network: correlation 1
    assert known["weights"].value == pytest.approx(1, abs=0.01)


SLOW = [
    ("expression", "gene_set", "linear"),
    ("expression", "gene_set", "pathway"),
    ("tiles", "instance", "bag"),
    ("tiles", "instance", "prototype_tokens"),
    ("stains", None, "bag"),
    ("clinical", None, "table"),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "units", "encoder"), SLOW)
def test_planted_units_come_first(kind, units, encoder, seed):
    """Planted truth: the top unit is the one that carries in >= 95 % of held-out patients."""
    cohort = planted_tokens.planted(kind, seed=seed)
    fold = planted_tokens.fit(cohort, encoders={kind: {"name": encoder}})
    found = attribute(fold, cohort.data, cohort.ids[240:], modality=kind, horizon=700.0, units=units)
    assert planted_tokens.first_is_right(found, cohort) >= 0.95
    assert found.complete.all()


@pytest.mark.slow
def test_a_model_of_permuted_outcomes_has_little_to_explain():
    cohort = planted_tokens.planted("clinical")
    fold = planted_tokens.fit(cohort)
    null = planted_tokens.fit(cohort, outcomes=planted_tokens.permuted(cohort))
    found = attribute(fold, cohort.data, cohort.ids[240:], modality="clinical", horizon=700.0)
    checked = {c.name: c for c in check(fold, cohort.data, found, patients=10, draws=2, permuted=null).checks}
    assert checked["labels"].passed, checked["labels"]
