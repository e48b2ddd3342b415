"""Detection with an exported file: the same objects as with PyTorch, which is not imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, WeightsError
from ..runtimes.graph_checks import MASK_SIDE, Run, expected_outputs
from ..runtimes.graph_metadata import MIN_SIDE, GraphMetadata
from ..utils.images import padded_size
from ..views.layout import Views, zoom_scale
from ..views.objects import RLE, Objects
from .backend import Resized
from .detections import encode_mask
from .limits import Limits


class ExportedBackend:
    """Runs the graph in an exported file at `path`; see `Backend` for the methods.

    `device`, `scale`, `batch_size` and `num_threads` are those of `Detector`.

    Attributes:
        metadata: what the file says about itself.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: object,
        scale: tuple[int, int] | None,
        batch_size: int | None,
        num_threads: int | None,
    ) -> None:
        self._path = path
        self.metadata, self._run = _open(path, "auto" if device is None else str(device), num_threads)
        self.classes = self.metadata.classes
        self.has_masks = self.metadata.has_masks
        self.max_detections = self.metadata.max_detections
        self.weights_sha256 = self.metadata.weights_sha256
        self._batch = self.metadata.images_per_call
        if batch_size is not None and self._batch not in (None, batch_size):
            raise InputError(f"{path} processes {self._batch} images at once: batch_size cannot be {batch_size}")
        self.batch_size = self._batch or batch_size or 1
        if scale is not None and self.metadata.has_preprocessing:
            raise InputError(f"{path} resizes images itself, to {self.metadata.scale}: leave scale out")
        self._scale = self.metadata.scale if scale is None else scale

    def resize(self, image: NDArray[np.uint8], zoom: float = 1) -> Resized:
        """Resize an `image` as MMDetection's `Resize`, to `zoom` times the scale, or to fit a graph of a fixed size."""
        height, width = image.shape[:2]
        scale = zoom_scale(self._scale, zoom)
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
        if self.metadata.image_size:
            factor = min(factor, self.metadata.image_size[0] / height, self.metadata.image_size[1] / width)
        new_height, new_width = int(height * factor + 0.5), int(width * factor + 0.5)
        if not new_height or not new_width:
            raise ValueError("the shorter side would have no pixels")
        if self.metadata.has_preprocessing:
            return Resized(_Image(image, (height, width)), (height, width))
        pixels = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        padded = padded_size([max(side, MIN_SIDE) for side in (new_height, new_width)], self.metadata.pad_divisor)
        return Resized(_Image(pixels, (height, width)), self.metadata.image_size or padded)

    def predict(self, images: Sequence[Resized], limits: Limits) -> list[Objects]:
        """Run the graph on `images`, within `limits`."""
        outputs = self._run(self.inputs(images, limits.score_threshold or 0))
        self._check(outputs, self._batch or len(images))
        return [self._objects(outputs, index, each.data, limits.max_detections) for index, each in enumerate(images)]

    def check(self, limits: Limits, views: Views) -> None:
        """Check that the graph can follow the `limits`, and take images of all sizes that the `views` need.

        Raises:
            InputError: It was exported with others, which cannot be changed.
        """
        if views.tta and (self.metadata.has_preprocessing or self.metadata.image_size):
            reason = f"{self._path.name} takes images of one scale only"
            raise InputError(f"tta: {reason}: export the model without a fixed size and without preprocessing")
        exported, threshold = self.metadata, limits.score_threshold
        if threshold is not None and threshold < exported.lowest_score:
            reason = f"its graph returns no object with a score below {exported.lowest_score:g}"
            raise InputError(
                f"score_threshold {threshold:g} is too low for {self._path.name}: {reason}: "
                f"use {exported.lowest_score:g}, or export the model with score_threshold={threshold:g}"
            )
        for name, asked, is_possible in (
            ("max_detections", limits.max_detections, (limits.max_detections or 0) <= exported.max_detections),
            ("nms_iou", limits.nms_iou, limits.nms_iou in (None, exported.nms_iou)),
            ("class_agnostic_nms", limits.class_agnostic_nms, limits.class_agnostic_nms <= exported.class_agnostic_nms),
        ):
            if not is_possible:
                reason = f"was exported with {name}={getattr(exported, name)}, which is part of its graph"
                raise InputError(f"{self._path.name} {reason}: export the model with {name}={asked}")

    def inputs(self, images: Sequence[Resized], score_threshold: float) -> dict[str, NDArray[Any]]:
        """Return the graph's inputs for `images` and a `score_threshold`. Black images fill up a fixed batch."""
        threshold = np.array(score_threshold, np.float32)
        if self.metadata.has_preprocessing:
            return {"image": images[0].data.pixels, "score_threshold": threshold}
        size = images[0].padded_size
        num_images = self._batch or len(images)
        batch = np.zeros((num_images, 3, *size), np.float32)
        image_sizes = np.tile(np.array(size, np.float32), (num_images, 1))
        for place, sizes, each in zip(batch, image_sizes, images, strict=False):
            sizes[:] = height, width = each.data.pixels.shape[:2]
            place[:, :height, :width] = each.data.pixels.transpose(2, 0, 1)
        return {"images": batch, "image_sizes": image_sizes, "score_threshold": threshold}

    def _check(self, outputs: Mapping[str, NDArray[Any]], num_images: int) -> None:
        """Check the outputs of a graph that anybody may have made."""
        num_objects = outputs["image_indices"].size
        for name, dtype, shape in expected_outputs(self.metadata):
            if outputs[name].dtype != dtype or outputs[name].shape != (num_objects, *shape[1:]):
                raise WeightsError(f"{self._path}: its graph returns {name} of another type or shape")
        limits = {
            "image_indices": num_images - 1,
            "labels": len(self.classes) - 1,
            "scores": 1.001,
            "masks": 1.001,
        }
        for name, limit in limits.items():
            if name in outputs and not ((outputs[name] >= 0) & (outputs[name] <= limit)).all():
                raise WeightsError(f"{self._path}: its graph returns {name} that contradict its metadata")

    def _objects(
        self, outputs: Mapping[str, NDArray[Any]], index: int, image: "_Image", max_detections: int | None
    ) -> Objects:
        """Return the best objects of one image, in pixels of the original image."""
        is_here = np.flatnonzero(outputs["image_indices"] == index)[:max_detections]
        boxes, sides = outputs["boxes"][is_here], np.array(image.pixels.shape[1::-1] * 2, np.float32)
        if not ((boxes >= 0) & (boxes <= sides * 1.001)).all():
            raise WeightsError(f"{self._path}: its graph returns boxes outside the image")
        height, width = image.original_size
        boxes = boxes / (sides / np.array((width, height) * 2)).astype(np.float32)
        scores = np.minimum(outputs["scores"][is_here], 1)
        rles = None
        if self.has_masks:
            masks = outputs["masks"][is_here]
            rles = paste_masks(masks, boxes, image.original_size, self.metadata.mask_threshold)
        return Objects(boxes, scores, outputs["labels"][is_here], rles)


