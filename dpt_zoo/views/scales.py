"""Fuse the objects that were detected in one view at several scales: weighted boxes fusion (Solovyev et al., 2019)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .objects import RLE, Objects, concatenate
from .slices import Indices, box_iou, share_cell

MIN_IOU = 0.55
"""The IoU from which on objects of one class at different scales are one."""


def fuse(parts: Sequence[Objects]) -> Objects:
    """Fuse the objects of a view at several scales.

    The box and the mask of an object are the means of those at each scale, weighted by their scores. Its score is the
    mean of all scales, 0 where it was not detected.

    Args:
        parts: the objects at each scale, in pixels of the view.

    Returns:
        The objects by falling score.
    """
    scales = np.repeat(np.arange(len(parts)), [len(each.scores) for each in parts])
    objects = concatenate(parts)
    order = np.argsort(-objects.scores, kind="stable")
    objects, scales = objects.select(order), scales[order]
    groups = [np.array(group) for group in _group(objects, scales)]
    fused = [_mean(objects, group, len(parts)) for group in groups]
    heads = np.array([group[0] for group in groups], np.int64)
    result = Objects(
        np.array([box for box, _, _ in fused], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in fused], np.float32),
        objects.labels[heads],
        None if objects.rles is None else [rle for _, _, rle in fused if rle is not None],
    )
    return result.select(np.argsort(-result.scores, kind="stable"))


def _group(objects: Objects, scales: Indices) -> list[list[int]]:
    """Return the indices of the objects that are one, at most one of each scale, from the highest score on."""
    first, second = map(np.concatenate, zip(*share_cell(objects.boxes), strict=True))
    iou = box_iou(objects.boxes[first], objects.boxes[second])
    alike = (iou > MIN_IOU) & (objects.labels[first] == objects.labels[second]) & (scales[first] != scales[second])
    order = np.lexsort((-iou[alike], second[alike]))
    candidates: dict[int, list[int]] = {}
    for one, other in zip(first[alike][order].tolist(), second[alike][order].tolist(), strict=True):
        candidates.setdefault(other, []).append(one)
    groups: dict[int, list[int]] = {}
    for index in range(len(scales)):
        for head in candidates.get(index, ()):
            if head in groups and scales[index] not in scales[groups[head]]:
                groups[head].append(index)
                break
        else:
            groups[index] = [index]
    return list(groups.values())


def _mean(objects: Objects, group: Indices, num_scales: int) -> tuple[NDArray[np.float32], float, RLE | None]:
    """Return the box, the score and the mask of an object that was detected at some scales."""
    weights = objects.scores[group] / objects.scores[group].sum()
    box, score = weights @ objects.boxes[group], float(objects.scores[group].sum()) / num_scales
    rles = objects.select(group).rles
    if rles is None:
        return box, score, None
    return box, score, rles[0] if len(rles) == 1 else _mean_mask(rles, weights)


def _mean_mask(rles: Sequence[RLE], weights: NDArray[np.float32]) -> RLE:
    """Return the pixels that have at least half of the weights. Only one mask at a time has the size of the view."""
    boxes = coco_mask.toBbox(rles).astype(int)
    (x0, y0), (x1, y1) = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    votes = np.zeros((y1 - y0, x1 - x0), np.float32)
    for rle, weight in zip(rles, weights, strict=True):
        votes += weight * coco_mask.decode(rle)[y0:y1, x0:x1]
    mask = np.zeros(rles[0]["size"], np.uint8, order="F")  # by columns, as RLE counts
    mask[y0:y1, x0:x1] = votes >= 0.5
    encoded: RLE = coco_mask.encode(mask)
    return encoded
