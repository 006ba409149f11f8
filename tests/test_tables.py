"""Tables on disk: text stays text, and every kind of damage is a DataError that says where."""

import gzip
import io
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfuse.errors import DataError
from medfuse.tables import column, patient_ids, read_table, same_code, to_numeric

CSV = "id,age,note\n001,61,\n010,48.5,a\n"
EXPECTED = [["001", "61", None], ["010", "48.5", "a"]]


def cells(frame):
    return frame.astype(object).where(frame.notna(), None).to_numpy().tolist()


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


ARFF = (
    "% made up\n@relation x\n@attribute id {001,010}\n@attribute 'age' numeric\n@attribute note string\n"
    "@data\n001,61,?\n010,48.5,a\n"
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", CSV.encode()),
        ("t.csv", CSV.encode("utf-8-sig")),
        ("t.csv", CSV.replace("\n", "\r\n").encode()),
        ("t.tsv", CSV.replace(",", "\t").encode()),
        ("t.csv.gz", gzip.compress(CSV.encode())),
        ("t.tsv.gz", gzip.compress(CSV.replace(",", "\t").encode())),
        ("t.csv.zip", zipped("../elsewhere/t.csv.zip", CSV.encode())),
        ("t.zip", zipped("./t.tsv", CSV.replace(",", "\t").encode())),
        ("t.csv.zip", zipped("member", CSV.encode())),
        ("t.arff", ARFF.encode()),
    ],
)
def test_every_text_format_reads_the_same_cells(tmp_path, name, content):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(content)
    frame = read_table(path)
    assert list(frame.columns) == ["id", "age", "note"]
    assert cells(frame) == EXPECTED
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["in", name])  # nothing was extracted


def test_parquet_keeps_whole_numbers_and_the_index_of_pandas(tmp_path):
    frame = pd.DataFrame(
        {"n": pd.array([1, None], dtype="Int64"), "x": [0.1, np.nan]}, index=pd.Index(["001", "010"], name="id")
    )
    frame.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert {name: cells(read[[name]]) for name in read} == {
        "id": [["001"], ["010"]],
        "n": [["1"], [None]],
        "x": [["0.1"], [None]],
    }


def test_arff_cells_may_be_quoted(tmp_path):
    (tmp_path / "t.arff").write_text(
        "@attribute 'a b' string\n@attribute c {'x, y', z}\n@DATA\n'it is', 'x, y'\nno,z\n"
    )
    frame = read_table(tmp_path / "t.arff")
    assert cells(frame) == [["it is", "x, y"], ["no", "z"]]
    assert list(frame.columns) == ["a b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", CSV.encode()[:-5], r"data row 2: expected 3 cells.*cut short"),
        ("t.csv", b"a,a\n1,2\n", r"distinct column names, found 'a'"),
        ("t.csv", b"a,b\n1,2,3\n", r"t\.csv: expected a table"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", r"line 3"),
        ("t.csv", b"", r"expected a table"),
        ("t.csv", b'a,b\n1,"2\n', r"expected a table"),
        ("t.csv", b"a,b\n1," + b"x" * 200_000 + b"\n", r"ordinary cells"),
        ("t.csv", "ä,b\n1,2\n".encode("latin-1"), r"expected a table in UTF-8"),
        ("t.zip", b"PK\x03\x04 no zip", r"t\.zip: expected a whole \.zip"),
        ("t.zip", zipped("x.csv", CSV.encode() * 50)[:-30], r"expected a whole \.zip"),
        ("t.zip", zipped("x.exe", CSV.encode()), r"convert the table"),
        ("t.zip", zipped("x.csv", b"0" * 5_000_000), r"ordinary zip"),
        ("t.csv.gz", gzip.compress(b"0" * 5_000_000), r"ordinary gzip"),
        ("t.csv.gz", gzip.compress(CSV.encode())[:-6], r"expected a whole gzip"),
        ("t.parquet", b"PAR1 no", r"Parquet file, found damage"),
        ("t.arff", b"@relation x\n@attribute a numeric\n", r"@data section"),
        ("t.arff", ARFF.encode()[:-6], r"line 8: expected 3 cells, found 2"),
        ("t.arff", b"@attribute a\n@data\n", r"line 1: expected '@attribute"),
        ("t.arff", "@attribute ä numeric\n@data\n1\n".encode("latin-1"), r"UTF-8"),
        ("t.xlsx", b"", r"found \.xlsx"),
        ("t", b"", r"no suffix"),
    ],
)
def test_damage_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / name)


