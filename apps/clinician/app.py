"""The clinical review: ``medfuse app RUN`` starts this script. Pages draw what ``medfuse.review`` computes."""

import logging
import secrets
import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
if str(HERE) not in sys.path:  # the pages share `shared.py`, which is no package
    sys.path.insert(0, str(HERE))

import shared  # noqa: E402  # found through the line above

PAGES = {
    "worklist": "Worklist",
    "patient": "Patient",
    "evidence": "Evidence",
    "missing": "Missing data",
    "performance": "Performance",
    "reviews": "Reviews and export",
}

st.set_page_config(page_title="medfuse review", layout="wide", initial_sidebar_state="expanded")
shared.banner()
who = shared.identity()
if who is None:
    # Under every address, so that a link to a patient leads there after the login.
    doors = [st.Page(shared.login_page, title="Log in", url_path=name, default=name == "worklist") for name in PAGES]
    st.navigation(doors, position="hidden").run()
else:
    pages = [
        st.Page(HERE / "views" / f"{name}.py", title=title, default=name == "worklist")
        for name, title in PAGES.items()
        if who.may(name)
    ]
    page = st.navigation(pages)
    try:
        shared.sidebar(who)
        page.run()
    except Exception as error:  # whatever it is, nobody's browser sees it
        code = secrets.token_hex(4)
        logging.getLogger("medfuse.review").error("error %s: %s", code, type(error).__name__, exc_info=error)
        shared.audit("error", {"code": code, "exception": type(error).__name__})
        st.error(f"Something went wrong; nothing was changed. Tell your steward this number: {code}")
