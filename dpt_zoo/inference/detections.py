"""What a detector found in one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

COCO_CATEGORY_IDS = tuple(index for index in range(1, 91) if index not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's ids of its 80 classes: ten numbers between 1 and 90 are not in use."""


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, by descending score.

    Attributes:
        boxes: `(N, 4)` float32 xyxy, pixels of the original image.
        scores: `(N,)` float32 in [0, 1].
        labels: `(N,)` int64, indices into `classes`.
        masks: `(N, H, W)` bool at the size of the original image, or None from a model without masks.
        classes: the names of all classes that the model knows.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for label in self.labels]

    def above(self, score_threshold: float) -> "Detections":
        """The objects with at least this score."""
        keep = self.scores >= score_threshold
        masks = None if self.masks is None else self.masks[keep]
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], masks, self.classes)

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """COCO's results format: one record per object, boxes as xywh, masks as compressed RLE.

        Args:
            image_id: the image's.
            category_ids: of each class; objects of a class without one are left out. By default the 80 COCO classes
                have COCO's (1 to 90, with gaps), any others 1, 2, 3, ...
        """
        if category_ids is None:
            is_coco = len(self.classes) == len(COCO_CATEGORY_IDS)
            category_ids = COCO_CATEGORY_IDS if is_coco else range(1, len(self.classes) + 1)
        records = []
        for index, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            if category_ids[label] is None:
                continue
            x1, y1, x2, y2 = box.tolist()
            record: dict[str, Any] = {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
            if self.masks is not None:
                rle = coco_mask.encode(np.asfortranarray(self.masks[index]))
                record["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
            records.append(record)
        return records
