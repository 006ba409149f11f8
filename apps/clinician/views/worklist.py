"""Worklist: who is there, what they have, and whose review is due."""

import pandas as pd
import shared
import streamlit as st

from medfuse.explain.familiarity import STATES
from medfuse.review.words import risk_text
from medfuse.review.worklist import PAGE, Query, availability, counts, find

shared.require("worklist")
run, path, column = shared.run(), shared.worklist_file(), shared.column()
st.title("Worklist")


@st.cache_data(show_spinner=False)
def summary(sha256: str, outcome: str, file: str) -> tuple[dict[str, str], pd.DataFrame]:  # keys
    """Counts and patterns of the run: the same for everybody."""
    return counts(run, path), availability(run, path)


totals, patterns = summary(run.sha256, run.outcome, str(path))
for cell, (label, value) in zip(st.columns(len(totals)), totals.items(), strict=True):
    cell.metric(label, value)

bar = st.columns([3, 2, 2, 2, 2])
address = st.query_params
search = bar[0].text_input("Key holds", value=address.get("q", ""), max_chars=200, key="w_search")
modalities = ["", *run.modalities]
asked = address.get("has", "")
modality = bar[1].selectbox(
    "Has", modalities, index=modalities.index(asked) if asked in modalities else 0, format_func=lambda m: m or "any"
)
groups = ["", "low", "middle", "high"]
blinded = shared.settings().reader_first
group = bar[2].selectbox("Risk group", groups, format_func=lambda g: g or "any", disabled=blinded)
group = "" if blinded else group  # whatever the browser sends
states = ["", *STATES]
familiar = bar[3].selectbox("Like the training patients", states, format_func=lambda s: s or "any")
due = bar[4].selectbox("Review", ["", "due", "done"], format_func=lambda d: d or "any")
for name, value in {"q": search, "has": modality}.items():
    if value:
        st.query_params[name] = value
    elif name in st.query_params:
        del st.query_params[name]

done = sorted({str(r["patient"]) for r in shared.my_rows("review")})
place = (search, modality, group, familiar, due)
if st.session_state.get("w_place") != place:
    st.session_state["w_place"], st.session_state["w_page"] = place, 0
page = int(st.session_state.get("w_page", 0))
query = Query(search=search, group=group, familiar=familiar, review=due, modality=modality, page=page)
rows, total = find(path, query, column=column, done=done)

shown = pd.DataFrame({"Key": rows["patient_id"], "Review": rows["review"]})
for name in [c for c in rows.columns if c not in {"patient_id", "review", "fold", "available", "count", "familiar"}]:
    if not name.startswith(("risk_", "low_", "high_", "group_")):
        shown[name.capitalize()] = rows[name]
shown["Modalities"] = rows["available"]
at = shared.horizon()
title = f"Risk by day {at:.0f}" if at is not None else "Prediction"
if f"risk_{column}" in rows:
    seen = shared.cleared_of(rows["patient_id"].to_list())
    open_case = [p in seen for p in rows["patient_id"]]
    figures = zip(rows[f"risk_{column}"], rows[f"low_{column}"], rows[f"high_{column}"], strict=True)
    texts = [risk_text(*f) if run.kind != "continuous" else f"{f[0]:.2f} [{f[1]:.2f} to {f[2]:.2f}]" for f in figures]
    held = rows["familiar"] == "withheld"
    shown[title] = [
        "withheld" if h else t if o else "after your own estimate"
        for t, o, h in zip(texts, open_case, held, strict=True)
    ]
    shown["Risk group"] = [
        g if o and not h else "" for g, o, h in zip(rows[f"group_{column}"], open_case, held, strict=True)
    ]
else:
    st.info("No risk is shown: this run has not been explained, and a risk never stands without its interval.")
shown["Like training"] = rows["familiar"]

st.caption(
    f"{total:,} patients; reviews that are due come first, then by key. Page {page + 1} of {max(1, -(-total // PAGE))}."
)
shared.table(shown)
keys = rows["patient_id"].to_list()
left, middle, right = st.columns([4, 1, 1], vertical_alignment="bottom")
pick = left.selectbox("Open a patient of this page", keys, key=f"w_pick_{page}") if keys else None
if pick is not None and left.button("Open patient", type="primary", key="w_open"):
    shared.open_patient(pick)
if middle.button("Previous page", disabled=page == 0):
    st.session_state["w_page"] = page - 1
    st.rerun()
if right.button("Next page", disabled=(page + 1) * PAGE >= total):
    st.session_state["w_page"] = page + 1
    st.rerun()

st.subheader("Which modalities are there together")
st.caption(
    "Patterns of available modalities among held-out patients; those below ten patients say little on their own."
)
shared.table(patterns.head(20))
