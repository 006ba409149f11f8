"""How good the model is on patients it never saw: survival by risk group, calibration, discrimination, behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medfuse.metrics.nonparametric import LogRank, kaplan_meier, log_rank
from medfuse.palette import BLUE, GREY, INK, SERIES
from medfuse.review.charts import DASHES, SYMBOLS, Chart, band, figure
from medfuse.review.source import ReviewRun
from medfuse.review.worklist import GROUPS
from medfuse.targets import Survival

_TICKS = 6
_FEW = 10


def index_at(run: ReviewRun, at: float | None) -> float | None:
    """Ratio of expected to observed events at a horizon on held-out patients, as reported; None where it is not."""
    found = run.metrics.get("curves", {}).get("calibration", {}).get(f"{at:g}" if at is not None else "", {})
    value = found.get("ratio")
    return None if value is None else float(value)


def patient_bound(run: ReviewRun, patient: str) -> str:
    """Conformal 90 % lower bound on the patient's time, as text; it abstains below 100 patients with the pattern."""
    from medfuse.explain.conformal import lower_bound

    if run.kind != "survival":
        return "not for this kind of outcome"
    one, _ = run.locate(patient)
    frame = run.predictions
    own = frame[(frame["partition"] == "held_out") & (frame["patient_id"] == patient) & (frame["fold"] == one.fold)]
    if f"bound {one.fold}" not in run.memory:
        run.memory[f"bound {one.fold}"] = _calibrated(run, one.fold)
    if run.memory[f"bound {one.fold}"] is None or not len(own):
        return "not computed: the run keeps no inner predictions"
    bound, patterns = run.memory[f"bound {one.fold}"]
    days = float(lower_bound(bound, _prediction(run, own))[0])
    if np.isnan(days):
        alike = int(patterns.get(own["present"].iloc[0], 0))
        return f"abstains: {alike} calibration patients have exactly these modalities, 100 are needed"
    return f"{days:.0f} days (holds for 90 % of patients with these modalities)"


def _calibrated(run: ReviewRun, fold: str) -> tuple[Any, dict[str, int]] | None:
    """The bound of a fold, from inner out-of-fold predictions, and how many patients have each pattern."""
    from medfuse.explain.conformal import conformal_bound

    frame, table = run.predictions, run.outcome_table
    inner = frame[(frame["partition"] == "inner") & (frame["fold"] == fold)]
    inner = inner[inner["patient_id"].isin(table.index[table["observed"].astype(bool)])]
    if not len(inner):
        return None
    told = table.loc[inner["patient_id"]]
    target = Survival(event=told["event"].to_numpy(dtype=bool), time=told["time"].to_numpy(dtype=np.float64))
    return conformal_bound(_prediction(run, inner), target), {
        str(k): int(v) for k, v in inner["present"].value_counts().items()
    }


def _prediction(run: ReviewRun, frame: pd.DataFrame) -> Any:  # noqa: ANN401  # Prediction, imported where it is used
    from medfuse.prediction import Prediction
    from medfuse.types import PatientId

    names = run.modalities
    has = [set(text.split(",")) for text in frame["present"]]
    return Prediction(
        patient_ids=tuple(PatientId(str(i)) for i in frame["patient_id"]),
        present=np.array([[m in own for m in names] for own in has], dtype=bool).reshape(len(frame), len(names)),
        modalities=names,
        risk_score=frame["risk_score"].to_numpy(dtype=np.float64),
        times=np.asarray(frame["times"].iloc[0], dtype=np.float64),
        survival=np.stack(frame["survival"].to_list()),
    )


@dataclass(frozen=True, kw_only=True)
class RiskGroups:
    """Held-out patients by thirds of risk.

    Attributes:
        survival: known outcomes of n patients.
        group: (n,) 0 low, 1 middle, 2 high.
        test: log-rank.
        ticks: days of the table.
        table: per group and tick, rows ``at risk``, ``censored`` and ``events`` until then; they sum to the group.
    """

    survival: Survival
    group: np.ndarray[Any, Any]
    test: LogRank
    ticks: np.ndarray[Any, Any]
    table: pd.DataFrame


