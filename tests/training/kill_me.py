"""Parent of the kill test: forks fits, kills them with signal 9 at random moments, runs each again until it finishes.

A process of its own, so that torch is imported once and no thread exists at the forks. Prints JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import TinyModel, make_batch

from medfuse.training.checkpoint import weights_sha256
from medfuse.training.fit import fit_member
from medfuse.training.settings import TrainSettings

SETTINGS = TrainSettings(
    epochs=12, batch_size=40, lr=1e-2, ema=0.9, patience=4, device="cpu", checkpoint_every=1, checkpoint_seconds=0.02
)


def fit(folder):
    fitted = fit_member(
        make_batch(200, 1),
        make_batch(80, 2),
        build=TinyModel,
        settings=SETTINGS,
        seed=11,
        workdir=folder,
        watch=lambda progress: time.sleep(0.004),
    )
    return f"{weights_sha256(fitted.state)} {fitted.best_epoch} {len(fitted.history)}"


def killed_after(folder, seconds):
    """Whether a fit in a child process was killed; False when it had finished before."""
    child = os.fork()
    if child == 0:
        fit(folder)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def main(root, kills, seed):
    torch.set_num_threads(1)
    started = time.perf_counter()
    expected = fit(None)
    seconds = time.perf_counter() - started
    draw = random.Random(seed)
    done, finished, resumed = 0, [], 0
    folder = root / "0"
    while done < kills:
        before = any(folder.glob("checkpoint-*"))
        if killed_after(folder, draw.uniform(0, seconds)):
            done += 1
            resumed += before
        else:
            finished.append(fit(folder))
            folder = root / str(len(finished))
    finished.append(fit(folder))
    sys.stdout.write(json.dumps({"expected": expected, "finished": finished, "kills": done, "resumed": resumed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
