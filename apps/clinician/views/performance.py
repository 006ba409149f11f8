"""Performance: how good the model is on patients it never saw, opened by a steward, and what it listens to."""

import shared
import streamlit as st

from medfuse.review import behaviour, performance, prototype_charts, prototypes, stress
from medfuse.review.export import unlock_count


def under_stress() -> None:
    """One stored stress test at a time."""
    st.header("Stress tests")
    found = stress.stored(run)
    if not found:
        st.info("Not computed in this run: medfuse stress RUN --mechanism mcar (and others) stores them.")
        return
    row = st.columns(3)
    name = row[0].selectbox(
        "What was done", list(found), format_func=lambda n: stress.WORDS.get(found[n]["mechanism"], n), key="stress"
    )
    measure = row[1].selectbox("Measure", list(stress.MEASURES), format_func=stress.MEASURES.get, key="measure")
    content = found[name]
    if content["mechanism"] == "subsets":
        shared.draw(stress.subsets_chart(content, measure, model=run.model), key="stress_chart")
        return
    pattern = row[2].selectbox("To which modalities", stress.patterns(content), key=f"pattern_{name}")
    shared.draw(stress.stress_chart(content, pattern, measure, model=run.model), key="stress_chart")


def references() -> None:
    """Prototypes of one fold and modality: size, what became of their training patients, collapse check."""
    st.header("Prototypes")
    folds = [name for name in run.splits if run.explained and prototypes.prototypes_of(run, name) is not None]
    if not folds:
        st.caption(prototypes.why_none(run))
        return
    row = st.columns(3)
    modality = row[0].selectbox("Modality", run.modalities, key="prototype_modality")
    fold = row[1].selectbox("Outer fold", folds, key="prototype_fold")
    words = {False: "not fitted on by the network", True: "all"}
    fitted = row[2].radio("Training patients", [False, True], format_func=words.get, key="prototype_who")
    stored = prototypes.prototypes_of(run, fold)
    st.caption(prototypes.network_sentence(stored, prototypes.agreement(run, stored, fold)))
    sound, said = prototypes.collapse_sentence(stored)
    (st.success if sound else st.warning)(said)
    shared.draw(prototype_charts.sizes_chart(run, stored, modality, at=at, fitted=fitted), key="prototype_sizes")
    lines = prototype_charts.levels_chart(run, stored, modality, fold, fitted=fitted)
    if lines is not None:
        shared.draw(lines, key="prototype_levels")
    elif run.kind == "survival":
        st.caption("Survival by level: no level has 10 such training patients with known times.")


shared.require("performance")
run, at = shared.run(), shared.horizon()
st.title("Performance")
unlocks = unlock_count(shared.settings(), run.id)
held_open = unlocks > 0
st.caption(
    f"{run.metrics['outcome']}: {run.model} carries the claim. Held-out results of this run were opened {unlocks} "
    "times; every opening is in the audit log."
)

if run.kind == "survival":
    inner = performance.risk_groups(run, partition="inner")
    if inner is None:
        st.info("Survival by risk group: not computed, the run keeps no outcomes or inner predictions.")
    else:
        st.header("Inner out-of-fold patients (for tuning)")
        shared.draw(performance.groups_chart(inner, who="inner out-of-fold patients"), key="km_inner", table_open=True)

st.header("Held-out patients")
if not held_open:
    st.warning("Locked: held-out results are opened once by a steward, so that nobody chooses by them unnoticed.")
    if shared.may("unlock"):
        reason = st.text_input("Why are they opened?", max_chars=300, key="why")
        if st.button("Open held-out results (recorded)") and len(reason.strip()) >= 3:
            shared.audit("held-out opened", {"reason": reason.strip(), "run": run.id, "run_sha256": run.sha256})
            st.rerun()
else:
    held = performance.risk_groups(run)
    if held is not None:
        shared.draw(performance.groups_chart(held, who="held-out patients"), key="km", table_open=True)
    curves = run.metrics.get("curves") or {}
    if curves.get("calibration"):
        shared.draw(performance.calibration_chart(curves["calibration"]), key="calibration")
    shared.draw(performance.models_chart(run), key="models")
    shown = f"{at:g}" if at is not None else next(iter(curves.get("decision") or {}), "")
    if shown in (curves.get("decision") or {}):
        shared.draw(performance.decision_chart(curves["decision"][shown], horizon=shown), key="decision")
    for name in run.metrics.get("groups") or {}:
        shared.draw(performance.group_chart(run, name), key=f"group_{name}")
    with st.expander("Every metric of every fold"):
        shared.table(performance.fold_table(run))
    under_stress()

st.header("Model behaviour")
chart = behaviour.behaviour(run, at)
if chart is None:
    st.info("Not computed: this run has not been explained; run medfuse explain on it.")
else:
    shared.draw(chart, key="behaviour")
    pairs = behaviour.pairs(run, at)
    if pairs is not None:
        shared.draw(pairs, key="pairs")
if run.checks:
    st.subheader("Do the explanations say what the model does?")
    shared.table(performance.checks_table(run))
else:
    st.caption("Checks of faithfulness: not run; medfuse explain RUN --check stores them.")

references()