def risk_groups(run: ReviewRun, *, partition: str = "held_out") -> RiskGroups | None:
    """Groups with cuts from each fold's inner out-of-fold scores; None without known survival outcomes.

    Args:
        run: the run.
        partition: ``held_out``, or ``inner`` for the out-of-fold predictions inside the training sides.
    """
    if run.kind != "survival" or not len(run.outcome_table):
        return None
    frame, parts = run.predictions, []
    for fold in run.splits:
        rows = frame[(frame["partition"] == partition) & (frame["fold"] == fold)]
        inner = frame[(frame["partition"] == "inner") & (frame["fold"] == fold)]["risk_score"].to_numpy()
        if len(rows) and len(inner):
            cut = np.searchsorted(np.quantile(inner, [1 / 3, 2 / 3]), rows["risk_score"].to_numpy())
            parts.append(pd.DataFrame({"patient_id": rows["patient_id"].to_numpy(), "group": cut}))
    if not parts:
        return None
    pooled = pd.concat(parts, ignore_index=True)
    pooled = pooled[~pooled["patient_id"].duplicated() & pooled["patient_id"].isin(run.outcome_table.index)]
    told = run.outcome_table.loc[pooled["patient_id"]]
    known = told["observed"].to_numpy(dtype=bool)
    if not known.any():
        return None
    survival = Survival(event=told["event"].to_numpy(dtype=bool)[known], time=told["time"].to_numpy(float)[known])
    group = pooled["group"].to_numpy(dtype=np.int64)[known]
    ticks = np.round(np.linspace(0, float(np.quantile(survival.time, 0.95)), _TICKS))
    return RiskGroups(
        survival=survival,
        group=group,
        test=log_rank(survival, group),
        ticks=ticks,
        table=numbers_at(survival, group, ticks),
    )


def numbers_at(survival: Survival, group: np.ndarray[Any, Any], ticks: np.ndarray[Any, Any]) -> pd.DataFrame:
    """At risk at each tick, and censored and events before it; the three sum to the group's size.

    At risk at t are those whose time is t or later, as R's ``survfit`` counts.
    """
    rows = []
    for k in np.unique(group):
        time, event = survival.time[group == k], survival.event[group == k]
        for what, count in (
            ("at risk", [(time >= t).sum() for t in ticks]),
            ("censored", [((time < t) & ~event).sum() for t in ticks]),
            ("events", [((time < t) & event).sum() for t in ticks]),
        ):
            rows.append([GROUPS[int(k)], what, *(int(c) for c in count)])
    return pd.DataFrame(rows, columns=["risk group", "patients", *(f"day {t:.0f}" for t in ticks)])


def groups_chart(found: RiskGroups, *, who: str) -> Chart:
    """Kaplan-Meier curves by risk group with log-log limits, censor ticks, and the three-row table."""
    fig = figure(x="days since index time", y="probability without the event", height=440)
    end = float(found.ticks[-1])
    for k in np.unique(found.group):
        time, event = found.survival.time[found.group == k], found.survival.event[found.group == k]
        curve = kaplan_meier(time, event)
        low, high = curve.limits()
        inside = curve.times <= end
        x = np.concatenate([[0.0], curve.times[inside]])
        y, lo, hi = (np.concatenate([[1.0], v[inside]]) for v in (curve.survival, low, high))
        hi = np.where(np.isnan(hi), y, hi)
        colour = SERIES[int(k)]
        band(fig, x, np.nan_to_num(lo, nan=0.0), hi, name=f"{GROUPS[k]}: 95 % limits", colour=colour, shape="hv")
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=f"{GROUPS[k]} ({len(time)})",
            line={"color": colour, "width": 3, "shape": "hv", "dash": DASHES[int(k)]},
        )
        gone = np.unique(time[~event & (time <= end)])
        fig.add_scatter(
            x=gone,
            y=curve(gone),
            mode="markers",
            showlegend=False,
            name=f"{GROUPS[k]}: censored",
            marker={"symbol": "line-ns-open", "size": 8, "color": colour},
        )
    fig.update_yaxes(range=[0, 1.02])
    fig.update_xaxes(range=[0, end])
    test = found.test
    return Chart(
        title="Survival by predicted risk",
        figure=fig,
        alt=f"Kaplan-Meier curves of {who} in thirds of predicted risk, with the numbers at risk in the table.",
        table=found.table,
        how=(
            "Cuts are thirds of each fold's inner out-of-fold scores; bands are 95 % log-log limits, ticks "
            f"are censored patients. Log-rank {test.statistic:.2f}, {test.degrees} df, p = {test.p_value:.3g}."
        ),
        cannot="Groups that differ do not show that a single patient's risk is right.",
    )


