"""What a detector finds in the images of a data set, on disk from the moment it is found."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .. import mmlab  # noqa: F401  (before mmdet)
from ..errors import OutputError
from ..inference.detections import Detections, encode_mask
from ..utils.files import open_atomic
from .metrics import Task

Records = list[dict[str, Any]]
"""COCO's results: "image_id", "category_id", "bbox" (xywh, pixels), "score", and of a mask "segmentation" (RLE)."""


@METRICS.register_module()
class PredictionsWriter(BaseMetric):  # type: ignore[misc]
    """Writes what is found in each image as a line of JSON; each process has a file of its own.

    It takes the place of MMDetection's `CocoMetric`, which keeps all until the end, and computes nothing itself.

    Args:
        folder: where the file is made.
        category_ids: the data's category of each label; None for one that the data do not have, whose detections are
            left out.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, folder: str | Path, category_ids: Sequence[int | None]) -> None:
        super().__init__(collect_device="gpu", prefix="found")  # "cpu" would make a folder
        self._path = Path(folder) / f"{uuid.uuid4().hex}.jsonl"
        self._category_ids = category_ids
        self._last_time = time.perf_counter()

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Write what was found in a batch of images."""
        found = [(sample["img_id"], self._records(sample)) for sample in data_samples]
        now = time.perf_counter()
        seconds, self._last_time = (now - self._last_time) / len(found), now
        lines = [json.dumps({"image_id": id, "seconds": seconds, "found": records}) for id, records in found]
        try:
            with self._path.open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror}: make room, and resume") from error

    def _records(self, sample: dict[str, Any]) -> Records:
        found = {name: tensor.cpu().numpy() for name, tensor in sample["pred_instances"].items()}
        detections = Detections(
            boxes=found["bboxes"],
            scores=found["scores"],
            labels=found["labels"],
            classes=tuple(self.dataset_meta["classes"]),
            image_size=sample["ori_shape"],
            rles=[encode_mask(mask) for mask in found["masks"]] if "masks" in found else None,
        )
        return detections.to_coco(sample["img_id"], self._category_ids)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Nothing: that is done when all processes have written theirs."""
        return {}

    def evaluate(self, size: int) -> dict[str, float]:
        """Nothing, as `compute_metrics`."""
        return {}


class Predictions:
    """What was found, read from a folder that `PredictionsWriter`s have written to.

    Of files that were being written when their process ended, the whole lines count. Memory holds one image's results,
    and where each line begins.

    Args:
        folder: it may hold the files of several runs, and of several processes.

    Attributes:
        seconds: how long finding them took in each image, by its id.
    """

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[int, float] = {}
        self._places: dict[int, tuple[Path, int]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            with path.open("rb") as file:
                start = 0
                for line in file:
                    content = _parse(line)
                    if content and content["image_id"] not in self._places:
                        self._places[content["image_id"]] = path, start
                        self.seconds[content["image_id"]] = content["seconds"]
                    start += len(line)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._places

    def of_images(self, image_ids: Iterable[int]) -> Iterator[tuple[int, Records]]:
        """The images, and what was found in each.

        Raises:
            KeyError: of one there are no results.
        """
        for image_id in image_ids:
            path, start = self._places[image_id]
            with path.open("rb") as file:
                file.seek(start)
                yield image_id, json.loads(file.readline())["found"]


def write_coco(path: Path, found: Iterable[tuple[int, Records]], task: Task) -> None:
    """Write results of one task as the JSON list that COCO's test server takes.

    Raises:
        OutputError: the file cannot be written.
    """
    key = "segmentation" if task == "segm" else "bbox"
    names = ("image_id", "category_id", key, "score")
    separator = b"[\n"
    with open_atomic(path) as file:
        for _, records in found:
            for record in records:
                file.write(separator + json.dumps({name: record[name] for name in names}).encode())
                separator = b",\n"
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's content, if it is whole."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if line.endswith(b"\n") and isinstance(content, dict) else None
