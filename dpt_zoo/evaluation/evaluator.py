"""COCO's metrics of a detector, in one call."""

import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import barrier, get_world_size, is_main_process

from ..analysis.error_analysis import ErrorAnalysis
from ..analysis.error_types import compute_error_types
from ..analysis.matching import Matching
from ..analysis.metrics import MAX_DETECTIONS, CocoDict, CocoMetrics, Evaluator, Task
from ..analysis.thresholds import Criterion, check_tunable, tune_thresholds, write_thresholds
from ..analysis.visualize import save_comparison
from ..data.checks import CheckedSplit
from ..data.splits import prepare_splits
from ..engine.config import set_files
from ..engine.distributed import process_group
from ..engine.runner import from_main_process
from ..errors import InputError
from ..utils.environment import versions
from ..utils.files import lock_folder, make_folder
from ..utils.progress import progress_bar
from .models import EvaluatedModel, open_model
from .options import EvaluationOptions
from .plan import UNREADABLE, Plan, make_plan
from .predictions import coco_results_files, read_predictions
from .report import write_report
from .result import Evaluation


def evaluate(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    tasks: Task | Sequence[Task] | None = None,
    data_root: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    amp: bool = False,
    max_detections: int | None = None,
    evaluator: Evaluator = "faster-coco-eval",
    work_dir: str | Path | None = None,
    resume: bool = False,
    output: str | Path | None = None,
    format_only: bool = False,
    show_dir: str | Path | None = None,
    tune_thresholds: Criterion | None = None,
    device: "str | int | torch.device | None" = "auto",
) -> Evaluation:
    """Measure a detector on the validation split of a data set, in one process or in several under torchrun.

    Args:
        model: the name of a detector (see `list_models`), the path of a config file or of weights that say which model
            they are for (see `create_model`), or a file from `dpt_zoo.export` (.onnx or .xml), which one process
            evaluates.
        weights: a detector's name, a path, `https://...` or `hf://org/repo/file`; by default those of the named model.
            Not for an exported file.
        tasks: "bbox", "segm" or both; by default all that the model predicts.
        data_root: a folder of COCO, YOLO or Pascal VOC data; by default the one that the config names.
        annotations: a COCO annotation file, instead of `data_root`.
        images: the folder of the images of `annotations`.
        limit: evaluate only the first `limit` images of the annotation file; at least 1.
        skip_missing: skip images that are missing or unreadable instead of refusing the data.
        batch_size: images in a batch, at least 1.
        workers: data loading processes, for each process that detects. Not for an exported file.
        amp: compute in half precision where that is safe. Requires a GPU. Not for an exported file.
        max_detections: the number of objects that are detected in an image and count, at least 100; by default that of
            the config, of which COCO's 100 count. With more, AP is not COCO's, and AR100 becomes AR300, for example.
        evaluator: the library that computes the metrics; both give the same numbers.
        work_dir: the folder to write predictions, metrics (`evaluation.json`) and a report with pictures to.
        resume: keep the predictions in `work_dir`, which must be of the same evaluation, and add the missing ones.
        output: write COCO results to this path with ".bbox.json" and ".segm.json" added.
        format_only: write COCO results and compute no metrics; the annotation file needs no objects.
        show_dir: the folder to write each image to, with its ground truth and predictions drawn side by side.
        tune_thresholds: choose the score threshold of each class: "f1" for the best F1, or a precision in [0, 1] for
            the highest recall with at least this precision. They are written into the weights, a safetensors file that
            says which model it is for, and `Detector(..., score_threshold="tuned")` uses them.
        device: "auto" for a GPU if there is one, "cpu", "cuda", "cuda:1", ...; for an exported file, see `Detector`.

    Returns:
        The metrics in percent, with the data, software and hardware of the evaluation.

    Raises:
        UnknownModelError: No model has this name.
        InputError: Another argument cannot be used, or another run uses `work_dir`.
        DataError: The data cannot be used. The text lists every issue.
        FetchError: The weights cannot be downloaded.
        WeightsError: The weights are damaged, or of another model.
        OutputError: A file cannot be written. Predictions in `work_dir` are kept.
    """
    options = EvaluationOptions(**locals())  # the arguments by name
    if options.tune_thresholds is not None:
        check_tunable(options.weights or options.model)
    measured = open_model(options)
    for task in options.tasks or ():
        if task not in measured.tasks:
            raise InputError(f"tasks: this model does not predict {task!r}, only {' and '.join(measured.tasks)}")
    with process_group(measured.group_device) as place, contextlib.ExitStack() as stack:
        measured.start(place)
        root = options.work_dir or Path(from_main_process(lambda: stack.enter_context(tempfile.TemporaryDirectory())))
        folder = root.absolute()
        make_folder(folder, "work_dir")
        from_main_process(lambda: stack.enter_context(lock_folder(folder)))
        split = from_main_process(lambda: _check_data(measured, folder, options))
        ground_truth: CocoDict = json.loads(split.annotations.read_bytes()) if is_main_process() else {}
        file = measured.read()
        plan = from_main_process(lambda: make_plan(options, file, split, ground_truth, folder))
        if plan.remaining:
            measured.detect(plan)
        barrier()
        return from_main_process(lambda: _measure(plan, ground_truth, measured, options))


