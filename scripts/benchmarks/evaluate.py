"""COCO metrics of boxes and masks: ours and pycocotools', each in a process of its own.

Time is from the files to the metrics. Memory is the peak above the bare process. Both include the imports.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .measuring import Comparison, Settings, run_in_children, watch_memory

WAYS = ("ours", "pycocotools")


def compare(settings: Settings) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        _make_results(Path(folder), settings.images, settings.detections)
        for metric in ("bbox", "segm"):
            setting = f"{metric}, {settings.images} images with {settings.detections} detections each"
            results = run_in_children(measure_metrics, WAYS, settings.runs, folder=folder, metric=metric)
            times = {way: [seconds for seconds, _, _ in runs] for way, runs in results.items()}
            yield Comparison("evaluate", setting, "time", "s", times)
            peaks = {way: [peak for _, peak, _ in runs] for way, runs in results.items()}
            yield Comparison("evaluate", setting, "peak memory over the bare process", "MiB", peaks)
            metrics = {way: runs[0][2] for way, runs in results.items()}
            yield Comparison("evaluate", setting, "mAP", "", {way: [each[0]] for way, each in metrics.items()})
            difference = max(abs(one - other) for one, other in zip(*metrics.values(), strict=True))
            quantity = "largest difference in the twelve metrics"
            yield Comparison("evaluate", setting, quantity, "", {"ours": [difference]})


def measure_metrics(way: str, folder: str, metric: str) -> tuple[float, float, list[float]]:
    """Return the seconds, by how many MiB this process's memory was raised, and the metrics, from 0 to 1."""
    evaluate = {"ours": _our_metrics, "pycocotools": _their_metrics}[way]
    growth = watch_memory()
    start = time.perf_counter()
    metrics = evaluate(Path(folder, "annotations.json"), Path(folder, f"{metric}.json"), metric)
    return time.perf_counter() - start, growth(), metrics


def _our_metrics(annotations: Path, results: Path, task: Any) -> list[float]:
    from dpt_zoo.analysis.metrics import NAMES, CocoMetrics

    def predictions() -> Iterator[dict[str, Any]]:  # as in an evaluation, read when they are needed
        yield from json.loads(results.read_text())

    metrics = CocoMetrics(json.loads(annotations.read_bytes()), [task])
    metrics.add(predictions())
    values = metrics.compute()[task].metrics
    return [-1 if (value := values[name]) is None else value / 100 for name in NAMES]


def _their_metrics(annotations: Path, results: Path, task: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(annotations))
        run = COCOeval(ground_truth, ground_truth.loadRes(str(results)), task)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats]


def _make_results(folder: Path, num_images: int, num_detections: int) -> None:
    """Write a COCO file, and results of boxes and masks like those of a detector; they are always the same.

    An image has about 7 objects of 80 classes, of all sizes. Each is detected several times, with random errors of
    position and score, and often as another class.
    """
    import numpy as np
    from pycocotools import mask as masks

    rng = np.random.default_rng(0)
    height, width, num_classes = 480, 640, 80
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def outline(centers: Any, sizes: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """Return the boxes, polygons and masks of random shapes."""
        radii = rng.uniform(0.4, 0.5, (len(centers), len(angles), 1))
        points = centers[:, None] + sizes[:, None] * radii * directions
        points = np.clip(points, 0, (width, height)).round(2)
        boxes = np.concatenate([points.min(1), np.ptp(points, 1)], axis=1)
        polygons = points.reshape(len(points), -1).tolist()
        return boxes.tolist(), polygons, masks.frPyObjects(polygons, height, width)

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: dict[str, list[dict[str, Any]]] = {"bbox": [], "segm": []}
    for id in range(1, num_images + 1):
        images.append({"id": id, "file_name": f"{id:012}.jpg", "height": height, "width": width})
        count = 1 + rng.poisson(6)
        centers = rng.uniform(0, (width, height), (count, 2))
        sizes = rng.lognormal(3.8, 1, (count, 1)) * rng.lognormal(0, 0.3, (count, 2))
        labels = rng.integers(1, num_classes + 1, count)
        for box, polygon, mask, label in zip(*outline(centers, sizes), labels.tolist(), strict=True):
            record = {"id": len(annotations) + 1, "image_id": id, "category_id": label, "bbox": box}
            area, crowd = float(masks.area(mask)), int(rng.random() < 0.01)
            annotations.append({**record, "segmentation": [polygon], "area": area, "iscrowd": crowd})

        chosen = rng.integers(count, size=num_detections)
        errors = rng.exponential(0.2, (num_detections, 1))
        centers = centers[chosen] + errors * sizes[chosen] * rng.normal(size=(num_detections, 2))
        sizes = sizes[chosen] * np.exp(errors * rng.normal(size=(num_detections, 2)))
        others = rng.integers(1, num_classes + 1, num_detections)
        labels = np.where(rng.random(num_detections) < 0.7, labels[chosen], others)
        scores = rng.random(num_detections) * np.exp(-3 * errors[:, 0])
        blobs = outline(np.clip(centers, 1, (width - 1, height - 1)), sizes)
        for box, _, mask, label, score in zip(*blobs, labels.tolist(), scores.tolist(), strict=True):
            record = {"image_id": id, "category_id": label, "score": score}
            code = {"size": [height, width], "counts": mask["counts"].decode()}
            results["bbox"].append({**record, "bbox": box})
            results["segm"].append({**record, "segmentation": code})
    categories = [{"id": id, "name": f"class {id}"} for id in range(1, num_classes + 1)]
    contents = {"annotations": {"images": images, "annotations": annotations, "categories": categories}, **results}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
