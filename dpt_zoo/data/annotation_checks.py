"""Checks of an object's box, area and mask in a COCO annotation file."""

import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..formats.annotations import MAX_NUMBER, polygon_area
from ..formats.issues import IssueType

Finding = tuple[IssueType, str]  # an issue's type and message

_TOLERANCE = 1.0  # pixels: valid boxes and polygons cross the border by rounding


def check_box(annotation: dict[str, Any], image_size: tuple[int, int] | None) -> Iterator[Finding]:
    """Check the box and the area of an `annotation` in an image with `image_size` (height, width) or unknown size."""
    box, area = parse_box(annotation.get("bbox")), cast(Any, annotation.get("area"))
    if box is None:
        if "bbox" in annotation:
            yield IssueType.BOX, f"bbox is {reprlib.repr(annotation['bbox'])}"
    elif box[2] < 1 or box[3] < 1:
        yield IssueType.EMPTY_BOX, f"bbox is {box}"
    elif image_size:
        x1, y1, x2, y2 = corners = box[0], box[1], box[0] + box[2], box[1] + box[3]
        message = f"bbox is {box}, the image is {format_size(image_size)}"
        if x1 >= image_size[1] or y1 >= image_size[0] or x2 <= 0 or y2 <= 0:
            yield IssueType.BOX_OUTSIDE, message
        elif _is_across(corners, image_size):
            yield IssueType.BOX_ACROSS, message
    if "area" not in annotation:
        return
    if type(area) not in (int, float) or not 0 <= area < MAX_NUMBER**2:
        yield IssueType.AREA, f"area is {reprlib.repr(area)}"
    elif box and min(box[2:]) >= 1:
        if area == 0:
            yield IssueType.NO_AREA, f"area is 0, bbox is {box}"
        elif area > (box[2] + _TOLERANCE) * (box[3] + _TOLERANCE):
            yield IssueType.LARGE_AREA, f"area is {area}, bbox is {box}"


def check_mask(annotation: dict[str, Any], image_size: tuple[int, int] | None, is_needed: bool) -> Iterator[Finding]:
    """Check the mask of an `annotation` as `check_box` does, given `image_size`. `is_needed`: a mask is required."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        if is_needed:
            yield IssueType.NO_MASK, "segmentation is missing or empty"
    elif isinstance(segmentation, dict):
        yield from _check_rle(segmentation, image_size)
    elif isinstance(segmentation, list) and isinstance(segmentation[0], list):
        yield from _check_polygons(segmentation, image_size)
        if annotation.get("iscrowd") == 1:
            yield IssueType.CROWD, "iscrowd is 1"
    else:
        yield IssueType.POLYGON, f"segmentation is {reprlib.repr(segmentation)}, not a list of polygons"


def measure_mask(segmentation: Any) -> tuple[list[float], float] | None:
    """Return the box [x, y, width, height] and the area of a mask in pixels, or None if it is empty or invalid."""
    if isinstance(segmentation, dict):
        counts = None if any(_check_rle(segmentation, None)) else _parse_counts(segmentation["counts"])
        return None if counts is None else _measure_runs(counts, segmentation["size"][0])
    outlines = [_parse_points(polygon) for polygon in segmentation] if isinstance(segmentation, list) else []
    valid = [points for points in outlines if points is not None]
    if not valid or len(valid) < len(outlines):
        return None
    (x1, y1), (x2, y2) = np.concatenate(valid).min(0).tolist(), np.concatenate(valid).max(0).tolist()
    return [x1, y1, x2 - x1, y2 - y1], round(sum(map(polygon_area, valid)), 2)


def _measure_runs(counts: NDArray[np.int64], height: int) -> tuple[list[float], float] | None:
    """Measure runs of pixels outside and inside a mask in turn, which go down the columns."""
    ends = np.cumsum(counts)[1::2]
    starts = ends - counts[1::2]
    starts, lasts = starts[ends > starts], ends[ends > starts] - 1
    if not starts.size:
        return None
    is_long = starts // height < lasts // height  # over the end of a column
    y1 = int(np.where(is_long, 0, starts % height).min())
    y2 = int(np.where(is_long, height - 1, lasts % height).max()) + 1
    x1, x2 = int(starts[0]) // height, int(lasts[-1]) // height + 1
    return [x1, y1, x2 - x1, y2 - y1], int(counts[1::2].sum())


def _check_polygons(polygons: list[Any], image_size: tuple[int, int] | None) -> Iterator[Finding]:
    outlines = [_parse_points(polygon) for polygon in polygons]
    for number, (polygon, points) in enumerate(zip(polygons, outlines, strict=True), 1):
        if points is None:
            yield IssueType.POLYGON, f"polygon {number} of {len(polygons)} is {reprlib.repr(polygon)}"
    valid = [points for points in outlines if points is not None]
    if image_size and any(_is_across([*each.min(0), *each.max(0)], image_size) for each in valid):
        yield IssueType.POLYGON_ACROSS, f"the image is {format_size(image_size)}"


def _check_rle(rle: dict[str, Any], image_size: tuple[int, int] | None) -> Iterator[Finding]:
    size, counts = rle.get("size"), _parse_counts(rle.get("counts"))
    if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
        yield IssueType.RLE, f"its size is {reprlib.repr(size)}"
    elif image_size and size != list(image_size):
        yield IssueType.RLE, f"its size is {size}, the image is {format_size(image_size)}"
    elif counts is None:
        yield IssueType.RLE, f"its counts are {reprlib.repr(rle.get('counts'))}"
    elif int(counts.sum()) != size[0] * size[1]:
        yield IssueType.RLE, f"its counts sum to {counts.sum()}, its size is {size}"


def _parse_counts(counts: Any) -> NDArray[np.int64] | None:
    """Return the run lengths from a list or from pycocotools' compressed text, or None if they are invalid."""
    if isinstance(counts, str):
        return _decompress(counts) if is_compressed(counts) else None
    array = _parse_numbers(counts)
    if array is None or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= 2**32:
        return None
    return array.astype(np.int64)


