"""Runs that several files of tests read, and none of them changes."""

import made_up
import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder of files, a feature store and a run of outcomes of three kinds, not explained; some have their own."""
    outcomes = ("survival", "subtype", "response")
    card = made_up.write(tmp_path_factory.mktemp("three"), n=90, outcomes=outcomes)
    more = (f"outcomes=[{', '.join(outcomes)}]", "baselines=[kaplan_meier, prevalence]")
    made_up.trained(card, *made_up.LEARN, *more)
    return card.parent
