"""kill -9 during extraction, damaged entries, decoders that die: the store ends as if nothing had happened."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gate_cases import IDS, with_text

from medfuse import loaders
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.errors import StoreError
from medfuse.extraction import extract
from medfuse.loaders import text
from medfuse.mapped import mapped
from medfuse.store import FeatureStore

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def killed(folder, kills, *names):
    words = [sys.executable, str(ROOT / "tests" / "kill_extraction.py"), str(folder), str(kills), *names]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_five_kills_leave_the_same_store(tmp_path):
    found = killed(tmp_path, 5, "text")
    assert found["peaceful"] == 0
    assert (found["kills"], found["identical"]) == (5, 5)
    assert found["in_the_middle"] >= 2


@pytest.mark.slow
def test_kills_leave_the_same_store_whatever_is_extracted(tmp_path, many):
    kills = many(15, 50)
    found = killed(tmp_path, kills, *loaders.RAW)
    assert found["peaceful"] == 0
    assert (found["kills"], found["identical"]) == (kills, kills)
    assert found["in_the_middle"] >= 0.4 * kills


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    card = with_text(tmp_path, dict.fromkeys(IDS, "Free margin."))
    script = (
        "import os, time\nfrom pathlib import Path\nfrom medfuse.loaders import text\n"
        "from medfuse.cohort import read_cohort\nfrom medfuse.config import read_card\n"
        "from medfuse.extraction import _run\nimport test_extraction_kills as here\n"
        "if __name__ == '__main__':\n"
        "    list(_run(list(range(8)), here.sleeper, Path('.'), workers=2))\n"
    )
    (tmp_path / "main.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], cwd=tmp_path, env=ENVIRONMENT)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("worker-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = [int(p.name.removeprefix("worker-")) for p in tmp_path.glob("worker-*")]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    assert card.exists()


def test_a_script_without_a_main_guard_is_told_so_and_nothing_is_blamed_on_a_file(tmp_path):
    card = with_text(tmp_path, dict.fromkeys(IDS, "Free margin."))
    (tmp_path / "main.py").write_text(
        "import sys\nfrom medfuse import cli\n"
        f"sys.exit(cli.main(['extract', '--cohort', {str(card)!r}, '--data-root', {str(tmp_path)!r}]))\n"
    )
    environment = {**ENVIRONMENT, "MEDFUSE_STORE": str(tmp_path / "store")}
    words = [sys.executable, str(tmp_path / "main.py")]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, timeout=120, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "__main__" in done.stderr.splitlines()[-1]
    assert "damaged" not in done.stdout + done.stderr


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def sleeper(item, store_root):
    Path(f"worker-{os.getpid()}").write_text("")
    time.sleep(120)


def entries(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture
def filled(tmp_path):
    card = with_text(tmp_path, {i: f"Lesion of {k} mm. Margin is free." for k, i in enumerate(IDS[:4])})
    people = read_cohort(read_card(card), data_root=tmp_path)
    store = tmp_path / "store"
    report = extract(people, store_root=store, workers=0)
    assert {item.status for item in report.items} == {"stored"}
    return people, store, report


def test_a_damaged_entry_is_found_whatever_was_done_to_it_and_made_again(filled):
    people, store, report = filled
    whole = entries(store)
    folder = FeatureStore(store).path(report.items[1].key)
    damages = [
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(p.read_bytes() + b"\0"),
        lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]),
        lambda p: p.write_bytes(b""),
        lambda p: p.unlink(),
    ]
    for name in sorted(p.name for p in folder.iterdir()):
        for damage in damages:
            damage(folder / name)
            again = extract(people, store_root=store, workers=0)
            assert [item.status for item in again.items] == ["kept", "stored", "kept", "kept"]
            assert entries(store) == whole


def test_loading_finds_a_flipped_bit_in_the_tokens(filled):
    people, store, report = filled
    before = np.array(load_modalities(people, names=["notes"], store_root=store)["notes"].samples[IDS[1]].tokens)
    file = FeatureStore(store).path(report.items[1].key) / "tokens.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"tokens\.npy"):
        FeatureStore(store).verify(report.items[1].key)
    after = load_modalities(people, names=["notes"], store_root=store)["notes"].samples[IDS[1]].tokens
    np.testing.assert_array_equal(after, before)


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_holds_is_not(filled):
    from medfuse.files import new_folder

    people, store, _ = filled
    whole = entries(store)
    dead = store / ".tmp-dead-1"
    dead.mkdir()
    (dead / "tokens.npy").write_bytes(b"half")
    with new_folder(store / "living") as folder:
        (folder / "x").write_bytes(b"y")
        extract(people, store_root=store, workers=0)
        assert not dead.exists()
        assert (folder / "x").exists()
    (store / "living" / "x").unlink()
    (store / "living").rmdir()
    assert entries(store) == whole


def dies_on_one(files, options):
    if files[0].name.startswith(IDS[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return READ(files, options)


READ = text.read


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the broken decoder is inherited by fork")
def test_a_decoder_that_kills_its_process_takes_only_its_own_file(filled, monkeypatch):
    people, store, _ = filled
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(text, "read", dies_on_one)
    monkeypatch.setattr("medfuse.extraction.multiprocessing.get_context", lambda kind: fork)
    report = extract(people, store_root=store.parent / "fresh", workers=2)
    assert {i.patient_id: i.status for i in report.items} == {i: "failed" if i == IDS[1] else "stored" for i in IDS[:4]}
    assert "crashed" in report.failed[0].reason


# --- mapped arrays ---------------------------------------------------------------------------------------------------


def test_two_thousand_items_are_open_at_once_without_a_file_each(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.float16).reshape(4, 3))
    before = len(list(Path("/proc/self/fd").iterdir()))
    arrays = [mapped(tmp_path / "a.npy") for _ in range(2000)]
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 5
    assert all((a[1:3] == [[3, 4, 5], [6, 7, 8]]).all() for a in arrays[::500])
    assert not arrays[0].flags.writeable
    rows = arrays[0][2:]
    del arrays
    assert rows.sum() == 6 + 7 + 8 + 9 + 10 + 11


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3), np.float16), np.asfortranarray(np.ones((2, 3))), np.array([object()], dtype=object)]
)
def test_only_plain_arrays_are_mapped(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    if array.size:
        with pytest.raises(ValueError, match="plain array"):
            mapped(tmp_path / "a.npy")
    else:
        assert mapped(tmp_path / "a.npy").shape == (0, 3)


def test_a_cut_array_is_not_mapped(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((8, 8)))
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[:20], b"", b"not an array at all"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            mapped(tmp_path / "a.npy")
