"""A detector as one graph of tensor operators, from images to objects, for any image size and number of images."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ..inference.limits import Limits
from ..models.detection import head_configs

NMS = Callable[[Tensor, Tensor, int, float, float], Tensor]
"""A function as `torchvision_nms`."""


def torchvision_nms(
    boxes: Tensor, scores: Tensor, max_per_class: int, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Suppress overlapping boxes of the same group and class, as ONNX's NonMaxSuppression, but in one pass.

    Args:
        boxes: `(G, N, 4)` xyxy, of G groups that do not affect each other.
        scores: `(G, C, N)` of each class.
        max_per_class: not used: only ONNX's operator has this limit.
        iou_threshold: a box is dropped if its IoU with a kept box of the same group and class is above it.
        score_threshold: boxes whose score is not above it are ignored.

    Returns:
        The kept boxes, by falling score: `(M, 3)` int64, the indices of group, class and box.
    """
    candidates = (scores > score_threshold).nonzero()
    group, label, index = candidates.unbind(1)
    # Boxes of different groups and classes are moved apart: in float64, so that their IoUs do not change.
    shift = (boxes.double().amax() + 1) * (group * scores.shape[1] + label)
    kept = torchvision.ops.nms(
        boxes[group, index].double() + shift[:, None], scores[group, label, index].double(), iou_threshold
    )
    return candidates[kept]


@torch.library.custom_op("dpt_zoo::nms", mutates_args=())
def onnx_nms(boxes: Tensor, scores: Tensor, max_per_class: int, iou_threshold: float, score_threshold: float) -> Tensor:
    """Compute `torchvision_nms` as one operator, which becomes one NonMaxSuppression in ONNX.

    `boxes`, `scores`, `max_per_class`, `iou_threshold` and `score_threshold` are those of `torchvision_nms`.
    """
    return torchvision_nms(boxes, scores, max_per_class, iou_threshold, score_threshold)


@onnx_nms.register_fake
def _(boxes: Tensor, scores: Tensor, max_per_class: int, iou_threshold: float, score_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)


def build_graph(model: Any, nms: NMS, limits: Limits) -> "DetectorGraph":
    """Return the graph of a detector, which is set to eval mode, with `nms` and `limits` as in `DetectorGraph`."""
    return (MaskRCNNGraph if hasattr(model, "roi_head") else RetinaNetGraph)(model, nms, limits).eval()


