"""What a patient lacks and what that could change, who is similar, and whether the patient is like anybody."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medfuse.explain.familiarity import NOT_CHECKED, WITHHELD, reasons, states
from medfuse.explain.familiarity import NOTHING as NOTHING
from medfuse.metrics.nonparametric import SurvivalCurve, kaplan_meier
from medfuse.palette import BLUE, GREY, INK, TEAL
from medfuse.review.charts import Chart, band, figure
from medfuse.review.patient import PatientView
from medfuse.review.source import ReviewRun
from medfuse.review.words import percent

NOT_COMPUTED = "not computed in this run; run medfuse explain with a version that stores it"
FEWEST_DONORS = 10
FEWEST_NEIGHBOURS = 5
DELTA = 0.03


def familiarity(run: ReviewRun, patient: str) -> tuple[str, list[str]]:
    """Familiar, unusual, withheld or "not checked", with the reasons; these name no value of the patient."""
    one, row = run.locate(patient)
    part, present = run.part(one.fold, "distribution"), np.asarray(one.present[row], dtype=bool)
    if part is None:
        return (NOT_CHECKED, []) if present.any() else (WITHHELD, [NOTHING])
    percentile, count = np.asarray(part["percentile"][row]), int(part["pattern_count"][row])
    (word,) = states(percentile[None], pattern_count=[count], present=present[None])
    return word, reasons(part["modalities"], percentile, pattern_count=count, present=present)


def familiarity_table(run: ReviewRun, patient: str) -> pd.DataFrame | None:
    """Per modality, the percentile of the patient's unlikeness among training patients; None where not computed."""
    one, row = run.locate(patient)
    part = run.part(one.fold, "distribution")
    if part is None:
        return None
    value = np.asarray(part["percentile"])[row]
    notes = [reason or ("absent" if np.isnan(v) else "") for reason, v in zip(part["unscored"], value, strict=True)]
    return pd.DataFrame({"modality": part["modalities"], "percentile": value, "note": notes})


def unsupported(run: ReviewRun, patient: str) -> list[str] | None:
    """Why the contributions of a patient rest on predictions without a sound record; None where not computed."""
    one, row = run.locate(patient)
    gate = run.part(one.fold, "gate")
    if gate is None:
        return None
    owned = int(np.asarray(one.present[row]) @ (1 << np.arange(len(one.modalities))))
    names = one.modalities
    return [
        f"{' + '.join(names[i] for i in range(len(names)) if number >> i & 1) or 'no modality'}: {reason}"
        for number, reason in enumerate(gate["reason"])
        if reason and number & owned == number
    ]


@dataclass(frozen=True, kw_only=True)
class Added:
    """What one missing modality could change, by the predictions with that of each donor.

    Attributes:
        modality: its name.
        donors: how many.
        risk: without it.
        change: mean absolute change.
        low, high: 5th and 95th percentile of the risks.
        crossing: part of the donors that move the risk across the threshold.
        mean: of the risks.
        absence: the mean over donors differs from the risk by more than 0.03 and two standard errors: the model says
            something because the modality is absent.
        distance: median cosine distance of the donors.
        draws: the risks.
    """

    modality: str
    donors: int
    risk: float
    change: float
    low: float
    high: float
    crossing: float
    mean: float
    absence: bool
    distance: float
    draws: np.ndarray[Any, Any]

    def sentence(self, threshold: float) -> str:
        """In words; never an order to test."""
        if self.donors < FEWEST_DONORS:
            return f"{self.modality}: only {self.donors} comparable donors, too few to say."
        return (
            f"{self.modality} would change the risk by about {100 * self.change:.0f} points; "
            f"{round(100 * self.crossing)} in 100 donors move it across {threshold:.0%}."
        )


def added(run: ReviewRun, patient: str, *, at: float | None, threshold: float) -> list[Added] | None:
    """One answer per missing modality at a horizon; None where it was not computed, [] where nothing is missing.

    Risk r_0 without, r_j with the modality of donor j: change E|r_j - r_0|, crossing P((r_j - p)(r_0 - p) < 0).
    """
    one, row = run.locate(patient)
    part = run.part(one.fold, "donors")
    if part is None:
        return None
    column = 0
    if run.kind == "survival":
        horizons = np.asarray(part["horizons"])
        close = np.flatnonzero(np.isclose(horizons, at if at is not None else -1.0))
        if not len(close):
            return None
        column = int(close[0])
    out = []
    for q in np.flatnonzero(np.asarray(part["patient"]) == row):
        draws = np.asarray(part["draws"][q, :, column], dtype=np.float64)
        draws = draws[~np.isnan(draws)]
        risk = float(part["risk"][q, column])
        few = len(draws) < 2
        mean = float("nan") if few else float(draws.mean())
        error = float("nan") if few else float(draws.std() / np.sqrt(len(draws)))
        low, high = (float("nan"), float("nan")) if few else np.quantile(draws, [0.05, 0.95])
        distance = np.asarray(part["distance"][q], dtype=np.float64)
        out.append(
            Added(
                modality=str(part["modalities"][int(part["modality"][q])]),
                donors=len(draws),
                risk=risk,
                change=float(np.abs(draws - risk).mean()) if len(draws) else float("nan"),
                low=float(low),
                high=float(high),
                crossing=float(((draws - threshold) * (risk - threshold) < 0).mean()) if len(draws) else float("nan"),
                mean=mean,
                absence=not few and abs(mean - risk) > max(DELTA, 2 * error),
                distance=float(np.nanmedian(distance)) if np.isfinite(distance).any() else float("nan"),
                draws=draws,
            )
        )
    return out


