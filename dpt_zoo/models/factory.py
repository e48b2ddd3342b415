"""Create MMDetection models of the zoo by name, with their weights."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import mmlab  # before mmdet

# isort: split
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS

from ..errors import InputError, WeightsError
from ..manifest.locations import is_location
from ..manifest.records import get_detector_info, read_manifest
from ..utils.devices import find_device
from ..utils.torch_defaults import torch_defaults
from ..utils.validation import check_integer, check_not_empty
from ..weights.loading import load_weights
from ..weights.metadata import find_metadata, require_metadata
from ..weights.reading import Weights
from ..weights.store import read_trusted_weights
from .metadata import described_config

logger = logging.getLogger(__name__)

DETECTOR_ATTRIBUTES = ("cfg", "dataset_meta", "data_preprocessor", "backbone", "neck")
CLASS_LAYERS = {"retina_cls", "fc_cls", "fc_reg", "conv_logits"}  # their shapes depend on the number of classes
CLASSIFYING_LAYERS = {
    "roi_head.bbox_head.fc_cls": 1,
    "roi_head.bbox_head.0.fc_cls": 1,
    "bbox_head.fc_cls": 1,
    "bbox_head.atss_cls": 0,
    "bbox_head.conv_cls": 0,
}
"""The layers that classify in Faster and Mask R-CNN, their cascades, DETR, ATSS and FCOS; 1 if it has a background."""


def create_model(
    name: str | Path,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device | None = "cpu",
) -> nn.Module:
    """Create a detector of the zoo: a plain MMDetection model in eval mode, with `.cfg` and `.dataset_meta`.

    MMDetection's functions accept it, such as `mmdet.apis.inference_detector(model, image)`. Its pickle can be loaded
    in a process that has not imported this package yet.

    Args:
        name: one of `list_models(include_demos=True)`; or the path or URL of a weights file that says which model it is
            for, as `train`, `dpt-zoo convert` and `dpt-zoo publish` write it, or `hf://org/repo` for a published one.
        pretrained: load weights; False initialises the model for training instead. Only for a name.
        weights: a file to use instead of the zoo's, with its class names: a path, `https://...` or `hf://org/repo/file`.
            Only for a name.
        num_classes: number of object classes, at least 1; by default that of the weights. If the weights have another
            number, the layers that depend on it are newly initialised, with a warning in the log.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" or None for a GPU if there is one.

    Raises:
        UnknownModelError: No model has this name.
        InputError: An argument is invalid.
        FetchError: The weights cannot be fetched.
        OutputError: The fetched weights cannot be stored.
        WeightsError: The weights cannot be read, or belong to another model.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"name must be a model's name or a weights file, not {type(name).__name__}")
    if name in read_manifest().classifiers:
        raise InputError(f"{name} is a classifier: import dpt_zoo.models, then call timm.create_model({name!r})")
    target = find_device(device)
    if num_classes is not None:
        check_integer("num_classes", num_classes, 1)
    if weights is not None and not pretrained:
        raise InputError("weights= and pretrained=False exclude each other: leave one out")
    check_not_empty("weights", weights)
    is_file = is_location(name)
    if is_file and (weights is not None or not pretrained):
        raise InputError(f"{name} is a weights file: weights= and pretrained=False are only for a name")
    cfg, title, path, loaded = _open_file(name) if is_file else _open_record(name, weights, pretrained)
    num_known = _find_num_classes(cfg, loaded, path)
    num_classes = int(num_classes or num_known)  # a NumPy integer could not be written into a config
    with torch_defaults():
        if loaded and num_classes == num_known:
            with _ParametersOnMeta():
                model: Any = build_detector(cfg, num_classes)
            load_weights(model, loaded.tensors, path, title)
        else:
            model = build_detector(cfg, num_classes)
            _init_weights(model)
            if loaded:
                left_out = load_weights(model, loaded.tensors, path, title, resized=find_class_tensors(model))
                logger.warning("%s: newly initialised for %d classes: %s", title, num_classes, ", ".join(left_out))
        is_own = loaded and (is_file or weights is not None) and num_classes == num_known
        model.dataset_meta = _dataset_meta(cfg, num_classes, loaded.meta if loaded and is_own else {}, path)
        return model.to(target).eval()


def check_detector(model: object, **arguments: object) -> None:
    """Check that a model is one from `create_model`, and that no argument is given that is only for a name.

    Args:
        model: the model.
        arguments: values by name; those that are not given are None.

    Raises:
        InputError: The model is something else, or an argument is given.
    """
    if not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in DETECTOR_ATTRIBUTES):
        given = f"an object of type {type(model).__name__}"
        raise InputError(f"model must be a name or a detector from dpt_zoo.create_model, not {given}")
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"{name} can be given only with a model's name: pass it to dpt_zoo.create_model instead")


def build_detector(cfg: Config, num_classes: int) -> nn.Module:
    """Build the detector of a config for `num_classes`; `cfg` becomes `.cfg`. It is not initialised for training."""
    set_num_classes(cfg.model, num_classes)
    mmlab.set_default_scope()
    backbone = {**cfg.model.backbone, "init_cfg": None}  # ImageNet weights are only for training
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS.build({**cfg.model, "backbone": backbone})
    model.cfg = cfg
    mmlab.make_portable(model)
    return model


