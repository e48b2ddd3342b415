"""Find images that are in two splits, also if they were compressed or resized again."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 16
"""Pixels of a thumbnail's height; it has a column more, so that each row has 16 differences."""
MAX_BITS = 64
"""How many of the 256 signs of these differences may differ. Other pictures differ in about 128."""
MAX_DIFFERENCE = 6.0
"""How far the grey values (0 to 255) of two thumbnails may differ on average."""
MIN_CONTRAST = 2.0
"""Standard deviation of the grey values, below which an image is plain and looks like any other plain one."""


def make_thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a grey thumbnail `(SIDE, SIDE + 1)` of an image `(H, W, 3)`."""
    small = cv2.resize(pixels, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))


def find_duplicates(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that look the same, as places in the arrays of thumbnails `first` and `second`.

    The arrays are `(N, SIDE, SIDE + 1)`. Pictures are not recognised if they were cropped, mirrored or turned. Plain
    images are left out.
    """
    places = [np.flatnonzero(images.std(axis=(1, 2)) >= MIN_CONTRAST) for images in (first, second)]
    signs = _signs(first[places[0]])
    for place in places[1].tolist():
        num_bits = np.bitwise_count(signs ^ _signs(second[place : place + 1])).sum(axis=1)
        for other in places[0][num_bits <= MAX_BITS].tolist():
            difference = np.abs(first[other].astype(np.float32) - second[place]).mean()
            if difference <= MAX_DIFFERENCE:
                yield other, place


def _signs(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return whether each pixel is brighter than the one to its left, as 4 numbers of 64 bits: `(N, 4)`."""
    brighter = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    return np.packbits(brighter.reshape(len(thumbnails), SIDE * SIDE), axis=1).view(np.uint64)
