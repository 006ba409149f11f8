"""Looking into a slide: any place at any magnification down to level 0, with the signed contributions of its tiles.

Pixels come from the pyramid's levels alone; label, macro and thumbnail images are never decoded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from medfuse.loaders._slide_files import Reader, Slide, open_slide, reading
from medfuse.palette import INK
from medfuse.review.charts import DIVERGING, Chart, diverging, picture

WIDE, TALL = 900, 600  # pixels of the view
_MOST = 64_000_000  # pixels that are read for one view
_MARKED = 8


@dataclass(frozen=True, kw_only=True)
class Place:
    """What part of a slide is shown: ``scale`` level-0 pixels per pixel of the view, around ``x``, ``y`` of level 0."""

    scale: int
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Tiles of a slide and what they added.

    Attributes:
        corners: (T, 2) upper left corners in level-0 pixels.
        side: of a tile, in level-0 pixels.
        values: (T,) signed; NaN where nothing was stored.
        strength: 0 hides it, 1 hides the slide.
    """

    corners: np.ndarray[Any, Any]
    side: float
    values: np.ndarray[Any, Any]
    strength: float


def header(files: Sequence[Path], frames: str | None = None) -> Slide:
    """Sizes and pixel size.

    Raises:
        DataError: the slide cannot be read.
    """
    return open_slide(files, frames=frames)


def scales(slide: Slide) -> list[int]:
    """Scales that can be shown, the whole slide first, level 0 last; those whose pixels would not fit are left out."""
    wide, tall = slide.sizes[0]
    found = [1]
    while wide > WIDE * found[-1] or tall > TALL * found[-1]:
        found.append(2 * found[-1])
    fits = [s for s in found if _pixels(slide, s) <= _MOST]
    return fits[::-1]


def _level(slide: Slide, scale: int) -> int:
    """The coarsest level that is at least as fine as the scale."""
    return max(k for k, d in enumerate(slide.downsamples) if d <= scale * 1.01)


def _window(slide: Slide, scale: int) -> tuple[int, int]:
    wide, tall = slide.sizes[0]
    return min(WIDE, -(-wide // scale)), min(TALL, -(-tall // scale))


def _pixels(slide: Slide, scale: int) -> float:
    wide, tall = _window(slide, scale)
    return wide * tall * float(scale / slide.downsamples[_level(slide, scale)]) ** 2


def clamped(slide: Slide, place: Place) -> Place:
    """A place whose view lies on the slide."""
    wide, tall = (side * place.scale / 2 for side in _window(slide, place.scale))
    x = float(np.clip(place.x, wide, max(slide.sizes[0][0] - wide, wide)))
    y = float(np.clip(place.y, tall, max(slide.sizes[0][1] - tall, tall)))
    return Place(scale=place.scale, x=x, y=y)


def view(slide: Slide, place: Place) -> tuple[np.ndarray[Any, Any], float, float]:
    """Pixels (h, w, 3) of a view, and its upper left corner in level-0 pixels.

    Raises:
        DataError: pixels that cannot be decoded.
    """
    at = clamped(slide, place)
    wide, tall = _window(slide, at.scale)
    left, top = at.x - wide * at.scale / 2, at.y - tall * at.scale / 2
    level = _level(slide, at.scale)
    fine = slide.downsamples[level]
    box = (round(left / fine), round(top / fine), round(wide * at.scale / fine), round(tall * at.scale / fine))
    with _open(slide) as reader:
        pixels = reader.region(level, box)
    if pixels.shape[:2] != (tall, wide):
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BOX))
    return pixels, left, top


@contextmanager
def _open(slide: Slide) -> Iterator[Reader]:
    with reading(slide) as reader:
        yield reader


