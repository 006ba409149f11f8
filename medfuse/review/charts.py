"""What every chart of the review shares: colours for all eyes, an alternative text, a table, and two sentences."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medfuse.palette import GREY, INK, LOWERS, RAISES

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
_WHITE = "#f7f7f7"
DIVERGING = [[0.0, LOWERS], [0.5, _WHITE], [1.0, RAISES]]  # signed values, from lowering to raising


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with everything that must stand beside it.

    Attributes:
        title: of the chart.
        figure: Plotly's.
        alt: what it shows, for those who do not see it.
        table: the same numbers.
        how: one sentence on how to read it.
        cannot: one sentence on what it cannot tell.
    """

    title: str
    figure: go.Figure
    alt: str
    table: pd.DataFrame
    how: str
    cannot: str


def figure(*, height: int = 360, x: str = "", y: str = "", **more: Any) -> go.Figure:  # noqa: ANN401  # Plotly's own
    """An empty figure with axes named and everything that would call home or distract left out."""
    fig = go.Figure()
    fig.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": 20, "b": 10},
        font={"size": 14, "color": INK, "family": "sans-serif"},
        legend={"orientation": "h", "y": -0.28, "x": 0},
        hoverlabel={"font": {"size": 13}},
        **more,
    )
    fig.update_xaxes(title=x, automargin=True, showline=True, linecolor=GREY, ticks="outside")
    fig.update_yaxes(title=y, automargin=True, showline=True, linecolor=GREY, ticks="outside")
    return fig


def band(fig: go.Figure, x: Any, low: Any, high: Any, *, name: str, colour: str, shape: str = "linear") -> None:  # noqa: ANN401  # arrays
    """A filled band as one closed trace."""
    xs = [*list(x), *list(x)[::-1]]
    ys = [*list(high), *list(low)[::-1]]
    if shape == "hv":
        xs, ys = _stairs(list(x), list(low), list(high))
    fig.add_scatter(
        x=xs,
        y=ys,
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=_faint(colour),
        name=name,
        hoverinfo="skip",
    )


def _stairs(x: list[float], low: list[float], high: list[float]) -> tuple[list[float], list[float]]:
    """Corners of the area between two right-continuous step functions."""
    upper, lower, xs = [], [], []
    for k, at in enumerate(x):
        xs += [at] if k == 0 else [at, at]
        upper += [high[k]] if k == 0 else [high[k - 1], high[k]]
        lower += [low[k]] if k == 0 else [low[k - 1], low[k]]
    return [*xs, *xs[::-1]], [*upper, *lower[::-1]]


def _faint(colour: str, alpha: float = 0.18) -> str:
    red, green, blue = _rgb(colour)
    return f"rgba({red},{green},{blue},{alpha})"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def diverging(part: float) -> tuple[float, float, float]:
    """Colour of a signed value in -1 to 1, as of :data:`DIVERGING`."""
    end = _rgb(RAISES if part >= 0 else LOWERS)
    weight = min(abs(part), 1.0)
    red, green, blue = ((1 - weight) * w + weight * e for w, e in zip(_rgb(_WHITE), end, strict=True))
    return red, green, blue


def picture(pixels: np.ndarray[Any, Any], *, kind: str = "png") -> str:
    """Pixels (h, w, 3) as an address of data, so that no route of the server ever gives them; ``jpeg`` is smaller."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind, quality=88)
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()
