"""The callable for people's own pipelines, on batches as Ray Data passes them."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpt_zoo import RayDetector
from dpt_zoo.bulk.detect import DatasetRun
from dpt_zoo.bulk.results import Results
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.errors import InputError
from dpt_zoo.utils.images import load_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detector(model: Path) -> RayDetector:
    return RayDetector(str(model), num_threads=1)


def objects(values: list[object]) -> np.ndarray:
    """A batch's column of values of any type."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.mark.parametrize("form", ["image", "bytes", "path"])
def test_batches(form: str, detector: RayDetector, finished: DatasetRun, scenes: Path) -> None:
    files = sorted(scenes.iterdir())[:3]
    make: Any = {"image": load_image, "bytes": Path.read_bytes, "path": str}[form]
    table = detector({form: objects(list(map(make, files))), "id": np.arange(3)})
    assert table["id"].to_pylist() == [0, 1, 2]
    assert ("path" in table.column_names) == (form == "path")
    for row, expected in zip(table.to_pylist(), islice(Results(Folder(finished.output)), 3), strict=True):
        assert expected.detections is not None
        assert ((row["height"], row["width"]), row["error"]) == (expected.detections.image_size, None)
        assert (row["boxes"], row["names"]) == (expected.detections.boxes.tolist(), expected.detections.names)


def test_errors_are_rows(detector: RayDetector) -> None:
    (row,) = detector({"bytes": objects([b"no image"])}).to_pylist()
    assert row["error"].startswith("image-1: ") and row["boxes"] is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"id": [1]}, "column must be one of id"),
        ({"path": ["a"], "labels": [1]}, "a column 'labels', like the results"),
    ],
)
def test_columns_that_do_not_fit(batch: dict[str, list[object]], message: str, detector: RayDetector) -> None:
    with pytest.raises(InputError, match=message):
        detector({name: objects(values) for name, values in batch.items()})
