"""Patient: the reader's own estimate first, then what the model says, how sure it is and what it rests on."""

import pandas as pd
import shared
import streamlit as st

from medfuse.review import missing, patient_charts, prototype_charts, prototypes
from medfuse.review.log import ChainedLog
from medfuse.review.patient import patient_view, risk_table, summary, time_summary
from medfuse.review.performance import index_at, patient_bound
from medfuse.review.words import MEANING, risk_text

shared.require("patient")
st.title("Patient")
run = shared.run()
patient = shared.patient()
at = shared.horizon()
one, _ = run.locate(patient)
view = patient_view(run, patient, at)

people = [("Key", patient), ("Outer fold", f"{view.fold} (its model never saw this patient)")]
row = pd.read_parquet(shared.worklist_file(), filters=[("patient_id", "==", patient)])
known = {"patient_id", "fold", "available", "count", "familiar"}
extra = [c for c in row.columns if c not in known and not c.startswith(("risk_", "low_", "high_", "group_"))]
people += [(c.capitalize(), str(row[c].iloc[0])) for c in extra if len(row)]
people += [("Has", ", ".join(view.has) or "no modality"), ("Lacks", ", ".join(view.lacks) or "nothing")]
if not extra:
    people.append(("Site, sex, age band", "not in the run; start with --data-root to see what the card names"))
shared.table(pd.DataFrame(people, columns=["identity", "value"]))

st.subheader("Your own estimate")
mine = [r for r in shared.my_rows("estimate") + shared.my_rows("skip") if shared.same_case(r, patient)]
book = ChainedLog(shared.settings().reviews_file)
who = st.session_state["identity"].name
if mine:
    last = mine[-1]
    said = (
        f"You estimated {last['percent']} % by day {last['day']}, confidence {last['confidence']}."
        if last["kind"] == "estimate" and run.kind == "survival"
        else f"You estimated {last['percent']} %, confidence {last['confidence']}."
        if last["kind"] == "estimate"
        else "You skipped the estimate; the reason is on record."
    )
    st.text(said)
else:
    when = f" by day {view.at:.0f}" if run.kind == "survival" else ""
    st.caption(
        f"Before you see the model: how likely is {run.outcome}{when}? Estimates are kept and cannot be changed."
    )
    with st.form("estimate", enter_to_submit=False):
        guess = st.number_input("Your estimate, 0 to 100 %", min_value=0, max_value=100, value=None, step=1)
        sure = st.radio("How sure are you?", ["unsure", "fairly sure", "sure"], horizontal=True, index=None)
        reason = st.text_input("Or skip it, with a reason", max_chars=500)
        kept = st.form_submit_button("Keep and go on", type="primary")
    if kept and guess is not None and sure:
        day = round(float(view.at), 2) if run.kind == "survival" and view.at is not None else 0
        record = {"who": who, "patient": patient, "percent": int(guess), "confidence": sure, "day": day}
        book.append("estimate", {**record, "run": run.id, "run_sha256": run.sha256, "outcome": run.outcome})
        shared.audit("estimate kept", {"patient": patient})
        st.rerun()
    elif kept and len(reason.strip()) >= 3:
        record = {"who": who, "patient": patient, "reason": reason.strip()}
        book.append("skip", {**record, "run": run.id, "run_sha256": run.sha256, "outcome": run.outcome})
        shared.audit("estimate skipped", {"patient": patient})
        st.rerun()
    elif kept:
        st.error("Give an estimate and how sure you are, or a reason to skip it.")
if not shared.cleared(patient):
    st.stop()
shared.require_shown(patient)

st.subheader("What the model says")
for sentence in summary(view):
    st.text(sentence)
if run.kind == "continuous":
    spread = risk_table(run, patient).iloc[0]
    st.text(f"Predicted value {spread['risk']:.2f} [{spread['low']:.2f} to {spread['high']:.2f}]")
else:
    cells = st.columns(3)
    cells[0].metric("Risk [interval]", risk_text(view.risk, view.low, view.high))
    index = index_at(run, at) if shared.held_out_open() else None
    locked = "unknown" if shared.held_out_open() else "locked"
    cells[1].metric("Calibration ratio at this horizon", locked if index is None else f"{index:.2f}")
    near = missing.similar(run, patient)
    resembles = "not computed" if near is None else f"about {near.close} training patients"
    cells[2].metric("Resembles", resembles)
facts = time_summary(run, patient)
facts.append(("Lower bound on time, 90 %", patient_bound(run, patient)))
if run.kind == "survival":
    shared.table(pd.DataFrame(facts, columns=["what", "value"]))

if run.kind == "survival":
    own = next(((float(r["day"]), r["percent"] / 100) for r in mine if r["kind"] == "estimate"), None)
    shared.draw(patient_charts.curve_chart(run, view, own_estimate=own), key="curve")
if run.kind != "continuous":
    shared.draw(patient_charts.risks_chart(run, patient), key="risks")

gate = missing.unsupported(run, patient)
if gate is None:
    st.caption("Whether each subset of modalities is calibrated: " + missing.NOT_COMPUTED + ".")
elif gate:
    st.warning(
        f"Bars are hatched: {len(gate)} of the subsets of modalities that they rest on have no sound record among "
        "training patients."
    )
    with st.expander("Why"):
        shared.table(pd.DataFrame({"subset and reason": gate}))
shared.draw(patient_charts.contributions_chart(view, unsupported=bool(gate)), key="bars")
st.caption(MEANING[view.meaning])
if run.checks:
    passed = sum(c["passed"] is True for c in run.checks)
    failed = [c["name"] for c in run.checks if c["passed"] is False]
    text = f"Checks of the explanations of this run: {passed} passed"
    (st.warning if failed else st.success)(text + (f", {len(failed)} failed: {', '.join(failed)}." if failed else "."))
else:
    st.caption("Checks of faithfulness: not run; medfuse explain RUN --check stores them.")
shared.draw(patient_charts.waterfall_chart(view), key="waterfall")
shared.draw(patient_charts.dividends_chart(view), key="dividends")
if run.kind == "survival":
    shared.draw(patient_charts.over_time_chart(view), key="time")
alike = prototypes.prototypes_of(run, view.fold)
if alike is not None:
    label = int(view.at or 0) if run.kind == "multiclass" else 0
    terms = prototype_charts.terms_chart(alike, patient, label)
    if terms is not None:
        shared.draw(terms, key="terms")
        st.text(prototypes.sum_sentence(alike, patient, label))
        st.caption(prototypes.network_sentence(alike, prototypes.agreement(run, alike, view.fold)))
        shared.table(prototypes.sums_table(alike, patient, label))
    st.page_link("views/evidence.py", label="Whom this patient is like, per modality", query_params={"pid": patient})
links = st.columns(3)
links[0].page_link("views/evidence.py", label="Evidence of this patient", query_params={"pid": patient})
links[1].page_link("views/missing.py", label="What is missing", query_params={"pid": patient})
links[2].page_link("views/reviews.py", label="Record your judgement", query_params={"pid": patient})
