"""Evidence: per modality, what the run read of this patient, beside what it contributed."""

import json
from pathlib import Path

import pandas as pd
import shared
import streamlit as st

from medfuse.errors import MedfuseError
from medfuse.review import raw
from medfuse.review.evidence import Evidence, evidence, sets_chart, tiles_chart, values_chart
from medfuse.review.patient import patient_view

shared.require("evidence")
st.title("Evidence")
run, patient, at = shared.run(), shared.patient(), shared.horizon()
shared.require_cleared(patient)
shared.require_shown(patient)
settings = shared.settings()
view = patient_view(run, patient, at)
st.text(f"Patient {patient}")


def pictures(found: Evidence, name: str) -> None:
    """Own files of the patient, where they are at hand and unchanged."""
    root = Path(settings.data_root) if settings.data_root else None
    try:
        files = raw.raw_files(run, patient, name, data_root=root, sources=found.sources)
        if files.reason:
            st.caption(f"Pictures: {files.reason}.")
        elif files.loader == "ecg":
            chart = raw.ecg_chart(*raw.read_ecg(files))
            st.subheader(chart.title)
            st.plotly_chart(
                chart.figure, key=f"ecg_{name}", theme=None, alt=chart.alt, width="content", config={"staticPlot": True}
            )
            st.caption(f"{chart.how} {chart.cannot}")
            with st.expander("Table: ECG"):
                shared.table(chart.table)
        elif files.loader == "slide":
            shared.draw(raw.slide_chart(files, found.facts), key=f"slide_{name}")
        elif files.loader in {"dicom", "nifti"}:
            voxels, affine = raw.read_volume(files)
            row = st.columns(3)
            side = row[0].selectbox("Plane", raw.VIEWS, key=f"plane_{name}")
            window = row[1].selectbox("Window", list(raw.WINDOWS), key=f"window_{name}")
            last = voxels.shape[{"axial": 2, "coronal": 1, "sagittal": 0}[side]]
            number = row[2].slider("Slice", 1, last, (last + 1) // 2, key=f"slice_{name}_{side}") if last > 1 else 1
            shared.draw(
                raw.slice_chart(voxels, affine, view=side, number=number - 1, window=window), key=f"volume_{name}"
            )
        elif files.loader == "text":
            with st.expander("Sentences as the run read them", expanded=True):
                for number, sentence in enumerate(raw.read_text(files), start=1):
                    st.text(f"{number}. {sentence}")
    except MedfuseError as error:
        st.caption(f"Pictures: the file could not be read ({type(error).__name__}).")


def tokens(found: Evidence, name: str) -> None:
    """A modality of files: pictures, places of tokens, facts and stored features."""
    pictures(found, name)
    spatial = found.positions.shape[1] == 2 and len(found.tokens) > 3 and found.unit == "level-0 pixels"
    if spatial:
        feature = st.selectbox("Stored feature", found.names, key=f"feature_{name}")
        shared.draw(tiles_chart(found, feature), key=f"tiles_{name}")
    if found.facts:
        with st.expander("Facts of the file"):
            facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in found.facts.items()}
            shared.table(pd.DataFrame({"fact": list(facts), "value": list(facts.values())}))
    if not all(n.startswith("hash") for n in found.names):
        with st.expander(f"All {len(found.table)} stored features of {len(found.tokens)} tokens"):
            shared.table(found.table)


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
    st.caption(
        "Within this modality: not computed in this run, so no local sum, no completeness gap and no signed overlay "
        "are shown."
    )
    found = evidence(run, patient, name, store_root=Path(settings.store) if settings.store else None)
    if found.reason:
        st.info(found.reason[0].upper() + found.reason[1:] + ".")
    elif found.layout == "columns":
        if len(found.sets):
            shared.draw(sets_chart(found), key=f"sets_{name}")
        if found.table["percentile"].notna().any():
            shared.draw(values_chart(found), key=f"values_{name}")
        with st.expander(f"All {len(found.table)} columns", expanded=len(found.table) <= 25):
            shared.table(found.table.drop(columns="number"), digits=0)
    else:
        tokens(found, name)
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
