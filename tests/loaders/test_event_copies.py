"""Copies of a record without some of its events are what the loader would have read of files without them."""

import numpy as np
import pytest
from event_cases import BASE, ROWS, frame, load

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError
from medfuse.loaders.event_copies import patient_events
from medfuse.loaders.events import events_of

SEEN = (0, 1, 2, 3, 4, 5, 6)  # rows of patient 1 that may be seen; the others lie after the index time or are of others
RANGES = {
    "variables": {
        "hr": {"codes": ["HR", "PULSE"], "unit": "/min", "reference": [65, 85]},
        "k": {"codes": "LAB//K", "unit": "mmol/L", "analyte": "potassium"},
        "sex": {"level_codes": {"f": "SEX//F", "m": "SEX//M"}, "static": True},
    }
}


def own_events(folder, patients=("1",), **options):
    card = ModalityCard(loader="events", options={**BASE, **options}, file="x")
    return patient_events(card, patients, resolve=lambda _: folder, id_column="id")


# without any_lab, as whose event the potassium would count once more
PLAIN = {"variables": {name: spec for name, spec in BASE["variables"].items() if name != "any_lab"}}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(PLAIN, marks=pytest.mark.slow),
        RANGES,
        pytest.param(PLAIN | {"duplicates": "keep"}, marks=pytest.mark.slow),
    ],
    ids=["plain", "ranges", "keep"],
)
def test_a_copy_without_an_event_is_what_files_without_it_say(tmp_path, options):
    whole = load(tmp_path / "whole", frame(ROWS), **options).samples["1"]
    found = own_events(tmp_path / "whole", **options)["1"]
    n = len(found)
    assert n == len(SEEN)
    kept = np.concatenate([np.ones((1, n), bool), ~np.eye(n, dtype=bool), np.zeros((1, n), bool)])
    copies = found.summaries(kept)
    assert np.array_equal(copies[0].tokens, whole.tokens)
    assert copies[-1] is None
    wanted = {}
    for number, row in enumerate(SEEN):
        rows = [r for k, r in enumerate(ROWS) if k != row]
        wanted[row] = load(tmp_path / f"without{number}", frame(rows), **options).samples["1"].tokens
    shown, _ = events_of(
        ModalityCard(loader="events", options={**BASE, **options}, file="x"),
        "1",
        resolve=lambda _: tmp_path / "whole",
        id_column="id",
    )
    order = []  # which row each event is: by its variable, time and value
    for event in range(n):
        same = [row for row in SEEN if row not in order and np.array_equal(copies[1 + event].tokens, wanted[row])]
        assert same, f"event {event}: no file without one row says this"
        order.append(same[0])
    assert sorted(order) == sorted(SEEN)
    days = [np.nan if ROWS[row][1] is None else ROWS[row][1] / 24 for row in order]
    np.testing.assert_allclose(found.days, days)
    np.testing.assert_array_equal(found.days, shown["days"])
    assert not any(np.array_equal(copy.tokens, whole.tokens) for copy in copies[1:-1])


def test_an_event_of_two_variables_is_one_of_each(tmp_path):
    load(tmp_path, frame(ROWS))
    names = own_events(tmp_path)["1"].names
    assert "k, 1.2 days before" in names
    assert "any_lab, 1.2 days before" in names


def test_names_tell_variable_and_time_and_no_value(tmp_path):
    load(tmp_path, frame(ROWS))
    found = own_events(tmp_path, ("1", "4", "nobody"))
    assert set(found) == {"1", "4"}
    assert found["4"].names == ("sex, without a time",)
    assert "hr, 0.8 days before" in found["1"].names
    assert not any("80" in name for name in found["1"].names)


def test_events_that_are_tokens_already_are_refused(tmp_path):
    load(tmp_path, frame(ROWS))
    with pytest.raises(ConfigError, match="ask for units instance"):
        own_events(tmp_path, output="tokens")


def test_values_of_variables_that_are_only_counted_are_not_shown_as_if_their_units_agreed(tmp_path):
    rows = [(1, 3, "LAB//A", 5.0, "mg/dL"), (1, 2, "LAB//B", 5.0, "mmol/L"), (1, 1, "HR", 70, "/min")]
    load(tmp_path, frame(rows))
    card = ModalityCard(loader="events", options=BASE, file="x")
    table, _ = events_of(card, "1", resolve=lambda _: tmp_path, id_column="id")
    assert table.loc[table["variable"] == "any_lab", "value"].isna().all()
    assert table.loc[table["variable"] == "hr", "value"].tolist() == [70.0]
