"""Pictures of a patient's own files: ECG on paper, slices of a volume, sentences of a report; slides in ``slides``.

They need the cohort's files (``--data-root``). A file is shown only when its SHA-256 is the one that the run read.
"""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medfuse.card import jailed
from medfuse.config import read_card
from medfuse.errors import ConfigError, DataError
from medfuse.files import sha256_path
from medfuse.limits import files_below
from medfuse.loaders import module_of
from medfuse.review.charts import DIVERGING, INK, Chart, diverging
from medfuse.review.charts import picture as as_url
from medfuse.review.source import ReviewRun

MM_PER_S, MM_PER_MV = 25.0, 10.0
PULSE_S, PULSE_MV = 0.2, 1.0
_PIXELS_PER_MM = 96 / 25.4
_ROW_MV = 3.0
WINDOWS: Mapping[str, tuple[float, float]] = {
    "as read": (0.0, 0.0),
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
}
VIEWS = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, kw_only=True)
class RawFiles:
    """Files of one patient in one modality, checked against the run, or why there are none.

    Attributes:
        loader, options: of the card.
        items: files of each slide, series or record.
        numbers: of each item in the feature store; None where its content is not there.
        reason: why there are none.
    """

    loader: str = ""
    options: Mapping[str, Any]
    items: tuple[tuple[Path, ...], ...] = ()
    numbers: tuple[int | None, ...] = ()
    reason: str = ""

    def item(self, number: int) -> "RawFiles":
        """One of several slides, series or records."""
        return replace(self, items=self.items[number : number + 1], numbers=self.numbers[number : number + 1])


def raw_files(
    run: ReviewRun, patient: str, modality: str, *, data_root: Path | None, sources: Mapping[str, str]
) -> RawFiles:
    """A patient's files, whose content is what the run read.

    Args:
        run: the run.
        patient: a key of the run (only those reach a path).
        modality: its name.
        data_root: folder of the cohort's files.
        sources: of :class:`medfuse.review.evidence.Evidence`.

    Raises:
        CohortError: no such patient.
    """
    run.locate(patient)
    if data_root is None:
        return RawFiles(options={}, reason="the files are not at hand; start the review with --data-root to see them")
    if run.run.read("data").get("pseudonyms"):
        return RawFiles(options={}, reason="keys are pseudonyms here, so the files cannot be found by them")
    card = read_card(run.path / "card.md")
    spec = card.modalities[modality]
    if not spec.path or "{" not in spec.path:
        return RawFiles(options={}, reason="this modality comes from a table, shown above")
    if any(part in {"", ".", ".."} for part in patient.replace("\\", "/").split("/")) or "\0" in patient:
        return RawFiles(options={}, reason="the key cannot be part of a path")
    root = jailed(card.root, data_root) if card.root else data_root
    pattern = spec.path.replace("{patient_id}", glob.escape(patient))
    found: list[Path] = []
    for match in sorted(root.glob(pattern)):
        path = jailed(match.relative_to(root).as_posix(), root)
        found += sorted(files_below(path)) if path.is_dir() else [path]
    if not found:
        return RawFiles(options={}, reason="the files of this patient are not where the card says")
    known = set(sources.values())
    if known and not {digest(run, path) for path in found} & known:
        return RawFiles(options={}, reason="the files are not those that the run read (SHA-256 differs)")
    module = module_of(spec.loader, where=f"modality {modality}")
    group = getattr(module, "group", lambda files: [(path,) for path in files])
    items = tuple(tuple(i) for i in group(found))
    return RawFiles(
        loader=spec.loader,
        options=dict(spec.options),
        items=items,
        numbers=tuple(_number(run, files, sources) for files in items),
    )


