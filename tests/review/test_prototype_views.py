"""Prototypes in the review: numbers of the views, and the pages of runs with and without them."""

from dataclasses import replace

import numpy as np
import pytest
from made import MODALITIES, key, make_run, settings

from medfuse.errors import ConfigError, StoreError
from medfuse.explain.parts import write_part
from medfuse.explain.prototype_record import PrototypeRecord
from medfuse.files import seal
from medfuse.jupyter import review_cohort, review_patient
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.palette import BLUE, LOWERS, RAISES
from medfuse.review import prototype_charts, prototypes
from medfuse.review.launch import app_file, prepare
from medfuse.review.settings import ENVIRONMENT, to_environment
from medfuse.review.source import open_review

pytestmark = pytest.mark.filterwarnings("ignore")
LEVELS = ("event by day 200", "event from day 200 to 500", "event from day 500 to 900", "no event by day 900")


def planted(run, fold, *, additive=True, networks=3, seed=0):
    """Prototypes of a fold of a made run: any numbers, sums that hold, one collapsed pair (genes 1a and 2b)."""
    rng = np.random.default_rng(seed)
    values, train = run.explained[fold], run.splits[fold]["train"]
    n, each = len(values.patient_ids), 2 if additive else 1
    count, labels = 4 * each, 3 if run.kind == "multiclass" else 1
    absent = ~values.present
    similarity = rng.uniform(-1, 1, (networks, n, 3, count)).astype(np.float32)
    similarity[:, absent] = np.nan
    train_similarity = rng.uniform(-1, 1, (len(train), 3, count)).astype(np.float32)
    terms = rng.normal(0, 0.2, (n, 3, count, labels))
    terms[absent] = 0.0
    constant = np.full(labels, -1.5)
    cosine = np.tile(np.eye(count, dtype=np.float32), (networks, 3, 1, 1))
    cosine[0, 2, 0, min(3, count - 1)] = 0.97
    order = np.argsort(-np.nan_to_num(train_similarity), axis=0, kind="stable")[:8]
    row = np.moveaxis(order, 0, -1)
    by_network = (
        terms.sum(2)[None]
        + rng.normal(0, 0.1, (networks, n, 3, labels))
        * (np.arange(networks) > 0)[:, None, None, None]
        * ~absent[None, :, :, None]
    )
    return PrototypeRecord(
        outcome="death",
        kind=run.kind,
        fusion="prototype_additive" if additive else "prototype",
        modalities=MODALITIES,
        patient_ids=values.patient_ids,
        train_ids=tuple(train),
        members=tuple(f"00-0{k}" for k in range(networks)),
        share=0.5,
        leading="death",
        levels=LEVELS,
        used=np.ones(4, dtype=bool),
        each=each,
        temperature=None if additive else 0.1,
        similarity=similarity,
        train_similarity=train_similarity,
        unseen=np.arange(len(train)) % 2 == 0,
        exemplar=row,
        exemplar_token=np.zeros_like(row),
        exemplar_similarity=np.moveaxis(np.take_along_axis(train_similarity, order, 0), 0, -1),
        cosine=cosine,
        collapsed=0.95,
        scale="log odds of the hazard",
        logit=constant + terms.sum((1, 2)),
        constant=constant if additive else None,
        terms=terms if additive else None,
        modality_terms=by_network.astype(np.float32) if additive else None,
    )


def write(path, **options):
    """Plant prototypes in every fold of a made run."""
    run = open_review(path)
    for fold in run.explained:
        write_part(planted(run, fold, **options), path / "explanations" / "death" / fold / "prototypes")
    seal(path, {"format_version": 1, "kind": "run"})
    return path


@pytest.fixture(scope="module")
def additive(tmp_path_factory):
    return write(make_run(tmp_path_factory.mktemp("additive") / "run", patients=120, parts=True))


@pytest.fixture(scope="module")
def bottleneck(tmp_path_factory):
    return write(make_run(tmp_path_factory.mktemp("bottleneck") / "run"), additive=False)


@pytest.fixture
def opened(additive):
    run = open_review(additive)
    return run, prototypes.prototypes_of(run, "0")


