"""examples/regions.ipynb runs from its first cell to its last, and is stored without output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "regions.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_stored_without_output(notebook):
    assert [cell.outputs for cell in code_cells(notebook)] == [[]] * len(code_cells(notebook))
    assert {cell.execution_count for cell in code_cells(notebook)} == {None}


@pytest.mark.heavy
def test_the_notebook_runs_and_shows_images_and_answers(notebook, model_and_photo, monkeypatch):
    names = {"MODEL": "model", "IMAGE": "photo.jpg", "BOXES": [[40, 30, 210, 190], [220, 35, 400, 260]]}
    first = code_cells(notebook)[0]
    assert [line.split(" = ")[0] for line in first.source.splitlines()] == list(names)
    first.source = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(model_and_photo)}})
    done = client.execute()

    outputs = [output for cell in code_cells(done) for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert len(images) == 2
    assert "user: Which is larger" in said
    assert said.count("assistant: ") == 2
