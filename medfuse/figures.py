"""Figures of the report, as SVG text: colour-blind safe, readable in print."""

import io
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.palette import BLUE, GREY, INK, SERIES, VERMILION
from medfuse.targets import Survival

_SLOPES = (-0.5, 3.0)  # of calibration, as shown
_PAGE = (9.6, 13.5)  # inches of a figure that fills a page: the proportions of A4
_MARGIN = 1.4  # inches of its legend and axes
_SCORES = {"harrell_c": ("Harrell's C", 0.5), "auroc": ("AUROC", 0.5), "r2": ("R squared", 0.0)}  # and of no skill
# Lines and marks say the same without colour, for print in black and white.
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKS = ("o", "s", "^", "D", "v", "X")
FEW_EVENTS = 10  # below which a subgroup is drawn hollow


def svg(
    draw: Callable[[Any, Any], None], *, width: float, height: float, rows: int = 1, grid: tuple[int, int] | None = None
) -> str:
    """Draw on a fresh figure, without pyplot's global state, and return its SVG element.

    ``rows`` stacks a table under a plot; ``grid`` (rows, columns) is for equal panels.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "medfuse", "font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes: Any = figure.subplots(rows, 1, height_ratios=[4, 1][:rows]) if rows > 1 else figure.subplots()
        if grid is not None:
            figure.clear()
            axes = figure.subplots(*grid, squeeze=False)
        for one in np.ravel(axes):
            one.spines[["top", "right"]].set_visible(False)
        draw(figure, axes)
        buffer = io.StringIO()
        # No metadata block: it names addresses, and nothing in a document of ours does.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def survival_by_group(survival: Survival, group: NDArray[np.int64], labels: Sequence[str]) -> str:
    """Kaplan-Meier curves with log-log 95 % limits per group, and the table of patients at risk."""

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401  # matplotlib objects
        top, table = axes
        end = float(np.quantile(survival.time, 0.95))
        ticks = np.linspace(0, end, 6)
        for k, label in enumerate(labels):
            rows = np.flatnonzero(group == k)
            if not rows.size:
                continue
            curve = kaplan_meier(survival.time[rows], survival.event[rows])
            low, high = curve.limits()
            x = np.concatenate([[0.0], curve.times])
            colour = SERIES[k % len(SERIES)]
            line = LINES[k % len(LINES)]
            top.step(x, np.concatenate([[1.0], curve.survival]), where="post", color=colour, ls=line, label=label)
            top.fill_between(
                x,
                np.concatenate([[1.0], low]),
                np.concatenate([[1.0], high]),
                step="post",
                color=colour,
                alpha=0.15,
                lw=0,
            )
            for t in ticks:
                at_risk = int((survival.time[rows] >= t).sum())
                table.text(t, -k, str(at_risk), ha="center", va="center", color=INK)
            table.text(-0.02 * end, -k, label, ha="right", va="center", color=INK)
        top.set(xlim=(0, end), ylim=(0, 1.02), ylabel="event-free", xlabel="days")
        top.set_xticks(ticks)
        top.legend(frameon=False, loc="lower left")
        table.set(xlim=(0, end), ylim=(-len(labels) + 0.4, 0.6), yticks=[], title="patients at risk")
        table.title.set_size(8)
        table.axis("off")

    return svg(draw, width=6.2, height=4.4, rows=2)


def calibration(content: Mapping[str, Mapping[str, Any]], smooth: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Observed against predicted probability of an event, per horizon: groups with 95 % limits, and smooth curves."""

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
        for k, (horizon, c) in enumerate(content.items()):
            points = [
                row for row in zip(c["predicted"], c["observed"], c["low"], c["high"], strict=True) if None not in row
            ]
            if points:
                x, y, low, high = np.array(points, dtype=np.float64).T
                error = np.clip(np.stack([y - low, high - y]), 0, None)
                axes.errorbar(x, y, yerr=error, fmt=MARKS[k % 6], ms=4, lw=1, capsize=2, color=SERIES[k % 6])
            curve = (smooth or {}).get(horizon, {})
            px, py = (
                (curve["predicted"], curve["observed"]) if curve.get("predicted") else (c["predicted"], c["observed"])
            )
            axes.plot(
                px,
                [np.nan if v is None else v for v in py],
                ls=LINES[k % 6],
                lw=1.4,
                marker=MARKS[k % 6],
                markevery=[],
                color=SERIES[k % 6],
                label=f"{horizon} days",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability of an event", ylabel="observed (Kaplan-Meier)")
        axes.set_aspect("equal")
        axes.legend(frameon=False, loc="upper left")

    return svg(draw, width=4.4, height=4.2)


def decision(content: Mapping[str, Any], *, horizon: str) -> str:
    """Net benefit of the model, of treating everyone and of treating no one."""

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401
        x = content["thresholds"]

        def line(values: Sequence[float | None]) -> list[float]:
            return [float("nan") if v is None else v for v in values]

        model, everyone = line(content["model"]), line(content["everyone"])
        axes.plot(x, model, color=BLUE, label="model")
        axes.plot(x, everyone, color=VERMILION, ls="--", label="treat everyone")
        axes.axhline(0, color=GREY, lw=1, ls=":", label="treat no one")
        top = max([v for v in [*model, *everyone] if v == v], default=0.1)
        axes.set(
            ylim=(-0.05, max(0.05, 1.1 * top)), xlabel="threshold probability", ylabel=f"net benefit at {horizon} days"
        )
        axes.legend(frameon=False)

    return svg(draw, width=4.4, height=3.6)


def forest(rows: Sequence[Mapping[str, Any]], *, score: str) -> str:
    """Each model's pooled score with its interval."""
    known = [row for row in rows if row["pooled"] is not None]

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401
        for k, row in enumerate(known):
            colour = BLUE if row["carrying"] else GREY
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [-k, -k], color=colour, lw=2)
            axes.plot(row["pooled"], -k, "o", color=colour, ms=6)
        axes.set_yticks([-k for k in range(len(known))], [row["model"] for row in known])
        axes.axvline(0.5, color=GREY, lw=1, ls="--")
        axes.set(xlabel=f"{score}, pairs within the same fold, 95 % interval", ylim=(-len(known) + 0.4, 0.6))

    return svg(draw, width=6.2, height=0.6 + 0.3 * max(len(known), 1))


