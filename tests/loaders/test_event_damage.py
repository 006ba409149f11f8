"""Broken and hostile files of events: read or refused with a reason, fast and in little memory."""

import gzip
import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_cases import (
    INDEX,
    MIMIC,
    MIMIC_OPTIONS,
    OMOP_OPTIONS,
    RECORD,
    RECORD_OPTIONS,
    ROWS,
    frame,
    load_path,
    mimic,
    mutants,
    omop,
)

from medfuse.errors import MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import events

SLACK = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # the processor is shared with other jobs


def attack(tmp_path, count):
    """Mutants of every format, inspected and read; anything but a result or a MedfuseError fails."""
    events.write_meds(tmp_path / "meds", frame([*ROWS, (1, 4, "CRP", 3.0, "mg/L", "3")] * 9))
    omop(tmp_path / "omop")
    mimic(tmp_path / "mimic", packed=False)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "7.txt").write_text(RECORD.format(id=7, hr=70))
    cases = [
        (tmp_path / "meds", tmp_path / "meds" / "data" / "train" / "0.parquet", {}),
        (tmp_path / "omop", tmp_path / "omop" / "MEASUREMENT.csv", OMOP_OPTIONS),
        (tmp_path / "mimic", tmp_path / "mimic" / "LABEVENTS.csv", MIMIC_OPTIONS),
        (tmp_path / "records", tmp_path / "records" / "7.txt", RECORD_OPTIONS),
    ]
    refused = 0
    for number, (folder, file, options) in enumerate(cases):
        whole = file.read_bytes()
        for mutant in mutants(whole, count // len(cases), number):
            file.write_bytes(mutant)
            try:
                load_path(folder, **options)
            except MedfuseError:
                refused += 1
            assert not any("medfuse failed" in i.refusal for i in inspect([file]))
        file.write_bytes(whole)
    return refused


def test_mutants_are_read_or_refused(tmp_path):
    assert attack(tmp_path, 60) > 15


@pytest.mark.slow
def test_a_thousand_mutants_are_read_or_refused(tmp_path, many):
    count = many(1000, 10_000)
    assert attack(tmp_path, count) > count / 4


# --- broken by name -----------------------------------------------------------------------------------------------


def parquet(path, **changes):
    """One event file with some columns changed (None: left out)."""
    columns = {
        "subject_id": pa.array([1, 1, 2]),
        "time": pa.array([INDEX.to_pydatetime()] * 3, pa.timestamp("us")),
        "code": pa.array(["HR", "LAB//K", "HR"]),
        "numeric_value": pa.array([60.0, 4.0, 70.0]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in {**columns, **changes}.items() if v is not None}), path)
    return path


