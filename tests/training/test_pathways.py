"""Gene sets of a card reach the pathway encoder, cut to what preprocessing kept, and the weights stay with them."""

import dataclasses

import numpy as np
import pytest
import simulated

from medfuse.errors import ConfigError, StoreError
from medfuse.models import ModelSettings
from medfuse.training import (
    FoldSettings,
    Outcomes,
    TrainSettings,
    fit_fold,
    load_fold,
    model_notes,
    predict_fold,
    save_fold,
)

QUICK = TrainSettings(epochs=3, lr=3e-3, batch_size=64, device="cpu", patience=0)
# out of alphabetical order; "gone" holds constant genes only, "thin" too few
SETS = {
    "zeta": ("expression0", "expression1", "expression2", "expression60"),
    "alpha": tuple(f"expression{j}" for j in range(3, 12)),
    "gone": ("expression60", "expression61", "expression62"),
    "thin": ("expression20", "expression21"),
}


@pytest.fixture(scope="module")
def cohort():
    made = simulated.only(simulated.simulate(120), "os")
    expression = made.data["expression"]
    samples = {}
    for patient, sample in expression.samples.items():
        tokens = sample.tokens.copy()
        tokens[60:63, 0] = 2.0  # constant everywhere, so preprocessing drops them
        samples[patient] = dataclasses.replace(sample, tokens=tokens)
    return dataclasses.replace(
        made, data={"expression": dataclasses.replace(expression, samples=samples, gene_sets=SETS)}
    )


def settings(**options):
    model = ModelSettings(width=16, encoders={"expression": {"name": "pathway", **options}})
    return FoldSettings(model=model, train=QUICK, seeds=(0,))


def fit(cohort, *, folder=None, **options):
    ids = cohort.ids[:90]
    inner = cohort.inner(ids)
    return fit_fold(
        cohort.data, cohort.outcomes, train_ids=ids, inner=inner, settings=settings(**options), folder=folder
    )


def test_pathways_are_cut_to_the_genes_that_preprocessing_kept(cohort):
    fold = fit(cohort)
    shape = fold.members[0].shapes["expression"]
    assert shape.pathways["zeta"] == SETS["zeta"][:3]
    assert shape.pathways["gone"] == ()
    encoder = fold.members[0].build().encoders[0]
    assert encoder.pathway_names == ("alpha", "zeta")
    assert encoder.left_out == ("gone", "thin")
    genes = [[shape.names[i] for i in row[real]] for row, real in zip(encoder.index, encoder.real, strict=True)]
    assert [sorted(row) for row in genes] == [sorted(SETS["alpha"]), sorted(SETS["zeta"][:3])]
    assert model_notes(fold) == ("expression: 2 pathways with fewer than 3 genes left out: gone, thin",)


def test_a_fold_with_pathways_comes_back_from_disk_exactly(cohort, tmp_path):
    for options in ({}, {"pathways": {"zz": list(SETS["alpha"]), "aa": list(SETS["zeta"])}}):
        folder = tmp_path / str(len(options))
        fold = fit(cohort, **options)
        save_fold(fold, folder)
        again = load_fold(folder)
        assert again.members[0].shapes == fold.members[0].shapes
        bare = {"expression": dataclasses.replace(cohort.data["expression"], gene_sets={})}  # no gene sets at hand
        one, two = (
            predict_fold(f, d, cohort.ids[90:])["os"].risk_score for f, d in ((fold, cohort.data), (again, bare))
        )
        np.testing.assert_array_equal(one, two)


def test_members_of_other_gene_sets_are_not_taken_up(cohort, tmp_path):
    fit(cohort, folder=tmp_path)
    other = dataclasses.replace(cohort.data["expression"], gene_sets={**SETS, "thin": SETS["alpha"][:4]})
    with pytest.raises(StoreError, match="others"):
        fit(dataclasses.replace(cohort, data={"expression": other}), folder=tmp_path)


def test_a_pathway_encoder_without_gene_sets_says_where_they_come_from(cohort):
    bare = dataclasses.replace(cohort.data["expression"], gene_sets={})
    with pytest.raises(ConfigError, match="name a GMT file as gmt of the modality in the card"):
        fit(dataclasses.replace(cohort, data={"expression": bare}))
    with pytest.raises(ConfigError, match="at least 50 genes"):
        fit(cohort, least_genes=50)


def test_orders_that_are_not_alphabetical_survive_the_disk(tmp_path):
    """Weights follow the order of modalities and outcomes; two heads of one kind must not trade places."""
    made = simulated.simulate(120)
    size = made.outcomes.targets["size"]
    other = dataclasses.replace(size, value=-3 * size.value)
    outcomes = Outcomes(patient_ids=made.ids, targets={"zebra": size, "ant": other})
    data = {"stains": made.data["stains"], "clinical": made.data["clinical"]}
    ids = made.ids[:90]
    quick = FoldSettings(model=ModelSettings(width=16), train=QUICK, seeds=(0,))
    fold = fit_fold(data, outcomes, train_ids=ids, inner=made.inner(ids), settings=quick)
    save_fold(fold, tmp_path)
    again = load_fold(tmp_path)
    assert list(again.members[0].shapes) == ["stains", "clinical"]
    one, two = predict_fold(fold, data, made.ids[90:]), predict_fold(again, data, made.ids[90:])
    for outcome in ("zebra", "ant"):
        np.testing.assert_array_equal(one[outcome].value, two[outcome].value)
