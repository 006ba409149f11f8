"""Cells of large tables: each is the number that Python's float reads, to the bit, or is refused."""

import random

import numpy as np
import pytest

from medfuse.errors import DataError
from medfuse.loaders._matrix import read_matrix
from medfuse.tables import MISSING

ODD = [
    "0",
    "-0",
    "0.0",
    "-0.0000",
    ".5",
    "-.5",
    "5.",
    "-5.",
    "+1.5",
    " 2.5",
    "2.5 ",
    "1e3",
    "-1.5E-7",
    '"3.25"',
    "007.50",
]
ODD += ["9007199254740991", "9007199254740993", "999999999999999", "999999999999999.9", "0.999999999999999"]
ODD += [
    "0000000000000000001.5",
    "0.00000000000000001",
    "123456789012345.",
    "1234567890123456789",
    "0.1234567890123456789",
]
ODD += [
    "4.35",
    "0.3",
    "2.675",
    "1.1e-22",
    "0.1234567890123456789",
    "1.7976931348623157e308",
    "5e-324",
    *sorted(MISSING),
]


def cell(rng):
    if rng.random() < 0.2:
        return rng.choice(ODD)
    whole, after = rng.randrange(0, 9), rng.randrange(0, 9)
    digits = "".join(rng.choice("0123456789") for _ in range(whole + after))
    point = "." if after or rng.random() < 0.1 else ""
    text = digits[:whole] + point + digits[whole:]
    return rng.choice(["", "-", ""]) + text if any(c.isdigit() for c in text) else "1"


def told(text):
    text = text.strip('"')
    return np.nan if text in MISSING else float(text)


def table(path):
    return read_matrix(path, lambda names: (names[:1], names[1:]))


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_every_cell_is_the_number_that_python_reads(tmp_path, separator, ending):
    rng = random.Random(f"{separator}{ending}")
    cells = [[cell(rng) for _ in range(40)] for _ in range(150)]
    lines = [["id", *(f"c{k}" for k in range(40))], *([f"r{n}", *row] for n, row in enumerate(cells))]
    path = tmp_path / ("t.csv" if separator == "," else "t.tsv")
    end = ending or "\n"
    path.write_bytes((end.join(separator.join(line) for line in lines) + ending).encode())
    found = table(path)
    expected = np.array([[told(c) for c in row] for row in cells])
    assert list(found.texts["id"]) == [f"r{n}" for n in range(150)]
    np.testing.assert_array_equal(found.values, expected)
    assert (np.signbit(found.values) == np.signbit(expected))[~np.isnan(expected)].all()


@pytest.mark.parametrize("text", ["-", "--1", "1.2.3", "1-2", "1,5", "0x10", "1_0", "12a", "1e", "..", "-.", "inf"])
def test_what_is_no_number_is_refused_where_it_stands(tmp_path, text):
    path = tmp_path / "t.tsv"
    path.write_text(f"id\ta\tb\nr0\t1.5\t2.5\nr1\t3.5\t{text}\nr2\t1\t1\n")
    with pytest.raises(DataError, match=r"data row 2, column 'b'"):
        table(path)


@pytest.mark.parametrize(("rows", "said"), [("r0,1,2,3\n", None), ("r0,1\n", "fewer"), ("r0,1,2,3", None)])
def test_rows_of_another_length_are_refused(tmp_path, rows, said):
    path = tmp_path / "t.csv"
    path.write_text("id,a,b\nr9,1,2\n" + rows)
    with pytest.raises(DataError, match=said):
        table(path)
