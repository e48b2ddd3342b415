"""A detector for Ray Data: `dataset.map_batches(dpt_zoo.RayDetector, ...)`. It does not import Ray."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ..errors import InputError
from ..inference.detector import Detector
from ..inference.inputs import find_input
from .images import find_image
from .results import SCHEMAS, image_row

COLUMNS = ("image", "bytes", "uri", "url", "path")
"""Names of the column with the images, the first that a batch has: pixels, image files or addresses."""


class RayDetector:
    """Detects the objects in batches of Ray Data, as an argument of `Dataset.map_batches`.

    Args:
        model: see `Detector`.
        column: the column of the images: pixels `(H, W, 3)` RGB, image files as bytes, paths or URLs; by default the
            first of `image`, `bytes`, `uri`, `url` and `path`.
        options: the other arguments of `Detector`.
    """

    def __init__(self, model: str, column: str | None = None, **options: Any) -> None:
        self._detector = Detector(model, **options)
        self._column = column

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Return the batch with the columns of the results, see `detect_dataset`, in place of pixels and image files.

        Raises:
            InputError: The batch has no column of images, or one that is named as a column of the results.
        """
        column = self._column or next((name for name in COLUMNS if name in batch), COLUMNS[0])
        if column not in batch:
            raise InputError(f"column must be one of {', '.join(batch)}: that with the images")
        images = [find_image(image) if isinstance(image, str) else find_input(image) for image in batch[column]]
        rows = [image_row(image, result) for image, result in self._detector.detect_each(images)]
        detected = pa.Table.from_pylist(rows, SCHEMAS["images"]).drop_columns(["uri", "key"])
        for name, values in batch.items():
            if name in detected.column_names:
                raise InputError(f"the data set has a column {name!r}, like the results: rename it")
            if name != column or isinstance(values[0], str):
                detected = detected.append_column(name, pa.array(list(values)))
        return detected
