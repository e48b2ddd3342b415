"""What an exported model's file says about itself, and how its graph is called. Imports no PyTorch."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import WeightsError
from ..utils.json_files import DAMAGE
from ..utils.json_values import (
    MAX_SIDE,
    Check,
    check_thresholds,
    is_bool,
    is_classes,
    is_integer,
    is_list,
    is_number,
    is_scores,
    is_text,
    is_versions,
    or_none,
    parse_entries,
)

METADATA_KEY = "dpt_zoo"
"""Key of the JSON metadata: in ONNX `metadata_props`, in OpenVINO `rt_info`, in `.pt2` an extra file."""
FORMAT = 2
"""Version of the metadata and of the graph's inputs and outputs. Files of another version are refused."""
INPUTS = ("images", "image_sizes", "score_threshold")
OUTPUTS = ("image_indices", "boxes", "scores", "labels", "masks")
"""The names of the graph's inputs and outputs; RetinaNet has no `masks`.

- `images`: RGB in [0, 255], `(B, 3, H, W)` float32, zero-padded at the right and the bottom so that H and W are
  multiples of `pad_divisor`, and at least `MIN_SIDE`; the graph normalises them.
- `image_sizes`: height and width of each image without its padding, `(B, 2)` float32.
- `score_threshold`: a float32 scalar; only objects with at least this score are returned.
- `image_indices`: the image of each of N objects, `(N,)` int64. Objects are sorted by image, then by falling score.
- `boxes`: `(N, 4)` xyxy float32 in pixels of the image that was passed. `scores`: `(N,)` float32 in [0, 1].
- `labels`: `(N,)` int64, indices of `classes`. `masks`: `(N, 28, 28)` float32 in [0, 1], for the object's own class, to
  be resized to its box.

With `has_preprocessing`, the only inputs are `image`, `(H, W, 3)` uint8 RGB of any size, and `score_threshold`. The
graph resizes and pads the image; `boxes` are in pixels of the original image.
"""
MIN_SIDE = 64
"""The smallest height and width of `images`, in pixels. OpenVINO 2026.4 returns wrong objects after smaller ones."""


@dataclass(frozen=True)
class GraphMetadata:
    """What an exported model's file says about itself.

    Attributes:
        name: the model's name, e.g. "mrcnn_dpt_t_1x".
        classes: the names of all classes.
        has_masks: whether the graph has the output `masks`.
        has_preprocessing: whether the graph takes an image of any size, see `OUTPUTS`.
        scale: maximum longer and shorter side of a resized image, in pixels.
        pad_divisor: the sides of `images` are multiples of this number.
        batch: the only number of images that the graph takes, or None for any number.
        image_size: the only height and width of `images`, or None for any.
        mean: the mean of each RGB channel, which the graph subtracts.
        std: the standard deviation of each RGB channel, by which the graph divides.
        lowest_score: objects with a lower score are never returned.
        max_detections: the largest number of objects that are returned of an image.
        nms_iou: the IoU above which only one of two objects is kept.
        class_agnostic_nms: whether objects of different classes are compared, too.
        mask_threshold: the lowest value of a mask's pixel that belongs to the object.
        weights_sha256: the digest of the weights, see `weights.digests.tensors_sha256`.
        license: an SPDX identifier.
        precision: "float32", "float16" or "int8": how the weights are stored.
        versions: package names and versions with which the file was made.
        score_thresholds: the tuned threshold of each class, or None; see `Detector`.
    """

    name: str
    classes: tuple[str, ...]
    has_masks: bool
    has_preprocessing: bool
    scale: tuple[int, int]
    pad_divisor: int
    batch: int | None
    image_size: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    lowest_score: float
    max_detections: int
    nms_iou: float
    class_agnostic_nms: bool
    mask_threshold: float
    weights_sha256: str
    license: str
    precision: str
    versions: Mapping[str, str]
    score_thresholds: tuple[float, ...] | None = None

    @property
    def images_per_call(self) -> int | None:
        """The only number of images that a call of the graph takes, or None for any."""
        return 1 if self.has_preprocessing else self.batch

    def to_json(self) -> dict[str, Any]:
        """Return the content of the metadata, of plain types."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any, path: object) -> "GraphMetadata":
        """Return the metadata that an untrusted file at `path` contains.

        Raises:
            WeightsError: It is incomplete, contradicts itself, or is of another version.
        """
        metadata = cls(**parse_entries(content, FORMAT, _VALID, path))
        check_thresholds(metadata.score_thresholds, metadata.classes, path)
        fixed, divisor = metadata.image_size, metadata.pad_divisor
        if metadata.has_preprocessing and (fixed is not None or metadata.batch not in (None, 1)):
            raise WeightsError(f"{path}: its metadata contradicts itself: one image of any size, and of a fixed size")
        if fixed is not None and any(side % divisor for side in fixed):
            raise WeightsError(f"{path}: its metadata contradicts itself: {fixed} are no multiples of {divisor}")
        return metadata

    @classmethod
    def parse(cls, text: str | bytes, path: object) -> "GraphMetadata":
        """Return the metadata in the JSON `text` of an untrusted file at `path`, or raise `WeightsError`."""
        try:
            content = json.loads(text)
        except DAMAGE as error:
            raise WeightsError(f"{path}: its metadata is not JSON: export the model again") from error
        return cls.from_json(content, path)


_VALID: Mapping[str, Check] = {
    "name": is_text,
    "classes": is_classes,
    "has_masks": is_bool,
    "has_preprocessing": is_bool,
    "scale": is_list(2, is_integer(MAX_SIDE)),
    "pad_divisor": is_integer(1024),
    "batch": or_none(is_integer(1024)),
    "image_size": or_none(is_list(2, is_integer(MAX_SIDE))),
    "mean": is_list(3, is_number(-1000, 1000)),
    "std": is_list(3, is_number(1e-3, 1000)),
    "lowest_score": is_number(0, 1),
    "max_detections": is_integer(1 << 20),
    "nms_iou": is_number(0, 1),
    "class_agnostic_nms": is_bool,
    "mask_threshold": is_number(0, 1),
    "weights_sha256": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "license": is_text,
    "precision": lambda value: value in ("float32", "float16", "int8"),
    "versions": is_versions,
    "score_thresholds": or_none(is_scores),
}
"""Whether the value of each entry is valid."""