def test_a_patient_is_as_like_as_the_first_network_says(opened) -> None:
    run, found = opened
    row = found.patient_ids.index(key(0))
    table = prototypes.patient_table(found, key(0), "slide")
    assert np.allclose(table["cosine"], found.similarity[0, row, 1])
    assert list(np.flatnonzero(table["nearest"] != "")) == [int(np.argmax(found.similarity[0, row, 1]))]
    level = np.argmax(found.similarity[:, row, 1], axis=1) // 2
    assert list(table["networks"]) == [int((level == k // 2).sum()) for k in range(8)]
    assert table["probability"].isna().all()
    assert list(table["prototype"][:3]) == ["1a", "1b", "2a"]
    chart = prototype_charts.likeness_chart(found, key(0), "slide")
    (bars,) = chart.figure.data
    assert np.allclose(bars.x[::-1], table["cosine"])
    assert sum(c == BLUE for c in bars.marker.color) == 1
    assert chart.alt
    assert len(chart.table) == 8
    assert prototypes.nearest_of(found, key(0), "slide") == int(np.argmax(found.similarity[0, row, 1]))
    alone = prototypes.prototypes_of(run, "1")  # patient 1 has the clinical table alone
    assert prototypes.patient_table(alone, key(1), "slide") is None
    assert prototype_charts.likeness_chart(alone, key(1), "slide") is None
    assert prototypes.nearest_of(alone, key(1), "slide") == -1


def test_probabilities_stand_beside_the_bars_where_the_model_has_them(bottleneck) -> None:
    found = prototypes.prototypes_of(open_review(bottleneck), "0")
    table = prototypes.patient_table(found, key(0), "genes")
    e = np.exp(table["cosine"] / 0.1)
    assert np.allclose(table["probability"], e / e.sum())
    chart = prototype_charts.likeness_chart(found, key(0), "genes")
    assert any("%" in a.text for a in chart.figure.layout.annotations)
    assert prototype_charts.terms_chart(found, key(0)) is None
    assert prototypes.sum_sentence(found, key(0)) == ""


def test_bars_of_the_terms_sum_to_the_logit(opened) -> None:
    _, found = opened
    row = found.patient_ids.index(key(0))
    chart = prototype_charts.terms_chart(found, key(0))
    (bars,) = chart.figure.data
    assert sum(bars.x) + found.constant[0] == pytest.approx(found.logit[row, 0], abs=1e-9)
    assert chart.table["term"].sum() == pytest.approx(found.logit[row, 0] - found.constant[0], abs=1e-9)
    named = [(v, c) for v, c, y in zip(bars.x, bars.marker.color, bars.y, strict=True) if not y.startswith("(")]
    assert all(c == (RAISES if v > 0 else LOWERS) for v, c in named)
    assert 0 < len(named) <= 16
    sums = prototypes.sums_table(found, key(0)).set_index("modality").astype(float)
    assert np.allclose(sums["sum of its terms"], chart.table.groupby("modality")["term"].sum()[sums.index], atol=5e-4)
    assert (sums["lowest of all networks"] <= sums["sum of its terms"]).all()
    assert (sums["highest of all networks"] > sums["lowest of all networks"]).all()
    said = prototypes.sum_sentence(found, key(0))
    assert f"{found.logit[row, 0]:+.3f} = constant -1.500 + terms" in said
    assert "the sum is exact" in said
    off = replace(found, logit=found.logit + 0.25)  # a sum that does not hold is told
    assert "the sum does NOT hold (left: 0.25): ranking only" in prototypes.sum_sentence(off, key(0))


def test_an_absent_modality_has_no_term(additive) -> None:
    found = prototypes.prototypes_of(open_review(additive), "1")
    assert set(prototype_charts.terms_chart(found, key(1)).table["modality"]) == {"clinical"}


def test_a_patient_without_any_modality_has_the_constant_alone(additive) -> None:
    found = prototypes.prototypes_of(open_review(additive), "0")  # patient 2 has none
    chart = prototype_charts.terms_chart(found, key(2))
    assert len(chart.table) == len(chart.figure.data[0].x) == 0
    assert chart.alt.endswith("no modality.")
    assert "= constant -1.500 + terms +0.000; the sum is exact" in prototypes.sum_sentence(found, key(2))
    assert len(prototypes.sums_table(found, key(2))) == 0


def test_groups_leave_out_those_that_the_network_was_fitted_on(opened) -> None:
    _, found = opened
    unseen = {i for i, new in zip(found.train_ids, found.unseen, strict=True) if new}
    nearest = np.argmax(found.train_similarity[:, 0], axis=1)
    every = prototypes.group(found, "clinical", range(8))
    assert set(every.keys) == unseen
    assert not every.fitted
    one = prototypes.group(found, "clinical", [3], fitted=True)
    assert set(one.keys) == {found.train_ids[i] for i in np.flatnonzero(nearest == 3)}
    assert one.fitted
    few = prototypes.group(found, "clinical", [3], least=1000)
    assert few == one  # too few are left without them
    only = replace(found, unseen=np.ones(len(found.train_ids), dtype=bool))
    assert not prototypes.group(only, "clinical", [3], fitted=True).fitted


def test_exemplars_are_training_patients_with_what_became_of_them(opened) -> None:
    run, found = opened
    table = prototypes.exemplar_table(run, found, "genes", 2)
    assert list(table["cosine"]) == sorted(table["cosine"], reverse=True)
    assert not set(table["key"]) & set(found.patient_ids)
    told = run.outcome_table.loc[table["key"]]
    assert list(table["outcome"]) == ["event" if e else "censored" for e in told["event"]]
    assert list(table["days"]) == [f"{day:.0f}" for day in told["time"]]
    assert "token" not in table
    bags = replace(found, exemplar_token=found.exemplar_token + 4)
    assert set(prototypes.exemplar_table(run, bags, "genes", 2)["token"]) == {5}
    short = replace(found, exemplar=np.where(np.arange(8) < 3, found.exemplar, -1))
    assert len(prototypes.exemplar_table(run, short, "genes", 2)) == 3


def test_what_became_of_a_group_is_its_kaplan_meier(opened) -> None:
    run, found = opened
    keys = prototypes.group(found, "clinical", range(8), fitted=True).keys
    known = run.survival_of(keys)
    curve = kaplan_meier(known.time, known.event)
    text = prototypes.outcome_text(run, keys, 500.0)
    assert text.startswith(f"{100 * (1 - float(curve(500.0))):.1f} % [")
    low, high = (float(v) for v in text.split("[")[1].rstrip("]").split(" to "))
    assert low < 100 * (1 - float(curve(500.0))) < high
    assert prototypes.outcome_text(run, keys[:5], 500.0) == "fewer than 10 known"
    assert prototypes.outcome_text(run, keys, 1e6) == "nobody was followed so long"
    assert prototypes.outcome_text(run, keys, 1e-3) == f"no event in {len(known)}"


@pytest.mark.parametrize("kind", ["multiclass", pytest.param("binary", marks=pytest.mark.slow)])
def test_what_became_of_a_group_with_classes(tmp_path, kind) -> None:
    run = open_review(write(make_run(tmp_path / "run", kind=kind)))
    found = prototypes.prototypes_of(run, "0")
    keys = prototypes.group(found, "clinical", range(8), fitted=True).keys
    share = run.outcome_table.loc[list(keys)]["label"].mean()
    assert prototypes.outcome_text(run, keys, None) == f"class 1 {1 - share:.0%}, class 2 {share:.0%}"
    assert prototype_charts.levels_chart(run, found, "clinical", "0") is None
    assert prototype_charts.sizes_chart(run, found, "clinical", at=None).alt
    label = 2 if kind == "multiclass" else 0
    row = found.patient_ids.index(key(0))
    (bars,) = prototype_charts.terms_chart(found, key(0), label).figure.data
    assert sum(bars.x) == pytest.approx(found.logit[row, label] - found.constant[label], abs=1e-9)


def test_sizes_and_levels_count_every_training_patient_once(opened) -> None:
    run, found = opened
    chart = prototype_charts.sizes_chart(run, found, "genes", at=500.0, fitted=True)
    assert chart.table["patients"].sum() == len(found.train_ids)
    held = prototypes.prototypes_of(run, "0").patient_ids
    has = ~np.isnan(found.similarity[0, :, 2, 0])
    assert chart.table["held-out"].sum() == has.sum() <= len(held)
    assert list(chart.table["check"][[0, 3]]) == ["one with 2b (0.97)", "one with 1a (0.97)"]
    assert set(chart.table["check"]) == {"distinct", "one with 2b (0.97)", "one with 1a (0.97)"}
    assert sum(shape == "x" for shape in chart.figure.data[0].marker.pattern.shape) == 2
    alone = replace(found, train_similarity=found.train_similarity * 0 - np.arange(8, dtype=np.float32))
    assert list(prototype_charts.sizes_chart(run, alone, "slide", at=500.0).table["check"][1:]) == (
        ["nearest to nobody"] * 7
    )
    unused = replace(found, used=np.array([True, True, True, False]))
    assert list(prototype_charts.sizes_chart(run, unused, "slide", at=500.0).table["check"][6:]) == (
        ["level of nobody"] * 2
    )
    levels = prototype_charts.levels_chart(run, found, "genes", "0", fitted=True)
    assert levels.table["patients"].sum() == len(found.train_ids)
    lines = [t for t in levels.figure.data if t.fill is None]
    bands = [t for t in levels.figure.data if t.fill == "toself"]
    assert len(lines) == len(bands) == sum(levels.table["patients"] >= 10)


def test_the_collapse_check_speaks_of_every_network(opened) -> None:
    _, found = opened
    sound, said = prototypes.collapse_sentence(found)
    assert (sound, "genes 1a and 2b (0.97)" in said) == (False, True)
    assert "Of the 2 other networks, 0 have such a pair." in said
    other = replace(found, cosine=found.cosine[[1, 0, 2]])
    sound, said = prototypes.collapse_sentence(other)
    assert sound
    assert "Of the 2 other networks, 1 have such a pair." in said


def test_agreement_with_the_run_reads_no_outcome(opened) -> None:
    run, found = opened
    frame = run.predictions
    own = frame[(frame["partition"] == "held_out") & (frame["fold"] == "0")].set_index("patient_id")["risk_score"]
    same = own.loc[list(found.patient_ids)].to_numpy()[:, None]
    assert prototypes.agreement(run, replace(found, logit=same), "0") == pytest.approx(1.0)
    assert prototypes.agreement(run, replace(found, logit=-same), "0") == pytest.approx(-1.0)
    assert prototypes.agreement(run, replace(found, logit=np.repeat(same, 3, 1)), "0") is None
    assert prototypes.agreement(run, replace(found, logit=0 * same), "0") is None


def test_damage_is_told(tmp_path) -> None:
    path = write(make_run(tmp_path / "run"))
    (path / "explanations" / "death" / "0" / "prototypes" / "terms.npy").unlink()
    with pytest.raises(StoreError, match="expected the parts of PrototypeRecord, found others"):
        prototypes.prototypes_of(open_review(path), "0")


def test_figures_of_the_app_in_jupyter(additive, bottleneck, tmp_path) -> None:
    page = review_patient(additive, key(0))
    assert page.prototypes("slide").chart.title == "Prototypes of slide"
    assert "term" in page.terms().table
    with pytest.raises(ConfigError, match="found 'slide', which is absent"):
        review_patient(additive, key(1)).prototypes("slide")
    with pytest.raises(ConfigError, match="expected fusion prototype_additive, found one whose logit is no sum"):
        review_patient(bottleneck, key(0)).terms()
    cohort = review_cohort(additive)
    assert (
        cohort.prototypes("genes").table["patients"].sum()
        < cohort.prototypes("genes", fitted=True).table["patients"].sum()
    )
    assert len(cohort.prototype_survival("genes", fold="1", fitted=True).table) == 4
    with pytest.raises(ConfigError, match="no fold '7'"):
        cohort.prototypes("genes", fold="7")
    with pytest.raises(ConfigError, match="no modality 'gene'"):
        cohort.prototypes("gene")
    with pytest.raises(ConfigError, match="expected stored prototypes, found none"):
        review_cohort(make_run(tmp_path / "run")).prototypes("genes")


def test_a_run_says_why_it_has_none(tmp_path) -> None:
    path = make_run(tmp_path / "run")
    assert prototypes.why_none(open_review(path)) == prototypes.NONE
    (path / "recipe.yaml").write_text("name: r\nmodel: {fusion: {name: prototype}}\n")
    assert prototypes.why_none(open_review(path)) == prototypes.NOT_STORED
    (path / "recipe.yaml").write_text("name: r\nmodel: {fusion: {name: concat}}\n")
    assert prototypes.why_none(open_review(path)) == prototypes.NONE


# --- pages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """``pages(run, patient, names)``: pages of the app in one session, each with everything that it says."""
    testing = pytest.importorskip("streamlit.testing.v1")

    def show(path, patient, *names, **more):
        one = replace(settings(path, **{"reader_first": False, **more}), folder=str(tmp_path / "review"))
        prepare(one)
        monkeypatch.setenv(ENVIRONMENT, to_environment(one))
        at = testing.AppTest.from_file(str(app_file()), default_timeout=60)
        at.query_params["pid"] = patient
        at.run()
        for name in names:
            at.switch_page(f"views/{name}.py").run()
            assert not at.exception
            assert not [e.value for e in at.error if "went wrong" in e.value]
            yield at, text_of(at)

    return show


def text_of(at):
    kinds = ("title", "header", "subheader", "text", "caption", "warning", "success", "info", "error")
    said = [str(e.value) for kind in kinds for e in at.get(kind)]
    return "\n".join([*said, *(t.value.to_csv() for t in at.table)]).replace("\\", "")


def test_pages_show_likeness_terms_and_collapse(pages, additive) -> None:
    found = prototypes.prototypes_of(open_review(additive), "0")
    (_, patient), (_, evidence), (last, performance) = pages(additive, key(0), "patient", "evidence", "performance")
    assert "Prototypes: terms of the sum" in patient
    assert prototypes.sum_sentence(found, key(0)) in patient
    assert "lowest of all networks" in patient
    assert "They are of one network" in patient
    assert "Prototypes of clinical" in evidence
    assert "Training patients nearest to prototype" in evidence
    assert (
        "joint network 00-00 (seed, inner fold), the first of 3; each of the others has prototypes of its own"
        in evidence
    )
    nearest = prototypes.nearest_of(found, key(0), "clinical")
    assert all(str(found.train_ids[int(k)]) in evidence for k in found.exemplar[0, nearest])
    assert "Collapse check: these prototypes are one (cosine 0.95 or more): genes 1a and 2b (0.97)" in performance
    assert "no level has 10 such training patients" in performance
    assert all(c.proto.alt for c in last.get("plotly_chart"))
    next(s for s in last.selectbox if s.key == "prototype_modality").set_value("genes")
    next(r for r in last.radio if r.key == "prototype_who").set_value(True).run()
    said = text_of(last)
    assert "one with 2b (0.97)" in said
    assert "Survival by the nearest prototype of genes" in said


def test_before_the_own_estimate_and_when_withheld_nothing_is_shown(pages, additive) -> None:
    for _, said in pages(additive, key(0), "patient", "evidence", reader_first=True):
        assert "rototype" not in said
    for _, said in pages(additive, key(5), "evidence"):
        assert "Prediction withheld" in said
        assert "rototype" not in said


@pytest.mark.slow
def test_pages_of_a_fusion_whose_logit_is_no_sum(pages, bottleneck) -> None:
    (_, patient), (_, evidence) = pages(bottleneck, key(0), "patient", "evidence")
    assert "terms of the sum" not in patient
    assert "per cent is the probability that the model assigns" in evidence


@pytest.mark.parametrize("kind", ["survival", pytest.param("continuous", marks=pytest.mark.slow)])
def test_pages_of_a_run_without_prototypes(pages, tmp_path, kind) -> None:
    path = make_run(tmp_path / "run", kind=kind)
    (_, patient), (_, performance) = pages(path, key(0), "patient", "performance")
    assert "rototype" not in patient
    assert prototypes.NONE in performance
