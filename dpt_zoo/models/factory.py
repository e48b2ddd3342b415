"""A name becomes an MMDetection model, with its weights."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..manifest.records import Architecture, DetectorRecord, get_detector_info
from ..utils.devices import find_device
from ..weights.loading import load_weights
from ..weights.reading import Weights
from ..weights.store import read_trusted_weights

logger = logging.getLogger(__name__)

CLASS_LAYERS: dict[Architecture, tuple[str, ...]] = {
    "retinanet": ("bbox_head.retina_cls",),
    "mask_rcnn": ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"),
}
"""The layers whose shape follows the number of classes."""

MAX_CLASS_NAME = 100
"""Characters of a class's name that is taken from a file."""


def create_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Make one of the zoo's detectors: a plain MMDetection model in eval mode, with `.cfg` and `.dataset_meta`.

    `mmdet.apis.inference_detector(model, image)` and all else of MMDetection works on it.

    Args:
        name: one of `list_models(include_demos=True)`.
        pretrained: load weights; False gives a freshly initialised model.
        weights: what to load instead of the zoo's own, an authors' `.pth` or `.safetensors`: a path, `https://...`
            or `hf://org/repo/file`. The names of the classes are those that it tells, where it tells any.
        num_classes: object classes, at least 1, by default as many as the weights are for; where they are for
            another number, the layers that follow it are initialised afresh, which is logged.
        device: where the model shall be: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU where there is one.

    Raises:
        UnknownModelError: no model has this name.
        InputError: another argument cannot be used.
        FetchError, OutputError: the weights are not here and cannot be fetched, or not be kept.
        WeightsError: the weights cannot be read, or are another model's.
    """
    checkpoint = get_detector_info(name)
    target = find_device(device)
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise InputError(f"num_classes must be a whole number from 1, not {num_classes!r}")
    if weights is not None and not pretrained:
        raise InputError("weights= and pretrained=False exclude each other: leave one out")
    meta: Mapping[str, Any] = {}
    if pretrained:
        path, found = read_trusted_weights(weights or checkpoint)
        num_known = _count_classes(checkpoint.architecture, found.tensors) or checkpoint.num_classes
        num_classes = num_classes or num_known
        if num_classes == num_known:
            with _ParametersOnMeta():
                model: Any = build_detector(checkpoint, num_classes)
            load_weights(model, found.tensors, path, name)
            meta = found.meta if weights else {}
        else:
            model = build_detector(checkpoint, num_classes)
            _init_weights(model)
            layers = CLASS_LAYERS[checkpoint.architecture]
            resized = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
            left_out = load_weights(model, found.tensors, path, name, resized=resized)
            logger.warning("%s: %d classes, initialised afresh: %s", name, num_classes, ", ".join(left_out))
    else:
        num_classes = num_classes or checkpoint.num_classes
        model = build_detector(checkpoint, num_classes)
        _init_weights(model)
    model.dataset_meta = _dataset_meta(model.cfg, num_classes, meta)
    return model.to(target).eval()


def build_detector(record: DetectorRecord, num_classes: int) -> nn.Module:
    """Build a detector for so many classes, its recipe as `.cfg`; its parameters are not initialised for training."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    cfg = Config.fromfile(record.config_path)
    set_num_classes(cfg.model, num_classes)

    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    model_cfg = cfg.model.copy()
    model_cfg.backbone = {**model_cfg.backbone, "init_cfg": None}  # a training run's start, not this one's
    model: Any = MODELS.build(model_cfg)
    model.cfg = cfg
    return model


def set_num_classes(model_cfg: Any, num_classes: int) -> None:
    """Have the heads of a recipe's `model` be for so many classes."""
    owner = model_cfg.get("roi_head", model_cfg)
    for head in ("bbox_head", "mask_head"):
        if head in owner:
            owner[head].num_classes = num_classes


def read_classes(cfg: Any, weights: Weights) -> tuple[str, ...]:
    """The names of the classes that weights for a recipe know: as the file tells, else the recipe's, else "class 0"."""
    head = cfg.model.get("roi_head", cfg.model).bbox_head
    architecture: Architecture = "mask_rcnn" if "roi_head" in cfg.model else "retinanet"
    num_classes = _count_classes(architecture, weights.tensors) or head.num_classes
    return tuple(_dataset_meta(cfg, num_classes, weights.meta)["classes"])


def unnamed_classes(num_classes: int) -> tuple[str, ...]:
    """What classes are called whose names nothing tells."""
    return tuple(f"class {index}" for index in range(num_classes))


def _count_classes(architecture: Architecture, tensors: Mapping[str, Tensor]) -> int | None:
    """How many classes a detector's weights are for, by the length of its biases; None if they do not tell."""
    lengths = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim == 1}
    if architecture == "mask_rcnn":  # the last is the background
        count = lengths.get("roi_head.bbox_head.fc_cls.bias", 0) - 1
    else:  # one for each anchor and class, beside four for each anchor
        count = 4 * lengths.get("bbox_head.retina_cls.bias", 0) // (lengths.get("bbox_head.retina_reg.bias") or 1)
    return count if count > 0 else None


def _dataset_meta(cfg: Any, num_classes: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The classes' names: those that a file's meta tells, else the recipe's own, else "class 0", ..."""
    from mmdet.datasets import CocoDataset

    dataset_meta = dict(cfg.train_dataloader.dataset.get("metainfo", CocoDataset.METAINFO))
    numbered = unnamed_classes(num_classes)
    if len(dataset_meta["classes"]) != num_classes:
        dataset_meta = {"classes": numbered}
    told = _told_classes(meta)
    if len(told) == num_classes:
        pairs = zip(told, numbered, strict=True)
        dataset_meta["classes"] = tuple(name if _is_class_name(name) else number for name, number in pairs)
    return dataset_meta


def _told_classes(meta: Mapping[str, Any]) -> list[Any]:
    """What a file's meta lists as its classes, where MMEngine or MMCV write it, or a plain file may."""
    match meta:
        case {"dataset_meta": {"classes": list(told)}} | {"CLASSES": list(told)} | {"classes": list(told)}:
            return told
    return []


def _is_class_name(name: Any) -> bool:
    """Whether what a file says is a class's name can be shown: it may be anything."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_CLASS_NAME


def _init_weights(model: Any) -> None:
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel(logging.WARNING)  # MMEngine would log a paragraph for each parameter
    try:
        model.init_weights()
    finally:
        log.setLevel(level)


class _ParametersOnMeta(TorchFunctionMode):
    """What layers make with `torch.empty`, their parameters, has no memory yet and costs nothing to initialise."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))
