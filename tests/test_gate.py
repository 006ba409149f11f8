"""The gate: what identifies a person is named by file and element, never by value, and nothing of it is stored."""

import json

import pytest
from gate_cases import CANARY, IDS, KEY, with_text

from medfuse import cli, gate
from medfuse.checking import check
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError, DataError
from medfuse.extraction import extract
from medfuse.pseudonyms import pseudonym

NOTE = f"Seen by Dr. {CANARY}Smith on 12.03.2019. The margin is free of tumour."
CLEAN = "The margin is free of tumour. Two nodes are involved."


def stored(store):
    return [p for p in store.rglob("*") if p.is_file()] if store.exists() else []


def test_strict_check_names_file_and_element_and_never_the_value(tmp_path, capsys, monkeypatch):
    card = with_text(tmp_path, {"A-1001": NOTE, "A-1002": CLEAN})
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
    words = ["check", str(card), "--data-root", str(tmp_path)]
    assert cli.main([*words, "--strict", "--json"]) == 1
    out = capsys.readouterr()
    report = json.loads(out.out)
    rows = {(row["part"], row["file"], row["element"]) for row in report["identifying"]}
    assert rows == {("notes", "A-1001.txt", "pattern: name"), ("notes", "A-1001.txt", "pattern: date")}
    assert CANARY not in out.out + out.err
    assert not stored(tmp_path / "store")
    assert cli.main([*words, "--strict"]) == 1
    assert "pattern: name" in capsys.readouterr().out
    capsys.readouterr()
    assert cli.main(words) == 0  # without strict, the card decides


def test_a_strict_card_stores_nothing_of_anyone_until_each_element_is_accepted(tmp_path):
    card = with_text(tmp_path, {"A-1001": NOTE, "A-1002": CLEAN}, strict=True)
    store = tmp_path / "store"
    people = read_cohort(read_card(card), data_root=tmp_path)
    for run in (lambda: extract(people, store_root=store), lambda: load_modalities(people, store_root=store)):
        with pytest.raises(DataError, match=r"A-1001.txt: pattern: (name|date)") as refused:
            run()
        assert CANARY not in str(refused.value)
        assert not [p for p in stored(store) if p.name == "item.json"]
    assert not check(card, data_root=tmp_path, store_root=store).ok
    half = with_text(tmp_path, {"A-1001": NOTE, "A-1002": CLEAN}, strict=True, accepted=["pattern: name"])
    with pytest.raises(DataError, match="pattern: date"):
        extract(read_cohort(read_card(half), data_root=tmp_path), store_root=store)
    both = with_text(tmp_path, {"A-1001": NOTE, "A-1002": CLEAN}, strict=True, accepted=["pattern: *"])
    report = extract(read_cohort(read_card(both), data_root=tmp_path), store_root=store)
    assert [item.status for item in report.items] == ["stored", "stored"]


def test_what_was_stored_without_the_gate_is_not_taken_by_a_strict_card(tmp_path):
    store = tmp_path / "store"
    loose = with_text(tmp_path, {"A-1001": NOTE, "A-1002": CLEAN})
    load_modalities(read_cohort(read_card(loose), data_root=tmp_path), store_root=store)
    strict = with_text(tmp_path, {"A-1001": NOTE, "A-1002": CLEAN}, strict=True)
    with pytest.raises(DataError, match="identifying"):
        load_modalities(read_cohort(read_card(strict), data_root=tmp_path), store_root=store)


def test_a_file_that_cannot_be_looked_into_fails_alone(tmp_path):
    card = with_text(tmp_path, {"A-1001": CLEAN, "A-1002": CLEAN}, strict=True)
    (tmp_path / "notes" / "A-1002.txt").write_bytes(b"\xff\xfe\x00broken")
    report = extract(read_cohort(read_card(card), data_root=tmp_path), store_root=tmp_path / "store")
    assert {item.patient_id: item.status for item in report.items} == {"A-1001": "stored", "A-1002": "failed"}
    problems = check(card, data_root=tmp_path, store_root=tmp_path / "store").problems
    (problem,) = [p for p in problems if p["severity"] == "error" and p["file"] == "gate"]
    assert "A-1002" in problem["message"]


def test_a_loader_that_breaks_while_looking_lets_nothing_pass(tmp_path, monkeypatch):
    from medfuse.loaders import text

    def broken(files):
        raise ZeroDivisionError(CANARY)

    monkeypatch.setattr(text, "identifying", broken)
    card = with_text(tmp_path, {"A-1001": CLEAN, "A-1002": CLEAN}, strict=True)
    report = extract(read_cohort(read_card(card), data_root=tmp_path), store_root=tmp_path / "store")
    assert {item.status for item in report.items} == {"failed"}
    assert not check(card, data_root=tmp_path, store_root=tmp_path / "other").ok
    assert CANARY not in "".join(item.reason for item in report.items)


