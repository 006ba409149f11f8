"""Charts of one patient."""

import numpy as np
import pandas as pd

from medfuse.palette import BLUE, GREY, INK, LOWERS, RAISES, SERIES
from medfuse.review.charts import DASHES, SYMBOLS, Chart, band, figure
from medfuse.review.patient import PatientView, risk_table
from medfuse.review.source import ReviewRun
from medfuse.review.words import percent, risk_text


def unit_of(view: PatientView) -> str:
    """Unit of the contributions, in words."""
    return {"survival": "log cumulative hazard", "continuous": "the value", "multiclass": "log probability"}.get(
        view.kind, "log odds"
    )


def _when(view: PatientView) -> str:
    if view.kind == "survival" and view.at is not None:
        return f" at {view.at:.0f} days"
    return f", class {int(view.at or 0) + 1}" if view.kind == "multiclass" else ""


def curve_chart(run: ReviewRun, view: PatientView, *, own_estimate: tuple[float, float] | None = None) -> Chart:
    """Survival curve with its band, the training cohort in grey, and the reader's own estimate.

    Args:
        run: the run.
        view: of a survival outcome.
        own_estimate: (day, risk) that the reader gave, or None.
    """
    table = view.curve
    fig = figure(x="days since index time", y="probability without the event", height=420)
    fig.update_yaxes(range=[0, 1.02])
    end = float(table["day"].max()) or 1.0
    cohort = run.training_curve(view.fold)
    if cohort is not None:
        inside = cohort.times <= end
        x = np.concatenate([[0.0], cohort.times[inside], [end]])
        y = np.concatenate([[1.0], cohort.survival[inside], cohort.survival[inside][-1:]])
        y = y if len(y) == len(x) else np.append(y, 1.0)
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": GREY, "width": 2, "dash": "dot", "shape": "hv"},
            name="training cohort",
        )
    band(fig, table["day"], table["low"], table["high"], name="band: 5th to 95th percentile of replicates", colour=BLUE)
    fig.add_scatter(
        x=table["day"], y=table["survival"], mode="lines", line={"color": BLUE, "width": 3}, name="this patient"
    )
    if own_estimate is not None and own_estimate[0] <= end:
        fig.add_scatter(
            x=[own_estimate[0]],
            y=[1 - own_estimate[1]],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": INK},
            name="your own estimate",
        )
    fig.update_xaxes(range=[0, end])
    last = table.iloc[-1]
    return Chart(
        title="Predicted course",
        figure=fig,
        alt=(
            f"Survival curve of patient {view.patient} with a band: probability without the event falls from 1 to "
            f"{last['survival']:.2f} (band {last['low']:.2f} to {last['high']:.2f}) at day {last['day']:.0f}; the "
            "training cohort's Kaplan-Meier curve stands beside it."
        ),
        table=table,
        how=(
            f"The height of the line is the predicted probability of no event until that day; the band spans "
            f"{view.replicates} replicates of the model."
        ),
        cannot=(
            "It ends where fewer than 10 % of the training cohort were still followed, and the band leaves out what "
            "all replicates share: the choice of model and the way the data were measured."
        ),
    )


