"""How long explanations take (E9): five modalities, the default recipe's ensemble, values from the feature store.

One patient: the values of all 32 coalitions by every member, contributions, dividends and interactions. 1,000 patients:
the same. Beside them the display, which reads stored values alone. What the members learned does not change the time:
they are fitted for two epochs.

python benchmarks/explaining.py [--out FILE]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _timing import load, machine

from medfuse.config import read_recipe
from medfuse.explain import coalition_values, contributions
from medfuse.explaining import write_coalitions
from medfuse.jobs import fold_settings
from medfuse.splits import Split
from medfuse.store import FeatureStore
from medfuse.synthetic import GENE_SETS, simulate
from medfuse.training import Outcomes, cpu_threads, fit_fold

NAMES = ("imaging", "pathology", "ecg", "expression", "ehr")
TRAIN, EXPLAINED, HORIZON = 300, 1000, 548.0


def fitted(folder: Path, n_train: int, n_explained: int):
    """The fold, data read from a store, and ids of the patients to explain."""
    simulation = simulate(n_train + n_explained, seed=0)
    store = FeatureStore(folder / "store")
    data = {}
    for name in NAMES:
        one = simulation.data[name]
        if name == "expression":
            one = type(one)(**{**vars(one), "gene_sets": GENE_SETS})
        data[name] = store.put(one, key=f"{NAMES.index(name):064x}", sources={})
    recipe = read_recipe("default", ["train.epochs=2", "train.device=cpu", "train.threads=1"])
    ids = simulation.patient_ids[:n_train]
    inner = [
        Split(name=str(k), train=tuple(i for n, i in enumerate(ids) if n % 3 != k), tuning=ids[k::3], held_out=())
        for k in range(recipe.splits.inner_folds)
    ]
    outcomes = Outcomes(patient_ids=simulation.patient_ids, targets={"death": simulation.survival})
    return (
        fit_fold(data, outcomes, train_ids=ids, inner=inner, settings=fold_settings(recipe)),
        data,
        simulation.patient_ids[n_train:],
    )


def timed(run: Callable[[], object], *, turns: int) -> dict[str, object]:
    """Median and largest wall and processor seconds."""
    wall, cpu = [], []
    for _ in range(turns):
        started, processor = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - processor)
    return {
        "turns": turns,
        "wall_s": round(statistics.median(wall), 3),
        "wall_largest_s": round(max(wall), 3),
        "cpu_s": round(statistics.median(cpu), 3),
        "load": load()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "explaining.json")
    parser.add_argument("--small", action="store_true", help="few patients: does it run?")
    asked = parser.parse_args()
    out, sizes = asked.out, (60, 20) if asked.small else (TRAIN, EXPLAINED)
    with tempfile.TemporaryDirectory() as folder, cpu_threads(1):
        fold, data, ids = fitted(Path(folder), *sizes)

        def explained(some):
            values = coalition_values(fold, data, some)
            return values, contributions(values, horizon=HORIZON)

        explained(ids[:2])
        rows = {"one patient": timed(lambda: explained(ids[:1]), turns=9)}
        rows["1,000 patients"] = timed(lambda: explained(ids), turns=3)
        values, _ = explained(ids)
        one = values.take([0])
        rows["one patient, from stored values"] = timed(lambda: contributions(one, horizon=HORIZON), turns=9)
        rows["1,000 patients, from stored values"] = timed(lambda: contributions(values, horizon=HORIZON), turns=5)
        rows["writing 1,000 patients"] = timed(lambda: write_coalitions(values, Path(folder) / "x"), turns=3)
    content = {
        "modalities": list(NAMES),
        "recipe": "default",
        "members": len(fold.members),
        "asked": {"one patient": 0.5, "1,000 patients": 60},
        "threads": 1,
        "seconds": rows,
        **machine("medfuse", "torch", "numpy"),
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
