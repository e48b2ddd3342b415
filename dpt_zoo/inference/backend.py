"""What a detector computes with: PyTorch, or the runtime of an exported file."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .detections import RLE
from .limits import Limits


class Resized(NamedTuple):
    """An image as the network takes it.

    Attributes:
        data: what the backend needs to compute.
        padded_size: images are batched only with others of this size, because more padding would change the detections.
    """

    data: Any
    padded_size: tuple[int, int]


class Objects(NamedTuple):
    """The objects of one image, as in `Detections`."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    rles: Sequence[RLE] | None


class Backend(Protocol):
    """Detects objects in batches of images.

    Attributes:
        classes: the names of all classes of the model.
        has_masks: whether objects have masks.
        batch_size: the number of images to process at once.
    """

    classes: tuple[str, ...]
    has_masks: bool
    batch_size: int

    @property
    def weights_sha256(self) -> str:
        """The digest of the weights, see `weights.digests.tensors_sha256`."""

    def resize(self, image: NDArray[np.uint8]) -> Resized:
        """Resize an image `(H, W, 3)` RGB. Any thread may call this. Raise `ValueError` if no pixels would be left."""

    def predict(self, images: Sequence[Resized], limits: Limits) -> list[Objects]:
        """Return the objects within `limits` in each of `images`: at most `batch_size`, of one padded size."""
