"""The review's figures in Jupyter: the same charts as the pages, one call each, and withheld where they withhold."""

import json
import re

import made
import pytest

import medfuse
from medfuse.errors import CohortError, ConfigError
from medfuse.jupyter import PLOTLY, Shown
from medfuse.pages import BANNER
from medfuse.review.patient import patient_view
from medfuse.review.patient_charts import contributions_chart
from medfuse.review.source import open_review

PATIENT = ("curve", "risks", "contributions", "waterfall", "dividends", "over_time")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made.make_run(tmp_path_factory.mktemp("jupyter") / "run", parts=True)


def displayed(shown, monkeypatch):
    """What a notebook would receive."""
    import IPython.display

    sent = []
    monkeypatch.setattr(IPython.display, "display", lambda what, **_: sent.append(what))
    shown._ipython_display_()
    return sent


def test_one_call_per_figure_of_the_patient_page(run, monkeypatch):
    page = medfuse.review_patient(run, made.key(0))
    for name in PATIENT:
        above, picture, below = displayed(getattr(page, name)(), monkeypatch)
        assert BANNER in above.data
        assert json.dumps(picture[PLOTLY])
        assert picture["text/plain"]
        assert "<table" in below.data


def test_they_are_the_figures_of_the_app(run):
    page = medfuse.review_patient(run, made.key(0))
    opened = open_review(run)
    same = contributions_chart(patient_view(opened, made.key(0)))
    ours = page.contributions().chart
    assert ours.table.equals(same.table)
    assert ours.alt == same.alt


def test_what_is_missing_and_who_is_similar(run):
    page = medfuse.review_patient(run, made.key(1))
    assert set(page.missing().table["modality"]) == {"slide", "genes"}
    assert isinstance(page.similar(), Shown | str)
    with pytest.raises(ConfigError, match="has every modality"):
        medfuse.review_patient(run, made.key(0)).missing()


def test_a_withheld_prediction_is_withheld_here_too(run):
    with pytest.raises(CohortError, match="withheld") as caught:
        medfuse.review_patient(run, made.key(5))
    assert made.key(5) not in str(caught.value)
    assert medfuse.review_patient(run, made.key(5), withheld=True).familiar == "withheld"


def test_the_cohort_page(run):
    cohort = medfuse.review_cohort(run)
    for shown in (cohort.models(), cohort.calibration(), cohort.decision(), cohort.group("site"), cohort.modalities()):
        assert shown.chart.alt
    assert cohort.importance_svg().startswith("<svg")
    assert len(cohort.checks()) == 0, "this run was not checked"
    with pytest.raises(ConfigError, match="no subgroups 'sight'"):
        cohort.group("sight")
    with pytest.raises(ConfigError, match="no horizon"):
        cohort.decision("1")


def test_outcomes_without_times_say_so(tmp_path):
    path = made.make_run(tmp_path / "run", kind="binary")
    cohort, page = medfuse.review_cohort(path), medfuse.review_patient(path, made.key(0))
    assert page.risks().chart.alt
    for call in (page.curve, cohort.calibration, cohort.decision):
        with pytest.raises(ConfigError, match="survival outcome"):
            call()


def test_an_unexplained_run_says_what_to_do(tmp_path):
    path = made.make_run(tmp_path / "run", explained=False)
    with pytest.raises(ConfigError, match="medfuse explain"):
        medfuse.review_cohort(path).modalities()


def test_pages_of_their_own_make_no_request(run):
    page = medfuse.review_patient(run, made.key(0))
    text = page.contributions().to_html()
    assert BANNER in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    assert BANNER in page.to_html()
