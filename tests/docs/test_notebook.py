"""The notebook runs, and git holds none of its outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
MODEL = 'load_model("smollm2-135m")'


def execute(model: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    source = notebook.cells[1].source
    assert MODEL in source
    notebook.cells[1].source = source.replace(MODEL, f"load_model({model!r})")
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def check(cells: list[nbformat.NotebookNode]) -> None:
    assert "seen" in cells[2].outputs[0]["text"]
    compared = cells[3].outputs[0]["text"].splitlines()
    assert [line.split()[0] for line in compared] == ["full", "namm", "h2o"]
    assert "<iframe" in cells[4].outputs[-1]["data"]["text/html"]


def test_the_notebook_runs_with_a_small_random_model(reader_folder: Path) -> None:
    check(execute(str(reader_folder)))


@pytest.mark.slow
@pytest.mark.model
def test_the_notebook_runs_with_its_model() -> None:
    check(execute("smollm2-135m"))


def test_outputs_are_stripped() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
