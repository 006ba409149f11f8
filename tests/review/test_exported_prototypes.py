"""Prototypes in the exported record: numbers of the pages, alike in every form, and nothing where there are none."""

import html
import json
import re

import numpy as np
import pytest
from made import key, make_run
from test_prototype_views import write

from medfuse.exporting import FORMATS, patient_record, record_of, verify_export
from medfuse.exporting import pdf as pdf_module
from medfuse.exporting.record import content_sha256
from medfuse.review import prototypes
from medfuse.review.patient import patient_view
from medfuse.review.source import open_review

KINDS = ("additive", "bottleneck")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {
        "additive": write(make_run(folder / "additive", patients=60, parts=True)),
        "bottleneck": write(make_run(folder / "bottleneck"), additive=False),
        "none": make_run(folder / "none", parts=True),
    }


def exported(path, patient=None):
    run = open_review(path)
    return run, prototypes.prototypes_of(run, "0"), patient_record(run, patient or key(0))["prototypes"]


@pytest.mark.parametrize("name", KINDS)
def test_likeness_is_that_of_the_evidence_page(runs, name):
    run, found, record = exported(runs[name])
    view = patient_view(run, key(0))
    assert [m["modality"] for m in record["modalities"]] == list(view.has)
    assert record["about"] == prototypes.network_sentence(found, prototypes.agreement(run, found, "0"))
    for one in record["modalities"]:
        table = prototypes.patient_table(found, key(0), one["modality"])
        assert [p["prototype"] for p in one["prototypes"]] == list(table["prototype"])
        assert [p["level"] for p in one["prototypes"]] == list(table["level"])
        assert [p["networks"] for p in one["prototypes"]] == list(table["networks"])
        assert np.array_equal([p["cosine"] for p in one["prototypes"]], table["cosine"])
        if name == "bottleneck":
            assert np.array_equal([p["probability"] for p in one["prototypes"]], table["probability"])
        else:
            assert {p["probability"] for p in one["prototypes"]} == {None}
        own = prototypes.nearest_of(found, key(0), one["modality"])
        assert [p["nearest"] for p in one["prototypes"]] == [k == own for k in range(len(table))]
        assert one["nearest"] == found.names[own]


def test_exemplars_are_training_patients_of_every_prototype(runs):
    run, found, record = exported(runs["additive"])
    held = set(found.patient_ids)
    for one in record["modalities"]:
        m = found.modalities.index(one["modality"])
        for number, p in enumerate(one["prototypes"]):
            rows = found.exemplar[m, number]
            assert [x["key"] for x in p["exemplars"]] == [found.train_ids[int(k)] for k in rows]
            assert not {x["key"] for x in p["exemplars"]} & held
            assert set(p["exemplars"][0]) == {"key", "cosine"}, "outcomes stand at the nearest prototype alone"
        number = [p["nearest"] for p in one["prototypes"]].index(True)
        page = prototypes.exemplar_table(run, found, one["modality"], number)
        assert one["exemplars"] == page.to_dict("records")
        group = prototypes.group(found, one["modality"], [number])
        assert one["became"]["patients"] == len(group.keys)
        assert one["became"]["text"] == prototypes.outcome_text(run, group.keys, 500.0)


def test_terms_sum_to_the_logit_and_are_those_of_the_patient_page(runs):
    _, found, record = exported(runs["additive"])
    row, told = found.patient_ids.index(key(0)), record["sum"]
    assert told["logit"] == found.logit[row, 0]
    assert sum(t["term"] for t in told["terms"]) + told["constant"] == pytest.approx(told["logit"], abs=1e-9)
    assert told["terms"] == prototypes.terms_table(found, key(0)).to_dict("records")
    shown = prototypes.sums_table(found, key(0)).to_dict("records")
    assert [f"{m['lowest']:+.3f}" for m in told["by_modality"]] == [r["lowest of all networks"] for r in shown]
    assert told["text"] == prototypes.sum_sentence(found, key(0))
    assert exported(runs["bottleneck"])[2]["sum"] is None


def test_collapse_is_told(runs):
    _, found, record = exported(runs["additive"])
    assert record["collapse"] == dict(zip(("sound", "text"), prototypes.collapse_sentence(found), strict=True))
    assert record["collapse"]["sound"] is False
    genes = next(m for m in record["modalities"] if m["modality"] == "genes")
    told = {p["prototype"]: p["check"] for p in genes["prototypes"]}
    assert (told["1a"], told["2b"]) == ("one with 2b (0.97)", "one with 1a (0.97)")


