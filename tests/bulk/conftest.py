"""A small data set with bad images, and what one detector finds in it."""

from pathlib import Path

import pytest
from bulk_data import BAD, NUM_SCENES
from exported_files import make_onnx
from PIL import Image

from dpt_zoo.bulk.detect import DatasetRun, detect_dataset


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX file that loads at once: it detects up to three objects, by the colour of the first pixel."""
    return make_onnx(tmp_path_factory.mktemp("bulk_model") / "first_pixel.onnx")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of many colours and sizes, of which two are bad."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(1, NUM_SCENES + 1):
        path = folder / f"{number:06d}.png"
        if path.name in BAD:
            path.write_bytes(b"no image")
        else:
            colours = (250 - number, 14 * number if number > 5 else 0, 90)  # two objects or three
            Image.new("RGB", (60 + 7 * number, 120 - 3 * number), colours).save(path)
    return folder


@pytest.fixture(scope="session")
def finished(scenes: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetRun:
    """Return a finished run over `scenes` in four parts."""
    output = tmp_path_factory.mktemp("finished")
    return detect_dataset(scenes, output, model=model, images_per_part=5, workers=2)