def test_a_zip_of_several_tables_or_with_a_flipped_byte_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
        archive.writestr("b.csv", CSV)
    with pytest.raises(DataError, match="2 members"):
        read_table(tmp_path / "two.zip")
    content = bytearray(zipped("a.csv", CSV.encode() * 40))
    content[60] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"flipped\.zip"):
        read_table(tmp_path / "flipped.zip")


def test_a_parquet_file_with_a_repeated_name_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'a' more than once"):
        read_table(tmp_path / "t.parquet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: expected a file"):
        read_table(tmp_path / "gone.csv")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), min_size=1))
def test_numbers_survive_to_the_last_bit(values):
    series = pd.Series([None if v is None else repr(v) for v in values], name="x", dtype=object)
    expected = np.array([np.nan if v is None else v for v in values])
    np.testing.assert_array_equal(to_numeric(series, file="t.csv"), expected)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1,5", "a decimal comma"),
        ("secret", "text"),
        ("-Infinity", "infinity"),
        ("0x10", "text"),
        ("1_000", "text"),
        ("True", "text"),
    ],
)
def test_a_cell_that_is_no_number_names_row_and_column_but_not_the_value(cell, said):
    series = pd.Series(["1", None, cell], name="dose", dtype=object)
    with pytest.raises(DataError, match=said) as raised:
        to_numeric(series, file="t.csv")
    assert "t.csv, data row 3, column 'dose'" in str(raised.value)
    assert cell not in str(raised.value)
    with pytest.raises(DataError, match=r"t\.csv, patient 7, column"):
        to_numeric(series, file="t.csv", where=lambda i: f"patient {i + 5}")


def test_a_missing_column_names_the_nearest():
    frame = pd.DataFrame({"age": ["1"], "sex": ["f"]})
    assert column(frame, "age", file="t.csv").tolist() == ["1"]
    with pytest.raises(DataError, match='did you mean "age"'):
        column(frame, "agee", file="t.csv")


def test_ids_are_text_and_never_empty():
    frame = pd.DataFrame({"id": ["001", " 1 "]})
    assert patient_ids(frame, "id", prefix="", file="t.csv") == ["001", "1"]
    assert patient_ids(frame, None, prefix="row-", file="t.csv") == ["row-001", "row-002"]
    with pytest.raises(DataError, match="data row 2, column 'id': expected a patient id"):
        patient_ids(pd.DataFrame({"id": ["1", None]}), "id", prefix="", file="t.csv")


@pytest.mark.parametrize(
    ("cell", "code", "same"),
    [("1", "1", True), ("1.0", "1", True), ("yes", "yes", True), ("yes", "1", False), ("10", "1", False)],
)
def test_codes_that_are_numbers_compare_as_numbers(cell, code, same):
    assert same_code(cell, code) is same


def test_a_number_followed_by_bytes_of_zero_is_refused_without_its_value():
    with pytest.raises(DataError, match="data row 2, column 'x': expected a number") as refused:
        to_numeric(pd.Series(["1.5", "67.25\0\0"], name="x", dtype=object), file="t.csv")
    assert "67.25" not in str(refused.value)


def test_a_column_without_a_name_gets_one_that_no_column_has(tmp_path):
    (tmp_path / "t.csv").write_text(",Unnamed: 0,Unnamed: 3,\n1,2,3,4\n")
    assert list(read_table(tmp_path / "t.csv").columns) == ["Unnamed: 0_", "Unnamed: 0", "Unnamed: 3", "Unnamed: 3_"]
