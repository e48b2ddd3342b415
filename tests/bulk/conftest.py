"""A small data set with bad images, and what one detector finds in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bulk_data import BAD, NUM_SCENES

from dpt_zoo.bulk.detect import DatasetRun, detect_dataset
from dpt_zoo.data.digits import make_digit_scenes


@pytest.fixture(scope="session")
def model(exported: Callable[..., Path]) -> Path:
    """Return the Mask R-CNN demo as an ONNX file."""
    return exported("mrcnn_dpt_nano_digits")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set whose `val2017` has scenes and two bad images."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    make_digit_scenes(folder, num_train=1, num_test=NUM_SCENES, size=96)
    for name in BAD:
        (folder / "val2017" / name).write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def scenes(digits: Path) -> Path:
    """Return the folder of the scenes and the bad images."""
    return digits / "val2017"


@pytest.fixture(scope="session")
def finished(scenes: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetRun:
    """Return a finished run over `scenes` in four parts."""
    output = tmp_path_factory.mktemp("finished")
    return detect_dataset(scenes, output, model=model, images_per_part=5, workers=2)
