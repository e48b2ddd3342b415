"""COCO's metrics of a detector, in one call."""

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, get_world_size
from torch import Tensor

from ..data.checks import CheckedSplit
from ..data.splits import prepare_splits
from ..engine import config as configs
from ..engine.distributed import process_group, runner_settings
from ..engine.runner import from_main_process, quiet_runner, unwrapped
from ..errors import InputError
from ..models.factory import set_num_classes
from ..utils.environment import device_name, versions
from ..utils.files import make_folder, open_atomic
from ..utils.progress import progress_bar
from ..weights.loading import load_weights
from ..weights.store import read_trusted_weights
from .error_analysis import find_mistakes
from .metrics import EVALUATORS, Evaluator, GroundTruth, Score, Task
from .plan import UNREADABLE, Plan, make_plan
from .predictions import Predictions, write_coco
from .report import write_report
from .result import RESULT, Evaluation
from .visualize import show


def evaluate(
    recipe: str | Path,
    weights: str | Path | None = None,
    *,
    tasks: Sequence[Task] | None = None,
    data_root: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    amp: bool = False,
    evaluator: Evaluator = "faster-coco-eval",
    work_dir: str | Path | None = None,
    resume: bool = False,
    out: str | Path | None = None,
    format_only: bool = False,
    show_dir: str | Path | None = None,
) -> Evaluation:
    """Measure a detector on the validation part of a data set, in this process or in all that torchrun started.

    Args:
        recipe: a config file, or the name of a zoo's detector.
        weights: a zoo's name, a path, `https://...` or `hf://org/repo/file`; by default those of the named detector.
        tasks: "bbox", "segm" or both; by default what the recipe measures.
        data_root: a folder of COCO, YOLO or Pascal VOC data; by default, what the recipe names.
        annotations, images: instead of it, a COCO annotation file and the folder of its images.
        limit: measure on so many images only, the first in the annotation file; at least 1.
        skip_missing: leave out images that are missing or unreadable instead of refusing the data.
        batch_size: images at a time, at least 1.
        workers: processes that load data, beside each that detects.
        amp: compute in half precision where that is safe.
        evaluator: the library that compares; the metrics are the same.
        work_dir: where to write what was found, the metrics (`evaluation.json`) and a report with pictures.
        resume: go on with what `work_dir` holds of the same evaluation.
        out: write what was found as COCO results, to this name with ".bbox.json" and ".segm.json" at its end.
        format_only: write them and measure nothing; the annotation file needs no objects.
        show_dir: where to write the images with the truth and what was found drawn on them.

    Raises:
        UnknownModelError, InputError: an argument cannot be used.
        DataError: the data cannot be used; the text lists what is wrong with them.
        FetchError, WeightsError: the weights cannot be had, or are another model's.
        OutputError: something cannot be written; what was found is kept in `work_dir`.
    """
    for name, value, least in (("limit", limit, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{name} must be a whole number from {least}, not {value!r}")
    if evaluator not in EVALUATORS:
        raise InputError(f"evaluator must be {' or '.join(EVALUATORS)}, not {evaluator!r}")
    if resume and work_dir is None:
        raise InputError("resume needs the work_dir that is to be gone on with")
    if format_only and (out is None or show_dir is not None):
        raise InputError("format_only writes COCO results and nothing else: it needs out, and no show_dir")
    cfg = configs.load_config(recipe)
    tasks = _choose_tasks(cfg, tasks)
    _choose_data(cfg, data_root, annotations, images)
    if batch_size is not None:
        cfg.test_dataloader.batch_size = batch_size
    if workers is not None:
        configs.set_workers(cfg, workers)
    if amp:
        configs.use_amp_in_tests(cfg)
    with process_group(), _folder(work_dir) as folder:
        check = from_main_process(
            lambda: _check(
                cfg,
                Path(data_root) if data_root else None,
                folder / "annotations",
                ignored=UNREADABLE if skip_missing else (),
                with_objects=not format_only,
                with_masks="segm" in tasks,
            )
        )
        if show_dir and Path(show_dir).resolve() == check.images.resolve():
            raise InputError(
                f"show_dir: {show_dir} is the images' folder, and they would be overwritten: choose another"
            )
        path, found = read_trusted_weights(weights or recipe)
        plan = from_main_process(lambda: make_plan(cfg, check, path, found, folder, limit=limit, resume=resume))
        if plan.left:
            _detect(cfg, plan, path, found.tensors)
        barrier()
        outputs = _Outputs(
            results=Path(out) if out else None,
            pictures=Path(show_dir) if show_dir else None,
            report=folder if work_dir else None,
        )
        facts = {"limit": limit, "amp": amp, "weights": {"path": str(path), "sha256": plan.weights_sha256}}
        return from_main_process(lambda: _conclude(plan, tasks, None if format_only else evaluator, outputs, facts))


@dataclass(frozen=True)
class _Outputs:
    """Where what is wanted is written: COCO results (the beginning of their names), pictures, a report."""

    results: Path | None
    pictures: Path | None
    report: Path | None


def _choose_tasks(cfg: Config, tasks: Sequence[Task] | None) -> list[Task]:
    """What is measured: by default what the recipe does."""
    told = cfg.test_evaluator.metric
    known: list[Task] = list(told) if isinstance(told, list | tuple) else [told]
    for task in tasks or ():
        if task not in known:
            raise InputError(f"tasks: this model has no {task!r}, it has {' and '.join(known)}")
    return list(tasks or known)


def _choose_data(
    cfg: Config, data_root: str | Path | None, annotations: str | Path | None, images: str | Path | None
) -> None:
    """Put an annotation file and its images into the recipe."""
    if (annotations is None) != (images is None) or (annotations is not None and data_root is not None):
        raise InputError("name the data by data_root, or by annotations and images together")
    if annotations is not None:
        paths = {"ann_file": str(annotations), "data_prefix": {"img": f"{images}/"}}
        cfg.val_dataloader.dataset.update(data_root="", **paths)


@contextlib.contextmanager
def _folder(work_dir: str | Path | None) -> Iterator[Path]:
    """The folder of the run, the same for all processes; without a `work_dir` it goes when the block ends."""
    if work_dir is None:
        with tempfile.TemporaryDirectory() as own:
            yield Path(from_main_process(lambda: own))
        return
    folder = Path(work_dir).absolute()
    make_folder(folder, "work_dir")
    yield folder


def _check(cfg: Config, data_root: Path | None, work_dir: Path, **options: Any) -> CheckedSplit:
    """Find and check the data; the main process alone does."""
    with progress_bar("checking images") as progress:
        return prepare_splits(cfg, data_root, work_dir, ("val",), progress=progress, **options)["val"]


def _detect(cfg: Config, plan: Plan, path: Path, state: Mapping[str, Tensor]) -> None:
    """Look for objects in the images that are left, and write what is found."""
    cfg.test_dataloader.sampler = {"type": "DefaultSampler", "shuffle": False, "round_up": False}
    cfg.test_dataloader.dataset.update(
        data_root="",
        ann_file=str(plan.annotations),
        data_prefix={"img": f"{plan.images}/"},
        metainfo={"classes": plan.classes},
        indices=plan.left,
    )
    cfg.test_evaluator = {"type": "PredictionsWriter", "folder": str(plan.folder), "category_ids": plan.category_ids}
    configs.report_progress(cfg)
    set_num_classes(cfg.model, len(plan.classes))
    cfg.model.backbone.init_cfg = None
    cfg.work_dir = str(plan.folder.parent / "log")
    cfg.merge_from_dict(runner_settings())
    with quiet_runner(cfg) as runner:
        load_weights(unwrapped(runner.model), state, path, "the recipe")
        runner.test()


def _conclude(
    plan: Plan, tasks: Sequence[Task], evaluator: Evaluator | None, outputs: _Outputs, facts: Mapping[str, Any]
) -> Evaluation:
    """Compare what was found with what is there, unless there is no evaluator, and write what is wanted."""
    results = Predictions(plan.folder)
    missing = sum(image_id not in results for image_id in plan.image_ids)
    if missing:
        raise InputError(
            f"{plan.folder}: of {missing:,} of {len(plan.image_ids):,} images nothing was written here: "
            "all processes need to see the same work_dir"
        )
    if outputs.results:
        for task in tasks:
            path = outputs.results.with_name(f"{outputs.results.name}.{task}.json")
            write_coco(path, results.of_images(plan.image_ids), task)
    detecting = sum(results.seconds[image_id] for image_id in plan.image_ids) / get_world_size()
    start = time.perf_counter()
    scores = _compare(plan, results, tasks, evaluator) if evaluator else {}
    evaluation = Evaluation(
        metrics={task: score.metrics for task, score in scores.items()},
        per_class={task: score.per_class for task, score in scores.items()},
        num_images=len(plan.image_ids),
        skipped=plan.skipped,
        annotations={"path": str(plan.annotations), "sha256": plan.annotations_sha256},
        seconds={"detecting": detecting, "measuring": time.perf_counter() - start},
        processes=get_world_size(),
        device=device_name(),
        versions=versions(),
        **facts,
    )
    if evaluator and (outputs.report or outputs.pictures):
        truth = json.loads(plan.annotations.read_bytes())
        if outputs.pictures:
            show(outputs.pictures, plan.images, truth, results.of_images(plan.image_ids))
        if outputs.report:
            mistakes = find_mistakes(truth, results.of_images(plan.image_ids))
            content = {**dataclasses.asdict(evaluation), "mistakes": mistakes.to_json()}
            with open_atomic(outputs.report / RESULT) as file:
                file.write(f"{json.dumps(content, indent=2)}\n".encode())
            precision = {task: score.precision for task, score in scores.items()}
            write_report(outputs.report, content, precision, mistakes, plan.images)
    return evaluation


def _compare(plan: Plan, results: Predictions, tasks: Sequence[Task], evaluator: Evaluator) -> dict[Task, Score]:
    truth = GroundTruth(plan.annotations, evaluator, plan.image_ids)
    scores = {}
    for task in tasks:
        found = (record for _, records in results.of_images(plan.image_ids) for record in records)
        scores[task] = truth.compare(found, task)
    return scores
