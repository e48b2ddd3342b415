"""Load configs, and change them for training and evaluation."""

import argparse
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from ..data.checks import CheckedSplit
from ..data.splits import Split
from ..errors import InputError
from ..manifest.locations import is_location
from ..manifest.records import data_path, get_detector_info
from ..models.factory import find_num_classes, set_num_classes
from ..models.metadata import described_config
from ..utils.devices import find_device
from ..utils.files import expand_user
from ..weights.store import find_weights, read_metadata

RUNNER_SETTINGS = {
    *inspect.signature(Runner.__init__).parameters,
    *("activation_checkpointing", "compile", "efficient_conv_bn_eval", "find_unused_parameters"),
    *("model_wrapper_cfg", "sync_bn"),
} - {"self", "cfg"}
"""The settings at the top of a config that MMEngine's Runner reads."""
EPOCH_SETTINGS = ("milestones", "begin", "end", "T_max")
"""The settings of a scheduler that are numbers of epochs."""


def load_config(model: str | Path) -> Config:
    """Load a config file, or the config of a detector.

    Args:
        model: a detector's name; the path of a `.py` file, relative to the current or the project's folder; or weights
            that say which model they are for, see `create_model`.

    Raises:
        UnknownModelError: No detector has this name.
        InputError: The file does not exist, cannot be read, or is not a config to train a detector with.
        FetchError, OutputError, WeightsError: The weights cannot be fetched, stored or used.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model must be a config file or a model's name, not {type(model).__name__}")
    is_config = str(model).endswith(".py")
    if not is_config and is_location(model):
        return described_config(read_metadata(model))
    if not is_config:
        path = get_detector_info(str(model)).config_path
    elif not (path := expand_user(model)).is_file():
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
    set_paths(cfg, data)
    for split, checked in data.items():
        cfg[f"{split}_dataloader"].dataset.metainfo = {"classes": tuple(checked.classes)}
        set_num_classes(cfg.model, len(checked.classes))
    if "val" in data:
        for evaluator in _listed(cfg.val_evaluator):
            evaluator.collect_device = "gpu"  # in memory, on CPUs too; "cpu" would use files in the current folder
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    else:
        for name in ("val", "test"):
            cfg.update({f"{name}_dataloader": None, f"{name}_evaluator": None, f"{name}_cfg": None})
        if (cfg.get("default_hooks") or {}).get("checkpoint"):
            cfg.default_hooks.checkpoint.save_best = None
    if "train" in data and data["train"].num_rle_masks:
        for transform in cfg.train_dataloader.dataset.pipeline:
            if transform.type == "LoadAnnotations":
                transform.pop("poly2mask", None)  # at False, MMDetection drops objects with an RLE mask


def set_paths(cfg: Config, data: Mapping[Split, CheckedSplit]) -> None:
    """Set the files of the data."""
    for split, checked in data.items():
        set_files(cfg[f"{split}_dataloader"].dataset, checked.annotations, checked.images)
        for evaluator in _listed(cfg.val_evaluator) if split == "val" else ():
            if "ann_file" in evaluator or evaluator.type == "CocoMetric":
                evaluator.ann_file = str(checked.annotations)


def set_files(dataset: Any, annotations: object, images: object) -> None:
    """Set the path of the `annotations` file and the folder of its `images` in the config of a `dataset`."""
    dataset.update(data_root="", ann_file=str(annotations), data_prefix={"img": f"{images}/"})


def set_starting_weights(cfg: Config, weights: str | Path, *, is_default: bool = False) -> None:
    """Start training from a detector's weights instead of other weights that the config names, such as ImageNet's.

    Args:
        weights: a model's name, a path, `https://...` or `hf://org/repo/file`.
        is_default: whether they are the model's own, because nobody gave others.
    """
    cfg.model.backbone.init_cfg = cfg.load_from = None
    path = expand_user(weights)
    if "://" in str(weights):  # its user, password or query may be secret, and the config is written
        path = find_weights(weights)
    weights = str(path.absolute() if path.is_file() else weights)
    add_hook(cfg, type="StartingWeightsHook", weights=weights, is_default=is_default)


def set_fine_tuning_schedule(cfg: Config, epochs: int, num_steps: int) -> None:
    """Set a schedule of `epochs` with `num_steps` in all, for a trained model.

    The learning rate rises over a tenth of the run, at most the authors' 500 iterations, then falls along a cosine.
    """
    cfg.train_cfg.max_epochs = epochs
    cfg.optim_wrapper.clip_grad = {"max_norm": 10.0}
    warm_up = max(2, min(500, num_steps // 10))
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": warm_up},
        {"type": "CosineAnnealingLR", "by_epoch": True, "convert_to_iter_based": True},
    ]


def set_scale(cfg: Config, scale: tuple[int, int]) -> None:
    """Resize images in training and detection to at most `scale`, the longer and shorter side in pixels.

    Training at several scales keeps their ratios; the largest becomes `scale`.
    """
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if cfg.get(name):
            cfg[name].dataset.pipeline = _resize(cfg[name].dataset.pipeline, scale)


def _resize(pipeline: Sequence[Any], scale: tuple[int, int]) -> list[Any]:
    pipeline = list(pipeline)
    for transform in pipeline:
        if transform.type == "RandomChoiceResize":
            largest = max(min(each) for each in transform.scales)
            transform.scales = [(scale[0], round(scale[1] * min(each) / largest)) for each in transform.scales]
        elif transform.type == "Resize":
            transform.scale = scale
    if not any("Resize" in transform.type for transform in pipeline):
        place = [transform.type for transform in pipeline].index("PackDetInputs")
        pipeline.insert(place, {"type": "Resize", "scale": scale, "keep_ratio": True})
    return pipeline


def set_num_epochs(cfg: Config, epochs: int) -> None:
    """Set the number of epochs, and scale the schedule of the learning rate to it.

    Raises:
        InputError: The config counts iterations instead of epochs.
    """
    if "max_epochs" not in cfg.train_cfg:
        raise InputError(f"epochs: the train_cfg of {cfg.filename} has no max_epochs: leave epochs out")

    def scale(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [scale(each) for each in value]
        return round(value * epochs / cfg.train_cfg.max_epochs) if isinstance(value, int) else value

    for scheduler in _listed(cfg.get("param_scheduler") or []):
        if scheduler.get("by_epoch", True):
            scheduler.update({key: scale(scheduler[key]) for key in EPOCH_SETTINGS if key in scheduler})
    cfg.train_cfg.max_epochs = epochs


def set_workers(cfg: Config, workers: int) -> None:
    """Set the number of data loading processes for each training or evaluation process."""
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if cfg.get(name):
            cfg[name].update(num_workers=workers, persistent_workers=workers > 0)


def set_patience(cfg: Config, patience: int) -> None:
    """Stop training after `patience` validations in a row without better weights.

    Raises:
        InputError: There is nothing to validate with.
    """
    if not cfg.get("val_dataloader"):
        raise InputError("patience needs data to validate with: add a split val, or leave patience out")
    cfg.default_hooks.checkpoint.patience = patience


def freeze(cfg: Config, parts: Sequence[str]) -> None:
    """Do not train these parts of the model, such as "backbone", "neck" or "rpn_head".

    Raises:
        InputError: The model has no such part.
    """
    modules = (name for name, part in cfg.model.items() if isinstance(part, Mapping) and "type" in part)
    known = [name for name in modules if name != "data_preprocessor"]
    for part in parts:
        if part not in known:
            raise InputError(f"freeze: the model has no part {part!r}: choose among {', '.join(known)}")
        if part == "backbone":  # also saves its backward pass
            cfg.model.backbone.frozen_stages = 4
        else:
            factors = {f"{part}.": {"lr_mult": 0.0, "decay_mult": 0.0}}
            merge_cfg_options(cfg, {"optim_wrapper.paramwise_cfg": {"custom_keys": factors}})


def balance_classes(cfg: Config, data: CheckedSplit) -> None:
    """Repeat the images of rare classes in each epoch (repeat factor sampling, arXiv 1908.03195).

    A class is rare if it is in fewer than half as many images as the median class.
    """
    threshold = np.median([*data.class_images.values()]) / 2 / data.num_images
    cfg.train_dataloader.dataset = {
        "type": "ClassBalancedDataset",
        "oversample_thr": float(threshold),
        "dataset": cfg.train_dataloader.dataset,
    }


def use_amp(cfg: Config, device: str | torch.device | None = "auto", *, in_tests: bool = False) -> None:
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
    """Add a hook to MMEngine's Runner by its `type` and its arguments, unless the config has one of this type.

    Raises:
        InputError: The hooks in the config are not a list of dicts.
    """
    hooks = cfg.get("custom_hooks") or []
    if not isinstance(hooks, list | tuple) or not all(isinstance(hook, dict) and "type" in hook for hook in hooks):
        raise InputError(f"custom_hooks must be a list of dicts with a type, not {hooks!r}")
    if settings["type"] not in [hook["type"] for hook in hooks]:
        cfg.custom_hooks = [*hooks, settings]


def check_training_config(cfg: Config) -> None:
    """Check a complete config for settings that contradict each other, and adapt the number of loading processes.

    Raises:
        InputError: The run would not start from the weights that the config names, would write no checkpoint, or has
            fewer classes than its data.
    """
    for name in ("train_dataloader", "val_dataloader"):
        if (loader := cfg.get(name)) and not loader.get("num_workers"):
            loader.persistent_workers = False  # PyTorch refuses to keep no process
    hooks = {hook["type"]: hook for hook in cfg.get("custom_hooks") or []}
    if "StartingWeightsHook" in hooks:
        weights = hooks["StartingWeightsHook"]["weights"]
        for name, part in (("model", cfg.model), ("model.backbone", cfg.model.get("backbone") or {})):
            if part.get("init_cfg"):
                raise InputError(f"{name}.init_cfg would have no effect: training starts from {weights}: leave one out")
    if not (cfg.get("default_hooks") or {}).get("checkpoint"):
        raise InputError("default_hooks.checkpoint is missing: without it, no weights are written")
    classes = (cfg.train_dataloader.dataset.get("metainfo") or {}).get("classes", ())
    for name, num_classes in find_num_classes(cfg.model).items():
        if num_classes < len(classes):
            raise InputError(f"{name}.num_classes is {num_classes}, but the data has {len(classes)} classes")


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
    try:
        return parser.parse_args(["--pairs", *pairs]).pairs
    except AssertionError as error:
        raise InputError(f"cfg_options: {error}") from error


def merge_cfg_options(cfg: Config, cfg_options: Mapping[str, Any]) -> None:
    """Change settings by their paths, such as `{"model.backbone.size": "small"}`.

    Hooks in the config are kept if a setting replaces the list of hooks.

    Raises:
        InputError: A path leads through a value that is neither a dict nor a list, or nothing reads a setting.
    """
    for key in cfg_options:
        if str(key).partition(".")[0] not in RUNNER_SETTINGS:
            raise InputError(
                f"cfg_options: {key!r} would have no effect: it is not a setting of a run, such as "
                "model.backbone.size, train_dataloader.batch_size or optim_wrapper.optimizer.lr"
            )
    hooks = list(cfg.get("custom_hooks") or [])
    try:
        for key, value in cfg_options.items():
            _make_dicts(cfg, key.split(".") if isinstance(value, Mapping) else key.split(".")[:-1])
        cfg.merge_from_dict(_plain(cfg_options))
    except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
        raise InputError(f"cfg_options: {error}") from error
    for hook in hooks:
        add_hook(cfg, **hook)


def _make_dicts(owner: Any, names: Sequence[str]) -> None:
    """Replace None by an empty dict on a path, because MMEngine does not merge a dict with None."""
    for name in names:
        if not isinstance(owner, Config | dict) or name not in owner:
            return
        if owner[name] is None:
            owner[name] = {}
        owner = owner[name]


def _plain(value: Any) -> Any:
    """Copy a setting, with values that a config file can contain instead of NumPy's and of paths."""
    match value:
        case Mapping():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(_plain, value))
        case np.generic() | np.ndarray():
            return value.tolist()
        case os.PathLike():
            return os.fspath(value)
    return value


def _listed(settings: Any) -> list[Any]:
    """Return settings of which a config contains one or a list, as a list."""
    return list(settings) if isinstance(settings, list | tuple) else [settings]
