"""One notebook, run by nbclient."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

import attrflow

CELLS = [
    "import attrflow\nrun = attrflow.open('results/demo')\nrun",
    "run['apple']",
    "run['apple'].frame(3)",
    "run['aple']",
]


def test_a_notebook_shows_galleries(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import ipykernel  # noqa: F401
        import nbclient
        import nbformat
    except ImportError as error:
        warnings.warn(f"NO NOTEBOOK WAS RUN: {error}; pip install nbclient ipykernel", stacklevel=1)
        pytest.skip(f"no notebook was run: {error}")
    package = str(Path(attrflow.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
    make: Any = nbformat.v4
    notebook = make.new_notebook(cells=[make.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(
        notebook, timeout=120, allow_errors=True, kernel_name="python3",
        resources={"metadata": {"path": str(project.root)}},
    )  # fmt: skip
    client.execute()
    run, query, frame, unknown = (cell.outputs[0] for cell in notebook.cells)
    assert run.data["text/html"].count("data:image/png;base64,") == 8 and "2 queries" in run.data["text/plain"]
    assert "an emoji of red apple" in query.data["text/html"] and "000338.png" in query.data["text/html"]
    assert "<table" in frame.data["text/html"]
    assert unknown.ename == "UnknownQuery" and "did you mean 'apple'" in unknown.evalue
