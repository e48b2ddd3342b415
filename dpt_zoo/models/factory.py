"""A name becomes an MMDetection model, with its weights."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import mmlab  # noqa: F401  (before mmdet)

# isort: split
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS

from ..errors import InputError
from ..manifest.records import Architecture, DetectorRecord, get_detector_info, read_manifest
from ..utils.devices import find_device
from ..utils.validation import check_integer
from ..weights.loading import load_weights
from ..weights.reading import Weights
from ..weights.store import read_trusted_weights

logger = logging.getLogger(__name__)

CLASS_LAYERS = (
    "bbox_head.retina_cls",
    "roi_head.bbox_head.fc_cls",
    "roi_head.bbox_head.fc_reg",
    "roi_head.mask_head.conv_logits",
)
"""The layers of both architectures whose shape depends on the number of classes."""

MAX_CLASS_NAME = 100
"""Characters of a class name from a file, at most."""


def create_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Create a detector of the zoo: a plain MMDetection model in eval mode, with `.cfg` and `.dataset_meta`.

    It works with all of MMDetection, such as `mmdet.apis.inference_detector(model, image)`.

    Args:
        name: one of `list_models(include_demos=True)`.
        pretrained: load weights; False initialises the model for training instead.
        weights: other weights than the zoo's, `.pth` or `.safetensors`: a path, `https://...` or
            `hf://org/repo/file`. Class names in the file replace the zoo's.
        num_classes: object classes, at least 1; by default those of the weights. If the weights have another number,
            the layers that depend on it are newly initialised, with a warning in the log.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU if there is one.

    Raises:
        UnknownModelError: No model has this name.
        InputError: An argument cannot be used.
        FetchError, OutputError: The weights are not on this machine and cannot be fetched or stored.
        WeightsError: The weights cannot be read, or belong to another model.
    """
    record = _find_detector(name)
    target = find_device(device)
    if num_classes is not None:
        check_integer("num_classes", num_classes, 1)
        num_classes = int(num_classes)  # a NumPy integer could not be written into a config
    if weights is not None and not pretrained:
        raise InputError("weights= and pretrained=False exclude each other: leave one out")
    meta: Mapping[str, Any] = {}
    if not pretrained:
        num_classes = num_classes or record.num_classes
        model: Any = build_detector(record, num_classes)
        _init_weights(model)
    else:
        path, loaded = read_trusted_weights(weights or record)
        num_known = _count_classes(record.architecture, loaded.tensors) or record.num_classes
        num_classes = num_classes or num_known
        if num_classes == num_known:
            with _ParametersOnMeta():
                model = build_detector(record, num_classes)
            load_weights(model, loaded.tensors, path, name)
            meta = loaded.meta if weights else {}
        else:
            model = build_detector(record, num_classes)
            _init_weights(model)
            left_out = load_weights(model, loaded.tensors, path, name, resized=find_class_tensors(model))
            logger.warning("%s: newly initialised for %d classes: %s", name, num_classes, ", ".join(left_out))
    model.dataset_meta = _dataset_meta(model.cfg, num_classes, meta)
    return model.to(target).eval()


def build_detector(record: DetectorRecord, num_classes: int) -> nn.Module:
    """Build a detector for a number of classes, with its config as `.cfg`, but not initialised for training."""
    cfg = Config.fromfile(record.config_path)
    set_num_classes(cfg.model, num_classes)
    init_default_scope("mmdet")
    model_cfg = cfg.model.copy()
    model_cfg.backbone = {**model_cfg.backbone, "init_cfg": None}  # ImageNet weights are for training runs
    model: Any = MODELS.build(model_cfg)
    model.cfg = cfg
    return model


def set_num_classes(model_cfg: Any, num_classes: int) -> None:
    """Set the number of classes in the heads of a config's `model`."""
    owner = model_cfg.get("roi_head", model_cfg)
    for head in ("bbox_head", "mask_head"):
        if head in owner:
            owner[head].num_classes = num_classes


def find_class_tensors(model: nn.Module) -> list[str]:
    """Return the names of the weights and biases whose shape depends on the number of classes."""
    return [name for name in model.state_dict() if name.rpartition(".")[0] in CLASS_LAYERS]


def read_classes(cfg: Any, weights: Weights) -> tuple[str, ...]:
    """Return the class names of weights for a config: from the file, else the config's, else `class 0`, ..."""
    architecture: Architecture = "mask_rcnn" if "roi_head" in cfg.model else "retinanet"
    head = cfg.model.get("roi_head", cfg.model).bbox_head
    num_classes = _count_classes(architecture, weights.tensors) or head.num_classes
    return tuple(_dataset_meta(cfg, num_classes, weights.meta)["classes"])


def unnamed_classes(num_classes: int) -> tuple[str, ...]:
    """Return fallback class names: `class 0`, `class 1`, ..."""
    return tuple(f"class {index}" for index in range(num_classes))


def _find_detector(name: str) -> DetectorRecord:
    if not isinstance(name, str):
        raise InputError(f"name must be a model's name, not {type(name).__name__}: give a file of weights as weights=")
    if name in read_manifest().classifiers:
        raise InputError(f"{name} is a classifier: import dpt_zoo.models, then call timm.create_model({name!r})")
    return get_detector_info(name)


def _count_classes(architecture: Architecture, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that the biases of a detector's weights show; None if they do not."""
    lengths = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim == 1}
    if architecture == "mask_rcnn":  # the last one is the background
        count = lengths.get("roi_head.bbox_head.fc_cls.bias", 0) - 1
    else:  # one for each anchor and class, and in the other layer four for each anchor
        count = 4 * lengths.get("bbox_head.retina_cls.bias", 0) // (lengths.get("bbox_head.retina_reg.bias") or 1)
    return count if count > 0 else None


def _dataset_meta(cfg: Any, num_classes: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return MMDetection's `dataset_meta`; the file's `meta` may say anything."""
    numbered = unnamed_classes(num_classes)
    dataset_meta = dict(cfg.train_dataloader.dataset.get("metainfo", CocoDataset.METAINFO))
    if len(dataset_meta["classes"]) != num_classes:
        dataset_meta = {"classes": numbered}
    match meta:  # as MMEngine, MMCV or a plain file has it
        case {"dataset_meta": {"classes": list(names)}} | {"CLASSES": list(names)} | {"classes": list(names)}:
            if len(names) == num_classes:
                pairs = zip(names, numbered, strict=True)
                dataset_meta["classes"] = tuple(name if _is_class_name(name) else number for name, number in pairs)
    return dataset_meta


def _is_class_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_CLASS_NAME


def _init_weights(model: Any) -> None:
    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel(logging.WARNING)  # MMEngine would log a paragraph for each parameter
    try:
        model.init_weights()
    finally:
        log.setLevel(level)


class _ParametersOnMeta(TorchFunctionMode):
    """Gives parameters, which layers create by `torch.empty`, no memory yet, so that initialising them is free."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))