def test_names_of_files_that_are_not_the_pattern_are_not_repeated(tmp_path):
    card = with_text(tmp_path, {}, path="notes/{patient_id}_*.txt", strict=True)
    (tmp_path / "notes" / f"A-1001_{CANARY}.txt").write_text(NOTE)
    (tmp_path / "notes" / f"A-1002_{CANARY}.txt").write_bytes(b"\xff\xfebroken")
    report = check(card, data_root=tmp_path, store_root=tmp_path / "store")
    assert report.identifying
    assert CANARY not in json.dumps(report.to_dict())
    with pytest.raises(DataError) as refused:
        extract(read_cohort(read_card(card), data_root=tmp_path), store_root=tmp_path / "store")
    assert CANARY not in str(refused.value)


def test_the_refusal_of_a_thousand_files_is_short():
    from medfuse.config import CohortCard

    found = [gate.Finding(part="ct", file=f"{k}.dcm", element=f"(0010,00{k % 20:02d}) X: name") for k in range(1000)]
    text = str(gate.refusal(CohortCard.model_construct(name="c"), found))
    assert len(text) < 1500
    assert "and 49 more files" in text
    assert "12 more elements" in text


# --- pseudonyms ------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("MEDFUSE_PSEUDONYM_KEY", KEY)
    return KEY.encode()


def test_with_pseudonyms_no_id_is_in_the_store_errors_or_reports(tmp_path, key):
    store = tmp_path / "store"
    card = with_text(tmp_path, {"A-1001": CLEAN, "A-1003": CLEAN}, pseudonyms=True)
    (tmp_path / "notes" / "A-1002.txt").write_bytes(b"\xff\xfebroken")
    people = read_cohort(read_card(card), data_root=tmp_path)
    assert people.patient_ids == tuple(pseudonym(i, key) for i in IDS)
    data = load_modalities(people, store_root=store)
    assert set(data["notes"].samples) == {pseudonym("A-1001", key), pseudonym("A-1003", key)}
    assert set(data["table"].samples) == set(people.patient_ids)
    report = extract(people, store_root=store)
    said = "".join(item.reason for item in report.items) + json.dumps(check(card, data_root=tmp_path).to_dict())
    assert report.failed[0].patient_id == pseudonym("A-1002", key)
    for text in (said, *(p.read_bytes().decode("latin-1") + str(p) for p in stored(store))):
        assert "A-10" not in text.replace(str(tmp_path), "")
        assert KEY not in text


def test_same_key_same_pseudonyms_other_key_others_and_no_short_key(tmp_path, key, monkeypatch):
    card = read_card(with_text(tmp_path, {"A-1001": CLEAN}, pseudonyms=True))
    one = read_cohort(card, data_root=tmp_path)
    assert read_cohort(card, data_root=tmp_path).patient_ids == one.patient_ids
    file = tmp_path / "key"
    file.write_text("k" * 40)
    monkeypatch.setenv("MEDFUSE_PSEUDONYM_KEY_FILE", str(file))
    other = read_cohort(card, data_root=tmp_path)
    assert not set(other.patient_ids) & set(one.patient_ids)
    store = tmp_path / "store"
    for people in (one, other):
        assert set(load_modalities(people, store_root=store)["table"].samples) == set(people.patient_ids)
    file.write_text("short")
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        read_cohort(card, data_root=tmp_path)


def test_pseudonyms_are_hmac_sha256():
    """RFC 4231, test case 2, cut to 128 bits."""
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "P-5bdcc146bf60754e6a042426089575c7"


def test_errors_about_a_table_name_pseudonyms_also_of_patients_outside_the_cohort(tmp_path, key):
    card = with_text(tmp_path, {}, pseudonyms=True)
    (tmp_path / "table.csv").write_text("id,age\nA-1001,61\nZ-9999,5\nZ-9999,6\n")
    with pytest.raises(DataError) as refused:
        load_modalities(read_cohort(read_card(card), data_root=tmp_path), store_root=tmp_path / "store")
    assert "Z-9999" not in str(refused.value)
    assert "P-" in str(refused.value)


def test_predictions_under_another_key_do_not_claim_to_know_who_was_trained_on(tmp_path, monkeypatch):
    from medfuse.applying import names_of, same_names
    from medfuse.run import Run

    run = Run(path=tmp_path / "run")
    plain = read_cohort(read_card(with_text(tmp_path, {})), data_root=tmp_path)
    monkeypatch.setenv("MEDFUSE_PSEUDONYM_KEY", KEY)
    card = read_card(with_text(tmp_path, {}, pseudonyms=True))
    one = read_cohort(card, data_root=tmp_path)
    monkeypatch.setenv("MEDFUSE_PSEUDONYM_KEY", KEY[::-1])
    other = read_cohort(card, data_root=tmp_path)
    for people in (plain, one, other):
        run.write("data", {"modalities": {}, "pseudonyms": names_of(people)})
        assert [same_names(run, them) for them in (plain, one, other)] == [
            them is people for them in (plain, one, other)
        ]
    run.write("data", {"modalities": {}})  # of an earlier version
    assert same_names(run, plain)
    assert not same_names(run, one)
