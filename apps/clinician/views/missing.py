"""Missing data: what is absent, what it could change, whether absence is used, and who is similar."""

import numpy as np
import pandas as pd
import shared
import streamlit as st

from medfuse.review import missing
from medfuse.review.patient import patient_view
from medfuse.review.words import risk_text

shared.require("missing")
st.title("Missing data")
run, patient, at = shared.run(), shared.patient(), shared.horizon()
shared.require_cleared(patient)
shared.require_shown(patient)
view = patient_view(run, patient, at)
threshold = shared.settings().threshold
if run.kind == "continuous":
    st.text(f"Patient {patient}: {view.risk:.2f} [{view.low:.2f} to {view.high:.2f}]")
else:
    st.text(f"Patient {patient}: risk {risk_text(view.risk, view.low, view.high)}; threshold {threshold:.0%}")
st.text(f"Has: {', '.join(view.has) or 'no modality'}\nLacks: {', '.join(view.lacks) or 'nothing'}")

found = missing.added(run, patient, at=at, threshold=threshold)
if not view.lacks:
    st.success("Nothing is missing: this patient has every modality of the model.")
elif found is None:
    st.info(f"What a missing modality could change: {missing.NOT_COMPUTED}.")
else:
    shared.draw(missing.added_chart(found, threshold=threshold, view=view), key="added")
    for answer in found:
        st.text(answer.sentence(threshold))
        if answer.absence:
            st.warning(
                f"{answer.modality}: the model treats its absence as information (mean over donors differs from the "
                "prediction by more than 3 points)."
            )

st.header("Is this patient like the training patients?")
word, reasons = shared.state(patient)
scores = missing.familiarity_table(run, patient)
if scores is None:
    st.info(f"Not checked: {missing.NOT_COMPUTED}.")
else:
    st.text(
        {"familiar": "Familiar: nothing unusual was found."}.get(word, f"{word.capitalize()}: " + "; ".join(reasons))
    )
    scores["percentile"] = [("" if np.isnan(p) else f"{p:.1f}") for p in scores["percentile"]]
    shared.table(pd.DataFrame(scores))
    st.caption(
        "Percentile of unlikeness among training patients; above 99.5 is unusual, two reasons withhold a prediction."
    )

st.header("Similar patients")
near = missing.similar(run, patient)
if near is None:
    st.info(f"Similar patients: {missing.NOT_COMPUTED}.")
elif near.table.empty:
    st.warning(f"No comparable patients: only {near.close} training patients are near enough (5 are needed).")
else:
    st.text(f"This patient resembles about {near.close} training patients; the nearest {len(near.table)} are listed.")
    chart = missing.similar_chart(near, view)
    if chart is not None:
        shared.draw(chart, key="similar")
    shared.table(near.table)
    st.caption("Only training patients of this fold are listed. Neighbours are retrieval, not proof.")
