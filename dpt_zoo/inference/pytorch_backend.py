"""Detection with PyTorch: MMDetection's own steps, some of them with less time and memory."""

import contextlib
import math
import timeit
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .. import mmlab  # noqa: F401  (before mmdet)

# isort: split
from mmcv.transforms import Compose
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import get_test_pipeline_cfg
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import InputError
from ..explaining.patches import StagePatches, trace_patches
from ..models.cpu import FastConvolutions
from ..models.detection import head_configs
from ..models.factory import check_detector, create_model
from ..utils.images import padded_size
from ..utils.torch_defaults import torch_defaults
from ..views.layout import ZOOMS, Views, zoom_scale
from ..views.objects import RLE, Objects
from ..weights.digests import tensors_sha256
from .backend import Resized
from .detections import Detections, encode_mask
from .limits import Limits

CACHED_OBJECTS = 16
"""Number of objects that the mask head upsamples at once, so that its largest tensor stays in a CPU's cache."""
Predictions = list[tuple[InstanceData, list[RLE] | None]]
"""The objects of each image, and their masks if the model has masks."""


class PyTorchBackend:
    """Computes with a model from `create_model`; see `Backend` for the methods.

    `model`, `weights`, `device`, `amp`, `compile`, `scale` and `batch_size` are those of `Detector`.

    Attributes:
        model: the MMDetection model.
    """

    def __init__(
        self,
        model: Any,
        *,
        weights: str | Path | None,
        device: "str | torch.device | None",
        amp: bool,
        compile: bool,
        scale: tuple[int, int] | None,
        batch_size: int | None,
    ) -> None:
        if isinstance(model, str | Path):
            self.model: Any = create_model(model, weights=weights, device="auto" if device is None else device)
        else:
            check_detector(model, weights=weights, device=device)
            self.model = model
        self.classes: tuple[str, ...] = tuple(self.model.dataset_meta["classes"])
        self.has_masks: bool = self.model.with_mask
        self.batch_size = 1 if batch_size is None else int(batch_size)
        self._amp = amp
        if amp and next(self.model.parameters()).device.type == "cpu" and not _bfloat16_is_faster():
            raise InputError("amp needs a GPU, or a CPU on which bfloat16 is faster than float32: leave it out")
        self._compiled_backbone = torch.compile(self.model.backbone) if compile else None
        self._resize, self._pack = _build_pipeline(self.model.cfg, scale)

    @property
    def max_detections(self) -> int:
        """The largest number of objects in an image, if the limits do not say it."""
        test_cfg = head_configs(self.model)
        return int(test_cfg.get("rcnn", test_cfg)["max_per_img"])

    @cached_property
    def weights_sha256(self) -> str:
        """The digest of the weights."""
        return tensors_sha256({name: tensor.cpu() for name, tensor in self.model.state_dict().items()})

    def check(self, limits: Limits, views: Views) -> None:
        """Accept any `limits` and `views`."""

    def resize(self, image: NDArray[np.uint8], zoom: float = 1) -> Resized:
        """Resize an `image` as the config says, to `zoom` times the scale."""
        try:
            resized = self._resize[zoom]({"img": image[..., ::-1], "img_id": 0})
        except (cv2.error, ZeroDivisionError) as error:
            raise ValueError("the shorter side would have no pixels") from error
        divisor = self.model.data_preprocessor.pad_size_divisor
        return Resized(resized, padded_size(resized["img"].shape[:2], divisor))

    def pack(self, images: Sequence[Resized]) -> dict[str, Any]:
        """Return the input of the model's `data_preprocessor` for images that have one size once they are padded."""
        packed = [self._pack(each.data) for each in images]
        return {key: [each[key] for each in packed] for key in ("inputs", "data_samples")}

    def explain(self, image: Resized, detections: Detections, index: int | None) -> tuple[StagePatches, ...]:
        """Return the patches of the stages for an `image`; for `detections` and `index`, see `trace_patches`."""
        with torch_defaults(), _eval_mode(self.model):
            return trace_patches(self.model, self.pack([image]), detections, index)

    def predict(self, images: Sequence[Resized], limits: Limits) -> list[Objects]:
        """Run the network on `images` that have one size once they are padded, within `limits`."""
        batch = self.pack(images)
        with torch_defaults(), _eval_mode(self.model):
            predictions = run_network(self.model, batch, limits, self._amp, self._compiled_backbone)
        return [
            Objects(
                objects.bboxes.float().cpu().numpy(),
                objects.scores.float().cpu().numpy(),
                objects.labels.cpu().numpy(),
                rles,
            )
            for objects, rles in predictions
        ]


