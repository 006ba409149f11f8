"""Exports of a patient: the same numbers in four forms, safe to open, and verifiable against the run."""

import json
import stat
import string

import made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfuse.cli import main
from medfuse.errors import CohortError, ConfigError, DataError, StoreError
from medfuse.exporting import FORMATS, export_patient, patient_record, record_of, times_opened, verify_export
from medfuse.exporting import pdf as pdf_module
from medfuse.exporting.flat import as_csv, from_csv, guarded, unguarded
from medfuse.exporting.record import content_sha256
from medfuse.files import seal
from medfuse.pages import BANNER
from medfuse.review.log import ChainedLog
from medfuse.review.source import open_review
from medfuse.review.words import BANNER as REVIEW_BANNER
from medfuse.review.words import percent

FORMS = ("html", "pdf", "json", "csv")
HOSTILE = {
    0: "=HYPERLINK('http://evil','x')",
    3: "<script>alert(1)</script>",
    6: "x" * 300,
    7: "患者 甲 $x_1$ \u0007",
    9: "\u202e@SUM(A1)مريض",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made.make_run(tmp_path_factory.mktemp("export") / "run", parts=True)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return made.make_run(tmp_path_factory.mktemp("hostile") / "run", parts=True, names=HOSTILE)


def bad(found):
    return [one.what for one in found if one.ok is False]


@pytest.mark.parametrize("kind", ["survival", "binary", "multiclass", "continuous"])
def test_every_form_carries_the_whole_record_and_is_verified(tmp_path, kind):
    path = made.make_run(tmp_path / "run", kind=kind, parts=kind == "survival", patients=12)
    opened = open_review(path)
    # all modalities; for survival also one alone, and none
    for patient in map(made.key, range(3 if kind == "survival" else 1)):
        record = patient_record(opened, patient)
        for name, (_, write) in FORMATS.items():
            file = tmp_path / f"x.{name}"
            file.write_bytes(write(record))
            form, back = record_of(file.read_bytes())
            assert form == name
            assert back == record
            found = verify_export(path, file)
            assert [one.ok for one in found] == [True] * 6, [one.line() for one in found]


def test_d6_and_d18_banner_and_numbers_are_shown_in_every_form(run, monkeypatch):
    assert BANNER == REVIEW_BANNER
    record = patient_record(open_review(run), made.key(0))
    written = []
    put = pdf_module._Paper._put
    monkeypatch.setattr(
        pdf_module._Paper, "_put", lambda self, text, **at: (written.append(text), put(self, text, **at))[1]
    )
    forms = {name: write(record) for name, (_, write) in FORMATS.items()}
    assert all(BANNER.encode() in content for content in forms.values())
    shown = " ".join(written)
    page = forms["HTML"].decode()
    for text in (page, shown):
        for risk in record["risks"]:
            assert f"{percent(risk['low'])} to {percent(risk['high'])}" in text, "never a risk without its interval"
            assert percent(risk["risk"]) in text
        for one in record["contributions"]:
            assert f"{one['contribution']:+.3f}" in text
        for digest in (record["stamp"]["run_id"], record["stamp"]["run_manifest_sha256"], record["content_sha256"]):
            assert digest in text
    pages = sum(text.startswith("page ") for text in written)
    assert pages >= 2
    assert shown.count("Research use only.") == pages
    assert "src=" not in page
    assert "<script" not in page


def test_the_same_record_gives_the_same_bytes(run):
    record = patient_record(open_review(run), made.key(0))
    for _, write in FORMATS.values():
        assert write(record) == write(record)


@pytest.mark.parametrize("number", HOSTILE)
def test_d12_hostile_names_are_inert_in_every_form(hostile, number, tmp_path):
    record = patient_record(open_review(hostile), HOSTILE[number])
    for name, (_, write) in FORMATS.items():
        (tmp_path / name).write_bytes(write(record))
        assert record_of((tmp_path / name).read_bytes()) == (name, record)
    assert bad(verify_export(hostile, tmp_path / "CSV")) == []
    page = (tmp_path / "HTML").read_text()
    assert "<script" not in page
    lines = (tmp_path / "CSV").read_bytes().decode().split("\r\n")
    for line in lines[1:-1]:
        for cell in line.split(",")[:2]:
            assert cell.lstrip('"')[:1] not in tuple("=+@-|"), line
    own = next(line for line in lines if line.startswith("patient,,text,")).removeprefix("patient,,text,").lstrip('"')
    assert own[:1] not in tuple("=+@-|")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_guarding_is_undone_and_leaves_no_formula(text):
    safe = guarded(text)
    assert unguarded(safe) == text
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r", "|"))
    assert not safe.lstrip().startswith(("=", "+", "-", "@"))


_PLAIN = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_KEYS = st.text(alphabet=string.ascii_letters + "/~[]=0 '", min_size=1, max_size=5)
_JSON = st.recursive(
    _PLAIN | _TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=12
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_KEYS, _JSON, max_size=4))
def test_any_record_survives_the_flat_table(record):
    assert from_csv(as_csv(record)) == record


def change(content, old, new):
    assert old in content
    return content.replace(old, new, 1)


