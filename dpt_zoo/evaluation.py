"""COCO's figures of a detector, in one call."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from . import recipe as recipes
from .data.checks import Check
from .data.parts import check_parts
from .launch import process_group, runner_settings
from .progress import count_on_terminal
from .runner import from_main_process, load_detector, quiet_runner

FIGURES = {"mAP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "APs": "mAP_s", "APm": "mAP_m", "APl": "mAP_l"}
"""COCO's figures, by the names that the manifest and MMDetection have for them."""


Figures = dict[str, dict[str, float | None]]


def evaluate(
    recipe: str | Path,
    weights: str | Path | None = None,
    *,
    kinds: Sequence[str] | None = None,
    data_root: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Figures:
    """Measure a detector on the validation part of a data set, in this process or in all that torchrun started.

    Args:
        recipe: a config file, or the name of a zoo's detector.
        weights: a zoo's name, a path, `https://...` or `hf://org/repo/file`; by default those of the named detector.
        kinds: "bbox", "segm" or both; by default what the recipe measures.
        data_root: a folder of COCO, YOLO or Pascal VOC data; by default, what the recipe names.
        batch_size: images at a time, at least 1.
        workers: processes that load data.

    Returns:
        COCO's average precisions in percent, by "bbox" and "segm", then "mAP", "AP50", ...; None for sizes that the
        data have no objects of.

    Raises:
        UnknownModelError, InputError: an argument cannot be used.
        DataError: the data cannot be used; the text lists what is wrong with them.
        FetchError, WeightsError: the weights cannot be had, or are another model's.
    """
    cfg = recipes.read_recipe(recipe)
    with process_group(), tempfile.TemporaryDirectory() as folder:
        data = from_main_process(lambda: _check(cfg, Path(data_root) if data_root else None, Path(folder)))
        recipes.set_data(cfg, {"val": data})
        if kinds is not None:
            cfg.test_evaluator.metric = list(kinds)
        if batch_size is not None:
            cfg.test_dataloader.batch_size = batch_size
        if workers is not None:
            recipes.set_workers(cfg, workers)
        recipes.report_progress(cfg)
        cfg.work_dir = folder
        cfg.merge_from_dict(runner_settings())
        with quiet_runner(cfg) as runner:
            load_detector(runner, weights or str(recipe))
            metrics = runner.test()
        kinds = [cfg.test_evaluator.metric] if isinstance(cfg.test_evaluator.metric, str) else cfg.test_evaluator.metric
    # If nothing was found, MMDetection gives no figures.
    found = {kind: {name: metrics.get(f"coco/{kind}_{key}", 0.0) for name, key in FIGURES.items()} for kind in kinds}
    return {kind: {name: _percent(value) for name, value in row.items()} for kind, row in found.items()}


def _percent(precision: float) -> float | None:
    return None if precision < 0 else round(100 * precision, 1)


def _check(cfg: Config, data_root: Path | None, work_dir: Path) -> Check:
    """Find and check the data; the main process alone does."""
    with count_on_terminal("checking images") as report:
        return check_parts(cfg, data_root, work_dir, ("val",), report=report)["val"]
