"""From prepared images to objects: MMDetection's own steps, but for those that take more time or memory than needed."""

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

from .. import mmlab  # noqa: F401  (before mmdet)
from ..models.cpu import FastConvolutions
from .detections import RLE, encode_mask

CACHED_OBJECTS = 16
"""Objects of which what the mask head computes at its largest stays in a processor's cache."""

Found = list[tuple[InstanceData, list[RLE] | None]]
"""Of each image the objects, and their masks from a model that has them."""


def predict(model: Any, batch: dict[str, Any], score_threshold: float, amp: bool) -> Found:
    """Find the objects in a batch of images, as MMDetection's `inference_detector` does.

    Objects below the threshold are left out before their masks are computed, and no more than one mask is held at the
    size of its image.

    Args:
        model: one of the zoo's detectors.
        batch: what its `data_preprocessor` takes: "inputs" and "data_samples".
        score_threshold: the least score of an object.
        amp: compute in half precision where that is safe: on a GPU in the whole network; on a CPU, where that is
            bfloat16, in backbone and neck, since in the heads it costs more than half a point of AP.

    Returns:
        Of each image the objects ("bboxes", "scores", "labels"; boxes in pixels of the original image), and their masks
        from a model that has them.
    """
    prepared = model.data_preprocessor(batch, False)
    images, samples = prepared["inputs"], prepared["data_samples"]
    device = images.device.type
    with torch.autocast(device, enabled=amp):
        maps = model.backbone(images)
        if device == "cpu":  # as fast convolutions and RoIAlign take them
            maps = tuple(each.contiguous() for each in maps)
        with FastConvolutions():
            features = model.neck(maps)
    if amp and device == "cpu":
        features, amp = tuple(each.float() for each in features), False
    with torch.autocast(device, enabled=amp), FastConvolutions():
        return _find_objects(model, features, samples, score_threshold)


def _find_objects(
    model: Any, features: tuple[Tensor, ...], samples: list[DetDataSample], score_threshold: float
) -> Found:
    """Find the objects in the feature pyramids of images."""
    metas = [sample.metainfo for sample in samples]
    if not hasattr(model, "roi_head"):
        logits, deltas = model.bbox_head(features)
        _drop_all_but_the_highest(logits, model.bbox_head.test_cfg)
        found = model.bbox_head.predict_by_feat(logits, deltas, batch_img_metas=metas, rescale=True)
        return [(objects[objects.scores >= score_threshold], None) for objects in found]
    proposals = model.rpn_head.predict(features, samples, rescale=False)
    features = tuple(each.contiguous() for each in features)  # once for both heads: RoIAlign takes no other layout
    found = model.roi_head.predict_bbox(features, metas, proposals, model.roi_head.test_cfg, rescale=False)
    found = [objects[objects.scores >= score_threshold] for objects in found]
    logits = _mask_logits(model.roi_head, features, found)
    return [
        _at_original_size(objects, masks, sample, model.roi_head.test_cfg.mask_thr_binary)
        for objects, masks, sample in zip(found, logits, samples, strict=True)
    ]


def _drop_all_but_the_highest(logits: Iterable[Tensor], test_cfg: Any) -> None:
    """Set to -inf, in place, what is not among the `nms_pre` highest logits of an image's level `(N, 9*classes, H, W)`.

    MMDetection takes the same, but by sorting all that pass the threshold, which may be millions.
    """
    threshold = torch.tensor(test_cfg.score_thr).logit()
    for image in chain.from_iterable(logits):
        passing = image[image > threshold]
        if len(passing) > test_cfg.nms_pre:
            least = passing.topk(test_cfg.nms_pre).values[-1].sigmoid()
            # Of equal scores, which different logits may have, the first are taken.
            image.masked_fill_(image < passing[passing.sigmoid() >= least].min(), -math.inf)


def _mask_logits(roi_head: Any, features: tuple[Tensor, ...], found: list[InstanceData]) -> list[Tensor]:
    """Of each image's objects the mask of their class, `(N, 1, 28, 28)`."""
    counts = [len(objects) for objects in found]
    if not sum(counts):
        return [features[0].new_empty(0, 1, 1, 1)] * len(found)
    rois = bbox2roi([objects.bboxes for objects in found])
    labels = torch.cat([objects.labels for objects in found])
    head = roi_head.mask_head
    pixels = roi_head.mask_roi_extractor(features[: roi_head.mask_roi_extractor.num_inputs], rois)
    pixels = pixels.contiguous(memory_format=torch.channels_last)  # which a CPU convolves faster
    for conv in head.convs:
        pixels = conv(pixels)
    # `head.conv_logits`, of each object's own class alone
    weights, biases = head.conv_logits.weight[labels].flatten(1), head.conv_logits.bias[labels]
    upsampled = (head.upsample(part).relu_() for part in pixels.split(CACHED_OBJECTS))  # each (N, 256, 28, 28)
    parts = zip(upsampled, weights.split(CACHED_OBJECTS), strict=True)
    logits = torch.cat([torch.einsum("nchw,nc->nhw", *part) for part in parts]) + biases[:, None, None]
    return list(logits[:, None].split(counts))


def _at_original_size(
    objects: InstanceData, logits: Tensor, sample: DetDataSample, mask_threshold: float
) -> tuple[InstanceData, list[RLE]]:
    """The objects in the original image: MMDetection's `FCNMaskHead.predict_by_feat`."""
    objects.bboxes = objects.bboxes / objects.bboxes.new_tensor(sample.scale_factor).repeat(1, 2)
    height, width = sample.ori_shape
    canvas = torch.zeros(width, height, dtype=torch.uint8).T  # by columns, as RLE counts
    rles = []
    for mask, box in zip(logits.sigmoid().cpu(), objects.bboxes.cpu(), strict=True):
        (pasted,), place = _do_paste_mask(mask[None], box[None], height, width, skip_empty=True)
        canvas[place] = pasted >= mask_threshold
        rles.append(encode_mask(canvas.numpy()))
        canvas[place] = False
    return objects, rles
