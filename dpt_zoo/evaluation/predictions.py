"""The predictions of an evaluation: files that are written image by image, and COCO results files."""

import contextlib
import heapq
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .. import mmlab  # noqa: F401  (before mmdet)
from ..analysis.metrics import SHAPE_KEYS, CocoDict, Task
from ..inference.detections import Detections, encode_mask
from ..utils.files import open_atomic
from ..utils.json_files import DAMAGE, JsonLinesWriter, json_list, read_json_lines


class ImagePredictions(NamedTuple):
    """The predictions for the image with id `image_id`, and the seconds that detection took.

    They are in COCO's results format: "image_id", "category_id", "bbox" (xywh, pixels), "score" and, from a model with
    masks, "segmentation" (RLE).
    """

    image_id: int
    seconds: float
    predictions: list[CocoDict]


class PredictionsFile:
    """A file with a line of JSON for each image. Each process writes its own; predictions are not kept in memory.

    Args:
        folder: the folder of the file.
        category_ids: the data's category of each label; detections with None are left out.
    """

    def __init__(self, folder: str | Path, category_ids: Sequence[int | None]) -> None:
        self._file = JsonLinesWriter(Path(folder) / f"{uuid.uuid4().hex}.jsonl")
        self._category_ids = category_ids
        self._last_time = time.perf_counter()

    def append(self, batch: Sequence[tuple[int, Detections]]) -> None:
        """Write the ids and detections of a batch of images, which took the time since the previous batch.

        Raises:
            OutputError: The file cannot be written.
        """
        lines = [(image_id, detections.to_coco(image_id, self._category_ids)) for image_id, detections in batch]
        now = time.perf_counter()
        seconds, self._last_time = (now - self._last_time) / len(batch), now
        for image_id, predictions in lines:
            self._file.append(ImagePredictions(image_id, seconds, predictions)._asdict())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@METRICS.register_module()
class PredictionsWriter(BaseMetric):  # type: ignore[misc]
    """Writes the predictions of MMEngine's Runner to a `PredictionsFile`.

    Unlike MMDetection's `CocoMetric`, it computes no metrics and keeps no predictions in memory.
    """

    def __init__(self, folder: str | Path, category_ids: Sequence[int | None]) -> None:
        super().__init__(collect_device="gpu", prefix="predictions")  # "cpu" would create a folder
        self._file = PredictionsFile(folder, category_ids)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Write the predictions for a batch of images."""
        self._file.append([(sample["img_id"], self._to_detections(sample)) for sample in data_samples])

    def _to_detections(self, sample: dict[str, Any]) -> Detections:
        arrays = {name: tensor.cpu().numpy() for name, tensor in sample["pred_instances"].items()}
        return Detections(
            boxes=arrays["bboxes"],
            scores=arrays["scores"],
            labels=arrays["labels"],
            classes=tuple(self.dataset_meta["classes"]),
            image_size=sample["ori_shape"],
            rles=[encode_mask(mask) for mask in arrays["masks"]] if "masks" in arrays else None,
        )

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return no metrics: they are computed when all processes have written their files."""
        return {}

    def evaluate(self, size: int) -> dict[str, float]:
        """Close the file."""
        self._file.close()
        return {}


def read_predictions(folder: Path, image_ids: Iterable[int]) -> Iterator[ImagePredictions]:
    """Yield the predictions in the folder of one or more `PredictionsFile`, in the order of `image_ids`.

    The files may come from several processes and runs; each is already in that order. Images without predictions are
    left out. Memory holds one image of each file.
    """
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    files = [(line for line in _read_file(path) if line.image_id in places) for path in folder.glob("*.jsonl")]
    lines = heapq.merge(*files, key=lambda line: places[line.image_id])
    for _, same in itertools.groupby(lines, key=lambda line: line.image_id):
        yield next(same)


def read_image_ids(folder: Path) -> set[int]:
    """Return the ids of the images with predictions in a folder."""
    return {line.image_id for path in folder.glob("*.jsonl") for line in _read_file(path)}


def _read_file(path: Path) -> Iterator[ImagePredictions]:
    """Yield the complete lines of a file, up to a damaged one: a process may have ended while writing."""
    with contextlib.suppress(*DAMAGE):
        for content, _ in read_json_lines(path):
            yield ImagePredictions(**content)


@contextlib.contextmanager
def coco_results_files(prefix: Path | None, tasks: Iterable[Task]) -> Iterator[Callable[[Iterable[CocoDict]], None]]:
    """Yield a function that adds predictions to COCO results files, which are complete when the block ends.

    There is one file for each of `tasks`: `prefix` and ".bbox.json" or ".segm.json". Without a prefix, there are none.

    Raises:
        OutputError: A file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        writers: list[tuple[Callable[[CocoDict], None], tuple[str, ...]]] = []
        for task in tasks if prefix else ():
            file = stack.enter_context(open_atomic(Path(f"{prefix}.{task}.json")))
            keys = ("image_id", "category_id", SHAPE_KEYS[task], "score")
            writers.append((stack.enter_context(json_list(file)), keys))

        def add(predictions: Iterable[CocoDict]) -> None:
            for write, keys in writers:
                for prediction in predictions:
                    write({key: prediction[key] for key in keys})

        yield add
