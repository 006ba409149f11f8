"""Evidence: per modality, what the run read of this patient, beside what it and its parts contributed."""

import json
from pathlib import Path

import pandas as pd
import shared
import streamlit as st

from medfuse.errors import MedfuseError
from medfuse.review import ecg_paper, prototype_charts, prototypes, raw, slices, slides, units
from medfuse.review.evidence import Evidence, evidence, sets_chart, tiles_chart, values_chart
from medfuse.review.patient import patient_view
from medfuse.review.patient_charts import unit_of
from medfuse.review.timeline import timeline, timeline_chart, with_contributions

shared.require("evidence")
st.title("Evidence")
run, patient, at = shared.run(), shared.patient(), shared.horizon()
shared.require_cleared(patient)
shared.require_shown(patient)
settings = shared.settings()
view = patient_view(run, patient, at)
root = Path(settings.data_root) if settings.data_root else None
st.text(f"Patient {patient}")


def within(name: str) -> units.Units | None:
    """Stored contributions of the parts of a modality, with sums and badge."""
    kinds = units.kinds_of(run, patient, name)
    kind = kinds[0] if kinds else ""
    if len(kinds) > 1:
        label = {k: "as the model reads it" if k == "default" else k.replace("_", " ") for k in kinds}
        kind = st.radio("Parts", kinds, format_func=lambda k: label[k], horizontal=True, key=f"kind_{name}")
    found = units.units_of(run, patient, name, kind) if kind else None
    if found is None:
        st.caption(
            f"Within {name}: not computed in this run, so no local sum, no completeness gap and no signed overlay are "
            f"shown. medfuse explain RUN --within {name} stores them."
        )
        return None
    shared.draw(units.units_chart(found, scale=unit_of(view)), key=f"units_{name}_{kind}")
    st.text(found.sentence())
    text = f"Checks of these values: {found.badge}."
    (st.success if found.badge.startswith("passed") and "not" not in found.badge else st.caption)(text)
    if found.horizon is not None and at is not None and abs(found.horizon - at) > 1e-6:
        st.warning(f"These parts were computed for day {found.horizon:g}; the page shows day {at:g}.")
    else:
        bars = view.contributions.set_index("modality")["contribution"]
        wrong = found.disagreement(float(bars[name]), meaning=view.meaning)
        if wrong:
            st.warning(wrong)
    return found


def alike(name: str) -> None:
    """Stored prototypes of a modality: how like, the nearest training patients, and what became of their like."""
    stored = prototypes.prototypes_of(run, view.fold)
    chart = None if stored is None else prototype_charts.likeness_chart(stored, patient, name)
    if stored is None or chart is None:
        return
    shared.draw(chart, key=f"alike_{name}")
    st.caption(prototypes.network_sentence(stored))
    number = prototypes.nearest_of(stored, patient, name)
    st.text(f"Training patients nearest to prototype {stored.names[number]} of {name}")
    shared.table(prototypes.exemplar_table(run, stored, name, number))
    became = prototype_charts.nearest_curve_chart(run, stored, patient, name, view.fold)
    if became is not None:
        shared.draw(became, key=f"became_{name}")
    else:
        group = prototypes.group(stored, name, [number])
        st.text(f"What became of {prototypes.who(group.fitted)}: {prototypes.outcome_text(run, group.keys, at)}.")


def strength(name: str) -> float:
    """How much of the picture the overlay covers."""
    return st.slider("Overlay", 0.0, 1.0, 0.55, 0.05, key=f"strength_{name}", help="0 hides it")


def one_item(files: raw.RawFiles, name: str) -> raw.RawFiles:
    """The slide, series or record to look at, where there are several."""
    count = len(files.items)
    number = st.selectbox("Item", range(count), format_func=lambda k: f"{k + 1} of {count}", key=f"item_{name}")
    return files.item(int(number or 0))


def placed(found: Evidence, parts: units.Units | None, files: raw.RawFiles) -> tuple[object, object]:
    """Positions of the tokens of this item, and what each added; None without them."""
    values = None if parts is None else units.token_values(parts, found.positions)
    number = files.numbers[0] if len(files.items) == 1 and files.numbers else None
    if number is None or values is None:
        return None, None
    own = found.item == number
    return found.positions[own], values[own]


