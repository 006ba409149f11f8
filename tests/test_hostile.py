"""Hostile files and folders: bombs, paths that lead elsewhere, pipes, loops, depth; refused at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gate_cases import IDS, card_file, with_text

from medfuse import limits
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.errors import ConfigError, DataError
from medfuse.extraction import extract, listing
from medfuse.inspection import inspect
from medfuse.limits import check_growth, files_below, inflate

ROOT = Path(__file__).parents[1]


def test_twenty_bombs_are_refused_within_two_seconds_and_300_mb(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "tests" / "bombs.py"), str(tmp_path)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=300)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 20
    for row in rows:
        assert row["refused"], row
        assert row["seconds"] < 2, row
    assert rows[-1]["most_mib"] < 300


def test_a_table_that_packs_well_is_no_bomb(tmp_path):
    import gzip

    zeros = b"id,a\n" + b"001,0\n" * 400_000
    (tmp_path / "a.gz").write_bytes(gzip.compress(zeros))
    assert inflate(tmp_path / "a.gz") == zeros
    check_growth(1 << 20, 300 << 20, where="a mask of zeros")
    with pytest.raises(DataError, match="bomb"):
        check_growth(1 << 20, 500 << 20, where="x")


def test_growth_is_seen_while_it_inflates_and_not_only_at_the_end(tmp_path):
    """A bomb with incompressible ballast behind it looks harmless as a whole: 24 MiB packed, 1 GiB inflated."""
    import gzip

    from bombs import GIB, zeros_gz

    bomb = zeros_gz(GIB) + gzip.compress(os.urandom(24 << 20), 0)
    (tmp_path / "a.gz").write_bytes(bomb)
    with pytest.raises(DataError, match="bomb"):
        inflate(tmp_path / "a.gz")


# --- where files lie -------------------------------------------------------------------------------------------------


def people_of(card, folder):
    return read_cohort(read_card(card), data_root=folder)


@pytest.fixture
def place(tmp_path):
    """A data root with notes of two patients beside a folder that nobody may read."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "A-1001.txt").write_text("Not yours.")
    return root, with_text(root, {"A-1001": "Free margin.", "A-1002": "Two nodes."})


def outcome(card, root):
    report = extract(people_of(card, root), store_root=root.parent / "store", workers=0)
    return {item.patient_id: (item.status, item.reason) for item in report.items}


@pytest.mark.parametrize(
    "pattern", ["../secret/{patient_id}.txt", "/etc/{patient_id}", "~/{patient_id}", "a/../../{patient_id}"]
)
def test_a_pattern_that_leaves_the_root_is_refused(place, pattern):
    root, _ = place
    card = with_text(root, {}, path=pattern)
    found = outcome(card, root)
    assert {status for status, _ in found.values()} == {"failed"}
    assert "Not yours" not in str(found)


@pytest.mark.parametrize("patient", ["../secret/A-1001", "..", "/etc/passwd", "a/../b", "a\\..\\b", "C:\\x"])
def test_an_id_cannot_lead_out_of_the_root_and_stops_nobody_else(place, patient):
    root, _ = place
    modalities = {"notes": {"loader": "text", "path": "notes/{patient_id}.txt"}}
    card = card_file(root, modalities, ids=(patient, "A-1001", "A-1002"))
    found = outcome(card, root)
    assert found.pop(patient, ("failed", ""))[0] == "failed"
    assert {i: status for i, (status, _) in found.items()} == {"A-1001": "stored", "A-1002": "stored"}


def test_wildcards_in_an_id_match_nobody_elses_files(place):
    root, _ = place
    modalities = {"notes": {"loader": "text", "path": "notes/{patient_id}.txt"}}
    card = card_file(root, modalities, ids=("*", "A-100?", "A-100[12]", "A-1001"))
    assert list(outcome(card, root)) == ["A-1001"]


