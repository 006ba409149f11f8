"""Views of the review against the command line, against survfit's numbers, and on cohorts at the edge."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from contrast import contrast
from made import HORIZONS, MODALITIES, key, make_run

from medfuse import exporting
from medfuse.errors import CohortError, ConfigError
from medfuse.explain.distribution import Distribution
from medfuse.explaining import contribution_table, default_horizon, lines, read_coalitions
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.palette import BLUE, GREY, INK, SERIES, VERMILION
from medfuse.review import behaviour, missing, patient_charts, performance, worklist
from medfuse.review.ecg_paper import ecg_chart, ecg_rows
from medfuse.review.patient import patient_view, risk_table, summary, time_summary, value_at
from medfuse.review.slices import slice_chart
from medfuse.review.source import open_review
from medfuse.review.words import MEANING
from medfuse.targets import Survival


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_review(make_run(tmp_path_factory.mktemp("views") / "run", parts=True))


# --- D2: the same numbers as the command line -------------------------------------------------------------------------


def test_D2_contributions_and_risks_equal_those_of_medfuse_explain(run) -> None:
    found = read_coalitions(run.path)
    assert default_horizon(run.run, found) == run.default_horizon
    for day in HORIZONS:
        told = contribution_table(found, horizon=day).set_index("patient_id")
        for patient in (key(0), key(1), key(7), key(23)):
            ours = patient_view(run, patient, day).contributions
            theirs = told.loc[[patient]]
            assert list(ours["modality"]) == list(theirs["modality"])
            for name in ("contribution", "low", "high", "ratio", "points"):
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-9)
            assert patient_view(run, patient, day).risk == pytest.approx(float(theirs["risk"].iloc[0]), abs=1e-12)


def test_D2_the_page_prints_what_the_command_line_prints(run) -> None:
    printed = lines(read_coalitions(run.path), horizon=500.0, patient=key(0))
    view = patient_view(run, key(0), 500.0)
    risk = re.search(r"risk ([\d.]+)%", printed[0])
    assert risk is not None
    assert f"{risk.group(1)} %" in summary(view)[0]
    for line, (_, row) in zip(printed[1:], view.contributions.iterrows(), strict=True):
        shown = f"{row['contribution']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        assert shown in line
        assert f"x {row['ratio']:.2f}" in line
        assert f"{100 * row['points']:+.1f} points" in line


def test_D2_the_curve_is_the_stored_prediction(run) -> None:
    frame = run.predictions
    for patient in (key(3), key(12)):
        stored = frame[(frame["partition"] == "held_out") & (frame["patient_id"] == patient)].iloc[0]
        curve = patient_view(run, patient).curve
        at = np.searchsorted(stored["times"], curve["day"].to_numpy()[1:])
        np.testing.assert_allclose(curve["survival"].to_numpy()[1:], np.asarray(stored["survival"])[at], atol=1e-9)


def test_D2_export_and_worklist_hold_the_same_numbers(run, tmp_path) -> None:
    record = json.loads(exporting.FORMATS["JSON"][1](exporting.patient_record(run, key(0), 500.0)))
    view = patient_view(run, key(0), 500.0)
    assert record["risk"]["value"] == view.risk
    assert [c["contribution"] for c in record["contributions"]] == list(view.contributions["contribution"])
    path = worklist.build_worklist(run, tmp_path)
    rows, _ = worklist.find(path, worklist.Query(search=key(0)), column=run.horizons.index(500.0))
    assert rows[f"risk_{run.horizons.index(500.0)}"].iloc[0] == pytest.approx(view.risk, abs=1e-12)
    assert rows[f"low_{run.horizons.index(500.0)}"].iloc[0] == pytest.approx(view.low, abs=1e-12)


def test_contributions_and_steps_sum_to_the_prediction(run) -> None:
    for patient in run.where:
        view = patient_view(run, patient, 500.0)
        assert view.nobody + view.contributions["contribution"].sum() == pytest.approx(view.link, abs=1e-9)
        assert view.nobody + view.steps["step"].sum() == pytest.approx(view.link, abs=1e-9)
        assert view.nobody + view.dividends["dividend"].sum() == pytest.approx(view.link, abs=1e-9)
        assert tuple(view.contributions["modality"]) == view.has


def test_value_of_a_subset_is_the_stored_one(run) -> None:
    risk, low, high = value_at(run, key(0), ("clinical",), 500.0)
    assert low <= risk <= high
    assert value_at(run, key(0), MODALITIES, 500.0)[0] == pytest.approx(patient_view(run, key(0), 500.0).risk)
    assert value_at(run, key(0), (), 500.0)[0] == pytest.approx(patient_view(run, key(0), 500.0).nobody_risk)


@pytest.mark.parametrize("meaning", ["recalibrated", "as the model says", None])
def test_what_the_contributions_are_is_said_as_stored(tmp_path, meaning):
    path = make_run(tmp_path / "run", patients=10)
    for index in path.glob("explanations/death/*/index.json"):
        content = json.loads(index.read_text()) | ({"meaning": meaning} if meaning else {})
        index.write_text(json.dumps(content))
    run = open_review(path)
    view = patient_view(run, key(0))
    assert view.meaning == (meaning or "as the model says")
    assert MEANING[view.meaning]
    assert exporting.patient_record(run, key(0))["contributions_are"] == view.meaning
    assert {c.meaning for c in read_coalitions(path)} == {view.meaning}


# --- E5, D3 -----------------------------------------------------------------------------------------------------------


def test_E5_an_absent_modality_has_no_bar(run) -> None:
    view = patient_view(run, key(1), 500.0)
    assert view.has == ("clinical",)
    chart = patient_charts.contributions_chart(view)
    assert list(chart.figure.data[0].y) == ["clinical"]
    assert set(view.lacks) == {"slide", "genes"}


def test_D3_no_risk_without_interval_and_no_curve_without_band(run) -> None:
    for patient in (key(0), key(1), key(2)):
        view = patient_view(run, patient, 500.0)
        assert view.low - 1e-6 <= view.risk <= view.high + 1e-6  # replicates are stored as float32
        table = risk_table(run, patient)
        assert (table["low"] <= table["risk"] + 1e-6).all()
        assert (table["risk"] <= table["high"] + 1e-6).all()
        curve = patient_charts.curve_chart(run, view).figure
        bands = [t for t in curve.data if t.fill == "toself"]
        assert len(bands) == 1
        assert patient_charts.risks_chart(run, patient).figure.data[0].error_y.array is not None


def test_the_curve_ends_where_few_are_followed(run) -> None:
    for fold in run.splits:
        until = run.supported_until(fold)
        time = run.survival_of(tuple(run.splits[fold]["train"])).time
        assert (time >= until).sum() >= 10
        later = time[time > until]
        assert not len(later) or (time >= later.min()).sum() < 10
    assert patient_view(run, key(0)).curve["day"].max() <= run.supported_until("0")


# --- D4 ---------------------------------------------------------------------------------------------------------------


def test_D4_at_risk_censored_and_events_sum_to_n_and_equal_survfit() -> None:
    # R 4.x, survival: aml <- survival::aml; summary(survfit(Surv(time, status) ~ x, aml), times = c(0, 10, 20, 30, 40))
    # Maintained: n.risk 11 10 7 5 3; surv at 31: 0.4909; Nonmaintained: n.risk 12 8 6 4 2 and 0.1944 at 33.
    time = np.array(
        [9, 13, 13, 18, 23, 28, 31, 34, 45, 48, 161, 5, 5, 8, 8, 12, 16, 23, 27, 30, 33, 43, 45], dtype=float
    )
    event = np.array([1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=bool)
    group = np.repeat([0, 2], [11, 12])
    ticks = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    table = performance.numbers_at(Survival(event=event, time=time), group, ticks)
    days = [c for c in table.columns if c.startswith("day")]
    low, high = (table[table["risk group"] == g].set_index("patients")[days] for g in ("low", "high"))
    assert list(low.loc["at risk"]) == [11, 10, 7, 5, 3]
    assert list(high.loc["at risk"]) == [12, 8, 6, 4, 2]
    assert (low.sum() == 11).all()
    assert (high.sum() == 12).all()
    assert float(kaplan_meier(time[:11], event[:11])(np.array([31.0]))[0]) == pytest.approx(0.4909, abs=5e-5)
    assert float(kaplan_meier(time[11:], event[11:])(np.array([33.0]))[0]) == pytest.approx(0.1944, abs=5e-5)


def test_D4_curves_of_the_figure_are_the_estimate(run) -> None:
    found = performance.risk_groups(run)
    assert found is not None
    chart = performance.groups_chart(found, who="held-out patients")
    for k in np.unique(found.group):
        own = found.group == k
        curve = kaplan_meier(found.survival.time[own], found.survival.event[own])
        trace = next(t for t in chart.figure.data if t.name == f"{worklist.GROUPS[int(k)]} ({own.sum()})")
        np.testing.assert_allclose(trace.y[1:], curve(np.asarray(trace.x[1:])))
        assert trace.line.shape == "hv"
    days = [c for c in found.table.columns if c.startswith("day")]
    sums = found.table.groupby("risk group")[days].sum()
    assert (sums.nunique(axis=1) == 1).all()


# --- D5, D14, charts --------------------------------------------------------------------------------------------------


def test_D5_ecg_paper_has_its_scale_its_pulse_and_the_leads_in_order() -> None:
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    signal = np.random.default_rng(0).normal(0, 0.2, (12, 5000)).astype(np.float32)
    fig = ecg_chart(signal, 500.0, leads).figure
    x, y, m = fig.layout.xaxis, fig.layout.yaxis, fig.layout.margin
    per_second = (fig.layout.width - m.l - m.r) / (x.range[1] - x.range[0])
    per_millivolt = (fig.layout.height - m.t - m.b) / (y.range[1] - y.range[0])
    assert per_millivolt / per_second == pytest.approx(10 / 25, rel=0.01)
    assert y.scaleratio == pytest.approx(10 / 25)
    assert per_second == pytest.approx(25 * 96 / 25.4, rel=0.01)
    assert (x.dtick, x.minor.dtick, y.dtick, y.minor.dtick) == (0.2, 0.04, 0.5, 0.1)
    pulses = [t for t in fig.data if t.name == "calibration pulse"]
    assert len(pulses) == 4
    assert max(pulses[0].y) - min(pulses[0].y) == 1.0
    assert pulses[0].x[3] - pulses[0].x[2] == pytest.approx(0.2)
    rows = ecg_rows(leads, 10.0)
    by_column = [rows[r][c][0] for c in range(4) for r in range(3)]
    assert [leads[k] for k in by_column] == leads
    assert rows[3] == [(1, 0.0, 10.0)]
    assert len(ecg_rows(["I", "II"], 10.0)) == 2


def test_slices_put_the_patients_right_at_the_left() -> None:
    volume = np.zeros((4, 6, 5), dtype=np.float32)
    volume[3] = 100.0  # the patient's right is at index 0 of RAS+, left... index grows to the right hand side
    chart = slice_chart(volume, np.eye(4), view="axial", number=2, window="as read")
    letters = [a.text for a in chart.figure.layout.annotations]
    assert letters == ["<b>R</b>", "<b>L</b>", "<b>A</b>", "<b>P</b>"]
    import base64
    import io

    from PIL import Image

    source = chart.figure.data[0].source.split(",", 1)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
    assert picture.shape == (6, 4, 3)
    # RAS+: index 3 is furthest to the patient's Right, which stands at the left of the picture.
    assert picture[:, 0].min() == 255
    assert picture[:, 1:].max() == 0


def _lab(colour: str, matrix: np.ndarray) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(matrix @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        # Machado, Oliveira, Fernandes (2009), severity 1.0: protanopia, deuteranopia
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    ],
    ids=["normal", "protanopia", "deuteranopia"],
)
def test_D14_series_differ_for_all_eyes(matrix) -> None:
    labs = [_lab(c, matrix) for c in SERIES]
    for i in range(len(labs)):
        for j in range(i):
            assert np.linalg.norm(labs[i] - labs[j]) >= 15


def _marks(fig: Any) -> set[str]:
    """Colours of lines, edges and symbols of a figure; faint areas beside them are no marks."""
    found: set[str] = set()
    for trace in fig.data:
        for part in (trace.line if "line" in trace else None, trace.marker if "marker" in trace else None):
            colour = None if part is None else part.color
            found |= {c for c in ([colour] if isinstance(colour, str) else colour or ()) if isinstance(c, str)}
    return found


def test_D14_marks_stand_out_from_their_background() -> None:
    assert contrast("#000000") == pytest.approx(21)
    for colour in (*SERIES, INK, GREY):
        assert contrast(colour) >= 3, colour
    for colour in (INK, GREY):  # also of text
        assert contrast(colour) >= 4.5, colour


def test_D13_every_chart_has_an_alternative_text_a_table_and_two_sentences(run) -> None:
    view = patient_view(run, key(0), 500.0)
    lacking = next(p for p in run.where if len(patient_view(run, p).lacks) == 1)
    other = patient_view(run, lacking, 500.0)
    near = missing.similar(run, key(0))
    held = performance.risk_groups(run)
    assert near is not None
    assert held is not None
    charts = [
        patient_charts.curve_chart(run, view, own_estimate=(500.0, 0.3)),
        patient_charts.risks_chart(run, key(0)),
        patient_charts.contributions_chart(view, unsupported=True),
        patient_charts.waterfall_chart(view),
        patient_charts.dividends_chart(view),
        patient_charts.over_time_chart(view),
        missing.added_chart(missing.added(run, lacking, at=500.0, threshold=0.5) or [], threshold=0.5, view=other),
        missing.similar_chart(near, view),
        performance.groups_chart(held, who="all"),
        performance.calibration_chart(run.metrics["curves"]["calibration"]),
        performance.models_chart(run),
        performance.group_chart(run, "site"),
        performance.decision_chart(run.metrics["curves"]["decision"]["500"], horizon="500"),
        behaviour.behaviour(run, 500.0),
    ]
    for chart in charts:
        assert chart is not None
        assert len(chart.alt) > 20
        assert chart.how
        assert chart.cannot
        assert len(chart.table) > 0, chart.title
        assert all(contrast(colour) >= 3 for colour in _marks(chart.figure)), chart.title  # D14
    assert set().union(*(_marks(chart.figure) for chart in charts if chart)) >= {BLUE, VERMILION}


# --- missing data, neighbours, withheld -------------------------------------------------------------------------------


def test_D8_two_reasons_withhold_and_one_makes_unusual(run) -> None:
    assert missing.familiarity(run, key(5))[0] == "withheld"
    assert missing.familiarity(run, key(10))[0] == "unusual"
    assert missing.familiarity(run, key(2)) == ("withheld", [missing.NOTHING])  # no modality at all
    assert missing.familiarity(run, key(0)) == ("familiar", [])


def test_D8_all_who_say_who_is_unusual_go_by_one_bound_and_the_same_words(run, monkeypatch) -> None:
    part = run.part("0", "distribution")
    everywhere = Distribution(**part)
    for alarm, fewest in ((99.5, 20), (99.85, 20), (40.0, 20), (99.5, 31)):
        monkeypatch.setattr("medfuse.explain.familiarity.ALARM", alarm)
        monkeypatch.setattr("medfuse.explain.familiarity.FEWEST", fewest)
        ids = run.explained["0"].patient_ids
        said = [missing.familiarity(run, patient) for patient in ids]
        assert worklist.states(run, "0") == everywhere.state == tuple(word for word, _ in said)
        assert [everywhere.reasons(row) for row in range(len(ids))] == [why for _, why in said]
        assert len({word for word, _ in said}) > 1


def test_D8_who_has_no_modality_has_the_population_level_withheld_and_named_so(tmp_path) -> None:
    """Also of a run whose likeness to the training patients was not computed."""
    run = open_review(make_run(tmp_path / "run"))
    assert missing.familiarity(run, key(0)) == ("not checked", [])
    word, (reason,) = missing.familiarity(run, key(2))
    assert word == "withheld"
    assert "population level" in reason
    view = patient_view(run, key(2))
    assert view.risk == pytest.approx(view.nobody_risk)
    said = summary(view)
    assert "population level" in said[0]
    assert said[1].startswith("Predicted risk")
    assert "knowing nothing" not in " ".join(said)
    assert view.contributions.empty
    table = worklist.build_worklist(run, tmp_path)
    rows = pd.read_parquet(table).set_index("patient_id")["familiar"]
    assert rows[key(2)] == "withheld"
    assert set(rows[rows != "withheld"]) == {worklist.NOT_CHECKED}


def test_horizons_of_the_calibration_stand_in_the_order_of_days(tmp_path) -> None:
    run = open_review(make_run(tmp_path / "run"))
    (one,) = run.metrics["curves"]["calibration"].values()
    chart = performance.calibration_chart(dict.fromkeys(("1095", "365", "730.5", "90"), one))
    assert [t.name for t in chart.figure.data] == ["ideal", "90 days", "365 days", "730.5 days", "1095 days"]
    assert list(dict.fromkeys(chart.table["horizon"])) == ["90", "365", "730.5", "1095"]
    assert chart.alt.index("365: ratio") < chart.alt.index("1095: ratio")


def test_V4_neighbours_are_training_patients_or_nobody(run) -> None:
    found = missing.similar(run, key(0))
    assert found is not None
    fold, _ = run.where[key(0)]
    assert set(found.table["key"]) <= set(run.splits[fold]["train"])
    nobody = missing.similar(run, key(15))
    assert nobody is not None
    assert nobody.table.empty
    assert nobody.curve is None
    assert nobody.close == 3


def test_value_of_a_missing_modality_follows_its_formulas(run) -> None:
    patient = next(p for p in run.where if patient_view(run, p).lacks == ("genes",))
    fold, row = run.where[patient]
    part = run.part(fold, "donors")
    (answer,) = missing.added(run, patient, at=500.0, threshold=0.5) or []
    q = int(np.flatnonzero(part["patient"] == row)[0])
    draws = np.asarray(part["draws"])[q, :, 1].astype(float)
    assert answer.change == pytest.approx(np.mean([abs(d - 0.4) for d in draws]))
    assert answer.crossing == pytest.approx(sum(d > 0.5 for d in draws) / len(draws))
    assert "order" not in answer.sentence(0.5)
    assert missing.added(run, patient, at=444.0, threshold=0.5) is None
    assert missing.added(run, key(0), at=500.0, threshold=0.5) == []


def test_gate_names_only_subsets_of_own_modalities(run) -> None:
    assert [text.split(":")[0] for text in missing.unsupported(run, key(0)) or []] == ["clinical + slide"]
    assert missing.unsupported(run, key(1)) == []


def test_what_was_not_computed_is_said_and_not_guessed(tmp_path) -> None:
    run = open_review(make_run(tmp_path / "run", patients=12))
    assert missing.familiarity(run, key(0)) == ("not checked", [])
    assert missing.similar(run, key(0)) is None
    assert missing.added(run, key(1), at=500.0, threshold=0.5) is None
    assert missing.unsupported(run, key(0)) is None
    assert "abstains" in performance.patient_bound(run, key(0))


# --- the edge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "continuous", "multiclass"])
def test_other_kinds_of_outcome_have_no_curve_and_still_sum(tmp_path, kind) -> None:
    run = open_review(make_run(tmp_path / "run", kind=kind, patients=20))
    view = patient_view(run, key(0))
    told = contribution_table(read_coalitions(run.path), label=0 if kind == "multiclass" else None)
    theirs = told[told["patient_id"] == key(0)]
    np.testing.assert_allclose(view.contributions["contribution"], theirs["contribution"], atol=1e-9)
    assert view.curve.empty
    assert time_summary(run, key(0)) == []
    assert len(risk_table(run, key(0))) == (3 if kind == "multiclass" else 1)
    rows, total = worklist.find(worklist.build_worklist(run, tmp_path), worklist.Query())
    assert total == 20
    assert {"risk_0", "low_0", "high_0"} <= set(rows.columns)


def test_a_cohort_without_events_and_a_cohort_of_one(tmp_path) -> None:
    quiet = open_review(make_run(tmp_path / "quiet", events=False, patients=30))
    held = performance.risk_groups(quiet)
    assert held is not None
    assert performance.groups_chart(held, who="all").alt
    assert summary(patient_view(quiet, key(0)))
    alone = open_review(make_run(tmp_path / "alone", patients=1, folds=1))
    assert len(patient_view(alone, key(0)).curve) >= 1
    with pytest.raises(CohortError, match="no such key"):
        patient_view(alone, "<script>")


def test_an_unexplained_run_has_a_worklist_without_risks(tmp_path) -> None:
    run = open_review(make_run(tmp_path / "run", explained=False))
    rows, total = worklist.find(worklist.build_worklist(run, tmp_path), worklist.Query())
    assert total == 40
    assert not [c for c in rows.columns if c.startswith("risk")]


def test_worklist_filters_pages_and_puts_due_reviews_first(run, tmp_path) -> None:
    path = worklist.build_worklist(run, tmp_path)
    first, total = worklist.find(path, worklist.Query())
    second, _ = worklist.find(path, worklist.Query(page=1))
    assert total == 40
    assert (len(first), len(second)) == (25, 15)
    assert list(first["patient_id"]) == [key(k) for k in range(25)]
    shown, _ = worklist.find(path, worklist.Query(), done=[key(0), key(3)])
    assert key(0) not in list(shown["patient_id"])
    done, count = worklist.find(path, worklist.Query(review="done"), done=[key(0), key(3)])
    assert list(done["patient_id"]) == [key(0), key(3)]
    assert count == 2
    genes, _ = worklist.find(path, worklist.Query(modality="genes"))
    assert all("genes" in text.split(" + ") for text in genes["available"])
    withheld, _ = worklist.find(path, worklist.Query(familiar="withheld"))
    nothing = [p for p in run.where if not patient_view(run, p).has]
    assert list(withheld["patient_id"]) == sorted({*nothing, key(5)})
    high, _ = worklist.find(path, worklist.Query(group="high"), column=1)
    assert set(high["group_1"]) == {"high"}
    counts = worklist.counts(run, path)
    assert int(counts["Events"]) + int(counts["Censored"]) == 40
    assert worklist.availability(run, path)["patients"].sum() == 40


def test_cuts_of_risk_groups_are_those_of_inner_predictions(run) -> None:
    frame = run.predictions
    inner = frame[(frame["partition"] == "inner") & (frame["fold"] == "0")]
    risk = [1 - np.interp(500.0, np.append(0, r["times"]), np.append(1, r["survival"])) for _, r in inner.iterrows()]
    np.testing.assert_allclose(worklist.risk_cuts(run, "0", 500.0), np.quantile(risk, [1 / 3, 2 / 3]), atol=1e-9)


# --- D6, D12, D18 exports ---------------------------------------------------------------------------------------------


def test_D6_D18_every_export_has_banner_hashes_versions_and_the_numbers(run) -> None:
    record = exporting.patient_record(run, key(0), 500.0, audit_head="f" * 64)
    for name, (_, write) in exporting.FORMATS.items():
        if name == "PDF":
            continue  # its text is compressed; tests/review/test_exporting.py reads it back
        text = write(record).decode()
        assert "Research use only" in text, name
        assert run.sha256 in text, name
    page = exporting.FORMATS["HTML"][1](record).decode()
    assert "medfuse 0.1.0" in page
    assert "f" * 64 in page
    page = re.sub(r' xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", page)  # a name of SVG, which nobody fetches
    assert not re.search(r"src=|href=(?!\"#)|https?://|<script|@import|url\((?!#)", page)
    for row in record["contributions"]:
        assert f"{row['contribution']:+.3f}" in page
    for row in record["risks"]:
        assert f"{100 * row['risk']:.1f} %" in page


def test_D12_keys_with_markup_formulas_and_other_scripts_stay_inert(tmp_path) -> None:
    names = {0: "<script>alert(1)</script>", 3: '=HYPERLINK("http://x")', 4: "مريض-١", 6: "A" * 300}
    run = open_review(make_run(tmp_path / "run", names=names))
    for patient in names.values():
        record = exporting.patient_record(run, patient, 500.0)
        assert b"<script>" not in exporting.FORMATS["HTML"][1](record)
        assert b"\n=HYPER" not in exporting.FORMATS["CSV"][1](record)
        assert b",=HYPER" not in exporting.FORMATS["CSV"][1](record)
        assert json.loads(exporting.FORMATS["JSON"][1](record))["patient"] == patient


def test_reading_needs_no_network_library(run) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from medfuse.review.source import open_review; from medfuse.review.patient import patient_view;"
        "from medfuse.review import performance, missing, evidence, export, reviews, raw, ecg_paper, slices;"
        "from medfuse.review import worklist, launch;"
        f"r = open_review({str(run.path)!r}); patient_view(r, {key(0)!r}); performance.patient_bound(r, {key(0)!r});"
        "print([m for m in ('torch', 'mlflow', 'streamlit', 'sksurv', 'medfuse.training') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_unknown_outcome_and_unfinished_run_are_refused(run) -> None:
    with pytest.raises(ConfigError, match="no outcome"):
        open_review(run.path, "relapse")
    assert isinstance(run.outcome_table, pd.DataFrame)
