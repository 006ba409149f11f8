"""An ECG as it is printed: millimetre paper, 25 mm/s and 10 mm/mV."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medfuse.palette import INK
from medfuse.review.charts import Chart

MM_PER_S, MM_PER_MV = 25.0, 10.0
PULSE_S, PULSE_MV = 0.2, 1.0
_PIXELS_PER_MM = 96 / 25.4
_ROW_MV = 3.0


def ecg_rows(leads: Sequence[str], seconds: float) -> list[list[tuple[int, float, float]]]:
    """Which lead stands where: rows of (lead, from second, to second), leads in the file's own order.

    Twelve leads: three rows of four columns, each column its own quarter of the time, and a rhythm strip (II, or the
    first lead) below; other numbers: a row each.
    """
    if len(leads) != 12:
        return [[(k, 0.0, seconds)] for k in range(len(leads))]
    quarter = seconds / 4
    rows = [[(3 * c + r, c * quarter, (c + 1) * quarter) for c in range(4)] for r in range(3)]
    rhythm = list(leads).index("II") if "II" in leads else 0
    return [*rows, [(rhythm, 0.0, seconds)]]


def ecg_chart(signal: np.ndarray[Any, Any], frequency: float, leads: Sequence[str]) -> Chart:
    """ECG on paper: 25 mm/s, 10 mm/mV, 1 mm = 40 ms x 0.1 mV, calibration pulse of 1 mV and 200 ms.

    Args:
        signal: (leads, samples) in mV.
        frequency: samples per second.
        leads: names, in the file's own order.
    """
    seconds = signal.shape[1] / frequency
    rows = ecg_rows(leads, seconds)
    fig = go.Figure()
    for r, row in enumerate(rows):
        _pulse(fig, -_ROW_MV * r)
        for lead, start, end in row:
            _lead(fig, leads[lead], signal[lead], frequency, span=(start, end), base=-_ROW_MV * r)
    _paper(fig, rows=len(rows), seconds=seconds)
    table = pd.DataFrame(
        {
            "lead": list(leads),
            "lowest, mV": signal.min(axis=1),
            "highest, mV": signal.max(axis=1),
            "RMS, mV": np.sqrt((signal.astype(np.float64) ** 2).mean(axis=1)),
        }
    )
    return Chart(
        title="ECG",
        figure=fig,
        alt=f"ECG of {len(leads)} leads ({', '.join(leads)}), {seconds:g} s, on paper at 25 mm/s and 10 mm/mV.",
        table=table,
        how="One small square is 40 ms and 0.1 mV, a large one 200 ms and 0.5 mV; the pulse is 1 mV for 200 ms.",
        cannot="It is the record as the run read it; nothing here marks what the model used.",
    )


def _pulse(fig: go.Figure, base: float) -> None:
    """The calibration pulse before a row."""
    fig.add_scatter(
        x=[-0.4, -0.3, -0.3, -0.3 + PULSE_S, -0.3 + PULSE_S, 0.0],
        y=[base, base, base + PULSE_MV, base + PULSE_MV, base, base],
        mode="lines",
        line={"color": INK, "width": 1.4},
        name="calibration pulse",
        showlegend=False,
    )


def _lead(
    fig: go.Figure,
    name: str,
    signal: np.ndarray[Any, Any],
    frequency: float,
    *,
    span: tuple[float, float],
    base: float,
) -> None:
    """Seconds ``span`` of the samples (n,) of a lead, and its name above their start."""
    first, end = (round(at * frequency) for at in span)
    fig.add_scatter(
        x=np.arange(first, end) / frequency,
        y=np.round(signal[first:end] + base, 4),
        mode="lines",
        line={"color": INK, "width": 1.1},
        name=name,
        showlegend=False,
    )
    fig.add_annotation(
        x=span[0] + 0.04,
        y=base + 1.35,
        text=f"<b>{name}</b>",
        showarrow=False,
        xanchor="left",
        font={"size": 13, "color": INK},
    )


def _paper(fig: go.Figure, *, rows: int, seconds: float) -> None:
    """Size, and the squares of 1 and 5 mm."""
    low, high = -_ROW_MV * (rows - 1) - 1.7, 1.8
    fig.update_layout(
        width=round((seconds + 0.5) * MM_PER_S * _PIXELS_PER_MM + 20),
        height=round((high - low) * MM_PER_MV * _PIXELS_PER_MM + 20),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        plot_bgcolor="white",
        paper_bgcolor="white",
        template="none",
    )
    both = {
        "showticklabels": False,
        "zeroline": False,
        "showgrid": True,
        "gridcolor": "#e8a0a0",
        "gridwidth": 1,
        "ticks": "",
        "tick0": 0,
    }
    fine = {"showgrid": True, "gridcolor": "#f6dada", "ticks": ""}
    fig.update_xaxes(range=[-0.45, seconds + 0.05], dtick=0.2, minor={"dtick": 0.04, **fine}, **both)
    fig.update_yaxes(
        range=[low, high],
        dtick=0.5,
        scaleanchor="x",
        scaleratio=MM_PER_MV / MM_PER_S,
        minor={"dtick": 0.1, **fine},
        **both,
    )
