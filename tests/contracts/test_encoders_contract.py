"""Every encoder of the table keeps the promises of design 4."""

import pytest
import torch
from invariants import as_deterministic_cuda, assert_keeps_its_promises, assert_never_waits_for_the_device, outputs
from model_cases import HEADS_OF, PATHWAYS, RAW_SHAPES, make_batch, settings_for
from model_cases import SHAPES as FEATURE_SHAPES

from medfuse.batch import without_modality
from medfuse.errors import ConfigError
from medfuse.models import ENCODERS, build_model, default_encoder
from medfuse.models.encoders import ALONE

SHAPES = {**FEATURE_SHAPES, **RAW_SHAPES}
WAITS = {"prototype_tokens", "ecg_resnet", "volume_resnet"}  # for which items are real: the others cost nothing
BAGS = {"bag", "prototype_tokens", "ecg_resnet", "volume_resnet"}
CASES = [
    ("table", {}, "table"),
    ("table", {"column_dropout": 0.4, "dropout": 0.2}, "wide"),
    ("linear", {}, "wide"),
    ("linear", {"tokens": 3, "layers": 0, "flags": False}, "table"),
    ("linear", {"layers": 2, "activation": "elu"}, "table"),
    ("bag", {}, "bag"),
    ("bag", {"pooling": "mean"}, "bag"),
    ("bag", {"pooling": "none"}, "bag"),
    ("bag", {"tokens": 2, "layers": 0}, "bag"),
    ("bag", {}, "stains"),
    ("bag", {"pooling": "attention", "tokens": 2}, "stains"),
    ("prototype_tokens", {"prototypes": 3}, "bag"),
    ("prototype_tokens", {"prototypes": 2, "dropout": 0.0}, "stains"),
    ("pathway", {"pathways": PATHWAYS}, "wide"),
    ("pathway", {"pathways": PATHWAYS, "tokens": 2, "least_genes": 1}, "wide"),
    ("forest", {"trees": 20, "depth": 3}, "table"),
    ("forest", {"trees": 20, "depth": 4}, "wide"),
    ("forest", {"trees": 20, "depth": 3}, "bag"),
    ("forest", {"trees": 20, "depth": 3}, "stains"),
    ("ecg_resnet", {"blocks": 2, "filters": 8, "kernel": 5}, "ecg"),
    ("ecg_resnet", {"blocks": 1, "filters": 4, "tokens": 2}, "views"),
    ("ecg_resnet", {"blocks": 1, "filters": 4, "pooling": "none"}, "ecg"),
    ("volume_resnet", {"filters": 4}, "ct"),
    ("volume_resnet", {"filters": 2, "layers": [2, 1, 1, 1], "pooling": "none", "stride": 2}, "ct"),
]


def test_every_encoder_has_a_case():
    assert {name for name, _, _ in CASES} == set(ENCODERS) | set(ALONE)


def test_what_flatters_its_training_patients_stands_in_no_joint_network():
    shapes = {name: SHAPES[name] for name in ("table", "wide")}
    for name in ALONE:
        with pytest.raises(ConfigError, match="expected a known name"):
            build_model(settings_for("late", table={"name": name}), shapes=shapes, heads={"os": HEADS_OF["os"]})


@pytest.mark.parametrize(("name", "options", "modality"), CASES)
def test_encoder_keeps_its_promises(name, options, modality):
    batch = make_batch(names=(modality,))

    def build():
        settings = settings_for("late", **{modality: {"name": name, **options}})
        return build_model(settings, shapes={modality: SHAPES[modality]}, heads={"os": HEADS_OF["os"]})

    assert_keeps_its_promises(build, batch, bags=(modality,) if name in BAGS else ())


@pytest.mark.parametrize(("name", "options", "modality"), [case for case in CASES if case[0] not in WAITS])
def test_a_training_step_never_waits_for_the_device(name, options, modality):
    settings = settings_for("late", **{modality: {"name": name, **options}})
    model = build_model(settings, shapes={modality: SHAPES[modality]}, heads={"os": HEADS_OF["os"]})
    batch = make_batch(names=(modality,))
    model.begin(batch)
    assert_never_waits_for_the_device(model, batch)


