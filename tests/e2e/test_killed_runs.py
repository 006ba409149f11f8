"""A run that is added to stays sound whenever the writer dies, and the same command completes it."""

import shutil
from pathlib import Path
from unittest.mock import patch

import made_up
import numpy as np
import pandas as pd
import pytest
from kills import killed

from medfuse import folds
from medfuse.errors import StoreError
from medfuse.explained import read_coalitions
from medfuse.explaining import check_run, explain_run
from medfuse.run import only_writer, open_run
from medfuse.stressing import stress_run
from medfuse.within import Ask, explain_within
from medfuse.workflow import predict, rewrite_report, train


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def copied(made, tmp_path, name="run"):
    return open_run(shutil.copytree(made / "run", tmp_path / name))


def pages(run):
    return {p.name: p.read_bytes() for p in sorted(run.path.glob("*.html"))}


def last_moments(moments, count):
    """A moment before the change is decided, the last such, and some after it."""
    decided = next(k for k, what in enumerate(moments) if what.startswith("replace .tmp-.amendment"))
    return [decided - 5, decided, *np.linspace(decided + 3, len(moments) - 1, count).astype(int)]


@pytest.mark.parametrize("only", [slice(2, 3), pytest.param(slice(None), marks=pytest.mark.slow)])
def test_the_report_is_the_old_or_the_new_one(made, tmp_path, only):
    whole = copied(made, tmp_path, "whole")
    before = pages(whole)
    with killed() as moments:
        rewrite_report(whole, opened=3)
    assert pages(whole) != before
    for number, end in list(enumerate(last_moments(moments, 6)))[only]:
        run = copied(made, tmp_path, f"killed-{number}")
        with killed(end):
            rewrite_report(run, opened=3)
        run.verify()
        assert pages(run) == (before if number < 2 else pages(whole))
        if number < 2:
            rewrite_report(run, opened=3)
        assert pages(run) == pages(whole)
        assert not list(run.path.rglob(".*")), "nothing is left lying about"


@pytest.mark.slow
def test_explaining_again_completes_what_a_kill_cut_short(made, tmp_path):
    places = {"data_root": made, "store_root": made / "store"}
    whole = copied(made, tmp_path, "whole")
    with killed() as moments:
        explain_run(whole, **places)
    stored = moments.index(next(what for what in moments if "model_card.md" in what))
    run = copied(made, tmp_path)
    with killed(stored):
        explain_run(run, **places)
    assert read_coalitions(run)
    run.verify()
    assert run.unsealed(), "nobody vouches for them yet"
    with patch("medfuse.explaining._explain_fold", side_effect=AssertionError), killed() as rest:
        explain_run(open_run(shutil.copytree(run.path, tmp_path / "rest")), **places)
    for number, end in enumerate(last_moments(rest, 2)):
        again = open_run(shutil.copytree(run.path, tmp_path / f"killed-{number}"))
        with killed(end):
            explain_run(again, **places)
        again.verify()
        found = explain_run(again, **places)
        again.verify()
        assert again.unsealed() == []
        assert pages(again) == pages(whole)
        assert np.array_equal(found[0].values, read_coalitions(whole)[0].values)


@pytest.mark.slow
def test_an_answer_takes_the_place_of_another_whole_or_not_at_all(made, tmp_path):
    places = {"data_root": made, "store_root": made / "store"}
    run = copied(made, tmp_path)
    first = explain_within(run, "clinical", ask=Ask(patients=()), **places)
    horizon = first[0].attribution.horizon
    base = shutil.copytree(run.path, tmp_path / "base")
    with killed() as moments:
        explain_within(run, "clinical", ask=Ask(horizon=horizon / 2), **places)
    for number, end in enumerate(last_moments(moments, 3)):
        again = open_run(shutil.copytree(base, tmp_path / f"killed-{number}"))
        with killed(end):
            explain_within(again, "clinical", ask=Ask(horizon=horizon / 2), **places)
        again.verify()
        found = explain_within(again, "clinical", ask=Ask(horizon=horizon / 2), **places)
        assert {one.attribution.horizon for one in found} == {horizon / 2}
        again.verify()


def test_an_altered_part_is_not_sealed_by_what_is_added(made, tmp_path, monkeypatch):
    """Altered after the run was found sound and before it is sealed anew: the seal still speaks of what it was."""
    run = copied(made, tmp_path)

    def alter(*_args, **_options):
        (run.path / "audit.json").write_bytes((run.path / "audit.json").read_bytes() + b" ")

    monkeypatch.setattr("medfuse.explaining.read_source", alter)
    monkeypatch.setattr("medfuse.explaining._explain_fold", lambda *_args, **_options: None)
    with pytest.raises(StoreError, match="has not been explained"):  # nothing was computed here
        explain_run(run, data_root=made, store_root=made / "store")
    with pytest.raises(StoreError, match=r"audit.json: content differs"):
        run.verify()


