"""Report, model card, TRIPOD+AI table and data-card checks of a run: complete, honest, and changing with the run."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import made_up
import numpy as np
import pytest

from medfuse.cli import main
from medfuse.config import read_recipe
from medfuse.documents import DOCUMENTS, read_facts, sheets
from medfuse.documents.data_card import SECTIONS
from medfuse.documents.facts import model_text
from medfuse.documents.model_card import ATTRIBUTES, MINIMUM
from medfuse.documents.sheet import FOR_THE_AUTHOR, Entry
from medfuse.documents.tripod import ITEMS
from medfuse.errors import ModelError
from medfuse.explained import default_horizon, pooled_importance, read_coalitions
from medfuse.explaining import check_run, explain_run
from medfuse.pages import BANNER
from medfuse.report import _patients
from medfuse.run import open_run
from medfuse.workflow import rewrite_report

# The numbers of the items of Collins et al., BMJ 2024;385:e078378.
_TEXT = (
    "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17 18a 18b 18c "
    "18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
)
NUMBERS = _TEXT.split()
# What no run can know: always the author's.
# and what only the prose of a data card could say, which the made-up card does not have: 3b, 3c.
ALWAYS_THE_AUTHORS = {"3a", "6c", "8b", "8c", "9c", "18a", "18b", "18c", "18d", "19", "27c"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    card = made_up.write(folder, n=100, outcomes=("survival", "subtype"))
    more = ("outcomes=[survival, subtype]", "baselines=[kaplan_meier, prevalence]")
    made_up.trained(card, *made_up.LEARN, *more)
    return folder


@pytest.fixture(scope="module")
def explained(made):
    """The same run, whose held-out results were opened, explained and checked for its first outcome afterwards."""
    shutil.copytree(made / "run", made / "explained")
    run = open_run(made / "explained")
    rewrite_report(run, opened=3)
    explain_run(run, data_root=made, store_root=made / "store")
    assert entries(run, "tripod_ai")["26"]["filled"] != entries(open_run(made / "run"), "tripod_ai")["26"]["filled"]
    check_run(run, data_root=made, store_root=made / "store")
    return run


def test_explaining_after_the_report_writes_it_again(made, explained):
    """Never older than what stands in the run, and the count of openings is kept."""
    before, after = ((p / "report.html").read_text() for p in (made / "run", explained.path))
    assert before != after
    rewrite_report(explained)
    assert (explained.path / "report.html").read_text() == after
    explained.verify()


def document(run, name):
    return json.loads((run.path / f"{name}.json").read_text())


def entries(run, name):
    return {e["key"]: e for e in document(run, name)["entries"]}


def test_r1_every_item_is_there_and_none_is_silently_blank(made):
    found = entries(open_run(made / "run"), "tripod_ai")
    assert list(found) == NUMBERS == [item.number for item in ITEMS]
    assert len({re.sub("[a-z]", "", n) for n in found}) == 27
    for key, entry in found.items():
        assert entry["filled"].strip() or entry["author"].strip(), key
        assert (entry["status"] == "author") == (not entry["filled"].strip()), key
    assert {k for k, e in found.items() if e["status"] == "author"} == ALWAYS_THE_AUTHORS | {"3b", "3c"}


def test_r1_the_model_card_has_all_source_attributes(made):
    found = entries(open_run(made / "run"), "model_card")
    assert len(ATTRIBUTES) == 31
    assert set(found) == set(ATTRIBUTES) | set(MINIMUM)
    assert found["developer"]["status"] == found["external_data"]["status"] == "author"
    assert "harrell_c" in found["internal_validity"]["filled"]
    assert "clinical.sex" in found["sensitive_inputs"]["filled"]
    assert "clinical.stage" not in found["sensitive_inputs"]["filled"], "age is a word of its own"


def test_an_entry_without_any_text_is_refused():
    with pytest.raises(ModelError, match="12c: expected text from the run or a mark for the author"):
        Entry(key="12c", section="Methods", asks="?", filled=" ", author="")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_three_forms_say_the_same(made, name):
    run = open_run(made / "run")
    page, text = (run.path / f"{name}.html").read_text(), (run.path / f"{name}.md").read_text()
    assert BANNER in page
    assert BANNER in text
    assert document(run, name)["banner"] == BANNER
    assert not re.search(r"<script|https?://|<link|@import|url\(", page)
    marks = [e for e in document(run, name)["entries"] if e["author"]]
    assert marks
    assert page.count(FOR_THE_AUTHOR) == text.count(FOR_THE_AUTHOR) == len(marks)
    assert document(run, name)["run"]["recipe SHA-256"] == run.read("run")["facts"]["recipe"]


def test_filled_items_change_with_the_run(made, explained):
    before = {name: entries(open_run(made / "run"), name) for name in DOCUMENTS}
    after = {name: entries(explained, name) for name in DOCUMENTS}
    plain, checked = before["tripod_ai"]["26"]["filled"], after["tripod_ai"]["26"]["filled"]
    assert "survival: contributions of the modalities were not computed." in plain
    assert "survival: contributions" not in checked
    assert "subtype: contributions of the modalities were not computed." in checked
    assert before["model_card"]["held_out_opened"]["filled"].startswith("Not counted")
    assert after["model_card"]["held_out_opened"]["filled"].startswith("3 times")
    facts = read_facts(open_run(made / "run"))
    fewer = {**facts.attrition, "modelled": 7, "excluded": [{"patient_id": "p1", "reason": "no outcome"}]}
    changed = {s.name: s for s in sheets(dataclasses.replace(facts, attrition=fewer, card=None, recipe=None))}
    flow = {e.key: e for e in changed["tripod_ai"].entries}
    assert "7 modelled, 1 left out. Left out: 1 x no outcome." in flow["20a"].filled
    assert "p1" not in changed["tripod_ai"].to_markdown(), "no id of a patient"
    assert flow["17"].status == "author", "without the card nobody knows of consent"
    assert flow["17"].filled == ""


def test_the_fusions_that_were_fitted_are_named(made):
    facts = read_facts(open_run(made / "run"))

    def text(*overrides):
        return model_text(dataclasses.replace(facts, recipe=read_recipe("default", overrides)))

    assert "fusions transformer, stacked, latent (the seeds take turns)" in text()
    assert "fusions transformer, stacked (the" in text("train.seeds=2")
    assert "fusion transformer, heads" in text("train.seeds=1")
    assert "fusion late, heads" in text("model.fusion={name: late}")


def test_numbers_in_the_documents_are_those_of_the_run(made):
    run = open_run(made / "run")
    pooled = run.read("metrics")["outcomes"]["survival"]["models"]["medfuse"]["pooled"]
    said = f"{pooled['estimate']:.3f} (95 % interval {pooled['low']:.3f} to {pooled['high']:.3f})"
    assert said in entries(run, "tripod_ai")["23a"]["filled"]
    a = run.read("attrition")
    assert f"{a['total']} patients in the table, {a['modelled']} modelled" in entries(run, "tripod_ai")["20a"]["filled"]
    for split in run.read("splits")["splits"]:
        text = f"split {split['name']}: train {len(split['train'])}, held_out {len(split['held_out'])}"
        assert text in entries(run, "tripod_ai")["21"]["filled"]


def test_the_data_card_owes_what_it_lacks(made):
    found = entries(open_run(made / "run"), "data_card")
    assert found["licence"]["filled"] == "CC0"
    assert found["sha256"]["author"].startswith("SHA-256 of ")
    for heading in SECTIONS:  # the made-up card has none of them
        assert found[heading.lower().replace(" ", "_")]["status"] == "author"
    assert found["site"]["status"] == "author"
    assert found["subgroups"]["filled"] == "sex"


def test_the_report_shows_contributions_as_stored(made, explained):
    found = read_coalitions(explained, "survival")
    horizon = default_horizon(explained, found)
    page = (explained.path / "report.html").read_text()
    for one in pooled_importance(found, horizon=horizon):
        value, low, high = one.mean_absolute
        assert f"{value:.3f} ({low:.3f} to {high:.3f})" in page
    assert f"To log cumulative hazard at {horizon:g} days" in page
    assert "deletion against random order" in page
    assert page.count("medfuse explain RUN</code>, then") == 1, "the second outcome is not explained, and says so"
    assert "medfuse explain RUN</code>, then" in (made / "run" / "report.html").read_text()
    assert not re.search(r"<script|https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", page)
    explained.verify()


def test_calibration_indices_stand_in_metrics_and_report(made):
    run = open_run(made / "run")
    content = run.read("metrics")["outcomes"]["survival"]
    curves = content["curves"]
    page = (run.path / "report.html").read_text()
    for horizon, one in curves["smooth"].items():
        if one["reason"]:
            assert one["index"] is None
            assert one["reason"] in page
        else:
            assert 0 <= one["e50"] <= one["e90"] <= 1
            assert f"{one['index']:.3f}" in page
            assert len(one["predicted"]) == len(one["observed"]) <= 50
        assert f"ici@{horizon}" in content["models"]["medfuse"]["folds"][0]
    p = curves["a_calibration"]["p_value"]
    assert f"A-calibration over all times: p = {p:.3f}" in page
    assert np.isclose(sum(curves["a_calibration"]["events"]), _events(run))


def _events(run):
    import pandas as pd

    rows = pd.read_parquet(run.path / "outcomes.parquet").query("outcome == 'survival' and observed")
    return rows["event"].astype(bool).sum()


def test_an_old_run_without_these_indices_is_still_reported(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    content = run.read("metrics")
    for one in content["outcomes"].values():
        for key in ("smooth", "a_calibration"):
            one["curves"].pop(key, None)
    run.write("metrics", {k: v for k, v in content.items() if k != "format_version"})
    run.seal()
    rewrite_report(run)
    assert "the run was evaluated before these were computed" in (run.path / "report.html").read_text()


def test_small_and_undefined_subgroups_say_so(made):
    page = (made / "run" / "report.html").read_text()
    content = json.loads((made / "run" / "metrics.json").read_text())["outcomes"]["survival"]["groups"]
    assert "sex" in content
    assert "Hollow grey marks: fewer than 10 events" in page
    for row in content["sex"]:
        assert f"<td>{row['patients']}</td><td>{row['events']}</td>" in page


def test_patients_without_any_modality_are_named_as_the_population_level():
    counts = {"a + b": 5, "none": 3}
    attrition = {"total": 8, "modelled": 8, "excluded": [], "problems": [], "availability": counts}
    page = _patients(SimpleNamespace(read=lambda _: attrition))
    assert "3 without any modality" in page
    assert "population level" in page
    del counts["none"]
    assert "without any modality" not in _patients(SimpleNamespace(read=lambda _: attrition))


def test_the_command_writes_all_documents(made, tmp_path, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    for name in DOCUMENTS:
        (tmp_path / "run" / f"{name}.html").write_text("stale")
    open_run(tmp_path / "run").seal()
    assert main(["report", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    for name in DOCUMENTS:
        assert BANNER in (tmp_path / "run" / f"{name}.html").read_text()
        assert f"{name}.html" in said
    open_run(tmp_path / "run").verify()
