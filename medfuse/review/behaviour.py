"""What the model listens to over all held-out patients, from the stored values: modalities, and pairs of them."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from medfuse.games import shapley
from medfuse.palette import BLUE, INK
from medfuse.review.charts import DIVERGING, Chart, figure
from medfuse.review.source import FoldValues, ReviewRun, one_number

RESAMPLES = 500
_MOST_DRAWN = 5000  # patients


def behaviour(run: ReviewRun, at: float | None, *, seed: int = 0) -> Chart | None:
    """Mean absolute contribution of each modality over held-out patients with bootstrap intervals; None unexplained."""
    if not run.explained:
        return None
    key = f"behaviour {at}"
    if key not in run.memory:
        run.memory[key] = _behaviour(run, at, seed=seed)
    found: Chart | None = run.memory[key]
    return found


def _behaviour(run: ReviewRun, at: float | None, *, seed: int) -> Chart | None:
    phi = np.concatenate([_phi(run, one, at) for one in run.explained.values()])  # (n, M), NaN where absent
    n, has = len(phi), ~np.isnan(phi)
    if not n:
        return None
    size = np.where(has, np.abs(phi), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, share = size.sum(axis=0) / has.sum(axis=0), size.sum(axis=0) / size.sum()
        low, high = _limits(size, has, mean, seed=seed)
    table = pd.DataFrame(
        {
            "modality": run.modalities,
            "mean absolute": mean,
            "low": low,
            "high": high,
            "share": share,
            "patients": has.sum(axis=0),
        }
    )
    shown = table.sort_values("mean absolute")
    fig = figure(x="mean absolute contribution, 95 % interval", height=130 + 36 * len(shown), showlegend=False)
    fig.add_bar(
        y=shown["modality"],
        x=shown["mean absolute"],
        orientation="h",
        marker={"color": BLUE},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": shown["high"] - shown["mean absolute"],
            "arrayminus": shown["mean absolute"] - shown["low"],
            "color": INK,
        },
    )
    return Chart(
        title="What the model listens to",
        figure=fig,
        alt="Mean absolute contributions: "
        + "; ".join(f"{name} {value:.3f}" for name, value in zip(run.modalities, mean, strict=True)),
        table=table,
        how="Absolute values are taken per patient before the mean, among patients who have the modality.",
        cannot="A modality that says the same as another shares its credit: a short bar does not prove it useless.",
    )


def _limits(
    size: np.ndarray[Any, Any], has: np.ndarray[Any, Any], mean: np.ndarray[Any, Any], *, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """95 % limits of means (M,) over patients: bootstrap, or the normal law for many, whose draws fill the memory."""
    n = len(size)
    if n > _MOST_DRAWN:
        spread = np.sqrt(np.where(has, (size - mean) ** 2, 0.0).sum(axis=0)) / has.sum(axis=0)
        return mean - 1.96 * spread, mean + 1.96 * spread
    weight = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    draws = (weight @ size) / (weight @ has)
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    return low, high


def pairs(run: ReviewRun, at: float | None) -> Chart | None:
    """Mean absolute and mean signed dividend of each pair of modalities; None unexplained or for a single modality."""
    names = run.modalities
    if not run.explained or len(names) < 2:
        return None
    total, size, count = (np.zeros((len(names), len(names))) for _ in range(3))
    for one in run.explained.values():
        label = 0.0 if run.kind == "multiclass" else at
        link = one_number(one.values, run, one.times, label)[0]  # (n, 2^M)
        place = [one.modalities.index(name) for name in names]
        has = np.asarray(one.present)[:, place]
        for i, j in combinations(range(len(names)), 2):
            a, b = 1 << place[i], 1 << place[j]
            both = has[:, i] & has[:, j]
            found = (link[:, a | b] - link[:, a] - link[:, b] + link[:, 0])[both]  # Harsanyi's dividend of two
            for to, value in ((total, found.sum()), (size, np.abs(found).sum()), (count, both.sum())):
                to[i, j] = to[j, i] = to[i, j] + value
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, strength = total / count, size / count
    return _pairs_chart(names, mean, strength, count)


def _pairs_chart(
    names: tuple[str, ...], mean: np.ndarray[Any, Any], strength: np.ndarray[Any, Any], count: np.ndarray[Any, Any]
) -> Chart:
    rows = [
        {
            "pair": f"{names[i]} + {names[j]}",
            "mean": mean[i, j],
            "mean absolute": strength[i, j],
            "patients": int(count[i, j]),
        }
        for i, j in combinations(range(len(names)), 2)
    ]
    fig = figure(height=150 + 46 * len(names))
    np.fill_diagonal(mean, np.nan)
    largest = float(np.nanmax(np.abs(mean), initial=0.0)) or 1.0
    fig.add_heatmap(
        x=names,
        y=names,
        z=mean,
        zmin=-1.6 * largest,  # never the full colours, on which no text has enough contrast
        zmax=1.6 * largest,
        colorscale=DIVERGING,
        text=[["" if np.isnan(v) else f"{v:+.3f}" for v in row] for row in mean],
        texttemplate="%{text}",
        textfont={"color": INK},
        colorbar={"title": {"text": "mean dividend"}},
        hoverinfo="skip",
    )
    fig.update_yaxes(autorange="reversed")
    table = pd.DataFrame(rows).sort_values("mean absolute", ascending=False, ignore_index=True)
    said = "; ".join(f"{r['pair']} {r['mean']:+.3f}" for _, r in table.head(6).iterrows())
    return Chart(
        title="What pairs of modalities say together",
        figure=fig,
        alt=f"Heatmap of mean dividends of pairs among patients who have both; the strongest: {said}.",
        table=table,
        how="Positive: together they say more than each alone; negative: both say the same in part. Numbers are means "
        "over held-out patients who have both.",
        cannot="Opposite dividends of patients cancel in a mean: the table has the mean of absolute values beside it.",
    )


def _phi(run: ReviewRun, one: FoldValues, at: float | None) -> np.ndarray[Any, Any]:
    label = 0.0 if run.kind == "multiclass" else at
    link = one_number(one.values, run, one.times, label)[0]  # (n, 2^M)
    phi = shapley(link.T).T
    order = [one.modalities.index(name) for name in run.modalities]
    return np.where(np.asarray(one.present), phi, np.nan)[:, order]