def test_a_training_killed_before_the_seal_goes_on(tmp_path):
    card = made_up.write(tmp_path, n=60)
    words = (*made_up.QUICK, "baselines=[kaplan_meier]")
    places = {"data_root": tmp_path, "store_root": tmp_path / "s", "out": tmp_path / "run"}
    with patch("medfuse.run.Run.seal", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train(card, recipe="smoke", overrides=words, **places)
    run = open_run(tmp_path / "run")
    assert run.read("run")["status"] == "finished"
    assert not run.finished
    with patch("medfuse.folds.fit_fold", side_effect=AssertionError):  # nothing is trained twice
        train(card, recipe="smoke", overrides=words, **places)
    run.verify()
    with pytest.raises(StoreError, match="holds a finished run"):
        train(card, recipe="smoke", overrides=words, **places)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was interrupted after its first fold; features stand in other files than outcomes."""
    place = tmp_path_factory.mktemp("half")
    card = made_up.write(place, n=60, modalities=("stains", "genes"))
    real = folds.run_fold

    def dies(job, split, **more):
        if split.name == "1":
            raise KeyboardInterrupt
        return real(job, split, **more)

    with patch("medfuse.folds.run_fold", dies), pytest.raises(KeyboardInterrupt):
        made_up.trained(card, "baselines=[kaplan_meier]")
    return place


def changed(half, tmp_path, **columns):
    """A copy of the place whose patients differ in some columns."""
    place = shutil.copytree(half, tmp_path / "place")
    table = pd.read_csv(place / "patients.csv", dtype=str)
    table.assign(**{name: change(table[name]) for name, change in columns.items()}).to_csv(
        place / "patients.csv", index=False
    )
    return place


def goes_on(place):
    return made_up.trained(place / "card.md", "baselines=[kaplan_meier]")


def flipped(status):
    return status.where(status.index % 5 > 0, status.map({"0": "1", "1": "0"}))


@pytest.mark.parametrize("columns", [{"status": flipped}, {"days": lambda days: days + "1"}])
def test_a_training_does_not_go_on_with_other_outcomes(half, tmp_path, columns):
    place = changed(half, tmp_path, **columns)
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"differs in its patients, their outcomes or their folds; choose another"):
        goes_on(place)
    assert {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()} == before


def test_a_finished_fold_of_other_patients_is_not_taken(half, tmp_path):
    """Whatever the run says of itself."""
    place = changed(half, tmp_path, status=flipped)
    facts = open_run(place / "run").read("run")["facts"]
    told = {name: facts[name] for name in ("data", "people")}
    with patch("medfuse.workflow.keys_of", return_value=told), pytest.raises(StoreError, match="not the same; train"):
        goes_on(place)


def test_a_run_of_an_earlier_medfuse_is_read_and_not_gone_on_with(half, tmp_path):
    def forget(run):
        content = run.read("run")
        del content["facts"]["people"]
        run.write("run", content)

    place = shutil.copytree(half, tmp_path / "place")
    forget(open_run(place / "run"))
    with pytest.raises(
        StoreError, match="what its patients, their outcomes or their folds are, found one of an earlier"
    ):
        goes_on(place)
    shutil.rmtree(place / "run")
    shutil.copytree(half / "run", place / "run")
    run = goes_on(place)  # as it was: nothing has changed
    forget(run)
    run.seal()
    with pytest.raises(StoreError, match="holds a finished run"):
        goes_on(place)
    rewrite_report(run)
    where = {"data_root": place, "store_root": place / "store"}
    assert predict(run, place / "card.md", **where, out=tmp_path / "p.csv").is_file()
    stress_run(run, "subsets", **where)
    run.verify()


def test_a_run_is_a_folder_of_its_own_and_is_amended_from_inside(made, tmp_path, monkeypatch):
    run = copied(made, tmp_path)
    monkeypatch.chdir(run.path)
    rewrite_report(".")
    run.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with only_writer(Path()), pytest.raises(StoreError, match="another process"), only_writer(tmp_path / "empty"):
        pass
    with pytest.raises(StoreError, match="for the run alone, found the working folder"):
        train(made / "card.md", recipe="smoke", data_root=made, store_root=made / "store", out=Path())
    assert list(Path().iterdir()) == []


def test_two_writers_never_hold_a_run_at_the_same_time(tmp_path, monkeypatch):
    """The second opened the lock while the first held it, and holds it when the first has ended and deleted it."""
    import fcntl

    path, hold = tmp_path / "run", fcntl.flock

    def when_the_first_has_ended(lock, how):
        hold(lock, how)
        (tmp_path / ".run.lock").unlink()

    with only_writer(path), pytest.raises(StoreError, match="another process"), only_writer(path):
        pass
    monkeypatch.setattr(fcntl, "flock", when_the_first_has_ended)
    with pytest.raises(StoreError, match="another process"), only_writer(path):
        pass
    monkeypatch.undo()
    with only_writer(path):
        assert (tmp_path / ".run.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_given_to_mlflow_again_is_no_part_of_the_seal(made, tmp_path):
    run = copied(made, tmp_path)
    run.write("tracking", {"complete": False})
    with run.amended():
        pass
    run.write("tracking", {"complete": True})
    run.verify()
    assert run.unsealed() == []


@pytest.mark.slow
def test_checks_that_a_kill_left_unsealed_are_sealed(made, tmp_path):
    places = {"data_root": made, "store_root": made / "store"}
    run = copied(made, tmp_path)
    explain_run(run, **places)
    with patch("medfuse.explaining.refresh_report", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        check_run(run, **places)
    run.verify()
    assert run.unsealed() == ["explanations/survival/checks.json"]
    with patch("medfuse.explaining.write_checks", side_effect=AssertionError):
        check_run(run, **places)
    assert run.unsealed() == []
    run.verify()
