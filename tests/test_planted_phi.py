"""Planted PHI: hundreds of made-up names in the files, and none in anything that medfuse writes or says."""

import json
import sqlite3
import zipfile

import pandas as pd
import planted
import planted_more
import pytest
from gate_cases import KEY

from medfuse import cli

MARK = planted.MARK.lower().encode()
WIDE = planted.MARK.lower().encode("utf-16-le")
FORM = b"qzxid{:04d}"  # how the card of the events forms ids: its author's words, no patient's


def hits(name, content):
    """Where a canary stands in bytes, also as UTF-16."""
    low = content.lower().replace(FORM, b"")
    return [name] if MARK in low or WIDE in low else []


def found_in(folder):
    """Files below a folder that hold a canary in name or content, tables and archives unpacked."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        where = path.relative_to(folder).as_posix()
        found += hits(f"name {where}", where.encode()) + hits(where, path.read_bytes())
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            found += hits(f"cells of {where}", frame.to_csv().encode())
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += [h for m in archive.namelist() for h in hits(f"{where}:{m}", m.encode() + archive.read(m))]
        elif path.suffix == ".db":
            with sqlite3.connect(path) as database:
                found += hits(f"rows of {where}", "\n".join(database.iterdump()).encode())
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, apart from the data."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("MEDFUSE_PSEUDONYM_KEY", KEY)
    monkeypatch.setenv("MEDFUSE_STORE", str(work / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work / 'mlflow.db'}")
    data = tmp_path / "data"
    data.mkdir()
    return data, work


def quiet(words, capsys, caplog, *, code):
    """Run a command; nothing that it prints or logs holds a canary. Its path of the card does not either."""
    assert cli.main(list(map(str, words))) == code, capsys.readouterr()
    said = capsys.readouterr()
    for name, text in (("stdout", said.out), ("stderr", said.err), ("log", caplog.text)):
        assert not hits(name, text.encode()), (words[0], name)
    return said.out


def test_the_search_finds_what_it_looks_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"..qZX..")
    (tmp_path / "b.bin").write_bytes("Qzx".encode("utf-16-le"))
    (tmp_path / "Qzx.bin").write_bytes(b"")
    pd.DataFrame({"x": ["Qzx1"] * 99}).to_parquet(tmp_path / "c.parquet")
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", "Qzx" * 99)
    assert len(found_in(tmp_path)) >= 5


# formats -> those that the strict check must name; at most eight modalities fit into a card
CARDS = {
    "words, signals and tables": ((*planted.RAW, *planted.TABLES), {"notes", "wfdb", "edf", "dicom", "aecg"}, 5),
    "images, events and variants": (
        (*planted_more.RAW, *planted_more.TABLES),
        {"ct", "slides", "nifti", "meds", "maf", "vcf"},
        3,
    ),
}


@pytest.mark.parametrize("which", sorted(CARDS))
def test_four_hundred_canaries_leave_no_trace_in_store_messages_or_errors(place, capsys, caplog, which):
    data, work = place
    only, named, broken = CARDS[which]
    card, counts = planted.cohort(data, patients=24, each=6, only=only)
    assert sum(counts.values()) >= 400
    assert len([form for form, count in counts.items() if count >= 20]) >= 6
    assert len(found_in(data)) >= 30
    options = ["--data-root", data]
    quiet(["inspect", data / "patients.csv"], capsys, caplog, code=0)
    report = json.loads(quiet(["check", card, *options, "--strict", "--json"], capsys, caplog, code=1))
    assert named <= {row["part"] for row in report["identifying"]}
    assert not [p for p in (work / "store").rglob("*") if p.is_file()]
    said = quiet(["extract", "--cohort", card, *options], capsys, caplog, code=1)
    assert said.count("FAILED") == broken  # one broken file of each raw format, and each says why
    assert "internal error" not in said
    quiet(["check", card, *options], capsys, caplog, code=0)
    assert len([p for p in (work / "store").rglob("manifest.json")]) >= 5 * broken
    assert found_in(work) == []


@pytest.mark.slow
@pytest.mark.parametrize("which", sorted(CARDS))
def test_training_tracking_report_and_predictions_hold_no_canary(place, capsys, caplog, which):
    data, work = place
    card, _ = planted.cohort(data, patients=60, each=30, only=CARDS[which][0])
    words = ["--data-root", data]
    quick = ["train.epochs=2", "train.unimodal=false", "evaluation.bootstrap=20", "tracking.mlflow=true"]
    settings = [word for one in quick for word in ("--set", one)]
    quiet(["train", "--cohort", card, "--recipe", "smoke", "--out", "run", *words, *settings], capsys, caplog, code=0)
    quiet(["predict", "run", "--cohort", card, *words], capsys, caplog, code=0)
    quiet(["report", "run"], capsys, caplog, code=0)
    assert (work / "run" / "report.html").is_file()
    assert (work / "mlflow.db").is_file()
    assert list(work.glob("predictions_*.csv"))
    assert found_in(work) == []
