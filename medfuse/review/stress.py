"""What became of the model when modalities were hidden, blurred, diluted or swapped, as ``medfuse stress`` stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medfuse.errors import StoreError
from medfuse.files import read_json
from medfuse.palette import BLUE, GREY, SERIES
from medfuse.review.charts import DASHES, SYMBOLS, Chart, band, figure
from medfuse.review.source import ReviewRun

Row = Mapping[str, Any]
WORDS = {
    "mcar": "modalities hidden at random",
    "mar": "modalities hidden depending on what else is known",
    "mnar": "modalities hidden depending on themselves",
    "mnar-flip": "another reason for hiding than in training",
    "subsets": "only some modalities shown",
    "noise": "noise added",
    "dilution": "signal diluted",
    "swap": "modalities swapped between patients",
}
MEASURES = {"score": "discrimination", "calibration_slope": "calibration slope (1 is right)"}


def stored(run: ReviewRun) -> dict[str, Mapping[str, Any]]:
    """Results by name of the file (its mechanism first), of this outcome; {} where nothing was stressed.

    Raises:
        StoreError: a damaged file.
    """
    folder = run.path / "stress"
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        content = read_json(path)
        try:
            if run.outcome in content["outcomes"]:
                found[path.stem] = {"mechanism": content["mechanism"], **content["outcomes"][run.outcome]}
        except (KeyError, TypeError) as error:
            msg = f"{path}: expected results of medfuse stress, found others; run it again"
            raise StoreError(msg) from error
    return found


def patterns(content: Mapping[str, Any]) -> list[str]:
    """What was acted on, in the order of the file."""
    return list(dict.fromkeys(str(row["pattern"]) for row in content["rows"]))


def models(content: Mapping[str, Any], model: str) -> list[str]:
    """The run's model, what it is compared with, and up to four others."""
    rows: Sequence[Row] = content["rows"]
    names = list(dict.fromkeys(str(row["model"]) for row in rows))
    reference = next((str(r["reference"]) for r in rows if r.get("reference")), "")
    first = [n for n in (model, reference) if n in names]
    return [*first, *(n for n in names if n not in first)][: len(SERIES)]


def stress_chart(content: Mapping[str, Any], pattern: str, measure: str, *, model: str) -> Chart:
    """A measure over the rate of what was done, with 95 % bands of the model and of what it is compared with.

    Args:
        content: of :func:`stored`.
        pattern: what was acted on.
        measure: of :data:`MEASURES`.
        model: the run's.
    """
    rows: list[Row] = [r for r in content["rows"] if str(r["pattern"]) == pattern and r.get(measure) is not None]
    label = content["score"] if measure == "score" else MEASURES[measure]
    fig = figure(x=f"rate ({WORDS.get(content['mechanism'], content['mechanism'])})", y=label, height=400)
    names = [n for n in models(content, model) if any(r["model"] == n for r in rows)]
    for k, name in enumerate(names):
        own = sorted((r for r in rows if r["model"] == name), key=lambda r: float(r["rate"] or 0.0))
        x = [float(r["rate"] or 0.0) for r in own]
        limits = [(r.get(f"{measure}_low"), r.get(f"{measure}_high")) for r in own]
        if k < 2 and all(None not in pair for pair in limits):
            low, high = (np.array(side, dtype=np.float64) for side in zip(*limits, strict=True))
            band(fig, x, low, high, name=f"{name}: 95 %", colour=SERIES[k])
        fig.add_scatter(
            x=x,
            y=[float(r[measure]) for r in own],
            mode="lines+markers",
            name=name,
            line={"color": SERIES[k], "dash": DASHES[k], "width": 3 if k == 0 else 1.5},
            marker={"symbol": SYMBOLS[k], "size": 8},
        )
    _ideal(fig, measure, content, upright=False)
    return Chart(
        title=f"Under stress: {WORDS.get(content['mechanism'], content['mechanism'])}",
        figure=fig,
        alt=_said(rows, measure, model, pattern),
        table=_table(rows, measure),
        how="The further a line stays up (or near 1 for calibration), the less the model depends on what was taken; "
        "bands are 95 % intervals over patients.",
        cannot="Made-up damage is not the damage of another hospital, which may be kinder or worse.",
    )


