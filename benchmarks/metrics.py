"""Concordance beside lifelines and scikit-survival in one process (P3 to P5): equal values first, then time."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import lifelines
import numpy as np
import sksurv
from lifelines.utils import concordance_index
from sksurv.metrics import concordance_index_censored, concordance_index_ipcw
from sksurv.util import Surv

from medfuse.metrics.comparison import bootstrap_values
from medfuse.metrics.discrimination import harrell_c, uno_c
from medfuse.targets import Survival


def simulated(n: int) -> tuple[Survival, np.ndarray]:
    rng = np.random.default_rng(n)
    eta = rng.normal(size=n)
    time_, censored = rng.exponential(np.exp(-eta) * 1000), rng.exponential(1500, size=n)
    survival = Survival(event=time_ <= censored, time=np.ceil(np.minimum(time_, censored)))
    return survival, np.round(eta + rng.normal(size=n), 3)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    values = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        values.append(1000 * (time.perf_counter() - start))
    return statistics.median(values)


def main() -> None:
    rows = {}
    for n in (10_000, 100_000):
        s, risk = simulated(n)
        y = Surv.from_arrays(s.event, s.time)
        slow = 1 if n > 10_000 else 3
        ours = harrell_c(s, risk).value
        assert abs(ours - concordance_index(s.time, -risk, s.event)) < 1e-12
        assert abs(ours - concordance_index_censored(s.event, s.time, risk)[0]) < 1e-12
        assert abs(uno_c(s, risk, train=s, convention="sksurv").value - concordance_index_ipcw(y, y, risk)[0]) < 1e-12
        mine = milliseconds(lambda s=s, r=risk: harrell_c(s, r, with_error=False), 9)
        uno = milliseconds(lambda s=s, r=risk: uno_c(s, r, train=s, convention="sksurv", with_error=False), 9)
        life = milliseconds(lambda s=s, r=risk: concordance_index(s.time, -r, s.event), 5)
        sk = milliseconds(lambda s=s, r=risk: concordance_index_censored(s.event, s.time, r), slow)
        sk_uno = milliseconds(lambda y=y, r=risk: concordance_index_ipcw(y, y, r), slow)
        rows[n] = {
            "harrell_ms": mine,
            "lifelines_ms": life,
            "sksurv_ms": sk,
            "uno_ms": uno,
            "sksurv_ipcw_ms": sk_uno,
            "times_lifelines": life / mine,
            "times_sksurv": sk / mine,
            "times_sksurv_ipcw": sk_uno / uno,
        }
        if n == 10_000:
            bootstrap_values(s, risk, n_resamples=10)
            start = time.perf_counter()
            bootstrap_values(s, risk, n_resamples=1000)
            boot = time.perf_counter() - start
            rows[n] |= {"bootstrap_1000_s": boot, "bootstrap_times_lifelines_loop": life * 1000 / 1000 / boot}
    result = {
        "note": "without the standard error, which the peers do not give; bootstrap loop of lifelines extrapolated",
        "versions": {"lifelines": lifelines.__version__, "sksurv": sksurv.__version__, "numpy": np.__version__},
        "machine": platform.machine(),
        "rows": {str(n): {k: round(v, 3) for k, v in row.items()} for n, row in rows.items()},
    }
    path = Path(__file__).parent / "results" / "metrics.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