def _days(horizon: str) -> float:
    """A horizon as the run's files name it, as a number; what is none comes last, in its own order."""
    try:
        return float(horizon)
    except ValueError:
        return float("inf")


def calibration_chart(content: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Observed against predicted, per horizon."""
    fig = figure(x="predicted probability of the event", y="observed (Kaplan-Meier)", height=460)
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot"}, name="ideal")
    rows = []
    content = dict(sorted(content.items(), key=lambda one: _days(one[0])))
    for k, (horizon, c) in enumerate(content.items()):
        points = [
            r for r in zip(c["predicted"], c["observed"], c["low"], c["high"], c["size"], strict=True) if None not in r
        ]
        for r in points:
            rows.append(
                dict(zip(("horizon", "predicted", "observed", "low", "high", "patients"), (horizon, *r), strict=True))
            )
        if not points:
            continue
        x, y, low, high, _ = np.array(points, dtype=np.float64).T
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            name=f"{horizon} days" if horizon.replace(".", "").isdigit() else horizon,
            line={"color": SERIES[k % 6], "dash": DASHES[k % 6]},
            marker={"symbol": SYMBOLS[k % 6], "size": 9},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.clip(high - y, 0, None),
                "arrayminus": np.clip(y - low, 0, None),
                "thickness": 1,
            },
        )
    fig.update_xaxes(range=[0, 1])
    fig.update_yaxes(range=[0, 1])
    ratios = "; ".join(f"{h}: ratio {_n(c.get('ratio'))}, slope {_n(c.get('slope'))}" for h, c in content.items())
    return Chart(
        title="Calibration",
        figure=fig,
        alt=f"Observed against predicted probability in groups of equal size. {ratios}.",
        table=pd.DataFrame(rows),
        how=f"On the dotted line predictions are right on average; bars are 95 % limits. {ratios}.",
        cannot="A group's average can be right while its members are wrong in both directions.",
    )


def _n(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def models_chart(run: ReviewRun) -> Chart:
    """Each model's pooled score with its interval: the carrying model, baselines and single modalities."""
    rows = []
    for name, model in run.metrics["models"].items():
        pooled = model.get("pooled") or {}
        gap = run.metrics.get("differences", {}).get(name, {})
        rows.append(
            {
                "model": name,
                run.metrics["score"]: pooled.get("estimate"),
                "low": pooled.get("low"),
                "high": pooled.get("high"),
                "carrying minus this": gap.get("estimate"),
                "gap low": gap.get("low"),
                "gap high": gap.get("high"),
            }
        )
    table = pd.DataFrame(rows).astype({c: "float64" for c in rows[0] if c != "model"}) if rows else pd.DataFrame()
    known = table[table[run.metrics["score"]].notna()].iloc[::-1] if len(table) else table
    fig = figure(
        x=f"{run.metrics['score']} (pairs within a fold), 95 % interval",
        height=120 + 30 * max(len(known), 1),
        showlegend=False,
    )
    if len(known):
        value = known[run.metrics["score"]]
        ours = known["model"] == run.model
        fig.add_scatter(
            x=value,
            y=known["model"],
            mode="markers",
            marker={
                "size": 11,
                "color": [BLUE if o else GREY for o in ours],
                "symbol": ["diamond" if o else "circle" for o in ours],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (known["high"] - value).clip(lower=0),
                "arrayminus": (value - known["low"]).clip(lower=0),
            },
        )
        if run.kind != "continuous":
            fig.add_vline(x=0.5, line={"color": GREY, "dash": "dash"})
    return Chart(
        title="Beside the baselines",
        figure=fig,
        alt="Scores with intervals: " + "; ".join(f"{r['model']} {_n(r[run.metrics['score']])}" for r in rows),
        table=table,
        how=f"The diamond is {run.model}, chosen on inner folds before held-out rows were read.",
        cannot="An interval that overlaps another does not show that two models are alike: see the differences below.",
    )


def group_chart(run: ReviewRun, name: str) -> Chart:
    """Score by subgroup, site or availability pattern, small cells greyed."""
    rows = [dict(r) for r in run.metrics["groups"][name]]
    table = pd.DataFrame(
        [{k: r.get(k) for k in ("level", "patients", "events", "estimate", "low", "high", "reason")} for r in rows]
    )
    known = [r for r in rows if r.get("estimate") is not None][::-1]
    fig = figure(x=f"{run.metrics['score']}, 95 % interval", height=130 + 36 * max(len(known), 1), showlegend=False)
    for r in known:
        few = (r.get("events") or 0) < _FEW
        fig.add_scatter(
            x=[r["estimate"]],
            y=[_short(str(r["level"]))],
            mode="markers",
            marker={"size": 11, "color": GREY if few else BLUE, "symbol": "circle-open" if few else "circle"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [max((r["high"] or r["estimate"]) - r["estimate"], 0)],
                "arrayminus": [max(r["estimate"] - (r["low"] or r["estimate"]), 0)],
                "color": GREY if few else BLUE,
            },
        )
    fig.update_xaxes(range=[0, 1] if run.kind != "continuous" else None)
    for column in ("patients", "events", "estimate", "low", "high"):
        table[column] = pd.to_numeric(table[column])
    table[["patients", "events"]] = table[["patients", "events"]].astype("Int64")
    return Chart(
        title=f"By {name}",
        figure=fig,
        alt=f"{run.metrics['score']} by {name}: "
        + ("; ".join(f"{r['level']} {_n(r['estimate'])}" for r in known) or "no group is large enough"),
        table=table,
        how="Hollow grey marks have fewer than 10 events; cells below the smallest reported size are left out.",
        cannot="Differences between groups may come from chance: look at the intervals and the number of events.",
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def decision_chart(content: Mapping[str, Any], *, horizon: str) -> Chart:
    """Net benefit."""
    table = pd.DataFrame({k: content[k] for k in ("thresholds", "model", "everyone")}).astype("float64")
    fig = figure(x="threshold probability", y="net benefit", height=380)
    fig.add_scatter(
        x=table["thresholds"], y=table["model"], mode="lines", line={"color": BLUE, "width": 3}, name="model"
    )
    fig.add_scatter(
        x=table["thresholds"],
        y=table["everyone"],
        mode="lines",
        line={"color": SERIES[1], "dash": "dash"},
        name="treat everyone",
    )
    fig.add_hline(y=0, line={"color": INK, "width": 1})
    top = float(np.nanmax(table[["model", "everyone"]].to_numpy())) if len(table) else 0.1
    fig.update_yaxes(range=[-0.05, max(0.05, 1.1 * top)])
    return Chart(
        title=f"Decision curve at {horizon} days",
        figure=fig,
        alt="Net benefit of the model and of treating everyone, by threshold.",
        table=table,
        how="Above both other lines, acting on the model does more good than acting on everyone or on no one.",
        cannot="Harms and benefits enter through the threshold alone.",
    )


def fold_table(run: ReviewRun) -> pd.DataFrame:
    """Every metric of the carrying model, a column per fold."""
    rows = run.metrics["models"][run.model]["folds"]
    names = [k for k in (rows[0] if rows else {}) if k not in {"fold", "reason"}]
    return pd.DataFrame({"metric": names, **{f"fold {r['fold']}": [_number(r.get(k)) for k in names] for r in rows}})


def _number(value: Any) -> str:  # noqa: ANN401  # any JSON value
    return "undefined" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def checks_table(run: ReviewRun) -> pd.DataFrame:
    """Stored checks of faithfulness, with their rules."""
    words = {True: "passed", False: "FAILED", None: "not run"}
    return pd.DataFrame(
        [
            {
                "check": c["name"],
                "result": words[c["passed"]],
                "statistic": _number(c["statistic"]) if c["statistic"] is not None else "",
                "rule": c["rule"],
                "patients": str(c["patients"] or ""),
                "note": c["note"],
            }
            for c in run.checks
        ]
    )