@cache
def _bfloat16_is_faster() -> bool:
    """Measure whether this CPU multiplies bfloat16 faster than float32; not every CPU with bfloat16 does."""
    matrices = (torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    float32, bfloat16 = (min(timeit.repeat(partial(torch.mm, each, each), number=1, repeat=10)) for each in matrices)
    return bfloat16 < float32


def _build_pipeline(cfg: Any, scale: tuple[int, int] | None) -> tuple[dict[float, Compose], Compose]:
    """Return the test pipeline of `cfg`, for images in memory, in two parts: resizing and packing as tensors.

    The first part is one for each of `ZOOMS`, the multiples of `scale`.

    Packing must not run in reader threads: a thread that uses PyTorch starts worker threads of its own, which slow down
    the network (by a third on two cores).
    """
    _load, *transforms, pack = (dict(transform) for transform in get_test_pipeline_cfg(cfg))

    def resized(zoom: float) -> Compose:
        steps = [
            {**each, "scale": zoom_scale(scale or each["scale"], zoom)} if each["type"] == "Resize" else each
            for each in transforms
        ]
        return Compose([{"type": "LoadImageFromNDArray"}, *steps])

    with DefaultScope.overwrite_default_scope("mmdet"):
        return {zoom: resized(zoom) for zoom in ZOOMS}, Compose([pack])


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode, and at the end each of its modules back to its previous mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def run_network(model: Any, batch: dict[str, Any], limits: Limits, amp: bool, backbone: Any = None) -> Predictions:
    """Detect the objects in a batch of images, as MMDetection's `inference_detector` does.

    No mask is computed for an object below the threshold, and only one mask at a time has the size of its image.

    Args:
        model: one of the zoo's detectors, in eval mode.
        batch: the input of its `data_preprocessor`: "inputs" and "data_samples".
        limits: what limits the objects. The model's own config is not changed.
        amp: half precision: on a GPU in the whole network, on a CPU not in the heads, where it costs 0.6 to 1.0 AP.
        backbone: used instead of the model's own, for example its compiled version.

    Returns:
        The objects of each image ("bboxes" in pixels of the original image, "scores", "labels") and their masks.
    """
    prepared = model.data_preprocessor(batch, False)
    images, samples = prepared["inputs"], prepared["data_samples"]
    images = images.to(next(model.parameters()).dtype)  # a user may have called `model.half()`
    device = images.device.type
    with torch.autocast(device, enabled=amp):
        maps = (model.backbone if backbone is None else backbone)(images)
        if device == "cpu":  # convolutions and RoIAlign are faster in this layout
            maps = tuple(each.contiguous() for each in maps)
        with FastConvolutions():
            features = model.neck(maps)
    if amp and device == "cpu":
        features, amp = tuple(each.float() for each in features), False
    with torch.autocast(device, enabled=amp), FastConvolutions():
        return _run_heads(model, features, samples, limits)


def _run_heads(model: Any, features: tuple[Tensor, ...], samples: list[DetDataSample], limits: Limits) -> Predictions:
    """Detect the objects in the feature pyramids of images."""
    metas, test_cfg = [sample.metainfo for sample in samples], limits.apply(head_configs(model))
    if not hasattr(model, "roi_head"):
        logits, deltas = _in_full(model.bbox_head(features))
        _drop_all_but_the_highest(logits, test_cfg)
        predictions = model.bbox_head.predict_by_feat(logits, deltas, batch_img_metas=metas, cfg=test_cfg, rescale=True)
        return [(_select(objects, limits), None) for objects in predictions]
    roi_head, rcnn = model.roi_head, test_cfg["rcnn"]
    logits, deltas = _in_full(model.rpn_head(features))
    proposals = model.rpn_head.predict_by_feat(
        logits, deltas, batch_img_metas=metas, cfg=test_cfg["rpn"], rescale=False
    )
    features = tuple(each.contiguous() for each in features)  # once for both heads: RoIAlign needs this layout
    predictions = roi_head.predict_bbox(features, metas, proposals, rcnn, rescale=False)
    predictions = [_select(objects, limits) for objects in predictions]
    parts = zip(predictions, _mask_logits(roi_head, features, predictions), samples, strict=True)
    return [_to_original_size(*part, mask_threshold=rcnn.mask_thr_binary) for part in parts]


def _select(objects: InstanceData, limits: Limits) -> InstanceData:
    """Return the objects that have at least the score threshold."""
    return objects[objects.scores >= (limits.score_threshold or 0)]


def _in_full(outputs: Iterable[list[Tensor]]) -> list[list[Tensor]]:
    """Return a head's outputs in float32, since coordinates need more digits than half precision has."""
    return [[each.float() for each in levels] for levels in outputs]


def _drop_all_but_the_highest(logits: Iterable[Tensor], test_cfg: Any) -> None:
    """Set all but the `nms_pre` highest logits of each image and level, `(N, 9*classes, H, W)`, to -inf, in place.

    MMDetection keeps the same logits, but sorts all that pass the threshold, which may be millions.
    """
    threshold = torch.tensor(test_cfg.score_thr).logit()
    for image in chain.from_iterable(logits):
        passing = image[image > threshold]
        if len(passing) > test_cfg.nms_pre:
            lowest = passing.topk(test_cfg.nms_pre).values[-1].sigmoid()
            # Different logits may have equal scores; of these, MMDetection takes the first.
            image.masked_fill_(image < passing[passing.sigmoid() >= lowest].min(), -math.inf)


def _mask_logits(roi_head: Any, features: tuple[Tensor, ...], predictions: list[InstanceData]) -> list[Tensor]:
    """Return, for each image, the mask logits of the objects for their own class, `(N, 1, 28, 28)`."""
    counts = [len(objects) for objects in predictions]
    if not sum(counts):
        return [features[0].new_empty(0, 1, 1, 1)] * len(predictions)
    rois = bbox2roi([objects.bboxes for objects in predictions])
    labels = torch.cat([objects.labels for objects in predictions])
    head = roi_head.mask_head
    pixels = roi_head.mask_roi_extractor(features[: roi_head.mask_roi_extractor.num_inputs], rois)
    pixels = pixels.contiguous(memory_format=torch.channels_last)  # faster to convolve on a CPU
    for conv in head.convs:
        pixels = conv(pixels)
    # Apply `head.conv_logits` only for the class of each object.
    weights, biases = head.conv_logits.weight[labels].flatten(1), head.conv_logits.bias[labels]
    upsampled = (head.upsample(part).relu_() for part in pixels.split(CACHED_OBJECTS))  # each (N, 256, 28, 28)
    parts = zip(upsampled, weights.split(CACHED_OBJECTS), strict=True)
    logits = torch.cat([torch.einsum("nchw,nc->nhw", *part) for part in parts]) + biases[:, None, None]
    return list(logits[:, None].split(counts))


def _to_original_size(
    objects: InstanceData, logits: Tensor, sample: DetDataSample, mask_threshold: float
) -> tuple[InstanceData, list[RLE]]:
    """Return the objects in pixels of the original image, and their masks, as `FCNMaskHead.predict_by_feat` does."""
    objects.bboxes = objects.bboxes / objects.bboxes.new_tensor(sample.scale_factor).repeat(1, 2)
    height, width = sample.ori_shape
    canvas = torch.zeros(width, height, dtype=torch.uint8).T  # by columns, as RLE counts
    rles = []
    for mask, box in zip(logits.float().sigmoid().cpu(), objects.bboxes.float().cpu(), strict=True):
        (pasted,), place = _do_paste_mask(mask[None], box[None], height, width, skip_empty=True)
        canvas[place] = pasted >= mask_threshold
        rles.append(encode_mask(canvas.numpy()))
        canvas[place] = False
    return objects, rles
