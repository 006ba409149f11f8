"""Parent of the kill test: forks extractions, kills them (signal 9) at random moments of the work, and runs them again.

``python tests/kill_extraction.py FOLDER KILLS [LOADER ...]``, loaders of raw files whose examples make the cohort. A
process of its own, so that imports are done once and no thread exists at the forks. Prints JSON.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from gate_cases import card_file

from medfuse import loaders
from medfuse.cohort import Cohort, read_cohort
from medfuse.config import read_card
from medfuse.extraction import extract
from medfuse.files import verify

COPIES = 6  # of each example's patients, so that a run has enough items to be hit in the middle


def cohort(folder: Path, names: list[str]) -> Cohort:
    """The examples of some raw loaders, and a note for each of a dozen patients more."""
    modalities, patients = {}, [f"P{k:03d}" for k in range(2 * COPIES)]
    for name in names:
        module = loaders.module_of(name, where="kill test")
        modalities[name] = module.write_example(folder / name).model_dump(exclude_defaults=True)
        modalities[name]["path"] = f"{name}/{modalities[name]['path']}"
    modalities["notes"] = {"loader": "text", "path": "notes/{patient_id}.txt"}
    (folder / "notes").mkdir()
    for k, patient in enumerate(patients):
        sentences = (f"Lesion {n} of patient {k} measures {n * k % 31} mm in its longest diameter." for n in range(40))
        (folder / "notes" / f"{patient}.txt").write_text("\n".join(sentences))
    (folder / "notes" / f"{patients[5]}.txt").write_bytes(b"\xff\xfe broken")
    return read_cohort(read_card(card_file(folder, modalities, ids=("001", "002", *patients))), data_root=folder)


def content(store: Path) -> dict[str, str]:
    """SHA-256 of every file of a store by its place."""
    files = [p for p in sorted(store.rglob("*")) if p.is_file()]
    return {p.relative_to(store).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def forked(people: Cohort, store: Path) -> int:
    """A child that extracts and ends with 1 where anything but the one broken file failed."""
    pid = os.fork()
    if not pid:
        failed = [item.patient_id for item in extract(people, store_root=store, workers=0).failed]
        os._exit(0 if failed == ["P005"] else 1)
    return pid


def wait_for(store: Path, count: int, *, at_most: float) -> None:
    """Until the store holds ``count`` files: a moment of the work, however fast the machine is."""
    end = time.perf_counter() + at_most
    while time.perf_counter() < end and sum(len(files) for _, _, files in os.walk(store)) < count:
        time.sleep(0.0005)


def main(folder: Path, kills: int, names: list[str]) -> None:
    """Extract once in peace, then kill and run again; the stores are compared byte for byte."""
    people = cohort(folder, names)
    started = time.perf_counter()
    peaceful = os.waitpid(forked(people, folder / "whole"), 0)[1]
    length = time.perf_counter() - started
    whole, rng = content(folder / "whole"), random.Random(7)
    hits, identical, partial, ended = 0, 0, 0, []
    while hits < kills and len(ended) < 4 * kills:
        store = folder / "killed"
        shutil.rmtree(store, ignore_errors=True)
        pid = forked(people, store)
        wait_for(store, rng.randrange(len(whole)), at_most=60.0)
        time.sleep(rng.uniform(0, length / len(whole)))  # within the writing of one file
        os.kill(pid, signal.SIGKILL)
        ended.append(os.waitpid(pid, 0)[1])
        if not os.WIFSIGNALED(ended[-1]):
            continue  # it was faster
        hits += 1
        found = content(store) if store.exists() else {}
        partial += 0 < len(found) < len(whole)
        for manifest in store.glob("*/manifest.json"):
            if not manifest.parent.name.startswith(".tmp-"):
                verify(manifest.parent)  # what looks whole is whole
        again = os.waitpid(forked(people, store), 0)[1]
        identical += again == 0 and content(store) == whole
    result = {
        "kills": hits,
        "identical": identical,
        "in_the_middle": partial,
        "peaceful": peaceful,
        "files": len(whole),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
