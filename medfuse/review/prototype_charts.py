"""Charts of prototypes: likeness and terms of a patient, size and survival of the prototypes of a run."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medfuse.explain.prototype_record import PrototypeRecord
from medfuse.metrics.nonparametric import SurvivalCurve
from medfuse.palette import BLUE, GREY, INK, LOWERS, RAISES, SERIES
from medfuse.review.charts import DASHES, Chart, band, figure
from medfuse.review.prototypes import (
    curve_of,
    group,
    nearest_of,
    patient_table,
    run_table,
    terms_table,
    who,
)
from medfuse.review.source import ReviewRun
from medfuse.review.words import signed

_EACH = 8  # most raising and most lowering terms that have a bar
_LIKE = "Being like a prototype is no contribution, and prototypes of another network are others."


def likeness_chart(found: PrototypeRecord, patient: str, modality: str) -> Chart | None:
    """How like each prototype of a modality a patient is; None where the modality is absent."""
    table = patient_table(found, patient, modality)
    if table is None:
        return None
    shown = table.iloc[::-1]
    near = shown["nearest"] != ""
    fig = figure(x="cosine with the patient's best instances", height=130 + 30 * len(shown), showlegend=False)
    fig.add_bar(
        y=[f"{p}: {level}" for p, level in zip(shown["prototype"], shown["level"], strict=True)],
        x=shown["cosine"],
        orientation="h",
        marker={
            "color": [BLUE if n else GREY for n in near],
            "line": {"color": INK, "width": [2 if n else 0.5 for n in near]},
        },
    )
    for name, (_, row) in zip(fig.data[0].y, shown.iterrows(), strict=True):
        text = f"{'nearest ' if row['nearest'] else ''}{row['cosine']:+.2f}"
        text += "" if np.isnan(row["probability"]) else f", {row['probability']:.0%}"
        fig.add_annotation(y=name, x=1.0, xref="paper", text=text, showarrow=False, xanchor="left")
    fig.update_layout(margin={"r": 130})
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    fig.update_yaxes(type="category")
    own = table[table["nearest"] != ""].iloc[0]
    per_cent = "" if found.temperature is None else "; per cent is the probability that the model assigns"
    return Chart(
        title=f"Prototypes of {modality}",
        figure=fig,
        alt=f"Bars of cosines with the prototypes of {modality}; nearest {own['prototype']} ({own['level']}), "
        + "; ".join(f"{p} {c:+.2f}" for p, c in zip(table["prototype"], table["cosine"], strict=True)),
        table=table,
        how=(
            f"The outlined bar is the nearest of the learned references of network {found.members[0]}{per_cent}; "
            f"{own['networks']} of {len(found.members)} networks find a prototype of its level nearest. A level is "
            f"where the prototype started, of {found.leading}: what became of those near it is below."
        ),
        cannot=_LIKE,
    )


def terms_chart(found: PrototypeRecord, patient: str, label: int = 0) -> Chart | None:
    """Signed bars of what prototypes add to the network's logit; None where that is no sum."""
    table = terms_table(found, patient, label)
    if table is None:
        return None
    table = table.assign(name=table["modality"] + " " + table["prototype"])
    raising, lowering = table[table["term"] > 0].head(_EACH), table[table["term"] <= 0].head(_EACH)
    shown = pd.concat([raising, lowering.iloc[::-1]])
    bars = list(zip(shown["name"], shown["term"], strict=True))
    rest = table.drop(shown.index)
    if len(rest):
        bars.append((f"({len(rest)} others)", float(rest["term"].sum())))
    bars = bars[::-1]
    named = [not str(name).startswith("(") for name, _ in bars]
    values = [float(v) for _, v in bars]
    fig = figure(x=f"term of the {found.scale}", height=130 + 26 * max(len(bars), 1), showlegend=False)
    fig.add_bar(
        y=[name for name, _ in bars],
        x=values,
        orientation="h",
        marker={
            "color": [(RAISES if v > 0 else LOWERS) if own else GREY for v, own in zip(values, named, strict=True)],
            "pattern": {"shape": ["" if v > 0 else "/" for v in values], "solidity": 0.25},
        },
    )
    for name, value in bars:
        text = f"{'▲' if value > 0 else '▼'} {signed(float(value))}"
        fig.add_annotation(y=name, x=1.0, xref="paper", text=text, showarrow=False, xanchor="left")
    fig.update_layout(margin={"r": 90})
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    fig.update_yaxes(type="category")
    where = f", class {label + 1}" if len(np.atleast_1d(found.logit[0])) > 1 else ""
    said = "; ".join(f"{name} {signed(float(value))}" for name, value in bars[::-1]) or "no modality"
    return Chart(
        title="Prototypes: terms of the sum",
        figure=fig,
        alt=f"Signed terms of the {found.scale}{where} by modality and prototype: {said}.",
        table=table.drop(columns="name"),
        how=(
            f"Each bar is what one prototype adds to the {found.scale}{where} of network {found.members[0]}, exactly: "
            "▲ raises and ▼ (hatched) lowers it. 1a and 1b are prototypes of level 1."
        ),
        cannot=(
            "They are of one network: the risk shown above is of all networks together, and its parts are the "
            "contributions above. A term is no cause."
        ),
    )


