"""EHR events (P11): 10 million MEDS-like events to features per patient and code, against plain DuckDB and pandas.

Each sample is a fresh process that has its imports done; candidates take turns. Every candidate hands over the whole
table of groups (count, mean, min, max and last value of each patient and code at or before a date): a query whose
aggregates nobody reads is not timed, because DuckDB would leave them out. ``--large`` adds 100 million events in
shards. Data are generated from a seed into the folder MEDFUSE_BENCH (default /tmp/medfuse-bench).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _timing import load, machine

FOLDER = Path(os.environ.get("MEDFUSE_BENCH", "/tmp/medfuse-bench"))
CUT = "2018-01-01 00:00:00"
CODES, TOP = 2_000, 200
NAMES = [f"LAB//{i:05d}//mg/dL" for i in range(CODES)]
STATS = ["last", "min", "max", "mean", "count"]
TURNS = 6


def make(folder: Path, *, events: int, patients: int, shards: int) -> None:
    """Shards sorted by patient and time; codes by Zipf's law, values of 65 % of the events."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (folder / "done").exists():
        return
    (folder / "data" / "train").mkdir(parents=True, exist_ok=True)
    names = pa.array(NAMES)
    n, people = events // shards, patients // shards
    for shard in range(shards):
        g = np.random.default_rng(shard)
        subject = np.sort(g.integers(0, people, n)) + shard * people
        code = np.minimum(g.zipf(1.3, n) - 1, CODES - 1).astype(np.int32)
        t = g.integers(1_400_000_000, 1_600_000_000, n) * 1_000_000
        order = np.lexsort((t, subject))
        value, absent = g.normal(100, 20, n).astype(np.float32), g.random(n) < 0.35
        table = pa.table(
            {
                "subject_id": pa.array(subject[order]),
                "time": pa.array(t[order], type=pa.timestamp("us")),
                "code": pa.DictionaryArray.from_arrays(pa.array(code), names).cast(pa.string()),
                "numeric_value": pa.array(value, mask=absent),
            }
        )
        path = folder / "data" / "train" / f"{shard}.parquet"
        pq.write_table(table, path, row_group_size=1_000_000, compression="zstd")
    (folder / "done").touch()


def _connection():
    import duckdb

    con = duckdb.connect()
    con.execute("SET threads = 2")
    numbered = [NAMES[:TOP], [*range(TOP)]]
    con.execute("CREATE TABLE top AS SELECT unnest(?) AS code, unnest(?)::INTEGER AS var", numbered)
    return con


STATISTICS = "count(*) n, avg(numeric_value) mean, min(numeric_value) low, max(numeric_value) high"


def duckdb_codes(folder: Path, last: str = "arg_max(numeric_value, time)"):
    """Grouped by the text of the code, as one would write it."""
    found = _connection().sql(
        f"SELECT subject_id, code, {STATISTICS}, {last} AS last FROM read_parquet('{folder}/data/*/*.parquet') "
        f"SEMI JOIN top USING (code) WHERE time <= TIMESTAMP '{CUT}' GROUP BY ALL"
    )
    return found.to_arrow_table()


def duckdb_ordered(folder: Path):
    """The same with an ordered ``last``."""
    return duckdb_codes(folder, "last(numeric_value ORDER BY time) FILTER (numeric_value IS NOT NULL)")


def duckdb_numbered(folder: Path):
    """Grouped by the number of the code: the best that we know to write."""
    found = _connection().sql(
        f"SELECT subject_id, var, {STATISTICS}, arg_max(numeric_value, time) AS last "
        f"FROM read_parquet('{folder}/data/*/*.parquet') JOIN top USING (code) "
        f"WHERE time <= TIMESTAMP '{CUT}' GROUP BY ALL"
    )
    return found.to_arrow_table()


def pandas_groupby(folder: Path):
    import pandas as pd

    d = pd.read_parquet(folder / "data")
    d = d[(d.time <= np.datetime64(CUT)) & d.code.isin(NAMES[:TOP])]
    return d.groupby(["subject_id", "code"], sort=False).numeric_value.agg(["size", "mean", "min", "max", "last"])


def _options(duplicates: str = "keep", stats: list[str] = STATS):
    from medfuse.loaders._event_options import parse

    variables = {f"v{i}": {"codes": NAMES[i], "stats": stats} for i in range(TOP)}
    given = {"index": {"time": CUT}, "lookback_days": 36_500, "variables": variables, "duplicates": duplicates}
    return parse(given), given


def medfuse_keep(folder: Path):
    from medfuse.loaders.events import group_table

    return group_table({"events": folder}, _options()[0])


def medfuse_drop(folder: Path):
    """The default: repeated rows count once."""
    from medfuse.loaders.events import group_table

    return group_table({"events": folder}, _options("drop")[0])


def medfuse_all_stats(folder: Path):
    """Slope and time since last as well, repeated rows once."""
    from medfuse.loaders.events import group_table

    return group_table({"events": folder}, _options("drop", [*STATS, "slope", "days_since"])[0])


