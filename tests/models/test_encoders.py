import pytest
import torch
from model_cases import GENES, PATHWAYS, SHAPES, make_batch

from medfuse.batch import ModalityShape
from medfuse.errors import ConfigError
from medfuse.models import default_encoder
from medfuse.models.encoders import BagEncoder, LinearEncoder, PathwayEncoder, TableEncoder


def encode(encoder, modality, batch=None):
    batch = make_batch(names=(modality,)) if batch is None else batch
    return encoder(batch.tokens[modality], batch.token_mask[modality], batch.position[modality])


def columns(values, flags):
    tokens = torch.stack([torch.tensor(values), torch.tensor(flags)], dim=-1)
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), torch.zeros(*tokens.shape[:2], 1)


@pytest.fixture
def table():
    torch.manual_seed(0)
    shape = ModalityShape(layout="columns", features=3, columns=2, column_of_feature=(0, 1, 1))
    return TableEncoder(shape=shape, width=4, column_dropout=0.0).eval()


def test_table_token_is_the_sum_over_the_features_of_the_column(table):
    tokens, mask = table(*columns([[2.0, 0.0, 3.0]], [[1.0, 1.0, 1.0]]))
    weight, bias = table.weight, table.bias
    assert torch.allclose(tokens[0, 0], bias[0] + 2 * weight[0])
    assert torch.allclose(tokens[0, 1], bias[1] + 3 * weight[2])
    assert mask.tolist() == [[True, True]]


def test_a_missing_cell_is_a_state_of_its_own(table):
    with torch.no_grad():
        table.missing[0] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    missing, _ = table(*columns([[0.0, 1.0, 0.0]], [[0.0, 1.0, 1.0]]))
    average, _ = table(*columns([[0.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]))
    assert torch.allclose(missing[0, 0] - average[0, 0], table.missing[0])
    assert torch.equal(missing[0, 1], average[0, 1])


def test_a_missing_cell_has_no_value(table):
    one, _ = table(*columns([[7.0, 1.0, 0.0]], [[0.0, 1.0, 1.0]]))
    other, _ = table(*columns([[-3.0, 1.0, 0.0]], [[0.0, 1.0, 1.0]]))
    assert torch.equal(one, other)


def test_column_dropout_shows_columns_as_missing_in_training_only():
    torch.manual_seed(0)
    shape = ModalityShape(layout="columns", features=2)
    encoder = TableEncoder(shape=shape, width=3, column_dropout=0.5)
    cells = columns([[1.0, 2.0]] * 2000, [[1.0, 1.0]] * 2000)
    missing = torch.isclose(encoder(*cells)[0], encoder.bias).all(-1)
    assert torch.allclose(missing.float().mean(0), torch.full((2,), 0.5), atol=0.05)
    assert not torch.isclose(encoder.eval()(*cells)[0], encoder.bias).all(-1).any()


def test_linear_flags_only_features_that_ever_miss():
    encoder = LinearEncoder(shape=SHAPES["wide"], width=8, hidden=5)
    assert encoder.body[0].in_features == 30 + 2
    assert LinearEncoder(shape=SHAPES["wide"], width=8, flags=False).body[0].in_features == 30
    assert LinearEncoder(shape=ModalityShape(layout="columns", features=4), width=8).body[0].in_features == 8


def test_linear_tells_missing_from_average():
    torch.manual_seed(0)
    encoder = LinearEncoder(shape=ModalityShape(layout="columns", features=2, missing_features=(1,)), width=8).eval()
    average, _ = encoder(*columns([[1.0, 0.0]], [[1.0, 1.0]]))
    missing, _ = encoder(*columns([[1.0, 0.0]], [[1.0, 0.0]]))
    assert (average != missing).any()


def test_linear_with_tokens_and_no_hidden_layer():
    encoder = LinearEncoder(shape=SHAPES["wide"], width=8, tokens=3, layers=0)
    tokens, mask = encode(encoder, "wide")
    assert tokens.shape == (24, 3, 8)
    assert mask.shape == (24, 3)
    assert sum(isinstance(m, torch.nn.Linear) for m in encoder.modules()) == 1


def test_bag_keeps_named_tokens_and_knows_their_names():
    torch.manual_seed(0)
    encoder = BagEncoder(shape=SHAPES["stains"], width=8).eval()
    batch = make_batch(names=("stains",))
    tokens, mask = encode(encoder, "stains", batch)
    assert tokens.shape == (24, 3, 8)
    assert torch.equal(mask, batch.token_mask["stains"])
    same = torch.zeros(1, 3, 3)
    named, _ = encoder(same, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[[0.0], [1.0], [2.0]]]))
    assert torch.allclose(named[0, 0] - named[0, 1], encoder.identity.weight[0] - encoder.identity.weight[1], atol=1e-6)


def test_bag_pools_anonymous_tokens():
    encoder = BagEncoder(shape=SHAPES["bag"], width=8, tokens=2)
    tokens, mask = encode(encoder, "bag")
    assert tokens.shape == (24, 2, 8)
    assert mask.shape == (24, 2)
    assert encoder.identity is None


