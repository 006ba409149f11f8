"""The server's process: everything that pages need is imported and the run is opened before the first browser asks.

Without this the first reader waits for all of it. ``python -m medfuse.review.serving SCRIPT OPTIONS`` is
``python -m streamlit run SCRIPT OPTIONS`` with that done before.
"""

import runpy
import sys

from medfuse.review.settings import from_environment
from medfuse.review.source import open_review


def preload() -> None:
    """Import what pages import, and read from the run what the first page reads, so that it is in memory."""
    import plotly.express  # noqa: F401  # charts ask for it on first use
    import pyarrow.parquet  # noqa: F401

    from medfuse.review import (  # noqa: F401
        behaviour,
        evidence,
        export,
        missing,
        patient_charts,
        performance,
        raw,
        reviews,
        slides,
        stress,
        timeline,
        units,
        worklist,
    )

    settings = from_environment()
    run = open_review(settings.run, settings.outcome)
    if run.explained:
        _ = run.where


def main(arguments: list[str]) -> None:
    """Preload, then hand the process over to the server."""
    preload()
    sys.argv = ["streamlit", "run", *arguments]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
