"""Fixtures that the R scripts in r/ wrote: numbers with 17 digits, and which R and packages they are of."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from medfuse.targets import Survival

FIXTURES = Path(__file__).parent / "fixtures"


@cache
def fixture(name):
    content = json.loads((FIXTURES / f"{name}.json").read_text())
    made_by = content.pop("made_by")
    assert made_by["r"].startswith("R version")
    assert made_by["packages"]["survival"]
    assert (Path(__file__).parents[2] / made_by["script"]).is_file()
    return content


def dataset(name):
    """Covariates (n, p), outcomes, entry times or None."""
    d = fixture(f"data_{name}")
    entry = array(d["entry"]) if "entry" in d else None
    return array(d["x"]), outcomes(d), entry


def outcomes(d):
    return Survival(event=np.array(d["event"], dtype=bool), time=array(d["time"]))


def array(values):
    """Of numbers, where null is NaN."""
    return np.atleast_1d(np.array(values, dtype=np.float64))
