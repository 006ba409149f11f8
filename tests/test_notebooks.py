"""Notebooks run from the first cell to the last."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


# Interactive figures of the review that a notebook shows.
FIGURES = {"02_training_and_comparing": 3, "03_explaining": 8, "04_prototypes": 5, "05_missing_modalities": 2}


def test_every_notebook_is_committed_without_outputs():
    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert not [c for c in cells if c.get("outputs") or c.get("execution_count")], path.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own start-up
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("MPLBACKEND", raising=False)  # streamlit sets it; the kernel's own shows pictures inline
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    kinds = [kind for o in shown for kind in o.get("data", {})]
    assert "image/png" in kinds
    assert kinds.count("application/vnd.plotly.v1+json") >= FIGURES.get(path.stem, 0)
    assert not [o for o in shown if o.output_type == "error"]
