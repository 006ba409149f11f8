"""Reviews, audit log and export."""

import hashlib
import json
import time

import pandas as pd
import shared
import streamlit as st

from medfuse import exporting
from medfuse.review import reviews
from medfuse.review.log import ChainedLog

shared.require("reviews")
run = shared.run()
st.title("Reviews and export")
who = st.session_state["identity"].name
book = ChainedLog(shared.settings().reviews_file)
asked = st.query_params.get("pid") or st.session_state.get("pid")

if asked and run.explained and asked in run.where:
    patient = shared.patient()
    st.header("Your judgement")
    st.text(f"Patient {patient}")
    if not shared.may("review"):
        st.caption("Your role reads reviews and records none.")
    elif not shared.cleared(patient):
        shared.require_cleared(patient)
    else:
        started = st.session_state.setdefault("started", {}).setdefault(patient, time.time())
        with st.form("judgement", clear_on_submit=True, enter_to_submit=False):
            verdict = st.radio("The prediction", reviews.VERDICTS, index=None, horizontal=True)
            decisive = st.selectbox("Which modality was decisive for you?", ["", *run.modalities])
            text = st.text_area("Remarks (no names of persons)", max_chars=4000)
            sent = st.form_submit_button("Record judgement", type="primary")
        if sent and verdict:
            reviews.record(
                book,
                who=who,
                run=run,
                patient=patient,
                verdict=verdict,
                decisive=decisive,
                text=text,
                seconds=time.time() - started,
            )
            shared.audit("review recorded", {"patient": patient})
            st.success("Recorded. Records are never changed; a later judgement stands beside this one.")
        elif sent:
            st.error("Choose agree, disagree or cannot judge.")
    if shared.may("export"):
        st.header("Export of this patient")
        cleared = shared.cleared(patient) and (
            shared.state(patient)[0] != "withheld" or patient in st.session_state.get("shown_anyway", set())
        )
        if not cleared:
            st.info("After your own estimate, and for a withheld prediction after it was shown.")
        else:
            form = st.radio("As", list(exporting.FORMATS), horizontal=True, key="form")
            if st.button("Prepare export (recorded)"):
                head = ChainedLog(shared.settings().audit_file).head()
                record = exporting.patient_record(run, patient, shared.horizon(), audit_head=head)
                mime, write = exporting.FORMATS[form]
                content = write(record)
                digest = hashlib.sha256(content).hexdigest()
                shared.audit("export", {"patient": patient, "form": form, "file_sha256": digest})
                st.text(f"SHA-256 of the file: {digest}")
                shared.offer(content, mime=mime, name=f"patient-report-{digest[:8]}.{form.lower()}")
else:
    st.info("Choose a patient on the worklist to record a judgement or to export.")

st.header("Reviews")
rows = book.rows()
everybody = shared.may("audit") or shared.may("performance")
known = shared.cleared_of([str(r["patient"]) for r in rows if "patient" in r])
seen = [r for r in rows if r["kind"] == "review" and (r["who"] == who or (everybody and r["patient"] in known))]
hidden = sum(r["kind"] == "review" for r in rows) - len(seen) if everybody else 0
if seen:
    columns = ["at", "who", "patient", "verdict", "decisive", "text", "seconds"]
    shared.table(pd.DataFrame(seen)[columns].tail(100).iloc[::-1])
else:
    st.caption("No review that you may see yet.")
if hidden:
    st.caption(f"{hidden} reviews of patients for whom you have given no estimate of your own are not shown.")
if everybody:
    pairs = reviews.agreement(rows)
    if len(pairs):
        st.subheader("Agreement between readers")
        shared.table(pairs)
    told = [r for r in rows if r.get("patient") in known]
    beside = reviews.estimates(run, told) if run.explained else pd.DataFrame()
    if len(beside) and shared.may("performance"):
        st.subheader("Readers beside the model")
        shared.table(beside)
        st.caption("Brier scores are given from ten patients on whose state at the day is known.")
        shared.table(reviews.scores(beside))

if shared.may("audit"):
    st.header("Audit log")
    log = ChainedLog(shared.settings().audit_file).rows()
    st.text(f"{len(log)} rows, chain unbroken; last hash {log[-1]['sha256'] if log else 'none'}")
    content = [
        {
            "at": r["at"],
            "who": r["who"],
            "kind": r["kind"],
            "what": json.dumps({k: v for k, v in r.items() if k not in {"at", "who", "kind", "previous", "sha256"}}),
        }
        for r in log[-200:][::-1]
    ]
    shared.table(pd.DataFrame(content))
    if st.button("Prepare the whole log (recorded)"):
        shared.audit("log exported", {"rows": len(log)})
        raw = shared.settings().audit_file.read_bytes()
        shared.offer(raw, mime="application/json", name="audit.jsonl")
