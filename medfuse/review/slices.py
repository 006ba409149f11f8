"""Slices of a volume, and the regions that raised or lowered a prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medfuse.review.charts import DIVERGING, Chart, diverging
from medfuse.review.charts import picture as as_url

WINDOWS: Mapping[str, tuple[float, float]] = {
    "as read": (0.0, 0.0),
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
}
VIEWS = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Regions of a volume and what they added.

    Attributes:
        centre: (T, 3) in mm.
        side: (3,) in mm.
        values: (T,) signed; NaN where nothing was stored.
        strength: 0 hides them, 1 hides the volume.
    """

    centre: np.ndarray[Any, Any]
    side: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    strength: float

    def on(self, shape: Sequence[int], affine: np.ndarray[Any, Any], *, axis: int, number: int) -> Any:  # noqa: ANN401
        """Mean value of the boxes over each voxel of a slice; NaN outside all of them."""
        back = np.linalg.inv(affine)
        middle = self.centre[:, :3] @ back[:3, :3].T + back[:3, 3]
        half = self.side / np.linalg.norm(affine[:3, :3], axis=0) / 2
        total, count = np.zeros(tuple(shape)), np.zeros(tuple(shape))
        total, count = np.take(total, 0, axis=axis), np.take(count, 0, axis=axis)
        others = [k for k in range(3) if k != axis]
        for at, value in zip(middle, self.values, strict=True):
            if np.isnan(value) or not at[axis] - half[axis] <= number < at[axis] + half[axis]:
                continue
            ends = [(np.ceil(at[k] - half[k] - 1e-6), np.ceil(at[k] + half[k] - 1e-6)) for k in others]
            box = tuple(slice(max(int(a), 0), max(int(b), 0)) for a, b in ends)
            total[box] += value
            count[box] += 1
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def side_mm(options: Mapping[str, Any], facts: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """(3,) side of a patch in mm, as the card and the stored facts have it; 32 mm where the card is silent."""
    spacing = np.array(facts.get("spacing_mm") or (1.0, 1.0, 1.0), dtype=np.float64)
    whole = spacing * np.array(facts.get("volume_shape") or (np.inf,) * 3, dtype=np.float64)
    patch = options.get("patch")
    side = spacing * np.array(patch, dtype=np.float64) if patch else np.array(options.get("patch_mm") or 32.0)
    return np.minimum(np.broadcast_to(side, (3,)).astype(np.float64), whole)


def slice_chart(
    volume: np.ndarray[Any, Any],
    affine: np.ndarray[Any, Any],
    *,
    view: str,
    number: int,
    window: str,
    boxes: Boxes | None = None,
) -> Chart:
    """One orthogonal slice in RAS+ order with orientation letters, and the regions that raise or lower.

    Args:
        volume: (I, J, K) in RAS+ order: axes point right, forward, up.
        affine: (4, 4) index -> mm.
        view: of :data:`VIEWS`.
        number: of the slice.
        window: of :data:`WINDOWS`.
        boxes: regions with their contributions.
    """
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[view]
    plane = np.take(volume, number, axis=axis)
    low, high = WINDOWS[window]
    if low == high:
        low, high = (float(v) for v in np.quantile(volume, [0.01, 0.99]))
    shade = np.repeat((255 * np.clip((plane - low) / max(high - low, 1e-6), 0, 1))[..., None], 3, axis=-1)
    shown = boxes is not None and boxes.strength > 0
    if boxes is not None and shown:
        shade = _tinted(shade, boxes.on(volume.shape, affine, axis=axis, number=number), boxes)
    letters = {"axial": "R L A P", "coronal": "R L S I", "sagittal": "P A S I"}[view].split()
    across, along = np.delete(np.linalg.norm(affine[:3, :3], axis=0), axis)
    fig = _picture(shade, across, along, mirrored=view != "sagittal", legend=boxes if shown else None)
    _orientation(fig, letters)
    extremes = {"what": ["lowest", "mean", "highest"], "value": [plane.min(), plane.mean(), plane.max()]}
    return Chart(
        title=f"{view.capitalize()} slice {number + 1} of {volume.shape[axis]}",
        figure=fig,
        alt=f"{view} slice {number + 1} of {volume.shape[axis]}, window {window}, with letters {', '.join(letters)}.",
        table=pd.DataFrame(extremes) if boxes is None else _region_table(boxes),
        how="R, L, A, P, S, I: the patient's right, left, front, back, upper and lower side."
        + (" Vermilion regions raise, blue ones lower the prediction; pale is little." if shown else ""),
        cannot="For orientation only: not a diagnostic display.",
    )


def _picture(
    shade: np.ndarray[Any, Any], across: float, along: float, *, mirrored: bool, legend: Boxes | None
) -> go.Figure:
    """A plane (n, m, 3) with n to the right and m up, in pixels of ``across`` x ``along`` mm.

    Radiological where mirrored: the patient's right is at the left of the picture.
    """
    turned = shade.transpose(1, 0, 2)[::-1]
    pixels = turned[:, ::-1] if mirrored else turned
    url = as_url(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    fig = go.Figure(go.Image(source=url, dx=across, dy=along, hoverinfo="skip"))
    if legend is not None:
        _legend(fig, legend)
    height, width = pixels.shape[0] * along, pixels.shape[1] * across
    scale = 520 / max(width, height)
    fig.update_layout(
        width=round(width * scale) + (20 if legend is None else 150),
        height=round(height * scale) + 20,
        template="none",
        showlegend=False,
        margin={"l": 10, "r": 10 if legend is None else 140, "t": 10, "b": 10},
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return fig


def _orientation(fig: go.Figure, letters: Sequence[str]) -> None:
    """Letters at the left, right, top and bottom."""
    for x, y, letter in zip((0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.97, 0.03), letters, strict=True):
        fig.add_annotation(
            x=x,
            y=y,
            xref="paper",
            yref="paper",
            text=f"<b>{letter}</b>",
            showarrow=False,
            font={"color": "#ffd24d", "size": 16},
            bgcolor="rgba(0,0,0,.6)",
        )


def _tinted(shade: np.ndarray[Any, Any], value: np.ndarray[Any, Any], boxes: Boxes) -> np.ndarray[Any, Any]:
    largest = float(np.nanmax(np.abs(boxes.values), initial=0.0)) or 1.0
    for one in np.unique(value[~np.isnan(value)]):
        part = boxes.strength * (0.12 + 0.88 * abs(one) / largest)
        here = value == one
        shade[here] = (1 - part) * shade[here] + part * np.array(diverging(one / largest))
    return shade


def _legend(fig: go.Figure, boxes: Boxes) -> None:
    largest = float(np.nanmax(np.abs(boxes.values), initial=0.0)) or 1.0
    fig.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0.0],
            "colorscale": DIVERGING,
            "cmin": -largest,
            "cmax": largest,
            "showscale": True,
            "colorbar": {"title": {"text": "▼ lowers<br>▲ raises"}, "thickness": 16, "tickformat": "+.2g"},
        },
    )


def _region_table(boxes: Boxes) -> pd.DataFrame:
    order = np.argsort(-np.abs(np.nan_to_num(boxes.values)), kind="stable")
    at = {f"{name}, mm": boxes.centre[order, k] for k, name in enumerate(("right", "front", "up"))}
    return pd.DataFrame({"region": order + 1, **at, "contribution": boxes.values[order]})