class DetectorGraph(nn.Module):
    """Images to objects, with the inputs and outputs of `runtimes.graph_metadata`.

    Args:
        model: a detector from `create_model`. The graph shares its modules.
        nms: `onnx_nms`, or `torchvision_nms` for a graph that only needs the operators of PyTorch and torchvision.
        limits: what limits the objects of an image, whatever the graph's input `score_threshold`.

    Attributes:
        test_cfg: the configs of the heads, with the limits: see `head_configs`.
    """

    def __init__(self, model: Any, nms: NMS, limits: Limits) -> None:
        super().__init__()
        self.model = model
        self.nms = nms
        self.test_cfg = limits.apply(head_configs(model))

    def forward(self, images: Tensor, image_sizes: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        """Detect objects: see `runtimes.graph_metadata.OUTPUTS`."""
        limits = image_sizes.flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): the largest x, y, x, y of a box
        features = self._pyramid(self.model.backbone(self._normalise(images, image_sizes)))
        return self._detect(features, limits, score_threshold)

    def _detect(self, features: tuple[Tensor, ...], limits: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in the feature pyramids of images with these `limits` `(B, 1, 4)` of boxes."""
        raise NotImplementedError

    def _normalise(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation; the padding becomes 0."""
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, :1]  # (B, H)
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
        is_inside = (rows[:, :, None] & columns[:, None])[:, None]
        preprocessor = self.model.data_preprocessor
        return torch.where(is_inside, (images - preprocessor.mean) / preprocessor.std, 0)

    def _pyramid(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the feature pyramid of the backbone's maps.

        The neck may add levels by max pooling with 1x1 windows and stride 2. Here every second pixel is selected by its
        index, which gives the same: before PyTorch 2.13, `torch.export` adds guards to max pooling, and to slices with
        steps, that refuse some image sizes.
        """
        neck = copy.copy(self.model.neck)
        neck.num_outs = len(neck.fpn_convs)
        features = list(neck(maps))
        for _ in range(neck.num_outs, self.model.neck.num_outs):
            last = features[-1]
            rows, columns = (torch.arange(0, size, 2, device=last.device) for size in last.shape[2:])
            features.append(last.index_select(2, rows).index_select(3, columns))
        return tuple(features)

    def _candidates(
        self, head: Any, limit: int, features: tuple[Tensor, ...], limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the best pairs of box and class of each level, at most `limit`.

        Returns:
            Boxes `(B, N, 4)` xyxy, scores `(B, N)`, labels `(B, N)` and levels `(N,)`.
        """
        all_boxes, all_scores, all_labels, levels = [], [], [], []
        num_classes = head.cls_out_channels
        for level, (logits, deltas) in enumerate(zip(*head(features), strict=True)):
            size = logits.shape[2:]
            anchors = head.prior_generator.single_level_grid_priors(size, level, logits.dtype, logits.device)
            logits = logits.permute(0, 2, 3, 1).reshape(limits.shape[0], -1, num_classes)
            deltas = deltas.permute(0, 2, 3, 1).reshape(limits.shape[0], -1, 4)
            # The best pairs are among the anchors with the best maxima: a search in N instead of N * classes.
            best, taken = _top_k(logits.amax(2), limit)  # (B, K)
            labels = torch.zeros_like(taken)
            if num_classes > 1:
                best, pairs = _top_k(_take(logits, taken).flatten(1), limit)
                rows = torch.div(pairs, num_classes, rounding_mode="floor")
                taken, labels = taken.gather(1, rows), pairs - rows * num_classes
            all_boxes.append(_decode(head.bbox_coder, anchors[taken], _take(deltas, taken), limits))
            all_scores.append(best.sigmoid())
            all_labels.append(labels)
            levels.append(torch.full_like(best[0], level, dtype=torch.int64))
        return torch.cat(all_boxes, 1), torch.cat(all_scores, 1), torch.cat(all_labels, 1), torch.cat(levels)

    def _select(
        self, boxes: Tensor, scores: Tensor, test_cfg: Any, score_threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the objects of each image, at most `max_per_img`, sorted by image and falling score.

        Args:
            boxes: `(B, N, 4)` xyxy, or `(B, C, N, 4)` if each class has its own.
            scores: `(B, C, N)`; values that are not positive are ignored.
            test_cfg: the head's `test_cfg`.
            score_threshold: the lowest score of an object, a scalar.

        Returns:
            The image, box, score and label of each object.
        """
        num_images, num_classes, num_boxes = scores.shape
        is_agnostic = test_cfg.nms.get("class_agnostic", False)
        if is_agnostic and boxes.ndim == 3:
            boxes = boxes[:, None].expand(-1, num_classes, -1, -1)
        # Boxes of different groups and classes do not suppress each other.
        classes_of_group = 1 if is_agnostic or boxes.ndim == 4 else num_classes
        boxes_of_group = num_classes * num_boxes if is_agnostic else num_boxes
        group, label, index = self.nms(
            boxes.reshape(-1, boxes_of_group, 4),
            scores.reshape(-1, classes_of_group, boxes_of_group),
            test_cfg.max_per_img,
            test_cfg.nms.iou_threshold,
            test_cfg.score_thr,
        ).unbind(1)
        position = (group * classes_of_group + label) * boxes_of_group + index
        scores = _keep_only(scores.flatten(), position).reshape(num_images, -1)
        best, where = _top_k(scores, test_cfg.max_per_img)  # (B, K)
        image, rank = ((best >= score_threshold) & (best > 0)).nonzero().unbind(1)
        position = image * (num_classes * num_boxes) + where[image, rank]
        row = torch.div(position, num_boxes, rounding_mode="floor")  # of (B*C, N)
        taken = boxes[image, position - row * num_boxes] if boxes.ndim == 3 else boxes.reshape(-1, 4)[position]
        return image, taken, best[image, rank], row % num_classes


class RetinaNetGraph(DetectorGraph):
    """RetinaNet."""

    def _detect(self, features: tuple[Tensor, ...], limits: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        """Return `image_indices`, `boxes`, `scores` and `labels`."""
        head = self.model.bbox_head
        boxes, scores, labels, _ = self._candidates(head, self.test_cfg.nms_pre, features, limits)
        classes = torch.arange(head.num_classes, device=labels.device)[:, None]
        scores = torch.where(labels[:, None] == classes, scores[:, None], -1)  # (B, C, N)
        return self._select(boxes, scores, self.test_cfg, score_threshold)


class MaskRCNNGraph(DetectorGraph):
    """Mask R-CNN."""

    def _detect(self, features: tuple[Tensor, ...], limits: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        """Return `image_indices`, `boxes`, `scores`, `labels` and `masks`."""
        roi_head = self.model.roi_head
        boxes, is_proposal = self._proposals(features, limits)
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(*boxes.shape[:2])
        logits, deltas = roi_head.bbox_head(
            _pool(roi_head.bbox_roi_extractor, features, image.flatten(), boxes.flatten(0, 1))
        )
        scores = logits.softmax(1)[:, :-1].unflatten(0, boxes.shape[:2])  # (B, R, C)
        scores = torch.where(is_proposal[:, :, None], scores, -1).transpose(1, 2)
        deltas = deltas.unflatten(0, boxes.shape[:2])
        boxes = _decode(roi_head.bbox_head.bbox_coder, boxes, deltas, limits.repeat(1, 1, deltas.shape[2] // 4))
        if not roi_head.bbox_head.reg_class_agnostic:
            boxes = boxes.unflatten(2, (-1, 4)).transpose(1, 2)  # (B, C, R, 4)
        image, boxes, scores, labels = self._select(boxes, scores, self.test_cfg["rcnn"], score_threshold)
        masks = self._masks(_pool(roi_head.mask_roi_extractor, features, image, boxes), labels)
        return image, boxes, scores, labels, masks

    def _proposals(self, features: tuple[Tensor, ...], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes `(B, R, 4)` in which objects are searched, and which of them are proposals `(B, R)`."""
        test_cfg = self.test_cfg["rpn"]
        boxes, scores, _, levels = self._candidates(self.model.rpn_head, test_cfg.nms_pre, features, limits)
        level = torch.arange(len(features), device=levels.device)[:, None]
        by_level = torch.where(levels == level, scores[:, None], -1)  # (B, L, N): levels are suppressed separately
        settings = test_cfg.max_per_img, test_cfg.nms.iou_threshold, 0.0
        image, _, index = self.nms(boxes, by_level, *settings).unbind(1)
        scores = _keep_only(scores.flatten(), image * scores.shape[1] + index).reshape(scores.shape)
        scores, taken = _top_k(scores, test_cfg.max_per_img)
        return _take(boxes, taken), scores > 0

    def _masks(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the masks `(N, 28, 28)` of objects, for their own class, from their pooled features."""
        head = self.model.roi_head.mask_head
        for conv in head.convs:
            pixels = conv(pixels)
        pixels = head.upsample(pixels).relu()  # (N, C, 28, 28)
        weight, bias = head.conv_logits.weight.flatten(1)[labels], head.conv_logits.bias[labels]
        # Not einsum: ONNX Runtime up to 1.23 crashes without objects.
        logits = (weight[:, None] @ pixels.flatten(2)).unflatten(2, pixels.shape[2:]).squeeze(1)
        return (logits + bias[:, None, None]).sigmoid()


def _top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` highest values of each row and their indices, or all if there are fewer."""
    best, index = values.topk(torch.sym_min(k, values.shape[1]), dim=1)
    return best, index


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return rows of each image: from `(B, N, D)` and indices `(B, K)` to `(B, K, D)`."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def _keep_only(values: Tensor, index: Tensor) -> Tensor:
    """Return `values` `(N,)` with all but those at `index` replaced by -1."""
    return torch.full_like(values, -1).scatter(0, index, values[index])


def _decode(coder: Any, boxes: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    """Apply deltas `(B, N, 4*C)` to boxes `(B, N, 4)`: return `(B, N, 4*C)` xyxy, clipped to `limits` `(B, 1, 4*C)`."""
    decoded = coder.decode(boxes.flatten(0, 1), deltas.flatten(0, 1)).reshape(deltas.shape)
    return torch.minimum(decoded.clamp(min=0), limits)


def _pool(extractor: Any, features: tuple[Tensor, ...], image: Tensor, boxes: Tensor) -> Tensor:
    """Pool features in boxes `(N, 4)` of images `(N,)`, each on the pyramid level that suits its size.

    This is MMDetection's `SingleRoIExtractor` without its branch for levels without boxes.
    """
    rois = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
    levels = extractor.map_roi_levels(rois, extractor.num_inputs)
    pooled = boxes.new_zeros(boxes.shape[0], extractor.out_channels, *extractor.roi_layers[0].output_size)
    for level, layer in enumerate(extractor.roi_layers):
        index = (levels == level).nonzero()[:, 0]
        geometry = layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        pooled = pooled.index_put((index,), torchvision.ops.roi_align(features[level], rois[index], *geometry))
    # For a box without extent, OpenVINO's RoiAlign returns NaN, and others 0.
    has_extent = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return torch.where(has_extent[:, None, None, None], pooled, 0)
