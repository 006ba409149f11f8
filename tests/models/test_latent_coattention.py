import pytest
import torch
from model_cases import HEADS_OF, SHAPES, make_batch

from medfuse.errors import ConfigError
from medfuse.models import ModelSettings, build_model
from medfuse.models.fusion import CoattentionFusion, LatentFusion

NAMES = ("rna", "slide", "lab")
PRESENT = torch.tensor([[True, True, True], [True, False, False], [False, True, True], [False, False, False]])


def parts(seed=0, width=8):
    g = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(4, k, width, generator=g) for k in (3, 5, 1)]
    masks = [PRESENT[:, i, None].expand(4, t.shape[1]) for i, t in enumerate(tokens)]
    return tokens, masks, PRESENT


def build(kind, **options):
    torch.manual_seed(0)
    return kind(modalities=NAMES, width=8, heads=2, **options).eval()


def test_tied_rounds_cost_no_parameters():
    def size(**options):
        return sum(p.numel() for p in build(LatentFusion, **options).parameters())

    assert size(depth=1) == size(depth=4)
    assert size(depth=2, tied=False) > 1.8 * size(depth=1)


def test_rounds_read_again():
    one, two = build(LatentFusion, depth=1), build(LatentFusion, depth=2)
    two.load_state_dict(one.state_dict())
    assert (one(*parts()).states[:3] != two(*parts()).states[:3]).any(-1).all()


def test_an_absent_modality_is_not_read_by_the_latents():
    fusion = build(LatentFusion)
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states
    with torch.no_grad():
        for parameter in fusion.reads[1].parameters():
            parameter.add_(1.0)
    moved = fusion(tokens, masks, present).states
    assert (base != moved).any(-1)[:, 0].tolist() == present[:, 1].tolist()


def attended(fusion, *, move, seed=3):
    """Change of every token after the layers when the tokens of one modality move."""
    tokens, masks, _ = parts()
    g = torch.Generator().manual_seed(seed)
    shifted = [t + torch.randn(t.shape, generator=g) if m == move else t for m, t in enumerate(tokens)]
    before, after = fusion._attend(tokens, masks), fusion._attend(shifted, masks)
    return [(a != b).any(-1)[0].any().item() for a, b in zip(before, after, strict=True)]


def test_tiles_do_not_read_tiles():
    """What moves when a token moves: pathways read all, the others read the pathways alone."""
    fusion = build(CoattentionFusion, query="rna")
    assert attended(fusion, move=0) == [True, True, True]
    assert attended(fusion, move=1) == [True, True, False]
    tokens, masks, _ = parts()
    other = tokens[1].clone()
    other[:, 0] += 1.0
    before, after = fusion._attend(tokens, masks)[1], fusion._attend([tokens[0], other, tokens[2]], masks)[1]
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert (before[:, 0] != after[:, 0]).any()


def test_mcat_leaves_the_others_as_they_are():
    fusion = build(CoattentionFusion, query="slide", scheme="mcat")
    tokens, masks, _ = parts()
    found = fusion._attend(tokens, masks)
    assert torch.equal(found[0], tokens[0])
    assert torch.equal(found[2], tokens[2])
    assert attended(fusion, move=0) == [True, True, False]
    assert not len(fusion.back)


def test_several_modalities_may_ask_and_every_place_is_kept():
    fusion = build(CoattentionFusion, query=["slide", "lab"])
    assert fusion.asks == [False, True, True]
    assert attended(fusion, move=2) == [True, True, True]
    assert [t.shape for t in fusion._attend(*parts()[:2])] == [t.shape for t in parts()[0]]


@pytest.mark.parametrize("scheme", ["survpath", "mcat"])
def test_without_the_query_or_without_the_others_the_rest_still_speaks(scheme):
    fusion = build(CoattentionFusion, query="rna", scheme=scheme)
    tokens, masks, present = parts()
    base = fusion(tokens, masks, present).states[:, 0]
    for m in range(3):
        moved = fusion([t + (m == k) * torch.randn(8) for k, t in enumerate(tokens)], masks, present).states[:, 0]
        assert (base != moved).any(1).tolist() == present[:, m].tolist()
    assert torch.isfinite(base).all()


def test_the_first_modality_asks_by_default_and_a_single_one_always():
    assert build(CoattentionFusion).asks == [True, False, False]
    given = {"width": 8, "fusion": {"name": "coattention", "query": "wide", "heads": 2}}
    model = build_model(ModelSettings(**given), shapes={"bag": SHAPES["bag"]}, heads=HEADS_OF)
    assert model.fusion.asks == [True]
    model.loss(make_batch(names=("bag",))).backward()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CoattentionFusion, {"query": "rnaa"}, 'found "rnaa".*did you mean "rna"'),
        (CoattentionFusion, {"query": []}, "query: expected names"),
        (CoattentionFusion, {"scheme": "mct"}, 'did you mean "mcat"'),
        (CoattentionFusion, {"depth": 0}, "depth: expected"),
        (LatentFusion, {"latents": 1}, "latents: expected a whole number >= 2"),
        (LatentFusion, {"depth": 0}, "depth: expected"),
    ],
)
def test_they_refuse(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        build(kind, **options)
