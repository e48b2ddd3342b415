"""COCO's metrics: how well predictions match the ground truth."""

import contextlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from ..utils.garbage import paused_garbage_collection

CocoDict = dict[str, Any]
"""One of COCO's dicts: an image, an annotation, a category or a prediction."""

Task = Literal["bbox", "segm"]
"""What is compared: boxes or masks, under COCO's names."""

Evaluator = Literal["faster-coco-eval", "pycocotools"]
"""The library that computes the metrics. Both give the same numbers."""

TASKS: tuple[Task, ...] = get_args(Task)
EVALUATORS: tuple[Evaluator, ...] = get_args(Evaluator)

SHAPE_KEYS: dict[Task, str] = {"bbox": "bbox", "segm": "segmentation"}
"""The key of a COCO dict for the shape that a task compares."""

NAMES = ("mAP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve metrics in its order: average precision and recall over IoU thresholds from 0.5 to 0.95."""

MAX_DETECTIONS = 100
"""The number of predictions of an image that COCO's metrics count."""

Metrics = dict[str, float | None]
"""The metrics of `metric_names` by name, in percent. None is undefined, such as "APs" without small objects."""


@dataclass(frozen=True)
class Score:
    """The quality of predicted boxes or masks.

    Attributes:
        metrics: COCO's twelve over all classes.
        per_class: the same for each class, by name, in the order of the category ids.
        precision: `(10, 101, num_classes)` in [0, 1], by IoU threshold (0.5, 0.55, ...), recall (0, 0.01, ...) and
            class, for all sizes and the most predictions an image; -1 for a class without objects.
    """

    metrics: Metrics
    per_class: dict[str, Metrics]
    precision: NDArray[np.float64]


class CocoMetrics:
    """COCO's metrics of predictions that are added image by image.

    Args:
        ground_truth: the content of a COCO annotation file. It is not changed.
        tasks: the shapes to compare: boxes, masks or both.
        image_ids: the images to evaluate; all by default.
        evaluator: the library that computes the metrics.
        max_detections: the number of predictions of an image that count, at least 100. With more, the metrics are not
            COCO's.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        tasks: Iterable[Task] = TASKS,
        image_ids: Collection[int] | None = None,
        evaluator: Evaluator = "faster-coco-eval",
        max_detections: int = MAX_DETECTIONS,
    ) -> None:
        if evaluator == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        self._index_type, self._evaluation_type = COCO, COCOeval
        # The libraries write into the annotations.
        self._dataset = {**ground_truth, "annotations": [dict(each) for each in ground_truth["annotations"]]}
        self._ground_truth = self._index(self._dataset)
        self._tasks = tuple(tasks)
        self._image_ids = sorted(self._ground_truth.imgs if image_ids is None else image_ids)
        self._max_detections = max_detections
        self._predictions: list[CocoDict] = []

    def add(self, predictions: Iterable[CocoDict]) -> None:
        """Add predictions, in COCO's results format; the first of an image wins a tie of scores."""
        keys = ("image_id", "category_id", "score", *(SHAPE_KEYS[task] for task in self._tasks))
        with _quietly():
            for number, prediction in enumerate(predictions, len(self._predictions) + 1):
                self._predictions.append({"id": number, "area": 0, **{key: prediction[key] for key in keys}})

    def compute(self) -> dict[Task, Score]:
        """Compare the added predictions with the ground truth."""
        return {task: self._compute(task) for task in self._tasks}

    def _compute(self, task: Task) -> Score:
        for prediction in self._predictions:  # the area depends on the task
            shape = prediction[SHAPE_KEYS[task]]
            prediction["area"] = int(mask.area(shape)) if task == "segm" else shape[2] * shape[3]
        with _quietly():
            predictions = self._index({**self._dataset, "annotations": self._predictions})
            evaluation = self._evaluation_type(self._ground_truth, predictions, task)
            evaluation.params.imgIds = self._image_ids
            evaluation.params.maxDets = [1, 10, self._max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        classes = [self._ground_truth.cats[id]["name"] for id in evaluation.params.catIds]
        names = metric_names(self._max_detections)
        return Score(
            metrics=_to_metrics(names, precision, recall),
            per_class={name: _to_metrics(names, precision[:, :, k], recall[:, k]) for k, name in enumerate(classes)},
            precision=precision[..., 0, -1],
        )

    def _index(self, dataset: CocoDict) -> Any:
        """Return the library's index. Its `loadRes` refuses an empty list and adds shapes that are not compared."""
        with _quietly():
            index = self._index_type()
            index.dataset = dataset
            index.createIndex()
        return index


def metric_names(max_detections: int) -> tuple[str, ...]:
    """Return the names of the metrics that count `max_detections` predictions of an image: `NAMES` for 100."""
    return tuple(name.replace(str(MAX_DETECTIONS), str(max_detections)) for name in NAMES)


def _to_metrics(names: Sequence[str], precision: NDArray[np.float64], recall: NDArray[np.float64]) -> Metrics:
    """Return the metrics with these names, as means over classes.

    `precision` is `(thresholds, recalls, classes, sizes, limits)`, `recall` the same without `recalls`. -1: undefined.
    The sizes are all, small, medium and large; the limits 1, 10 and the most predictions an image.
    """
    most = precision[..., -1]
    values = [most[..., 0], most[0, ..., 0], most[5, ..., 0], *(most[..., size] for size in (1, 2, 3))]
    values += [recall[..., 0, limit] for limit in range(3)] + [recall[..., size, -1] for size in (1, 2, 3)]
    known = [each[each > -1] for each in values]
    return {name: 100 * float(each.mean()) if each.size else None for name, each in zip(names, known, strict=True)}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress printing, and garbage collection: there are a million dicts."""
    with paused_garbage_collection(), contextlib.redirect_stdout(io.StringIO()):
        yield
