"""The main jobs, end to end."""

from medfuse.config import Recipe
from medfuse.models import ModelSettings
from medfuse.training import FoldSettings, TrainSettings


def fold_settings(recipe: Recipe) -> FoldSettings:
    """What a recipe says of members, as the plain settings that training takes."""
    t = recipe.train
    return FoldSettings(
        model=ModelSettings(width=recipe.model.width, encoders=recipe.model.encoders, fusion=recipe.model.fusion),
        heads=recipe.model.heads,
        seeds=tuple(recipe.seed + k for k in range(t.seeds)),
        train=TrainSettings(**t.model_dump(exclude={"seeds"})),
    )
