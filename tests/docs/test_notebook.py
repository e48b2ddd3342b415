"""The quickstart notebook runs, and its outputs are the detector's. `python tests/docs/test_notebook.py` makes them."""

import base64
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import dpt_zoo

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"
LARGEST = 300_000  # bytes


def execute(folder: Path) -> Any:
    """The notebook after it was run in a folder, by a kernel of its own."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = notebook.metadata.copy()
    resources = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, resources=resources, record_timing=False, coalesce_streams=True, timeout=300)
    client.execute()
    notebook.metadata = metadata  # without this Python's version
    return notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def executed(folder: Path) -> Any:
    return execute(folder)


def test_it_says_nothing_but_what_it_is_asked(executed: Any) -> None:
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "execute_result", "display_data"}  # and no error
    told = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert re.fullmatch(r"(batch \d+/\d+\n)*", told)  # how far a slow evaluation is


def test_it_shows_what_the_detector_finds(executed: Any, folder: Path) -> None:
    found = dpt_zoo.Detector("mrcnn_dpt_nano_digits", score_threshold=0.5)(folder / "runs/digits/val2017/000001.png")
    assert len(found) > 3
    (shown,) = pictures(cell_with(executed, "\nfound"))
    assert np.array_equal(np.asarray(shown), np.asarray(found.plot()))
    crops = pictures(cell_with(executed, "crop()"))
    assert [crop.size for crop in crops] == [crop.size for crop in found.crop()[:3]]
    assert text_of(cell_with(executed, "found.names")).startswith(
        f"{found.boxes.shape} {found.scores.shape} {found.names}\n"
    )
    assert f"scores of 0.98 or more: {found[0.98].names}\n" in text_of(cell_with(executed, "0.98"))
    table = cell_with(executed, "to_dataframe").outputs[0].data["text/html"]
    assert table.count("<tr") == 1 + len(found)


def test_it_counts_what_the_detector_counts(executed: Any, folder: Path) -> None:
    detector = dpt_zoo.Detector("mrcnn_dpt_nano_digits", score_threshold=0.5)
    names = [name for found in detector(folder / "runs/digits/val2017") for name in found.names]
    assert text_of(cell_with(executed, "Counter")) == f"{[(each, names.count(each)) for each in sorted(set(names))]}\n"
    evaluation = dpt_zoo.evaluate("mrcnn_dpt_nano_digits", data_root=folder / "runs/digits", workers=0)
    for kind, figures in evaluation.metrics.items():
        assert f"{kind} {{'mAP': {figures['mAP']:.1f}," in text_of(cell_with(executed, "evaluate"))


def test_the_outputs_that_are_kept_are_those_of_a_run(executed: Any) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size <= LARGEST
    assert [outline(cell) for cell in kept.cells] == [outline(cell) for cell in executed.cells], (
        "run: python tests/docs/test_notebook.py"
    )


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(notebook: Any, code: str) -> Any:
    """The first cell whose code has this in it."""
    return next(cell for cell in code_cells(notebook) if code in cell.source)


def text_of(cell: Any) -> str:
    """What a cell printed."""
    return "".join(output.text for output in cell.get("outputs", []) if output.get("name") == "stdout")


def pictures(cell: Any) -> list[Image.Image]:
    encoded = [output.data["image/png"] for output in cell.outputs]
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in encoded]


def outline(cell: Any) -> Any:
    """A cell without the numbers that it found, which may differ between machines, and without pixels."""
    kinds = [sorted(output.data) for output in cell.get("outputs", []) if "data" in output]
    return cell.source, kinds, re.sub(r"[\d.]+", "0", text_of(cell))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(execute(Path(temporary)), NOTEBOOK)