def verified(path, record, forms, folder):
    assert [m["modality"] for m in record["prototypes"]["modalities"]] == record["has"]
    for form in forms:
        (folder / form).write_bytes(FORMATS[form][1](record))
        assert record_of((folder / form).read_bytes()) == (form, record)
        assert [one.ok for one in verify_export(path, folder / form)] == [True] * 6


@pytest.mark.parametrize(("name", "patient"), [("additive", 0), ("additive", 1), ("additive", 2), ("bottleneck", 0)])
def test_forms_say_the_same_and_are_verified(runs, name, patient, tmp_path):  # all modalities; one alone; none
    verified(runs[name], patient_record(open_review(runs[name]), key(patient)), ("JSON", "CSV"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_pages_are_verified(runs, name, tmp_path):
    for patient in range(3):
        verified(runs[name], patient_record(open_review(runs[name]), key(patient)), ("HTML", "PDF"), tmp_path)


@pytest.mark.parametrize(
    ("name", "patient"),
    [("additive", 1), *(pytest.param(name, 0, marks=pytest.mark.slow) for name in KINDS)],  # 1 has one modality
)
def test_every_number_of_the_record_is_shown_in_html_and_pdf(runs, name, patient, monkeypatch):
    written = []
    put = pdf_module._Paper._put
    monkeypatch.setattr(pdf_module._Paper, "_put", lambda own, text, **at: (written.append(text), put(own, text, **at)))
    record = patient_record(open_review(runs[name]), key(patient))
    FORMATS["PDF"][1](record)
    page = FORMATS["HTML"][1](record).decode()
    visible = html.unescape(re.sub("<[^>]*>", "\n", page[: page.index("<details>")]))
    alike = record["prototypes"]
    for text in (" ".join(visible.split()), " ".join(" ".join(written).split())):
        # The PDF wraps cells of a row beside each other, so whole sentences are looked for in the page alone.
        for one in alike["modalities"]:
            for p in one["prototypes"]:
                assert f"{p['cosine']:+.3f}" in text
                assert all(x["key"] in text and f"({x['cosine']:+.3f})" in text for x in p["exemplars"])
            assert all(f"{x['cosine']:+.3f}" in text and str(x["days"]) in text for x in one["exemplars"])
        for term in (alike["sum"] or {"terms": []})["terms"]:
            assert f"{term['term']:+.3f}" in text
    assert alike["collapse"]["text"] in visible
    assert alike["about"] in visible
    assert ("terms of the sum" in visible) == (name == "additive")
    assert "cosine, probability" in visible or name == "additive"


def test_terms_of_a_multiclass_outcome_are_of_its_class(tmp_path):
    path = write(make_run(tmp_path / "run", kind="multiclass"))
    run, found = open_review(path), prototypes.prototypes_of(open_review(path), "0")
    told = patient_record(run, key(0), 2)["prototypes"]
    assert told["sum"]["logit"] == found.logit[found.patient_ids.index(key(0)), 2]
    assert told["modalities"][0]["became"]["day"] is None


def test_a_run_without_prototypes_says_nothing_of_them(runs):
    record = patient_record(open_review(runs["none"]), key(0))
    assert "prototypes" not in record
    assert not any("prototypes" in name for name in record["stamp"]["parts_sha256"])
    assert all(b"rototype" not in FORMATS[form][1](record) for form in ("HTML", "JSON", "CSV"))


def test_forged_prototypes_are_found_by_the_numbers(runs, tmp_path):
    record = patient_record(open_review(runs["additive"]), key(0))
    assert any(name.endswith("prototypes/terms.npy") for name in record["stamp"]["parts_sha256"])
    for name, forged in (
        ("additive", record | {"prototypes": json.loads(json.dumps(record["prototypes"]).replace('"1a"', '"9z"'))}),
        ("additive", {name: value for name, value in record.items() if name != "prototypes"}),
        ("none", patient_record(open_review(runs["none"]), key(0)) | {"prototypes": record["prototypes"]}),
    ):
        forged["content_sha256"] = content_sha256(forged)
        (tmp_path / "file").write_bytes(FORMATS["JSON"][1](forged))
        found = verify_export(runs[name], tmp_path / "file")
        assert [one.what for one in found if one.ok is False] == ["numbers"]
        assert "other in the run: prototypes" in found[-1].line()
