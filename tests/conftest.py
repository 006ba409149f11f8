"""Counts of long tests (small ones in CI, all of them with MEDFUSE_LONG=1, ``make long``), and one thread per test."""

import os
import sys

# Tests use small models: two threads make each step slower, and by an order of magnitude beside other jobs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_make_parametrize_id(val, argname):
    """Bytes do not name a test: a gzip header holds the second it was made in, and processes side by side differ."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Numba's pool sets torch's number of threads to all cores, whatever the environment says."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def many():
    """``many(1000, 10_000)``: the first, or the second where the long counts were asked for."""
    long = os.environ.get("MEDFUSE_LONG", "") not in {"", "0"}
    return lambda short, full: full if long else short


@pytest.fixture(autouse=True)
def own_main_module():
    """Streamlit's AppTest leaves its script as the main module, which every child process would then import."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before
