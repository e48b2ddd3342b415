"""The worked example: the notebook runs, and the page shows its code, its outputs and its pictures.

`python tests/docs/test_worked_example.py` runs the complete notebook in some minutes, and writes outputs and pictures.
"""

import base64
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebooks import code_cells, execute, text_of
from PIL import Image

import dpt_zoo

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOK = DOCS / "worked_example.ipynb"
PICTURES = DOCS / "worked_example"
MAX_BYTES = 300_000
"""The size of all pictures together."""
MAX_WIDTH = 800
"""The width of a picture in pixels."""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    executed = execute(NOTEBOOK, tmp_path, {"parameters": "NUM_IMAGES, EPOCHS = 16, 1"})
    text = {cell.id: text_of(cell) for cell in code_cells(executed)}
    assert "3 classes" in text["check"] and "2 classes" in text["split"]
    assert text["split"].startswith("my_data: 13 images in train, 3 images in val\n")
    assert {name for name, cell in by_id(executed).items() if find_picture(cell)} == saved_pictures().keys()
    detector = dpt_zoo.Detector(tmp_path / "even_odd.onnx", score_threshold="tuned")
    assert detector.classes == ("even", "odd")


def test_the_page_shows_the_saved_notebook() -> None:
    page, saved = (DOCS / "worked_example.md").read_text(), nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(cell.source for cell in code_cells(saved))
    for block in re.findall(r"```(?:bash|python)\n(.*?)```", page, re.DOTALL):
        assert block in f"{code}\n"
    printed = "".join(map(text_of, code_cells(saved)))
    for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL):
        assert block in printed
    shown = re.findall(r"!\[.+?\]\(worked_example/(\w+)\.jpg\)", page)
    assert shown == list(saved_pictures())


def test_the_saved_pictures_are_those_of_the_notebook_and_small() -> None:
    files = {path.stem: path.read_bytes() for path in PICTURES.iterdir()}
    assert files == saved_pictures() and sum(map(len, files.values())) <= MAX_BYTES


def by_id(notebook: Any) -> dict[str, Any]:
    return {cell.id: cell for cell in code_cells(notebook)}


def find_picture(cell: Any) -> Any:
    """Return the data of the first output with a picture, or None."""
    found = (output.data for output in cell.outputs if {"image/png", "image/jpeg"} & output.get("data", {}).keys())
    return next(found, None)


def saved_pictures() -> dict[str, bytes]:
    """Return the JPEG files in the saved notebook, by cell."""
    data = {name: find_picture(cell) for name, cell in by_id(nbformat.read(NOTEBOOK, as_version=4)).items()}
    return {name: base64.b64decode(each["image/jpeg"]) for name, each in data.items() if each}


def make_small(notebook: Any) -> None:
    """Replace the pictures by small JPEG files."""
    for cell in code_cells(notebook):
        if data := find_picture(cell):
            picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
            picture.thumbnail((MAX_WIDTH, 10 * MAX_WIDTH))
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=75, optimize=True)
            data.pop("image/png")
            data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        complete = execute(NOTEBOOK, Path(temporary))
    make_small(complete)
    nbformat.write(complete, NOTEBOOK)
    PICTURES.mkdir(exist_ok=True)
    for name, content in saved_pictures().items():
        (PICTURES / f"{name}.jpg").write_bytes(content)
