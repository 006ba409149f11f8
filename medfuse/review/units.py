"""What the units within a modality added (tiles, regions, columns, gene sets, sentences), as stored with the run.

Nothing is computed: ``medfuse explain RUN --within MODALITY`` did, and its checks stand beside it as a badge.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfuse.config import read_card
from medfuse.errors import StoreError
from medfuse.files import read_json
from medfuse.palette import GREY, INK, LOWERS, RAISES
from medfuse.review.charts import Chart, figure
from medfuse.review.source import EXPLANATIONS, ReviewRun

_GAP, _FLOOR = 0.05, 1e-4  # as medfuse.explain.Attribution.complete
_NEAR = 0.005  # log hazard: what two rounded numbers may differ by
_LATER = "recalibration"  # runs explained before have none
_EACH = 8  # most raising and most lowering units that have a bar
_PARTS = {"slide": "tile", "text": "sentence", "ecg": "window", "dicom": "region", "volume": "region"}  # of a loader


@dataclass(frozen=True, kw_only=True)
class Units:
    """What the units of one modality added to one patient's prediction, on the scale of the contribution.

    Attributes:
        modality, kind: ``column gene_set group identity region instance wave event``.
        word: what to call one unit.
        cells: of the grid of regions, along its longest side.
        horizon: days, or None.
        class_index: of a multi-class outcome, or None.
        contribution: of the modality, as it was taken apart; ``presence`` and ``recalibration`` its parts that no unit
            has; ``gap`` what is left of it. ``recalibration`` is None where the parts are of the values as the model
            says them.
        stability: mean Spearman correlation between replicates; NaN for one unit.
        start: what presence leads to, in words.
        method: in words.
        badge: what the checks of these values said.
        table: columns ``unit contribution low high number``, largest in absolute value first.
    """

    modality: str
    kind: str
    word: str
    cells: int
    horizon: float | None
    class_index: int | None
    contribution: float
    presence: float
    recalibration: float | None
    gap: float
    stability: float
    start: str
    method: str
    badge: str
    table: pd.DataFrame

    @property
    def complete(self) -> bool:
        """Whether the gap is at most 5 % of the contribution, or below what single precision can tell from 0."""
        return abs(self.gap) <= max(_GAP * abs(self.contribution), _FLOOR)

    @property
    def label(self) -> str:
        """What must stand beside the values."""
        return "sums to the contribution" if self.complete else "ranking only"

    def sentence(self) -> str:
        """Contribution, local sum and gap in words."""
        total = float(self.table["contribution"].sum())
        part = "" if not self.contribution else f" ({abs(self.gap / self.contribution):.1%} of it)"
        moved = "" if self.recalibration is None else f"recalibration {self.recalibration:+.3f}, "
        return (
            f"Contribution {self.contribution:+.3f} = sum of the parts {total:+.3f}, presence {self.presence:+.3f} "
            f"(from the absent modality to: {self.start}), {moved}gap {self.gap:+.4f}{part}: {self.label}."
        )

    def disagreement(self, shown: float, *, meaning: str) -> str:
        """Why these parts are not those of a contribution, in words; empty where they are.

        Args:
            shown: the contribution on the pages, at the horizon of the parts.
            meaning: of :class:`medfuse.review.patient.PatientView`.
        """
        if abs(shown - self.contribution) <= max(_GAP * abs(shown), _NEAR):
            return ""
        why = "of other values of this run"
        if meaning == "recalibrated" and self.recalibration is None:
            why = "of the values as the model says them, before they were recalibrated"
        return (
            f"The parts explain {self.contribution:+.3f}; the bars of the patient page say {shown:+.3f}: the parts are "
            f"{why}. Explain this modality again."
        )


def kinds_of(run: ReviewRun, patient: str, modality: str) -> list[str]:
    """Names of the stored answers for a patient, the default first."""
    one, _ = run.locate(patient)
    folder = run.path / EXPLANATIONS / run.outcome / one.fold / "within" / modality
    found = [p.name for p in sorted(folder.iterdir()) if (p / "index.json").is_file()] if folder.is_dir() else []
    return sorted(found, key=lambda name: (name != "default", name))


def units_of(run: ReviewRun, patient: str, modality: str, kind: str = "default") -> Units | None:
    """A stored answer for one patient; None where the patient was not asked for.

    Raises:
        CohortError: no such patient.
        StoreError: it is damaged.
    """
    one, _ = run.locate(patient)
    folder = run.path / EXPLANATIONS / run.outcome / one.fold / "within" / modality / kind
    if not (folder / "index.json").is_file():
        return None
    index = read_json(folder / "index.json")
    try:
        if patient not in index["patient_ids"]:
            return None
        row = index["patient_ids"].index(patient)
        own = np.flatnonzero(_array(folder, "patient") == row)
        number = _array(folder, "unit")[own]
        word = _word(run, modality, index["units"])
        table = pd.DataFrame(
            {
                "unit": [str(index["names"][int(k)]) if index["names"] else f"{word} {int(k) + 1}" for k in number],
                "contribution": _array(folder, "values")[own].astype(np.float64),
                "low": _array(folder, "low")[own].astype(np.float64),
                "high": _array(folder, "high")[own].astype(np.float64),
                "number": number.astype(np.int64),
            }
        )
        order = table["contribution"].abs().sort_values(ascending=False, kind="stable").index
        checked = index["checked"]
        return Units(
            modality=modality,
            kind=index["units"],
            word=word,
            cells=int(index["cells"]),
            horizon=index["horizon"],
            class_index=index["class_index"],
            contribution=float(_array(folder, "contribution")[row]),
            presence=float(_array(folder, "presence")[row]),
            recalibration=float(_array(folder, _LATER)[row]) if (folder / f"{_LATER}.npy").is_file() else None,
            gap=float(_array(folder, "gap")[row]),
            stability=float(_array(folder, "stability")[row]),
            start=str(index["start"]),
            method={"path": "integrated gradients", "removal": "removal"}.get(index["method"], index["method"]),
            badge="not checked" if checked is None else str(checked["badge"]),
            table=table.loc[order].reset_index(drop=True),
        )
    except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
        msg = f"{folder}: expected a stored explanation, found a damaged one; explain the run again"
        raise StoreError(msg) from error


def _array(folder: Path, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _word(run: ReviewRun, modality: str, kind: str) -> str:
    if kind != "instance":
        return {"identity": "group"}.get(kind, kind.replace("_", " "))
    key = f"loader {modality}"
    if key not in run.memory:
        spec = read_card(run.path / "card.md").modalities.get(modality)
        run.memory[key] = "" if spec is None else spec.loader
    return _PARTS.get(run.memory[key], "part")


def token_values(found: Units, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """(T,) what each stored token added, or its whole region; None for units that have no place.

    Args:
        found: of one patient.
        positions: (T, P) of the stored tokens.
    """
    value = dict(zip(found.table["number"], found.table["contribution"], strict=True))
    if found.kind == "instance":
        place = np.arange(len(positions))
    elif found.kind == "region":
        place = cells(positions, per_side=found.cells)
    else:
        return None
    return np.array([value.get(int(k), np.nan) for k in place])


def cells(position: np.ndarray[Any, Any], *, per_side: int) -> np.ndarray[Any, Any]:
    """(T,) cell of the grid over the box of positions: ``medfuse.explain.attribution.cells`` without its imports."""
    if not len(position):
        return np.zeros(0, dtype=np.int64)
    position = np.asarray(position, dtype=np.float32)
    low = position.min(axis=0)
    side = float((position.max(axis=0) - low).max()) / per_side or 1.0
    at = np.minimum(((position - low) / side).astype(np.int64), per_side - 1)
    return np.asarray(at[:, :3] @ per_side ** np.arange(min(at.shape[1], 3)))


def units_chart(found: Units, *, scale: str) -> Chart:
    """Signed bars of the units, the rest together, presence and recalibration: they sum to the contribution.

    Args:
        found: of one patient.
        scale: unit of the contribution, in words.
    """
    table = found.table
    raising = table[table["contribution"] > 0].head(_EACH)
    lowering = table[table["contribution"] <= 0].head(_EACH)
    shown = pd.concat([raising, lowering.iloc[::-1]])
    rest = table.drop(shown.index)
    bars = [(str(r["unit"]), float(r["contribution"]), r["low"], r["high"]) for _, r in shown.iterrows()]
    if len(rest):
        bars.append((f"({len(rest)} others)", float(rest["contribution"].sum()), np.nan, np.nan))
    if found.presence:
        bars.append(("(presence)", found.presence, np.nan, np.nan))
    if found.recalibration:
        bars.append(("(recalibration)", found.recalibration, np.nan, np.nan))
    names, values, low, high = (list(column) for column in zip(*bars[::-1], strict=True))
    named = [not n.startswith("(") for n in names]
    where = "" if found.horizon is None else f" at {found.horizon:g} days"
    fig = figure(x=f"contribution to {scale}{where}", height=130 + 26 * len(bars), showlegend=False)
    colours = [(RAISES if v > 0 else LOWERS) if own else GREY for v, own in zip(values, named, strict=True)]
    short = [n if len(n) <= 44 else n[:41] + "..." for n in names]
    fig.add_bar(
        y=short,
        x=values,
        orientation="h",
        marker={"color": colours, "pattern": {"shape": ["" if v > 0 else "/" for v in values], "solidity": 0.25}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.clip(np.nan_to_num(np.subtract(high, values)), 0, None),
            "arrayminus": np.clip(np.nan_to_num(np.subtract(values, low)), 0, None),
            "color": INK,
            "thickness": 1.2,
        },
    )
    for name, value in zip(short, values, strict=True):
        said = f"{'▲' if value > 0 else '▼'} {value:+.4f}"
        fig.add_annotation(y=name, x=1.0, xref="paper", text=said, showarrow=False, xanchor="left")
    fig.update_layout(margin={"r": 90})
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    fig.update_yaxes(type="category")
    word = f"{found.word}s"
    said = "; ".join(f"{n} {v:+.3f}" for n, v, _, _ in bars)
    return Chart(
        title=f"Within {found.modality}: {word}",
        figure=fig,
        alt=f"Signed contributions of the {word} of {found.modality}{where}, {found.label}: {said}.",
        table=table.drop(columns="number"),
        how=(
            f"▲ raises and ▼ (hatched) lowers the prediction; whiskers span the replicates. By {found.method}; "
            f"checks: {found.badge}."
        ),
        cannot="A part that the model used is not shown to be a cause, and parts that say the same share the credit."
        + (" These values do not sum to the contribution: only their order counts." if not found.complete else ""),
    )
