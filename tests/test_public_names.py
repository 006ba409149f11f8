import pytest

import medfuse


@pytest.mark.parametrize("name", medfuse.__all__)
def test_every_public_name_resolves(name):
    value = getattr(medfuse, name)
    assert isinstance(value, str) or callable(value)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="read_cohort"):
        _ = medfuse.read_cohorts
