"""The errors of a detector: missed objects, wrong classes, and detections where no object is."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .metrics import CocoDict

MIN_SCORE = 0.3
"""The least score of a prediction that is analyzed."""

MIN_IOU = 0.5
"""The least IoU of a prediction's box with that of its object."""


class Pair(NamedTuple):
    """An object and its prediction: `prediction` is None if it was missed, `annotation` if there is no such object."""

    annotation: CocoDict | None
    prediction: CocoDict | None

    @property
    def is_correct(self) -> bool:
        """Whether the object was detected with the right class."""
        return bool(
            self.annotation and self.prediction and self.annotation["category_id"] == self.prediction["category_id"]
        )


@dataclass(frozen=True)
class Comparison:
    """The ground truth of an image beside the predictions for it.

    Attributes:
        image: COCO's dict of the image.
        annotations: COCO's dicts of its objects.
        predictions: those of at least `MIN_SCORE`, the highest score first.
    """

    image: CocoDict
    annotations: list[CocoDict]
    predictions: list[CocoDict]

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """Each object and each prediction once, except crowds and predictions in a crowd of their class.

        Predictions are assigned to objects as in COCO's evaluation: in the order of their scores, each to the free
        object of its class whose box overlaps most. Those left over are then assigned to objects of other classes.
        """
        objects = [each for each in self.annotations if not each.get("iscrowd")]
        crowds = [each for each in self.annotations if each.get("iscrowd")]
        overlaps = _overlaps(self.predictions, objects)
        owners: dict[int, int] = {}
        _assign(owners, overlaps * _is_same_class(self.predictions, objects))
        crowd_overlaps = _overlaps(self.predictions, crowds) * _is_same_class(self.predictions, crowds)
        in_crowd = np.any(crowd_overlaps >= MIN_IOU, axis=1)
        _assign(owners, overlaps * ~in_crowd[:, None])
        pairs = [Pair(objects[owner], self.predictions[index]) for index, owner in owners.items()]
        pairs += [Pair(each, None) for index, each in enumerate(objects) if index not in owners.values()]
        others = [each for index, each in enumerate(self.predictions) if index not in owners and not in_crowd[index]]
        return pairs + [Pair(None, each) for each in others]

    @functools.cached_property
    def errors(self) -> list[Pair]:
        """The pairs that are not correct."""
        return [pair for pair in self.pairs if not pair.is_correct]


class ErrorAnalysis:
    """Counts what is correct and what is wrong, image by image.

    Args:
        ground_truth: the content of a COCO annotation file.
        num_worst: how many of the worst images to keep.

    Attributes:
        classes: the class names by category id, in the order of the ids.
        confusion: `(num_classes + 1, num_classes + 1)`, how many objects of a class (row) were detected as a class
            (column), in that order. The last column counts missed objects, the last row detections without an object.
        worst: the images with the most errors, the worst first; none without errors.
    """

    def __init__(self, ground_truth: Mapping[str, Any], num_worst: int = 9) -> None:
        categories = sorted(ground_truth["categories"], key=itemgetter("id"))
        self.classes: dict[int, str] = {category["id"]: category["name"] for category in categories}
        self.confusion = np.zeros((len(self.classes) + 1, len(self.classes) + 1), np.int64)
        self.worst: list[Comparison] = []
        self._num_worst = num_worst
        self._places = {category_id: place for place, category_id in enumerate(self.classes)}
        self._images = {image["id"]: image for image in ground_truth["images"]}
        self._annotations: defaultdict[int, list[CocoDict]] = defaultdict(list)
        for annotation in ground_truth["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)

    def add(self, image_id: int, predictions: Sequence[CocoDict]) -> Comparison:
        """Count an image, and return its comparison."""
        certain = [each for each in predictions if each["score"] >= MIN_SCORE]
        certain.sort(key=itemgetter("score"), reverse=True)
        comparison = Comparison(self._images[image_id], self._annotations[image_id], certain)
        for pair in comparison.pairs:
            row, column = (self._places[each["category_id"]] if each else len(self.classes) for each in pair)
            self.confusion[row, column] += 1
        if comparison.errors:
            self.worst = sorted([*self.worst, comparison], key=_rank)[: self._num_worst]
        return comparison

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values, with the names of the worst images and their numbers of errors."""
        worst = [{"file_name": each.image["file_name"], "errors": len(each.errors)} for each in self.worst]
        return {"classes": list(self.classes.values()), "confusion": self.confusion.tolist(), "worst": worst}


def _rank(comparison: Comparison) -> tuple[int, str]:
    """Return a sort key: the worst first, whatever order the images come in."""
    return -len(comparison.errors), comparison.image["file_name"]


def _assign(owners: dict[int, int], overlaps: NDArray[np.float64]) -> None:
    """Assign objects to predictions without one: to each in turn the free one that it overlaps most, if enough.

    Args:
        owners: the index of the object by the index of the prediction; it is added to.
        overlaps: `(predictions, objects)`; 0 where they do not match.
    """
    overlaps = overlaps.copy()
    overlaps[list(owners)] = 0
    overlaps[:, list(owners.values())] = 0
    for index in np.flatnonzero((overlaps >= MIN_IOU).any(axis=1)).tolist():
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= MIN_IOU:
            owners[index] = best
            overlaps[:, best] = 0


def _overlaps(predictions: Sequence[CocoDict], annotations: Sequence[CocoDict]) -> NDArray[np.float64]:
    """Return the IoU of each box with each; with a crowd's, the fraction of the prediction that is inside."""
    if not predictions or not annotations:
        return np.zeros((len(predictions), len(annotations)))
    boxes = (np.array([each["bbox"] for each in dicts], np.float64) for dicts in (predictions, annotations))
    return coco_mask.iou(*boxes, [int(each.get("iscrowd", 0)) for each in annotations])


def _is_same_class(predictions: Sequence[CocoDict], annotations: Sequence[CocoDict]) -> NDArray[np.bool_]:
    """Return whether each prediction has the class of each annotation: `(predictions, annotations)`."""
    one, other = (np.array([each["category_id"] for each in dicts], np.int64) for dicts in (predictions, annotations))
    return one[:, None] == other
