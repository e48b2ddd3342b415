"""The objects that a network detects in an image or in a view of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RLE = Mapping[str, Any]
"""A mask compressed by pycocotools: "size" (height, width) and "counts" (bytes)."""


class Objects(NamedTuple):
    """N objects: boxes `(N, 4)` xyxy in pixels, scores in [0, 1], indices of classes, and masks if there are any."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    rles: Sequence[RLE] | None

    def select(self, index: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "Objects":
        """Return some of the objects, as NumPy selects them."""
        rles = self.rles
        if rles is not None:
            rles = [rles[each] for each in np.arange(len(self.scores))[index].tolist()]
        return Objects(self.boxes[index], self.scores[index], self.labels[index], rles)


def concatenate(parts: Sequence[Objects]) -> Objects:
    """Return the objects of at least one part, one after another."""
    boxes, scores, labels, rles = zip(*parts, strict=True)
    all_rles = None if rles[0] is None else [rle for each in rles for rle in each or ()]
    return Objects(np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels), all_rles)
