import pytest

from medfuse.errors import ConfigError, ModelError
from medfuse.models import HeadSettings
from medfuse.models.settings import check_choice, check_count, check_rate, construct


class Part:
    def __init__(self, *, width, size=1):
        self.width, self.size = width, size


def test_construct_gives_options_and_arguments():
    part = construct({"part": Part}, {"name": "part", "size": 4}, where="here", given={"width": 2})
    assert (part.width, part.size) == (2, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "prat"}, 'here.name: expected a known name, found "prat"; did you mean "part"'),
        ({"size": 3}, 'found "None"'),
        ({"name": "part", "siez": 3}, 'here: "part" has no option "siez"; did you mean "size"'),
        ({"name": "part", "width": 3}, 'no option "width"'),
    ],
)
def test_construct_refuses(settings, message):
    with pytest.raises(ConfigError, match=message):
        construct({"part": Part}, settings, where="here", given={"width": 2})


@pytest.mark.parametrize("grid", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (-1.0,)])
def test_head_settings_refuse_a_grid_that_does_not_increase(grid):
    with pytest.raises(ModelError, match="increasing right edges"):
        HeadSettings(kind="survival", name="discrete_hazard", time_grid=grid)


def test_head_settings_refuse_a_constant_outcome():
    with pytest.raises(ModelError, match="is the outcome constant in train"):
        HeadSettings(kind="continuous", name="regression", scale=0.0)


@pytest.mark.parametrize("value", [-0.1, 1.0, "a", None])
def test_check_rate_refuses(value):
    with pytest.raises(ConfigError, match="x: expected a rate in"):
        check_rate("x", value)
    assert check_rate("x", 0) == 0.0


@pytest.mark.parametrize("value", [0, 1.0, True, "3"])
def test_check_count_refuses(value):
    with pytest.raises(ConfigError, match="x: expected a whole number >= 1"):
        check_count("x", value)
    assert check_count("x", 3) == 3


def test_check_choice_refuses():
    with pytest.raises(ConfigError, match='did you mean "late"'):
        check_choice("x", "lat", ("late", "concat"))
    assert check_choice("x", "late", ("late", "concat")) == "late"
