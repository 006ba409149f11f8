import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from invariants import pad
from model_cases import HEADS_OF, SHAPES, make_batch, settings_for
from scipy.stats import kendalltau

from medfuse.batch import without_modality
from medfuse.errors import ConfigError, ModelError
from medfuse.models import FUSIONS, ModalityShape, ModelSettings, Readout, build_model
from medfuse.models.fusion import LateFusion
from medfuse.training.score import harrell_c


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(settings_for("late"), shapes=SHAPES, heads=HEADS_OF)


def test_loss_is_the_mean_over_outcomes(model):
    batch = make_batch()
    model.eval()
    logits = model(batch)
    single = [float(model.head(o).loss(logits[o], batch.targets[o]).detach()) for o in HEADS_OF]
    assert float(model.loss(batch).detach()) == pytest.approx(sum(single) / len(single), rel=1e-6)


def test_predict_gives_every_outcome_what_its_kind_has(model):
    found = model.eval().predict(make_batch())
    kinds = {name: set(values) for name, values in found.items()}
    assert kinds == {
        "os": {"risk_score", "survival"},
        "dfs": {"risk_score"},
        "recurrence": {"risk_score", "probability"},
        "grade": {"risk_score", "probability"},
        "score": {"risk_score", "value"},
    }
    assert not any(value.requires_grad for values in found.values() for value in values.values())


def test_late_prediction_is_the_mean_of_the_single_modalities(model):
    model.eval()
    batch = make_batch()
    both = replace(batch, present=batch.present & torch.tensor([True, True, False, False]))
    one, other = (
        model(replace(batch, present=both.present & torch.tensor([i == 0, i == 1, False, False])))["os"] for i in (0, 1)
    )
    rows = both.present[:, :2].all(1)
    assert torch.allclose(model(both)["os"][rows], ((one + other) / 2)[rows], atol=1e-6)


def test_padding_of_everybody_in_a_part_of_a_batch_is_not_computed(monkeypatch):
    seen = []
    model = build_model(settings_for("late"), shapes=SHAPES, heads=HEADS_OF).eval()
    bag = model.encoders[2]
    monkeypatch.setattr(bag, "body", torch.nn.Sequential(bag.body, Watch(seen)))
    batch = make_batch()
    expected = model(batch)["os"]
    longer = pad(batch, 300, ("bag",))
    found = model(longer)["os"]
    nobody = model(without_modality(longer, "bag"))["os"]
    assert [shape[1] for shape in seen] == [6, 6, 1]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(nobody, model(without_modality(batch, "bag"))["os"], atol=1e-5)


