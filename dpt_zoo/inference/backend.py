"""What a detector computes with: PyTorch, or the runtime of an exported file."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..views.layout import Views
from ..views.objects import Objects
from .limits import Limits


class Resized(NamedTuple):
    """An image as the network takes it.

    Attributes:
        data: what the backend needs to compute.
        padded_size: images are batched only with others of this size, because more padding would change the detections.
    """

    data: Any
    padded_size: tuple[int, int]


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
    def max_detections(self) -> int:
        """The largest number of objects in an image, if the limits do not say it."""

    @property
    def weights_sha256(self) -> str:
        """The digest of the weights, see `weights.digests.tensors_sha256`."""

    def check(self, limits: Limits, views: Views) -> None:
        """Raise `InputError` if objects cannot be limited as by `limits`, or not be detected in `views`."""

    def resize(self, image: NDArray[np.uint8], zoom: float = 1) -> Resized:
        """Resize an `image` `(H, W, 3)`, RGB, to `zoom` times the scale. Any thread may call this.

        Raises:
            ValueError: No pixels would be left.
        """

    def predict(self, images: Sequence[Resized], limits: Limits) -> list[Objects]:
        """Return the objects within `limits` in each of `images`: at most `batch_size`, of one padded size."""