def stress(content: Mapping[str, Any], *, mechanism: str) -> str:
    """Discrimination and calibration of the models under stress, on one page whatever the number of modalities.

    The page has the proportions of A4 at a width of 9.6 inches. Where there are too many subsets of the modalities for
    a line each, only the first model and the late average are drawn; where there are more still, a dot per subset over
    the number of modalities that are left. What is not drawn stands in the table (CSV).

    Args:
        content: ``rows`` and ``score`` of one outcome, of :func:`medfuse.stressing.stress_run`; of splits that overlap
            the first is drawn, and named.
        mechanism: what was done; ``subsets`` has patterns in place of rates.
    """
    groups = list(dict.fromkeys(row["folds"] for row in content["rows"]))
    rows = [row for row in content["rows"] if row["folds"] == groups[0]]
    reference = rows[0]["reference"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    first = [n for n in names if n.startswith("medfuse") or n == reference]
    models = [*first, *(n for n in names if n not in first)][: len(SERIES)]
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    score, nothing = _SCORES.get(content["score"], (content["score"], 0.5))
    measures = ((score, "score", nothing), ("calibration slope", "calibration_slope", 1.0))

    def finished(figure: Any, panel: Any, shown: Sequence[str]) -> None:  # noqa: ANN401
        said = [f"split {groups[0]} of {len(groups)}"] if len(groups) > 1 else []
        said += [f"{len(names) - len(shown)} more models in the table"] if len(shown) < len(names) else []
        handles, labels = panel.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title="; ".join(said) or None,
            frameon=False,
            fontsize=8,
            title_fontsize=8,
            loc="outside upper center",
            ncols=len(models),
        )

    if mechanism != "subsets":
        return _rates(rows, patterns, models=models, measures=measures, mechanism=mechanism, finished=finished)
    lead = [m for m in models if m in ("medfuse", reference)] or models[:1]
    for shown in (models, lead):
        least = 0.13 * (len(shown) + 1) * len(patterns)
        if least <= _PAGE[1] - _MARGIN:

            def draw(figure: Any, axes: Any, shown: Sequence[str] = shown) -> None:  # noqa: ANN401
                _patterns(axes[0], rows, patterns, models=shown, measures=measures)
                finished(figure, axes[0][0], shown)

            height = min(least * 17 / 13 + _MARGIN, _PAGE[1])
            return svg(draw, width=_PAGE[0], height=height, grid=(1, 2))

    def by_number(figure: Any, axes: Any) -> None:  # noqa: ANN401
        for panel, (label, key, nothing) in zip(axes[:, 0], measures, strict=True):
            _by_number(panel, rows, key, models=lead)
            panel.axhline(nothing, color=GREY, lw=1, ls="--")
            panel.set(xlabel="modalities left: a dot per subset, lines are means", ylabel=label)
            if key != "score":
                panel.set_ylim(*_SLOPES)
        finished(figure, axes[0][0], lead)

    return svg(by_number, width=_PAGE[0], height=9.0, grid=(2, 1))


