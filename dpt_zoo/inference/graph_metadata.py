"""What an exported model's file says about itself, and how its graph is called. Imports no PyTorch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import WeightsError

METADATA_KEY = "dpt_zoo"
"""Key of the JSON metadata: in ONNX `metadata_props`, in OpenVINO `rt_info`, in `.pt2` an extra file."""
FORMAT = 1
"""Version of the metadata and of the graph's inputs and outputs. Files of another version are refused."""
INPUTS = ("images", "image_sizes", "score_threshold")
OUTPUTS = ("image_indices", "boxes", "scores", "labels", "masks")
"""The names of the graph's inputs and outputs; RetinaNet has no `masks`.

- `images`: RGB in [0, 255], `(B, 3, H, W)` float32, zero-padded at the right and the bottom so that H and W are multiples
  of `pad_divisor`; the graph normalises them.
- `image_sizes`: height and width of each image without its padding, `(B, 2)` float32.
- `score_threshold`: a float32 scalar; only objects with at least this score are returned.
- `image_indices`: the image of each of N objects, `(N,)` int64. Objects are sorted by image, then by falling score.
- `boxes`: `(N, 4)` xyxy float32 in pixels of the image that was passed. `scores`: `(N,)` float32 in [0, 1].
- `labels`: `(N,)` int64, indices of `classes`. `masks`: `(N, 28, 28)` float32 in [0, 1], for the object's own class, to be
  resized to its box.

With `has_preprocessing`, the only inputs are `image`, `(H, W, 3)` uint8 RGB of any size, and `score_threshold`. The graph
resizes and pads the image; `boxes` are in pixels of the original image.
"""


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
        lowest_score: the recipe's `score_thr`; objects below it are never returned.
        mask_threshold: the lowest value of a mask's pixel that belongs to the object.
        weights_sha256: the digest of the weights, see `weights.digests.tensors_sha256`.
        license: an SPDX identifier.
        precision: "float32", "float16" or "int8": how the weights are stored.
        versions: package names and versions with which the file was made.
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
    mask_threshold: float
    weights_sha256: str
    license: str
    precision: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the metadata, of plain types."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any, path: object) -> "GraphMetadata":
        """Return the metadata that an untrusted file at `path` contains.

        Raises:
            WeightsError: It is incomplete, contradicts itself, or is of another version.
        """
        raise NotImplementedError(WeightsError)
