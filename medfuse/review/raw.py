"""Pictures of a patient's own files: ECG on paper, slices of a volume, the overview of a slide, sentences of a report.

They need the cohort's files (``--data-root``). A file is shown only when its SHA-256 is the one that the run read.
"""

import base64
import glob
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medfuse.card import jailed
from medfuse.config import read_card
from medfuse.errors import ConfigError, DataError
from medfuse.files import sha256_file
from medfuse.limits import files_below
from medfuse.loaders import module_of
from medfuse.review.charts import INK, Chart
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
    """Files of one patient in one modality, checked against the run, or why there are none."""

    loader: str = ""
    options: Mapping[str, Any]
    items: tuple[tuple[Path, ...], ...] = ()
    reason: str = ""


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
    if known and not {sha256_file(path) for path in found} & known:
        return RawFiles(options={}, reason="the files are not those that the run read (SHA-256 differs)")
    module = module_of(spec.loader, where=f"modality {modality}")
    group = getattr(module, "group", lambda files: [(path,) for path in files])
    return RawFiles(loader=spec.loader, options=dict(spec.options), items=tuple(tuple(i) for i in group(found)))


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


def slice_chart(
    volume: np.ndarray[Any, Any], affine: np.ndarray[Any, Any], *, view: str, number: int, window: str
) -> Chart:
    """One orthogonal slice in RAS+ order with orientation letters.

    Args:
        volume: (I, J, K) in RAS+ order: axes point right, forward, up.
        affine: (4, 4) index -> mm.
        view: of :data:`VIEWS`.
        number: of the slice.
        window: of :data:`WINDOWS`.
    """
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[view]
    step = np.linalg.norm(affine[:3, :3], axis=0)
    plane = np.take(volume, number, axis=axis)
    low, high = WINDOWS[window]
    if low == high:
        low, high = (float(v) for v in np.quantile(volume, [0.01, 0.99]))
    grey = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    # Radiological: the patient's right is at the left of the picture, forward or up is at its top.
    picture = grey.T[::-1, ::-1] if view != "sagittal" else grey.T[::-1]
    across, along = [s for k, s in enumerate(step) if k != axis]
    letters = {"axial": "R L A P", "coronal": "R L S I", "sagittal": "P A S I"}[view].split()
    tall, wide = picture.shape
    fig = go.Figure(
        go.Image(
            source=_png((255 * picture).astype(np.uint8)),
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
    scale = 480 / max(width, height)
    fig.update_layout(
        width=round(width * scale) + 20,
        height=round(height * scale) + 20,
        template="none",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return Chart(
        title=f"{view.capitalize()} slice {number + 1} of {volume.shape[axis]}",
        figure=fig,
        alt=f"{view} slice {number + 1} of {volume.shape[axis]}, window {window}, with letters {', '.join(letters)}.",
        table=pd.DataFrame({"what": ["lowest", "mean", "highest"], "value": [plane.min(), plane.mean(), plane.max()]}),
        how="R, L, A, P, S, I: the patient's right, left, front, back, upper and lower side.",
        cannot="For orientation only: not a diagnostic display.",
    )


def _png(pixels: np.ndarray[Any, Any]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def slide_chart(files: RawFiles, facts: Mapping[str, Any]) -> Chart:
    """Overview of a slide with the tiles that were read, and a scale bar where the pixel size is known.

    Raises:
        DataError: the slide cannot be read.
    """
    module = module_of(files.loader, where="review")
    image = module.picture(files.items[0], files.options)
    pixels = np.asarray(image.convert("RGB"))
    tall, wide = pixels.shape[:2]
    fig = go.Figure(go.Image(source=_png(pixels), hoverinfo="skip"))
    scale = 720 / max(tall, wide)
    fig.update_layout(
        width=round(wide * scale) + 20,
        height=round(tall * scale) + 20,
        template="none",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
    )
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    mpp, size = facts.get("slide_mpp"), facts.get("slide_size")
    if mpp and size:
        microns = float(size[0]) * float(mpp)
        bar = next((b for b in (10000, 5000, 2000, 1000, 500, 200, 100, 50) if b <= microns / 4), 10)
        pixels_of_bar = bar / microns * wide
        fig.add_shape(
            type="rect",
            x0=0.04 * wide,
            x1=0.04 * wide + pixels_of_bar,
            y0=0.955 * tall,
            y1=0.965 * tall,
            fillcolor=INK,
            line={"width": 0},
        )
        fig.add_annotation(
            x=0.04 * wide + pixels_of_bar / 2,
            y=0.93 * tall,
            text=f"<b>{bar} µm</b>",
            showarrow=False,
            font={"color": INK, "size": 14},
            bgcolor="rgba(255,255,255,.8)",
        )
    return Chart(
        title="Overview of the slide",
        figure=fig,
        alt=f"Overview of the slide, {facts.get('slide_size')} pixels at {facts.get('slide_mpp')} µm per pixel; green "
        "frames are the tiles that were read.",
        table=pd.DataFrame({"fact": [str(k) for k in facts], "value": [str(v) for v in facts.values()]}),
        how="Green frames are the tiles that the model read, red ones were left out for pen marks.",
        cannot="An overview for orientation: no deep zoom, and no overlay of contributions.",
    )


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
    "ConfigError",
    "DataError",
    "RawFiles",
    "ecg_chart",
    "ecg_rows",
    "raw_files",
    "read_ecg",
    "read_text",
    "read_volume",
    "slice_chart",
    "slide_chart",
]