class Watch(torch.nn.Module):
    """Remembers the shapes it saw."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return x


def test_any_modality_name_is_allowed():
    names = {"keys": SHAPES["table"], "rna.seq": SHAPES["wide"], "type": SHAPES["bag"]}
    model = build_model(settings_for("concat"), shapes=names, heads={"a.b": HEADS_OF["os"]})
    assert model.modalities == ("keys", "rna.seq", "type")
    assert model.outcomes == ("a.b",)


def test_model_refuses_another_batch(model):
    with pytest.raises(ModelError, match="expected modalities table, wide, bag, stains, found table"):
        model(make_batch(names=("table",)))
    with pytest.raises(ModelError, match='no outcome "os"'):
        model.loss(replace(make_batch(), targets={"ost": make_batch().targets["os"]}))
    with pytest.raises(ModelError, match='did you mean "score"'):
        model.head("scores")


@pytest.mark.parametrize(
    ("settings", "heads", "message"),
    [
        ({"encoders": {"wsi": {"name": "bag"}}}, HEADS_OF, '"wsi" is not a modality of this run'),
        ({"encoders": {"bag": {"name": "bug"}}}, HEADS_OF, 'model.encoders.bag.name: .* did you mean "bag"'),
        ({"defaults": {"bags": {"name": "linear"}}}, HEADS_OF, '"bags" is no default encoder; did you mean "bag"'),
        ({"fusion": {"name": "transfromer"}}, HEADS_OF, 'did you mean "transformer"'),
        ({"fusion": {"depth": 2}}, HEADS_OF, "model.fusion.name: expected a known name"),
        ({"fusion": {"name": "late", "width": 3}}, HEADS_OF, 'has no option "width"'),
        ({"width": 0}, HEADS_OF, "model.width"),
        ({}, {}, "at least one modality and one outcome"),
        ({}, {"os": replace(HEADS_OF["os"], name="hazard")}, "model.head.os.name"),
        ({}, {"os": replace(HEADS_OF["os"], options={"ties": "efron"})}, 'model.head.os: .* no option "ties"'),
    ],
)
def test_build_model_refuses(settings, heads, message):
    with pytest.raises(ConfigError, match=message):
        build_model(ModelSettings(**settings), shapes=SHAPES, heads=heads)


def test_what_replaces_a_default_encoder_does_so_where_nothing_else_is_said():
    settings = ModelSettings(
        encoders={"stains": {"name": "bag", "pooling": "mean"}},
        defaults={"bag": {"name": "prototype_tokens", "prototypes": 3}, "linear": {"dropout": 0.5}},
        fusion={"name": "late"},
    )
    model = build_model(settings, shapes=SHAPES, heads=HEADS_OF)
    found = {name: type(encoder).__name__ for name, encoder in zip(model.modalities, model.encoders, strict=True)}
    assert found == {
        "table": "TableEncoder",
        "wide": "LinearEncoder",
        "bag": "PrototypeTokensEncoder",
        "stains": "BagEncoder",
    }


def test_an_encoder_without_its_argument_is_refused():
    with pytest.raises(ConfigError, match="expected gene sets, found none"):
        build_model(settings_for("late", wide={"name": "pathway"}), shapes=SHAPES, heads=HEADS_OF)


def test_options_without_a_name_go_to_the_default_encoder():
    settings = settings_for("late", table={"column_dropout": 0.5})
    model = build_model(settings, shapes={"table": SHAPES["table"]}, heads=HEADS_OF)
    assert model.encoders[0].column_dropout == 0.5


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model(ModelSettings(width=16), shapes=SHAPES, heads=HEADS_OF).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_one_patient_cohort_and_one_column():
    shapes = {"one": ModalityShape(layout="columns", features=1)}
    model = build_model(ModelSettings(width=8), shapes=shapes, heads={"os": HEADS_OF["os"]})
    batch = make_batch(names=("table",)).select([1])
    one = replace(
        batch,
        modalities=("one",),
        tokens={"one": batch.tokens["table"][:, :1]},
        token_mask={"one": batch.token_mask["table"][:, :1]},
        position={"one": batch.position["table"][:, :1]},
    )
    model.loss(one).backward()
    assert model.eval().predict(one)["os"]["survival"].shape == (1, 3)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_bfloat16_autocast_stays_close(fusion):
    torch.manual_seed(0)
    model = build_model(settings_for(fusion), shapes=SHAPES, heads=HEADS_OF).eval()
    batch = make_batch()
    exact = model.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.loss(batch)
    rough.backward()
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def both_precisions(device, settings):
    """Predictions of 400 patients by a network whose every weight was drawn, in float32 on the CPU and in bfloat16."""
    torch.manual_seed(0)
    model, batch = build_model(settings, shapes=SHAPES, heads=HEADS_OF), make_batch(400)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.begin(batch)
    exact = model.eval().predict(batch)
    model, there = model.to(device), batch.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        rough = model.predict(there)
    return batch, exact, rough


def ranks(device, fusion):
    """Per survival outcome: Kendall's tau, difference of C, and the part of different scores that stay different."""
    batch, exact, rough = both_precisions(device, settings_for(fusion))
    for outcome in ("os", "dfs"):
        one, other = (found[outcome]["risk_score"].float().cpu().numpy() for found in (exact, rough))
        target = batch.targets[outcome]
        event, time = (x[target.observed].numpy() for x in (target.event, target.time))
        kept = [harrell_c(event, time, x[target.observed.numpy()]) for x in (one, other)]
        yield (
            kendalltau(one, other).statistic,
            abs(kept[0] - kept[1]),
            len(set(other.tolist())) / len(set(one.tolist())),
        )


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_bfloat16_keeps_the_order_of_patients(fusion):
    for tau, gap, distinct in ranks("cpu", fusion):
        assert tau >= 0.99
        assert gap <= 0.005
        assert distinct > 0.99  # the heads stay in full precision: no ties


