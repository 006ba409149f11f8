"""Every fusion of the table keeps the promises of design 4, with any subset of four modalities and five outcomes."""

import pytest
import torch
from invariants import assert_keeps_its_promises, assert_never_waits_for_the_device, outputs, pad
from model_cases import HEADS_OF, SHAPES, make_batch

from medfuse.batch import without_modality
from medfuse.errors import ConfigError
from medfuse.models import FUSIONS, ModelSettings, build_model
from medfuse.models.cost import cost

CASES = [
    ("cascade", {}),
    ("cascade", {"latents": 1, "residual": True, "order": ["bag", "wide", "stains", "table"]}),
    ("coattention", {"query": "wide"}),
    ("coattention", {"query": ["bag", "stains"], "scheme": "mcat", "depth": 2, "residual": True}),
    ("concat", {}),
    ("late", {}),
    ("latent", {}),
    ("latent", {"tied": False, "depth": 2, "latents": 2, "residual": True}),
    ("late", {"weighting": "learned"}),
    ("prime", {}),
    ("prime", {"prime": "bag", "code": 4}),
    ("sequential", {}),
    ("sequential", {"hidden": 4, "dropout": 0.0, "order": ["stains", "bag", "wide", "table"]}),
    ("stacked", {}),
    ("lego", {}),
    ("lego", {"domain": "fft_feature", "depth": 2, "latents": 3}),
    ("lego", {"domain": "fft_token", "latents": 4}),
    ("lego", {"combine": "stack", "depth": 2}),
    ("lego", {"combine": "weave", "depth": 2, "heads": 1}),
    ("prototype", {}),
    ("prototype", {"levels": 3, "keep": 0.2, "positive": "argmax", "weights": {"disentangle": 0, "level": 0}}),
    ("prototype", {"positive": "oracle"}),
    ("prototype_additive", {}),
    ("prototype_additive", {"levels": 2, "each": 1, "keep": 1.0}),
    ("transformer", {"even": True, "recovery": 1.0}),
    ("transformer", {"even": True, "packed": True}),
    ("transformer", {}),
    ("transformer", {"residual": True, "packed": True}),
    ("transformer", {"unimodal_aux": 0.3, "recovery": 1.0}),
    ("transformer", {"recovery": 1.0, "packed": True}),
    ("transformer", {"depth": 1, "heads": 2, "ratio": 1, "dropout": 0.0, "token_dropout": 0.0}),
]


def make(name, options):
    return build_model(
        ModelSettings(width=16, fusion={"name": name, **options}, encoders={"wide": {"name": "linear"}}),
        shapes=SHAPES,
        heads=HEADS_OF,
    )


def test_every_fusion_has_a_case():
    assert {name for name, _ in CASES} == set(FUSIONS)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fusion_keeps_its_promises(name, options):
    assert_keeps_its_promises(lambda: make(name, options), make_batch(), bags=("bag", "stains"))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_training_step_never_waits_for_the_device(name, options):
    model = make(name, options)
    model.begin(make_batch())
    if options.get("packed"):  # lengths are read back once a step, to lay out the tokens without padding
        with pytest.raises((NotImplementedError, RuntimeError)):
            assert_never_waits_for_the_device(model, make_batch())
    else:
        assert_never_waits_for_the_device(model, make_batch())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fusion_weights_are_a_distribution_over_what_is_there(name, options):
    model, batch = make(name, options).eval(), make_batch()
    fused = model.fuse(batch)
    assert fused.states.shape == (*fused.weights.shape, 16)
    assert (fused.weights >= 0).all()
    assert torch.allclose(fused.weights.sum(1), torch.ones(len(batch)))
    assert torch.isfinite(fused.states).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fusion_of_nothing_is_one_prediction_for_everybody(name, options):
    model, batch = make(name, options), make_batch()
    for modality in SHAPES:
        batch = without_modality(batch, modality)
    found = outputs(model, batch)
    assert torch.isfinite(found).all()
    assert torch.equal(found, found[:1].expand_as(found))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_modality_that_the_fusion_says_it_reads_is_used_and_no_other(name, options):
    model, batch = make(name, options), make_batch()
    expected, uses = outputs(model, batch), model.fusion.uses(batch.present)
    assert not (uses & ~batch.present).any()
    assert uses.any(0).all()
    assert torch.equal(uses.any(1), batch.present.any(1))
    for i, modality in enumerate(SHAPES):
        changed = (outputs(model, without_modality(batch, modality)) != expected).any(1)
        assert torch.equal(changed, uses[:, i])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_fusion_refuses_unknown_options(name, options):
    with pytest.raises(ConfigError, match=f'model.fusion: "{name}" has no option "dept"'):
        make(name, {**options, "dept": 3})


@pytest.mark.parametrize(("name", "options"), CASES)
def test_parameters_and_arithmetic_of_a_fusion_are_reported(name, options):
    model, batch = make(name, options), make_batch()
    state = torch.get_rng_state()
    found = cost(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.flops > 2 * 16 * len(HEADS_OF)  # the heads alone, each a map of the state
    twice = cost(model, batch.select([*range(len(batch))] * 2))
    assert twice.flops == pytest.approx(found.flops)  # of a patient, not of a batch
    longer = cost(model, pad(batch, 40, ("bag",)))
    assert longer.flops >= found.flops
    if "packed" in options:  # real tokens alone reach the attention
        unpacked = make(name, {**options, "packed": False})
        assert found.flops < cost(unpacked, batch).flops
