"""Load configs, and change them for training and evaluation."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction

from ..data.checks import CheckedSplit
from ..data.splits import Split
from ..errors import InputError
from ..manifest.records import data_path, get_detector_info
from ..models.factory import set_num_classes
from ..utils.devices import find_device


def load_config(model: str | Path) -> Config:
    """Load a config file, or the config of a detector of the zoo.

    Args:
        model: a detector's name, or the path of a `.py` file, relative to the current or the project's folder.

    Raises:
        UnknownModelError: No detector has this name.
        InputError: The file does not exist, cannot be read, or is not a config to train a detector with.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model must be a config file or a model's name, not {type(model).__name__}")
    if not str(model).endswith(".py"):
        path = get_detector_info(str(model)).config_path
    elif not (path := Path(model).expanduser()).is_file():
        path = data_path(str(model))
    if not path.is_file():
        raise InputError(f"{model}: there is no such config: `dpt-zoo info NAME` shows the config of a model")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python code
        raise InputError(f"{model}: this config cannot be read: {type(error).__name__}: {error}") from error
    missing = [key for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper") if key not in cfg]
    if missing:
        raise InputError(f"{model}: this config cannot train a detector: {', '.join(missing)} missing")
    return cfg


def set_data(cfg: Config, data: Mapping[Split, CheckedSplit]) -> None:
    """Set the data and the model's classes. Without a "val" split, validation and tests are switched off."""
    for split, checked in data.items():
        dataset = cfg[f"{split}_dataloader"].dataset
        dataset.update(data_root="", ann_file=str(checked.annotations), data_prefix={"img": f"{checked.images}/"})
        dataset.metainfo = {"classes": tuple(checked.classes)}
        set_num_classes(cfg.model, len(checked.classes))
    if "val" in data:
        # "gpu" collects results in memory, on CPUs too; "cpu" would use files in the current folder.
        cfg.val_evaluator.update(ann_file=str(data["val"].annotations), collect_device="gpu")
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    else:
        for name in ("val", "test"):
            cfg.update({f"{name}_dataloader": None, f"{name}_evaluator": None, f"{name}_cfg": None})
        cfg.default_hooks.checkpoint.save_best = None
    if "train" in data and data["train"].num_rle_masks:
        for transform in cfg.train_dataloader.dataset.pipeline:
            if transform.type == "LoadAnnotations":
                transform.pop("poly2mask", None)  # at False, MMDetection drops objects with an RLE mask


def set_starting_weights(cfg: Config, weights: str | Path) -> None:
    """Start training from a detector's weights instead of the backbone's ImageNet weights."""
    cfg.model.backbone.init_cfg = None
    add_hook(cfg, type="StartingWeightsHook", weights=str(weights))


def set_fine_tuning_schedule(cfg: Config, epochs: int, num_batches: int) -> None:
    """Set a schedule of `epochs` with `num_batches` each, for a trained model and few images.

    The learning rate is a quarter of the config's, since a step usually has fewer images than the config's 16. It
    rises over a tenth of the run, at most over the authors' 500 iterations, then falls along a cosine.
    """
    cfg.train_cfg.max_epochs = epochs
    cfg.optim_wrapper.optimizer.lr /= 4
    cfg.optim_wrapper.clip_grad = {"max_norm": 10.0}
    warm_up = max(2, min(500, epochs * num_batches // 10))
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": warm_up},
        {"type": "CosineAnnealingLR", "by_epoch": True, "convert_to_iter_based": True},
    ]


def set_num_epochs(cfg: Config, epochs: int) -> None:
    """Set the number of epochs, and scale the learning rate's milestones to it."""
    for scheduler in cfg.param_scheduler:
        if "milestones" in scheduler:
            scheduler.milestones = [round(each * epochs / cfg.train_cfg.max_epochs) for each in scheduler.milestones]
    cfg.train_cfg.max_epochs = epochs


def set_workers(cfg: Config, workers: int) -> None:
    """Set the number of data loading processes for each training or evaluation process."""
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if cfg.get(name):
            cfg[name].update(num_workers=workers, persistent_workers=workers > 0)


def use_amp(cfg: Config, device: str | torch.device = "auto", *, in_tests: bool = False) -> None:
    """Use mixed precision, in training or `in_tests`: float16 or, in training on a GPU that supports it, bfloat16.

    Raises:
        InputError: The device is not a GPU.
    """
    if find_device(device).type != "cuda":
        raise InputError("amp needs a GPU: run without it")
    if in_tests:
        cfg.test_cfg.fp16 = True
    else:
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype=dtype)


def add_hook(cfg: Config, **settings: Any) -> None:
    """Add a hook to MMEngine's Runner by its `type` and its arguments."""
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), settings]


def parse_cfg_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE settings as MMEngine's tools do: `model.backbone.size=small`, `data.scale=(640,480)`, ...

    Raises:
        InputError: A setting does not have this form.
    """
    for pair in pairs:
        if not re.fullmatch(r"[\w.]+=.+", pair, re.DOTALL):
            raise InputError(f"cfg_options: {pair!r} does not have the form KEY=VALUE")
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--pairs", *pairs]).pairs


def merge_cfg_options(cfg: Config, cfg_options: Mapping[str, Any]) -> None:
    """Change settings by their paths, such as `{"model.backbone.size": "small"}`.

    Raises:
        InputError: A path leads through a value that is neither a dict nor a list.
    """
    try:
        cfg.merge_from_dict(dict(cfg_options))
    except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
        raise InputError(f"cfg_options: {error}") from error
