import numpy as np
import pytest
import torch

from medfuse.batch import (
    Batch,
    Item,
    ModalityShape,
    TargetTensors,
    cap_tokens,
    collate,
    drop_modalities,
    target_tensors,
    without_modality,
)
from medfuse.errors import ModelError
from medfuse.sample import ModalitySample
from medfuse.targets import Labels, Survival, Values


def sample(t, f, *, fill=None, start=0.0):
    tokens = np.full((t, f), fill, dtype=np.float32) if fill is not None else np.arange(t * f).reshape(t, f) + start
    return ModalitySample(tokens=tokens.astype(np.float32), position=np.arange(t, dtype=np.float32)[:, None])


def survival(event, time, observed=True):
    return Survival(event=np.array([event]), time=np.array([time]), observed=np.array([observed]))


@pytest.fixture
def items():
    return [
        Item(
            patient_id="a", samples={"bag": sample(3, 4), "table": sample(5, 2)}, targets={"os": survival(True, 10.5)}
        ),
        Item(patient_id="b", samples={"bag": sample(1, 4)}, targets={"os": survival(False, 99.0, observed=False)}),
        Item(patient_id="c", samples={}, targets={}),
    ]


@pytest.fixture
def batch(items):
    return collate(items)


def simple(present):
    present = torch.as_tensor(present)
    n, m = present.shape
    names = tuple(f"m{i}" for i in range(m))
    return Batch(
        tokens={k: torch.zeros(n, 1, 1) for k in names},
        token_mask={k: torch.ones(n, 1, dtype=torch.bool) for k in names},
        position={k: torch.zeros(n, 1, 1) for k in names},
        present=present,
        modalities=names,
        patient_ids=tuple(str(i) for i in range(n)),
    )


def test_collate_pads_and_masks(batch):
    assert batch.modalities == ("bag", "table")
    assert batch.tokens["bag"].shape == (3, 3, 4)
    assert batch.token_mask["bag"].tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert batch.present.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.tokens["bag"][1, 1:].abs().sum() == 0
    assert batch.tokens["bag"][0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert batch.position["bag"][0, :, 0].tolist() == [0, 1, 2]
    assert batch.patient_ids == ("a", "b", "c")


def test_collate_gives_absent_outcomes_as_unobserved(batch):
    target = batch.targets["os"]
    assert target.kind == "survival"
    assert target.observed.tolist() == [True, False, False]
    assert target.time.tolist() == [10.5, 0.0, 0.0]
    assert target.event.tolist() == [True, False, False]


def test_collate_with_shapes_makes_room_for_a_modality_of_nobody(items):
    shapes = {
        "genes": ModalityShape(layout="columns", features=7),
        "table": ModalityShape(layout="columns", features=5),
        "bag": ModalityShape(layout="vectors", features=4),
        "tiles": ModalityShape(layout="vectors", features=6, coordinates=2),
    }
    batch = collate(items, shapes=shapes)
    assert batch.modalities == ("genes", "table", "bag", "tiles")
    assert batch.tokens["genes"].shape == (3, 7, 2)
    assert batch.tokens["tiles"].shape == (3, 1, 6)
    assert batch.position["tiles"].shape == (3, 1, 2)
    assert not batch.present[:, 0].any()
    assert not batch.token_mask["genes"].any()


def test_collate_of_patients_without_anything():
    batch = collate([Item(patient_id="x", samples={})], shapes={"bag": ModalityShape(layout="vectors", features=3)})
    assert len(batch) == 1
    assert not batch.present.any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "at least one patient"),
        ([Item(patient_id="z", samples={"bagg": sample(2, 4)})], 'did you mean "bag"'),
        ([Item(patient_id="z", samples={"bag": sample(2, 9)})], r"patient z: expected tokens \(T, 4\)"),
    ],
)
def test_collate_refuses(bad, message):
    with pytest.raises(ModelError, match=message):
        collate(bad, shapes={"bag": ModalityShape(layout="vectors", features=4)})


def test_collate_refuses_two_kinds_of_one_outcome(items):
    values = Values(value=np.array([1.0]))
    with pytest.raises(ModelError, match="patient d: expected one survival row"):
        collate([*items, Item(patient_id="d", samples={}, targets={"os": values})])


def test_batch_refuses_other_shapes(batch):
    with pytest.raises(ModelError, match="expected boolean present"):
        Batch(**{**vars(batch), "present": batch.present.float()})
    with pytest.raises(ModelError, match='modality "bag": expected tokens'):
        Batch(**{**vars(batch), "token_mask": {**batch.token_mask, "bag": batch.token_mask["bag"][:, :1]}})
    with pytest.raises(ModelError, match='"bag" has no tokens'):
        Batch(**{**vars(batch), "tokens": {"table": batch.tokens["table"]}})
    with pytest.raises(ModelError, match='outcome "os": expected 3 patients, found 2'):
        Batch(**{**vars(batch), "targets": {"os": batch.targets["os"].apply(lambda t: t[:2])}})


def test_select_reorders_everything(batch):
    chosen = batch.select([1, 0, 1])
    assert chosen.patient_ids == ("b", "a", "b")
    assert torch.equal(chosen.tokens["bag"][1], batch.tokens["bag"][0])
    assert chosen.present.tolist() == [[True, False], [True, True], [True, False]]
    assert chosen.targets["os"].time.tolist() == [0.0, 10.5, 0.0]
    assert len(batch.select(torch.tensor([], dtype=torch.int64))) == 0


