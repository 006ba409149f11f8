"""Pages of the review without a browser: Streamlit's AppTest."""

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import key, make_run, settings, spec_of

from medfuse.files import seal
from medfuse.review import slices
from medfuse.review.access import Users
from medfuse.review.launch import app_file, prepare
from medfuse.review.log import ChainedLog
from medfuse.review.patient import patient_view, summary
from medfuse.review.settings import ENVIRONMENT, ReviewSettings, to_environment
from medfuse.review.source import open_review
from medfuse.review.words import BANNER

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

PAGES = ("worklist", "patient", "evidence", "missing", "performance", "reviews")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start the app on a run of this test; returns a function that opens a page."""

    def begin(one: ReviewSettings):
        prepare(one)
        monkeypatch.setenv(ENVIRONMENT, to_environment(one))

        def page(name: str, patient: str | None = None, at: AppTest | None = None) -> AppTest:
            test = at or AppTest.from_file(str(app_file()), default_timeout=60)
            if patient is not None:
                test.query_params["pid"] = patient
            test.run()
            return test if name == "worklist" else test.switch_page(f"views/{name}.py").run()

        return page

    return begin


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pages") / "run", parts=True)


def text_of(at: AppTest) -> str:
    """Everything that a page says: text, tables, metrics, and charts with their alternative texts."""
    found = [
        str(e.value)
        for kind in (
            "title",
            "header",
            "subheader",
            "text",
            "caption",
            "markdown",
            "warning",
            "error",
            "info",
            "success",
            "html",
        )
        for e in at.get(kind)
    ]
    found += [f"{m.label} {m.value}" for m in at.metric]
    found += [t.value.to_csv() for t in at.table]
    found += [c.proto.spec for c in at.get("plotly_chart")]
    return "\n".join(found)


def sound(at: AppTest) -> None:
    assert not at.exception
    assert not [e.value for e in at.error if "went wrong" in e.value]


def every_page_is_sound(start, run, patient: str) -> None:
    """One after the other, as a reader goes through them."""
    at = start(settings(run, reader_first=False))("worklist", patient)
    for name in PAGES:
        if name != "worklist":
            at = at.switch_page(f"views/{name}.py").run()
        sound(at)
        assert at.title, name
        assert BANNER in text_of(at), name


@pytest.mark.parametrize("patient", [key(0), key(1), key(2)], ids=["full", "single modality", "no modality"])
def test_D1_D6_every_page_renders_with_its_banner(start, full, patient) -> None:
    every_page_is_sound(start, full, patient)


@pytest.mark.parametrize(
    "more",
    [{"events": False}, {"patients": 1, "folds": 1}, {"explained": False}, {"patients": 0, "folds": 1}],
    ids=["no events", "one patient", "not explained", "nobody"],
)
def test_D1_cohorts_at_the_edge(start, tmp_path, more) -> None:
    every_page_is_sound(start, make_run(tmp_path / "run", **more), key(0))


@pytest.mark.parametrize("kind", ["binary", "continuous", "multiclass"])
def test_D1_other_kinds_of_outcome(start, tmp_path, kind) -> None:
    every_page_is_sound(start, make_run(tmp_path / "run", kind=kind, patients=20), key(0))


def test_D2_the_page_shows_the_numbers_of_the_view(start, full) -> None:
    said = text_of(start(settings(full, reader_first=False))("patient", key(0)))
    view = patient_view(open_review(full), key(0))
    for sentence in summary(view):
        assert sentence in said
    for _, row in view.contributions.iterrows():
        assert f"{row['contribution']:+.3f}" in said


def test_D3_every_risk_on_a_page_has_its_interval(start, full) -> None:
    page = start(settings(full, reader_first=False))
    work = page("worklist").table[0].value
    risks = [c for c in work.columns if str(c).startswith("Risk by")]
    cells = [str(v) for v in work[risks[0]]]
    assert any("%" in c for c in cells)
    assert all(re.search(r"% \\?\[[\d.]+ to [\d.]+\\?\]", c) for c in cells if "%" in c)
    charts = [spec_of(c) for c in page("patient", key(0)).get("plotly_chart")]
    curve = next(s for s in charts if any(t.get("name") == "this patient" for t in s["data"]))
    assert any(t.get("fill") == "toself" for t in curve["data"])


def test_D4_the_three_rows_stand_under_the_curves(start, full) -> None:
    at = start(settings(full, reader_first=False))("performance")
    tables = [t.value for t in at.table]
    shown = next(t for t in tables if "risk group" in t.columns)
    assert list(shown["patients"][:3]) == ["at risk", "censored", "events"]
    days = [c for c in shown.columns if str(c).startswith("day")]
    numbers = shown[days].astype(int).groupby(shown["risk group"]).sum()
    assert (numbers.nunique(axis=1) == 1).all()


def test_D6_no_setting_removes_the_banner() -> None:
    assert not [f for f in ReviewSettings.__dataclass_fields__ if "banner" in f or "research" in f]
    assert "shared.banner()" in Path(app_file()).read_text()


def test_D7_nothing_of_the_prediction_before_the_own_estimate(start, full) -> None:
    one = replace(settings(full), folder=str(full.parent / "first"))
    page = start(one)
    view = patient_view(open_review(full), key(0))
    for name in ("patient", "evidence", "missing", "reviews", "worklist"):
        at = page(name, key(0))
        sound(at)
        said = text_of(at)
        assert f"{100 * view.risk:.1f} %" not in said, name
        assert not at.get("plotly_chart"), name
    at = page("patient", key(0))
    at.number_input[0].set_value(35)
    next(r for r in at.radio if "sure" in r.label).set_value("sure")
    next(b for b in at.button if b.label == "Keep and go on").click().run()
    sound(at)
    assert f"{100 * view.risk:.1f} %" in text_of(at)
    (row,) = ChainedLog(one.reviews_file).rows()
    assert (row["kind"], row["percent"], row["patient"]) == ("estimate", 35, key(0))
    other = page("patient", key(10))
    assert not other.get("plotly_chart")
    next(t for t in other.text_input if "skip" in t.label).set_value("known patient")
    next(b for b in other.button if b.label == "Keep and go on").click().run()
    assert other.get("plotly_chart")


def test_D7_two_models_that_disagree_look_alike_before_the_own_estimate(start, tmp_path) -> None:
    said = []
    for name, times in (("one", 1.0), ("two", 3.0)):
        run = make_run(tmp_path / name / "run", parts=True)
        for path in (run / "explanations").rglob("*.npy"):
            if path.stem in {"values", "replicates", "draws", "risk"}:
                np.save(path, (np.load(path) * times).astype(np.load(path).dtype))
        metrics = (run / "metrics.json").read_text()
        (run / "metrics.json").write_text(metrics.replace('"ratio": 1.1', f'"ratio": {1.1 * times:.2f}'))
        seal(run, {"format_version": 1, "kind": "run"})
        one = settings(run)
        for who, kind in (("bob", "review"), ("bob", "estimate")):  # what others said must not tell either
            more = {"verdict": "agree" if times == 1.0 else "disagree", "decisive": "", "text": "", "seconds": 1}
            row = {"who": who, "patient": key(0), "percent": 10 * times, "day": 500.0, "confidence": "sure"}
            ChainedLog(one.reviews_file).append(kind, {**row, **more, "run_sha256": open_review(run).sha256})
        page = start(one)
        pages = [text_of(page(where, key(0))) for where in ("patient", "evidence", "missing", "reviews", "worklist")]
        said.append([re.sub(r"\b[0-9a-f]{12,64}\b|\d{4}-\d\d-\d\dT\S+", "#", text) for text in pages])
    assert said[0] == said[1]


def test_D16_the_patient_page_keeps_held_out_calibration_locked(start, full) -> None:
    one = replace(settings(full, reader_first=False), folder=str(full.parent / "ratio"))
    page = start(one)

    def shown() -> str:
        return next(m.value for m in page("patient", key(0)).metric if "Calibration" in m.label)

    assert shown() == "locked"
    opened = {"who": "ada", "reason": "final", "run_sha256": open_review(full).sha256}
    ChainedLog(one.audit_file).append("held-out opened", opened)
    assert shown() == "1.10"


def test_D8_withheld_until_asked_for_and_recorded(start, full) -> None:
    one = replace(settings(full, reader_first=False), folder=str(full.parent / "withheld"))
    page = start(one)
    at = page("patient", key(5))
    risk = f"{100 * patient_view(open_review(full), key(5)).risk:.1f} %"
    assert not at.get("plotly_chart")
    assert risk not in text_of(at)
    work = page("worklist").table[0].value
    row = work[work["Key"].str.replace("\\", "") == key(5)].iloc[0]
    assert "withheld" in list(row)
    assert risk not in " ".join(map(str, row))
    next(b for b in at.button if "Show anyway" in b.label).click().run()
    assert at.get("plotly_chart")
    assert risk in text_of(at)
    assert [r["patient"] for r in ChainedLog(one.audit_file).rows() if r["kind"] == "shown anyway"] == [key(5)]


@pytest.mark.parametrize("reruns", [24, pytest.param(500, marks=pytest.mark.slow)])
def test_D9_sessions_never_see_each_others_patient(start, full, reruns) -> None:
    one = replace(settings(full, reader_first=False), folder=str(full.parent / "apart"))
    page = start(one)
    run = open_review(full)
    patients = [key(k) for k in (0, 3, 6, 10)]
    sessions = {p: page("patient", p) for p in patients}
    told = {p: summary(patient_view(run, p))[0] for p in patients}
    assert len(set(told.values())) == 4
    rng = np.random.default_rng(0)
    for p in rng.choice(patients, reruns):
        said = text_of(sessions[p].run())
        assert told[p] in said
        assert not [q for q in patients if q != p and told[q] in said]


def test_D9_200_pairs_of_large_arrays_that_differ_in_one_cell_have_their_own_pictures() -> None:
    # 600,000 values: Streamlit's own cache would take a fixed sample of them as its key.
    rng = np.random.default_rng(0)
    volume = np.zeros((1000, 600, 1), dtype=np.float32)

    def picture() -> str:
        return slices.slice_chart(volume, np.eye(4), view="axial", number=0, window="bone").figure.data[0].source

    before = picture()
    for _ in range(200):
        at = (int(rng.integers(1000)), int(rng.integers(600)), 0)
        volume[at] = 500.0
        after = picture()
        assert after != before
        volume[at] = 0.0
    assert picture() == before


def test_D9_keys_of_caches_are_text_alone() -> None:
    import ast

    for path in Path(app_file()).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("cache_" in ast.unparse(d) for d in node.decorator_list):
                kinds = [ast.unparse(a.annotation) for a in node.args.args if a.annotation is not None]
                assert kinds == ["str"] * len(node.args.args), f"{path}: {node.name}"


def test_D10_without_login_no_page_says_anything(start, full) -> None:
    one = replace(settings(full, reader_first=False), folder=str(full.parent / "users"))
    Users(one.users_file).add("ada", "correct horse battery", frozenset({"reader"}))
    page = start(one)
    at = page("worklist", key(0))
    assert [t.value for t in at.title] == ["Log in"]
    assert "P0000" not in text_of(at).replace(BANNER, "")
    at.text_input[0].set_value("ada")
    at.text_input[1].set_value("wrong password")
    next(b for b in at.button if b.label == "Log in").click().run()
    assert at.error
    at.text_input[0].set_value("ada")
    at.text_input[1].set_value("correct horse battery")
    next(b for b in at.button if b.label == "Log in").click().run()
    assert [t.value for t in at.title] == ["Worklist"]
    with pytest.raises(ValueError, match="Could not find"):
        at.switch_page("views/performance.py")  # not a page of readers
    at.session_state["identity"] = replace(at.session_state["identity"], expires=time.time() - 1)
    at.run()
    assert [t.value for t in at.title] == ["Log in"]
    assert "P0000" not in text_of(at)
    kinds = [r["kind"] for r in ChainedLog(one.audit_file).rows()]
    assert kinds == ["start", "login refused", "login", "sign out"]


def test_D12_keys_with_markup_and_other_scripts_render_as_text(start, tmp_path) -> None:
    names = {0: "<script>alert(1)</script>", 3: "مريض-١", 4: "[x](javascript:alert(1))", 6: "A" * 300}
    page = start(settings(make_run(tmp_path / "run", names=names, patients=12), reader_first=False))
    work = page("worklist")
    sound(work)
    keys = list(work.table[0].value["Key"])
    assert "\\<script\\>" in " ".join(keys)
    assert "\\[x\\]\\(javascript" in " ".join(keys)
    for name in names.values():
        for where in ("patient", "reviews", "missing"):
            at = page(where, name)
            sound(at)
            assert not [h for h in at.get("html") if "<script" in str(h.value).lower()]
            assert not [m for m in at.markdown if name in m.value]


def test_D16_held_out_results_are_locked_until_a_steward_opens_them(start, full) -> None:
    one = replace(settings(full, reader_first=False), folder=str(full.parent / "lock"))
    page = start(one)
    at = page("performance")
    assert any("Locked" in w.value for w in at.warning)
    titles = [s.value for s in at.subheader]
    assert "Calibration" not in titles
    next(t for t in at.text_input if "Why" in t.label).set_value("final evaluation").run()
    next(b for b in at.button if "Open held-out" in b.label).click().run()
    assert "Calibration" in [s.value for s in at.subheader]
    rows = [r for r in ChainedLog(one.audit_file).rows() if r["kind"] == "held-out opened"]
    assert [r["reason"] for r in rows] == ["final evaluation"]
    assert "opened 1 times" in text_of(page("performance"))


def test_D17_an_error_shows_a_number_and_nothing_else(start, full, monkeypatch) -> None:
    page = start(replace(settings(full, reader_first=False), folder=str(full.parent / "broken")))
    from medfuse.review import patient_charts

    def fail(*_: object, **__: object) -> None:
        msg = f"secret {full} {key(0)}"
        raise RuntimeError(msg)

    monkeypatch.setattr(patient_charts, "risks_chart", fail)
    at = page("patient", key(0))
    (error,) = at.error
    assert re.fullmatch(r".*this number: [0-9a-f]{8}", error.value)
    assert not at.exception
    assert "secret" not in text_of(at)
    assert "Traceback" not in text_of(at)
    row = ChainedLog(full.parent / "broken" / "audit.jsonl").rows()[-1]
    assert (row["kind"], row["exception"], row["code"]) == ("error", "RuntimeError", error.value[-8:])


def test_reviews_and_exports_are_recorded(start, full) -> None:
    one = replace(settings(full, reader_first=False), folder=str(full.parent / "records"))
    page = start(one)
    at = page("reviews", key(0))
    next(r for r in at.radio if r.label == "The prediction").set_value("disagree")
    at.text_area[0].set_value("=1+1 <b>bold</b>")
    next(b for b in at.button if b.label == "Record judgement").click().run()
    sound(at)
    (row,) = ChainedLog(one.reviews_file).rows()
    assert (row["verdict"], row["patient"], row["text"]) == ("disagree", key(0), "=1+1 <b>bold</b>")
    next(b for b in at.button if b.label.startswith("Prepare export")).click().run()
    sound(at)
    kinds = [r["kind"] for r in ChainedLog(one.audit_file).rows()]
    assert "review recorded" in kinds
    assert "export" in kinds
    assert isinstance(at.table[0].value, pd.DataFrame)