def medfuse_samples(folder: Path):
    """To the samples of the modality: dense patients x 1,000 columns x (value, observed)."""
    from medfuse import loaders
    from medfuse.config import ModalityCard

    card = ModalityCard(loader="events", file="x", options=_options()[1])
    return loaders.read("ehr", card, resolve=lambda source: folder, patients=("id", "row-")).samples


CANDIDATES = {
    "duckdb, by code": duckdb_codes,
    "duckdb, ordered last": duckdb_ordered,
    "duckdb, codes numbered": duckdb_numbered,
    "pandas": pandas_groupby,
    "medfuse, groups": medfuse_keep,
    "medfuse, groups, duplicates dropped": medfuse_drop,
    "medfuse, all statistics, duplicates dropped": medfuse_all_stats,
    "medfuse, samples": medfuse_samples,
}


def child(name: str, folder: Path) -> None:
    import duckdb  # noqa: F401
    import pandas  # noqa: F401

    if name.startswith("medfuse"):
        import medfuse.loaders.events  # noqa: F401
    run = CANDIDATES[name]
    start, processor = time.perf_counter(), time.process_time()
    found = run(folder)
    wall, cpu = time.perf_counter() - start, time.process_time() - processor
    groups = len(found["sid"]) if isinstance(found, dict) and "sid" in found else len(found)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"s": wall, "cpu_s": cpu, "rss_mib": int(peak.split()[1]) / 1024, "groups": groups}))


def sample(name: str, folder: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def equal(folder: Path) -> dict[str, object]:
    """Largest differences between our groups and those of DuckDB and pandas."""
    ours = medfuse_keep(folder)
    plain = duckdb_numbered(folder)
    theirs = {name: plain[name].to_numpy() for name in plain.column_names}
    a = np.lexsort((ours["var"], ours["sid"]))
    b = np.lexsort((theirs["var"], theirs["subject_id"]))
    same_groups = np.array_equal(ours["sid"][a], theirs["subject_id"][b]) and np.array_equal(
        ours["var"][a], theirs["var"][b]
    )
    out: dict[str, object] = {"groups": len(a), "same_groups_as_duckdb": bool(same_groups)}
    pairs = (("count", "n"), ("min", "low"), ("max", "high"), ("last", "last"), ("mean", "mean"))
    for mine, other in pairs:
        x, y = ours[mine][a].astype(float), theirs[other][b].astype(float)
        differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        out[f"{mine}_cells_that_differ"] = int(differs.sum())
        out[f"{mine}_largest_difference"] = float(np.abs(x - y)[differs].max()) if differs.any() else 0.0
    return out


def measured(folder: Path, names: list[str], turns: int) -> dict[str, dict[str, float]]:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names:
            rows[name].append(sample(name, folder))
            print(turn, name, {k: round(v, 2) for k, v in rows[name][-1].items()}, load(), flush=True)
    return {
        name: {
            "median_s": round(statistics.median(r["s"] for r in found), 3),
            "min_s": round(min(r["s"] for r in found), 3),
            "max_s": round(max(r["s"] for r in found), 3),
            "median_cpu_s": round(statistics.median(r["cpu_s"] for r in found), 3),
            "peak_rss_mib": round(statistics.median(r["rss_mib"] for r in found)),
            "groups": int(found[0]["groups"]),
            "turns": len(found),
        }
        for name, found in rows.items()
    }


def judged(times: dict[str, dict[str, float]]) -> dict[str, object]:
    plain = min((n for n in times if n.startswith("duckdb")), key=lambda n: times[n]["median_s"])
    ours, pandas = times["medfuse, groups"], times["pandas"]
    return {
        "duckdb_judged_against": plain,
        "times_of_duckdb": round(ours["median_s"] / times[plain]["median_s"], 3),
        "times_of_duckdb_cpu": round(ours["median_cpu_s"] / times[plain]["median_cpu_s"], 3),
        "pandas_over_ours": round(pandas["median_s"] / ours["median_s"], 3),
        "pandas_over_ours_cpu": round(pandas["median_cpu_s"] / ours["median_cpu_s"], 3),
        "rss_over_pandas": round(ours["peak_rss_mib"] / pandas["peak_rss_mib"], 3),
        "goals": {"times_of_duckdb": "<= 1.3", "pandas_over_ours": ">= 4", "rss_over_pandas": "<= 0.4"},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ehr.json")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.folder)
        return
    result = json.loads(args.out.read_text()) if args.out.exists() else {"format_version": 1}
    size = (20_000, 100) if args.small else (10_000_000, 50_000)
    large = (20_000, 100) if args.small else (100_000_000, 500_000)
    if args.large:
        folder = FOLDER / "meds100m"
        make(folder, events=large[0], patients=large[1], shards=20)
        rows = {"load": load(), "goal_mib": 8192, "times": measured(folder, ["medfuse, groups"], 1)}
        result["hundred_million"] = rows
    else:
        folder = FOLDER / "meds10m"
        make(folder, events=size[0], patients=size[1], shards=1)
        before = load()
        checked = equal(folder)
        times = measured(folder, list(CANDIDATES), args.turns)
        result["machine"] = machine("duckdb", "pandas", "pyarrow", "numpy")
        result["ten_million"] = {"load": [before, load()], "equal": checked, "times": times, "judged": judged(times)}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