def test_to_and_repr_show_the_batch(batch):
    moved = batch.to("cpu")
    assert torch.equal(moved.tokens["bag"], batch.tokens["bag"])
    assert moved.device == torch.device("cpu")
    assert repr(batch) == "Batch(3 patients; bag (3, 3, 4), table (3, 5, 2); outcomes os)"
    assert batch.nbytes == (36 + 30) * 4 + (9 + 15) + (9 + 15) * 4


def test_target_tensors_of_each_kind():
    binary = target_tensors(Labels(label=np.array([0, 1]), classes=("no", "yes")))
    assert binary.kind == "binary"
    assert binary.label.tolist() == [0, 1]
    many = target_tensors(Labels(label=np.array([2]), classes=("a", "b", "c")))
    assert many.kind == "multiclass"
    value = target_tensors(Values(value=np.array([np.nan, 2.0]), observed=np.array([False, True])))
    assert value.value.tolist() == [0.0, 2.0]
    assert isinstance(value, TargetTensors)
    assert set(value.tensors()) == {"observed", "value"}


def test_without_modality_changes_present_only(batch):
    less = without_modality(batch, "bag")
    assert less.present.tolist() == [[False, True], [False, False], [False, False]]
    assert less.tokens is batch.tokens
    assert batch.present[0, 0]
    with pytest.raises(ModelError, match='did you mean "bag"'):
        without_modality(batch, "bags")


def test_drop_modalities_follows_its_rule():
    n, k = 40_000, 4
    batch = simple(torch.ones(n, k, dtype=torch.bool))
    kept = drop_modalities(batch, generator=torch.Generator().manual_seed(0), keep_all=0.3).present
    counts = torch.bincount(kept.sum(1), minlength=k + 1) / n
    expected = torch.tensor([0.175, 0.175, 0.175, 0.175, 0.3])
    assert torch.allclose(counts, expected, atol=0.01)
    sizes = kept.sum(1)
    for size in range(1, k):  # which ones: uniform
        assert torch.allclose(kept[sizes == size].float().mean(0), torch.full((k,), size / k), atol=0.02)


def test_drop_modalities_never_adds_and_uses_its_own_generator():
    present = torch.rand(500, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    batch = simple(present)
    before = torch.random.get_rng_state()
    first = drop_modalities(batch, generator=torch.Generator().manual_seed(1)).present
    again = drop_modalities(batch, generator=torch.Generator().manual_seed(1)).present
    other = drop_modalities(batch, generator=torch.Generator().manual_seed(2)).present
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not (first & ~present).any()
    assert torch.equal(batch.present, present)


def test_drop_modalities_draws_among_the_present():
    present = torch.tensor([True, False, True, False]).expand(20_000, 4)
    kept = drop_modalities(simple(present), generator=torch.Generator().manual_seed(0), keep_all=0.2).present
    counts = torch.bincount(kept.sum(1), minlength=3) / 20_000
    assert torch.allclose(counts, torch.tensor([0.4, 0.4, 0.2]), atol=0.015)
    assert torch.allclose(kept[kept.sum(1) == 1].float().mean(0), torch.tensor([0.5, 0.0, 0.5, 0.0]), atol=0.02)


@pytest.mark.parametrize(("keep_all", "expected"), [(1.0, 1.0), (0.0, 0.0)])
def test_drop_modalities_at_the_ends(keep_all, expected):
    batch = simple(torch.ones(300, 3, dtype=torch.bool))
    kept = drop_modalities(batch, generator=torch.Generator().manual_seed(0), keep_all=keep_all).present
    assert kept.all(1).float().mean() == expected


def test_cap_tokens_draws_real_tokens_in_order():
    items = [Item(patient_id=str(i), samples={"bag": sample(t, 1)}) for i, t in enumerate((10, 3, 6))]
    batch = collate(items)
    capped = cap_tokens(batch, "bag", limit=4, generator=torch.Generator().manual_seed(0))
    assert capped.tokens["bag"].shape == (3, 4, 1)
    assert capped.token_mask["bag"].sum(1).tolist() == [4, 3, 4]
    for row in range(3):
        chosen = capped.tokens["bag"][row, capped.token_mask["bag"][row], 0]
        assert (chosen.diff() > 0).all()
        assert torch.equal(chosen, capped.position["bag"][row, capped.token_mask["bag"][row], 0])
    assert cap_tokens(batch, "bag", limit=10, generator=torch.Generator()) is batch


def test_cap_tokens_refuses(batch):
    with pytest.raises(ModelError, match="limit >= 1"):
        cap_tokens(batch, "bag", limit=0, generator=torch.Generator())


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "columns", "features": 0},
        {"layout": "columns", "features": 3, "columns": 2, "column_of_feature": (0, 1)},
        {"layout": "columns", "features": 2, "columns": 2, "column_of_feature": (0, 2)},
    ],
)
def test_modality_shape_refuses(wrong):
    with pytest.raises(ModelError, match="ModalityShape: expected"):
        ModalityShape(**wrong)


def test_modality_shape_fills_in_one_column_per_feature():
    shape = ModalityShape(layout="columns", features=3)
    assert shape.columns == 3
    assert shape.column_of_feature == (0, 1, 2)
