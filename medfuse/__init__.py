"""medfuse: clinical multimodal prediction with missing modalities.

The public names below are resolved on first use, so that ``import medfuse`` loads nothing heavy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "MedfuseError": "errors",
    "Run": "run",
    "Survival": "targets",
    "benchmark": "benchmarking",
    "check": "checking",
    "check_run": "explaining",
    "evaluate": "workflow",
    "explain_run": "explaining",
    "export_patient": "exporting",
    "load_modalities": "dataset",
    "open_run": "run",
    "predict": "workflow",
    "read_card": "config",
    "read_cohort": "cohort",
    "read_prototypes": "prototypes",
    "read_recipe": "config",
    "review_cohort": "jupyter",
    "review_patient": "jupyter",
    "rewrite_report": "workflow",
    "stress_run": "stressing",
    "train": "workflow",
    "verify_export": "exporting",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a module attribute may be anything
    if name not in _PUBLIC:
        msg = f"module 'medfuse' has no attribute {name!r}; public names: {', '.join(sorted(_PUBLIC))}"
        raise AttributeError(msg)
    module = importlib.import_module(f"medfuse.{_PUBLIC[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
