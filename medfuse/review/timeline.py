"""A patient's events before the index time, by variable: values, units, reference ranges and what each added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots

from medfuse.card import resolve_source
from medfuse.config import read_card
from medfuse.errors import MedfuseError
from medfuse.loaders import events
from medfuse.palette import BLUE, GREY, INK, LOWERS, RAISES, VERMILION
from medfuse.review.charts import Chart
from medfuse.review.raw import digest
from medfuse.review.source import ReviewRun
from medfuse.review.units import Units

_SMALL, _LARGE = 7.0, 19.0  # pixels of marks whose size says how much
_MOST = 8  # variables that are drawn; all are in the table


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Events of one patient.

    Attributes:
        reason: why there are none to show; else empty.
        table: columns ``variable days value unit low high`` with days before the index time, oldest first; where
            single events were explained also ``contribution``.
        told: of the contributions: when, by what, and whether they sum; empty without them.
    """

    reason: str = ""
    table: pd.DataFrame
    told: str = ""


def timeline(
    run: ReviewRun, patient: str, modality: str, *, data_root: Path | None, sources: Mapping[str, str]
) -> Timeline | None:
    """What happened before the index time, through the loader that the run used; None for other loaders.

    Args:
        run: the run.
        patient: a key of the run.
        modality: its name.
        data_root: folder of the cohort's files.
        sources: file -> SHA-256 that the run read.

    Raises:
        CohortError: no such patient.
    """
    run.locate(patient)
    card = read_card(run.path / "card.md")
    spec = card.modalities.get(modality)
    if spec is None or spec.loader != "events":
        return None
    nothing = pd.DataFrame()
    if data_root is None:
        return Timeline(
            reason="the files are not at hand; start the review with --data-root to see them", table=nothing
        )
    if run.run.read("data").get("pseudonyms"):
        return Timeline(reason="keys are pseudonyms here, so events cannot be found by them", table=nothing)

    def resolve(source: str) -> Path:
        path = resolve_source(card, source, data_root, folder=True)
        if sources.get(source) not in (None, digest(run, path)):
            raise _Changed
        return path

    try:
        found, variables = events.events_of(spec, patient, resolve=resolve, id_column=card.patients.id)
    except _Changed:
        return Timeline(reason="the files are not those that the run read (SHA-256 differs)", table=nothing)
    except MedfuseError as error:
        return Timeline(reason=f"the events could not be read ({type(error).__name__})", table=nothing)
    if not len(found):
        return Timeline(reason="no event of this patient is seen before the index time", table=nothing)
    by_name = {v.name: v for v in variables}
    ranges = [getattr(by_name.get(n), "reference", None) for n in found["variable"]]
    found["unit"] = [getattr(by_name.get(n), "unit", None) or "" for n in found["variable"]]
    found["low"] = [float(r[0]) if isinstance(r, tuple) else np.nan for r in ranges]
    found["high"] = [float(r[1]) if isinstance(r, tuple) else np.nan for r in ranges]
    return Timeline(table=found)


class _Changed(Exception):  # a way out of the loader
    """A source is not the one that the run read."""


def with_contributions(found: Timeline, parts: Units | None) -> tuple[Timeline, str]:
    """The timeline with what each event added, and why it has none (empty where it has).

    Args:
        found: of :func:`timeline`.
        parts: of :func:`medfuse.review.units.units_of` with kind ``event``, in the order of these events.
    """
    if found.reason:
        return found, ""
    if parts is None:
        return found, (
            "What single events added is not computed for this patient: medfuse explain RUN --within MODALITY --units "
            "event --patient KEY stores it."
        )
    own = parts.table.sort_values("number")
    names = [events.event_name(v, d) for v, d in zip(found.table["variable"], found.table["days"], strict=True)]
    if names != list(own["unit"]):
        return found, "What single events added was computed for other events; explain this patient's events again."
    where = "" if parts.horizon is None else f" at {parts.horizon:g} days"
    table = found.table.assign(contribution=own["contribution"].to_numpy())
    return replace(found, table=table, told=f"{where}: {parts.label}; checks: {parts.badge}"), ""


