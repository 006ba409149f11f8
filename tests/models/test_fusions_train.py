"""Every fusion is fitted, on a CPU and on CUDA; those that draw in training go on exactly where they were killed."""

from dataclasses import replace

import pytest
import torch
from invariants import as_deterministic_cuda
from model_cases import HEADS_OF, SHAPES, make_batch

from medfuse.models import FUSIONS, ModelSettings, build_model
from medfuse.training.fit import fit_member
from medfuse.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=3, batch_size=16, device="cpu", ema=0.5, checkpoint_seconds=1e-9)
DRAWING = [("cascade", {}), ("sequential", {}), ("prime", {"code": 4}), ("transformer", {"recovery": 1.0})]


class StopHere(Exception):
    pass


def fit(name, *, options=None, settings=SETTINGS, **given):
    """A small model of the fusion, fitted on a batch of every outcome."""
    model = ModelSettings(width=16, fusion={"name": name, **(options or {})})
    return fit_member(
        make_batch(32),
        make_batch(16, seed=1),
        build=lambda: build_model(model, shapes=SHAPES, heads=HEADS_OF),
        settings=settings,
        seed=3,
        **given,
    )


@pytest.mark.parametrize(("name", "options"), DRAWING)
def test_a_fit_that_was_interrupted_ends_alike(name, options, tmp_path):
    expected = fit(name, options=options).state

    def watch(progress):
        if progress.step == 3:
            raise StopHere

    with pytest.raises(StopHere):
        fit(name, options=options, workdir=tmp_path, watch=watch)
    torch.rand(7)  # the caller's own draws do not matter
    found = fit(name, options=options, workdir=tmp_path).state
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("balance", ["none", "agm"])
@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_every_fusion_is_fitted_with_all_that_training_adds(name, balance, device, tmp_path):
    """Two epochs with every kind of outcome, a moving average, hidden modalities and micro-batches, then once more."""
    more = {"presence": "balanced", "balance": balance, "accumulate": 2, "epochs": 2, "device": device}
    settings = replace(SETTINGS, **more)
    found = fit(name, settings=settings, workdir=tmp_path)
    assert all(value.isfinite().all() and value.device.type == "cpu" for value in found.state.values())
    assert len(found.history) == 2
    assert all(row["tuning_loss"] is not None for row in found.history)
    assert any(key.startswith("strength.") for key in found.history[0]) == (balance == "agm")
    again = fit(name, settings=settings, workdir=tmp_path)  # finished: the checkpoint is the fit
    assert all(torch.equal(again.state[key], value) for key, value in found.state.items())


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_no_fusion_asks_for_what_cuda_refuses_to_do_the_same_way_twice(name):
    settings = replace(SETTINGS, epochs=2)
    plain = fit(name, settings=settings)
    with as_deterministic_cuda():
        found = fit(name, settings=settings)
    for key, value in plain.state.items():  # sums in another order
        torch.testing.assert_close(found.state[key], value, rtol=0, atol=2e-3)


def test_the_refusals_are_those_of_torch():
    with as_deterministic_cuda():
        torch.ones(3, dtype=torch.long).cumsum(0)
        with pytest.raises(RuntimeError, match="cumsum"):
            torch.ones(3).cumsum(0)
        image = torch.ones(1, 1, 4, 4, requires_grad=True)
        with pytest.raises(RuntimeError, match="upsample_bilinear2d_backward"):
            torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear").sum().backward()