def slide(files: raw.RawFiles, found: Evidence, parts: units.Units | None, name: str) -> None:
    """A viewer: whole slide to level 0, moved by buttons, with the tiles' signed contributions."""
    slide = slides.header(files.items[0], files.options.get("frames"))
    steps = slides.scales(slide)
    state = st.session_state.setdefault(f"place_{patient}_{name}_{files.numbers[0]}", {})
    wide, tall = slide.sizes[0]
    now = slides.Place(scale=state.get("scale", steps[0]), x=state.get("x", wide / 2), y=state.get("y", tall / 2))
    corners, values = placed(found, parts, files)
    overlay = None
    if corners is not None:
        side = slides.tile_side(found.facts, corners)
        overlay = slides.Overlay(corners=corners, side=side, values=values, strength=strength(name))
    now = slides.clamped(slide, move(now, steps, overlay, key=name))
    state.update(scale=now.scale, x=now.x, y=now.y)
    mpp = found.facts.get("slide_mpp") or slide.mpp
    shared.draw(slides.slide_view_chart(slide, now, overlay, mpp=mpp), key=f"slide_{name}", pan=True)


def move(now: slides.Place, steps: list[int], overlay: slides.Overlay | None, *, key: str) -> slides.Place:
    """Buttons for magnification and place; every one is reached by keyboard."""
    row = st.columns(7, vertical_alignment="bottom")
    level = steps.index(now.scale) if now.scale in steps else 0
    scale, x, y = now.scale, now.x, now.y
    if row[0].button("Zoom in", key=f"in_{key}", disabled=level + 1 >= len(steps)):
        scale = steps[level + 1]
    if row[1].button("Zoom out", key=f"out_{key}", disabled=level == 0):
        scale = steps[level - 1]
    if row[2].button("Whole slide", key=f"all_{key}"):
        scale = steps[0]
    far = scale / 2
    for cell, word, dx, dy in zip(row[3:], ("Left", "Right", "Up", "Down"), (-1, 1, 0, 0), (0, 0, -1, 1), strict=True):
        if cell.button(word, key=f"{word}_{key}"):
            x, y = x + dx * slides.WIDE * far, y + dy * slides.TALL * far
    if overlay is not None:
        tiles = slides.tile_table(overlay)
        pick = pd.concat([tiles[tiles["contribution"] > 0].head(8), tiles[tiles["contribution"] < 0].head(8)])
        names = {int(r["tile"]): f"tile {int(r['tile'])}: {r['contribution']:+.4f}" for _, r in pick.iterrows()}
        cells = st.columns([3, 1, 3], vertical_alignment="bottom")
        tile = cells[0].selectbox("Tiles that raise or lower most", list(names), format_func=names.get, key=f"t_{key}")
        if cells[1].button("Go there", key=f"go_{key}") and tile is not None:
            x, y = (float(v) + overlay.side / 2 for v in overlay.corners[int(tile) - 1, :2])
            scale = steps[-1]
    return slides.Place(scale=scale, x=x, y=y)


