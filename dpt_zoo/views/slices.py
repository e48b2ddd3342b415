"""Merge the objects that were detected in several slices of an image, so that none is there twice.

An object at a seam is cut by one slice and whole in the next, or, if it is longer than their overlap, cut by both. Only
objects of different views are merged, so neighbours that one view shows apart stay apart. The box of an object that
several views show is the mean of theirs, as in weighted boxes fusion (Solovyev et al., 2019).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..utils.windows import Window
from .objects import RLE, Objects, concatenate

MIN_SHARED = 0.3
"""The IoU of two boxes, in what both views show, from which on they are parts of one object."""
NMS_IOU = 0.5
"""The IoU from which on only one of two objects of a class is kept, as in the authors' configs."""
SAME_PLACE = 0.6
"""The IoU from which on objects of different views are one, although of different classes: a view that shows less of
an object may take it for another class."""
INSIDE = 0.5
"""The part of the smaller of two boxes of a class that the larger one covers, from which on objects of different views
are one: a view may show less of an object, or take a part of it for the whole."""
MIN_FUSED = 0.8
"""The IoU from which on boxes of one object are averaged. Others may show less of it."""
SEAM = 0.01
"""A box that ends within this part of a slice's side from the slice's end is cut there."""
MAX_PAIRS = 1 << 20
"""About the most pairs of boxes in memory that are compared at a time: a large image has a hundred million."""
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _Found:
    """Objects in pixels of the image, with the view of each.

    Attributes:
        objects: by falling score.
        windows: `(N, 4)` xyxy, what the view of each shows.
        views: `(N,)`, the number of the view of each.
        is_cut: `(N,)`, whether the view's end cuts the object.
    """

    objects: Objects
    windows: NDArray[np.float32]
    views: Indices
    is_cut: NDArray[np.bool_]

    def __getitem__(self, index: NDArray[np.bool_] | Indices) -> "_Found":
        return _Found(self.objects.select(index), self.windows[index], self.views[index], self.is_cut[index])


class _Pairs(NamedTuple):
    """Pairs of objects of different views whose boxes overlap; the first has at least the second's score.

    `shared` is the IoU of their boxes in what both views show, `inside` the part of the smaller box that the other one
    covers, and `same_label` whether they are of one class.
    """

    first: Indices
    second: Indices
    iou: NDArray[np.floating[Any]]
    shared: NDArray[np.floating[Any]]
    inside: NDArray[np.floating[Any]]
    same_label: NDArray[np.bool_]


def merge(
    parts: Sequence[tuple[Window, Objects]], image_size: tuple[int, int], nms_iou: float, class_agnostic: bool = False
) -> Objects:
    """Merge the objects of several views.

    Args:
        parts: the window that each view shows, and the objects in it, in pixels of the image.
        image_size: height and width of the image, in pixels.
        nms_iou: of two objects of a class with a higher IoU, in [0, 1], only the one with the higher score is kept.
        class_agnostic: compare objects of different classes, too.

    Returns:
        The objects by falling score, with the boxes' means. The time grows with the number of objects, not with its
        square.
    """
    found = _gather(parts, image_size)
    return _keep_best(_join_cut_ones(_drop_cut_ones(found)), nms_iou, class_agnostic)


def _gather(parts: Sequence[tuple[Window, Objects]], image_size: tuple[int, int]) -> _Found:
    """Return the objects of all views by falling score."""
    objects = concatenate([each for _, each in parts])
    views = np.repeat(np.arange(len(parts)), [len(each.scores) for _, each in parts])
    windows = np.array([window for window, _ in parts], np.float32)[views]
    limits = np.array([0, 0, *image_size[::-1]], np.float32)
    margins = SEAM * (windows[:, 2:] - windows[:, :2]).repeat(2, axis=0).reshape(-1, 4)[:, [0, 2, 1, 3]]
    is_cut = ((np.abs(objects.boxes - windows) <= margins) & (windows != limits)).any(axis=1)
    return _Found(objects, windows, views, is_cut)[np.argsort(-objects.scores, kind="stable")]


