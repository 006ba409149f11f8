"""What all pages share: who is there, the run, the side bar, and how charts and tables are drawn."""

import base64
import secrets
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import streamlit as st

from medfuse.review.access import Identity, Users, identity_of_claims, open_identity
from medfuse.review.charts import Chart
from medfuse.review.log import ChainedLog
from medfuse.review.settings import ReviewSettings, from_environment
from medfuse.review.source import ReviewRun, open_review
from medfuse.review.words import BANNER, NOT_EXPLAINED
from medfuse.review.worklist import worklist_path

MOST_ROWS = 300
STYLE = """<style>
.block-container{padding-top:3.2rem;max-width:76rem}
.research{border-left:6px solid #D55E00;background:#fdf3ec;color:#1a1a1a;padding:.5rem .9rem;margin-bottom:.6rem}
:focus-visible,label:has(input:focus-visible){outline:3px solid #0072B2 !important;outline-offset:2px}
[data-testid="stCaptionContainer"]{opacity:1 !important}
[data-testid="stCaptionContainer"],[data-testid="stCaptionContainer"] *{color:#4a4a4a !important;opacity:1 !important}
[data-testid="stTable"] td:first-child{white-space:nowrap}
[data-testid="stAlertContainer"] *{color:#1a1a1a}
a.save{display:inline-block;padding:.4rem .9rem;border:2px solid #0072B2;border-radius:.4rem;color:#0b4f79}
[data-testid="stMetricValue"]{font-size:1.6rem}
</style>"""


def banner() -> None:
    """What stands above every page, whoever is there and whatever the settings say."""
    st.html(f'{STYLE}<div class="research" role="note" aria-label="Research use only">{BANNER}</div>')


def settings() -> ReviewSettings:
    """Of this server."""
    return from_environment()


@st.cache_resource(show_spinner=False)
def _run(path: str, outcome: str, sha256: str) -> ReviewRun:  # the hash is a key, so a new run is read anew
    return open_review(path, outcome or None)


@st.cache_resource(show_spinner=False)
def _users(path: str) -> Users:
    return Users(Path(path))


def run() -> ReviewRun:
    """The run of this server, opened once for all sessions: it holds only what is the same for everybody."""
    from medfuse.files import MANIFEST, sha256_file

    s = settings()
    manifest = Path(s.run) / MANIFEST
    stamp = sha256_file(manifest) if manifest.is_file() else ""
    return _run(s.run, st.session_state.get("outcome") or s.outcome or "", stamp)


def audit(kind: str, content: dict[str, object]) -> None:
    """Write one row of the audit log; no row holds a value of a patient beside its key."""
    who = st.session_state.get("identity")
    ChainedLog(settings().audit_file).append(kind, {"who": who.name if who else "nobody", **content})


def audit_once(kind: str, content: dict[str, object]) -> None:
    """Write a row the first time in this session."""
    key = (kind, *sorted((k, str(v)) for k, v in content.items()))
    done = st.session_state.setdefault("audited", set())
    if key not in done:
        audit(kind, content)
        done.add(key)


def identity() -> Identity | None:
    """Who is there, or None: nobody, or a login that has ended."""
    s, now = settings(), time.time()
    if not s.protected:
        return st.session_state.setdefault("identity", open_identity(now))
    if s.oidc_roles:
        found = identity_of_claims(st.user.to_dict(), role_claim=s.oidc_claim, roles=s.oidc_roles, now=now)
        if found is not None:
            found = replace(found, since=st.session_state.setdefault("since", now))
            if found.live(now, st.session_state.get("seen", now)):
                st.session_state["identity"], st.session_state["seen"] = found, now
                audit_once("login", {"roles": sorted(found.roles)})
                return found
        st.session_state.pop("identity", None)
        return None
    who = st.session_state.get("identity")
    seen = st.session_state.get("seen", now)
    if isinstance(who, Identity) and who.live(now, seen):
        st.session_state["seen"] = now
        return who
    if who is not None:
        sign_out("session ended")
    return None


def sign_out(reason: str = "signed out") -> None:
    """Forget everything of this session."""
    audit("sign out", {"reason": reason})
    st.session_state.clear()


