"""P12: an expression matrix of 1,000 patients x 20,000 genes from CSV, beside pandas, polars and pyarrow; then stored.

Run: OMP_NUM_THREADS=1 python benchmarks/expression.py
First time: the loader of the card, from the file to a checked float64 matrix with patients and genes (units, names,
duplicates and missing cells looked at), beside the plain readers of a data frame. From the store: the entry of the same
modality, every byte compared with its SHA-256 (blocks of 4 MiB, on up to four cores) and then memory-mapped; its limit
is hashing the same bytes from memory. One process per candidate, so that peak memory is
its own; the candidates take turns; ratios of processor time hold on a busy machine, those of the wall do not.
"""

import argparse
import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _timing import load, machine

PATIENTS, GENES, REPEATS = 1000, 20_000, 5
GOALS = {"first": 2.2, "store": 50, "memory": 1.5}
CANDIDATES = ("medfuse", "pandas", "pyarrow", "polars", "store", "limit: sha256")


def write(path: Path, patients: int, genes: int) -> None:
    """log2 TPM as expression files have them: four decimals, a fifth of the cells zero."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("patient_id," + ",".join(f"GENE{k}A" for k in range(genes)) + "\n")
        for k in range(patients):
            row = np.where(rng.random(genes) < 0.2, 0, np.minimum(rng.gamma(4, 1.2, genes), 16))
            file.write(f"P{k:04d}," + ",".join(f"{v:.4f}" for v in row) + "\n")


def whole(path: Path) -> np.ndarray:
    """Everything that a card's modality is made of."""
    from medfuse.card import ModalityCard
    from medfuse.loaders import read

    card = ModalityCard(loader="expression", file=path.name, id="patient_id", unit="tpm", log_base=2)
    return read("rna", card, resolve=lambda name: path.parent / name, patients=("patient_id", ""))


def pandas(path: Path) -> np.ndarray:
    import pandas as pd

    return pd.read_csv(path, index_col=0).to_numpy()


def pyarrow(path: Path) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import csv

    pa.set_cpu_count(1)
    table = csv.read_csv(path, read_options=csv.ReadOptions(use_threads=False, block_size=1 << 26))
    return np.stack([table.column(k).to_numpy() for k in range(1, table.num_columns)], axis=1)


def polars(path: Path) -> np.ndarray:
    import polars as pl

    frame = pl.read_csv(path, infer_schema_length=10)
    return frame.drop("patient_id").to_numpy()


def store(path: Path) -> object:
    from medfuse.store import FeatureStore

    return FeatureStore(path.parent / "store").get("rna")


def sha256(path: Path) -> str:
    """What the store cannot do without while it compares every byte: hashing them on one core, from memory."""
    return hashlib.sha256(entry(path)).hexdigest()


@functools.cache
def entry(path: Path) -> bytes:
    """The values of the entry as they lie on disk; read before the clock starts."""
    return next((path.parent / "store").glob("*/cells.npy")).read_bytes()


RUNS = {"medfuse": whole, "pandas": pandas, "pyarrow": pyarrow, "polars": polars, "store": store}
RUNS["limit: sha256"] = sha256


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def once(name: str, path: Path) -> None:
    """One candidate in a process of its own; imports and a tiny file before the clock starts."""
    tiny = path.with_name("tiny.csv")
    RUNS[name](path if name in {"store", "limit: sha256"} else tiny)
    before, start, processor = peak_mib(), time.perf_counter(), time.process_time()
    RUNS[name](path)
    wall, cpu = time.perf_counter() - start, time.process_time() - processor
    print(json.dumps({"wall_ms": wall * 1e3, "cpu_ms": cpu * 1e3, "extra_peak_mib": peak_mib() - before}))


def prepare(folder: Path, patients: int, genes: int) -> Path:
    """The files, an entry in the store, and proof that all candidates read the same numbers."""
    from medfuse.store import FeatureStore

    path = folder / "rna.csv"
    write(path, patients, genes)
    write(folder / "tiny.csv", 5, 300)
    for name in ("pyarrow", "polars"):
        assert np.array_equal(RUNS[name](folder / "tiny.csv"), pandas(folder / "tiny.csv")), name
    data = whole(path)
    kept = FeatureStore(folder / "store").put(data, key="rna", sources={})
    matrix = np.stack([sample.tokens[:, 0] for sample in data.samples.values()])
    again = np.stack([sample.tokens[:, 0] for sample in kept.samples.values()])
    exact = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 200), max_rows=50)
    assert np.array_equal(matrix[:50, :199], exact.astype(np.float32))
    assert np.array_equal(matrix, again)
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", nargs=2)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "expression.json")
    options = parser.parse_args()
    if options.once:
        once(options.once[0], Path(options.once[1]))
        return
    size = (50, 400) if options.small else (PATIENTS, GENES)
    result: dict[str, object] = {"patients": size[0], "genes": size[1], "goals": GOALS, "load_before": load()}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory() as root:
        path = prepare(Path(root), *size)
        result["mib"] = round(path.stat().st_size / 2**20)
        for _ in range(1 if options.small else REPEATS):
            for name in CANDIDATES:
                command = [sys.executable, __file__, "--once", name, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
                turns[name].append(json.loads(done.stdout))
    keys = ("wall_ms", "cpu_ms", "extra_peak_mib")
    middle = {n: {k: round(statistics.median(t[k] for t in found), 2) for k in keys} for n, found in turns.items()}
    ours = middle["medfuse"]
    result |= {"turns": 1 if options.small else REPEATS, "median": middle}
    result["first_time"] = {
        name: {
            "by_processor": round(t["cpu_ms"] / ours["cpu_ms"], 2),
            "by_wall": round(t["wall_ms"] / ours["wall_ms"], 2),
        }
        for name, t in middle.items()
        if name in {"pandas", "pyarrow", "polars"}
    }
    cached = middle["store"]
    result["from_store_times_pandas"] = {
        "by_processor": round(middle["pandas"]["cpu_ms"] / cached["cpu_ms"], 1),
        "by_wall": round(middle["pandas"]["wall_ms"] / cached["wall_ms"], 1),
    }
    result["from_store_over_sha256_alone"] = {
        "by_processor": round(cached["cpu_ms"] / middle["limit: sha256"]["cpu_ms"], 2),
        "by_wall": round(cached["wall_ms"] / middle["limit: sha256"]["wall_ms"], 2),
    }
    result["memory_of_pandas"] = round(ours["extra_peak_mib"] / max(middle["pandas"]["extra_peak_mib"], 1e-9), 2)
    result |= {"load_after": load(), "machine": machine("pandas", "polars", "pyarrow", "numpy", "numba")}
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