def _check_data(measured: EvaluatedModel, folder: Path, options: EvaluationOptions) -> CheckedSplit:
    if options.annotations is not None:
        set_files(measured.cfg.val_dataloader.dataset, options.annotations, options.images)
    with progress_bar("checking images") as progress:
        split = prepare_splits(
            measured.cfg,
            options.data_root,
            folder / "annotations",
            ("val",),
            ignored=UNREADABLE if options.skip_missing else (),
            with_objects=not options.format_only,
            with_masks="segm" in (options.tasks or measured.tasks),
            progress=progress,
        )["val"]
    if options.show_dir and options.show_dir.resolve() == split.images.resolve():
        raise InputError(
            f"show_dir: {options.show_dir} is the folder of the images, which would be overwritten: choose another"
        )
    return split


def _measure(plan: Plan, ground_truth: CocoDict, measured: EvaluatedModel, options: EvaluationOptions) -> Evaluation:
    """Compare the predictions with the ground truth in one pass, and write the files that the options name."""
    tasks = options.tasks or measured.tasks
    start = time.perf_counter()
    limit = options.max_detections or MAX_DETECTIONS
    metrics = None
    if not options.format_only:
        metrics = CocoMetrics(ground_truth, tasks, plan.image_ids, options.evaluator, limit)
    errors = ErrorAnalysis(ground_truth) if metrics and (options.work_dir or options.show_dir) else None
    matching = Matching(ground_truth) if metrics and (options.work_dir or options.tune_thresholds is not None) else None
    num_images = 0
    detecting = 0.0
    with coco_results_files(options.output, tasks) as write_results:
        for image_id, seconds, predictions in read_predictions(plan.folder, plan.image_ids):
            num_images += 1
            detecting += seconds / get_world_size()
            write_results(predictions)
            if metrics:
                metrics.add(predictions)
            if matching:
                matching.add(image_id, predictions)
            if errors:
                comparison = errors.add(image_id, predictions)
                if options.show_dir:
                    save_comparison(options.show_dir, plan.images, comparison, errors.classes)
        if num_images < len(plan.image_ids):
            raise InputError(
                f"{plan.folder}: the predictions for {len(plan.image_ids) - num_images:,} of "
                f"{len(plan.image_ids):,} images are missing: all processes need to see the same work_dir"
            )
    scores = metrics.compute() if metrics else {}
    matches = matching.finish() if matching else None
    thresholds = None
    if matches and options.tune_thresholds is not None:
        thresholds = tune_thresholds(matches, options.tune_thresholds)
        write_thresholds(Path(plan.weights["path"]), plan.classes, thresholds)
    evaluation = Evaluation(
        metrics={task: score.metrics for task, score in scores.items()},
        per_class={task: score.per_class for task, score in scores.items()},
        num_images=num_images,
        limit=options.limit,
        amp=options.amp,
        max_detections=limit,
        skipped=plan.skipped,
        weights=plan.weights,
        annotations=plan.annotations,
        seconds={"detecting": detecting, "measuring": time.perf_counter() - start},
        processes=get_world_size(),
        device=measured.device_name,
        runtime=measured.runtime,
        versions=versions(),
        thresholds=None if thresholds is None else {name: each._asdict() for name, each in thresholds.items()},
    )
    if errors and matches and options.work_dir:
        types = compute_error_types(matches)
        evaluation.write(options.work_dir, errors.to_json(types))
        precision = {task: score.precision for task, score in scores.items()}
        write_report(options.work_dir, evaluation, precision, errors, types, matches, plan.images)
    return evaluation
