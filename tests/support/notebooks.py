"""Notebooks of the documentation, run and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def execute(path: Path, folder: Path, replaced: Mapping[str, str] | None = None) -> Any:
    """Run a notebook in a folder, in a new kernel, and return it with its outputs.

    `replaced` has another code for cells with these ids.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = (replaced or {}).get(cell.id, cell.source)
    metadata = notebook.metadata.copy()
    resources = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, resources=resources, record_timing=False, coalesce_streams=True, timeout=600)
    client.execute()
    notebook.metadata = metadata  # without this Python's version
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(notebook: Any, code: str) -> Any:
    """Return the first cell whose code contains this."""
    return next(cell for cell in code_cells(notebook) if code in cell.source)


def text_of(cell: Any) -> str:
    """Return the text that a cell printed."""
    return "".join(output.text for output in cell.get("outputs", []) if output.get("name") == "stdout")