def _rates(
    rows: Sequence[Mapping[str, Any]],
    patterns: Sequence[str],
    *,
    models: Sequence[str],
    measures: Sequence[tuple[str, str, float]],
    mechanism: str,
    finished: Callable[[Any, Any, Sequence[str]], None],
) -> str:
    """Two panels, of discrimination and of calibration, for each modality that is acted on; lines over the rate."""
    abreast = 1 if len(patterns) <= 4 else 2
    high = -(-len(patterns) // abreast)
    unit = "standard deviations" if mechanism == "noise" else "share"

    def draw(figure: Any, axes: Any) -> None:  # noqa: ANN401
        for unused in axes.ravel()[2 * len(patterns) :]:
            unused.set_visible(False)
        for number, pattern in enumerate(patterns):
            for place, (label, key, nothing) in enumerate(measures):
                panel = axes.ravel()[2 * number + place]
                for k, model in enumerate(models):
                    own = [r for r in rows if r["model"] == model and r["pattern"] == pattern and r[key] is not None]
                    if own:
                        _curve(panel, own, key, number=k, label=model, band=k == 0 or model == own[0]["reference"])
                panel.axhline(nothing, color=GREY, lw=1, ls="--")
                name = fill(f"{mechanism} ({unit}): {pattern}", 60 // abreast)
                panel.set(xlabel=name, ylabel=label)
                if key != "score":
                    panel.set_ylim(*_SLOPES)
        finished(figure, axes[0][0], models)

    height = min(3.0 * high + 0.5, _PAGE[1])
    return svg(draw, width=_PAGE[0], height=height, grid=(high, 2 * abreast))


def _by_number(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, *, models: Sequence[str]) -> None:  # noqa: ANN401
    """A dot per subset of the modalities over their number, and the mean of each number."""
    for k, model in enumerate(models):
        own = [(row["pattern"].count(" + ") + 1, row[key]) for row in rows if row["model"] == model]
        known = [(size, value) for size, value in own if value is not None]
        sizes = sorted({size for size, _ in known})
        aside = 0.24 * (k - (len(models) - 1) / 2)
        panel.plot(
            [size + aside for size, _ in known], [v for _, v in known], MARKS[k], ms=3, color=SERIES[k], ls="", mew=0
        )
        means = [float(np.mean([v for size, v in known if size == one])) for one in sizes]
        panel.plot([size + aside for size in sizes], means, ls=LINES[k], lw=1.4, color=SERIES[k], label=model)
        panel.set_xticks(sizes)


def _curve(
    panel: Any,  # noqa: ANN401  # matplotlib axes
    rows: Sequence[Mapping[str, Any]],
    key: str,
    *,
    number: int,
    label: str,
    band: bool,
) -> None:
    x, y, colour = [r["rate"] for r in rows], [r[key] for r in rows], SERIES[number]
    panel.plot(x, y, marker=MARKS[number], ls=LINES[number], ms=3.5, lw=1.4, color=colour, label=label)
    if band and all(r[f"{key}_low"] is not None for r in rows):
        panel.fill_between(
            x, [r[f"{key}_low"] for r in rows], [r[f"{key}_high"] for r in rows], color=colour, alpha=0.15
        )


def _patterns(
    axes: Any,  # noqa: ANN401
    rows: Sequence[Mapping[str, Any]],
    patterns: Sequence[str],
    *,
    models: Sequence[str],
    measures: Sequence[tuple[str, str, float]],
) -> None:
    """A line per subset of the modalities, a dot with its interval per model."""
    for panel, (label, key, nothing) in zip(axes, measures, strict=True):
        for row in rows:
            if row["model"] not in models or row[key] is None:
                continue
            k = models.index(row["model"])
            y = -patterns.index(row["pattern"]) - (k - len(models) / 2) / (len(models) + 1)
            if row[f"{key}_low"] is not None:
                panel.plot([row[f"{key}_low"], row[f"{key}_high"]], [y, y], color=SERIES[k], lw=1)
            first = row["pattern"] == patterns[0]
            panel.plot(row[key], y, MARKS[k], ms=3.8, color=SERIES[k], ls="", label=row["model"] if first else None)
        panel.axvline(nothing, color=GREY, lw=1, ls="--")
        shown = [fill(p, 44) for p in patterns] if panel is axes[0] else [""] * len(patterns)
        panel.set_yticks([-k for k in range(len(patterns))], shown)
        panel.set(xlabel=label, ylim=(-len(patterns) + 0.4, 0.6))
        if key != "score":
            panel.set_xlim(*_SLOPES)  # the slope of a model that says nothing may be anything


def balance(epochs: Sequence[int], curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Strength of each modality's own share, and the factor on its gradient, per epoch.

    Args:
        epochs: (e,).
        curves: ``strength`` and ``factor``: per modality (e,) means over the joint networks.
    """

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401
        labels = {"strength": "negative log-likelihood of its own share", "factor": "factor on its gradient"}
        for panel, name in zip(axes[0], labels, strict=True):
            for k, (modality, values) in enumerate(curves[name].items()):
                y = [float("nan") if v is None else v for v in values]
                panel.plot(epochs, y, color=SERIES[k % len(SERIES)], ls=LINES[k % len(LINES)], label=modality)
            panel.set(xlabel="epoch", ylabel=labels[name])
        axes[0][1].axhline(1.0, color=GREY, lw=1, ls="--")
        axes[0][0].legend(frameon=False)

    return svg(draw, width=9.0, height=3.2, grid=(1, 2))


def importance(rows: Sequence[Mapping[str, Any]], *, unit: str) -> str:
    """Mean absolute contribution of each modality with its 95 % interval, the largest on top.

    Args:
        rows: ``modality patients value low high``; rows without a value are left out.
        unit: of the contributions.
    """
    known = sorted((r for r in rows if np.isfinite(r["value"])), key=lambda r: -r["value"])

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401
        for k, row in enumerate(known):
            axes.barh(-k, row["value"], height=0.6, color=BLUE)
            if np.isfinite(row["low"]):
                axes.errorbar(
                    row["value"],
                    -k,
                    xerr=[[max(row["value"] - row["low"], 0)], [max(row["high"] - row["value"], 0)]],
                    color=INK,
                    capsize=3,
                    lw=1.2,
                )
        axes.set_yticks([-k for k in range(len(known))], [f"{r['modality']} (n = {r['patients']})" for r in known])
        axes.set(xlabel=f"mean absolute contribution to {unit}", ylim=(-len(known) + 0.4, 0.6))

    return svg(draw, width=6.2, height=0.8 + 0.36 * max(len(known), 1))


def groups(rows: Sequence[Mapping[str, Any]], *, score: str, overall: float | None) -> str:
    """A forest of subgroups: score with 95 % interval, patients and events; few events are drawn hollow.

    Args:
        rows: ``group level patients events estimate low high``; rows without an estimate have no mark.
        score: what is measured.
        overall: of everybody, as a dashed line.
    """

    def draw(_: Any, axes: Any) -> None:  # noqa: ANN401
        names = []
        for k, row in enumerate(rows):
            events = "" if row["events"] is None else f", {row['events']} events"
            names.append(f"{row['group']}: {row['level']} (n = {row['patients']}{events})")
            if row["estimate"] is None:
                axes.text(0.02, -k, "undefined", va="center", color=INK, transform=axes.get_yaxis_transform())
                continue
            few = row["events"] is not None and row["events"] < FEW_EVENTS
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [-k, -k], color=GREY if few else BLUE, lw=1.6)
            face = "white" if few else BLUE
            axes.plot(row["estimate"], -k, "o", ms=6, color=GREY if few else BLUE, markerfacecolor=face)
        axes.set_yticks([-k for k in range(len(rows))], names)
        if overall is not None:
            axes.axvline(overall, color=GREY, lw=1, ls="--")
        axes.set(xlabel=f"{score} (dashed: all)", ylim=(-len(rows) + 0.4, 0.6))

    return svg(draw, width=7.6, height=0.8 + 0.3 * max(len(rows), 1))