def nearest_curve_chart(run: ReviewRun, found: PrototypeRecord, patient: str, modality: str, fold: str) -> Chart | None:
    """Kaplan-Meier of the training patients with the same nearest prototype; None where there are too few of them."""
    number = nearest_of(found, patient, modality)
    own = group(found, modality, [number]) if number >= 0 else None
    curve = None if own is None else curve_of(run, own.keys)
    everybody = run.training_curve(fold)
    if own is None or curve is None or everybody is None:
        return None
    fig = figure(x="days since index time", y="probability without the event", height=360)
    end = run.supported_until(fold)
    name = f"nearest to {found.names[number]} ({len(own.keys)})"
    table = _steps(fig, curve, end=end, name=name, limits="95 % limits (log-log)", colour=BLUE)
    all_x = np.concatenate([[0.0], everybody.times[everybody.times <= end]])
    fig.add_scatter(
        x=all_x,
        y=everybody(all_x),
        mode="lines",
        name="training cohort",
        line={"color": GREY, "width": 2, "dash": "dot", "shape": "hv"},
    )
    fig.update_yaxes(range=[0, 1.02])
    return Chart(
        title=f"What became of training patients nearest to {modality} {found.names[number]}",
        figure=fig,
        alt=f"Kaplan-Meier curve of {len(own.keys)} training patients with the same nearest prototype of {modality}, "
        "beside the whole training cohort.",
        table=table,
        how=f"Blue is what was observed in {who(own.fitted)}, dotted grey the training cohort.",
        cannot="Patients near the same reference in what one network reads need not be alike in anything else.",
    )


def _steps(
    fig: go.Figure, curve: SurvivalCurve, *, end: float, name: str, limits: str, colour: str, dash: str = "solid"
) -> pd.DataFrame:
    """Draw a Kaplan-Meier curve with its limits until a day; the same as a table."""
    low, high = curve.limits()
    inside = curve.times <= end
    x = np.concatenate([[0.0], curve.times[inside]])
    y, lo, hi = (np.concatenate([[1.0], v[inside]]) for v in (curve.survival, low, high))
    lo, hi = np.nan_to_num(lo, nan=0.0), np.where(np.isnan(hi), y, hi)
    band(fig, x, lo, hi, name=limits, colour=colour, shape="hv")
    fig.add_scatter(x=x, y=y, mode="lines", name=name, line={"color": colour, "width": 3, "dash": dash, "shape": "hv"})
    return pd.DataFrame({"day": x, "survival": y, "low": lo, "high": hi})


def sizes_chart(
    run: ReviewRun, found: PrototypeRecord, modality: str, *, at: float | None, fitted: bool = False
) -> Chart:
    """How many training patients are nearest to each prototype, with what became of them, and the collapse check."""
    table = run_table(run, found, modality, at=at, fitted=fitted)
    shown = table.iloc[::-1]
    fig = figure(x="training patients nearest to it", height=130 + 30 * len(shown), showlegend=False)
    sound = shown["check"] == "distinct"
    fig.add_bar(
        y=[f"{p}: {level}" for p, level in zip(shown["prototype"], shown["level"], strict=True)],
        x=shown["patients"],
        orientation="h",
        marker={
            "color": [BLUE if ok else GREY for ok in sound],
            "pattern": {"shape": ["" if ok else "x" for ok in sound], "solidity": 0.3},
        },
    )
    became = table.columns[3]
    for name, (_, row) in zip(fig.data[0].y, shown.iterrows(), strict=True):
        fig.add_annotation(y=name, x=1.0, xref="paper", text=row[became], showarrow=False, xanchor="left")
    fig.update_layout(margin={"r": 190})
    fig.update_xaxes(rangemode="tozero")
    fig.update_yaxes(type="category")
    return Chart(
        title=f"Prototypes of {modality}",
        figure=fig,
        alt=f"Training patients nearest to each prototype of {modality}: "
        + "; ".join(f"{r['prototype']} {r['patients']}, {r[became]}, {r['check']}" for _, r in table.iterrows()),
        table=table,
        how=(
            f"Bars count {who(fitted)}; at their right: {became}. Crossed grey bars are prototypes that failed the "
            "collapse check."
        ),
        cannot=(
            "The level in words is where a prototype started; whether it still stands for it, the outcomes tell. "
            "Another network has other prototypes."
        ),
    )


def levels_chart(
    run: ReviewRun, found: PrototypeRecord, modality: str, fold: str, *, fitted: bool = False
) -> Chart | None:
    """Kaplan-Meier by the level of the nearest prototype; None of other outcomes, or where all levels are too small."""
    end = run.supported_until(fold)
    fig = figure(x="days since index time", y="probability without the event", height=430)
    rows = []
    for level, words in enumerate(found.levels):
        numbers = range(level * found.each, (level + 1) * found.each)
        own = group(found, modality, list(numbers), fitted=fitted)
        curve = curve_of(run, own.keys)
        known = run.survival_of(own.keys) if run.kind == "survival" else None
        events = None if known is None else int(known.event.sum())
        rows.append({"level": f"{level + 1}: {words}", "patients": len(own.keys), "events": events})
        if curve is None:
            continue
        name, limits = f"level {level + 1} ({len(own.keys)})", f"level {level + 1}: 95 %"
        style = {"colour": SERIES[level % len(SERIES)], "dash": DASHES[level % len(DASHES)]}
        _steps(fig, curve, end=end, name=name, limits=limits, **style)
    if not fig.data:
        return None
    fig.update_yaxes(range=[0, 1.02])
    said = "; ".join(f"level {r['level']}, {r['patients']} patients, {r['events']} events" for r in rows)
    return Chart(
        title=f"Survival by the nearest prototype of {modality}",
        figure=fig,
        alt=f"Kaplan-Meier curves of training patients by the level of their nearest prototype of {modality}: {said}.",
        table=pd.DataFrame(rows),
        how=f"Observed in {who(fitted)}; levels with fewer than 10 known outcomes have no line.",
        cannot="Levels that lie apart do not show that a single prototype, or this modality alone, is right.",
    )
