"""Child of the memory test: fits and predicts on bags of which all together would not fit; prints MB of its own memory.

``python tests/training/large_bags.py STORE PATIENTS``
"""

import re
import sys
import threading
import time
from pathlib import Path

import numpy as np

from medfuse.models import ModelSettings
from medfuse.sample import ModalityData, ModalitySample
from medfuse.targets import Survival
from medfuse.training import FoldSettings, Outcomes, TrainSettings, fit_fold, predict_fold
from medfuse.types import PatientId

TOKENS, FEATURES = 4096, 256


class Inner:
    def __init__(self, train, tuning):
        self.train, self.tuning = train, tuning


def own_memory() -> int:
    """MB that are this process's alone: mapped files are not counted."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) // 1024


def stored(root: Path, n: int) -> ModalityData:
    """A bag at a time, so that writing needs no memory either."""
    draw = np.random.default_rng(0)
    samples = {}
    for row in range(n):
        tokens = draw.normal(size=(TOKENS, FEATURES)).astype(np.float16)
        folder = root / f"{row}"
        folder.mkdir(parents=True)
        np.save(folder / "tokens.npy", tokens)
        mapped = np.load(folder / "tokens.npy", mmap_mode="r")
        samples[PatientId(f"p{row:03d}")] = ModalitySample.trusted(
            tokens=mapped, position=np.zeros((TOKENS, 2), np.float32)
        )
    return ModalityData(name="slides", layout="vectors", features=FEATURES, samples=samples, key="k")


def main(root: Path, n: int) -> None:
    data = {"slides": stored(root, n)}
    ids = tuple(data["slides"].samples)
    draw = np.random.default_rng(1)
    outcomes = Outcomes(
        patient_ids=ids, targets={"os": Survival(event=np.ones(n, bool), time=draw.exponential(500, size=n) + 1)}
    )
    half = n // 2
    inner = [Inner(ids[:half], ids[half:]), Inner(ids[half:], ids[:half])]
    settings = FoldSettings(
        model=ModelSettings(width=16),
        train=TrainSettings(epochs=1, batch_size=16, most_tokens=512, device="cpu"),
        seeds=(0,),
    )
    before, peak, done = own_memory(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], own_memory())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    fold = fit_fold(data, outcomes, train_ids=ids, inner=inner, settings=settings)
    said = predict_fold(fold, data, ids)["os"]
    done.set()
    watcher.join()
    assert len(said) == n
    sys.stdout.write(f"{peak[0] - before}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
