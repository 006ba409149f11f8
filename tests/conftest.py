"""Counts of long tests: small ones in CI, all of them with MEDFUSE_LONG=1 (``make long``)."""

import os

import pytest


@pytest.fixture
def many():
    """``many(1000, 10_000)``: the first, or the second where the long counts were asked for."""
    long = os.environ.get("MEDFUSE_LONG", "") not in {"", "0"}
    return lambda short, full: full if long else short
