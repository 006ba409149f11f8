"""The evidence page on real files: a demonstration's cohort, store and explained run, through Streamlit's AppTest."""

import numpy as np
import pytest
from made import settings, spec_of

from medfuse.demo import demo
from medfuse.explaining import explain_run
from medfuse.review.launch import app_file, prepare
from medfuse.review.patient import patient_view
from medfuse.review.settings import ENVIRONMENT, to_environment
from medfuse.review.source import open_review
from medfuse.within import Ask, explain_within

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demonstration of 60 patients, one of whom is explained within three modalities."""
    folder = tmp_path_factory.mktemp("demo")
    demo(folder, patients=60)
    places = {"data_root": folder / "cohort", "store_root": folder / "store"}
    explain_run(folder / "run", **places)
    run = open_review(folder / "run")
    patient = next(p for p in run.where if not patient_view(run, p).lacks)
    for modality, kind in (("pathology", None), ("ehr", None), ("ehr", "event"), ("reports", None)):
        explain_within(folder / "run", modality, ask=Ask(patients=(patient,), units=kind), **places)
    return folder, patient


@pytest.fixture
def page(made, monkeypatch):
    folder, patient = made
    more = {"data_root": str(folder / "cohort"), "store": str(folder / "store")}
    one = settings(folder / "run", reader_first=False, **more)
    prepare(one)
    monkeypatch.setenv(ENVIRONMENT, to_environment(one))
    at = AppTest.from_file(str(app_file()), default_timeout=120)
    at.query_params["pid"] = patient
    at.run()
    at = at.switch_page("views/evidence.py").run()
    for button in at.button:
        if "Show anyway" in button.label:
            button.click().run()
            break
    return at


def shown(at: AppTest) -> str:
    assert not at.exception
    assert not [e.value for e in at.error if "went wrong" in e.value]
    kinds = ("header", "subheader", "text", "caption", "warning", "success", "info")
    return "\n".join(str(e.value) for kind in kinds for e in at.get(kind))


def test_every_modality_shows_its_own_files(page) -> None:
    wanted = {
        "pathology": "Slide",
        "imaging": "Axial slice",
        "ecg": "25 mm/s|One small square is 40 ms",
        "ehr": "Timeline",
        "expression": "Gene sets",
        "mutations": "mutations",
        "reports": "Sentences as the run read them",
    }
    for name, words in wanted.items():
        page.session_state["modality"] = name
        page.run()
        said = shown(page)
        assert any(w in said for w in words.split("|")), name
        assert "could not be read" not in said, name
        assert "not those that the run read" not in said, name


def test_E7_parts_sum_on_the_page_and_the_slide_is_seen_at_level_0(page) -> None:
    page.session_state["modality"] = "pathology"
    page.run()
    said = shown(page)
    assert "sums to the contribution" in said
    assert "Checks of these values: not checked" in said

    def slide() -> dict:
        return next(s for s in map(spec_of, page.get("plotly_chart")) if s["data"][0]["type"] == "image")

    whole = slide()
    marker = whole["data"][1]["marker"]
    assert marker["cmin"] == -marker["cmax"]
    assert whole["data"][0]["dx"] > 1
    while not next(b for b in page.button if b.label == "Zoom in").disabled:
        next(b for b in page.button if b.label == "Zoom in").click().run()
    near = slide()
    assert near["data"][0]["dx"] == 1
    assert near["data"][0]["source"] != whole["data"][0]["source"]
    painted = near["data"][0]["source"]
    next(s for s in page.slider if s.label == "Overlay").set_value(0.0).run()
    assert slide()["data"][0]["source"] != painted
    next(b for b in page.button if b.label == "Go there").click().run()
    assert slide()["data"][0]["dx"] == 1
    values = np.array([float(t.split(":")[1]) for t in whole["data"][1]["hovertext"]])
    assert np.ptp(values) > 0


def test_E7_events_on_the_timeline_say_what_they_added(page) -> None:
    """Single events of a summary: their values stand on the timeline, and sum to the contribution."""
    page.session_state["modality"] = "ehr"
    page.run()
    said = shown(page)
    assert "▲ raises and ▼ lowers" in said
    charts = [spec_of(c) for c in page.get("plotly_chart")]
    marks = [t for s in charts for t in s["data"] if "triangle" in str(t.get("marker", {}).get("symbol", ""))]
    assert marks
    next(r for r in page.radio if r.label == "Parts").set_value("event").run()
    assert "days before" in str([spec_of(c) for c in page.get("plotly_chart")])
    assert "sums to the contribution" in shown(page)
