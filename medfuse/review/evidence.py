"""What the run read of a patient in one modality, from the feature store: values with units, gene sets, tiles."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse.errors import StoreError
from medfuse.files import verify
from medfuse.palette import BLUE, INK, LOWERS, RAISES
from medfuse.review.charts import Chart, figure
from medfuse.review.source import ReviewRun
from medfuse.sample import Column
from medfuse.store import FeatureStore
from medfuse.stored_table import stored_columns, stored_tokens

_MOST_CELLS = 20_000_000  # above which no percentiles among training patients are computed
_FEW = 20


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the store holds of one patient in one modality.

    Attributes:
        modality: its name.
        key: SHA-256 of the stored modality, as in the run.
        reason: why there is nothing to show; empty where there is.
        layout: ``columns`` or ``vectors``.
        table: columns ``column value unit percentile`` (layout ``columns``), or ``feature`` and statistics over tokens.
        sets: columns ``gene set genes mean percentile`` where the card names gene sets.
        facts: of the raw items.
        sources: file as the store names it -> SHA-256.
        positions: (T, P) of tokens with ``unit``; features (T, F) with ``names``.
        item: (T,) number of the slide, series or record that each token comes from.
    """

    modality: str
    key: str = ""
    reason: str = ""
    layout: str = ""
    table: pd.DataFrame
    sets: pd.DataFrame
    facts: Mapping[str, Any]
    sources: Mapping[str, str]
    positions: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    names: tuple[str, ...] = ()
    unit: str = ""
    item: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def _nothing(modality: str, reason: str, key: str = "") -> Evidence:
    empty = np.zeros((0, 0))
    return Evidence(
        modality=modality,
        key=key,
        reason=reason,
        table=pd.DataFrame(),
        sets=pd.DataFrame(),
        facts={},
        sources={},
        positions=empty,
        tokens=empty,
    )


def evidence(run: ReviewRun, patient: str, modality: str, *, store_root: Path | None) -> Evidence:
    """Everything that the store holds of a patient in one modality.

    Raises:
        CohortError: no such patient.
        StoreError: the store is damaged; a store that is not there is a reason, not an error.
    """
    one, row = run.locate(patient)
    if not bool(one.present[row][one.modalities.index(modality)]):
        return _nothing(modality, f"{modality} is absent: this patient has no {modality} in the cohort")
    key = str(run.facts["facts"]["data"][modality])
    if store_root is None:
        return _nothing(modality, "the feature store was not named; start the review with --store", key)
    store = FeatureStore(store_root)
    folder = store.path(key)
    if not (folder / "index.json").is_file():
        return _nothing(modality, "the feature store does not hold the data of this run; name the right one", key)
    verify(folder, content=False)
    index = json.loads((folder / "index.json").read_bytes())
    if "items" in index:
        return _items(run, patient, modality, store=store, index=index, key=key)
    sources = dict(json.loads((folder / "manifest.json").read_bytes())["sources"])
    if patient not in index["patient_ids"]:
        msg = f"{folder}: expected a patient of the run, found none with this key; explain the run again"
        raise StoreError(msg)
    tokens = stored_tokens(folder, index)
    own = np.asarray(tokens[index["patient_ids"].index(patient)], dtype=np.float64)
    if index["layout"] != "columns":
        return _vectors(modality, key, own, np.zeros((len(own), 1)), names=(), sources=sources, facts={}, unit="")
    columns = stored_columns(index)
    everybody = _everybody(tokens, len(columns)) if sum(t.size for t in tokens) <= _MOST_CELLS else None
    train = set(map(str, run.splits[one.fold]["train"]))
    rows = [i for i, name in enumerate(index["patient_ids"]) if name in train]
    among = None if everybody is None else everybody[rows]
    table = _columns(columns, own, among)
    return Evidence(
        modality=modality,
        key=key,
        layout="columns",
        table=table,
        sets=_sets(index.get("gene_sets", {}), columns, own=own, among=among),
        facts={},
        sources=sources,
        positions=np.zeros((0, 0)),
        tokens=own,
    )


