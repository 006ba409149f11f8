"""Pictures of an exported record, on axes of Matplotlib: the curve with its band, and the contributions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medfuse.palette import INK, LOWERS, RAISES

UNITS = {"survival": "log cumulative hazard", "continuous": "the value", "multiclass": "log probability"}
_BAND = "#BFD7EA"


def draw_curve(axes: Any, record: Mapping[str, Any]) -> None:  # noqa: ANN401  # Matplotlib's axes
    """Survival over time with its interval; never one without the other."""
    rows = record["curve"]
    day, survival, low, high = (np.array([r[k] for r in rows]) for k in ("day", "survival", "low", "high"))
    axes.fill_between(day, low, high, color=_BAND, lw=0, label="5th to 95th percentile")
    axes.plot(day, survival, color=INK, lw=1.6, label="survival")
    axes.set(xlabel="days since index time", ylabel="probability of no event", ylim=(0, 1.02), xlim=(0, None))
    axes.legend(frameon=False, loc="lower left", fontsize=8)


def draw_contributions(axes: Any, record: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Bars with whiskers; what raises is hatched and points right, so that it is seen without colour."""
    rows = record["contributions"]
    for k, row in enumerate(rows):
        up = row["contribution"] >= 0
        axes.barh(
            -k,
            row["contribution"],
            height=0.55,
            color="white",
            edgecolor=RAISES if up else LOWERS,
            hatch="////" if up else "",
            lw=1.2,
        )
        axes.plot([row["low"], row["high"]], [-k, -k], color=INK, lw=1.2)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks([-k for k in range(len(rows))], [r["modality"] for r in rows])
    unit = UNITS.get(record["kind"], "log odds")
    axes.set(xlabel=f"contribution to {unit} (hatched: raises)", ylim=(-len(rows) + 0.4, 0.6))
