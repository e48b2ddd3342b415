"""Large pictures of many digits, to detect in."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpt_zoo.data.digits import digit_scene, read_digits


class Mosaic(NamedTuple):
    """Scenes of digits side by side.

    Attributes:
        image: `(rows * size, columns * size, 3)` RGB.
        boxes: `(N, 4)` xyxy of all digits, in pixels.
        labels: `(N,)`, 0 to 9.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]


def make_mosaic(rows: int, columns: int, seed: int = 0, size: int = 192) -> Mosaic:
    """Draw `rows` x `columns` scenes."""
    rng, digits = np.random.default_rng(seed), read_digits("test")
    image = np.empty((rows * size, columns * size, 3), np.uint8)
    boxes, labels = [], []
    for top in range(0, rows * size, size):
        for left in range(0, columns * size, size):
            scene = digit_scene(rng, digits, size)
            image[top : top + size, left : left + size] = scene.image
            labels += scene.labels.tolist()
            for mask in scene.masks:
                ys, xs = mask.nonzero()
                boxes.append((left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1))
    return Mosaic(image, np.array(boxes, np.float64), np.array(labels))
