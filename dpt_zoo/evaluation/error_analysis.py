"""What a detector gets wrong: what it misses, what it takes for something else, and what it finds where nothing is."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

CocoRecord = dict[str, Any]
"""One of COCO's: an image, an annotation, a category, or a result."""

MIN_SCORE = 0.3
"""Of what counts as found."""

MIN_IOU = 0.5
"""Of two boxes that are the same object's."""


class Pair(NamedTuple):
    """An object and what was found of it: `found` is None if it was missed, `truth` if there is no such object."""

    truth: CocoRecord | None
    found: CocoRecord | None

    @property
    def is_right(self) -> bool:
        """Whether the object was found, and as what it is."""
        return bool(self.truth and self.found and self.truth["category_id"] == self.found["category_id"])


@dataclass(frozen=True)
class Comparison:
    """What is in an image beside what was found in it.

    Attributes:
        image: the image's record.
        truth: its annotations.
        found: the results of at least `MIN_SCORE`, the best first.
    """

    image: CocoRecord
    truth: list[CocoRecord]
    found: list[CocoRecord]

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """Each object and each result once, but for crowds and what was found in a crowd of its class.

        Results take objects as in COCO's evaluation: the best score first, each the free object of its class whose box
        overlaps most. Those left over then take objects of other classes in the same way.
        """
        objects = [record for record in self.truth if not record.get("iscrowd")]
        crowds = [record for record in self.truth if record.get("iscrowd")]
        overlaps = _overlaps(self.found, objects)
        owners: dict[int, int] = {}
        _take(owners, overlaps * _is_same_class(self.found, objects))
        in_crowd = np.any(_overlaps(self.found, crowds) * _is_same_class(self.found, crowds) >= MIN_IOU, axis=1)
        _take(owners, overlaps * ~in_crowd[:, None])
        pairs = [Pair(objects[owner], self.found[index]) for index, owner in owners.items()]
        pairs += [Pair(record, None) for index, record in enumerate(objects) if index not in owners.values()]
        others = [record for index, record in enumerate(self.found) if index not in owners and not in_crowd[index]]
        return pairs + [Pair(None, record) for record in others]

    @functools.cached_property
    def mistakes(self) -> list[Pair]:
        """The pairs that are wrong."""
        return [pair for pair in self.pairs if not pair.is_right]


@dataclass(frozen=True)
class Mistakes:
    """What was right and what was wrong in all images.

    Attributes:
        classes: the names of the classes, by the categories' ids and in their order.
        confusion: `(num_classes + 1, num_classes + 1)`, how many objects of a class (row) were found as a class
            (column), in that order; the last column is what was missed, the last row what was found where nothing is.
        worst: the images with the most mistakes, the worst first; fewer than asked for if the others have none.
    """

    classes: dict[int, str]
    confusion: NDArray[np.int64]
    worst: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, of the worst images their names and how many mistakes there are."""
        worst = [{"file_name": each.image["file_name"], "mistakes": len(each.mistakes)} for each in self.worst]
        return {"classes": list(self.classes.values()), "confusion": self.confusion.tolist(), "worst": worst}


def find_mistakes(
    truth: Mapping[str, Any], found: Iterable[tuple[int, Sequence[CocoRecord]]], num_worst: int = 9
) -> Mistakes:
    """Count what was right and wrong, in one pass over the images.

    Args:
        truth: the content of a COCO annotation file.
        found: the images that count, by their ids, and the results of each.
        num_worst: how many of the worst images to keep.
    """
    classes = class_names(truth)
    places = {category_id: place for place, category_id in enumerate(classes)}
    nothing = len(classes)
    confusion = np.zeros((nothing + 1, nothing + 1), np.int64)
    worst: list[Comparison] = []
    for comparison in compare(truth, found):
        for pair in comparison.pairs:
            row, column = (places[record["category_id"]] if record else nothing for record in pair)
            confusion[row, column] += 1
        if comparison.mistakes:
            worst = sorted([*worst, comparison], key=_badness)[:num_worst]
    return Mistakes(classes, confusion, tuple(worst))


def compare(truth: Mapping[str, Any], found: Iterable[tuple[int, Sequence[CocoRecord]]]) -> Iterator[Comparison]:
    """Set what was found in each image beside what is in it; the arguments are those of `find_mistakes`."""
    images = {image["id"]: image for image in truth["images"]}
    annotations: defaultdict[int, list[CocoRecord]] = defaultdict(list)
    for annotation in truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for image_id, records in found:
        sure = [record for record in records if record["score"] >= MIN_SCORE]
        sure.sort(key=itemgetter("score"), reverse=True)
        yield Comparison(images[image_id], annotations[image_id], sure)


def class_names(truth: Mapping[str, Any]) -> dict[int, str]:
    """The classes of an annotation file by their ids, and in the ids' order, as COCO's evaluation has them."""
    return {category["id"]: category["name"] for category in sorted(truth["categories"], key=itemgetter("id"))}


def _badness(comparison: Comparison) -> tuple[int, str]:
    """To sort by, the worst first, whatever the order that the images come in."""
    return -len(comparison.mistakes), comparison.image["file_name"]


def _take(owners: dict[int, int], overlaps: NDArray[np.float64]) -> None:
    """Give objects to results that have none: to each in turn the free one that it overlaps most, if enough.

    Args:
        owners: the index of each such result's object, by the result's.
        overlaps: `(results, objects)`; 0 where they cannot go together.
    """
    overlaps = overlaps.copy()
    overlaps[list(owners)] = 0
    overlaps[:, list(owners.values())] = 0
    for index in np.flatnonzero((overlaps >= MIN_IOU).any(axis=1)).tolist():
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= MIN_IOU:
            owners[index] = best
            overlaps[:, best] = 0


def _overlaps(found: Sequence[CocoRecord], truth: Sequence[CocoRecord]) -> NDArray[np.float64]:
    """The IoU of each result's box with each annotation's; with a crowd's, the part of the result that is in it."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    boxes = (np.array([record["bbox"] for record in records], np.float64) for records in (found, truth))
    return coco_mask.iou(*boxes, [int(record.get("iscrowd", 0)) for record in truth])


def _is_same_class(found: Sequence[CocoRecord], truth: Sequence[CocoRecord]) -> NDArray[np.bool_]:
    """Whether each result has the class of each annotation: `(len(found), len(truth))`."""
    classes, others = (np.array([record["category_id"] for record in each], np.int64) for each in (found, truth))
    return classes[:, None] == others