def painted(
    pixels: np.ndarray[Any, Any], *, corner: tuple[float, float], scale: int, overlay: Overlay
) -> np.ndarray[Any, Any]:
    """A view with its tiles coloured: blue lowers, vermilion raises, and the paler the less."""
    out = pixels.astype(np.float32)
    largest = float(np.nanmax(np.abs(overlay.values), initial=0.0)) or 1.0
    for (x, y), value in zip(overlay.corners[:, :2], overlay.values, strict=True):
        x0, y0 = round((x - corner[0]) / scale), round((y - corner[1]) / scale)
        x1, y1 = round((x + overlay.side - corner[0]) / scale), round((y + overlay.side - corner[1]) / scale)
        if min(x1, y1) <= 0 or x0 >= out.shape[1] or y0 >= out.shape[0]:
            continue
        box = (slice(max(y0, 0), y1), slice(max(x0, 0), x1))
        for edge in (np.s_[max(y0, 0), max(x0, 0) : x1], np.s_[max(y0, 0) : y1, max(x0, 0)]):
            out[edge] = 0.5 * out[edge] + 45  # what was read has a frame
        if np.isnan(value):
            continue
        part = overlay.strength * (0.12 + 0.88 * abs(value) / largest)
        out[box] = (1 - part) * out[box] + part * np.array(diverging(value / largest), dtype=np.float32)
    return np.asarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def slide_view_chart(slide: Slide, place: Place, overlay: Overlay | None, *, mpp: float | None) -> Chart:
    """A view of a slide with overlay, scale bar and legend.

    Raises:
        DataError: pixels that cannot be decoded.
    """
    pixels, left, top = view(slide, place)
    tall, wide = pixels.shape[:2]
    if overlay is not None and overlay.strength > 0:
        pixels = painted(pixels, corner=(left, top), scale=place.scale, overlay=overlay)
    fig = go.Figure(
        go.Image(source=picture(pixels, kind="jpeg"), x0=left, y0=top, dx=place.scale, dy=place.scale, hoverinfo="skip")
    )
    if overlay is not None:
        _mark(fig, overlay)
    _scale_bar(fig, mpp, place.scale, box=(left, top, wide * place.scale, tall * place.scale))
    zoom = max(1.0, min(WIDE / wide, TALL / tall))
    fig.update_layout(
        width=round(wide * zoom) + 140,
        height=round(tall * zoom) + 20,
        template="none",
        margin={"l": 10, "r": 130, "t": 10, "b": 10},
        dragmode="pan",
        showlegend=False,
    )
    fig.update_xaxes(visible=False, range=[left, left + wide * place.scale], constrain="domain")
    fig.update_yaxes(visible=False, range=[top + tall * place.scale, top], constrain="domain")
    size = "" if mpp is None else f", {mpp * place.scale:g} µm per pixel (about {10 / (mpp * place.scale):.3g}x)"
    marks = "" if overlay is None else " Coloured squares are tiles: vermilion ▲ raises, blue ▼ lowers the prediction."
    return Chart(
        title="Slide",
        figure=fig,
        alt=f"View of the slide from {left:.0f}, {top:.0f}, {place.scale} level-0 pixels per pixel{size}.{marks}",
        table=pd.DataFrame() if overlay is None else tile_table(overlay),
        how=f"Shown from {left:.0f}, {top:.0f} (level-0 pixels){size}; level 0 is the finest there is.{marks}",
        cannot="Not a diagnostic display; a tile that the model used is not shown to be a cause.",
    )


def _mark(fig: go.Figure, overlay: Overlay) -> None:
    """Legend, hover, and triangles on the tiles that raise and lower most."""
    known = np.flatnonzero(~np.isnan(overlay.values))
    if not len(known):
        return
    values = overlay.values[known]
    centre = overlay.corners[known, :2] + overlay.side / 2
    largest = float(np.abs(values).max()) or 1.0
    order = np.argsort(values)
    marked = {*order[-_MARKED:][values[order[-_MARKED:]] > 0], *order[:_MARKED][values[order[:_MARKED]] < 0]}
    fig.add_scatter(
        x=centre[:, 0],
        y=centre[:, 1],
        mode="markers+text",
        text=[("▲" if v > 0 else "▼") if k in marked else "" for k, v in enumerate(values)],
        textfont={"size": 16, "color": INK},
        hovertext=[f"tile {k + 1}: {v:+.4f}" for k, v in zip(known, values, strict=True)],
        hoverinfo="text",
        marker={
            "size": 1,
            "opacity": 0.01,
            "color": values,
            "colorscale": DIVERGING,
            "cmin": -largest,
            "cmax": largest,
            "showscale": True,
            "colorbar": {"title": {"text": "▼ lowers<br>▲ raises"}, "thickness": 16, "tickformat": "+.2g"},
        },
    )


def tile_table(overlay: Overlay) -> pd.DataFrame:
    """Tiles with their places and values, the largest first."""
    known = np.flatnonzero(~np.isnan(overlay.values))
    order = known[np.argsort(-np.abs(overlay.values[known]), kind="stable")]
    return pd.DataFrame(
        {
            "tile": order + 1,
            "x": overlay.corners[order, 0].astype(np.int64),
            "y": overlay.corners[order, 1].astype(np.int64),
            "contribution": overlay.values[order],
        }
    )


def _scale_bar(fig: go.Figure, mpp: float | None, scale: int, *, box: tuple[float, float, float, float]) -> None:
    if not mpp:
        return
    left, top, wide, tall = box
    bar = next((b for b in (10000, 5000, 2000, 1000, 500, 200, 100, 50, 20) if b / mpp <= wide / 4), 10)
    length, x, y = bar / mpp, left + 0.03 * wide, top + 0.955 * tall
    fig.add_shape(
        type="rect", x0=x, x1=x + length, y0=y, y1=y + max(0.01 * tall, scale), fillcolor=INK, line={"width": 0}
    )
    fig.add_annotation(
        x=x + length / 2,
        y=y - 0.03 * tall,
        text=f"<b>{bar} µm</b>",
        showarrow=False,
        font={"color": INK, "size": 14},
        bgcolor="rgba(255,255,255,.8)",
    )


def tile_side(facts: Any, corners: np.ndarray[Any, Any]) -> float:  # noqa: ANN401  # a mapping of JSON values
    """Side of a tile in level-0 pixels: of the facts, else the least distance between tiles."""
    told = facts.get("tile_level0")
    if told:
        return float(told)
    steps = np.diff(np.unique(corners[:, 0])) if len(corners) else np.zeros(0)
    return float(steps.min()) if len(steps) else 256.0