def set_num_classes(model_cfg: Any, num_classes: int) -> None:
    """Set `num_classes` in the heads of `model_cfg`, the `model` of a config."""
    for head in _find_heads(model_cfg).values():
        head.num_classes = num_classes


def find_num_classes(model_cfg: Any) -> dict[str, int]:
    """Return `num_classes` of the heads of `model_cfg` that `set_num_classes` sets, by their paths in a config."""
    return {path: head.num_classes for path, head in _find_heads(model_cfg).items() if "num_classes" in head}


def _find_heads(model_cfg: Any) -> dict[str, Any]:
    """Return the configs of the heads that classify, by their paths in a config. A cascade has a list of them."""
    prefix, owner = ("model.roi_head", model_cfg.roi_head) if "roi_head" in model_cfg else ("model", model_cfg)
    heads: dict[str, Any] = {}
    for name in ("bbox_head", "mask_head"):
        match owner.get(name):
            case list(stages):
                heads |= {f"{prefix}.{name}.{index}": head for index, head in enumerate(stages)}
            case dict(head):
                heads[f"{prefix}.{name}"] = head
    return heads


def find_class_tensors(model: nn.Module) -> list[str]:
    """Return the names of the weights and biases in `CLASS_LAYERS`."""
    return [name for name in model.state_dict() if not CLASS_LAYERS.isdisjoint(name.split("."))]


def read_classes(cfg: Any, weights: Weights, path: Path) -> tuple[str, ...]:
    """Return the class names of weights: from their file, else from the config, else `class 0`, `class 1`, ...

    Raises:
        WeightsError: The file at `path` contradicts itself.
    """
    num_classes = _find_num_classes(cfg, weights, path)
    return tuple(_dataset_meta(cfg, num_classes, weights.meta, path)["classes"])


def unnamed_classes(num_classes: int) -> tuple[str, ...]:
    """Return default class names: `class 0`, `class 1`, ..."""
    return tuple(f"class {index}" for index in range(num_classes))


def _open_file(location: str | Path) -> tuple[Config, str, Path, Weights]:
    """Return the config of the model that a weights file describes, its name, and the file's path and content."""
    path, weights = read_trusted_weights(location)
    metadata = require_metadata(weights.meta, path)
    return described_config(metadata), metadata.name, path, weights


def _open_record(
    name: str | Path, weights: str | Path | None, pretrained: bool
) -> tuple[Config, str, Path, Weights | None]:
    """Return the config of a model of the zoo, its name, and the path and content of its weights, or of others."""
    record = get_detector_info(str(name))
    path, loaded = read_trusted_weights(record if weights is None else weights) if pretrained else (Path(), None)
    return Config.fromfile(record.config_path), record.name, path, loaded


def _find_num_classes(cfg: Any, weights: Weights | None, path: Path) -> int:
    """Return the number of classes of weights at `path`, or else of the config. Refuse weights whose metadata lies."""
    num_configured: int = next(iter(find_num_classes(cfg.model).values()))
    if weights is None:
        return num_configured
    num_classes = _count_classes(weights.tensors) or num_configured
    metadata = find_metadata(weights.meta, path)
    if metadata and len(metadata.classes) != num_classes:
        named = len(metadata.classes)
        raise WeightsError(
            f"{path}: its metadata contradicts its tensors: {named:,} classes instead of {num_classes:,}"
        )
    return num_classes


def _count_classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Derive the number of classes from the bias of the layer that classifies; None if there is no such layer."""
    lengths = {name.removesuffix(".bias"): len(tensor) for name, tensor in tensors.items() if tensor.ndim == 1}
    if "bbox_head.retina_cls" in lengths:  # one bias for each anchor and class; retina_reg has four for each anchor
        return 4 * lengths["bbox_head.retina_cls"] // (lengths.get("bbox_head.retina_reg") or 1) or None
    counts = (lengths[layer] - num_others for layer, num_others in CLASSIFYING_LAYERS.items() if layer in lengths)
    return max(next(counts, 0), 0) or None


def _dataset_meta(cfg: Any, num_classes: int, meta: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return MMDetection's `dataset_meta`. The `meta` of the file at `path` is untrusted."""
    numbered = unnamed_classes(num_classes)
    dataset_meta = dict(cfg.train_dataloader.dataset.get("metainfo", CocoDataset.METAINFO))
    if len(dataset_meta["classes"]) != num_classes:
        dataset_meta = {"classes": numbered}
    if metadata := find_metadata(meta, path):
        thresholds = {"score_thresholds": metadata.score_thresholds} if metadata.score_thresholds else {}
        return {**dataset_meta, "classes": metadata.classes, **thresholds}
    match meta:  # of MMEngine, MMCV, or plain
        case {"dataset_meta": {"classes": list(names)}} | {"CLASSES": list(names)} | {"classes": list(names)}:
            if len(names) == num_classes:
                dataset_meta["classes"] = tuple(
                    name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100 else default
                    for name, default in zip(names, numbered, strict=True)
                )
    return dataset_meta


def _init_weights(model: Any) -> None:
    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel(logging.WARNING)  # MMEngine would log a paragraph for each parameter
    try:
        model.init_weights()
    finally:
        log.setLevel(level)


class _ParametersOnMeta(TorchFunctionMode):
    """Creates parameters on the meta device, so that initialising them is free: layers create them by `torch.empty`."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))
