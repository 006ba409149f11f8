"""Groups of events are the same to the bit however the rows stand in the files, and agree with plain pandas."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfuse.errors import DataError
from medfuse.loaders import _event_groups, _event_query
from medfuse.loaders._event_options import parse
from medfuse.loaders.events import group_table

INDEX = pd.Timestamp("2020-01-10")
STATS = ["last", "days_since", "min", "max", "mean", "slope", "count"]
CODES = {"a": ["A", "B"], "c": ["C"], "d": ["D"]}


def made(seed: int, n: int = 4000) -> pd.DataFrame:
    """Events by subject and time, half of them of one subject; with ties and repeats."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "subject_id": np.where(rng.random(n) < 0.5, 7, rng.integers(1, 60, n)),
            "time": INDEX - pd.to_timedelta(rng.integers(0, 400, n), unit="h"),
            "code": rng.choice([*"ABCD", "other"], n),
            "numeric_value": np.where(rng.random(n) < 0.2, np.nan, rng.choice([0.0, -0.0, 0.1, 1e9, -1e9, 3.7], n)),
        }
    )
    return pd.concat([table, table.sample(frac=0.1, random_state=seed)]).sort_values(
        ["subject_id", "time"], kind="stable", ignore_index=True
    )


def options(**changes):
    variables = {name: {"codes": codes, "stats": STATS} for name, codes in CODES.items()}
    given = {"index": {"time": str(INDEX)}, "lookback_days": 12, "windows": [2, 12], "variables": variables}
    return parse(given | changes)


def groups(folder, table, **changes):
    """Columns in the order of subject and variable, as bytes."""
    folder.mkdir()
    half = len(table) // 2  # a file ends anywhere, as files of other makers do
    for name, rows in (("0", table[:half]), ("1", table[half:])):
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / f"{name}.parquet", row_group_size=700)
    found = group_table({"events": folder}, options(**changes))
    order = np.lexsort((found["var"], found["sid"]))
    return {name: np.ascontiguousarray(part[order]) for name, part in found.items()}


def same(one, other):
    return one.keys() == other.keys() and all(one[k].tobytes() == other[k].tobytes() for k in one)


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pandas(tmp_path, seed, duplicates):
    table = made(seed)
    found = groups(tmp_path / "m", table, duplicates=duplicates)
    rows = table[(table["time"] >= INDEX - pd.Timedelta(days=12)) & (table["code"] != "other")].copy()
    if duplicates == "drop":
        rows = rows.drop_duplicates()
    rows["var"] = rows["code"].map({"A": 0, "B": 0, "C": 1, "D": 2})
    rows["days"] = (INDEX - rows["time"]) / pd.Timedelta(days=1)
    rows = rows.sort_values(["time", "numeric_value"], na_position="first")
    by = rows.groupby(["subject_id", "var"])
    value = by["numeric_value"]
    expected = {
        "count": by.size(),
        "count_2d": rows[rows["days"] <= 2].groupby(["subject_id", "var"]).size().reindex(by.size().index).fillna(0),
        "days_since": by["days"].min(),
        "min": value.min(),
        "max": value.max(),
        "mean": value.mean(),
        "last": value.last(),
    }
    assert found["sid"].tolist() == [int(key[0]) for key in by.size().index]
    assert found["var"].tolist() == [int(key[1]) for key in by.size().index]
    for name, series in expected.items():
        np.testing.assert_allclose(found[name], series.to_numpy(float), rtol=1e-12, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_batches_order_and_files_change_not_one_bit(tmp_path, monkeypatch, duplicates):
    table = made(5)
    whole = groups(tmp_path / "m", table, duplicates=duplicates)
    assert len(whole["sid"]) > 100
    shuffled = table.sample(frac=1, random_state=1)
    assert same(groups(tmp_path / "shuffled", shuffled, duplicates=duplicates), whole)
    backwards = table.iloc[::-1].sort_values("subject_id", kind="stable")
    assert same(groups(tmp_path / "backwards", backwards, duplicates=duplicates), whole)
    for size in (1, 7, 500, 2048):
        monkeypatch.setattr(_event_query, "BATCH", size)
        if size > 1:
            assert same(groups(tmp_path / f"b{size}", table, duplicates=duplicates), whole)
    small = table[table["subject_id"] < 5]
    monkeypatch.setattr(_event_query, "BATCH", 1)
    few = groups(tmp_path / "few", small, duplicates=duplicates)
    assert same(few, {name: part[whole["sid"] < 5] for name, part in whole.items()}), "others change nothing"


def test_files_that_keep_patients_together_are_not_sorted(tmp_path, monkeypatch):
    asked = []
    plain = _event_groups.stream

    def spy(con, sql):
        asked.append("ORDER BY" in sql)
        return plain(con, sql)

    monkeypatch.setattr(_event_groups, "stream", spy)
    table = made(2)
    groups(tmp_path / "m", table)
    assert asked == [False]
    groups(tmp_path / "again", pd.concat([table, table[table["subject_id"] == 7]]))
    assert asked == [False, False, True], "a subject that comes back is seen"


def test_text_is_still_compared_before_rows_count_as_repeats(tmp_path):
    table = made(3, n=300)
    table["text_value"] = np.where(np.arange(len(table)) % 2, "x", "y")
    rows = table[(table["time"] >= INDEX - pd.Timedelta(days=12)) & (table["code"] != "other")]
    found = groups(tmp_path / "m", table)
    assert found["count"].sum() == len(rows.drop_duplicates()) > len(rows.drop(columns="text_value").drop_duplicates())


def test_subjects_that_are_text(tmp_path):
    table = made(4)
    numbers = groups(tmp_path / "numbers", table)
    named = table.assign(subject_id=[f"s{s:03d}" for s in table["subject_id"]])
    found = groups(tmp_path / "text", named)
    assert found["sid"].tolist() == [f"s{s:03d}" for s in numbers["sid"]]
    assert all(found[k].tobytes() == numbers[k].tobytes() for k in numbers if k != "sid")


def test_the_order_of_keys_that_do_not_fit_beside_their_rows(monkeypatch):
    key = np.random.default_rng(0).integers(0, 50, 1000)
    expected = np.argsort(key, kind="stable")
    assert np.array_equal(_event_groups._stable_order(key), expected)
    monkeypatch.setattr(_event_groups, "_BITS", 12)
    assert np.array_equal(_event_groups._stable_order(key), expected)
    assert _event_groups._stable_order(key[:0]).tolist() == []


def test_an_error_on_the_way_is_an_error_of_the_files():
    def refused(match, *statements):
        with pytest.raises(DataError, match=match) as found, _event_query.connection("x") as (con, _):  # noqa: PT012
            for statement in statements[:-1]:
                con.execute(statement)
            list(_event_query.stream(con, statements[-1]))
        return str(found.value)

    rows = "SELECT CASE WHEN i = 300000 THEN 'secret' ELSE '1' END AS c FROM range(400000) r(i)"
    assert "secret" not in refused("expected whole files", f"CREATE TABLE t AS {rows}", "SELECT c::INTEGER FROM t")
    little = "SET memory_limit = '20MB'; SET max_temp_directory_size = '0KB'"
    refused("with spilling", little, "SELECT i, hash(i) FROM range(20000000) r(i) ORDER BY 2")