@pytest.mark.parametrize(("name", "options", "modality"), CASES)
def test_no_encoder_asks_for_what_cuda_refuses_to_do_the_same_way_twice(name, options, modality):
    settings = settings_for("late", **{modality: {"name": name, **options}})
    model = build_model(settings, shapes={modality: SHAPES[modality]}, heads={"os": HEADS_OF["os"]})
    batch = make_batch(names=(modality,))
    with as_deterministic_cuda():
        model.begin(batch)
        model.train().loss(batch).backward()
        told = outputs(model, batch)
    assert told.isfinite().all()
    gradients = [p.grad for p in model.encoders[0].parameters() if p.requires_grad]
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert any(g.abs().sum() > 0 for g in gradients if g is not None) == bool(gradients)


@pytest.mark.parametrize(("name", "options", "modality"), CASES)
def test_encoder_gives_tokens_of_the_width_and_a_mask(name, options, modality):
    settings = settings_for("late", **{modality: {"name": name, **options}})
    model = build_model(settings, shapes={modality: SHAPES[modality]}, heads={"os": HEADS_OF["os"]})
    batch = make_batch(names=(modality,))
    tokens, mask = model.encoders[0](batch.tokens[modality], batch.token_mask[modality], batch.position[modality])
    assert tokens.shape == (*mask.shape, 16)
    assert mask.dtype == torch.bool
    assert torch.isfinite(tokens).all()
    assert torch.equal(mask.any(1), batch.present[:, 0])


@pytest.mark.parametrize(("name", "options", "modality"), CASES)
def test_encoder_names_a_line_from_nothing_to_its_tokens(name, options, modality):
    """The end is what the model sees; the way is continuous, and its inputs have gradients."""
    settings = settings_for("late", **{modality: {"name": name, **options}})
    shapes = {modality: SHAPES[modality]}
    encoder = build_model(settings, shapes=shapes, heads={"os": HEADS_OF["os"]}).eval().encoders[0]
    batch = make_batch(names=(modality,))
    batch = batch.select(batch.present[:, 0].nonzero()[:, 0])
    inputs = (batch.tokens[modality], batch.token_mask[modality], batch.position[modality])
    inputs = (torch.where(inputs[1][..., None], inputs[0], 0.0), *inputs[1:])
    path = encoder.path(*inputs)
    there, speed = path.at(1.0)
    assert torch.allclose(there, torch.ones_like(there))
    assert (speed > 0).all()
    assert (path.at(0.0)[0] == 0).all()
    tokens, mask = encoder(*inputs)
    own, same = path.encode(path.full)
    assert torch.allclose(own, tokens, atol=1e-6)
    assert torch.equal(same, mask)
    near, far = (path.encode(path.empty + t * (path.full - path.empty)) for t in (0.5, 0.5001))
    assert (near[0] - far[0]).abs().max() < 0.05
    assert torch.equal(near[1], mask)
    half = ((path.empty + path.full) / 2).detach().requires_grad_()
    (slope,) = torch.autograd.grad(path.encode(half)[0].square().sum(), half)
    assert slope.shape == path.full.shape
    assert slope.abs().sum() > 0


@pytest.mark.parametrize(("name", "options", "modality"), CASES)
def test_encoder_refuses_another_layout_and_unknown_options(name, options, modality):
    other = "bag" if SHAPES[modality].layout == "columns" else "wide"
    heads = {"os": HEADS_OF["os"]}
    if len({**ENCODERS, **ALONE}[name].layouts) == 1:
        with pytest.raises(ConfigError, match=f'encoder "{name}": expected a modality of layout'):
            build_model(
                settings_for("late", **{other: {"name": name, **options}}), shapes={other: SHAPES[other]}, heads=heads
            )
    with pytest.raises(ConfigError, match='has no option "dropuot"; did you mean'):
        build_model(
            settings_for("late", **{modality: {"name": name, **options, "dropuot": 0.1}}),
            shapes={modality: SHAPES[modality]},
            heads=heads,
        )


def test_default_encoders_serve_their_layout():
    for modality, shape in SHAPES.items():
        assert shape.layout in ENCODERS[default_encoder(shape)].layouts, modality


def test_a_patient_whose_only_modality_is_taken_away_is_a_patient_without_any():
    model = build_model(settings_for("late"), shapes={"table": SHAPES["table"]}, heads={"os": HEADS_OF["os"]})
    batch = make_batch(names=("table",))
    found = outputs(model, without_modality(batch, "table"))
    assert torch.equal(found, found[:1].expand_as(found))


@pytest.mark.parametrize(("name", "options", "modality"), CASES)
def test_no_encoder_normalises_over_patients(name, options, modality):
    settings = settings_for("late", **{modality: {"name": name, **options}})
    model = build_model(settings, shapes={modality: SHAPES[modality]}, heads={"os": HEADS_OF["os"]})
    assert not [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