def timeline_chart(found: Timeline, *, scale: str = "the prediction") -> Chart:
    """A row per variable: values over days before the index time, with the reference range as a band.

    Args:
        found: of :func:`timeline`, or with contributions.
        scale: unit of the contributions, in words.
    """
    table = found.table
    timed = table[table["days"].notna()]
    counts = timed["variable"].value_counts()
    names = list(counts.index[:_MOST])
    largest = float(table["contribution"].abs().max()) if "contribution" in table else 0.0
    fig = make_subplots(rows=max(len(names), 1), cols=1, shared_xaxes=True, vertical_spacing=0.06 / max(len(names), 1))
    for row, name in enumerate(names, start=1):
        own = timed[timed["variable"] == name]
        _panel(fig, own, row, largest=largest)
        unit = own["unit"].iloc[0]
        fig.update_yaxes(title=f"{name}<br>{unit}" if unit else name, row=row, col=1, automargin=True)
    oldest = float(timed["days"].max()) if len(timed) else 1.0
    fig.update_xaxes(range=[-1.04 * max(oldest, 1.0), 0.02 * max(oldest, 1.0)], showline=True, linecolor=GREY)
    fig.update_xaxes(title="days before the index time (0)", row=max(len(names), 1), col=1)
    fig.update_layout(
        template="plotly_white",
        height=90 + 130 * max(len(names), 1),
        margin={"l": 10, "r": 10, "t": 20, "b": 10},
        font={"size": 14, "color": INK, "family": "sans-serif"},
        showlegend=False,
    )
    left = len(counts) - len(names)
    signed = "contribution" in table
    columns = ["variable", "days", "value", "unit", "low", "high", "side", *(["contribution"] if signed else [])]
    marks = "Each mark is an event that the model could see; a grey band is the card's reference range, and hollow "
    marks += "marks lie outside of it." if signed else "diamonds lie outside of it."
    if signed:
        marks += f" ▲ raises and ▼ lowers, the larger the more: contribution to {scale}{found.told}."
    return Chart(
        title="Timeline",
        figure=fig,
        alt="; ".join(_said(timed[timed["variable"] == n]) for n in names) or "no event has a time",
        table=table[columns].rename(
            columns={"days": "days before index", "low": "reference low", "high": "reference high"}
        ),
        how=marks + (f" {left} further variables are in the table only." if left else ""),
        cannot="Nothing after the index time is shown, and what was not measured leaves no mark."
        + (" An event that the model used is not shown to be a cause." if signed else ""),
    )


def _panel(fig: object, own: pd.DataFrame, row: int, *, largest: float) -> None:
    value = own["value"].to_numpy(dtype=np.float64)
    known = ~np.isnan(value)
    low, high = float(own["low"].iloc[0]), float(own["high"].iloc[0])
    if not np.isnan(low):
        fig.add_hrect(y0=low, y1=high, fillcolor="#d9d9d9", opacity=0.5, line_width=0, row=row, col=1)  # type: ignore[attr-defined]
    fig.add_scatter(  # type: ignore[attr-defined]
        x=-own["days"].to_numpy(dtype=np.float64),
        y=np.where(known, value, 0.0),
        mode="lines+markers" if known.all() else "markers",
        line={"color": GREY, "width": 1},
        marker=_marks(own, known, largest=largest),
        hovertext=_hover(own),
        hoverinfo="x+y+text",
        row=row,
        col=1,
    )


def _marks(own: pd.DataFrame, known: np.ndarray[Any, Any], *, largest: float) -> dict[str, Any]:
    """Circles, diamonds outside of the range; where contributions are known, triangles that point where they move."""
    outside = np.nan_to_num(own["side"].to_numpy(dtype=np.float64)) != 0
    if "contribution" not in own:
        shapes = ["diamond-open" if o else "circle" if k else "x" for o, k in zip(outside, known, strict=True)]
        return {"size": 9, "color": list(np.where(outside, VERMILION, BLUE)), "symbol": shapes}
    added = own["contribution"].to_numpy(dtype=np.float64)
    shapes = [
        ("triangle-up" if a > 0 else "triangle-down") + ("-open" if o else "")
        for a, o in zip(added, outside, strict=True)
    ]
    sizes = _SMALL + (_LARGE - _SMALL) * np.sqrt(np.abs(added) / largest if largest else np.zeros(len(added)))
    colours = list(np.where(added > 0, RAISES, LOWERS))
    return {"size": list(sizes), "color": colours, "symbol": shapes, "opacity": 1, "line": {"width": 2}}


def _hover(own: pd.DataFrame) -> list[str]:
    if "contribution" not in own:
        return [""] * len(own)
    return [f"{'▲' if a > 0 else '▼'} {a:+.4f}" for a in own["contribution"]]


def _said(own: pd.DataFrame) -> str:
    value: Sequence[float] = own["value"].dropna().tolist()
    last = f", last {value[-1]:g} {own['unit'].iloc[0]}" if value else ""
    added = f", together {own['contribution'].sum():+.3f}" if "contribution" in own else ""
    return f"{own['variable'].iloc[0]}: {len(own)} events{last}{added}"
