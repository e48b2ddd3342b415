"""The detectors that are compared."""

from pathlib import Path
from typing import Any

import dpt_zoo.mmlab  # before mmengine and mmdet

# isort: split
import mmdet
import torch
from explicit_dpt import make_explicit
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2, retinanet_resnet50_fpn_v2

import dpt_zoo

TITLES = {"retinanet": "RetinaNet", "mrcnn": "Mask R-CNN"}
RESNET_CONFIGS = {
    "retinanet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "mrcnn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
}
PVT_CONFIG = "pvt/retinanet_pvt-s_fpn_1x_coco.py"
PVT_CHANNELS = [64, 128, 320, 512]


def build_detector(way: str, architecture: str, size: str, height: int, width: int) -> Any:
    """Build a detector for 80 classes with random weights, in eval mode, that resizes images to `height` x `width`.

    `way` is "ours", "explicit", "torchvision ResNet-50", "MMDetection ResNet-50" or "MMDetection PVT-small".
    """
    torch.manual_seed(0)
    if way == "torchvision ResNet-50":
        return _build_torchvision(architecture, height, width)
    if way.startswith("MMDetection"):
        model = _build_mmdetection(way, architecture)
    else:
        model = _build_zoo(way, architecture, size)
    for transform in model.cfg.test_dataloader.dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = (width, height)
    return model.eval()


def _build_torchvision(architecture: str, height: int, width: int) -> nn.Module:
    sides = {"min_size": min(height, width), "max_size": max(height, width), "weights": None, "weights_backbone": None}
    if architecture == "retinanet":
        return retinanet_resnet50_fpn_v2(num_classes=80, detections_per_img=100, **sides).eval()
    return maskrcnn_resnet50_fpn_v2(num_classes=81, **sides).eval()  # the background is a class


def _build_zoo(way: str, architecture: str, size: str) -> Any:
    model: Any = dpt_zoo.create_model(f"{architecture}_dpt_{size[0]}_1x", pretrained=False)
    if way == "explicit":
        make_explicit(model.backbone)
    return model


def _build_mmdetection(way: str, architecture: str) -> Any:
    configs = Path(mmdet.__file__).parent / ".mim/configs"
    cfg = Config.fromfile(configs / RESNET_CONFIGS[architecture])
    if way == "MMDetection PVT-small":
        cfg.model.backbone = Config.fromfile(configs / PVT_CONFIG).model.backbone
        cfg.model.neck.in_channels = PVT_CHANNELS
    cfg.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    model.cfg = cfg
    return model
