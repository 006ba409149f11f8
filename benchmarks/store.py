"""Random tokens of large bags, from the feature store to a batch, beside HDF5 (P15); and cost by size of the cohort.

Usage: python benchmarks/store.py [--quick] [--folder DIR] [--out FILE.json]
Bags of 4,000 to 20,000 x 1,024. Ours: float16, one entry per item, memory-mapped, found through the store. Peers:
float32 in contiguous HDF5, opened for each read or kept open, and NPY mapped by numpy. Every candidate draws the same
4,096 rows of each bag and ends in the same float32 batch of eight bags (``collate``). The page cache is warm for all.
Values are compared first: ours differ by the rounding to float16 only. Goal: P15 of ../shared/performance.md.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from _timing import load, machine, ratios, round_robin

from medfuse.batch import Item, collate
from medfuse.sample import ModalitySample
from medfuse.store import FeatureStore, PatientItems, StoredItem, entry_key
from medfuse.types import PatientId

DRAWN, WIDTH, BATCH = 4096, 1024, 8
NAMES = tuple(f"f{k}" for k in range(WIDTH))


def fill(store: FeatureStore, bags: dict[str, np.ndarray], *, name: str) -> str:
    """Store bags as items of patients; the key of the modality."""
    parts = []
    for patient, tokens in bags.items():
        key = entry_key(name=f"{name} {patient}", settings={}, sources={}, version=1)
        position = np.arange(len(tokens), dtype=np.float32)[:, None]
        sample = ModalitySample(tokens=tokens, position=position)
        names = NAMES[: tokens.shape[1]]
        store.put_item(StoredItem(sample=sample, names=names, unit="index", facts={}), key=key, sources={})
        parts.append(PatientItems(patient_id=PatientId(patient), items=((-1, key),)))
    key = entry_key(name=name, settings={}, sources={}, version=1)
    store.put_items(name, parts, key=key)
    return key


def batches(patients: list[str], draw: Callable[[str], ModalitySample]) -> torch.Tensor:
    """All bags in batches; the last one's tokens."""
    for start in range(0, len(patients), BATCH):
        chosen = patients[start : start + BATCH]
        items = [Item(patient_id=PatientId(i), samples={"bag": draw(i)}, targets={}) for i in chosen]
        tokens = collate(items).tokens["bag"]
    return tokens


def reading(folder: Path, *, bags: int, repeats: int, most: int = 20_000) -> dict:
    """P15."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(most // 5, most, bags)
    data = {f"{k:03d}": rng.normal(size=(n, WIDTH)).astype(np.float32) for k, n in enumerate(sizes)}
    store = FeatureStore(folder / "store")
    key = fill(store, data, name="bag")
    for patient, tokens in data.items():
        with h5py.File(folder / f"{patient}.h5", "w") as file:
            file.create_dataset("features", data=tokens)
        np.save(folder / f"{patient}.npy", tokens)
    patients = list(data)
    rows = {i: np.sort(rng.choice(len(data[i]), min(DRAWN, len(data[i])), replace=False)) for i in patients}
    del data
    ours = store.get(key).samples
    kept = {i: h5py.File(folder / f"{i}.h5", "r")["features"] for i in patients}

    def sample(tokens: np.ndarray) -> ModalitySample:
        return ModalitySample.trusted(tokens=tokens, position=np.zeros((len(tokens), 1), np.float32))

    def opened(patient: str) -> ModalitySample:
        with h5py.File(folder / f"{patient}.h5", "r") as file:
            return sample(file["features"][rows[patient]])

    def drawers() -> dict[str, Callable[[str], ModalitySample]]:
        return {
            "medfuse": lambda i: ours[PatientId(i)].take(rows[i]),
            "h5py fancy index, opened for each read": opened,
            "h5py fancy index, kept open": lambda i: sample(kept[i][rows[i]]),
            "h5py whole bag, then index": lambda i: sample(kept[i][:][rows[i]]),
            "numpy.load memory map, float32": lambda i: sample(
                np.load(folder / f"{i}.npy", mmap_mode="r")[rows[i]],
            ),
        }

    last = {name: batches(patients, draw) for name, draw in drawers().items()}
    errors = {name: float((tokens - last["medfuse"]).abs().max()) for name, tokens in last.items()}
    assert max(errors.values()) < 4e-3, errors  # half a step of float16 below 8
    times = round_robin(
        {name: (lambda draw=draw: batches(patients, draw)) for name, draw in drawers().items()}, repeats=repeats
    )
    rates = {name: round(bags / t["cpu_ms"] * 1e3, 1) for name, t in times.items()}
    disk = {
        "medfuse": sum(p.stat().st_size for p in (folder / "store").rglob("*.npy")),
        "HDF5": sum(p.stat().st_size for p in folder.glob("*.h5")),
    }
    return {
        "bags": bags,
        "times": times,
        "bags_per_cpu_second": rates,
        "times_of_ours": ratios(times, "medfuse"),
        "bytes": disk,
    }


def by_cohort(folder: Path, sizes: tuple[int, ...], *, repeats: int) -> list[dict]:
    """Microseconds to find and draw 64 of 256 tokens of a bag, and to open the modality, by number of patients."""
    found = []
    rng = np.random.default_rng(0)
    for n in sizes:
        store = FeatureStore(folder / f"cohort{n}")
        bag = rng.normal(size=(256, 64)).astype(np.float32)
        key = fill(store, {f"{k:06d}": bag + k / n for k in range(n)}, name="small")
        started = time.process_time()
        samples = store.get(key).samples
        opening = time.process_time() - started
        ids = rng.permutation(list(samples))[:500]
        rows = np.sort(rng.choice(256, 64, replace=False))
        for i in ids:
            samples[i].take(rows)
        spent = []
        for _ in range(repeats):
            started = time.process_time()
            for i in ids:
                samples[i].take(rows)
            spent.append((time.process_time() - started) / len(ids))
        row = {
            "patients": n,
            "us_per_draw": round(float(np.median(spent)) * 1e6, 2),
            "us_to_open_per_patient": round(opening / n * 1e6, 1),
        }
        found.append(row)
        shutil.rmtree(folder / f"cohort{n}")
    return found


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "store.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bags, cohorts = (24, (500, 1000, 2000))
    if options.quick or options.small:
        bags, cohorts, options.repeats = (2, (5,), 1) if options.small else (8, (500,), 3)
    before = load()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        result = {
            "what": "P15: 4,096 random tokens of each bag of 4,000 to 20,000 x 1,024, to a float32 batch of 8 bags",
            "machine": machine("numpy", "torch", "h5py"),
            "threads": 1,
            "reading": reading(folder, bags=bags, repeats=options.repeats, most=200 if options.small else 20_000),
            "by_cohort": by_cohort(folder, cohorts, repeats=5),
            "load": {"before": before, "after": load()},
        }
    fastest = min(v for k, v in result["reading"]["times_of_ours"].items() if k.startswith("h5py fancy"))
    result["goals"] = {"P15 >= 3x h5py fancy index (the faster of the two)": fastest}
    print(json.dumps(result, indent=1))
    if not options.quick:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