def subsets_chart(content: Mapping[str, Any], measure: str, *, model: str, most: int = 24) -> Chart:
    """A measure for each set of modalities that was left, the run's model beside what it is compared with."""
    rows: list[Row] = [r for r in content["rows"] if r.get(measure) is not None]
    names = models(content, model)[:2]
    order = sorted(patterns(content), key=lambda p: -p.count("+"))
    if len(order) > most:  # all, all but one, and each alone
        whole = order[0].count("+")
        order = [p for p in order if p.count("+") >= whole - 1 or p.count("+") == 0][: 2 * most]
    label = content["score"] if measure == "score" else MEASURES[measure]
    fig = figure(x=f"{label}, 95 % interval", height=150 + 34 * len(order))
    for k, name in enumerate(names):
        own = {str(r["pattern"]): r for r in rows if r["model"] == name}
        here = [p for p in order if p in own][::-1]
        value = np.array([float(own[p][measure]) for p in here])
        low, high = (
            np.array([own[p].get(f"{measure}_{side}") or v for p, v in zip(here, value, strict=True)], dtype=np.float64)
            for side in ("low", "high")
        )
        fig.add_scatter(
            x=value,
            y=[_short(p) for p in here],
            mode="markers",
            name=name,
            marker={"color": BLUE if k == 0 else GREY, "symbol": "diamond" if k == 0 else "circle", "size": 10},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.clip(high - value, 0, None),
                "arrayminus": np.clip(value - low, 0, None),
                "thickness": 1.2,
            },
        )
    fig.update_layout(legend={"y": 1.02, "yanchor": "bottom"})
    _ideal(fig, measure, content, upright=True)
    return Chart(
        title=f"Under stress: {WORDS['subsets']}",
        figure=fig,
        alt=_said(rows, measure, model, ""),
        table=_table(rows, measure),
        how="Each row is what the model would reach if every patient had these modalities alone. Of many sets, all, "
        "all but one and each alone are drawn; the table has every one.",
        cannot="Sets that are rare in practice are measured by hiding, not on patients who really lack the rest.",
    )


def _ideal(fig: Any, measure: str, content: Mapping[str, Any], *, upright: bool) -> None:  # noqa: ANN401  # a figure
    if measure == "score" and content["kind"] == "continuous":
        return
    at = 0.5 if measure == "score" else 1.0
    (fig.add_vline if upright else fig.add_hline)(at, line={"color": GREY, "dash": "dot"})
    if measure != "score":  # slopes of models that say almost nothing have no bounds
        (fig.update_xaxes if upright else fig.update_yaxes)(range=[-0.5, 2.5])


def _said(rows: Sequence[Row], measure: str, model: str, pattern: str) -> str:
    own = [r for r in rows if r["model"] == model]
    what = [f"{r['pattern'] if r['rate'] is None else format(r['rate'], 'g')}: {r[measure]:.2f}" for r in own[:12]]
    return f"{measure.replace('_', ' ')} of {model} under stress {pattern}: {'; '.join(what) or 'undefined'}"


def _table(rows: Sequence[Row], measure: str) -> pd.DataFrame:
    names = ("model", "pattern", "rate", "hidden", "patients", "events", measure, f"{measure}_low", f"{measure}_high")
    table = pd.DataFrame([{n: r.get(n) for n in names} for r in rows], columns=list(names))
    for name in ("rate", "hidden", *names[-3:]):
        table[name] = pd.to_numeric(table[name])
    return table


def _short(text: str) -> str:
    return text if len(text) <= 52 else f"{text[:49]}..."