def _everybody(tokens: Sequence[np.ndarray[Any, Any]], width: int) -> np.ndarray[Any, Any] | None:
    """(n, C) values of all patients, NaN where missing; None when patients have different numbers of tokens."""
    if any(len(own) != width for own in tokens):
        return None
    cells = np.stack(tokens).astype(np.float64)
    return np.where(cells[:, :, 1] > 0, cells[:, :, 0], np.nan)


def _columns(columns: Sequence[Column], own: np.ndarray[Any, Any], among: np.ndarray[Any, Any] | None) -> pd.DataFrame:
    rows = []
    for k, column in enumerate(columns):
        observed = bool(own[k, 1] > 0)
        value = float(own[k, 0]) if observed else float("nan")
        shown = "missing" if not observed else f"{value:g}" if column.kind == "numeric" else column.levels[int(value)]
        rows.append(
            {
                "column": column.name,
                "value": shown,
                "unit": column.unit or "",
                "percentile": percentile(value, None if among is None or column.kind != "numeric" else among[:, k]),
                "number": value if column.kind == "numeric" else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def percentile(value: float, others: np.ndarray[Any, Any] | None) -> float:
    """Mid-rank percentile of a value among others; NaN below 20 known ones."""
    known = np.zeros(0) if others is None else others[~np.isnan(others)]
    if len(known) < _FEW or np.isnan(value):
        return float("nan")
    return float(100 * ((known < value).mean() + 0.5 * (known == value).mean()))


def _sets(
    gene_sets: Mapping[str, Sequence[str]],
    columns: Sequence[Column],
    *,
    own: np.ndarray[Any, Any],
    among: np.ndarray[Any, Any] | None,
) -> pd.DataFrame:
    """Mean value of each gene set and its percentile among training patients."""
    place = {column.name: k for k, column in enumerate(columns)}
    rows = []
    for name, genes in gene_sets.items():
        at = [place[g] for g in genes if g in place and own[place[g], 1] > 0]
        if not at:
            continue
        value = float(own[at, 0].mean())
        others = None if among is None else np.nanmean(among[:, at], axis=1)
        rows.append({"gene set": name, "genes": len(at), "mean": value, "percentile": percentile(value, others)})
    return pd.DataFrame(rows, columns=["gene set", "genes", "mean", "percentile"])


def _items(
    run: ReviewRun, patient: str, modality: str, *, store: FeatureStore, index: Mapping[str, Any], key: str
) -> Evidence:
    found = [(identity, store.get_item(item, check=False), item) for identity, item in index["items"].get(patient, [])]
    if not found:
        return _nothing(modality, "the store holds no item of this patient", key)
    tokens = np.concatenate([np.asarray(i.sample.tokens, dtype=np.float64) for _, i, _ in found])
    positions = np.concatenate([np.asarray(i.sample.position, dtype=np.float64) for _, i, _ in found])
    sources: dict[str, str] = {}
    for number, (_, _, item) in enumerate(found):
        sealed = json.loads((store.path(item) / "manifest.json").read_bytes())["sources"]
        sources |= {f"item {number + 1}, file {int(k) + 1 if str(k).isdigit() else k}": v for k, v in sealed.items()}
    first = found[0][1]
    made = _vectors(
        modality, key, tokens, positions, names=first.names, sources=sources, facts=first.facts, unit=first.unit
    )
    return replace(made, item=np.repeat(np.arange(len(found)), [len(i.sample.tokens) for _, i, _ in found]))


def _vectors(
    modality: str,
    key: str,
    tokens: np.ndarray[Any, Any],
    positions: np.ndarray[Any, Any],
    *,
    names: tuple[str, ...],
    sources: Mapping[str, str],
    facts: Mapping[str, Any],
    unit: str,
) -> Evidence:
    labels = names or tuple(f"feature {k + 1}" for k in range(tokens.shape[1]))
    table = pd.DataFrame({"feature": labels})
    if len(tokens) == 1:
        table["value"] = tokens[0]
    else:
        table["mean over tokens"], table["SD over tokens"] = tokens.mean(axis=0), tokens.std(axis=0)
    return Evidence(
        modality=modality,
        key=key,
        layout="vectors",
        table=table,
        sets=pd.DataFrame(),
        facts=facts,
        sources=sources,
        positions=positions,
        tokens=tokens,
        names=labels,
        unit=unit,
    )


def sets_chart(found: Evidence) -> Chart:
    """Percentile of each gene set's mean among training patients."""
    table = found.sets.sort_values("percentile")
    fig = figure(x="percentile among training patients", height=130 + 26 * max(len(table), 1), showlegend=False)
    high = table["percentile"] >= 50
    fig.add_bar(
        y=table["gene set"],
        x=table["percentile"] - 50,
        base=50,
        orientation="h",
        marker={
            "color": [RAISES if h else LOWERS for h in high],
            "pattern": {"shape": ["" if h else "/" for h in high]},
        },
    )
    fig.add_vline(x=50, line={"color": INK, "width": 1})
    fig.update_xaxes(range=[0, 100])
    return Chart(
        title="Gene sets",
        figure=fig,
        alt="Percentiles of gene sets among training patients: "
        + "; ".join(f"{r['gene set']} {r['percentile']:.0f}" for _, r in table.iterrows()),
        table=found.sets,
        how="A bar to the right is a mean expression above most training patients, hatched to the left below.",
        cannot="It shows the input, not what the model made of it.",
    )


def tiles_chart(found: Evidence, feature: str) -> Chart:
    """Where the tokens lie and what one stored feature is there."""
    value = found.tokens[:, found.names.index(feature)]
    fig = figure(x=f"x, {found.unit}", y=f"y, {found.unit}", height=460, showlegend=False)
    fig.add_scatter(
        x=found.positions[:, 0],
        y=found.positions[:, 1],
        mode="markers",
        marker={
            "symbol": "square",
            "size": 22,
            "color": value,
            "colorscale": "Cividis",
            "showscale": True,
            "colorbar": {"title": {"text": feature}},
            "line": {"color": INK, "width": 0.5},
        },
    )
    fig.update_yaxes(autorange="reversed", scaleanchor="x", scaleratio=1)
    table = pd.DataFrame({"x": found.positions[:, 0], "y": found.positions[:, 1], feature: value})
    return Chart(
        title="Where the tokens lie",
        figure=fig,
        alt=f"{len(value)} tokens at their places, coloured by {feature}, {value.min():.3g} to {value.max():.3g}.",
        table=table,
        how=f"Each square is one region that the model read; colour is the stored feature {feature}.",
        cannot="It shows the input, not how much a region contributed.",
    )


def values_chart(found: Evidence, *, most: int = 20) -> Chart:
    """The values furthest from the middle of the training patients."""
    table = found.table.dropna(subset=["percentile"])
    table = table.reindex((table["percentile"] - 50).abs().sort_values(ascending=False).index).head(most).iloc[::-1]
    fig = figure(x="percentile among training patients", height=130 + 24 * max(len(table), 1), showlegend=False)
    fig.add_scatter(
        x=table["percentile"],
        y=table["column"],
        mode="markers",
        marker={"size": 11, "color": BLUE, "symbol": "diamond"},
    )
    fig.add_vline(x=50, line={"color": INK, "width": 1})
    fig.update_xaxes(range=[0, 100])
    return Chart(
        title="Values furthest from the middle",
        figure=fig,
        alt="; ".join(
            f"{r['column']} {r['value']} {r['unit']}, percentile {r['percentile']:.0f}" for _, r in table.iterrows()
        ),
        table=table[["column", "value", "unit", "percentile"]].iloc[::-1],
        how="A mark far from the middle line is a value that few training patients have.",
        cannot="Unusual is not the same as influential.",
    )
