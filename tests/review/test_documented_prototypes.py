"""Prototypes in the model card: how many are of effect, collapse, and whom they were fitted on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made import make_run
from test_prototype_views import planted

from medfuse.documents.limits import limits
from medfuse.documents.prototypes import collapsed_text, prototype_text
from medfuse.explaining_prototypes import effective_numbers
from medfuse.review.source import open_review


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Facts of a run with planted prototypes, as far as they are asked for."""
    run = open_review(make_run(tmp_path_factory.mktemp("documented") / "run", patients=120))
    splits = [{"name": name, **split} for name, split in run.splits.items()]
    return SimpleNamespace(splits=splits, prototypes={fold: planted(run, fold) for fold in run.explained})


def test_prototypes_that_are_one_or_near_nobody_are_of_no_effect(told):
    one = told.prototypes["0"]
    assert effective_numbers(one) == {"clinical": 8, "slide": 8, "genes": 7}
    near = np.array(one.train_similarity)
    near[:, 1, 4:] = -1.0  # slide: nobody is nearest to the last four
    cosine = np.array(one.cosine)
    cosine[0, 0, 0, 1] = cosine[0, 0, 1, 2] = 0.99  # clinical: three are one, by way of the second
    cosine[1, 1, 0, 1] = 0.99  # of another network
    changed = replace(one, train_similarity=near, cosine=cosine)
    assert effective_numbers(changed) == {"clinical": 6, "slide": 4, "genes": 7}
    near = np.array(near)
    near[:, 2] = np.nan  # no training patient has genes
    near[:, 1, 1:] = -1.0
    assert effective_numbers(replace(changed, train_similarity=near)) == {"clinical": 6, "slide": 1, "genes": 0}


def test_a_fold_says_numbers_collapse_and_whom_it_was_fitted_on(told):
    text = prototype_text(told)
    first, second = text.split("Fold 1: ")
    for part in (first, second):
        assert "8 per modality (4 levels x 2), network 00-00 of 3, together 50% of the prediction" in part
        assert "in effect: clinical 8, slide 8, genes 7" in part
        assert "collapse check: FAILED, genes 1a and 2b (0.97); of 2 other networks 0 have a collapsed pair" in part
        assert "fitted on 30 patients of the training side alone, its early stopping on 30 more" in part
        assert "no held-out patient among them" in part
    sound = replace(told.prototypes["0"], cosine=told.prototypes["0"].cosine[[1, 0, 2]])
    text = prototype_text(SimpleNamespace(splits=told.splits, prototypes={"0": sound}))
    assert "collapse check: passed, no pair is one; of 2 other networks 1 have a collapsed pair" in text
    assert "Not stored: fold 1." in text
    assert collapsed_text(sound) == ""


def test_a_network_that_was_fitted_on_others_is_told(told):
    other = [{**split, "train": split["train"][3:]} for split in told.splits]
    text = prototype_text(SimpleNamespace(splits=other, prototypes=told.prototypes))
    assert text.count("of whom 3 are NOT OF THE TRAINING SIDE") == 2
    assert "no held-out patient among them" not in text


def test_a_collapsed_pair_is_a_limit(told):
    nothing = {"audit": {}, "metrics": {}, "stress": (), "opened": None}
    said = limits(SimpleNamespace(**nothing, prototypes=told.prototypes))
    assert "Prototypes that should differ are one in fold 0: genes 1a and 2b (0.97)." in said
    assert not any("rototype" in line for line in limits(SimpleNamespace(**nothing, prototypes={})))