def test_pathway_token_reads_its_own_genes_only():
    torch.manual_seed(0)
    sets = {"one": GENES[1:4], "two": (*GENES[3:9], "not measured"), "tiny": ("g1",)}
    encoder = PathwayEncoder(shape=SHAPES["wide"], width=8, pathways=sets, least_genes=2).eval()
    torch.nn.init.normal_(encoder.inner)  # padded places, too, as an optimiser might leave them
    assert encoder.pathway_names == ("one", "two")
    values = torch.randn(1, 30)
    flags = torch.ones(1, 30)
    position = torch.zeros(1, 30, 1)
    mask = torch.ones(1, 30, dtype=torch.bool)
    base, _ = encoder(torch.stack([values, flags], -1), mask, position)
    for gene, reached in ((0, [False, False]), (1, [True, False]), (3, [True, True]), (8, [False, True])):
        other = values.clone()
        other[0, gene] += 1
        tokens, _ = encoder(torch.stack([other, flags], -1), mask, position)
        assert (tokens != base).any(-1)[0].tolist() == reached, gene


def test_pathway_equals_its_networks_one_by_one():
    torch.manual_seed(0)
    encoder = PathwayEncoder(shape=SHAPES["wide"], width=8, pathways=PATHWAYS).eval()
    batch = make_batch(names=("wide",))
    tokens, _ = encode(encoder, "wide", batch)
    x = batch.tokens["wide"][..., 0] * batch.tokens["wide"][..., 1]
    for i, genes in enumerate(([0, 1, 2], [2, 3, 4, 5, 6, 7, 8])):
        inner = x[:, genes] @ encoder.inner[i, : len(genes)] + encoder.inner_bias[i]
        expected = torch.nn.functional.gelu(inner) @ encoder.outer[i] + encoder.outer_bias[i]
        assert torch.allclose(tokens[:, i], expected, atol=1e-6)


def test_a_pathway_without_a_measured_gene_is_masked():
    encoder = PathwayEncoder(shape=SHAPES["wide"], width=8, pathways=PATHWAYS)
    flags = torch.ones(1, 30)
    flags[0, 2:9] = 0
    tokens = torch.stack([torch.ones(1, 30), flags], -1)
    _, mask = encoder(tokens, torch.ones(1, 30, dtype=torch.bool), torch.zeros(1, 30, 1))
    assert mask.tolist() == [[True, False]]


def test_pathway_refuses_gene_names_of_another_kind_and_shapes_without_names():
    with pytest.raises(ConfigError, match="same kind of gene names"):
        PathwayEncoder(shape=SHAPES["wide"], width=8, pathways={"a": ["ENSG1", "ENSG2", "ENSG3"]})
    with pytest.raises(ConfigError, match="looked up by gene name"):
        PathwayEncoder(shape=ModalityShape(layout="columns", features=3), width=8, pathways=PATHWAYS)


@pytest.mark.parametrize(
    ("encoder", "modality", "options", "message"),
    [
        (TableEncoder, "table", {"column_dropout": 1.0}, "column_dropout: expected a rate"),
        (LinearEncoder, "wide", {"hidden": 0}, "hidden: expected a whole number >= 1"),
        (LinearEncoder, "wide", {"activation": "gellu"}, 'did you mean "gelu"'),
        (LinearEncoder, "wide", {"layers": 1.5}, "layers: expected a whole number >= 0"),
        (BagEncoder, "bag", {"pooling": "max"}, "pooling: expected another word"),
        (PathwayEncoder, "wide", {"pathways": PATHWAYS, "input_dropout": "a"}, "input_dropout: expected a rate"),
    ],
)
def test_encoders_refuse_options_out_of_range(encoder, modality, options, message):
    with pytest.raises(ConfigError, match=message):
        encoder(shape=SHAPES[modality], width=8, **options)


def test_default_encoder_goes_by_layout_and_number_of_columns():
    few = ModalityShape(layout="columns", features=90, columns=8, column_of_feature=(0, 7) * 45)
    assert default_encoder(few) == "table"
    assert default_encoder(ModalityShape(layout="columns", features=9)) == "linear"
    assert default_encoder(SHAPES["stains"]) == "bag"


def test_an_absent_stain_is_an_absent_token_for_every_pooling():
    """Two of three stains: the same answer as a batch without room for the third, whatever stands in its place."""
    g = torch.Generator().manual_seed(3)
    there = torch.randn(1, 2, 3, generator=g)
    position = torch.tensor([[[0.0], [2.0]]])  # he and cd8, without cd3
    for pooling in ("none", "mean", "attention"):
        torch.manual_seed(0)
        encoder = BagEncoder(shape=SHAPES["stains"], width=8, pooling=pooling).eval()
        short, short_mask = encoder(there, torch.ones(1, 2, dtype=torch.bool), position)
        for filler in (0.0, 7.0, -1e6):
            tokens = torch.cat([there[:, :1], torch.full((1, 1, 3), filler), there[:, 1:]], dim=1)
            mask = torch.tensor([[True, False, True]])
            padded, padded_mask = encoder(tokens, mask, torch.tensor([[[0.0], [0.0], [2.0]]]))
            assert padded_mask.sum() == short_mask.sum()
            torch.testing.assert_close(padded[padded_mask], short[short_mask], atol=1e-6, rtol=0)
        other, other_mask = encoder(there, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[[1.0], [2.0]]]))
        assert not torch.allclose(other[other_mask], short[short_mask])  # cd3 in place of he is another patient