def _find_pairs(found: _Found) -> Iterator[_Pairs]:
    """Yield the pairs of objects of different views whose boxes overlap, some at a time."""
    boxes, windows, labels = found.objects.boxes, found.windows, found.objects.labels
    for first, second in share_cell(boxes):
        differ = found.views[first] != found.views[second]
        first, second = first[differ], second[differ]
        overlap = _area(_intersect(boxes[first], boxes[second]))
        overlaps = overlap > 0
        first, second, overlap = first[overlaps], second[overlaps], overlap[overlaps]
        one, other = boxes[first], boxes[second]
        shown = _area(_intersect(one, windows[second])) + _area(_intersect(other, windows[first]))
        yield _Pairs(
            first,
            second,
            box_iou(one, other),
            overlap / np.maximum(shown - overlap, overlap),  # rounding may put a box a little outside its window
            overlap / np.minimum(_area(one), _area(other)),
            labels[first] == labels[second],
        )


def share_cell(boxes: NDArray[np.float32]) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs of boxes that can overlap, because they reach into the same cell of a grid, some at a time.

    Each pair is yielded once, the smaller index first. A cell is about twice as long as the boxes.
    """
    cell = 2 * max(1.0, float((boxes[:, 2:] - boxes[:, :2]).max(1).mean()) if len(boxes) else 1)
    low, high = (np.floor(corners / cell).astype(np.int64) for corners in (boxes[:, :2], boxes[:, 2:]))
    num_columns, num_rows = (high - low + 1).T
    box, number = _count_up(num_columns * num_rows)  # the cells of each box
    column, row = low[box, 0] + number % num_columns[box], low[box, 1] + number // num_columns[box]
    order = np.lexsort((box, column, row))
    box, column, row = box[order], column[order], row[order]
    ends = np.flatnonzero(np.append((np.diff(column) != 0) | (np.diff(row) != 0), True))  # of each cell
    num_others = ends[np.searchsorted(ends, np.arange(len(box)))] - np.arange(len(box)) if len(box) else ends
    bounds = np.searchsorted(np.cumsum(num_others), np.arange(0, max(1, num_others.sum()), MAX_PAIRS))
    for start, stop in pairwise([*bounds.tolist(), len(box)]):
        one, step = _count_up(num_others[start:stop])
        one += start
        other = one + 1 + step
        first, second = box[one], box[other]
        corner = np.floor(np.maximum(boxes[first, :2], boxes[second, :2]) / cell)  # of the overlap: only in one cell
        is_here = (corner[:, 0] == column[one]) & (corner[:, 1] == row[one])
        yield first[is_here], second[is_here]


def _count_up(counts: Indices) -> tuple[Indices, Indices]:
    """Return, for each count, its index that many times, beside 0, 1, 2, ..."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def _drop_cut_ones(found: _Found) -> _Found:
    """Drop each object that its view cuts, but another view shows whole. A part may look like another class."""
    keep = np.ones(len(found.is_cut), bool)
    for pairs in _find_pairs(found):
        first_is_cut, second_is_cut = found.is_cut[pairs.first], found.is_cut[pairs.second]
        alike = pairs.shared >= MIN_SHARED
        keep[pairs.first[alike & first_is_cut & ~second_is_cut]] = False
        keep[pairs.second[alike & second_is_cut & ~first_is_cut]] = False
    return found[keep]


def _join_cut_ones(found: _Found) -> _Found:
    """Join the parts of each object that no view shows whole."""
    heads = list(range(len(found.is_cut)))  # of each object, a part with a higher score, or itself

    def find_head(index: int) -> int:
        while heads[index] != index:
            heads[index] = heads[heads[index]]  # shorter for the next search
            index = heads[index]
        return index

    cut = np.flatnonzero(found.is_cut)
    for pairs in _find_pairs(found[cut]):
        are_parts = pairs.same_label & (pairs.shared >= MIN_SHARED)
        firsts, seconds = cut[pairs.first[are_parts]], cut[pairs.second[are_parts]]
        for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
            one, other = sorted((find_head(first), find_head(second)))
            heads[other] = one
    groups: dict[int, list[int]] = {}
    for index in range(len(heads)):
        groups.setdefault(find_head(index), []).append(index)
    boxes = found.objects.boxes.copy()
    rles = None if found.objects.rles is None else list(found.objects.rles)
    for head, members in groups.items():
        if len(members) == 1:
            continue
        boxes[head] = np.concatenate([boxes[members, :2].min(0), boxes[members, 2:].max(0)])
        if rles:
            rles[head] = coco_mask.merge([rles[each] for each in members])
    joined = _Found(found.objects._replace(boxes=boxes, rles=rles), found.windows, found.views, found.is_cut)
    return joined[np.array(list(groups), np.int64)]


