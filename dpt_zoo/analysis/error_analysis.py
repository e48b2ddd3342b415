"""The errors of a detector: missed objects, wrong classes, and detections where no object is."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .error_types import ErrorType
from .matching import MIN_IOU, compute_overlaps
from .metrics import CocoDict

MIN_SCORE = 0.3  # predictions with a lower score are ignored


class Pair(NamedTuple):
    """An object and its prediction. A missed object has no prediction, and a false prediction has no annotation."""

    annotation: CocoDict | None
    prediction: CocoDict | None


@dataclass(frozen=True)
class Comparison:
    """The ground truth of an image and its predictions of at least `MIN_SCORE`, the highest score first."""

    image: CocoDict
    annotations: list[CocoDict]
    predictions: list[CocoDict]

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """Each object and each prediction once, except crowds and predictions in a crowd of their class.

        Predictions are assigned to objects as in COCO's evaluation: in the order of their scores, each to the free
        object of its class with the largest overlap. The rest are then assigned to objects of other classes.
        """
        overlaps = compute_overlaps(self.predictions, self.annotations)
        ids = ([each["category_id"] for each in dicts] for dicts in (self.predictions, self.annotations))
        same_class = overlaps * np.equal.outer(*ids)
        is_crowd = np.array([bool(each.get("iscrowd")) for each in self.annotations], bool)
        in_crowd: Any = (same_class[:, is_crowd] >= MIN_IOU).any(axis=1)
        owners: dict[int, int] = {}
        _assign(owners, same_class * ~is_crowd)
        _assign(owners, overlaps * ~is_crowd * ~in_crowd[:, None])
        pairs = [Pair(self.annotations[owner], self.predictions[index]) for index, owner in owners.items()]
        missed = set(np.flatnonzero(~is_crowd).tolist()) - set(owners.values())
        extra = set(np.flatnonzero(~in_crowd).tolist()) - owners.keys()
        pairs += [Pair(self.annotations[index], None) for index in sorted(missed)]
        return pairs + [Pair(None, self.predictions[index]) for index in sorted(extra)]

    @functools.cached_property
    def errors(self) -> list[Pair]:
        """The pairs except objects that were detected with the right class."""
        return [pair for pair in self.pairs if len({each and each["category_id"] for each in pair}) > 1]


class ErrorAnalysis:
    """Counts of correct and wrong detections, image by image.

    Args:
        ground_truth: the content of a COCO annotation file.
        num_worst: how many of the worst images to keep.

    Attributes:
        classes: the class names by category id, in the order of the ids.
        confusion: `(num_classes + 1, num_classes + 1)`, how many objects of a class (row) were detected as a class
            (column). The last column counts missed objects, the last row detections without an object.
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
        """Count the image with id `image_id` and its `predictions`, and return their comparison."""
        certain = [each for each in predictions if each["score"] >= MIN_SCORE]
        certain.sort(key=itemgetter("score"), reverse=True)
        comparison = Comparison(self._images[image_id], self._annotations[image_id], certain)
        for pair in comparison.pairs:
            row, column = (self._places[each["category_id"]] if each else len(self.classes) for each in pair)
            self.confusion[row, column] += 1
        if comparison.errors:
            self.worst.append(comparison)  # by name too: independent of the order of calls
            self.worst.sort(key=lambda each: (-len(each.errors), each.image["file_name"]))
            del self.worst[self._num_worst :]
        return comparison

    def to_json(self, types: Mapping[str, ErrorType]) -> dict[str, Any]:
        """Return the counts, the `types` of errors and the names of the worst images as plain values."""
        worst = [{"file_name": each.image["file_name"], "errors": len(each.errors)} for each in self.worst]
        costs = {name: each._asdict() for name, each in types.items()}
        return {
            "classes": list(self.classes.values()),
            "confusion": self.confusion.tolist(),
            "types": costs,
            "worst": worst,
        }


def _assign(owners: dict[int, int], overlaps: NDArray[np.float64]) -> None:
    """Assign to each free prediction the free object with the largest overlap, if that is at least `MIN_IOU`.

    `owners` maps predictions to objects and is extended. `overlaps` is `(predictions, objects)`; 0 rules a pair out.
    """
    overlaps = overlaps.copy()
    overlaps[list(owners)] = 0
    overlaps[:, list(owners.values())] = 0
    for index in np.flatnonzero((overlaps >= MIN_IOU).any(axis=1)).tolist():
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= MIN_IOU:
            owners[index] = best
            overlaps[:, best] = 0
