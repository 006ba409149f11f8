"""P10: WFDB records of 12 leads x 5,000 samples, formats 16 and 212, against wfdb.rdrecord; bytes in, mV out.

Run: OMP_NUM_THREADS=1 python benchmarks/ecg.py
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import wfdb
from _timing import load, machine, ratios, round_robin

from medfuse.loaders import _ecg_header, ecg

RECORDS, REPEATS, GOAL = 100, 15, 3.5


def make(folder: Path, fmt: int, count: int) -> list[str]:
    """Records as clinics hold them: each its own header and signal file."""
    names = []
    for number in range(count):
        signal = ecg.synthesise(10.0, 500.0, heart_rate=50 + number % 60, st_mv=0.01 * (number % 7), seed=number)
        gain = 1000.0 if fmt == 16 else 200.0
        ecg.write_wfdb(folder, f"r{number:03d}_{fmt}", signal, sampling_frequency=500.0, gain=gain, fmt=fmt)
        names.append(str(folder / f"r{number:03d}_{fmt}"))
    return names


def ours(names: list[str]) -> list[np.ndarray]:
    """The loader as a card calls it: header, checks, facts, and the one window of the record."""
    _ecg_header._parsed.cache_clear()  # every record is read as if for the first time
    return [ecg.read((Path(f"{name}.hea"), Path(f"{name}.dat")), {}).fetch([0])[0] for name in names]


def theirs(names: list[str], bits: int) -> list[np.ndarray]:
    return [wfdb.rdrecord(name, return_res=bits).p_signal for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ecg.json")
    options = parser.parse_args()
    records, repeats = (3, 1) if options.small else (RECORDS, REPEATS)
    result: dict[str, object] = {"records": records, "leads": 12, "samples": 5000, "goal": GOAL, "load_before": load()}
    with tempfile.TemporaryDirectory() as root:
        for fmt in (16, 212):
            names = make(Path(root), fmt, records)
            for mine, other in zip(ours(names), theirs(names, 64), strict=True):
                np.testing.assert_array_equal(mine, other.astype(np.float32).T)
            times = round_robin(
                {
                    "medfuse": lambda names=names: ours(names),
                    "wfdb float64": lambda names=names: theirs(names, 64),
                    "wfdb float32": lambda names=names: theirs(names, 32),
                },
                repeats=repeats,
            )
            wall = {
                k: round(t["median_ms"] / times["medfuse"]["median_ms"], 2) for k, t in times.items() if k != "medfuse"
            }
            result[f"format {fmt}"] = {
                "equal": "to wfdb's float64 values rounded to float32, all records",
                "times_per_all_records": times,
                "records_per_s": {k: round(records / t["median_ms"] * 1e3) for k, t in times.items()},
                "times_ours_by_wall": wall,
                "times_ours_by_processor": ratios(times, "medfuse"),
                "goal_met": min(*wall.values(), *ratios(times, "medfuse").values()) >= GOAL,
            }
    result |= {"load_after": load(), "machine": machine("wfdb", "numpy")}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k.startswith(("format", "load"))}, indent=1))


if __name__ == "__main__":
    main()
