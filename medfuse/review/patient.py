"""One patient: curve, risks, contributions and interactions, all from the values that ``medfuse explain`` stored."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.games import dividends, players, shapley
from medfuse.review.source import HIGH, LOW, FoldValues, ReviewRun, at_time, one_number, to_risk
from medfuse.review.words import days_text, percent

Array = NDArray[np.float64]
LEAST = 0.005  # of a dividend that is shown: half a per cent of the hazard


@dataclass(frozen=True, kw_only=True)
class PatientView:
    """Numbers of one patient at one horizon (or class).

    Attributes:
        patient, fold: its key, and the outer fold whose model never saw it.
        kind: of the outcome.
        at: horizon in days, index of the class, or None.
        has, lacks: modalities.
        link, risk, low, high: of the prediction; the interval is the 5th to 95th percentile over the replicates.
        nobody: link of no modality.
        nobody_risk: its risk.
        contributions: columns ``modality contribution low high ratio points``, in the run's order; own modalities only.
        dividends: columns ``modalities order dividend low high clear``, of coalitions of own modalities.
        curve: columns ``day survival low high`` on supported time, from day 0; empty without times.
        over_time: columns ``day`` and one per own modality; empty without times.
        steps: columns ``modality step after risk contribution``: own modalities shown one after the other, in the run's
            order; ``step`` is what each changed then, ``contribution`` its Shapley value, the mean over all orders.
        replicates: how many replicates spoke.
        clipped: some value lies beyond resolution.
        meaning: of the contributions: ``recalibrated`` or ``as the model says``.
    """

    patient: str
    fold: str
    kind: str
    at: float | None
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    link: float
    risk: float
    low: float
    high: float
    nobody: float
    nobody_risk: float
    contributions: pd.DataFrame
    dividends: pd.DataFrame
    curve: pd.DataFrame
    over_time: pd.DataFrame
    steps: pd.DataFrame
    replicates: int
    clipped: bool
    meaning: str = FoldValues.meaning


def patient_view(run: ReviewRun, patient: str, at: float | None = None) -> PatientView:
    """Everything the patient page shows in numbers.

    Args:
        run: an explained run.
        patient: key of a held-out patient.
        at: horizon in days of survival outcomes (default the run's), class of multi-class ones.

    Raises:
        CohortError: no such patient.
        ConfigError: a horizon beyond the curves.
    """
    one, row = run.locate(patient)
    if at is None:
        at = run.default_horizon if run.kind == "survival" else (0 if run.kind == "multiclass" else None)
    values = np.array(one.values[row], dtype=np.float64)  # (2^M, L)
    each = np.array(one.replicates[:, row], dtype=np.float64)  # (R, 2^M, L)
    link, risk = one_number(values, run, one.times, at)  # (2^M,)
    links, risks = one_number(each, run, one.times, at)  # (R, 2^M)
    present = np.asarray(one.present[row], dtype=bool)
    everything = to_risk(values, run.kind)
    return PatientView(
        patient=patient,
        fold=one.fold,
        kind=run.kind,
        at=at,
        has=tuple(m for m, has in zip(one.modalities, present, strict=True) if has),
        lacks=tuple(m for m, has in zip(one.modalities, present, strict=True) if not has),
        link=float(link[-1]),
        risk=float(risk[-1]),
        low=float(np.quantile(risks[:, -1], LOW)),
        high=float(np.quantile(risks[:, -1], HIGH)),
        nobody=float(link[0]),
        nobody_risk=float(risk[0]),
        contributions=_contributions(one.modalities, present, (link, links), risk, kind=run.kind),
        dividends=_dividends(one.modalities, present, link, links),
        curve=_curve(run, one.fold, values[-1], each[:, -1], one.times),
        over_time=_over_time(run, one.fold, values, present, one.modalities, one.times),
        steps=_steps(one.modalities, present, link, risk),
        replicates=len(each),
        meaning=one.meaning,
        clipped=run.kind != "continuous" and bool(((everything < 1e-6) | (everything > 1 - 1e-6)).any()),
    )


def _contributions(
    names: tuple[str, ...], present: NDArray[np.bool_], links: tuple[Array, Array], risk: Array, *, kind: str
) -> pd.DataFrame:
    link, each = links
    phi, spread = shapley(link), shapley(each.T)  # (M,), (M, R)
    points = shapley(risk)
    own = np.flatnonzero(present)
    has_risk = kind != "continuous"
    return pd.DataFrame(
        {
            "modality": [names[i] for i in own],
            "contribution": phi[own],
            "low": np.quantile(spread[own], LOW, axis=1) if len(own) else [],
            "high": np.quantile(spread[own], HIGH, axis=1) if len(own) else [],
            "ratio": np.exp(phi[own]) if has_risk else np.full(len(own), np.nan),
            "points": points[own] if has_risk else np.full(len(own), np.nan),
        }
    )


def _dividends(names: tuple[str, ...], present: NDArray[np.bool_], link: Array, each: Array) -> pd.DataFrame:
    found, spread = dividends(link), dividends(each.T)  # (2^M,), (2^M, R)
    owned = int(present @ (1 << np.arange(len(names))))
    rows = []
    for number in range(1, len(found)):
        if number & owned != number:
            continue
        low, high = np.quantile(spread[number], [LOW, HIGH])
        rows.append(
            {
                "modalities": " + ".join(names[i] for i in players(number, len(names))),
                "order": number.bit_count(),
                "dividend": float(found[number]),
                "low": float(low),
                "high": float(high),
                "clear": bool((low > 0 or high < 0) and abs(found[number]) >= LEAST),
            }
        )
    return pd.DataFrame(rows, columns=["modalities", "order", "dividend", "low", "high", "clear"])


def _steps(names: tuple[str, ...], present: NDArray[np.bool_], link: Array, risk: Array) -> pd.DataFrame:
    phi, number, rows = shapley(link), 0, []
    for i in np.flatnonzero(present):
        before, number = link[number], number | 1 << int(i)
        after = float(link[number])
        row = {"modality": names[i], "step": after - float(before), "after": after, "risk": float(risk[number])}
        rows.append({**row, "contribution": float(phi[i])})
    return pd.DataFrame(rows, columns=["modality", "step", "after", "risk", "contribution"])


def _curve(run: ReviewRun, fold: str, values: Array, each: Array, times: Array | None) -> pd.DataFrame:
    if times is None:
        return pd.DataFrame(columns=["day", "survival", "low", "high"])
    keep = np.asarray(times) <= run.supported_until(fold)
    survival, members = 1 - to_risk(values, "survival"), 1 - to_risk(each, "survival")
    low, high = np.quantile(members, [LOW, HIGH], axis=0)
    start = pd.DataFrame({"day": [0.0], "survival": [1.0], "low": [1.0], "high": [1.0]})
    rest = pd.DataFrame({"day": np.asarray(times), "survival": survival, "low": low, "high": high})[keep]
    return pd.concat([start, rest], ignore_index=True)


def _over_time(
    run: ReviewRun,
    fold: str,
    values: Array,
    present: NDArray[np.bool_],
    names: tuple[str, ...],
    times: Array | None,
) -> pd.DataFrame:
    if times is None:
        return pd.DataFrame(columns=["day"])
    keep = np.flatnonzero(np.asarray(times) <= run.supported_until(fold))
    phi = shapley(values)  # (M, L)
    own = np.flatnonzero(present)
    return pd.DataFrame({"day": np.asarray(times)[keep], **{names[i]: phi[i][keep] for i in own}})


def risk_table(run: ReviewRun, patient: str) -> pd.DataFrame:
    """Risks at all horizons with intervals: columns ``day risk low high``; one row without day for other outcomes.

    Raises:
        CohortError: no such patient.
    """
    one, row = run.locate(patient)
    last, each = one.values[row, -1], one.replicates[:, row, -1]
    asked: list[float | None] = list(run.horizons) if one.times is not None else [None]
    if run.kind == "multiclass":
        asked = [float(k) for k in range(one.values.shape[-1])]
    rows = []
    for at in asked:
        risk, spread = one_number(last, run, one.times, at)[1], one_number(each, run, one.times, at)[1]
        low, high = np.quantile(spread, [LOW, HIGH])
        rows.append({"day": at, "risk": float(risk), "low": float(low), "high": float(high)})
    return pd.DataFrame(rows)


def time_summary(run: ReviewRun, patient: str) -> list[tuple[str, str]]:
    """Restricted mean and median survival within supported time, as (what, text)."""
    one, row = run.locate(patient)
    if one.times is None:
        return []
    until = min(run.supported_until(one.fold), float(one.times[-1]))
    curve = _curve(run, one.fold, np.array(one.values[row, -1]), np.array(one.replicates[:, row, -1]), one.times)
    horizon = min(run.default_horizon or until, until)
    day = np.union1d(curve["day"], [horizon])
    day = day[day <= horizon]
    columns = {name: np.interp(day, curve["day"], curve[name]) for name in ("survival", "low", "high")}
    area = {name: float(np.trapezoid(values, day)) for name, values in columns.items()}
    below = np.flatnonzero(curve["survival"].to_numpy() <= 0.5)
    median = "not reached within follow-up"
    if len(below):
        at = float(
            np.interp(0.5, curve["survival"].to_numpy()[: below[0] + 1][::-1], curve["day"][: below[0] + 1][::-1])
        )
        median = days_text(at)
    mean = f"{area['survival']:.0f} days [{area['low']:.0f} to {area['high']:.0f}] of the first {horizon:.0f}"
    return [("Mean time without the event", mean), ("Median time", median)]


def summary(view: PatientView) -> list[str]:
    """Sentences built from the numbers of a patient, and from nothing else."""
    if view.kind == "continuous":
        out = [f"The model predicts {view.link:.2f}; without any modality it would say {view.nobody:.2f}."]
    else:
        when = f" by day {view.at:.0f}" if view.kind == "survival" and view.at is not None else ""
        out = [
            f"Predicted risk{when}: {percent(view.risk)}, with {percent(view.low)} to {percent(view.high)} over "
            f"{view.replicates} replicates; the model knowing nothing would say {percent(view.nobody_risk)}."
        ]
    if not view.has:
        return [
            "No modality is available: this is the population level, the average of the training patients, and says "
            "nothing of this one.",
            f"{out[0].partition(';')[0]}.",
            f"Not available and without a part in this: {', '.join(view.lacks)}.",
        ]
    table = view.contributions.reindex(view.contributions["contribution"].abs().sort_values(ascending=False).index)
    raising = [_phrase(row, view) for _, row in table.iterrows() if row["low"] > 0]
    lowering = [_phrase(row, view) for _, row in table.iterrows() if row["high"] < 0]
    unclear = [str(row["modality"]) for _, row in table.iterrows() if row["low"] <= 0 <= row["high"]]
    if raising:
        out.append(f"Raising it: {', '.join(raising)}.")
    if lowering:
        out.append(f"Lowering it: {', '.join(lowering)}.")
    if unclear:
        out.append(f"Of unclear direction between replicates: {', '.join(unclear)}.")
    pairs = view.dividends[(view.dividends["order"] > 1) & view.dividends["clear"]]
    pairs = pairs.reindex(pairs["dividend"].abs().sort_values(ascending=False).index).head(2)
    for _, row in pairs.iterrows():
        word = "say the same in part" if row["dividend"] < 0 else "say more than each alone"
        out.append(f"{row['modalities']} {word} ({row['dividend']:+.3f}).")
    if view.lacks:
        out.append(f"Not available and without a part in this: {', '.join(view.lacks)}.")
    if view.clipped:
        out.append("Some values lie beyond resolution (probability within one in a million of 0 or 1).")
    return out


def _phrase(row: pd.Series, view: PatientView) -> str:  # a row of mixed values
    if view.kind == "continuous":
        return f"{row['modality']} ({row['contribution']:+.2f})"
    what = "hazard" if view.kind == "survival" else "odds"
    return f"{row['modality']} (x {row['ratio']:.2f} {what}, {100 * row['points']:+.1f} points)"


def value_at(run: ReviewRun, patient: str, keep: tuple[str, ...], day: float | None) -> tuple[float, float, float]:
    """Risk with its interval had only ``keep`` been shown: the stored value of that coalition.

    Raises:
        CohortError: no such patient.
    """
    one, row = run.locate(patient)
    number = sum(1 << i for i, name in enumerate(one.modalities) if name in keep)
    risk = float(one_number(one.values[row, number], run, one.times, day)[1])
    each = one_number(one.replicates[:, row, number], run, one.times, day)[1]
    low, high = np.quantile(each, [LOW, HIGH])
    return risk, float(low), float(high)


def cohort_risk(run: ReviewRun, fold: str, day: float) -> float:
    """Risk by a day of the fold's training patients (Kaplan-Meier)."""
    curve = run.training_curve(fold)
    return float("nan") if curve is None else float(1 - curve(np.array([day]))[0])


__all__ = ["PatientView", "at_time", "cohort_risk", "patient_view", "risk_table", "summary", "time_summary", "value_at"]
