"""The quickstart notebook runs, and its outputs are up to date: `python tests/docs/test_notebook.py` writes them."""

import base64
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from notebooks import cell_with, code_cells, execute, text_of
from PIL import Image

import dpt_zoo

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"
MAX_BYTES = 300_000


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("notebook")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def executed(folder: Path) -> Any:
    return execute(NOTEBOOK, folder)


def test_it_has_no_errors_and_warnings(executed: Any) -> None:
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "execute_result", "display_data"}  # and no error
    log = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert re.fullmatch(r"(batch \d+/\d+\n)*", log)  # the progress of a slow evaluation


def test_it_shows_the_detections(executed: Any, folder: Path) -> None:
    detector = dpt_zoo.Detector("mrcnn_dpt_nano_digits", score_threshold=0.5)
    detections = detector(folder / "runs/digits/val2017/000001.png")
    assert len(detections) > 3
    (shown,) = pictures(cell_with(executed, "\ndetections"))
    assert np.array_equal(np.asarray(shown), np.asarray(detections.plot()))
    crops = pictures(cell_with(executed, "crop()"))
    assert [crop.size for crop in crops] == [crop.size for crop in detections.crop()[:3]]
    assert text_of(cell_with(executed, "detections.names")).startswith(
        f"{detections.boxes.shape} {detections.scores.shape} {detections.names}\n"
    )
    confident = detections.filter(min_score=0.98)
    assert f"scores of 0.98 or more: {confident.names}\n" in text_of(cell_with(executed, "0.98"))
    table = cell_with(executed, "to_dataframe").outputs[0].data["text/html"]
    assert table.count("<tr") == 1 + len(detections)


def test_its_numbers_are_right(executed: Any, folder: Path) -> None:
    detector = dpt_zoo.Detector("mrcnn_dpt_nano_digits", score_threshold=0.5)
    names = [name for each in detector.stream(folder / "runs/digits/val2017") for name in each.names]
    assert text_of(cell_with(executed, "Counter")) == f"{[(each, names.count(each)) for each in sorted(set(names))]}\n"
    evaluation = dpt_zoo.evaluate("mrcnn_dpt_nano_digits", data_root=folder / "runs/digits", workers=0)
    for task, metrics in evaluation.metrics.items():
        assert f"{task} {{'mAP': {metrics['mAP']:.1f}," in text_of(cell_with(executed, "evaluate"))


def test_the_saved_outputs_are_up_to_date(executed: Any) -> None:
    saved = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size <= MAX_BYTES
    assert [outline(cell) for cell in saved.cells] == [outline(cell) for cell in executed.cells], (
        "run: python tests/docs/test_notebook.py"
    )


def pictures(cell: Any) -> list[Image.Image]:
    encoded = [output.data["image/png"] for output in cell.outputs]
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in encoded]


def outline(cell: Any) -> Any:
    """Return a cell without numbers, which may differ between machines, and without pixels."""
    kinds = [sorted(output.data) for output in cell.get("outputs", []) if "data" in output]
    return cell.source, kinds, re.sub(r"[\d.]+", "0", text_of(cell))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(execute(NOTEBOOK, Path(temporary)), NOTEBOOK)
