"""D14 for figures of report, Jupyter and exports: lines, edges, marks and bars have a contrast of 3 to white, text 4.5.

Faint areas (bands, drawn with an opacity) are no marks: what they say stands in a table or in their edges.
"""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from contrast import contrast

from medfuse import figures
from medfuse.exporting.drawing import draw_contributions, draw_curve
from medfuse.palette import BLUE, GREY, INK, SERIES, VERMILION
from medfuse.targets import Survival

AREAS = {"#bfd7ea"}  # the band of an exported curve, whose edges stand in the record
MODELS = ("medfuse", "late", "early", "cox", "forest", "ridge")


def stress_rows(patterns):
    columns = [f"{name}{end}" for name in ("score", "calibration_slope") for end in ("", "_low", "_high")]
    return [
        {
            "model": model,
            "pattern": pattern,
            "rate": rate,
            "folds": 2,
            "reference": "cox",
            **dict.fromkeys(columns, 0.5 + k / 20),
        }
        for k, model in enumerate(MODELS)
        for pattern in patterns
        for rate in (0.0, 0.5)
    ]


def contents():
    """Every figure, with as many series and kinds of marks as it has."""
    rng = np.random.default_rng(0)
    survival = Survival(event=rng.random(120) < 0.7, time=rng.exponential(500, 120) + 1)
    points = {"predicted": [0.1, 0.5], "observed": [0.2, 0.4], "low": [0.1, 0.3], "high": [0.3, 0.6]}
    score = {"pooled": 0.6, "low": 0.5, "high": 0.7}
    group = {"group": "sex", "level": "f", "patients": 9, "estimate": 0.6, "low": 0.5, "high": 0.7}
    curves = {key: {f"m{k}": [1.0, 0.5 + k] for k in range(6)} for key in ("strength", "factor")}
    stress = {"score": "harrell_c", "rows": stress_rows(("all", "clinical"))}
    record = {
        "kind": "survival",
        "curve": [{"day": d, "survival": 1 - d / 9, "low": 0.8 - d / 9, "high": 1.0} for d in (0.0, 4.0)],
        "contributions": [{"modality": f"m{v}", "contribution": v, "low": v - 1, "high": v + 1} for v in (1, -1)],
    }
    return {
        "survival_by_group": figures.survival_by_group(survival, np.arange(120) % 6, [f"g{k}" for k in range(6)]),
        "calibration": figures.calibration({f"{day}": points for day in range(6)}),
        "decision": figures.decision(
            {"thresholds": [0.1, 0.5], "model": [0.1, 0.0], "everyone": [0.1, -1]}, horizon="9"
        ),
        "forest": figures.forest([{"model": m, "carrying": m == "medfuse", **score} for m in MODELS], score="C"),
        "stress": figures.stress(stress, mechanism="mcar"),
        "stress of subsets": figures.stress(stress, mechanism="subsets"),
        "balance": figures.balance([1, 2], curves),
        "importance": figures.importance(
            [{"modality": m, "patients": 9, "value": 1.0, "low": 0.5, "high": 1.5} for m in "ab"], unit="x"
        ),
        "groups": figures.groups(
            [{**group, "events": 30}, {**group, "events": 3}, {**group, "events": 0, "estimate": None}],
            score="C",
            overall=0.6,
        ),
        "exported curve": figures.svg(lambda _, axes: draw_curve(axes, record), width=4, height=3),
        "exported contributions": figures.svg(lambda _, axes: draw_contributions(axes, record), width=4, height=3),
    }


@pytest.fixture(scope="module")
def drawn():
    return contents()


def colours(text):
    """Colours of marks and of text in an SVG element; white is the ground, and what has an opacity is a faint area."""
    marks, words = set(), set()
    for one in ElementTree.fromstring(text).iter():
        style = one.get("style", "")
        if re.search(r"opacity: ?0\.", style):
            continue
        found = set(re.findall(r"(?:fill|stroke): ?(#[0-9a-fA-F]{6})", style)) - {"#ffffff"}
        (words if one.tag.endswith("text") else marks).update(c.lower() for c in found)
        if one.tag.endswith("text") and "fill" not in style:
            words.add("#000000")  # what SVG draws without being told
    return marks, words


def test_every_figure_is_here(drawn):
    own = {name for name, f in vars(figures).items() if callable(f) and f.__module__ == figures.__name__}
    public = {name for name in own if not name.startswith("_")} - {"svg"}
    assert public <= set(drawn)


def test_D14_marks_and_texts_of_every_figure_stand_out(drawn):
    for name, text in drawn.items():
        marks, words = colours(text)
        assert marks, name
        assert words, name
        for colour in marks - AREAS:
            assert contrast(colour) >= 3, (name, colour)
        for colour in words:
            assert contrast(colour) >= 4.5, (name, colour)


def test_figures_have_the_palette_of_the_review(drawn):
    palette = {c.lower() for c in (*SERIES, INK, GREY)}
    found = set().union(*(colours(text)[0] for text in drawn.values())) - AREAS
    assert {c.lower() for c in SERIES} <= found
    assert found - palette <= {"#000000"}  # axes
    assert colours(drawn["importance"])[0] >= {BLUE.lower()}
    assert colours(drawn["decision"])[0] >= {BLUE.lower(), VERMILION.lower()}


def test_a_pale_bar_would_be_found():
    def pale(_, axes):
        axes.barh(0, 1, color="#A6CEE3")

    marks, _ = colours(figures.svg(pale, width=3, height=2))
    assert "#a6cee3" in marks
    assert contrast("#a6cee3") < 3