def volume(files: raw.RawFiles, found: Evidence, parts: units.Units | None, name: str) -> None:
    """Orthogonal slices with the regions' contributions."""
    voxels, affine = raw.read_volume(files)
    row = st.columns(4)
    side = row[0].selectbox("Plane", slices.VIEWS, key=f"plane_{name}")
    unit = found.facts.get("unit")
    windows = [w for w in slices.WINDOWS if unit == "HU" or w == "as read"]
    window = row[1].selectbox("Window", windows, key=f"window_{name}")
    last = voxels.shape[{"axial": 2, "coronal": 1, "sagittal": 0}[side]]
    with row[2]:
        number = st.slider("Slice", 1, last, (last + 1) // 2, key=f"slice_{name}_{side}") if last > 1 else 1
    positions, values = placed(found, parts, files)
    boxes = None
    if positions is not None:
        with row[3]:
            boxes = slices.Boxes(
                centre=positions,
                side=slices.side_mm(files.options, found.facts),
                values=values,
                strength=strength(name) if len(values) > 1 else 0.0,
            )
        if len(values) == 1:
            st.caption("The model read this volume as one region, so an overlay would say nothing of where.")
    chart = slices.slice_chart(voxels, affine, view=side, number=number - 1, window=window, boxes=boxes)
    shared.draw(chart, key=f"volume_{name}")


def report(files: raw.RawFiles, parts: units.Units | None) -> None:
    """Sentences, with what each added."""
    sentences = raw.read_text(files)
    value = {} if parts is None else dict(zip(parts.table["number"], parts.table["contribution"], strict=True))
    st.subheader("Sentences as the run read them")
    rows = []
    for number, sentence in enumerate(sentences):
        told = value.get(number)
        mark = "" if told is None else f"{'▲' if told > 0 else '▼'} {told:+.3f}"
        rows.append({"number": str(number + 1), "contribution": mark, "sentence": sentence})
    shared.table(pd.DataFrame(rows))


def ecg(files: raw.RawFiles, name: str) -> None:
    """The record on paper."""
    chart = ecg_paper.ecg_chart(*raw.read_ecg(files))
    st.subheader(chart.title)
    st.plotly_chart(
        chart.figure, key=f"ecg_{name}", theme=None, alt=chart.alt, width="content", config={"staticPlot": True}
    )
    st.caption(f"{chart.how} {chart.cannot}")
    with st.expander("Table: ECG"):
        shared.table(chart.table)


def pictures(found: Evidence, parts: units.Units | None, name: str) -> None:
    """Own files of the patient, where they are at hand and unchanged."""
    try:
        files = raw.raw_files(run, patient, name, data_root=root, sources=found.sources)
        if files.reason:
            st.caption(f"Pictures: {files.reason}.")
            return
        if len(files.items) > 1:
            files = one_item(files, name)
        if files.loader == "ecg":
            ecg(files, name)
        elif files.loader == "slide":
            slide(files, found, parts, name)
        elif files.loader in {"dicom", "volume"}:
            volume(files, found, parts, name)
        elif files.loader == "text":
            report(files, parts)
    except MedfuseError as error:
        st.caption(f"Pictures: the file could not be read ({type(error).__name__}).")


def tokens(found: Evidence, parts: units.Units | None, name: str) -> None:
    """A modality of files: pictures, places of tokens, facts and stored features."""
    pictures(found, parts, name)
    spatial = found.positions.shape[1] == 2 and len(found.tokens) > 3 and found.unit == "level-0 pixels"
    if spatial and st.toggle("Show a stored feature over the tokens", key=f"features_{name}"):
        feature = st.selectbox("Stored feature", found.names, key=f"feature_{name}")
        shared.draw(tiles_chart(found, feature), key=f"tiles_{name}")
    if found.facts:
        with st.expander("Facts of the file"):
            facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in found.facts.items()}
            shared.table(pd.DataFrame({"fact": list(facts), "value": list(facts.values())}))
    if not all(n.startswith("hash") for n in found.names):
        with st.expander(f"All {len(found.table)} stored features of {len(found.tokens)} tokens"):
            shared.table(found.table)


def columns(found: Evidence, parts: units.Units | None, name: str) -> None:
    """A modality of columns: timeline of events, gene sets, unusual values, and every column with what it added."""
    told = timeline(run, patient, name, data_root=root, sources=found.sources)
    if told is not None and told.reason:
        st.caption(f"Timeline: {told.reason}.")
    elif told is not None:
        signed, why = with_contributions(told, units.units_of(run, patient, name, "event"))
        shared.draw(timeline_chart(signed, scale=unit_of(view)), key=f"timeline_{name}")
        if why:
            st.caption(why)
    if len(found.sets):
        shared.draw(sets_chart(found), key=f"sets_{name}")
    if found.table["percentile"].notna().any():
        shared.draw(values_chart(found), key=f"values_{name}")
    table = found.table.drop(columns="number")
    if parts is not None and parts.kind == "column":
        added = parts.table.set_index("unit")["contribution"]
        table["contribution"] = [f"{added[c]:+.4f}" if c in added.index else "" for c in table["column"]]
    with st.expander(f"All {len(table)} columns", expanded=len(table) <= 25):
        shared.table(table, digits=0)


def tab(name: str) -> None:
    """One modality."""
    if name in view.lacks:
        st.info(f"{name} is absent for this patient; it has no part in the prediction.")
        st.page_link("views/missing.py", label="What it could change", query_params={"pid": patient})
        return
    row = view.contributions[view.contributions["modality"] == name].iloc[0]
    text = f"Contribution {row['contribution']:+.3f} [{row['low']:+.3f} to {row['high']:+.3f}]"
    if run.kind != "continuous":
        text += f", × {row['ratio']:.2f}, {100 * row['points']:+.1f} points of risk"
    st.text(text)
    parts = within(name)
    alike(name)
    found = evidence(run, patient, name, store_root=Path(settings.store) if settings.store else None)
    if found.reason:
        st.info(found.reason[0].upper() + found.reason[1:] + ".")
    elif found.layout == "columns":
        columns(found, parts, name)
    else:
        tokens(found, parts, name)
    provenance(found)


def provenance(found: Evidence) -> None:
    """Keys and hashes of what is shown."""
    if found.key:
        with st.expander("Where this comes from"):
            rows = [("modality in the store", found.key), *found.sources.items()]
            shared.table(pd.DataFrame(rows[:50], columns=["source", "SHA-256"]))


# Only the chosen modality is read: hidden tabs would cost the page its second.
first = (view.has or run.modalities)[0]
name = st.segmented_control("Modality", run.modalities, default=first, key="modality") or first
st.header(name)
tab(name)
