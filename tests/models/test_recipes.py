"""Every fusion has a recipe and a page, and every recipe builds a model, for several modalities and for each alone."""

from pathlib import Path

import pytest
from model_cases import HEADS_OF, SHAPES, make_batch

from medfuse.config import read_recipe
from medfuse.models import FUSIONS, ModelSettings, build_model

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "pipelines").glob("*.yaml"))
NAMED_OTHERWISE = {"transformer": "default"}


def test_every_fusion_has_a_recipe_and_a_page():
    for name in FUSIONS:
        assert read_recipe(NAMED_OTHERWISE.get(name, name)).model.fusion["name"] == name
        page = (ROOT / "docs" / "fusion" / f"{name}.md").read_text()
        for part in ("## Equation", "## When to use it", "## When not", "## Source", "NOTE[DIFF]"):
            assert part in page, f"{name}: {part}"


def test_prototype_tokens_is_the_default_recipe_but_for_its_bags():
    default, tokens = (read_recipe(name).model_dump() for name in ("default", "prototype_tokens"))
    default["name"] = "prototype_tokens"
    assert default["model"]["defaults"] == {}
    default["model"]["defaults"] = {"bag": {"name": "prototype_tokens", "prototypes": 16}}
    assert tokens == default


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_a_model_for_all_modalities_and_for_each(name):
    recipe = read_recipe(name).model
    settings = ModelSettings(**recipe.model_dump(include={"width", "encoders", "defaults", "fusion"}))
    for names in (tuple(SHAPES), *((one,) for one in SHAPES)):
        model = build_model(settings, shapes={m: SHAPES[m] for m in names}, heads=HEADS_OF)
        model.train().loss(make_batch(6, names=names)).backward()