def test_links_out_of_the_root_are_refused_and_those_inside_are_not(place):
    root, card = place
    (root / "notes" / "A-1003.txt").symlink_to(root.parent / "secret" / "A-1001.txt")
    (root / "notes" / "A-1004.txt").symlink_to(root / "notes" / "A-1001.txt")
    (root / "notes" / "A-1005.txt").symlink_to(root / "notes" / "A-1005.txt")
    (root / "notes" / "A-1006.txt").symlink_to(root / "notes" / "gone.txt")
    found = outcome(card, root)
    assert {i: status for i, (status, _) in found.items()} == {
        "A-1001": "stored",
        "A-1002": "stored",
        "A-1003": "failed",
        "A-1004": "kept",  # the same content
        "A-1005": "failed",
        "A-1006": "failed",
    }
    assert "link" in found["A-1003"][1]


def test_a_folder_that_is_a_link_out_is_refused_and_one_below_is_not_followed(place):
    root, _ = place
    card = with_text(root, {}, path="cases/{patient_id}")
    (root / "cases" / "A-1002" / "deep").mkdir(parents=True)
    (root / "cases" / "A-1002" / "deep" / "a.txt").write_text("Fine.")
    (root / "cases" / "A-1001").symlink_to(root.parent / "secret")
    (root / "cases" / "A-1002" / "more").symlink_to(root.parent / "secret")
    found = outcome(card, root)
    assert found["A-1001"][0] == "failed"
    items, _ = listing(people_of(card, root), "notes")
    assert [path.name for item in items for path in item.files] == ["a.txt"]


def test_pipes_and_devices_are_not_opened(place):
    root, card = place
    os.mkfifo(root / "notes" / "A-1003.txt")
    found = outcome(card, root)
    assert found["A-1003"][0] == "failed"
    assert "pipe" in found["A-1003"][1]
    assert inspect([root / "notes" / "A-1003.txt"])[0].refusal
    assert inspect(["/dev/zero"])[0].refusal
    assert len(inspect([root / "notes"])) == 2


def test_deep_and_full_folders_are_refused_by_number(place, monkeypatch):
    root, _ = place
    card = with_text(root, {}, path="cases/{patient_id}")
    deep = root / "cases" / "A-1001" / "/".join("d" * 80)
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text("Deep.")
    (root / "cases" / "A-1002").mkdir()
    (root / "cases" / "A-1002" / "a.txt").write_text("Fine.")
    found = outcome(card, root)
    assert found["A-1001"][0] == "failed"
    assert "64 levels" in found["A-1001"][1]
    assert found["A-1002"][0] == "stored"
    assert "64 levels" in inspect([root])[0].refusal
    for k in range(9):
        (root / "notes" / f"{k}.txt").write_text("x")
    with pytest.raises(ValueError, match="at most 5 files"):
        list(files_below(root / "notes", most=5))
    assert limits.LARGEST_FOLDER <= 1_000_000


def test_a_loop_of_links_and_names_too_long_are_refusals_of_inspect(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "one.txt").write_text("One.")
    for path in (tmp_path / "loop", Path("x" * 5000), Path("a\0b")):
        assert inspect([path])[0].refusal
    assert [Path(one.path).name for one in inspect([tmp_path / "a"])] == ["one.txt"]


def test_a_source_of_the_card_that_is_a_pipe_is_refused(place):
    root, card = place
    (root / "table.csv").unlink()
    os.mkfifo(root / "table.csv")
    from medfuse.dataset import load_modalities

    with pytest.raises((DataError, ConfigError)):
        load_modalities(people_of(card, root), names=["table"], store_root=root.parent / "store")


def test_changed_files_are_named_where_the_card_lists_checksums(place):
    root, _ = place
    from medfuse.files import sha256_file

    lines = "".join(f"{sha256_file(root / 'notes' / f'{i}.txt')}  notes/{i}.txt\n" for i in IDS[:2])
    (root / "SHA256SUMS").write_text(lines)
    card = with_text(root, {}, checksums="SHA256SUMS")
    assert {status for status, _ in outcome(card, root).values()} == {"stored"}
    (root / "notes" / "A-1002.txt").write_text("Two nodes!")
    (root / "notes" / "A-1003.txt").write_text("Not listed.")
    found = outcome(card, root)
    assert found["A-1001"][0] == "kept"
    assert "another SHA-256" in found["A-1002"][1]
    assert "not in the list" in found["A-1003"][1]
    (root / "SHA256SUMS").write_text("no sum\n")
    with pytest.raises(DataError, match="sha256sum"):
        outcome(card, root)
