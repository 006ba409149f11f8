"""The figure of a stress test is one page that can be read, however many modalities and models there are."""

import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest

from medfuse import figures

INCH = 72.0
MODELS = ("medfuse", "medfuse:joint", "medfuse:unimodal", "late_average", "clinical_cox", "ridge", "forest", "early")
SVG = "{http://www.w3.org/2000/svg}"


def rows_of(patterns, *, rates=(None,), groups=("0 1",), models=MODELS):
    rng = np.random.default_rng(0)
    rows = []
    for folds in groups:
        for model in models:
            for pattern in patterns:
                for rate in rates:
                    score, slope = 0.6 + 0.2 * rng.random(), 1 + rng.standard_normal() / 4
                    row = {"model": model, "pattern": pattern, "rate": rate, "folds": folds, "reference": MODELS[3]}
                    for key, value in (("score", score), ("calibration_slope", slope)):
                        row |= {key: value, f"{key}_low": value - 0.1, f"{key}_high": value + 0.1}
                    rows.append(row)
    return rows


def names(count):
    return [f"modality {k}" for k in range(count)]


def subsets(count):
    return [" + ".join(s) for size in range(count, 0, -1) for s in combinations(names(count), size)]


def drawn(rows, mechanism, *, score="harrell_c"):
    text = figures.stress({"score": score, "rows": rows}, mechanism=mechanism)
    root = ElementTree.fromstring(text)
    size = [float(root.get(key).removesuffix("pt")) / INCH for key in ("width", "height")]
    return root, size, ["".join(one.itertext()).strip() for one in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_all_subsets_fit_one_page(count):
    _, (width, height), words = drawn(rows_of(subsets(count)), "subsets")
    assert width == pytest.approx(9.6)
    assert height <= 13.51
    assert {"medfuse", "late_average"} <= set(words)
    lines = count <= 5
    assert (subsets(count)[-1] in words) == lines  # each subset by its name, or all of them by their number
    if lines:
        assert height / len(subsets(count)) > 3 * 0.13  # room for a line and two models
    else:
        assert "modalities left: a dot per subset, lines are means" in words
        assert {str(k) for k in range(1, count + 1)} <= set(words)
    shown = len(MODELS) - len({*words} & {*MODELS})
    assert f"{shown} more models in the table" in words  # none is left out unsaid


@pytest.mark.parametrize("count", [1, 4, 8])
def test_all_rates_fit_one_page(count):
    root, (width, height), words = drawn(rows_of(names(count), rates=(0.0, 0.5, 1.0)), "swap")
    assert width == pytest.approx(9.6)
    assert height <= 13.51
    for name in names(count):
        assert words.count(f"swap (share): {name}") == 2  # discrimination and calibration
    panels = [g for g in root.iter(f"{SVG}g") if re.fullmatch(r"axes_\d+", g.get("id", ""))]
    assert len(panels) == 2 * count  # and no empty one


def test_a_long_name_of_an_axis_is_broken_into_lines():
    pattern = " + ".join(names(8))
    _, _, words = drawn(rows_of([pattern], rates=(0.0, 0.5)), "mcar")
    parts = [word for word in words if "modality" in word]
    assert len(parts) >= 4  # two lines or more under each of two panels
    assert " ".join(parts[: len(parts) // 2]).startswith(f"mcar (share): {pattern[:20]}")
    assert max(len(word) for word in words) <= 60


def test_the_line_of_no_skill_is_that_of_the_score(monkeypatch):
    from matplotlib.axes import Axes

    for mechanism, method in (("subsets", "axvline"), ("noise", "axhline")):
        for score, expected in (("harrell_c", 0.5), ("auroc", 0.5), ("r2", 0.0)):
            at, plain = [], getattr(Axes, method)
            with monkeypatch.context() as patch:
                patch.setattr(
                    Axes, method, lambda self, x, at=at, plain=plain, **k: at.append(x) or plain(self, x, **k)
                )
                rates = (None,) if mechanism == "subsets" else (0.0, 1.0)
                _, _, words = drawn(rows_of(["a"], rates=rates, models=MODELS[:4]), mechanism, score=score)
            assert at == [expected, 1.0], (mechanism, score)
            assert ("R squared" in words) == (score == "r2")


def test_of_overlapping_splits_one_is_drawn_and_named():
    _, _, words = drawn(rows_of(["a", "b"], groups=("first", "second"), models=MODELS[:4]), "subsets")
    assert "split first of 2" in words
