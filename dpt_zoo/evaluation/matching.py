"""Predicted boxes matched with objects as in COCO's evaluation at IoU 0.5, and the type of each error.

The types are those of TIDE (arXiv 2008.08115).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .metrics import CocoDict

MIN_IOU = 0.5  # of an object and its prediction
BACKGROUND_IOU = 0.1  # a prediction with no more is on the background
MAX_PREDICTIONS = 100  # of a class in an image: as in COCO's evaluation, the others are ignored

RIGHT, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND = range(6)
"""What a prediction is: right, or its error."""


@dataclass(frozen=True)
class Matches:
    """The predictions of all images, the highest score first, without those that COCO's evaluation ignores.

    Attributes:
        classes: class names, by index.
        scores: `(N,)`, in [0, 1].
        labels: `(N,)`, indices of `classes`.
        outcomes: `(N,)`, what each prediction is, such as `RIGHT`.
        corrected: `(N,)`, the class as which the prediction would be right if its error was corrected; -1 if it would
            only be left out, because it has no object, or its object has another prediction.
        num_objects: `(num_classes,)`, how many objects each class has.
        num_missed: `(num_classes,)`, how many of them no prediction would find, even if its error was corrected.
    """

    classes: tuple[str, ...]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    outcomes: NDArray[np.int64]
    corrected: NDArray[np.int64]
    num_objects: NDArray[np.int64]
    num_missed: NDArray[np.int64]


class Matching:
    """Matches predictions with objects, image by image.

    `ground_truth` is the content of a COCO annotation file.
    """

    def __init__(self, ground_truth: Mapping[str, Any]) -> None:
        categories = sorted(ground_truth["categories"], key=itemgetter("id"))
        self._classes = tuple(category["name"] for category in categories)
        self._places = {category["id"]: place for place, category in enumerate(categories)}
        self._annotations: defaultdict[int, list[CocoDict]] = defaultdict(list)
        for annotation in ground_truth["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)
        self._num_objects, self._num_missed = (np.zeros(len(categories), np.int64) for _ in range(2))
        self._rows: list[NDArray[np.float64]] = [np.empty((0, 5))]

    def add(self, image_id: int, predictions: Sequence[CocoDict]) -> None:
        """Match the `predictions` for the image with id `image_id`, in COCO's results format."""
        predictions = self._highest(predictions)
        annotations = self._annotations[image_id]
        overlaps = compute_overlaps(predictions, annotations)
        labels = self._labels(predictions)
        is_crowd = np.array([bool(each.get("iscrowd")) for each in annotations], bool)
        crowds = overlaps[:, is_crowd] * np.equal.outer(labels, self._labels(annotations)[is_crowd])
        ious, objects = overlaps[:, ~is_crowd], self._labels(annotations)[~is_crowd]
        same = ious * np.equal.outer(labels, objects)
        owners = _assign(same)
        outcomes, targets = _find_errors(ious, same, owners)
        is_ignored = (outcomes != RIGHT) & (crowds >= MIN_IOU).any(axis=1)
        corrected = np.full(len(predictions), -1)
        for index in np.flatnonzero((targets >= 0) & ~is_ignored).tolist():  # by falling score: the first one is right
            target = targets[index]
            if owners[target] < 0:
                owners[target] = index
                corrected[index] = objects[target]
        np.add.at(self._num_objects, objects, 1)
        np.add.at(self._num_missed, objects[owners < 0], 1)
        scores = [each["score"] for each in predictions]
        rows = np.column_stack([scores, np.full(len(scores), image_id), labels, outcomes, corrected])
        self._rows.append(rows[~is_ignored])

    def finish(self) -> Matches:
        """Return the predictions of all images that were added."""
        rows = np.concatenate(self._rows)
        rows = rows[np.lexsort((rows[:, 1], -rows[:, 0]))]  # stable: of equal scores, the first image and prediction
        labels, outcomes, corrected = rows[:, 2:].T.astype(np.int64)
        return Matches(
            self._classes, rows[:, 0].copy(), labels, outcomes, corrected, self._num_objects, self._num_missed
        )

    def _labels(self, dicts: Sequence[CocoDict]) -> NDArray[np.int64]:
        return np.array([self._places[each["category_id"]] for each in dicts], np.int64)

    def _highest(self, predictions: Sequence[CocoDict]) -> list[CocoDict]:
        """Return the `MAX_PREDICTIONS` predictions of each class with the highest scores, the highest first."""
        counts: defaultdict[int, int] = defaultdict(int)
        highest = []
        for prediction in sorted(predictions, key=itemgetter("score"), reverse=True):
            counts[prediction["category_id"]] += 1
            if counts[prediction["category_id"]] <= MAX_PREDICTIONS:
                highest.append(prediction)
        return highest


def _assign(same: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of each object's prediction, or -1.

    `same` is `(predictions, objects)`: the IoU of those with the same class, else 0. In the order of the rows, each
    prediction takes the free object with the largest IoU; of equal ones the last, as in COCO's evaluation.
    """
    owners = np.full(same.shape[1], -1)
    for index in np.flatnonzero((same >= MIN_IOU).any(axis=1)).tolist():
        free = np.where(owners < 0, same[index], 0)
        best = len(free) - 1 - int(free[::-1].argmax())
        if free[best] >= MIN_IOU:
            owners[best] = index
    return owners


def _find_errors(
    ious: NDArray[np.float64], same: NDArray[np.float64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what each prediction is, and the object that it would find if its class or location was corrected, or -1.

    `ious` and `same` are `(predictions, objects)`, see `_assign`; `owners` is the prediction of each object, or -1.
    """
    num_predictions, num_objects = ious.shape
    if not num_objects:
        return np.full(num_predictions, BACKGROUND), np.full(num_predictions, -1)
    other = np.where(same > 0, 0, ious)
    is_location = (same.max(axis=1) >= BACKGROUND_IOU) & (same.max(axis=1) <= MIN_IOU)
    is_class = other.max(axis=1) >= MIN_IOU
    is_duplicate = (same * (owners >= 0)).max(axis=1) >= MIN_IOU
    is_background = ious.max(axis=1) <= BACKGROUND_IOU
    types = [LOCATION, CLASS, DUPLICATE, BACKGROUND]
    outcomes = np.select([is_location, is_class, is_duplicate, is_background], types, default=BOTH)
    targets = np.select([is_location, is_class], [same.argmax(axis=1), other.argmax(axis=1)], default=-1)
    right = owners[owners >= 0]
    outcomes[right], targets[right] = RIGHT, -1
    return outcomes, targets


def compute_overlaps(predictions: Sequence[CocoDict], annotations: Sequence[CocoDict]) -> NDArray[np.float64]:
    """Return the IoU of each of `predictions` with each of `annotations`, `(predictions, annotations)`.

    For a crowd, it is the fraction of the prediction inside it.
    """
    if not predictions or not annotations:
        return np.zeros((len(predictions), len(annotations)))
    boxes = (np.array([each["bbox"] for each in dicts], np.float64) for dicts in (predictions, annotations))
    return coco_mask.iou(*boxes, [int(each.get("iscrowd", 0)) for each in annotations])