def is_compressed(counts: str) -> bool:
    """Return whether a text is a mask's run lengths. pycocotools would read beyond the end of other texts."""
    return re.fullmatch(r"([P-o]{0,6}[0-O])+", counts) is not None  # each number ends with a character below "P"


def _decompress(text: str) -> NDArray[np.int64] | None:
    """Decode base-32 numbers, the lowest digit first. From the fourth on, each is added to that two places before."""
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(digits & 32 == 0)  # bit 5 means that another digit follows
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(digits.size) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((digits & 31) << 5 * places, starts)
    numbers -= np.where(digits[ends] & 16, 1 << 5 * (ends - starts + 1), 0)  # bit 4 of the last digit is the sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return None if numbers.min() < 0 else numbers


def parse_box(box: Any) -> list[float] | None:
    """Return a box [x, y, width, height], or None if it is invalid."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    is_valid = all(type(number) in (int, float) and -MAX_NUMBER < number < MAX_NUMBER for number in box)
    return box if is_valid and min(box[2:]) >= 0 else None


def _parse_points(polygon: Any) -> NDArray[np.float64] | None:
    """Return the points `(N, 2)` of a polygon, or None if it is invalid."""
    array = _parse_numbers(polygon)
    if array is None or array.size < 6 or array.size % 2:
        return None
    points = array.astype(np.float64).reshape(-1, 2)
    return points if np.abs(points).max() < MAX_NUMBER else None


def _parse_numbers(values: Any) -> NDArray[Any] | None:
    """Return a non-empty list of numbers as an array, and None for anything else."""
    try:
        array = np.array(values)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.ndim == 1 and array.size and array.dtype.kind in "iuf" else None


def _is_across(corners: Sequence[float], image_size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = corners
    return min(x1, y1) < -_TOLERANCE or x2 > image_size[1] + _TOLERANCE or y2 > image_size[0] + _TOLERANCE


def format_size(image_size: tuple[int, int]) -> str:
    """Format (height, width) with the width first: "640x480"."""
    return f"{image_size[1]}x{image_size[0]}"