def login_page() -> None:
    """The only page of those who are not logged in."""
    s = settings()
    st.title("Log in")
    if s.oidc_roles:
        if st.user.to_dict().get("is_logged_in"):
            st.error("Your login has ended, or gives you no role in this review. Ask your steward.")
        st.button("Log in with your organisation", on_click=st.login)
        return
    with st.form("login", enter_to_submit=True):
        name = st.text_input("Name", max_chars=100, autocomplete="username")
        password = st.text_input("Password", type="password", max_chars=200, autocomplete="current-password")
        sent = st.form_submit_button("Log in")
    if sent:
        who = _users(str(s.users_file)).login(name, password)
        if who is None:
            ChainedLog(s.audit_file).append("login refused", {"who": "nobody"})
            st.error("Name or password is wrong, or there were too many tries; wait five minutes then.")
            return
        st.session_state["identity"], st.session_state["seen"] = who, time.time()
        audit("login", {"roles": sorted(who.roles)})
        st.rerun()


def may(what: str) -> bool:
    """Whether who is there may do something, asked again at the moment it is done."""
    who = identity()
    return who is not None and who.may(what)


def require(what: str) -> None:
    """Stop the page for those who may not see it."""
    if not may(what):
        audit("refused", {"what": what})
        st.error("Your role does not allow this page.")
        st.stop()


def sidebar(who: Identity) -> None:
    """Model, horizon, patient and person."""
    opened = run()
    facts = opened.facts
    with st.sidebar:
        st.markdown("**Model**")
        st.text(
            f"{facts['facts']['cohort']}: {opened.model}\nmedfuse {facts['versions'].get('medfuse', 'unknown')}\n"
            f"trained {str(facts.get('finished', ''))[:10]}\nrun {opened.sha256[:12] or 'not sealed'}"
        )
        if len(opened.outcomes) > 1:
            st.selectbox("Outcome", opened.outcomes, key="outcome")
        if opened.kind == "survival" and opened.horizons:
            labels = {h: f"{h:.0f} days" for h in opened.horizons}
            start = opened.horizons.index(opened.default_horizon or opened.horizons[0])
            chosen = st.selectbox(
                "Horizon", opened.horizons, index=start, format_func=lambda h: labels[h], key="pick_at"
            )
            st.session_state["at"] = chosen
        search = st.text_input("Find a patient (part of the key)", key="find", max_chars=200)
        if search:
            from medfuse.review.worklist import Query, find

            rows, total = find(worklist_file(), Query(search=search))
            keys = rows["patient_id"].to_list()
            if keys:
                pick = st.selectbox(f"{min(total, len(keys))} of {total} keys", keys, key="found")
                if st.button("Open this patient", key="open_found"):
                    open_patient(pick)
            else:
                st.caption("No key holds that.")
        st.divider()
        st.text(f"{who.name}\n{', '.join(sorted(who.roles))}")
        if settings().protected:
            if st.button("Sign out"):
                sign_out()
                if settings().oidc_roles:
                    st.logout()
                st.rerun()
        else:
            st.caption("Open: nobody has to log in, and only this machine can reach the review.")


def worklist_file() -> Path:
    """The worklist's file; made on first use where ``medfuse app`` did not."""
    from medfuse.review.worklist import build_worklist

    path = worklist_path(run(), Path(settings().folder))
    return path if path.is_file() else build_worklist(run(), Path(settings().folder))


def horizon() -> float | None:
    """Chosen in the side bar; None for outcomes without times."""
    opened = run()
    return st.session_state.get("at", opened.default_horizon) if opened.kind == "survival" else None


def column() -> int:
    """Number of the horizon in the worklist."""
    at = horizon()
    return run().horizons.index(at) if at in run().horizons else 0


def open_patient(patient: str) -> None:
    """Go to a patient's page."""
    st.session_state["pid"] = patient
    st.switch_page("views/patient.py", query_params={"pid": patient})


def patient() -> str:
    """The patient of this page: of the address, else the last one of this session; the page stops without one."""
    opened = run()
    if not opened.explained:
        st.warning(NOT_EXPLAINED)
        st.stop()
    asked = st.query_params.get("pid") or st.session_state.get("pid")
    if not asked:
        st.info("Choose a patient on the worklist, or find one by key in the side bar.")
        st.stop()
    if asked not in opened.where:
        st.session_state.pop("pid", None)
        st.error("There is no held-out patient with this key in the run.")
        st.stop()
    st.session_state["pid"] = asked
    st.query_params["pid"] = asked
    audit_once("patient opened", {"patient": asked})
    return str(asked)


def my_rows(kind: str | None = None) -> list[dict[str, object]]:
    """Records of the person who is there."""
    who = st.session_state["identity"].name
    rows = ChainedLog(settings().reviews_file).rows()
    return [r for r in rows if r["who"] == who and (kind is None or r["kind"] == kind)]


def same_case(row: dict[str, object], patient: str) -> bool:
    """Whether a record is of this patient and of the outcome on show."""
    return row.get("patient") == patient and row.get("outcome", run().outcome) == run().outcome