def added_chart(found: list[Added], *, threshold: float, view: PatientView) -> Chart:
    """Risk now and the range it could move to, per missing modality."""
    shown = [a for a in found if a.donors >= FEWEST_DONORS]
    fig = figure(x="risk", height=170 + 50 * max(len(shown), 1))
    for a in shown[::-1]:
        fig.add_scatter(
            x=[a.low, a.high], y=[a.modality] * 2, mode="lines", line={"color": TEAL, "width": 10}, showlegend=False
        )
        fig.add_scatter(
            x=[a.mean],
            y=[a.modality],
            mode="markers",
            marker={"size": 13, "color": INK, "symbol": "line-ns-open"},
            showlegend=False,
        )
    fig.add_vrect(x0=view.low, x1=view.high, fillcolor=BLUE, opacity=0.15, line_width=0)
    fig.add_vline(x=view.risk, line={"color": BLUE, "width": 3})
    fig.add_vline(x=threshold, line={"color": GREY, "width": 1, "dash": "dash"})
    fig.update_xaxes(range=[0, 1], tickformat=".0%")
    table = pd.DataFrame(
        {
            "modality": [a.modality for a in found],
            "expected change": [percent(a.change) for a in found],
            "5th to 95th percentile": [f"{percent(a.low)} to {percent(a.high)}" for a in found],
            "crossing": [percent(a.crossing) for a in found],
            "donors": [a.donors for a in found],
            "median distance": [a.distance for a in found],
            "absence used": ["yes" if a.absence else "no" for a in found],
        }
    )
    return Chart(
        title="What a missing modality could change",
        figure=fig,
        alt="Risk now "
        + percent(view.risk)
        + "; with donors' values: "
        + "; ".join(f"{a.modality} {percent(a.low)} to {percent(a.high)}" for a in shown),
        table=table,
        how=(
            "The blue line and band are the risk now with its interval; a teal bar spans what the model says with "
            "the modality of similar training patients, the tick is their mean, the dashed line the threshold."
        ),
        cannot="It is about this model's estimate, and no advice to do a test.",
    )


@dataclass(frozen=True, kw_only=True)
class Similar:
    """Similar training patients, or nobody.

    Attributes:
        close: training patients within the limit.
        table: columns ``key distance percentile observed event time``; empty when nobody is comparable.
        curve: Kaplan-Meier of them, or None.
    """

    close: int
    table: pd.DataFrame
    curve: SurvivalCurve | None


def similar(run: ReviewRun, patient: str) -> Similar | None:
    """Stored neighbours, all of them training patients; None where not computed."""
    one, row = run.locate(patient)
    part = run.part(one.fold, "neighbours")
    if part is None:
        return None
    close = int(part["close"][row])
    rows = np.asarray(part["row"][row])
    there, limit = np.flatnonzero(rows >= 0), float(part["limit"][row])
    if close < FEWEST_NEIGHBOURS:
        return Similar(close=close, table=pd.DataFrame(), curve=None)
    table = pd.DataFrame(
        {
            "key": [str(part["train_ids"][int(rows[j])]) for j in there],
            "distance": np.asarray(part["distance"][row])[there],
            "percentile": np.asarray(part["percentile"][row])[there],
            "near enough": ["yes" if d <= limit else "no" for d in np.asarray(part["distance"][row])[there]],
        }
    )
    outcomes = run.outcome_table
    curve = None
    if run.kind == "survival" and len(outcomes):
        told = outcomes.reindex(table["key"])
        table["outcome"] = [
            "unknown" if o is not True and o != True else "event" if e else "censored"  # noqa: E712  # numpy's True
            for o, e in zip(told["observed"], told["event"], strict=True)
        ]
        table["days"] = told["time"].to_numpy(dtype=np.float64)
        known = run.survival_of(tuple(table["key"]))
        curve = kaplan_meier(known.time, known.event) if len(known) else None
    return Similar(close=close, table=table, curve=curve)


def similar_chart(found: Similar, view: PatientView) -> Chart | None:
    """Kaplan-Meier of the neighbours with band beside the patient's curve; None where there is none."""
    if found.curve is None or not len(view.curve):
        return None
    end = float(view.curve["day"].max())
    low, high = found.curve.limits()
    inside = found.curve.times <= end
    x = np.concatenate([[0.0], found.curve.times[inside]])
    y, lo, hi = (np.concatenate([[1.0], v[inside]]) for v in (found.curve.survival, low, high))
    lo, hi = np.nan_to_num(lo, nan=0.0), np.where(np.isnan(hi), y, hi)
    fig = figure(x="days since index time", y="probability without the event", height=380)
    band(fig, x, lo, hi, name="95 % limits (log-log)", colour=GREY, shape="hv")
    fig.add_scatter(x=x, y=y, mode="lines", line={"color": GREY, "width": 2, "shape": "hv"}, name="similar patients")
    band(fig, view.curve["day"], view.curve["low"], view.curve["high"], name="band of the prediction", colour=BLUE)
    fig.add_scatter(
        x=view.curve["day"],
        y=view.curve["survival"],
        mode="lines",
        line={"color": BLUE, "width": 3, "dash": "dash"},
        name="predicted for this patient",
    )
    fig.update_yaxes(range=[0, 1.02])
    return Chart(
        title="What became of similar patients",
        figure=fig,
        alt=f"Kaplan-Meier curve of {len(found.table)} similar training patients beside the predicted curve.",
        table=pd.DataFrame({"day": x, "survival": y, "low": lo, "high": hi}),
        how="Grey is what was observed in the nearest training patients, dashed blue what is predicted here.",
        cannot="Neighbours are near in what the networks read; that is retrieval, not proof.",
    )
