"""Sections of the report that stand on stored values: calibration, subgroups, and what each modality contributed."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from medfuse import figures
from medfuse.errors import ConfigError, MedfuseError, StoreError
from medfuse.evaluation import Evaluation, Row
from medfuse.explain import Coalitions, contributions
from medfuse.explained import default_horizon, pooled_importance, read_coalitions
from medfuse.explaining_parts import FOLDER, has_parts, read_checks, read_parts
from medfuse.explaining_prototypes import read_prototype_records
from medfuse.games import players
from medfuse.pages import number, span, table
from medfuse.run import Run

UNITS = {"survival": "log cumulative hazard", "continuous": "the value", "multiclass": "log probability"}
_SHOWN = 12  # of the groups of modalities
_RESAMPLES = 1000


def calibration_section(evaluation: Evaluation) -> str:
    """Calibration in groups and as a smooth curve, its indices, and the decision curve; empty without curves."""
    curves = evaluation.curves
    if not curves:
        return ""
    smooth = curves.get("smooth", {})
    horizons = sorted(curves["decision"], key=float)  # a JSON file has them in the order of their digits
    middle = horizons[len(horizons) // 2] if horizons else None
    decision = figures.decision(curves["decision"][middle], horizon=middle) if middle else ""
    rows = []
    calibration = {horizon: curves["calibration"][horizon] for horizon in sorted(curves["calibration"], key=float)}
    for horizon, one in calibration.items():
        found = smooth.get(horizon, {"reason": "the run was evaluated before these were computed"})
        whole = (f"{horizon} days", one["ratio"], one["slope"])
        rows.append((*whole, found.get("index"), found.get("e50"), found.get("e90"), found["reason"]))
    header = ("horizon", "observed / expected", "slope", "ICI", "E50", "E90", "why undefined")
    a = curves.get("a_calibration")
    text = ""
    if a is not None:
        found_p = "undefined" if a["p_value"] is None else f"{a['p_value']:.3f}"
        statistic = "undefined" if a["statistic"] is None else f"{a['statistic']:.1f}"
        why = f" ({escape(a['reason'])})" if a["reason"] else ""
        text = (
            f"<p>A-calibration over all times: p = {found_p}{why}, chi-square {statistic} in {len(a['events'])} cells. "
            "A small p says that events do not come at the predicted rate, early or late on the curves.</p>"
        )
    return (
        "<h2>Calibration and decision curve</h2><div "
        f"class=figs>{figures.calibration(calibration, smooth)}{decision}</div>"
        f"{table(header, rows)}{text}<p class=note>Marks: groups of equal size, observed by Kaplan-Meier with 95 % "
        "limits. Lines: smooth calibration curve. ICI, E50 and E90: mean, median and 90th percentile over held-out "
        "patients of the distance between the curve and the diagonal (0 is perfect). Ratio and slope are perfect at "
        "1. Folds are pooled.</p>"
    )


def group_section(evaluation: Evaluation) -> str:
    """Subgroups, sites and availability patterns: sizes, events, scores with intervals; undefined says why."""
    parts, drawn = [], []
    for name, rows in evaluation.groups.items():
        body = []
        for r in rows:
            size = ["" if r[key] is None else r[key] for key in ("patients", "events")]
            undefined = f"undefined: {r.get('reason') or 'no pair can be compared'}"
            why = undefined if r.get("reason") != "suppressed" else "suppressed"
            body.append((r["level"], *size, why if r["estimate"] is None else r["estimate"], _ends(r)))
        header = (name, "patients", "events", evaluation.score, "95 % interval")
        parts.append(f"<h3>{escape(name)}</h3>" + table(header, body))
        drawn += [{"group": name, **r} for r in rows if r["patients"] is not None]
    if not parts:
        return "<h2>Subgroups</h2><p>The card names no subgroup and no site.</p>"
    pooled = evaluation.models[evaluation.carrying]["pooled"] or {}
    figure = figures.groups(drawn, score=evaluation.score, overall=pooled.get("estimate")) if drawn else ""
    note = (
        f"<p class=note>Hollow grey marks: fewer than {figures.FEW_EVENTS} events. Differences between subgroups are "
        "not tested; many subgroups find one by chance.</p>"
    )
    return f"<h2>Subgroups</h2>{figure}{note}{''.join(parts)}"


def _ends(row: Row) -> str:
    return "" if row["low"] is None else span(row["low"], row["high"])


# --- contributions ----------------------------------------------------------------------------------------------


def contribution_section(run: Run, evaluation: Evaluation) -> str:
    """What ``medfuse explain`` stored: importance, interactions, gate, distribution and checks; or that it did not."""
    outcome = evaluation.outcome
    title = "<h2>What each modality contributed</h2>"
    if not (run.path / FOLDER / outcome).is_dir():
        return f"{title}<p>Not computed; <code>medfuse explain RUN</code>, then <code>medfuse report RUN</code>.</p>"
    try:
        found = read_coalitions(run, outcome)
        horizon = default_horizon(run, found)
    except (ConfigError, StoreError) as error:
        return f"{title}<p class=warn>Not shown: {escape(str(error))}</p>"
    labels: Sequence[int | None] = range(found[0].values.shape[-1]) if found[0].kind == "multiclass" else [None]
    parts = [_importance(found, horizon=horizon, label=label) for label in labels]
    note = (
        "<p class=note>Exact Shapley values of the modalities that each held-out patient has, by the model that never "
        "saw the patient, from the stored values of all coalitions. Absolute values are taken per patient before the "
        "mean. Intervals: case bootstrap over patients, 95 %. A modality that says the same as another shares its "
        "credit; a contribution is not a cause.</p>"
    )
    return f"{title}{note}{''.join(parts)}{_support(run, outcome)}{_checks(run, outcome)}{_prototypes(run, outcome)}"


def _importance(found: Sequence[Coalitions], *, horizon: float | None, label: int | None) -> str:
    unit = UNITS.get(found[0].kind, "log odds")
    where = "" if horizon is None else f" at {horizon:g} days"
    where += "" if label is None else f", class {label + 1}"
    each = pooled_importance(found, horizon=horizon, label=label)
    drawn = importance_rows(found, horizon=horizon, label=label)
    body = []
    for one in each:
        cells = [f"{number(v)} ({span(low, high)})" for v, low, high in (one.mean_absolute, one.mean) if np.isfinite(v)]
        share, low, high = one.share
        part = f"{share:.0%} ({low:.0%} to {high:.0%})" if np.isfinite(share) else "undefined"
        values = cells if len(cells) == 2 else ["undefined: nobody has it"] * 2
        body.append((one.modality, one.patients, values[0], part, values[1]))
    header = ("modality", "patients", "mean absolute (95 % interval)", "share of all", "mean, signed")
    return (
        f"<h3>To {unit}{where}</h3>{figures.importance(drawn, unit=unit + where)}{table(header, body)}"
        f"{_together(found, horizon=horizon, label=label)}"
    )


def importance_rows(
    found: Sequence[Coalitions], *, horizon: float | None, label: int | None = None
) -> list[dict[str, Any]]:
    """Rows of :func:`medfuse.figures.importance`: mean absolute contributions with 95 % intervals."""
    rows = []
    for one in pooled_importance(found, horizon=horizon, label=label):
        value, low, high = one.mean_absolute
        rows.append({"modality": one.modality, "patients": one.patients, "value": value, "low": low, "high": high})
    return rows


def _together(found: Sequence[Coalitions], *, horizon: float | None, label: int | None) -> str:
    """Mean dividends of two modalities or more among patients who have them all, the largest in absolute value."""
    dividend = np.concatenate([contributions(one, horizon=horizon, label=label).dividend for one in found])  # (n, 2^M)
    names = found[0].modalities
    rows = []
    for subset in range(1, dividend.shape[1]):
        own = dividend[np.isfinite(dividend[:, subset]), subset]
        if subset.bit_count() < 2 or not len(own):
            continue
        rng = np.random.default_rng(subset)
        draws = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=_RESAMPLES) @ own / len(own)
        low, high = np.quantile(draws, [0.025, 0.975])
        group = " + ".join(names[i] for i in players(subset, len(names)))
        rows.append((group, len(own), float(own.mean()), span(float(low), float(high)), float(np.abs(own).mean())))
    rows.sort(key=lambda row: -row[-1])
    if not rows:
        return ""
    header = ("together", "patients", "mean dividend", "95 % interval", "mean absolute")
    note = "" if len(rows) <= _SHOWN else f" The largest {_SHOWN} of {len(rows)} by mean absolute value."
    return (
        "<h3>What modalities add together</h3><p class=note>Harsanyi dividends: what a group adds beyond all of its "
        f"parts; negative where they say the same.{note}</p>{table(header, rows[:_SHOWN])}"
    )


def _support(run: Run, outcome: str) -> str:
    """How many coalitions have a sound record, and how many patients are unlike the training patients."""
    names = [str(split["name"]) for split in run.read("splits")["splits"]]
    if not all(has_parts(run, outcome, name) for name in names):
        return "<p class=note>Support of the coalitions was not stored; explain the run again.</p>"
    rows, reasons = [], []
    try:
        for name, part in zip(names, read_parts(run, outcome), strict=True):
            gate, states = part.gate, part.distribution.state
            counts = [states.count(word) for word in ("familiar", "unusual", "withheld")]
            rows.append((f"fold {name}", f"{int(gate.supported.sum())} of {len(gate.reason)}", *counts))
            reasons += [f"fold {name}, {gate.names(k)}: {why}" for k, why in enumerate(gate.reason) if why]
    except MedfuseError as error:
        return f"<p class=warn>Support of the coalitions: {escape(str(error))}</p>"
    header = ("", "supported coalitions", "familiar patients", "unusual", "withheld")
    listed = "".join(f"<li>{escape(text)}</li>" for text in reasons)
    more = f"<details><summary>{len(reasons)} coalitions without support</summary><ul>{listed}</ul></details>"
    return (
        f"<h3>How far these values can be trusted</h3>{table(header, rows)}<p class=note>A coalition is supported "
        "where unseen training patients who have all of it show a sound calibration record; contributions that rest "
        f"on others are hatched in the review.</p>{more if reasons else ''}"
    )


def _checks(run: Run, outcome: str) -> str:
    try:
        checks = read_checks(run, outcome)
    except StoreError as error:
        return f"<p class=warn>Checks: {escape(str(error))}</p>"
    if not checks:
        return (
            "<h3>Checks of the explanation</h3><p>Not run; <code>medfuse explain RUN --check</code>. Without them no "
            "picture of contributions is shown to be faithful.</p>"
        )
    words = {True: "passed", False: "FAILED", None: "not run"}
    body = [
        (c.name, words[c.passed], "" if c.statistic is None else c.statistic, _between(c.low, c.high), c.rule, c.note)
        for c in checks
    ]
    header = ("check", "result", "statistic", "95 % interval", "passes when", "note")
    return f"<h3>Checks of the explanation</h3>{table(header, body, kind='text')}"


def _prototypes(run: Run, outcome: str) -> str:
    """What prototypes were stored, and which of them are one; nothing of a run without."""
    rows = []
    try:
        for name, one in read_prototype_records(run, outcome).items():
            pairs = [f"{m} {one.names[i]} and {one.names[j]}" for m, these in one.pairs().items() for i, j, _ in these]
            networks = f"{one.members[0]}, the first of {len(one.members)}"
            also = sum(bool(one.pairs(k)) for k in range(1, len(one.members)))
            rows.append(
                (f"fold {name}", networks, len(one.names), ", ".join(pairs) or "none", also, f"{one.share:.0%}")
            )
    except MedfuseError as error:
        return f"<p class=warn>Prototypes: {escape(str(error))}</p>"
    if not rows:
        return ""
    header = ("", "network", "per modality", "collapsed pairs", "other networks with one", "part of the prediction")
    return (
        f"<h3>Prototypes</h3>{table(header, rows, kind='text')}<p class=note>Each network has prototypes of its own. "
        f"Two with a cosine of {one.collapsed:g} or more are one. Who is like which, the nearest training patients and "
        "the terms of a sum stand in the review.</p>"
    )


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else span(low, high)