BROKEN_MEDS = {
    "empty file": (lambda p: p.write_bytes(b""), "whole Parquet file"),
    "half a file": (lambda p: p.write_bytes(parquet(p).read_bytes()[:400]), "whole Parquet file"),
    "no end": (lambda p: p.write_bytes(parquet(p).read_bytes()[:-4]), "whole Parquet file"),
    "length of the end": (
        lambda p: p.write_bytes(parquet(p).read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "whole Parquet file",
    ),
    "another format": (lambda p: p.write_text("subject_id,time,code\n1,2020-01-01,HR\n"), "whole Parquet file"),
    "no code": (lambda p: parquet(p, code=None), "found no code"),
    "nested (MEDS 0.1)": (lambda p: parquet(p, time=None, events=pa.array([[1]] * 3)), "flatten it"),
    "time as text": (lambda p: parquet(p, time=pa.array(["2020-01-01"] * 3)), "column time of timestamps"),
    "subject is null": (lambda p: parquet(p, subject_id=pa.array([1, None, 2])), "subject_id in every event"),
    "code is null": (lambda p: parquet(p, code=pa.array(["HR", None, "HR"])), "code in every event"),
    "value as text": (lambda p: parquet(p, numeric_value=pa.array(["x", "y", "z"])), "damage or other columns"),
    "no rows": (lambda p: pq.write_table(pq.read_table(parquet(p)).slice(0, 0), p), "patients with values"),
    "other columns in a shard": (
        lambda p: (parquet(p), parquet(p.with_name("1.parquet"), unit=pa.array(["/min"] * 3))),
        "write the shards alike",
    ),
    "zeros inside": (
        lambda p: p.write_bytes((b := parquet(p).read_bytes())[:4] + bytes(300) + b[304:]),
        "damage|patients with values",
    ),
}


@pytest.mark.parametrize("name", BROKEN_MEDS)
def test_broken_meds_files_by_name(tmp_path, name):
    make, message = BROKEN_MEDS[name]
    (tmp_path / "meds").mkdir()
    make(tmp_path / "meds" / "0.parquet")
    with pytest.raises(MedfuseError, match=message) as caught:
        load_path(tmp_path / "meds")
    assert "0.parquet" in str(caught.value) or "x" in str(caught.value)
    assert not any("medfuse failed" in i.refusal for i in inspect([tmp_path]))


LAB = MIMIC["LABEVENTS"].encode()
BROKEN_TABLES = {
    "half of gzip": ("LABEVENTS.csv.gz", gzip.compress(LAB * 9)[:70], "cut short"),
    "gzip checksum": ("LABEVENTS.csv.gz", gzip.compress(LAB)[:-8] + bytes(8), "damage"),
    "gzip that is none": ("LABEVENTS.csv.gz", b"\x1f\x8b" + b"no" * 50, "whole gzip"),
    "no header": ("LABEVENTS.csv", LAB.split(b"\n", 1)[1], "header row|other columns"),
    "a column twice": ("LABEVENTS.csv", LAB.replace(b"hadm_id", b"subject_id", 1), "distinct column names"),
    "no subject": ("LABEVENTS.csv", LAB.replace(b"subject_id", b"person", 1), "no column subject_id"),
    "no items": ("LABEVENTS.csv", LAB.replace(b"itemid", b"item", 1), "no column itemid"),
    "cell too many": ("LABEVENTS.csv", LAB.replace(b"mg/dL,\n", b"mg/dL,,high\n", 1), "whole files"),
    "open quote": ("LABEVENTS.csv", LAB.replace(b"mg/dL", b'"mg/dL', 1), "whole files"),
    "semicolons": ("LABEVENTS.csv", LAB.replace(b",", b";"), "whole|header row|other columns"),
    "UTF-16": ("LABEVENTS.csv", LAB.decode().encode("utf-16"), "bytes of zero"),
    "local times": ("LABEVENTS.csv", LAB.replace(b"2150-01-01 12:00:00", b"1.1.2150 12:00", 1), "ISO 8601"),
    "month 13": ("LABEVENTS.csv", LAB.replace(b"2150-01-01 12", b"2150-13-01 12", 1), "ISO 8601"),
    "Latin-1": ("LABEVENTS.csv", LAB.replace(b"ERROR", b"gel\xf6st", 1), "whole files"),
    "other unit": ("LABEVENTS.csv", LAB.replace(b"mg/dL", b"mmol/L", 1), "expected mg/dL"),
    "parquet inside": ("LABEVENTS.csv", b"PAR1" + bytes(200) + b"PAR1", "bytes of zero"),
    "zeros inside": ("LABEVENTS.csv", LAB[:200] + bytes(90) + LAB[290:], "bytes of zero"),
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_broken_tables_by_name(tmp_path, name):
    file, content, message = BROKEN_TABLES[name]
    mimic(tmp_path)
    (tmp_path / "LABEVENTS.csv").unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(MedfuseError, match=message) as caught:
        load_path(tmp_path, **MIMIC_OPTIONS)
    assert not any(word in str(caught.value) for word in ("1.1.2150", "gel", "12:00", "2150-13"))
    assert not any("medfuse failed" in i.refusal for i in inspect([tmp_path]))


HEAD = "Time,Parameter,Value\n"
BROKEN_RECORDS = {
    "empty": ("", "header Time,Parameter,Value"),
    "other header": ("Time;Parameter;Value\n", "header Time,Parameter,Value"),
    "no value": (HEAD + "00:00,HR,\n", "line 2"),
    "no time": (HEAD + "00:00,HR,1\nHR,1\n", "line 3"),
    "minute 75": (HEAD + "00:75,HR,1\n", "line 2"),
    "cut line": (HEAD + "00:00,HR,80\n01:0", "line 3"),
    "nobody's": (HEAD, "patients with values"),
}


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_records_by_name(tmp_path, name):
    content, message = BROKEN_RECORDS[name]
    (tmp_path / "7.txt").write_text(content)
    with pytest.raises(MedfuseError, match=message):
        load_path(tmp_path, **RECORD_OPTIONS)


# --- bombs --------------------------------------------------------------------------------------------------------

BOMBS = """
import json, sys, time
from pathlib import Path
import duckdb, pyarrow.parquet
sys.path.insert(0, {tests!r})
from event_cases import BASE, MIMIC_OPTIONS, RECORD_OPTIONS, load_path
from medfuse.errors import MedfuseError
from medfuse.inspection import inspect

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024

options = {{"mimic": MIMIC_OPTIONS, "records": RECORD_OPTIONS, "meds": BASE}}
for path in sorted(Path({folder!r}).iterdir()):
    before, start = peak(), time.perf_counter()
    try:
        load_path(next(path.iterdir()) if path.name.startswith("zip") else path, **options[path.name.split("_")[-1]])
        said = ""
    except MedfuseError as error:
        said = str(error)
    middle = time.perf_counter()
    looked = [i.refusal for i in inspect([path])]
    print(json.dumps([path.name, said, middle - start, time.perf_counter() - middle, peak() - before, looked]))
"""


def bombs(folder):
    """Small files that claim or unpack to much more."""
    row = b"1,10,50912,2150-01-01 12:00:00,1.0,1.0,mg/dL,\n"
    head = LAB.split(b"\n", 1)[0] + b"\n"
    for name, content in {"rows": row * 12_000, "zeros": bytes(1 << 19), "line": b"1," * (1 << 18)}.items():
        here = mimic(folder / f"{name}_mimic")
        (here / "LABEVENTS.csv").unlink()
        packer = zlib.compressobj(9, wbits=31)
        parts = [packer.compress(head)] + [packer.compress(content) for _ in range(600)] + [packer.flush()]
        (here / "LABEVENTS.csv.gz").write_bytes(b"".join(parts))
    here = mimic(folder / "sparse_mimic")
    with (here / "LABEVENTS.csv").open("r+b") as file:
        file.truncate(8 << 30)
    for name in ("zip_records", "zip_mimic"):
        (folder / name).mkdir()
        with zipfile.ZipFile(folder / name / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            inside = "set/1.txt" if "records" in name else "LABEVENTS.csv"
            archive.writestr(inside, HEAD.encode() + bytes(100 << 20))
    (folder / "many_records").mkdir()
    (folder / "many_records" / "1.txt").write_bytes(gzip.compress(HEAD.encode() + b"00:00,HR,80\n" * 8_000_000))
    n = 5_000_000
    constant = {
        "subject_id": pa.array(np.ones(n, np.int64)),
        "time": pa.array(np.full(n, INDEX.value // 1000), pa.timestamp("us")),
        "code": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array(["HR"])),
    }
    (folder / "rows_meds").mkdir()
    pq.write_table(pa.table(constant), folder / "rows_meds" / "0.parquet")
    (folder / "text_meds").mkdir()
    parquet(folder / "text_meds" / "0.parquet", text_value=pa.array(["0" * (90 << 20)] * 3))
    (folder / "sparse_meds").mkdir()
    with (folder / "sparse_meds" / "0.parquet").open("wb") as file:
        file.write(b"PAR1")
        file.truncate(8 << 30)


def test_bombs_are_refused_fast_and_in_little_memory(tmp_path):
    bombs(tmp_path)
    code = BOMBS.format(folder=str(tmp_path), tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 10
    assert [name for name, said, *_ in found if not said] == ["text_meds"], "long text counts as text that is no number"
    for name, _, *seconds, memory, looked in found:
        assert not any("medfuse failed" in word for word in looked), name
        assert max(seconds) < 2 * SLACK, (name, seconds)
        assert memory < 300, (name, memory)


def test_names_of_columns_that_are_no_utf_8_are_damage(tmp_path):
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"subject_id": [1], "a_name_to_break": [2.0]}), path)
    path.write_bytes(path.read_bytes().replace(b"a_name_to_break", b"\xde\xff\xfe_to_break12345"[:15]))
    (found,) = inspect([path])
    assert "damage" in found.refusal
    assert "failed on it" not in found.refusal
