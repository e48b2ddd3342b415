"""Where a detector looks: the patches that its DePatch stages predict, and those that an object rests on."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.depatch import DePatch, grid_points

if TYPE_CHECKING:
    from ..inference.detections import Detections


@dataclass(frozen=True)
class StagePatches:
    """The patches of one stage, row by row, in pixels of the original image.

    Attributes:
        stage: the number of the stage, 2 to 4.
        grid_shape: the numbers of rows and columns of patches.
        boxes: `(N, 4)` xyxy, the predicted boxes.
        regular_boxes: `(N, 4)` xyxy, the boxes without predicted offsets: a regular grid.
        points: `(N, 9, 2)` xy, where the boxes are sampled.
        importance: `(N,)` in [0, 1], how much an object's score depends on each patch: the norm of the gradient with
            respect to its embedding, 1 for the largest of the stage. None if no object was chosen.
    """

    stage: int
    grid_shape: tuple[int, int]
    boxes: NDArray[np.float64]
    regular_boxes: NDArray[np.float64]
    points: NDArray[np.float64]
    importance: NDArray[np.float64] | None

    @property
    def shift(self) -> NDArray[np.float64]:
        """How far each box's centre moved from the regular grid, `(N,)`, in distances of neighbouring patches."""
        moved = (self.boxes - self.regular_boxes).reshape(-1, 2, 2).mean(axis=1)
        return np.linalg.norm(moved / self._pitch, axis=1)

    @property
    def growth(self) -> NDArray[np.float64]:
        """How many times as long and wide each box is, `(N,)`: the root of the areas' ratio."""
        areas = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (self.boxes, self.regular_boxes))
        predicted, regular = areas
        return np.sqrt(predicted / regular)

    @property
    def _pitch(self) -> NDArray[np.float64]:
        """The distances of neighbouring patches in x and y, pixels."""
        rows, columns = self.grid_shape
        centres = self.regular_boxes.reshape(rows, columns, 2, 2).mean(axis=2)
        if rows == 1 or columns == 1:
            return np.full(2, np.linalg.norm(centres[-1, -1] - centres[0, 0]) or 1)
        return np.array([centres[0, 1, 0] - centres[0, 0, 0], centres[1, 0, 1] - centres[0, 0, 1]])


@dataclass(frozen=True)
class Explanation:
    """Where a detector looked in an image.

    Attributes:
        detections: the objects, with the image.
        stages: the patches of each DePatch stage, 2 to 4.
        object: the index of the object that the patches' importance is for, or None.
    """

    detections: "Detections"
    stages: tuple[StagePatches, ...]
    object: int | None

    def save(self, path: str | Path) -> None:
        """Write a PNG of the patches of each stage, drawn on the image.

        Raises:
            OutputError: The file cannot be written.
        """
        from .drawing import draw_patches

        draw_patches(Path(path), self)


def trace_patches(
    model: Any, batch: dict[str, Any], detections: "Detections", index: int | None
) -> tuple[StagePatches, ...]:
    """Run the network on an image, and return the patches of its DePatch stages.

    Args:
        model: one of the zoo's detectors, in eval mode.
        batch: the input of its `data_preprocessor`, with one image.
        detections: the objects in the image.
        index: the object whose score is differentiated, or None.
    """
    prepared = model.data_preprocessor(batch, False)
    (sample,) = prepared["data_samples"]
    images = prepared["inputs"].to(next(model.parameters()).dtype)
    with torch.set_grad_enabled(index is not None), _recorded(model.backbone) as records:
        # A leaf that needs gradients, so that frozen parameters make no difference.
        maps = model.backbone(images.clone().requires_grad_(index is not None))
        gradients: list[Tensor | None] = [None] * len(records)
        if index is not None:
            score = _object_logit(model, model.neck(maps), detections, index, sample.scale_factor)
            gradients = list(torch.autograd.grad(score, [record.tokens for record in records]))
    height, width = images.shape[2:]
    # From [0, 1] of the padded network input to pixels of the original image.
    scale = np.array([width, height]) / np.array(sample.scale_factor)
    pairs = zip(records, gradients, strict=True)
    return tuple(_to_pixels(stage, *pair, scale) for stage, pair in enumerate(pairs, 2))


@dataclass(frozen=True)
class _Record:
    """What a DePatch computed: its grid, boxes and regular boxes `(1, N, 4)` in [0, 1], tokens `(1, N, C)`."""

    grid_shape: tuple[int, int]
    boxes: Tensor
    regular_boxes: Tensor
    tokens: Tensor


@contextlib.contextmanager
def _recorded(backbone: nn.Module) -> Iterator[list[_Record]]:
    """Record what the backbone's DePatch modules compute in the block. The network itself is not changed."""
    records: list[_Record] = []

    def record(module: nn.Module, inputs: tuple[Tensor], tokens: Tensor) -> None:
        assert isinstance(module, DePatch)
        (x,) = inputs
        grid_shape = (x.shape[2] // 2, x.shape[3] // 2)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            boxes = module.predict_boxes(x.to(module.offset_predictor.weight.dtype))
            regular = module.box_coder(torch.zeros_like(boxes), grid_shape)
        records.append(_Record(grid_shape, boxes, regular, tokens))

    handles = [each.register_forward_hook(record) for each in backbone.modules() if isinstance(each, DePatch)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _object_logit(
    model: Any, features: tuple[Tensor, ...], detections: "Detections", index: int, scale_factor: tuple[float, float]
) -> Tensor:
    """Return the log-odds of a detected object's class, a scalar: their gradient is the score's, but for a factor.

    For RetinaNet, it is the anchor's whose score is the object's. For Mask R-CNN, the object's box is classified.
    """
    label = int(detections.labels[index])
    if not hasattr(model, "roi_head"):
        logits, _ = model.bbox_head(features)
        of_class = torch.cat(
            [each.unflatten(1, (-1, model.bbox_head.cls_out_channels))[:, :, label].flatten() for each in logits]
        )
        nearest = (of_class.detach().sigmoid() - float(detections.scores[index])).abs().argmin()
        return of_class[nearest]
    head = model.roi_head
    box = features[0].new_tensor(detections.boxes[index] * np.tile(scale_factor, 2))
    roi = torch.cat([box.new_zeros(1), box])[None]
    pooled = head.bbox_roi_extractor(features[: head.bbox_roi_extractor.num_inputs], roi)
    (logits,) = head.bbox_head(pooled)[0]
    is_other = torch.arange(len(logits), device=logits.device) != label
    return logits[label] - logits[is_other].logsumexp(0)


def _to_pixels(stage: int, record: _Record, gradient: Tensor | None, scale: NDArray[np.float64]) -> StagePatches:
    importance = None
    if gradient is not None:
        norms = gradient[0].double().norm(dim=1).cpu().numpy()
        importance = norms / max(norms.max(), np.finfo(float).tiny)
    points = grid_points(record.boxes)[0].transpose(0, 1)  # (N, 9, 2)
    boxes, regular = (
        each[0].double().cpu().numpy() * np.tile(scale, 2) for each in (record.boxes, record.regular_boxes)
    )
    return StagePatches(stage, record.grid_shape, boxes, regular, points.double().cpu().numpy() * scale, importance)