def test_a_changed_file_is_found_out(run, tmp_path):
    record = patient_record(open_review(run), made.key(0))
    risk = percent(record["risks"][0]["risk"])
    other = percent(record["risks"][0]["risk"] / 2 + 0.01)
    file = tmp_path / "file"
    page = FORMATS["HTML"][1](record).decode()
    file.write_text(change(page, f"<td>{risk}</td>", f"<td>{other}</td>"))
    assert bad(verify_export(run, file)) == ["what the HTML shows"]
    document = FORMATS["PDF"][1](record)
    at = document.index(b"stream\n") + 40  # the first page's drawing
    file.write_bytes(document[:at] + bytes([document[at] ^ 1]) + document[at + 1 :])
    assert bad(verify_export(run, file)) == ["what the PDF shows"]
    rows = FORMATS["CSV"][1](record).decode()
    value = json.dumps(record["risks"][0]["risk"])
    file.write_bytes(change(rows, f"risks,/[0]/risk,number,{value}", "risks,/[0]/risk,number,0.5").encode())
    assert {"record", "numbers"} <= set(bad(verify_export(run, file)))


def test_a_forger_who_makes_the_hash_fit_is_found_by_the_numbers(run, tmp_path):
    record = patient_record(open_review(run), made.key(0))
    record["risk"]["value"] = 0.01
    record["content_sha256"] = content_sha256(record)
    for name in ("HTML", "JSON", "CSV"):
        (tmp_path / name).write_bytes(FORMATS[name][1](record))
        found = verify_export(run, tmp_path / name)
        assert bad(found) == ["numbers"], name
        assert "other in the run: risk" in found[-1].line()


def test_another_run_or_a_changed_one_is_found_out(tmp_path):
    path = made.make_run(tmp_path / "run", parts=True)
    file = tmp_path / "file"
    file.write_bytes(FORMATS["JSON"][1](patient_record(open_review(path), made.key(0))))
    facts = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**facts, "note": "another seal"}))
    seal(path, {"format_version": 1, "kind": "run"})
    words = {one.what: one.ok for one in verify_export(path, file)}
    assert words["seal of the run"] is None, "sealed again: the numbers decide"
    assert words["numbers"] is True
    values = path / "explanations" / "death" / "0" / "values.npy"
    values.write_bytes(values.read_bytes()[:-1] + b"\1")
    assert "parts of the run" in bad(verify_export(path, file))
    (path / "run.json").write_text(json.dumps({**facts, "facts": {**facts["facts"], "seed": 1}}))
    assert bad(verify_export(path, file)) == ["run"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"%PDF-1.4 nothing", b"<!doctype html><p>x", b"a,b\r\n1,2\r\n"]
)
def test_what_is_no_export_is_refused_with_a_reason(run, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="expected"):
        verify_export(run, tmp_path / "file")
    assert main(["verify", str(run), str(tmp_path / "file")]) == 2


def test_random_damage_never_ends_in_a_foreign_error(run, tmp_path):
    record = patient_record(open_review(run), made.key(0))
    rng, file = np.random.default_rng(0), tmp_path / "file"
    for write in (FORMATS["JSON"][1], FORMATS["CSV"][1], FORMATS["HTML"][1]):
        content = write(record)
        for _ in range(20):
            at = int(rng.integers(len(content)))
            damaged = content[:at] + rng.integers(0, 256, 4, dtype=np.uint8).tobytes() + content[at + 4 :]
            file.write_bytes(damaged)
            try:
                assert bad(verify_export(run, file)) or damaged == content
            except DataError:
                continue


def test_the_command_writes_and_verifies_and_tells_no_id(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for form in FORMS:
        assert main(["export", str(run), "--patient", made.key(0), "--format", form]) == 0
        name = capsys.readouterr().out.split()[1]
        assert made.key(0) not in name
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert main(["verify", str(run), name]) == 0
        said = capsys.readouterr().out
        assert "ok  numbers" in said
        assert made.key(0) not in said
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"number,0.", b"number,0.1", 1))
    assert main(["verify", str(run), name]) == 1
    assert main(["export", str(run), "--patient", "nobody-has-this", "--format", "pdf"]) == 2
    assert "nobody-has-this" not in capsys.readouterr().err


def test_refusals(run, tmp_path):
    with pytest.raises(ConfigError, match="no format 'docx'"):
        export_patient(run, made.key(0), form="docx")
    with pytest.raises(CohortError, match="held-out patient"):
        export_patient(run, "x", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="horizon"):
        export_patient(run, made.key(0), at=1e6, out=tmp_path / "x")
    with pytest.raises(StoreError):
        export_patient(tmp_path, made.key(0))


def test_d8_a_withheld_prediction_is_exported_only_when_asked_for_and_says_so(run, tmp_path):
    with pytest.raises(ConfigError, match="withheld") as caught:
        export_patient(run, made.key(5), out=tmp_path / "x")
    assert made.key(5) not in str(caught.value)
    assert not (tmp_path / "x").exists()
    path, _ = export_patient(run, made.key(5), form="html", out=tmp_path / "x", withheld=True)
    assert "PREDICTION WITHHELD" in path.read_text()


def test_an_export_is_recorded_beside_a_review_without_the_patient(tmp_path):
    path = made.make_run(tmp_path / "run", parts=True)
    log = ChainedLog(tmp_path / "run-review" / "audit.jsonl")
    assert times_opened(path) is None
    log.append("held-out opened", {"who": "a", "run_sha256": "1"})
    log.append("held-out opened", {"who": "b", "run_sha256": "2"})
    assert times_opened(path) == 2, "whichever seal the run had then"
    out, digest = export_patient(path, made.key(0), form="json", out=tmp_path / "x.json")
    row = log.rows()[-1]
    assert (row["kind"], row["form"], row["file_sha256"]) == ("export", "JSON", digest)
    assert made.key(0) not in log.path.read_text()
    assert record_of(out.read_bytes())[1]["stamp"]["audit_log_head"] == log.rows()[1]["sha256"]
