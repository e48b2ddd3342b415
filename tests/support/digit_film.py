"""A film of moving digits, the tracks that it really has, and how well tracks that were found match them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment

from dpt_zoo import Detections
from dpt_zoo.data.digits import _draw_digit, read_digits

NUM_FRAMES, NUM_DIGITS, SIZE, MAX_SIDE, RATE = 300, 8, 192, 36, 25
DARK_AND_LIGHT = (0, 0, 40), (255, 255, 200)
HIDDEN, HIDDEN_FRAMES = 3, range(120, 130)
"""The digit that is hidden, and when."""


class Film(NamedTuple):
    """Digits that move to and fro, a dark and a light one in each lane, and cover one another where they cross.

    Attributes:
        frames: `(F, H, W, 3)` RGB.
        boxes: `(F, N, 4)` xyxy of each digit, in pixels.
        is_visible: `(F, N)`, whether a digit is in the frame; other digits may cover it.
    """

    frames: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    is_visible: NDArray[np.bool_]


def make_film(seed: int = 0) -> Film:
    """Draw the film."""
    rng, digits = np.random.default_rng(seed), read_digits("test")
    drawn = (_draw_digit(rng, image, SIZE) for image in rng.permutation(digits.images))
    shapes = list(itertools.islice((each for each in drawn if max(each.size) <= MAX_SIDE), NUM_DIGITS))
    boxes = _move(rng, np.array([shape.size for shape in shapes]))
    is_visible = np.ones((NUM_FRAMES, NUM_DIGITS), bool)
    is_visible[HIDDEN_FRAMES, HIDDEN] = False
    ground = Image.fromarray(rng.integers(100, 156, (SIZE, SIZE, 3), np.uint8))
    frames = np.empty((NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
    for index in range(NUM_FRAMES):
        picture = ground.copy()
        for number in np.flatnonzero(is_visible[index]):
            picture.paste(DARK_AND_LIGHT[number % 2], tuple(boxes[index, number]), shapes[number])
        frames[index] = np.asarray(picture)
    return Film(frames, boxes, is_visible)


def _move(rng: np.random.Generator, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the boxes `(F, N, 4)` of digits of these widths and heights: two to and fro in each of four lanes."""
    lane = SIZE / NUM_DIGITS * 2
    tops = np.arange(NUM_DIGITS) // 2 * lane + np.arange(NUM_DIGITS) % 2 * (lane - sizes[:, 1])
    spans, speeds = SIZE - sizes[:, 0], rng.uniform(1, 3, NUM_DIGITS)
    ways = rng.uniform(0, 2 * spans) + np.arange(NUM_FRAMES)[:, None] * speeds
    lefts = spans - abs(ways % (2 * spans) - spans)
    corners = np.rint(np.stack([lefts, np.broadcast_to(tops, lefts.shape)], 2)).astype(int)
    return np.concatenate([corners, corners + sizes], 2)


def write_film(path: Path, frames: NDArray[np.uint8]) -> Path:
    """Write a video file with RATE frames per second."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", RATE, {"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        output.mux(stream.encode())
    return path


def idf1(film: Film, tracked: Sequence[Detections]) -> float:
    """Return IDF1 of tracks (Ristani et al., 2016): the F1 score of objects if each digit is matched with one track."""
    found = [(each.boxes[ids > 0], ids[ids > 0]) for each, ids in zip(tracked, map(ids_of, tracked), strict=True)]
    tracks = np.unique(np.concatenate([ids for _, ids in found]))
    matches = np.zeros((NUM_DIGITS, len(tracks)), int)
    for (boxes, ids), digits, is_visible in zip(found, film.boxes, film.is_visible, strict=True):
        for box, column in zip(boxes, np.searchsorted(tracks, ids), strict=True):
            matches[is_visible & (ious(digits, box) >= 0.5), column] += 1
    num_objects = film.is_visible.sum() + sum(len(ids) for _, ids in found)
    return float(2 * matches[linear_sum_assignment(matches, maximize=True)].sum() / num_objects)


def ids_of(detections: Detections) -> NDArray[np.int64]:
    """Return the ids of tracked objects."""
    assert detections.track_ids is not None
    return detections.track_ids


def ious(boxes: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    """Return the IoU of each of `(N, 4)` boxes with a box, xyxy."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)
