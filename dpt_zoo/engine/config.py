"""What is trained, and how: a recipe file, or a detector of the zoo and what fine-tunes it, as one config."""

import argparse
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction

from ..data.checks import CheckedSplit
from ..data.splits import Split
from ..errors import InputError
from ..manifest.records import data_path, get_detector_info
from ..models.factory import set_num_classes

WARM_UP = 500
"""Iterations over which the learning rate rises, at most: the authors' number."""


def load_config(recipe: str | Path) -> Config:
    """Read a recipe: a config file, from the current folder or the project's own, or the one of a zoo's detector.

    Raises:
        UnknownModelError: it is neither.
        InputError: the file is no config that trains a detector.
    """
    if not str(recipe).endswith(".py"):
        path = get_detector_info(str(recipe)).config_path
    elif not (path := Path(recipe).expanduser()).is_file():
        path = data_path(str(recipe))
    if not path.is_file():
        raise InputError(f"{recipe}: there is no such config: `dpt-zoo info NAME` shows where a model's own is")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # whatever the file does
        raise InputError(f"{recipe}: this config cannot be read: {type(error).__name__}: {error}") from error
    missing = [key for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper") if key not in cfg]
    if missing:
        raise InputError(f"{recipe}: this config trains no detector: it lacks {', '.join(missing)}")
    return cfg


def set_data(cfg: Config, data: Mapping[Split, CheckedSplit]) -> None:
    """Have a recipe take its data, and with them the model's classes, from checked COCO annotation files.

    A recipe that gets nothing to validate with trains only.
    """
    for part, check in data.items():
        dataset = cfg[f"{part}_dataloader"].dataset
        dataset.update(data_root="", ann_file=str(check.annotations), data_prefix={"img": f"{check.images}/"})
        dataset.metainfo = {"classes": tuple(check.classes)}
        set_num_classes(cfg.model, len(check.classes))
    if "val" in data:
        # "gpu" is through memory, on CPUs too; "cpu" would be through files in the current folder.
        cfg.val_evaluator.update(ann_file=str(data["val"].annotations), collect_device="gpu")
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    else:
        for name in ("val", "test"):
            cfg.update({f"{name}_dataloader": None, f"{name}_evaluator": None, f"{name}_cfg": None})
        cfg.default_hooks.checkpoint.save_best = None
    if "train" in data and data["train"].num_rle_masks:
        _keep_rle_masks(cfg.train_dataloader.dataset)


def start_from(cfg: Config, weights: str | Path) -> None:
    """Have a recipe start from a detector's weights instead of the backbone's alone."""
    cfg.model.backbone.init_cfg = None
    _add_hook(cfg, type="StartingWeightsHook", weights=str(weights))


def fine_tune(cfg: Config, epochs: int, num_batches: int) -> None:
    """Suit a recipe to weights that know objects already and to few images, `num_batches` in an epoch.

    A quarter of its learning rate, since a step sees few images where the recipe's saw sixteen; a warm-up of at most a
    tenth of the run; then down along a cosine.
    """
    cfg.train_cfg.max_epochs = epochs
    cfg.optim_wrapper.optimizer.lr /= 4
    cfg.optim_wrapper.clip_grad = {"max_norm": 10.0}
    warm_up = max(2, min(WARM_UP, epochs * num_batches // 10))
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": warm_up},
        {"type": "CosineAnnealingLR", "by_epoch": True, "convert_to_iter_based": True},
    ]


def set_epochs(cfg: Config, epochs: int) -> None:
    """Have a recipe train for so many epochs, its learning rate falling after the same parts of them."""
    for scheduler in cfg.param_scheduler:
        if "milestones" in scheduler:
            scheduler.milestones = [round(each * epochs / cfg.train_cfg.max_epochs) for each in scheduler.milestones]
    cfg.train_cfg.max_epochs = epochs


def scale_learning_rate(cfg: Config, images_per_step: int) -> None:
    """Multiply the learning rate by the images in a step over those that the recipe's rate is for (1706.02677)."""
    cfg.optim_wrapper.optimizer.lr *= images_per_step / cfg.auto_scale_lr.base_batch_size


def set_workers(cfg: Config, workers: int) -> None:
    """Have so many processes load data, beside each that computes."""
    for loader in _loaders(cfg):
        loader.update(num_workers=workers, persistent_workers=workers > 0)


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings as MMEngine's tools take them: `model.backbone.size=small`, `data.scale=(640,480)`, ...

    Raises:
        InputError: one is not of the form KEY=VALUE.
    """
    for pair in pairs:
        if not re.fullmatch(r"[\w.]+=.+", pair, re.DOTALL):
            raise InputError(f"cfg_options: {pair!r} is not of the form KEY=VALUE")
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--pairs", *pairs]).pairs


def merge(cfg: Config, changes: Mapping[str, Any]) -> None:
    """Change settings of a recipe, by their path: `{"model.backbone.size": "small"}`.

    Raises:
        InputError: a path does not go through dicts and lists.
    """
    try:
        cfg.merge_from_dict(dict(changes))
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise InputError(f"cfg_options: {error}") from error


def use_amp(cfg: Config) -> None:
    """Have a recipe compute in half precision where that is safe: bfloat16 on a GPU that has it, float16 on others.

    Raises:
        InputError: there is no GPU.
    """
    _require_gpu()
    dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype=dtype)


def use_amp_in_tests(cfg: Config) -> None:
    """Have a recipe's tests compute in half precision, float16, where that is safe.

    Raises:
        InputError: there is no GPU.
    """
    _require_gpu()
    cfg.test_cfg.fp16 = True


def keep_average(cfg: Config) -> None:
    """Have a recipe validate and keep an exponential average of the weights (MMEngine's EMAHook)."""
    _add_hook(cfg, type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.0005, gamma=500)


def write_tensorboard(cfg: Config) -> None:
    """Have a recipe write TensorBoard's files, besides text and JSON lines.

    Raises:
        InputError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard is not installed: pip install tensorboard")
    cfg.visualizer.vis_backends = [*cfg.visualizer.vis_backends, {"type": "TensorboardVisBackend"}]


def report_progress(cfg: Config) -> None:
    """Have a recipe tell on standard error how far it is."""
    _add_hook(cfg, type="ProgressHook")


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise InputError("amp needs a GPU to train or to evaluate: run without it")


def _keep_rle_masks(dataset: ConfigDict) -> None:
    """Have masks that are RLE learned, too: with `poly2mask=False`, MMDetection leaves their objects out."""
    for transform in dataset.pipeline:
        if transform.type == "LoadAnnotations":
            transform.pop("poly2mask", None)


def _add_hook(cfg: Config, **settings: Any) -> None:
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), settings]


def _loaders(cfg: Config) -> list[ConfigDict]:
    return [cfg[name] for name in ("train_dataloader", "val_dataloader", "test_dataloader") if cfg.get(name)]
