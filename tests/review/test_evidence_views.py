"""Evidence in numbers: stored units, slides to level 0, regions on slices, events before the index time."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from made import CARD, key, make_run, write_units

from medfuse.explain.attribution import cells as theirs
from medfuse.files import seal
from medfuse.loaders import events, slide
from medfuse.loaders._slide_writer import tissue_like, write_slide
from medfuse.review import behaviour, raw, slices, slides, stress, timeline, units
from medfuse.review.charts import diverging
from medfuse.review.patient import patient_view
from medfuse.review.source import open_review

# --- stored units -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run", parts=True)
    write_units(path, "slide", kind="instance", each=12)
    write_units(path, "genes", kind="column", names=[f"GENE{k}" for k in range(30)])
    seal(path, {"format_version": 1, "kind": "run"})
    return open_review(path)


def test_E7_units_sum_to_the_contribution_and_say_so(run) -> None:
    found = units.units_of(run, key(0), "slide")
    assert found is not None
    total = found.table["contribution"].sum() + found.presence + found.gap
    assert total == pytest.approx(found.contribution)
    assert found.label == "sums to the contribution"
    assert "sums to the contribution" in found.sentence()
    sizes = found.table["contribution"].abs().to_numpy()
    assert (np.diff(sizes) <= 0).all()
    chart = units.units_chart(found, scale="log cumulative hazard")
    assert sum(chart.figure.data[0].x) == pytest.approx(found.contribution - found.gap)
    assert found.badge in chart.how
    assert len(chart.table) == 12


def test_E7_units_that_do_not_sum_are_a_ranking(tmp_path) -> None:
    path = make_run(tmp_path / "run")
    write_units(path, "slide", kind="instance", each=5, gap=0.5)
    found = units.units_of(open_review(path), key(0), "slide")
    assert found is not None
    assert found.label == "ranking only"
    assert "only their order counts" in units.units_chart(found, scale="x").cannot


def test_long_lists_show_the_largest_and_the_sum_of_the_rest(run) -> None:
    found = units.units_of(run, key(0), "genes")
    assert found is not None
    chart = units.units_chart(found, scale="x")
    bars = list(chart.figure.data[0].y)
    assert len(bars) <= 18
    assert any("others" in str(b) for b in bars)
    assert sum(chart.figure.data[0].x) == pytest.approx(found.contribution)
    assert set(chart.table["unit"]) == {f"GENE{k}" for k in range(30)}


def test_nobody_asked_for_units_of_these(run) -> None:
    assert units.units_of(run, key(0), "clinical") is None
    assert units.kinds_of(run, key(0), "clinical") == []
    assert units.kinds_of(run, key(0), "slide") == ["default"]
    assert units.units_of(run, key(2), "slide") is None  # has no modality


def test_regions_are_counted_as_the_explanation_counts_them() -> None:
    rng = np.random.default_rng(0)
    for width in (2, 3):
        position = rng.uniform(-50, 900, (200, width)).astype(np.float32)
        np.testing.assert_array_equal(units.cells(position, per_side=5), theirs(position, per_side=5))


def test_values_of_regions_are_those_of_all_their_tokens() -> None:
    position = np.array([[0, 0], [10, 0], [100, 100]], dtype=np.float32)
    table = pd.DataFrame({"number": units.cells(position, per_side=4)[[0, 2]], "contribution": [0.5, -0.2]})
    found = SimpleNamespace(kind="region", cells=4, table=table)
    np.testing.assert_allclose(units.token_values(found, position), [0.5, 0.5, -0.2])
    assert units.token_values(SimpleNamespace(kind="column", table=table), position) is None


# --- slides -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    pixels = np.tile(tissue_like(650, 525, seed=1), (4, 4, 1))
    write_slide(path, pixels, mpp=0.5, levels=3)
    return path, slides.header((path,))


def test_the_viewer_goes_from_the_whole_slide_to_level_0(picture) -> None:
    path, head = picture
    assert head.sizes[0] == (2600, 2100)
    assert slides.scales(head) == [4, 2, 1]
    whole, left, top = slides.view(head, slides.Place(scale=4, x=0, y=0))
    assert whole.shape == (525, 650, 3)
    assert (left, top) == (0, 0)
    near, left, top = slides.view(head, slides.Place(scale=1, x=1300, y=900))
    assert near.shape == (600, 900, 3)
    exact = slides.view(head, slides.Place(scale=1, x=1300, y=900))[0]
    import openslide

    theirs_ = np.asarray(openslide.OpenSlide(str(path)).read_region((int(left), int(top)), 0, (900, 600)))[..., :3]
    assert np.abs(exact.astype(int) - theirs_.astype(int)).max() <= 3  # the same JPEG by another decoder


def test_places_beyond_the_edge_are_moved_onto_the_slide(picture) -> None:
    _, head = picture
    for x, y in ((-1e6, -1e6), (1e6, 1e6)):
        at = slides.clamped(head, slides.Place(scale=1, x=x, y=y))
        assert 450 <= at.x <= 2150
        assert 300 <= at.y <= 1800
    for scale in slides.scales(head):
        for x in (0, 1300, 9999):
            assert slides.view(head, slides.Place(scale=scale, x=x, y=x))[0].ndim == 3


def test_signed_overlay_paints_tiles_where_they_lie(picture) -> None:
    _, head = picture
    corners = np.array([[0.0, 0.0], [512.0, 512.0], [1024.0, 0.0]])
    overlay = slides.Overlay(corners=corners, side=256.0, values=np.array([1.0, -1.0, np.nan]), strength=1.0)
    plain = np.full((525, 650, 3), 255, dtype=np.uint8)
    painted = slides.painted(plain, corner=(0.0, 0.0), scale=4, overlay=overlay)
    assert tuple(painted[32, 32]) == (0xD5, 0x5E, 0x00)  # vermilion raises
    assert tuple(painted[128 + 32, 128 + 32]) == (0x00, 0x72, 0xB2)  # blue lowers
    assert tuple(painted[32, 256 + 32]) == (255, 255, 255)  # nothing stored: a frame alone
    assert tuple(painted[400, 500]) == (255, 255, 255)
    chart = slides.slide_view_chart(head, slides.Place(scale=4, x=0, y=0), overlay, mpp=0.5)
    assert list(chart.table["contribution"]) == [1.0, -1.0]
    bar = next(t for t in chart.figure.data if t.type == "scatter").marker
    assert (bar.cmin, bar.cmax) == (-1.0, 1.0)
    assert bar.showscale
    assert "raises" in chart.alt
    assert diverging(0.0) == (247.0, 247.0, 247.0)
    gone = slides.painted(
        plain, corner=(0.0, 0.0), scale=4, overlay=slides.Overlay(**{**vars(overlay), "strength": 0.0})
    )
    assert tuple(gone[32, 32]) == (255, 255, 255)


def test_label_and_macro_images_are_never_decoded(picture, monkeypatch) -> None:
    import openslide

    def refuse(*_: object) -> None:
        msg = "an associated image was decoded"
        raise AssertionError(msg)

    path, _ = picture
    monkeypatch.setattr(openslide._AssociatedImageMap, "__getitem__", refuse)
    head = slides.header((path,))
    for scale in slides.scales(head):
        slides.view(head, slides.Place(scale=scale, x=100, y=100))


def test_one_slide_of_many_levels_reads_little(picture) -> None:
    _, head = picture
    assert all(slides._pixels(head, s) <= 64_000_000 for s in slides.scales(head))
    flat = SimpleNamespace(sizes=((200_000, 150_000),), downsamples=(1.0,))
    assert slides.scales(flat) == [8, 4, 2, 1]  # without a pyramid the whole would be 30 gigapixels


# --- volumes ----------------------------------------------------------------------------------------------------------


def test_regions_lie_on_the_slices_that_they_cover() -> None:
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    boxes = slices.Boxes(
        centre=np.array([[10.0, 10.0, 8.0], [30.0, 30.0, 30.0]]),
        side=np.array([8.0, 8.0, 8.0]),
        values=np.array([0.4, -0.2]),
        strength=0.5,
    )
    on = boxes.on((20, 20, 10), affine, axis=2, number=2)
    assert on.shape == (20, 20)
    assert set(np.unique(on[~np.isnan(on)])) == {0.4}
    rows, columns = np.nonzero(~np.isnan(on))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 6, 3, 6)  # 6 to 14 mm at 2 mm
    assert np.isnan(boxes.on((20, 20, 10), affine, axis=2, number=5)).all()
    chart = slices.slice_chart(
        np.zeros((20, 20, 10), np.float32), affine, view="axial", number=2, window="as read", boxes=boxes
    )
    assert "Vermilion regions raise" in chart.how
    assert list(chart.table["contribution"]) == [0.4, -0.2]
    side = slices.side_mm({"patch": [8, 8, 4]}, {"spacing_mm": [2, 2, 5], "volume_shape": [64, 4, 24]})
    np.testing.assert_allclose(side, [16, 8, 20])


# --- events -----------------------------------------------------------------------------------------------------------


def test_the_timeline_holds_what_the_model_may_see_and_nothing_later(tmp_path) -> None:
    root = tmp_path / "data"
    card = events.write_example(root)
    options = json.loads(json.dumps(card.options))
    options["variables"]["heart_rate"]["reference"] = [60, 95]
    names = {0: "001", 3: "002", 6: "010"}
    path = make_run(tmp_path / "run", names=names)
    spec = {"loader": "events", "file": "meds", "options": options}
    content = {**CARD, "modalities": {**CARD["modalities"], "genes": spec}}
    (path / "card.md").write_text(f"---\n{yaml.safe_dump(content)}---\n")
    run = open_review(path)
    found = timeline.timeline(run, "001", "genes", data_root=root, sources={})
    assert found is not None
    assert found.reason == ""
    rate = found.table[found.table["variable"] == "heart_rate"]
    # 91, 95 within 24 h of admission; 120 at 30 h lies after the index time
    assert list(rate["value"]) == [91.0, 95.0]
    np.testing.assert_allclose(rate["days"], [23 / 24, 19 / 24])
    assert (rate["low"].iloc[0], rate["high"].iloc[0], rate["unit"].iloc[0]) == (60, 95, "/min")
    sugar = found.table[found.table["variable"] == "glucose"]
    assert sugar["value"].iloc[0] == pytest.approx(90 / 18.0, rel=0.01)  # mg/dL to mmol/L, as the card asks
    assert found.table[found.table["variable"] == "sex"]["days"].isna().all()
    chart = timeline.timeline_chart(found)
    assert "heart_rate: 2 events" in chart.alt
    assert len(chart.table) == len(found.table)
    other = timeline.timeline(run, "002", "genes", data_root=root, sources={})
    assert other is not None
    assert list(other.table[other.table["variable"] == "heart_rate"]["value"]) == [71.0, 75.0]


def test_events_on_the_timeline_carry_what_they_added(tmp_path) -> None:
    root = tmp_path / "data"
    card = events.write_example(root)
    options = json.loads(json.dumps(card.options))
    options["variables"]["heart_rate"]["reference"] = [60, 92]
    path = make_run(tmp_path / "run", names={0: "001"})
    spec = {"loader": "events", "file": "meds", "options": options}
    content = {**CARD, "modalities": {**CARD["modalities"], "genes": spec}}
    (path / "card.md").write_text(f"---\n{yaml.safe_dump(content)}---\n")
    told = timeline.timeline(open_review(path), "001", "genes", data_root=root, sources={})
    assert told is not None
    plain, why = timeline.with_contributions(told, None)
    assert plain is told
    assert "--units event" in why
    names = [events.event_name(v, d) for v, d in zip(told.table["variable"], told.table["days"], strict=True)]
    write_units(path, "genes", kind="event", names=names, recalibration=0.3, folder_name="event")
    run = open_review(path)
    parts = units.units_of(run, "001", "genes", "event")
    assert parts is not None
    found, why = timeline.with_contributions(told, parts)
    assert why == ""
    by_name = parts.table.set_index("unit")["contribution"]
    np.testing.assert_allclose(found.table["contribution"], [by_name[n] for n in names])
    chart = timeline.timeline_chart(found, scale="log cumulative hazard")
    np.testing.assert_allclose(chart.table["contribution"], found.table["contribution"])
    assert "▲ raises and ▼ lowers" in chart.how
    assert "sums to the contribution" in chart.how
    assert "together" in chart.alt
    own = found.table[found.table["variable"] == "heart_rate"]
    rate = next(t for t in chart.figure.data if list(t.y) == list(own["value"]))
    outside = own["side"].to_numpy() != 0
    assert outside.any()
    for shape, added, out in zip(rate.marker.symbol, own["contribution"], outside, strict=True):
        assert shape == ("triangle-up" if added > 0 else "triangle-down") + ("-open" if out else "")
    sizes = dict(zip(np.abs(own["contribution"]), rate.marker.size, strict=True))
    assert [sizes[k] for k in sorted(sizes)] == sorted(sizes.values())
    shifted = dataclasses.replace(told, table=told.table.assign(days=told.table["days"] + 1))
    assert "other events" in timeline.with_contributions(shifted, parts)[1]


def test_E7_parts_of_the_recalibrated_game_name_its_row(tmp_path) -> None:
    """The sum on the page is of recalibrated values: their row stands in the sentence and among the bars."""
    path = make_run(tmp_path / "run")
    write_units(path, "slide", kind="instance", each=5, recalibration=0.25)
    write_units(path, "genes", kind="column", names=["a", "b"])
    run = open_review(path)
    view = patient_view(run, key(0))
    bars = view.contributions.set_index("modality")["contribution"]
    found = units.units_of(run, key(0), "slide")
    assert found is not None
    assert found.recalibration == 0.25
    total = found.table["contribution"].sum() + found.presence + found.recalibration + found.gap
    assert total == pytest.approx(bars["slide"], abs=1e-9)
    assert "recalibration +0.250" in found.sentence()
    chart = units.units_chart(found, scale="x")
    assert "(recalibration)" in list(chart.figure.data[0].y)
    assert sum(chart.figure.data[0].x) == pytest.approx(bars["slide"], abs=1e-6)
    assert found.disagreement(bars["slide"], meaning="recalibrated") == ""
    assert "other values of this run" in found.disagreement(bars["slide"] + 0.2, meaning="recalibrated")
    before = units.units_of(run, key(0), "genes")  # stored before parts were recalibrated
    assert before is not None
    assert before.recalibration is None
    assert "recalibration" not in before.sentence()
    assert "as the model says them" in before.disagreement(bars["genes"] + 0.2, meaning="recalibrated")


def test_the_timeline_says_why_it_is_not_there(tmp_path) -> None:
    root = tmp_path / "data"
    card = events.write_example(root)
    path = make_run(tmp_path / "run", names={0: "001"})
    spec = {"loader": "events", "file": "meds", "options": card.options}
    content = {**CARD, "modalities": {**CARD["modalities"], "genes": spec}}
    (path / "card.md").write_text(f"---\n{yaml.safe_dump(content)}---\n")
    run = open_review(path)
    assert timeline.timeline(run, "001", "clinical", data_root=root, sources={}) is None
    for data_root, sources, word in ((None, {}, "--data-root"), (root, {"meds": "0" * 64}, "SHA-256")):
        found = timeline.timeline(run, "001", "genes", data_root=data_root, sources=sources)
        assert found is not None
        assert word in found.reason
        assert found.table.empty
    nobody = timeline.timeline(run, key(3), "genes", data_root=root, sources={})
    assert nobody is not None
    assert "no event" in nobody.reason


def test_files_are_hashed_once_until_they_change(tmp_path, monkeypatch) -> None:
    run = SimpleNamespace(memory={})
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    first = raw.digest(run, path)
    monkeypatch.setattr(raw, "sha256_path", lambda _: "again")
    assert raw.digest(run, path) == first
    path.write_bytes(b"other")
    assert raw.digest(run, path) == "again"


def test_the_loader_of_slides_groups_what_the_viewer_opens(picture) -> None:
    path, _ = picture
    assert slide.group([path]) == [(path,)]


# --- stress and behaviour ---------------------------------------------------------------------------------------------


def _stress_rows() -> list[dict]:
    rows = []
    for model in ("medfuse", "late_average", "other"):
        for pattern in ("a + b", "a"):
            for rate in (0.0, 0.5, 0.9):
                score = 0.8 - 0.2 * rate - (0.05 if model != "medfuse" else 0)
                row = {"model": model, "pattern": pattern, "rate": rate, "reference": "late_average", "hidden": rate}
                row |= {
                    "patients": 40,
                    "events": 20,
                    "score": score,
                    "score_low": score - 0.1,
                    "score_high": score + 0.1,
                }
                rows.append(row | {"calibration_slope": None if rate > 0.8 else 1.1, "calibration_slope_low": 0.9})
    return rows


def test_stress_results_are_curves_with_intervals(tmp_path) -> None:
    path = make_run(tmp_path / "run")
    (path / "stress").mkdir()
    content = {
        "mechanism": "mcar",
        "outcomes": {"death": {"kind": "survival", "score": "harrell_c", "rows": _stress_rows()}},
    }
    (path / "stress" / "mcar.json").write_text(json.dumps(content))
    content["mechanism"] = "subsets"
    for row in content["outcomes"]["death"]["rows"]:
        row["rate"] = None
    (path / "stress" / "subsets.json").write_text(json.dumps(content))
    run = open_review(path)
    found = stress.stored(run)
    assert list(found) == ["mcar", "subsets"]
    assert stress.patterns(found["mcar"]) == ["a + b", "a"]
    chart = stress.stress_chart(found["mcar"], "a", "score", model="medfuse")
    line = next(t for t in chart.figure.data if t.name == "medfuse")
    np.testing.assert_allclose(line.y, [0.8, 0.7, 0.62])
    area = next(t for t in chart.figure.data if t.name == "medfuse: 95 %")
    assert (max(area.y), min(area.y)) == (pytest.approx(0.9), pytest.approx(0.52))
    assert len(chart.table) == 9
    slope = stress.stress_chart(found["mcar"], "a", "calibration_slope", model="medfuse")
    assert len(next(t for t in slope.figure.data if t.name == "medfuse").y) == 2  # undefined ones are left out
    sets = stress.subsets_chart(found["subsets"], "score", model="medfuse")
    assert [t.name for t in sets.figure.data] == ["medfuse", "late_average"]
    assert stress.stored(open_review(make_run(tmp_path / "calm"))) == {}


def test_pairs_are_harsanyis_dividends(run) -> None:
    chart = behaviour.pairs(run, 500.0)
    assert chart is not None
    told = []
    for patient in run.where:
        view = patient_view(run, patient, 500.0)
        own = view.dividends[view.dividends["modalities"] == "clinical + slide"]
        told += own["dividend"].to_list()
    row = chart.table[chart.table["pair"] == "clinical + slide"].iloc[0]
    assert row["patients"] == len(told)
    assert row["mean"] == pytest.approx(np.mean(told))
    assert row["mean absolute"] == pytest.approx(np.mean(np.abs(told)))


def test_limits_of_many_patients_are_those_of_the_bootstrap() -> None:
    rng = np.random.default_rng(3)
    has = rng.random((4000, 2)) < 0.7
    size = np.where(has, rng.exponential(0.3, (4000, 2)), 0.0)
    mean = size.sum(axis=0) / has.sum(axis=0)
    drawn = behaviour._limits(size, has, mean, seed=0)
    copies = behaviour._limits(np.tile(size, (2, 1)), np.tile(has, (2, 1)), mean, seed=0)  # 8,000: the normal law
    # The width over 500 draws has a standard error of 4 %; twice the patients have limits narrower by the root of 2.
    np.testing.assert_allclose((copies[1] - copies[0]) * np.sqrt(2), drawn[1] - drawn[0], rtol=0.12)
    for low, high in (drawn, copies):
        assert (low < mean).all()
        assert (mean < high).all()
