"""Write what was found in an image: a picture and a JSON file beside each other."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import open_atomic
from .detections import Detections
from .drawing import draw

JPEG_SUFFIXES = (".jpg", ".jpeg")


def output_stems(images: Sequence[Path]) -> list[str]:
    """A name for each image's results, without suffix; images of the same name are told apart by a number."""
    stems: list[str] = []
    for image in images:
        stem, number = image.stem, 1
        while stem in stems:
            number += 1
            stem = f"{image.stem}-{number}"
        stems.append(stem)
    return stems


def save_picture(path: Path, image: NDArray[np.uint8], detections: Detections) -> None:
    """Write the image `(H, W, 3)` RGB with its detections drawn, as JPEG or PNG by the path's suffix."""
    picture = draw(image, detections)
    with open_atomic(path) as file:
        if path.suffix.lower() in JPEG_SUFFIXES:
            picture.save(file, "JPEG", quality=95)
        else:
            picture.save(file, "PNG")


def save_coco(path: Path, detections: Detections, image_id: int | str) -> None:
    """Write the detections in COCO's results format."""
    with open_atomic(path) as file:
        file.write(json.dumps(detections.to_coco(image_id)).encode("utf-8"))
