"""Writes fixtures/games.json: small random games and what shapiq's ExactComputer says of them.

shapiq is no dependency of medfuse: run this in an environment of its own (Python 3.11 will do).

    python -m venv /tmp/shapiq && /tmp/shapiq/bin/pip install "shapiq==1.4.1"
    /tmp/shapiq/bin/python tests/reference/shapiq_games.py

Entry c of a game is the value of the coalition whose players are the bits of c, as in medfuse/games.py. 2-SII is the
k-Shapley interaction index of order 2 (Bordt and von Luxburg 2023); keys are as "0" and "0,2".
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from shapiq import ExactComputer

GAMES = [(3, 11), (3, 12), (4, 13), (4, 14), (5, 15), (5, 16)]  # players, seed


def made(k, seed):
    """A game of normal values, nobody's among them, and all that is asked of shapiq."""
    values = np.random.default_rng(seed).normal(size=1 << k)
    asked = ExactComputer(n_players=k, game=lambda rows: values[np.asarray(rows, dtype=int) @ (1 << np.arange(k))])
    return {
        "players": k,
        "seed": seed,
        "values": values.tolist(),
        "shapley": named(asked("SV")),
        "moebius": named(asked("Moebius")),
        "2-SII": named(asked("k-SII", 2)),
    }


def named(found):
    """Values by coalition; nobody is the empty text."""
    return {",".join(map(str, players)): float(value) for players, value in found.dict_values.items()}


if __name__ == "__main__":
    packages = {name: version(name) for name in ("shapiq", "numpy")}
    content = {
        "made_by": {
            "script": "tests/reference/shapiq_games.py",
            "python": platform.python_version(),
            "packages": packages,
        },
        "games": [made(k, seed) for k, seed in GAMES],
    }
    path = Path(__file__).parent / "fixtures" / "games.json"
    path.write_text(json.dumps(content, indent=0) + "\n")
    print(path.name, path.stat().st_size, "bytes")  # noqa: T201