class _Image(NamedTuple):
    """An image for the graph, and its height and width before it was resized, in pixels."""

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]


def paste_masks(
    masks: NDArray[np.float32], boxes: NDArray[np.float32], image_size: tuple[int, int], threshold: float
) -> list[RLE]:
    """Resize masks to their boxes and compress them, one at a time. They are interpolated as by MMDetection.

    Args:
        masks: `(N, 28, 28)` in [0, 1].
        boxes: `(N, 4)` xyxy, in pixels of the image.
        image_size: height and width of the image, in pixels.
        threshold: the lowest value of a pixel that belongs to the object.
    """
    canvas = np.zeros(image_size, np.uint8, order="F")  # by columns, as RLE counts
    rles = []
    for mask, box in zip(masks, boxes, strict=True):
        x0, y0 = np.maximum(np.floor(box[:2]) - 1, 0).astype(int)
        x1, y1 = np.minimum(np.ceil(box[2:]) + 1, image_size[::-1]).astype(int)
        columns, rows = _interpolation(x0, x1, box[0], box[2]), _interpolation(y0, y1, box[1], box[3])
        place = canvas[y0:y1, x0:x1]
        place[:] = (columns @ mask.T @ rows.T >= threshold).T
        rles.append(encode_mask(canvas))
        place[:] = 0
    return rles


def _interpolation(start: int, stop: int, low: np.float32, high: np.float32) -> NDArray[np.float32]:
    """Return the weight of each pixel of a mask's side, which lies from `low` to `high`, at pixels from `start` on."""
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a box almost without extent
        places = (centres - low) / (high - low) * 2 - 1  # from -1 to 1
        places[np.isinf(places)] = 0  # as in MMDetection
        positions = ((places + 1) * MASK_SIDE - 1) / 2
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(MASK_SIDE, dtype=np.float32)))


def read_metadata(path: Path) -> GraphMetadata:
    """Return what an exported file says about itself, or raise `WeightsError`."""
    if path.suffix.lower() == ".onnx":
        from ..runtimes.onnx_session import read_onnx

        return read_onnx(path)[-1]
    from ..runtimes.openvino_session import read_openvino

    return read_openvino(path)[-1]


def _open(path: Path, device: str, num_threads: int | None) -> tuple[GraphMetadata, Run]:
    if path.suffix.lower() == ".onnx":
        from ..runtimes.onnx_session import open_onnx

        return open_onnx(path, device, num_threads)
    from ..runtimes.openvino_session import open_openvino

    return open_openvino(path, device, num_threads)
