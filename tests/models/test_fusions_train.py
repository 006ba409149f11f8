"""Fusions that draw in training go on exactly where they were killed: what they draw from is in the checkpoint."""

import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch

from medfuse.models import ModelSettings, build_model
from medfuse.training.fit import fit_member
from medfuse.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=3, batch_size=16, device="cpu", ema=0.5, checkpoint_seconds=1e-9)
DRAWING = [("cascade", {}), ("sequential", {}), ("prime", {"code": 4}), ("transformer", {"recovery": 1.0})]


class StopHere(Exception):
    pass


@pytest.mark.parametrize(("name", "options"), DRAWING)
def test_a_fit_that_was_interrupted_ends_alike(name, options, tmp_path):
    settings = ModelSettings(width=16, fusion={"name": name, **options})
    parts = make_batch(32), make_batch(16, seed=1)

    def fit(**given):
        return fit_member(
            *parts,
            build=lambda: build_model(settings, shapes=SHAPES, heads=HEADS_OF),
            settings=SETTINGS,
            seed=3,
            **given,
        )

    expected = fit().state

    def watch(progress):
        if progress.step == 3:
            raise StopHere

    with pytest.raises(StopHere):
        fit(workdir=tmp_path, watch=watch)
    torch.rand(7)  # the caller's own draws do not matter
    found = fit(workdir=tmp_path).state
    assert all(torch.equal(found[key], expected[key]) for key in expected)