def risks_chart(run: ReviewRun, patient: str) -> Chart:
    """Risks at the horizons, each with its interval."""
    table = risk_table(run, patient)
    fig = figure(x="", y="risk of the event", height=300)
    names = ["now" if pd.isna(day) else f"{day:.0f} days" for day in table["day"]]
    if run.kind == "multiclass":
        names = [f"class {k + 1}" for k in range(len(table))]
    fig.add_scatter(
        x=names,
        y=table["risk"],
        mode="markers",
        marker={"size": 12, "color": BLUE, "symbol": "diamond"},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (table["high"] - table["risk"]).clip(lower=0),
            "arrayminus": (table["risk"] - table["low"]).clip(lower=0),
            "thickness": 2,
            "width": 8,
            "color": BLUE,
        },
        name="risk with interval",
    )
    fig.update_yaxes(range=[0, 1], tickformat=".0%")
    fig.update_xaxes(type="category")
    rows = list(zip(table["risk"], table["low"], table["high"], strict=True))
    shown = pd.DataFrame(
        {
            "horizon": names,
            "risk": [percent(r) for r, _, _ in rows],
            "interval": [f"{percent(low)} to {percent(high)}" for _, low, high in rows],
            "in words": [f"about {round(100 * r)} of 100 patients like this" for r, _, _ in rows],
        }
    )
    return Chart(
        title="Risk at each horizon",
        figure=fig,
        alt="Risks with intervals: "
        + "; ".join(f"{name}: {risk_text(*row)}" for name, row in zip(names, rows, strict=True))
        + ".",
        table=shown,
        how="The mark is the predicted risk, the line the 5th to 95th percentile over the replicates of the model.",
        cannot="It describes groups of patients like this one, not what will happen to this person.",
    )


def contributions_chart(view: PatientView, *, unsupported: bool = False) -> Chart:
    """Bars with whiskers: what each of the patient's modalities contributed.

    Args:
        view: the patient.
        unsupported: hatch the bars, because a needed coalition is not supported by the gate.
    """
    table = view.contributions.iloc[::-1]
    fig = figure(
        x=f"contribution to {unit_of(view)}{_when(view)}", height=120 + 44 * max(len(table), 1), showlegend=False
    )
    up = table["contribution"] >= 0
    fig.add_bar(
        y=table["modality"],
        x=table["contribution"],
        orientation="h",
        marker={
            "color": [RAISES if u else LOWERS for u in up],
            "pattern": {"shape": "/" if unsupported else "", "solidity": 0.4},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (table["high"] - table["contribution"]).clip(lower=0),
            "arrayminus": (table["contribution"] - table["low"]).clip(lower=0),
            "color": INK,
            "thickness": 1.5,
        },
        name="contribution",
    )
    for _, row in table.iterrows():
        arrow = "▲" if row["contribution"] >= 0 else "▼"
        text = f"{arrow} {row['contribution']:+.3f}"
        if view.kind != "continuous":
            text += f"   × {row['ratio']:.2f}   {100 * row['points']:+.1f} points"
        fig.add_annotation(
            y=row["modality"], x=1.0, xref="paper", text=text, showarrow=False, xanchor="left", align="left"
        )
    fig.update_layout(margin={"r": 240})
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    parts = "; ".join(
        f"{r['modality']} {r['contribution']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f})"
        for _, r in view.contributions.iterrows()
    )
    return Chart(
        title="What each modality contributed",
        figure=fig,
        alt=f"Bars of contributions to {unit_of(view)}{_when(view)}: {parts or 'none, this patient has no modality'}.",
        table=view.contributions,
        how=(
            "A bar to the right (▲) raises the prediction, to the left (▼) lowers it; whiskers span the replicates; "
            "× is the factor on the hazard or odds, points are its part of the difference in risk."
        ),
        cannot=(
            "It says how knowing a modality moves this model's estimate, not that the modality causes anything; two "
            "modalities that say the same share the credit."
        ),
    )


