"""COCO's metrics of what `detect_dataset` found: neither the model nor the images are needed."""

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..analysis.metrics import MAX_DETECTIONS, CocoDict, CocoMetrics, Evaluator, Task
from ..bulk.results import Results
from ..bulk.storage import Folder
from ..data.checks import CheckedSplit, SplitFiles, check_splits, raise_errors
from ..errors import DataError, InputError
from ..utils.environment import versions
from ..utils.files import expand_user, hash_file
from ..utils.text import plural
from .plan import UNREADABLE, match_classes
from .result import Evaluation

UNKNOWN = "not recorded"
RECIPE_THRESHOLD = 0.05
"""The lowest score of the recipes. AP counts all objects down to it."""

logger = logging.getLogger(__name__)


def evaluate_results(
    predictions: str | Path,
    annotations: str | Path,
    *,
    tasks: Task | Sequence[Task] | None = None,
    skip_missing: bool = False,
    evaluator: Evaluator = "faster-coco-eval",
) -> Evaluation:
    """Measure the results of a finished `detect_dataset`.

    An image of the annotation file has the results whose URI ends with its `file_name`.

    Args:
        predictions: the address of the results.
        annotations: a COCO annotation file.
        tasks: "bbox", "segm" or both; by default all that the model predicts.
        skip_missing: skip images without results instead of refusing the data.
        evaluator: the library that computes the metrics; both give the same numbers.

    Raises:
        InputError: The results are not finished, have no such task, or two of them are for one image.
        DataError: The annotation file cannot be used, or images have no results.
    """
    results = Results(Folder(str(predictions)))
    settings = results.settings
    predicted: tuple[Task, ...] = ("bbox", "segm") if settings.has_masks else ("bbox",)
    tasks = predicted if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for task in tasks:
        if task not in predicted:
            raise InputError(f"tasks: this model does not predict {task!r}, only {' and '.join(predicted)}")
    if settings.options["score_threshold"] > RECIPE_THRESHOLD:
        logger.warning(
            "the results have only objects with a score of at least %s: AP is lower than with --score-threshold %s",
            *(settings.options["score_threshold"], RECIPE_THRESHOLD),
        )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        split, ground_truth = _read_annotations(expand_user(annotations), Path(temporary), with_masks="segm" in tasks)
        digest = hash_file(split.annotations).hexdigest()
    categories = {category["name"]: category["id"] for category in ground_truth["categories"]}
    classes = match_classes(settings.classes, tuple(categories), split.annotations)
    category_ids = [categories.get(name) for name in classes]
    found, failed = _match_images(results, ground_truth, category_ids)
    skipped = tuple(
        f"{image['file_name']}: {failed.get(image['id'], 'it has no results')}"
        for image in ground_truth["images"]
        if image["id"] not in found
    )
    if not found or (skipped and not skip_missing):
        few = "\n  ".join(skipped[:5])
        raise DataError(
            f"{results.address} has no results for {plural(len(skipped), 'image')} of {annotations}, which "
            f"skip_missing would skip:\n  {few}"
        )
    metrics = CocoMetrics(ground_truth, tasks, list(found), evaluator)
    for predictions_of_image in found.values():
        metrics.add(predictions_of_image)
    scores = metrics.compute()
    return Evaluation(
        metrics={task: score.metrics for task, score in scores.items()},
        per_class={task: score.per_class for task, score in scores.items()},
        num_images=len(found),
        limit=None,
        max_detections=MAX_DETECTIONS,
        amp=settings.options["amp"],
        skipped=skipped,
        weights={"path": settings.model, "sha256": settings.weights},
        annotations={"path": str(annotations), "sha256": digest},
        seconds={"detecting": 0.0, "measuring": time.perf_counter() - start},
        processes=1,
        device=UNKNOWN,
        runtime=UNKNOWN,
        versions=versions(),
    )


def _read_annotations(path: Path, folder: Path, with_masks: bool) -> tuple[CheckedSplit, CocoDict]:
    """Check an annotation file, and return its content, completed in a copy in `folder` if it is not complete."""
    files = SplitFiles("annotations", path, path.parent)
    (split,) = check_splits([files], with_masks=with_masks, read_images=False, work_dir=folder)
    split.issues = [issue for issue in split.issues if issue.type not in UNREADABLE]  # the images are not needed
    raise_errors(split)
    return split, json.loads(split.annotations.read_bytes())


def _match_images(
    results: Results, ground_truth: CocoDict, category_ids: Sequence[int | None]
) -> tuple[dict[int, list[CocoDict]], dict[int, str]]:
    """Return the predictions for each image of the ground truth, in its order, and the errors, by the image's id."""
    ids = {image["file_name"]: image["id"] for image in ground_truth["images"]}
    uris: dict[int, str] = {}
    found: dict[int, list[CocoDict]] = {}
    failed: dict[int, str] = {}
    for row in results:
        image_id = _find_image(row.uri, ids)
        if image_id is None:
            continue
        other = uris.setdefault(image_id, row.uri)
        if other != row.uri:
            raise InputError(f"{other} and {row.uri} are both named as image {image_id} of the annotation file")
        if row.detections is None:
            failed[image_id] = str(row.error)
        else:
            found[image_id] = row.detections.to_coco(image_id, category_ids)
    return {image_id: found[image_id] for image_id in ids.values() if image_id in found}, failed


def _find_image(uri: str, ids: Mapping[str, int]) -> int | None:
    """Return the id of the image with the longest file name that a URI ends with."""
    parts = uri.replace("#", "/").split("/")
    names = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((ids[name] for name in names if name in ids), None)
