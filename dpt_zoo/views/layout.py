"""The views of an image in which objects are detected: overlapping slices, the image as a whole, and several scales."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..utils.validation import check_integer
from ..utils.windows import Window

MIN_SLICE = 32  # pixels
MAX_OVERLAP = 0.9
ZOOMS = (1.0, 7 / 6, 4 / 3)
"""Test-time augmentation detects at these multiples of the scale."""


class View(NamedTuple):
    """A window of an image, and the multiple of the scale to which it is resized."""

    window: Window
    zoom: float


def zoom_scale(scale: Sequence[int], zoom: float) -> tuple[int, ...]:
    """Return `zoom` times a `scale`, in pixels."""
    return tuple(round(zoom * side) for side in scale)


@dataclass(frozen=True)
class Views:
    """Which views of an image the network gets.

    Attributes:
        slice_size: the side of square slices, in pixels, at least 32; None for the image as a whole.
        slice_overlap: the least part of a slice's side that it shares with the next one, from 0 to 0.9.
        whole_image: with slices, detect in the image as a whole, too.
        tta: detect at several scales.

    Raises:
        InputError: A value is out of its range.
    """

    slice_size: int | None = None
    slice_overlap: float = 0.2
    whole_image: bool = False
    tta: bool = False

    def __post_init__(self) -> None:
        if self.slice_size is not None:
            check_integer("slice_size", self.slice_size, MIN_SLICE)
        if not 0 <= self.slice_overlap <= MAX_OVERLAP:
            raise InputError(f"slice_overlap must be a number from 0 to {MAX_OVERLAP}, not {self.slice_overlap!r}")
        if self.whole_image and self.slice_size is None:
            raise InputError("whole_image is an addition to slices: give slice_size, or leave it out")

    @property
    def are_several(self) -> bool:
        """Whether an image may have more than one view."""
        return self.slice_size is not None or self.tta

    @property
    def zooms(self) -> tuple[float, ...]:
        """The multiples of the scale."""
        return ZOOMS if self.tta else (1.0,)

    def count(self, image_size: tuple[int, int]) -> int:
        """Return the number of views of an image of this height and width, in pixels."""
        if self.slice_size is None or self.slice_size >= max(image_size):
            return len(self.zooms)
        rows, columns = (len(self._starts(side, int(self.slice_size))) for side in image_size)
        return (rows * columns + self.whole_image) * len(self.zooms)

    def of(self, image_size: tuple[int, int]) -> Iterator[View]:
        """Yield the views of an image of this height and width, in pixels: each window at all scales."""
        return (View(window, zoom) for window in self.windows(image_size) for zoom in self.zooms)

    def windows(self, image_size: tuple[int, int]) -> Iterator[Window]:
        """Yield the windows of an image of this height and width, in pixels: slices row by row."""
        height, width = image_size
        whole = Window(0, 0, width, height)
        if self.slice_size is None or self.slice_size >= max(image_size):
            yield whole
            return
        size = int(self.slice_size)
        for y, x in itertools.product(self._starts(height, size), self._starts(width, size)):
            yield Window(x, y, min(x + size, width), min(y + size, height))
        if self.whole_image:
            yield whole

    def _starts(self, length: int, size: int) -> list[int]:
        """Return where slices start along a side: in equal steps, so that no two share more than others."""
        if length <= size:
            return [0]
        step = max(1, math.floor(size * (1 - self.slice_overlap)))
        starts: list[int] = np.linspace(0, length - size, -(-(length - size) // step) + 1).round().astype(int).tolist()
        return starts
