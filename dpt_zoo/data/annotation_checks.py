"""What is wrong with an object's box, area and mask in a COCO annotation file."""

import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .issues import IssueType

Fault = tuple[IssueType, str]
"""A kind of issue, and what is wrong."""

ImageSize = tuple[int, int]
"""An image's width and height in pixels."""

MAX_NUMBER = 1e6
"""Pixels, beyond which no number is one of an image; pycocotools takes memory by an outline's length, until it dies."""

_ROUNDING = 1.0  # pixels by which a sound box or polygon may be across the border
_MAX_RLE_CHARS = 7  # of one count: more are no 32-bit number


def box_faults(record: dict[str, Any], size: ImageSize | None) -> Iterator[Fault]:
    """What is wrong with an annotation's box, in an image of this size."""
    box = _box(record)
    if box is None:
        if "bbox" in record:
            yield IssueType.BOX, f"its bbox is {reprlib.repr(record['bbox'])}"
        return
    x, y, width, height = box
    if width < 1 or height < 1:
        yield IssueType.EMPTY_BOX, f"its bbox is {box}"
    elif size:
        where = f"its bbox is {box}, in an image of {format_size(size)}"
        if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
            yield IssueType.BOX_OUTSIDE, where
        elif _is_across((x, y), (x + width, y + height), size):
            yield IssueType.BOX_ACROSS, where


def area_faults(record: dict[str, Any]) -> Iterator[Fault]:
    """What is wrong with an annotation's area."""
    if "area" not in record:
        return
    area, box = record["area"], _box(record)
    if type(area) not in (int, float) or not 0 <= area < MAX_NUMBER**2:
        yield IssueType.AREA, f"its area is {reprlib.repr(area)}"
    elif box and min(box[2:]) >= 1:
        if area == 0:
            yield IssueType.NO_AREA, f"its bbox is {box}"
        elif area > (box[2] + _ROUNDING) * (box[3] + _ROUNDING):
            yield IssueType.LARGE_AREA, f"its area is {area}, its bbox is {box}"


def mask_faults(record: dict[str, Any], size: ImageSize | None, is_needed: bool) -> Iterator[Fault]:
    """What is wrong with an annotation's mask, in an image of this size, or with its absence if it is needed."""
    segmentation = record.get("segmentation")
    if not segmentation:
        if is_needed:
            yield IssueType.NO_MASK, "it has no segmentation"
    elif isinstance(segmentation, dict):
        yield from _rle_faults(segmentation, size)
    elif isinstance(segmentation, list) and isinstance(segmentation[0], list):
        yield from _polygon_faults(segmentation, size)
        if record.get("iscrowd") == 1:
            yield IssueType.CROWD, "its iscrowd is 1"
    else:
        yield IssueType.POLYGON, f"its segmentation is {reprlib.repr(segmentation)}, not a list of polygons"


def _polygon_faults(polygons: list[Any], size: ImageSize | None) -> Iterator[Fault]:
    outlines = [_points(polygon) for polygon in polygons]
    for number, (polygon, points) in enumerate(zip(polygons, outlines, strict=True), 1):
        if points is None:
            yield IssueType.POLYGON, f"its polygon {number} of {len(polygons)} is {reprlib.repr(polygon)}"
    if size and any(points is not None and _is_across(points.min(0), points.max(0), size) for points in outlines):
        yield IssueType.POLYGON_ACROSS, f"in an image of {format_size(size)}"


def _rle_faults(rle: dict[str, Any], size: ImageSize | None) -> Iterator[Fault]:
    sides, counts = rle.get("size"), _rle_counts(rle.get("counts"))
    if not isinstance(sides, list) or [type(side) for side in sides] != [int, int]:
        yield IssueType.RLE, f"its size is {reprlib.repr(sides)}"
    elif size and sides != [size[1], size[0]]:
        yield IssueType.RLE, f"its size is {sides}, in an image of {format_size(size)}"
    elif counts is None:
        yield IssueType.RLE, f"its counts are {reprlib.repr(rle.get('counts'))}"
    elif int(counts.sum()) != sides[0] * sides[1]:
        yield IssueType.RLE, f"its counts sum to {counts.sum()}, its size is {sides}"


def _rle_counts(counts: Any) -> NDArray[np.int64] | None:
    """The lengths of the runs, from a list or from pycocotools' compressed text; None if they are broken.

    pycocotools itself reads beyond the end of a broken text.
    """
    if isinstance(counts, str) and counts.isascii():
        return _decompress(np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - ord("0"))
    array = _array(counts)
    if array is None or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= 2**32:
        return None
    return array.astype(np.int64)


def _decompress(digits: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Read numbers of base-32 digits, lowest first: bit 5 says that another follows, bit 4 of the last is the sign.

    From the fourth number on, each is a difference to the last but one.
    """
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_RLE_CHARS:
        return None
    places = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << 5 * places, starts)
    numbers -= np.where(digits[ends] & 16, 1 << 5 * lengths, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return None if numbers.min() < 0 else numbers


def _box(record: dict[str, Any]) -> list[float] | None:
    """A record's box, if it is four numbers of sensible size."""
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(type(number) in (int, float) and -MAX_NUMBER < number < MAX_NUMBER for number in box):
        return None
    return None if box[2] < 0 or box[3] < 0 else box


def _points(polygon: Any) -> NDArray[np.float64] | None:
    """A polygon's points `(N, 2)`, if they are at least three of sensible numbers."""
    array = _array(polygon)
    if array is None or array.size < 6 or array.size % 2:
        return None
    points = array.astype(np.float64).reshape(-1, 2)
    return points if np.abs(points).max() < MAX_NUMBER else None


def _array(values: Any) -> NDArray[Any] | None:
    """A list of numbers as an array that has some."""
    try:
        array = np.array(values)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.ndim == 1 and array.size and array.dtype.kind in "iuf" else None


def _is_across(low: Sequence[float], high: Sequence[float], size: ImageSize) -> bool:
    return min(low) < -_ROUNDING or high[0] > size[0] + _ROUNDING or high[1] > size[1] + _ROUNDING


def format_size(size: ImageSize) -> str:
    """The size as text, "640x480"."""
    return f"{size[0]}x{size[1]}"
