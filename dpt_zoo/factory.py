"""A name becomes an MMDetection model, with its weights."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .errors import InputError
from .manifest import Architecture, Checkpoint, get_checkpoint
from .weights.loading import load_weights
from .weights.store import read_trusted

logger = logging.getLogger(__name__)

CLASS_LAYERS: dict[Architecture, tuple[str, ...]] = {
    "retinanet": ("bbox_head.retina_cls",),
    "mask_rcnn": ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"),
}
"""The layers whose shape follows the number of classes."""


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
        name: one of `list_models()`.
        pretrained: load weights; False gives a freshly initialised model.
        weights: what to load instead of the zoo's own, an authors' `.pth` or `.safetensors`: a path, `https://...`
            or `hf://org/repo/file`.
        num_classes: object classes, at least 1; where it is not the 80 of COCO, the layers that follow it
            are initialised afresh unless the file has them in the right shape, which is logged.
        device: where the model shall be: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU where there is one.

    Raises:
        UnknownModelError: no model has this name.
        InputError: another argument cannot be used.
        FetchError, OutputError: the weights are not here and cannot be fetched, or not be kept.
        WeightsError: the weights cannot be read, or are another model's.
    """
    checkpoint = get_checkpoint(name)
    target = _parse_device(device)
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise InputError(f"num_classes must be a whole number from 1, not {num_classes!r}")
    if weights is not None and not pretrained:
        raise InputError("weights= and pretrained=False exclude each other: leave one out")
    if not pretrained:
        model = build_detector(checkpoint, num_classes or checkpoint.num_classes)
        _init_weights(model)
        return model.to(target).eval()

    path, state = read_trusted(weights or checkpoint)
    if num_classes in (None, checkpoint.num_classes):
        with _ParametersOnMeta():
            model = build_detector(checkpoint, checkpoint.num_classes)
        load_weights(model, state, path, name)
    else:
        model = build_detector(checkpoint, num_classes)
        _init_weights(model)
        layers = CLASS_LAYERS[checkpoint.architecture]
        resized = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        left_out = load_weights(model, state, path, name, resized=resized)
        if left_out:
            logger.warning("%s: %d classes, initialised afresh: %s", name, num_classes, ", ".join(left_out))
    return model.to(target).eval()


def build_detector(checkpoint: Checkpoint, num_classes: int) -> nn.Module:
    """Build a detector of this recipe for so many classes; its parameters are not initialised as for training."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    cfg = Config.fromfile(checkpoint.config_path)
    _set_num_classes(cfg.model, num_classes)

    from mmdet.datasets import CocoDataset
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    model_cfg = cfg.model.copy()
    model_cfg.backbone = {**model_cfg.backbone, "init_cfg": None}  # a training run's start, not this one's
    model: Any = MODELS.build(model_cfg)
    model.cfg = cfg
    model.dataset_meta = dict(CocoDataset.METAINFO)
    if num_classes != checkpoint.num_classes:
        model.dataset_meta = {"classes": tuple(f"class {index}" for index in range(num_classes))}
    return model


def _init_weights(model: Any) -> None:
    from mmengine.logging import MMLogger

    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel(logging.WARNING)  # MMEngine would log a paragraph for each parameter
    try:
        model.init_weights()
    finally:
        log.setLevel(level)


def _set_num_classes(model_cfg: Any, num_classes: int) -> None:
    owner = model_cfg.get("roi_head", model_cfg)
    for head in ("bbox_head", "mask_head"):
        if head in owner:
            owner[head].num_classes = num_classes


class _ParametersOnMeta(TorchFunctionMode):
    """What layers make with `torch.empty`, their parameters, has no memory yet and costs nothing to initialise."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))


def _parse_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}): try 'cpu'") from error
    return target