def digest(run: ReviewRun, path: Path) -> str:
    """SHA-256 of a file or folder, read once per change of its sizes and times."""
    below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    state = [(p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in below]
    key = f"sha256 {path} {state}"
    if key not in run.memory:
        run.memory[key] = sha256_path(path)
    return str(run.memory[key])


def _number(run: ReviewRun, files: Sequence[Path], sources: Mapping[str, str]) -> int | None:
    """Which item of the store was read from these files: sources are named ``item 2, file 1``."""
    known = {v: int(k.split(",")[0].removeprefix("item ")) - 1 for k, v in sources.items() if k.startswith("item ")}
    found = {known[d] for d in (digest(run, path) for path in files) if d in known}
    return found.pop() if len(found) == 1 else None


def read_ecg(files: RawFiles) -> tuple[np.ndarray[Any, Any], float, list[str]]:
    """First window (leads, samples) in mV, samples per second, names of the leads in the file's order.

    Raises:
        DataError: the file cannot be read.
    """
    module = module_of(files.loader, where="review")
    sample = module.read(files.items[0], {})
    return np.asarray(sample.fetch([0])[0]), float(sample.facts["sampling_frequency"]), list(sample.facts["leads"])


def ecg_rows(leads: Sequence[str], seconds: float) -> list[list[tuple[int, float, float]]]:
    """Which lead stands where: rows of (lead, from second, to second), leads in the file's own order.

    Twelve leads: three rows of four columns, each column its own quarter of the time, and a rhythm strip (II, or the
    first lead) below; other numbers: a row each.
    """
    if len(leads) != 12:
        return [[(k, 0.0, seconds)] for k in range(len(leads))]
    quarter = seconds / 4
    rows = [[(3 * c + r, c * quarter, (c + 1) * quarter) for c in range(4)] for r in range(3)]
    rhythm = list(leads).index("II") if "II" in leads else 0
    return [*rows, [(rhythm, 0.0, seconds)]]


def ecg_chart(signal: np.ndarray[Any, Any], frequency: float, leads: Sequence[str]) -> Chart:
    """ECG on paper: 25 mm/s, 10 mm/mV, 1 mm = 40 ms x 0.1 mV, calibration pulse of 1 mV and 200 ms.

    Args:
        signal: (leads, samples) in mV.
        frequency: samples per second.
        leads: names, in the file's own order.
    """
    seconds = signal.shape[1] / frequency
    rows = ecg_rows(leads, seconds)
    fig = go.Figure()
    for r, row in enumerate(rows):
        base = -_ROW_MV * r
        fig.add_scatter(
            x=[-0.4, -0.3, -0.3, -0.3 + PULSE_S, -0.3 + PULSE_S, 0.0],
            y=[base, base, base + PULSE_MV, base + PULSE_MV, base, base],
            mode="lines",
            line={"color": INK, "width": 1.4},
            name="calibration pulse",
            showlegend=False,
        )
        for lead, start, end in row:
            a, b = round(start * frequency), round(end * frequency)
            fig.add_scatter(
                x=np.arange(a, b) / frequency,
                y=np.round(signal[lead, a:b] + base, 4),
                mode="lines",
                line={"color": INK, "width": 1.1},
                name=leads[lead],
                showlegend=False,
            )
            fig.add_annotation(
                x=start + 0.04,
                y=base + 1.35,
                text=f"<b>{leads[lead]}</b>",
                showarrow=False,
                xanchor="left",
                font={"size": 13, "color": INK},
            )
    low, high = -_ROW_MV * (len(rows) - 1) - 1.7, 1.8
    pink, fine = "#e8a0a0", "#f6dada"
    width = (seconds + 0.5) * MM_PER_S * _PIXELS_PER_MM
    height = (high - low) * MM_PER_MV * _PIXELS_PER_MM
    fig.update_layout(
        width=round(width + 20),
        height=round(height + 20),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        plot_bgcolor="white",
        paper_bgcolor="white",
        template="none",
    )
    both = {
        "showticklabels": False,
        "zeroline": False,
        "showgrid": True,
        "gridcolor": pink,
        "gridwidth": 1,
        "ticks": "",
    }
    fig.update_xaxes(
        range=[-0.45, seconds + 0.05],
        tick0=0,
        dtick=0.2,
        minor={"dtick": 0.04, "showgrid": True, "gridcolor": fine, "ticks": ""},
        **both,
    )
    fig.update_yaxes(
        range=[low, high],
        tick0=0,
        dtick=0.5,
        scaleanchor="x",
        scaleratio=MM_PER_MV / MM_PER_S,
        minor={"dtick": 0.1, "showgrid": True, "gridcolor": fine, "ticks": ""},
        **both,
    )
    table = pd.DataFrame(
        {
            "lead": list(leads),
            "lowest, mV": signal.min(axis=1),
            "highest, mV": signal.max(axis=1),
            "RMS, mV": np.sqrt((signal.astype(np.float64) ** 2).mean(axis=1)),
        }
    )
    return Chart(
        title="ECG",
        figure=fig,
        alt=f"ECG of {len(leads)} leads ({', '.join(leads)}), {seconds:g} s, on paper at 25 mm/s and 10 mm/mV.",
        table=table,
        how="One small square is 40 ms and 0.1 mV, a large one 200 ms and 0.5 mV; the pulse is 1 mV for 200 ms.",
        cannot="It is the record as the run read it; nothing here marks what the model used.",
    )


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Regions of a volume and what they added.

    Attributes:
        centre: (T, 3) in mm.
        side: (3,) in mm.
        values: (T,) signed; NaN where nothing was stored.
        strength: 0 hides them, 1 hides the volume.
    """

    centre: np.ndarray[Any, Any]
    side: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    strength: float

    def on(self, shape: Sequence[int], affine: np.ndarray[Any, Any], *, axis: int, number: int) -> Any:  # noqa: ANN401
        """Mean value of the boxes over each voxel of a slice; NaN outside all of them."""
        back = np.linalg.inv(affine)
        middle = self.centre[:, :3] @ back[:3, :3].T + back[:3, 3]
        half = self.side / np.linalg.norm(affine[:3, :3], axis=0) / 2
        total, count = np.zeros(tuple(shape)), np.zeros(tuple(shape))
        total, count = np.take(total, 0, axis=axis), np.take(count, 0, axis=axis)
        others = [k for k in range(3) if k != axis]
        for at, value in zip(middle, self.values, strict=True):
            if np.isnan(value) or not at[axis] - half[axis] <= number < at[axis] + half[axis]:
                continue
            ends = [(np.ceil(at[k] - half[k] - 1e-6), np.ceil(at[k] + half[k] - 1e-6)) for k in others]
            box = tuple(slice(max(int(a), 0), max(int(b), 0)) for a, b in ends)
            total[box] += value
            count[box] += 1
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def side_mm(options: Mapping[str, Any], facts: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """(3,) side of a patch in mm, as the card and the stored facts have it; 32 mm where the card is silent."""
    spacing = np.array(facts.get("spacing_mm") or (1.0, 1.0, 1.0), dtype=np.float64)
    whole = spacing * np.array(facts.get("volume_shape") or (np.inf,) * 3, dtype=np.float64)
    patch = options.get("patch")
    side = spacing * np.array(patch, dtype=np.float64) if patch else np.array(options.get("patch_mm") or 32.0)
    return np.minimum(np.broadcast_to(side, (3,)).astype(np.float64), whole)


def slice_chart(
    volume: np.ndarray[Any, Any],
    affine: np.ndarray[Any, Any],
    *,
    view: str,
    number: int,
    window: str,
    boxes: Boxes | None = None,
) -> Chart:
    """One orthogonal slice in RAS+ order with orientation letters, and the regions that raise or lower.

    Args:
        volume: (I, J, K) in RAS+ order: axes point right, forward, up.
        affine: (4, 4) index -> mm.
        view: of :data:`VIEWS`.
        number: of the slice.
        window: of :data:`WINDOWS`.
        boxes: regions with their contributions.
    """
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[view]
    step = np.linalg.norm(affine[:3, :3], axis=0)
    plane = np.take(volume, number, axis=axis)
    low, high = WINDOWS[window]
    if low == high:
        low, high = (float(v) for v in np.quantile(volume, [0.01, 0.99]))
    grey = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    # Radiological: the patient's right is at the left of the picture, forward or up is at its top.
    shade = np.repeat((255 * grey)[..., None], 3, axis=-1)
    shown = boxes is not None and boxes.strength > 0
    if boxes is not None and shown:
        shade = _tinted(shade, boxes.on(volume.shape, affine, axis=axis, number=number), boxes)
    turned = shade.transpose(1, 0, 2)
    picture = turned[::-1, ::-1] if view != "sagittal" else turned[::-1]
    across, along = [s for k, s in enumerate(step) if k != axis]
    letters = {"axial": "R L A P", "coronal": "R L S I", "sagittal": "P A S I"}[view].split()
    tall, wide = picture.shape[:2]
    fig = go.Figure(
        go.Image(
            source=as_url(np.clip(np.rint(picture), 0, 255).astype(np.uint8)),
            dx=across,
            dy=along,
            hoverinfo="skip",
        )
    )
    width, height = wide * across, tall * along
    for x, y, letter in (
        (0.02, 0.5, letters[0]),
        (0.98, 0.5, letters[1]),
        (0.5, 0.97, letters[2]),
        (0.5, 0.03, letters[3]),
    ):
        fig.add_annotation(
            x=x,
            y=y,
            xref="paper",
            yref="paper",
            text=f"<b>{letter}</b>",
            showarrow=False,
            font={"color": "#ffd24d", "size": 16},
            bgcolor="rgba(0,0,0,.6)",
        )
    scale = 520 / max(width, height)
    if boxes is not None and shown:
        _legend(fig, boxes)
    fig.update_layout(
        width=round(width * scale) + (150 if shown else 20),
        height=round(height * scale) + 20,
        template="none",
        showlegend=False,
        margin={"l": 10, "r": 140 if shown else 10, "t": 10, "b": 10},
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return Chart(
        title=f"{view.capitalize()} slice {number + 1} of {volume.shape[axis]}",
        figure=fig,
        alt=f"{view} slice {number + 1} of {volume.shape[axis]}, window {window}, with letters {', '.join(letters)}.",
        table=_region_table(boxes)
        if boxes is not None
        else pd.DataFrame({"what": ["lowest", "mean", "highest"], "value": [plane.min(), plane.mean(), plane.max()]}),
        how="R, L, A, P, S, I: the patient's right, left, front, back, upper and lower side."
        + (" Vermilion regions raise, blue ones lower the prediction; pale is little." if shown else ""),
        cannot="For orientation only: not a diagnostic display.",
    )


def _tinted(shade: np.ndarray[Any, Any], value: np.ndarray[Any, Any], boxes: Boxes) -> np.ndarray[Any, Any]:
    largest = float(np.nanmax(np.abs(boxes.values), initial=0.0)) or 1.0
    for one in np.unique(value[~np.isnan(value)]):
        part = boxes.strength * (0.12 + 0.88 * abs(one) / largest)
        here = value == one
        shade[here] = (1 - part) * shade[here] + part * np.array(diverging(one / largest))
    return shade


def _legend(fig: go.Figure, boxes: Boxes) -> None:
    largest = float(np.nanmax(np.abs(boxes.values), initial=0.0)) or 1.0
    fig.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0.0],
            "colorscale": DIVERGING,
            "cmin": -largest,
            "cmax": largest,
            "showscale": True,
            "colorbar": {"title": {"text": "▼ lowers<br>▲ raises"}, "thickness": 16, "tickformat": "+.2g"},
        },
    )


def _region_table(boxes: Boxes) -> pd.DataFrame:
    order = np.argsort(-np.abs(np.nan_to_num(boxes.values)), kind="stable")
    at = {f"{name}, mm": boxes.centre[order, k] for k, name in enumerate(("right", "front", "up"))}
    return pd.DataFrame({"region": order + 1, **at, "contribution": boxes.values[order]})


def read_text(files: RawFiles) -> list[str]:
    """Sentences of the report, as the run read them.

    Raises:
        DataError: the file cannot be read.
    """
    sample = module_of(files.loader, where="review").read(files.items[0], files.options)
    return [str(s) for s in sample.fetch(range(len(sample)))]


def read_volume(files: RawFiles) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(I, J, K) in RAS+ order, and its affine.

    Raises:
        ConfigError: a loader without whole volumes.
        DataError: the series cannot be read.
    """
    module = module_of(files.loader, where="review")
    if not hasattr(module, "read_volume"):
        msg = f"review: the loader {files.loader} gives no whole volumes; show the table of features instead"
        raise ConfigError(msg)
    voxels, affine = module.read_volume(files.items[0], {})
    return voxels[..., 0], affine


__all__ = [
    "VIEWS",
    "WINDOWS",
    "Boxes",
    "ConfigError",
    "DataError",
    "RawFiles",
    "digest",
    "ecg_chart",
    "ecg_rows",
    "raw_files",
    "read_ecg",
    "read_text",
    "read_volume",
    "side_mm",
    "slice_chart",
]
