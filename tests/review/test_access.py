"""Logins, roles, the chained log, settings and the server's command."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from made import key, make_run, settings, write_units

from medfuse.errors import ConfigError, StoreError
from medfuse.exporting import times_opened
from medfuse.files import seal
from medfuse.review import access, launch, reviews
from medfuse.review.access import Users, identity_of_claims, is_loopback, open_identity
from medfuse.review.export import unlock_count
from medfuse.review.log import START, ChainedLog
from medfuse.review.settings import from_environment, roles_of, to_environment
from medfuse.review.source import open_review

PASSWORD = "correct horse battery"


def test_users_log_in_with_their_password_alone(tmp_path) -> None:
    users = Users(tmp_path / "users.json")
    users.add("ada", PASSWORD, frozenset({"reader"}))
    assert PASSWORD not in (tmp_path / "users.json").read_text()
    assert (tmp_path / "users.json").stat().st_mode & 0o077 == 0
    who = users.login("ada", PASSWORD)
    assert who is not None
    assert who.roles == {"reader"}
    assert users.login("ada", PASSWORD + "!") is None
    assert users.login("bob", PASSWORD) is None
    with pytest.raises(ConfigError, match="12 characters"):
        users.add("bob", "short", frozenset({"reader"}))
    with pytest.raises(ConfigError, match="roles"):
        users.add("bob", PASSWORD, frozenset({"king"}))


def test_five_failures_close_the_door_for_five_minutes(tmp_path) -> None:
    users = Users(tmp_path / "users.json")
    users.add("ada", PASSWORD, frozenset({"reader"}))
    for _ in range(5):
        assert users.login("ada", "wrong wrong wrong", now=100.0) is None
    assert users.login("ada", PASSWORD, now=101.0) is None
    assert users.login("ada", PASSWORD, now=500.0) is not None


def test_D10_roles_are_denied_unless_allowed() -> None:
    def who(*roles: str) -> access.Identity:
        return access.Identity(name="x", roles=frozenset(roles), since=0.0, expires=1e12)

    assert who("reader").may("patient")
    assert not who("reader").may("export")
    assert not who("reader").may("audit")
    assert not who("investigator").may("unlock")
    assert who("steward").may("audit")
    assert not who("steward").may("review")
    assert not who().may("worklist")
    assert not who("reader", "steward").may("no such page")
    assert not who("king").may("worklist")


def test_D10_logins_end_by_idling_and_by_age() -> None:
    who = access.Identity(name="x", roles=frozenset({"reader"}), since=0.0, expires=1000.0)
    assert who.live(999.0, 990.0)
    assert not who.live(1000.0, 999.0)
    late = access.Identity(name="x", roles=frozenset({"reader"}), since=0.0, expires=1e9)
    assert not late.live(access.IDLE_SECONDS + 1.0, 0.0)


def test_D10_claims_of_a_login_server_are_checked_each_time() -> None:
    good = {"is_logged_in": True, "sub": "u1", "exp": 2000, "groups": ["ward"]}

    def ask(claims, roles=None):
        return identity_of_claims(claims, role_claim="groups", roles=roles or {"ward": "reader"}, now=1000.0)

    found = ask(good)
    assert found is not None
    assert found.roles == {"reader"}
    for wrong in (
        {**good, "exp": 1000},
        {**good, "exp": "2000"},
        {**good, "exp": True},
        {k: v for k, v in good.items() if k != "exp"},
        {**good, "is_logged_in": False},
        {**good, "groups": ["other"]},
        {**good, "groups": {"ward": 1}},
        {**good, "sub": ""},
        {},
    ):
        assert ask(wrong) is None
    assert ask(good, {"ward": "king"}) is None


def test_without_users_only_this_machine_may_be_served(tmp_path) -> None:
    run = make_run(tmp_path / "run", patients=6)
    settings(run).require_safe()
    with pytest.raises(ConfigError, match="users"):
        settings(run, address="0.0.0.0").require_safe()
    protected = settings(run, address="0.0.0.0")
    Users(protected.users_file).add("ada", PASSWORD, frozenset({"reader"}))
    protected.require_safe()
    assert is_loopback("::1")
    assert not is_loopback("example.org")
    assert open_identity().roles == set(access.ROLES)


def test_records_never_stand_inside_the_sealed_run(tmp_path) -> None:
    run = make_run(tmp_path / "run", patients=6)
    for inside in (run, run / "reviews", run / "a" / ".." / "b"):
        with pytest.raises(ConfigError, match="outside the run"):
            settings(run).__class__(run=str(run), folder=str(inside))
    with pytest.raises(ConfigError, match="threshold"):
        settings(run, threshold=1.0)
    launch.prepare(settings(run))
    open_review(run).run.verify()


def test_settings_survive_the_environment(tmp_path) -> None:
    one = settings(tmp_path / "run", oidc_roles={"ward": "reader"}, reader_first=False)
    assert from_environment({"MEDFUSE_REVIEW": to_environment(one)}) == one
    with pytest.raises(ConfigError, match="medfuse app"):
        from_environment({})
    assert roles_of(["a=b=reader"]) == {"a=b": "reader"}
    with pytest.raises(ConfigError, match="GROUP=ROLE"):
        roles_of(["ward=king"])


def test_the_server_keeps_everything_on_the_host(tmp_path) -> None:
    command = launch.server_command(settings(tmp_path / "run"), port=9000)
    for wanted in (
        "--browser.gatherUsageStats=false",
        "--client.showErrorDetails=none",
        "--client.disableDataExport=true",
        "--server.enableXsrfProtection=true",
        "--server.enableAgentApi=false",
        "--server.address=127.0.0.1",
        "--server.allowedHosts=127.0.0.1",
        "--server.enableStaticServing=false",
    ):
        assert wanted in command
    assert launch.app_file().is_file()


def test_the_chain_shows_every_change(tmp_path) -> None:
    log = ChainedLog(tmp_path / "audit.jsonl")
    assert log.head() == START
    for k in range(5):
        log.append("act", {"who": "ada", "number": k})
    assert [r["number"] for r in log.rows()] == list(range(5))
    good = log.path.read_bytes()
    lines = good.splitlines(keepends=True)
    for wrong in (
        good.replace(b'"number": 2', b'"number": 7'),
        b"".join(lines[:2] + lines[3:]),
        b"".join([*lines[:2], lines[3], lines[2], lines[4]]),
        b"".join([lines[0], *lines]),
        good[:-20] + b"\n",
    ):
        log.path.write_bytes(wrong)
        with pytest.raises(StoreError, match="unbroken chain"):
            log.rows()
    log.path.write_bytes(good[:-5])
    with pytest.raises(StoreError, match="cut short"):
        log.append("act", {"who": "ada"})


def test_many_writers_make_one_chain(tmp_path) -> None:
    def write(k: int) -> None:
        ChainedLog(tmp_path / "log.jsonl").append("act", {"who": str(k)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(60)))
    assert {r["who"] for r in ChainedLog(tmp_path / "log.jsonl").rows()} == {str(k) for k in range(60)}


def test_reviews_are_checked_and_readers_compared(tmp_path) -> None:
    run = open_review(make_run(tmp_path / "run", patients=20))
    log = ChainedLog(tmp_path / "reviews.jsonl")
    for who, verdicts in (("ada", ["agree", "agree", "disagree", "agree"]), ("bob", ["agree", "disagree"] * 2)):
        for k, verdict in enumerate(verdicts):
            reviews.record(log, who=who, run=run, patient=key(k), verdict=verdict, decisive="", text="", seconds=3.2)
    (pair,) = reviews.agreement(log.rows()).to_dict("records")
    # equal in 1 of 4; chance = 3/4 * 2/4 + 1/4 * 2/4 = 1/2; kappa = (1/4 - 1/2) / (1/2) = -1/2
    assert (pair["patients"], pair["equal"], pair["kappa"]) == (4, 0.25, pytest.approx(-0.5))
    with pytest.raises(ConfigError):
        reviews.record(log, who="ada", run=run, patient=key(0), verdict="maybe", decisive="", text="", seconds=1)
    for k in range(12):
        told = {"patient": key(k), "percent": 30, "day": 500.0, "run_sha256": run.sha256, "confidence": "sure"}
        log.append("estimate", {"who": "ada", **told})
    beside = reviews.estimates(run, log.rows())
    assert len(beside) == 12
    table = run.outcome_table
    for _, row in beside.iterrows():
        time_, event = float(table.loc[row["patient"], "time"]), bool(table.loc[row["patient"], "event"])
        assert row["by then"] == ("yes" if event and time_ <= 500 else "no" if time_ >= 500 else "unknown")
    assert set(reviews.scores(beside)["reader"]) <= {"ada"}


def test_D16_openings_of_held_out_results_are_counted(tmp_path) -> None:
    run = make_run(tmp_path / "run", patients=6)
    one = settings(run)
    launch.prepare(one)
    before, log = open_review(run), ChainedLog(one.audit_file)
    assert unlock_count(one, before.id) == 0
    log.append("held-out opened", {"who": "s", "run": before.id, "run_sha256": before.sha256})
    log.append("held-out opened", {"who": "s", "run": "another", "run_sha256": "x"})
    assert unlock_count(one, before.id) == 1
    write_units(run, "slide", kind="instance", each=3)  # as medfuse explain --within, which seals the run again
    seal(run, {"format_version": 1, "kind": "run"})
    after = open_review(run)
    assert after.sha256 != before.sha256
    assert after.id == before.id
    assert unlock_count(one, after.id) == 1, "what was seen stays seen"
    assert times_opened(run) == 1
    log.append("held-out opened", {"who": "s", "run_sha256": "of an earlier version"})  # which wrote no id
    assert unlock_count(one, after.id) == times_opened(run) == 2


def test_estimates_stay_with_the_run_when_it_is_explained_again(tmp_path) -> None:
    path = make_run(tmp_path / "run", patients=6)
    run, log = open_review(path), ChainedLog(tmp_path / "reviews.jsonl")
    told = {"who": "ada", "patient": key(0), "percent": 30, "day": 500.0, "confidence": "sure"}
    log.append("estimate", {**told, "run": run.id, "run_sha256": run.sha256})
    log.append("estimate", {**told, "run": "another", "run_sha256": run.sha256})
    log.append("estimate", {**told, "run_sha256": "another"})
    write_units(path, "slide", kind="instance", each=3)
    seal(path, {"format_version": 1, "kind": "run"})
    again = open_review(path)
    assert again.sha256 != run.sha256
    assert len(reviews.estimates(again, log.rows())) == 1


def test_worklist_of_100000_patients_is_quick(tmp_path) -> None:
    from medfuse.review import worklist

    run = open_review(make_run(tmp_path / "run", patients=100_000))
    path = worklist.build_worklist(run, tmp_path)
    took = []
    for page in (0, 1000, 3999):
        start = time.perf_counter()
        rows, total = worklist.find(path, worklist.Query(page=page), done=[key(3)])
        took.append(time.perf_counter() - start)
        assert total == 100_000
        assert len(rows) == 25
    assert sorted(took)[1] < 0.75
    assert json.dumps(worklist.counts(run, path))