def cleared(patient: str) -> bool:
    """Whether predictions of a patient may be shown to this reader: estimate first, or a reason to skip it."""
    return patient in cleared_of([patient])


def cleared_of(patients: list[str]) -> set[str]:
    """Those of some patients whose predictions may be shown to this reader."""
    if not settings().reader_first:
        return set(patients)
    rows = [r for r in my_rows() if r["kind"] in {"estimate", "skip"}]
    mine = {str(r["patient"]) for r in rows if same_case(r, str(r["patient"]))}
    return mine & set(patients)


def held_out_open() -> bool:
    """Whether a steward has opened the held-out results of this run."""
    from medfuse.review.export import unlock_count

    return unlock_count(settings(), run().id) > 0


def require_cleared(patient: str) -> None:
    """Stop the page where the reader's own estimate comes first."""
    if not cleared(patient):
        st.info("Your own estimate comes first: give it, or a reason to skip it, on the patient page.")
        st.page_link("views/patient.py", label="To the patient page", query_params={"pid": patient})
        st.stop()


def state(patient: str) -> tuple[str, list[str]]:
    """Familiar, unusual, withheld or not checked, with reasons."""
    from medfuse.review.missing import familiarity

    return familiarity(run(), patient)


def require_shown(patient: str) -> None:
    """Stop the page where the prediction is withheld and nobody asked for it; show the amber banner where unusual."""
    from medfuse.review.missing import NOTHING

    word, reasons = state(patient)
    if word == "unusual":
        st.warning("Unusual for the training patients: " + "; ".join(reasons))
    if word != "withheld":
        return
    shown = st.session_state.setdefault("shown_anyway", set())
    if patient in shown:
        st.error("Prediction shown although it would be withheld: " + "; ".join(reasons))
        return
    alone = reasons == [NOTHING]
    st.error(
        "Prediction withheld:"
        if alone
        else "Prediction withheld. This patient is unlike the training patients in two ways or more:"
    )
    for reason in reasons:
        st.text(f"- {reason}")
    if st.button("Show anyway (this is recorded)", key="show_anyway"):
        audit("shown anyway", {"patient": patient, "reasons": reasons})
        shown.add(patient)
        st.rerun()
    st.stop()


def draw(chart: Chart, *, key: str, pan: bool = False, table_open: bool = False) -> None:
    """A chart with its title, sentences and table; one of its own width where it states one."""
    st.subheader(chart.title)
    st.plotly_chart(
        chart.figure,
        key=key,
        theme=None,
        alt=chart.alt,
        width="content" if chart.figure.layout.width else "stretch",
        config={"displaylogo": False, "displayModeBar": False, "scrollZoom": pan},
    )
    st.caption(f"{chart.how} {chart.cannot}")
    if len(chart.table):
        with st.expander(f"Table: {chart.title}", expanded=table_open):
            table(chart.table.head(MOST_ROWS))
            if len(chart.table) > MOST_ROWS:
                st.caption(f"The first {MOST_ROWS} of {len(chart.table)} rows.")


def table(frame: pd.DataFrame, *, digits: int = 3) -> None:
    """A real HTML table, so that screen readers and keyboards reach every cell; text is shown as it is."""
    shown = frame.copy()
    for name in shown.columns:
        if pd.api.types.is_float_dtype(shown[name]):
            shown[name] = [("" if pd.isna(v) else f"{v:.{digits}f}") for v in shown[name]]
        else:
            shown[name] = [plain(v) for v in shown[name]]
    shown.columns = [str(c).replace("_", " ") for c in shown.columns]
    st.table(shown, hide_index=True)


def plain(value: object) -> str:
    """A cell as inert text: st.table reads Markdown, so what Markdown reads is taken apart."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    text = str(value)
    return "".join("\\" + c if c in "\\`*_{}[]()<>#+-!|$:~^&" else c for c in text)


def offer(content: bytes, *, mime: str, name: str) -> None:
    """A link that saves a file in the browser.

    The bytes travel in the session's own connection, as base64 that nothing can break out of: no address of the server
    ever gives them, as the server's own download route would to whoever knows the link.
    """
    body = base64.b64encode(content).decode()
    number = secrets.token_hex(4)
    st.html(
        f'<a id="save-{number}" href="#" download="{name}" class="save">Save {name}</a><script>(function(){{'
        f'const raw=atob("{body}");const bytes=Uint8Array.from(raw,c=>c.charCodeAt(0));'
        f'const link=document.getElementById("save-{number}");'
        f'link.href=URL.createObjectURL(new Blob([bytes],{{type:"{mime}"}}));}})();</script>',
        unsafe_allow_javascript=True,
    )