def waterfall_chart(view: PatientView) -> Chart:
    """From the estimate without any modality to the prediction, the modalities shown one after the other."""
    table = view.steps
    fig = figure(y=f"{unit_of(view)}{_when(view)}", height=400, showlegend=False)
    fig.add_waterfall(
        x=["no modality", *table["modality"], "all"],
        y=[view.nobody, *table["step"], view.link],
        measure=["absolute", *(["relative"] * len(table)), "total"],
        text=[f"{view.nobody:+.2f}", *(f"{v:+.2f}" for v in table["step"]), f"{view.link:+.2f}"],
        textposition="outside",
        increasing={"marker": {"color": RAISES}},
        decreasing={"marker": {"color": LOWERS}},
        totals={"marker": {"color": GREY}},
        connector={"line": {"color": GREY}},
    )
    edges = np.array([view.nobody, *table["after"], view.link], dtype=np.float64)
    room = 0.2 * max(float(np.ptp(edges)), 0.1)
    fig.update_yaxes(range=[float(edges.min()) - room, float(edges.max()) + room])
    start = pd.DataFrame([{"modality": "no modality", "after": view.nobody, "risk": view.nobody_risk}])
    shown = pd.concat([start, table], ignore_index=True) if len(table) else start
    return Chart(
        title="One after the other",
        figure=fig,
        alt=f"Waterfall from {view.nobody:+.3f} without any modality to {view.link:+.3f} with all of the patient's: "
        + "; ".join(f"{r['modality']} {r['step']:+.3f}" for _, r in table.iterrows()),
        table=shown.rename(columns={"contribution": "mean over all orders"}),
        how="Each step is what the model changed when it was shown one modality more, in the run's fixed order.",
        cannot=(
            "Another order gives other steps where modalities interact; the bars above are the mean over all orders. "
            "The axis does not start at zero."
        ),
    )


def dividends_chart(view: PatientView) -> Chart:
    """Harsanyi dividends that are clear of zero over the replicates, the largest twelve."""
    clear = view.dividends[view.dividends["clear"]]
    table = clear.reindex(clear["dividend"].abs().sort_values(ascending=False).index).head(12)
    shown = table.iloc[::-1]
    fig = figure(x=f"dividend, {unit_of(view)}{_when(view)}", height=120 + 30 * max(len(shown), 1), showlegend=False)
    fig.add_bar(
        y=shown["modalities"],
        x=shown["dividend"],
        orientation="h",
        marker={
            "color": [RAISES if v >= 0 else LOWERS for v in shown["dividend"]],
            "pattern": {"shape": ["" if order == 1 else "x" for order in shown["order"]], "solidity": 0.3},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (shown["high"] - shown["dividend"]).clip(lower=0),
            "arrayminus": (shown["dividend"] - shown["low"]).clip(lower=0),
            "color": INK,
        },
        name="dividend",
    )
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    rest = len(view.dividends) - len(clear)
    return Chart(
        title="Alone and together",
        figure=fig,
        alt="Dividends clear of zero: "
        + ("; ".join(f"{r['modalities']} {r['dividend']:+.3f}" for _, r in table.iterrows()) or "none")
        + f". {rest} others lie within the noise between replicates.",
        table=view.dividends.sort_values("dividend", key=np.abs, ascending=False),
        how=(
            "What a group of modalities adds beyond all of its parts (crossed bars); a negative dividend of a pair "
            f"means that both say the same. {rest} dividends within the noise between replicates are in the table only."
        ),
        cannot="A dividend near zero does not show that two modalities are independent in patients.",
    )


def over_time_chart(view: PatientView) -> Chart:
    """Contributions over time."""
    fig = figure(x="days since index time", y="contribution to log cumulative hazard", height=380)
    for k, name in enumerate(c for c in view.over_time.columns if c != "day"):
        fig.add_scatter(
            x=view.over_time["day"],
            y=view.over_time[name],
            mode="lines+markers",
            line={"color": SERIES[k % 6] if k < 6 else INK, "dash": DASHES[k % 6], "width": 2},
            marker={"symbol": SYMBOLS[k % 6], "size": 7},
            name=name,
        )
    fig.add_hline(y=0, line={"color": INK, "width": 1})
    return Chart(
        title="Contributions over time",
        figure=fig,
        alt=f"Lines of contribution over time for {', '.join(view.has) or 'no modality'}.",
        table=view.over_time,
        how="A flat line is an effect that multiplies the hazard alike at all times.",
        cannot="Lines say nothing of when a disease process happens.",
    )
