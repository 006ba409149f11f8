"""Start-up: seconds of `medfuse --help` and of `import medfuse` in fresh processes (P16), median of 9."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_SECONDS = 0.4


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    options = parser.parse_args()
    turns = range(1 if options.small else 9)
    rows = {
        "medfuse --help": [seconds("-m", "medfuse", "--help") for _ in turns],
        "import medfuse": [seconds("-c", "import medfuse") for _ in turns],
        "bare python": [seconds("-c", "pass") for _ in turns],
    }
    result = {
        "goal_seconds": GOAL_SECONDS,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in rows.items()},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
