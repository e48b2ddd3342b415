"""A film of moving digits, the tracks that it really has, and how well tracks that were found match them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dpt_zoo import Detections
from dpt_zoo.data.digits import _draw_color, _draw_digit, _draw_ground, read_digits

NUM_FRAMES, NUM_DIGITS, SIZE, RATE = 300, 8, 192, 25
HIDDEN, HIDDEN_FRAMES = 3, range(120, 130)
"""The digit that is hidden, and when."""


class Film(NamedTuple):
    """Digits that move straight ahead, cover one another where they cross, and turn back at the edges.

    Attributes:
        frames: `(F, H, W, 3)` RGB.
        boxes: `(F, N, 4)` xyxy of each digit, in pixels.
        is_visible: `(F, N)`, whether a digit is in the frame; other digits may cover it.
    """

    frames: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    is_visible: NDArray[np.bool_]


def make_film(seed: int = 0) -> Film:
    """Draw the film."""
    rng, digits = np.random.default_rng(seed), read_digits("test")
    ground = _draw_ground(rng, SIZE)
    grey = int(np.asarray(ground.convert("L")).mean())
    shapes = [_draw_digit(rng, digits.images[rng.integers(len(digits.images))], SIZE) for _ in range(NUM_DIGITS)]
    colours = [_draw_color(rng, grey) for _ in shapes]
    spans = SIZE - np.array([shape.size for shape in shapes])  # (N, 2): how far left and top can move
    starts, speeds = (
        rng.uniform(0, 2 * spans),
        rng.uniform(0.4, 2.0, (NUM_DIGITS, 2)) * rng.choice((-1, 1), (NUM_DIGITS, 2)),
    )
    frames, boxes = np.empty((NUM_FRAMES, SIZE, SIZE, 3), np.uint8), np.empty((NUM_FRAMES, NUM_DIGITS, 4))
    is_visible = np.ones((NUM_FRAMES, NUM_DIGITS), bool)
    is_visible[HIDDEN_FRAMES, HIDDEN] = False
    for index in range(NUM_FRAMES):
        picture = ground.copy()
        corners = np.rint(spans - abs((starts + index * speeds) % (2 * spans) - spans)).astype(int)  # to and fro
        for number, (shape, colour, (left, top)) in enumerate(zip(shapes, colours, corners.tolist(), strict=True)):
            boxes[index, number] = (left, top, left + shape.width, top + shape.height)
            if is_visible[index, number]:
                picture.paste(colour, (left, top), shape)
        frames[index] = picture
    return Film(frames, boxes, is_visible)


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
    ids = sorted({int(id) for detections in tracked for id in detections.track_ids if id > 0})
    matches = np.zeros((NUM_DIGITS, len(ids)), int)
    for detections, boxes, is_visible in zip(tracked, film.boxes, film.is_visible, strict=True):
        for box, id in zip(detections.boxes, detections.track_ids, strict=True):
            if id > 0:
                matches[is_visible & (ious(boxes, box) >= 0.5), ids.index(id)] += 1
    found = sum(int((detections.track_ids > 0).sum()) for detections in tracked)
    return 2 * matches[linear_sum_assignment(matches, maximize=True)].sum() / (film.is_visible.sum() + found)


def ious(boxes: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    """Return the IoU of each of `(N, 4)` boxes with a box, xyxy."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)
