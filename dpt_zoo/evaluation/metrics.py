"""COCO's metrics: how well what was found matches what is there."""

import contextlib
import gc
import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

Task = Literal["bbox", "segm"]
"""What is compared: boxes or masks, by COCO's names."""

Evaluator = Literal["faster-coco-eval", "pycocotools"]
"""The library that computes; both give the same."""

TASKS: tuple[Task, ...] = get_args(Task)
EVALUATORS: tuple[Evaluator, ...] = get_args(Evaluator)

NAMES = ("mAP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve metrics, in its order: average precision and recall over IoU thresholds from 0.5 to 0.95."""

Metrics = dict[str, float | None]
"""By those names, in percent; None where the data have nothing to measure, as no small objects."""


@dataclass(frozen=True)
class Score:
    """How good boxes, or masks, are.

    Attributes:
        metrics: COCO's twelve over all classes.
        per_class: the same of each class, by its name, in the order of the categories' ids.
        precision: `(10, 101, num_classes)` in [0, 1], of all sizes and at most 100 detections an image, by IoU
            threshold (0.5, 0.55, ...), recall (0, 0.01, ...) and class; -1 for a class without objects.
    """

    metrics: Metrics
    per_class: dict[str, Metrics]
    precision: NDArray[np.float64]


class GroundTruth:
    """What is in the images of a COCO annotation file, to compare with.

    Args:
        annotations: the JSON file.
        evaluator: the library that reads it and computes.
        image_ids: the images that count; by default all.
    """

    def __init__(
        self,
        annotations: Path,
        evaluator: Evaluator = "faster-coco-eval",
        image_ids: Collection[int] | None = None,
    ) -> None:
        if evaluator == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        self._new_index, self._new_run = COCO, COCOeval
        with _undisturbed():
            self._coco = COCO(str(annotations))
        self.image_ids = sorted(self._coco.imgs if image_ids is None else image_ids)

    def compare(self, found: Iterable[dict[str, Any]], task: Task) -> Score:
        """Compare detections of these images with what is in them.

        Args:
            found: COCO's results records, in the order that ties of scores are broken in.
            task: whether boxes or masks are compared; the size of what was found is its own task's area.
        """
        with _undisturbed():
            run = self._new_run(self._coco, self._index(found, task), task)
            run.params.imgIds = self.image_ids
            run.evaluate()
            run.accumulate()
            run.summarize()
        precision, recall = run.eval["precision"], run.eval["recall"]
        classes = [self._coco.cats[id]["name"] for id in run.params.catIds]
        return Score(
            metrics=_figures(run.stats[: len(NAMES)]),
            per_class={name: _class_figures(precision[:, :, k], recall[:, k]) for k, name in enumerate(classes)},
            precision=precision[..., 0, -1],
        )

    def _index(self, found: Iterable[dict[str, Any]], task: Task) -> Any:
        """As the library's `loadRes`, but of an empty list too, and without making what is not compared."""
        key = "segmentation" if task == "segm" else "bbox"
        index = self._new_index()
        records = [
            {
                "id": number,
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "score": record["score"],
                key: record[key],
                "area": _area(record[key], task),
            }
            for number, record in enumerate(found, 1)
        ]
        index.dataset = {**self._coco.dataset, "annotations": records}
        index.createIndex()
        return index


def _area(shape: Any, task: Task) -> float:
    return int(mask.area(shape)) if task == "segm" else shape[2] * shape[3]


def _class_figures(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> Metrics:
    """The twelve metrics of one class.

    Args:
        precision: `(thresholds, recalls, sizes, numbers of detections)`; sizes are all, small, medium and large, the
            numbers 1, 10 and 100.
        recall: the same without `recalls`.
    """
    most = precision[..., -1]
    averages = [most[..., 0], most[0, :, 0], most[5, :, 0], *(most[..., size] for size in (1, 2, 3))]
    averages += [recall[:, 0, number] for number in range(3)] + [recall[:, size, -1] for size in (1, 2, 3)]
    return _figures([each[each > -1].mean() if (each > -1).any() else -1.0 for each in averages])


def _figures(fractions: Iterable[float]) -> Metrics:
    return {name: None if value < 0 else 100 * float(value) for name, value in zip(NAMES, fractions, strict=True)}


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Print nothing, and look for no garbage: that goes over a million records that stay, again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if collects:
            gc.enable()