def test_prototypes_are_told_apart_in_full_precision():
    """In bfloat16 other instances were the best ones: tau was .971."""
    _, exact, rough = both_precisions("cpu", replace(settings_for("prototype"), width=64))
    taus = [kendalltau(exact[o]["risk_score"].numpy(), rough[o]["risk_score"].float().numpy()).statistic for o in exact]
    assert min(taus) >= 0.985


@pytest.mark.gpu
@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_bfloat16_on_cuda_keeps_the_order_of_float32(fusion):
    for tau, gap, distinct in ranks("cuda", fusion):
        assert tau >= 0.99
        assert gap <= 0.005
        assert distinct > 0.99


def test_models_import_torch_and_numpy_only():
    code = (
        "import sys, medfuse.models; "
        "print(sorted({'pandas', 'pydantic', 'sklearn', 'sksurv', 'mlflow', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.parametrize("fusion", ["concat", "late", "lego", "prototype_additive", "transformer"])
def test_cuda_gives_the_same_loss_and_gradients(fusion):
    torch.manual_seed(0)
    model = build_model(settings_for(fusion), shapes=SHAPES, heads=HEADS_OF).eval()
    batch = make_batch()
    model.loss(batch).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    loss = model.loss(batch).item()
    model.zero_grad()
    model.cuda()
    there = model.loss(batch.to("cuda"))
    there.backward()
    assert there.item() == pytest.approx(loss, rel=1e-4)
    for p, grad in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad.cpu(), grad, atol=1e-4)


class Staged(LateFusion):
    """A late fusion with a readout of the patients who have the table, a penalty, and a fitted centre."""

    def __init__(self, **given):
        super().__init__(**given, dropout=0.0)
        self.register_buffer("centre", torch.zeros(given["width"]))

    def begin(self, tokens, masks, present, targets, everyone):
        self.centre.copy_(tokens[0][present[:, 0]].mean((0, 1)))

    def forward(self, tokens, masks, present):
        fused = super().forward(tokens, masks, present)
        readout = Readout(states=fused.states[:, 0], included=present[:, 0], weight=0.5)
        return replace(fused, readouts=(readout,), parts={"table": fused.states[:, 0]})

    def penalties(self, fused, targets):
        return {"constant": 0.25 * torch.ones(())}


def test_readouts_and_penalties_add_to_the_training_loss_alone(monkeypatch):
    monkeypatch.setitem(FUSIONS, "staged", Staged)
    model = build_model(settings_for("staged"), shapes=SHAPES, heads=HEADS_OF)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "column_dropout"):
            module.column_dropout = 0.0
    batch = make_batch()
    plain = float(model.eval().loss(batch).detach())
    fused = model.fuse(batch)
    only = replace(batch, present=batch.present & torch.tensor([True, False, False, False]))
    seen = {k: replace(t, observed=t.observed & batch.present[:, 0]) for k, t in batch.targets.items()}
    alone = float(model.loss(replace(only, targets=seen)).detach())  # the table alone, of those who have it
    assert float(model.train().loss(batch).detach()) == pytest.approx(plain + 0.5 * alone + 0.25, rel=1e-5)
    assert len(fused.readouts) == 1


def test_what_is_fitted_before_the_first_step_comes_from_train_alone(monkeypatch):
    monkeypatch.setitem(FUSIONS, "staged", Staged)
    torch.manual_seed(0)
    model = build_model(settings_for("staged"), shapes=SHAPES, heads=HEADS_OF)
    model.begin(make_batch(12))
    first = model.fusion.centre.clone()
    assert first.abs().sum() > 0
    model.begin(make_batch(12, seed=1))
    assert not torch.equal(model.fusion.centre, first)
    assert torch.equal(model.state_dict()["fusion.centre"], model.fusion.centre)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_bfloat16_autocast_trains(fusion):
    torch.manual_seed(0)
    model = build_model(settings_for(fusion), shapes=SHAPES, heads=HEADS_OF).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(make_batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