def _keep_best(found: _Found, nms_iou: float, class_agnostic: bool) -> Objects:
    """Keep only the object with the highest score of those that several views show, with the mean of their boxes."""
    chosen = []
    for pairs in _find_pairs(found):
        alike = ((pairs.iou > nms_iou) | (pairs.inside > INSIDE)) & (pairs.same_label | class_agnostic)
        alike |= pairs.iou > SAME_PLACE
        fused = pairs.same_label & (pairs.iou >= MIN_FUSED)
        chosen.append((pairs.first[alike], pairs.second[alike], fused[alike]))
    first, second, fused = map(np.concatenate, zip(*chosen, strict=True))
    order = np.argsort(first, kind="stable")
    keep = bytearray([True]) * len(found.is_cut)
    heads = np.arange(len(keep))  # of each object, the one whose box it helps to find
    for part in np.array_split(order, len(chosen)):
        columns = (each[part].tolist() for each in (first, second, fused))
        for one, other, is_fused in zip(*columns, strict=True):
            if keep[one] and keep[other]:
                keep[other] = False
                if is_fused:
                    heads[other] = one
    boxes = _mean_boxes(found.objects, heads)
    return found.objects._replace(boxes=boxes).select(np.frombuffer(keep, bool))


def _mean_boxes(objects: Objects, heads: Indices) -> NDArray[np.float32]:
    """Return the mean of the boxes with each head, weighted by their scores."""
    weights = objects.scores + np.finfo(np.float32).tiny  # a score may be 0
    is_mean = np.bincount(heads, minlength=len(heads)) > 1
    sums = np.array([np.bincount(heads, weights * values, len(heads)) for values in (1, *objects.boxes.T)])[:, is_mean]
    boxes = objects.boxes.copy()
    boxes[is_mean] = (sums[1:] / sums[0]).T
    return boxes


def box_iou(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """Return the IoU of each of `boxes` with the one of `others` beside it."""
    overlap = _area(_intersect(boxes, others))
    return overlap / np.maximum(_area(boxes) + _area(others) - overlap, np.finfo(np.float32).tiny)


def _intersect(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hstack([np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])])


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    area: NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return area


def place(objects: Objects, window: Window, image_size: tuple[int, int]) -> Objects:
    """Return `objects` in pixels of an image of `image_size` (height, width), from pixels of a `window` of it.

    Masks are moved one at a time, and no mask of the whole image is made.
    """
    boxes = objects.boxes + np.array([window.x0, window.y0] * 2, np.float32)
    height, width = image_size
    rles = objects.rles
    if rles is not None and window != (0, 0, width, height):
        rles = [_place_mask(rle, window, image_size) for rle in rles]
    return objects._replace(boxes=boxes, rles=rles)


def _place_mask(rle: RLE, window: Window, image_size: tuple[int, int]) -> RLE:
    """Return a mask of the image from one of a window."""
    height, width = image_size
    x, y, w, h = coco_mask.toBbox(rle).astype(int)
    # By columns, as RLE counts, with an empty row below, so that no run goes on in the next column.
    columns = np.pad(coco_mask.decode(rle)[y : y + h, x : x + w], ((0, 1), (0, 0))).T.ravel()
    edges = np.flatnonzero(np.diff(columns, prepend=0, append=0))
    column, row = np.divmod(edges, h + 1)
    places = (window.x0 + x + column) * height + window.y0 + y + row
    places, repeats = np.unique(places, return_counts=True)  # a run may go on in the next column of the image
    counts = np.diff(places[repeats == 1], prepend=0, append=height * width)
    counts = counts[:-1] if len(counts) > 1 and not counts[-1] else counts  # as pycocotools encodes
    placed: RLE = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return placed
